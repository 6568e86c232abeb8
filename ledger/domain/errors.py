"""Every way in which a command can be refused, one class per rule, in the order in which the rules are checked.

A refusal records nothing and does not use up the command's id. (A decline is something else: an outcome, recorded.)
The docstring of a class is its message; `{name}` stands for a detail that it is raised with. The code is for programs
and never changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

Detail = str | int


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field that is not as it must be: its path, as in the proto (`amount.minor_units`), and what is wrong."""

    field: str
    description: str


class Refusal(Exception):
    """The command was refused."""

    code: str

    def __init__(self, **details: Detail) -> None:
        self.details: Final = details
        super().__init__((type(self).__doc__ or "").format(**details))


class InvalidCommand(Refusal):
    """The request is malformed: {summary}."""

    code = "INVALID_REQUEST"

    def __init__(self, *violations: FieldViolation) -> None:
        self.violations: Final = violations
        super().__init__(summary="; ".join(f"{each.field}: {each.description}".lstrip(": ") for each in violations))

    def inside(self, path: str) -> InvalidCommand:
        """The same, with the fields as seen from outside: `path` before each."""
        return type(self)(*(FieldViolation(path + each.field, each.description) for each in self.violations))


class EffectiveInFuture(InvalidCommand):
    """The request is malformed: {summary}."""

    code = "EFFECTIVE_AT_IN_FUTURE"


class IdAlreadyUsed(Refusal):
    """{id_field} {id!r} is already used by a request whose {field} differs."""

    code = "ID_ALREADY_USED"


class AccountNotFound(Refusal):
    """There is no account {account_id!r} in this ledger."""

    code = "ACCOUNT_NOT_FOUND"


class PaymentNotFound(Refusal):
    """There is no payment {payment_id!r} in this ledger."""

    code = "PAYMENT_NOT_FOUND"


class TransferNotFound(Refusal):
    """There is no transfer {transfer_id!r} in this ledger."""

    code = "TRANSFER_NOT_FOUND"


class VersionMismatch(Refusal):
    """Account {account_id!r} is at version {version}, not at {expected_version} as the precondition says."""

    code = "VERSION_MISMATCH"


class PaymentWasDeclined(Refusal):
    """Payment {payment_id!r} was declined: there is nothing to capture, void or refund."""

    code = "PAYMENT_DECLINED"


class PaymentIsVoided(Refusal):
    """Payment {payment_id!r} was voided: nothing of it is left."""

    code = "PAYMENT_VOIDED"


class PaymentIsExpired(Refusal):
    """The authorization of payment {payment_id!r} has expired: what was not captured is released."""

    code = "PAYMENT_EXPIRED"


class PaymentIsCaptured(Refusal):
    """Payment {payment_id!r} is captured in full: nothing of it is left."""

    code = "PAYMENT_CAPTURED"


class TooManyChanges(Refusal):
    """Payment {payment_id!r} has been changed {limit} times, which is the most that a payment allows."""

    code = "TOO_MANY_CHANGES"


class CurrencyMismatch(Refusal):
    """Account {account_id!r} holds {account_currency}, not {currency_code}."""

    code = "CURRENCY_MISMATCH"


class AccountIsClosed(Refusal):
    """Account {account_id!r} is closed."""

    code = "ACCOUNT_CLOSED"


class AccountIsFrozen(Refusal):
    """Account {account_id!r} is frozen ({freeze_scope})."""

    code = "ACCOUNT_FROZEN"


class AccountInUse(Refusal):
    """Account {account_id!r} can't be closed: {posted} is posted on it and {reserved} reserved, not 0."""

    code = "ACCOUNT_IN_USE"


class ExternalHasNoLimit(Refusal):
    """Account {account_id!r} is EXTERNAL: it has no credit limit."""

    code = "EXTERNAL_HAS_NO_LIMIT"


class LimitBelowUse(Refusal):
    """Account {account_id!r} already uses {used} of credit: its limit can't be less."""

    code = "LIMIT_BELOW_USE"


class AmountNotGreater(Refusal):
    """An increment names the new total, which must be greater than the {authorized} authorized now."""

    code = "AMOUNT_NOT_GREATER"


class AmountExceedsCapturable(Refusal):
    """Payment {payment_id!r} has {capturable} left to capture, less than {amount}."""

    code = "AMOUNT_EXCEEDS_CAPTURABLE"


class NothingToRefund(Refusal):
    """Payment {payment_id!r} has nothing left to refund."""

    code = "NOTHING_TO_REFUND"


class AmountExceedsRefundable(Refusal):
    """Payment {payment_id!r} has {refundable} left to refund, less than {amount}."""

    code = "AMOUNT_EXCEEDS_REFUNDABLE"


class BalanceLimitExceeded(Refusal):
    """Account {account_id!r} would go beyond 10^18 minor units, the most that a balance may reach."""

    code = "BALANCE_LIMIT"


class InsufficientFunds(Refusal):
    """Account {account_id!r} has {available} available, less than {amount}."""

    code = "INSUFFICIENT_FUNDS"


class DeclinedInBatch(Refusal):
    """Declined for {decline_reason} by account {account_id!r}: in an ATOMIC batch that is a failure of all of it."""

    def __init__(self, decline_reason: str, **where: Detail) -> None:
        super().__init__(decline_reason=decline_reason, **where)
        self.code = decline_reason


class BatchAborted(Refusal):
    """Command {failed} of this ATOMIC batch failed, so nothing of the batch was recorded."""

    code = "BATCH_ABORTED"
