"""Limits: too much is refused at once, with a pause to keep, and the server is itself again by itself."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event
from typing import Any, Final

import grpc
import psutil
import pytest
from grpc import StatusCode
from serving import LedgerServer, eventually, serving
from test_api import Client, Refused, authorize, batch, leg, opening, refused_by, transfer
from test_cli import turn_held

from bench.load import Job
from bench.programs import asked
from bench.work import AUTHORIZE
from ledger.limits import CALLS_MOST as CALLS_MOST_USUALLY
from ledger.v1.account_pb2 import ACCOUNT_KIND_EXTERNAL, FreezeAccountRequest, GetAccountRequest

CALLS_MOST: Final = 20
FULL: Final = Refused(StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS", {"calls": str(CALLS_MOST), "kind": "commands"})
REFUSED_CALLS: Final = int(os.environ.get("LEDGER_TEST_REFUSED_CALLS", "4000"))
OUTSTANDING: Final = 100
AT_ONCE: Final = 900
"""Of one rpc. Of more than a thousand, gRPC's core cuts off what a busy machine has not seen by then."""

WAVES: Final = 4
LARGE: Final = 2**21
INSIDE_S: Final = 3_600
"""Longer than all others take to be refused."""


@contextmanager
def client_of(server: LedgerServer, tag: str) -> Iterator[Client]:
    with server.channel() as channel:
        client = Client(channel, server.ledger, tag)
        client.do(opening("bank~", kind=ACCOUNT_KIND_EXTERNAL), opening("alice~"), opening("shop~"))
        client.do(transfer("fund~", leg("bank~", "alice~", 1_000_000)))
        yield client


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LedgerServer]:
    """A server that takes few calls at once."""
    with serving(tmp_path_factory.mktemp("narrow"), LEDGER_CALLS_MOST=str(CALLS_MOST)) as server:
        yield server


def test_more_calls_than_it_takes_are_refused_while_memory_stays_flat(narrow: LedgerServer, tag: str) -> None:
    """TOO_MANY_CALLS, thousands of times, while nothing goes forward; those let in are answered when it does."""
    process = psutil.Process(narrow.pid)
    with client_of(narrow, tag) as client:
        with turn_held(narrow.dsn(), narrow.ledger) as until_somebody_waits:
            inside = fill(client)
            until_somebody_waits()
            refuse(client, FULL, 3_000)  # Until what the collector of garbage lets lie about has its usual size.
            before = process.memory_info().rss
            refuse(client, FULL, REFUSED_CALLS)
            grown = process.memory_info().rss - before
        assert [call.result().replayed for call in inside] == [False] * CALLS_MOST
        assert not client(authorize("after~")).replayed
    assert grown < 8 * 2**20


def test_thousands_of_calls_are_each_told_why_they_are_refused(narrow: LedgerServer, tag: str) -> None:
    """They come faster than they are answered, and none is cut off by gRPC before it is seen."""
    with client_of(narrow, tag) as client:
        with turn_held(narrow.dsn(), narrow.ledger) as until_somebody_waits:
            inside = fill(client)
            until_somebody_waits()
            for wave in range(WAVES):
                calls = [client.start(authorize(f"many{wave}-{number}~")) for number in range(AT_ONCE)]
                assert [refused_by(call.exception()) for call in calls] == [FULL] * AT_ONCE
        assert [call.result().replayed for call in inside] == [False] * CALLS_MOST


def test_a_server_at_rest_has_room_again_for_many_at_once(narrow: LedgerServer, tag: str) -> None:
    """However fast they come: each of 900 is told why it is refused, and so are those of the next times."""
    with client_of(narrow, tag) as client, turn_held(narrow.dsn(), narrow.ledger) as until_somebody_waits:
        fill(client)
        until_somebody_waits()
        for number in range(3):
            of = {"ledger": narrow.ledger, "outstanding": 900, "connections": 8, "refusals": True}
            result = asked(Job("authorize", [narrow.address], f"{tag}{number}", 900, **of))
            assert (result.refused, result.cut_off) == (900, 0)


@pytest.mark.parametrize("kind", ["authorize", "read_balances"])
def test_as_many_as_are_let_in_are_never_cut_off(server: LedgerServer, tag: str, kind: str) -> None:
    """However busy the server is with them: each reply makes the next call, so that they come in waves."""
    of = {"ledger": server.ledger, "connections": 8, "accounts": 50}
    asked(Job("opening", [server.address], tag, 0, **{**of, "outstanding": 1}))
    result = asked(Job(kind, [server.address], tag, 5_000, **of, outstanding=CALLS_MOST_USUALLY))
    assert result.commands == 5_000


def test_calls_that_never_say_what_they_ask_for_keep_nobody_out(server: LedgerServer, tag: str) -> None:
    """More of them than are let in, and of the same rpc."""
    of = {"ledger": server.ledger, "connections": 8, "accounts": 50}
    asked(Job("opening", [server.address], tag, 0, **{**of, "outstanding": 1}))
    never = Event()
    with server.channel() as channel:
        begin = channel.stream_unary(AUTHORIZE)
        silent = [begin.future(iter(never.wait, True)) for _ in range(CALLS_MOST_USUALLY + 100)]
        # On one connection calls come in their order: where one that speaks is answered, those before it are there.
        with pytest.raises(grpc.RpcError) as malformed:
            channel.unary_unary(AUTHORIZE)(b"", timeout=60)
        assert malformed.value.code() is StatusCode.INVALID_ARGUMENT
        result = asked(Job("authorize", [server.address], tag, 5_000, **of, outstanding=CALLS_MOST_USUALLY))
        assert result.commands == 5_000
        assert not any(each.done() for each in silent)
        never.set()


def test_queries_are_answered_while_commands_have_taken_all_their_places(narrow: LedgerServer, tag: str) -> None:
    """Whether their callers still wait for them or have long given up."""
    with client_of(narrow, tag) as client:
        with turn_held(narrow.dsn(), narrow.ledger) as until_somebody_waits:
            inside = fill(client)
            until_somebody_waits()
            for call in inside[1:]:
                call.cancel()
            assert client(GetAccountRequest(account_id="alice~")).position
            assert reason_of(client, authorize("out~")) == "TOO_MANY_CALLS"
        eventually(lambda: reason_of(client, authorize("again~")) is None)


def test_large_requests_that_are_refused_leave_nothing_behind(narrow: LedgerServer, tag: str) -> None:
    """Not even until the collector of cycles comes by: there are no cycles, whoever refuses."""
    process = psutil.Process(narrow.pid)
    unknown = b"\xfa\x3f" + b"\x80\x80\x80\x01" + bytes(LARGE)  # Field 127, of so many bytes, which no request has.
    with client_of(narrow, tag) as client:
        # By the committer, and before it.
        for nobody, why in ((f"nobody{tag}", "ACCOUNT_NOT_FOUND"), ("", "INVALID_REQUEST")):
            request = FreezeAccountRequest.FromString(
                FreezeAccountRequest(account_id=nobody).SerializeToString() + unknown
            )
            for _ in range(10):
                assert reason_of(client, request) == why
            before = process.memory_info().rss
            for _ in range(60):
                assert reason_of(client, request) == why
            assert process.memory_info().rss - before < 10 * LARGE


def fill(client: Client) -> list[Any]:
    """As many commands as there are places for, on their way; they were seen to be too many with one more."""
    calls = [client.start(authorize(f"in{number}~"), timeout=INSIDE_S) for number in range(CALLS_MOST + 1)]
    eventually(lambda: any(call.done() for call in calls))
    (refused,) = (call for call in calls if call.done())
    assert refused_by(refused.exception()) == FULL
    return [call for call in calls if call is not refused]


def reason_of(client: Client, request: Any) -> str | None:
    """Why a call is refused, or None."""
    try:
        client(request)
    except grpc.RpcError as error:
        return refused_by(error).reason
    return None


def refuse(client: Client, why: Refused, calls: int) -> None:
    """Have that many calls refused, many at a time, each in the same way."""
    under_way: deque[Any] = deque()
    for number in range(calls):
        under_way.append(client.start(authorize(f"out{number}~")))
        if len(under_way) == OUTSTANDING or number == calls - 1:
            while under_way:
                error = under_way.popleft().exception()
                assert refused_by(error) == why


def test_a_caller_who_asks_for_too_much_is_refused_and_later_is_not(tmp_path: Path, tag: str) -> None:
    """A batch counts as its commands; the time that it takes to be forgiven is the rate's."""
    with (
        serving(tmp_path, LEDGER_RATE_PER_S="200", LEDGER_RATE_BURST="60") as server,
        ExitStack() as stack,
    ):
        client = stack.enter_context(client_of(server, tag))
        client(batch(*(authorize(f"p{number}~", 1) for number in range(200))))
        exceeded = Refused(StatusCode.RESOURCE_EXHAUSTED, "RATE_EXCEEDED", {"actor": "anonymous", "rate_per_s": "200"})
        assert client.refuses(authorize("q~", 1)) == exceeded
        assert client.refuses(GetAccountRequest(account_id="alice~")) == exceeded
        eventually(lambda: reason_of(client, authorize("q~", 1)) is None)


def test_batches_of_nothing_are_counted_as_well(tmp_path: Path, tag: str) -> None:
    """Else a caller could have the server busy with them beyond any rate."""
    with serving(tmp_path, LEDGER_RATE_PER_S="1", LEDGER_RATE_BURST="20") as server, client_of(server, tag) as client:
        eventually(lambda: reason_of(client, batch()) == "RATE_EXCEEDED")


def test_a_call_without_a_deadline_has_one(tmp_path: Path, tag: str) -> None:
    """What waits in vain is answered in the end, and was not done: the client that set no deadline is told."""
    with serving(tmp_path, LEDGER_DEADLINE_DEFAULT_S="0.3") as server, client_of(server, tag) as client:
        with turn_held(server.dsn(), server.ledger) as until_somebody_waits:
            first = client.start(authorize("first~"), timeout=None)  # In the committer's hands: never given up.
            until_somebody_waits()
            late = [client.start(authorize(f"late{number}~"), timeout=None) for number in range(3)]
            asked_at = time.monotonic()
            eventually(lambda: time.monotonic() > asked_at + 0.5)
        assert not first.result().replayed
        passed = Refused(StatusCode.DEADLINE_EXCEEDED, "DEADLINE_PASSED", {})
        assert [refused_by(call.exception()) for call in late] == [passed] * 3
        assert not client(authorize("late0~")).replayed


def test_a_call_that_is_hardly_waited_for_is_not_begun(tmp_path: Path, tag: str) -> None:
    """Its id is not used up."""
    with serving(tmp_path, LEDGER_DEADLINE_LEAST_S="50") as server, server.channel() as channel:
        client = Client(channel, server.ledger, tag)
        hurried = client.start(opening("alice~"), timeout=40)
        assert refused_by(hurried.exception()).reason == "DEADLINE_PASSED"
        assert not client(opening("alice~")).replayed


def test_a_request_that_is_too_large_is_refused(tmp_path: Path, tag: str) -> None:
    """By gRPC, before it is read whole; the connection goes on."""
    with serving(tmp_path, LEDGER_MESSAGE_MOST_BYTES="2000") as server, server.channel() as channel:
        client = Client(channel, server.ledger, tag)
        large = client.start(opening("alice~", metadata={"note": "x" * 2_000})).exception()
        assert large.code() is StatusCode.RESOURCE_EXHAUSTED
        assert not client(opening("alice~")).replayed
