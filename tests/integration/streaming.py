"""What tests of streams share: a gRPC server in the test's own process, so that what is left behind can be counted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc.aio
import psycopg
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status

from ledger.committer import Committer
from ledger.gate import Gate
from ledger.grpc_server import GrpcServer
from ledger.metrics import ServerMetrics
from ledger.services import Desk, Open, rpcs

ANSWERED_WITHIN_S: Final = 30.0


@asynccontextmanager
async def served(dsn: str, ledger: str, streams: Mapping[str, Any]) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a server with these streams, and with a committer that is never started."""
    desk = Desk({"main": Open(Committer(dsn, ledger), {}, streams)})
    server = GrpcServer(rpcs(desk, Gate(), ServerMetrics()), [])
    port = server.add_port("127.0.0.1:0")
    server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(0)


async def refusal_of(call: Any) -> tuple[grpc.StatusCode, str, list[str]]:
    """How a call was refused: the code, our reason, and the fields that are named."""
    metadata = {key: value for key, value in await call.trailing_metadata() if key == "grpc-status-details-bin"}
    status = Status.FromString(metadata["grpc-status-details-bin"])
    info, bad = ErrorInfo(), BadRequest()
    for each in status.details:
        each.Unpack(info)
        each.Unpack(bad)
    return await call.code(), info.reason, [each.field for each in bad.field_violations]


def sessions(dsn: str, application_name: str) -> list[str]:
    """What the connections of that name are doing."""
    query = "SELECT state FROM pg_stat_activity WHERE application_name = %s"
    with psycopg.connect(dsn, autocommit=True) as connection:
        return [state for (state,) in connection.execute(query, [application_name])]
