"""A network between committers and Postgres that fails on demand."""

from __future__ import annotations

import socket
from contextlib import suppress
from enum import Enum
from threading import Event, Lock, Thread

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo


class Break(Enum):
    """How a connection ends when the client sends a certain message."""

    UNSENT = "cut before any of the message has reached the server"
    HALF_SENT = "cut when half of the message has reached the server"
    SENT = "cut when the message has reached the server"
    UNHEARD = "cut when the server has replied, and the client has not heard it"
    SILENT = "the server has replied, and the client hears nothing, until all is cut"


class Proxy:
    """Stands between clients and Postgres."""

    def __init__(self, dsn: str) -> None:
        with psycopg.connect(dsn) as connection:
            self._to = (connection.info.host, connection.info.port)
        self._lock = Lock()
        self._links: set[Link] = set()
        self._break: tuple[bytes, Break, bool] | None = None
        self.broke = Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port = self._listener.getsockname()[1]
        known = {key: value for key, value in conninfo_to_dict(dsn).items() if key not in ("host", "hostaddr", "port")}
        self.dsn = make_conninfo(
            **known | {"host": "127.0.0.1", "port": self._port, "sslmode": "disable", "gssencmode": "disable"}
        )
        self._accept(self._listener)

    def break_at(self, marker: bytes, how: Break, *, then_close: bool = False) -> None:
        """Break the next connection on which the client sends something that contains `marker`.

        With `then_close` no new connections are taken from then on.
        """
        self.broke.clear()
        with self._lock:
            self._break = (marker, how, then_close)

    def cut(self) -> None:
        """Cut all connections that there are."""
        with self._lock:
            links = list(self._links)
        for link in links:
            link.cut()

    def close(self) -> None:
        """Be away: take no new connections, and cut those that there are."""
        self._stop_listening()
        self.cut()

    def open(self) -> None:
        """Be back."""
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._accept(self._listener)

    def how_to_break(self, data: bytes) -> Break | None:
        with self._lock:
            if self._break is None or self._break[0] not in data:
                return None
            _, how, then_close = self._break
            self._break = None
            if then_close:
                self._stop_listening()
            return how

    def add(self, link: Link) -> None:
        with self._lock:
            self._links.add(link)

    def remove(self, link: Link) -> None:
        with self._lock:
            self._links.discard(link)

    def _stop_listening(self) -> None:
        # Closing alone does not end an accept that another thread is in.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self, listener: socket.socket) -> None:
        def run() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    Link(self, client, self._connect_on())

        Thread(target=run, daemon=True).start()

    def _connect_on(self) -> socket.socket:
        host, port = self._to
        if not host.startswith("/"):
            return socket.create_connection((host, port))
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{host}/.s.PGSQL.{port}")
        return server


class Link:
    """One connection through the proxy."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self._deaf: Break | None = None
        proxy.add(self)
        for pump in (self._to_server, self._to_client):
            Thread(target=pump, daemon=True).start()

    def cut(self) -> None:
        for end in (self._client, self._server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._proxy.remove(self)

    def _to_server(self) -> None:
        with suppress(OSError):
            while data := self._client.recv(1 << 20):
                how = self._proxy.how_to_break(data)
                if how is None:
                    self._server.sendall(data)
                elif how is Break.UNSENT:
                    break
                elif how is Break.HALF_SENT:
                    self._server.sendall(data[: len(data) // 2])
                    break
                else:
                    self._deaf = how
                    self._server.sendall(data)
                    if how is Break.SENT:
                        break
            self.cut()
            if how is not None:
                self._proxy.broke.set()
        self.cut()

    def _to_client(self) -> None:
        with suppress(OSError):
            while data := self._server.recv(1 << 20):
                if self._deaf is None:
                    self._client.sendall(data)
                elif self._deaf is Break.UNHEARD:
                    self.cut()
                    self._proxy.broke.set()
                elif self._deaf is Break.SILENT:
                    self._proxy.broke.set()
        self.cut()
