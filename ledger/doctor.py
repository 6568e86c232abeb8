"""The doctor: is this database fit to keep a ledger, and if not, what is to be done."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import Connection

from ledger.durability import unsafe_settings
from ledger.migrations import SchemaError, migrations, require_migrated, require_read_models
from ledger.postgres import Role, connect, role_name, schema_of, sql_blocks
from ledger.roles import RIGHTS, SERVER_ROLES, Right, RoleMissing, differences, require_member, rights

SQL: Final = sql_blocks("ledger.sql", "doctor.sql")

VERSION_LEAST: Final = 160_000
CLOCK_OFF_WARN_S: Final = 1.0
CLOCK_OFF_MOST_S: Final = 5.0
SERVER_CONNECTIONS: Final = 17
"""What one server has open at most: to decide 1 and to settle 1, to follow 1, to sign 1, to read 4 + 4 + 2 + 2 + 1."""

OTHER_ENGINES: Final = (
    "CockroachDB",
    "-YB-",
    "Redshift",
    "Greenplum",
    "Materialize",
    "RisingWave",
    "QuestDB",
    "CrateDB",
)
"""Marks of what speaks like Postgres and is not: locks, snapshots or triggers are not what the log relies on."""


class Guard(NamedTuple):
    """A trigger that keeps recorded rows as they are, and the function that it calls."""

    table: str
    trigger: str
    kind: int
    """When it fires, as `pg_trigger.tgtype` has it."""
    function: str
    body: str


_FUNCTION: Final = re.compile(
    r"CREATE (?:OR REPLACE )?FUNCTION (\w+)\(\) RETURNS trigger LANGUAGE \w+ AS \$\$(.*?)\$\$;", re.DOTALL
)
_TRIGGER: Final = re.compile(r"CREATE TRIGGER (\w+) (.+?) ON (\w+)\s+FOR EACH (\w+) EXECUTE FUNCTION (\w+)\(\);")
_KIND_BITS: Final = {"ROW": 1, "BEFORE": 2, "INSERT": 4, "DELETE": 8, "UPDATE": 16, "TRUNCATE": 32}
"""TRIGGER_TYPE_* in src/include/catalog/pg_trigger.h of Postgres."""


def _guards(folder: str, prefix: str) -> Iterator[Guard]:
    """What the migrations of a folder make."""
    text = "\n".join(each.text for each in migrations(folder))
    bodies = dict(_FUNCTION.findall(text))
    for trigger, when, table, each, function in _TRIGGER.findall(text):
        kind = sum(_KIND_BITS.get(word, 0) for word in (*when.split(), each))
        yield Guard(prefix + table, trigger, kind, function, bodies[function])


GUARDS: Final = frozenset((*_guards("migrations", ""), *_guards("callers", "callers.")))
"""All of a ledger's, and those of the tokens. A name alone would not do: its function may have been replaced."""


class Verdict(StrEnum):
    """How a check came out. Only FAIL makes the whole unfit."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


class Check(NamedTuple):
    """One thing that was looked at: what was found, and what to do about it ('' if nothing)."""

    name: str
    verdict: Verdict
    found: str
    advice: str = ""

    @property
    def lines(self) -> str:
        """For people."""
        first = f"{self.verdict:4}  {self.name:12}  {self.found}"
        return f"{first}\n{'':20}-> {self.advice}" if self.advice else first


def examine(
    dsn: str,
    ledger: str,
    *,
    allow_unsafe: bool = False,
    is_embedded: bool = False,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Iterator[Check]:
    """Look at everything, and tell one by one. Raises psycopg.OperationalError if the database can't be reached.

    With `allow_unsafe` durability that a crash defeats is a warning. What is for operators of a server of their own is
    left out where it is embedded.
    """
    with psycopg.connect(dsn, autocommit=True, connect_timeout=5, application_name="ledger-doctor") as bare:
        yield (engine := _engine(bare))
        if engine.verdict is Verdict.FAIL:
            return
        yield _pool(bare, dsn, ledger)
        yield _clock(bare, clock)
        yield from _durability(bare, allow_unsafe=allow_unsafe)
        yield _standby(bare, is_embedded=is_embedded)
        yield _connections(bare)
        yield _login(bare, ledger, is_embedded=is_embedded)
    yield (schema := _schema(dsn, ledger))
    if schema.verdict is Verdict.OK:
        yield from _rules(dsn, ledger)


# --- the server ------------------------------------------------------------------------------------------------------


def _engine(bare: Connection[Any]) -> Check:
    ((version, number, encoding),) = bare.execute(SQL.engine).fetchall()
    found = " ".join(version.split()[:2])
    if not version.startswith("PostgreSQL ") or any(mark in version for mark in OTHER_ENGINES):
        advice = "use Postgres itself: the log relies on its locks, snapshots and triggers"
        return Check("engine", Verdict.FAIL, f"{version.split(',')[0]} is not Postgres", advice)
    if number < VERSION_LEAST:
        return Check("engine", Verdict.FAIL, found, "upgrade to Postgres 16 or newer")
    if encoding != "UTF8":
        advice = "make a database with ENCODING 'UTF8' and TEMPLATE template0"
        return Check("engine", Verdict.FAIL, f"{found}, encoding {encoding}", advice)
    return Check("engine", Verdict.OK, found)


def _pool(bare: Connection[Any], dsn: str, ledger: str) -> Check:
    """A pooler that shares server processes between transactions shows by giving ours to another connection."""
    advice = (
        "give the ledger a connection straight to Postgres: sessions pin role and durability as they begin, and "
        f"a server needs no more than {SERVER_CONNECTIONS}"
    )
    ((idle,),) = bare.execute(SQL.backend).fetchall()
    try:
        with connect(dsn, ledger, "ledger-doctor") as other:
            ((busy, schema),) = other.execute(SQL.backend_and_schema).fetchall()
    except psycopg.OperationalError as error:
        said = " ".join(str(error).split())
        return Check("pool mode", Verdict.FAIL, f"sessions can't begin with settings of their own: {said}", advice)
    if idle == busy:
        return Check("pool mode", Verdict.FAIL, "a pooler shares server processes between sessions", advice)
    if schema != schema_of(ledger):
        return Check("pool mode", Verdict.FAIL, "a pooler drops the settings that sessions begin with", advice)
    return Check("pool mode", Verdict.OK, "a session keeps its server process and its settings")


def _clock(bare: Connection[Any], clock: Callable[[], datetime]) -> Check:
    before = clock()
    ((theirs,),) = bare.execute(SQL.clock).fetchall()
    off_s = (before + (clock() - before) / 2 - theirs).total_seconds()
    found = f"{abs(off_s):.3f} s {'ahead of' if off_s > 0 else 'behind'} the database's"
    if abs(off_s) < CLOCK_OFF_WARN_S:
        return Check("clock", Verdict.OK, found)
    verdict = Verdict.FAIL if abs(off_s) > CLOCK_OFF_MOST_S else Verdict.WARN
    advice = f"keep both machines at one time (chrony, NTP): beyond {CLOCK_OFF_MOST_S:.0f} s a server does not serve"
    return Check("clock", verdict, found, advice)


def _durability(bare: Connection[Any], *, allow_unsafe: bool) -> Iterator[Check]:
    names = ["fsync", "synchronous_commit", "full_page_writes", "data_checksums", "autovacuum"]
    settings = dict(bare.execute(SQL.settings, {"names": names}).fetchall())
    unsafe = {each.partition("=")[0] for each in unsafe_settings(bare)}
    for name in ("fsync", "synchronous_commit"):
        if name in unsafe:
            verdict = Verdict.WARN if allow_unsafe else Verdict.FAIL
            advice = f"ALTER SYSTEM SET {name} = on; SELECT pg_reload_conf(): a crash undoes acknowledged commits"
            yield Check(name, verdict, f"{name} = {settings[name]}", advice)
        else:
            yield Check(name, Verdict.OK, f"{name} = {settings[name]}")
    for name, advice in _WANTED_ON.items():
        is_on = settings[name] == "on"
        yield Check(name, Verdict.OK if is_on else Verdict.WARN, f"{name} = {settings[name]}", "" if is_on else advice)


_WANTED_ON: Final = {
    "full_page_writes": "turn it on unless the file system never tears a page (ZFS): a crash can damage tables",
    "data_checksums": "stop the server and run pg_checksums --enable: without them a bad disk is found late",
    "autovacuum": "turn it on: read models are updated all the time",
}


def _standby(bare: Connection[Any], *, is_embedded: bool) -> Check:
    ((is_standby, names),) = bare.execute(SQL.standby).fetchall()
    if is_standby:
        advice = "commands need the primary; as LEDGER_READ_DSN it is well placed"
        return Check("standby", Verdict.FAIL, "this server is a standby: it takes no commands", advice)
    if names:
        return Check("standby", Verdict.OK, f"commits wait for {names}")
    if is_embedded:
        return Check("standby", Verdict.OK, "none: an embedded Postgres is as safe as its disk")
    advice = "set synchronous_standby_names: without it the last commits go with the machine, though acknowledged"
    return Check("standby", Verdict.WARN, "commits wait for no other machine", advice)


def _connections(bare: Connection[Any]) -> Check:
    ((left,),) = bare.execute(SQL.connections).fetchall()
    found = f"{left} left; a server uses up to {SERVER_CONNECTIONS}"
    if left >= 2 * SERVER_CONNECTIONS:
        return Check("connections", Verdict.OK, found)
    verdict = Verdict.FAIL if left < SERVER_CONNECTIONS else Verdict.WARN
    return Check("connections", verdict, found, "raise max_connections, or end sessions that nobody needs")


def _login(bare: Connection[Any], ledger: str, *, is_embedded: bool) -> Check:
    ((login, is_superuser),) = bare.execute(SQL.login).fetchall()
    if not is_superuser:
        return Check("login", Verdict.OK, login)
    if is_embedded:
        return Check("login", Verdict.OK, f"{login}, the superuser of the embedded Postgres")
    names = ", ".join(role_name(ledger, role) for role in SERVER_ROLES)
    advice = f"let servers log in as one who is none: CREATE ROLE ledger_server LOGIN; GRANT {names} TO ledger_server;"
    return Check("login", Verdict.WARN, f"{login} is a superuser, for whom no rule of the database holds", advice)


# --- the ledger ------------------------------------------------------------------------------------------------------


def _schema(dsn: str, ledger: str) -> Check:
    try:
        with connect(dsn, ledger, "ledger-doctor") as connection:
            require_member(connection, ledger, SERVER_ROLES)
        require_migrated(dsn, ledger, Role.WRITER, callers=True)
        require_read_models(dsn, ledger, Role.AUDITOR)
    except (SchemaError, RoleMissing) as error:
        found, *advice = re.split("[:;] ", str(error), maxsplit=1)
        return Check("schema", Verdict.FAIL, found, advice[0] if advice else "see docs/operations.md")
    except psycopg.OperationalError as error:
        return Check("schema", Verdict.FAIL, " ".join(str(error).split()), "see the checks above")
    return Check("schema", Verdict.OK, f"ledger {ledger} is migrated, and the login may act as the roles of a server")


def _rules(dsn: str, ledger: str) -> Iterator[Check]:
    with connect(dsn, ledger, "ledger-doctor", Role.AUDITOR) as connection:
        for look in (_privileges, _owner, _triggers):
            yield look(connection, ledger)


def _privileges(connection: Connection[Any], ledger: str) -> Check:
    missing, surplus = differences(connection)
    if missing or surplus:
        found = "; ".join([*(f"{_words(each)} is missing" for each in sorted(missing)), *map(_words, sorted(surplus))])
        return Check("privileges", Verdict.FAIL, found, f"ledger migrate --ledger {ledger}")
    ours = {role_name(ledger, role) for role in Role}
    strangers = sorted(
        each
        for each in rights(connection)
        if each.role not in ours and each.relation in RIGHTS and each.privilege != "SELECT"
    )
    if strangers:
        advice = "; ".join(f"REVOKE {each.privilege} ON {each.relation} FROM {each.role}" for each in strangers)
        return Check("privileges", Verdict.FAIL, "; ".join(map(_words, strangers)), advice)
    return Check("privileges", Verdict.OK, "each role has its rights, and nobody else writes")


def _words(right: Right) -> str:
    return f"{right.role} {right.privilege} on {right.relation or 'the schema'}"


def _owner(connection: Connection[Any], ledger: str) -> Check:
    owner = role_name(ledger, Role.OWNER)
    owners = [name for (name,) in connection.execute(SQL.owners)]
    if owners != [owner]:
        return Check(
            "owner", Verdict.FAIL, f"tables belong to {', '.join(owners)}", f"ledger migrate --ledger {ledger}"
        )
    names = [role_name(ledger, role) for role in Role]
    if logins := [name for (name,) in connection.execute(SQL.role_logins, {"names": names})]:
        advice = "; ".join(f"ALTER ROLE {name} NOLOGIN" for name in logins)
        return Check("owner", Verdict.FAIL, f"somebody can log in as {', '.join(logins)}", advice)
    return Check("owner", Verdict.OK, f"all belongs to {owner}, as whom nobody logs in")


def _triggers(connection: Connection[Any], _ledger: str) -> Check:
    there = {Guard(*guard): fires for *guard, fires in connection.execute(SQL.guards)}
    off = sorted(guard for guard in GUARDS & there.keys() if not there[guard])
    changed = sorted(GUARDS - there.keys())
    if not off and not changed:
        return Check("triggers", Verdict.OK, "what is recorded can't be changed")
    found, statements = [], [f"ALTER TABLE {guard.table} ENABLE TRIGGER {guard.trigger}" for guard in off]
    if off:
        found.append(f"off: {_names(off)}")
    if changed:
        found.append(f"gone, or not what the migrations made: {_names(changed)}")
        made = sorted({guard.trigger for guard in changed} | {f"{guard.function}()" for guard in changed})
        statements.append(f"what ledger/sql has last for {', '.join(made)}, as CREATE OR REPLACE")
    advice = "find out who did it, run `ledger audit verify`, then: " + "; ".join(statements)
    return Check("triggers", Verdict.FAIL, "; ".join(found), advice)


def _names(guards: Iterable[Guard]) -> str:
    return ", ".join(f"{guard.trigger} on {guard.table}" for guard in guards)
