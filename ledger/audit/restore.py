"""Accepting a restored log: signing goes on from it, and the break is recorded openly, signed, for ever."""

from __future__ import annotations

from base64 import b64encode
from datetime import datetime
from typing import Any

from psycopg import Connection

from ledger.audit.keys import KeyFiles
from ledger.audit.merkle import EMPTY_ROOT
from ledger.audit.note import Note, NoteInvalid, PublicKey, TreeHead, sign
from ledger.audit.signer import SQL, LogChanged, Signer, SigningRefused, predecessor
from ledger.postgres import Role, connect


class NothingToAccept(Exception):
    """The log is the one that was signed before: there is no break to record."""


def accept_restore(dsn: str, ledger: str, files: KeyFiles, reason: str, now: datetime) -> str:
    """Record that the log is not the one that was signed before, and let signing go on from it; return the note.

    Of a run that was killed midway the next one finishes what it began: the note is then that run's.

    Raises NothingToAccept when it is that log, and what a Signer raises when something else is wrong: so when the log
    was cut, and what was signed of it stands beside it. Signing can't go on from there.
    """
    signer = Signer(dsn, ledger, files)
    try:
        signer.catch_up()
    except LogChanged:
        pass
    else:
        raise NothingToAccept("the log is the one that was signed before: there is nothing to accept")
    finally:
        signer.stop()
    with files.locked(), connect(dsn, ledger, "ledger-restore", Role.SIGNER) as connection:
        return _record(connection, files, reason, now)


def _record(connection: Connection[Any], files: KeyFiles, reason: str, now: datetime) -> str:
    before = files.last_head()
    newest = connection.execute(SQL.newest_head).fetchone()
    _, size, root, head_note, _ = newest or (0, 0, EMPTY_ROOT, None, None)
    ((log_head,),) = connection.execute(SQL.log_head).fetchall()
    if size > log_head:
        raise SigningRefused(
            f"the log ends at position {log_head}, and the newest head beside it is of size {size}: that is no older "
            "copy, which has both of one moment. Nothing is recorded. See `ledger audit verify`, and restore a backup"
        )
    key = files.key()
    heir_of = predecessor(files, head_note)
    what = [f"{files.name}/break/1", *_size_and_root(before.size, before.root), *_size_and_root(size, bytes(root))]
    number, last = connection.execute(SQL.last_break).fetchone() or (0, None)
    # Recorded by a run that was killed before its end? It is one break, and must not look like two.
    note = last if last is not None and _is_of(last, what, key.public) else None
    if note is None:
        when = now.isoformat(timespec="microseconds").replace("+00:00", "Z")
        # At this point of the history the key in use may have yet to be introduced: its predecessor's word counts here.
        signing = [key] if heir_of is None else [heir_of, key]
        note = sign("\n".join([*what, when, " ".join(reason.split())]) + "\n", signing)
        with connection.transaction():
            connection.execute(SQL.add_break, {"number": number + 1, "note": note})
    # From here on signing goes on; a crash before this line leaves it refused, and the command can be run again.
    files.keep_head(head_note or sign(TreeHead(files.name, 0, EMPTY_ROOT).text, [key]))
    return note


def _is_of(note: str, what: list[str], key: PublicKey) -> bool:
    """Whether a note of the database is this key's, and says that."""
    try:
        found = Note.parse(note)
        return found.text.split("\n")[: len(what)] == what and bool(found.signers([key]))
    except NoteInvalid:
        return False


def _size_and_root(size: int, root: bytes) -> tuple[str, str]:
    return str(size), b64encode(root).decode()
