"""The log on a real Postgres: writers and readers at once, what the database refuses, where an append may stand."""

from __future__ import annotations

import gc
import os
import secrets
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any, Final

import psycopg
import pytest
from checks import eventually, read_log, remove_ledger, rows_read
from eventsourcing.persistence import IntegrityError, StoredEvent

from ledger.committer import utc_now
from ledger.event_log import SQL, EventLog, LogDatastore
from ledger.migrations import SchemaError, migrate, migrations, require_migrated
from ledger.postgres import connect
from ledger.upcasters import LogRow
from ledger.writer import AppendUnknown, Head, HeadMoved, LogLostTail, NotWritten, Wanted, Writer

WRITERS: Final = 4
APPENDS_EACH: Final = 60

# Appends of one to five events each, by the library's contract or as committers do it: at a head, or in their turn.
APPENDING: Final = """
import sys
from eventsourcing.persistence import StoredEvent
from ledger.committer import utc_now
from ledger.event_log import SQL, EventLog, LogDatastore
from ledger.writer import HeadMoved, Writer

dsn, ledger, number, appends = sys.argv[1:]

def as_a_recorder():
    datastore = LogDatastore(dsn, ledger)
    append = EventLog(datastore).insert_events
    append([])
    return append

def as_a_committer():
    writer = Writer(dsn, ledger, utc_now)

    def append(events):
        rows = [(each.originator_id, each.originator_version, each.topic, each.state) for each in events]
        try:
            writer.append(writer.head(), rows, utc_now())
        except HeadMoved:
            with writer.turn():
                writer.append(writer.head(), rows, utc_now())
    return append

append = as_a_committer() if int(number) % 2 else as_a_recorder()
print("ready", flush=True)
sys.stdin.readline()
version = 0
for turn in range(int(appends)):
    events = []
    for _ in range(1 + turn % 5):
        version += 1
        events.append(StoredEvent(f"account/{number}", version, f"topic{turn % 5}", f"{number}:{version}".encode()))
    append(events)
"""


def start_together(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Let processes go on that have their imports behind them."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()


def rows(events: Sequence[StoredEvent]) -> list[LogRow]:
    """Events as a committer appends them."""
    return [(each.originator_id, each.originator_version, each.topic, each.state) for each in events]


def event(stream: str = "account/a", version: int = 1, topic: str = "AccountOpened") -> StoredEvent:
    return StoredEvent(stream, version, topic, b"{}")


@pytest.fixture
def events(dsn: str, ledger: str) -> Iterator[EventLog]:
    datastore = LogDatastore(dsn, ledger)
    yield EventLog(datastore)
    datastore.close()


@pytest.fixture
def write(dsn: str, ledger: str) -> Iterator[Callable[[], Writer]]:
    """Make a writer: a connection of its own."""
    with ExitStack() as at_the_end:

        def make(of: str = dsn) -> Writer:
            writer = Writer(of, ledger, utc_now)
            at_the_end.callback(writer.close)
            return writer

        yield make


def head_of(log: EventLog) -> int:
    return log.max_notification_id() or 0


# --- many write, some read -------------------------------------------------------------------------------------------


def tail_by_select(log: EventLog, total: int) -> list[Any]:
    """Follow the log with select_notifications, a few at a time, up to the event `total`."""
    seen: list[Any] = []
    while len(seen) < total and (not seen or seen[-1].id < total):
        seen += log.select_notifications(seen[-1].id if seen else None, limit=7, inclusive_of_start=False)
    return seen


def tail_by_subscription(log: EventLog, total: int, topics: tuple[str, ...] = ()) -> list[Any]:
    """Follow the log with subscribe, until something stands at the position `total`."""
    seen = []
    with log.subscribe(gt=None, topics=topics) as subscription:
        for notification in subscription:
            seen.append(notification)
            if notification.id >= total:
                break
    return seen


def test_readers_miss_nothing_while_processes_append(dsn: str, ledger: str, events: EventLog) -> None:
    """Whoever tails the log while several processes append sees each event once, in order, at positions 1..n."""
    per_writer = sum(1 + turn % 5 for turn in range(APPENDS_EACH))
    total = WRITERS * per_writer
    command = [sys.executable, "-c", APPENDING, dsn, ledger]
    with ExitStack() as at_the_end:
        processes = [
            at_the_end.enter_context(
                subprocess.Popen([*command, str(number), str(APPENDS_EACH)], stdin=-1, stdout=-1, text=True)
            )
            for number in range(WRITERS)
        ]
        for process in processes:
            at_the_end.callback(process.kill)
        readers = at_the_end.enter_context(ThreadPoolExecutor())
        tails: list[Future[list[Any]]] = [
            readers.submit(tail_by_select, events, total),
            readers.submit(tail_by_subscription, events, total),
        ]
        # The last event of all is of the topic of every writer's last append.
        some = readers.submit(tail_by_subscription, events, total, ("topic0", "topic4"))
        start_together(processes)
        for process in processes:
            assert process.wait(60) == 0
        seen = [tail.result(30) for tail in tails]
        seen_of_some = some.result(30)
    log = read_log_bytes(dsn, ledger)
    assert [position for position, *_ in log] == list(range(1, total + 1))
    for each in seen:
        assert [(one.id, one.originator_id, one.originator_version, one.topic, one.state) for one in each] == log
    assert [one.id for one in seen_of_some] == [row[0] for row in log if row[3] in ("topic0", "topic4")]
    for number in range(WRITERS):
        states = [row[4] for row in log if row[1] == f"account/{number}"]
        assert states == [f"{number}:{version}".encode() for version in range(1, per_writer + 1)]
    assert len({row[1] for row in log[: total // 2]}) > 1, "they did not write at once"


def read_log_bytes(dsn: str, ledger: str) -> list[tuple[int, str, int, str, bytes]]:
    query = f"SELECT position, stream, version, topic, state FROM ledger_{ledger}.events ORDER BY position"
    with psycopg.connect(dsn) as connection:
        return connection.execute(query).fetchall()


def test_an_event_is_not_seen_before_those_under_it(
    dsn: str, ledger: str, events: EventLog, write: Callable[..., Writer]
) -> None:
    """While an append is not committed nobody can stand after it: a reader never has to wait for a gap to fill."""
    first, second = write(), write()
    with ThreadPoolExecutor() as threads:
        with first.turn():
            first.append(Head(), rows([event("account/a")]), utc_now())
            late = threads.submit(second.append, Head(), rows([event("account/b")]), utc_now())
            eventually(lambda: waits(dsn, second.backend_pid))
            assert head_of(events) == 0
        with pytest.raises(HeadMoved):
            late.result(20)
    assert [row.stream for row in read_log(dsn, ledger)] == ["account/a"]


def waits(dsn: str, backend: int) -> bool:
    """Whether a server process waits for another."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute("SELECT cardinality(pg_blocking_pids(%s)) > 0", [backend]).fetchone()
    return bool(row and row[0])


# --- append-only -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE events SET state = ''",
        "UPDATE events SET position = position + 1 WHERE false",
        "DELETE FROM events",
        "DELETE FROM events WHERE position = 1",
        "TRUNCATE events",
        "TRUNCATE events, log_turn CASCADE",
        "INSERT INTO events SELECT * FROM events ON CONFLICT (position) DO UPDATE SET state = ''",
        "MERGE INTO events USING events AS same ON events.position = same.position WHEN MATCHED THEN DELETE",
        "UPDATE log_turn SET one_row = true",
        "DELETE FROM log_turn",
        "TRUNCATE log_turn",
    ],
)
def test_the_database_refuses_to_change_what_was_recorded(
    session: psycopg.Connection[Any], events: EventLog, dsn: str, ledger: str, change: str
) -> None:
    """UPDATE, DELETE and TRUNCATE fail for everybody, a superuser too, and the log stays what it was."""
    events.insert_events([event(version=1), event(version=2)])
    before = read_log(dsn, ledger)
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
        session.execute(change)
    assert read_log(dsn, ledger) == before
    assert session.execute("SELECT count(*) FROM log_turn").fetchone() == (1,)


def test_there_is_one_turn_to_take(session: psycopg.Connection[Any]) -> None:
    """A second row to lock would let two append at once: the database refuses it."""
    for value in ("true", "false", "NULL"):
        with pytest.raises(psycopg.errors.IntegrityError):
            session.execute(f"INSERT INTO log_turn VALUES ({value})")


def test_a_role_that_owns_nothing_can_append(
    dsn: str, ledger: str, session: psycopg.Connection[Any], write: Callable[..., Writer]
) -> None:
    """Reading, inserting and locking the turn is all that a serving role needs; more is refused to it."""
    role = f"serving_{secrets.token_hex(4)}"
    session.execute(f"CREATE ROLE {role}")
    session.execute(f"GRANT USAGE ON SCHEMA ledger_{ledger} TO {role}")
    session.execute(f"GRANT SELECT, INSERT ON events TO {role}")
    session.execute(f"GRANT SELECT, UPDATE ON log_turn TO {role}")
    try:
        writer = write(psycopg.conninfo.make_conninfo(dsn, options=f"-c role={role}"))
        writer.append(Head(), rows([event()]), utc_now())
        with writer.turn():
            writer.append(writer.head(), rows([event(version=2)]), utc_now())
        assert writer.head().position == 2
        session.execute(f"SET ROLE {role}")
        for change in ("UPDATE events SET state = ''", "DELETE FROM events", "TRUNCATE events", "DROP TABLE events"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.execute(change)
    finally:
        session.execute("RESET ROLE")
        session.execute(f"DROP OWNED BY {role}")
        session.execute(f"DROP ROLE {role}")


def test_an_append_that_may_not_be_made_is_known_to_have_left_nothing(
    dsn: str, ledger: str, session: psycopg.Connection[Any], write: Callable[..., Writer]
) -> None:
    """A role without the right to insert, and a server that only reads, refuse in a way that leaves no doubt."""
    read_only = psycopg.conninfo.make_conninfo(dsn, options="-c default_transaction_read_only=on")
    with pytest.raises(NotWritten, match="25006"):
        write(read_only).append(Head(), rows([event()]), utc_now())
    session.execute(f"REVOKE INSERT ON events FROM ledger_{ledger}_writer")
    with pytest.raises(NotWritten, match="42501"):
        write().append(Head(), rows([event()]), utc_now())
    assert not read_log(dsn, ledger)


# --- where an append may stand ---------------------------------------------------------------------------------------


def test_an_append_stands_right_after_the_head_that_it_was_decided_at(write: Callable[..., Writer]) -> None:
    """It takes the next positions, in the order given, at the one time given."""
    writer = write()
    writer.append(Head(), rows([event(), event("account/b")]), utc_now())
    at = utc_now()
    writer.append(writer.head(), rows([event("account/b", 2), event("account/a", 2)]), at)
    assert writer.head() == Head(4, at)


def test_an_append_at_an_older_head_records_nothing(dsn: str, ledger: str, write: Callable[..., Writer]) -> None:
    """Somebody else appended since: even what touches none of their streams has to be decided again."""
    one, other = write(), write()
    one.append(Head(), rows([event("account/a")]), utc_now())
    known = other.head()
    one.append(known, rows([event("account/b")]), utc_now())
    before = read_log(dsn, ledger)
    for late in (Head(), known):
        with pytest.raises(HeadMoved):
            other.append(late, rows([event("account/x"), event("account/y"), event("account/z")]), utc_now())
    assert read_log(dsn, ledger) == before
    assert other.moved_since(known.position) == {"account/b"}


def test_an_append_that_repeats_a_version_records_nothing(dsn: str, ledger: str, write: Callable[..., Writer]) -> None:
    """At the right head the second wall holds: a stream has each version once, and an append is all or nothing."""
    writer = write()
    writer.append(Head(), rows([event("account/a")]), utc_now())
    before = read_log(dsn, ledger)
    for events in ([event("account/b"), event("account/a")], [event("account/b"), event("account/b")]):
        with pytest.raises(HeadMoved):
            writer.append(writer.head(), rows(events), utc_now())
    assert read_log(dsn, ledger) == before


@pytest.mark.parametrize(
    "stream", ["account/a,b", "account/a b ", "account/{a}", 'account/"a"', "account/\\", "account/ä"]
)
def test_an_append_of_what_is_no_stream_of_ours_records_nothing(
    dsn: str, ledger: str, write: Callable[..., Writer], stream: str
) -> None:
    """Streams go to the database as one text: none may be taken for two, nor for another."""
    writer = write()
    for odd in (rows([event("account/a"), event(stream)]), rows([event("account/a"), event("account/b", 1, stream)])):
        with pytest.raises(ValueError, match="has characters that none of ours has"):
            writer.append(Head(), odd, utc_now())
    assert not read_log(dsn, ledger)
    writer.append(Head(), rows([event("payment/A-1.b_c:d"), event("account/NULL")]), utc_now())
    assert [row.stream for row in read_log(dsn, ledger)] == ["payment/A-1.b_c:d", "account/NULL"]


def test_what_was_decided_upon_has_to_be_there_where_nothing_was_to_be_recorded(
    dsn: str, ledger: str, session: psycopg.Connection[Any], write: Callable[..., Writer]
) -> None:
    """Such as a replay whose check was lost, on a promoted server that does not have what it replays."""
    lost = write()
    lost.append(Head(), rows([event("account/a")]), utc_now())
    lost.append(lost.head(), rows([event("account/b")]), utc_now())
    head = lost.head()
    assert write().settle(lost, head, [])
    session.execute("SET session_replication_role = replica")
    session.execute("DELETE FROM events WHERE position = 2")
    assert not write().settle(write(), head, [])


@pytest.mark.parametrize("recorded", [0, 3])
def test_an_append_after_a_head_that_is_not_there_records_nothing(
    dsn: str, ledger: str, write: Callable[..., Writer], recorded: int
) -> None:
    """A log that ends before what a writer has seen has lost its tail, and is not to be written to."""
    writer = write()
    if recorded:
        writer.append(Head(), rows([event(version=number) for number in range(1, recorded + 1)]), utc_now())
    for beyond in (recorded + 1, recorded + 1_000):
        with pytest.raises(LogLostTail):
            writer.append(Head(beyond, utc_now()), rows([event("account/b")]), utc_now())
        with pytest.raises(LogLostTail), writer.turn():
            writer.append(Head(beyond, utc_now()), rows([event("account/b")]), utc_now())
    assert len(read_log(dsn, ledger)) == recorded


def test_what_is_done_meanwhile_is_done_once_all_was_sent(dsn: str, write: Callable[..., Writer]) -> None:
    """However much it is: the database is at work then, and nobody is in its way who has yet to be let go on."""
    writer, other = write(), write()
    seen: list[int] = []
    for number in range(5):
        with ExitStack() as turn:
            turn.enter_context(other.turn())

            def see(number: int = number, turn: ExitStack = turn) -> None:
                seen.append(number)
                if number != 2:  # The third time the statement is prepared first, and that is all that was sent.
                    eventually(lambda: waits(dsn, writer.backend_pid))
                turn.close()

            large = ("account/a", number + 1, "AccountOpened", bytes(2**23))
            writer.append(writer.head(), [large], utc_now(), see)
    assert seen == [0, 1, 2, 3, 4]
    assert writer.head().position == 5


@pytest.mark.parametrize("why", ["recorded", "moved", "lost"])
def test_of_what_was_done_meanwhile_nothing_stays_in_memory(write: Callable[..., Writer], why: str) -> None:
    """Not even until the collector of circles comes by: an error holds what it was raised from."""
    writer = write()
    writer.append(Head(), rows([event()]), utc_now())
    head = Head() if why == "moved" else writer.head()
    done: list[str] = []

    class Step:
        """What is done meanwhile."""

        def __call__(self) -> None:
            done.append(why)

    step = Step()
    held = weakref.ref(step)
    if why == "lost":
        writer.close()
    gc.disable()
    try:
        with suppress(HeadMoved, AppendUnknown):
            writer.append(head, rows([event("account/b")]), utc_now(), step)
        del step
        assert held() is None
    finally:
        gc.enable()
    assert done == ([] if why == "lost" else [why])


def test_an_append_without_a_turn_to_take_records_nothing(
    dsn: str, ledger: str, session: psycopg.Connection[Any], write: Callable[..., Writer]
) -> None:
    """If the row that writers lock is gone, nobody could tell who appends: that is as bad as a lost tail."""
    session.execute("ALTER TABLE log_turn DISABLE TRIGGER log_turn_is_never_changed")
    session.execute("DELETE FROM log_turn")
    with pytest.raises(LogLostTail):
        write().append(Head(), rows([event()]), utc_now())
    assert not read_log(dsn, ledger)


def test_a_turn_left_by_an_error_leaves_nothing(dsn: str, ledger: str, write: Callable[..., Writer]) -> None:
    """What was appended in a turn is recorded when the turn ends well; the writer can go on after one that didn't."""
    writer = write()
    with suppress(ZeroDivisionError), writer.turn():
        writer.append(Head(), rows([event()]), utc_now())
        raise ZeroDivisionError
    assert not read_log(dsn, ledger)
    with writer.turn():
        writer.append(Head(), rows([event()]), utc_now())
    assert len(read_log(dsn, ledger)) == 1


def test_what_is_loaded_is_all_of_one_moment(write: Callable[..., Writer]) -> None:
    """While another appends, the head that comes with a load is that of the streams in it, each complete up to it."""
    writer, reader = write(), write()
    streams = [f"payment/{number}" for number in range(5)]

    def append() -> None:
        for version in range(1, 101):
            writer.append(writer.head(), rows([event(stream, version) for stream in streams]), utc_now())

    with ThreadPoolExecutor() as threads:
        appending = threads.submit(append)
        loads = 0
        while not appending.done():
            loaded = reader.load(Wanted(last={"payment/0"}, first={"payment/0"}, whole=set(streams)))
            assert len(loaded.whole) == loaded.head.position
            assert {one.originator_version for one in loaded.last} <= {loaded.head.position // 5}
            assert [one.id for one in loaded.first] == ([1] if loaded.head.position else [])
            loads += 1
        appending.result()
    assert loads > 1


def test_the_recorder_and_a_writer_take_turns(dsn: str, ledger: str, events: EventLog, write: Any) -> None:
    """The library's contract and a committer's append can be used on one log: neither writes over the other."""
    writer = write()
    events.insert_events([event(version=1)])
    with pytest.raises(HeadMoved):
        writer.append(Head(), rows([event("account/b")]), utc_now())
    writer.append(writer.head(), rows([event(version=2)]), utc_now())
    with pytest.raises(IntegrityError):
        events.insert_events([event(version=2)])
    assert events.insert_events([event(version=3)]) == [3]


def test_every_commit_is_durable_whatever_the_connection_string_says(dsn: str, ledger: str) -> None:
    """Nothing is acknowledged before it is on disk: what a DSN says of that is overruled, and of times as well."""
    lax = psycopg.conninfo.make_conninfo(dsn, options="-c synchronous_commit=off -c timezone=Asia/Tokyo")
    with connect(lax, ledger, "test") as connection:
        assert connection.execute("SHOW synchronous_commit").fetchone() == ("on",)
        assert connection.execute("SHOW timezone").fetchone() == ("UTC",)


@pytest.mark.skipif("LEDGER_TEST_LONG" not in os.environ, reason="takes 10 s: set LEDGER_TEST_LONG")
def test_a_writer_that_freezes_in_its_turn_loses_it(dsn: str, ledger: str, write: Callable[..., Writer]) -> None:
    """Others wait for some seconds, not for ever; what the frozen one had appended is not recorded."""
    frozen, other = write(), write()
    with suppress(AppendUnknown), frozen.turn():
        frozen.append(Head(), rows([event("account/a")]), utc_now())
        other.append(Head(), rows([event("account/b")]), utc_now())
    assert [row.stream for row in read_log(dsn, ledger)] == ["account/b"]


# --- migrations ------------------------------------------------------------------------------------------------------

MIGRATING: Final = """
import sys
from ledger.migrations import migrate
dsn, *ledgers = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
for ledger in ledgers:
    print(len(migrate(dsn, ledger)))
"""


@pytest.fixture
def unmigrated(dsn: str) -> Iterator[str]:
    name = f"test_{secrets.token_hex(6)}"
    yield name
    remove_ledger(dsn, name)


def test_migrating_again_does_nothing(dsn: str, unmigrated: str) -> None:
    """The first run applies all migrations, in order; the second finds nothing to do, and serving may begin."""
    with pytest.raises(SchemaError, match="migrate"):
        require_migrated(dsn, unmigrated)
    assert migrate(dsn, unmigrated) == migrations()
    assert migrate(dsn, unmigrated) == []
    require_migrated(dsn, unmigrated)
    assert [each.number for each in migrations()] == list(range(1, len(migrations()) + 1))


def test_processes_that_migrate_at_once_take_turns(dsn: str, unmigrated: str) -> None:
    """Of several that start together one applies the migrations, and all end well, whether there is a schema or not."""
    ledgers = [f"{unmigrated}_{number}" for number in range(20)]
    processes = []
    with ExitStack() as at_the_end:
        session = at_the_end.enter_context(psycopg.connect(dsn, autocommit=True))
        for ledger in ledgers:
            at_the_end.callback(remove_ledger, dsn, ledger)
        for ledger in ledgers[::2]:
            session.execute(f"CREATE SCHEMA ledger_{ledger}")
        command = [sys.executable, "-c", MIGRATING, dsn, *ledgers]
        for _ in range(4):
            processes.append(at_the_end.enter_context(subprocess.Popen(command, stdin=-1, stdout=-1, text=True)))
            at_the_end.callback(processes[-1].kill)
        start_together(processes)
        outputs = [process.communicate(timeout=60)[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * len(processes)
        applied = zip(*([int(line) for line in output.split()] for output in outputs), strict=True)
        assert [sorted(each) for each in applied] == [[0, 0, 0, len(migrations())]] * len(ledgers)
        for ledger in ledgers:
            require_migrated(dsn, ledger)


def test_a_schema_of_a_newer_release_is_refused(dsn: str, ledger: str, session: psycopg.Connection[Any]) -> None:
    """A program does not touch, and does not serve, what it doesn't know."""
    session.execute("INSERT INTO migrations (number, name, checksum) VALUES (9999, 'of_tomorrow', 'x')")
    for step in (migrate, require_migrated):
        with pytest.raises(SchemaError, match="newer"):
            step(dsn, ledger)


def test_a_migration_that_was_changed_after_it_was_applied_is_refused(
    dsn: str, ledger: str, session: psycopg.Connection[Any]
) -> None:
    """Migrations are frozen when they are released: another text under a known number is somebody's mistake."""
    session.execute("UPDATE migrations SET checksum = 'altered' WHERE number = 1")
    for step in (migrate, require_migrated):
        with pytest.raises(SchemaError, match="migration 1 "):
            step(dsn, ledger)


def test_the_schema_is_what_all_migrations_make(dsn: str, ledger: str, session: psycopg.Connection[Any]) -> None:
    """Each is on record with its checksum, and the walls that the log relies on stand under their names."""
    on_record = session.execute("SELECT number, name, checksum FROM migrations ORDER BY number").fetchall()
    assert on_record == [(each.number, each.name, each.checksum) for each in migrations()]
    columns = session.execute(
        """SELECT column_name, data_type, collation_name, is_nullable FROM information_schema.columns
        WHERE table_schema = %s AND table_name = 'events' ORDER BY ordinal_position""",
        [f"ledger_{ledger}"],
    ).fetchall()
    assert columns == [
        ("stream", "text", "C", "NO"),
        ("version", "bigint", None, "NO"),
        ("position", "bigint", None, "NO"),
        ("topic", "text", None, "NO"),
        ("recorded_at", "timestamp with time zone", None, "NO"),
        ("state", "bytea", None, "NO"),
    ]
    walls = session.execute(
        """SELECT conname FROM pg_constraint WHERE conrelid IN ('events'::regclass, 'log_turn'::regclass)
           AND contype IN ('p', 'u', 'c')
        UNION SELECT tgname FROM pg_trigger
           WHERE tgrelid IN ('events'::regclass, 'log_turn'::regclass) AND tgenabled = 'O'"""
    ).fetchall()
    assert {
        "events_one_event_per_version",
        "events_one_event_per_position",
        "events_are_never_changed",
        "log_turn_has_one_row",
        "log_turn_is_never_changed",
    } <= {name for (name,) in walls}
    assert session.execute("SELECT count(*) FROM log_turn").fetchone() == (1,)


def test_ledgers_on_one_server_share_nothing(dsn: str, ledger: str, unmigrated: str, events: EventLog) -> None:
    """Each has its own order, and the same stream in two ledgers is two streams."""
    migrate(dsn, unmigrated)
    datastore = LogDatastore(dsn, unmigrated)
    try:
        assert events.insert_events([event(), event(version=2)]) == [1, 2]
        assert EventLog(datastore).insert_events([event()]) == [1]
    finally:
        datastore.close()
    assert head_of(events) == 2


def test_what_a_server_remembers_as_it_starts_does_not_cost_more_with_a_longer_log(
    session: psycopg.Connection[Any],
) -> None:
    """It looks at the newest events and what they name, while all other writers wait: not at the whole log."""
    session.execute(
        """INSERT INTO events (stream, version, position, topic, recorded_at, state)
        SELECT 'account/' || n %% 1000, 1 + n / 1000, 1 + n, 'FundsCredited', now(), repeat('x', 300)::bytea
        FROM generate_series(0, 19999) AS n""",
        (),
    )
    session.execute("ANALYZE events")
    explain = f"EXPLAIN (ANALYZE, FORMAT JSON) {SQL.load_newest}"
    (((explained, *_),),) = session.execute(explain.encode(), {"newest": 500}).fetchall()
    assert explained["Plan"]["Actual Rows"] == 500
    assert rows_read(explained["Plan"]) < 5_000
