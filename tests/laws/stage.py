"""Where the runs of the machine take place: a server of their own, its clock, its log, and a client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import grpc
import psycopg
from checks import Row, eventually
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from refused import Refused, refused_by

from ledger.embedded import running_dsn
from ledger.v1 import account_pb2, batch_pb2, payment_pb2, transfer_pb2

SERVER: Final = Path(__file__).with_name("law_server.py")
STOPS_WITHIN_S: Final = 20.0
ANSWERED_WITHIN_S: Final = 60.0
INSTANT: Final = timedelta(microseconds=1)

METHODS: Final = {
    method.input_type.full_name: method
    for file in (account_pb2, payment_pb2, transfer_pb2, batch_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
"""The rpc of each request."""


class Stage:
    """A running server, `now` by its clock, and `runs` that have begun on it."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        assert process.stdout is not None
        ready = process.stdout.readline().split()
        assert ready[:1] == ["serving"], (folder / "server.log").read_text()
        self._process = process
        self.now = datetime.fromisoformat(ready[2])
        self.runs = 0
        self.is_tidy = True
        """False when a run has ended halfway, and has left something that will expire."""
        self.dsn = running_dsn(folder / "data")
        self._session = psycopg.connect(self.dsn, autocommit=True, options="-c search_path=ledger_main")
        self._channel = grpc.insecure_channel(ready[1])
        self._calls: dict[str, Any] = {}

    def close(self) -> None:
        self._channel.close()
        self._session.close()

    def begin(self) -> None:
        """A new run begins: at a later time than all before, which are over."""
        self.runs += 1
        self.move(timedelta(seconds=1))
        if not self.is_tidy:
            self.move(timedelta(days=40))
            self.sweep()
            eventually(self._nothing_can_expire)
            self.is_tidy = True

    def _nothing_can_expire(self) -> bool:
        query = "SELECT position, EXISTS (SELECT FROM payments WHERE amount_capturable > 0) FROM checkpoints"
        ((position, is_held),) = self._session.execute(query.encode())
        return position == self.head and not is_held

    def move(self, by: timedelta) -> None:
        """Let the server's clock go forward. The sweeper does not know of it yet."""
        self._tell(str(by // INSTANT))
        self.now += by

    def sweep(self) -> None:
        """Let the sweeper record what has expired by now, soon."""
        self._tell("sweep")

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def call(self, request: Message) -> Message | Refused:
        """The response to a request, or how it was refused."""
        try:
            response: Message = self._rpc(request)(request, timeout=ANSWERED_WITHIN_S)
        except grpc.RpcError as error:
            return refused_by(error)
        return response

    def log_after(self, position: int) -> list[Row]:
        """The events after a position."""
        columns = "position, stream, version, topic, recorded_at, state"
        query = f"SELECT {columns} FROM events WHERE position > %s ORDER BY position"
        return [Row(*row, json.loads(row[-1])) for row in self._session.execute(query.encode(), [position])]

    @property
    def head(self) -> int:
        row = self._session.execute("SELECT coalesce(max(position), 0) FROM events").fetchone()
        assert row is not None
        return int(row[0])

    def _rpc(self, request: Message) -> Any:
        method = METHODS[request.DESCRIPTOR.full_name]
        if method.full_name not in self._calls:
            self._calls[method.full_name] = self._channel.unary_unary(
                f"/{method.containing_service.full_name}/{method.name}",
                type(request).SerializeToString,
                GetMessageClass(method.output_type).FromString,
            )
        return self._calls[method.full_name]


@contextmanager
def staged(folder: Path) -> Iterator[Stage]:
    """A stage whose server has to end well, and has nothing to warn of."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LEDGER_")}
    command = [sys.executable, str(SERVER), str(folder / "data")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stderr=log, **pipes)
    with process:
        try:
            stage = Stage(process, folder)
            yield stage
            stage.close()
            assert process.stdin is not None
            process.stdin.close()
            status = process.wait(STOPS_WITHIN_S)
            said = (folder / "server.log").read_text()
            assert (status, said) == (0, ""), said
        except BaseException:
            process.kill()
            raise
