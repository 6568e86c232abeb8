"""What clients can ask of a ledger: every command with the form that each of its fields must have.

A command that exists is well-formed; whether it is done, declined or refused is decided in `ledger.domain.decisions`.
The id that a command creates is its idempotency key, and the fields in `compared` are what must be the same when the
same id comes again. Field names are those of the proto.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, ClassVar, Final, Self, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, InstanceOf, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from ledger.domain.errors import FieldViolation, InvalidCommand
from ledger.domain.events import AccountKind, FreezeScope, TransferLeg
from ledger.domain.ids import ID_PATTERN, id_violation
from ledger.domain.money import CURRENCIES, MAX_MINOR_UNITS, Money, UnknownCurrency, currency
from ledger.domain.text import text_violation

HOLD_FOR_DEFAULT: Final = timedelta(days=7)
HOLD_FOR_MOST: Final = timedelta(days=31)
METADATA_MOST_KEYS: Final = 64
METADATA_MOST_BYTES: Final = 8 * 1024
LEGS_MOST: Final = 1_000
PRECONDITIONS_MOST: Final = 1_000


def _violation(field: str, description: str) -> PydanticCustomError:
    return PydanticCustomError("violation", "{description}", {"field": field, "description": description})


def _currency(code: str, path: str = "") -> str:
    try:
        currency(code)
    except UnknownCurrency as unknown:
        raise _violation(path, str(unknown) if code else "must be set") from None
    return code


def _id(text: str, path: str = "") -> str:
    wrong = id_violation(text)
    if wrong:
        raise _violation(path, wrong)
    return text


def _code(code: str) -> str:
    return _currency(code)


def _within(money: Money, least: int, path: str = "") -> Money:
    if money.currency_code not in CURRENCIES:
        _currency(money.currency_code, f"{path}currency_code")
    if not least <= money.minor_units <= MAX_MINOR_UNITS:
        raise _violation(f"{path}minor_units", f"must be {least} to 10^18, not {money.minor_units}")
    return money


def _positive(money: Money) -> Money:
    return _within(money, 1)


def _not_negative(money: Money) -> Money:
    return _within(money, 0)


def _text(text: str) -> str:
    wrong = text_violation(text)
    if wrong:
        raise _violation("", wrong)
    return text


def _metadata(metadata: dict[str, str]) -> dict[str, str]:
    if not metadata:
        return metadata
    if len(metadata) > METADATA_MOST_KEYS:
        raise _violation("", f"must have at most {METADATA_MOST_KEYS} keys, not {len(metadata)}")
    size = sum(len(key.encode()) + len(value.encode()) for key, value in metadata.items())
    if size > METADATA_MOST_BYTES:
        raise _violation("", f"must have at most {METADATA_MOST_BYTES} bytes of keys and values, not {size}")
    if "" in metadata:
        raise _violation("", "must not have an empty key")
    if any("\0" in key or "\0" in value for key, value in metadata.items()):
        raise _violation("", "must not contain the character NUL")
    return metadata


def _hold_for(hold_for: timedelta) -> timedelta:
    if not timedelta(0) < hold_for <= HOLD_FOR_MOST:
        raise _violation("", f"must be more than 0 and at most {HOLD_FOR_MOST.days} days")
    return hold_for


def _in_utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise _violation("", "must have a time zone")
    return moment if moment.tzinfo is UTC else moment.astimezone(UTC)


def _legs(legs: tuple[TransferLeg, ...]) -> tuple[TransferLeg, ...]:
    if not 1 <= len(legs) <= LEGS_MOST:
        raise _violation("", f"must be 1 to {LEGS_MOST} legs, not {len(legs)}")
    for number, leg in enumerate(legs):
        _id(leg.from_account_id, f"[{number}].from_account_id")
        _id(leg.to_account_id, f"[{number}].to_account_id")
        if leg.from_account_id == leg.to_account_id:
            raise _violation(f"[{number}].to_account_id", "must not be the account that the money comes from")
        _within(leg.amount, 1, f"[{number}].amount.")
    return legs


Id: TypeAlias = Annotated[str, Field(pattern=f"^{ID_PATTERN}$")]
CurrencyCode: TypeAlias = Annotated[str, AfterValidator(_code)]
PositiveMoney: TypeAlias = Annotated[InstanceOf[Money], AfterValidator(_positive)]
Limit: TypeAlias = Annotated[InstanceOf[Money], AfterValidator(_not_negative)]
Metadata: TypeAlias = Annotated[dict[str, str], AfterValidator(_metadata)]
Text: TypeAlias = Annotated[str, AfterValidator(_text)]
HoldFor: TypeAlias = Annotated[timedelta, AfterValidator(_hold_for)]
EffectiveAt: TypeAlias = Annotated[datetime, AfterValidator(_in_utc)]


def _preconditions(preconditions: tuple[Precondition, ...]) -> tuple[Precondition, ...]:
    if len(preconditions) > PRECONDITIONS_MOST:
        raise _violation("", f"must be at most {PRECONDITIONS_MOST}, not {len(preconditions)}")
    seen = set()
    for number, each in enumerate(preconditions):
        _id(each.account_id, f"[{number}].account_id")
        if each.account_id in seen:
            raise _violation(f"[{number}].account_id", f"must not name {each.account_id!r} again")
        if each.expected_version < 1:
            raise _violation(f"[{number}].expected_version", f"must be at least 1, not {each.expected_version}")
        seen.add(each.account_id)
    return preconditions


@dataclass(frozen=True, slots=True)
class Precondition:
    """The command is refused unless the account is at just this version (how many events it has had)."""

    account_id: str
    expected_version: int


class Command(BaseModel):
    """A request to change the ledger. With `validate_only` it is answered as if, and nothing is recorded."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    compared: ClassVar[tuple[str, ...]] = ()

    validate_only: bool = False
    preconditions: Annotated[tuple[Precondition, ...], AfterValidator(_preconditions)] = ()

    def __init__(self, **fields: Any) -> None:
        """Raise InvalidCommand, with every field that is not as it must be, when one isn't."""
        try:
            # What BaseModel does; to pass the keywords on to it would cost as much as to validate three fields.
            self.__pydantic_validator__.validate_python(fields, self_instance=self)
        except ValidationError as error:
            raise InvalidCommand(*(_as_violation(each) for each in error.errors(include_url=False))) from None

    def difference(self, recorded: Any) -> str | None:
        """The first compared field in which `recorded`, an event made from an earlier command, differs."""
        for field in self.compared:
            if getattr(self, field) != getattr(recorded, field):
                return field
        return None


class OpenAccount(Command):
    """Create an account. An EXTERNAL account has no credit limit; a CUSTOMER's is 0 unless given."""

    compared = ("currency_code", "kind", "credit_limit", "metadata")

    account_id: Id
    currency_code: CurrencyCode
    kind: AccountKind = AccountKind.CUSTOMER
    credit_limit: Limit | None = None
    metadata: Metadata = Field(default_factory=dict)

    @model_validator(mode="after")
    def _limit_fits(self) -> Self:
        if self.credit_limit is not None:
            if self.credit_limit.currency_code != self.currency_code:
                raise _violation("credit_limit.currency_code", f"must be the account's, {self.currency_code}")
            if self.kind is AccountKind.EXTERNAL:
                raise _violation("credit_limit", "must be unset: an EXTERNAL account has no limit")
        return self


class SetCreditLimit(Command):
    account_id: Id
    credit_limit: Limit
    reason: Text = ""


class FreezeAccount(Command):
    account_id: Id
    scope: FreezeScope
    reason: Text = ""


class UnfreezeAccount(Command):
    account_id: Id
    reason: Text = ""


class CloseAccount(Command):
    account_id: Id
    reason: Text = ""


class AuthorizePayment(Command):
    """Promise `amount` of the payer's money to the payee, for `hold_for` (7 days unless given)."""

    compared = (
        "payer_account_id",
        "payee_account_id",
        "amount",
        "hold_for",
        "reference",
        "metadata",
        "effective_at",
    )

    payment_id: Id
    payer_account_id: Id
    payee_account_id: Id
    amount: PositiveMoney
    hold_for: HoldFor | None = None
    reference: Text = ""
    metadata: Metadata = Field(default_factory=dict)
    effective_at: EffectiveAt | None = None

    @model_validator(mode="after")
    def _two_accounts(self) -> Self:
        if self.payer_account_id == self.payee_account_id:
            raise _violation("payee_account_id", "must not be the payer")
        return self


class IncrementAuthorization(Command):
    """Raise an authorization to the new total `amount`."""

    compared = ("amount",)

    payment_id: Id
    increment_id: Id
    amount: PositiveMoney


class CapturePayment(Command):
    """Move authorized money to the payee: `amount`, or all that remains; what then remains is kept or released."""

    compared = ("amount", "keep_remainder", "effective_at")

    payment_id: Id
    capture_id: Id
    amount: PositiveMoney | None = None
    keep_remainder: bool = False
    effective_at: EffectiveAt | None = None


class VoidPayment(Command):
    """Release all that is not captured."""

    payment_id: Id
    reason: Text = ""


class ExpireAuthorization(Command):
    """Release what is not captured of an authorization whose time is over. The ledger's own command, not a client's."""

    payment_id: Id


class RefundPayment(Command):
    """Move captured money back to the payer: `amount`, or all that can be refunded."""

    compared = ("amount", "effective_at")

    payment_id: Id
    refund_id: Id
    amount: PositiveMoney | None = None
    effective_at: EffectiveAt | None = None


class PostTransfer(Command):
    """Move money at once: all legs or none, in order, each seeing those before it."""

    compared = ("legs", "reference", "metadata", "effective_at")

    transfer_id: Id
    legs: Annotated[tuple[InstanceOf[TransferLeg], ...], AfterValidator(_legs)]
    reference: Text = ""
    metadata: Metadata = Field(default_factory=dict)
    effective_at: EffectiveAt | None = None


def _as_violation(error: Any) -> FieldViolation:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"])
    inner = error.get("ctx", {}).get("field", "") if error["type"] == "violation" else ""
    if inner and not inner.startswith("["):
        inner = f".{inner}"
    message: str = error["msg"]
    if error["type"] == "string_pattern_mismatch":
        message = id_violation(error["input"]) or message
    return FieldViolation((path + inner).lstrip("."), message[:1].lower() + message[1:])
