"""What became of the rows of an import, told from the server's results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from google.rpc.error_details_pb2 import BadRequest
from google.rpc.status_pb2 import Status

from ledger.client import code_name
from ledger.v1 import batch_pb2, ledger_pb2, payment_pb2, transfer_pb2

# What the API calls the columns. Of a path like "commands[7].post_transfer.legs[0].amount.minor_units" the last name
# that is known counts.
_COLUMNS: Final = {
    "account_id": "account_id",
    "currency_code": "currency",
    "kind": "kind",
    "credit_limit": "credit_limit",
    "transfer_id": "id",
    "payment_id": "id",
    "capture_id": "id",
    "effective_at": "effective_at",
    "from_account_id": "from_account",
    "payer_account_id": "from_account",
    "to_account_id": "to_account",
    "payee_account_id": "to_account",
    "amount": "amount",
    "reference": "reference",
}


class Outcome(StrEnum):
    """What became of a row."""

    DONE = "done"
    REPLAYED = "replayed"
    DECLINED = "declined"
    REFUSED = "refused"


class Verdict(NamedTuple):
    """What became of a row, and why if it was not done."""

    outcome: Outcome
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Counts:
    """How many rows a file has, and what became of them. Those `replayed` had been done before, and are in `done`."""

    rows: int
    done: int
    replayed: int
    declined: int
    refused: int

    @classmethod
    def of(cls, outcomes: Counter[Outcome]) -> Counts:
        done, replayed = outcomes[Outcome.DONE], outcomes[Outcome.REPLAYED]
        return cls(outcomes.total(), done + replayed, replayed, outcomes[Outcome.DECLINED], outcomes[Outcome.REFUSED])


_DONE: Final = Verdict(Outcome.DONE)
_REPLAYED: Final = Verdict(Outcome.REPLAYED)


def verdict(results: Sequence[batch_pb2.BatchResult]) -> Verdict:
    """What became of a row, from the results of its commands: one, or an authorization and its capture."""
    first, last = results[0], results[-1]
    kind = first.WhichOneof("result")
    if kind == "error":
        return Verdict(Outcome.REFUSED, explanation(first.error))
    if kind == "post_transfer":
        transfer = first.post_transfer.transfer
        if transfer.state == transfer_pb2.TRANSFER_STATE_DECLINED:
            return _declined(transfer.decline_reason, transfer.declined_account_id)
        return _REPLAYED if first.post_transfer.replayed else _DONE
    if kind == "authorize_payment":
        payment = first.authorize_payment.payment
        if payment.state == payment_pb2.PAYMENT_STATE_DECLINED:
            return _declined(payment.decline_reason, payment.declined_account_id)
        if last.HasField("error"):
            return Verdict(Outcome.REFUSED, f"authorized, but not captured: {explanation(last.error)}")
        return _REPLAYED if last.capture_payment.replayed else _DONE
    return _REPLAYED if first.open_account.replayed else _DONE


def explanation(status: Status) -> str:
    """Why the server refused something, in the words of the file: a malformed field is named by its column."""
    bad_request = BadRequest()
    if any(detail.Unpack(bad_request) for detail in status.details) and bad_request.field_violations:
        fields = [f"{_column(each.field)}: {each.description}" for each in bad_request.field_violations]
        return f"{code_name(status)}: {'; '.join(fields)}"
    return f"{code_name(status)}: {status.message}"


def _column(path: str) -> str:
    names = path.split(".")
    return next((_COLUMNS[name] for name in reversed(names) if name in _COLUMNS), names[-1])


def _declined(reason: ledger_pb2.DeclineReason.ValueType, account_id: str) -> Verdict:
    name = ledger_pb2.DeclineReason.Name(reason).removeprefix("DECLINE_REASON_")
    return Verdict(Outcome.DECLINED, f"{name}: account {account_id}")
