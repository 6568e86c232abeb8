"""The server under attack, a client that behaves beside the attackers, and what has to hold whatever they do."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any, Final

import grpc
import psutil
from serving import LedgerServer, eventually, run_ledger, serving

from ledger.v1.account_pb2 import (
    ACCOUNT_KIND_EXTERNAL,
    GetAccountBalanceRequest,
    ListAccountsRequest,
    ListEntriesRequest,
    OpenAccountRequest,
)
from ledger.v1.account_pb2_grpc import AccountServiceStub
from ledger.v1.ledger_pb2 import Money
from ledger.v1.payment_pb2 import AuthorizePaymentRequest, ListPaymentsRequest
from ledger.v1.payment_pb2_grpc import PaymentServiceStub
from ledger.v1.transfer_pb2 import ListTransfersRequest, PostTransferRequest, TransferLeg
from ledger.v1.transfer_pb2_grpc import TransferServiceStub

ANSWERED_WITHIN_S: Final = 20.0
"""Within that a call beside an attack is answered. Bounds what a busy machine may take, not what is usual."""

GROWS_MOST_BYTES: Final = 400 * 2**20
"""How much larger the server may be after an attack. It remembers up to 65,536 streams, which take the most of it."""

LOGS_MOST_BYTES: Final = 2**20
"""How much an attack may make the server log: no attacker is to fill its disk."""

_INSIDE: Final = re.compile(
    rb"Traceback|\.py\b|\.cc?:\d|\.pyx|site-packages|Exception|[a-z]Error\b|Errno|errno|<class|object at| at 0x"
    rb"|psycopg|pydantic|msgspec|asyncio|uvloop|protobuf|eventsourcing|NoneType|/home/|/root/|/usr/|/tmp/"
    rb"|SELECT |INSERT |UPDATE |relation \"|SQLSTATE"
)


def eur(cents: int) -> Money:
    return Money(currency_code="EUR", minor_units=cents)


def leak(said: bytes) -> bytes | None:
    """What shows the inside of the server: names of exceptions, libraries and files, SQL, addresses in memory."""
    found = _INSIDE.search(said)
    return said[max(0, found.start() - 80) : found.end() + 80] if found else None


class Target:
    """The server that is attacked, with four accounts, a few payments and a client that only wants to pay."""

    def __init__(self, server: LedgerServer) -> None:
        self.server = server
        self.host, _, port = server.address.partition(":")
        self.port = int(port)
        self.named: Final[dict[str, Any]] = {"ledger": server.ledger}
        self._paid = 0
        with server.channel() as channel:
            self._begin(AccountServiceStub(channel), TransferServiceStub(channel))
        for _ in range(2):
            self.pay()
        self._size_at_first = self._process.memory_info().rss
        self._sockets_at_first = self.sockets

    def _begin(self, accounts: Any, transfers: Any) -> None:
        for account_id, fields in {
            "bank": {"kind": ACCOUNT_KIND_EXTERNAL},
            "payer": {},
            "payee": {},
            "alice": {},
            "shop": {},
            "dollars": {"currency_code": "USD"},
        }.items():
            opening = OpenAccountRequest(**{"account_id": account_id, "currency_code": "EUR", **self.named, **fields})
            accounts.OpenAccount(opening, wait_for_ready=True)
        for name in ("payer", "alice"):
            leg = TransferLeg(from_account_id="bank", to_account_id=name, amount=eur(10**12))
            transfers.PostTransfer(PostTransferRequest(transfer_id=f"fund-{name}", legs=[leg], **self.named))

    def page_tokens(self) -> list[str]:
        """One of each list."""
        with self.server.channel() as channel:
            accounts = AccountServiceStub(channel)
            pages = (
                accounts.ListAccounts(ListAccountsRequest(page_size=1, **self.named)),
                accounts.ListEntries(ListEntriesRequest(account_id="bank", page_size=1, **self.named)),
                PaymentServiceStub(channel).ListPayments(ListPaymentsRequest(page_size=1, **self.named)),
                TransferServiceStub(channel).ListTransfers(ListTransfersRequest(page_size=1, **self.named)),
            )
        tokens = [each.next_page_token for each in pages]
        assert all(tokens)
        return tokens

    def pay(self, channel: grpc.Channel | None = None) -> float:
        """Authorize a payment and read what is left, as any client does; return the seconds that it took."""
        if channel is None:
            with self.server.channel() as channel:
                return self.pay(channel)
        self._paid += 1
        begun = time.monotonic()
        request = AuthorizePaymentRequest(
            payment_id=f"good-{self._paid}",
            payer_account_id="payer",
            payee_account_id="payee",
            amount=eur(1),
            **self.named,
        )
        paid = PaymentServiceStub(channel).AuthorizePayment(request, timeout=ANSWERED_WITHIN_S, wait_for_ready=True)
        assert paid.payment.amount_capturable == 1
        look = GetAccountBalanceRequest(account_id="payer", min_position=paid.position, **self.named)
        balance = AccountServiceStub(channel).GetAccountBalance(look, timeout=ANSWERED_WITHIN_S).balance
        assert balance.reserved == self._paid
        return time.monotonic() - begun

    @contextmanager
    def paying(self) -> Iterator[list[float]]:
        """A client that pays all the while, over one connection; how long each took."""
        done, took = Event(), list[float]()

        def pay() -> None:
            with self.server.channel() as channel:
                while not done.is_set():
                    took.append(self.pay(channel))
                    done.wait(0.02)

        with ThreadPoolExecutor(1) as pool:
            paying = pool.submit(pay)
            try:
                yield took
            finally:
                done.set()
                paying.result(2 * ANSWERED_WITHIN_S)
        assert took

    @property
    def sockets(self) -> int:
        """How many connections of clients the server has."""
        connections = self._process.net_connections("tcp")
        return sum(each.status == psutil.CONN_ESTABLISHED and each.laddr.port == self.port for each in connections)

    @property
    def _process(self) -> psutil.Process:
        process = self.server._process
        assert process is not None
        return psutil.Process(process.pid)

    def require_unharmed(self) -> None:
        """It runs, pays, has let go of every connection, has not grown or logged without bound, and logged no fault."""
        assert self._process.is_running()
        self.pay()
        eventually(lambda: self.sockets <= self._sockets_at_first)
        grown = self._process.memory_info().rss - self._size_at_first
        assert grown < GROWS_MOST_BYTES, f"the server has grown by {grown / 2**20:.0f} MiB"
        log = self.server.log
        assert "call_failed" not in log, log[-5_000:]
        assert "Traceback" not in log, log[-5_000:]
        assert len(log) < LOGS_MOST_BYTES, log[:5_000]

    def require_sound(self) -> None:
        """Every decision of its log is found to be right, and every balance to follow from it."""
        where = ["--dsn", self.server.dsn(), "--ledger", self.server.ledger]
        verified = run_ledger("audit", "verify", *where)
        assert verified.returncode == 0, verified.stdout + verified.stderr


@contextmanager
def attacked(folder: Path) -> Iterator[Target]:
    """A server to attack, which has to come out of it sound."""
    with serving(folder) as server:
        target = Target(server)
        yield target
        target.require_unharmed()
        target.require_sound()
