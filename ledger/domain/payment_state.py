"""The state of a payment, read off its amounts."""

from __future__ import annotations

from enum import StrEnum

from ledger.domain.events import PaymentAmounts


class PaymentState(StrEnum):
    """The state of a payment, which is a function of its amounts and nothing else (`payment_state`)."""

    DECLINED = "DECLINED"
    AUTHORIZED = "AUTHORIZED"
    PARTIALLY_CAPTURED = "PARTIALLY_CAPTURED"
    CAPTURED = "CAPTURED"
    VOIDED = "VOIDED"
    EXPIRED = "EXPIRED"


def payment_state(amounts: PaymentAmounts) -> PaymentState:
    if amounts.authorized == 0:
        return PaymentState.DECLINED
    if amounts.capturable > 0:
        return PaymentState.PARTIALLY_CAPTURED if amounts.captured else PaymentState.AUTHORIZED
    if amounts.captured > 0:
        return PaymentState.CAPTURED
    return PaymentState.EXPIRED if amounts.expired else PaymentState.VOIDED
