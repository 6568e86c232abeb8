"""The endpoint that Prometheus scrapes: plain HTTP, one path, for a network that is trusted. It tells no secrets."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Final

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from ledger.settings import split_address

PATH: Final = "/metrics"

log = structlog.get_logger(__name__)


class CannotServeMetrics(Exception):
    """The address for metrics is taken or not ours."""


@contextmanager
def metrics_served(address: str | None, registry: CollectorRegistry) -> Iterator[None]:
    """Answer GET /metrics at HOST:PORT meanwhile, in threads of its own; nowhere if there is no address.

    Raises CannotServeMetrics.
    """
    if address is None:
        yield
        return
    server = _bound(address, registry)
    thread = Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    host, port = server.server_address[:2]
    log.info("metrics_served", address=f"{host!s}:{port}")
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _bound(address: str, registry: CollectorRegistry) -> ThreadingHTTPServer:
    host, port = split_address(address)
    try:
        return (_ServerV6 if ":" in host else _Server)((host, port), registry)
    except OSError as error:
        raise CannotServeMetrics(f"can't serve metrics on {address}: {error.strerror}") from error


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], registry: CollectorRegistry) -> None:
        self.registry: Final = registry
        super().__init__(address, _Scrape)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """What a scrape died of: a client that went away, mostly. The library would print it."""
        log.debug("scrape_failed", exc_info=True)


class _ServerV6(_Server):
    address_family = socket.AF_INET6


class _Scrape(BaseHTTPRequestHandler):
    timeout = 10
    server: _Server

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != PATH:
            self.send_error(HTTPStatus.NOT_FOUND, f"only {PATH} is here")
            return
        encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        try:
            body = encode(self.server.registry)
        except Exception:
            log.exception("metrics_not_read")
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # its name in the library
        """Not a line for every scrape."""
