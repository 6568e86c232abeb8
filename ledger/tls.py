"""The certificate that a server shows: read from files, and read again when they change."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeAlias

import grpc
import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

log = structlog.get_logger(__name__)

_Stamp: TypeAlias = tuple[tuple[int, int, int] | None, ...]


class TlsUnusable(Exception):
    """The files can't be used. The message names the file and says why."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where the certificate is, with the chain after it, its key, and the authorities of clients if they show one."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def read(self) -> Any:
        """What gRPC serves by. Raises TlsUnusable unless the files fit together and the certificate holds now."""
        certificate, key = _read(self.certificate), _read(self.key)
        client_ca = None if self.client_ca is None else _read(self.client_ca)
        own = _certificates(self.certificate, certificate)[0]
        if own.public_key() != _public_key(self.key, key):
            raise TlsUnusable(f"{self.key} is not the key of the certificate in {self.certificate}")
        if own.not_valid_after_utc <= datetime.now(UTC):
            raise TlsUnusable(f"the certificate in {self.certificate} expired on {own.not_valid_after_utc:%Y-%m-%d}")
        if self.client_ca is not None and client_ca is not None:
            _certificates(self.client_ca, client_ca)
        return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=client_ca)

    def stamp(self) -> _Stamp:
        """Changes when a file is replaced, be it by another link as Kubernetes does."""
        return tuple(_stamp(each) for each in (self.certificate, self.key, self.client_ca) if each is not None)


class Certificates:
    """Keeps what is served by as new as the files are. What can't be used changes nothing: the old is served on."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises TlsUnusable."""
        self._files: Final = files
        self._stamp = files.stamp()
        self._first: Final = files.read()

    def credentials(self) -> grpc.ServerCredentials:
        """For a port. With authorities of clients, a client without a certificate of theirs is not let in."""
        require = self._files.client_ca is not None
        credentials: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
            self._first, self._changed, require_client_authentication=require
        )
        return credentials

    def _changed(self) -> Any:
        """What is to be served by from now on, or None if that is as before. gRPC asks before every handshake."""
        stamp = self._files.stamp()
        if stamp == self._stamp:
            return None
        # Two files are not replaced in one step: a pair that doesn't fit yet is looked at again when it has changed.
        self._stamp = stamp
        try:
            configuration = self._files.read()
        except TlsUnusable as error:
            log.error("certificate_not_reloaded", why=str(error))
            return None
        log.info("certificate_reloaded")
        return configuration


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsUnusable(f"can't read {path}: {error.strerror}") from error


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _certificates(path: Path, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise TlsUnusable(f"{path} has no certificate in PEM") from None


def _public_key(path: Path, pem: bytes) -> Any:
    try:
        return load_pem_private_key(pem, None).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise TlsUnusable(f"{path} has no private key in PEM, or one with a password") from None
