"""Money and its currencies: ISO's table, amounts read from text, amounts written as text."""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable
from decimal import Decimal

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ledger.domain.iso4217 import CURRENCIES, WITHOUT_MINOR_UNITS, Currency
from ledger.domain.money import (
    MAX_MINOR_UNITS,
    MalformedAmount,
    Money,
    UnknownCurrency,
    currency,
    format_amount,
    minor_digits,
    parse_amount,
    within_bounds,
)

LIST = {**CURRENCIES, **WITHOUT_MINOR_UNITS}
HELD = sorted(CURRENCIES)

codes = st.sampled_from(HELD)
amounts = st.integers(min_value=0, max_value=MAX_MINOR_UNITS)
signed_amounts = st.integers(min_value=-MAX_MINOR_UNITS, max_value=MAX_MINOR_UNITS)


# The table


def test_the_list_has_178_codes_of_which_165_have_minor_digits() -> None:
    """The counts are those of ISO's List One: a row lost or added by a slip changes one of them."""
    assert len(LIST) == 178
    assert Counter(row.minor_digits for row in LIST.values()) == {0: 17, 2: 139, 3: 7, 4: 2, None: 13}
    assert len(CURRENCIES) == 165
    assert all(row.minor_digits is not None for row in CURRENCIES.values())


def test_codes_are_three_capitals_and_sorted() -> None:
    """Every row stands under its own code, which is three ASCII capitals, in alphabetical order."""
    assert list(CURRENCIES) == sorted(CURRENCIES)
    assert list(WITHOUT_MINOR_UNITS) == sorted(WITHOUT_MINOR_UNITS)
    for code, row in LIST.items():
        assert row.code == code
        assert re.fullmatch("[A-Z]{3}", code)


def test_numbers_are_unique_and_have_three_digits() -> None:
    """No two currencies share a number, and each can be written with three digits."""
    assert len({row.number for row in LIST.values()}) == len(LIST)
    assert all(re.fullmatch("[0-9]{3}", f"{row.number:03d}") for row in LIST.values())


def test_names_are_trimmed_and_not_empty() -> None:
    """A name is something to show: not empty, no blanks around it."""
    assert all(row.name and row.name == row.name.strip() for row in LIST.values())


@pytest.mark.parametrize(
    ("code", "number", "digits"),
    [
        ("ALL", "008", 2),
        ("AUD", "036", 2),
        ("BHD", "048", 3),
        ("BRL", "986", 2),
        ("CHF", "756", 2),
        ("CLF", "990", 4),
        ("CLP", "152", 0),
        ("CNY", "156", 2),
        ("EUR", "978", 2),
        ("GBP", "826", 2),
        ("HUF", "348", 2),
        ("INR", "356", 2),
        ("IQD", "368", 3),
        ("ISK", "352", 0),
        ("JOD", "400", 3),
        ("JPY", "392", 0),
        ("KRW", "410", 0),
        ("KWD", "414", 3),
        ("LYD", "434", 3),
        ("MGA", "969", 2),
        ("MRU", "929", 2),
        ("OMR", "512", 3),
        ("SLE", "925", 2),
        ("TND", "788", 3),
        ("TWD", "901", 2),
        ("UGX", "800", 0),
        ("USD", "840", 2),
        ("UYI", "940", 0),
        ("UYW", "927", 4),
        ("VED", "926", 2),
        ("VES", "928", 2),
        ("VND", "704", 0),
        ("XAD", "396", 2),
        ("XAF", "950", 0),
        ("XCG", "532", 2),
        ("XOF", "952", 0),
        ("ZWG", "924", 2),
    ],
)
def test_well_known_rows(code: str, number: str, digits: int) -> None:
    """These rows were written down by hand, the ones that other lists get wrong among them."""
    row = CURRENCIES[code]
    assert (f"{row.number:03d}", row.minor_digits) == (number, digits)


def test_codes_that_left_the_list_are_gone() -> None:
    """Codes that ISO has withdrawn are not in the table, the lev of 2026 included."""
    withdrawn = {"ANG", "BGN", "BYR", "CUC", "DEM", "HRK", "LTL", "MRO", "SLL", "STD", "VEF", "ZWL"}
    assert not withdrawn & set(LIST)


def test_the_table_cannot_be_changed() -> None:
    """Neither the mapping nor a row takes an assignment."""
    with pytest.raises(TypeError):
        CURRENCIES["EUR"] = CURRENCIES["USD"]  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        CURRENCIES["EUR"].minor_digits = 3  # type: ignore[misc]


# Looking a currency up


def test_a_currency_is_found_by_its_code() -> None:
    """The look-up gives the row itself."""
    assert currency("EUR") == Currency("EUR", 978, 2, "Euro")
    assert minor_digits("EUR") == 2


@pytest.mark.parametrize("code", ["", "eur", "Eur", "EURO", " EUR", "EUR\n", "ABC", "978", "\u0395UR", "BGN"])
def test_an_unknown_code_is_named(code: str) -> None:
    """A code that isn't ISO's, to the letter, is refused by name, whatever was asked of it."""
    asked: list[Callable[[], object]] = [
        lambda: currency(code),
        lambda: minor_digits(code),
        lambda: parse_amount("1", code),
        lambda: format_amount(1, code),
    ]
    for ask in asked:
        with pytest.raises(UnknownCurrency) as refusal:
            ask()
        assert ascii(code) in str(refusal.value)


def test_the_codes_without_minor_units() -> None:
    """What a ledger can't hold: metals, bond units, units of account without parts, tests, no currency."""
    assert " ".join(WITHOUT_MINOR_UNITS) == "XAG XAU XBA XBB XBC XBD XDR XPD XPT XSU XTS XUA XXX"


@pytest.mark.parametrize("code", WITHOUT_MINOR_UNITS)
def test_a_code_without_minor_units_is_not_held(code: str) -> None:
    """ISO lists the code, a ledger doesn't hold it, and the refusal says why."""
    with pytest.raises(UnknownCurrency, match=f"'{code}' .* has no minor units"):
        currency(code)


def test_refusals_are_value_errors() -> None:
    """Who only cares that the input was bad can catch ValueError."""
    assert issubclass(UnknownCurrency, ValueError)
    assert issubclass(MalformedAmount, ValueError)


# Money


def test_money_is_an_immutable_value() -> None:
    """Equal by what it says, usable as a key, and never changed in place."""
    five = Money("EUR", 500)
    assert five == Money("EUR", 500)
    assert hash(five) == hash(Money("EUR", 500))
    assert five != Money("USD", 500)
    assert five != Money("EUR", 501)
    with pytest.raises(AttributeError, match="immutable"):
        five.minor_units = 501  # type: ignore[misc]


@pytest.mark.parametrize("value", [True, False, 1.0, Decimal(1), "1", None])
def test_minor_units_are_an_int_and_nothing_else(value: object) -> None:
    """Neither a float nor a bool gets into money, nor into the text of an amount."""
    with pytest.raises(TypeError, match=type(value).__name__):
        Money("EUR", value)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=type(value).__name__):
        format_amount(value, "EUR")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["true", "5.0", "5.5", '"5"', "null"])
def test_minor_units_from_json_are_an_int_and_nothing_else(value: str) -> None:
    """Events hold money too, and msgspec, which reads them, converts nothing into an amount."""
    decode = msgspec.json.Decoder(Money).decode
    assert decode('{"currency_code": "EUR", "minor_units": 5}') == Money("EUR", 5)
    with pytest.raises(msgspec.ValidationError, match="minor_units"):
        decode(f'{{"currency_code": "EUR", "minor_units": {value}}}')


def test_money_outlives_its_currency() -> None:
    """What was recorded before a currency left ISO's list still loads."""
    assert Money("BGN", 195_583).minor_units == 195_583


@pytest.mark.parametrize(
    ("minor_units", "within"),
    [(0, True), (10**18, True), (-(10**18), True), (10**18 + 1, False), (-(10**18) - 1, False)],
)
def test_the_bounds_include_their_ends(minor_units: int, within: bool) -> None:
    """Ten to the eighteenth may be recorded on either side of zero, one more may not."""
    assert within_bounds(minor_units) is within


# From text


@pytest.mark.parametrize(
    ("text", "code", "minor_units"),
    [
        ("12.34", "EUR", 1234),
        ("12.3", "EUR", 1230),
        ("12.30", "EUR", 1230),
        ("12", "EUR", 1200),
        ("0", "EUR", 0),
        ("0.0", "EUR", 0),
        ("0.01", "EUR", 1),
        ("0.10", "EUR", 10),
        ("0.29", "EUR", 29),  # as floats, 0.29 * 100 is 28.999999999999996
        ("1.15", "EUR", 115),  # and 1.15 * 100 is 114.99999999999999
        ("12", "JPY", 12),
        ("0", "JPY", 0),
        ("1.234", "BHD", 1234),
        ("1.2", "BHD", 1200),
        ("1.2345", "CLF", 12345),
        ("0.0001", "UYW", 1),
        ("7", "UYW", 70000),
        ("10000000000000000.00", "EUR", 10**18),
        ("1000000000000000000", "JPY", 10**18),
        ("100000000000000.0000", "CLF", 10**18),
    ],
)
def test_amounts_are_read_in_the_digits_of_their_currency(text: str, code: str, minor_units: int) -> None:
    """Missing digits after the point are zeros; how many there are is the currency's affair."""
    assert parse_amount(text, code) == Money(code, minor_units)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n",
        " 12",
        "12 ",
        "12\n",
        "1 2",
        "\u00a012",
        "+12",
        "-12",
        "-0",
        "\u221212",
        "12.",
        ".5",
        ".",
        "1.2.3",
        "12,34",
        "1,234",
        "1,234.56",
        "1_000",
        "1'000",
        "1e2",
        "1E2",
        "1e-2",
        "inf",
        "Infinity",
        "nan",
        "NaN",
        "sNaN",
        "0x10",
        "0b1",
        "007",
        "00",
        "00.5",
        "\u0661\u0662",  # Arabic-Indic digits
        "\uff11\uff12",  # fullwidth digits
        "1\u00b2",  # a superscript digit
        "\u00bd",
        "12\u066b34",  # the Arabic decimal separator
        "12\x00",
        "EUR 12",
        "12 EUR",
        "\u20ac12",
        "12.-",
        "\ud800",
        "None",
    ],
)
def test_malformed_text_is_quoted_and_told_what_was_expected(text: str) -> None:
    """Only plain digits and one point make an amount; the refusal says what it saw and what it wanted."""
    with pytest.raises(MalformedAmount) as refusal:
        parse_amount(text, "EUR")
    assert ascii(text) in str(refusal.value)
    assert str(refusal.value).endswith('EUR has 2 minor digits, a plain decimal like "1234.56" was expected')


@pytest.mark.parametrize(
    ("text", "code", "expected"),
    [
        ("12.345", "EUR", "EUR has 2 minor digits"),
        ("12.340", "EUR", "EUR has 2 minor digits"),
        ("12.0", "JPY", "JPY has no minor digits"),
        ("1.2345", "BHD", "BHD has 3 minor digits"),
        ("1.23456", "CLF", "CLF has 4 minor digits"),
        ("1.00000", "UYW", "UYW has 4 minor digits"),
    ],
)
def test_more_digits_than_the_currency_has_are_refused(text: str, code: str, expected: str) -> None:
    """Nothing is rounded or cut off, not even zeros: who writes them means another currency or unit."""
    with pytest.raises(MalformedAmount, match=f"'{text}' has too many digits: .*{expected}"):
        parse_amount(text, code)


@pytest.mark.parametrize(
    ("text", "code", "most"),
    [
        ("10000000000000000.01", "EUR", "10000000000000000.00"),
        ("10000000000000001", "EUR", "10000000000000000.00"),
        ("1000000000000000001", "JPY", "1000000000000000000"),
        ("100000000000000.0001", "CLF", "100000000000000.0000"),
        ("9" * 20, "JPY", "1000000000000000000"),
    ],
)
def test_an_amount_beyond_the_bounds_is_refused(text: str, code: str, most: str) -> None:
    """The largest amount is part of what was expected."""
    with pytest.raises(MalformedAmount, match=f"'{text}' is too large: at most {most} {code} was expected"):
        parse_amount(text, code)


@pytest.mark.parametrize("text", ["9" * 100_000, "0." + "1" * 100_000, "x" * 100_000])
def test_a_huge_text_is_refused_in_a_short_sentence(text: str) -> None:
    """Neither Python's limit on digits nor a page of input shows in the refusal."""
    with pytest.raises(MalformedAmount) as refusal:
        parse_amount(text, "EUR")
    assert ascii(text[:60]) + "..." in str(refusal.value)
    assert len(str(refusal.value)) < 250


# To text


@pytest.mark.parametrize(
    ("minor_units", "code", "plain", "grouped"),
    [
        (1234, "EUR", "12.34", "12.34"),
        (-1234, "EUR", "-12.34", "-12.34"),
        (0, "EUR", "0.00", "0.00"),
        (5, "EUR", "0.05", "0.05"),
        (-5, "EUR", "-0.05", "-0.05"),
        (123456789, "EUR", "1234567.89", "1,234,567.89"),
        (-123456789, "EUR", "-1234567.89", "-1,234,567.89"),
        (99999, "EUR", "999.99", "999.99"),
        (1234, "JPY", "1234", "1,234"),
        (-1234, "JPY", "-1234", "-1,234"),
        (0, "JPY", "0", "0"),
        (1234, "BHD", "1.234", "1.234"),
        (12345678, "CLF", "1234.5678", "1,234.5678"),
        (10**18, "USD", "10000000000000000.00", "10,000,000,000,000,000.00"),
        (-(10**18), "USD", "-10000000000000000.00", "-10,000,000,000,000,000.00"),
        (10**20 + 1, "USD", "1000000000000000000.01", "1,000,000,000,000,000,000.01"),
    ],
)
def test_amounts_are_written_in_the_digits_of_their_currency(
    minor_units: int, code: str, plain: str, grouped: str
) -> None:
    """All digits after the point are written, and a comma between thousands only if asked for."""
    assert format_amount(minor_units, code) == plain
    assert format_amount(minor_units, code, grouping=True) == grouped


# Laws


@pytest.mark.parametrize("code", HELD)
@given(minor_units=amounts)
@example(0)
@example(1)
@example(MAX_MINOR_UNITS - 1)
@example(MAX_MINOR_UNITS)
@settings(max_examples=25)  # of each of 165 currencies
def test_what_is_written_reads_back(code: str, minor_units: int) -> None:
    """In every currency, parsing the text of an amount gives the amount."""
    assert parse_amount(format_amount(minor_units, code), code) == Money(code, minor_units)


@given(minor_units=signed_amounts, code=codes)
def test_a_sign_is_all_that_a_negative_amount_adds(minor_units: int, code: str) -> None:
    """A balance below zero is written as the amount with a minus before it, which no amount may have."""
    text = format_amount(minor_units, code)
    assert text.removeprefix("-") == format_amount(abs(minor_units), code)
    assert text.startswith("-") == (minor_units < 0)
    if minor_units < 0:
        with pytest.raises(MalformedAmount):
            parse_amount(text, code)


@given(minor_units=signed_amounts, code=codes)
def test_grouping_adds_commas_and_nothing_else(minor_units: int, code: str) -> None:
    """Grouped text without its commas is the plain text."""
    grouped = format_amount(minor_units, code, grouping=True)
    assert grouped.replace(",", "") == format_amount(minor_units, code)


@given(minor_units=signed_amounts, code=codes)
def test_the_text_is_worth_what_the_money_is(minor_units: int, code: str) -> None:
    """Decimal arithmetic agrees: the text times ten to the digits is the number of minor units."""
    assert Decimal(format_amount(minor_units, code)).scaleb(minor_digits(code)) == minor_units


@given(text=st.text() | st.text(alphabet="0123456789.,-+eE _") | st.decimals().map(str), code=codes)
def test_any_text_is_read_exactly_or_refused(text: str, code: str) -> None:
    """Whatever the text, it is either worth exactly the money that came of it, or refused as malformed."""
    try:
        money = parse_amount(text, code)
    except MalformedAmount:
        return
    assert money == Money(code, int(Decimal(text).scaleb(minor_digits(code))))
    assert Decimal(text).scaleb(minor_digits(code)) == money.minor_units
    assert 0 <= money.minor_units <= MAX_MINOR_UNITS


@given(minor_units=amounts, code=codes, stranger=st.characters(exclude_characters="0123456789."))
def test_one_strange_character_spoils_an_amount(minor_units: int, code: str, stranger: str) -> None:
    """An amount with any other character anywhere in it never parses."""
    text = format_amount(minor_units, code)
    for place in range(len(text) + 1):
        with pytest.raises(MalformedAmount):
            parse_amount(text[:place] + stranger + text[place:], code)


@given(minor_units=amounts, code=codes, surplus=st.text(alphabet="0123456789", min_size=1))
def test_one_digit_too_many_spoils_an_amount(minor_units: int, code: str, surplus: str) -> None:
    """Digits beyond those of the currency never parse, whichever they are."""
    text = format_amount(minor_units, code)
    with pytest.raises(MalformedAmount):
        parse_amount(text + surplus if minor_digits(code) else f"{text}.{surplus}", code)


@given(minor_units=st.integers(min_value=MAX_MINOR_UNITS + 1), code=codes)
def test_nothing_beyond_the_bounds_is_read(minor_units: int, code: str) -> None:
    """However large, an amount above the bound is refused as malformed."""
    with pytest.raises(MalformedAmount):
        parse_amount(format_amount(minor_units, code), code)
