"""Who may do what: every statement that matters is tried as every role, and logins get their roles or are told how."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, Final

import psycopg
import pytest
from checks import read_log, remove_ledger
from psycopg import sql
from psycopg.conninfo import make_conninfo
from read_side import History

from ledger.cli import prepare
from ledger.committer import utc_now
from ledger.doctor import Verdict, examine
from ledger.domain.commands import OpenAccount
from ledger.embedded import EmbeddedPostgres
from ledger.migrations import migrate, migrations, require_migrated
from ledger.postgres import Role, connect, role_name, schema_of
from ledger.roles import RIGHTS, SERVER_ROLES, RoleMissing, differences
from ledger.writer import Head, Writer
from projections.read_models import create_tables
from projections.rebuild import Rebuild

OPERATIONS: Final = Path(__file__).parents[2] / "docs" / "operations.md"

# --- a table of what may be done -------------------------------------------------------------------------------------

STATEMENTS: Final = {
    "S": "SELECT FROM {relation}",
    "L": "SELECT FROM {relation} FOR UPDATE",
    "I": "INSERT INTO {relation} ({column}) SELECT NULL WHERE false",
    "U": "UPDATE {relation} SET {column} = DEFAULT WHERE false",
    "D": "DELETE FROM {relation} WHERE false",
    "T": "TRUNCATE {relation}",
    "A": "ALTER TABLE {relation} ADD COLUMN more text",
    "G": "ALTER TABLE {relation} DISABLE TRIGGER USER",
    "X": "DROP TABLE {relation} CASCADE",
    "R": "CREATE TRIGGER mine BEFORE INSERT ON {relation} EXECUTE FUNCTION suppress_redundant_updates_trigger()",
}
"""By a letter each: the last four are for owners."""

ALLOWED: Final = """
                    owner       writer  projector  signer  auditor  analyst  superuser
events              SLIAGXR     SI      S          S       S        -        SLIAGXR
log_turn            SLIAGXR     SL      -          -       S        -        SLIAGXR
migrations          SLIUDTAGXR  S       S          S       S        -        SLIUDTAGXR
tree_tiles          SLIUAGXR    -       -          SLIU    S        -        SLIUAGXR
tree_heads          SLIAGXR     -       -          SI      S        -        SLIAGXR
tree_breaks         SLIAGXR     -       -          SI      S        -        SLIAGXR
tree_keys           SLIAGXR     -       -          SI      S        -        SLIAGXR
checkpoints         SLIUDTAGXR  -       SLU        -       S        -        SLIUDTAGXR
balances            SLIUDTAGXR  -       SLIU       -       S        -        SLIUDTAGXR
payments            SLIUDTAGXR  -       SLIU       -       S        -        SLIUDTAGXR
transfers           SLIUDTAGXR  -       SLIU       -       S        -        SLIUDTAGXR
transfer_accounts   SLIUDTAGXR  -       SLIU       -       S        -        SLIUDTAGXR
entries             SLIUDTAGXR  -       SLIU       -       S        -        SLIUDTAGXR
"""
"""What goes through. Of what the owner may not do, and with him the superuser, all is refused by triggers."""

VIEWS: Final = ("accounts_v1", "balances_v1", "payments_v1", "transfers_v1", "entries_v1", "events_v1")


def allowed() -> list[tuple[str, dict[str, str]]]:
    """For each role, which letters each table allows."""
    head, *rows = [line.split() for line in ALLOWED.strip().splitlines()]
    return [(role, {row[0]: row[place].replace("-", "") for row in rows}) for place, role in enumerate(head, start=1)]


@pytest.mark.parametrize(("role", "tables"), allowed(), ids=lambda each: each if isinstance(each, str) else "")
def test_a_role_may_do_to_each_table_what_the_table_says_and_nothing_else(
    role: str, tables: dict[str, str], dsn: str, ledger: str, history: History
) -> None:
    """Every statement is really run as the role; what is refused is refused as a matter of rights."""
    with session_as(role, dsn, ledger) as connection:
        found = {
            table: "".join(letter for letter, form in STATEMENTS.items() if goes_through(connection, form, table))
            for table in tables
        }
    assert found == tables


def test_no_table_is_missing_from_the_table_above(dsn: str, ledger: str, history: History) -> None:
    """A new table needs a new line."""
    with connect(dsn, ledger, "test") as connection:
        found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()").fetchall()
    assert {name for (name,) in found} == allowed()[0][1].keys()
    assert RIGHTS.keys() == allowed()[0][1].keys() | set(VIEWS)


@pytest.mark.parametrize("role", list(Role))
def test_views_are_read_by_auditors_and_analysts_and_written_by_nobody(
    role: Role, dsn: str, ledger: str, history: History
) -> None:
    """Postgres would take a write to a view as one to its table. Their owner is stopped at the log by its triggers."""
    with session_as(role, dsn, ledger) as connection:
        for view in VIEWS:
            reads = goes_through(connection, STATEMENTS["S"], view)
            assert reads == (role in (Role.OWNER, Role.AUDITOR, Role.ANALYST)), view
            if role is not Role.OWNER or view == "events_v1":
                assert not [each for each in "UDTAX" if goes_through(connection, STATEMENTS[each], view)], view


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.OWNER])
def test_a_role_makes_nothing_of_its_own_in_the_schema(role: Role, dsn: str, ledger: str) -> None:
    """Not a table, and not a function that the sessions of others would find."""
    with session_as(role, dsn, ledger) as connection:
        for statement in ("CREATE TABLE mine (x int)", "CREATE FUNCTION one() RETURNS int RETURN 1"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())


@pytest.mark.parametrize("role", ["owner", "superuser"])
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET topic = 'Nothing'",
        "UPDATE events SET state = state WHERE position = 1",
        "DELETE FROM events WHERE position = 1",
        "DELETE FROM events_v1",
        "TRUNCATE events",
        "TRUNCATE events, log_turn CASCADE",
        "MERGE INTO events USING log_turn ON true WHEN MATCHED THEN DELETE",
        "INSERT INTO events TABLE events ON CONFLICT (position) DO UPDATE SET topic = 'Nothing'",
        "WITH gone AS (DELETE FROM events RETURNING *) SELECT FROM gone",
    ],
)
def test_what_is_recorded_is_not_changed_by_any_statement_of_its_owner(
    role: str, statement: str, dsn: str, ledger: str, history: History
) -> None:
    """Events that are there stay as they are, for a superuser's plain statement too."""
    history.live(Random(1), 3)
    history.write()
    before = read_log(dsn, ledger)
    assert before
    with session_as(role, dsn, ledger) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege) as refused:
        connection.execute(statement.encode())
    assert "append-only" in str(refused.value)
    assert read_log(dsn, ledger) == before


def test_hashes_of_the_tree_are_not_changed_by_an_operator_of_ones_own(
    dsn: str, ledger: str, session: psycopg.Connection[Any], login: Callable[..., str]
) -> None:
    """A login that has a schema can make any two hashes not differ there, and have it looked through first."""
    signer, schema = login(), f"mine_{secrets.token_hex(4)}"
    session.execute(f"GRANT {role_name(ledger, Role.SIGNER)} TO {user_of(signer)}".encode())
    session.execute(f"CREATE SCHEMA {schema} AUTHORIZATION {user_of(signer)}".encode())
    session.execute("INSERT INTO tree_tiles VALUES (0, 0, sha256('one'))")
    with psycopg.connect(signer, autocommit=True) as connection:
        own = (
            f"CREATE FUNCTION {schema}.never(bytea, bytea) RETURNS boolean RETURN false",
            f"CREATE OPERATOR {schema}.<> (LEFTARG = bytea, RIGHTARG = bytea, FUNCTION = {schema}.never)",
            f"GRANT USAGE ON SCHEMA {schema} TO PUBLIC",
            f"SET search_path = {schema}, pg_catalog, {schema_of(ledger)}",
            f"SET ROLE {role_name(ledger, Role.SIGNER)}",
        )
        for statement in own:
            connection.execute(statement.encode())
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="only ever grows"):
            connection.execute("UPDATE tree_tiles SET hashes = sha256('other')")


def session_as(role: str, dsn: str, ledger: str) -> psycopg.Connection[Any]:
    return connect(dsn, ledger, "test", None if role == "superuser" else Role(role))


def goes_through(connection: psycopg.Connection[Any], form: str, relation: str) -> bool:
    """Whether a statement is allowed. It leaves nothing behind."""
    column = {"log_turn": "one_row", "migrations": "name", "checkpoints": "failure"}.get(relation)
    with psycopg.ClientCursor(connection) as cursor:
        cursor.execute("BEGIN")
        try:
            if column is None:
                column = first_column(connection, relation)
            cursor.execute(form.format(relation=relation, column=column).encode())
        except psycopg.errors.InsufficientPrivilege:
            return False
        except psycopg.errors.WrongObjectType:
            return False  # A view can't be truncated.
        else:
            return True
        finally:
            cursor.execute("ROLLBACK")


def first_column(connection: psycopg.Connection[Any], relation: str) -> str:
    ((column,),) = connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = (SELECT oid FROM pg_class WHERE relname = %s"
        " AND relnamespace = current_schema()::regnamespace) AND attnum = 1",
        [relation],
    ).fetchall()
    return str(column)


# --- logins ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def login(dsn: str) -> Iterator[Callable[..., str]]:
    """Make a login that is no superuser; return the connection string with which it comes."""
    made: list[str] = []
    with psycopg.connect(dsn, autocommit=True) as connection:

        def make(rights: str = "") -> str:
            name, password = f"login_{secrets.token_hex(4)}", secrets.token_hex(8)
            connection.execute(f"CREATE ROLE {name} LOGIN {rights} PASSWORD '{password}'".encode())
            made.append(name)
            return make_conninfo(dsn, user=name, password=password)

        yield make
        connection.execute("RESET ROLE")
        for name in made:
            database = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
            connection.execute(f"REASSIGN OWNED BY {name} TO CURRENT_USER".encode())
            connection.execute(f'REVOKE ALL ON DATABASE "{database}" FROM {name} CASCADE'.encode())
            connection.execute(f"DROP OWNED BY {name}".encode())
            connection.execute(f"DROP ROLE {name}".encode())


def user_of(dsn: str) -> str:
    return str(psycopg.conninfo.conninfo_to_dict(dsn)["user"])


def test_a_login_that_lacks_a_role_is_told_the_statement_that_gives_it(
    dsn: str, ledger: str, session: psycopg.Connection[Any], login: Callable[..., str]
) -> None:
    """And with that statement run it may start."""
    guest = login()
    with pytest.raises(RoleMissing) as refused:
        require_migrated(guest, ledger, *SERVER_ROLES)
    (statement,) = re.findall(r"GRANT .*?;", str(refused.value))
    for role in SERVER_ROLES:
        assert role_name(ledger, role) in statement
    session.execute(statement)
    require_migrated(guest, ledger, *SERVER_ROLES)


def test_a_ledger_that_was_never_migrated_says_so_whoever_asks(dsn: str, login: Callable[..., str]) -> None:
    """It is not taken for a matter of rights."""
    with pytest.raises(RoleMissing, match="run `ledger migrate --ledger never`"):
        require_migrated(login(), "never", *SERVER_ROLES)


def test_a_login_with_the_four_roles_serves_and_settles_what_a_lost_connection_left_open(
    dsn: str, ledger: str, session: psycopg.Connection[Any], login: Callable[..., str], serve: Callable[..., Any]
) -> None:
    """It needs no more: it also ends its own lost session, which the server shows to nobody else."""
    plain = login()
    names = ", ".join(role_name(ledger, role) for role in SERVER_ROLES)
    session.execute(f"GRANT {names} TO {user_of(plain)}".encode())
    desk = serve(at=plain)
    desk.do(OpenAccount(account_id="alice", currency_code="EUR"))
    lost, next_one = Writer(plain, ledger, clock=utc_now), Writer(plain, ledger, clock=utc_now)
    try:
        lost._connection.execute("BEGIN")
        lost._connection.execute("SELECT FROM log_turn FOR UPDATE")
        assert next_one.settle(lost, Head(), []) is True
        alive = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
        assert session.execute(alive, [lost.backend_pid]).fetchone() == (0,)
    finally:
        lost.close()
        next_one.close()


def test_a_login_that_may_make_roles_migrates_and_rebuilds(
    dsn: str, new_ledger: Callable[[], str], login: Callable[..., str], drop: list[str]
) -> None:
    """No superuser is needed: CREATEROLE, and CREATE on the database with the right to pass it on.

    Where another login has made the schema of tokens, also membership in its owner.
    """
    new_ledger()
    plain, ledger = login("CREATEROLE"), f"test_{secrets.token_hex(6)}"
    drop.append(ledger)
    database = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    with psycopg.connect(dsn, autocommit=True) as connection:
        grant = "GRANT CREATE ON DATABASE {} TO {} WITH GRANT OPTION"
        connection.execute(sql.SQL(grant).format(sql.Identifier(str(database)), sql.Identifier(user_of(plain))))
        connection.execute(sql.SQL("GRANT callers_owner TO {}").format(sql.Identifier(user_of(plain))))
    assert migrate(plain, ledger) == migrations()
    assert migrate(plain, ledger) == []
    with connect(plain, ledger, "test") as connection:
        create_tables(connection)
        assert differences(connection) == (set(), set())
    require_migrated(plain, ledger, *Role)
    with Rebuild(plain, ledger) as rebuild:
        rebuild.swap()
    with psycopg.connect(dsn, autocommit=True) as connection:
        revoke = "REVOKE CREATE ON DATABASE {} FROM {} CASCADE"
        connection.execute(sql.SQL(revoke).format(sql.Identifier(str(database)), sql.Identifier(user_of(plain))))


def test_a_login_that_may_not_make_roles_is_told_what_a_superuser_has_to_run(
    dsn: str, login: Callable[..., str], drop: list[str]
) -> None:
    """The statements are complete: migrating works when they were run."""
    plain, ledger = login(), f"test_{secrets.token_hex(6)}"
    drop.append(ledger)
    with psycopg.connect(dsn, autocommit=True) as connection:
        database = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
        connection.execute(f'GRANT CREATE ON DATABASE "{database}" TO {user_of(plain)}'.encode())
        with pytest.raises(RoleMissing, match="has no permission") as refused:
            migrate(plain, ledger)
        connection.execute(str(refused.value).partition("migrate again: ")[2].encode())
    assert migrate(plain, ledger) == migrations()


def test_a_ledger_of_a_release_without_roles_gets_them_and_keeps_what_it_has(dsn: str, drop: list[str]) -> None:
    """Schema, tables, views and functions change hands; until it is migrated no process of this release serves it."""
    ledger = f"test_{secrets.token_hex(6)}"
    drop.append(ledger)
    with psycopg.connect(dsn, autocommit=True, options=f"-c search_path={schema_of(ledger)}") as connection:
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema_of(ledger))))
        connection.execute(
            "CREATE TABLE migrations (number int PRIMARY KEY, name text NOT NULL, checksum text NOT NULL,"
            " applied_at timestamptz NOT NULL DEFAULT clock_timestamp())"
        )
        for each in migrations()[:3]:
            connection.execute(each.text.encode())
            connection.execute("INSERT INTO migrations VALUES (%s, %s, %s)", [each.number, each.name, each.checksum])
        connection.execute("INSERT INTO events VALUES ('account/a', 1, 1, 'T', now(), '{}')")
        with pytest.raises(RoleMissing, match="ledger migrate"):
            require_migrated(dsn, ledger, *SERVER_ROLES)
        assert migrate(dsn, ledger) == migrations()[3:]
        create_tables(connection)
        owners = connection.execute(
            "SELECT DISTINCT o::regrole::text FROM ("
            " SELECT relowner FROM pg_class WHERE relnamespace = current_schema()::regnamespace"
            " UNION SELECT proowner FROM pg_proc WHERE pronamespace = current_schema()::regnamespace"
            " UNION SELECT nspowner FROM pg_namespace WHERE nspname = current_schema()) AS owners (o)"
        ).fetchall()
        assert owners == [(role_name(ledger, Role.OWNER),)]
        assert connection.execute("SELECT count(*) FROM events").fetchone() == (1,)
        assert differences(connection) == (set(), set())


def test_rights_that_somebody_gave_or_took_are_put_right_by_migrating(
    dsn: str, ledger: str, session: psycopg.Connection[Any]
) -> None:
    """What roles may do is in one place: what differs in the database is a mistake."""
    session.execute(f"GRANT DELETE ON events TO {role_name(ledger, Role.WRITER)}")
    session.execute(f"REVOKE SELECT ON events FROM {role_name(ledger, Role.AUDITOR)}")
    missing, surplus = differences(session)
    assert [each[1:] for each in missing] == [(role_name(ledger, Role.AUDITOR), "SELECT")]
    assert [each[1:] for each in surplus] == [(role_name(ledger, Role.WRITER), "DELETE")]
    migrate(dsn, ledger)
    assert differences(session) == (set(), set())


def test_what_the_documentation_has_a_superuser_run_is_all_it_takes(tmp_path: Path) -> None:
    """Two blocks of SQL, `ledger migrate` between them; then a server may start, and neither migrate nor rebuild."""
    for_superuser, for_migrator = re.findall("```sql\n(.*?)```", OPERATIONS.read_text(), re.DOTALL)
    with EmbeddedPostgres(tmp_path / "data") as postgres:
        migrator, server = (
            make_conninfo(postgres.dsn, user=f"ledger_{who}", password=f"choose-{password}")
            for who, password in (("migrator", "one"), ("server", "another"))
        )
        with psycopg.connect(postgres.dsn, autocommit=True) as connection:
            connection.execute(for_superuser.encode())
        prepare(migrator, "main")
        with psycopg.connect(migrator, autocommit=True) as connection:
            connection.execute(for_migrator.encode())
        require_migrated(server, "main", *SERVER_ROLES)
        assert not [check for check in examine(server, "main") if check.verdict is Verdict.FAIL]
        with pytest.raises(RoleMissing):
            migrate(server, "main")
        with pytest.raises(RoleMissing):
            require_migrated(server, "main", Role.OWNER)


def test_the_table_of_roles_in_the_documentation_is_complete() -> None:
    """Every role, once."""
    found = re.findall(r"^\| `ledger_main_([a-z]+)` \|", OPERATIONS.read_text(), re.MULTILINE)
    assert found == [role.value for role in Role]


def test_the_longest_name_that_a_ledger_can_have_is_not_cut_in_its_roles(dsn: str, drop: list[str]) -> None:
    """Postgres would cut it without an error, and two ledgers would share a role."""
    ledger = "a" * 41
    drop.append(ledger)
    migrate(dsn, ledger)
    require_migrated(dsn, ledger, *Role)


@pytest.fixture
def drop(dsn: str) -> Iterator[list[str]]:
    """Ledgers whose schemas and roles go when the test is over."""
    ledgers: list[str] = []
    yield ledgers
    for ledger in ledgers:
        remove_ledger(dsn, ledger)


TOKENS: Final = (
    "SELECT FROM callers.tokens",
    "INSERT INTO callers.tokens (token_id, secret_hash, name, roles, ledgers, expires_at) "
    "VALUES ('x', sha256('x'), 'x', '{operator}', '{main}', now() + interval '1 day')",
    "UPDATE callers.tokens SET revoked_at = now()",
    "DELETE FROM callers.tokens",
    "TRUNCATE callers.tokens",
    "CREATE TABLE callers.mine ()",
)


@pytest.mark.parametrize("role", Role)
def test_tokens_are_read_by_the_writer_and_by_no_other_role_of_a_ledger(dsn: str, ledger: str, role: Role) -> None:
    """Its server asks callers for them. Nobody makes one who is not a member of their owner."""
    with connect(dsn, ledger, "test", role) as connection:
        for statement in TOKENS[role is Role.WRITER :]:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())
        if role is Role.WRITER:
            connection.execute(TOKENS[0].encode())
