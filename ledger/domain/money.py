"""Money: whole minor units of an ISO 4217 currency, read from and written as decimal text, never rounded."""

import re

from msgspec import Struct

from ledger.domain.iso4217 import CURRENCIES, WITHOUT_MINOR_UNITS, Currency

__all__ = [
    "CURRENCIES",
    "MAX_MINOR_UNITS",
    "MalformedAmount",
    "Money",
    "UnknownCurrency",
    "currency",
    "format_amount",
    "minor_digits",
    "parse_amount",
    "within_bounds",
]

MAX_MINOR_UNITS = 10**18
"""No amount, and no balance whatever its sign, is larger than this. Nine of them still fit an int64."""

# [0-9] and not \d, which matches the digits of every script.
_DECIMAL = re.compile(r"(0|[1-9][0-9]*)(?:\.([0-9]+))?")
_MAX_WHOLE_LENGTH = len(str(MAX_MINOR_UNITS))
_QUOTED_LENGTH = 60


class UnknownCurrency(ValueError):
    """The code is not one that a ledger can hold."""


class MalformedAmount(ValueError):
    """The text is not an amount of its currency."""


class Money(Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """Minor units of a currency: `Money("EUR", 1234)` is 12.34 euros, `Money("JPY", 1234)` is 1,234 yen.

    It is a plain value. Whether the currency is known and the amount within bounds is asked where a command
    is decided (`currency`, `within_bounds`), not here: what a log holds must load even after its currency has
    left ISO's list.
    Raises TypeError if `minor_units` is not an int; True is not one.
    """

    currency_code: str
    minor_units: int

    def __post_init__(self) -> None:
        _require_int(self.minor_units)


def currency(code: str) -> Currency:
    """The currency of that code, in capitals as ISO writes it; its `minor_digits` is never None.

    Raises UnknownCurrency if ISO 4217 doesn't list the code, or lists it without minor units (XAU, XXX).
    """
    found = CURRENCIES.get(code)
    if found is not None:
        return found
    if code in WITHOUT_MINOR_UNITS:
        name = WITHOUT_MINOR_UNITS[code].name
        raise UnknownCurrency(f"{_quoted(code)} ({name}) has no minor units, so no ledger holds it")
    raise UnknownCurrency(f"{_quoted(code)} is not a currency code of ISO 4217")


def minor_digits(currency_code: str) -> int:
    """How many digits the currency has after its point: 2 for EUR, 0 for JPY. Raises UnknownCurrency."""
    digits = currency(currency_code).minor_digits
    assert digits is not None, "CURRENCIES has only rows with minor digits"
    return digits


def within_bounds(minor_units: int) -> bool:
    """Whether a ledger may record this amount or balance: at most MAX_MINOR_UNITS on either side of zero."""
    return -MAX_MINOR_UNITS <= minor_units <= MAX_MINOR_UNITS


def parse_amount(text: str, currency_code: str) -> Money:
    """The money that a plain decimal text names, exactly: "12.34", "12.3", "12" are 1234, 1230, 1200 cents.

    The text is ASCII digits and at most one point with digits on both sides; no sign, exponent, separator,
    blank or needless leading zero, and no more digits after the point than the currency has, be they zeros.
    Raises MalformedAmount for any other text and for more than MAX_MINOR_UNITS, UnknownCurrency for the code.
    """
    digits = minor_digits(currency_code)
    match = _DECIMAL.fullmatch(text)
    if match is None:
        raise MalformedAmount(f"{_quoted(text)} is not an amount: {_expected(currency_code, digits)}")
    whole, fraction = match[1], match[2] or ""
    if len(fraction) > digits:
        raise MalformedAmount(f"{_quoted(text)} has too many digits: {_expected(currency_code, digits)}")
    # The length comes first: int() refuses texts of thousands of digits with an error that is not ours.
    if len(whole) <= _MAX_WHOLE_LENGTH:
        minor_units = int(whole + fraction.ljust(digits, "0"))
        if within_bounds(minor_units):
            return Money(currency_code, minor_units)
    most = format_amount(MAX_MINOR_UNITS, currency_code)
    raise MalformedAmount(f"{_quoted(text)} is too large: at most {most} {currency_code} was expected")


def format_amount(minor_units: int, currency_code: str, grouping: bool = False) -> str:
    """The decimal text of an amount, in all digits of its currency: -1234 is "-12.34" in EUR, "-1234" in JPY.

    `parse_amount` reads back what is neither negative nor grouped. `grouping` puts a comma between thousands,
    for people. Sums beyond MAX_MINOR_UNITS are written too.
    Raises UnknownCurrency, and TypeError if `minor_units` is not an int.
    """
    _require_int(minor_units)
    digits = minor_digits(currency_code)
    whole, fraction = divmod(abs(minor_units), 10**digits)
    sign = "-" if minor_units < 0 else ""
    number = f"{whole:,}" if grouping else str(whole)
    return f"{sign}{number}.{fraction:0{digits}d}" if digits else f"{sign}{number}"


def _require_int(value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"minor units are an int, not a {type(value).__name__}")


def _expected(currency_code: str, digits: int) -> str:
    if digits == 0:
        return f'{currency_code} has no minor digits, a plain number like "1234" was expected'
    example = "1234." + "5678"[:digits]
    return f'{currency_code} has {digits} minor digits, a plain decimal like "{example}" was expected'


def _quoted(text: str) -> str:
    """The text as an ASCII literal, cut short: it may come from anywhere and end up on a terminal."""
    return ascii(text) if len(text) <= _QUOTED_LENGTH else f"{text[:_QUOTED_LENGTH]!a}..."
