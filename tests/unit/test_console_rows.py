"""What the console makes of texts and values: what it can't know, and what is meant to play with a terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.console.rows import money
from ledger.console.words import word, words
from ledger.terminal import printable, quoted
from ledger.v1.account_pb2 import EntryKind
from ledger.v1.payment_pb2 import PaymentState


@pytest.mark.parametrize(
    ("minor_units", "currency_code", "text"),
    [
        (123_456_789, "EUR", "1,234,567.89 EUR"),
        (-5, "EUR", "-0.05 EUR"),
        (1_234, "JPY", "1,234 JPY"),
        (1_234, "KWD", "1.234 KWD"),
        (1_234, "QQQ", "1,234 minor units of QQQ"),
    ],
)
def test_money_has_the_digits_of_its_currency(minor_units: int, currency_code: str, text: str) -> None:
    """A currency that only the server knows is shown in whole minor units, never in digits that are guessed."""
    assert money(minor_units, currency_code) == text


def test_every_value_of_an_enum_has_a_word() -> None:
    """But for UNSPECIFIED; a value that only the server knows is shown as its number."""
    assert list(words(PaymentState.DESCRIPTOR)) == [
        "declined",
        "authorized",
        "partially captured",
        "captured",
        "voided",
        "expired",
    ]
    assert all(word(EntryKind.DESCRIPTOR, number) == each for each, number in words(EntryKind.DESCRIPTOR).items())
    assert word(PaymentState.DESCRIPTOR, 0) == ""
    assert word(PaymentState.DESCRIPTOR, 77) == "77"


@given(st.text())
def test_text_for_a_terminal_is_printable(text: str) -> None:
    """Whatever it was; what is printable already stays as it is."""
    assert printable(text).isprintable()
    assert quoted(text).isprintable()
    assert quoted(text).isascii()
    assert len(quoted(text)) < 700
    if text.isprintable():
        assert printable(text) == text
