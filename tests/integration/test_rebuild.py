"""Rebuild: made anew beside servers that serve, compared row by row, and swapped in as one step or not at all."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from random import Random
from typing import Any, Final

import psycopg
import pytest
from checks import eventually
from psycopg import sql
from read_side import History, catch_up, check_read_models, tables

from ledger.postgres import Role, connect
from ledger.v1.account_pb2 import GetAccountRequest, ListAccountsRequest
from projections import rebuild
from projections.follower import Follower
from projections.queries import Queries
from projections.rebuild import TABLES, Difference, Rebuild, RebuildImpossible

TAMPERED: Final = {
    "balances": "UPDATE balances SET metadata = '{\"x\": \"y\"}' WHERE account_id = 'alice'",
    "payments": "DELETE FROM payments WHERE payment_id = (SELECT min(payment_id) FROM payments)",
    "transfers": "UPDATE transfers SET reference = 'forged' WHERE position = (SELECT max(position) FROM transfers)",
    "transfer_accounts": "INSERT INTO transfer_accounts VALUES ('alice', 999999)",
    "entries": "UPDATE entries SET posted = posted + 1 WHERE position = (SELECT max(position) FROM entries)",
}


def rebuilt(dsn: str, ledger: str) -> rebuild.Comparison:
    with Rebuild(dsn, ledger) as building:
        building.catch_up()
        comparison = building.compare()
        building.swap()
    return comparison


def schemas_of_rebuilds(dsn: str) -> list[Any]:
    with psycopg.connect(dsn) as connection:
        return connection.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'rebuil%'").fetchall()


def waits_for_lock(dsn: str, name: str) -> bool:
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'"
    with psycopg.connect(dsn) as connection:
        return connection.execute(query, [name]).fetchone() == (1,)


def indexes_of(dsn: str, ledger: str) -> list[Any]:
    query = "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = current_schema() ORDER BY indexname"
    with connect(dsn, ledger, "test") as connection:
        return connection.execute(query).fetchall()


@pytest.fixture
def living(history: History, follower: Follower) -> History:
    """A ledger with a past, and read models that know it."""
    history.live(Random(11), 400)
    history.write()
    catch_up(follower)
    return history


def test_what_is_rebuilt_is_what_was_there(dsn: str, ledger: str, living: History, monkeypatch: Any) -> None:
    """Every row is compared and none differs, whatever the batches are; nothing is left behind."""
    monkeypatch.setattr(rebuild, "BATCH_EVENTS", 97)
    before, indexes = tables(dsn, ledger), indexes_of(dsn, ledger)

    comparison = rebuilt(dsn, ledger)

    assert indexes_of(dsn, ledger) == indexes
    assert (comparison.position, comparison.different) == (living.head, 0)
    assert comparison.rows > sum(len(table) for table in before[1].values())
    assert tables(dsn, ledger) == before
    assert check_read_models(dsn, ledger) == living.head
    assert schemas_of_rebuilds(dsn) == []


@pytest.mark.parametrize("table", TABLES)
def test_a_row_that_differs_is_named_and_swapped_away(dsn: str, ledger: str, living: History, table: str) -> None:
    """Changed, missing or too many: with both sides of it."""
    with connect(dsn, ledger, "test") as connection:
        connection.execute(TAMPERED[table].encode())

    comparison = rebuilt(dsn, ledger)

    assert comparison.different == 1
    (found,) = comparison.differences
    assert isinstance(found, Difference)
    assert found.table == table
    assert (found.rebuilt is None, found.live is None) == (table == "transfer_accounts", table == "payments")
    assert rebuilt(dsn, ledger).different == 0
    assert check_read_models(dsn, ledger) == living.head


def test_without_a_swap_everything_stays(dsn: str, ledger: str, living: History) -> None:
    """The comparison alone changes nothing, and leaves nothing."""
    before = tables(dsn, ledger)
    with Rebuild(dsn, ledger) as building:
        building.catch_up()
        assert building.compare().different == 0
    assert tables(dsn, ledger) == before
    assert schemas_of_rebuilds(dsn) == []


def test_a_follower_goes_on_where_the_swap_left_it(dsn: str, ledger: str, living: History, follower: Follower) -> None:
    """It neither stops nor applies anything twice, though its tables are others now."""
    follower.start()
    enough = threading.Event()

    def live_on() -> None:
        random = Random(12)
        while not enough.is_set():
            living.live(random, 10)
            living.write()

    with closing(psycopg.connect(dsn)):
        writing = threading.Thread(target=live_on)
        writing.start()
        try:
            for _ in range(4):
                assert rebuilt(dsn, ledger).different == 0
        finally:
            enough.set()
            writing.join()
    eventually(lambda: follower.position == living.head)
    assert follower.failure is None
    assert check_read_models(dsn, ledger) == living.head


def test_reads_go_on_meanwhile(dsn: str, ledger: str, living: History, ask: Callable[..., Any]) -> None:
    """Prepared statements, lists and all: what they answer is the same before, during and after the swap."""

    async def look(queries: Queries) -> None:
        import asyncio

        request = GetAccountRequest(account_id="alice", min_position=living.head)
        first = await queries.get_account(request, 5)
        rebuilding = asyncio.create_task(asyncio.to_thread(rebuilt, dsn, ledger))
        reads = 0
        while not rebuilding.done():
            assert await queries.get_account(request, 10) == first
            assert len((await queries.by_rpc["ListAccounts"](ListAccountsRequest(), 10)).accounts) > 3
            reads += 1
        assert (await rebuilding).different == 0
        assert reads > 3
        assert await queries.get_account(request, 5) == first

    ask(look)


def test_a_stopped_follower_s_place_is_taken_by_the_rebuilt(dsn: str, ledger: str, living: History) -> None:
    """Read models that broke are made anew; the failure is gone, and a follower goes on from there."""
    with connect(dsn, ledger, "test") as connection:
        connection.execute("UPDATE checkpoints SET failure = 'a broken program'")
        connection.execute("UPDATE payments SET void_reason = 'nonsense'")

    comparison = rebuilt(dsn, ledger)

    assert comparison.different > 20
    assert len(comparison.differences) == rebuild.DIFFERENCES_SHOWN
    with connect(dsn, ledger, "test") as connection:
        assert connection.execute("SELECT failure FROM checkpoints").fetchall() == [(None,)]
    living.live(Random(13), 20)
    head = living.write()
    follower = Follower(dsn, ledger)
    catch_up(follower)
    follower.stop()
    assert check_read_models(dsn, ledger) == head


def test_a_follower_that_had_stopped_goes_on_after_a_rebuild(
    dsn: str, ledger: str, living: History, follower: Follower
) -> None:
    """By itself: what was recorded meanwhile, and what comes later, is there for reads that are answered again."""
    with connect(dsn, ledger, "test") as connection:
        connection.execute("UPDATE balances SET version = version + 1")
    living.live(Random(14), 40)
    living.write()
    follower.start()
    eventually(lambda: follower.failure is not None)

    assert rebuilt(dsn, ledger).different > 0

    eventually(lambda: follower.position == living.head)
    assert follower.failure is None
    living.live(Random(15), 20)
    living.write()
    eventually(lambda: follower.position == living.head)
    assert check_read_models(dsn, ledger) == living.head


def test_who_could_read_the_tables_can_still_read_them(dsn: str, ledger: str, living: History) -> None:
    """Rights on tables and on views survive the swap."""
    role, schema = sql.Identifier(f"reader_of_{ledger}"), sql.Identifier(f"ledger_{ledger}")
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {}").format(role))
        connection.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(schema, role))
        connection.execute(sql.SQL("GRANT SELECT ON {}.payments, {}.balances_v1 TO {}").format(schema, schema, role))
        try:
            rebuilt(dsn, ledger)
            connection.execute(sql.SQL("SET ROLE {}").format(role))
            for name in ("payments", "balances_v1"):
                connection.execute(sql.SQL("SELECT FROM {}.{} LIMIT 1").format(schema, sql.Identifier(name)))
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(sql.SQL("SELECT FROM {}.entries LIMIT 1").format(schema))
        finally:
            connection.execute("RESET ROLE")
            connection.execute(sql.SQL("DROP OWNED BY {}").format(role))
            connection.execute(sql.SQL("DROP ROLE {}").format(role))


def test_only_one_rebuild_of_a_ledger_at_a_time(dsn: str, ledger: str, living: History) -> None:
    """The second is told so, and does not harm the first."""
    with Rebuild(dsn, ledger) as building:
        building.catch_up()
        with pytest.raises(RebuildImpossible, match="under way"), Rebuild(dsn, ledger):
            pass
        assert building.compare().different == 0
        building.swap()
    assert check_read_models(dsn, ledger) == living.head


@pytest.mark.parametrize("command", ["status", "rebuild"])
def test_a_ledger_whose_migration_was_killed_midway_is_named(
    dsn: str, ledger: str, living: History, command: str
) -> None:
    """The read models are made last; without them it was the database's own words that told."""
    with connect(dsn, ledger, "test", Role.OWNER) as owner:
        owner.execute("DROP TABLE checkpoints")
    asked = [sys.executable, "-m", "ledger.cli", "projections", command, "--dsn", dsn, "--ledger", ledger]
    ended = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert ended.returncode == 3
    assert "is migrated in part, without checkpoints: run `ledger migrate" in ended.stderr


@pytest.mark.parametrize("lock", ["entries IN ACCESS SHARE", "pg_attrdef IN SHARE"], ids=["swapping", "beginning"])
def test_a_rebuild_that_is_told_to_end_leaves_nothing(dsn: str, ledger: str, living: History, lock: str) -> None:
    """Tables as large as the read models would stay until the next one. Timers and containers send no other signal."""
    before = tables(dsn, ledger)
    command = [sys.executable, "-m", "ledger.cli", "projections", "rebuild", "--dsn", dsn, "--ledger", ledger]
    with connect(dsn, ledger, "test") as analyst, analyst.transaction():
        analyst.execute(f"LOCK TABLE {lock} MODE".encode())
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            eventually(lambda: waits_for_lock(dsn, f"rebuild-{ledger}"))
            process.terminate()
            assert (
                process.communicate(timeout=30)[1] == "ledger: stopped; what was not swapped in by then was removed\n"
            )
            assert process.returncode == 1
    assert schemas_of_rebuilds(dsn) == []
    assert tables(dsn, ledger) == before


def test_what_a_killed_rebuild_left_is_cleared_away(dsn: str, ledger: str, living: History) -> None:
    """Its session ended in the middle: the next rebuild begins anew."""
    building = Rebuild(dsn, ledger).__enter__()
    building.catch_up()
    pid = building._connection.info.backend_pid
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
    with suppress(psycopg.OperationalError):
        building.compare()
    assert schemas_of_rebuilds(dsn) != []
    assert check_read_models(dsn, ledger) == living.head
    assert rebuilt(dsn, ledger).different == 0
    assert schemas_of_rebuilds(dsn) == []


def test_a_query_that_never_ends_makes_it_give_up(
    dsn: str, ledger: str, living: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others are not kept waiting behind it, and everything stays as it was."""
    monkeypatch.setattr(rebuild, "_SWAP_TRIES", 1)
    before = tables(dsn, ledger)
    with connect(dsn, ledger, "test") as analyst, analyst.transaction():
        analyst.execute("SELECT count(*) FROM entries_v1")
        with Rebuild(dsn, ledger) as building:
            building.catch_up()
            with pytest.raises(RebuildImpossible, match="without a pause"):
                building.swap()
    assert tables(dsn, ledger) == before
    assert schemas_of_rebuilds(dsn) == []


def test_an_analyst_whose_transaction_begins_with_a_lock_sees_one_state(
    dsn: str, ledger: str, living: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the README says: the swap waits for its end, with nothing read yet but that which sets the snapshot."""
    monkeypatch.setattr(rebuild, "_SWAP_TRIES", 1)
    with connect(dsn, ledger, "test", Role.ANALYST) as analyst, analyst.transaction():
        analyst.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        analyst.execute("LOCK TABLE balances_v1 IN ACCESS SHARE MODE")
        analyst.execute("SELECT 1")
        with Rebuild(dsn, ledger) as building, pytest.raises(RebuildImpossible):
            building.swap()
        for view in ("balances_v1", "entries_v1", "payments_v1", "transfers_v1"):
            ((rows,),) = analyst.execute(f"SELECT count(*) FROM {view}".encode()).fetchall()
            assert rows > 0, view
    assert rebuilt(dsn, ledger).different == 0


@pytest.mark.parametrize("table", ["balances", "entries"])
@pytest.mark.parametrize("view", ["balances_v1", "accounts_v1"])
def test_analysts_who_come_during_the_swap_wait_for_its_end(
    dsn: str, ledger: str, living: History, view: str, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A query has its view before the table under it: it must not hold what the swap goes on to ask for."""
    pauses: list[float] = []
    monkeypatch.setattr(rebuild, "sleep", pauses.append)

    def look() -> Any:
        with connect(dsn, ledger, f"look-{ledger}", Role.ANALYST) as analyst:
            return analyst.execute(f"SELECT count(*) > 0 FROM {view}".encode()).fetchone()

    with ThreadPoolExecutor(2) as others, Rebuild(dsn, ledger) as building, connect(dsn, ledger, "test") as holder:
        building.catch_up()
        with holder.transaction():
            holder.execute(f"LOCK TABLE {table} IN ACCESS SHARE MODE".encode())
            swapping = others.submit(building.swap)
            eventually(lambda: waits_for_lock(dsn, f"rebuild-{ledger}") or pauses)
            looking = others.submit(look)
            eventually(lambda: waits_for_lock(dsn, f"look-{ledger}") or looking.done())
        assert looking.result() == (True,)
        swapping.result()


def test_what_others_have_built_on_the_tables_is_not_dropped_with_them(dsn: str, ledger: str, living: History) -> None:
    """It is named, and nothing is swapped; on the views it stays, and sees what was rebuilt."""
    before = tables(dsn, ledger)
    with connect(dsn, ledger, "test", Role.OWNER) as owner:
        owner.execute("CREATE VIEW of_table AS SELECT count(*) FROM balances")
        owner.execute("CREATE VIEW of_view AS SELECT count(*) FROM balances_v1")
        with pytest.raises(RebuildImpossible, match=r"of_table depends on table \w+\.balances: .*balances_v1"):
            rebuilt(dsn, ledger)
        assert tables(dsn, ledger) == before
        assert owner.execute("SELECT * FROM of_table").fetchone() == owner.execute("SELECT * FROM of_view").fetchone()
        owner.execute("DROP VIEW of_table")
        assert rebuilt(dsn, ledger).different == 0
        assert owner.execute("SELECT * FROM of_view").fetchone() == (len(before[1]["balances"]),)
    assert schemas_of_rebuilds(dsn) == []
