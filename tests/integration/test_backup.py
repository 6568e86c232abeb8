"""Backups: what is restored is proven to be the same ledger, and what isn't is not left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, Final

import psutil
import psycopg
import pytest
from checks import eventually, read_log
from psycopg.conninfo import make_conninfo
from read_side import History, catch_up
from test_migrations import dumped

from ledger import backup
from ledger.audit.keys import KeyFiles
from ledger.audit.signer import Signer
from ledger.audit.verify import verify
from ledger.backup import (
    DUMP,
    MANIFEST,
    CannotBackUp,
    CannotRestore,
    NotTheSame,
    back_up,
    read_manifest,
    restore,
)
from ledger.domain.commands import OpenAccount
from ledger.embedded import EmbeddedPostgres
from ledger.migrations import SchemaError, migrate, migrations, require_migrated
from ledger.postgres import Role, connect
from ledger.postgres_programs import ProgramFailed, program
from ledger.roles import SERVER_ROLES
from projections import rebuild
from projections.follower import Follower
from projections.read_models import create_tables
from projections.rebuild import Rebuild, RebuildImpossible


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Another server, which has no ledgers."""
    with EmbeddedPostgres(tmp_path_factory.mktemp("elsewhere")) as server:
        yield server.dsn


@pytest.fixture
def lived(dsn: str, ledger: str, history: History, follower: Follower, tmp_path: Path) -> str:
    """A ledger with a history, its read models, and a signed head."""
    history.live(Random(7), 200)
    history.write()
    catch_up(follower)
    files = KeyFiles(tmp_path / "tree.key", f"ledger/{ledger}")
    files.make()
    signer = Signer(dsn, ledger, files)
    signer.catch_up()
    signer.stop()
    return ledger


def test_what_is_restored_is_the_same_ledger(dsn: str, lived: str, elsewhere: str, tmp_path: Path) -> None:
    """Log, read models, signed heads, schema, owners and rights; servers may start on it, and verify finds it sound."""
    made = back_up(dsn, lived, tmp_path / "backup")
    assert restore(elsewhere, tmp_path / "backup") == made == read_manifest(tmp_path / "backup")
    assert read_log(elsewhere, lived) == read_log(dsn, lived)
    assert made.position == len(read_log(dsn, lived)) > 200
    assert made.newest_head
    # A restored constraint is the same in fewer parentheses.
    assert unbracketed(dumped(elsewhere, lived)) == unbracketed(dumped(dsn, lived))
    require_migrated(elsewhere, lived, *SERVER_ROLES)
    with connect(elsewhere, lived, "test") as connection:
        known = "SELECT reltuples FROM pg_class WHERE oid = 'events'::regclass"
        assert connection.execute(known).fetchone() == (made.position,)
    report = verify(elsewhere, lived, key=None, kept=[], read_models=True, progress=lambda *_: None)
    assert report.is_sound, report.lines()


def test_a_backup_is_of_one_moment_while_others_write(
    dsn: str, ledger: str, serve: Callable[..., object], elsewhere: str, tmp_path: Path
) -> None:
    """What was committed before it is in it, and its proof fits whatever came after."""
    desk = serve()
    with connect(dsn, ledger, "test") as connection:
        create_tables(connection)
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            desk.do(OpenAccount(account_id=f"a{number}", currency_code="EUR"))  # type: ignore[attr-defined]

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(3):
            before = len(read_log(dsn, ledger))
            made = back_up(dsn, ledger, tmp_path / f"backup-{number}")
            assert before <= made.position <= len(read_log(dsn, ledger))
    finally:
        stop.set()
        writer.join()
    restored = restore(elsewhere, tmp_path / "backup-2")
    assert len(read_log(elsewhere, ledger)) == restored.position


def test_a_rebuild_does_not_take_the_tables_away_from_a_backup(
    dsn: str, lived: str, elsewhere: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the log and the dump: pg_dump sees the tables of then, and would find them gone."""
    monkeypatch.setattr(rebuild, "_SWAP_TRIES", 1)
    dump = backup._dump

    def dump_after_a_rebuild(*arguments: Any) -> None:
        with Rebuild(dsn, lived) as building, suppress(RebuildImpossible):
            building.swap()
        dump(*arguments)

    monkeypatch.setattr(backup, "_dump", dump_after_a_rebuild)
    back_up(dsn, lived, tmp_path / "backup")
    restore(elsewhere, tmp_path / "backup")
    assert verify(elsewhere, lived).is_sound


def test_nothing_is_restored_over_a_ledger(dsn: str, lived: str, tmp_path: Path) -> None:
    """Not over the one that it is a backup of, either."""
    back_up(dsn, lived, tmp_path / "backup")
    before = read_log(dsn, lived)
    with pytest.raises(CannotRestore, match="already"):
        restore(dsn, tmp_path / "backup")
    assert read_log(dsn, lived) == before


def test_no_backup_takes_the_place_of_another_and_none_is_left_half_made(
    dsn: str, lived: str, session: psycopg.Connection[object], tmp_path: Path
) -> None:
    """A folder is a backup or it isn't there."""
    back_up(dsn, lived, tmp_path / "backup")
    there = sorted(tmp_path.iterdir())
    with pytest.raises(CannotBackUp, match="already"):
        back_up(dsn, lived, tmp_path / "backup")
    thief = "SELECT 'account/thief', 1, max(position) + 1, 'X', now(), '' FROM events"
    session.execute(f"INSERT INTO events {thief}".encode())
    with pytest.raises(CannotBackUp, match="account/thief"):
        back_up(dsn, lived, tmp_path / "second")
    assert sorted(tmp_path.iterdir()) == there


@pytest.mark.parametrize("name", [DUMP, MANIFEST])
def test_a_backup_that_lacks_a_file_or_was_damaged_is_not_restored(
    name: str, dsn: str, lived: str, elsewhere: str, tmp_path: Path
) -> None:
    """It is found before anything is done."""
    back_up(dsn, lived, tmp_path / "backup")
    file = tmp_path / "backup" / name
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"\0" + whole[1:]):
        file.write_bytes(damaged)
        with pytest.raises(CannotRestore, match=name):
            restore(elsewhere, tmp_path / "backup")
    file.unlink()
    with pytest.raises(CannotRestore, match="is no backup"):
        restore(elsewhere, tmp_path / "backup")
    assert not schema_there(elsewhere, lived)


@pytest.mark.parametrize(
    ("field", "value"), [("position", 1), ("digest", "ledger/digest/1 1 0"), ("root", "00"), ("newest_head", "another")]
)
def test_what_does_not_come_to_what_the_manifest_says_is_removed_again(
    field: str, value: object, dsn: str, lived: str, elsewhere: str, tmp_path: Path
) -> None:
    """Whichever of the proofs fails."""
    back_up(dsn, lived, tmp_path / "backup")
    manifest = tmp_path / "backup" / MANIFEST
    assert field in json.loads(manifest.read_text())
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {field: value}))
    with pytest.raises(NotTheSame, match=field):
        restore(elsewhere, tmp_path / "backup")
    assert not schema_there(elsewhere, lived)


def test_a_manifest_can_not_name_another_schema_than_a_ledgers(
    dsn: str, lived: str, elsewhere: str, tmp_path: Path
) -> None:
    """Whatever stands in it."""
    back_up(dsn, lived, tmp_path / "backup")
    manifest = tmp_path / "backup" / MANIFEST
    for name in ("Main", "x; DROP SCHEMA y", "a" * 42, ""):
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"ledger": name}))
        with pytest.raises(CannotRestore, match="not a manifest"):
            restore(elsewhere, tmp_path / "backup")


def test_a_backup_of_a_newer_postgres_is_not_tried_on_an_older(
    dsn: str, lived: str, elsewhere: str, tmp_path: Path
) -> None:
    """What pg_dump writes for one version the one before may not understand."""
    back_up(dsn, lived, tmp_path / "backup")
    manifest = tmp_path / "backup" / MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"pg_dump": 99}))
    with pytest.raises(CannotRestore, match="pg_dump 99"):
        restore(elsewhere, tmp_path / "backup")


def test_a_backup_of_a_newer_release_is_not_restored(
    dsn: str, lived: str, session: psycopg.Connection[Any], elsewhere: str, tmp_path: Path
) -> None:
    """Nobody could serve it here, and it would be in the way of the release that can."""
    session.execute("INSERT INTO migrations (number, name, checksum) VALUES (9999, 'of_tomorrow', 'x')")
    back_up(dsn, lived, tmp_path / "backup")
    with pytest.raises(CannotRestore, match=f"at migration 9999, and this one knows {len(migrations())}"):
        restore(elsewhere, tmp_path / "backup")
    assert not schema_there(elsewhere, lived)


def test_another_log_under_the_same_manifest_is_found_out(
    dsn: str, lived: str, session: psycopg.Connection[object], elsewhere: str, tmp_path: Path
) -> None:
    """One byte of one event: the state is the same, the root of the tree is not."""
    honest = back_up(dsn, lived, tmp_path / "honest")
    session.execute("SET session_replication_role = replica")
    session.execute("UPDATE events SET state = state || ' '::bytea WHERE position = 1")
    forged = back_up(dsn, lived, tmp_path / "forged")
    assert (forged.digest, forged.position) == (honest.digest, honest.position)
    told = honest.model_copy(update={"dump_sha256": forged.dump_sha256, "dump_bytes": forged.dump_bytes})
    (tmp_path / "forged" / MANIFEST).write_text(told.model_dump_json())
    with pytest.raises(NotTheSame, match="root is"):
        restore(elsewhere, tmp_path / "forged")
    assert not schema_there(elsewhere, lived)


def test_until_it_is_proven_nobody_serves_it(dsn: str, lived: str, elsewhere: str, tmp_path: Path) -> None:
    """A server that starts meanwhile is told that the ledger is not migrated."""
    back_up(dsn, lived, tmp_path / "backup")
    said: list[str] = []

    def look(what: str, done: int, total: int) -> None:
        with pytest.raises(SchemaError) as refused:
            require_migrated(elsewhere, lived, Role.AUDITOR)
        said.append(str(refused.value))

    restore(elsewhere, tmp_path / "backup", look)
    assert said
    assert all("is not migrated" in each for each in said)
    require_migrated(elsewhere, lived, Role.AUDITOR)


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Begin a command; it ends with the test."""
    begun: list[subprocess.Popen[str]] = []

    def run(*command: str, **variables: str) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LEDGER_")} | variables
        begun.append(
            subprocess.Popen(
                [sys.executable, "-m", "ledger.cli", *command],
                cwd=tmp_path,
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return begun[-1]

    yield run
    for each in begun:
        each.kill()
        each.communicate()


def programs(name: str, of: Path) -> list[str]:
    """The command lines of the programs of that name that work in a folder."""
    running = (each.info["cmdline"] or [] for each in psutil.process_iter(["cmdline"]))
    return [" ".join(each) for each in running if each and Path(each[0]).name == name and str(of) in " ".join(each)]


def test_a_backup_that_is_told_to_end_leaves_nothing(
    dsn: str, lived: str, begin: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """Neither files nor a pg_dump that goes on without it: as a timer or a container ends it."""
    there = sorted(tmp_path.iterdir())
    with connect(dsn, lived, "test") as other, other.transaction():
        other.execute("LOCK TABLE tree_heads IN ACCESS EXCLUSIVE MODE")
        process = begin("backup", str(tmp_path / "backup"), "--dsn", dsn, "--ledger", lived)
        eventually(lambda: programs("pg_dump", tmp_path))
        process.terminate()
        assert process.communicate(timeout=30)[1] == "ledger: stopped; nothing was written\n"
        assert process.returncode == 1
        assert not programs("pg_dump", tmp_path)
    assert sorted(tmp_path.iterdir()) == there


def test_a_restore_that_is_told_to_end_leaves_nothing(
    dsn: str, lived: str, elsewhere: str, begin: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """A pg_restore that went on without it would restore what nobody looks at any more."""
    back_up(dsn, lived, tmp_path / "backup")
    with psycopg.connect(elsewhere) as other:
        other.execute(f"CREATE SCHEMA ledger_{lived}".encode())  # Until that is undone, pg_restore waits.
        process = begin("restore", str(tmp_path / "backup"), "--dsn", elsewhere)
        eventually(lambda: programs("pg_restore", tmp_path))
        process.terminate()
        assert process.communicate(timeout=30)[1] == "ledger: stopped; what was restored by then was removed again\n"
        assert process.returncode == 1
        assert not programs("pg_restore", tmp_path)
        other.rollback()
    at_work = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pg_restore'"
    with psycopg.connect(elsewhere, autocommit=True) as other:
        eventually(lambda: other.execute(at_work).fetchone() == (0,))
    assert not schema_there(elsewhere, lived)


def test_a_drill_that_is_told_to_end_leaves_nothing(
    dsn: str, lived: str, begin: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """Its Postgres is a copy of all that there is."""
    back_up(dsn, lived, tmp_path / "backup")
    (scratch := tmp_path / "scratch").mkdir()
    process = begin("restore", str(tmp_path / "backup"), "--drill", TMPDIR=str(scratch))
    eventually(lambda: list(scratch.glob("ledger-drill-*/postgres/postmaster.pid")))
    process.terminate()
    process.communicate(timeout=30)
    assert not list(scratch.iterdir())


KILLED: Final = """
import os, pathlib, sys
from ledger.backup import restore
restore(sys.argv[1], pathlib.Path(sys.argv[2]), lambda *_: os._exit(9))
"""


def test_after_a_restore_that_was_killed_it_is_said_how_to_restore_again(
    dsn: str, lived: str, elsewhere: str, tmp_path: Path
) -> None:
    """By a second one, and by a migration, which would make an empty ledger: the same statement, which helps."""
    back_up(dsn, lived, tmp_path / "backup")
    ended = subprocess.run([sys.executable, "-c", KILLED, elsewhere, str(tmp_path / "backup")], check=False, timeout=60)
    assert ended.returncode == 9
    drop = f"DROP SCHEMA ledger_{lived} CASCADE"
    with pytest.raises(CannotRestore, match=f"`{drop}`, then restore again"):
        restore(elsewhere, tmp_path / "backup")
    with pytest.raises(SchemaError, match=f"`{drop}`, then restore again"):
        migrate(elsewhere, lived)
    with psycopg.connect(elsewhere) as connection:
        connection.execute(drop.encode())
    restore(elsewhere, tmp_path / "backup")
    require_migrated(elsewhere, lived, *SERVER_ROLES)


def test_nobody_is_told_to_drop_a_ledger_that_he_may_not_look_at(dsn: str, lived: str, tmp_path: Path) -> None:
    """To a login without rights it has no record of migrations, and may be as well as any."""
    back_up(dsn, lived, tmp_path / "backup")
    login = f"{lived}_stranger"
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {login} LOGIN PASSWORD 'let-in'".encode())
        try:
            with pytest.raises(CannotRestore, match="there is a ledger"):
                restore(make_conninfo(dsn, user=login, password="let-in"), tmp_path / "backup")
        finally:
            connection.execute(f"DROP ROLE {login}".encode())


def test_an_empty_ledger_can_be_backed_up(dsn: str, ledger: str, elsewhere: str, tmp_path: Path) -> None:
    """It is a ledger, too."""
    made = back_up(dsn, ledger, tmp_path / "backup")
    assert (made.position, made.newest_head) == (0, None)
    assert restore(elsewhere, tmp_path / "backup") == made


def test_a_program_older_than_the_server_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The oldest that fits is; and without any it is said what to install."""
    old = tmp_path / "pg_dump"
    old.write_text("#!/bin/sh\necho 'pg_dump (PostgreSQL) 15.3'\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert program("pg_dump", 15) == (15, old)
    assert program("pg_dump", 16).major >= 16
    with pytest.raises(ProgramFailed, match="install the client programs of Postgres 99"):
        program("pg_dump", 99)


def unbracketed(text: str) -> str:
    return text.replace("(", "").replace(")", "")


def schema_there(dsn: str, ledger: str) -> bool:
    with psycopg.connect(dsn) as connection:
        row = connection.execute("SELECT to_regnamespace(%s) IS NOT NULL", [f"ledger_{ledger}"]).fetchone()
    return bool(row and row[0])
