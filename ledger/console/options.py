"""Arguments and options that several commands have, and how what people write there becomes values of the API."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Final, NamedTuple, TypeAlias

import typer
from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from ledger.console.words import words
from ledger.domain.money import MalformedAmount, UnknownCurrency, parse_amount
from ledger.moments import MalformedMoment, parse_moment
from ledger.terminal import quoted
from ledger.v1.ledger_pb2 import Money, Precondition

Moment: TypeAlias = Timestamp
Length: TypeAlias = Duration

_UNIT_S: Final = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_LENGTH: Final = re.compile(r"([0-9]{1,9})([dhms])", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]{1,18}", re.ASCII)


class Pair(NamedTuple):
    """A KEY=VALUE."""

    key: str
    value: str


# --- what people write, read -----------------------------------------------------------------------------------------


def money(amount: str, currency: str) -> Money:
    """The money of an AMOUNT and a CURRENCY, to the last digit. A wrong one ends the command as wrong usage."""
    try:
        parsed = parse_amount(amount, currency)
    except (MalformedAmount, UnknownCurrency) as error:
        raise typer.BadParameter(f"{error}.") from None
    return Money(currency_code=parsed.currency_code, minor_units=parsed.minor_units)


def money_if_given(amount: str | None, currency: str | None) -> Money | None:
    """The money of both, None of neither. One without the other is wrong usage."""
    if amount is None:
        return None
    if currency is None:
        raise typer.BadParameter(f"{quoted(amount)} needs its currency, such as {quoted(f'{amount} EUR')}.")
    return money(amount, currency)


def _moment(text: str) -> Timestamp:
    try:
        return parse_moment(text)
    except MalformedMoment as error:
        raise typer.BadParameter(f"{error}.") from None


def _length(text: str) -> Duration:
    found = _LENGTH.fullmatch(text)
    if found is None:
        raise typer.BadParameter(f"{quoted(text)} is not a length of time, such as 7d, 12h, 30m or 90s.")
    return Duration(seconds=int(found[1]) * _UNIT_S[found[2]])


def _position(text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise typer.BadParameter(f"{quoted(text)} is not a position.")
    return int(text)


def _pair(text: str) -> Pair:
    key, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"{quoted(text)} is not KEY=VALUE.")
    return Pair(key, value)


def _precondition(text: str) -> Precondition:
    account_id, _, version = text.rpartition("=")
    if not (account_id and _NUMBER.fullmatch(version)):
        raise typer.BadParameter(f"{quoted(text)} is not ACCOUNT=VERSION, such as alice=7.")
    return Precondition(account_id=account_id, expected_version=int(version))


def _words_of(enum: EnumDescriptor) -> Callable[[str], int]:
    known = _typed(enum)

    def number(text: str) -> int:
        if text not in known:
            raise typer.BadParameter(f"{quoted(text)} is none of {', '.join(known)}.")
        return known[text]

    return number


def _typed(enum: EnumDescriptor) -> dict[str, int]:
    """The words of an enum as they are typed: `partially-captured`."""
    return {each.replace(" ", "-"): number for each, number in words(enum).items()}


def word_option(name: str, enum: Any, help_: str) -> Any:
    """An option that takes a word of an enum."""
    listed = ", ".join(_typed(enum.DESCRIPTOR))
    metavar = name.strip("-").upper()
    return typer.Option(name, parser=_words_of(enum.DESCRIPTOR), metavar=metavar, help=f"{help_} {listed}.")


def length_option(name: str, help_: str) -> Any:
    """An option that takes a length of time."""
    return typer.Option(name, parser=_length, metavar="LENGTH", help=help_)


def id_option(what: str) -> Any:
    """An option that takes an id which is made if it is left out."""
    return typer.Option("--id", metavar="ID", help=f"The id of this {what}; a retry needs it.  \\[a new one]")


def moment_option(name: str, help_: str) -> Any:
    """An option that takes a moment."""
    return typer.Option(name, parser=_moment, metavar="TIME", help=help_)


def metadata_of(pairs: list[Pair] | None) -> dict[str, str]:
    """The pairs as a map. A key that comes twice is wrong usage."""
    metadata: dict[str, str] = {}
    for key, value in pairs or ():
        if key in metadata:
            raise typer.BadParameter(f"the key {quoted(key)} is given twice.", param_hint="--metadata")
        metadata[key] = value
    return metadata


def known_at(at_position: int | None, recorded_at: Moment | None) -> dict[str, Any]:
    """The field that names an earlier moment, if one does. Two are wrong usage."""
    if at_position is not None and recorded_at is not None:
        raise typer.BadParameter("--at-position and --recorded-at exclude each other.")
    if at_position is not None:
        return {"at_position": at_position}
    return {"recorded_at": recorded_at}


# --- arguments -------------------------------------------------------------------------------------------------------

AccountId = Annotated[str, typer.Argument(metavar="ACCOUNT", help="The account's id.", show_default=False)]
PaymentId = Annotated[str, typer.Argument(metavar="PAYMENT", help="The payment's id.", show_default=False)]
TransferId = Annotated[str, typer.Argument(metavar="TRANSFER", help="The transfer's id.", show_default=False)]
Amount = Annotated[str, typer.Argument(metavar="AMOUNT", help="How much, such as 25.00.")]
Currency = Annotated[str, typer.Argument(metavar="CURRENCY", help="Its currency, such as EUR.")]
AmountOrAll = Annotated[str | None, typer.Argument(metavar="AMOUNT", help="How much, such as 25.00.  \\[all]")]
CurrencyOrNone = Annotated[str | None, typer.Argument(metavar="CURRENCY", help="Its currency, such as EUR.")]

# --- options of commands ---------------------------------------------------------------------------------------------

Metadata = Annotated[
    list[Pair] | None,
    typer.Option("--metadata", parser=_pair, metavar="KEY=VALUE", help="Yours, kept as it is. Can be repeated."),
]
Reference = Annotated[str, typer.Option("--reference", metavar="TEXT", help="Yours, such as an order number.")]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for the history.")]
EffectiveAt = Annotated[
    Moment | None,
    moment_option("--effective-at", "When it counts in reports, such as 2024-01-31T12:00:00Z.  \\[now]"),
]
ValidateOnly = Annotated[bool, typer.Option("--validate-only", help="Say what would come of it, and record nothing.")]
Expect = Annotated[
    list[Precondition] | None,
    typer.Option(
        "--expect",
        parser=_precondition,
        metavar="ACCOUNT=VERSION",
        help="Only if the account is at this version. Can be repeated.",
    ),
]

# --- options of queries ----------------------------------------------------------------------------------------------

AtPosition = Annotated[
    int | None, typer.Option("--at-position", parser=_position, metavar="N", help="As it was at this position.")
]
RecordedAt = Annotated[Moment | None, moment_option("--recorded-at", "As it was known at this time.")]
RecordedSince = Annotated[Moment | None, moment_option("--recorded-since", "Recorded at this time or later.")]
RecordedUntil = Annotated[Moment | None, moment_option("--recorded-until", "Recorded before this time.")]
MinPosition = Annotated[
    int | None,
    typer.Option("--min-position", parser=_position, metavar="N", help="Wait until this position is included."),
]
CurrencyFilter = Annotated[str, typer.Option("--currency", metavar="CODE", help="In this currency.")]
ReferenceFilter = Annotated[str, typer.Option("--reference", metavar="TEXT", help="With just this reference.")]
