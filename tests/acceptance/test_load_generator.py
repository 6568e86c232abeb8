"""The load generator of the benchmarks, against a real server: it counts what was done, and no error as a success."""

from __future__ import annotations

import asyncio
import threading

import pytest
from serving import LedgerServer

from bench.load import Job, run
from bench.programs import BenchFailed, asked
from bench.work import of_ledger, opening
from ledger.v1.account_pb2 import GetAccountBalanceRequest
from ledger.v1.account_pb2_grpc import AccountServiceStub
from ledger.v1.batch_pb2 import ExecuteBatchRequest
from ledger.v1.batch_pb2_grpc import BatchServiceStub
from ledger.v1.payment_pb2 import GetPaymentRequest, Payment
from ledger.v1.payment_pb2_grpc import PaymentServiceStub

ACCOUNTS = 20


@pytest.fixture(scope="module")
def funded(server: LedgerServer) -> LedgerServer:
    """The server, with the accounts that the generator takes for granted."""
    with server.channel() as channel:
        for call in opening(ACCOUNTS):
            BatchServiceStub(channel).ExecuteBatch(ExecuteBatchRequest.FromString(of_ledger(call.body, server.ledger)))
    return server


def job(server: LedgerServer, kind: str, tag: str, calls: int, **more: object) -> Job:
    given = {"ledger": server.ledger, "outstanding": 16, "connections": 2, "accounts": ACCOUNTS} | more
    return Job(kind, [server.address], tag, calls, **given)  # type: ignore[arg-type]


def test_every_call_is_a_payment_of_its_own(funded: LedgerServer, tag: str) -> None:
    """As many payments are in the ledger as calls were counted."""
    result = asked(job(funded, "authorize", tag, 100))
    assert (result.calls, result.commands, result.errors) == (100, 100, 0)
    with funded.database() as database:
        (head,) = database.execute("SELECT max(position) FROM events").fetchone() or (0,)
    with funded.channel() as channel:
        stub = PaymentServiceStub(channel)
        found = [payment(funded, stub, f"{tag}-{number:07d}", head) for number in range(100)]
    assert len({each.payment_id for each in found}) == 100


def payment(server: LedgerServer, stub: PaymentServiceStub, payment_id: str, position: int) -> Payment:
    return stub.GetPayment(
        GetPaymentRequest(ledger=server.ledger, payment_id=payment_id, min_position=position)
    ).payment


def test_a_batch_larger_than_the_windows_of_http2_arrives_whole(funded: LedgerServer, tag: str) -> None:
    """1,000 commands are more than the 64 KiB that may be sent unasked; the read models have them when it returns."""
    result = asked(job(funded, "authorize_batched", tag, 3, batch=1_000, outstanding=2, caught_up=True))
    assert result.commands == 3_000
    with funded.channel() as channel:
        assert payment(funded, PaymentServiceStub(channel), f"{tag}-0002999", 0).amount_authorized > 0


def test_captures_follow_their_authorizations(funded: LedgerServer, tag: str) -> None:
    """Everything that was authorized is captured, whatever is outstanding at the same time."""
    result = asked(job(funded, "authorize_and_capture_batched", tag, 6, batch=50, outstanding=2))
    assert result.commands == 600


def test_retries_and_declines_are_what_they_are_counted_for(funded: LedgerServer, tag: str) -> None:
    """A retry has to be answered as replayed and a decline as declined; neither is an error."""
    result = asked(job(funded, "authorize", tag, 400, retries=10, declines=10))
    assert result.commands == 400


def test_a_replay_that_was_not_asked_for_is_an_error(funded: LedgerServer, tag: str) -> None:
    """The second time the same ids are only answered again. That must not pass for work."""
    asked(job(funded, "authorize", tag, 20))
    with pytest.raises(BenchFailed, match=r"20 wrong replies.*replayed True"):
        asked(job(funded, "authorize", tag, 20))


def test_a_grpc_error_is_not_a_success(funded: LedgerServer, tag: str) -> None:
    """h2load counts any answer; here the status counts, and its text is told."""
    with pytest.raises(BenchFailed, match=r"10 wrong replies.*status 5"):
        asked(job(funded, "read_payments", tag, 10))


def test_a_write_is_read_back_after_it(funded: LedgerServer, tag: str) -> None:
    result = asked(job(funded, "authorize_then_read", tag, 50))
    assert result.commands == 50


def test_an_open_loop_keeps_its_rate(funded: LedgerServer, tag: str) -> None:
    """100 calls at 200 a second take half a second, however quickly they are answered."""
    result = asked(job(funded, "authorize", tag, 100, rate=200.0))
    assert result.seconds >= 99 / 200


def test_the_share_of_each_server_is_told(funded: LedgerServer, tag: str) -> None:
    result = asked(job(funded, "authorize", tag, 64))
    assert result.by_target == {funded.address: 64}


def test_a_server_that_dies_is_an_error_for_each_call_that_waits() -> None:
    """Every call is answered, so that a run ends."""
    listening = threading.Event()

    async def hang_up() -> None:
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        address.append(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        listening.set()
        await asyncio.wait_for(stopped.wait(), 60)
        server.close()

    address: list[str] = []
    stopped = asyncio.Event()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(hang_up(),))
    thread.start()
    assert listening.wait(10)
    result = asyncio.run(run(Job("authorize", address, "gone", 10, outstanding=4, connections=1, accounts=1)))
    loop.call_soon_threadsafe(stopped.set)
    thread.join()
    loop.close()
    assert (result.errors, result.commands) == (10, 0)


def test_an_account_is_reserved_for_what_the_generator_counted(funded: LedgerServer, tag: str) -> None:
    """The ledger's own sum agrees with the generator's count."""
    with funded.channel() as channel:
        stub = AccountServiceStub(channel)

        def reserved() -> int:
            asked_for = GetAccountBalanceRequest(ledger=funded.ledger, account_id="hot")
            return stub.GetAccountBalance(asked_for).balance.reserved

        asked(job(funded, "authorize_batched", f"{tag}-0", 1, batch=1, hot=True, caught_up=True))
        before = reserved()
        asked(job(funded, "authorize_batched", tag, 1, batch=10, hot=True, caught_up=True))
        assert reserved() - before == sum(100 + number for number in range(10))
