"""The gRPC server alone: how many calls of each rpc lie with it until it takes them up."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any, Final

import grpc
import pytest
from checks import eventually
from grpc import StatusCode

from ledger.grpc_server import Free, GrpcServer, Incoming, Refuse, Take
from ledger.server import PENDING_MOST

METHOD: Final = "/test.Service/Any"
OTHER: Final = "/test.Service/Other"
NONE: Final = "/test.Service/None"
WAIT_S: Final = 60.0
CUT_OFF: Final = StatusCode.CANCELLED
REFUSED: Final = StatusCode.RESOURCE_EXHAUSTED
UNKNOWN: Final = StatusCode.UNIMPLEMENTED


def refuse(incoming: Incoming, _message: bytes | None = None) -> bool:
    incoming.end(REFUSED.value[0])
    return True


class Halting:
    """Stops the server at some calls until it is told to go on, and refuses those from some number on unread."""

    def __init__(self, *at: int, unread_from: int) -> None:
        self.halts: Final = {number: (Event(), Event()) for number in at}
        self.seen = 0
        self._unread_from: Final = unread_from

    def __call__(self, incoming: Incoming) -> bool:
        self.seen += 1
        if self.seen in self.halts:
            reached, told = self.halts[self.seen]
            reached.set()
            assert told.wait(WAIT_S)
        return self.seen >= self._unread_from and refuse(incoming)

    def reached(self, number: int) -> None:
        """Return when it has stopped there."""
        assert self.halts[number][0].wait(WAIT_S)

    def go_on(self, number: int) -> None:
        self.halts[number][1].set()


@pytest.fixture
def before() -> int:
    """How many calls come before the first at which the server's thread stops."""
    return 0


@pytest.fixture
def unread_from() -> int:
    return 1


@pytest.fixture
def halting(before: int, unread_from: int) -> Halting:
    return Halting(before + 1, before + 1_000, unread_from=unread_from)


@pytest.fixture
def free() -> int:
    """How many calls would be let in, as the server is told."""
    return 0


@contextmanager
def serving(rpcs: dict[str, Take], halting: Halting, refusing: Refuse, free: dict[str, Free]) -> Iterator[grpc.Channel]:
    """A channel to a server with the limits of ours. It goes on in the end wherever it halts."""
    options = [
        ("grpc.server.max_pending_requests", PENDING_MOST),
        ("grpc.server.max_pending_requests_hard_limit", 2 * PENDING_MOST),
    ]
    server = GrpcServer(rpcs, options, refusing, free)
    port = server.add_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        for number in halting.halts:
            halting.go_on(number)
        asyncio.run(server.stop(1))


@pytest.fixture
def channel(halting: Halting, free: int) -> Iterator[grpc.Channel]:
    """To a server which knows METHOD and OTHER."""
    with serving({METHOD: refuse, OTHER: refuse}, halting, halting, {METHOD: lambda: free}) as channel:
        yield channel


@pytest.fixture
def call(channel: grpc.Channel) -> Any:
    """Makes a call."""
    rpcs = {path: channel.unary_unary(path) for path in (METHOD, OTHER, NONE)}
    return lambda path=METHOD: rpcs[path].future(b"", timeout=WAIT_S)


def cut_off(calls: list[Any]) -> int:
    return sum(each.done() and each.code() is CUT_OFF for each in calls)


def until_arrived(calls: list[Any]) -> list[Any]:
    """All calls but the last 100, of whom one was cut off when this returns: those before it have arrived by then."""
    eventually(lambda: cut_off(calls[-100:]) > 0)
    return calls[:-100]


@pytest.mark.parametrize(("free", "places"), [(0, 16), (10, 16), (500, 500)])
def test_there_is_room_for_many_at_once_and_for_few_while_more_come_than_are_taken_up(
    halting: Halting, call: Any, places: int
) -> None:
    """After a rest for 1,000; then, until all is taken up, for those who would be let in, or for 16.

    Beside what the core keeps by itself.
    """
    at_once = [call() for _ in range(3_000)]
    halting.reached(1)
    arrived = until_arrived(at_once)
    halting.go_on(1)

    halting.reached(1_000)  # The room is used up, and there are more.
    meanwhile = [call() for _ in range(2_000)]
    arrived_meanwhile = until_arrived(meanwhile)
    halting.go_on(1_000)
    assert {each.code() for each in at_once + meanwhile} == {CUT_OFF, REFUSED}
    least, most = PENDING_MOST, 2 * PENDING_MOST  # What the core keeps by itself, and takes up before what comes later.
    assert most >= len(arrived) - 1_000 - cut_off(arrived) >= least
    assert most >= len(arrived_meanwhile) - places - cut_off(arrived_meanwhile) >= -most

    after = [call() for _ in range(1_000)]
    assert {each.code() for each in after} == {REFUSED}


@pytest.mark.parametrize(("free", "unread_from"), [(500, 10_000)])
def test_calls_that_are_being_read_are_as_good_as_let_in(halting: Halting, call: Any) -> None:
    """So for others there are no places that they would take: who is over is refused while waiting is short."""
    at_once = [call() for _ in range(3_000)]
    halting.reached(1)
    until_arrived(at_once)
    halting.go_on(1)

    halting.reached(1_000)  # 1,000 have come and none is read yet.
    meanwhile = [call() for _ in range(2_000)]
    arrived_meanwhile = until_arrived(meanwhile)
    halting.go_on(1_000)
    assert {each.code() for each in at_once + meanwhile} == {CUT_OFF, REFUSED}
    assert len(arrived_meanwhile) - 16 - cut_off(arrived_meanwhile) <= 2 * PENDING_MOST


@pytest.mark.parametrize(("free", "before", "unread_from"), [(500, 602, 603)])
def test_calls_that_never_send_a_message_keep_nobody_out(halting: Halting, channel: grpc.Channel, call: Any) -> None:
    """Once all is taken up, their places are free again, however many they are."""
    never = Event()
    begin = channel.stream_unary(METHOD)
    silent = [begin.future(iter(never.wait, True), timeout=2 * WAIT_S) for _ in range(600)]
    eventually(lambda: halting.seen == 600)
    for _ in range(2):  # When the second comes, all was taken up after the first.
        assert call(OTHER).code() is REFUSED

    at_once = [call() for _ in range(3_000)]
    halting.reached(603)
    until_arrived(at_once)
    halting.go_on(603)
    halting.reached(1_602)
    meanwhile = [call() for _ in range(2_000)]
    arrived_meanwhile = until_arrived(meanwhile)
    halting.go_on(1_602)
    assert {each.code() for each in at_once + meanwhile} == {CUT_OFF, REFUSED}
    assert len(arrived_meanwhile) - 500 - cut_off(arrived_meanwhile) >= -2 * PENDING_MOST
    assert not any(each.done() for each in silent)
    never.set()


@pytest.mark.parametrize("next_path", [METHOD, OTHER])
def test_who_is_answered_while_the_server_is_busy_can_call_again_at_once(next_path: str) -> None:
    """The same rpc or another that shares its places: the server's thread may not run before that call is there."""
    inside: list[Incoming] = []
    halting = Halting(501, 1_500, unread_from=501)

    def free() -> int:
        return 500 - len(inside)

    def let_in(incoming: Incoming) -> bool:
        if halting(incoming):
            return True
        inside.append(incoming)
        return True

    rpcs = {METHOD: refuse, OTHER: refuse}
    with serving(rpcs, halting, let_in, dict.fromkeys(rpcs, free)) as channel:
        first, then = channel.unary_unary(METHOD), channel.unary_unary(next_path)
        answered = [first.future(b"", timeout=WAIT_S) for _ in range(500)]
        eventually(lambda: len(inside) == 500)
        at_once = [then.future(b"", timeout=WAIT_S) for _ in range(3_000)]
        halting.reached(501)
        until_arrived(at_once)
        halting.go_on(501)

        halting.reached(1_500)  # The room is used up, and nobody takes up calls.
        while inside:
            inside.pop().answer(b"")
        assert {each.code() for each in answered} == {StatusCode.OK}
        again = [then.future(b"", timeout=WAIT_S) for _ in range(200)]
        until_arrived([then.future(b"", timeout=WAIT_S) for _ in range(2_000)])
        halting.go_on(1_500)
        assert {each.code() for each in again} == {REFUSED}


def test_a_server_that_has_started_has_room_for_those_who_waited_for_it() -> None:
    """Of every rpc, however many there are: whoever comes right then is not cut off."""
    paths = [f"/test.Service/Rpc{number}" for number in range(100)]
    with serving(dict.fromkeys(paths, refuse), Halting(unread_from=1), refuse, {}) as channel:
        calls = [channel.unary_unary(path).future(b"", timeout=WAIT_S) for path in paths[-2:] for _ in range(500)]
        assert {each.code() for each in calls} == {REFUSED}


@pytest.mark.parametrize("free", [1_500])
def test_where_more_are_let_in_there_is_room_for_as_many_from_the_start(halting: Halting, call: Any) -> None:
    """The thread halts at the first: what is there was there before it."""
    at_once = [call() for _ in range(3_000)]
    halting.reached(1)
    arrived = until_arrived(at_once)
    assert len(arrived) - cut_off(arrived) >= 1_500


def test_a_call_that_is_answered_after_the_server_has_stopped_is_over_and_harms_nobody() -> None:
    """It was cut off. A step on what is closed would end the process."""
    held: list[Incoming] = []

    def hold(incoming: Incoming) -> bool:
        held.append(incoming)
        return True

    with serving({METHOD: refuse}, Halting(unread_from=1), hold, {}) as channel:
        waiting = channel.unary_unary(METHOD).future(b"", timeout=WAIT_S)
        eventually(lambda: len(held) == 1)
    held.pop().answer(b"")
    assert waiting.code() is CUT_OFF


@pytest.mark.parametrize("flooded", [METHOD, NONE])
def test_a_flood_of_one_rpc_leaves_the_others_their_room(halting: Halting, call: Any, flooded: str) -> None:
    """Of an rpc that there is, or of none: those who call another, such as a health check, are taken up."""
    first = call()
    halting.reached(1)
    flood = [call(flooded) for _ in range(2_000)]
    eventually(lambda: cut_off(flood) > 0)
    others = [call(OTHER) for _ in range(500)]
    halting.go_on(1)
    halting.go_on(1_000)
    assert {each.code() for each in [first, *others]} == {REFUSED}
    assert {each.code() for each in flood} == {CUT_OFF, UNKNOWN if flooded == NONE else REFUSED}
