"""What tests of the write side check: that something comes to be, and that a log is sound."""

from __future__ import annotations

import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import groupby
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import sql

from ledger.postgres import Role, role_name, schema_of


def eventually(condition: Callable[[], object], within_s: float = 20) -> None:
    """Wait until the condition is true."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.002)


def remove_ledger(dsn: str, ledger: str) -> None:
    """Leave nothing of a ledger behind: neither its schema nor its roles, which belong to the whole server."""
    with psycopg.connect(dsn, autocommit=True, options="-c lock_timeout=5s") as connection:
        connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema_of(ledger))))
        for role in Role:
            name = role_name(ledger, role)
            if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [name]).fetchone() is not None:
                connection.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
                connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def rows_read(plan: dict[str, Any]) -> float:
    """How many rows the scans of a plan went through."""
    passed, filtered = plan["Actual Rows"], plan.get("Rows Removed by Filter", 0)
    own = (passed + filtered) * plan["Actual Loops"] if plan["Node Type"].endswith("Scan") else 0
    return float(own + sum(map(rows_read, plan.get("Plans", ()))))


class Row(NamedTuple):
    """One event of a log, its state parsed by nothing but json."""

    position: int
    stream: str
    version: int
    topic: str
    recorded_at: datetime
    state: bytes
    fields: dict[str, Any]


COMMANDS: Final = re.compile(
    "|".join(
        [
            "AccountOpened|CreditLimitChanged|AccountFrozen|AccountUnfrozen|AccountClosed",
            "PaymentAuthorized FundsReserved|PaymentDeclined",
            "AuthorizationIncremented FundsReserved",
            "PaymentCaptured FundsDebited FundsCredited(?: FundsReleased)?",
            "(?:PaymentVoided|AuthorizationExpired) FundsReleased",
            "PaymentRefunded FundsDebited FundsCredited",
            "TransferPosted(?: FundsDebited FundsCredited)+|TransferDeclined",
        ]
    )
).fullmatch
"""The topics that the events of one command have, in their order."""


def read_log(dsn: str, ledger: str) -> list[Row]:
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(
            f"SELECT position, stream, version, topic, recorded_at, state FROM ledger_{ledger}.events ORDER BY position"
        ).fetchall()
    return [Row(*row, json.loads(row[-1])) for row in rows]


def check_log(dsn: str, ledger: str) -> list[Row]:
    """Assert all that must be true of every log, whatever happened while it was written; return it."""
    log = read_log(dsn, ledger)
    check_rows(log)
    return log


def check_rows(log: list[Row], after: int = 0) -> None:
    """Assert the same of all that follows a position, if it is about nothing that was there before.

    Written without a line of the ledger's own: a second opinion on what is in the database.
    """
    assert [row.position for row in log] == list(range(after + 1, after + len(log) + 1))
    assert [row.recorded_at for row in log] == sorted(row.recorded_at for row in log)
    versions: Counter[str] = Counter()
    for row in log:
        versions[row.stream] += 1
        assert row.version == versions[row.stream], row
        assert datetime.fromisoformat(row.fields["timestamp"]) == row.recorded_at, row
        canonical = json.dumps(row.fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert canonical.encode() == row.state, row
    for events in commands_of(log):
        _check_command(events)
    accounts = _check_accounts(log)
    _check_payments(log, accounts)


def commands_of(log: list[Row]) -> Iterator[list[Row]]:
    """The events of each command."""
    for _, events in groupby(log, key=lambda row: row.fields["command_position"]):
        yield list(events)


def _check_command(events: list[Row]) -> None:
    """The events of a command stand together, are of one time, and its debits equal its credits."""
    first = events[0]
    assert first.fields["command_position"] == first.position, first
    assert COMMANDS(" ".join(row.topic for row in events)), events
    for common in ("timestamp", "actor", "correlation_id"):
        assert {row.fields[common] for row in events} == {first.fields[common]}, events
    moved: Counter[str] = Counter()
    for row in events:
        sign = {"FundsDebited": -1, "FundsCredited": 1}.get(row.topic, 0)
        if sign:
            moved[row.fields["after"]["currency_code"]] += sign * row.fields["amount"]
    assert not any(moved.values()), events


def _check_accounts(log: list[Row]) -> dict[str, dict[str, Any]]:
    """What each account event says is the state after it is what its history adds up to, and within the rules."""
    states: dict[str, dict[str, Any]] = {}
    posted: Counter[str] = Counter()
    for row in log:
        if not row.stream.startswith("account/"):
            continue
        before = states.get(row.stream)
        assert (before is None) == (row.topic == "AccountOpened"), row
        assert before is None or before["status"] != "CLOSED", f"a closed account moves: {row}"
        state = states[row.stream] = _after(row, before)
        assert row.fields["after"] == state, row
        assert state["reserved"] >= 0, row
        if state["kind"] == "CUSTOMER":
            assert state["posted"] - state["reserved"] + state["credit_limit"] >= 0, f"overdrawn: {row}"
        if state["status"] == "CLOSED":
            assert state["posted"] == state["reserved"] == 0, row
    for state in states.values():
        posted[state["currency_code"]] += state["posted"]
    assert not any(posted.values()), f"the ledger does not sum to zero: {posted}"
    return states


def _after(row: Row, before: dict[str, Any] | None) -> dict[str, Any]:
    """The state of an account after an event, from the state before it and what the event says has changed."""
    fields = row.fields
    if before is None:
        after = fields["after"]
        limit = fields.get("credit_limit", {"minor_units": 0})["minor_units"]
        state = {"credit_limit": limit, "posted": 0, "reserved": 0, "status": "OPEN"}
        return state | {name: after[name] for name in ("currency_code", "kind")}
    state = dict(before)
    amount = fields.get("amount", 0)
    if row.topic == "FundsReserved":
        state["reserved"] += amount
    elif row.topic == "FundsReleased":
        state["reserved"] -= amount
    elif row.topic == "FundsDebited":
        state["posted"] -= amount
        state["reserved"] -= amount if fields["from_reserved"] else 0
    elif row.topic == "FundsCredited":
        state["posted"] += amount
    elif row.topic == "CreditLimitChanged":
        state["credit_limit"] = fields["credit_limit"]
    else:
        state.pop("freeze_scope", None)
        state["status"] = {"AccountFrozen": "FROZEN", "AccountUnfrozen": "OPEN", "AccountClosed": "CLOSED"}[row.topic]
        if row.topic == "AccountFrozen":
            state["freeze_scope"] = fields["scope"]
    return state


def _check_payments(log: list[Row], accounts: dict[str, dict[str, Any]]) -> None:
    """Each change of a payment starts where the last one ended, and what is capturable is what is reserved."""
    amounts: dict[str, dict[str, int]] = {}
    payer: dict[str, str] = {}
    ids: dict[str, set[str]] = defaultdict(set)
    for row in log:
        fields = row.fields
        if row.topic in ("PaymentAuthorized", "PaymentDeclined"):
            authorized = fields["amount"]["minor_units"] if row.topic == "PaymentAuthorized" else 0
            names = ("capturable", "captured", "expired", "refunded", "released")
            amounts[row.stream] = {"authorized": authorized, **dict.fromkeys(names, 0), "capturable": authorized}
            payer[row.stream] = f"account/{fields['payer_account_id']}"
        elif row.stream.startswith("payment/"):
            after = fields["after"]
            assert fields["before"] == amounts[row.stream], row
            whole = after["captured"] + after["capturable"] + after["released"] + after["expired"]
            assert after["authorized"] == whole, row
            assert 0 <= after["refunded"] <= after["captured"], row
            assert min(after.values()) >= 0, row
            amounts[row.stream] = after
            for name in ("increment_id", "capture_id", "refund_id"):
                if name in fields:
                    assert fields[name] not in ids[row.stream], f"done twice: {row}"
                    ids[row.stream].add(fields[name])
    reserved: Counter[str] = Counter()
    for stream, each in amounts.items():
        reserved[payer[stream]] += each["capturable"]
    for stream, state in accounts.items():
        assert state["reserved"] == reserved[stream], stream
