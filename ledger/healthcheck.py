"""`ledger healthcheck`: what a server says of itself, for whoever starts containers."""

from __future__ import annotations

from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ledger.client import NoAnswer, Target, connected
from ledger.settings import Settings

ANSWERS_WITHIN_S: Final = 5.0


class NotServing(Exception):
    """The server doesn't answer, or says that it does not serve; the message says which."""


def require_serving(settings: Settings, service: str) -> None:
    """Return if the server that the settings name says SERVING of a service. Raises NotServing."""
    server = settings.server
    request = health_pb2.HealthCheckRequest(service=service)
    try:
        with connected(Target.of(settings)) as channel:
            status = health_pb2_grpc.HealthStub(channel).Check(request, timeout=ANSWERS_WITHIN_S).status
    except NoAnswer as error:
        raise NotServing(str(error)) from error
    except grpc.RpcError as error:
        code = error.code() if isinstance(error, grpc.Call) else None
        if code is grpc.StatusCode.NOT_FOUND:
            raise NotServing(f"the server at {server} has no service {service}") from error
        raise NotServing(f"the server at {server} did not say how it is: {code and code.name}") from error
    if status != health_pb2.HealthCheckResponse.SERVING:
        name = health_pb2.HealthCheckResponse.ServingStatus.Name(status)
        raise NotServing(f"{service} at {server} is {name}")
