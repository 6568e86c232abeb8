"""ReadEvents: every event once and in order, whatever is filtered, for as long as somebody listens, and at no cost."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Any, Final, NamedTuple

import grpc.aio
import psycopg
import pytest
from checks import Row, read_log
from domain import START, leg, open_account, transfer
from google.protobuf.duration_pb2 import Duration
from grpc import StatusCode
from read_side import History, append_row, catch_up
from streaming import ANSWERED_WITHIN_S, refusal_of, served, sessions
from test_read_models import end_sessions

from ledger.audit.log_batches import EVENTS_MOST, WINDOW_POSITIONS
from ledger.audit.read_events import CONNECTIONS_MOST, FILTERS_MOST, EventReader
from ledger.v1.account_pb2 import GetAccountRequest
from ledger.v1.audit_pb2 import Event, ReadEventsRequest, ReadEventsResponse
from ledger.v1.audit_pb2_grpc import AuditServiceStub
from ledger.wire import timestamp
from projections.follower import Follower
from projections.queries import Queries

MESSAGE_MOST: Final = 4 * 2**20
CONNECTIONS: Final = "ledger-log-reads"


class Reading(NamedTuple):
    """A server that reads a log, and a client's stub."""

    reader: EventReader
    stub: Any

    async def whole(self, **fields: Any) -> list[ReadEventsResponse]:
        """All responses of a call that ends."""
        return [each async for each in self.start(**fields)]

    def start(self, **fields: Any) -> Any:
        return self.stub.ReadEvents(ReadEventsRequest(**fields), timeout=ANSWERED_WITHIN_S)


@asynccontextmanager
async def reading(dsn: str, ledger: str) -> AsyncIterator[Reading]:
    reader = EventReader(dsn, ledger)
    reader.open()
    try:
        async with served(dsn, ledger, {"ReadEvents": reader.read_events}) as channel:
            yield Reading(reader, AuditServiceStub(channel))  # type: ignore[no-untyped-call]
    finally:  # What a test leaves behind that failed, the next one would be blamed for.
        await reader.close()


@pytest.fixture
def read(dsn: str, ledger: str) -> Callable[..., Any]:
    """Run a test's coroutine with a server and a client."""

    def run(test: Callable[[Reading], Awaitable[Any]], *, at: str = dsn) -> Any:
        async def main() -> Any:
            async with reading(at, ledger) as found:
                return await test(found)

        return asyncio.run(main())

    return run


def event_of(row: Row) -> Event:
    return Event(
        position=row.position,
        stream=row.stream,
        version=row.version,
        topic=row.topic,
        recorded_at=timestamp(row.recorded_at),
        state=row.state,
    )


def events_in(responses: Iterable[ReadEventsResponse]) -> list[Event]:
    return [event for response in responses for event in response.events]


async def rest_of(call: Any) -> list[ReadEventsResponse]:
    """What is left of a call whose first responses were read one by one."""
    responses = []
    while (response := await call.read()) is not grpc.aio.EOF:
        responses.append(response)
    return responses


async def until_true(condition: Callable[[], object]) -> None:
    """Let others work until it holds."""
    async with asyncio.timeout(ANSWERED_WITHIN_S):
        while not condition():
            await asyncio.sleep(0.005)


def fill(session: psycopg.Connection[Any], events: int, *, bytes_each: int = 1, stream: str = "account/a") -> None:
    """Add events that no one could apply, fast."""
    session.execute(
        """
        INSERT INTO events (stream, version, position, topic, state)
        SELECT %(stream)s, v.most + n, p.most + n, 'FundsReserved', convert_to(repeat('x', %(bytes)s), 'UTF8')
        FROM generate_series(1, %(events)s) AS n,
             (SELECT coalesce(max(version), 0) AS most FROM events WHERE stream = %(stream)s) AS v,
             (SELECT coalesce(max(position), 0) AS most FROM events) AS p
        """,
        {"stream": stream, "bytes": bytes_each, "events": events},
    )


# --- what is there ---------------------------------------------------------------------------------------------------


def random_filters(random: Random, log: list[Row]) -> dict[str, Any]:
    some = random.sample(log, random.choice((1, 2, 30)))
    filters: dict[str, Any] = {}
    if random.random() < 0.7:
        filters["streams"] = [row.stream for row in some] + ["payment/nobody-s"] * random.choice((0, 1))
    if random.random() < 0.5:
        filters["topics"] = [row.topic for row in some]
    if random.random() < 0.7:
        filters["from_position"] = random.randint(0, len(log) + 1)
    if random.random() < 0.5:
        filters["to_position"] = random.randint(max(1, filters.get("from_position", 0) - 1), len(log))
    return filters


def test_what_passes_the_filters_is_what_a_plain_look_through_the_log_finds(
    dsn: str, ledger: str, history: History, read: Callable[..., Any]
) -> None:
    """Any filters, any range: each event exactly as it is stored, in order, and the last position is told."""
    random = Random(11)
    history.live(random, 2_000)
    history.write()
    log = read_log(dsn, ledger)
    assert len(log) > 3 * EVENTS_MOST

    def passes(row: Row, filters: dict[str, Any]) -> bool:
        last = filters.get("to_position") or len(log)
        return (
            filters.get("from_position", 0) <= row.position <= last
            and row.stream in filters.get("streams", [row.stream])
            and row.topic in filters.get("topics", [row.topic])
        )

    async def look(reading: Reading) -> None:
        over_several = 0
        for filters in [{}, *(random_filters(random, log) for _ in range(80))]:
            responses = await reading.whole(**filters)
            assert events_in(responses) == [event_of(row) for row in log if passes(row, filters)], filters
            positions = [each.position for each in responses]
            assert positions == sorted(positions)
            assert positions[-1] == (filters.get("to_position") or len(log))
            assert {each.head for each in responses} == {len(log)}
            for each in responses:
                assert not each.events or each.events[-1].position <= each.position
            over_several += len(responses) > 2
        assert over_several > 10, "too few calls had several responses"

    read(look)


def test_reading_goes_on_where_it_stopped(history: History, read: Callable[..., Any]) -> None:
    """At the last position plus one, also when that is right after the end."""
    history.live(Random(1), 600)
    head = history.write()

    async def look(reading: Reading) -> None:
        whole = events_in(await reading.whole())
        streams = [each.stream for each in whole[:7]]
        for filters in ({}, {"streams": streams}, {"topics": ["FundsDebited", "FundsCredited"]}):
            call, found, position = reading.start(**filters), [], 0
            while position < head:
                response = await call.read()
                found += response.events
                position = response.position
                call.cancel()
                call = reading.start(from_position=position + 1, **filters)
            assert await rest_of(call) == [ReadEventsResponse(position=head, head=head)]
            assert found == events_in(await reading.whole(**filters))
        assert [each.position for each in whole] == list(range(1, head + 1))

    read(look)


def test_an_empty_log_is_read_in_one_empty_response(history: History, read: Callable[..., Any]) -> None:
    """From its beginning, which is right after its end."""

    async def look(reading: Reading) -> None:
        for filters in ({}, {"from_position": 1}, {"streams": ["account/alice"]}, {"topics": ["FundsDebited"]}):
            assert await reading.whole(**filters) == [ReadEventsResponse()]

    read(look)


def test_messages_stay_small_whatever_the_events_are(
    session: psycopg.Connection[Any], history: History, read: Callable[..., Any]
) -> None:
    """The largest that a command can cause have half a MiB: an ordinary client gets them, with all filters."""
    for number in range(20):
        fill(session, 1, bytes_each=500_000, stream=f"transfer/t{number}")
        fill(session, 40, bytes_each=1_000)
    streams = [*(f"transfer/t{number}" for number in range(20)), "account/a"]

    async def look(reading: Reading) -> None:
        for filters in ({}, {"streams": streams}, {"topics": ["FundsReserved"]}):
            responses = await reading.whole(**filters)
            assert [each.position for each in events_in(responses)] == list(range(1, 821))
            assert max(each.ByteSize() for each in responses) < MESSAGE_MOST / 2
            assert len(responses) > 5

    read(look)


def test_a_filter_that_lets_little_pass_tells_how_far_it_has_come(
    session: psycopg.Connection[Any], history: History, read: Callable[..., Any]
) -> None:
    """Responses without events, so that a call that is cut off can be resumed; what is passed by is not sent."""
    fill(session, 2 * WINDOW_POSITIONS + 10)
    fill(session, 1, stream="account/b")
    head = 2 * WINDOW_POSITIONS + 11

    async def look(reading: Reading) -> None:
        responses = await reading.whole(topics=["AccountClosed"])
        assert [each.position for each in responses] == [WINDOW_POSITIONS, 2 * WINDOW_POSITIONS, head]
        assert not events_in(responses)
        assert {each.head for each in responses} == {head}
        (only,) = await reading.whole(streams=["account/b"])  # Others' events are not looked through for it.
        assert [each.position for each in only.events] == [only.position] == [head]
        rare = await reading.whole(streams=["account/a"], topics=["AccountClosed"])
        assert not events_in(rare)
        assert rare[-1].position == head

    read(look)


# --- what is to come -------------------------------------------------------------------------------------------------


def test_a_follower_gets_what_is_there_and_then_what_comes(
    dsn: str, ledger: str, history: History, read: Callable[..., Any]
) -> None:
    """Nothing twice and nothing left out, with filters too, whoever writes."""
    random = Random(2)
    history.live(random, 300)
    history.write()
    filters: list[dict[str, Any]] = [{}, {"topics": ["FundsCredited"]}, {"streams": ["account/bank-EUR", "payment/p9"]}]

    async def look(reading: Reading) -> None:
        calls = [reading.start(follow=True, heartbeat_interval=Duration(seconds=1), **each) for each in filters]
        found: list[list[Event]] = [[] for _ in calls]
        positions = [0 for _ in calls]
        for _ in range(3):
            head = history.head
            for number, call in enumerate(calls):
                while positions[number] < head:
                    response = await call.read()
                    found[number] += response.events
                    positions[number] = response.position
            history.live(random, 20)
            await asyncio.to_thread(history.write)
        for call, each, events in zip(calls, filters, found, strict=True):
            whole = await reading.whole(to_position=head, **each)
            assert [event for event in events if event.position <= head] == events_in(whole)
            call.cancel()

    read(look)


def test_a_committer_in_the_same_process_wakes_followers(history: History, read: Callable[..., Any]) -> None:
    """It says where the log ends; a wrong word of it does no harm."""
    head = history.write()

    async def look(reading: Reading) -> None:
        call = reading.start(follow=True, from_position=head + 1)
        assert await call.read() == ReadEventsResponse(position=head, head=head)
        reading.reader.appended(head + 100)
        history.do(open_account("new"))
        await asyncio.to_thread(history.write)
        reading.reader.appended(head + 1)
        response = await call.read()
        assert [each.stream for each in response.events] == ["account/new"]
        call.cancel()

    read(look)


def test_the_first_response_comes_at_once_and_heartbeats_after_it(history: History, read: Callable[..., Any]) -> None:
    """Empty ones, with the head; also while events come that do not pass."""
    head = history.write()

    async def look(reading: Reading) -> None:
        second = Duration(seconds=1)
        quiet = reading.start(follow=True, from_position=head + 1, heartbeat_interval=second)
        picky = reading.start(
            follow=True, from_position=head + 1, topics=["AccountClosed"], heartbeat_interval=second, min_position=head
        )
        for call in (quiet, picky):
            assert await call.read() == ReadEventsResponse(position=head, head=head)
        assert await quiet.read() == ReadEventsResponse(position=head, head=head)
        history.do(open_account("new"))
        await asyncio.to_thread(history.write)
        for _ in range(2):
            response = await picky.read()
            assert not response.events
        assert (response.position, response.head) == (head + 1, head + 1)
        quiet.cancel()
        picky.cancel()

    read(look)


def test_a_follower_does_not_notice_that_connections_were_lost(
    dsn: str, history: History, read: Callable[..., Any]
) -> None:
    """An operator, or a restart of the server between two looks, ended them: they are made again."""
    history.write()

    async def look(reading: Reading) -> None:
        call = reading.start(follow=True)
        position = 0
        for number in range(5):
            history.do(open_account(f"new-{number}"))
            head = await asyncio.to_thread(history.write)
            while position < head:
                response = await call.read()
                position = response.position
            await asyncio.to_thread(end_sessions, dsn, CONNECTIONS)
        assert position == history.head
        call.cancel()

    read(look)


def test_a_log_that_has_lost_its_tail_is_not_followed(
    session: psycopg.Connection[Any], history: History, read: Callable[..., Any]
) -> None:
    """What comes now is not what would have come: whoever has read beyond the end is told so."""
    history.live(Random(3), 30)
    head = history.write()

    async def look(reading: Reading) -> None:
        often = Duration(seconds=1)
        filters: list[dict[str, Any]] = [{}, {"streams": ["account/alice"]}]
        calls = [reading.start(follow=True, heartbeat_interval=often, **each) for each in filters]
        for call in calls:
            assert (await call.read()).position == head
        session.execute("SET session_replication_role = replica; DELETE FROM events WHERE position > 5")
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError):
                await call.read()
            assert await refusal_of(call) == (StatusCode.OUT_OF_RANGE, "POSITION_AHEAD_OF_HEAD", [])

    read(look)


# --- what can't be read ----------------------------------------------------------------------------------------------

MANY: Final = ["account/a"] * (FILTERS_MOST + 1)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (
            {"from_position": -1, "to_position": -1, "min_position": -1},
            ["from_position", "to_position", "min_position"],
        ),
        ({"follow": True, "to_position": 1}, ["to_position"]),
        ({"from_position": 5, "to_position": 3}, ["to_position"]),
        ({"streams": MANY}, ["streams"]),
        ({"topics": ["FundsDebited"] * (FILTERS_MOST + 1)}, ["topics"]),
        (
            {"streams": ["account/a", "alice", "account/", "bank/a", "payment/a b", ""]},
            [f"streams[{n}]" for n in range(1, 6)],
        ),
        (
            {"topics": ["FundsDebited", "fundsdebited", ""], "streams": ["a\0"]},
            ["streams[0]", "topics[1]", "topics[2]"],
        ),
        ({"heartbeat_interval": Duration()}, ["heartbeat_interval"]),
        ({"heartbeat_interval": Duration(nanos=999_999_999)}, ["heartbeat_interval"]),
        ({"heartbeat_interval": Duration(seconds=60, nanos=1_000)}, ["heartbeat_interval"]),
        ({"heartbeat_interval": Duration(seconds=-5)}, ["heartbeat_interval"]),
    ],
    ids=str,
)
def test_malformed_requests_name_their_fields(
    history: History, read: Callable[..., Any], fields: dict[str, Any], named: list[str]
) -> None:
    """All of the fields that are wrong, by the names of the proto."""

    async def look(reading: Reading) -> None:
        call = reading.start(**fields)
        with pytest.raises(grpc.aio.AioRpcError):
            await call.read()
        assert await refusal_of(call) == (StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", named)

    read(look)


def test_positions_end_at_the_head(history: History, read: Callable[..., Any]) -> None:
    """One more may be asked to begin at; what is further is out of range, and nobody waits for it."""
    head = history.write()

    async def look(reading: Reading) -> None:
        for fields in (
            {"from_position": head + 2},
            {"from_position": head + 2, "follow": True},
            {"to_position": head + 1},
            {"min_position": head + 1},
            {"min_position": head + 1, "follow": True},
        ):
            call = reading.start(**fields)
            with pytest.raises(grpc.aio.AioRpcError):
                await call.read()
            assert await refusal_of(call) == (StatusCode.OUT_OF_RANGE, "POSITION_AHEAD_OF_HEAD", []), fields
        end = ReadEventsResponse(position=head, head=head)
        assert await reading.whole(from_position=head + 1) == [end]
        assert await reading.whole(from_position=head + 1, to_position=head) == [end]
        assert (await reading.whole(min_position=head))[-1].position == head

    read(look)


def test_without_a_database_the_stream_is_unavailable(history: History, read: Callable[..., Any]) -> None:
    """With our reason, whether it follows or not."""

    async def look(reading: Reading) -> None:
        for follow in (False, True):
            call = reading.start(follow=follow)
            with pytest.raises(grpc.aio.AioRpcError):
                await call.read()
            assert await refusal_of(call) == (StatusCode.UNAVAILABLE, "READS_UNAVAILABLE", [])

    read(look, at="host=127.0.0.1 port=1 user=ledger dbname=ledger")


# --- what it costs ---------------------------------------------------------------------------------------------------


def test_a_call_that_is_cancelled_leaves_nothing_behind(
    dsn: str, history: History, read: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """No task, no connection that is busy or in a transaction, nobody counted who has gone, no word of a failure."""
    history.live(Random(5), 2_000)
    head = history.write()

    async def look(reading: Reading) -> None:
        reader = reading.reader
        assert await reading.whole()
        before = len(asyncio.all_tasks())
        for filters in ({}, {"streams": ["account/bank-EUR"]}, {"topics": ["AccountClosed"]}):
            following = [reading.start(follow=True, from_position=head + 1, **filters) for _ in range(30)]
            unread = [reading.start(**filters) for _ in range(30)]
            hasty = [reading.start(follow=True, **filters) for _ in range(30)]
            for call in following:
                assert await call.read()
            assert reader.following >= 30
            for call in (*following, *unread, *hasty):
                call.cancel()
            short = reading.stub.ReadEvents(ReadEventsRequest(follow=True, from_position=head + 1), timeout=0.2)
            with pytest.raises(grpc.aio.AioRpcError) as late:
                [each async for each in short]
            assert late.value.code() is StatusCode.DEADLINE_EXCEEDED
            await until_true(lambda: reader.following == 0)
            await until_true(lambda: len(asyncio.all_tasks()) <= before)
        # Sessions of the tests before may take a moment to end.
        at_rest = [["idle"] * count for count in range(1, CONNECTIONS_MOST + 1)]
        with suppress(TimeoutError):
            await until_true(lambda: sessions(dsn, CONNECTIONS) in at_rest)
        assert sessions(dsn, CONNECTIONS) in at_rest

    read(look)
    assert "failed" not in "".join(capsys.readouterr())


def test_a_reader_that_is_closed_while_it_connects_leaves_no_connection(
    dsn: str, ledger: str, history: History
) -> None:
    """Not until the collector of garbage comes by, either: in a server that is seldom."""
    history.write()

    async def main() -> None:
        await until_true(lambda: not sessions(dsn, CONNECTIONS))  # Those of the tests before take a moment to end.
        for wait_s in (number * 0.000_5 for number in range(60)):
            reader = EventReader(dsn, ledger)
            reader.open()
            await asyncio.sleep(wait_s)
            await reader.close()
        await until_true(lambda: not sessions(dsn, CONNECTIONS))

    gc.collect()
    gc.disable()
    try:
        asyncio.run(main())
    finally:
        gc.enable()


def test_for_a_client_that_reads_slowly_nothing_is_made_in_advance(
    session: psycopg.Connection[Any], dsn: str, ledger: str, history: History
) -> None:
    """While another client reads the whole log, several times, the slow one's next parts are not even fetched."""
    fill(session, 3_000, bytes_each=20_000)
    made = []

    async def main() -> None:
        reader = EventReader(dsn, ledger)
        reader.open()

        async def observed(request: ReadEventsRequest, remaining_s: float | None) -> Any:
            made.append(0)
            number = len(made) - 1
            async for response in reader.read_events(request, remaining_s):
                made[number] += 1
                yield response

        async with served(dsn, ledger, {"ReadEvents": observed}) as channel:
            reading = Reading(reader, AuditServiceStub(channel))  # type: ignore[no-untyped-call]
            slow = reading.start()
            first = await slow.read()
            for _ in range(3):
                assert len(events_in(await reading.whole())) == 3_000
            assert made[0] < made[1] / 2  # some are on their way, in the buffers of the network
            assert len(events_in([first, *await rest_of(slow)])) == 3_000
        await reader.close()

    asyncio.run(main())


def test_many_followers_leave_the_connections_of_point_reads_alone(
    dsn: str, ledger: str, session: psycopg.Connection[Any], history: History, follower: Follower
) -> None:
    """While not one of them can look at the log, accounts are read as ever; then all get what came."""
    head = history.write()
    catch_up(follower)

    async def main() -> None:
        queries = Queries(dsn, ledger)
        await queries.open()
        await until_true(lambda: not sessions(dsn, CONNECTIONS))  # Those of the tests before take a moment to end.
        async with reading(dsn, ledger) as found:
            calls = [found.start(follow=True, from_position=head + 1) for _ in range(100)]
            for call in calls:
                assert (await call.read()).position == head
            history.do(transfer("more", leg("bank", "alice", 1)))
            with session.transaction():
                history.write()
                session.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
                for _ in range(20):
                    answer = await queries.get_account(GetAccountRequest(account_id="alice"), ANSWERED_WITHIN_S)
                    assert answer.account.posted == 1_000
                assert len(await asyncio.to_thread(sessions, dsn, CONNECTIONS)) <= CONNECTIONS_MOST
            for call in calls:
                assert len((await call.read()).events) == 3
                call.cancel()
        await queries.close()

    asyncio.run(main())


def test_a_server_that_drains_lets_followers_go(history: History, read: Callable[..., Any]) -> None:
    """They end with a status that says to try another; a call that ends by itself is answered to its end."""
    history.live(Random(6), 600)
    head = history.write()

    async def look(reading: Reading) -> None:
        following = [reading.start(follow=True, from_position=head + 1) for _ in range(10)]
        for call in following:
            assert await call.read()
        whole = reading.start()
        first = await whole.read()
        reading.reader.drain()
        for call in following:
            with pytest.raises(grpc.aio.AioRpcError):
                await call.read()
            assert await refusal_of(call) == (StatusCode.UNAVAILABLE, "SHUTTING_DOWN", [])
        assert len(events_in([first, *await rest_of(whole)])) == head
        await until_true(lambda: reading.reader.following == 0)

    read(look)


def test_positions_of_a_stream_are_found_from_any_position(
    dsn: str, ledger: str, session: psycopg.Connection[Any], read: Callable[..., Any]
) -> None:
    """Whatever else happened between its events: the first that is sent is the first after the position."""
    random = Random(8)
    streams = [f"account/{number}" for number in range(5)]
    versions = dict.fromkeys(streams, 0)
    for position in range(1, 301):
        stream = random.choice(streams[: 1 + position // 60])
        versions[stream] += 1
        append_row(session, stream, versions[stream], position, "FundsReserved", b"{}", START)
    log = read_log(dsn, ledger)

    async def look(reading: Reading) -> None:
        for start in range(1, 302, 7):
            for wanted in ([streams[0]], streams[3:], [*streams, "payment/none"]):
                found = events_in(await reading.whole(from_position=start, streams=wanted))
                expected = [event_of(row) for row in log if row.position >= start and row.stream in wanted]
                assert found == expected

    read(look)
