"""What happened how often in all runs, and what must have happened."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from refused import Refused
from replies import thing_of

from ledger.v1.batch_pb2 import BATCH_MODE_ATOMIC
from ledger.v1.ledger_pb2 import DeclineReason

_COMMAND: Final = (
    "done",
    "replayed",
    "dry",
    "INVALID_REQUEST",
    "LEDGER_NOT_FOUND",
    "VERSION_MISMATCH",
    "ACCOUNT_NOT_FOUND",
)
_WITH_ID: Final = (*_COMMAND, "ID_ALREADY_USED")
_DATED: Final = "EFFECTIVE_AT_IN_FUTURE"
_FUNDS: Final = ("INSUFFICIENT_FUNDS", "BALANCE_LIMIT")
_DECLINES: Final = tuple(f"declined: {each}" for each in ("ACCOUNT_CLOSED", "ACCOUNT_FROZEN", *_FUNDS))
_ENDED: Final = ("PAYMENT_NOT_FOUND", "PAYMENT_DECLINED", "PAYMENT_VOIDED", "PAYMENT_EXPIRED", "PAYMENT_CAPTURED")

POSSIBLE: Final[dict[str, tuple[str, ...]]] = {
    "OpenAccount": _WITH_ID,
    "SetCreditLimit": (
        *_COMMAND,
        "CURRENCY_MISMATCH",
        "ACCOUNT_CLOSED",
        "LIMIT_BELOW_USE",
        "EXTERNAL_HAS_NO_LIMIT",
    ),
    "FreezeAccount": (*_COMMAND, "ACCOUNT_CLOSED"),
    "UnfreezeAccount": (*_COMMAND, "ACCOUNT_CLOSED"),
    "CloseAccount": (*_COMMAND, "ACCOUNT_IN_USE"),
    "AuthorizePayment": (*_WITH_ID, _DATED, "CURRENCY_MISMATCH", *_DECLINES),
    "IncrementAuthorization": (
        *_WITH_ID,
        *_ENDED,
        *_FUNDS,
        "CURRENCY_MISMATCH",
        "ACCOUNT_CLOSED",
        "ACCOUNT_FROZEN",
        "AMOUNT_NOT_GREATER",
    ),
    "CapturePayment": (
        *_WITH_ID,
        *_ENDED,
        _DATED,
        "CURRENCY_MISMATCH",
        "ACCOUNT_CLOSED",
        "AMOUNT_EXCEEDS_CAPTURABLE",
        "BALANCE_LIMIT",
    ),
    "VoidPayment": (*_COMMAND, *(each for each in _ENDED if each != "PAYMENT_VOIDED")),
    "RefundPayment": (
        *_WITH_ID,
        *_FUNDS,
        _DATED,
        "PAYMENT_NOT_FOUND",
        "PAYMENT_DECLINED",
        "CURRENCY_MISMATCH",
        "ACCOUNT_CLOSED",
        "ACCOUNT_FROZEN",
        "AMOUNT_EXCEEDS_REFUNDABLE",
        "NOTHING_TO_REFUND",
    ),
    "PostTransfer": (*_WITH_ID, _DATED, "CURRENCY_MISMATCH", *_DECLINES),
    "ExecuteBatch": ("done", "dry", "INVALID_REQUEST", "atomic: done", "atomic: dry", "atomic: BATCH_ABORTED"),
    "Sweeper": ("done",),
    "GetAccount": ("read", "ACCOUNT_NOT_FOUND"),
    "GetAccountBalance": ("read", "ACCOUNT_NOT_FOUND", "POSITION_AHEAD_OF_HEAD"),
    "GetPayment": ("read", "PAYMENT_NOT_FOUND", "POSITION_AHEAD_OF_HEAD"),
    "GetTransfer": ("read", "TRANSFER_NOT_FOUND"),
    "ListAccounts": ("page", "INVALID_REQUEST"),
    "ListPayments": ("page", "INVALID_REQUEST"),
    "ListTransfers": ("page", "INVALID_REQUEST"),
    "ListEntries": ("page", "INVALID_REQUEST", "ACCOUNT_NOT_FOUND"),
}
"""All that can come of a request. TOO_MANY_CHANGES takes a thousand changes: tests/acceptance/test_api.py has it."""


class Tally:
    """Counts what came of requests."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()

    def count(self, request: Any, reply: Any) -> None:
        """A request and what was answered; of a batch also its commands."""
        name = request.DESCRIPTOR.name.removesuffix("Request")
        if name == "ExecuteBatch" and isinstance(reply, list):
            for command, each in zip(request.commands, reply, strict=True):
                self.count(getattr(command, command.WhichOneof("command")), each)
        self.count_one(name, _outcome(request, reply))

    def count_one(self, name: str, outcome: str) -> None:
        self._counts[name, outcome] += 1

    @property
    def total(self) -> int:
        return self._counts.total()

    def missing(self) -> list[str]:
        """What could have happened and never did."""
        possible = [(name, outcome) for name, outcomes in POSSIBLE.items() for outcome in outcomes]
        return [f"{name}: {outcome}" for name, outcome in possible if not self._counts[name, outcome]]

    def lines(self) -> list[str]:
        """How often what happened, in a table."""
        names = sorted({name for name, _ in self._counts})
        return [f"{name:24}{self._outcomes(name)}" for name in names]

    def _outcomes(self, name: str) -> str:
        counts = {outcome: count for (each, outcome), count in self._counts.items() if each == name}
        return ", ".join(f"{outcome} {count}" for outcome, count in sorted(counts.items(), key=lambda each: -each[1]))


def _outcome(request: Any, reply: Any) -> str:
    if isinstance(reply, Refused):
        return reply.reason
    if request.DESCRIPTOR.name.startswith("List"):
        return "page"
    if isinstance(reply, list):
        return _outcome_of_batch(request, reply)
    if request.DESCRIPTOR.name.startswith("Get"):
        return "read"
    if getattr(request, "validate_only", False):
        return "dry"
    if reply.replayed:
        return "replayed"
    reason = getattr(thing_of(reply), "decline_reason", 0)
    return f"declined: {DeclineReason.Name(reason).removeprefix('DECLINE_REASON_')}" if reason else "done"


def _outcome_of_batch(request: Any, replies: list[Any]) -> str:
    outcome = "dry" if request.validate_only else "done"
    if request.mode != BATCH_MODE_ATOMIC:
        return outcome
    return "atomic: BATCH_ABORTED" if any(isinstance(each, Refused) for each in replies) else f"atomic: {outcome}"
