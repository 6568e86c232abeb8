"""`ledger account`: every rpc of AccountService as a command."""

from __future__ import annotations

from typing import Annotated

import typer

from ledger.console.call import Read, ReadMany, Write
from ledger.console.command import command
from ledger.console.options import (
    AccountId,
    Amount,
    AtPosition,
    Currency,
    CurrencyFilter,
    Metadata,
    Moment,
    Reason,
    RecordedAt,
    RecordedSince,
    RecordedUntil,
    ReferenceFilter,
    known_at,
    metadata_of,
    moment_option,
    money,
    word_option,
)
from ledger.v1.account_pb2 import (
    ACCOUNT_KIND_UNSPECIFIED,
    FREEZE_SCOPE_UNSPECIFIED,
    AccountKind,
    AccountStatus,
    CloseAccountRequest,
    EntryKind,
    FreezeAccountRequest,
    FreezeScope,
    GetAccountBalanceRequest,
    GetAccountRequest,
    ListAccountsRequest,
    ListEntriesRequest,
    OpenAccountRequest,
    SetCreditLimitRequest,
    UnfreezeAccountRequest,
)

app = typer.Typer(help="Open accounts, set what they may do, and see what is on them.", no_args_is_help=True)


@command(app, "open")
def open_account(
    write: Write,
    account_id: AccountId,
    currency: Currency,
    kind: Annotated[AccountKind.ValueType | None, word_option("--kind", AccountKind, "What it stands for:")] = None,
    credit_limit: Annotated[
        str | None, typer.Option("--credit-limit", metavar="AMOUNT", help="How far it may go below zero.")
    ] = None,
    metadata: Metadata = None,
) -> None:
    """Open an account with zero balance."""
    write.send(
        OpenAccountRequest(
            account_id=account_id,
            currency_code=currency,
            kind=kind or ACCOUNT_KIND_UNSPECIFIED,
            credit_limit=None if credit_limit is None else money(credit_limit, currency),
            metadata=metadata_of(metadata),
        )
    )


@command(app, "set-limit")
def set_limit(write: Write, account_id: AccountId, amount: Amount, currency: Currency, reason: Reason = "") -> None:
    """Set how far an account may go below zero."""
    write.send(SetCreditLimitRequest(account_id=account_id, credit_limit=money(amount, currency), reason=reason))


@command(app, "freeze")
def freeze(
    write: Write,
    account_id: AccountId,
    scope: Annotated[FreezeScope.ValueType | None, word_option("--scope", FreezeScope, "What to stop:")] = None,
    reason: Reason = "",
) -> None:
    """Stop new debits, new credits, or both."""
    write.send(FreezeAccountRequest(account_id=account_id, scope=scope or FREEZE_SCOPE_UNSPECIFIED, reason=reason))


@command(app, "unfreeze")
def unfreeze(write: Write, account_id: AccountId, reason: Reason = "") -> None:
    """End a freeze."""
    write.send(UnfreezeAccountRequest(account_id=account_id, reason=reason))


@command(app, "close")
def close(write: Write, account_id: AccountId, reason: Reason = "") -> None:
    """Close an account for good. Nothing may be posted or reserved on it."""
    write.send(CloseAccountRequest(account_id=account_id, reason=reason))


@command(app, "show")
def show(read: Read, account_id: AccountId) -> None:
    """Show an account."""
    read.get(GetAccountRequest(account_id=account_id))


@command(app, "balance")
def balance(
    read: Read,
    account_id: AccountId,
    at_position: AtPosition = None,
    recorded_at: RecordedAt = None,
    effective_at: Annotated[
        Moment | None, moment_option("--effective-at", "Counting only what took effect by this time.")
    ] = None,
) -> None:
    """Show the balance of an account: now, as it was known at an earlier moment, or by effective time."""
    read.get(
        GetAccountBalanceRequest(account_id=account_id, **known_at(at_position, recorded_at), effective_at=effective_at)
    )


@command(app, "list")
def list_accounts(
    read: ReadMany,
    kinds: Annotated[list[AccountKind.ValueType] | None, word_option("--kind", AccountKind, "Any of")] = None,
    statuses: Annotated[list[AccountStatus.ValueType] | None, word_option("--status", AccountStatus, "Any of")] = None,
    currency: CurrencyFilter = "",
    opened_since: Annotated[Moment | None, moment_option("--opened-since", "Opened at this time or later.")] = None,
    opened_until: Annotated[Moment | None, moment_option("--opened-until", "Opened before this time.")] = None,
) -> None:
    """List accounts, by the time they were opened."""
    read.get(
        ListAccountsRequest(
            kinds=kinds,
            statuses=statuses,
            currency_code=currency,
            opened_since=opened_since,
            opened_until=opened_until,
        )
    )


@command(app, "entries")
def entries(
    read: ReadMany,
    account_id: AccountId,
    kinds: Annotated[list[EntryKind.ValueType] | None, word_option("--kind", EntryKind, "Any of")] = None,
    recorded_since: RecordedSince = None,
    recorded_until: RecordedUntil = None,
    effective_since: Annotated[
        Moment | None, moment_option("--effective-since", "Effective at this time or later.")
    ] = None,
    effective_until: Annotated[Moment | None, moment_option("--effective-until", "Effective before this time.")] = None,
    reference: ReferenceFilter = "",
) -> None:
    """List what happened to an account, with the balances after each line."""
    read.get(
        ListEntriesRequest(
            account_id=account_id,
            kinds=kinds,
            recorded_since=recorded_since,
            recorded_until=recorded_until,
            effective_since=effective_since,
            effective_until=effective_until,
            reference=reference,
        )
    )
