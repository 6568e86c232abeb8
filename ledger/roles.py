"""The Postgres roles of a ledger: who may do what with its tables, made and granted whenever it is migrated.

Nobody logs in as one of them. A login is a member of those that it needs, and each session of ours acts as just one.
No role may change or remove an event, the owner included: triggers refuse it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import Connection, sql

from ledger.postgres import Role, role_name, schema_of, sql_blocks

SQL: Final = sql_blocks("ledger.sql", "roles.sql")

VIEWS: Final = ("accounts_v1", "balances_v1", "payments_v1", "transfers_v1", "entries_v1", "events_v1")
READ_MODELS: Final = ("balances", "payments", "transfers", "transfer_accounts", "entries")

_READ: Final = frozenset({"SELECT"})
_ADD: Final = frozenset({"SELECT", "INSERT"})
_KEEP: Final = frozenset({"SELECT", "INSERT", "UPDATE"})
_MOVE: Final = frozenset({"SELECT", "UPDATE"})

RIGHTS: Final[Mapping[str, Mapping[Role, frozenset[str]]]] = {
    "events": {Role.WRITER: _ADD, Role.PROJECTOR: _READ, Role.SIGNER: _READ, Role.AUDITOR: _READ},
    # To lock its row takes the right to update it; a trigger refuses to really do that.
    "log_turn": {Role.WRITER: _MOVE, Role.AUDITOR: _READ},
    "migrations": dict.fromkeys((Role.WRITER, Role.PROJECTOR, Role.SIGNER, Role.AUDITOR), _READ),
    "tree_tiles": {Role.SIGNER: _KEEP, Role.AUDITOR: _READ},
    **{table: {Role.SIGNER: _ADD, Role.AUDITOR: _READ} for table in ("tree_heads", "tree_breaks", "tree_keys")},
    **{table: {Role.PROJECTOR: _KEEP, Role.AUDITOR: _READ} for table in READ_MODELS},
    "checkpoints": {Role.PROJECTOR: _MOVE, Role.AUDITOR: _READ},
    **{view: {Role.AUDITOR: _READ, Role.ANALYST: _READ} for view in VIEWS},
}
"""What each role may do with each table and view. The owner, whose they are, is not in it."""

SERVER_ROLES: Final = (Role.WRITER, Role.PROJECTOR, Role.SIGNER, Role.AUDITOR)
"""What the login of `ledger serve` has to be a member of."""


CALLERS: Final = "callers"
CALLERS_OWNER: Final = "callers_owner"
"""Whose the schema of tokens is: who manages them is a member."""


class RoleMissing(Exception):
    """A role is not there, or not the login's to act as. The text says which statement gives it."""


class Right(NamedTuple):
    """A role may do something with a relation of a schema, or with the schema itself if that is ''."""

    relation: str
    role: str
    privilege: str


def found(connection: Connection[Any], ledger: str) -> None:
    """Make a ledger's roles and schema where they are not there; act as its owner until the transaction ends.

    What a release without roles has left there becomes the owner's. Raises RoleMissing.
    """
    make_roles(connection, ledger)
    _found(connection, schema_of(ledger), role_name(ledger, Role.OWNER))


def found_callers(connection: Connection[Any]) -> None:
    """The same for the schema of tokens, which is one for all ledgers of a database; its role is there by then."""
    _found(connection, CALLERS, CALLERS_OWNER)


def grant_callers(connection: Connection[Any], ledger: str) -> None:
    """Let a ledger's writer read tokens: its server asks callers for them."""
    writer = role_name(ledger, Role.WRITER)
    if connection.execute(SQL.may_read_tokens, {"writer": writer}).fetchall() == [(True,)]:
        return
    for statement in (
        "GRANT USAGE ON SCHEMA callers TO {}",
        "GRANT SELECT ON callers.migrations, callers.tokens TO {}",
    ):
        connection.execute(sql.SQL(statement).format(sql.Identifier(writer)))


def _found(connection: Connection[Any], schema: str, owner: str) -> None:
    connection.execute(
        sql.SQL("CREATE SCHEMA IF NOT EXISTS {} AUTHORIZATION {}").format(sql.Identifier(schema), sql.Identifier(owner))
    )
    for (statement,) in connection.execute(SQL.not_owned, {"owner": owner, "schema": schema}).fetchall():
        connection.execute(statement)
    connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(owner)))


def act_as_owner(connection: Connection[Any]) -> None:
    """Act as the owner of the schema that is searched first, until the transaction ends."""
    owner = f"{_schema(connection)}_{Role.OWNER}"
    connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(owner)))


def grant(connection: Connection[Any]) -> None:
    """Give the roles of the schema that is searched first just their rights in it: more are taken away."""
    missing, surplus = differences(connection)
    schema = _schema(connection)
    statements = [_statement("GRANT {} ON {} TO {}", schema, each) for each in sorted(missing)]
    statements += [_statement("REVOKE {} ON {} FROM {}", schema, each) for each in sorted(surplus)]
    if statements:
        connection.execute(sql.SQL("; ").join(statements))
    if connection.execute(SQL.open_functions).fetchall():
        connection.execute(
            sql.SQL("REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA {} FROM PUBLIC").format(sql.Identifier(schema))
        )


def differences(connection: Connection[Any]) -> tuple[set[Right], set[Right]]:
    """The rights that the roles of the schema that is searched first should have and don't, and the other way round."""
    wanted, roles = _wanted(connection)
    granted = {right for right in rights(connection) if right.role in roles}
    return wanted - granted, granted - wanted


def absent(connection: Connection[Any]) -> list[str]:
    """Tables and views of a ledger that the schema that is searched first does not have."""
    there = {name for (name,) in connection.execute(SQL.relations)}
    return [name for name in RIGHTS if name not in there]


def rights(connection: Connection[Any]) -> set[Right]:
    """What anybody but its owner may do in the schema that is searched first."""
    return {Right(*row) for row in connection.execute(SQL.granted)}


def require_member(connection: Connection[Any], ledger: str, roles: Iterable[Role]) -> None:
    """Raise RoleMissing unless the login may act as each of the roles."""
    names = [role_name(ledger, role) for role in roles]
    there = {name for (name,) in connection.execute(SQL.existing, {"names": names})}
    if not_there := sorted(set(names) - there):
        raise RoleMissing(
            f"ledger {ledger!r} is not migrated: there is no role {not_there[0]}; run "
            f"`ledger migrate --ledger {ledger}` first"
        )
    if not_ours := [name for (name,) in connection.execute(SQL.not_ours, {"names": names})]:
        login = _login(connection).name
        raise RoleMissing(
            f"{login} may not act as {' and '.join(not_ours)}; let who migrates run: {_membership(not_ours, login)};"
        )


# --- making ----------------------------------------------------------------------------------------------------------


class _Login(NamedTuple):
    name: str
    database: str
    is_superuser: bool


def _login(connection: Connection[Any]) -> _Login:
    return _Login._make(connection.execute(SQL.login).fetchall()[0])


def make_roles(connection: Connection[Any], ledger: str) -> None:
    """Make those roles of a ledger that are missing, and the owner of tokens, with the login a member.

    Raises RoleMissing, with what somebody who may has to run, where the login may not.
    """
    statements = _still_to_run(connection, ledger)
    if not statements:
        return
    with suppress(psycopg.errors.InsufficientPrivilege), connection.transaction():
        for statement in statements:
            connection.execute(statement.encode())
    if statements := _still_to_run(connection, ledger):
        raise RoleMissing(
            f"{_login(connection).name} has no permission to make the roles of ledger {ledger!r}; let a superuser run, "
            f"then migrate again: {'; '.join(statements)};"
        )


def _still_to_run(connection: Connection[Any], ledger: str) -> list[str]:
    """The statements after which the roles are there, the login is a member, and the owner can make schemas."""
    names = [*(role_name(ledger, role) for role in Role), CALLERS_OWNER]
    owner = role_name(ledger, Role.OWNER)
    login = _login(connection)
    there = {name for (name,) in connection.execute(SQL.existing, {"names": names})}
    missing = [name for name in names if name not in there]
    not_ours = [name for (name,) in connection.execute(SQL.not_ours, {"names": names})]
    statements = [f'CREATE ROLE "{name}" NOLOGIN' for name in missing]
    if not_ours or (missing and not login.is_superuser):
        statements.append(_membership([*missing, *not_ours], login.name))
    if owner in missing or connection.execute(SQL.may_create, {"owner": owner}).fetchall() == [(False,)]:
        # A rebuild of the read models makes its tables in schemas beside.
        statements.append(f'GRANT CREATE ON DATABASE "{login.database}" TO "{owner}"')
    return statements


def _membership(names: Iterable[str], login: str) -> str:
    return f'GRANT {", ".join(names)} TO "{login}"'


# --- granting --------------------------------------------------------------------------------------------------------


def _schema(connection: Connection[Any]) -> str:
    ((schema,),) = connection.execute(SQL.schema).fetchall()
    return str(schema)


def _wanted(connection: Connection[Any]) -> tuple[set[Right], set[str]]:
    """The rights that there should be in what there is, and the roles that they are about."""
    schema = _schema(connection)
    roles: dict[Role, str] = {role: f"{schema}_{role}" for role in Role if role is not Role.OWNER}
    there = {name for (name,) in connection.execute(SQL.relations)}
    usage = {Right("", name, "USAGE") for name in roles.values()}
    return usage | {
        Right(relation, roles[role], privilege)
        for relation, by_role in RIGHTS.items()
        if relation in there
        for role, privileges in by_role.items()
        for privilege in privileges
    }, set(roles.values())


def _statement(form: str, schema: str, right: Right) -> sql.Composed:
    what = (
        sql.SQL("TABLE {}").format(sql.Identifier(schema, right.relation))
        if right.relation
        else sql.SQL("SCHEMA {}").format(sql.Identifier(schema))
    )
    return sql.SQL(form).format(sql.SQL(right.privilege), what, sql.Identifier(right.role))
