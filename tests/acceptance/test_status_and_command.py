"""Status and command, cell by cell, as a client meets them: what docs/freezes.md says."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from serving import LedgerServer, eventually
from test_api import Client, Refused

from ledger.domain.commands import AuthorizePayment, Command, PostTransfer
from ledger.domain.money import Money as DomainMoney
from ledger.v1 import account_pb2, batch_pb2, ledger_pb2, payment_pb2, transfer_pb2
from ledger.wire import ACCOUNT_KIND, FREEZE_SCOPE

# The table's stories are told in the words of the domain's own tests.
sys.path.append(str(Path(__file__).parents[1] / "unit"))
from freeze_table import STORIES, Cell, cells, commands_before

PROTOS = (account_pb2, payment_pb2, transfer_pb2)
ASKED = [cell for cell in cells() if cell.command != "expiry" or cell.said == "-"]  # an expiry is not asked for
EXPIRING = [cell for cell in cells() if cell.command == "expiry" and cell.said != "-"]


def money(amount: DomainMoney) -> ledger_pb2.Money:
    return ledger_pb2.Money(currency_code=amount.currency_code, minor_units=amount.minor_units)


def request_of(command: Command, tag: str) -> Message:
    """The request that asks for a command: its fields have the same names. Accounts get the test's tag."""
    name = f"{type(command).__name__}Request"
    (request_class,) = [getattr(module, name) for module in PROTOS if hasattr(module, name)]
    fields: dict[str, Any] = {}
    for field, value in command:
        if field.endswith("_id"):
            fields[field] = f"{value}:{tag}"
        elif isinstance(value, DomainMoney):
            fields[field] = money(value)
        elif field == "kind":
            fields[field] = ACCOUNT_KIND[value]
        elif field == "scope":
            fields[field] = FREEZE_SCOPE[value]
        elif field == "legs":
            assert isinstance(command, PostTransfer)
            fields[field] = [
                transfer_pb2.TransferLeg(
                    from_account_id=f"{each.from_account_id}:{tag}",
                    to_account_id=f"{each.to_account_id}:{tag}",
                    amount=money(each.amount),
                )
                for each in command.legs
            ]
        elif value:
            fields[field] = value
    request: Message = request_class(**fields)
    return request


def in_cell(result: batch_pb2.BatchResult) -> str:
    """A result of a batch, in the words of the table."""
    if result.HasField("error"):
        return f"refused {Refused.of(result.error).reason}"
    response = getattr(result, result.WhichOneof("result"))
    thing = getattr(response, "payment", None) or getattr(response, "transfer", None)
    if thing is not None and thing.decline_reason:
        name = ledger_pb2.DeclineReason.Name(thing.decline_reason)
        return f"declined {name.removeprefix('DECLINE_REASON_')}"
    return "replay" if response.replayed else "done"


@pytest.mark.parametrize("cell", ASKED, ids=lambda cell: f"{cell.command}-{cell.side}-{cell.status}")
def test_a_cell_is_what_a_client_is_answered(cell: Cell, server: LedgerServer, tag: str) -> None:
    """All that leads there and the question itself in one batch, through a real channel."""
    commands = commands_before(cell)
    if cell.said != "-":
        commands.append(STORIES[cell.command, cell.side].asked)
    batch = batch_pb2.ExecuteBatchRequest(commands=[entry(request_of(command, tag)) for command in commands])
    with grpc.insecure_channel(server.address) as channel:
        results = Client(channel, server.ledger, tag)(batch).results
    *before, last = map(in_cell, results)
    assert set(before) == {"done"}
    assert last == ("refused ACCOUNT_IN_USE" if cell.said == "-" else cell.said)


@pytest.mark.parametrize("cell", EXPIRING, ids=lambda cell: f"{cell.command}-{cell.side}-{cell.status}")
def test_an_expiry_is_what_time_does(cell: Cell, server: LedgerServer, tag: str) -> None:
    """Nobody asks for it: the payment comes to be expired, and what it had reserved is the payer's again."""
    commands = [
        each.model_copy(update={"hold_for": timedelta(microseconds=1)}) if isinstance(each, AuthorizePayment) else each
        for each in commands_before(cell)
    ]
    batch = batch_pb2.ExecuteBatchRequest(commands=[entry(request_of(command, tag)) for command in commands])
    with grpc.insecure_channel(server.address) as channel:
        client = Client(channel, server.ledger, tag)
        assert set(map(in_cell, client(batch).results)) == {"done"}
        eventually(lambda: client.payment("p~").state == payment_pb2.PAYMENT_STATE_EXPIRED)
        assert client.balance("it~" if cell.side == "payer" else "other~").reserved == 0
    assert cell.said == "done"


def entry(request: Message) -> batch_pb2.BatchCommand:
    (name,) = [
        field.name
        for field in batch_pb2.BatchCommand.DESCRIPTOR.fields
        if field.message_type.name == request.DESCRIPTOR.name
    ]
    return batch_pb2.BatchCommand(**{name: request})
