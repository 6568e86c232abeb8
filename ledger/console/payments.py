"""`ledger payment`: every rpc of PaymentService as a command."""

from __future__ import annotations

from typing import Annotated

import typer

from ledger.console.call import Read, ReadMany, Write
from ledger.console.command import command
from ledger.console.options import (
    Amount,
    AmountOrAll,
    AtPosition,
    Currency,
    CurrencyFilter,
    CurrencyOrNone,
    EffectiveAt,
    Length,
    Metadata,
    Moment,
    PaymentId,
    Reason,
    RecordedAt,
    Reference,
    ReferenceFilter,
    id_option,
    known_at,
    length_option,
    metadata_of,
    moment_option,
    money,
    money_if_given,
    word_option,
)
from ledger.v1.payment_pb2 import (
    AuthorizePaymentRequest,
    CapturePaymentRequest,
    GetPaymentRequest,
    IncrementAuthorizationRequest,
    ListPaymentsRequest,
    PaymentState,
    RefundPaymentRequest,
    VoidPaymentRequest,
)

app = typer.Typer(help="Authorize payments, capture, void and refund them.", no_args_is_help=True)


@command(app, "authorize")
def authorize(
    write: Write,
    payment_id: PaymentId,
    amount: Amount,
    currency: Currency,
    payer: Annotated[str, typer.Option("--from", metavar="ACCOUNT", help="Whose money is reserved.")],
    payee: Annotated[str, typer.Option("--to", metavar="ACCOUNT", help="Who gets it on capture.")],
    hold_for: Annotated[Length | None, length_option("--hold-for", "How long: 7d, 12h, 30m, 90s.  \\[7d]")] = None,
    reference: Reference = "",
    metadata: Metadata = None,
    effective_at: EffectiveAt = None,
) -> None:
    """Reserve an amount on the payer's account. No money moves yet."""
    write.send(
        AuthorizePaymentRequest(
            payment_id=payment_id,
            payer_account_id=payer,
            payee_account_id=payee,
            amount=money(amount, currency),
            hold_for=hold_for,
            reference=reference,
            metadata=metadata_of(metadata),
            effective_at=effective_at,
        )
    )


@command(app, "increment")
def increment(
    write: Write,
    payment_id: PaymentId,
    amount: Annotated[str, typer.Argument(metavar="AMOUNT", help="The new total, not the difference.")],
    currency: Currency,
    increment_id: Annotated[str | None, id_option("increment")] = None,
) -> None:
    """Raise what is authorized to a new total."""
    total = money(amount, currency)
    id_ = write.id_or_new(increment_id, "increment")
    write.send(IncrementAuthorizationRequest(payment_id=payment_id, increment_id=id_, amount=total))


@command(app, "capture")
def capture(
    write: Write,
    payment_id: PaymentId,
    amount: AmountOrAll = None,
    currency: CurrencyOrNone = None,
    keep_remainder: Annotated[
        bool, typer.Option("--keep-remainder", help="Keep the rest reserved, for further captures.")
    ] = False,
    capture_id: Annotated[str | None, id_option("capture")] = None,
    effective_at: EffectiveAt = None,
) -> None:
    """Move authorized money to the payee: a part, or all. The rest goes back to the payer, unless it is kept."""
    part = money_if_given(amount, currency)
    write.send(
        CapturePaymentRequest(
            payment_id=payment_id,
            capture_id=write.id_or_new(capture_id, "capture"),
            amount=part,
            keep_remainder=keep_remainder,
            effective_at=effective_at,
        )
    )


@command(app, "void")
def void(write: Write, payment_id: PaymentId, reason: Reason = "") -> None:
    """Give back to the payer all that is not captured."""
    write.send(VoidPaymentRequest(payment_id=payment_id, reason=reason))


@command(app, "refund")
def refund(
    write: Write,
    payment_id: PaymentId,
    amount: AmountOrAll = None,
    currency: CurrencyOrNone = None,
    refund_id: Annotated[str | None, id_option("refund")] = None,
    effective_at: EffectiveAt = None,
) -> None:
    """Move captured money back to the payer: a part, or all."""
    part = money_if_given(amount, currency)
    id_ = write.id_or_new(refund_id, "refund")
    write.send(RefundPaymentRequest(payment_id=payment_id, refund_id=id_, amount=part, effective_at=effective_at))


@command(app, "show")
def show(read: Read, payment_id: PaymentId, at_position: AtPosition = None, recorded_at: RecordedAt = None) -> None:
    """Show a payment: now, or as it was known at an earlier moment."""
    read.get(GetPaymentRequest(payment_id=payment_id, **known_at(at_position, recorded_at)))


@command(app, "list")
def list_payments(
    read: ReadMany,
    account_id: Annotated[str, typer.Option("--account", metavar="ACCOUNT", help="Paid by or to this account.")] = "",
    payer: Annotated[str, typer.Option("--from", metavar="ACCOUNT", help="Paid by this account.")] = "",
    payee: Annotated[str, typer.Option("--to", metavar="ACCOUNT", help="Paid to this account.")] = "",
    states: Annotated[list[PaymentState.ValueType] | None, word_option("--state", PaymentState, "Any of")] = None,
    currency: CurrencyFilter = "",
    authorized_since: Annotated[
        Moment | None, moment_option("--authorized-since", "Authorized or declined at this time or later.")
    ] = None,
    authorized_until: Annotated[
        Moment | None, moment_option("--authorized-until", "Authorized or declined before this time.")
    ] = None,
    reference: ReferenceFilter = "",
) -> None:
    """List payments, declined ones included, by the time they were authorized or declined."""
    read.get(
        ListPaymentsRequest(
            account_id=account_id,
            payer_account_id=payer,
            payee_account_id=payee,
            states=states,
            currency_code=currency,
            authorized_since=authorized_since,
            authorized_until=authorized_until,
            reference=reference,
        )
    )
