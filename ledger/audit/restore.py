"""Accepting a restored log: signing goes on from it, and the break is recorded openly, signed, for ever."""

from __future__ import annotations

from base64 import b64encode
from datetime import datetime
from typing import Any

from psycopg import Connection

from ledger.audit.keys import KeyFiles
from ledger.audit.merkle import EMPTY_ROOT
from ledger.audit.note import TreeHead, sign
from ledger.audit.signer import SQL, LogChanged, Signer
from ledger.postgres import Role, connect


class NothingToAccept(Exception):
    """The log is the one that was signed before: there is no break to record."""


def accept_restore(dsn: str, ledger: str, files: KeyFiles, reason: str, now: datetime) -> str:
    """Record that the log is not the one that was signed before, and let signing go on from it; return the note.

    Raises NothingToAccept when it is that log, and what a Signer raises when something else is wrong.
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
    key = files.key()
    lines = [
        f"{files.name}/break/1",
        *_size_and_root(before.size, before.root),
        *_size_and_root(size, bytes(root)),
        now.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        " ".join(reason.split()),
    ]
    note = sign("\n".join(lines) + "\n", [key])
    last = connection.execute(SQL.last_break).fetchone()
    with connection.transaction():
        connection.execute(SQL.add_break, {"number": last[0] + 1 if last else 1, "note": note})
    # From here on signing goes on; a crash before this line leaves it refused, and the command can be run again.
    files.keep_head(head_note or sign(TreeHead(files.name, 0, EMPTY_ROOT).text, [key]))
    return note


def _size_and_root(size: int, root: bytes) -> tuple[str, str]:
    return str(size), b64encode(root).decode()
