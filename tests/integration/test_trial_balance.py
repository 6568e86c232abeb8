"""The trial balance: it balances at every position and at every time, and says what a plain fold of the log says."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Final

import grpc.aio
import psycopg
import pytest
from checks import Row
from domain import MOST, authorize, leg, open_account, transfer
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode
from read_side import CURRENCIES, History, catch_up, fold, log_until
from streaming import ANSWERED_WITHIN_S, refusal_of, served, sessions
from test_read_models import end_sessions

from ledger.domain.events import AccountKind
from ledger.v1.account_pb2 import AccountBalance
from ledger.v1.audit_pb2 import GetTrialBalanceRequest, GetTrialBalanceResponse, TrialBalanceTotal
from ledger.v1.audit_pb2_grpc import AuditServiceStub
from ledger.wire import timestamp
from projections.follower import Follower
from projections.queries import REPORT_CONNECTIONS_MOST, Queries
from projections.trial_balance import ALL_PAGE, MESSAGE_PAGE

Ask = Callable[..., Any]


@pytest.fixture
def ask_server(dsn: str, ledger: str) -> Ask:
    """Run a test's coroutine with a client of a server that answers from the read models of the test's ledger."""

    def run(test: Callable[[Any], Awaitable[Any]], *, at: str = dsn, follower: Follower | None = None) -> Any:
        async def main() -> Any:
            queries = Queries(at, ledger, arrivals=follower and follower.arrivals)
            await queries.open()
            async with served(dsn, ledger, queries.streams) as channel:
                answer = await test(AuditServiceStub(channel))  # type: ignore[no-untyped-call]
            await queries.close()
            return answer

        return asyncio.run(main())

    return run


def start(stub: Any, **fields: Any) -> Any:
    return stub.GetTrialBalance(GetTrialBalanceRequest(**fields), timeout=ANSWERED_WITHIN_S)


async def whole(stub: Any, **fields: Any) -> tuple[GetTrialBalanceResponse, list[AccountBalance]]:
    """The first response, with the totals, and the accounts of all that follow. All say the same position and head."""
    first, *others = [each async for each in start(stub, **fields)]
    assert not first.accounts
    assert not any(each.totals for each in others)
    assert all(each.accounts for each in others)
    assert {(each.position, each.head) for each in others} <= {(first.position, first.head)}
    accounts = [account for each in others for account in each.accounts]
    assert [each.account_id for each in accounts] == sorted(each.account_id for each in accounts)
    for total in first.totals:
        assert total.debits == total.credits, fields
    return first, accounts


# --- a second opinion ------------------------------------------------------------------------------------------------


def whole_commands(log: list[Row], position: int) -> int:
    """The end of the last command that is in the log up to a position as a whole."""
    if position >= len(log):
        return len(log)
    return min(position, int(log[position].fields["command_position"]) - 1)


def expected(log: list[Row], *, effective_at: datetime | None = None, currency_code: str = "") -> list[AccountBalance]:
    """Every account, from the tests' own fold."""
    folded = fold(log)
    posted: defaultdict[str, int] = defaultdict(int)
    for entry in folded["entries"].values():
        if effective_at is None or entry["effective_at"] <= effective_at:
            posted[entry["account_id"]] += entry["posted_change"]
    return [
        AccountBalance(
            account_id=account_id,
            currency_code=row["currency_code"],
            posted=posted[account_id],
            reserved=row["reserved"],
            credit_limit=row["credit_limit"],
            available=posted[account_id] - row["reserved"] + (row["credit_limit"] or 0),
            version=row["version"],
            position=row["position"],
        )
        for account_id, row in sorted(folded["balances"].items())
        if currency_code in ("", row["currency_code"])
    ]


def totals_of(accounts: list[AccountBalance]) -> list[TrialBalanceTotal]:
    return [
        TrialBalanceTotal(
            currency_code=code,
            accounts=len(those),
            debits=str(-sum(min(0, each.posted) for each in those)),
            credits=str(sum(max(0, each.posted) for each in those)),
            reserved=str(sum(each.reserved for each in those)),
        )
        for code in sorted(CURRENCIES)
        if (those := [each for each in accounts if each.currency_code == code])
    ]


# --- what it says ----------------------------------------------------------------------------------------------------


def test_it_is_what_a_plain_fold_of_the_log_says(
    dsn: str, ledger: str, history: History, follower: Follower, ask_server: Ask
) -> None:
    """Now, at any position and recorded time, by any effective time, of one currency or all: and it always balances."""
    random = Random(21)
    history.live(random, 700)
    head = history.write()
    catch_up(follower)
    log = log_until(dsn, ledger, head)
    times = [row.recorded_at for row in log]

    async def look(stub: Any) -> None:
        within_commands = 0
        for _ in range(80):
            request: dict[str, Any] = random.choice(
                (
                    {},
                    {"at_position": random.randint(1, head)},
                    {
                        "recorded_at": timestamp(
                            random.choice(times) - random.choice((0, 1)) * timedelta(microseconds=1)
                        )
                    },
                )
            )
            position = request.get("at_position", head)
            if "recorded_at" in request:
                position = sum(timestamp(time).ToDatetime() <= request["recorded_at"].ToDatetime() for time in times)
            within_commands += whole_commands(log, position) < position
            position = whole_commands(log, position)
            more: dict[str, Any] = {}
            if random.random() < 0.5:
                more["effective_at"] = random.choice(times) - timedelta(seconds=random.choice((0, 10**3, 10**6)))
            if random.random() < 0.3:
                more["currency_code"] = random.choice(("EUR", "JPY", "USD"))
            sent = {key: timestamp(each) if isinstance(each, datetime) else each for key, each in more.items()}
            first, accounts = await whole(stub, **request, **sent)
            assert (first.position, first.head) == (position, head)
            assert accounts == expected(log[:position], **more)
            assert list(first.totals) == totals_of(accounts)
        assert within_commands > 5, "too few positions were within a command"

    ask_server(look)


def test_between_the_events_of_a_command_it_is_as_of_the_command_before(
    dsn: str, ledger: str, history: History, follower: Follower, ask_server: Ask
) -> None:
    """A debit without its credit is never shown; the answer says which position it is as of."""
    before = history.head
    history.do(transfer("t", leg("bank", "alice", 7), leg("alice", "shop", 3), leg("bank", "shop", 1)))
    head = history.write()
    assert head == before + 7
    catch_up(follower)

    async def look(stub: Any) -> None:
        for position in range(before, head):
            first, _ = await whole(stub, at_position=position)
            assert (first.position, first.totals[0].credits) == (before, "1000")
        first, _ = await whole(stub, at_position=head)
        assert (first.position, first.totals[0].credits) == (head, "1008")

    ask_server(look)


def test_reserved_is_as_known_by_effective_time_too(history: History, follower: Follower, ask_server: Ask) -> None:
    """As in GetAccountBalance: only posted follows effective_at."""
    history.do(authorize(100, effective_at=history.now - timedelta(days=2)))
    history.do(authorize(40, payment_id="q"))
    history.write()
    catch_up(follower)

    async def look(stub: Any) -> None:
        first, accounts = await whole(stub, effective_at=timestamp(history.now - timedelta(days=3)))
        (alice,) = [each for each in accounts if each.account_id == "alice"]
        assert (alice.posted, alice.reserved, alice.available) == (0, 140, -140)
        assert [(each.debits, each.credits, each.reserved) for each in first.totals] == [("0", "0", "140")]

    ask_server(look)


def test_sums_beyond_an_int64_are_told_in_full(history: History, follower: Follower, ask_server: Ask) -> None:
    """Of many accounts at the bound; and by effective time even of one, which is then refused where it comes."""
    past = history.now - timedelta(days=1)
    for number in range(12):
        history.do(open_account(f"world-{number}", kind=AccountKind.EXTERNAL))
        history.do(open_account(f"rich-{number}"))
        history.do(transfer(f"t{number}", leg(f"world-{number}", f"rich-{number}", MOST), effective_at=history.now))
    for number in range(10):
        history.do(transfer(f"out-{number}", leg("rich-0", "world-0", MOST)))
        history.do(transfer(f"in-{number}", leg("world-0", "rich-0", MOST), effective_at=past))
    history.write()
    catch_up(follower)

    async def look(stub: Any) -> None:
        first, accounts = await whole(stub)
        assert (first.totals[0].credits, len(accounts)) == (str(12 * MOST + 1_000), 27)
        call = start(stub, effective_at=timestamp(past))
        totals = (await call.read()).totals
        assert [(each.debits, each.credits) for each in totals] == [(str(10 * MOST), str(10 * MOST))]
        with pytest.raises(grpc.aio.AioRpcError):
            await call.read()
        assert await refusal_of(call) == (StatusCode.OUT_OF_RANGE, "BALANCE_NOT_REPRESENTABLE", [])

    ask_server(look)


def test_an_empty_ledger_balances(dsn: str, ledger: str, history: History, ask_server: Ask) -> None:
    """One response, without totals, as of position 0."""

    async def look(stub: Any) -> None:
        for fields in ({}, {"currency_code": "EUR"}, {"effective_at": Timestamp()}):
            assert await whole(stub, **fields) == (GetTrialBalanceResponse(), [])
        history.write()
        first, accounts = await whole(stub)
        assert (first, accounts) == (GetTrialBalanceResponse(head=history.head), [])

    ask_server(look)


# --- many accounts ---------------------------------------------------------------------------------------------------


def many_accounts(session: psycopg.Connection[Any], accounts: int, head: int) -> None:
    """Add accounts of one cent each, from a bank outside, past the log: what only reading them takes."""
    session.execute(
        """
        WITH new AS (
            SELECT 'many:' || n AS account_id, 'CUSTOMER' AS kind, 1 AS posted FROM generate_series(1, %(accounts)s) n
            UNION ALL SELECT 'many-bank', 'EXTERNAL', -%(accounts)s
        ), placed AS (
            SELECT *, %(head)s + row_number() OVER () AS position FROM new
        ), lines AS (
            INSERT INTO entries (account_id, position, version, recorded_at, effective_at, kind, currency_code,
                                 minor_digits, posted_change, reserved_change, posted, reserved, credit_limit)
            SELECT account_id, position, 1, now(), now(), 'OPENED', 'EUR', 2, posted, 0, posted, 0,
                   CASE kind WHEN 'CUSTOMER' THEN 0 END
            FROM placed
        )
        INSERT INTO balances (account_id, kind, status, currency_code, minor_digits, posted, reserved, credit_limit,
                              version, position, recorded_at, opened_at, opened_position, metadata)
        SELECT account_id, kind, 'OPEN', 'EUR', 2, posted, 0, CASE kind WHEN 'CUSTOMER' THEN 0 END,
               1, position, now(), now(), position, '{}'
        FROM placed
        """,
        {"accounts": accounts, "head": head},
    )
    session.execute("UPDATE checkpoints SET position = %s", [head + accounts + 1])


def test_many_accounts_come_in_many_messages(
    session: psycopg.Connection[Any], history: History, follower: Follower, ask_server: Ask
) -> None:
    """More than one statement adds up: totals and accounts agree, each is there once, and as it was at the start."""
    head = history.write()
    catch_up(follower)
    many = ALL_PAGE + 2 * MESSAGE_PAGE
    many_accounts(session, many, head)

    async def look(stub: Any) -> None:
        for fields in ({"effective_at": Timestamp(seconds=253_402_300_799)}, {}):
            call = start(stub, **fields)
            totals = (await call.read()).totals
            assert [(each.accounts, each.debits, each.credits) for each in totals] == [
                (many + 4, str(many + 1_000), str(many + 1_000))
            ]
            found = []
            while (response := await call.read()) is not grpc.aio.EOF:
                assert response.ByteSize() < 2**20
                found += response.accounts
                if len(found) == MESSAGE_PAGE:
                    change = "UPDATE balances SET posted = 7, version = 2, position = %s WHERE account_id < 'many:7'"
                    session.execute(change, [head + many + 2])
            assert (len(found), len({each.account_id for each in found})) == (many + 4, many + 4)
            assert sum(each.posted for each in found) == 0
            assert {each.version for each in found if each.account_id.startswith("many")} == {1}

    ask_server(look)


def test_a_client_that_has_seen_enough_leaves_nothing_behind(
    dsn: str, session: psycopg.Connection[Any], history: History, follower: Follower, ask_server: Ask
) -> None:
    """Cancelled after the totals, or anywhere: no task, no snapshot, no connection that is busy."""
    head = history.write()
    catch_up(follower)
    many_accounts(session, 10 * MESSAGE_PAGE, head)

    def states() -> list[str]:
        return sessions(dsn, "ledger-reports")

    async def look(stub: Any) -> None:
        await whole(stub)
        before = len(asyncio.all_tasks())
        calls = [start(stub) for _ in range(20)]
        for call in calls[:10]:
            assert (await call.read()).totals
        for call in calls:
            call.cancel()
        async with asyncio.timeout(ANSWERED_WITHIN_S):
            while len(asyncio.all_tasks()) > before or set(states()) != {"idle"}:
                await asyncio.sleep(0.005)
        assert 0 < len(states()) <= REPORT_CONNECTIONS_MOST
        call = start(stub)
        assert (await call.read()).totals
        await asyncio.to_thread(end_sessions, dsn, "ledger-reports")
        assert (await call.read()).accounts  # A connection that was lost in between is made again.
        call.cancel()

    ask_server(look)


# --- what can't be said ----------------------------------------------------------------------------------------------

FAR: Final = Timestamp(seconds=10**15)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"at_position": 0}, ["at_position"]),
        ({"at_position": -1, "min_position": -1}, ["min_position", "at_position"]),
        ({"recorded_at": FAR, "effective_at": FAR}, ["recorded_at", "effective_at"]),
        ({"currency_code": "eur", "effective_at": Timestamp(nanos=-1)}, ["currency_code", "effective_at"]),
        ({"currency_code": "XAU"}, ["currency_code"]),
    ],
    ids=str,
)
def test_malformed_requests_name_their_fields(
    history: History, ask_server: Ask, fields: dict[str, Any], named: list[str]
) -> None:
    """All of the fields that are wrong, by the names of the proto."""

    async def look(stub: Any) -> None:
        call = start(stub, **fields)
        with pytest.raises(grpc.aio.AioRpcError):
            await call.read()
        assert await refusal_of(call) == (StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", named)

    ask_server(look)


def test_it_waits_for_its_position_and_not_for_one_that_is_not_there(
    history: History, follower: Follower, ask_server: Ask
) -> None:
    """As every read does; a time to come means now, and one before the first event an empty ledger."""
    head = history.write()

    async def look(stub: Any) -> None:
        for fields in ({"min_position": head + 1}, {"at_position": head + 1}):
            call = start(stub, **fields)
            with pytest.raises(grpc.aio.AioRpcError):
                await call.read()
            assert await refusal_of(call) == (StatusCode.OUT_OF_RANGE, "POSITION_AHEAD_OF_HEAD", [])
        follower.start()
        for fields in ({"min_position": head}, {"recorded_at": timestamp(datetime(9999, 1, 1, tzinfo=UTC))}):
            first, accounts = await whole(stub, **fields)
            assert (first.position, first.head, len(accounts)) == (head, head, 3)
        first, accounts = await whole(stub, recorded_at=Timestamp())
        assert (first.position, first.head, accounts) == (0, head, [])

    ask_server(look)


def test_without_a_database_it_is_unavailable(history: History, ask_server: Ask) -> None:
    """With our reason."""

    async def look(stub: Any) -> None:
        call = start(stub)
        with pytest.raises(grpc.aio.AioRpcError):
            await call.read()
        assert await refusal_of(call) == (StatusCode.UNAVAILABLE, "READS_UNAVAILABLE", [])

    ask_server(look, at="host=127.0.0.1 port=1 user=ledger dbname=ledger")
