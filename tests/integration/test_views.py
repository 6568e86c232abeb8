"""Views for analysts: names, types and comments that reports rely on, and numbers that are those of the read models."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any, Final

from psycopg import Connection
from psycopg.rows import dict_row
from read_side import History, catch_up, tables

from ledger.postgres import Role, connect
from ledger.roles import RIGHTS, VIEWS
from projections.follower import Follower
from projections.read_models import create_tables

PINNED: Final = Path(__file__).with_name("views_v1.txt")

COLUMNS: Final = """
    SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod)
    FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
    WHERE c.relkind = 'v' AND c.relnamespace = current_schema()::regnamespace AND a.attnum > 0
    ORDER BY c.relname, a.attnum
"""
UNDESCRIBED: Final = """
    SELECT c.relname, a.attname FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
    WHERE c.relkind = 'v' AND c.relnamespace = current_schema()::regnamespace AND a.attnum >= 0
      AND (col_description(c.oid, a.attnum) IS NULL OR obj_description(c.oid) IS NULL)
"""


def test_names_and_types_of_the_views_are_pinned(dsn: str, ledger: str, history: History) -> None:
    """What a report reads today it reads tomorrow: a change of these lines wants a view of a new name."""
    with connect(dsn, ledger, "test") as connection:
        found = [" ".join(row) for row in connection.execute(COLUMNS).fetchall()]
    assert found == PINNED.read_text().splitlines()
    assert {line.split()[0] for line in found} == set(VIEWS)


def test_every_view_and_column_is_described(dsn: str, ledger: str, history: History) -> None:
    """In the database itself, where a BI tool shows it."""
    with connect(dsn, ledger, "test") as connection:
        assert connection.execute(UNDESCRIBED).fetchall() == []


def test_the_list_of_what_roles_may_do_is_complete(dsn: str, ledger: str, history: History) -> None:
    """A table that is new is one of which somebody has said who may do what with it."""
    with connect(dsn, ledger, "test") as connection:
        found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()").fetchall()
    assert {name for (name,) in found} == RIGHTS.keys() - set(VIEWS)


def test_what_analysts_ask_of_a_day_reads_the_rows_of_that_day(dsn: str, ledger: str, history: History) -> None:
    """And not all there are: here of 300 days with 500 lines each."""
    with connect(dsn, ledger, "test", Role.OWNER) as owner:
        owner.execute("""
            INSERT INTO entries (account_id, position, version, recorded_at, effective_at, kind, currency_code,
                                 minor_digits, posted_change, reserved_change, posted, reserved, credit_limit)
            SELECT 'many', n, n, moment, moment, 'OPENED', 'EUR', 2, 0, 0, 0, 0, 0
            FROM generate_series(1, 150000) AS n,
                 LATERAL (SELECT timestamptz '2024-01-01' + n * interval '1 day' / 500) AS t (moment)
        """)
        owner.execute("SELECT brin_summarize_new_values('entries_by_time')")
        owner.execute("ANALYZE entries")
    day = "SELECT sum(posted_change) FROM entries_v1 WHERE recorded_at >= '2024-05-01' AND recorded_at < '2024-05-02'"
    with connect(dsn, ledger, "test", Role.ANALYST) as analyst:
        plan = "\n".join(line for (line,) in analyst.execute(f"EXPLAIN {day}".encode()).fetchall())
    assert "Bitmap Index Scan on entries_by_time" in plan


def test_the_views_say_what_the_read_models_and_the_log_say(
    dsn: str, ledger: str, history: History, follower: Follower
) -> None:
    """Row by row; the state of an event is its JSON; and created again they are left alone."""
    history.live(Random(5), 300)
    history.write()
    catch_up(follower)
    _, models = tables(dsn, ledger)
    with connect(dsn, ledger, "test") as connection:
        create_tables(connection)
        for view, model in (
            ("accounts_v1", "balances"),
            ("balances_v1", "balances"),
            ("payments_v1", "payments"),
            ("transfers_v1", "transfers"),
            ("entries_v1", "entries"),
        ):
            rows = read(connection, view)
            wanted = [{name: row[name] for name in rows[0]} for row in models[model].values()]
            assert sorted(rows, key=str) == sorted(wanted, key=str)
        events = read(connection, "events_v1")
        stored = connection.execute("SELECT position, state FROM events ORDER BY position").fetchall()
        assert [(each["position"], each["state"]["timestamp"][:4]) for each in events] == [
            (position, bytes(state).split(b'"timestamp":"')[1][:4].decode()) for position, state in stored
        ]
        sums = "SELECT sum(posted), min(minor_digits) FROM balances_v1 GROUP BY currency_code"
        assert {total for total, _ in connection.execute(sums).fetchall()} == {0}


def read(connection: Connection[Any], view: str) -> list[dict[str, Any]]:
    cursor = connection.cursor(row_factory=dict_row)
    return cursor.execute(f"SELECT * FROM {view} ORDER BY position".encode()).fetchall()
