"""The gate that every call goes through: who it is, whether they may, and whether there is room."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, Protocol, Self, TypeAlias

import grpc.aio

from ledger.callers import ANYBODY, Caller, Unauthenticated
from ledger.deadlines import DEADLINE
from ledger.domain.errors import Refusal
from ledger.limits import CALLS_MOST, DEADLINE_DEFAULT_S, DEADLINE_LEAST_S
from ledger.outages import DeadlinePassed
from ledger.permissions import require_permitted
from ledger.rate_limit import RateLimit

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_SCHEME: Final = "bearer "


class TooManyCalls(Refusal):
    """This server has {calls} calls under way, as many as it takes. Nothing was recorded; try again."""

    code = "TOO_MANY_CALLS"


class KnowsCallers(Protocol):
    """Where tokens are looked up."""

    def caller(self, token: str) -> Caller:
        """Whose token it is. Raises Unauthenticated or CallersUnavailable."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How many calls are let in, and how long one may take."""

    calls_most: int = CALLS_MOST
    deadline_default_s: float = DEADLINE_DEFAULT_S
    """For calls that come without a deadline. Streams may take as long as they go on."""

    deadline_least_s: float = DEADLINE_LEAST_S
    """Less than that is not worth beginning."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call that may come in: it is inside while it is entered."""

    context: Context
    caller: Caller
    deadline: float | None
    """In seconds of the monotonic clock."""

    gate: Gate

    def __enter__(self) -> Self:
        self.gate.inside += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.gate.inside -= 1

    def require_still_known(self) -> None:
        """Raise Unauthenticated or CallersUnavailable if the caller would not be let in now: streams go on."""
        self.gate.identify(self.context)

    @property
    def time_left_s(self) -> float | None:
        return None if self.deadline is None else self.deadline - monotonic()


class Gate:
    """Lets calls in, one by one, and knows how many are inside."""

    def __init__(
        self, callers: KnowsCallers | None = None, limits: Limits | None = None, rate: RateLimit | None = None
    ) -> None:
        """Without `callers` nobody is asked for a token, and everybody may do everything."""
        self._callers: Final = callers
        self._limits: Final = limits or Limits()
        self._rate: Final = rate
        self.inside = 0
        """How many calls are under way."""

    def identify(self, context: Context) -> Caller:
        """Who calls. Raises Unauthenticated or CallersUnavailable."""
        if self._callers is None:
            return ANYBODY
        return self._callers.caller(_token(context))

    def admit(self, rpc: str, context: Context, commands: int, *, is_stream: bool) -> Call:
        """Let a call in, which is to be entered right then. `commands` are those in it, or 1 for a query.

        Raises Unauthenticated, CallersUnavailable, PermissionDenied, RateExceeded, TooManyCalls or DeadlinePassed.
        """
        caller = self.identify(context)
        require_permitted(caller, rpc)
        if self.inside >= self._limits.calls_most:
            raise TooManyCalls(calls=self.inside)
        if self._rate is not None:
            self._rate.take(caller.name, commands)
        deadline = self._deadline(context.time_remaining(), is_stream=is_stream)
        DEADLINE.set(deadline)
        return Call(context, caller, deadline, self)

    def _deadline(self, remaining_s: float | None, *, is_stream: bool) -> float | None:
        if remaining_s is None:
            return None if is_stream else monotonic() + self._limits.deadline_default_s
        if remaining_s < self._limits.deadline_least_s:
            raise DeadlinePassed
        return monotonic() + remaining_s


def _token(context: Context) -> str:
    """The token that the call brings along. Raises Unauthenticated if there is none, or more than one."""
    given = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
    if not given:
        raise Unauthenticated(why="there was none")
    if len(given) > 1:
        raise Unauthenticated(why="there was more than one")
    value = given[0]
    if not isinstance(value, str) or not value[: len(_SCHEME)].lower() == _SCHEME:
        raise Unauthenticated(why="it was not sent that way")
    return value[len(_SCHEME) :].strip()
