"""Commands: what makes a request malformed, what a precondition is, and which of several faults is reported."""

from datetime import timedelta
from typing import Any

import pytest
from domain import (
    INSTANT,
    MOST,
    START,
    Ledger,
    Line,
    at_version,
    authorize,
    capture,
    capture_and_keep,
    close,
    eur,
    freeze,
    increment,
    leg,
    open_account,
    refund,
    set_limit,
    transfer,
    unfreeze,
    void,
)
from pydantic import ValidationError

from ledger.domain.aggregate import LedgerAggregate, Stamp
from ledger.domain.book import Book, Streams
from ledger.domain.commands import (
    AuthorizePayment,
    CapturePayment,
    CloseAccount,
    Command,
    ExpireAuthorization,
    FreezeAccount,
    IncrementAuthorization,
    OpenAccount,
    PostTransfer,
    Precondition,
    RefundPayment,
    SetCreditLimit,
    UnfreezeAccount,
    VoidPayment,
)
from ledger.domain.decisions import decide, streams_behind, streams_of
from ledger.domain.errors import AccountNotFound, InvalidCommand, VersionMismatch
from ledger.domain.events import AccountKind, FreezeScope
from ledger.domain.money import Money
from ledger.domain.payment import Payment

EXTERNAL = AccountKind.EXTERNAL

WELL_FORMED: dict[type[Command], dict[str, Any]] = {
    OpenAccount: {"account_id": "a", "currency_code": "EUR"},
    SetCreditLimit: {"account_id": "a", "credit_limit": eur(1)},
    FreezeAccount: {"account_id": "a", "scope": FreezeScope.ALL},
    UnfreezeAccount: {"account_id": "a"},
    CloseAccount: {"account_id": "a"},
    AuthorizePayment: {"payment_id": "p", "payer_account_id": "a", "payee_account_id": "b", "amount": eur(1)},
    IncrementAuthorization: {"payment_id": "p", "increment_id": "i", "amount": eur(1)},
    CapturePayment: {"payment_id": "p", "capture_id": "c"},
    VoidPayment: {"payment_id": "p"},
    ExpireAuthorization: {"payment_id": "p"},
    RefundPayment: {"payment_id": "p", "refund_id": "r"},
    PostTransfer: {"transfer_id": "t", "legs": (leg("a", "b", 1),)},
}


def made(command_class: type[Command], **changed: Any) -> Command:
    return command_class(**WELL_FORMED[command_class] | changed)


def violated(command_class: type[Command], **changed: Any) -> list[str]:
    """The paths of the fields that the refusal of a malformed command names."""
    with pytest.raises(InvalidCommand) as caught:
        made(command_class, **changed)
    assert caught.value.code == "INVALID_REQUEST"
    assert all(violation.description for violation in caught.value.violations)
    return [violation.field for violation in caught.value.violations]


def with_field(name: str) -> list[type[Command]]:
    return [command_class for command_class in WELL_FORMED if name in command_class.model_fields]


# --- ids -------------------------------------------------------------------------------------------------------------

ID_FIELDS = [
    (command_class, field) for command_class in WELL_FORMED for field in command_class.model_fields if "_id" in field
]


@pytest.mark.parametrize(("command_class", "field"), ID_FIELDS)
@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "-a",
        ".a",
        "_a",
        ":a",
        " a",
        "a ",
        "a b",
        "a/b",
        "a\n",
        "a\0",
        "ä",
        "aä",
        "\N{ARABIC-INDIC DIGIT ONE}",
        "a" * 129,
        None,
        5,
        True,
    ],
)
def test_an_ill_formed_id_is_a_violation_of_its_field(command_class: type[Command], field: str, wrong: Any) -> None:
    """1 to 128 ASCII letters, digits and . _ : -, the first a letter or a digit; anything else names the field."""
    assert violated(command_class, **{field: wrong}) == [field]


@pytest.mark.parametrize(("command_class", "field"), ID_FIELDS)
@pytest.mark.parametrize("good", ["z", "Z", "0", "z" * 128, "0.z_Z:z-", "order--17::"])
def test_a_well_formed_id_is_taken_as_it_is(command_class: type[Command], field: str, good: str) -> None:
    """Nothing is trimmed, folded or otherwise changed."""
    assert getattr(made(command_class, **{field: good}), field) == good


@pytest.mark.parametrize(("command_class", "field"), ID_FIELDS)
def test_an_id_must_be_set(command_class: type[Command], field: str) -> None:
    """Every command names what it creates or changes: there is no default."""
    fields = {name: value for name, value in WELL_FORMED[command_class].items() if name != field}
    with pytest.raises(InvalidCommand) as caught:
        command_class(**fields)
    assert [violation.field for violation in caught.value.violations] == [field]


# --- money -----------------------------------------------------------------------------------------------------------

WITH_AMOUNT = with_field("amount")
WITH_LIMIT = with_field("credit_limit")


@pytest.mark.parametrize("command_class", WITH_AMOUNT)
@pytest.mark.parametrize(
    ("money", "path"),
    [
        (Money("EUR", 0), "amount.minor_units"),
        (Money("EUR", -1), "amount.minor_units"),
        (Money("EUR", -MOST), "amount.minor_units"),
        (Money("EUR", MOST + 1), "amount.minor_units"),
        (Money("EUR", 2**63), "amount.minor_units"),
        (Money("", 1), "amount.currency_code"),
        (Money("eur", 1), "amount.currency_code"),
        (Money("EURO", 1), "amount.currency_code"),
        (Money("XAU", 1), "amount.currency_code"),
        (Money("XXX", 1), "amount.currency_code"),
        (Money("BGN", 1), "amount.currency_code"),
        ({"currency_code": "EUR", "minor_units": 1}, "amount"),
        (100, "amount"),
        (1.0, "amount"),
        ("1.00 EUR", "amount"),
        (True, "amount"),
    ],
)
def test_an_amount_is_1_to_10_18_minor_units_of_a_currency(command_class: type[Command], money: Any, path: str) -> None:
    """It is money, and nothing that merely converts to it."""
    assert violated(command_class, amount=money) == [path]


@pytest.mark.parametrize("command_class", WITH_AMOUNT)
@pytest.mark.parametrize("money", [eur(1), eur(MOST), Money("JPY", 1), Money("CLF", MOST)])
def test_an_amount_within_the_bounds_is_taken(command_class: type[Command], money: Money) -> None:
    """One minor unit and 10^18 of them are amounts, in whatever currency."""
    assert made(command_class, amount=money).amount == money


@pytest.mark.parametrize("command_class", WITH_LIMIT)
@pytest.mark.parametrize(
    ("limit", "path"),
    [
        (Money("EUR", -1), "credit_limit.minor_units"),
        (Money("EUR", MOST + 1), "credit_limit.minor_units"),
        (Money("XAU", 1), "credit_limit.currency_code"),
        (Money("", 1), "credit_limit.currency_code"),
        ({"currency_code": "EUR", "minor_units": 0}, "credit_limit"),
        (0, "credit_limit"),
    ],
)
def test_a_limit_is_0_to_10_18_minor_units_of_a_currency(command_class: type[Command], limit: Any, path: str) -> None:
    """It may be zero, and is never negative."""
    assert violated(command_class, credit_limit=limit) == [path]


@pytest.mark.parametrize("command_class", WITH_LIMIT)
@pytest.mark.parametrize("minor_units", [0, 1, MOST])
def test_a_limit_within_the_bounds_is_taken(command_class: type[Command], minor_units: int) -> None:
    """Zero and 10^18 are limits."""
    assert made(command_class, credit_limit=eur(minor_units)).credit_limit == eur(minor_units)


def test_only_captures_refunds_and_opening_may_leave_their_money_unset() -> None:
    """For the first two it means all that remains, for the last a limit of 0; it stays unset until it is decided."""
    optional = {
        (command_class, field)
        for field in ("amount", "credit_limit")
        for command_class in with_field(field)
        if not command_class.model_fields[field].is_required()
    }
    assert optional == {(CapturePayment, "amount"), (RefundPayment, "amount"), (OpenAccount, "credit_limit")}
    assert all(getattr(made(command_class), field) is None for command_class, field in optional)
    assert violated(AuthorizePayment, amount=None) == ["amount"]
    assert violated(IncrementAuthorization, amount=None) == ["amount"]
    assert violated(SetCreditLimit, credit_limit=None) == ["credit_limit"]


# --- text and metadata -----------------------------------------------------------------------------------------------

TEXTS = [(command_class, field) for field in ("reference", "reason") for command_class in with_field(field)]


@pytest.mark.parametrize(("command_class", "field"), TEXTS)
@pytest.mark.parametrize("wrong", ["x" * 257, "😀" * 257, "\0", "a\0b", 5, None, b"\xff"])
def test_a_text_has_at_most_256_characters_and_no_nul(command_class: type[Command], field: str, wrong: Any) -> None:
    """Longer, with a NUL, or no text at all: the field is named."""
    assert violated(command_class, **{field: wrong}) == [field]


@pytest.mark.parametrize(("command_class", "field"), TEXTS)
@pytest.mark.parametrize("good", ["", "x" * 256, "😀" * 256, "a\nb\t", "  spaces  "])
def test_characters_of_a_text_are_code_points(command_class: type[Command], field: str, good: str) -> None:
    """256 of them, whatever they take in UTF-8; nothing is trimmed."""
    assert getattr(made(command_class, **{field: good}), field) == good


@pytest.mark.parametrize("command_class", with_field("metadata"))
@pytest.mark.parametrize(
    "wrong",
    [
        {f"k{number}": "" for number in range(65)},
        {"k": "x" * 8_192},
        {"k" * 8_193: ""},
        {"k": "é" * 4_096},
        {"€": "😀" * 2_048},
        {"a": "x" * 4_096, "b": "x" * 4_095},
        {"": "x"},
        {"a": "1", "": ""},
        {"a\0": "x"},
        {"a": "\0"},
        {"a": None},
        {"a": 1},
        {1: "a"},
        None,
        "text",
        ["a"],
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_metadata_has_at_most_64_keys_and_8_kib_no_empty_key_and_no_nul(
    command_class: type[Command], wrong: Any
) -> None:
    """The bytes are those of keys and values in UTF-8, together."""
    paths = violated(command_class, metadata=wrong)
    assert len(paths) == 1
    assert paths[0].startswith("metadata")


@pytest.mark.parametrize("command_class", with_field("metadata"))
@pytest.mark.parametrize(
    "good",
    [
        {},
        {f"k{number}": "" for number in range(64)},
        {"k": "x" * 8_191},
        {"k" * 8_192: ""},
        {"é": "é" * 4_095},
        {"a": "x" * 4_095, "b": "x" * 4_095},
        {" ": "a key of one space"},
        {"a": "", "b": ""},
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_metadata_within_the_bounds_is_taken(command_class: type[Command], good: dict[str, str]) -> None:
    """64 keys and 8,192 bytes are allowed; values may be empty."""
    assert made(command_class, metadata=good).metadata == good


# --- each command's own fields ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command_class", "changed", "path"),
    [
        (OpenAccount, {"currency_code": ""}, "currency_code"),
        (OpenAccount, {"currency_code": "eur"}, "currency_code"),
        (OpenAccount, {"currency_code": "XAU"}, "currency_code"),
        (OpenAccount, {"currency_code": "EUR\n"}, "currency_code"),
        (OpenAccount, {"currency_code": None}, "currency_code"),
        (OpenAccount, {"kind": "BANK"}, "kind"),
        (OpenAccount, {"kind": None}, "kind"),
        (OpenAccount, {"kind": EXTERNAL, "credit_limit": eur(1)}, "credit_limit"),
        (OpenAccount, {"kind": EXTERNAL, "credit_limit": eur(0)}, "credit_limit"),
        (OpenAccount, {"credit_limit": Money("JPY", 1)}, "credit_limit.currency_code"),
        (FreezeAccount, {"scope": "SOME"}, "scope"),
        (FreezeAccount, {"scope": None}, "scope"),
        (AuthorizePayment, {"payee_account_id": "a"}, "payee_account_id"),
        (AuthorizePayment, {"hold_for": timedelta(0)}, "hold_for"),
        (AuthorizePayment, {"hold_for": -INSTANT}, "hold_for"),
        (AuthorizePayment, {"hold_for": timedelta(days=31) + INSTANT}, "hold_for"),
        (AuthorizePayment, {"hold_for": timedelta.max}, "hold_for"),
        (AuthorizePayment, {"hold_for": "soon"}, "hold_for"),
        (AuthorizePayment, {"effective_at": "yesterday"}, "effective_at"),
        (AuthorizePayment, {"effective_at": START.replace(tzinfo=None)}, "effective_at"),
        (CapturePayment, {"keep_remainder": None}, "keep_remainder"),
        (CapturePayment, {"effective_at": "yesterday"}, "effective_at"),
        (RefundPayment, {"effective_at": "yesterday"}, "effective_at"),
        (PostTransfer, {"effective_at": "yesterday"}, "effective_at"),
        (PostTransfer, {"legs": ()}, "legs"),
        (PostTransfer, {"legs": (leg("a", "b", 1),) * 1_001}, "legs"),
        (PostTransfer, {"legs": (leg("a", "a", 1),)}, "legs[0].to_account_id"),
        (PostTransfer, {"legs": (leg("a", "b", 1), leg("b", "b", 1))}, "legs[1].to_account_id"),
        (PostTransfer, {"legs": (leg("", "b", 1),)}, "legs[0].from_account_id"),
        (PostTransfer, {"legs": (leg("a", "b", 1), leg("a", "b c", 1))}, "legs[1].to_account_id"),
        (PostTransfer, {"legs": (leg("a", "b", 0),)}, "legs[0].amount.minor_units"),
        (PostTransfer, {"legs": (leg("a", "b", -1),)}, "legs[0].amount.minor_units"),
        (PostTransfer, {"legs": (leg("a", "b", 1), leg("a", "b", MOST + 1))}, "legs[1].amount.minor_units"),
        (PostTransfer, {"legs": (leg("a", "b", 1, "XAU"),)}, "legs[0].amount.currency_code"),
        (PostTransfer, {"legs": (leg("a", "b", 1, ""),)}, "legs[0].amount.currency_code"),
        (PostTransfer, {"legs": ("leg",)}, "legs[0]"),
        (PostTransfer, {"legs": None}, "legs"),
        (PostTransfer, {"legs": ({"from_account_id": "a", "to_account_id": "b", "amount": eur(1)},)}, "legs[0]"),
    ],
)  # fmt: skip
def test_a_malformed_field_is_named_by_its_path(
    command_class: type[Command], changed: dict[str, Any], path: str
) -> None:
    """The path is that of the proto, with the index of what is repeated."""
    assert violated(command_class, **changed) == [path]


@pytest.mark.parametrize(
    ("command_class", "changed"),
    [
        (OpenAccount, {"kind": EXTERNAL}),
        (OpenAccount, {"credit_limit": eur(0)}),
        (OpenAccount, {"currency_code": "KWD", "credit_limit": Money("KWD", MOST)}),
        (AuthorizePayment, {"hold_for": INSTANT}),
        (AuthorizePayment, {"hold_for": timedelta(days=31)}),
        (AuthorizePayment, {"payee_account_id": "A"}),
        (AuthorizePayment, {"effective_at": START + timedelta(days=36_500)}),
        (CapturePayment, {"amount": eur(1), "keep_remainder": True}),
        (PostTransfer, {"legs": (leg("a", "b", 1),) * 1_000}),
        (PostTransfer, {"legs": (leg("a", "b", 1), leg("b", "a", 1), leg("a", "c", MOST, "JPY"))}),
    ],
)
def test_a_field_at_its_bounds_is_taken(command_class: type[Command], changed: dict[str, Any]) -> None:
    """The last value that is allowed. (Whether a time is in the future is decided when it is recorded.)"""
    command = made(command_class, **changed)
    assert {name: getattr(command, name) for name in changed} == changed


@pytest.mark.parametrize("command_class", WELL_FORMED)
@pytest.mark.parametrize(
    ("preconditions", "path"),
    [
        ([("", 1)], "preconditions[0].account_id"),
        ([("a", 1), ("b c", 1)], "preconditions[1].account_id"),
        ([("a", 0)], "preconditions[0].expected_version"),
        ([("a", 1), ("b", -1)], "preconditions[1].expected_version"),
        ([("a", 1), ("b", 1), ("a", 1)], "preconditions[2].account_id"),
        ([("a", 1), ("a", 2)], "preconditions[1].account_id"),
        ([(f"a{number}", 1) for number in range(1_001)], "preconditions"),
    ],
    ids=["empty id", "ill-formed id", "version 0", "version -1", "twice", "twice, contrary", "1,001"],
)
def test_preconditions_name_each_account_once_with_a_version(
    command_class: type[Command], preconditions: list[tuple[str, int]], path: str
) -> None:
    """At most 1,000 of them, each with a version of at least 1."""
    assert violated(command_class, preconditions=tuple(Precondition(*each) for each in preconditions)) == [path]


def test_a_thousand_preconditions_are_taken() -> None:
    """The most that is allowed."""
    thousand = tuple(Precondition(f"a{number}", 2**62) for number in range(1_000))
    assert made(VoidPayment, preconditions=thousand).preconditions == thousand


@pytest.mark.parametrize("command_class", WELL_FORMED)
def test_an_unknown_field_is_a_violation(command_class: type[Command]) -> None:
    """A misspelt field is never ignored."""
    assert violated(command_class, nonsense=1) == ["nonsense"]


@pytest.mark.parametrize("command_class", WELL_FORMED)
def test_a_command_does_not_change(command_class: type[Command]) -> None:
    """Commands are values."""
    command = made(command_class)
    with pytest.raises(ValidationError):
        command.validate_only = True


def test_all_malformed_fields_are_named_at_once() -> None:
    """A client need not find its mistakes one by one."""
    paths = violated(
        AuthorizePayment, payment_id="", payer_account_id="-", amount=eur(0), hold_for=timedelta(0), reference="\0"
    )
    assert sorted(paths) == ["amount.minor_units", "hold_for", "payer_account_id", "payment_id", "reference"]


def test_the_refusal_of_a_malformed_command_tells_fields_and_faults() -> None:
    """Each violation has a description that says what was expected, and the message joins them."""
    with pytest.raises(InvalidCommand) as caught:
        made(AuthorizePayment, amount=eur(0), payment_id="")
    by_field = {violation.field: violation.description for violation in caught.value.violations}
    assert "10^18" in by_field["amount.minor_units"]
    assert "must be set" in by_field["payment_id"]
    assert all(field in str(caught.value) for field in by_field)


# --- preconditions ---------------------------------------------------------------------------------------------------


def a_ledger() -> Ledger:
    """Alice and Bob with 1,000; one account frozen, one closed; a payment `q` of 100 from Alice to Bob, 40 captured."""
    ledger = Ledger(alice=1_000, bob=1_000, frozen=0, bystander=5, closed=0)
    ledger.do(freeze("frozen"))
    ledger.do(close("closed"))
    ledger.do(authorize(100, payment_id="q", payee="bob"))
    ledger.do(capture_and_keep("before", 40, payment_id="q"))
    return ledger


# Every command of a client, such that it would be done.
DONE: dict[str, Command] = {
    "open": open_account("new"),
    "set limit": set_limit("alice", 50),
    "freeze": freeze("alice"),
    "unfreeze": unfreeze("frozen"),
    "close": close("frozen"),
    "authorize": authorize(10, payee="bob"),
    "increment": increment("i", 150, payment_id="q"),
    "capture": capture("c", payment_id="q"),
    "void": void("q"),
    "refund": refund("r", payment_id="q"),
    "transfer": transfer("t", leg("alice", "bob", 10)),
}
ALREADY_SO = {
    "set limit": set_limit("alice", 0),
    "freeze": freeze("frozen"),
    "unfreeze": unfreeze("alice"),
    "close": close("closed"),
}
OF_CLIENTS = set(WELL_FORMED) - {ExpireAuthorization}


def expecting(command: Command, *preconditions: Precondition) -> Command:
    return type(command)(**dict(command) | {"preconditions": preconditions})


def test_every_command_of_a_client_is_tried_with_preconditions() -> None:
    """The table above has them all."""
    assert {type(command) for command in DONE.values()} == OF_CLIENTS


@pytest.mark.parametrize("command", DONE.values(), ids=DONE)
def test_every_command_takes_preconditions(command: Command) -> None:
    """Another version is refused with both versions and nothing recorded; the right one lets the command be done."""
    ledger = a_ledger()
    version = ledger.account("bystander").version
    for wrong in (version - 1, version + 1, 2**62):
        refusal = ledger.refusal(expecting(command, Precondition("bystander", wrong)))
        assert isinstance(refusal, VersionMismatch)
        assert refusal.details == {"account_id": "bystander", "version": version, "expected_version": wrong}
    outcome = ledger.do(expecting(command, Precondition("bystander", version)))
    assert not outcome.replayed


@pytest.mark.parametrize("command", DONE.values(), ids=DONE)
def test_every_precondition_counts(command: Command) -> None:
    """One that fails among others that hold is enough, wherever it stands."""
    ledger = a_ledger()
    right = [Precondition(each, ledger.account(each).version) for each in ("alice", "bob", "bystander")]
    for number, each in enumerate(right):
        changed = [*right]
        changed[number] = Precondition(each.account_id, each.expected_version + 1)
        refusal = ledger.refusal(expecting(command, *changed))
        assert isinstance(refusal, VersionMismatch)
        assert refusal.details["account_id"] == each.account_id
    assert not ledger.do(expecting(command, *right)).replayed


@pytest.mark.parametrize("command", DONE.values(), ids=DONE)
def test_a_precondition_on_an_unknown_account_is_not_found(command: Command) -> None:
    """The refusal names it."""
    refusal = a_ledger().refusal(expecting(command, Precondition("nobody", 1)))
    assert isinstance(refusal, AccountNotFound)
    assert refusal.details == {"account_id": "nobody"}


def test_an_unknown_account_is_found_out_before_any_version_is_compared() -> None:
    """Not found goes before preconditions, in whatever order the preconditions stand."""
    failing, unknown = Precondition("bystander", 99), Precondition("nobody", 1)
    for command in DONE.values():
        for preconditions in ((unknown, failing), (failing, unknown)):
            assert isinstance(a_ledger().refusal(expecting(command, *preconditions)), AccountNotFound)


@pytest.mark.parametrize("command", ALREADY_SO.values(), ids=ALREADY_SO)
def test_what_is_so_already_is_answered_before_preconditions_are_checked(command: Command) -> None:
    """It is a replay like that of an id, whatever version the retry expects, and of whatever account."""
    ledger = a_ledger()
    for preconditions in ((), at_version(bystander=99), at_version(nobody=1)):
        assert ledger.answer(expecting(command, *preconditions)).startswith("replayed")


def test_a_retry_does_not_fail_for_its_own_first_effect() -> None:
    """The first close moved the account on from the version that it expects; the same once more is a replay."""
    ledger = a_ledger()
    command = close("frozen", preconditions=at_version(frozen=ledger.account("frozen").version))
    ledger.expect((command, "CLOSED"), (command, "replayed CLOSED"))


def test_a_late_retry_undoes_nothing_when_it_expects_a_version() -> None:
    """What the precondition is for: somebody else unfroze in between, and the retried freeze is refused."""
    ledger = a_ledger()
    command = freeze("alice", preconditions=at_version(alice=ledger.account("alice").version))
    ledger.expect(
        (command, "FROZEN ALL"),
        (unfreeze("alice"), "OPEN"),
        (command, "refused VERSION_MISMATCH"),
    )
    assert ledger.state("alice").freeze_scope is None


def test_every_event_on_an_account_counts_its_version_up() -> None:
    """Reservations and captures too: read, decide and write is safe against them."""
    ledger = Ledger(alice=100, shop=0)
    assert (ledger.account("alice").version, ledger.account("shop").version) == (2, 1)
    for command, alice, shop in (
        (authorize(10), 3, 1),
        (increment("i", 20), 4, 1),
        (capture("c", 5), 6, 2),
        (refund("r"), 7, 3),
        (freeze("alice"), 8, 3),
        (freeze("alice"), 8, 3),
        (transfer("t", leg("alice", "shop", 1)), 8, 3),
        (unfreeze("alice"), 9, 3),
        (transfer("u", leg("alice", "shop", 1), leg("shop", "alice", 1)), 11, 5),
    ):
        ledger.do(command)
        assert (ledger.account("alice").version, ledger.account("shop").version) == (alice, shop)


# --- what a decision looks at ----------------------------------------------------------------------------------------


class Watched:
    """Streams that remember which of them were asked for."""

    def __init__(self, below: Streams) -> None:
        self.below = below
        self.asked: set[str] = set()

    def get(self, stream: str) -> LedgerAggregate | None:
        self.asked.add(stream)
        return self.below.get(stream)


@pytest.mark.parametrize("command", [*DONE.values(), ExpireAuthorization(payment_id="q")], ids=[*DONE, "expire"])
def test_a_decision_looks_only_at_the_streams_that_it_names(command: Command) -> None:
    """What is to be in memory before deciding: the streams of the command, and those behind the payment it changes."""
    ledger = a_ledger()
    ledger.wait(days=7 if isinstance(command, ExpireAuthorization) else 0)
    command = expecting(command, *at_version(bystander=ledger.account("bystander").version))
    watched = Watched(ledger.book)
    outcome = decide(command, Book(watched, ledger.head), Stamp(ledger.now, "anonymous", "test", ledger.head + 1))
    assert not outcome.replayed
    named = set(streams_of(command))
    if isinstance(outcome.thing, Payment) and not isinstance(command, AuthorizePayment):
        named |= set(streams_behind(outcome.thing))
    assert watched.asked <= named
    assert "account/bystander" in named
    assert outcome.thing.id in named


# --- the order of checks ---------------------------------------------------------------------------------------------

STALE = at_version(bystander=99)
WRONG: dict[str, Any] = {"currency_code": "JPY", "preconditions": STALE}


@pytest.fixture
def tangled() -> Ledger:
    """Accounts with which everything can be wrong at once.

    `alice` has 100, of which 50 are reserved for `p` (to the shop, 10 captured); `frosty` is the same, and frozen;
    `gone` is closed, `yumi` holds yen. `full` can receive 50 and no more, and `brim` is the payment to it.
    """
    ledger = Ledger(alice=110, frosty=100, shop=0, gone=0, bystander=5, full=0)
    ledger.do(open_account("mint", kind=EXTERNAL))
    ledger.fund("full", MOST - 50, bank="mint")
    ledger.do(open_account("yumi", currency_code="JPY"))
    ledger.do(authorize(60))
    ledger.do(capture_and_keep("used", 10))
    ledger.do(authorize(50, payment_id="hold", payer="frosty"))
    ledger.do(freeze("frosty"))
    ledger.do(close("gone"))
    return ledger


def test_the_order_of_checks_for_authorize_payment(tangled: Ledger) -> None:
    """Each line mends what the line before was refused for."""
    tangled.expect(
        (authorize(MOST, payer="nobody", payee="gone", **WRONG), "refused ID_ALREADY_USED"),
        (authorize(MOST, payment_id="1", payer="nobody", payee="gone", **WRONG), "refused ACCOUNT_NOT_FOUND"),
        (authorize(MOST, payment_id="1", payer="frosty", payee="nobody", **WRONG), "refused ACCOUNT_NOT_FOUND"),
        (authorize(MOST, payment_id="1", payer="frosty", payee="gone", **WRONG), "refused VERSION_MISMATCH"),
        (authorize(9, payment_id="1", payer="frosty", payee="gone", currency_code="JPY"), "refused CURRENCY_MISMATCH"),
        (authorize(MOST, payment_id="1", payer="frosty", payee="gone"), "DECLINED ACCOUNT_CLOSED"),
        (authorize(MOST, payment_id="2", payer="frosty"), "DECLINED ACCOUNT_FROZEN"),
        (authorize(MOST, payment_id="3"), "DECLINED BALANCE_LIMIT"),
        (authorize(51, payment_id="4"), "DECLINED INSUFFICIENT_FUNDS"),
        (authorize(50, payment_id="5"), "AUTHORIZED"),
    )  # fmt: skip


def test_the_order_of_checks_for_post_transfer(tangled: Ledger) -> None:
    """The same order within a leg; the legs themselves go in their order."""
    tangled.do(transfer("t", leg("shop", "bank", 10)))
    tangled.expect(
        (transfer("t", leg("nobody", "gone", 60, "JPY"), preconditions=STALE), "refused ID_ALREADY_USED"),
        (transfer("1", leg("nobody", "gone", 60, "JPY"), preconditions=STALE), "refused ACCOUNT_NOT_FOUND"),
        (transfer("1", leg("frosty", "gone", 60, "JPY"), preconditions=STALE), "refused VERSION_MISMATCH"),
        (transfer("1", leg("frosty", "gone", 60, "JPY")), "refused CURRENCY_MISMATCH"),
        (transfer("1", leg("frosty", "gone", 60)), "DECLINED ACCOUNT_CLOSED"),
        (transfer("2", leg("frosty", "full", 60)), "DECLINED ACCOUNT_FROZEN"),
        (transfer("3", leg("alice", "full", 60)), "DECLINED BALANCE_LIMIT"),
        (transfer("4", leg("shop", "full", 40)), "DECLINED INSUFFICIENT_FUNDS"),
        (transfer("5", leg("alice", "full", 40)), "POSTED"),
    )


def test_the_order_of_checks_for_increment_authorization(tangled: Ledger) -> None:
    """Once with a closed payee, once with a frozen one, once with open accounts."""
    tangled.do(authorize(10, payment_id="to-full", payee="full"))
    tangled.do(authorize(10, payment_id="more"))
    tangled.do(open_account("leaving"))
    tangled.do(authorize(10, payment_id="to-leaving", payer="bank", payee="leaving"))
    tangled.do(close("leaving"))
    tangled.do(freeze("full"))
    tangled.expect(
        (increment("i", 10, payment_id="no", **WRONG), "refused PAYMENT_NOT_FOUND"),
        (increment("used", 10, **WRONG), "refused ID_ALREADY_USED"),
        (increment("i", 10, payment_id="to-leaving", **WRONG), "refused VERSION_MISMATCH"),
        (increment("i", 10, payment_id="to-leaving", currency_code="JPY"), "refused CURRENCY_MISMATCH"),
        (increment("i", 10, payment_id="to-leaving"), "refused ACCOUNT_CLOSED"),
        (increment("i", 10, payment_id="to-full"), "refused ACCOUNT_FROZEN"),
        (increment("i", 60), "refused AMOUNT_NOT_GREATER"),
        (increment("i", MOST), "refused BALANCE_LIMIT"),
        (increment("i", MOST - 20), "refused INSUFFICIENT_FUNDS"),
        (increment("i", 91), "refused INSUFFICIENT_FUNDS"),
        (increment("i", 90), "PARTIALLY_CAPTURED"),
    )  # fmt: skip


def test_the_order_of_checks_for_capture_payment(tangled: Ledger) -> None:
    """Closed goes before the amount, and what is capturable before the payee's bound."""
    tangled.expect(
        (authorize(60, payment_id="brim", payer="bank", payee="full"), "AUTHORIZED"),
        (transfer("drain", leg("shop", "bank", 10)), "POSTED"),
        (close("shop"), "CLOSED"),
        (capture("c", 99, payment_id="no", **WRONG), "refused PAYMENT_NOT_FOUND"),
        (capture("used", 99, **WRONG), "refused ID_ALREADY_USED"),
        (capture("c", 99, **WRONG), "refused VERSION_MISMATCH"),
        (capture("c", 99, currency_code="JPY"), "refused CURRENCY_MISMATCH"),
        (capture("c", 99), "refused ACCOUNT_CLOSED"),
        (capture("c", 99, payment_id="brim"), "refused AMOUNT_EXCEEDS_CAPTURABLE"),
        (capture("c", 51, payment_id="brim"), "refused BALANCE_LIMIT"),
        (capture("c", 50, payment_id="brim"), "CAPTURED"),
    )


def test_the_order_of_checks_for_refund_payment(tangled: Ledger) -> None:
    """Closed, frozen, what is refundable, the payer's bound, the payee's funds."""
    tangled.expect(
        (authorize(60, payment_id="brim", payer="full", payee="bystander"), "AUTHORIZED"),
        (capture("c", payment_id="brim"), "CAPTURED"),
        (transfer("drain", leg("bystander", "bank", 65)), "POSTED"),
        (transfer("refill", leg("bank", "full", 61)), "POSTED"),
        (freeze("full"), "FROZEN ALL"),
        (refund("r", 99, payment_id="no", **WRONG), "refused PAYMENT_NOT_FOUND"),
        (refund("c", 99, payment_id="brim", **WRONG), "refused ID_ALREADY_USED"),
        (refund("r", 99, payment_id="brim", **WRONG), "refused VERSION_MISMATCH"),
        (refund("r", 99, payment_id="brim", currency_code="JPY"), "refused CURRENCY_MISMATCH"),
        (refund("r", 99, payment_id="brim"), "refused ACCOUNT_FROZEN"),
        (unfreeze("full"), "OPEN"),
        (refund("r", 99, payment_id="brim"), "refused AMOUNT_EXCEEDS_REFUNDABLE"),
        (refund("r", 60, payment_id="brim"), "refused BALANCE_LIMIT"),
        (refund("r", 40, payment_id="brim"), "refused INSUFFICIENT_FUNDS"),
        (freeze("full"), "FROZEN ALL"),
        (close("bystander"), "CLOSED"),
        (refund("r", 99, payment_id="brim"), "refused ACCOUNT_CLOSED"),
        (transfer("refund-used", leg("shop", "bank", 10)), "POSTED"),
        (close("shop"), "CLOSED"),
        (refund("r", 99), "refused ACCOUNT_CLOSED"),
    )


@pytest.mark.parametrize(
    "lines",
    [
        [
            (set_limit("nobody", 1, **WRONG), "refused ACCOUNT_NOT_FOUND"),
            (set_limit("gone", 1, **WRONG), "refused VERSION_MISMATCH"),
            (set_limit("gone", 1, currency_code="JPY"), "refused CURRENCY_MISMATCH"),
            (set_limit("gone", 1), "refused ACCOUNT_CLOSED"),
            (open_account("outside", kind=EXTERNAL), "OPEN"),
            (set_limit("outside", 1, currency_code="JPY"), "refused CURRENCY_MISMATCH"),
            (set_limit("outside", 1), "refused EXTERNAL_HAS_NO_LIMIT"),
            (close("outside"), "CLOSED"),
            (set_limit("outside", 1), "refused ACCOUNT_CLOSED"),
        ],
        [
            (freeze("nobody", preconditions=STALE), "refused ACCOUNT_NOT_FOUND"),
            (freeze("gone", preconditions=STALE), "refused VERSION_MISMATCH"),
            (freeze("gone"), "refused ACCOUNT_CLOSED"),
        ],
        [
            (unfreeze("nobody", preconditions=STALE), "refused ACCOUNT_NOT_FOUND"),
            (unfreeze("gone", preconditions=STALE), "refused VERSION_MISMATCH"),
            (unfreeze("gone"), "refused ACCOUNT_CLOSED"),
        ],
        [
            (close("nobody", preconditions=STALE), "refused ACCOUNT_NOT_FOUND"),
            (close("alice", preconditions=STALE), "refused VERSION_MISMATCH"),
            (close("alice"), "refused ACCOUNT_IN_USE"),
        ],
        [
            (open_account("alice", limit=1, preconditions=STALE), "refused ID_ALREADY_USED"),
            (open_account("new", preconditions=STALE), "refused VERSION_MISMATCH"),
            (open_account("new"), "OPEN"),
        ],
        [
            (void("no", preconditions=STALE), "refused PAYMENT_NOT_FOUND"),
            (void(preconditions=STALE), "refused VERSION_MISMATCH"),
            (void(), "CAPTURED"),
            (void(preconditions=STALE), "replayed CAPTURED"),
        ],
    ],
    ids=["set limit", "freeze", "unfreeze", "close", "open", "void"],
)
def test_the_order_of_checks_for_the_other_commands(tangled: Ledger, lines: list[Line]) -> None:
    """Each line mends what the line before was refused for."""
    tangled.expect(*lines)


def test_what_the_payment_has_become_is_checked_after_preconditions_and_before_the_amount(tangled: Ledger) -> None:
    """Why nothing is capturable is said before currency, accounts and amounts are looked at: the order of errors.py."""
    tangled.do(void())
    for command in (increment("i", 1, **WRONG), capture("c", MOST, **WRONG), capture_and_keep("c", 1, **WRONG)):
        tangled.expect(
            (command, "refused VERSION_MISMATCH"),
            (expecting(command), "refused PAYMENT_VOIDED"),
        )


LATER = START + INSTANT


@pytest.mark.parametrize(
    "command",
    [
        authorize(1, effective_at=LATER),
        authorize(1, payment_id="new", payer="nobody", effective_at=LATER),
        authorize(1, payment_id="new", preconditions=STALE, effective_at=LATER),
        authorize(1, payment_id="new", payee="yumi", effective_at=LATER),
        authorize(1, payment_id="new", payee="gone", effective_at=LATER),
        capture("c", payment_id="no", effective_at=LATER),
        capture("used", effective_at=LATER),
        capture("c", preconditions=STALE, effective_at=LATER),
        refund("r", payment_id="no", effective_at=LATER),
        refund("used", effective_at=LATER),
        refund("r", 99, effective_at=LATER),
        transfer("t", leg("nobody", "alice", 1), effective_at=LATER),
        transfer("used", leg("alice", "shop", 2), effective_at=LATER),
    ],
    ids=[
        "authorize: id used",
        "authorize: not found",
        "authorize: precondition",
        "authorize: currency",
        "authorize: closed",
        "capture: not found",
        "capture: id used",
        "capture: precondition",
        "refund: not found",
        "refund: id used",
        "refund: amount",
        "transfer: not found",
        "transfer: id used",
    ],
)
def test_an_effective_time_in_the_future_is_malformed_whatever_else_is_wrong(tangled: Ledger, command: Command) -> None:
    """It is INVALID_ARGUMENT, and malformed goes before everything else, the used id too."""
    tangled.do(transfer("used", leg("alice", "shop", 1)))
    tangled.expect((command, "refused EFFECTIVE_AT_IN_FUTURE"))
