"""The certificate that a server shows: what is no good is refused, by the file's name."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ledger.dev_cert import DevCertificates, make_dev_certificates
from ledger.tls import Certificates, TlsFiles, TlsUnusable


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda files: files.server.unlink(), r"^can't read .*/server.pem: No such file"),
        (lambda files: files.server_key.unlink(), r"^can't read .*/server.key: No such file"),
        (lambda files: files.ca.unlink(), r"^can't read .*/ca.pem: No such file"),
        (lambda files: files.server.write_text("nonsense"), r"server.pem has no certificate in PEM$"),
        (lambda files: files.server.write_bytes(b""), r"server.pem has no certificate in PEM$"),
        (lambda files: files.server_key.write_text("nonsense"), r"server.key has no private key in PEM"),
        (lambda files: files.client_key.replace(files.server_key), r"server.key is not the key of the certificate"),
        (lambda files: files.ca.write_text("nonsense"), r"ca.pem has no certificate in PEM$"),
    ],
)
def test_what_is_no_good_is_refused(tmp_path: Path, spoil: Callable[[DevCertificates], Any], complaint: str) -> None:
    """In words that say which file it is."""
    files = make_dev_certificates(tmp_path, (), 1, datetime.now(UTC))
    wanted = TlsFiles(files.server, files.server_key, files.ca)
    Certificates(wanted)
    spoil(files)
    with pytest.raises(TlsUnusable, match=complaint):
        Certificates(wanted)


def test_a_certificate_that_has_expired_is_refused(tmp_path: Path) -> None:
    """Every client would refuse it, each with words of its own."""
    files = make_dev_certificates(tmp_path, (), 1, datetime(2020, 1, 1, tzinfo=UTC))
    with pytest.raises(TlsUnusable, match="expired on 2020-01-02"):
        Certificates(TlsFiles(files.server, files.server_key))
