"""The read models and the queries on them: they say what the log adds up to at a position, or why they can't."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Final

import psycopg
import pytest
from checks import read_log
from domain import authorize, capture_and_keep, increment, leg, open_account, refund, transfer, void
from google.protobuf.timestamp_pb2 import Timestamp
from read_side import History, append_row, catch_up, check_read_models, fold, tables

from ledger import replies
from ledger.domain.errors import AccountNotFound, InvalidCommand, PaymentNotFound, TransferNotFound
from ledger.domain.events import TOPICS
from ledger.domain.money import MAX_MINOR_UNITS
from ledger.postgres import connect
from ledger.v1 import account_pb2, payment_pb2, transfer_pb2
from ledger.v1.account_pb2 import GetAccountBalanceRequest, GetAccountRequest
from ledger.v1.payment_pb2 import GetPaymentRequest
from ledger.v1.transfer_pb2 import GetTransferRequest
from ledger.wire import timestamp
from projections.batch import CannotApply
from projections.errors import (
    BalanceNotRepresentable,
    PositionAheadOfHead,
    ReadModelBehind,
    ReadModelStopped,
    ReadsUnavailable,
)
from projections.follower import Follower
from projections.queries import Queries
from projections.read_models import create_tables

SEEDS: Final = (1, 2, 3)


# --- what is in the tables -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_the_read_models_are_what_a_plain_fold_of_the_log_says(
    dsn: str, ledger: str, history: History, follower: Follower, seed: int
) -> None:
    """Every kind of event, whatever its texts and times, comes to the rows of a fold that shares no line with ours."""
    history.live(Random(seed), 1_500)
    history.write()
    catch_up(follower)
    log = read_log(dsn, ledger)
    assert {row.topic for row in log} == set(TOPICS)
    assert check_read_models(dsn, ledger) == len(log) == follower.position


def test_tables_can_be_created_again_and_from_several_places_at_once(dsn: str, ledger: str) -> None:
    """Whoever comes second finds the tables there, and nothing in them is touched."""

    def create(_: int) -> None:
        with connect(dsn, ledger, "test") as connection:
            create_tables(connection)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(create, range(4)))
    history = History(dsn, ledger, alice=5)
    history.write()
    follower = Follower(dsn, ledger)
    catch_up(follower)
    follower.stop()
    before = tables(dsn, ledger)
    create(0)
    assert tables(dsn, ledger) == before


@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        ("UPDATE balances SET posted = -1 WHERE kind = 'CUSTOMER'", "balances_customer_within_limit"),
        ("UPDATE balances SET reserved = -1", "balances_reserved_is_not_negative"),
        ("UPDATE balances SET credit_limit = 1", "balances_external_has_no_limit"),
        ("UPDATE balances SET status = 'FROZEN'", "balances_scope_only_while_frozen"),
        ("UPDATE payments SET amount_captured = 1", "payments_amounts_add_up"),
        ("UPDATE payments SET amount_refunded = 1", "payments_refunded_within_captured"),
        ("UPDATE payments SET payee_account_id = payer_account_id", "payments_two_accounts"),
        ("UPDATE payments SET decline_reason = 'ACCOUNT_CLOSED'", "payments_declined_for_a_reason"),
        ("UPDATE transfers SET decline_reason = 'CLOSED'", "transfers_declined_for_a_reason"),
        ("UPDATE transfers SET version = 2", "transfers_never_change"),
        ("UPDATE entries SET kind = 'STOLEN'", "entries_kind"),
        ("UPDATE entries SET effective_at = recorded_at + interval '1 us'", "entries_effective_is_not_later"),
        ("UPDATE checkpoints SET position = -1", "checkpoints_position_is_not_negative"),
    ],
)
def test_the_tables_themselves_refuse_what_can_not_be(
    dsn: str, ledger: str, history: History, follower: Follower, statement: str, constraint: str
) -> None:
    """The invariants stand in the database, by name."""
    history.do(authorize(10))
    history.write()
    catch_up(follower)
    with connect(dsn, ledger, "test") as connection, pytest.raises(psycopg.errors.CheckViolation) as refused:
        connection.execute(statement)
    assert refused.value.diag.constraint_name == constraint


# --- answers ---------------------------------------------------------------------------------------------------------


def filled(message: Any, fill: Callable[[Any, Any], None], thing: Any) -> Any:
    """The message that a command answers with."""
    fill(message, thing)
    return message


def test_reads_show_what_the_commands_answered(history: History, follower: Follower, ask: Callable[..., Any]) -> None:
    """Read back from the tables, every account, payment and transfer is the message that a command answers with."""
    history.live(Random(4), 1_000)
    head = history.write()
    catch_up(follower)

    async def compare(queries: Queries) -> None:
        for stream, thing in history.book.changed.items():
            kind, _, id_ = stream.partition("/")
            if kind == "account":
                opened = await queries.get_account(GetAccountRequest(account_id=id_), 5)
                thing.opening = next(event for event in history.book.events if event.originator_id == stream)
                assert opened.account == filled(account_pb2.Account(), replies.fill_account, thing)
                balance = await queries.get_account_balance(GetAccountBalanceRequest(account_id=id_), 5)
                expected = replies.balance_message(thing)
                expected.position = last_position(history, stream)
                assert balance.balance == expected
                assert opened.position == balance.position == head
            elif kind == "payment":
                answer = await queries.get_payment(GetPaymentRequest(payment_id=id_), 5)
                assert answer.payment == filled(payment_pb2.Payment(), replies.fill_payment, thing)
                assert answer.position == head
            else:
                transferred = await queries.get_transfer(GetTransferRequest(transfer_id=id_), 5)
                assert transferred.transfer == filled(transfer_pb2.Transfer(), replies.fill_transfer, thing)
                assert transferred.position == head

    ask(compare)


def last_position(history: History, stream: str) -> int:
    return max(number for number, event in enumerate(history.book.events, 1) if event.originator_id == stream)


def test_a_payment_shows_its_captures_refunds_and_increments_in_order(
    history: History, follower: Follower, ask: Callable[..., Any]
) -> None:
    """Also when each came in a batch of its own."""
    for command in (
        authorize(100, reference="order 7"),
        increment("i1", 300),
        capture_and_keep("c1", 50),
        capture_and_keep("c2", 60),
        refund("r1", 5),
        void(reason="rest not wanted"),
        refund("r2", 7),
    ):
        history.wait(seconds=1)
        history.do(command)
        history.write()
        catch_up(follower)

    async def read(queries: Queries) -> Any:
        return (await queries.get_payment(GetPaymentRequest(payment_id="p"), 5)).payment

    payment = ask(read)
    assert [(each.capture_id, each.amount) for each in payment.captures] == [("c1", 50), ("c2", 60)]
    assert [(each.refund_id, each.amount) for each in payment.refunds] == [("r1", 5), ("r2", 7)]
    assert [(each.increment_id, each.amount) for each in payment.increments] == [("i1", 300)]
    assert payment == filled(payment_pb2.Payment(), replies.fill_payment, history.payment())


def test_what_is_not_there_is_not_found(history: History, follower: Follower, ask: Callable[..., Any]) -> None:
    """In an empty ledger and in one that has other things."""

    async def look(queries: Queries) -> None:
        with pytest.raises(AccountNotFound):
            await queries.get_account(GetAccountRequest(account_id="nobody"), 5)
        with pytest.raises(AccountNotFound):
            await queries.get_account_balance(GetAccountBalanceRequest(account_id="nobody"), 5)
        with pytest.raises(AccountNotFound):
            await queries.get_account_balance(
                GetAccountBalanceRequest(account_id="nobody", effective_at=timestamp(datetime.now(UTC))), 5
            )
        with pytest.raises(PaymentNotFound):
            await queries.get_payment(GetPaymentRequest(payment_id="nothing"), 5)
        with pytest.raises(TransferNotFound):
            await queries.get_transfer(GetTransferRequest(transfer_id="nothing"), 5)

    ask(look)
    history.write()
    catch_up(follower)
    ask(look)


@pytest.mark.parametrize(
    ("method", "request_", "fields"),
    [
        ("get_account", GetAccountRequest(), ["account_id"]),
        ("get_account", GetAccountRequest(account_id="a" * 129), ["account_id"]),
        ("get_account", GetAccountRequest(account_id="a b", min_position=-1), ["account_id", "min_position"]),
        ("get_account_balance", GetAccountBalanceRequest(account_id="é"), ["account_id"]),
        (
            "get_account_balance",
            GetAccountBalanceRequest(account_id="a", effective_at=Timestamp(seconds=10**15)),
            ["effective_at"],
        ),
        ("get_payment", GetPaymentRequest(payment_id="a\n"), ["payment_id"]),
        ("get_transfer", GetTransferRequest(transfer_id="x", min_position=-5), ["min_position"]),
    ],
)
def test_malformed_requests_name_their_fields(
    history: History, ask: Callable[..., Any], method: str, request_: Any, fields: list[str]
) -> None:
    """All of the fields that are wrong, by the names of the proto."""

    async def send(queries: Queries) -> None:
        with pytest.raises(InvalidCommand) as refused:
            await getattr(queries, method)(request_, 5)
        assert [each.field for each in refused.value.violations] == fields

    ask(send)


# --- by effective time -----------------------------------------------------------------------------------------------


def test_a_balance_by_effective_time_includes_that_very_moment(
    history: History, follower: Follower, ask: Callable[..., Any]
) -> None:
    """Movements count from their effective_at on, in whatever order they were recorded; reserved is as known."""
    noon = history.now - timedelta(days=10)
    microsecond = timedelta(microseconds=1)
    history.do(transfer("late", leg("bank", "alice", 30), effective_at=noon + timedelta(days=1)))
    history.do(transfer("early", leg("alice", "bank", 7), effective_at=noon))
    history.do(authorize(100))
    history.do(capture_and_keep("c", 40, effective_at=noon + timedelta(days=2)))
    history.write()
    catch_up(follower)

    async def posted(queries: Queries) -> list[int]:
        answers = []
        for moment in (
            noon - microsecond,
            noon,
            noon + timedelta(days=1) - microsecond,
            noon + timedelta(days=1),
            noon + timedelta(days=2),
            history.now,
            history.now + timedelta(days=999),
        ):
            request = GetAccountBalanceRequest(account_id="alice", effective_at=timestamp(moment))
            balance = (await queries.get_account_balance(request, 5)).balance
            assert (balance.reserved, balance.version) == (60, history.account("alice").version)
            assert balance.available == balance.posted - 60
            answers.append(balance.posted)
        return answers

    assert ask(posted) == [0, -7, -7, 23, -17, 983, 983]


def test_balances_by_effective_time_are_sums_over_the_log(
    dsn: str, ledger: str, history: History, follower: Follower, ask: Callable[..., Any]
) -> None:
    """For any account and any moment, those of events and those between."""
    random = Random(5)
    history.live(random, 600)
    history.write()
    catch_up(follower)
    entries = fold(read_log(dsn, ledger))["entries"].values()
    moments = [random.choice((0, 1)) * timedelta(microseconds=1) + each["effective_at"] for each in entries]

    async def compare(queries: Queries) -> None:
        for moment in random.sample(moments, 150):
            account_id = random.choice(list(entries))["account_id"]
            request = GetAccountBalanceRequest(account_id=account_id, effective_at=timestamp(moment))
            expected = sum(
                each["posted_change"]
                for each in entries
                if each["account_id"] == account_id and each["effective_at"] <= moment
            )
            assert (await queries.get_account_balance(request, 5)).balance.posted == expected

    ask(compare)


def test_a_sum_by_effective_time_that_no_int64_holds_is_refused(
    history: History, follower: Follower, ask: Callable[..., Any]
) -> None:
    """No balance was ever above 10^18, but what came in before what went out can be."""
    past = history.now - timedelta(days=1)
    much = MAX_MINOR_UNITS - 1_000
    for number in range(10):
        history.do(transfer(f"in-{number}", leg("bank", "shop", much), effective_at=past))
        history.do(transfer(f"out-{number}", leg("shop", "bank", much)))
    history.write()
    catch_up(follower)

    async def read(queries: Queries) -> None:
        with pytest.raises(BalanceNotRepresentable):
            await queries.get_account_balance(
                GetAccountBalanceRequest(account_id="shop", effective_at=timestamp(past)), 5
            )
        now = GetAccountBalanceRequest(account_id="shop", effective_at=timestamp(history.now))
        assert (await queries.get_account_balance(now, 5)).balance.posted == 0

    ask(read)


# --- which position --------------------------------------------------------------------------------------------------


def account_at(min_position: int) -> GetAccountRequest:
    return GetAccountRequest(account_id="alice", min_position=min_position)


def test_a_position_that_is_included_is_not_waited_for(
    history: History, follower: Follower, ask: Callable[..., Any]
) -> None:
    """Any position up to the checkpoint's own."""
    head = history.write()
    catch_up(follower)

    async def read(queries: Queries) -> None:
        for position in (0, 1, head):
            assert (await queries.get_account(account_at(position), 0.5)).position == head

    ask(read)


@pytest.mark.parametrize("together", [True, False])
def test_a_read_waits_for_its_position(
    history: History, follower: Follower, ask: Callable[..., Any], together: bool
) -> None:
    """With a follower in the same process, that is woken by the wait alone, and with one elsewhere."""
    history.write()
    catch_up(follower)
    history.do(open_account("late"))
    head = history.write()
    follower._poll_s = 3_600

    async def read(queries: Queries) -> Any:
        request = GetAccountRequest(account_id="late", min_position=head)
        reading = asyncio.create_task(queries.get_account(request, 5))
        await asyncio.sleep(0)
        assert not reading.done()
        follower.start()
        return await reading

    answer = ask(read, follower=follower if together else None)
    assert answer.account.account_id == "late"
    assert answer.position == head


def test_a_read_whose_position_does_not_come_names_both_positions(
    history: History, follower: Follower, ask: Callable[..., Any]
) -> None:
    """It ends just before its time does, however long that is."""
    history.write()
    catch_up(follower)
    behind = history.head
    history.do(open_account("late"))
    head = history.write()

    async def read(queries: Queries) -> None:
        began = time.monotonic()
        with pytest.raises(ReadModelBehind) as refused:
            await queries.get_account(account_at(head), 0.4)
        assert refused.value.details == {"position": behind, "min_position": head}
        assert 0.3 < time.monotonic() - began < 4

    ask(read)
    ask(read, follower=follower)


def test_a_position_above_the_head_is_refused_at_once(
    history: History, follower: Follower, ask: Callable[..., Any]
) -> None:
    """Nobody waits 5 s for a position that nobody has been given."""
    head = history.write()
    catch_up(follower)

    async def read(queries: Queries) -> None:
        began = time.monotonic()
        with pytest.raises(PositionAheadOfHead) as refused:
            await queries.get_account(account_at(head + 1), None)
        assert refused.value.details == {"min_position": head + 1, "head": head}
        assert time.monotonic() - began < 4

    ask(read)
    ask(read, follower=follower)


def test_what_a_query_shows_is_of_the_position_that_it_names(
    dsn: str, ledger: str, history: History, ask: Callable[..., Any]
) -> None:
    """Read while a follower runs through the log in small steps, every answer is the state at its position, exactly."""
    history.live(Random(6), 800)
    history.write()
    states = states_by_position(history)
    follower = Follower(dsn, ledger, batch_events=5)

    async def read_along(queries: Queries) -> set[int]:
        seen: set[int] = set()
        follower.start()
        random = Random(7)

        async def read() -> None:
            while follower.position < history.head:
                stream = random.choice(["account/EUR-1", "account/bank-EUR", "payment/p3", "payment/p40"])
                position, shown = await show(queries, stream)
                assert shown == states[position].get(stream)
                seen.add(position)

        await asyncio.gather(*(read() for _ in range(4)))
        return seen

    try:
        seen = ask(read_along, follower=follower)
    finally:
        follower.stop()
    assert len(seen) > 20


async def show(queries: Queries, stream: str) -> tuple[int, Any]:
    """A position, and what is shown of a stream there: its version and its balances or amounts."""
    kind, _, id_ = stream.partition("/")
    try:
        if kind == "account":
            answer = await queries.get_account(GetAccountRequest(account_id=id_), 5)
            return answer.position, (answer.account.version, answer.account.posted, answer.account.reserved)
        paid = await queries.get_payment(GetPaymentRequest(payment_id=id_), 5)
        return paid.position, (paid.payment.version, paid.payment.amount_captured, len(paid.payment.captures))
    except (AccountNotFound, PaymentNotFound):
        return 0, None


def states_by_position(history: History) -> list[dict[str, Any]]:
    """What `show` must show of every stream at every position."""
    states: list[dict[str, Any]] = [{}]
    captures: dict[str, int] = {}
    for event in history.book.events:
        stream, after = event.originator_id, getattr(event, "after", None)
        kind = stream.partition("/")[0]
        shown: Any = (event.originator_version, 0, 0)
        if kind == "account":
            shown = (event.originator_version, after.posted, after.reserved)
        elif after is not None:
            captures[stream] = captures.get(stream, 0) + hasattr(event, "capture_id")
            shown = (event.originator_version, after.captured, captures[stream])
        states.append(states[-1] | {stream: shown})
    return states


# --- when things go wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [True, False])
def test_when_following_has_stopped_reads_say_so_unless_they_ask_for_no_more_than_is_there(
    dsn: str, ledger: str, history: History, follower: Follower, ask: Callable[..., Any], together: bool
) -> None:
    """Rows from before the event that can't be applied stay, and are shown to who names a position they include."""
    sound = history.write()
    with connect(dsn, ledger, "test") as connection:
        append_row(connection, "account/alice", 99, sound + 1, "AccountExploded", b"{}", history.now)
    with pytest.raises(CannotApply):
        catch_up(follower)

    async def read(queries: Queries) -> None:
        with pytest.raises(ReadModelStopped) as stopped:
            await queries.get_account(account_at(0), 5)
        assert stopped.value.details == {"position": sound}
        began = time.monotonic()
        with pytest.raises(ReadModelBehind) as behind:
            await queries.get_account(account_at(sound + 1), 5)
        assert behind.value.details == {"position": sound, "min_position": sound + 1}
        assert time.monotonic() - began < 4
        answer = await queries.get_account(account_at(sound), 5)
        assert (answer.account.posted, answer.position) == (1_000, sound)
        while queries.failure is None:
            await asyncio.sleep(0.01)
        assert "AccountExploded" not in str(stopped.value)

    ask(read, follower=follower if together else None)


def test_a_database_that_is_away_is_reported_at_once(history: History, dsn: str, ask: Callable[..., Any]) -> None:
    """Nobody listens: every read and the health of reads say so, and none waits for its deadline."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]

    async def read(queries: Queries) -> None:
        began = time.monotonic()
        with pytest.raises(ReadsUnavailable):
            await queries.get_account(account_at(0), 60)
        with pytest.raises(ReadsUnavailable):
            await queries.get_account(account_at(7), 60)
        with pytest.raises(ReadsUnavailable):
            await queries.get_account_balance(
                GetAccountBalanceRequest(account_id="alice", effective_at=timestamp(history.now)), None
            )
        assert time.monotonic() - began < 4
        while queries.failure is None:
            await asyncio.sleep(0.01)

    ask(read, of=f"host=127.0.0.1 port={port} user=ledger dbname=ledger")


def test_a_database_that_says_nothing_holds_nobody_beyond_his_time(history: History, ask: Callable[..., Any]) -> None:
    """A server that takes connections and never answers, as behind a network that swallows everything."""
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()

        async def read(queries: Queries) -> None:
            began = time.monotonic()
            with pytest.raises(ReadsUnavailable):
                await queries.get_account(account_at(0), 0.3)
            assert time.monotonic() - began < 4

        ask(read, of=f"host=127.0.0.1 port={mute.getsockname()[1]} user=ledger dbname=ledger")


def test_connections_that_were_lost_are_made_again(
    dsn: str, history: History, follower: Follower, ask: Callable[..., Any]
) -> None:
    """The reader does not notice that an operator, or a restart of the server, ended the connections."""
    head = history.write()
    catch_up(follower)

    async def read(queries: Queries) -> None:
        for _ in range(3):
            answers = await asyncio.gather(*(queries.get_account(account_at(0), 5) for _ in range(10)))
            assert {answer.position for answer in answers} == {head}
            await asyncio.to_thread(end_sessions, dsn, "ledger-reads")

    ask(read)


def end_sessions(dsn: str, application_name: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        query = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = %s"
        connection.execute(query, [application_name]).fetchall()
