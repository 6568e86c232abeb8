"""The API's things as rows of tables for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.table import Table
from rich.text import Text

from ledger.console.words import word
from ledger.domain.money import UnknownCurrency, format_amount
from ledger.tables import table_of
from ledger.terminal import printable
from ledger.v1.account_pb2 import Account, AccountBalance, Entry
from ledger.v1.payment_pb2 import Payment
from ledger.v1.transfer_pb2 import Transfer

_RARE: Final = ("released", "expired", "refunded")


def table_for(things: Sequence[Message]) -> Table:
    """Things of one kind, a row for each."""
    return _TABLES[type(things[0])](things)


def _accounts(accounts: Sequence[Account]) -> Table:
    table = table_of("account", "kind", "status", "posted", "reserved", "available", "credit limit", "version", words=3)
    return filled(table, map(_account, accounts))


def _account(account: Account) -> Iterator[str]:
    scope = word_in(account, "freeze_scope")
    yield account.account_id
    yield word_in(account, "kind")
    yield word_in(account, "status") + (f" ({scope})" if scope else "")
    yield from _balance(account)


def _balances(balances: Sequence[AccountBalance]) -> Table:
    table = table_of("account", "posted", "reserved", "available", "credit limit", "version")
    return filled(table, ((each.account_id, *_balance(each)) for each in balances))


def _balance(of: Account | AccountBalance) -> Iterator[str]:
    yield money(of.posted, of.currency_code)
    yield amount_of(of.reserved, of.currency_code)
    yield amount_of(of.available, of.currency_code)
    yield amount_of(of.credit_limit, of.currency_code) if of.HasField("credit_limit") else ""
    yield str(of.version)


def _payments(payments: Sequence[Payment]) -> Table:
    names = _amounts_of(payments)
    rows = (
        (
            each.payment_id,
            word_in(each, "state"),
            each.payer_account_id,
            each.payee_account_id,
            *_amounts(each, names),
        )
        for each in payments
    )
    return filled(table_of("payment", "state", "from", "to", *names, words=4), rows)


def payment_row(payment: Payment) -> Table:
    """One payment, without its accounts: they never change, and would make it wider than a screen."""
    names = _amounts_of([payment])
    row = (payment.payment_id, word_in(payment, "state"), *_amounts(payment, names))
    return filled(table_of("payment", "state", *names, words=2), [row])


def _amounts_of(payments: Sequence[Payment]) -> list[str]:
    """The amounts that get a column: those that most payments never see, only where one has."""
    rare = (name for name in _RARE if any(getattr(each, f"amount_{name}") for each in payments))
    return ["authorized", "captured", "capturable", *rare]


def _amounts(payment: Payment, names: Sequence[str]) -> Iterator[str]:
    first, *others = (getattr(payment, f"amount_{name}") for name in names)
    yield money(first, payment.currency_code)
    yield from (amount_of(each, payment.currency_code) for each in others)


def _transfers(transfers: Sequence[Transfer]) -> Table:
    """A row for each leg."""
    table = table_of("transfer", "state", "recorded at", "from", "to", "amount", words=5)
    rows = (
        (
            *((each.transfer_id, word_in(each, "state"), second(each.recorded_at)) if number == 0 else ("", "", "")),
            leg.from_account_id,
            leg.to_account_id,
            money(leg.amount.minor_units, leg.amount.currency_code),
        )
        for each in transfers
        for number, leg in enumerate(each.legs)
    )
    return filled(table, rows)


def _entries(entries: Sequence[Entry]) -> Table:
    numbers = ("amount", "reserved change", "posted", "available", "position")
    table = table_of("recorded at", "kind", "cause", "counterparty", *numbers, words=4)
    rows = (
        (
            second(each.recorded_at),
            word_in(each, "kind"),
            _cause(each),
            each.counterparty_account_id,
            *(amount_of(amount, each.currency_code) for amount in (each.amount, each.reserved_change)),
            money(each.posted, each.currency_code),
            amount_of(each.available, each.currency_code),
            str(each.position),
        )
        for each in entries
    )
    return filled(table, rows)


def _cause(entry: Entry) -> str:
    """The ids behind a line, the payment's own first; where no money moved, the reason that was given."""
    part = entry.capture_id or entry.refund_id or entry.increment_id
    return "/".join(filter(None, [entry.payment_id or entry.transfer_id, part])) or entry.reason


_TABLES: Final[dict[type[Message], Callable[[Any], Table]]] = {
    Account: _accounts,
    AccountBalance: _balances,
    Payment: _payments,
    Transfer: _transfers,
    Entry: _entries,
}


def filled(table: Table, rows: Iterable[Iterable[str]]) -> Table:
    """The table, with these rows of texts, which may be anybody's."""
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


# --- cells -----------------------------------------------------------------------------------------------------------


def money(minor_units: int, currency_code: str) -> str:
    """An amount with its currency: "1,250.00 EUR"."""
    return f"{amount_of(minor_units, currency_code)} {currency_code}"


def amount_of(minor_units: int, currency_code: str) -> str:
    """In the currency's own digits; a newer server may know a currency whose digits are not in our table."""
    try:
        return format_amount(minor_units, currency_code, grouping=True)
    except UnknownCurrency:
        return f"{minor_units:,} minor units of"


def word_in(thing: Any, name: str) -> str:
    """The word for the value of an enum in a field: "partially captured"; "" if it is unspecified."""
    return word(thing.DESCRIPTOR.fields_by_name[name].enum_type, getattr(thing, name))


def second(moment: Timestamp) -> str:
    """To the second, which a table has room for."""
    return f"{moment.ToJsonString()[:19]}Z"
