"""The storage format: events as bytes, bytes of any age as events, and bytes that are no event refused."""

import json
import re
import sys
from copy import copy
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
from domain import START, Ledger, altered, amounts, authorize, capture, eur, leg
from eventsourcing.persistence import Mapper, StoredEvent
from hypothesis import given
from hypothesis import strategies as st
from msgspec import NODEFAULT, Struct
from msgspec.structs import fields, replace
from pydantic_core import to_json

from ledger.domain import events as events_module
from ledger.domain.events import (
    TOPICS,
    AccountClosed,
    AccountFrozen,
    AccountKind,
    AccountOpened,
    AccountState,
    AccountStatus,
    AccountUnfrozen,
    AuthorizationExpired,
    AuthorizationIncremented,
    Cause,
    CauseKind,
    CreditLimitChanged,
    DeclineReason,
    FreezeScope,
    FundsCredited,
    FundsDebited,
    FundsReleased,
    FundsReserved,
    LedgerEvent,
    Length,
    Moment,
    PaymentAmounts,
    PaymentAuthorized,
    PaymentCaptured,
    PaymentDeclined,
    PaymentRefunded,
    PaymentVoided,
    TransferDeclined,
    TransferLeg,
    TransferPosted,
    class_version,
    length_text,
)
from ledger.domain.money import Money
from ledger.upcasters import UPCASTERS, EventMapper, UnreadableEvent

DEEP = b'{"class_version":1,"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
GOLDEN = Path(__file__).parent / "golden"
MAPPER = EventMapper()

# --- golden bytes: one event of each class, every field set that can be ----------------------------------------------

RECORDED = datetime(2026, 3, 4, 5, 6, 7, 8, tzinfo=UTC)
EFFECTIVE = datetime(2026, 2, 28, 12, tzinfo=UTC)
EARLIER = datetime(2025, 12, 31, 23, 59, 59, 10, tzinfo=UTC)
COMMON = {"timestamp": RECORDED, "actor": "anonymous", "correlation_id": "4bf92f3577b34da6", "command_position": 41}


def on_account(kind: type[LedgerEvent], **fields: Any) -> LedgerEvent:
    return kind(**COMMON, **fields).standing("account/alice", 7)


def on_payment(kind: type[LedgerEvent], **fields: Any) -> LedgerEvent:
    return kind(**COMMON, **fields).standing("payment/order-17", 7)


def on_transfer(kind: type[LedgerEvent], **fields: Any) -> LedgerEvent:
    return kind(**COMMON, **fields).standing("transfer/fx-9", 1)


def state(**changed: Any) -> AccountState:
    usual = AccountState(
        currency_code="EUR",
        kind=AccountKind.CUSTOMER,
        posted=123_456,
        reserved=2_500,
        credit_limit=50_000,
        status=AccountStatus.OPEN,
    )
    return replace(usual, **changed)


PAYMENT_ASKED = {
    "payment_id": "order-17",
    "payer_account_id": "alice",
    "payee_account_id": "shop:7",
    "amount": eur(2_500),
    "hold_for_text": "P7D",
    "reference": "Bestellung Nº 17",
    "metadata": {"table": "4", "waiter": "Zoë ☕"},
    "effective_at": EFFECTIVE,
}
TRANSFER_ASKED = {
    "transfer_id": "fx-9",
    "legs": (leg("alice", "exchange:EUR", 900), leg("exchange:JPY", "yumi", 150_000, "JPY")),
    "reference": "Überweisung",
    "metadata": {"rate": "166.67"},
    "effective_at": EFFECTIVE,
}
AUTHORIZED = amounts(authorized=2_500, capturable=2_500)

CANONICAL: dict[str, LedgerEvent] = {
    "AccountOpened": on_account(
        AccountOpened,
        account_id="alice",
        credit_limit=eur(50_000),
        metadata={"plan": "gold", "stadt": "Zürich ☕"},
        after=state(posted=0, reserved=0),
    ),
    "FundsReserved": on_account(
        FundsReserved,
        cause=Cause(kind=CauseKind.AUTHORIZATION, payment_id="order-17"),
        amount=2_500,
        effective_at=EFFECTIVE,
        after=state(),
    ),
    "FundsReleased": on_account(
        FundsReleased,
        cause=Cause(kind=CauseKind.CAPTURE, payment_id="order-17", capture_id="c1"),
        amount=500,
        effective_at=EFFECTIVE,
        after=state(reserved=0),
    ),
    "FundsDebited": on_account(
        FundsDebited,
        cause=Cause(kind=CauseKind.REFUND, payment_id="order-17", refund_id="r1"),
        amount=700,
        counterparty="shop:7",
        from_reserved=False,
        effective_at=EFFECTIVE,
        after=state(kind=AccountKind.EXTERNAL, posted=-(10**18), reserved=0, credit_limit=0),
    ),
    "FundsCredited": on_account(
        FundsCredited,
        cause=Cause(kind=CauseKind.TRANSFER, transfer_id="fx-9", leg=0),
        amount=10**18,
        counterparty="bank",
        effective_at=EFFECTIVE,
        after=state(posted=10**18),
    ),
    "CreditLimitChanged": on_account(
        CreditLimitChanged, credit_limit=0, reason="überzogen", after=state(credit_limit=0)
    ),
    "AccountFrozen": on_account(
        AccountFrozen,
        scope=FreezeScope.DEBITS,
        reason="card reported lost",
        after=state(status=AccountStatus.FROZEN, freeze_scope=FreezeScope.DEBITS),
    ),
    "AccountUnfrozen": on_account(AccountUnfrozen, reason="card found", after=state()),
    "AccountClosed": on_account(
        AccountClosed, reason="", after=state(posted=0, reserved=0, status=AccountStatus.CLOSED)
    ),
    "PaymentAuthorized": on_payment(PaymentAuthorized, **PAYMENT_ASKED, expires_at=RECORDED + timedelta(days=7)),
    "PaymentDeclined": on_payment(
        PaymentDeclined, **PAYMENT_ASKED, decline_reason=DeclineReason.INSUFFICIENT_FUNDS, declined_account_id="alice"
    ),
    "AuthorizationIncremented": on_payment(
        AuthorizationIncremented,
        increment_id="i1",
        amount=eur(3_000),
        before=AUTHORIZED,
        after=amounts(authorized=3_000, capturable=3_000),
    ),
    "PaymentCaptured": on_payment(
        PaymentCaptured,
        capture_id="c1",
        amount=eur(2_000),
        keep_remainder=True,
        effective_at=EFFECTIVE,
        before=AUTHORIZED,
        after=amounts(authorized=2_500, captured=2_000, capturable=500),
    ),
    "PaymentVoided": on_payment(
        PaymentVoided, reason="out of stock", before=AUTHORIZED, after=amounts(authorized=2_500, released=2_500)
    ),
    "AuthorizationExpired": on_payment(
        AuthorizationExpired, before=AUTHORIZED, after=amounts(authorized=2_500, expired=2_500)
    ),
    "PaymentRefunded": on_payment(
        PaymentRefunded,
        refund_id="r1",
        amount=eur(700),
        effective_at=EFFECTIVE,
        before=amounts(authorized=2_500, captured=2_500),
        after=amounts(authorized=2_500, captured=2_500, refunded=700),
    ),
    "TransferPosted": on_transfer(TransferPosted, **TRANSFER_ASKED),
    "TransferDeclined": on_transfer(
        TransferDeclined,
        **TRANSFER_ASKED,
        decline_reason=DeclineReason.ACCOUNT_FROZEN,
        declined_account_id="exchange:JPY",
        declined_leg=1,
    ),
}


def golden(topic: str, version: int) -> bytes:
    return (GOLDEN / f"{topic}.v{version}.json").read_bytes()


def stored(event: LedgerEvent, topic: str, state: bytes) -> StoredEvent:
    return StoredEvent(
        originator_id=event.originator_id, originator_version=event.originator_version, topic=topic, state=state
    )


@pytest.mark.parametrize("topic", TOPICS)
def test_an_event_is_stored_as_its_golden_bytes(topic: str) -> None:
    """Byte by byte what was released: a field that is renamed, added, reordered or written otherwise shows here."""
    event = CANONICAL[topic]
    assert MAPPER.to_stored_event(event) == stored(event, topic, golden(topic, class_version(TOPICS[topic])))


@pytest.mark.parametrize(
    ("topic", "version"),
    [(topic, version) for topic in TOPICS for version in range(1, class_version(TOPICS[topic]) + 1)],
)
def test_golden_bytes_of_every_version_are_read_back(topic: str, version: int) -> None:
    """What any release has written is today's event, upcast where it is older."""
    event = CANONICAL[topic]
    assert MAPPER.to_domain_event(stored(event, topic, golden(topic, version))) == event


def test_every_version_of_every_topic_has_a_golden_file_and_nothing_else_has() -> None:
    """A new event class or class version without a golden file fails here, and so does a file that is left over."""
    expected = {
        f"{topic}.v{version}.json" for topic in TOPICS for version in range(1, class_version(TOPICS[topic]) + 1)
    }
    assert {path.name for path in GOLDEN.iterdir()} == expected
    assert set(CANONICAL) == set(TOPICS)


def test_every_class_version_but_the_newest_has_an_upcaster() -> None:
    """From 1 to the newest there is a step for each, and no step for anything else."""
    steps = {(topic, version) for topic in TOPICS for version in range(1, class_version(TOPICS[topic]))}
    assert set(UPCASTERS) == steps


@pytest.mark.parametrize("topic", TOPICS)
def test_golden_bytes_are_compact_json_with_sorted_keys_and_no_null(topic: str) -> None:
    """The files themselves are canonical: another program with a plain JSON library arrives at the same bytes."""
    for version in range(1, class_version(TOPICS[topic]) + 1):
        data = golden(topic, version)
        canonical = json.dumps(json.loads(data), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        assert data == canonical.encode()
        assert b"null" not in data


def test_the_canonical_events_set_every_field() -> None:
    """The golden bytes pin the name of each field, those included that are mostly unset."""
    optional_in_one = {"freeze_scope"} | set(Cause.__struct_fields__)
    for topic, event in CANONICAL.items():
        assert all(getattr(event, field) is not None for field in type(event).__struct_fields__), topic
    written = set()
    for topic in TOPICS:
        fields = json.loads(golden(topic, class_version(TOPICS[topic])))
        written |= set(fields.get("after", {})) | set(fields.get("cause", {}))
    assert optional_in_one - {"increment_id"} <= written


# --- what is stored --------------------------------------------------------------------------------------------------


def test_unset_fields_are_left_out() -> None:
    """What the client did not set is not in the bytes, and is unset when they are read."""
    ledger = Ledger(alice=100, shop=0)
    for command in (authorize(10), capture("c")):
        for event in ledger.emitted(command):
            record = MAPPER.to_stored_event(event)
            assert b"null" not in record.state
            assert MAPPER.to_domain_event(record) == event
    ledger_events = {type(event).__name__: event for event in ledger.book.events}
    authorized = json.loads(MAPPER.to_stored_event(ledger_events["PaymentAuthorized"]).state)
    assert not {"hold_for", "effective_at"} & set(authorized)
    captured = json.loads(MAPPER.to_stored_event(ledger_events["PaymentCaptured"]).state)
    assert not {"amount", "effective_at"} & set(captured)
    assert captured["keep_remainder"] is False
    reserved = json.loads(MAPPER.to_stored_event(ledger_events["FundsReserved"]).state)
    assert reserved["cause"] == {"kind": "AUTHORIZATION", "payment_id": "p"}
    assert "freeze_scope" not in reserved["after"]


def test_stream_and_version_are_columns_and_not_in_the_bytes() -> None:
    """The same fact on another stream has the same bytes; the topic is a column too."""
    here = CANONICAL["AccountUnfrozen"]
    there = copy(here).standing("account/bob", 99)
    assert MAPPER.to_stored_event(here).state == MAPPER.to_stored_event(there).state
    assert not {"originator_id", "originator_version", "topic"} & set(json.loads(MAPPER.to_stored_event(here).state))
    assert MAPPER.to_domain_event(MAPPER.to_stored_event(there)) == there
    # To msgspec these are two questions.
    assert (here == there, here != there) == (False, True)
    with pytest.raises(AssertionError):
        there.standing("account/carol", 1)


def test_only_what_may_be_unset_has_a_default_and_it_is_none() -> None:
    """What equals its default is not stored: any other default could not be told from a field that was not there."""
    for kind in (*TOPICS.values(), AccountState, Cause, PaymentAmounts, TransferLeg, Money):
        assert all(each.default in (NODEFAULT, None) for each in fields(kind)), kind
        assert all(each.default_factory is NODEFAULT for each in fields(kind)), kind


def test_equal_events_have_equal_bytes() -> None:
    """Keys are sorted at every depth, those of the metadata too, whoever makes the event and in whatever order."""
    one = altered(CANONICAL["AccountOpened"], metadata={"a": "1", "b": "2"})
    two = altered(CANONICAL["AccountOpened"], metadata={"b": "2", "a": "1"})
    assert one == two
    assert MAPPER.to_stored_event(one) == MAPPER.to_stored_event(two)


def test_metadata_of_a_command_is_stored_with_sorted_keys() -> None:
    """Two clients that send the same map make the same bytes."""
    (one,) = Ledger(alice=0, shop=0).emitted(authorize(10, metadata={"b": "2", "a": "1", "É": "3", "Z": "4"}))
    state = MAPPER.to_stored_event(one).state
    assert b'"metadata":{"Z":"4","a":"1","b":"2","\xc3\x89":"3"}' in state


def test_times_are_stored_in_utc() -> None:
    """The same moment in another time zone is the same command and the same bytes; seconds have up to six digits."""
    tokyo = timezone(timedelta(hours=9))
    here, there = (
        Ledger(alice=100, shop=0).emitted(authorize(10, effective_at=at)) for at in (EARLIER, EARLIER.astimezone(tokyo))
    )
    assert list(map(MAPPER.to_stored_event, here)) == list(map(MAPPER.to_stored_event, there))
    assert b'"effective_at":"2025-12-31T23:59:59.000010Z"' in MAPPER.to_stored_event(there[0]).state


@given(length=st.timedeltas(timedelta(microseconds=1), timedelta(days=31)))
def test_a_length_of_time_is_stored_as_pydantic_writes_it(length: timedelta) -> None:
    """As the first releases did it; and it is read back as what it was."""
    text = length_text(length)
    assert text == json.loads(to_json(length))
    event = altered(CANONICAL["PaymentAuthorized"], hold_for_text=text)
    assert MAPPER.to_domain_event(MAPPER.to_stored_event(event)).hold_for == length


def test_the_mapper_is_the_librarys() -> None:
    """It can stand wherever the library wants one."""
    assert isinstance(MAPPER, Mapper)


# --- round trips -----------------------------------------------------------------------------------------------------

texts = st.text(st.characters(codec="utf-8"), max_size=20)
times = st.datetimes(timezones=st.just(UTC))
lengths = st.timedeltas(timedelta(microseconds=1), timedelta(days=31)).map(length_text)
integers = st.integers(-(10**18), 10**18)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Anything that a field with this type can hold."""
    simple = {
        str: texts,
        int: integers,
        bool: st.booleans(),
        Moment: times,
        Length: lengths,
        NoneType: st.none(),
    }
    if hint in simple:
        return simple[hint]
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return st.one_of(*map(values, args))
    if origin is dict:
        return st.dictionaries(values(args[0]), values(args[1]), max_size=4).map(
            lambda map_: dict(sorted(map_.items()))
        )
    if origin is tuple:
        return st.lists(values(args[0]), min_size=1, max_size=3).map(tuple)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return st.sampled_from(hint)
    assert issubclass(hint, Struct), hint
    return st.builds(hint, **{name: values(each) for name, each in get_type_hints(hint).items()})


def events_of(kind: type[LedgerEvent]) -> st.SearchStrategy[LedgerEvent]:
    hints = get_type_hints(kind, include_extras=True)
    facts = st.builds(kind, **{name: values(hints[name]) for name in kind.__struct_fields__})
    return st.builds(LedgerEvent.standing, facts, texts, integers)


@given(event=st.one_of([events_of(event_class) for event_class in TOPICS.values()]))
def test_what_is_stored_is_read_back(event: LedgerEvent) -> None:
    """Any event, through bytes and back, is the same event, and the same bytes again."""
    record = MAPPER.to_stored_event(event)
    again = MAPPER.to_domain_event(record)
    assert again == event
    assert type(again) is type(event)
    assert MAPPER.to_stored_event(again) == record


@given(event=st.one_of([events_of(event_class) for event_class in TOPICS.values()]))
def test_every_event_is_stored_as_compact_json_with_sorted_keys(event: LedgerEvent) -> None:
    """Any JSON library that sorts its keys makes the same text of it; no key is there for what is unset."""
    state = MAPPER.to_stored_event(event).state
    read = json.loads(state)
    assert _keys_are_sorted(read)
    assert b" " not in re.sub(rb'"(\\.|[^"\\])*"', b"", state)
    names = zip(event.__struct_fields__, event.__struct_encode_fields__, strict=True)
    assert set(read) == {"class_version"} | {stored for name, stored in names if getattr(event, name) is not None}


def _keys_are_sorted(read: Any) -> bool:
    if isinstance(read, dict):
        return list(read) == sorted(read) and all(map(_keys_are_sorted, read.values()))
    return all(map(_keys_are_sorted, read)) if isinstance(read, list) else True


# --- what can't be read ----------------------------------------------------------------------------------------------


def unreadable(topic: str, state: bytes, mapper: EventMapper = MAPPER) -> str:
    """What the mapper says of bytes that it refuses; it has to name stream and version."""
    record = StoredEvent(originator_id="payment/order-17", originator_version=42, topic=topic, state=state)
    with pytest.raises(UnreadableEvent) as caught:
        mapper.to_domain_event(record)
    assert "payment/order-17" in str(caught.value)
    assert "42" in str(caught.value)
    assert topic in str(caught.value)
    return str(caught.value)


def changed(topic: str, /, **fields: Any) -> bytes:
    """The golden event with other fields; `...` leaves one out. A path goes inwards by double underscores."""
    whole = json.loads(golden(topic, class_version(TOPICS[topic])))
    for path, value in fields.items():
        *inwards, last = path.split("__")
        at = whole
        for name in inwards:
            at = at[int(name) if name.isdigit() else name]
        if value is ...:
            del at[last]
        else:
            at[last] = value
    return json.dumps(whole).encode()


def test_unchanged_golden_events_are_readable_here() -> None:
    """The ground of the refusals below: what they change is what is refused."""
    for topic in TOPICS:
        record = StoredEvent(originator_id="s", originator_version=1, topic=topic, state=changed(topic))
        assert type(MAPPER.to_domain_event(record)) is TOPICS[topic]


@pytest.mark.parametrize(
    "state",
    [b"", b"{", b"{}", b"[]", b"null", b"5", b'"text"', b"\xff", b"{} {}", b"not json", pytest.param(DEEP, id="deep")],
)
@pytest.mark.parametrize("topic", ["AccountOpened", "PaymentAuthorized", "TransferPosted"])
def test_bytes_that_are_no_event_are_unreadable(topic: str, state: bytes) -> None:
    """Broken JSON, or JSON that is something else."""
    unreadable(topic, state)


@pytest.mark.parametrize("topic", TOPICS)
def test_bytes_cut_short_are_unreadable(topic: str) -> None:
    """A torn write never passes for an event, wherever it is torn."""
    whole = golden(topic, class_version(TOPICS[topic]))
    for length in range(0, len(whole), 7):
        unreadable(topic, whole[:length])


AMOUNTS = [
    ("FundsReserved", "amount"),
    ("FundsReserved", "after__posted"),
    ("FundsReserved", "after__reserved"),
    ("FundsReserved", "after__credit_limit"),
    ("FundsDebited", "amount"),
    ("FundsCredited", "cause__leg"),
    ("CreditLimitChanged", "credit_limit"),
    ("AccountOpened", "credit_limit__minor_units"),
    ("PaymentAuthorized", "amount__minor_units"),
    ("PaymentAuthorized", "command_position"),
    ("PaymentCaptured", "amount__minor_units"),
    ("PaymentCaptured", "before__capturable"),
    ("PaymentCaptured", "after__captured"),
    ("AuthorizationIncremented", "after__authorized"),
    ("AuthorizationExpired", "after__expired"),
    ("PaymentVoided", "after__released"),
    ("PaymentRefunded", "after__refunded"),
    ("TransferPosted", "legs__0__amount__minor_units"),
    ("TransferDeclined", "declined_leg"),
]


@pytest.mark.parametrize("wrong", [1.0, 1.5, "1", True, False, [1], {"minor_units": 1}, float("nan")], ids=repr)
@pytest.mark.parametrize(("topic", "path"), AMOUNTS)
def test_an_amount_is_an_integer_and_nothing_that_merely_converts_to_one(topic: str, path: str, wrong: Any) -> None:
    """No float, no string and no bool is taken for money, a leg or a position."""
    unreadable(topic, changed(topic, **{path: wrong}))


@pytest.mark.parametrize("wrong", [1.0, True, "1", None, 0, -1, 1.5, [1], {}], ids=repr)
def test_a_class_version_is_an_integer_from_1_on(wrong: Any) -> None:
    """Anything else was not written by any release."""
    unreadable("AccountUnfrozen", changed("AccountUnfrozen", class_version=wrong))


@pytest.mark.parametrize(
    ("topic", "path", "wrong"),
    [
        ("AccountOpened", "account_id", 5),
        ("AccountOpened", "metadata", {"a": 1}),
        ("AccountOpened", "metadata", []),
        ("AccountOpened", "credit_limit", 5),
        ("AccountOpened", "after__kind", "BANK"),
        ("AccountOpened", "after__status", "open"),
        ("AccountFrozen", "scope", "NONE"),
        ("AccountFrozen", "after__freeze_scope", ""),
        ("FundsReserved", "cause", "AUTHORIZATION"),
        ("FundsReserved", "cause__kind", "WHIM"),
        ("FundsReserved", "effective_at", "yesterday"),
        ("FundsReserved", "effective_at", "2026-02-28T12:00:00"),
        ("FundsReserved", "timestamp", "2026-02-28T12:00:00"),
        ("FundsReserved", "timestamp", None),
        ("FundsReserved", "timestamp", 1_767_268_800),
        ("FundsReserved", "effective_at", "1767268800"),
        ("FundsDebited", "from_reserved", None),
        ("PaymentAuthorized", "expires_at", None),
        ("PaymentAuthorized", "hold_for", "a week"),
        ("PaymentAuthorized", "hold_for", 604_800),
        ("PaymentAuthorized", "hold_for", "-P7D"),
        ("PaymentAuthorized", "hold_for", "P"),
        ("PaymentAuthorized", "hold_for", "P7DT"),
        ("PaymentAuthorized", "hold_for", "P7D\n"),
        ("PaymentAuthorized", "hold_for", "P\N{ARABIC-INDIC DIGIT SEVEN}D"),
        ("PaymentAuthorized", "hold_for", "P9999999999D"),
        ("PaymentAuthorized", "actor", None),
        ("PaymentDeclined", "decline_reason", "BAD_MOOD"),
        ("TransferPosted", "legs", None),
        ("TransferPosted", "legs", [5]),
    ],
)
def test_a_value_that_the_field_can_not_hold_is_unreadable(topic: str, path: str, wrong: Any) -> None:
    """A value of another type, or a word that this release doesn't know."""
    unreadable(topic, changed(topic, **{path: wrong}))


@pytest.mark.parametrize(
    ("topic", "path"),
    [
        (topic, field)
        for topic, event_class in TOPICS.items()
        for field in (each.encode_name for each in fields(event_class) if each.default is NODEFAULT)
    ]
    + [("AccountOpened", "class_version"), ("AccountOpened", "after__posted"), ("FundsReserved", "cause__kind")]
    + [("TransferPosted", "legs__1__amount"), ("TransferPosted", "legs__1__amount__minor_units")],
)
def test_a_missing_field_is_unreadable(topic: str, path: str) -> None:
    """Nothing that is always written is ever filled in."""
    unreadable(topic, changed(topic, **{path: ...}))


@pytest.mark.parametrize(
    ("topic", "path"),
    [(topic, "surprise") for topic in TOPICS]
    + [
        ("AccountOpened", "originator_id"),
        ("AccountOpened", "originator_version"),
        ("AccountOpened", "topic"),
        ("AccountOpened", "after__surprise"),
        ("AccountOpened", "after__available"),
        ("AccountOpened", "credit_limit__surprise"),
        ("FundsReserved", "cause__surprise"),
        ("PaymentCaptured", "before__surprise"),
        ("PaymentCaptured", "amount__surprise"),
        ("TransferPosted", "legs__0__surprise"),
        ("TransferPosted", "legs__0__amount__surprise"),
    ],
)
def test_an_extra_field_is_unreadable(topic: str, path: str) -> None:
    """What this release doesn't know it doesn't drop: it may be what matters."""
    unreadable(topic, changed(topic, **{path: "x"}))


@pytest.mark.parametrize("topic", TOPICS)
def test_bytes_of_one_event_are_not_read_as_another(topic: str) -> None:
    """The topic says what the bytes are; fields of any other class with other fields don't pass."""
    for other in TOPICS:
        if set(TOPICS[other].__struct_fields__) != set(TOPICS[topic].__struct_fields__):
            unreadable(other, golden(topic, class_version(TOPICS[topic])))


# --- versions --------------------------------------------------------------------------------------------------------


class Greeted(LedgerEvent, kw_only=True, tag=3):
    """An event of the third version: `name` was `who` at first, and `loud` was not there before the last."""

    name: str
    loud: bool


def _renamed(fields: dict[str, Any]) -> dict[str, Any]:
    return {"name" if key == "who" else key: value for key, value in fields.items()}


def _softly(fields: dict[str, Any]) -> dict[str, Any]:
    return {**fields, "loud": False}


GREETINGS = EventMapper({"Greeted": Greeted}, {("Greeted", 1): _renamed, ("Greeted", 2): _softly})
GREETING = {"timestamp": "2026-01-01T12:00:00Z", "actor": "a", "correlation_id": "c", "command_position": 1}


@pytest.mark.parametrize(
    "fields",
    [
        {"class_version": 1, "who": "Ada"},
        {"class_version": 2, "name": "Ada"},
        {"class_version": 3, "name": "Ada", "loud": False},
    ],
    ids=["v1", "v2", "v3"],
)
def test_an_older_version_is_upcast_step_by_step(fields: dict[str, Any]) -> None:
    """Version 1 goes through 2 to 3; what comes out is today's event, and is written as such."""
    record = StoredEvent(
        originator_id="s", originator_version=5, topic="Greeted", state=json.dumps(GREETING | fields).encode()
    )
    event = GREETINGS.to_domain_event(record)
    assert event == Greeted(
        timestamp=START,
        actor="a",
        correlation_id="c",
        command_position=1,
        name="Ada",
        loud=False,
    ).standing("s", 5)
    again = GREETINGS.to_stored_event(event)
    assert json.loads(again.state) == GREETING | {"class_version": 3, "name": "Ada", "loud": False}
    assert GREETINGS.to_domain_event(again) == event


@pytest.mark.parametrize(
    "fields",
    [
        {"class_version": 4, "name": "Ada", "loud": False},
        {"class_version": 0, "who": "Ada"},
        {"class_version": 1, "name": "Ada", "who": "Bob", "loud": True, "surprise": 1},
        {"class_version": 3, "who": "Ada", "loud": False},
        {"class_version": 3, "name": "Ada"},
        {"class_version": 2, "name": "Ada", "more": 1},
        {"class_version": 1, "who": 5},
    ],
)
def test_bytes_that_are_not_of_their_version_are_unreadable(fields: dict[str, Any]) -> None:
    """A newer one, one before the first, and those whose fields are of another version."""
    unreadable("Greeted", json.dumps(GREETING | fields).encode(), GREETINGS)


def test_a_version_without_an_upcaster_is_unreadable() -> None:
    """A step that is missing is not skipped."""
    mapper = EventMapper({"Greeted": Greeted}, {("Greeted", 1): _renamed})
    unreadable("Greeted", json.dumps(GREETING | {"class_version": 1, "who": "Ada"}).encode(), mapper)


def test_an_upcaster_that_fails_makes_the_event_unreadable() -> None:
    """Whatever it stumbles over in the stored fields, the stream and the version are named."""

    def stumbles(fields: dict[str, Any]) -> dict[str, Any]:
        return {**fields, "name": fields["nowhere"]}

    mapper = EventMapper({"Greeted": Greeted}, {("Greeted", 1): stumbles, ("Greeted", 2): _softly})
    unreadable("Greeted", json.dumps(GREETING | {"class_version": 1, "who": "Ada"}).encode(), mapper)


@pytest.mark.parametrize("topic", TOPICS)
def test_a_newer_class_version_is_unreadable_and_says_why(topic: str) -> None:
    """An old program stops at what a newer one wrote, instead of guessing."""
    newer = class_version(TOPICS[topic]) + 1
    assert str(newer) in unreadable(topic, changed(topic, class_version=newer))


# --- the table of topics is closed -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "Surprise",
        "accountopened",
        "LedgerEvent",
        "AccountEvent",
        "ledger.domain.events:AccountOpened",
        "ledger.domain.events.AccountOpened",
        "eventsourcing.domain:Aggregate.Created",
        "builtins:dict",
    ],
)
def test_an_unknown_topic_is_unreadable(topic: str) -> None:
    """The name of a class is no topic, nor is a base class or a path to import."""
    unreadable(topic, golden("AccountOpened", 1))


def test_no_topic_is_ever_imported() -> None:
    """What a row names is looked up in our table and nowhere else."""
    assert "this" not in sys.modules
    for topic in ("this:s", "this", "this.s"):
        unreadable(topic, golden("AccountOpened", 1))
    assert "this" not in sys.modules


def test_the_table_has_every_event_class_once() -> None:
    """A class that is not in it could be recorded and never read; bases that only share fields are not in it."""
    defined = {
        each
        for each in vars(events_module).values()
        if isinstance(each, type) and issubclass(each, LedgerEvent) and each.__module__ == events_module.__name__
    }
    concrete = {each for each in defined if not any(other is not each and issubclass(other, each) for other in defined)}
    assert sorted(map(repr, TOPICS.values())) == sorted(map(repr, concrete))


def test_an_event_that_is_not_in_the_table_is_not_stored() -> None:
    """It could not be read back."""
    greeting = Greeted(**COMMON, name="Ada", loud=True).standing("s", 1)
    with pytest.raises(KeyError):
        MAPPER.to_stored_event(greeting)


def test_no_event_is_made_without_a_time() -> None:
    """The library's clock is never used."""
    with pytest.raises(AssertionError):
        LedgerEvent.create_timestamp()


@pytest.mark.parametrize("topic", TOPICS)
def test_a_fact_does_not_change(topic: str) -> None:
    """Events are values."""
    with pytest.raises(AttributeError, match="immutable"):
        CANONICAL[topic].actor = "somebody else"
    with pytest.raises(AttributeError, match="immutable"):
        CANONICAL[topic].originator_version = 8
