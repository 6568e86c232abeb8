"""Certificates to try TLS with: a CA that exists for a moment, and what it signs for a server and for a client."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ALWAYS: Final = ("localhost", "127.0.0.1", "::1")
"""The names that the server's certificate is good for, whatever others are asked for."""

_HOST_NAME: Final = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*").fullmatch

_CLOCKS_DIFFER: Final = timedelta(minutes=5)
"""Good for that long before it was made: the other side's clock may be behind."""


class FileInTheWay(Exception):
    """One of the files is there already. Nothing was written."""


@dataclass(frozen=True, slots=True)
class DevCertificates:
    """Where everything is: certificates in PEM, and their keys, which only their owner may read."""

    ca: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path


def files_in(folder: Path) -> DevCertificates:
    """The names that the files have in a folder."""
    return DevCertificates(
        ca=folder / "ca.pem",
        server=folder / "server.pem",
        server_key=folder / "server.key",
        client=folder / "client.pem",
        client_key=folder / "client.key",
    )


def is_host(name: str) -> bool:
    """Whether a certificate can be made for it: a host's name in ASCII, or an IP address."""
    return _is_address(name) or bool(_HOST_NAME(name))


def make_dev_certificates(folder: Path, hosts: Sequence[str], days: int, now: datetime) -> DevCertificates:
    """Write a new CA, and a server's and a client's certificate by it, good for `days` from `now`.

    The CA's key is not kept: nobody, its maker included, can have it sign anything else. Raises FileInTheWay rather
    than replace a file, and OSError if the folder can't be written to.
    """
    files = files_in(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for file in _paths(files):
        if file.exists() or file.is_symlink():
            raise FileInTheWay(f"{file} is there already")
    authority = _Authority(now, timedelta(days=days))
    names = dict.fromkeys((*ALWAYS, *hosts))
    server, server_key = authority.issue("ledger try-out server", ExtendedKeyUsageOID.SERVER_AUTH, [*names])
    client, client_key = authority.issue("ledger try-out client", ExtendedKeyUsageOID.CLIENT_AUTH, [])
    _write(files.ca, authority.pem, 0o644)
    _write(files.server_key, server_key, 0o600)
    _write(files.server, server, 0o644)
    _write(files.client_key, client_key, 0o600)
    _write(files.client, client, 0o644)
    return files


class _Authority:
    """A CA whose key is forgotten with it."""

    def __init__(self, now: datetime, good_for: timedelta) -> None:
        self._from, self._until = now - _CLOCKS_DIFFER, now + good_for
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("ledger try-out CA")
        builder = self._builder(self._name, self._key.public_key())
        self._certificate = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(of_ca=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, common_name: str, purpose: x509.ObjectIdentifier, hosts: Sequence[str]) -> tuple[bytes, bytes]:
        """A certificate for one purpose, and its key, both in PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            self._builder(_name(common_name), key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(of_ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        )
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName(map(_general_name, hosts)), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM), key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._from)
            .not_valid_after(self._until)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _usage(*, of_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not of_ca,
        key_cert_sign=of_ca,
        crl_sign=of_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _general_name(host: str) -> x509.GeneralName:
    return x509.IPAddress(ipaddress.ip_address(host)) if _is_address(host) else x509.DNSName(host)


def _paths(files: DevCertificates) -> Iterator[Path]:
    return (getattr(files, each.name) for each in fields(files))


def _write(path: Path, pem: bytes, mode: int) -> None:
    """A new file with just this mode from its first byte on, whatever the umask is."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:  # noqa: PTH123
        os.fchmod(file.fileno(), mode)
        file.write(pem)
