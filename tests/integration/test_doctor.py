"""The doctor on real servers, well and ill: what it finds, what it says to do, and that doing it helps."""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from checks import eventually
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from read_side import History

from ledger import embedded
from ledger.cli import prepare
from ledger.doctor import GUARDS, Check, Verdict, examine
from ledger.durability import UnsafeDurability, require_durable
from ledger.embedded import EmbeddedPostgres, running_dsn
from ledger.migrations import migrate, migrations
from ledger.postgres import Role, role_name

ALL: Final = [
    "engine",
    "pool mode",
    "clock",
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "data_checksums",
    "autovacuum",
    "standby",
    "connections",
    "login",
    "schema",
    "privileges",
    "owner",
    "triggers",
]


OPERATIONS: Final = Path(__file__).parents[2] / "docs" / "operations.md"


def test_every_check_is_in_the_table_of_the_documentation() -> None:
    """In their order, each with what to do."""
    table = OPERATIONS.read_text().split("## What the doctor says")[1].split("\n## ")[0]
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    assert rows == ["check", *ALL]


def checks(dsn: str, ledger: str, **told: Any) -> dict[str, Check]:
    return {check.name: check for check in examine(dsn, ledger, **told)}


def failed(dsn: str, ledger: str, **told: Any) -> list[str]:
    return [name for name, check in checks(dsn, ledger, **told).items() if check.verdict is Verdict.FAIL]


def test_a_ledger_that_is_well_passes_every_check(dsn: str, ledger: str, history: History) -> None:
    """And whatever is not simply well comes with what to do about it."""
    found = checks(dsn, ledger, is_embedded=True)
    assert list(found) == ALL
    assert not failed(dsn, ledger)
    assert all(bool(check.advice) == (check.verdict is not Verdict.OK) for check in found.values())


@pytest.mark.parametrize(
    ("spoil", "check", "names"),
    [
        (
            "ALTER TABLE events DISABLE TRIGGER events_are_never_changed",
            "triggers",
            "never_changed on events",
        ),
        ("DROP TRIGGER tree_heads_are_never_changed ON tree_heads", "triggers", "tree_heads_are_never_changed"),
        ("ALTER TABLE tree_tiles DISABLE TRIGGER tree_tiles_are_never_removed", "triggers", "off: tree_tiles_are"),
        (
            "CREATE OR REPLACE TRIGGER events_are_never_changed BEFORE UPDATE OR TRUNCATE ON events "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()",
            "triggers",
            "made: events_are_never_changed on events",
        ),
        (
            "CREATE OR REPLACE TRIGGER events_are_never_changed BEFORE UPDATE OR DELETE OR TRUNCATE ON events "
            "FOR EACH STATEMENT WHEN (false) EXECUTE FUNCTION refuse_change()",
            "triggers",
            "made: events_are_never_changed on events",
        ),
        ("GRANT DELETE ON events TO {writer}", "privileges", "_writer DELETE on events"),
        ("REVOKE INSERT ON events FROM {writer}", "privileges", "_writer INSERT on events is missing"),
        ("GRANT UPDATE ON balances TO PUBLIC", "privileges", "PUBLIC UPDATE on balances"),
        ("ALTER TABLE entries OWNER TO CURRENT_USER", "owner", "tables belong to"),
        ("ALTER ROLE {writer} LOGIN", "owner", "somebody can log in as"),
        ("DELETE FROM migrations WHERE number = 5", "schema", "is not migrated"),
        ("DROP TABLE entries CASCADE", "schema", "is migrated in part, without entries"),
    ],
)
def test_what_is_wrong_with_a_ledger_is_named(
    spoil: str, check: str, names: str, dsn: str, ledger: str, history: History, session: psycopg.Connection[Any]
) -> None:
    """Just that, and nothing else."""
    session.execute(spoil.format(writer=role_name(ledger, Role.WRITER)).encode())
    assert failed(dsn, ledger) == [check]
    found = checks(dsn, ledger)[check]
    assert names in found.found
    assert found.advice


@pytest.mark.parametrize("table", ["events", "tree_tiles", "callers.tokens"])
def test_a_disabled_trigger_stands_again_after_what_the_doctor_says(
    table: str, dsn: str, ledger: str, session: psycopg.Connection[Any], history: History
) -> None:
    """The statement in the advice is one that can be run."""
    session.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER".encode())
    try:
        assert failed(dsn, ledger) == ["triggers"]
        statement = checks(dsn, ledger)["triggers"].advice.partition("then: ")[2]
        session.execute(statement.encode())
        assert not failed(dsn, ledger)
    finally:  # All ledgers have their tokens in one table.
        session.execute(f"ALTER TABLE {table} ENABLE TRIGGER USER".encode())


def test_a_replaced_function_of_the_triggers_is_found_out(
    dsn: str, ledger: str, session: psycopg.Connection[Any], history: History
) -> None:
    """The triggers stand, and refuse nothing. What the migrations say, run again, makes them what they were."""
    harmless = "CREATE OR REPLACE FUNCTION {}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$"
    for number, function, trigger in (
        (1, "refuse_change", "tree_tiles_are_never_removed on tree_tiles"),
        (5, "refuse_other_hashes", "tree_tiles_only_grow on tree_tiles"),
    ):
        session.execute(harmless.format(function).encode())
        assert failed(dsn, ledger) == ["triggers"]
        found = checks(dsn, ledger)["triggers"]
        assert trigger in found.found
        assert f"{function}()" in found.advice
        made = re.search(rf"FUNCTION {function}.*?\$\$;", migrations()[number - 1].text, re.DOTALL)
        assert made
        session.execute(f"CREATE OR REPLACE {made[0]}".encode())
        assert not failed(dsn, ledger)


def test_every_trigger_of_the_migrations_is_looked_at() -> None:
    """With the function that it calls, and when it fires."""
    made = [each.text for folder in ("migrations", "callers") for each in migrations(folder)]
    assert len(GUARDS) == sum(text.count("CREATE TRIGGER") for text in made)
    assert {(guard.table, guard.trigger) for guard in GUARDS} == {
        ("events", "events_are_never_changed"),
        ("log_turn", "log_turn_is_never_changed"),
        ("tree_heads", "tree_heads_are_never_changed"),
        ("tree_breaks", "tree_breaks_are_never_changed"),
        ("tree_keys", "tree_keys_are_never_changed"),
        ("tree_tiles", "tree_tiles_only_grow"),
        ("tree_tiles", "tree_tiles_are_never_removed"),
        ("callers.tokens", "tokens_are_only_revoked"),
        ("callers.tokens", "tokens_are_never_emptied"),
    }


def test_a_clock_that_is_off_is_told(dsn: str, ledger: str) -> None:
    """By how much, and from five seconds on it makes the whole unfit."""
    for off_s, verdict in ((0, Verdict.OK), (2, Verdict.WARN), (-9, Verdict.FAIL)):
        found = checks(dsn, ledger, clock=lambda off_s=off_s: datetime.now(UTC) + timedelta(seconds=off_s))["clock"]
        assert found.verdict is verdict
    assert re.match(r"(8\.9|9\.0)\d\d s behind the database's", found.found)


def test_connections_of_other_logins_are_counted_too(
    dsn: str, ledger: str, session: psycopg.Connection[Any], history: History
) -> None:
    """A superuser sees what they are; to the login of a server Postgres tells that they are there, and little more."""
    for name in ("doctor_server", "doctor_app"):
        session.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'let-in'".encode())
    try:
        server, app = (make_conninfo(dsn, user=f"doctor_{name}", password="let-in") for name in ("server", "app"))
        with ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(psycopg.connect(app))
            # Sessions that were just closed may still be there for the one and not for the other.
            eventually(lambda: left(server, ledger) == left(dsn, ledger))
    finally:
        session.execute("DROP ROLE doctor_server, doctor_app")


def left(dsn: str, ledger: str) -> int:
    """How many connections the doctor says are left."""
    return int(checks(dsn, ledger)["connections"].found.split()[0])


def test_what_only_speaks_like_postgres_is_refused(dsn: str, ledger: str, session: psycopg.Connection[Any]) -> None:
    """And looked at no further: here a server that calls itself something else."""
    session.execute("CREATE FUNCTION version() RETURNS text RETURN 'CockroachDB CCL v24.1.0 (x86_64, built 2024)'")
    other = make_conninfo(dsn, options=f"-c search_path=ledger_{ledger},pg_catalog")
    assert list(checks(other, ledger)) == failed(other, ledger) == ["engine"]


# --- durability ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def careless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that loses what it has acknowledged, and has few connections."""
    settings = {
        "fsync": "off",
        "synchronous_commit": "off",
        "full_page_writes": "off",
        "autovacuum": "off",
        "max_connections": "12",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setitem(embedded._SETTINGS, name, value)
        with EmbeddedPostgres(tmp_path_factory.mktemp("careless")) as server:
            prepare(server.dsn, "main")
            yield server.dsn


def test_a_database_that_forgets_is_not_fit_unless_one_is_told(careless: str) -> None:
    """What else is not as it should be is told as well."""
    assert failed(careless, "main") == ["fsync", "synchronous_commit", "connections"]
    told = checks(careless, "main", allow_unsafe=True)
    assert [name for name, each in told.items() if each.verdict is Verdict.FAIL] == ["connections"]
    for name in ("fsync", "synchronous_commit", "full_page_writes", "autovacuum"):
        assert told[name].verdict is Verdict.WARN


def test_a_server_does_not_start_on_a_database_that_forgets_unless_it_is_told(careless: str, dsn: str) -> None:
    """It says what to turn on, or which setting tells it. Its sessions wait for the disk whatever the default is."""
    with pytest.raises(UnsafeDurability, match=r"fsync=off: .*LEDGER_UNSAFE_DURABILITY"):
        require_durable(careless, "main", told=False)
    require_durable(careless, "main", told=True)
    require_durable(make_conninfo(dsn, options="-c synchronous_commit=off"), "main", told=False)


# --- poolers ---------------------------------------------------------------------------------------------------------


class TransactionPooler:
    """What a pooler in transaction mode does to clients: each logs in, and then all speak to one server process."""

    def __init__(self, host: str, port: int) -> None:
        self._server = host, port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._shared: socket.socket | None = None
        self._turn = threading.Lock()
        self._open = ExitStack()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()
        self._open.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self._open.enter_context(self._listener.accept()[0])
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError, EOFError):
            server = self._open.enter_context(socket.create_connection(self._server))
            self._log_in(client, server)
            self._shared = self._shared or server
            while True:
                request = client.recv(65_536)
                if not request or request[:1] == b"X":
                    return
                with self._turn:
                    self._shared.sendall(request)
                    self._pass_answer(self._shared, client)

    def _log_in(self, client: socket.socket, server: socket.socket) -> None:
        server.sendall(client.recv(65_536))
        while (kind := self._pass_message(server, client)) != b"Z":
            if kind[:1] == b"R" and kind[1:] in (b"sasl", b"more"):
                server.sendall(client.recv(65_536))

    def _pass_answer(self, server: socket.socket, client: socket.socket) -> None:
        while self._pass_message(server, client) != b"Z":
            pass

    def _pass_message(self, server: socket.socket, client: socket.socket) -> bytes:
        head = exactly(server, 5)
        (length,) = struct.unpack("!I", head[1:])
        body = exactly(server, length - 4)
        client.sendall(head + body)
        if head[:1] == b"R":
            return b"R" + {10: b"sasl", 11: b"more"}.get(struct.unpack("!I", body[:4])[0], b"")
        return head[:1]


def exactly(source: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count:
        part = source.recv(count - len(got))
        if not part:
            raise EOFError
        got += part
    return got


def test_a_pooler_that_shares_server_processes_is_found_out(tmp_path: Path) -> None:
    """Sessions pin their role and settings as they begin: behind such a pooler they would be somebody else's."""
    with EmbeddedPostgres(tmp_path / "data") as server:
        migrate(server.dsn, "main")
        direct = running_dsn(tmp_path / "data")
        assert checks(direct, "main")["pool mode"].verdict is Verdict.OK
        port = conninfo_to_dict(direct)["port"]
        pooler = TransactionPooler("127.0.0.1", int(str(port)))
        try:
            found = checks(make_conninfo(direct, port=str(pooler.port)), "main")["pool mode"]
        finally:
            pooler.close()
    assert (found.verdict, found.found) == (Verdict.FAIL, "a pooler shares server processes between sessions")
    assert "straight to Postgres" in found.advice
