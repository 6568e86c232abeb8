"""Exports: the whole history as it was signed, read at one moment, the same bytes every time, and verified."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any, Final

import psycopg
import pytest
from read_side import History
from test_verify_bundle import PROGRAM, verifier

from ledger.audit import console
from ledger.audit.export import CannotExport, FileInTheWay, HeadNotSigned, LogHasGap, export
from ledger.audit.keys import KeyFiles
from ledger.audit.note import PublicKey
from ledger.audit.restore import accept_restore
from ledger.audit.signer import Signer
from ledger.postgres import connect

NOW: Final = datetime(2026, 11, 25, 12, tzinfo=UTC)


class Signed:
    """A history that is written to a real log, and signed with a key of its own."""

    def __init__(self, dsn: str, ledger: str, history: History, folder: Path) -> None:
        self.dsn, self.ledger, self.history = dsn, ledger, history
        self.files = KeyFiles(folder / "tree.key", f"ledger/{ledger}")
        self.first_key = self.files.make().public
        self._to = folder / "bundles"
        self._to.mkdir()
        self._random = Random(20261125)
        self._exported = 0

    def live(self, commands: int = 40) -> int:
        """Some life, written and signed; the size of the head."""
        self.history.live(self._random, commands)
        self.history.write()
        self.sign()
        return self.history.head

    def sign(self) -> None:
        signer = Signer(self.dsn, self.ledger, self.files)
        try:
            signer.catch_up()
        finally:
            signer.stop()

    def export(self, **settings: Any) -> Path:
        """A new bundle."""
        self._exported += 1
        to = self._to / f"{self._exported}.bundle"
        export(self.dsn, self.ledger, to, **{"progress": lambda *_: None, **settings})
        assert {*self._to.iterdir()} == {*self._to.glob("*.bundle")}, "something else was left behind"
        return to

    @property
    def left(self) -> list[str]:
        return [each.name for each in self._to.iterdir()]


@pytest.fixture
def signed(dsn: str, ledger: str, history: History, tmp_path: Path) -> Signed:
    return Signed(dsn, ledger, history, tmp_path)


@pytest.fixture
def db(dsn: str, ledger: str) -> Iterator[psycopg.Connection[Any]]:
    """A superuser whom no trigger stops."""
    with connect(dsn, ledger, "test") as connection:
        connection.execute("SET session_replication_role = replica")
        yield connection


def verified(file: Path, trusted: PublicKey) -> Any:
    """What the verifier saw, which has to be right."""
    with file.open("rb") as opened:
        seen = verifier.Verification(verifier.Bundle(opened), verifier.Key.from_text(str(trusted)), None, 0)
        try:
            seen.run()
        except verifier.Wrong as error:
            pytest.fail(f"{seen.where()}: {error}")
    return seen


def wrong(file: Path, trusted: PublicKey) -> str:
    with file.open("rb") as opened:
        seen = verifier.Verification(verifier.Bundle(opened), verifier.Key.from_text(str(trusted)), None, 0)
        with pytest.raises(verifier.Wrong) as raised:
            seen.run()
    return f"{seen.where()}: {raised.value}"


def test_what_is_exported_is_verified(signed: Signed, db: psycopg.Connection[Any]) -> None:
    """Every event and every head of a long life, by a program that shares no line with ours."""
    sizes = [signed.live(150) for _ in range(5)]
    seen = verified(signed.export(), signed.first_key)
    assert (seen.tree.size, seen.heads) == (sizes[-1], 5)
    assert seen.ledger == signed.ledger
    ((root,),) = db.execute("SELECT root_hash FROM tree_heads WHERE number = 5").fetchall()
    assert seen.tree.root() == root


def test_the_same_history_is_the_same_bytes(signed: Signed) -> None:
    """Today or tomorrow, whatever came later, with heads and keys that came later too."""
    signed.live()
    size = signed.live()
    first = signed.export().read_bytes()
    assert signed.export().read_bytes() == first
    signed.files.prepare_next()
    signed.live()
    assert signed.export(tree_size=size).read_bytes() == first
    assert signed.export().read_bytes() != first


def test_it_is_read_at_one_moment(signed: Signed) -> None:
    """What is recorded and signed while it is exported is of the next bundle."""
    size = signed.live(100)
    file = signed.export(progress=lambda *_: signed.live(10))
    assert signed.history.head > size
    assert verified(file, signed.first_key).tree.size == size


def test_it_goes_up_to_the_newest_head(signed: Signed) -> None:
    """And not to what is not signed yet."""
    size = signed.live()
    signed.history.live(Random(1), 5)
    signed.history.write()
    assert verified(signed.export(), signed.first_key).tree.size == size


def test_it_goes_up_to_any_head_that_was_signed(signed: Signed) -> None:
    """Whichever an auditor asks for."""
    sizes = [signed.live(20) for _ in range(3)]
    for number, size in enumerate(sizes, 1):
        seen = verified(signed.export(tree_size=size), signed.first_key)
        assert (seen.tree.size, seen.heads) == (size, number)
    with pytest.raises(HeadNotSigned, match=f"no head was signed of size {sizes[1] - 1}"):
        signed.export(tree_size=sizes[1] - 1)


def test_a_ledger_without_a_head_has_no_bundle(signed: Signed) -> None:
    """There is nothing yet that it could be checked against."""
    with pytest.raises(CannotExport, match="nothing was signed yet"):
        signed.export()
    assert signed.left == []


def test_an_empty_ledger_that_was_signed_has_a_bundle(signed: Signed, db: psycopg.Connection[Any]) -> None:
    """Of nothing, by a head of size 0, such as a new key is introduced with."""
    signed.files.prepare_next()
    signed.sign()
    seen = verified(signed.export(), signed.first_key)
    assert (seen.tree.size, seen.heads, len(seen.keys)) == (0, 1, 2)


def test_all_keys_come_along(signed: Signed) -> None:
    """In their order, with the heads that introduced them: it takes one of them to trust them all."""
    signed.live()
    keys = [signed.first_key]
    for _ in range(2):
        keys.append(signed.files.prepare_next().public)
        signed.sign()
        signed.live()
    for key in keys:
        assert [each.text for each in verified(signed.export(), key).keys] == [str(each) for each in keys]


def test_a_break_comes_along(signed: Signed, db: psycopg.Connection[Any]) -> None:
    """After a restore from an older copy the bundle says so, openly, and where."""
    size, older = signed.live(), deepcopy(signed.history)
    db.execute("CREATE TEMPORARY TABLE older_tiles AS SELECT * FROM tree_tiles")
    lost = signed.live()
    db.execute("DELETE FROM events WHERE position > %s", [size])
    db.execute("DELETE FROM tree_heads WHERE number > 1; DELETE FROM tree_tiles")
    db.execute("INSERT INTO tree_tiles SELECT * FROM older_tiles")
    accept_restore(signed.dsn, signed.ledger, signed.files, "the disk was lost", NOW)
    signed.history = older
    signed.live(60)

    told = f"from {lost:,} to {size:,} events, at '2026-11-25T12:00:00.000000Z': 'the disk was lost'"
    assert verified(signed.export(), signed.first_key).breaks == [told]
    assert verified(signed.export(tree_size=size), signed.first_key).breaks == []


# --- a database that somebody had a hand in --------------------------------------------------------------------------


def test_an_event_that_was_changed_in_the_database_is_found(signed: Signed, db: psycopg.Connection[Any]) -> None:
    """It is exported as it stands there, and the verifier says where."""
    signed.live()
    (position,) = db.execute("SELECT min(position) FROM events WHERE topic = 'FundsCredited'").fetchone() or (0,)
    change = "UPDATE events SET state = replace(encode(state, 'escape'), %s, %s)::bytea WHERE position = %s"
    db.execute(change, ['"amount":1000', '"amount":1001', position])
    assert f", position {position}: 'account/alice' is said to be" in wrong(signed.export(), signed.first_key)


def test_an_event_that_changed_no_sum_is_found_by_the_head(signed: Signed, db: psycopg.Connection[Any]) -> None:
    """Only the tree can tell."""
    size = signed.live()
    db.execute("UPDATE events SET state = replace(encode(state, 'escape'), '\"test\"', '\"tset\"')::bytea")
    assert f"the head of {size} events is not that of the {size} before it" in wrong(signed.export(), signed.first_key)


def test_a_log_with_a_gap_has_no_bundle(signed: Signed, db: psycopg.Connection[Any]) -> None:
    """Be it in the middle or at the end; and nothing is left that looks like one."""
    size = signed.live()
    db.execute("DELETE FROM events WHERE position = %s", [size])
    with pytest.raises(LogHasGap, match=f"the log ends at position {size - 1}, and had {size} events"):
        signed.export()
    db.execute("DELETE FROM events WHERE position = 7")
    with pytest.raises(LogHasGap, match="the log has no event at position 7"):
        signed.export()
    assert signed.left == []


# --- the file --------------------------------------------------------------------------------------------------------


def test_a_file_that_is_there_is_replaced_by_force_only(signed: Signed, tmp_path: Path) -> None:
    """And only by what is complete."""
    signed.live()
    to = tmp_path / "home.bundle"
    to.write_text("the last one")
    arguments = signed.dsn, signed.ledger, to
    with pytest.raises(FileInTheWay, match="is there already; --force replaces it"):
        export(*arguments, progress=lambda *_: None)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(*arguments, force=True, progress=interrupted)
    assert to.read_text() == "the last one"
    assert sorted(each.name for each in tmp_path.glob("*home*")) == ["home.bundle"]

    export(*arguments, force=True, progress=lambda *_: None)
    verified(to, signed.first_key)
    with pytest.raises(CannotExport, match=r"can't write .*/missing/home: No such file"):
        export(*arguments[:2], tmp_path / "missing" / "home", progress=lambda *_: None)


@pytest.mark.parametrize("name", ["", ".", "..", "folder", "/"])
def test_a_folder_is_not_a_place_for_a_bundle(
    name: str, signed: Signed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by force either. It is said before the log is read, and nothing is written."""
    signed.live()
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    there = sorted(tmp_path.iterdir())
    told: list[object] = []
    for force in (False, True):
        with pytest.raises(FileInTheWay, match="is a folder: name the file"):
            export(signed.dsn, signed.ledger, Path(name), force=force, progress=lambda *now: told.append(now))
    assert not told
    assert sorted(tmp_path.iterdir()) == there


def test_progress_is_told(signed: Signed) -> None:
    """Up to the end, in events."""
    size = signed.live()
    told: list[tuple[str, int, int]] = []
    signed.export(progress=lambda *progress: told.append(progress))
    assert told[-1] == ("events", size, size)


def test_the_package_carries_the_very_program_of_the_checkout() -> None:
    """There is one copy of it: what `ledger audit check` runs is what auditors read."""
    assert console.PROGRAM.is_symlink()
    assert console.PROGRAM.resolve() == PROGRAM
