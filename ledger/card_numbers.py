"""Card numbers are turned away at the door: what is recorded is kept for ever, and nobody could take one out again.

A guard against accidents, with as few false alarms as that allows: a number counts if it is written as on a card, has
a length and a beginning that card schemes issue, and a right check digit. Ids that only look alike pass: UUIDs, times
in any unit, IBANs, products' and devices' numbers. It is asked at the border alone, never when a command is decided:
what was recorded before a rule was there has to be decided again alike.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Final

from ledger.domain.commands import (
    AuthorizePayment,
    CapturePayment,
    CloseAccount,
    Command,
    FreezeAccount,
    IncrementAuthorization,
    OpenAccount,
    PostTransfer,
    RefundPayment,
    SetCreditLimit,
    UnfreezeAccount,
    VoidPayment,
)
from ledger.domain.errors import FieldViolation, InvalidCommand

_KEY_SHOWN: Final = 64

CHOSEN: Final[dict[type[Command], tuple[str, ...]]] = {
    OpenAccount: ("account_id",),
    SetCreditLimit: ("reason",),
    FreezeAccount: ("reason",),
    UnfreezeAccount: ("reason",),
    CloseAccount: ("reason",),
    AuthorizePayment: ("payment_id", "reference"),
    IncrementAuthorization: ("increment_id",),
    CapturePayment: ("capture_id",),
    VoidPayment: ("reason",),
    RefundPayment: ("refund_id",),
    PostTransfer: ("transfer_id", "reference"),
}
"""The texts that a command brings into the log, beside metadata. Ids that it refers to are there, or nowhere."""

_WITH_METADATA: Final = {kind for kind in CHOSEN if "metadata" in kind.model_fields}

# As on a card: 4-4-4-4, 4-4-4-4-3 and the like, 4-6-5, 4-6-4, or in one piece. Not beside a letter (the beginning of
# an IBAN, hexadecimal), not behind another group of digits (the middle of an IBAN, or of a UUID) and not before a group
# of four (a longer number), not a part of a decimal. What stands before is looked at behind the first four digits:
# where a pattern begins with a set of characters, all others are skipped at three times the speed.
_WRITTEN: Final = re.compile(
    r"[0-9]{4}(?<![0-9A-Za-z][0-9]{4})(?<![0-9]\.[0-9]{4})"
    r"(?:[0-9]{10,15}"
    r"|(?<![0-9][ -][0-9]{4})([ -])(?:[0-9]{6}\1[0-9]{4,5}|[0-9]{4}\1[0-9]{4}\1[0-9]{2,4})(\1[0-9]{1,3})?"
    r"(?![ -][0-9]{4}))"
    r"(?![0-9A-Za-z]|\.[0-9])"
)

# 13 digits are left out: that is how products are numbered (EAN, every tenth of which would pass), and no scheme has
# issued cards with so few for decades.
_ISSUED: Final = re.compile(
    r"""
      4(?:[0-9]{15}|[0-9]{18})                                                        # Visa
    | (?:5[1-5][0-9]{2}|222[1-9]|22[3-9][0-9]|2[3-6][0-9]{2}|27[01][0-9]|2720)[0-9]{12}  # Mastercard
    | 3[47][0-9]{13}                                                                  # American Express
    | (?:6011|64[4-9][0-9]|65[0-9]{2})[0-9]{12,15}                                    # Discover, RuPay
    | (?:30[0-5][0-9]|3095|3[689][0-9]{2})[0-9]{10}(?:[0-9]{2})?                      # Diners Club
    | 35(?:2[89]|[3-8][0-9])[0-9]{12,15}                                              # JCB
    | (?:62|81)[0-9]{14,17}                                                           # UnionPay, RuPay
    | (?:5018|5020|5038|5893|6304|6759|676[1-3])[0-9]{12,15}                          # Maestro
    | 220[0-4][0-9]{12,15}                                                            # Mir
    | (?:508|60[78])[0-9]{13}                                                         # RuPay
    | 9792[0-9]{12}                                                                   # Troy
    """,
    re.VERBOSE,
)


class CardNumberGiven(InvalidCommand):
    """Card numbers must not get into a ledger, and this request has one: {summary}."""

    code = "CARD_NUMBER_GIVEN"


def refuse_card_numbers(command: Command) -> None:
    """Raise CardNumberGiven, with the fields and never with what is in them, if a text of the command has one."""
    texts = [getattr(command, field) for field in CHOSEN[type(command)]]
    metadata = _metadata(command)
    if metadata:
        texts += (*metadata, *metadata.values())
    # Of nearly all commands one look at everything together says that there is nothing to be seen.
    if _WRITTEN.search("\n".join(texts)) and (violations := [*_violations(command)]):
        raise CardNumberGiven(*violations)


def has_card_number(text: str) -> bool:
    """Whether something in the text is written like the number of a payment card, and could be one."""
    for found in _WRITTEN.finditer(text):
        # A last group of up to three digits is the card's, or the beginning of what comes after: 12/27, or a CVC.
        written, last = found[0], found[2] or ""
        if _could_be_issued(written) or (last and _could_be_issued(written.removesuffix(last))):
            return True
    return False


def _could_be_issued(written: str) -> bool:
    digits = written.replace(" ", "").replace("-", "")
    return bool(_ISSUED.fullmatch(digits)) and _luhn(digits)


def _luhn(digits: str) -> bool:
    """ISO/IEC 7812-1, annex B: every second digit from the right is doubled, and the digits of all add up to tens."""
    doubled = (sum(divmod(2 * int(each), 10)) for each in digits[-2::-2])
    return (sum(map(int, digits[::-2])) + sum(doubled)) % 10 == 0


def _violations(command: Command) -> Iterator[FieldViolation]:
    for field in CHOSEN[type(command)]:
        if has_card_number(getattr(command, field)):
            yield _violation(field)
    for key, value in _metadata(command).items():
        if has_card_number(key):
            yield FieldViolation("metadata", "has a key that looks like the number of a payment card")
        elif has_card_number(value):
            yield _violation(f"metadata[{json.dumps(key[:_KEY_SHOWN])}]")


def _metadata(command: Command) -> dict[str, str]:
    metadata: dict[str, str] = command.metadata if type(command) in _WITH_METADATA else {}  # type: ignore[attr-defined]
    return metadata


def _violation(field: str) -> FieldViolation:
    return FieldViolation(field, "looks like the number of a payment card")
