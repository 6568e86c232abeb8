"""Card numbers are told from what only looks like one. The numbers are those that schemes publish for tests."""

from __future__ import annotations

import random
import re
from datetime import UTC, datetime
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ledger.card_numbers import CHOSEN, CardNumberGiven, has_card_number, refuse_card_numbers
from ledger.domain.commands import AuthorizePayment, Command, ExpireAuthorization, OpenAccount, VoidPayment
from ledger.domain.money import Money

CARDS: Final = {
    "Visa": "4111111111111111",
    "Visa with 19 digits": "4917610000000000003",
    "Mastercard": "5555555555554444",
    "Mastercard from the second range": "2223003122003222",
    "American Express": "378282246310005",
    "Discover": "6011111111111117",
    "Diners Club": "30569309025904",
    "JCB": "3530111333300000",
    "UnionPay": "6200000000000005",
    "Maestro": "6759649826438453",
    "Mir": "2200000000000004",
}


@pytest.mark.parametrize("scheme", CARDS)
def test_the_number_of_a_card_is_found(scheme: str) -> None:
    """And not any more with another check digit."""
    number = CARDS[scheme]
    assert has_card_number(number)
    assert not any(has_card_number(number[:-1] + digit) for digit in "0123456789" if digit != number[-1])


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1111",
        "4111-1111-1111-1111",
        "3782 822463 10005",
        "3782-8224-6310-005",
        "3056 930902 5904",
        "3056-9309-0259-04",
        "4917 6100 0000 0000 003",
        "paid with 4111111111111111.",
        "4111 1111 1111 1111 12/27 123",
        "4111111111111111 1227",
        "order-4111111111111111",
        "order_4111111111111111",
        '{"pan":"4111111111111111"}',
        ";4111111111111111=27121010000000000000?",
        "first 4111111111111112, then 4111111111111111",
    ],
)
def test_it_is_found_as_people_write_it(text: str) -> None:
    """In groups as on the card, and in the middle of something."""
    assert has_card_number(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "order-1001",
        "411111******1111",  # what may be kept of a card: its beginning and its end
        "o4111111111111111",
        "4111111111111111x",
        "41111111111111111",
        "14111111111111111111",
        "1111 4111 1111 1111 1111",
        "4111 1111 1111 1111 1111",
        "4111  1111  1111  1111",
        "4111-1111 1111-1111",
        "0.4111111111111111",
        "4111111111111111.25",
        "9111111111111111",  # no scheme issues such, though the check digit is right
        "4006381333931",  # a product (EAN)
        "356938035643809",  # a telephone (IMEI), whose check digit is made in the same way
        "8991101200003204510",  # a SIM card (ICCID), likewise
        "DE89370400440532013000",
        "DE89 4704 0044 0532 0130 00",
        "PL61 1090 1014 0000 0712 1981 2874",
    ],
)
def test_what_only_looks_like_one_passes(text: str) -> None:
    """Whoever numbers orders has no trouble with it."""
    assert not has_card_number(text)


@given(st.uuids())
@example("abcdef01-4111-1111-1111-111111111111")
def test_no_uuid_is_taken_for_a_card(made: object) -> None:
    """With hyphens, without them, or in capitals: the commonest ids of all."""
    for text in (str(made), str(made).replace("-", ""), str(made).upper(), f"pay:{made}"):
        assert not has_card_number(text)


@given(st.datetimes(datetime(2000, 1, 1), datetime(2039, 9, 18)))  # noqa: DTZ001
def test_no_time_is_taken_for_a_card(moment: datetime) -> None:
    """As a number in any unit, or written out. (Beyond that day microseconds begin as cards of Mir do.)"""
    seconds = int(moment.replace(tzinfo=UTC).timestamp())
    for digits in (seconds * 10**3 + 999, seconds * 10**6 + 123_456, seconds * 10**9 + 123_456_789):
        assert not has_card_number(str(digits))
    assert not has_card_number(moment.isoformat(" "))
    assert not has_card_number(moment.strftime("%Y%m%d%H%M%S"))


def test_of_sixteen_digits_at_random_few_are_taken_for_a_card() -> None:
    """Who numbers things with just so many digits should know the figure, which docs/refusals.md tells: 3 in 100."""
    draw = random.Random(1)
    found = sum(has_card_number(f"{draw.randrange(10**16):016}") for _ in range(20_000))
    assert 0.02 < found / 20_000 < 0.035


# --- in commands -----------------------------------------------------------------------------------------------------

VISA: Final = CARDS["Visa"]

REFERS: Final = {"currency_code", "payer_account_id", "payee_account_id"}
"""Texts that name what is there already. An account_id and a payment_id are new in the first of its commands only."""


def test_no_text_of_a_command_is_forgotten() -> None:
    """Whatever a client chooses is looked at: a field that is added has to be decided on here."""
    kinds = set(Command.__subclasses__()) - {ExpireAuthorization}
    assert set(CHOSEN) == kinds
    for kind in kinds:
        texts = {name for name, field in kind.model_fields.items() if field.annotation is str}
        named = {"account_id"} - ({"account_id"} if kind is OpenAccount else set())
        named |= {"payment_id"} - ({"payment_id"} if kind is AuthorizePayment else set())
        assert set(CHOSEN[kind]) == texts - named - REFERS, kind


def authorize(**fields: object) -> AuthorizePayment:
    """An authorization with these fields."""
    usual = {"payment_id": "p", "payer_account_id": "a", "payee_account_id": "b", "amount": Money("EUR", 1)}
    return AuthorizePayment(**usual | fields)


@pytest.mark.parametrize(
    ("command", "fields"),
    [
        (OpenAccount(account_id=VISA, currency_code="EUR"), ["account_id"]),
        (authorize(payment_id=f"p:{VISA}", reference=f"for {VISA}"), ["payment_id", "reference"]),
        (authorize(metadata={"card": VISA, "b": "b"}), ['metadata["card"]']),
        (authorize(metadata={VISA: "card"}), ["metadata"]),
        (authorize(metadata={"é" * 99: VISA}), ['metadata["' + "\\u00e9" * 64 + '"]']),
        (VoidPayment(payment_id="p", reason=f"lost card {VISA}"), ["reason"]),
    ],
)
def test_every_field_with_a_card_number_is_named_and_its_value_never_repeated(
    command: Command, fields: list[str]
) -> None:
    """In the message and in the violations."""
    with pytest.raises(CardNumberGiven) as refused:
        refuse_card_numbers(command)
    assert [each.field for each in refused.value.violations] == fields
    assert not re.search("[0-9]{5}", repr([str(refused.value), refused.value.violations]))


@pytest.mark.parametrize(
    "command",
    [
        authorize(payer_account_id=VISA, payee_account_id=f"x-{VISA}"),
        VoidPayment(payment_id=VISA),
        authorize(reference="a 4111", metadata={"b": "11111111", "1111": "1"}),
    ],
)
def test_ids_of_what_is_there_already_are_not_looked_at(command: Command) -> None:
    """What was opened before there was this rule can still be used; and texts that stand side by side stay apart."""
    refuse_card_numbers(command)
