"""Reflection: the contract, told to every caller who is known."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from grpc_reflection.v1alpha import reflection

from ledger.domain.errors import Refusal
from ledger.gate import Gate
from ledger.services import ending

_ReflectionServicer: Final[Any] = reflection.aio.ReflectionServicer  # type: ignore[attr-defined]  # the stubs lack it


class Reflection(_ReflectionServicer):  # type: ignore[misc]  # grpcio-reflection has no types
    """gRPC's own servicer, behind the gate: any token will do."""

    def __init__(self, services: Sequence[str], gate: Gate) -> None:
        super().__init__(services)
        self._gate = gate

    async def ServerReflectionInfo(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:  # noqa: N802
        try:
            self._gate.identify(context)
        except Refusal as refusal:
            await context.abort(*ending(context, refusal))
        async for response in super().ServerReflectionInfo(requests, context):
            yield response
