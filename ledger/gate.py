"""The gate that every call goes through: who it is, whether they may, and whether there is room."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from threading import Lock
from time import monotonic
from typing import Final, Protocol

from ledger.callers import ANYBODY, Caller, Unauthenticated
from ledger.domain.errors import Refusal
from ledger.grpc_server import Incoming, Metadata
from ledger.limits import CALLS_MOST, DEADLINE_DEFAULT_S, DEADLINE_LEAST_S
from ledger.outages import DeadlinePassed
from ledger.permissions import require_permitted
from ledger.rate_limit import RateLimit

_SCHEME: Final = "bearer "


class Kind(Enum):
    """What has places of its own: while commands wait for a database that stalls, queries are still let in."""

    COMMANDS = "commands"
    """Single ones and batches."""

    QUERIES = "queries"
    """And streams."""


class TooManyCalls(Refusal):
    """This server has {calls} calls for {kind} under way, as many as it takes. Nothing was recorded; try again."""

    code = "TOO_MANY_CALLS"


class KnowsCallers(Protocol):
    """Where tokens are looked up."""

    def caller(self, token: str) -> Caller:
        """Whose token it is. Raises Unauthenticated or CallersUnavailable."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How many calls are let in, and how long one may take."""

    calls_most: int = CALLS_MOST
    """Of each kind."""

    deadline_default_s: float = DEADLINE_DEFAULT_S
    """For calls that come without a deadline. Streams may take as long as they go on."""

    deadline_least_s: float = DEADLINE_LEAST_S
    """Less than that is not worth beginning."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call that was let in, and has its place until it leaves."""

    incoming: Incoming
    caller: Caller
    deadline: float | None
    """In seconds of the monotonic clock."""

    kind: Kind
    gate: Gate

    def leave(self) -> None:
        """Give the place back; to be done once."""
        self.gate.give_back(self.kind)

    def require_still_known(self) -> None:
        """Raise Unauthenticated or CallersUnavailable if the caller would not be let in now: streams go on."""
        self.gate.identify(self.incoming)

    @property
    def time_left_s(self) -> float | None:
        return None if self.deadline is None else self.deadline - monotonic()


class Gate:
    """Lets calls in, one by one in one thread, and knows how many are inside. They may leave from any thread."""

    def __init__(
        self, callers: KnowsCallers | None = None, limits: Limits | None = None, rate: RateLimit | None = None
    ) -> None:
        """Without `callers` nobody is asked for a token, and everybody may do everything."""
        self._callers: Final = callers
        self._limits: Final = limits or Limits()
        self._rate: Final = rate
        self.full: Final = {kind: TooManyCalls(calls=self._limits.calls_most, kind=kind.value) for kind in Kind}
        """Why nobody is let in while there is no room."""

        self._lock: Final = Lock()
        self._inside: Final = dict.fromkeys(Kind, 0)

    def is_full(self, kind: Kind) -> bool:
        """Whether nobody is let in until somebody leaves."""
        return self.free(kind) <= 0

    def free(self, kind: Kind) -> int:
        """How many more are let in now."""
        return self._limits.calls_most - self._inside[kind]

    def identify(self, incoming: Incoming) -> Caller:
        """Who calls. Raises Unauthenticated or CallersUnavailable."""
        if self._callers is None:
            return ANYBODY
        return self._callers.caller(_token(incoming.metadata))

    def admit(self, rpc: str, kind: Kind, incoming: Incoming, commands: int, *, is_stream: bool) -> Call:
        """Let a call in. `commands` are those in it, or 1 for a query. A batch of none costs as much as one.

        Raises Unauthenticated, CallersUnavailable, PermissionDenied, TooManyCalls, RateExceeded or DeadlinePassed.
        """
        caller = self.identify(incoming)
        require_permitted(caller, rpc)
        if self.is_full(kind):
            raise TooManyCalls(**self.full[kind].details)
        if self._rate is not None:
            self._rate.take(caller.name, max(commands, 1))
        deadline = self._deadline(incoming.time_left_s, is_stream=is_stream)
        with self._lock:
            self._inside[kind] += 1
        return Call(incoming, caller, deadline, kind, self)

    def give_back(self, kind: Kind) -> None:
        """One call is not inside any more."""
        with self._lock:
            self._inside[kind] -= 1

    def _deadline(self, remaining_s: float | None, *, is_stream: bool) -> float | None:
        if remaining_s is None:
            return None if is_stream else monotonic() + self._limits.deadline_default_s
        if remaining_s < self._limits.deadline_least_s:
            raise DeadlinePassed
        return monotonic() + remaining_s


def _token(metadata: Metadata) -> str:
    """The token that the call brings along. Raises Unauthenticated if there is none, or more than one."""
    given = [value for key, value in metadata if key == "authorization"]
    if not given:
        raise Unauthenticated(why="there was none")
    if len(given) > 1:
        raise Unauthenticated(why="there was more than one")
    value = given[0]
    if not isinstance(value, str) or not value[: len(_SCHEME)].lower() == _SCHEME:
        raise Unauthenticated(why="it was not sent that way")
    return value[len(_SCHEME) :].strip()
