"""The values of the API's enums as people know them: PAYMENT_STATE_PARTIALLY_CAPTURED is "partially captured"."""

from __future__ import annotations

from google.protobuf.descriptor import EnumDescriptor


def words(enum: EnumDescriptor) -> dict[str, int]:
    """Every value of an enum with its number, in the order of the contract; UNSPECIFIED has no word."""
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return {
        value.name.removeprefix(prefix).lower().replace("_", " "): value.number for value in enum.values if value.number
    }


def word(enum: EnumDescriptor, number: int) -> str:
    """The word for a number; "" for UNSPECIFIED, the number itself where a newer server has one more."""
    found = (each for each, known in words(enum).items() if known == number)
    return next(found, str(number) if number else "")
