"""An exchange: one call of an rpc, from when it came in to how it ends, with its place, metrics and log lines."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import structlog
from google.protobuf.message import Message
from grpc import StatusCode

from ledger.card_numbers import has_card_number
from ledger.deadlines import DEADLINE
from ledger.domain.errors import Refusal
from ledger.gate import Call
from ledger.grpc_server import Incoming, Metadata
from ledger.log_output import CALL
from ledger.outages import Internal
from ledger.status import code_of, status_of

CORRELATION_ID: Final = "x-correlation-id"
_CORRELATION_ID: Final = re.compile(r"[!-~]{1,128}").fullmatch
_TRACEPARENT: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?"
).fullmatch

Ended: TypeAlias = Callable[[StatusCode, float], None]
"""Is told with which code a call ended, and how many seconds it took."""

log = structlog.get_logger(__name__)


class Exchange:
    """One call, to be replied to, refused or given up: once, from whichever thread has come to that.

    What is done for it is done by `run` or `go_on`: whatever is raised there ends the call, a refusal by its status,
    anything else by INTERNAL without a word; and what is logged there bears the call's names.
    """

    __slots__ = ("_began", "_ended", "_is_over", "_names", "_trailing", "call", "incoming", "rpc")

    def __init__(self, rpc: str, incoming: Incoming, ended: Ended) -> None:
        self.rpc: Final = rpc
        self.incoming: Final = incoming
        self.call: Call | None = None
        """Its place, from when it was let in."""
        self._ended: Final = ended
        self._is_over = False
        self._began: Final = perf_counter()
        self._names: Mapping[str, str] = MappingProxyType({})
        self._trailing: Metadata = ()

    @property
    def admitted(self) -> Call:
        """Its place, which it has wherever it is answered."""
        assert self.call is not None
        return self.call

    def name(self, correlation_id: str, ledger: str) -> None:
        """Name it for log lines, and tell the client the id that its events will bear."""
        self._names = {"correlation_id": correlation_id, "ledger": ledger, "actor": self.admitted.caller.name}
        self._trailing = ((CORRELATION_ID, correlation_id),)
        CALL.set(self._names)

    def run(self, step: Callable[[], None]) -> None:
        """Do a step of it, in this thread."""
        token = CALL.set(self._names)
        try:
            step()
        except Exception as error:
            self._fail(error)
        finally:
            CALL.reset(token)

    def go_on(self, loop: asyncio.AbstractEventLoop, work: Callable[[], Awaitable[None]]) -> None:
        """Do the rest of it in an event loop. It is cancelled if the client goes away."""
        self.incoming.go_on(loop, self._work(work))

    async def _work(self, work: Callable[[], Awaitable[None]]) -> None:
        CALL.set(self._names)
        DEADLINE.set(self.admitted.deadline)
        try:
            await work()
        except asyncio.CancelledError:
            self._over(StatusCode.CANCELLED)
            self.incoming.end(StatusCode.CANCELLED.value[0])
        except Exception as error:
            self._fail(error)

    # --- how it ends -------------------------------------------------------------------------------------------------

    def reply(self, response: Message) -> None:
        """End it with its only response."""
        data = response.SerializeToString()
        self._over(StatusCode.OK)
        self.incoming.answer(data, self._trailing)

    def complete(self) -> None:
        """End a stream of responses."""
        self._over(StatusCode.OK)
        self.incoming.end(0, "", self._trailing)

    def refuse(self, refusal: Refusal) -> None:
        """End it with the status of a refusal, and all details."""
        self._over(code_of(refusal))
        self.incoming.end(*ending(refusal, self._trailing))

    def _fail(self, error: Exception) -> None:
        if not isinstance(error, Refusal):
            log.error("call_failed", rpc=self.rpc, exc_info=error)
        if not self._is_over:
            self.refuse(error if isinstance(error, Refusal) else Internal())

    def _over(self, code: Any) -> None:  # The stubs take gRPC's codes for numbers.
        self._is_over = True
        if self.call is not None:
            self.call.leave()
        took_s = perf_counter() - self._began
        self._ended(code, took_s)
        log.debug("call_ended", rpc=self.rpc, code=code.name, took_s=round(took_s, 6))


def ending(refusal: Refusal, trailing: Metadata = ()) -> tuple[int, str, Metadata]:
    """How a call ends that is refused, for `Incoming.end`: its status, in words, and with all details."""
    status = status_of(refusal)
    return status.code, status.message, (*trailing, ("grpc-status-details-bin", status.SerializeToString()))


def correlation_id_of(metadata: Metadata) -> str | None:
    """The caller's name for the request: its x-correlation-id, else the trace id of its traceparent (W3C)."""
    trace_id = None
    for key, value in metadata:
        if key == CORRELATION_ID and isinstance(value, str) and _CORRELATION_ID(value) and not has_card_number(value):
            return value
        if key == "traceparent" and (found := _TRACEPARENT(str(value))):
            trace_id = found[1]
    return trace_id
