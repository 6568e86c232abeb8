"""Queries: the read half of the gRPC services, answered from the read models, each at one position."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, Final, LiteralString, TypeAlias

from google.protobuf.message import Message

from ledger.domain.errors import AccountNotFound, FieldViolation, InvalidCommand, PaymentNotFound, TransferNotFound
from ledger.domain.ids import id_violation
from ledger.v1 import account_pb2, payment_pb2, transfer_pb2
from ledger.wire import moment
from projections import balances, payments, transfers
from projections.answers import account_message, balance_message, payment_message, transfer_message
from projections.arrivals import Arrivals
from projections.as_of import AsOf
from projections.balances import Balance, KnownBalance, known_balance, require_representable
from projections.connections import Connections, Rows
from projections.freshness import Freshness
from projections.lag import Lag
from projections.lists import Lists
from projections.log_head import LogHead
from projections.lookups import Found, Lookup
from projections.pages import POSITION_MOST
from projections.payments import Payment
from projections.transfers import Transfer
from projections.trial_balance import TrialBalances

Query: TypeAlias = Callable[[Any, float | None], Awaitable[Message]]
"""Takes a request and the seconds that remain for it, and returns the response."""

Stream: TypeAlias = Callable[[Any, float | None], AsyncGenerator[Message, None]]
"""The same for many responses."""

REPORT_CONNECTIONS_MOST: Final = 2
"""What goes over all accounts has connections of its own, so that point reads never wait for it."""

LIST_CONNECTIONS_MOST: Final = 4
"""The same for lists: with a filter that lets little pass a page takes as long as there is much that doesn't."""


class Queries:
    """The queries of one ledger. All raise InvalidCommand for a malformed request, and what `Freshness.seen` raises."""

    def __init__(
        self, dsn: str, ledger: str, *, arrivals: Arrivals | None = None, log_head: LogHead | None = None
    ) -> None:
        """`arrivals` are told by a follower; `log_head` is needed where `dsn` is not where commands are recorded."""
        self._connections: Final = Connections(dsn, ledger)
        log_head = log_head or LogHead(self._connections.rows)
        self._freshness: Final = Freshness(self._connections, arrivals, log_head)
        self._accounts: Final = Lookup(self._connections, balances.SQL.select_accounts, Balance._make)
        self._payments: Final = Lookup(self._connections, payments.SQL.select_payments, Payment._make)
        self._transfers: Final = Lookup(self._connections, transfers.SQL.select_transfers, Transfer._make)
        self._as_of: Final = AsOf(self._connections, log_head)
        self._reports: Final = Connections(dsn, ledger, name="ledger-reports", most=REPORT_CONNECTIONS_MOST)
        trial_balances = TrialBalances(self._reports, self._freshness, self._as_of)
        self._listing: Final = Connections(dsn, ledger, name="ledger-lists", most=LIST_CONNECTIONS_MOST)
        lists = Lists(self._listing, self._freshness, AsOf(self._listing, log_head), self._accounts)
        self.by_rpc: Final[Mapping[str, Query]] = {
            "GetAccount": self.get_account,
            "GetAccountBalance": self.get_account_balance,
            "GetPayment": self.get_payment,
            "GetTransfer": self.get_transfer,
            "ListAccounts": lists.list_accounts,
            "ListEntries": lists.list_entries,
            "ListPayments": lists.list_payments,
            "ListTransfers": lists.list_transfers,
        }
        """What is answered here, by the name of the rpc."""

        self.streams: Final[Mapping[str, Stream]] = {"GetTrialBalance": trial_balances.get_trial_balance}
        """What is answered by one response after the other."""

    @property
    def rows(self) -> Callable[..., Awaitable[Rows]]:
        """Runs statements for other queries on the connections of these."""
        return self._connections.rows

    async def open(self) -> None:
        """Begin to watch the checkpoint. A database that is away is no hindrance."""
        self._freshness.open()

    async def close(self) -> None:
        await self._freshness.close()
        await asyncio.gather(*(pool.close() for pool in self.pools))

    @property
    def failure(self) -> str | None:
        """Why reads can't be answered as they should be now, if so; for the health service."""
        return self._freshness.failure

    @property
    def position(self) -> int:
        """The last position that reads were seen to include; at most a second old."""
        return self._freshness.position

    @property
    def stopped(self) -> bool:
        """Whether the read models have stopped at an event that can't be applied."""
        return self._freshness.stopped

    @property
    def lag(self) -> Lag:
        """How far reads are behind the log."""
        return self._freshness.lag

    @property
    def pools(self) -> tuple[Connections, ...]:
        """The connections that reads use."""
        return self._connections, self._listing, self._reports

    # --- the queries -------------------------------------------------------------------------------------------------

    async def get_account(
        self, request: account_pb2.GetAccountRequest, remaining_s: float | None
    ) -> account_pb2.GetAccountResponse:
        """Raises AccountNotFound."""
        _require_well_formed(request, "account_id")
        found = await self._freshness.seen(
            lambda: self._accounts.find(request.account_id), request.min_position, remaining_s
        )
        if found.row is None:
            raise AccountNotFound(account_id=request.account_id)
        return account_pb2.GetAccountResponse(account=account_message(found.row), position=found.position)

    async def get_account_balance(
        self, request: account_pb2.GetAccountBalanceRequest, remaining_s: float | None
    ) -> account_pb2.GetAccountBalanceResponse:
        """Raises AccountNotFound and BalanceNotRepresentable."""
        _require_well_formed(request, "account_id")
        at = await self._as_of.known_at(request, remaining_s)
        read = self._balance(request, at)
        found = await self._freshness.seen(read, max(request.min_position, at or 0), remaining_s)
        if found.row is None:
            raise AccountNotFound(account_id=request.account_id)
        require_representable(found.row)
        position = found.position if at is None else at
        return account_pb2.GetAccountBalanceResponse(balance=balance_message(found.row), position=position)

    async def get_payment(
        self, request: payment_pb2.GetPaymentRequest, remaining_s: float | None
    ) -> payment_pb2.GetPaymentResponse:
        """Raises PaymentNotFound."""
        _require_well_formed(request, "payment_id")
        at = await self._as_of.known_at(request, remaining_s)
        found = await self._freshness.seen(
            lambda: self._payments.find(request.payment_id), max(request.min_position, at or 0), remaining_s
        )
        payment = found.row
        if at is not None:
            payment = (await self._as_of.payments([request.payment_id], at)).get(request.payment_id)
        if payment is None:
            raise PaymentNotFound(payment_id=request.payment_id)
        position = found.position if at is None else at
        return payment_pb2.GetPaymentResponse(payment=payment_message(payment), position=position)

    async def get_transfer(
        self, request: transfer_pb2.GetTransferRequest, remaining_s: float | None
    ) -> transfer_pb2.GetTransferResponse:
        """Raises TransferNotFound."""
        _require_well_formed(request, "transfer_id")
        found = await self._freshness.seen(
            lambda: self._transfers.find(request.transfer_id), request.min_position, remaining_s
        )
        if found.row is None:
            raise TransferNotFound(transfer_id=request.transfer_id)
        return transfer_pb2.GetTransferResponse(transfer=transfer_message(found.row), position=found.position)

    # --- for the sweeper ---------------------------------------------------------------------------------------------

    async def expired_payments(self, now: datetime, most: int) -> list[str]:
        """The ids of payments whose time is over and that still have something reserved, as far as is known here."""
        rows = await self._connections.rows(payments.SQL.select_expired, {"now": now, "most": most})
        return [payment_id for (payment_id,) in rows]

    # --- as of an earlier moment -------------------------------------------------------------------------------------

    def _balance(
        self, request: account_pb2.GetAccountBalanceRequest, at: int | None
    ) -> Callable[[], Awaitable[Found[Any]]]:
        if request.HasField("effective_at"):
            effective_at = moment(request.effective_at, "effective_at")
            parameters = {"at": POSITION_MOST if at is None else at, "effective_at": effective_at}
            return lambda: self._known(balances.SQL.select_effective, request.account_id, parameters)
        if at is not None:
            return lambda: self._known(balances.SQL.select_known, request.account_id, {"at": at})
        return lambda: self._accounts.find(request.account_id)

    async def _known(
        self, statement: LiteralString, account_id: str, parameters: Mapping[str, Any]
    ) -> Found[KnownBalance]:
        """The balance as it was known, and if it is asked so, with only that posted which was effective."""
        (row,) = await self._connections.rows(statement, {**parameters, "account_id": account_id})
        position, failure, *columns = row
        if columns[0] is None:
            return Found(position, failure, None)
        return Found(position, failure, known_balance(columns))


def _require_well_formed(request: Any, id_field: str) -> None:
    """Raise InvalidCommand, with every field that is not as it must be, if one isn't."""
    wrong = id_violation(getattr(request, id_field))
    violations = [FieldViolation(id_field, wrong)] if wrong else []
    if request.min_position < 0:
        violations.append(FieldViolation("min_position", "must not be negative"))
    if violations:
        raise InvalidCommand(*violations)
