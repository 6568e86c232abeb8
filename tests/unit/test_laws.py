"""Laws: what holds after every command, whatever the commands are, in whatever order and however often they come."""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import datetime, timedelta
from typing import Any

from domain import (
    INSTANT,
    MOST,
    Ledger,
    amounts,
    as_seen,
    at_version,
    authorize,
    capture,
    close,
    expire,
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
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from ledger.domain.account import Account
from ledger.domain.book import Book
from ledger.domain.commands import (
    CloseAccount,
    Command,
    ExpireAuthorization,
    FreezeAccount,
    SetCreditLimit,
    UnfreezeAccount,
)
from ledger.domain.decisions import Outcome
from ledger.domain.errors import IdAlreadyUsed, Refusal
from ledger.domain.events import (
    AccountClosed,
    AccountEvent,
    AccountFrozen,
    AccountKind,
    AccountOpened,
    AccountState,
    AccountStatus,
    AccountUnfrozen,
    AuthorizationExpired,
    AuthorizationIncremented,
    CreditLimitChanged,
    FreezeScope,
    FundsCredited,
    FundsDebited,
    FundsReleased,
    FundsReserved,
    LedgerEvent,
    PaymentAmounts,
    PaymentAuthorized,
    PaymentCaptured,
    PaymentChange,
    PaymentDeclined,
    PaymentEvent,
    PaymentRefunded,
    PaymentVoided,
    TransferDeclined,
    TransferEvent,
)
from ledger.domain.money import Money
from ledger.domain.payment import Payment
from ledger.domain.transfer import Transfer

# --- the same history, added up by other means ------------------------------------------------------------------------


class Fold:
    """Accounts and payments added up from the changes that events tell of, never from the state that they carry."""

    def __init__(self) -> None:
        self.accounts: dict[str, AccountState] = {}
        self.payments: dict[str, PaymentAmounts] = {}
        self.payers: dict[str, str] = {}
        self.versions: Counter[str] = Counter()

    def add(self, event: LedgerEvent) -> None:
        self.versions[event.stream] += 1
        assert event.originator_version == self.versions[event.stream], "versions have no gaps"
        if isinstance(event, AccountEvent):
            self.accounts[event.stream] = self._account_after(event)
            assert event.after == self.accounts[event.stream], "the state that is carried is the changes added up"
        elif isinstance(event, PaymentAuthorized | PaymentDeclined):
            asked = event.amount.minor_units if isinstance(event, PaymentAuthorized) else 0
            self.payments[event.stream] = amounts(authorized=asked, capturable=asked)
            self.payers[event.stream] = f"account/{event.payer_account_id}"
        elif isinstance(event, PaymentChange):
            assert event.before == self.payments[event.stream], "a change starts where the last one ended"
            self.payments[event.stream] = _payment_after(event, self.payments[event.stream])
            assert event.after == self.payments[event.stream], "the amounts that are carried are the changes added up"

    def _account_after(self, event: AccountEvent) -> AccountState:
        if isinstance(event, AccountOpened):
            assert event.stream not in self.accounts
            limit = event.credit_limit.minor_units if event.credit_limit else 0
            return AccountState(
                currency_code=event.currency_code,
                kind=event.kind,
                posted=0,
                reserved=0,
                credit_limit=limit,
                status=AccountStatus.OPEN,
            )
        state = self.accounts[event.stream]
        match event:
            case FundsReserved():
                return replace(state, reserved=state.reserved + event.amount)
            case FundsReleased():
                return replace(state, reserved=state.reserved - event.amount)
            case FundsDebited():
                from_reserved = event.amount if event.from_reserved else 0
                return replace(state, posted=state.posted - event.amount, reserved=state.reserved - from_reserved)
            case FundsCredited():
                return replace(state, posted=state.posted + event.amount)
            case CreditLimitChanged():
                return replace(state, credit_limit=event.credit_limit)
            case AccountFrozen():
                return replace(state, status=AccountStatus.FROZEN, freeze_scope=event.scope)
            case AccountUnfrozen():
                return replace(state, status=AccountStatus.OPEN, freeze_scope=None)
            case AccountClosed():
                return replace(state, status=AccountStatus.CLOSED, freeze_scope=None)
        raise AssertionError(f"an account event that the fold doesn't know: {event!r}")


def _payment_after(event: PaymentChange, before: PaymentAmounts) -> PaymentAmounts:
    rest = before.capturable
    match event:
        case AuthorizationIncremented():
            more = event.amount.minor_units - before.authorized
            return replace(before, authorized=before.authorized + more, capturable=rest + more)
        case PaymentCaptured():
            amount = event.amount.minor_units if event.amount else rest
            left = rest - amount
            kept, released = (left, 0) if event.keep_remainder else (0, left)
            return replace(
                before, captured=before.captured + amount, capturable=kept, released=before.released + released
            )
        case PaymentVoided():
            return replace(before, capturable=0, released=before.released + rest)
        case AuthorizationExpired():
            return replace(before, capturable=0, expired=before.expired + rest)
        case PaymentRefunded():
            amount = event.amount.minor_units if event.amount else before.captured - before.refunded
            return replace(before, refunded=before.refunded + amount)
    raise AssertionError(f"a payment event that the fold doesn't know: {event!r}")


def reloaded(events: list[LedgerEvent]) -> dict[str, Account | Payment | Transfer]:
    """The aggregates as another process would load them: accounts from their last event alone."""
    histories: dict[str, list[LedgerEvent]] = defaultdict(list)
    for event in events:
        histories[event.stream].append(event)
    aggregates: dict[str, Account | Payment | Transfer] = {}
    for stream, history in histories.items():
        first, *later = history
        if isinstance(first, AccountOpened):
            aggregates[stream] = account = Account.at(history[-1])
            account.opening = first
        else:
            aggregates[stream] = thing = (Payment if isinstance(first, PaymentEvent) else Transfer).at(first)
            for event in later:
                event.mutate(thing)
    return aggregates


# --- steps: few ids, so that they meet, and amounts at their bounds ------------------------------------------------

EUROS = ["bank", "scheme", "alice", "bob", "carol"]
YEN = ["yen-bank", "yumi", "zoe"]
NEW = ["new-1", "new-2"]
BOUNDS = [1, 2, 10**17, 5 * 10**17, MOST - 100, MOST - 1, MOST]
TIMES = [INSTANT, timedelta(hours=1), timedelta(days=7) - INSTANT, timedelta(days=7), timedelta(days=31)]
KINDS = sorted(AccountKind)
SCOPES = sorted(FreezeScope)

small = st.integers(1, 60)
minor_units = st.one_of(small, small, st.integers(1, 400), st.sampled_from(BOUNDS))
shares = st.sampled_from(["unset", "one", "half", "half", "all", "all", "one too many", "all that there is"])
which = st.integers(0, 10**6)
ago = st.one_of(st.none(), st.none(), st.sampled_from(TIMES))
new_ids = st.sampled_from(NEW)
limits = st.one_of(st.none(), st.just(0), minor_units)
account_ids = st.sampled_from(EUROS + YEN + NEW)
payment_ids = st.integers(1, 15).map(lambda number: f"p{number}")
change_ids = st.integers(1, 15).map(lambda number: f"x{number}")
transfer_ids = st.integers(1, 30).map(lambda number: f"t{number}")


@st.composite
def two_accounts(draw: st.DrawFn) -> dict[str, str]:
    """A payer and a payee, mostly of the same currency, and mostly that of the amount."""
    currency_code, accounts = draw(
        st.sampled_from([("EUR", EUROS), ("EUR", EUROS), ("EUR", EUROS + NEW), ("JPY", YEN)])
    )
    if draw(st.integers(0, 20)) == 20:
        accounts = EUROS + YEN
    payer, payee = draw(st.lists(st.sampled_from(accounts), min_size=2, max_size=2, unique=True))
    return {"payer": payer, "payee": payee, "currency_code": currency_code}


legs = st.builds(
    lambda two, amount: leg(two["payer"], two["payee"], amount, two["currency_code"]),
    two_accounts(),
    st.one_of(small, minor_units),
)


# By the name of a method of History, below: how often it comes, and what it takes.
ACTIONS: dict[str, tuple[int, dict[str, st.SearchStrategy[Any]]]] = {
    "wait": (2, {"time": st.sampled_from(TIMES)}),
    "authorize": (
        8,
        {"payment_id": payment_ids, "amount": minor_units, "two": two_accounts(), "ago": ago, "hold_for": ago},
    ),
    "increment": (3, {"which": which, "change_id": change_ids, "more": st.one_of(st.integers(0, 9), minor_units)}),
    "capture": (6, {"which": which, "change_id": change_ids, "share": shares, "keep": st.booleans(), "ago": ago}),
    "refund": (5, {"which": which, "change_id": change_ids, "share": shares, "ago": ago}),
    "void": (1, {"which": which, "reason": st.sampled_from(["", "why"])}),
    "expire": (2, {"which": which, "wait": st.booleans()}),
    "transfer": (3, {"transfer_id": transfer_ids, "legs": st.lists(legs, min_size=1, max_size=4), "ago": ago}),
    "open": (1, {"account_id": new_ids, "yen": st.booleans(), "kind": st.sampled_from(KINDS), "limit": limits}),
    "set_limit": (1, {"account_id": account_ids, "limit": minor_units, "expected": st.none() | st.integers(1, 5)}),
    "freeze": (1, {"account_id": account_ids, "scope": st.sampled_from(SCOPES)}),
    "thaw": (1, {}),
    "close": (1, {"account_id": account_ids}),
    "replay": (2, {"which": which}),
    "differ": (2, {"which": which}),
}
STEPS = st.sampled_from([name for name, (times, _) in ACTIONS.items() for _ in range(times)]).flatmap(
    lambda name: st.tuples(st.just(name), st.fixed_dictionaries(ACTIONS[name][1]))
)


class History:
    """A ledger, the fold of what it recorded, and the first outcome of every command that has an id."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.fold = Fold()
        self.folded = 0
        self.firsts: list[tuple[Command, Outcome, dict[str, Any]]] = []
        for command in (
            open_account("scheme", kind=AccountKind.EXTERNAL),
            open_account("alice"),
            open_account("bob", limit=100),
            open_account("carol", limit=MOST),
            open_account("yen-bank", kind=AccountKind.EXTERNAL, currency_code="JPY"),
            open_account("yumi", currency_code="JPY"),
            open_account("zoe", currency_code="JPY", limit=100),
            transfer("given-1", leg("bank", "alice", 300)),
            transfer("given-2", leg("yen-bank", "yumi", 300, "JPY")),
        ):
            self.run(command)
        self.check()

    # --- when --------------------------------------------------------------------------------------------------------

    def run(self, command: Command) -> None:
        """Run a command, and check what one command does to the log."""
        before = self.ledger.head
        try:
            outcome = self.ledger.do(command)
        except Refusal:
            return
        if outcome.replayed:
            assert self.ledger.head == before, "a replay records nothing"
            return
        self.check_one_command(before, outcome)
        if not isinstance(command, WITHOUT_ID):
            self.firsts.append((command, outcome, as_seen(outcome.thing)))

    def wait(self, time: timedelta) -> None:
        self.ledger.now += time

    def authorize(self, payment_id: str, amount: int, two: Any, ago: Any, hold_for: Any) -> None:
        self.run(authorize(amount, payment_id=payment_id, effective_at=self.past(ago), hold_for=hold_for, **two))

    def increment(self, which: int, change_id: str, more: int) -> None:
        if payment := self.a_payment(which, "capturable"):
            total = max(1, min(MOST, payment.amounts.authorized + more))
            self.change(increment, payment, change_id, total)

    def capture(self, which: int, change_id: str, share: str, keep: bool, ago: Any) -> None:
        if payment := self.a_payment(which, "capturable"):
            amount = _share(share, payment.amounts.capturable)
            self.change(capture, payment, change_id, amount, keep_remainder=keep, effective_at=self.past(ago))

    def refund(self, which: int, change_id: str, share: str, ago: Any) -> None:
        if payment := self.a_payment(which, "captured"):
            amount = _share(share, payment.amounts.captured - payment.amounts.refunded)
            self.change(refund, payment, change_id, amount, effective_at=self.past(ago))

    def void(self, which: int, reason: str) -> None:
        if payment := self.a_payment(which, "capturable"):
            self.run(void(payment.payment_id, reason=reason))

    def expire(self, which: int, wait: bool) -> None:
        if payment := self.a_payment(which, "capturable"):
            if wait and payment.expires_at:
                self.ledger.now = max(self.ledger.now, payment.expires_at)
            self.run(expire(payment.payment_id))

    def transfer(self, transfer_id: str, legs: Any, ago: Any) -> None:
        self.run(transfer(transfer_id, *legs, effective_at=self.past(ago)))

    def open(self, account_id: str, yen: bool, kind: AccountKind, limit: int | None) -> None:
        limit = None if kind is AccountKind.EXTERNAL else limit
        self.run(open_account(account_id, currency_code="JPY" if yen else "EUR", kind=kind, limit=limit))

    def set_limit(self, account_id: str, limit: int, expected: int | None) -> None:
        preconditions = () if expected is None else at_version(alice=expected)
        currency_code = "JPY" if account_id in YEN else "EUR"
        self.run(set_limit(account_id, limit, currency_code=currency_code, preconditions=preconditions))

    def freeze(self, account_id: str, scope: FreezeScope) -> None:
        self.run(freeze(account_id, scope))

    def thaw(self) -> None:
        for account_id in EUROS + YEN + NEW:
            self.run(unfreeze(account_id))

    def close(self, account_id: str) -> None:
        self.run(close(account_id))

    def replay(self, which: int) -> None:
        self.check_replay(self.ledger, *self.firsts[which % len(self.firsts)])

    def differ(self, which: int) -> None:
        """The same id with another field is refused for its id, whatever happened since."""
        command, _, _ = self.firsts[which % len(self.firsts)]
        changed = {
            "OpenAccount": {"metadata": {"another": "one"}},
            "AuthorizePayment": {"reference": "another"},
            "IncrementAuthorization": {"amount": Money("CHF", 1)},
            "CapturePayment": {"keep_remainder": not getattr(command, "keep_remainder", None)},
            "VoidPayment": {},
            "RefundPayment": {"effective_at": self.ledger.now - timedelta(days=400)},
            "PostTransfer": {"reference": "another"},
        }[type(command).__name__]
        if changed:
            refusal = self.ledger.refusal(type(command)(**dict(command) | changed))
            assert isinstance(refusal, IdAlreadyUsed)
            assert refusal.details["field"] in changed

    def a_payment(self, which: int, field: str) -> Payment | None:
        """One of the payments: mostly one that has something capturable (or captured), if any has."""
        streams = sorted(self.fold.payments)
        fit = [stream for stream in streams if getattr(self.fold.payments[stream], field)]
        streams = fit if fit and which % 8 else streams
        payment = self.ledger.book.get(streams[which % len(streams)]) if streams else None
        assert payment is None or isinstance(payment, Payment)
        return payment

    def change(self, command: Any, payment: Payment, change_id: str, amount: int | None, **more: Any) -> None:
        currency_code = payment.request.amount.currency_code
        self.run(command(change_id, amount, payment_id=payment.payment_id, currency_code=currency_code, **more))

    def past(self, time: timedelta | None) -> datetime | None:
        return None if time is None else self.ledger.now - time

    # --- then: after one command -------------------------------------------------------------------------------------

    def check_one_command(self, before: int, outcome: Outcome) -> None:
        events, head = self.ledger.book.events[before:], self.ledger.head
        assert events, "what is done is recorded"
        assert {event.command_position for event in events} == {before + 1}, "a command's events stand together"
        assert {event.timestamp for event in events} == {self.ledger.now}, "one time per command"
        assert {(event.actor, event.correlation_id) for event in events} == {("anonymous", "test")}
        assert (outcome.position, outcome.recorded_at) == (head, self.ledger.now)
        first, *movements = events
        if isinstance(first, PaymentEvent | TransferEvent):
            assert first.last_position == head, "the first event knows how many there are"
            assert all(isinstance(event, AccountEvent) for event in movements)
            declined = isinstance(first, PaymentDeclined | TransferDeclined)
            assert bool(movements) != declined, "only a decline moves nothing"
            assert bool(outcome.decline) == declined
        else:
            assert not movements, "a change of one account is one event"

        sums: Counter[str] = Counter()
        for event in movements:
            if isinstance(event, FundsDebited):
                sums[event.after.currency_code] -= event.amount
            elif isinstance(event, FundsCredited):
                sums[event.after.currency_code] += event.amount
        assert not any(sums.values()), "the debits of a command are its credits"

    # --- then: after every step --------------------------------------------------------------------------------------

    def check(self) -> None:
        self.check_that_carried_state_is_refolded_state()
        self.check_that_posted_balances_sum_to_zero()
        self.check_that_reserved_is_what_open_payments_can_capture()
        self.check_that_no_account_leaves_its_limits()
        self.check_that_amounts_of_payments_add_up()

    def check_that_carried_state_is_refolded_state(self) -> None:
        for event in self.ledger.book.events[self.folded :]:
            self.fold.add(event)
        self.folded = self.ledger.head
        for stream, state in self.fold.accounts.items():
            account = self.ledger.book.get(stream)
            assert isinstance(account, Account)
            assert (account.state, account.version) == (state, self.fold.versions[stream])
        for stream, where in self.fold.payments.items():
            payment = self.ledger.book.get(stream)
            assert isinstance(payment, Payment)
            assert (payment.amounts, payment.version) == (where, self.fold.versions[stream])

    def check_that_posted_balances_sum_to_zero(self) -> None:
        sums: Counter[str] = Counter()
        for state in self.fold.accounts.values():
            sums[state.currency_code] += state.posted
        assert not any(sums.values()), sums

    def check_that_reserved_is_what_open_payments_can_capture(self) -> None:
        capturable = dict.fromkeys(self.fold.accounts, 0)
        for stream, where in self.fold.payments.items():
            capturable[self.fold.payers[stream]] += where.capturable
        assert {stream: state.reserved for stream, state in self.fold.accounts.items()} == capturable

    def check_that_no_account_leaves_its_limits(self) -> None:
        for stream, state in self.fold.accounts.items():
            assert -MOST <= state.posted <= MOST, stream
            assert 0 <= state.reserved <= MOST, stream
            assert 0 <= state.credit_limit <= MOST, stream
            if state.kind is AccountKind.CUSTOMER:
                assert state.available >= 0, stream
            else:
                assert state.credit_limit == 0, stream
            if state.status is AccountStatus.CLOSED:
                assert (state.posted, state.reserved) == (0, 0), stream
            assert (state.status is AccountStatus.FROZEN) == (state.freeze_scope is not None), stream

    def check_that_amounts_of_payments_add_up(self) -> None:
        for stream, where in self.fold.payments.items():
            assert where.authorized == where.captured + where.capturable + where.released + where.expired, stream
            assert where.refunded <= where.captured, stream
            assert all(0 <= getattr(where, field) <= MOST for field in where.__struct_fields__), stream

    # --- then: at the end --------------------------------------------------------------------------------------------

    def check_every_replay(self) -> None:
        """Every command again, a year later, in this process and in another that loads what the log has."""
        loaded = reloaded(self.ledger.book.events)
        for stream, aggregate in loaded.items():
            known = self.ledger.book.get(stream)
            assert isinstance(known, Account | Payment | Transfer)
            assert as_seen(aggregate) == as_seen(known)
        restarted = Ledger()
        restarted.book = Book(loaded, self.ledger.head)
        self.ledger.now += timedelta(days=365)
        restarted.now = self.ledger.now
        for first in self.firsts:
            self.check_replay(self.ledger, *first)
            self.check_replay(restarted, *first)

    def check_replay(self, ledger: Ledger, command: Command, first: Outcome, seen: dict[str, Any]) -> None:
        head = ledger.head
        again = ledger.do(command)
        assert (again.replayed, ledger.head) == (True, head)
        assert (again.position, again.recorded_at) == (first.position, first.recorded_at)
        assert as_seen(again.thing) == as_seen(first.thing) == seen, "the thing as it was right after the first time"
        assert again.decline == first.decline


WITHOUT_ID = (ExpireAuthorization, SetCreditLimit, FreezeAccount, UnfreezeAccount, CloseAccount)


def _share(share: str, whole: int) -> int | None:
    """An amount to take of a whole that may be zero."""
    return {
        "unset": None,
        "one": 1,
        "half": max(1, whole // 2),
        "all": max(1, whole),
        "one too many": min(whole + 1, MOST),
        "all that there is": MOST,
    }[share]


# To explain a failure takes Hypothesis minutes here; the shrunk steps tell enough.
PHASES = [phase for phase in Phase if phase is not Phase.explain]


@settings(
    max_examples=settings().max_examples // 2,
    phases=PHASES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(steps=st.lists(STEPS, min_size=25, max_size=75))
def test_whatever_is_sent_the_laws_hold_after_every_step(steps: list[tuple[str, dict[str, Any]]]) -> None:
    """Money is neither made nor lost, no limit is passed, and the first answer to an id stays the answer."""
    history = History()
    for name, arguments in steps:
        getattr(history, name)(**arguments)
        history.check()
    history.check_every_replay()
