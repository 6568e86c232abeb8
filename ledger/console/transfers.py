"""`ledger transfer`: every rpc of TransferService as a command."""

from __future__ import annotations

from typing import Annotated

import typer

from ledger.console.call import Read, ReadMany, Write
from ledger.console.command import command
from ledger.console.options import (
    CurrencyFilter,
    EffectiveAt,
    Metadata,
    RecordedSince,
    RecordedUntil,
    Reference,
    ReferenceFilter,
    TransferId,
    metadata_of,
    money,
    word_option,
)
from ledger.terminal import quoted
from ledger.v1.transfer_pb2 import (
    GetTransferRequest,
    ListTransfersRequest,
    PostTransferRequest,
    TransferLeg,
    TransferState,
)

app = typer.Typer(help="Move money at once.", no_args_is_help=True)


@command(app, "post")
def post(
    write: Write,
    transfer_id: TransferId,
    amount: Annotated[str | None, typer.Argument(metavar="AMOUNT", help="How much, such as 25.00.")] = None,
    currency: Annotated[str | None, typer.Argument(metavar="CURRENCY", help="Its currency, such as EUR.")] = None,
    payer: Annotated[str | None, typer.Option("--from", metavar="ACCOUNT", help="Who pays.")] = None,
    payee: Annotated[str | None, typer.Option("--to", metavar="ACCOUNT", help="Who receives.")] = None,
    legs: Annotated[
        list[str] | None,
        typer.Option(
            "--leg", metavar="LEG", help='A further leg, as "FROM TO AMOUNT CURRENCY". Can be repeated; in this order.'
        ),
    ] = None,
    reference: Reference = "",
    metadata: Metadata = None,
    effective_at: EffectiveAt = None,
) -> None:
    """Move money between accounts: every leg, or none. With --leg alone, all legs are written like that."""
    write.send(
        PostTransferRequest(
            transfer_id=transfer_id,
            legs=_legs([payer, payee, amount, currency], legs or []),
            reference=reference,
            metadata=metadata_of(metadata),
            effective_at=effective_at,
        )
    )


def _legs(first: list[str | None], others: list[str]) -> list[TransferLeg]:
    legs = [each.split() for each in others]
    if any(first) or not others:
        given = [each for each in first if each]
        if len(given) != len(first):
            raise typer.BadParameter("a leg needs all of --from, --to, AMOUNT and CURRENCY.")
        legs.insert(0, given)
    return [_leg(words) for words in legs]


def _leg(words: list[str]) -> TransferLeg:
    if len(words) != 4:
        raise typer.BadParameter(f"{quoted(' '.join(words))} is not FROM TO AMOUNT CURRENCY.", param_hint="--leg")
    payer, payee, amount, currency = words
    return TransferLeg(from_account_id=payer, to_account_id=payee, amount=money(amount, currency))


@command(app, "show")
def show(read: Read, transfer_id: TransferId) -> None:
    """Show a transfer."""
    read.get(GetTransferRequest(transfer_id=transfer_id))


@command(app, "list")
def list_transfers(
    read: ReadMany,
    account_id: Annotated[str, typer.Option("--account", metavar="ACCOUNT", help="With this account in a leg.")] = "",
    states: Annotated[list[TransferState.ValueType] | None, word_option("--state", TransferState, "Any of")] = None,
    currency: CurrencyFilter = "",
    recorded_since: RecordedSince = None,
    recorded_until: RecordedUntil = None,
    reference: ReferenceFilter = "",
) -> None:
    """List transfers, declined ones included, by the time they were recorded."""
    read.get(
        ListTransfersRequest(
            account_id=account_id,
            states=states,
            currency_code=currency,
            recorded_since=recorded_since,
            recorded_until=recorded_until,
            reference=reference,
        )
    )
