"""How the ledger says no: what the model foretells, and what a client reads from an error, in the same words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import grpc
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status


class Refused(NamedTuple):
    """Status, reason and details of an error; and the fields that are malformed, sorted."""

    code: str
    reason: str
    metadata: dict[str, str] = {}
    fields: tuple[str, ...] = ()


class Refusal(Exception):
    """Raised inside the model by what stands in the way of a command."""

    def __init__(self, code: str, reason: str, fields: Iterable[str] = (), **metadata: object) -> None:
        super().__init__(reason)
        self.refused = Refused(
            code, reason, {key: str(value) for key, value in metadata.items()}, tuple(sorted(fields))
        )


def same(heard: Any, foretold: Any) -> bool:
    """Whether two replies say the same. An error has to name what is malformed, but not all of it at once."""
    if isinstance(heard, list) and isinstance(foretold, list):
        return len(heard) == len(foretold) and all(map(same, heard, foretold))
    if isinstance(heard, Refused) and isinstance(foretold, Refused):
        is_named = bool(heard.fields) == bool(foretold.fields) and set(heard.fields) <= set(foretold.fields)
        return is_named and heard._replace(fields=()) == foretold._replace(fields=())
    return bool(heard == foretold)


def refused_by(error: grpc.RpcError) -> Refused:
    status = rpc_status.from_call(error)
    assert status is not None, f"an error without details: {error}"
    return refused_as(status)


def refused_as(status: Status) -> Refused:
    info, bad = ErrorInfo(), BadRequest()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
    assert info.domain == "ledger", status
    (code,) = (each.name for each in grpc.StatusCode if each.value[0] == status.code)
    return Refused(code, info.reason, dict(info.metadata), tuple(sorted(each.field for each in bad.field_violations)))
