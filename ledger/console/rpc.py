"""Requests to a server. Nothing is sent twice: ids are idempotency keys, so whoever asks can safely ask again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NoReturn, TypeAlias

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo

from ledger.client import NoAnswer, Target, code_name, connected, error_status
from ledger.exits import EXIT_FAILED, fail
from ledger.settings import Settings
from ledger.terminal import printable

ANSWERED_WITHIN_S: Final = 30.0

Ask: TypeAlias = Callable[[Message], Any]
"""From a request to its response, or one after the other if its rpc streams."""


@contextmanager
def asking(settings: Settings) -> Iterator[Ask]:
    """A way to ask the server. A refusal ends the command, and so does a server that can't be reached."""
    try:
        with connected(Target.of(settings)) as channel:
            yield lambda request: _ask(channel, request)
    except NoAnswer as error:
        fail(str(error))
    except grpc.RpcError as error:
        _end(settings.server, error)


def _ask(channel: grpc.Channel, request: Any) -> Any:
    """Call the rpc that takes this request: each is taken by one, in the same file of the contract.

    A stream may take as long as it goes on.
    """
    (service,) = request.DESCRIPTOR.file.services_by_name.values()
    (method,) = (each for each in service.methods if each.input_type is request.DESCRIPTOR)
    open_rpc = channel.unary_stream if method.server_streaming else channel.unary_unary
    rpc = open_rpc(
        f"/{service.full_name}/{method.name}",
        request_serializer=type(request).SerializeToString,
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    return rpc(request, timeout=None if method.server_streaming else ANSWERED_WITHIN_S)


def _end(server: str, error: grpc.RpcError) -> NoReturn:
    """End with the reason that a ledger gives with every error. An error without one is not a ledger's answer."""
    status = error_status(error)
    message = printable(status.message)
    info, malformed = ErrorInfo(), BadRequest()
    for detail in status.details:
        _ = detail.Unpack(info) or detail.Unpack(malformed)
    if not info.reason:
        again = "The same command again, with the same ids, tells what became of it."
        fail(f"no answer from the ledger at {server}: {message} ({code_name(status)}). {again}")
    fields = (printable(f"  {each.field}: {each.description}") for each in malformed.field_violations)
    fail("\n".join([f"{message} ({info.reason})", *fields]), EXIT_FAILED)
