"""The signer: a follower that grows the tree over the log, and signs what it has become.

Tiles and head are written in one transaction, heads are numbered, and the next number is free only once: so several
signers with the same key do no harm. The last head that was signed is kept beside the key, and written there before
anybody else can see it. Whatever is not consistent with that is never signed: not a log that was restored from an older
copy, nor one that lost its end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, Final

import psycopg
import structlog
from psycopg import Connection
from psycopg.errors import InsufficientPrivilege, UniqueViolation

from ledger.audit.keys import KeyFiles, KeyUnusable
from ledger.audit.merkle import EMPTY_ROOT, root_at
from ledger.audit.note import Note, NoteInvalid, PublicKey, SigningKey, TreeHead, sign
from ledger.audit.tiles import Edge, Place, edge_of, node_of, places_of
from ledger.postgres import Role, connect, sql_blocks

SQL: Final = sql_blocks("ledger.audit", "tree.sql")

BATCH_EVENTS: Final = 5_000
SIGN_EVERY_S: Final = 0.4
POLL_S: Final = 0.2
RETRY_S: Final = 1.0
STOP_PATIENCE_S: Final = 3.0

log = structlog.get_logger(__name__)


class SigningRefused(Exception):
    """Why nothing can be signed; the message is for an operator."""


class LogChanged(SigningRefused):
    """The log is not the one that was signed before."""


class SignedMeanwhile(Exception):
    """Another signer has published the next head."""


class Signer:
    """Signs for one ledger. A refusal is shown in `failure` and tried again: an operator may accept a restored log."""

    def __init__(self, dsn: str, ledger: str, files: KeyFiles) -> None:
        self._dsn, self._ledger, self._files = dsn, ledger, files
        self._connection: Connection[Any] | None = None
        self._edge = Edge()
        self._number = 0
        self._signed_size = 0
        self._heir_of: SigningKey | None = None
        """The key that is to sign next where that in use is not: after a restore to before its introduction."""
        self._checked: TreeHead | None = None
        """The last head of ours that the tree here is known to be consistent with."""
        self._failure: str | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"signer-{ledger}", daemon=True)

    @property
    def failure(self) -> str | None:
        """Why nothing is signed now, if so."""
        return self._failure

    @property
    def size(self) -> int:
        """The size of the last head that this signer has published or found."""
        return self._signed_size

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Return when the thread has ended; what it has not signed by then is signed by the next."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_PATIENCE_S)
        if not self._thread.is_alive():
            self._disconnect()

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            pause_s = POLL_S
            try:
                self.catch_up()
                self._failure = None
            except SignedMeanwhile:
                self._disconnect()
            except (SigningRefused, KeyUnusable, NoteInvalid) as error:
                self._refuse(str(error))
                pause_s = RETRY_S
            except psycopg.Error as error:
                log.warning("signer_waits_for_database", ledger=self._ledger, error=str(error).strip())
                self._disconnect()
                pause_s = RETRY_S
            except Exception as error:  # Ours, then; a thread that just ended would be noticed by nobody.
                log.exception("signer_broke", ledger=self._ledger)
                self._refuse(f"{type(error).__name__}: {error}")
                pause_s = RETRY_S
            self._stopping.wait(pause_s)
        self._disconnect()

    def _refuse(self, why: str) -> None:
        if why != self._failure:
            log.critical("signing_refused", ledger=self._ledger, why=why)
        self._failure = why
        self._disconnect()

    # --- growing and signing -----------------------------------------------------------------------------------------

    def catch_up(self) -> None:
        """Take in what the log has, and sign: at the end, and on the way as often as heads are to be new.

        Raises SigningRefused, KeyUnusable, SignedMeanwhile (start over then) and psycopg's errors.
        """
        connection = self._connected()
        began = time.monotonic()
        while self._grow(connection) and not self._stopping.is_set():
            if time.monotonic() - began > SIGN_EVERY_S:
                self._sign(connection)
                began = time.monotonic()
        self._sign(connection)

    def _grow(self, connection: Connection[Any]) -> bool:
        """Add the next leaves to the tree. Whether there may be more."""
        after = self._edge.size
        row = connection.execute(SQL.leaves, {"after": after, "limit": BATCH_EVENTS}, binary=True).fetchone()
        assert row is not None
        is_there, count, last, leaves = row
        if not is_there:
            raise LogChanged(f"the log has lost its event at position {after}, which was taken in")
        if last != after + count:
            raise SigningRefused(f"the log has a gap between positions {after} and {last}: nothing is signed beyond")
        self._edge.extend(leaves)
        return bool(count == BATCH_EVENTS)

    def _sign(self, connection: Connection[Any]) -> None:
        """Publish a head of the tree as it is now, if that is new or a key is to be introduced."""
        with self._files.locked():
            keys = self._files.signing_keys()
            # Asked first: a copy that ends where a head was signed has nothing new, and is not the log all the same.
            if not self._is_due(connection):
                return
            # One key at a time: after a restore first, once more, that in use, and the next one with the head after.
            signing = keys if self._heir_of is None else [self._heir_of, keys[0]]
            if self._edge.size == self._signed_size and len(signing) == 1:
                return
            next_key = signing[1].public if len(signing) > 1 else None
            head = TreeHead(self._files.name, self._edge.size, self._edge.root(), next_key)
            note = sign(head.text, signing)
            self._files.keep_head(note)
            self._publish(connection, head, note, [key.public for key in signing])
            if next_key is not None:
                if self._heir_of is None:
                    self._files.introduced()
                self._heir_of = None
                log.info("tree_key_introduced", ledger=self._ledger, key=str(next_key))
        self._checked, self._signed_size = head, head.size

    def _is_due(self, connection: Connection[Any]) -> bool:
        """Whether the tree has reached what was signed before; raise SigningRefused if it never can, or is another."""
        last = self._files.last_head()
        if last == self._checked:
            return True
        if last.size > self._edge.size:
            ((log_head,),) = connection.execute(SQL.log_head).fetchall()
            if last.size > log_head:
                raise LogChanged(
                    f"the log ends at position {log_head}, but a head of size {last.size} was signed: the log was cut, "
                    "or restored from an older copy. If that is so, record it with `ledger audit accept-restore`"
                )
            return False
        if self._root_at(connection, last.size) != last.root:
            raise LogChanged(
                f"the first {last.size} events of the log are not those that were signed: it was changed, or restored "
                "from an older copy and written on. If that is so, record it with `ledger audit accept-restore`"
            )
        self._checked = last
        return True

    def _root_at(self, connection: Connection[Any], size: int) -> bytes:
        """The root of this tree at a smaller size."""
        if size == self._edge.size:
            return self._edge.root()
        mine = self._edge.tiles()
        places = places_of(lambda node: root_at(size, node))
        tiles = {**read_tiles(connection, places - mine.keys()), **mine}
        return root_at(size, node_of(tiles.__getitem__))

    def _publish(self, connection: Connection[Any], head: TreeHead, note: str, keys: Sequence[PublicKey]) -> None:
        tiles = self._edge.taken()
        columns = {
            "levels": [level for level, _ in tiles],
            "indexes": [index for _, index in tiles],
            "hashes": list(tiles.values()),
        }
        number = self._number + 1
        try:
            with connection.transaction():
                connection.execute(
                    SQL.add_head, {"number": number, "tree_size": head.size, "root_hash": head.root, "note": note}
                )
                connection.execute(SQL.put_tiles, columns)
                for key in keys:
                    connection.execute(SQL.add_key, {"public_key": str(key), "first_head": number})
        except UniqueViolation as error:
            raise SignedMeanwhile from error
        except InsufficientPrivilege as error:
            # Waiting does not mend it: rights were taken, or a trigger keeps what others put behind this tree's hashes.
            why = f"the database refuses a head or its hashes ({error.diag.message_primary}): see `ledger audit verify`"
            raise SigningRefused(why) from error
        self._number = number

    # --- the connection, and what is known with it -------------------------------------------------------------------

    def _connected(self) -> Connection[Any]:
        """A connection, and the tree as it was last published."""
        if self._connection is None or self._connection.closed:
            self._disconnect()
            self._connection = connect(self._dsn, self._ledger, "ledger-signer", Role.SIGNER)
            self._load(self._connection)
        return self._connection

    def _load(self, connection: Connection[Any]) -> None:
        row = connection.execute(SQL.newest_head).fetchone()
        self._number, size, root, note = row[:4] if row else (0, 0, EMPTY_ROOT, None)
        self._heir_of = predecessor(self._files, note)
        places = {place for place, _ in edge_of(size)}
        tiles = read_tiles(connection, places)
        self._edge = Edge(size, tiles) if tiles.keys() == places else Edge()
        self._edge.taken()
        self._signed_size, self._checked = size, None
        if self._edge.root() != bytes(root):
            raise SigningRefused(f"the stored hashes of the tree are not those of head {self._number}, of size {size}")

    def _disconnect(self) -> None:
        """What was taken in and not published is taken in again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def predecessor(files: KeyFiles, newest_note: str | None) -> SigningKey | None:
    """The key that has to introduce the one in use once more, where the newest head was signed before it was: then who
    trusts that one trusts the next. Where there is no head any more it is the first. None if the key in use has signed
    it, or has none before it. Raises NoteInvalid, SigningRefused, KeyUnusable.
    """
    in_use = files.public_keys()
    if newest_note is None:
        # Killed as it was put away, the key in use is among the earlier ones as well.
        return next((key for key in files.earlier_keys() if key.public not in in_use), None)
    newest, before = Note.parse(newest_note), files.earlier_keys()
    introduced = TreeHead.parse(newest.text).next_key
    if introduced not in (None, *in_use, *(key.public for key in before)):
        # Signed by a key of ours as well, but the last time: what that signed from there on would be nobody's.
        raise SigningRefused(
            f"the newest tree head introduces another key, {introduced}, which is not beside {files.path}"
        )
    if newest.signers(in_use):
        return None
    earlier = [key for key in before if newest.signers([key.public])]
    if not earlier:
        raise SigningRefused(f"the newest tree head was signed by another key than {files.path}")
    return earlier[-1]


def read_tiles(connection: Connection[Any], places: set[Place]) -> dict[Place, bytes]:
    """Tiles by their places; those that don't exist are left out."""
    if not places:
        return {}
    wanted = {"levels": [level for level, _ in places], "indexes": [index for _, index in places]}
    rows = connection.execute(SQL.tiles, wanted, binary=True).fetchall()
    return {(level, index): bytes(hashes) for level, index, hashes in rows}
