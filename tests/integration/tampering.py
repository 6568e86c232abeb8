"""What somebody can do to a ledger who has all rights on its database, and not the key that signs: every kind of it.

A tampering changes a copy of a sound ledger at a random place, and tells what an auditor has to find there first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from typing import Any, Final

import psycopg
from checks import Row
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from domain import Ledger, leg, transfer
from msgspec.structs import replace
from read_side import append_row

from ledger.audit.findings import Kind
from ledger.audit.leaf import leaf_data
from ledger.audit.merkle import Frontier, leaf_hash
from ledger.audit.note import Note, SigningKey, TreeHead, sign
from ledger.audit.replay import command_of
from ledger.audit.tiles import TILE_BYTES, Edge
from ledger.domain.account import Account
from ledger.domain.aggregate import Stamp
from ledger.domain.book import Book
from ledger.domain.commands import Command
from ledger.domain.decisions import decide
from ledger.domain.errors import Refusal
from ledger.domain.events import (
    AccountKind,
    Cause,
    CauseKind,
    LedgerEvent,
    PaymentCaptured,
    PaymentRefunded,
    TransferPosted,
)
from ledger.domain.money import Money
from ledger.domain.payment import Payment, changed
from ledger.domain.transfer import Transfer
from ledger.upcasters import EventMapper

MAPPER: Final = EventMapper()
ORIGIN: Final = "ledger/sound"

IN_PLACE: Final = {Kind.UNREADABLE, Kind.COLUMNS, Kind.BYTES, Kind.DECISION, Kind.CHANGED}
"""How an event that was changed where it stands may be found: at the latest by the hash that was signed."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What is to be found first: any of these kinds, at this position, in a place whose name begins like this."""

    kinds: set[Kind]
    position: int | None = None
    place: str = ""


class Case:
    """A copy of a sound ledger, in the hands of somebody whom no trigger stops."""

    def __init__(self, db: psycopg.Connection[Any], log: Sequence[Row], random: Random) -> None:
        self.db, self.log, self.random = db, log, random
        self.db.execute("SET session_replication_role = replica")

    @property
    def head(self) -> int:
        return len(self.log)

    def any(self, matching: Callable[[Row], object] = lambda _: True) -> Row:
        """An event anywhere."""
        return self.random.choice([row for row in self.log if matching(row)])

    def set(self, row: Row, column: str, value: object) -> None:
        self.db.execute(f"UPDATE events SET {column} = %s WHERE position = %s".encode(), (value, row.position))

    def set_state(self, row: Row, fields: dict[str, Any]) -> None:
        self.set(row, "state", canonical(fields))

    def move(self, start: int, by: int) -> None:
        """Give other positions to all events from one on."""
        self.drop_constraints()
        self.db.execute("UPDATE events SET position = position + %s WHERE position >= %s", (by, start))

    def drop_constraints(self) -> None:
        """Those that keep a log in order."""
        for name in ("events_one_event_per_version", "events_one_event_per_position"):
            self.db.execute(f"ALTER TABLE events DROP CONSTRAINT IF EXISTS {name}".encode())

    def delete(self, first: int, last: int) -> None:
        self.db.execute("DELETE FROM events WHERE position BETWEEN %s AND %s", (first, last))

    def append(self, events: Iterable[LedgerEvent], head: int) -> None:
        """Write events after a head."""
        for position, event in enumerate(events, start=head + 1):
            stored = MAPPER.to_stored_event(event)
            row = stored.originator_id, stored.originator_version, position, stored.topic, stored.state
            append_row(self.db, *row, event.timestamp)

    def book(self, until: int | None = None) -> Book:
        """The aggregates as they are after a position, by the domain itself."""
        return decided(self.log if until is None else self.log[:until])

    def stamp(self, position: int) -> Stamp:
        return Stamp(self.log[-1].recorded_at, "anonymous", "forged", position)


def canonical(fields: dict[str, Any]) -> bytes:
    """As the ledger writes it."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def commands(log: Sequence[Row]) -> list[tuple[Row, Command]]:
    """The first event of each command, and what was asked."""
    firsts = [row for row in log if row.fields["command_position"] == row.position]
    return [(row, command_of(*_kind_and_stream(row), MAPPER.fields_of(row.topic, row.state)[1])) for row in firsts]


def _kind_and_stream(row: Row) -> tuple[type[LedgerEvent], str]:
    return MAPPER.fields_of(row.topic, row.state)[0], row.stream


def decided(log: Sequence[Row], change: Callable[[Row, Command], Command] = lambda _, each: each) -> Book:
    """All commands of a log decided again, some of them changed; those that are refused now are left out."""
    book = Book({})
    for row, command in commands(log):
        layer = book.layer()
        stamp = Stamp(row.recorded_at, row.fields["actor"], row.fields["correlation_id"], book.next_position)
        try:
            decide(change(row, command), layer, stamp)
        except Refusal:
            continue
        book.merge(layer)
    return book


Tampering = Callable[[Case], Expected]
TAMPERINGS: Final[dict[str, Tampering]] = {}


def tampering(function: Tampering) -> Tampering:
    TAMPERINGS[function.__name__] = function
    return function


# --- an event changed where it stands --------------------------------------------------------------------------------


@tampering
def flip_a_bit_of_a_state(case: Case) -> Expected:
    row = case.any()
    state = bytearray(row.state)
    state[case.random.randrange(len(state))] ^= 1 << case.random.randrange(8)
    case.set(row, "state", bytes(state))
    return Expected(IN_PLACE, row.position)


@tampering
def cut_a_state_short(case: Case) -> Expected:
    row = case.any()
    case.set(row, "state", row.state[: case.random.randrange(len(row.state))])
    return Expected({Kind.UNREADABLE}, row.position)


@tampering
def write_the_same_in_other_bytes(case: Case) -> Expected:
    row = case.any()
    spaced = json.dumps(row.fields, sort_keys=case.random.random() < 0.5, ensure_ascii=False)
    case.set(row, "state", spaced.encode())
    return Expected({Kind.BYTES}, row.position)


@tampering
def add_a_field_to_a_state(case: Case) -> Expected:
    row = case.any()
    case.set_state(row, {**row.fields, "note": "of no meaning"})
    return Expected({Kind.UNREADABLE}, row.position)


@tampering
def change_an_amount(case: Case) -> Expected:
    row = case.any(lambda row: isinstance(row.fields.get("amount"), int))
    case.set_state(row, {**row.fields, "amount": row.fields["amount"] + case.random.choice((-1, 1, 1_000))})
    return Expected({Kind.DECISION}, row.position)


@tampering
def change_a_balance_that_is_carried(case: Case) -> Expected:
    row = case.any(lambda row: row.stream.startswith("account/") and row.version > 1)
    name = case.random.choice(("posted", "reserved", "credit_limit"))
    after = {**row.fields["after"], name: row.fields["after"][name] + case.random.choice((1, 100))}
    case.set_state(row, {**row.fields, "after": after})
    return Expected({Kind.DECISION}, row.position)


@tampering
def change_what_a_payment_carries(case: Case) -> Expected:
    row = case.any(lambda row: "before" in row.fields)
    name = case.random.choice(("captured", "refunded", "capturable", "authorized"))
    side = case.random.choice(("before", "after"))
    case.set_state(row, {**row.fields, side: {**row.fields[side], name: row.fields[side][name] + 1}})
    return Expected({Kind.DECISION}, row.position)


@tampering
def change_who_did_it(case: Case) -> Expected:
    row = case.any()
    name = case.random.choice(("actor", "correlation_id"))
    case.set_state(row, {**row.fields, name: "somebody"})
    return Expected({Kind.DECISION, Kind.CHANGED}, row.position)


@tampering
def change_a_reference(case: Case) -> Expected:
    """A change that breaks no rule: what was asked was another thing."""
    row = case.any(lambda row: "reference" in row.fields)
    case.set_state(row, {**row.fields, "reference": "another"})
    return Expected({Kind.CHANGED}, row.position)


@tampering
def change_when_it_counts(case: Case) -> Expected:
    row = case.any(lambda row: "effective_at" in row.fields)
    case.set_state(row, {**row.fields, "effective_at": "1999-12-31T00:00:00Z"})
    return Expected({Kind.DECISION, Kind.CHANGED}, row.position)


@tampering
def make_a_decline_of_it(case: Case) -> Expected:
    row = case.any(lambda row: row.topic == "PaymentAuthorized")
    kept = {name: each for name, each in row.fields.items() if name != "expires_at"}
    declined = {"decline_reason": "INSUFFICIENT_FUNDS", "declined_account_id": row.fields["payer_account_id"]}
    case.set(row, "topic", "PaymentDeclined")
    case.set_state(row, {**kept, **declined})
    return Expected({Kind.DECISION}, row.position)


@tampering
def make_an_authorization_of_a_decline(case: Case) -> Expected:
    row = case.any(lambda row: row.topic == "PaymentDeclined")
    fields = {name: each for name, each in row.fields.items() if not name.startswith("decline")}
    case.set(row, "topic", "PaymentAuthorized")
    case.set_state(row, {**fields, "expires_at": "2027-01-01T00:00:00Z"})
    return Expected({Kind.DECISION}, row.position)


@tampering
def change_the_reason_of_a_decline(case: Case) -> Expected:
    row = case.any(lambda row: "decline_reason" in row.fields)
    other = {"INSUFFICIENT_FUNDS": "ACCOUNT_CLOSED"}.get(row.fields["decline_reason"], "INSUFFICIENT_FUNDS")
    case.set_state(row, {**row.fields, "decline_reason": other})
    return Expected({Kind.DECISION}, row.position)


# --- a column changed ------------------------------------------------------------------------------------------------


@tampering
def change_the_stream(case: Case) -> Expected:
    row = case.any()
    case.drop_constraints()
    kind = row.stream.partition("/")[0]
    others = {each.stream for each in case.log if each.stream.startswith(kind)} - {row.stream}
    case.set(row, "stream", case.random.choice([f"{kind}/of-nobody", *sorted(others)]))
    return Expected(IN_PLACE | {Kind.VERSIONS}, row.position)


@tampering
def change_the_version(case: Case) -> Expected:
    row = case.any()
    case.drop_constraints()
    case.set(row, "version", row.version + case.random.choice((-row.version, -1, 1, 2, 10**12)))
    return Expected({Kind.VERSIONS}, row.position)


@tampering
def change_the_topic(case: Case) -> Expected:
    row = case.any()
    topics = {each.topic for each in case.log} - {row.topic} | {"PaymentExploded"}
    case.set(row, "topic", case.random.choice(sorted(topics)))
    return Expected(IN_PLACE, row.position)


@tampering
def change_the_time(case: Case) -> Expected:
    row = case.any()
    by = case.random.choice((-1, 1)) * timedelta(microseconds=case.random.choice((1, 10**6, 10**12)))
    case.set(row, "recorded_at", row.recorded_at + by)
    return Expected({Kind.TIMES, Kind.COLUMNS}, row.position)


@tampering
def change_the_time_to_none(case: Case) -> Expected:
    row = case.any()
    case.set(row, "recorded_at", case.random.choice(("infinity", "-infinity", "200000-01-01")))
    return Expected({Kind.TIMES}, row.position)


@tampering
def leave_a_column_empty(case: Case) -> Expected:
    row = case.any()
    column = case.random.choice(("version", "topic", "recorded_at", "state"))
    case.drop_constraints()
    case.db.execute(f"ALTER TABLE events ALTER {column} DROP NOT NULL".encode())
    case.set(row, column, None)
    return Expected({Kind.UNREADABLE, Kind.POSITIONS}, row.position)


# --- the order changed -----------------------------------------------------------------------------------------------


@tampering
def swap_two_events(case: Case) -> Expected:
    first, second = sorted(case.random.sample(case.log, 2))
    case.drop_constraints()
    swap = "UPDATE events SET position = CASE position WHEN %s THEN %s ELSE %s END WHERE position IN (%s, %s)"
    numbers = first.position, second.position
    case.db.execute(swap, (numbers[0], numbers[1], numbers[0], *numbers))
    return Expected(IN_PLACE | {Kind.VERSIONS, Kind.TIMES}, first.position)


@tampering
def delete_an_event(case: Case) -> Expected:
    row = case.any(lambda row: row.position < case.head)
    case.delete(row.position, row.position)
    return Expected({Kind.POSITIONS}, row.position)


@tampering
def delete_an_event_and_close_the_gap(case: Case) -> Expected:
    row = case.any(lambda row: row.position < case.head)
    case.delete(row.position, row.position)
    case.move(row.position, -1)
    return Expected(IN_PLACE | {Kind.VERSIONS}, row.position)


@tampering
def delete_a_command_and_close_the_gap(case: Case) -> Expected:
    first, last = case.random.choice(spans(case.log)[:-1])
    case.delete(first, last)
    case.move(first, first - last - 1)
    return Expected(IN_PLACE | {Kind.VERSIONS}, first)


def spans(log: Sequence[Row]) -> list[tuple[int, int]]:
    """The first and last position of each command."""
    firsts = [row.position for row in log if row.fields["command_position"] == row.position]
    return list(zip(firsts, [*(each - 1 for each in firsts[1:]), len(log)], strict=True))


@tampering
def leave_a_gap_of_positions(case: Case) -> Expected:
    row = case.any()
    case.move(row.position, case.random.choice((1, 50)))
    return Expected({Kind.POSITIONS}, row.position)


@tampering
def begin_at_another_position(case: Case) -> Expected:
    by = case.random.choice((-1, -5, 3))
    case.move(1, by)
    return Expected({Kind.POSITIONS}, 1 if by > 0 else 1 + by)


@tampering
def record_an_event_twice(case: Case) -> Expected:
    row = case.any()
    case.drop_constraints()
    case.db.execute("INSERT INTO events SELECT * FROM events WHERE position = %s", (row.position,))
    return Expected({Kind.POSITIONS}, row.position)


@tampering
def record_a_command_once_more_at_the_end(case: Case) -> Expected:
    """A payment that was authorized is authorized again, or a transfer posted again: bytes, versions and all."""
    first, last = case.random.choice([each for each in spans(case.log) if case.log[each[0] - 1].version == 1])
    case.drop_constraints()
    for position, row in enumerate(case.log[first - 1 : last], start=case.head + 1):
        state = canonical({**row.fields, "command_position": case.head + 1})
        append_row(case.db, row.stream, row.version, position, row.topic, state, case.log[-1].recorded_at)
    return Expected(IN_PLACE | {Kind.VERSIONS}, case.head + 1)


@tampering
def insert_an_event_and_make_room(case: Case) -> Expected:
    row = case.any()
    case.move(row.position, 1)
    state = canonical({**row.fields, "command_position": row.position})
    append_row(case.db, row.stream, 10_000, row.position, row.topic, state, row.recorded_at)
    return Expected(IN_PLACE | {Kind.VERSIONS}, row.position)


@tampering
def cut_off_the_end(case: Case) -> Expected:
    row = case.any(lambda row: row.position > 1)
    case.delete(row.position, case.head)
    return Expected({Kind.TAIL, Kind.DECISION}, row.position)


@tampering
def cut_off_the_end_and_go_on(case: Case) -> Expected:
    """Other commands, each of them legal, in the place of those that were recorded."""
    first, _ = case.random.choice(spans(case.log)[5:])
    case.delete(first, case.head)
    ledger = Ledger()
    ledger.book, ledger.now = case.book(first - 1), case.log[-1].recorded_at
    for number in range(case.random.choice((1, case.head))):
        ledger.do(transfer(f"other-{number}", leg("bank", "shop", 1)))
    case.append(ledger.book.events[first - 1 :], first - 1)
    return Expected(IN_PLACE, first)


# --- the whole history written anew, with all that follows from it ---------------------------------------------------


def rewrite(case: Case) -> int:
    """Take one payment or transfer for another amount, and decide all over again; return where that begins."""
    row, _ = case.random.choice([each for each in commands(case.log) if each[0].topic in _WITH_AMOUNT])

    def change(at: Row, command: Any) -> Command:
        return _one_more(command) if at.position == row.position else command

    book = decided(case.log, change)
    case.delete(1, case.head)
    case.append(book.events, 0)
    return row.position


_WITH_AMOUNT: Final = ("PaymentAuthorized", "PaymentDeclined", "TransferPosted")


def _one_more(command: Any) -> Command:
    if hasattr(command, "legs"):
        first, *others = command.legs
        more = replace(first, amount=replace(first.amount, minor_units=first.amount.minor_units + 1))
        changed_command: Command = command.model_copy(update={"legs": (more, *others)})
    else:
        more = replace(command.amount, minor_units=command.amount.minor_units + 1)
        changed_command = command.model_copy(update={"amount": more})
    return changed_command


@tampering
def rewrite_history_and_leave_the_tree(case: Case) -> Expected:
    return Expected({Kind.CHANGED}, rewrite(case))


@tampering
def rewrite_history_and_the_tree(case: Case) -> Expected:
    """All that can be made without the key is as it should be: only what the auditor has kept tells."""
    rewrite(case)
    grow_tree_again(case, None)
    return kept_head_tells(case)


@tampering
def rewrite_history_and_sign_it_with_another_key(case: Case) -> Expected:
    rewrite(case)
    key = SigningKey(ORIGIN, Ed25519PrivateKey.generate())
    grow_tree_again(case, key)
    case.db.execute("UPDATE tree_keys SET public_key = %s", (str(key.public),))
    return kept_head_tells(case)


def kept_head_tells(case: Case) -> Expected:
    """The head that was kept is of all events there were."""
    (events,) = case.db.execute("SELECT count(*) FROM events").fetchone() or (0,)
    if events < case.head:
        return Expected({Kind.TAIL}, events + 1)
    return Expected({Kind.ROOT}, case.head)


def grow_tree_again(case: Case, key: SigningKey | None) -> None:
    """Tiles and heads of the log as it is now, signed by a key, or under the signatures that were there before."""
    notes = [note for (note,) in case.db.execute("SELECT note FROM tree_heads ORDER BY number")]
    sizes = [TreeHead.parse(Note.parse(note).text).size for note in notes]
    for table in ("tree_tiles", "tree_heads"):
        case.db.execute(f"DELETE FROM {table}".encode())
    edge, tree = Edge(), Frontier()
    columns = "position, stream, version, topic, recorded_at, state"
    for row in case.db.execute(f"SELECT {columns} FROM events ORDER BY position".encode()).fetchall():
        hashed = leaf_hash(leaf_data(*row[:5], bytes(row[5])))
        edge.extend(hashed)
        tree.append(hashed)
        if tree.size in sizes:
            number = sizes.index(tree.size)
            head = TreeHead(ORIGIN, tree.size, tree.root())
            note = head.text + "\n" + notes[number].rpartition("\n\n")[2] if key is None else sign(head.text, [key])
            add = "INSERT INTO tree_heads (number, tree_size, root_hash, note) VALUES (%s, %s, %s, %s)"
            case.db.execute(add, (number + 1, head.size, head.root, note))
    for (level, index), hashes in edge.taken().items():
        case.db.execute("INSERT INTO tree_tiles VALUES (%s, %s, %s)", (level, index, hashes))


# --- forged at the end, in bytes that are all right ------------------------------------------------------------------


def forge(case: Case, act: Callable[[Book, Stamp], None]) -> Expected:
    """Append what `act` does to the aggregates, past all rules."""
    layer = case.book().layer()
    act(layer, case.stamp(case.head + 1))
    case.append(layer.events, case.head)
    return Expected({Kind.DECISION}, case.head + 1)


def some_payment(case: Case, book: Book, matching: Callable[[Payment], object]) -> Payment:
    streams = sorted({row.stream for row in case.log if row.stream.startswith("payment/")})
    payments = [book.find_payment(each.partition("/")[2]) for each in streams]
    return case.random.choice([each for each in payments if each is not None and matching(each)])


def capture_past_the_rules(book: Book, payment: Payment, amount: int, capture_id: str, stamp: Stamp) -> None:
    payer, payee = book.account(payment.request.payer_account_id), book.account(payment.request.payee_account_id)
    before, code = payment.amounts, payment.request.amount.currency_code
    after = changed(before, captured=amount, authorized=amount)
    payment.record(
        PaymentCaptured(
            capture_id=capture_id,
            amount=Money(code, amount),
            keep_remainder=True,
            before=before,
            after=after,
            **stamp.fields,
        )
    )
    cause = Cause(kind=CauseKind.CAPTURE, payment_id=payment.payment_id, capture_id=capture_id)
    payer.debit(amount, payee.account_id, cause, None, stamp, from_reserved=True)
    payee.credit(amount, payer.account_id, cause, None, stamp)


@tampering
def capture_more_than_was_authorized(case: Case) -> Expected:
    def act(book: Book, stamp: Stamp) -> None:
        payment = some_payment(case, book, lambda each: each.amounts.capturable)
        capture_past_the_rules(book, payment, payment.amounts.capturable + 1, "forged", stamp)

    return forge(case, act)


@tampering
def capture_a_second_time(case: Case) -> Expected:
    """Twice the same money, debits and credits in balance."""

    def act(book: Book, stamp: Stamp) -> None:
        payment = some_payment(case, book, lambda each: each.amounts.captured and not each.amounts.capturable)
        capture_past_the_rules(book, payment, payment.amounts.captured, "again", stamp)

    return forge(case, act)


@tampering
def capture_once_more_under_the_same_id(case: Case) -> Expected:
    def act(book: Book, stamp: Stamp) -> None:
        payment = some_payment(case, book, lambda each: each.amounts.captured)
        capture_id = next(each.capture_id for each in payment.changes.values() if isinstance(each, PaymentCaptured))
        capture_past_the_rules(book, payment, 1, capture_id, stamp)

    return forge(case, act)


@tampering
def refund_more_than_was_captured(case: Case) -> Expected:
    def act(book: Book, stamp: Stamp) -> None:
        payment = some_payment(case, book, lambda each: each.amounts.captured)
        payer, payee = book.account(payment.request.payer_account_id), book.account(payment.request.payee_account_id)
        before, code = payment.amounts, payment.request.amount.currency_code
        amount = before.captured - before.refunded + 1
        after = changed(before, refunded=amount)
        money = Money(code, amount)
        payment.record(PaymentRefunded(refund_id="f", amount=money, before=before, after=after, **stamp.fields))
        cause = Cause(kind=CauseKind.REFUND, payment_id=payment.payment_id, refund_id="f")
        payee.debit(amount, payer.account_id, cause, None, stamp)
        payer.credit(amount, payee.account_id, cause, None, stamp)

    return forge(case, act)


def transfer_past_the_rules(book: Book, payer: Account, payee: Account, amount: int, stamp: Stamp) -> None:
    legs = (leg(payer.account_id, payee.account_id, amount, payer.state.currency_code),)
    event = TransferPosted(transfer_id="forged", legs=legs, reference="", metadata={}, **stamp.fields)
    book.add(Transfer.born("transfer/forged", event, book.events))
    cause = Cause(kind=CauseKind.TRANSFER, transfer_id="forged", leg=0)
    payer.debit(amount, payee.account_id, cause, None, stamp)
    payee.credit(amount, payer.account_id, cause, None, stamp)


def some_account(case: Case, book: Book, matching: Callable[[Account], object]) -> Account:
    streams = sorted({row.stream for row in case.log if row.stream.startswith("account/")})
    accounts = [book.account(each.partition("/")[2]) for each in streams]
    return case.random.choice([each for each in accounts if matching(each)])


@tampering
def overdraw_an_account(case: Case) -> Expected:
    def act(book: Book, stamp: Stamp) -> None:
        payer = some_account(case, book, lambda each: each.state.kind is AccountKind.CUSTOMER)
        code = payer.state.currency_code
        bank = book.account("bank" if code == "EUR" else f"bank-{code}")
        transfer_past_the_rules(book, payer, bank, payer.state.available + 1, stamp)

    return forge(case, act)


@tampering
def transfer_less_than_nothing(case: Case) -> Expected:
    """Money that flows backwards by its sign."""
    return forge(
        case,
        lambda book, stamp: transfer_past_the_rules(book, book.account("bank"), book.account("shop"), -5, stamp),
    )


@tampering
def make_money_of_nothing(case: Case) -> Expected:
    def act(book: Book, stamp: Stamp) -> None:
        lucky = some_account(case, book, lambda _: True)
        cause = Cause(kind=CauseKind.TRANSFER, transfer_id="wonder", leg=0)
        lucky.credit(1_000_000, "bank", cause, None, stamp)

    return forge(case, act)


@tampering
def leave_out_one_side(case: Case) -> Expected:
    """The last event of the log is taken away: a debit without its credit, or a promise that nobody reserved."""
    book = case.book()
    ledger = Ledger()
    ledger.book, ledger.now = book, case.log[-1].recorded_at
    ledger.do(transfer("half", leg("bank", "shop", 5)))
    case.append(book.events[case.head : -1], case.head)
    return Expected({Kind.DECISION}, case.head + 3)


# --- what was signed -------------------------------------------------------------------------------------------------


def some_head(case: Case) -> tuple[int, int, str]:
    """Number, size and note of a head."""
    rows = case.db.execute("SELECT number, tree_size, note FROM tree_heads ORDER BY number").fetchall()
    number, size, note = case.random.choice(rows[:-1])
    return number, size, note


def set_head(case: Case, number: int, column: str, value: object) -> None:
    case.db.execute(f"UPDATE tree_heads SET {column} = %s WHERE number = %s".encode(), (value, number))


@tampering
def sign_a_head_with_another_key(case: Case) -> Expected:
    number, size, note = some_head(case)
    key = SigningKey(ORIGIN, Ed25519PrivateKey.generate())
    set_head(case, number, "note", sign(Note.parse(note).text, [key]))
    return Expected({Kind.SIGNATURE}, size, f"head {number}")


@tampering
def put_another_root_under_a_signature(case: Case) -> Expected:
    number, size, note = some_head(case)
    root = case.random.randbytes(32)
    text = TreeHead(ORIGIN, size, root).text
    set_head(case, number, "note", text + "\n" + note.rpartition("\n\n")[2])
    set_head(case, number, "root_hash", root)
    return Expected({Kind.SIGNATURE}, size, f"head {number}")


@tampering
def change_the_root_of_a_head(case: Case) -> Expected:
    number, size, _ = some_head(case)
    set_head(case, number, "root_hash", case.random.randbytes(32))
    return Expected({Kind.HEADS}, size, f"head {number}")


@tampering
def change_the_note_of_a_head(case: Case) -> Expected:
    number, size, note = some_head(case)
    place = case.random.randrange(len(note))
    other = case.random.choice(sorted({*"xyz=+\n"} - {note[place]}))
    set_head(case, number, "note", note[:place] + other + note[place + 1 :])
    return Expected({Kind.SIGNATURE, Kind.HEADS}, size, f"head {number}")


@tampering
def give_a_head_the_note_of_another(case: Case) -> Expected:
    number, size, _ = some_head(case)
    (note,) = case.db.execute("SELECT note FROM tree_heads ORDER BY number DESC").fetchone() or ("",)
    set_head(case, number, "note", note)
    return Expected({Kind.HEADS}, size, f"head {number}")


@tampering
def remove_a_head(case: Case) -> Expected:
    number, _, _ = some_head(case)
    case.db.execute("DELETE FROM tree_heads WHERE number = %s", (number,))
    return Expected({Kind.HEADS}, place=f"head {number + 1}")


@tampering
def name_another_key(case: Case) -> Expected:
    key = SigningKey(ORIGIN, Ed25519PrivateKey.generate())
    case.db.execute("UPDATE tree_keys SET public_key = %s", (str(key.public),))
    return Expected({Kind.HEADS}, place="the ledger's keys")


@tampering
def name_one_key_more(case: Case) -> Expected:
    key = SigningKey(ORIGIN, Ed25519PrivateKey.generate())
    case.db.execute("INSERT INTO tree_keys VALUES (2, %s, 3)", (str(key.public),))
    return Expected({Kind.HEADS}, place=f"key {key.public}")


# --- the tiles of the tree -------------------------------------------------------------------------------------------


def some_tile(case: Case) -> tuple[int, int, bytes]:
    """Level, index and hashes of a tile."""
    rows = case.db.execute("SELECT level, index, hashes FROM tree_tiles ORDER BY level, index").fetchall()
    level, index, hashes = case.random.choice(rows)
    return level, index, bytes(hashes)


def set_tile(case: Case, level: int, index: int, hashes: bytes | None) -> Expected:
    where = "WHERE level = %s AND index = %s"
    case.db.execute(f"UPDATE tree_tiles SET hashes = %s {where}".encode(), (hashes, level, index))
    return Expected({Kind.TILES}, place=f"tile {index} of level {level}")


@tampering
def flip_a_bit_of_a_tile(case: Case) -> Expected:
    level, index, hashes = some_tile(case)
    place = case.random.randrange(len(hashes))
    other = hashes[place] ^ 1 << case.random.randrange(8)
    return set_tile(case, level, index, hashes[:place] + bytes([other]) + hashes[place + 1 :])


@tampering
def take_a_tile_or_its_end_away(case: Case) -> Expected:
    level, index, hashes = some_tile(case)
    case.db.execute("ALTER TABLE tree_tiles ALTER hashes DROP NOT NULL")
    return set_tile(case, level, index, case.random.choice((None, hashes[:-32] or None)))


@tampering
def store_hashes_of_nothing(case: Case) -> Expected:
    """After the last of a level, where the signer will want to put others."""
    level = case.random.choice((0, 1, 2, 32_767))
    last = "SELECT index, hashes FROM tree_tiles WHERE level = %s ORDER BY index DESC LIMIT 1"
    index, hashes = case.db.execute(last, (level,)).fetchone() or (0, None)
    junk = case.random.randbytes(32)
    if hashes is not None and len(hashes) < TILE_BYTES and case.random.random() < 0.5:
        return set_tile(case, level, index, bytes(hashes) + junk)
    index = case.random.choice((-1, index + 1, 2**63 - 1))
    case.db.execute("INSERT INTO tree_tiles VALUES (%s, %s, %s)", (level, index, junk))
    return Expected({Kind.TILES}, place=f"tile {index:,} of level {level}")


# --- the read models -------------------------------------------------------------------------------------------------

KEYS: Final = {
    "balances": ("account_id",),
    "payments": ("payment_id",),
    "transfers": ("transfer_id",),
    "entries": ("account_id", "position"),
    "transfer_accounts": ("transfer_id", "account_id"),
}


def some_row(case: Case, table: str) -> tuple[str, str]:
    """Where a row stands, for Postgres and for people."""
    query = f"SELECT ctid::text, * FROM {table} ORDER BY position"
    if table == "transfer_accounts":
        query = (
            "SELECT a.ctid::text, a.account_id, t.transfer_id"
            " FROM transfer_accounts AS a JOIN transfers AS t USING (position)"
        )
    cursor = case.db.execute(query.encode())
    names = [each.name for each in cursor.description or ()]
    row = dict(zip(names, case.random.choice(cursor.fetchall()), strict=True))
    return row["ctid"], f"{table}, {' '.join(str(row[name]) for name in KEYS[table])}"


COLUMNS: Final = {
    "balances": ("posted", "reserved", "credit_limit", "version", "position", "currency_code", "metadata", "opened_at"),
    "payments": (
        "amount_captured",
        "state",
        "captures",
        "metadata",
        "expires_at",
        "reference",
        "version",
        "void_reason",
    ),
    "transfers": ("legs", "state", "effective_at", "reference", "decline_reason", "recorded_at"),
    "entries": ("posted", "posted_change", "kind", "counterparty_account_id", "effective_at", "version", "leg"),
}


@tampering
def change_a_read_model(case: Case) -> Expected:
    table = case.random.choice(list(COLUMNS))
    column = case.random.choice(COLUMNS[table])
    ctid, place = some_row(case, table)
    drop_checks(case, table)
    kind = f"SELECT data_type FROM information_schema.columns WHERE table_name = '{table}' AND column_name = '{column}'"
    (type_of,) = case.db.execute(kind.encode()).fetchone() or ("",)
    value = {
        "bigint": f"coalesce({column}, 0) + 1",
        "integer": f"coalesce({column}, 0) + 1",
        "jsonb": "'{\"x\": 1}'",
        "text": f"coalesce({column}, '') || 'x'",
        "timestamp with time zone": f"coalesce({column} + interval '1 microsecond', now())",
    }[type_of]
    case.db.execute(f"UPDATE {table} SET {column} = {value} WHERE ctid = '{ctid}'".encode())
    return Expected({Kind.READ_MODEL}, place=place)


def drop_checks(case: Case, table: str) -> None:
    """Those that would see it, and indexes that would be in the way."""
    found = "SELECT conname FROM pg_constraint WHERE conrelid = %s::regclass AND contype IN ('c', 'p', 'u')"
    for (name,) in case.db.execute(found, (table,)).fetchall():
        case.db.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}".encode())
    for (name,) in case.db.execute("SELECT indexname FROM pg_indexes WHERE tablename = %s", (table,)).fetchall():
        case.db.execute(f"DROP INDEX {name}".encode())


@tampering
def change_a_balance_that_is_worked_out(case: Case) -> Expected:
    table = case.random.choice(("balances", "entries"))
    ctid, place = some_row(case, table)
    drop_checks(case, table)
    case.db.execute(f"ALTER TABLE {table} ALTER available DROP EXPRESSION".encode())
    # The rows were written anew, in the same order.
    case.db.execute(f"UPDATE {table} SET available = available + 1 WHERE ctid = '{ctid}'".encode())
    return Expected({Kind.READ_MODEL}, place=place)


@tampering
def remove_a_row_of_a_read_model(case: Case) -> Expected:
    table = case.random.choice(list(KEYS))
    ctid, place = some_row(case, table)
    case.db.execute(f"DELETE FROM {table} WHERE ctid = '{ctid}'".encode())
    return Expected({Kind.READ_MODEL}, place=place)


@tampering
def add_a_row_to_a_read_model(case: Case) -> Expected:
    table = case.random.choice(("balances", "payments", "transfers"))
    ctid, _ = some_row(case, table)
    drop_checks(case, table)
    names = "SELECT column_name FROM information_schema.columns WHERE table_name = %s AND is_generated = 'NEVER'"
    columns = [name for (name,) in case.db.execute(names, (table,)).fetchall()]
    key = KEYS[table][0]
    shown = ", ".join("'unheard-of'" if name == key else name for name in columns)
    copy = f"INSERT INTO {table} ({', '.join(columns)}) SELECT {shown} FROM {table} WHERE ctid = '{ctid}'"
    case.db.execute(copy.encode())
    return Expected({Kind.READ_MODEL}, place=f"{table}, unheard-of")


@tampering
def repeat_a_row_of_a_read_model(case: Case) -> Expected:
    table = case.random.choice(("balances", "entries", "payments", "transfers"))
    ctid, place = some_row(case, table)
    drop_checks(case, table)
    names = "SELECT column_name FROM information_schema.columns WHERE table_name = %s AND is_generated = 'NEVER'"
    columns = ", ".join(name for (name,) in case.db.execute(names, (table,)).fetchall())
    case.db.execute(f"INSERT INTO {table} ({columns}) SELECT {columns} FROM {table} WHERE ctid = '{ctid}'".encode())
    return Expected({Kind.READ_MODEL}, place=place)


@tampering
def set_the_checkpoint_forward(case: Case) -> Expected:
    case.db.execute("UPDATE checkpoints SET position = position + 1")
    return Expected({Kind.READ_MODEL}, place="the read models")


@tampering
def remove_the_checkpoint(case: Case) -> Expected:
    case.db.execute("DELETE FROM checkpoints")
    return Expected({Kind.READ_MODEL}, place="the read models")


@tampering
def leave_a_column_of_a_head_empty(case: Case) -> Expected:
    number, _, _ = some_head(case)
    column = case.random.choice(("tree_size", "root_hash", "note"))
    case.db.execute(f"ALTER TABLE tree_heads ALTER {column} DROP NOT NULL".encode())
    set_head(case, number, column, None)
    return Expected({Kind.HEADS}, place="head ")
