"""The demo: the main job against a running server, in the order in which a newcomer would try it.

Accounts are opened and funded, payments authorized, captured and voided over gRPC; then the same numbers are shown from
two sides, from the log of events and from the read models. Every run has ids of its own, so it can be run again.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import Final, NamedTuple

import grpc
from rich.console import Console
from rich.json import JSON
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from ledger.client import Target, connected
from ledger.domain.money import format_amount
from ledger.embedded import running_dsn
from ledger.postgres import Role, connect, sql_blocks
from ledger.tables import table_of
from ledger.v1 import account_pb2 as account
from ledger.v1 import ledger_pb2
from ledger.v1 import payment_pb2 as payment
from ledger.v1 import transfer_pb2 as transfer
from ledger.v1.account_pb2_grpc import AccountServiceStub
from ledger.v1.payment_pb2_grpc import PaymentServiceStub
from ledger.v1.transfer_pb2_grpc import TransferServiceStub

SQL: Final = sql_blocks("ledger.sql", "demo.sql")

CURRENCY: Final = "EUR"
CUSTOMERS: Final = ("alice", "bob", "carol", "dave")
SHOPS: Final = ("bakery", "bookshop", "cinema")
DEPOSIT: Final = 5_000_00
PAYMENTS: Final = 300
ONE_TOO_MANY: Final = 199
TOO_MUCH: Final = 2 * DEPOSIT
_INTERRUPTED_S: Final = 10.0


class LoggedEvent(NamedTuple):
    """An event as the log has it; `state` is its JSON."""

    position: int
    stream: str
    version: int
    topic: str
    state: bytes


EventsOf = Callable[[str], Sequence[LoggedEvent]]
"""From a payment_id to its events, those that it caused on accounts among them, by position."""

BalancesFromLog = Callable[[], Mapping[str, tuple[int, int]]]
"""To (posted, reserved) of every account, added up from the events alone."""


class DemoFailed(Exception):
    """The two sides don't agree."""


class ServerDidNotStart(DemoFailed):
    """The demo has no server to show anything on."""


def run_demo(
    console: Console, *, server: str, ledger: str = "", events_of: EventsOf, balances_from_log: BalancesFromLog
) -> None:
    """Show the main job on a running server. Raises DemoFailed if the two sides differ, grpc.RpcError and NoAnswer."""
    with connected(Target(server)) as channel:
        demo = Demo(console, channel, ledger)
        console.rule(f"A payment ledger at {server}")
        demo.open_accounts()
        demo.fund()
        demo.pay()
        demo.show_accounts()
        demo.show_payments()
        demo.show_events(events_of)
        demo.compare(balances_from_log)


class Demo:
    """One run, with ids that nobody has used before."""

    def __init__(self, console: Console, channel: grpc.Channel, ledger: str) -> None:
        self._console, self._ledger = console, ledger
        self._accounts = AccountServiceStub(channel)
        self._transfers = TransferServiceStub(channel)
        self._payments = PaymentServiceStub(channel)
        self._run = secrets.token_hex(3)
        self._bank = self._id("bank")
        self._names = [self._bank, *map(self._id, CUSTOMERS), *map(self._id, SHOPS)]
        self._examples: dict[str, str] = {}
        self._position = 0

    def _id(self, name: str) -> str:
        return f"{name}:{self._run}"

    def open_accounts(self) -> None:
        """The bank is EXTERNAL: the world outside, where money comes from. The others can't spend what they lack."""
        for name in self._names:
            kind = account.ACCOUNT_KIND_EXTERNAL if name == self._bank else account.ACCOUNT_KIND_CUSTOMER
            self._accounts.OpenAccount(
                account.OpenAccountRequest(ledger=self._ledger, account_id=name, currency_code=CURRENCY, kind=kind)
            )
        self._say(
            f"Opened {len(self._names)} accounts: a bank outside, {len(CUSTOMERS)} customers, {len(SHOPS)} shops."
        )

    def fund(self) -> None:
        """A transfer moves money at once."""
        for name in map(self._id, CUSTOMERS):
            leg = transfer.TransferLeg(from_account_id=self._bank, to_account_id=name, amount=_money(DEPOSIT))
            self._transfers.PostTransfer(
                transfer.PostTransferRequest(ledger=self._ledger, transfer_id=f"deposit:{name}", legs=[leg])
            )
        self._say(f"Transferred {_text(DEPOSIT)} {CURRENCY} from the bank to each customer.")

    def pay(self) -> None:
        """Hundreds of payments, one after the other, each call durable before it is answered."""
        states: Counter[str] = Counter()
        started = perf_counter()
        with Progress(
            TextColumn("Paying over gRPC"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        ) as progress:
            for number in progress.track(range(PAYMENTS)):
                done = self._pay(number)
                state = _state(done)
                states[state] += 1
                self._examples[state] = done.payment_id
        seconds = perf_counter() - started
        self._say(f"Made {PAYMENTS} payments in {seconds:.1f} s, one after the other:\n  {_listed(states)}.")

    def _pay(self, number: int) -> payment.Payment:
        """An authorization reserves the money. Most are captured; some in part, some not at all, some never."""
        payment_id = self._id(f"pay-{number:03}")
        amount = TOO_MUCH if number == ONE_TOO_MANY else 1_99 + number * 739 % 48_00
        authorized = self._authorize(payment_id, number, amount)
        if authorized.state == payment.PAYMENT_STATE_DECLINED or number % 20 == 0:
            return authorized
        if number % 10 == 7:
            return self._void(payment_id)
        return self._capture(payment_id, amount // 2 if number % 10 == 4 else None)

    def _authorize(self, payment_id: str, number: int, amount: int) -> payment.Payment:
        request = payment.AuthorizePaymentRequest(
            ledger=self._ledger,
            payment_id=payment_id,
            payer_account_id=self._id(CUSTOMERS[number % len(CUSTOMERS)]),
            payee_account_id=self._id(SHOPS[number % len(SHOPS)]),
            amount=_money(amount),
            reference=f"order {number}",
        )
        response = self._payments.AuthorizePayment(request)
        self._position = response.position
        return response.payment

    def _capture(self, payment_id: str, part: int | None) -> payment.Payment:
        """Capture a part, and keep the rest reserved for later, or capture all."""
        request = payment.CapturePaymentRequest(ledger=self._ledger, payment_id=payment_id, capture_id="delivery-1")
        if part is not None:
            request.amount.CopyFrom(_money(part))
            request.keep_remainder = True
        response = self._payments.CapturePayment(request)
        self._position = response.position
        return response.payment

    def _void(self, payment_id: str) -> payment.Payment:
        request = payment.VoidPaymentRequest(ledger=self._ledger, payment_id=payment_id, reason="out of stock")
        response = self._payments.VoidPayment(request)
        self._position = response.position
        return response.payment

    def show_accounts(self) -> None:
        table = table_of("account", "posted", "reserved", "available")
        for each in self._read_accounts():
            table.add_row(each.account_id, _text(each.posted), _text(each.reserved), _text(each.available))
        self._show(f"The accounts, in {CURRENCY}", table)

    def show_payments(self) -> None:
        table = table_of("payment", "state", "authorized", "captured", "capturable", "released", words=2)
        for _, payment_id in sorted(self._examples.items()):
            each = self._payments.GetPayment(
                payment.GetPaymentRequest(ledger=self._ledger, payment_id=payment_id, min_position=self._position)
            ).payment
            amounts = (each.amount_authorized, each.amount_captured, each.amount_capturable, each.amount_released)
            table.add_row(each.payment_id, _state(each), *map(_text, amounts))
        self._show("A payment of each kind", table)

    def show_events(self, events_of: EventsOf) -> None:
        """What is kept is not the payment but what happened, in one order for the whole ledger."""
        payment_id = self._examples["partially captured"]
        table = table_of("event", "stream", "version", "position", words=2)
        events = events_of(payment_id)
        for each in events:
            table.add_row(each.topic, each.stream, str(each.version), str(each.position))
        self._show(f"All that happened to {payment_id}", table)
        if events:
            self._show("The last of these events, as it is stored", JSON(events[-1].state.decode()))

    def compare(self, balances_from_log: BalancesFromLog) -> None:
        """The log is the truth. The read models are derived from it, and must say the same."""
        logged = balances_from_log()
        accounts = list(self._read_accounts())
        for each in accounts:
            if logged.get(each.account_id) != (each.posted, each.reserved):
                raise DemoFailed(
                    f"{each.account_id}: the log adds up to (posted, reserved) = {logged.get(each.account_id)}, "
                    f"the read model says {(each.posted, each.reserved)}"
                )
        total = sum(each.posted for each in accounts)
        if total:
            raise DemoFailed(f"all accounts together have {_text(total)} {CURRENCY}, not 0")
        self._console.print()
        self._say(f"The log and the read models agree on all {len(accounts)} accounts, and they add up to 0.00.")

    def _read_accounts(self) -> Iterator[account.Account]:
        """Every account as it is after the last payment: reads wait until they know that position."""
        for name in self._names:
            yield self._accounts.GetAccount(
                account.GetAccountRequest(ledger=self._ledger, account_id=name, min_position=self._position)
            ).account

    def _say(self, text: str) -> None:
        self._console.print(f"[green]✓[/] {text}", highlight=False)

    def _show(self, title: str, what: Table | JSON) -> None:
        self._console.print(f"\n[bold]{title}[/]\n", highlight=False)
        self._console.print(what)


def _money(amount: int) -> ledger_pb2.Money:
    return ledger_pb2.Money(currency_code=CURRENCY, minor_units=amount)


def _text(amount: int) -> str:
    return format_amount(amount, CURRENCY, grouping=True)


def _state(each: payment.Payment) -> str:
    name = payment.PaymentState.Name(each.state)
    return name.removeprefix("PAYMENT_STATE_").replace("_", " ").lower()


def _listed(counts: Mapping[str, int]) -> str:
    """Counts as people write them: "3 voided, 2 captured"."""
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda each: -each[1]))


# --- the demo with a server of its own -------------------------------------------------------------------------------


def run_demo_with_server(console: Console, folder: Path) -> None:
    """Start a real server on an embedded Postgres in `folder`, show the main job on it, and stop it.

    Raises DemoFailed, also if the server does not start or stop as it should.
    """
    with _server(folder) as address:
        dsn = running_dsn(folder)
        run_demo(
            console,
            server=address,
            events_of=lambda payment_id: _events_of(dsn, payment_id),
            balances_from_log=lambda: _balances_from_log(dsn),
        )
    console.print("[green]✓[/] The server has stopped.")


@contextmanager
def _server(folder: Path) -> Iterator[str]:
    """A server as a process of its own; its address, once it is ready."""
    command = [sys.executable, "-m", "ledger.cli", "serve", "--listen", "127.0.0.1:0", "--ledger", "main"]
    command += ["--data-dir", str(folder)]
    environment = {"LEDGER_LOG_LEVEL": "warning", **os.environ}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:  # noqa: S603
        try:
            assert process.stdout is not None
            ready = process.stdout.readline()
            if not ready:
                raise ServerDidNotStart(f"the server did not start: exit code {process.wait()}")
            yield ready.split()[3]
        except KeyboardInterrupt:
            # Ctrl-C went to the server as well. Told to end once more, it would not clear away what it has begun.
            with suppress(subprocess.TimeoutExpired):
                process.wait(_INTERRUPTED_S)
            raise
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
    if process.returncode:
        raise DemoFailed(f"the server stopped with exit code {process.returncode}")


def _events_of(dsn: str, payment_id: str) -> list[LoggedEvent]:
    with connect(dsn, "main", "ledger-demo", Role.AUDITOR) as connection:
        return [LoggedEvent(*row) for row in connection.execute(SQL.events_of_payment, {"payment_id": payment_id})]


def _balances_from_log(dsn: str) -> dict[str, tuple[int, int]]:
    """What the amounts of all events add up to. The balances that the events carry are not looked at."""
    posted: defaultdict[str, int] = defaultdict(int)
    reserved: defaultdict[str, int] = defaultdict(int)
    with connect(dsn, "main", "ledger-demo", Role.AUDITOR) as connection:
        for account_id, topic, amount, from_reserved in connection.execute(SQL.account_events):
            posted[account_id] += {"FundsCredited": amount, "FundsDebited": -amount}.get(topic, 0)
            if topic == "FundsReserved":
                reserved[account_id] += amount
            elif topic == "FundsReleased" or from_reserved:
                reserved[account_id] -= amount
    return {account_id: (posted[account_id], reserved[account_id]) for account_id in posted}
