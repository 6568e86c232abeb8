"""What tests of the read side share: histories with every kind of event, and a second opinion on their sums."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime, timedelta
from random import Random
from typing import Any, Final

import psycopg
from checks import Row
from domain import (
    Ledger,
    authorize,
    capture,
    close,
    expire,
    freeze,
    increment,
    leg,
    open_account,
    refund,
    set_limit,
    transfer,
    unfreeze,
    void,
)
from psycopg.rows import dict_row

from ledger.domain.commands import Command
from ledger.domain.events import AccountKind, FreezeScope
from ledger.postgres import connect
from ledger.upcasters import EventMapper
from projections.follower import Follower

READ_MODELS: Final = ("balances", "payments", "transfers", "entries")

# Everything that means something to COPY, JSON or SQL, and what is outside of ASCII.
ODD_TEXTS: Final = (
    "",
    "order 1",
    "a\tb\nc\rd",
    "\\N",
    "\\.",
    'it\'s 100% "fine"',
    "{}",
    "Zoë €5 🎉",
    "NULL",
    "$1 %s %(x)s",
)
CURRENCIES: Final = {"EUR": 2, "JPY": 0, "KWD": 3}


def catch_up(follower: Follower) -> None:
    while follower.run_once():
        pass


class History(Ledger):
    """A ledger in memory whose events are written to a real log, as a committer would have."""

    def __init__(self, dsn: str, ledger: str, **funds: int) -> None:
        super().__init__(**funds)
        self._dsn = dsn
        self._ledger = ledger
        self._written = 0
        self._tried = 0

    def write(self) -> int:
        """Append what has happened since the last time, in one transaction; return the head."""
        mapper = EventMapper()
        with connect(self._dsn, self._ledger, "test") as connection, connection.transaction():
            for position, event in enumerate(self.book.events[self._written :], start=self._written + 1):
                stored = mapper.to_stored_event(event)
                row = stored.originator_id, stored.originator_version, position, stored.topic, stored.state
                append_row(connection, *row, event.timestamp)
        self._written = self.head
        return self.head

    def live(self, random: Random, commands: int) -> None:
        """Try so many commands of all kinds. Many are refused, as in life."""
        if not self._tried:
            for currency_code in CURRENCIES:
                self._open(currency_code)
        for number in range(self._tried, self._tried + commands):
            self.wait(microseconds=random.choice((0, 1, 10**6, 10**9)))
            self.answer(self._any_command(random, number))
        self._tried += commands

    def _open(self, currency_code: str) -> None:
        bank = f"bank-{currency_code}"
        self.do(open_account(bank, currency_code=currency_code, kind=AccountKind.EXTERNAL))
        for number, limit in enumerate((None, 0, 500, None)):
            account_id = f"{currency_code}-{number}"
            metadata = {"owner": ODD_TEXTS[number + 2]} if number else {}
            self.do(open_account(account_id, currency_code=currency_code, limit=limit, metadata=metadata))
            self.fund(account_id, 1_000 * number + 1, bank)

    def _any_command(self, random: Random, number: int) -> Command:
        code = random.choice(list(CURRENCIES))
        payer, payee = random.sample([*(f"{code}-{each}" for each in range(4)), f"bank-{code}"], 2)
        amount = random.choice((1, 10, 99, 700))
        odd = random.choice(ODD_TEXTS)
        texts: dict[str, Any] = {"reference": odd, "metadata": {"a\tb": odd, "€": ""} if random.random() < 0.3 else {}}
        past = datetime.fromtimestamp(random.uniform(0, self.now.timestamp()), self.now.tzinfo)
        when: dict[str, Any] = {"effective_at": past} if random.random() < 0.4 else {}
        new = {"payment_id": f"p{number // 4}", "payer": payer, "payee": payee, "currency_code": code}
        known = {"payment_id": f"p{max(0, number // 4 - random.randrange(8))}"}
        payment = self.book.find_payment(known["payment_id"])
        same = {"currency_code": payment.request.amount.currency_code if payment else code}
        empty = random.choice([each for each in self.book.changed if "/empty-" in each] or ["account/empty-"])
        hold_for = random.choice((None, timedelta(minutes=20)))
        keep = random.random() < 0.6
        back = leg(payee, payer, random.choice((1, 2)), code)
        commands: list[tuple[int, Command]] = [
            (8, authorize(amount, **new, **texts, **when, hold_for=hold_for)),
            (4, transfer(f"t{number}", leg(payer, payee, amount, code), back, **texts, **when)),
            (4, capture(f"c{number}", **known, **when)),
            (4, capture(f"c{number}", 5, **known, **same, keep_remainder=keep, **when)),
            (3, increment(f"i{number}", amount + 50, **known, **same)),
            (3, refund(f"r{number}", 2, **known, **same, **when)),
            (1, refund(f"r{number}", **known)),
            (2, void(**known, reason=odd)),
            (4, expire(**known)),
            (1, freeze(payer, random.choice(list(FreezeScope)), reason=odd)),
            (3, unfreeze(payer, reason=odd)),
            (1, set_limit(payer, amount * 3, currency_code=code, reason=odd)),
            (1, open_account(f"empty-{number}", currency_code=code)),
            (1, close(empty.removeprefix("account/"), reason=odd)),
        ]
        return random.choices([command for _, command in commands], [weight for weight, _ in commands])[0]


def append_row(
    connection: psycopg.Connection[Any],
    stream: str,
    version: int,
    position: int,
    topic: str,
    state: bytes,
    recorded_at: datetime,
) -> None:
    connection.execute(
        "INSERT INTO events (stream, version, position, topic, state, recorded_at) VALUES (%s, %s, %s, %s, %s, %s)",
        (stream, version, position, topic, state, recorded_at),
    )


# --- what the read models must say, written without a line of theirs -------------------------------------------------


Table = dict[Any, dict[str, Any]]


def tables(dsn: str, ledger: str, after: int = 0) -> tuple[int, dict[str, Table]]:
    """The checkpoint, and the read models by key, as they are at one moment: what has changed after a position."""
    with connect(dsn, ledger, "test") as connection, connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        cursor = connection.cursor(row_factory=dict_row)
        (checkpoint,) = cursor.execute("SELECT position FROM checkpoints").fetchall()
        query = "SELECT * FROM {} WHERE position > %s"
        found = {name: cursor.execute(query.format(name).encode(), [after]).fetchall() for name in READ_MODELS}
    return checkpoint["position"], {name: {_key(name, row): row for row in rows} for name, rows in found.items()}


def check_read_models(dsn: str, ledger: str) -> int:
    """Assert that the read models are what the log says at their checkpoint, and return that."""
    position, found = tables(dsn, ledger)
    expected = fold(log_until(dsn, ledger, position))
    for name in READ_MODELS:
        assert as_text(found[name]) == as_text(expected[name])
    return position


def log_until(dsn: str, ledger: str, position: int) -> list[Row]:
    """The log up to a position, whatever is behind it."""
    columns = "position, stream, version, topic, recorded_at, state"
    with connect(dsn, ledger, "test") as connection:
        query = f"SELECT {columns} FROM events WHERE position <= %s ORDER BY position"
        rows = connection.execute(query.encode(), [position]).fetchall()
    return [Row(*row, json.loads(row[-1])) for row in rows]


def _key(name: str, row: dict[str, Any]) -> Any:
    return row["position"] if name == "entries" else row[{"balances": "account_id"}.get(name, f"{name[:-1]}_id")]


def fold(log: Iterable[Row]) -> dict[str, Table]:
    """The same, from the rows of the log."""
    folded: dict[str, Table] = {name: {} for name in READ_MODELS}
    for row in log:
        kind, _, id_ = row.stream.partition("/")
        {"account": _fold_account, "payment": _fold_payment, "transfer": _fold_transfer}[kind](folded, row, id_)
    return folded


def _fold_account(folded: dict[str, Table], row: Row, account_id: str) -> None:
    fields, after = row.fields, row.fields["after"]
    limit = None if after["kind"] == "EXTERNAL" else after["credit_limit"]
    now = {
        "account_id": account_id,
        "version": row.version,
        "position": row.position,
        "recorded_at": row.recorded_at,
        "currency_code": after["currency_code"],
        "minor_digits": CURRENCIES[after["currency_code"]],
        "posted": after["posted"],
        "reserved": after["reserved"],
        "credit_limit": limit,
        "available": after["posted"] - after["reserved"] + (limit or 0),
    }
    before = folded["balances"].get(account_id)
    opening = before or {
        "opened_at": row.recorded_at,
        "opened_position": row.position,
        "metadata": fields["metadata"],
        "posted": 0,
        "reserved": 0,
    }
    folded["balances"][account_id] = {
        **{name: opening[name] for name in ("opened_at", "opened_position", "metadata")},
        **{name: after.get(name) for name in ("kind", "status", "freeze_scope")},
        **now,
    }
    cause = fields.get("cause", {})
    causes = "payment_id", "capture_id", "refund_id", "increment_id", "transfer_id", "leg"
    kinds = {
        "AUTHORIZATION": "AUTHORIZED",
        "INCREMENT": "INCREMENTED",
        "CAPTURE": "CAPTURED",
        "VOID": "VOIDED",
        "EXPIRY": "EXPIRED",
        "REFUND": "REFUNDED",
        "TRANSFER": "TRANSFERRED",
        "AccountOpened": "OPENED",
        "CreditLimitChanged": "CREDIT_LIMIT_CHANGED",
        "AccountFrozen": "FROZEN",
        "AccountUnfrozen": "UNFROZEN",
        "AccountClosed": "CLOSED",
    }
    folded["entries"][row.position] = {
        **now,
        **{name: cause.get(name) for name in causes},
        "kind": kinds[cause.get("kind", row.topic)],
        "posted_change": after["posted"] - opening["posted"],
        "reserved_change": after["reserved"] - opening["reserved"],
        "effective_at": _effective_at(row),
        "counterparty_account_id": fields.get("counterparty"),
        "reason": fields.get("reason"),
    }


def _fold_payment(folded: dict[str, Table], row: Row, payment_id: str) -> None:
    fields = row.fields
    if row.version == 1:
        authorized = fields["amount"]["minor_units"] if row.topic == "PaymentAuthorized" else 0
        folded["payments"][payment_id] = {
            **{name: fields[name] for name in ("payment_id", "payer_account_id", "payee_account_id")},
            **{name: fields[name] for name in ("reference", "metadata")},
            **{f"amount_{name}": 0 for name in ("captured", "released", "expired", "refunded")},
            **{name: [] for name in ("captures", "refunds", "increments")},
            **{name: fields.get(name) for name in ("decline_reason", "declined_account_id")},
            "currency_code": fields["amount"]["currency_code"],
            "minor_digits": CURRENCIES[fields["amount"]["currency_code"]],
            "amount_requested": fields["amount"]["minor_units"],
            "amount_authorized": authorized,
            "amount_capturable": authorized,
            "authorized_at": row.recorded_at,
            "authorized_position": row.position,
            "expires_at": datetime.fromisoformat(fields["expires_at"]) if authorized else None,
            "effective_at": _effective_at(row),
            "void_reason": None,
        }
    payment = folded["payments"][payment_id]
    if row.version > 1:
        _change_payment(payment, row)
    payment.update(version=row.version, position=row.position, recorded_at=row.recorded_at, state=_state(payment))


def _change_payment(payment: dict[str, Any], row: Row) -> None:
    fields, after = row.fields, row.fields["after"]
    change = {name: after[name] - payment[f"amount_{name}"] for name in after}
    payment.update({f"amount_{name}": amount for name, amount in after.items()})
    when = {"recorded_at": fields["timestamp"]}
    effective = when | {"effective_at": fields.get("effective_at", fields["timestamp"])}
    if row.topic == "PaymentCaptured":
        moved = {"amount": change["captured"], "amount_released": change["released"]}
        payment["captures"].append({"capture_id": fields["capture_id"], **moved, **effective})
    elif row.topic == "PaymentRefunded":
        payment["refunds"].append({"refund_id": fields["refund_id"], "amount": change["refunded"], **effective})
    elif row.topic == "AuthorizationIncremented":
        payment["increments"].append({"increment_id": fields["increment_id"], "amount": after["authorized"], **when})
    elif row.topic == "PaymentVoided":
        payment["void_reason"] = fields["reason"]


def _state(payment: dict[str, Any]) -> str:
    if payment["amount_authorized"] == 0:
        return "DECLINED"
    if payment["amount_capturable"]:
        return "PARTIALLY_CAPTURED" if payment["amount_captured"] else "AUTHORIZED"
    if payment["amount_captured"]:
        return "CAPTURED"
    return "EXPIRED" if payment["amount_expired"] else "VOIDED"


def _fold_transfer(folded: dict[str, Table], row: Row, transfer_id: str) -> None:
    fields = row.fields
    folded["transfers"][transfer_id] = {
        "transfer_id": transfer_id,
        "state": {"TransferPosted": "POSTED", "TransferDeclined": "DECLINED"}[row.topic],
        "legs": [
            {
                "from_account_id": each["from_account_id"],
                "to_account_id": each["to_account_id"],
                "minor_digits": CURRENCIES[each["amount"]["currency_code"]],
                **each["amount"],
            }
            for each in fields["legs"]
        ],
        **{name: fields[name] for name in ("reference", "metadata")},
        **{name: fields.get(name) for name in ("decline_reason", "declined_leg", "declined_account_id")},
        "recorded_at": row.recorded_at,
        "effective_at": _effective_at(row),
        "version": row.version,
        "position": row.position,
    }


def _effective_at(row: Row) -> datetime:
    return datetime.fromisoformat(row.fields.get("effective_at", row.fields["timestamp"]))


def as_text(value: object) -> str:
    """Values of different tables, made comparable and readable."""
    return json.dumps(value, sort_keys=True, default=str, indent=1)
