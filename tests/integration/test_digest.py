"""Digests: one fingerprint of a ledger's state at any position, as docs/audit.md says it is made."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Final

import pytest
from checks import Row, read_log
from domain import authorize, open_account
from read_side import History, append_row

from ledger.audit import digest as digests
from ledger.audit.digest import AboveHead, NoDigest, digest
from ledger.postgres import connect

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def by_the_words(log: list[Row]) -> str:
    """The digest of a whole log, made without a line of the ledger's own."""
    streams: dict[str, list[Row]] = {}
    for row in log:
        streams.setdefault(row.stream, []).append(row)
    lines = [f"ledger/digest/1 {len(log)}"]
    lines += [line(streams[stream]) for stream in sorted(streams, key=str.encode)]
    return "".join(f"{each}\n" for each in lines)


def line(events: list[Row]) -> str:
    first, last = events[0], events[-1]
    kind, _, id_ = first.stream.partition("/")
    if kind == "transfer":
        return f"transfer {id_} {last.topic.removeprefix('Transfer').upper()} {last.version}"
    if kind == "account":
        after = last.fields["after"]
        limit = "-" if after["kind"] == "EXTERNAL" else after["credit_limit"]
        scope = after.get("freeze_scope", "-")
        names = "currency_code", "kind", "status"
        shown = [after[name] for name in names] + [scope, after["posted"], after["reserved"], limit]
        return f"account {id_} {' '.join(map(str, shown))} {last.version}"
    asked = first.fields["amount"]["minor_units"]
    amounts = dict.fromkeys(("authorized", "capturable", "captured", "released", "expired", "refunded"), 0)
    if first.topic == "PaymentAuthorized":
        amounts |= {"authorized": asked, "capturable": asked}
    amounts |= last.fields.get("after", {})
    expires_at = "-"
    if "expires_at" in first.fields:
        expires_at = str((datetime.fromisoformat(first.fields["expires_at"]) - EPOCH) // timedelta(microseconds=1))
    parties = f"{first.fields['payer_account_id']} {first.fields['payee_account_id']}"
    what = f"{first.fields['amount']['currency_code']} {state(amounts)} {asked} {' '.join(map(str, amounts.values()))}"
    return f"payment {id_} {parties} {what} {expires_at} {last.version}"


def state(amounts: dict[str, int]) -> str:
    if amounts["authorized"] == 0:
        return "DECLINED"
    if amounts["capturable"]:
        return "PARTIALLY_CAPTURED" if amounts["captured"] else "AUTHORIZED"
    if amounts["captured"]:
        return "CAPTURED"
    return "EXPIRED" if amounts["expired"] else "VOIDED"


def test_a_digest_is_made_as_the_document_says(dsn: str, ledger: str, history: History) -> None:
    """At every position that a history with all kinds of events passes: the log up to there is all that counts."""
    history.live(Random(3), 400)
    head = history.write()
    log = read_log(dsn, ledger)
    for position in [0, 1, 2, *range(3, head, 41), head]:
        made = digest(dsn, ledger, position)
        assert made.sha256 == hashlib.sha256(by_the_words(log[:position]).encode()).hexdigest(), position
    assert digest(dsn, ledger) == made
    assert made.line == f"ledger/digest/1 {head} {made.sha256}"
    streams = {row.stream.partition("/")[0] + "s": row for row in log}
    assert {name for name in ("accounts", "payments", "transfers") if getattr(made, name)} == set(streams)


def test_a_digest_is_the_same_for_ever(dsn: str, ledger: str, history: History) -> None:
    """If this changes, the format needs another number. The example of the document is this one."""
    history.do(authorize(300, payment_id="order-17"))
    assert history.write() == 8
    lines = by_the_words(read_log(dsn, ledger))
    assert f"```\n{lines}```" in (Path(__file__).parents[2] / "docs" / "audit.md").read_text()
    assert digest(dsn, ledger).sha256 == hashlib.sha256(lines.encode()).hexdigest()
    assert digest(dsn, ledger, 0).sha256 == "4a5fde133dedb7930a09cfa8c60f140e1a27d66a3998a578cea55ffe10ba0535"


def test_ids_come_in_the_order_of_their_bytes(dsn: str, ledger: str, history: History) -> None:
    """Not in that of a dictionary, whatever the database thinks of letters."""
    ids = ["a", "B", "a-", "a.b", "aB", "Z", "0", "a_", "a:"]
    for each in ids:
        history.do(open_account(each))
    history.write()
    log = read_log(dsn, ledger)
    lines = by_the_words(log)
    assert [each.split()[1] for each in lines.splitlines()[1:] if each.split()[1] in ids] == sorted(ids, key=str.encode)
    assert digest(dsn, ledger).sha256 == hashlib.sha256(lines.encode()).hexdigest()


def test_neither_the_ledger_nor_the_size_of_batches_matters(
    dsn: str, ledger: str, history: History, new_ledger: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same log under another name, read three rows at a time."""
    history.live(Random(8), 60)
    history.write()
    other = new_ledger()
    with connect(dsn, other, "test") as connection:
        connection.execute(f"INSERT INTO events SELECT * FROM ledger_{ledger}.events".encode())
    made = digest(dsn, ledger)
    batches = digests.batches
    monkeypatch.setattr(digests, "batches", lambda cursor: batches(cursor, 3))
    assert digest(dsn, other) == made


def test_a_position_above_the_head_has_no_digest(dsn: str, ledger: str, history: History) -> None:
    """It may come to be anything."""
    head = history.write()
    with pytest.raises(AboveHead, match=f"position {head + 1} is above the head, {head}"):
        digest(dsn, ledger, head + 1)


def test_what_can_not_be_understood_is_named(dsn: str, ledger: str, history: History) -> None:
    """Instead of a digest that says less than it seems to."""
    head = history.write()
    with connect(dsn, ledger, "test") as connection:
        append_row(connection, "account/alice", 3, head + 1, "AccountExploded", b"{}", history.now)
    with pytest.raises(NoDigest, match=rf"position {head + 1} \(account/alice, version 3\)"):
        digest(dsn, ledger)
    assert digest(dsn, ledger, head).position == head
