"""`ledger audit verify` and `digest`: as an auditor runs them beside a running server, and how they end."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import LedgerServer, run_ledger, serving
from test_api import Client, authorize, capture, leg, opening, transfer

from ledger.v1.account_pb2 import ACCOUNT_KIND_EXTERNAL
from ledger.v1.audit_pb2 import GetTreeHeadRequest


@pytest.fixture
def client(server: LedgerServer, tag: str) -> Iterator[Client]:
    with server.channel() as channel:
        client = Client(channel, server.ledger, tag)
        live(client)
        yield client


def live(client: Client) -> None:
    client.do(
        opening("bank~", kind=ACCOUNT_KIND_EXTERNAL),
        opening("alice~"),
        opening("shop~"),
        transfer("fund~", leg("bank~", "alice~", 100_00)),
        authorize("order~", 25_00),
        capture("order~", "c"),
    )
    client(authorize("too-much~", 1_000_00))


@pytest.fixture
def kept(client: Client, tmp_path: Path) -> Path:
    """A file with a head that covers what the client did."""
    file = tmp_path / "kept.head"
    file.write_text(client(GetTreeHeadRequest(min_position=client.position)).tree_head.signed_note)
    return file


def audit(server: LedgerServer, name: str, *arguments: object, ledger: str | None = None) -> Any:
    """`ledger audit` with an auditor's rights."""
    where = "--dsn", server.dsn("auditor"), "--ledger", ledger or server.ledger
    return run_ledger("audit", name, *where, *arguments)


# --- verify ----------------------------------------------------------------------------------------------------------


def test_a_ledger_is_verified_beside_its_server(server: LedgerServer, kept: Path) -> None:
    """With the key and a head that the auditor has kept; whatever all other tests did to it is sound as well."""
    run = audit(server, "verify", "--public-key", server.public_key, "--head", kept)
    assert (run.returncode, run.stderr) == (0, ""), run.stdout + run.stderr
    first, *others = run.stdout.splitlines()
    assert re.fullmatch(
        rf"ledger {server.ledger} is sound: [\d,]+ events, [\d,]+ accounts, [\d,]+ payments, [\d,]+ transfers \(.*\)",
        first,
    )
    assert f"  key: {server.public_key}" in others
    assert "  kept: 1 of your own heads was held against the log" in others
    assert any(re.fullmatch(r"  read models: compared at position [\d,]+", each) for each in others)


def test_programs_are_told_in_json(server: LedgerServer, kept: Path, tmp_path: Path) -> None:
    """The key may come in a file."""
    key = tmp_path / "key.pub"
    key.write_text(f"{server.public_key}\n")
    run = audit(server, "verify", "--json", "--public-key", key, "--head", kept, "--no-read-models")
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    assert (told["sound"], told["findings"], told["kept_heads"]) == (True, [], 1)
    assert told["public_keys"] == [str(server.public_key)]
    assert told["read_models"] == {"position": None, "stopped": None}
    assert told["largest_head"]["tree_size"] <= told["events"]


def test_without_a_key_it_is_said_whose_word_was_taken(server: LedgerServer, kept: Path) -> None:
    """The ledger can name any key."""
    run = audit(server, "verify", "--head", kept)
    assert run.returncode == 0, run.stdout
    assert f"  key, by the ledger's OWN word: {server.public_key}" in run.stdout.splitlines()


@pytest.fixture
def spoilt(server: LedgerServer) -> Iterator[str]:
    """A ledger on the same database that somebody has written an event into."""
    ledger = f"test_{secrets.token_hex(6)}"
    owner = server.dsn()
    migrated = run_ledger("migrate", "--dsn", owner, "--ledger", ledger)
    assert migrated.returncode == 0, migrated.stderr
    with server.database() as connection:
        connection.execute(f"SET search_path = ledger_{ledger}".encode())
        connection.execute("INSERT INTO events VALUES ('account/thief', 1, 1, 'AccountOpened', now(), '{}')")
    yield ledger
    with server.database() as connection:
        connection.execute(f"DROP SCHEMA ledger_{ledger} CASCADE".encode())


def test_what_is_wrong_is_named_first(server: LedgerServer, spoilt: str, kept: Path) -> None:
    """On the first line, and again for programs; a head that was kept is missed."""
    where = "position 1 (account/thief, version 1)"
    what = "AccountOpened can't be read: 'class_version'"
    run = audit(server, "verify", "--public-key", server.public_key, "--head", kept, ledger=spoilt)
    assert run.returncode == 1
    first, second, *_ = run.stdout.splitlines()
    assert first == f"ledger {spoilt} is NOT sound: {where}: {what}"
    assert second.startswith("  position 2: the log ends before it: positions 2 to ")
    told = json.loads(audit(server, "verify", "--json", ledger=spoilt).stdout)
    finding = {"kind": "UNREADABLE", "what": what, "position": 1, "stream": "account/thief", "version": 1}
    assert (told["sound"], told["findings"][0]) == (False, finding)


def test_what_can_not_be_asked_is_wrong_usage(server: LedgerServer, tmp_path: Path) -> None:
    """A key that is none, a file that is not there, a head that is none."""
    note = tmp_path / "note"
    note.write_text("no head\n")
    for arguments in (
        ("--public-key", "ledger/x+00000000+AAAA"),
        ("--public-key", tmp_path / "missing"),
        ("--head", note),
        ("--head", tmp_path),
        ("--ledger", "No Name"),
    ):
        run = audit(server, "verify", *arguments)
        assert (run.returncode, run.stdout) == (2, ""), arguments
        assert "Traceback" not in run.stderr


@pytest.mark.usefixtures("kept")
def test_an_empty_key_or_head_is_not_one_that_was_not_given(server: LedgerServer, tmp_path: Path) -> None:
    """As an unset variable of a shell gives them: else all would be verified by the ledger's own word."""
    bundle, empty = tmp_path / "home.bundle", tmp_path / "empty"
    empty.touch()
    assert audit(server, "export", "--to", bundle).returncode == 0
    where = "--dsn", server.dsn("auditor"), "--ledger", server.ledger
    for command in (("verify", *where), ("check", bundle)):
        for given in ("", empty):
            run = run_ledger("audit", *command, "--public-key", given)
            assert (run.returncode, run.stdout) == (2, ""), (command, given)
            assert "the key is empty" in " ".join(run.stderr.replace("│", "").split())
            run = run_ledger("audit", *command, "--head", given)
            assert (run.returncode, run.stdout) == (2, ""), (command, given)


def test_what_can_not_be_reached_is_said_in_one_line(server: LedgerServer, tmp_path: Path) -> None:
    """A database that is away, a ledger that is not there, a folder without one."""
    for where in (
        ("--dsn", "host=127.0.0.1 port=1 connect_timeout=2"),
        ("--dsn", server.dsn("auditor"), "--ledger", "not_there"),
        ("--data-dir", tmp_path),
    ):
        for name in ("verify", "digest"):
            run = run_ledger("audit", name, *where)
            assert (run.returncode, run.stdout) == (3, ""), (name, where)
            assert len(run.stderr.splitlines()) == 1
            assert run.stderr.startswith("ledger: ")


def test_a_ledger_that_nobody_serves_is_verified_where_it_lies(tmp_path: Path) -> None:
    """Its Postgres is run for that, and stopped again."""
    with serving(tmp_path) as server:
        with server.channel() as channel:
            client = Client(channel, server.ledger, "x")
            live(client)
            client(GetTreeHeadRequest(min_position=client.position))
        dsn, key = server.dsn(), server.public_key
        given = server.is_given
    where = ("--dsn", dsn) if given else ("--data-dir", tmp_path / "data")
    run = run_ledger("audit", "verify", *where, "--public-key", key)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"  key: {key}" in run.stdout.splitlines()


# --- digest ----------------------------------------------------------------------------------------------------------


def test_a_digest_is_one_line(server: LedgerServer, client: Client) -> None:
    """Of the head or of an earlier position; in JSON with what was counted."""
    run = audit(server, "digest", "--at", client.position)
    assert (run.returncode, run.stderr) == (0, "")
    assert re.fullmatch(rf"ledger/digest/1 {client.position} [0-9a-f]{{64}}\n", run.stdout)
    told = json.loads(audit(server, "digest", "--at", client.position, "--json").stdout)
    assert f"{told['format']} {told['position']} {told['sha256']}\n" == run.stdout
    assert told["accounts"] >= 3
    newest = audit(server, "digest")
    assert int(newest.stdout.split()[1]) >= client.position
    empty = hashlib.sha256(b"ledger/digest/1 0\n").hexdigest()
    assert audit(server, "digest", "--at", 0).stdout == f"ledger/digest/1 0 {empty}\n"


def test_a_digest_of_what_is_to_come_is_wrong_usage(server: LedgerServer, client: Client) -> None:
    """And one of a log that can't be understood is none."""
    run = audit(server, "digest", "--at", 10**12)
    assert (run.returncode, run.stdout) == (2, "")
    assert re.fullmatch(r"ledger: position 1,000,000,000,000 is above the head, [\d,]+\n", run.stderr)


def test_a_digest_of_what_can_not_be_understood_is_refused(server: LedgerServer, spoilt: str) -> None:
    """It names the event."""
    run = audit(server, "digest", ledger=spoilt)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith("ledger: position 1 (account/thief, version 1) can't be understood: ")
