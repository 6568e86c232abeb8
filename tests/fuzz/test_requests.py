"""Malformed requests, by the thousand: each is answered, in words of the contract, and harms nobody.

`make test` sends a few, always the same; `make test-fuzz` many, and others every time. FUZZ_SEED repeats a run.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections import Counter
from typing import Any, Final

import grpc
import grpc.aio
import pytest
from google.protobuf.message_factory import GetMessageClass
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from malformed import MOST_BYTES, Given, Malformed
from target import ANSWERED_WITHIN_S, Target, leak

from ledger.status import STATUS
from ledger.v1.account_pb2 import OpenAccountRequest
from ledger.v1.account_pb2_grpc import AccountServiceStub

RUNS: Final = int(os.environ.get("FUZZ_RUNS", "2000"))
SEED: Final = int(os.environ.get("FUZZ_SEED", "1" if RUNS <= 2_000 else str(secrets.randbits(32))))

AT_ONCE: Final = 32
"""Calls under way at any time."""

READ_MOST: Final = 20
"""Responses of a stream that are read before it is cancelled."""

FOLLOWED_FOR_S: Final = 0.2
"""A stream that follows the log goes on until somebody ends it."""

NEVER: Final = {
    "INTERNAL",
    "WRITES_STOPPED",
    "DATABASE_UNAVAILABLE",
    "NOT_RECORDED",
    "OUTCOME_UNKNOWN",
    "READ_MODEL_STOPPED",
    "SHUTTING_DOWN",
    "QUEUE_FULL",
    "DEADLINE_PASSED",
}
"""Reasons that would say that the server, and not the request, is at fault."""

AGAIN: Final = {"READS_UNAVAILABLE", "READ_MODEL_BEHIND", "TREE_BEHIND"}
"""What a busy server may say now and then. Whoever asks again has to get an answer in the end."""

TRIES: Final = 5
PAUSE_S: Final = 0.5


def test_malformed_requests_are_answered_and_harm_nobody(target: Target) -> None:
    """Within a bound, with a documented status and reason, and without a word about the inside of the server."""
    malformed = Malformed(SEED, target.server.ledger, target.page_tokens())
    met: Counter[str] = Counter()
    with target.paying() as took:
        asyncio.run(send_all(target, malformed, met))
    target.require_unharmed()
    assert max(took) < ANSWERED_WITHIN_S
    assert met["OK"] > RUNS / 50
    assert met["INVALID_REQUEST"] > RUNS / 10
    print(f"\n{RUNS:,} requests, seed {SEED}: {dict(met.most_common())}; beside them {len(took):,} payments")


def test_large_requests_that_are_refused_are_not_kept(target: Target) -> None:
    """They were, until the collector of cycles came by, which is seldom: 200 of these were most of a gigabyte."""
    request = OpenAccountRequest(account_id="x" * (MOST_BYTES - 1_000), currency_code="EUR", **target.named)
    with target.server.channel() as channel:
        for _ in range(200):
            with pytest.raises(grpc.RpcError) as refused:
                AccountServiceStub(channel).OpenAccount(request, timeout=ANSWERED_WITHIN_S)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    target.require_unharmed()


async def send_all(target: Target, malformed: Malformed, met: Counter[str]) -> None:
    """Send so many requests, several at a time, over one connection."""
    numbers = iter(range(RUNS))
    async with grpc.aio.insecure_channel(target.server.address) as channel:

        async def send() -> None:
            for number in numbers:
                given = malformed.request(number)
                try:
                    met[await answer(channel, given)] += 1
                except AssertionError as error:
                    head = f"FUZZ_SEED={SEED} request {number} ({given.kind}, {given.path})"
                    raise AssertionError(f"{head}: {error}\n{given.body[:2_000]!r}") from error

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(send())


async def answer(channel: grpc.aio.Channel, given: Given) -> str:
    """OK or the reason of what came back, after everything that has to hold for it was looked at."""
    for _ in range(TRIES):
        try:
            await (stream if given.method.server_streaming else unary)(channel, given)
        except grpc.aio.AioRpcError as error:
            said = reason(given, error)
            if said not in AGAIN:
                return said
        else:
            return "OK"
        await asyncio.sleep(PAUSE_S)
    raise AssertionError(f"{said}, {TRIES} times")


async def unary(channel: grpc.aio.Channel, given: Given) -> None:
    response = await channel.unary_unary(given.path)(given.body, timeout=ANSWERED_WITHIN_S)
    GetMessageClass(given.method.output_type).FromString(response)


async def stream(channel: grpc.aio.Channel, given: Given) -> None:
    """Read a part of it. One that may follow the log is ended by its deadline."""
    timeout = FOLLOWED_FOR_S if follows(given) else ANSWERED_WITHIN_S
    call: Any = channel.unary_stream(given.path)(given.body, timeout=timeout)
    read = 0
    async for response in call:
        GetMessageClass(given.method.output_type).FromString(response)
        read += 1
        if read == READ_MOST:
            call.cancel()
            return


def follows(given: Given) -> bool:
    try:
        request = GetMessageClass(given.method.input_type).FromString(given.body)
    except Exception:
        return False
    return bool(getattr(request, "follow", False))


def reason(given: Given, error: grpc.aio.AioRpcError) -> str:
    """The reason of an error: one of the table, with its status. gRPC itself says when a request is too large."""
    metadata = dict(error.trailing_metadata() or ())
    details = metadata.get("grpc-status-details-bin", b"")
    assert isinstance(details, bytes)
    said = (error.details() or "").encode() + details
    assert leak(said) is None, f"the answer shows the inside of the server: {said!r}"
    if not details:
        assert error.code() is not grpc.StatusCode.INTERNAL, error.details()
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            assert follows(given), "no answer in time"
        else:
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, f"{error.code()} {error.details()}"
            assert len(given.body) > MOST_BYTES, error.details()
        return error.code().name
    info = ErrorInfo()
    assert any(each.Unpack(info) for each in Status.FromString(details).details)
    assert info.reason not in NEVER, said
    assert STATUS[info.reason] is error.code()
    return info.reason
