"""A result in a batch says what the rpc alone would answer, whatever results stand beside it."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from domain import (
    START,
    Ledger,
    authorize,
    capture,
    capture_and_keep,
    freeze,
    increment,
    leg,
    open_account,
    refund,
    transfer,
    void,
)

from ledger.domain.commands import Command
from ledger.domain.events import AccountKind
from ledger.replies import batch_response, response_to
from ledger.v1 import batch_pb2
from ledger.v1.ledger_pb2 import DECLINE_REASON_INSUFFICIENT_FUNDS

NAME_OF: Final = {
    each.message_type.name.removesuffix("Request"): each.name
    for each in batch_pb2.BatchCommand.DESCRIPTOR.fields
    if each.message_type is not None
}


def results_of(ledger: Ledger, commands: list[Command]) -> list[batch_pb2.BatchResult]:
    """What a batch of them answers; compared, one by one, with what each would be answered alone."""
    request, outcomes = batch_pb2.ExecuteBatchRequest(), []
    for command in commands:
        getattr(request.commands.add(), NAME_OF[type(command).__name__]).SetInParent()
        outcomes.append(ledger.do(command))
    results = [*batch_response(request, list(outcomes)).results]
    for entry, result, outcome in zip(request.commands, results, outcomes, strict=True):
        name = entry.WhichOneof("command")
        assert name is not None
        assert getattr(result, name) == response_to(getattr(entry, name), outcome)
    return results


def test_payments_of_one_moment_differ_in_all_that_was_asked() -> None:
    """Currency, hold, effective time, reference and metadata, declined or not: nothing is another payment's."""
    ledger = Ledger(alice=1_000, poor=1)
    ledger.do(open_account("shop"))
    for name in ("banque", "boutique"):
        ledger.do(open_account(name, currency_code="CHF", kind=AccountKind.EXTERNAL))
    results = results_of(
        ledger,
        [
            authorize(10, payment_id="plain"),
            authorize(20, payment_id="short", hold_for=timedelta(hours=1)),
            authorize(30, payment_id="early", effective_at=START - timedelta(days=3)),
            authorize(40, payment_id="told", reference="order 7", metadata={"shop": "7"}),
            authorize(50, payment_id="declined", payer="poor", reference="order 8"),
            authorize(60, payment_id="francs", payer="banque", payee="boutique", currency_code="CHF"),
            authorize(10, payment_id="plain"),
            authorize(70, payment_id="last"),
        ],
    )
    payments = [each.authorize_payment.payment for each in results]
    start, week, hour = int(START.timestamp()), 7 * 86_400, 3_600
    assert [each.expires_at.seconds - start for each in payments] == [week, hour, week, week, -start, week, week, week]
    assert [each.effective_at.seconds - start for each in payments] == [0, 0, -3 * 86_400, 0, 0, 0, 0, 0]
    assert [each.currency_code for each in payments] == ["EUR"] * 5 + ["CHF"] + ["EUR"] * 2
    assert [each.reference for each in payments] == ["", "", "", "order 7", "order 8", "", "", ""]
    assert [dict(each.metadata) for each in payments if each.metadata] == [{"shop": "7"}]
    assert [each.decline_reason for each in payments if each.decline_reason] == [DECLINE_REASON_INSUFFICIENT_FUNDS]
    assert [each.authorize_payment.replayed for each in results] == [False] * 6 + [True, False]
    assert [each.amount_authorized for each in payments] == [10, 20, 30, 40, 0, 60, 10, 70]


def test_a_payment_that_changes_in_a_batch_is_shown_as_it_was_after_each_change() -> None:
    """Also where an earlier one is replayed between, and where nothing is capturable any more."""
    ledger = Ledger(alice=1_000, shop=0)
    results = results_of(
        ledger,
        [
            authorize(100),
            increment("i", 300),
            capture_and_keep("c", 50),
            authorize(100),
            capture("d", 60),
            capture_and_keep("c", 50),
            refund("r", 30),
            authorize(5, payment_id="other", payee="bank"),
            void("other", reason="not wanted"),
            transfer("t", leg("shop", "bank", 1)),
            freeze("shop"),
            refund("r", 30),
        ],
    )
    shown = [getattr(each, each.WhichOneof("result") or "") for each in results]
    payments = [each.payment for each in shown if hasattr(each, "payment")]
    assert [each.version for each in payments] == [1, 2, 3, 1, 4, 3, 5, 1, 2, 5]
    assert [each.amount_capturable for each in payments] == [100, 300, 250, 100, 0, 250, 0, 5, 0, 0]
    assert [each.amount_captured for each in payments] == [0, 0, 50, 0, 110, 50, 110, 0, 0, 110]
    assert [len(each.captures) for each in payments] == [0, 0, 1, 0, 2, 1, 2, 0, 0, 2]
    assert [each.amount_released for each in payments] == [0, 0, 0, 0, 190, 0, 190, 0, 5, 190]
