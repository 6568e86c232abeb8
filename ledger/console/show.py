"""What people see of the API's answers: tables of things, and all of one thing as a block of names and values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ledger.console.rows import filled, money, payment_row, table_for, word_in
from ledger.console.words import word
from ledger.tables import table_of
from ledger.terminal import printable
from ledger.v1.payment_pb2 import Payment
from ledger.v1.transfer_pb2 import Transfer

_NOT_AMOUNTS: Final = {"version", "position"}


def subject(response: Any) -> Any:
    """What a response is about: the thing, or the rows of a list. It is the first field of each."""
    return getattr(response, response.DESCRIPTOR.fields[0].name)


def decline_of(response: Any) -> str:
    """Why a command was declined, as the API calls it; "" if it was not."""
    thing = subject(response)
    reason = word_in(thing, "decline_reason") if isinstance(thing, (Payment, Transfer)) else ""
    return reason.upper().replace(" ", "_")


# --- answers ---------------------------------------------------------------------------------------------------------


def outcome(screen: Console, response: Any) -> None:
    """What came of a command."""
    thing = subject(response)
    screen.print(payment_row(thing) if isinstance(thing, Payment) else table_for([thing]))
    if decline_of(response):
        screen.print(_declined(response))
    screen.print(_recorded(response))
    if response.balances:
        screen.print(Text("The accounts as they would be afterwards:"))
        screen.print(table_for(response.balances))


def _declined(response: Any) -> Text:
    """Why, and about which account; of several legs, which one. Validated only, the id is still free."""
    thing = subject(response)
    leg = f", in leg {thing.declined_leg}" if isinstance(thing, Transfer) and len(thing.legs) > 1 else ""
    final = " The id is used up: to try again, take a new one." if response.position else ""
    account = printable(thing.declined_account_id)
    return Text(f"DECLINED: {decline_of(response)} on account {account}{leg}.{final}", "bold red")


def _recorded(response: Any) -> Text:
    """Whether something was recorded, and where."""
    if not response.position:
        replayed = " It would be a replay." if response.replayed else ""
        return Text(f"Only validated, nothing was recorded.{replayed}", "yellow")
    if response.replayed:
        so = f"Replayed: it was so already at position {response.position}. Nothing was recorded now."
        return Text(so, "yellow")
    return Text(f"Recorded at position {response.position}.")


def found(screen: Console, response: Any) -> None:
    """All of one thing."""
    thing = subject(response)
    screen.print(_block(thing))
    if isinstance(thing, Payment) and (thing.increments or thing.captures or thing.refunds):
        screen.print()
        screen.print(_changes(thing))
    if isinstance(thing, Transfer):
        screen.print()
        screen.print(_legs(thing))
    screen.print()
    screen.print(Text(f"Read at position {response.position}."))


def listed(screen: Console, response: Any) -> None:
    """The rows of a list."""
    rows = subject(response)
    if rows:
        screen.print(table_for(rows))
    more = ", and there are more: see --limit" if response.next_page_token else ""
    row = response.DESCRIPTOR.fields[0]
    name = row.message_type.name.lower() if len(rows) == 1 else row.name
    screen.print(Text(f"{len(rows):,} {name}{more}. Read at position {response.position}."))


# --- all of one thing ------------------------------------------------------------------------------------------------


def _block(thing: Any) -> Table:
    """A row for each field that is set; zero amounts too. Parts of the thing are left to tables."""
    block = Table.grid(padding=(0, 2))
    for field in thing.DESCRIPTOR.fields:
        name = field.name.removesuffix("_id").removesuffix("_code").replace("_", " ")
        for value in _values(thing, field):
            block.add_row(name, Text(printable(value)))
    return block


def _values(thing: Any, field: FieldDescriptor) -> Iterator[str]:
    """The texts of a field: none if it is unset, one for each key of a map."""
    value = getattr(thing, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        yield from (f"{key}={value[key]}" for key in sorted(value))
    elif field.is_repeated or (field.has_presence and not thing.HasField(field.name)):
        return
    elif isinstance(value, Timestamp):
        yield value.ToJsonString()
    elif field.enum_type is not None:
        yield from filter(None, [word(field.enum_type, value)])
    elif isinstance(value, str):
        yield from filter(None, [value])
    elif field.name in _NOT_AMOUNTS or field.cpp_type == FieldDescriptor.CPPTYPE_UINT32:
        yield str(value)
    else:
        yield money(value, thing.currency_code)


def _changes(payment: Payment) -> Table:
    """What was done to a payment since, in the order of recording."""
    changes = [
        *((each.recorded_at, "increment to", each.increment_id, each.amount) for each in payment.increments),
        *((each.recorded_at, "capture", each.capture_id, each.amount) for each in payment.captures),
        *((each.recorded_at, "refund", each.refund_id, each.amount) for each in payment.refunds),
    ]
    changes.sort(key=lambda change: change[0].ToNanoseconds())
    rows = (
        (kind, id_, recorded_at.ToJsonString(), money(amount, payment.currency_code))
        for recorded_at, kind, id_, amount in changes
    )
    return filled(table_of("change", "id", "recorded at", "amount", words=3), rows)


def _legs(transfer: Transfer) -> Table:
    rows = (
        (str(number), leg.from_account_id, leg.to_account_id, money(leg.amount.minor_units, leg.amount.currency_code))
        for number, leg in enumerate(transfer.legs)
    )
    return filled(table_of("leg", "from", "to", "amount", words=3), rows)
