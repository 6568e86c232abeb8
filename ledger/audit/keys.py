"""The signer's files: its key, the public half of it, and beside it the last head that it signed.

tree.key        the private key (PEM), mode 0600: keep it off the database's machine, and back it up
tree.key.pub    its public half, to give to auditors
tree.key.next   the key that is to follow, until a head was signed by both
tree.key.old-N  keys that were in use before
tree.key.head   the last head that was signed, at first that of an empty log; what is not consistent with it is never
                signed. It belongs to the key: without it nothing is signed. A copy is stale with the next head
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, takewhile
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ledger.audit.merkle import EMPTY_ROOT
from ledger.audit.note import Note, NoteInvalid, PublicKey, SigningKey, TreeHead, sign

_MODE: Final = 0o600


class KeyUnusable(Exception):
    """The file of a key is missing, malformed, readable by others, or can't be written; the message says what to do."""


class KeyFiles:
    """The files of one ledger's signer; `name` is the name of the key, which is the origin of its heads."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self._public = path.with_name(f"{path.name}.pub")
        self._next = path.with_name(f"{path.name}.next")
        self._head = path.with_name(f"{path.name}.head")
        self._lock = path.with_name(f"{path.name}.lock")

    # --- keys --------------------------------------------------------------------------------------------------------

    def make(self) -> SigningKey:
        """A new key, where there is none. Raises KeyUnusable if there is one."""
        with _written(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.locked():
            if self.path.exists():
                what = f"there is a key in {self.path} already"
                raise KeyUnusable(f"{what}: `ledger audit rotate-key` introduces a new one")
            key = _new(self.name)
            # The head first: a key without one is one whose last head was lost. That of a lost key stays, and binds.
            if not self._head.exists():
                self.keep_head(sign(TreeHead(self.name, 0, EMPTY_ROOT).text, [key]))
            # And its public half: nothing would write that once the key is there.
            _write(self._public, f"{key.public}\n")
            _keep(self.path, key)
            return key

    def key(self) -> SigningKey:
        """The key in use. Raises KeyUnusable."""
        return _read(self.path, self.name)

    def prepare_next(self) -> SigningKey:
        """Make the key that is to follow, if that wasn't done; the signer introduces it with its next head."""
        self.key()
        with self.locked():
            if self._next.exists():
                return _read(self._next, self.name)
            _keep(self._next, key := _new(self.name))
            return key

    def public_keys(self) -> list[PublicKey]:
        """The public halves of `signing_keys`."""
        return [key.public for key in self.signing_keys()]

    def earlier_keys(self) -> list[SigningKey]:
        """The keys that were in use before, the first one in front. Raises KeyUnusable."""
        return [_read(old, self.name) for old in self._old()]

    def signing_keys(self) -> list[SigningKey]:
        """The keys that sign the next head: that in use, and the one that is to follow it, if any."""
        keys = [self.key()]
        return [*keys, _read(self._next, self.name)] if self._next.exists() else keys

    def introduced(self) -> None:
        """A head by both keys is published: the next one is now in use."""
        old = self._old()
        # Killed before the last line, the next signer finds the key still to be introduced, and the old one put away.
        if not (old and old[-1].samefile(self.path)):
            with _written(put_away := self._old_path(len(old) + 1)):
                os.link(self.path, put_away)
        _write(self._public, f"{_read(self._next, self.name).public}\n")
        with _written(self.path):
            self._next.replace(self.path)

    def _old(self) -> list[Path]:
        """The files of keys that were in use before, the oldest in front."""
        return list(takewhile(Path.exists, map(self._old_path, count(1))))

    def _old_path(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.old-{number}")

    # --- the last head -----------------------------------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else on this machine signs with these files meanwhile."""
        with _written(self._lock):
            lock = self._lock.open("w")
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def last_head(self) -> TreeHead:
        """The last head that was signed. Raises KeyUnusable if its file is lost or damaged, or is another ledger's."""
        try:
            head = TreeHead.parse(Note.parse(self._head.read_text(encoding="utf-8")).text)
        except FileNotFoundError:
            raise KeyUnusable(
                f"{self._head} is gone, which says what was signed last: put the newest head there, as auditors keep it"
            ) from None
        except OSError as error:
            raise KeyUnusable(f"cannot read {self._head}: {error.strerror}") from error
        except (NoteInvalid, UnicodeDecodeError) as error:
            raise KeyUnusable(
                f"{self._head} is damaged ({error}): put the newest head there, as auditors keep it"
            ) from error
        if head.size and head.origin != self.name:  # One of no events is the beginning of every log.
            raise KeyUnusable(
                f"{self.path} signs for {head.origin}, and a key is of one ledger: for {self.name} make another with "
                "`ledger audit make-key --tree-key FILE`, and serve with LEDGER_TREE_KEY=FILE"
            )
        return head

    def keep_head(self, note: str) -> None:
        """Remember a head as the last one, durably, before anybody else learns of it."""
        _write(self._head, note)


def _new(name: str) -> SigningKey:
    return SigningKey(name, Ed25519PrivateKey.generate())


def _keep(path: Path, key: SigningKey) -> None:
    pem = key.private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(path, pem.decode())


def _read(path: Path, name: str) -> SigningKey:
    try:
        if path.stat().st_mode & 0o077:
            raise KeyUnusable(f"{path} can be read by others: chmod 600 {path}")
        private = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except FileNotFoundError:
        raise KeyUnusable(f"there is no key in {path}: `ledger audit make-key` makes one") from None
    except OSError as error:
        raise KeyUnusable(f"cannot read the key in {path}: {error.strerror}") from error
    except (ValueError, TypeError):
        raise KeyUnusable(f"{path} is not a private key in PEM without a password") from None
    if not isinstance(private, Ed25519PrivateKey):
        raise KeyUnusable(f"the key in {path} is not one of Ed25519")
    return SigningKey(name, private)


def _write(path: Path, text: str) -> None:
    """Replace a file durably, or leave it as it was: whoever reads it sees all of the one or of the other."""
    new = path.with_name(f"{path.name}.new")
    with _written(path):
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _MODE), "w", encoding="utf-8") as file:  # noqa: PTH123
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """Raise KeyUnusable where a file can't be written: the disk is full, say, or the folder another user's."""
    try:
        yield
    except OSError as error:
        raise KeyUnusable(f"cannot write {path}: {error.strerror}") from error
