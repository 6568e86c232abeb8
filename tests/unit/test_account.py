"""Accounts: what each holds, how much it may spend, and what its status lets happen to it."""

import re
from datetime import timedelta

import pytest
from domain import (
    MOST,
    START,
    Ledger,
    amounts,
    authorize,
    capture,
    close,
    eur,
    expire,
    freeze,
    in_words,
    increment,
    leg,
    names,
    open_account,
    refund,
    set_limit,
    transfer,
    unfreeze,
    void,
)

from ledger.domain.account import Account
from ledger.domain.aggregate import Stamp
from ledger.domain.commands import AuthorizePayment, Command, OpenAccount
from ledger.domain.errors import AccountInUse, CurrencyMismatch, LimitBelowUse
from ledger.domain.events import (
    AccountClosed,
    AccountFrozen,
    AccountKind,
    AccountOpened,
    AccountState,
    AccountStatus,
    AccountUnfrozen,
    Cause,
    CauseKind,
    CreditLimitChanged,
    DeclineReason,
    FreezeScope,
    FundsReserved,
    LedgerEvent,
    PaymentAuthorized,
    PaymentDeclined,
)
from ledger.domain.money import Money
from ledger.domain.payment_state import PaymentState

EXTERNAL = AccountKind.EXTERNAL
DEBITS, CREDITS, ALL = FreezeScope.DEBITS, FreezeScope.CREDITS, FreezeScope.ALL


def test_authorize_payment_emits_payment_authorized_and_funds_reserved() -> None:
    """The payer's account decides: the payment is born from it, and the promised money is reserved on it."""
    log: list[LedgerEvent] = []
    now, limit = Stamp(START, actor="anonymous", correlation_id="readme", command_position=1), Money("EUR", 100_00)
    alice = Account.open(OpenAccount(account_id="alice", currency_code="EUR", credit_limit=limit), now, log)
    shop = Account.open(OpenAccount(account_id="shop", currency_code="EUR"), now, log)

    order = AuthorizePayment(
        payment_id="order-17", payer_account_id="alice", payee_account_id="shop", amount=Money("EUR", 30_00)
    )
    payment = alice.authorize_payment(order, shop, now)

    authorized, reserved = log[2:]
    assert isinstance(authorized, PaymentAuthorized)
    assert isinstance(reserved, FundsReserved)
    assert payment.state is PaymentState.AUTHORIZED
    assert (alice.state.posted, alice.state.reserved, alice.state.available) == (0, 30_00, 70_00)


# --- authorizing -----------------------------------------------------------------------------------------------------


def test_an_authorization_says_what_was_asked_until_when_it_holds_and_what_it_reserved() -> None:
    """The two events name each other's account and payment, share one command, and carry the amounts in full."""
    ledger = Ledger(alice=100, shop=0)
    before = ledger.head
    authorized, reserved = ledger.emitted(authorize(30, reference="order 17", metadata={"table": "4"}))

    assert isinstance(authorized, PaymentAuthorized)
    assert (authorized.stream, authorized.originator_version) == ("payment/p", 1)
    assert (authorized.payment_id, authorized.payer_account_id, authorized.payee_account_id) == ("p", "alice", "shop")
    assert (authorized.amount, authorized.reference, authorized.metadata) == (eur(30), "order 17", {"table": "4"})
    assert (authorized.hold_for, authorized.effective_at) == (None, None)
    assert authorized.expires_at == START + timedelta(days=7)

    assert isinstance(reserved, FundsReserved)
    assert (reserved.stream, reserved.originator_version) == ("account/alice", 3)
    assert (reserved.amount, reserved.effective_at) == (30, START)
    assert reserved.cause == Cause(kind=CauseKind.AUTHORIZATION, payment_id="p")
    assert (reserved.after.posted, reserved.after.reserved) == (100, 30)

    assert authorized.command_position == reserved.command_position == before + 1
    assert authorized.timestamp == reserved.timestamp == START
    assert authorized.actor == reserved.actor == "anonymous"
    assert authorized.correlation_id == reserved.correlation_id == "test"


def test_an_authorization_leaves_the_payee_as_it_is() -> None:
    """Money moves on capture only: until then the payee's account has no event of it."""
    ledger = Ledger(alice=100, shop=0)
    version = ledger.account("shop").version
    ledger.do(authorize(30))
    assert (ledger.balance("shop"), ledger.account("shop").version) == ((0, 0), version)


def test_a_decline_is_recorded_with_its_reason_and_changes_no_account() -> None:
    """PaymentDeclined is the one event: it names the account that refused, and nothing is reserved."""
    ledger = Ledger(alice=100, shop=0)
    (declined,) = ledger.emitted(authorize(101, reference="too dear"))
    assert isinstance(declined, PaymentDeclined)
    assert declined.decline_reason is DeclineReason.INSUFFICIENT_FUNDS
    assert (declined.declined_account_id, declined.amount, declined.reference) == ("alice", eur(101), "too dear")
    assert ledger.balance("alice") == (100, 0)
    assert (ledger.payment().amounts, ledger.payment().expires_at) == (amounts(), None)


@pytest.mark.parametrize(
    ("closed", "frozen", "amount", "reason", "account_id"),
    [
        ("alice", None, 1, "ACCOUNT_CLOSED", "alice"),
        ("shop", None, 1, "ACCOUNT_CLOSED", "shop"),
        (None, "alice", 1, "ACCOUNT_FROZEN", "alice"),
        (None, "shop", 1, "ACCOUNT_FROZEN", "shop"),
        (None, None, 1, "INSUFFICIENT_FUNDS", "alice"),
        ("shop", "alice", 1, "ACCOUNT_CLOSED", "shop"),
        ("alice", "shop", 1, "ACCOUNT_CLOSED", "alice"),
    ],
)
def test_a_decline_names_the_account_that_its_reason_is_about(
    closed: str | None, frozen: str | None, amount: int, reason: str, account_id: str
) -> None:
    """Closed goes before frozen and frozen before funds, whichever of the two accounts it is."""
    ledger = Ledger(alice=0, shop=0)
    if closed:
        ledger.do(close(closed))
    if frozen:
        ledger.do(freeze(frozen))
    (declined,) = ledger.emitted(authorize(amount))
    assert isinstance(declined, PaymentDeclined)
    assert (declined.decline_reason, declined.declined_account_id) == (reason, account_id)


@pytest.mark.parametrize(
    ("payer", "payee", "currency_code", "blamed"),
    [
        ("alice", "shop", "JPY", "alice"),
        ("alice", "yumi", "EUR", "yumi"),
        ("yumi", "shop", "EUR", "yumi"),
        ("alice", "yumi", "JPY", "alice"),
    ],
)
def test_payer_payee_and_amount_are_all_of_one_currency(
    payer: str, payee: str, currency_code: str, blamed: str
) -> None:
    """Another currency is a refusal and no decline: the id is not used up."""
    ledger = Ledger(alice=100, shop=0)
    ledger.do(open_account("yumi", currency_code="JPY", limit=100))
    refusal = ledger.refusal(authorize(1, payer=payer, payee=payee, currency_code=currency_code))
    assert isinstance(refusal, CurrencyMismatch)
    assert refusal.details["account_id"] == blamed
    assert ledger.answer(authorize(1)) == "AUTHORIZED"


# --- opening ---------------------------------------------------------------------------------------------------------


def test_an_account_opens_at_zero_with_what_was_asked() -> None:
    """AccountOpened keeps the metadata and the limit as it was given, and carries the state."""
    ledger = Ledger()
    (opened,) = ledger.emitted(open_account("alice", limit=50, metadata={"plan": "gold"}))
    assert isinstance(opened, AccountOpened)
    assert (opened.stream, opened.originator_version, opened.account_id) == ("account/alice", 1, "alice")
    assert (opened.credit_limit, opened.metadata) == (eur(50), {"plan": "gold"})
    assert opened.after == AccountState(
        currency_code="EUR",
        kind=AccountKind.CUSTOMER,
        posted=0,
        reserved=0,
        credit_limit=50,
        status=AccountStatus.OPEN,
        freeze_scope=None,
    )


def test_a_customer_without_a_limit_has_a_limit_of_zero() -> None:
    """Kind and limit are optional: CUSTOMER and 0. That none was given is kept, as it is compared."""
    ledger = Ledger()
    (opened,) = ledger.emitted(OpenAccount(account_id="alice", currency_code="EUR"))
    assert isinstance(opened, AccountOpened)
    assert (opened.credit_limit, opened.after.credit_limit, opened.after.kind) == (None, 0, AccountKind.CUSTOMER)


def test_ids_that_differ_in_case_are_different_accounts() -> None:
    """Upper and lower case differ in ids."""
    Ledger().expect((open_account("alice"), "OPEN"), (open_account("Alice", currency_code="JPY"), "OPEN"))


# --- what can be spent -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("posted", "reserved", "limit", "amount", "authorized", "transferred"),
    [
        (0, 0, 0, 1, "DECLINED INSUFFICIENT_FUNDS", "DECLINED INSUFFICIENT_FUNDS"),
        (100, 0, 0, 100, "AUTHORIZED", "POSTED"),
        (100, 0, 0, 101, "DECLINED INSUFFICIENT_FUNDS", "DECLINED INSUFFICIENT_FUNDS"),
        (100, 60, 0, 40, "AUTHORIZED", "POSTED"),
        (100, 60, 0, 41, "DECLINED INSUFFICIENT_FUNDS", "DECLINED INSUFFICIENT_FUNDS"),
        (100, 100, 0, 1, "DECLINED INSUFFICIENT_FUNDS", "DECLINED INSUFFICIENT_FUNDS"),
        (0, 0, 50, 50, "AUTHORIZED", "POSTED"),
        (0, 0, 50, 51, "DECLINED INSUFFICIENT_FUNDS", "DECLINED INSUFFICIENT_FUNDS"),
        (100, 120, 50, 30, "AUTHORIZED", "POSTED"),
        (100, 120, 50, 31, "DECLINED INSUFFICIENT_FUNDS", "DECLINED INSUFFICIENT_FUNDS"),
        (0, 0, MOST, MOST, "AUTHORIZED", "POSTED"),
        (MOST, 0, MOST, MOST, "AUTHORIZED", "POSTED"),
        (MOST, 0, 0, MOST, "AUTHORIZED", "POSTED"),
        (MOST - 1, 0, 0, MOST, "DECLINED INSUFFICIENT_FUNDS", "DECLINED INSUFFICIENT_FUNDS"),
        (0, MOST - 1, MOST, 1, "AUTHORIZED", "POSTED"),
        (0, MOST - 1, MOST, 2, "DECLINED BALANCE_LIMIT", "DECLINED INSUFFICIENT_FUNDS"),
        (MOST, MOST, MOST, 1, "DECLINED BALANCE_LIMIT", "POSTED"),
        (MOST, MOST - 10, MOST, 11, "DECLINED BALANCE_LIMIT", "POSTED"),
    ],
)
def test_a_customer_spends_what_is_available(
    posted: int, reserved: int, limit: int, amount: int, authorized: str, transferred: str
) -> None:
    """Available is posted - reserved + credit_limit, to the last unit; only what is *reserved* is bounded by 10^18."""

    def ledger() -> Ledger:
        ledger = Ledger(shop=0)
        ledger.do(open_account("alice", limit=limit))
        if posted:
            ledger.fund("alice", posted)
        if reserved:
            ledger.expect((authorize(reserved, payment_id="before"), "AUTHORIZED"))
        return ledger

    ledger().expect((authorize(amount), authorized))
    ledger().expect((transfer("t", leg("alice", "shop", amount)), transferred))


@pytest.mark.parametrize(
    ("sent_before", "reserved", "amount", "authorized", "transferred"),
    [
        (0, 0, 1, "AUTHORIZED", "POSTED"),
        (0, 0, MOST, "AUTHORIZED", "POSTED"),
        (MOST - 5, 0, 5, "AUTHORIZED", "POSTED"),
        (MOST - 5, 0, 6, None, "DECLINED BALANCE_LIMIT"),
        (MOST, 0, 1, None, "DECLINED BALANCE_LIMIT"),
        (0, MOST - 5, 5, "AUTHORIZED", "POSTED"),
        (0, MOST - 5, 6, "DECLINED BALANCE_LIMIT", None),
    ],
)
def test_an_external_account_spends_without_a_limit_down_to_the_bound_of_all_balances(
    sent_before: int, reserved: int, amount: int, authorized: str | None, transferred: str | None
) -> None:
    """The world outside may go below zero, to -10^18. (None: what is promised and what is posted meet at the bound.)"""

    def ledger() -> Ledger:
        ledger = Ledger(sink=sent_before, shop=0)
        if reserved:
            ledger.expect((authorize(reserved, payment_id="before", payer="bank"), "AUTHORIZED"))
        return ledger

    if authorized:
        ledger().expect((authorize(amount, payer="bank"), authorized))
    if transferred:
        ledger().expect((transfer("t", leg("bank", "shop", amount)), transferred))


def test_an_external_account_with_much_reserved_still_pays_what_it_has() -> None:
    """No balance would leave its bounds: 0.6 * 10^18 is posted and 0.9 * 10^18 reserved, and 0.2 * 10^18 is to go."""
    tenth = MOST // 10
    ledger = Ledger(shop=0, alice=0)
    ledger.do(open_account("scheme", kind=EXTERNAL))
    ledger.fund("scheme", 6 * tenth)
    ledger.expect(
        (authorize(9 * tenth, payer="scheme"), "AUTHORIZED"),
        (transfer("t", leg("scheme", "alice", 2 * tenth)), "POSTED"),
        (capture("c"), "CAPTURED"),
    )
    assert ledger.balance("scheme") == (-5 * tenth, 0)


@pytest.mark.parametrize(
    ("posted", "amount", "outcome"),
    [
        (0, MOST, "POSTED"),
        (MOST - 5, 5, "POSTED"),
        (MOST - 5, 6, "DECLINED BALANCE_LIMIT"),
        (MOST, 1, "DECLINED BALANCE_LIMIT"),
    ],
)
@pytest.mark.parametrize("kind", AccountKind)
def test_nobody_is_credited_beyond_the_bound(kind: AccountKind, posted: int, amount: int, outcome: str) -> None:
    """A posted balance never goes beyond 10^18, whatever the kind of the account."""
    ledger = Ledger()
    ledger.do(open_account("rich", kind=kind))
    ledger.do(open_account("mint", kind=EXTERNAL))
    if posted:
        ledger.fund("rich", posted)
    ledger.expect((transfer("t", leg("mint", "rich", amount)), outcome))


# --- credit limits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("posted", "reserved", "limit", "new_limit", "outcome"),
    [
        (0, 0, 0, 50, "OPEN"),
        (0, 0, 50, 0, "OPEN"),
        (0, 0, 50, 50, "replayed OPEN"),
        (0, 0, 0, 0, "replayed OPEN"),
        (0, 0, 0, MOST, "OPEN"),
        (0, 30, 50, 30, "OPEN"),
        (0, 30, 50, 29, "refused LIMIT_BELOW_USE"),
        (10, 30, 50, 20, "OPEN"),
        (10, 30, 50, 19, "refused LIMIT_BELOW_USE"),
        (10, 30, 50, 0, "refused LIMIT_BELOW_USE"),
        (30, 30, 50, 0, "OPEN"),
    ],
)
def test_a_credit_limit_is_never_set_below_what_is_used(
    posted: int, reserved: int, limit: int, new_limit: int, outcome: str
) -> None:
    """Used is reserved - posted; the same limit again is a replay."""
    ledger = Ledger(shop=0)
    ledger.do(open_account("alice", limit=limit))
    if posted:
        ledger.fund("alice", posted)
    if reserved:
        ledger.expect((authorize(reserved), "AUTHORIZED"))
    ledger.expect((set_limit("alice", new_limit), outcome))
    assert ledger.state("alice").credit_limit == (limit if outcome.startswith("refused") else new_limit)


def test_a_limit_below_use_is_refused_with_what_is_used() -> None:
    """The refusal tells how low the limit may go."""
    ledger = Ledger(shop=0)
    ledger.do(open_account("alice", limit=50))
    ledger.do(transfer("t", leg("alice", "shop", 20)))
    ledger.do(authorize(10))
    refusal = ledger.refusal(set_limit("alice", 29))
    assert isinstance(refusal, LimitBelowUse)
    assert refusal.details["used"] == 30


@pytest.mark.parametrize("limit", [0, 1, MOST])
def test_an_external_account_has_no_limit_to_set(limit: int) -> None:
    """Any limit is refused there, zero too."""
    Ledger().expect((set_limit("bank", limit), "refused EXTERNAL_HAS_NO_LIMIT"))


def test_a_limit_is_in_the_currency_of_the_account() -> None:
    """The same number in another currency is another limit, and refused."""
    ledger = Ledger()
    ledger.do(open_account("alice", limit=50))
    ledger.expect(
        (set_limit("alice", 50, currency_code="JPY"), "refused CURRENCY_MISMATCH"),
        (set_limit("alice", 60, currency_code="JPY"), "refused CURRENCY_MISMATCH"),
    )


# --- freezing and closing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "event_class", "change"),
    [
        (set_limit("alice", 70, reason="why"), CreditLimitChanged, {"credit_limit": 70}),
        (
            freeze("alice", DEBITS, reason="why"),
            AccountFrozen,
            {"status": AccountStatus.FROZEN, "freeze_scope": DEBITS},
        ),
        (freeze("alice", ALL, reason="why"), AccountFrozen, {"status": AccountStatus.FROZEN, "freeze_scope": ALL}),
        (unfreeze("alice", reason="why"), AccountUnfrozen, {"status": AccountStatus.OPEN, "freeze_scope": None}),
        (close("alice", reason="why"), AccountClosed, {"status": AccountStatus.CLOSED, "freeze_scope": None}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_a_change_of_an_account_is_one_event_with_its_reason_and_the_state_after(
    command: Command, event_class: type[LedgerEvent], change: dict[str, object]
) -> None:
    """What changed stands in the state after; all else of the state is as it was."""
    ledger = Ledger(alice=0)
    ledger.do(freeze("alice", CREDITS))
    before = ledger.state("alice")
    (event,) = ledger.emitted(command)
    assert type(event) is event_class
    assert event.reason == "why"
    assert (event.stream, event.originator_version) == ("account/alice", 3)
    assert event.after == ledger.state("alice")
    for field in AccountState.__struct_fields__:
        assert getattr(event.after, field) == change.get(field, getattr(before, field)), field


def test_a_freeze_sets_the_scope_and_the_same_scope_again_is_a_replay() -> None:
    """Another scope replaces the one before it; unfreezing ends any; a reason is not compared."""
    ledger = Ledger(alice=0)
    ledger.expect(
        (unfreeze("alice"), "replayed OPEN"),
        (freeze("alice", CREDITS), "FROZEN CREDITS"),
        (freeze("alice", CREDITS, reason="another"), "replayed FROZEN CREDITS"),
        (freeze("alice", DEBITS), "FROZEN DEBITS"),
        (freeze("alice", ALL), "FROZEN ALL"),
        (freeze("alice", ALL), "replayed FROZEN ALL"),
        (unfreeze("alice"), "OPEN"),
        (unfreeze("alice", reason="another"), "replayed OPEN"),
        (close("alice"), "CLOSED"),
        (close("alice", reason="another"), "replayed CLOSED"),
    )


@pytest.mark.parametrize(
    ("again", "words"),
    [
        (set_limit("alice", 50), "replayed FROZEN DEBITS"),
        (freeze("alice", DEBITS), "replayed FROZEN DEBITS"),
        (unfreeze("bob"), "replayed OPEN"),
        (close("carol"), "replayed CLOSED"),
    ],
)
def test_what_is_so_already_records_nothing_and_answers_at_the_head(again: Command, words: str) -> None:
    """The account as it is, the head's position, and the time at which the account last changed."""
    ledger = Ledger(alice=0, bob=0, carol=0)
    ledger.wait(hours=1)
    changed_at = ledger.now
    ledger.do(set_limit("alice", 50))
    ledger.do(freeze("alice", DEBITS))
    ledger.do(set_limit("bob", 50))
    ledger.do(close("carol"))
    ledger.wait(hours=1)
    ledger.do(open_account("somebody-else"))
    head = ledger.head

    outcome = ledger.do(again)
    assert in_words(outcome) == words
    assert (outcome.position, outcome.recorded_at, ledger.head) == (head, changed_at, head)


@pytest.mark.parametrize(
    ("steps", "outcome"),
    [
        ([], "CLOSED"),
        ([freeze("alice")], "CLOSED"),
        ([transfer("t", leg("bank", "alice", 1))], "refused ACCOUNT_IN_USE"),
        ([transfer("t", leg("alice", "bank", 1))], "refused ACCOUNT_IN_USE"),
        ([authorize(1)], "refused ACCOUNT_IN_USE"),
        ([transfer("t", leg("alice", "bank", 1)), transfer("u", leg("bank", "alice", 1))], "CLOSED"),
        ([transfer("t", leg("bank", "alice", 1)), authorize(1), capture("c")], "CLOSED"),
        ([authorize(1), void()], "CLOSED"),
        ([authorize(1, payer="shop", payee="alice")], "CLOSED"),
    ],
)
def test_an_account_closes_at_zero_with_nothing_reserved(steps: list[Command], outcome: str) -> None:
    """Posted must be zero, neither more nor less, and no authorization from the account may be open."""
    ledger = Ledger(shop=10)
    ledger.do(open_account("alice", limit=10))
    for step in steps:
        ledger.do(step)
    ledger.expect((close("alice"), outcome))


def test_an_account_in_use_is_refused_to_close_with_what_is_on_it() -> None:
    """The refusal tells what is posted and what is reserved."""
    ledger = Ledger(alice=100, shop=0)
    ledger.do(authorize(30))
    refusal = ledger.refusal(close("alice"))
    assert isinstance(refusal, AccountInUse)
    assert (refusal.details["posted"], refusal.details["reserved"]) == (100, 30)


# --- status x command, cell by cell ----------------------------------------------------------------------------------

# `never` is a status that the account can't have then: what it has reserved keeps it from closing.
CELLS = """
role    command      OPEN           DEBITS                   CREDITS                  ALL                      CLOSED
payer   authorize    AUTHORIZED     DECLINED ACCOUNT_FROZEN  AUTHORIZED               DECLINED ACCOUNT_FROZEN  DECLINED ACCOUNT_CLOSED
payer   increment    AUTHORIZED     refused ACCOUNT_FROZEN   AUTHORIZED               refused ACCOUNT_FROZEN   never
payer   capture      CAPTURED       CAPTURED                 CAPTURED                 CAPTURED                 never
payer   void         VOIDED         VOIDED                   VOIDED                   VOIDED                   never
payer   expire       EXPIRED        EXPIRED                  EXPIRED                  EXPIRED                  never
payer   refund       CAPTURED       CAPTURED                 refused ACCOUNT_FROZEN   refused ACCOUNT_FROZEN   refused ACCOUNT_CLOSED
payer   transfer     POSTED         DECLINED ACCOUNT_FROZEN  POSTED                   DECLINED ACCOUNT_FROZEN  DECLINED ACCOUNT_CLOSED
payee   authorize    AUTHORIZED     AUTHORIZED               DECLINED ACCOUNT_FROZEN  DECLINED ACCOUNT_FROZEN  DECLINED ACCOUNT_CLOSED
payee   increment    AUTHORIZED     AUTHORIZED               refused ACCOUNT_FROZEN   refused ACCOUNT_FROZEN   refused ACCOUNT_CLOSED
payee   capture      CAPTURED       CAPTURED                 CAPTURED                 CAPTURED                 refused ACCOUNT_CLOSED
payee   void         VOIDED         VOIDED                   VOIDED                   VOIDED                   VOIDED
payee   expire       EXPIRED        EXPIRED                  EXPIRED                  EXPIRED                  EXPIRED
payee   refund       CAPTURED       refused ACCOUNT_FROZEN   CAPTURED                 refused ACCOUNT_FROZEN   refused ACCOUNT_CLOSED
payee   transfer     POSTED         POSTED                   DECLINED ACCOUNT_FROZEN  DECLINED ACCOUNT_FROZEN  DECLINED ACCOUNT_CLOSED
itself  open         replayed OPEN  replayed OPEN            replayed OPEN            replayed OPEN            replayed OPEN
itself  set limit    OPEN           FROZEN DEBITS            FROZEN CREDITS           FROZEN ALL               refused ACCOUNT_CLOSED
itself  freeze DEB   FROZEN DEBITS  replayed FROZEN DEBITS   FROZEN DEBITS            FROZEN DEBITS            refused ACCOUNT_CLOSED
itself  freeze CRED  FROZEN CREDITS  FROZEN CREDITS          replayed FROZEN CREDITS  FROZEN CREDITS           refused ACCOUNT_CLOSED
itself  freeze ALL   FROZEN ALL     FROZEN ALL               FROZEN ALL               replayed FROZEN ALL      refused ACCOUNT_CLOSED
itself  unfreeze     replayed OPEN  OPEN                     OPEN                     OPEN                     refused ACCOUNT_CLOSED
itself  close        CLOSED         CLOSED                   CLOSED                   CLOSED                   replayed CLOSED
"""  # noqa: E501

# By command: what happens before the account gets its status, and then the command.
AFTER_AUTHORIZATION = [authorize(100)]
AFTER_CAPTURE = [authorize(100), capture("c")]
SCENES: dict[str, tuple[list[Command], Command]] = {
    "authorize": ([], authorize(100)),
    "increment": (AFTER_AUTHORIZATION, increment("i", 150)),
    "capture": (AFTER_AUTHORIZATION, capture("c")),
    "void": (AFTER_AUTHORIZATION, void()),
    "expire": (AFTER_AUTHORIZATION, expire()),
    "refund": (AFTER_CAPTURE, refund("r")),
    "transfer": ([], transfer("t", leg("alice", "shop", 50))),
    "open": ([], open_account("alice", limit=1_000)),
    "set limit": ([], set_limit("alice", 2_000)),
    "freeze DEB": ([], freeze("alice", DEBITS)),
    "freeze CRED": ([], freeze("alice", CREDITS)),
    "freeze ALL": ([], freeze("alice", ALL)),
    "unfreeze": ([], unfreeze("alice")),
    "close": ([], close("alice")),
}


def _cells() -> list[tuple[str, str, str, str]]:
    header, *rows = (re.split(r" {2,}", line) for line in CELLS.strip().splitlines())
    return [
        (role, command, status, answer)
        for role, command, *answers in rows
        for status, answer in zip(header[2:], answers, strict=True)
    ]


@pytest.mark.parametrize(("role", "command_name", "status", "answer"), _cells())
def test_status_and_command(role: str, command_name: str, status: str, answer: str) -> None:
    """Freezes and closing bind new promises and movements; what was promised before is captured, voided or expires."""
    ledger = Ledger(shop=0)
    ledger.do(open_account("alice", limit=1_000))
    if command_name != "close":
        ledger.fund("alice", 100)
    account_id = "shop" if role == "payee" else "alice"
    before, command = SCENES[command_name]
    for step in before:
        ledger.do(step)
    if status == "CLOSED":
        if ledger.state(account_id).posted:
            ledger.do(transfer("drain", leg(account_id, "bank", ledger.state(account_id).posted)))
        ledger.expect((close(account_id), "refused ACCOUNT_IN_USE" if answer == "never" else "CLOSED"))
    elif status != "OPEN":
        ledger.do(freeze(account_id, FreezeScope(status)))
    if command_name == "expire":
        ledger.wait(days=7)
    if answer != "never":
        ledger.expect((command, answer))


def test_the_table_of_status_and_command_has_every_cell() -> None:
    """Every command that touches an account stands in the table, for both sides of a payment."""
    commands = {name for _, name, _, _ in _cells()}
    assert commands == set(SCENES)
    both_sides = {"authorize", "increment", "capture", "void", "expire", "refund", "transfer"}
    for role in ("payer", "payee"):
        assert {name for its_role, name, _, _ in _cells() if its_role == role} == both_sides
    assert len(_cells()) == 5 * (2 * 7 + 7)


# --- the state after -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "steps",
    [
        [authorize(30)],
        [authorize(30), increment("i", 40), capture("c", 10, keep_remainder=True), capture("d", 10), refund("r")],
        [authorize(30), void(), freeze("alice", DEBITS)],
        [set_limit("alice", 10), freeze("alice"), unfreeze("alice")],
        [transfer("t", leg("alice", "bank", 100)), close("alice")],
    ],
)
def test_an_account_loads_from_its_last_event_alone(steps: list[Command]) -> None:
    """Every event of an account carries its whole state and its version: no history is needed to go on."""
    ledger = Ledger(alice=100, shop=0)
    for step in steps:
        ledger.do(step)
    for account_id in ("alice", "shop", "bank"):
        last = [event for event in ledger.book.events if event.stream == f"account/{account_id}"][-1]
        loaded, known = Account.at(last), ledger.account(account_id)
        assert (loaded.state, loaded.version, loaded.modified_on) == (known.state, known.version, known.modified_on)
        assert loaded.account_id == account_id


@pytest.mark.parametrize(
    ("command", "emitted"),
    [
        (authorize(30), ["PaymentAuthorized", "FundsReserved"]),
        (authorize(101), ["PaymentDeclined"]),
        (transfer("t", leg("alice", "shop", 30)), ["TransferPosted", "FundsDebited", "FundsCredited"]),
        (transfer("t", leg("alice", "shop", 101)), ["TransferDeclined"]),
        (open_account("bob"), ["AccountOpened"]),
        (freeze("alice"), ["AccountFrozen"]),
        (unfreeze("alice"), []),
    ],
)
def test_the_fact_comes_first_and_then_what_it_does_to_accounts(command: Command, emitted: list[str]) -> None:
    """The first event of a command is its own; the accounts' follow in the order in which they change."""
    assert names(Ledger(alice=100, shop=0).emitted(command)) == emitted
