"""One running server for all tests here that don't harm it. Each test takes ids of its own."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
from serving import LedgerServer, serving


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LedgerServer]:
    """`ledger serve` as a process. At the end it gets SIGTERM, and has to exit with 0."""
    with serving(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def tag() -> str:
    """A word that makes ids this test's own."""
    return secrets.token_hex(4)
