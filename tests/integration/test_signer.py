"""The signer: every head is of the log as it is, consistent with all before it; a log that is another is not signed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from threading import Thread
from typing import Any, Final

import psycopg
import pytest
from checks import eventually
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from read_side import History

from ledger.audit import signer as signing
from ledger.audit.heads import Trust
from ledger.audit.keys import KeyFiles, KeyUnusable
from ledger.audit.leaf import leaf_data
from ledger.audit.merkle import leaf_hash, root_of
from ledger.audit.note import Note, PublicKey, SigningKey, TreeHead, read_head
from ledger.audit.note import sign as sign_note
from ledger.audit.restore import NothingToAccept, accept_restore
from ledger.audit.signer import LogChanged, SignedMeanwhile, Signer, SigningRefused
from ledger.postgres import Role, connect

NOW: Final = datetime(2026, 11, 25, 12, tzinfo=UTC)


@pytest.fixture
def files(tmp_path: Path) -> KeyFiles:
    """Files with a new key."""
    files = KeyFiles(tmp_path / "tree.key", "ledger/test")
    files.make()
    return files


@pytest.fixture
def sign(dsn: str, ledger: str, files: KeyFiles) -> Iterator[Callable[[], Signer]]:
    """Sign what there is, by a signer that knows nothing of those before it."""
    signers: list[Signer] = []

    def once(of: KeyFiles = files) -> Signer:
        signers.append(Signer(dsn, ledger, of))
        signers[-1].catch_up()
        return signers[-1]

    yield once
    for each in signers:
        each.stop()


@pytest.fixture
def db(dsn: str, ledger: str) -> Iterator[psycopg.Connection[Any]]:
    """A superuser whom no trigger stops."""
    with connect(dsn, ledger, "test") as connection:
        connection.execute("SET session_replication_role = replica")
        yield connection


def heads(db: psycopg.Connection[Any]) -> list[tuple[int, bytes, str]]:
    rows = db.execute("SELECT tree_size, root_hash, note FROM tree_heads ORDER BY number").fetchall()
    return [(size, bytes(root), note) for size, root, note in rows]


def leaves_of(db: psycopg.Connection[Any]) -> list[bytes]:
    """Hashed here, by the words of docs/audit.md."""
    columns = "position, stream, version, topic, recorded_at, state"
    rows = db.execute(f"SELECT {columns} FROM events ORDER BY position".encode()).fetchall()
    return [leaf_hash(leaf_data(*row[:5], bytes(row[5]))) for row in rows]


def check_heads(db: psycopg.Connection[Any], keys: list[PublicKey]) -> list[TreeHead]:
    """Assert that every head is signed by the key of its time and is the root of the log at its size; return them."""
    leaves, found, trust = leaves_of(db), [], Trust(keys)
    for size, root, note in heads(db):
        head = read_head(note, keys)
        trust.follow(Note.parse(note), head)
        assert (head.size, head.root) == (size, root)
        assert root == root_of(leaves[:size]), f"the head of size {size} is of another log"
        found.append(head)
    return found


# --- what is signed --------------------------------------------------------------------------------------------------


def test_heads_are_of_the_log_as_it_grows(
    history: History, files: KeyFiles, sign: Callable[[], Signer], db: psycopg.Connection[Any]
) -> None:
    """Signed after each stretch by a signer that goes on from what is stored: every event kind, odd texts and all."""
    random = Random(3)
    for commands in (1, 0, 40, 1, 300, 2):
        history.live(random, commands)
        history.write()
        sign()
    found = check_heads(db, files.public_keys())
    assert [head.size for head in found][-1] == history.head
    assert len(found) >= 4
    assert files.last_head() == found[-1]


def test_nothing_new_is_nothing_to_sign(
    history: History, sign: Callable[[], Signer], db: psycopg.Connection[Any]
) -> None:
    """An empty log has no head; and a head is signed once."""
    sign()
    assert heads(db) == []
    history.write()
    sign()
    sign()
    assert len(heads(db)) == 1


def test_a_long_stretch_is_signed_on_the_way(
    history: History,
    files: KeyFiles,
    sign: Callable[[], Signer],
    db: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody waits for the end of a long catching up."""
    monkeypatch.setattr(signing, "BATCH_EVENTS", 100)
    monkeypatch.setattr(signing, "SIGN_EVERY_S", 0)
    history.live(Random(4), 300)
    history.write()
    sign()
    assert len(check_heads(db, files.public_keys())) >= 4


def test_the_database_and_this_program_hash_leaves_alike(db: psycopg.Connection[Any]) -> None:
    """The longest, the oldest and the oddest: SQL and Python make the same bytes of them."""
    rows = [
        (1, "account/a", 1, "AccountOpened", NOW, b"{}"),
        (2, "é", 2**62, "T", datetime(1, 1, 1, tzinfo=UTC), b""),
        (3, "x" * 200, 3, "ü", datetime(9999, 12, 31, 23, 59, 59, 999999, UTC), bytes(range(256)) * 1_000),
        (4, "", 4, "", datetime(1969, 12, 31, 23, 59, 59, 999999, UTC), b"\0"),
    ]
    with db.cursor() as cursor:
        insert = "INSERT INTO events (position, stream, version, topic, recorded_at, state) VALUES (%s,%s,%s,%s,%s,%s)"
        cursor.executemany(insert, rows)
    (found,) = db.execute(signing.SQL.leaves, {"after": 0, "limit": 10}).fetchall()
    assert bytes(found[3]) == b"".join(leaf_hash(leaf_data(*row)) for row in rows)


def test_several_signers_with_one_key_sign_one_chain(
    dsn: str, ledger: str, history: History, files: KeyFiles, db: psycopg.Connection[Any], tmp_path: Path
) -> None:
    """On one machine and on another with a copy of the key: every head once, each consistent with those before."""
    elsewhere = KeyFiles(tmp_path / "copy" / "tree.key", files.name)
    shutil.copytree(files.path.parent, elsewhere.path.parent, ignore=lambda *_: {"copy"})
    signers = [Signer(dsn, ledger, each) for each in (files, files, elsewhere)]
    for each in signers:
        each.start()
    random = Random(5)
    for _ in range(20):
        history.live(random, 15)
        history.write()
        eventually(lambda: bool(heads(db)) and heads(db)[-1][0] == history.head)
    for each in signers:
        each.stop()
    assert {each.failure for each in signers} == {None}
    sizes = [head.size for head in check_heads(db, files.public_keys())]
    assert sizes == sorted(set(sizes))


# --- what is not signed ----------------------------------------------------------------------------------------------


def grow(history: History, commands: int = 30, seed: int = 6) -> int:
    history.live(Random(seed), commands)
    return history.write()


CUT: Final = "DELETE FROM events WHERE position > 20"
CHANGED: Final = "UPDATE events SET state = state || ' '::bytea WHERE position = 7"
OLDER_COPY: Final = (
    "DELETE FROM events WHERE position > 20; DELETE FROM tree_heads; DELETE FROM tree_tiles;"
    "DELETE FROM checkpoints WHERE name <> 'read_models'"
)


def test_a_log_that_was_cut_is_not_signed(
    history: History, files: KeyFiles, sign: Callable[[], Signer], db: psycopg.Connection[Any]
) -> None:
    """Its end is missing: the key is not lent to what is left."""
    grow(history)
    sign()
    before = heads(db)
    db.execute(CUT)
    db.execute("DELETE FROM tree_heads; DELETE FROM tree_tiles")
    with pytest.raises(LogChanged, match="the log ends at position 20, but a head of size"):
        sign()
    assert heads(db) == []
    assert files.last_head() == read_head(before[-1][2], files.public_keys())


def test_a_log_that_was_cut_below_its_heads_is_not_accepted(
    dsn: str, ledger: str, history: History, files: KeyFiles, sign: Callable[[], Signer], db: psycopg.Connection[Any]
) -> None:
    """It is no older copy. A break would be recorded for ever, and nothing be signed all the same."""
    grow(history)
    sign()
    before = files.last_head()
    db.execute(CUT)
    with pytest.raises(
        SigningRefused, match=f"ends at position 20, and the newest head beside it is of size {before.size}"
    ):
        accept_restore(dsn, ledger, files, "the disk failed", NOW)
    assert db.execute("SELECT FROM tree_breaks").fetchall() == []
    assert files.last_head() == before


def test_an_older_copy_that_was_written_on_is_not_signed(
    history: History, sign: Callable[[], Signer], db: psycopg.Connection[Any]
) -> None:
    """It is longer than what was signed, and another."""
    head = grow(history)
    sign()
    db.execute(OLDER_COPY)
    insert = """
        INSERT INTO events (stream, version, position, topic, state)
        SELECT 'account/forged', n, 20 + n, 'AccountFrozen', '{}' FROM generate_series(1, %s) AS n
    """
    db.execute(insert, [head])
    with pytest.raises(LogChanged, match="are not those that were signed"):
        sign()
    assert heads(db) == []


def test_an_older_copy_that_nothing_was_added_to_is_not_taken_for_the_log(
    dsn: str, ledger: str, history: History, files: KeyFiles, sign: Callable[[], Signer], db: psycopg.Connection[Any]
) -> None:
    """It ends at the newest head that it has: nothing is new, and yet something is missing. It is accepted at once."""
    size = grow(history)
    sign()
    db.execute("CREATE TEMPORARY TABLE older_tiles AS SELECT * FROM tree_tiles")
    grow(history, seed=7)
    sign()
    db.execute("DELETE FROM events WHERE position > %s", [size])
    db.execute("DELETE FROM tree_heads WHERE number > 1; DELETE FROM tree_tiles")
    db.execute("INSERT INTO tree_tiles SELECT * FROM older_tiles")
    with pytest.raises(LogChanged, match=f"the log ends at position {size}, but a head of size {history.head}"):
        sign()
    accept_restore(dsn, ledger, files, "the disk failed", NOW)
    sign()


def test_a_log_with_a_gap_is_not_signed(
    history: History, sign: Callable[[], Signer], db: psycopg.Connection[Any]
) -> None:
    """An event that is missing in the middle of what is new."""
    head = grow(history)
    db.execute("DELETE FROM events WHERE position = %s", [head - 3])
    with pytest.raises(SigningRefused, match="gap"):
        sign()


def test_a_tree_whose_hashes_were_changed_is_not_gone_on_with(
    history: History, sign: Callable[[], Signer], db: psycopg.Connection[Any]
) -> None:
    """Or are missing."""
    grow(history)
    sign()
    for damage in ("UPDATE tree_tiles SET hashes = set_byte(hashes, 3, 77)", "DELETE FROM tree_tiles"):
        db.execute(damage.encode())
        with pytest.raises(SigningRefused, match="not those of head 1"):
            sign()


def test_a_head_by_another_key_is_not_built_on(history: History, sign: Callable[..., Signer], tmp_path: Path) -> None:
    """Two keys for one ledger are a mistake, or worse."""
    grow(history)
    sign()
    stranger = KeyFiles(tmp_path / "stranger", "ledger/test")
    stranger.make()
    with pytest.raises(SigningRefused, match="signed by another key"):
        sign(stranger)


@pytest.mark.parametrize("since", [0, 1])
def test_a_machine_whose_key_was_changed_elsewhere_signs_with_the_files_of_the_other(
    history: History,
    files: KeyFiles,
    sign: Callable[..., Signer],
    db: psycopg.Connection[Any],
    tmp_path: Path,
    since: int,
) -> None:
    """As docs/audit.md says: and not before, be the introduction the newest head or not."""
    grow(history)
    sign()
    there = KeyFiles(tmp_path / "there" / "tree.key", "ledger/test")
    shutil.copytree(files.path.parent, there.path.parent, ignore=lambda *_: ["there"])
    keys = [files.key().public, files.prepare_next().public]
    for _ in range(1 + since):
        grow(history)
        sign()

    grow(history)
    with pytest.raises(SigningRefused, match="introduces another key" if since == 0 else "signed by another key"):
        sign(there)
    for each in files.path.parent.glob("tree.key*"):
        shutil.copy2(each, there.path.parent)
    sign(there)
    assert check_heads(db, keys)[-1].size == history.head


def test_a_refusal_is_shown_and_ends_when_its_cause_does(
    dsn: str, ledger: str, history: History, files: KeyFiles, db: psycopg.Connection[Any]
) -> None:
    """A signer beside a running server refuses, and goes on by itself once the restored log is accepted."""
    grow(history)
    with closing(Running(Signer(dsn, ledger, files))) as running:
        eventually(lambda: running.signer.size == history.head)
        db.execute(OLDER_COPY)
        db.execute("INSERT INTO events SELECT 'account/x', 1, 21, 'AccountFrozen', now(), '{}'")
        kept = files.last_head()
        eventually(lambda: running.signer.failure is not None)
        assert heads(db) == []
        assert files.last_head() == kept

        note = accept_restore(dsn, ledger, files, "the disk\nfailed", NOW)

        eventually(lambda: running.signer.failure is None and bool(heads(db)))
    assert kept is not None
    lines = Note.parse(note).text.split("\n")
    assert lines[:2] == ["ledger/test/break/1", str(kept.size)]
    assert lines[3] == "0"
    assert lines[5:] == ["2026-11-25T12:00:00.000000Z", "the disk failed", ""]
    Note.parse(note).require_signed(files.public_keys())
    assert db.execute("SELECT note FROM tree_breaks").fetchall() == [(note,)]
    assert check_heads(db, files.public_keys())[-1].size == 21
    with pytest.raises(NothingToAccept):
        accept_restore(dsn, ledger, files, "again", NOW)


def test_hashes_that_others_put_behind_the_tree_are_a_refusal(
    dsn: str, ledger: str, history: History, files: KeyFiles, db: psycopg.Connection[Any]
) -> None:
    """The signer's role may do that, and a tile only ever grows: it is no outage that passes by itself."""
    grow(history)
    with closing(Running(Signer(dsn, ledger, files))) as running:
        eventually(lambda: running.signer.size == history.head)
        (size, _, _) = heads(db)[-1]
        with connect(dsn, ledger, "test", Role.SIGNER) as thief:
            thief.execute("UPDATE tree_tiles SET hashes = hashes || sha256('junk') WHERE level = 0")
        grow(history, seed=7)
        eventually(lambda: running.signer.failure is not None)
        assert "a tile of the tree only ever grows" in str(running.signer.failure)
        assert heads(db)[-1][0] == size

        db.execute("UPDATE tree_tiles SET hashes = substring(hashes FOR 32 * %s) WHERE level = 0", [size])

        eventually(lambda: running.signer.failure is None and heads(db)[-1][0] == history.head)
    check_heads(db, files.public_keys())


@pytest.fixture
def recorded(
    dsn: str, ledger: str, history: History, files: KeyFiles, sign: Callable[[], Signer], db: psycopg.Connection[Any]
) -> str:
    """The note of a break, recorded by a run that was killed right after it."""
    grow(history)
    sign()
    db.execute(OLDER_COPY)
    db.execute("INSERT INTO events SELECT 'account/x', 1, 21, 'AccountFrozen', now(), '{}'")
    with stopping_at(files, "tree.key.head"):
        accept_restore(dsn, ledger, files, "the disk failed", NOW)
    ((note,),) = db.execute("SELECT note FROM tree_breaks").fetchall()
    assert isinstance(note, str)
    return note


def test_a_break_that_a_killed_run_has_recorded_is_not_recorded_twice(
    dsn: str, ledger: str, files: KeyFiles, sign: Callable[[], Signer], db: psycopg.Connection[Any], recorded: str
) -> None:
    """It would look like two. Whoever runs the command again finishes it, and is given the note as it was recorded."""
    with pytest.raises(LogChanged):
        sign()

    assert accept_restore(dsn, ledger, files, "once more", NOW) == recorded

    assert db.execute("SELECT note FROM tree_breaks").fetchall() == [(recorded,)]
    sign()
    with pytest.raises(NothingToAccept):
        accept_restore(dsn, ledger, files, "again", NOW)


@pytest.mark.parametrize("damage", ["is somebody else's", "is of another log", "is no note"])
def test_a_break_that_is_not_this_one_does_not_stand_for_it(
    dsn: str, ledger: str, files: KeyFiles, db: psycopg.Connection[Any], recorded: str, damage: str
) -> None:
    """Whoever can write to the database may have put it there: signed or not, ours is recorded beside it."""
    stranger = SigningKey(files.name, Ed25519PrivateKey.generate())
    text = Note.parse(recorded).text
    other = text.replace("\n0\n", "\n1\n")
    assert other != text
    planted = {
        "is somebody else's": sign_note(text, [stranger]),
        "is of another log": sign_note(other, [files.key()]),
        "is no note": "nothing",
    }[damage]
    db.execute("UPDATE tree_breaks SET note = %s", [planted])

    note = accept_restore(dsn, ledger, files, "the disk failed", NOW)

    assert db.execute("SELECT note FROM tree_breaks ORDER BY number").fetchall() == [(planted,), (note,)]
    assert note == recorded


@contextmanager
def stopping_at(files: KeyFiles, name: str) -> Iterator[None]:
    """What is done meanwhile comes as far as to where it writes a file of that name, and no further."""
    in_the_way = files.path.with_name(f"{name}.new")
    in_the_way.mkdir()
    with pytest.raises(KeyUnusable, match=f"cannot write .*{name}: Is a directory"):
        yield
    in_the_way.rmdir()


class Running:
    """A signer in its thread."""

    def __init__(self, signer: Signer) -> None:
        self.signer = signer
        signer.start()

    def close(self) -> None:
        self.signer.stop()


# --- keys ------------------------------------------------------------------------------------------------------------


def test_a_new_key_is_introduced_by_a_head_of_both(
    history: History, files: KeyFiles, sign: Callable[[], Signer], db: psycopg.Connection[Any]
) -> None:
    """Even if the log has not grown; from then on the new one signs alone, and the old one is kept."""
    grow(history)
    sign()
    old = files.key().public
    new = files.prepare_next().public
    assert files.prepare_next().public == new
    sign()
    grow(history, seed=7)
    sign()
    notes = [Note.parse(note) for _, _, note in heads(db)]
    assert [note.signers([old, new]) for note in notes] == [[old], [old, new], [new]]
    assert files.key().public == new
    assert files.path.with_name("tree.key.pub").read_text() == f"{new}\n"
    assert files.path.with_name("tree.key.old-1").exists()
    check_heads(db, [old, new])


def test_a_key_that_a_killed_signer_had_put_away_is_not_put_away_twice(
    history: History, files: KeyFiles, sign: Callable[[], Signer], db: psycopg.Connection[Any]
) -> None:
    """The next one introduces the new key again."""
    grow(history)
    sign()
    old, new = files.key(), files.prepare_next().public
    with stopping_at(files, "tree.key.pub"):
        sign()
    assert files.key().public == old.public
    sign()
    assert files.key().public == new
    assert files.path.with_name("tree.key.pub").read_text() == f"{new}\n"
    assert [each.public for each in files.earlier_keys()] == [old.public]
    check_heads(db, [old.public, new])


def test_a_copy_from_before_a_new_key_is_accepted_and_the_key_introduced_again(
    dsn: str, ledger: str, history: History, files: KeyFiles, sign: Callable[[], Signer], db: psycopg.Connection[Any]
) -> None:
    """The head that introduced the key is lost with the rest: so the next one is signed by both again."""
    grow(history)
    sign()
    old, kept = files.key().public, heads(db)
    tiles = db.execute("SELECT * FROM tree_tiles").fetchall()
    new = files.prepare_next().public
    grow(history, seed=12)
    sign()
    db.execute("DELETE FROM events WHERE position > %s", [kept[0][0]])
    db.execute("DELETE FROM tree_heads WHERE number > 1; DELETE FROM tree_tiles")
    for tile in tiles:
        db.execute("INSERT INTO tree_tiles VALUES (%s, %s, %s)", tile)
    db.execute("DELETE FROM tree_keys WHERE number > 1")
    with pytest.raises(LogChanged):
        sign()
    third = files.prepare_next().public
    note = Note.parse(accept_restore(dsn, ledger, files, "the disk failed", NOW))
    assert note.signers([old, new, third]) == [old, new], "at that point of the log only the old key is known"
    sign()
    sign()
    introduced = [TreeHead.parse(Note.parse(note).text).next_key for _, _, note in heads(db)]
    assert introduced == [None, new, third], "one at a time, and without waiting for the log to grow"
    signers = [Note.parse(note).signers([old, new, third]) for _, _, note in heads(db)]
    assert signers == [[old], [old, new], [new, third]]
    check_heads(db, [old, new, third])
    assert files.key().public == third


def test_a_copy_from_before_the_first_head_is_signed_for_who_has_the_first_key(
    dsn: str, ledger: str, history: History, files: KeyFiles, sign: Callable[[], Signer], db: psycopg.Connection[Any]
) -> None:
    """Nothing in it names a key, and auditors have that one: it introduces the one in use, once more."""
    grow(history)
    old, new = files.key().public, files.prepare_next().public
    sign()
    grow(history, seed=12)
    sign()
    db.execute("DELETE FROM events; DELETE FROM tree_heads; DELETE FROM tree_tiles; DELETE FROM tree_keys")
    note = Note.parse(accept_restore(dsn, ledger, files, "the disk failed", NOW))
    assert note.signers([old, new]) == [old, new]
    for _ in range(2):
        sign()
    assert [Note.parse(note).signers([old, new]) for _, _, note in heads(db)] == [[old, new]]
    check_heads(db, [old, new])


def test_the_key_of_another_ledger_signs_nothing(
    dsn: str, history: History, files: KeyFiles, sign: Callable[[], Signer], new_ledger: Callable[[], str]
) -> None:
    """Both in one data folder, say. The other's head is no sign of a log that was cut, and no restore is recorded."""
    grow(history)
    sign()
    other, its_files = new_ledger(), KeyFiles(files.path, "ledger/other")
    with closing(Running(Signer(dsn, other, its_files))) as running:
        eventually(lambda: running.signer.failure is not None)
        assert "signs for ledger/test" in str(running.signer.failure)
    with pytest.raises(KeyUnusable, match="ledger/test"):
        accept_restore(dsn, other, its_files, "it says so", NOW)
    assert files.last_head().origin == "ledger/test"


def test_a_key_that_others_can_read_is_not_used(files: KeyFiles) -> None:
    """With what to do about it; as are a file that is no key, and none."""
    files.path.chmod(0o640)
    with pytest.raises(KeyUnusable, match="chmod 600"):
        files.key()
    files.path.chmod(0o600)
    files.path.write_text("no key")
    with pytest.raises(KeyUnusable, match="not a private key"):
        files.key()
    files.path.unlink()
    with pytest.raises(KeyUnusable, match="make-key"):
        files.key()
    assert files.make().public == files.key().public
    assert files.path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(KeyUnusable, match="rotate-key"):
        files.make()


def test_files_that_can_not_be_written_are_told(files: KeyFiles, tmp_path: Path) -> None:
    """In a line: a disk may be full, or a folder somebody else's."""
    (tmp_path / "file").touch()
    elsewhere = KeyFiles(tmp_path / "file" / "tree.key", "ledger/test")
    with pytest.raises(KeyUnusable, match=r"cannot write .*file/tree.key"):
        elsewhere.make()
    with pytest.raises(KeyUnusable, match=r"cannot write .*file/tree.key.lock: Not a directory"), elsewhere.locked():
        pass
    (tmp_path / "tree.key.next.new").mkdir()
    with pytest.raises(KeyUnusable, match=r"cannot write .*/tree.key.next: Is a directory"):
        files.prepare_next()
    (tmp_path / "tree.key.next.new").rmdir()
    files.prepare_next()
    (tmp_path / "tree.key.old-1").symlink_to("nowhere")
    with pytest.raises(KeyUnusable, match=r"cannot write .*/tree.key.old-1: File exists"):
        files.introduced()


def test_a_damaged_last_head_stops_signing(history: History, files: KeyFiles, sign: Callable[[], Signer]) -> None:
    """It can't be told what was signed."""
    grow(history)
    sign()
    files.path.with_name("tree.key.head").write_text("damaged")
    grow(history, seed=8)
    with pytest.raises(KeyUnusable, match="damaged"):
        sign()


def test_a_last_head_that_is_gone_stops_signing(
    history: History, files: KeyFiles, sign: Callable[[], Signer], db: psycopg.Connection[Any]
) -> None:
    """Else whoever can remove it could have any history signed; with the newest head in its place it goes on."""
    grow(history)
    sign()
    note = heads(db)[-1][2]
    files.path.with_name("tree.key.head").unlink()
    grow(history, seed=8)
    with pytest.raises(KeyUnusable, match="put the newest head there"):
        sign()
    assert len(heads(db)) == 1
    files.path.with_name("tree.key.head").write_text(note)
    sign()
    assert [head.size for head in check_heads(db, files.public_keys())][-1] == history.head


def test_a_new_key_in_the_place_of_a_lost_one_keeps_to_the_last_head(files: KeyFiles) -> None:
    """What the lost one has signed binds its successor; so does that it has signed nothing yet."""
    first = files.last_head()
    assert first.size == 0
    before = files.path.with_name("tree.key.head").read_text()
    files.path.unlink()
    files.make()
    assert files.path.with_name("tree.key.head").read_text() == before


# --- crashes ---------------------------------------------------------------------------------------------------------

DIES: Final = """
import os, sys
from pathlib import Path
from ledger.audit import signer
from ledger.audit.keys import KeyFiles

dsn, ledger, key, where = sys.argv[1:]
files = KeyFiles(Path(key), "ledger/test")

def dying(function):
    def last(*arguments):
        if where.startswith("after"):
            function(*arguments)
        os.kill(os.getpid(), 9)
    return last

steps = {"keep": KeyFiles, "publish": signer.Signer, "introduced": KeyFiles}
owner = steps[where.split("-")[1]]
name = {"keep": "keep_head", "publish": "_publish", "introduced": "introduced"}[where.split("-")[1]]
setattr(owner, name, dying(getattr(owner, name)))
signer.Signer(dsn, ledger, files).catch_up()
"""


STEPS: Final = ("keep", "publish", "introduced")


@pytest.mark.parametrize("where", [f"{when}-{step}" for when in ("before", "after") for step in STEPS])
def test_a_signer_that_is_killed_anywhere_is_gone_on_from(
    dsn: str, ledger: str, history: History, files: KeyFiles, sign: Callable[[], Signer], db: Any, where: str
) -> None:
    """kill -9 before and after each step of signing and of introducing a key: the next one signs on by itself."""
    grow(history)
    sign()
    old = files.key().public
    files.prepare_next()
    grow(history, seed=9)
    process = subprocess.run(
        [sys.executable, "-c", DIES, dsn, ledger, str(files.path), where], env=os.environ, check=False, timeout=60
    )
    assert process.returncode == -9
    grow(history, seed=10)
    sign()
    sign()
    new = files.key().public
    assert new != old
    found = check_heads(db, [old, new])
    assert found[-1].size == history.head
    introduced = [Note.parse(note).signers([old, new]) for _, _, note in heads(db)]
    assert [old, new] in introduced
    assert introduced[0] == [old]


def test_who_comes_second_with_a_number_starts_over(
    dsn: str, ledger: str, history: History, files: KeyFiles, sign: Callable[[], Signer], db: Any
) -> None:
    """A number is free once; what the loser had is taken in again."""
    grow(history)
    late = Signer(dsn, ledger, files)
    late._connected()
    sign()
    grow(history, seed=11)
    with pytest.raises(SignedMeanwhile):
        late.catch_up()
    late.stop()
    sign()
    check_heads(db, files.public_keys())


def test_a_key_that_is_there_has_its_public_half_beside_it(tmp_path: Path) -> None:
    """Whoever made it may have been killed before the end: then there is none, and the next one makes it."""
    files = KeyFiles(tmp_path / "tree.key", "ledger/test")
    for name in ("tree.key", "tree.key.pub"):
        with stopping_at(files, name):
            files.make()
        assert not files.path.exists()
    key = files.make()
    assert files.path.with_name("tree.key.pub").read_text() == f"{key.public}\n"
    assert files.key().public == key.public


def both_at_once(files: KeyFiles, ask: Callable[[], SigningKey]) -> list[PublicKey | str]:
    """What two are told who ask at the same moment: a key, or why there is none for them."""
    told: list[PublicKey | str] = []

    def run() -> None:
        try:
            told.append(ask().public)
        except KeyUnusable as error:
            told.append(str(error))

    def wait_for_it() -> int:
        lock = f":{files.path.with_name(f'{files.path.name}.lock').stat().st_ino} "
        return sum("->" in line and lock in line for line in Path("/proc/locks").read_text().splitlines())

    asking = [Thread(target=run) for _ in range(2)]
    with files.locked():
        for each in asking:
            each.start()
        eventually(lambda: wait_for_it() == 2)
    for each in asking:
        each.join()
    return told


def test_of_two_who_make_a_key_at_once_one_is_told_that_there_is_one(tmp_path: Path) -> None:
    """Else the second would replace the first one's key, or the public half beside it."""
    files = KeyFiles(tmp_path / "tree.key", "ledger/main")
    made, refused = sorted(both_at_once(files, files.make), key=lambda told: isinstance(told, str))
    assert made == files.key().public
    assert str(made) == (tmp_path / "tree.key.pub").read_text().strip()
    assert "already" in str(refused)


def test_two_who_ask_for_the_next_key_at_once_are_given_the_same(tmp_path: Path) -> None:
    """Else one of them would have made another known than that which is kept."""
    files = KeyFiles(tmp_path / "tree.key", "ledger/main")
    files.make()
    assert both_at_once(files, files.prepare_next) == [files.prepare_next().public] * 2
