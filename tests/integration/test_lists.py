"""Lists, and reads of the past: every page, and every look back, is what the log says up to one position."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Final, LiteralString, NamedTuple

import psycopg
import pytest
from checks import rows_read
from domain import authorize, capture_and_keep, increment, leg, open_account, refund, transfer, void
from google.protobuf.timestamp_pb2 import Timestamp
from read_side import History, Table, catch_up, fold, log_until

from ledger.domain.errors import AccountNotFound, InvalidCommand, PaymentNotFound
from ledger.v1 import payment_pb2
from ledger.v1.account_pb2 import GetAccountBalanceRequest, GetAccountRequest, ListAccountsRequest, ListEntriesRequest
from ledger.v1.ledger_pb2 import SORT_ORDER_OLDEST_FIRST
from ledger.v1.payment_pb2 import GetPaymentRequest, ListPaymentsRequest
from ledger.v1.transfer_pb2 import ListTransfersRequest
from ledger.wire import timestamp
from projections import answers, balances, lists
from projections.as_of import AsOf
from projections.balances import Balance
from projections.connections import Connections, Rows
from projections.entries import Entry
from projections.errors import PositionAheadOfHead
from projections.follower import Follower
from projections.freshness import Freshness
from projections.lists import Lists
from projections.log_head import LogHead
from projections.lookups import Lookup
from projections.payments import Payment
from projections.queries import LIST_CONNECTIONS_MOST, Queries
from projections.transfers import Transfer

LONG_AGO: Final = datetime(1990, 1, 1, tzinfo=UTC)


class Kind(NamedTuple):
    """One list: its rpc, the field with its items, the table of the second opinion, and how a row of that is shown."""

    request: type[Any]
    items: str
    table: str
    place: str
    message: Callable[[dict[str, Any]], Any]

    @property
    def rpc(self) -> str:
        return self.request.DESCRIPTOR.name.removesuffix("Request")


def shown(row_class: Any, message: Callable[[Any], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda row: message(row_class(**{name: row[name] for name in row_class._fields}))


ACCOUNTS: Final = Kind(
    ListAccountsRequest, "accounts", "balances", "opened_position", shown(Balance, answers.account_message)
)
PAYMENTS: Final = Kind(
    ListPaymentsRequest, "payments", "payments", "authorized_position", shown(Payment, answers.payment_message)
)
TRANSFERS: Final = Kind(
    ListTransfersRequest, "transfers", "transfers", "position", shown(Transfer, answers.transfer_message)
)
ENTRIES: Final = Kind(ListEntriesRequest, "entries", "entries", "position", shown(Entry, answers.entry_message))
ALL: Final = (ACCOUNTS, PAYMENTS, TRANSFERS, ENTRIES)


def opinion(dsn: str, ledger: str, position: int) -> dict[str, Table]:
    """What the log adds up to at a position, by the fold of the tests; entries with the references of their causes."""
    folded = fold(log_until(dsn, ledger, position))
    references = {
        **{("payment", key): row["reference"] for key, row in folded["payments"].items()},
        **{("transfer", key): row["reference"] for key, row in folded["transfers"].items()},
    }
    for row in folded["entries"].values():
        cause = ("payment", row["payment_id"]) if row["payment_id"] else ("transfer", row["transfer_id"])
        row["reference"] = references.get(cause, "")
    return folded


def passes(kind: Kind, row: dict[str, Any], request: Any) -> bool:
    """Whether a row passes the filters of a request, as the protos say."""
    wanted = {name.name: value for name, value in request.ListFields()}
    legs = row.get("legs", [])
    for field, value in wanted.items():
        name, _, bound = field.partition("_")
        if bound in ("since", "until"):
            when = timestamp(row[f"{name}_at"])
            at, limit = (when.seconds, when.nanos), (value.seconds, value.nanos)
            ok = at >= limit if bound == "since" else at < limit
        elif field in ("kinds", "states", "statuses"):
            message = kind.message(row)
            ok = getattr(message, {"kinds": "kind", "states": "state", "statuses": "status"}[field]) in value
        elif field == "currency_code":
            ok = value in ({each["currency_code"] for each in legs} if legs else {row["currency_code"]})
        elif field == "account_id" and kind is PAYMENTS:
            ok = value in (row["payer_account_id"], row["payee_account_id"])
        elif field == "account_id" and kind is TRANSFERS:
            ok = any(value in (each["from_account_id"], each["to_account_id"]) for each in legs)
        elif field in ("order", "page_size", "page_token", "min_position", "ledger"):
            ok = True
        else:
            ok = row[field] == value
        if not ok:
            return False
    return True


def expected(kind: Kind, folded: dict[str, Table], request: Any) -> list[Any]:
    rows = [row for row in folded[kind.table].values() if passes(kind, row, request)]
    rows.sort(key=lambda row: row[kind.place], reverse=request.order != SORT_ORDER_OLDEST_FIRST)
    return [kind.message(row) for row in rows]


async def pages(
    queries: Queries, kind: Kind, request: Any, changes: Sequence[Callable[[], object]] = ()
) -> tuple[int, list[list[Any]]]:
    """All pages of a list, and the position that all of them say. Before each page but the first comes a change."""
    found, positions, to_come = [], set(), iter(changes)
    asked = kind.request()
    asked.CopyFrom(request)
    while True:
        response = await queries.by_rpc[kind.rpc](asked, 10)
        found.append(list(getattr(response, kind.items)))
        positions.add(response.position)
        if not response.next_page_token:
            break
        asked.page_token = response.next_page_token
        next(to_come, lambda: None)()
    (position,) = positions
    return position, found


def random_request(kind: Kind, random: Random, folded: dict[str, Table]) -> Any:
    """A list request with some of its filters, of values that occur."""
    request = kind.request(page_size=random.choice((0, 1, 2, 3, 7, 1_000)), order=random.choice((0, 1, 2)))
    row = random.choice(list(folded[kind.table].values()))
    message = kind.message(row)

    def sometimes(field: str, value: Any) -> None:
        if field in request.DESCRIPTOR.fields_by_name and value and random.random() < 0.3:
            target = getattr(request, field)
            if isinstance(value, datetime):
                target.CopyFrom(timestamp(value))
            elif isinstance(value, list):
                target.extend(value)
            else:
                setattr(request, field, value)

    when = row.get("opened_at") or row.get("authorized_at") or row["recorded_at"]
    for name in ("opened", "authorized", "recorded"):
        sometimes(f"{name}_since", when - timedelta(microseconds=random.choice((0, 1, 10**9))))
        sometimes(f"{name}_until", when + timedelta(microseconds=random.choice((0, 1, 10**9, 10**14))))
    sometimes("effective_since", row.get("effective_at"))
    sometimes("effective_until", row.get("effective_at"))
    sometimes("currency_code", row.get("currency_code") or row["legs"][0]["currency_code"])
    sometimes("reference", row.get("reference"))
    sometimes("payer_account_id", row.get("payer_account_id"))
    sometimes("payee_account_id", row.get("payee_account_id"))
    sometimes("kinds", [message.kind] if hasattr(message, "kind") else None)
    sometimes("statuses", [message.status] if hasattr(message, "status") else None)
    sometimes("states", [message.state, random.choice((1, 2))] if hasattr(message, "state") else None)
    if kind is ENTRIES:
        request.account_id = row["account_id"]
    elif kind is TRANSFERS:
        sometimes("account_id", row["legs"][0]["to_account_id"])
    elif kind is PAYMENTS:
        sometimes("account_id", random.choice((row["payer_account_id"], row["payee_account_id"])))
    return request


# --- every list, every filter ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.rpc)
def test_all_pages_of_a_list_are_read_at_the_position_of_the_first(
    dsn: str, ledger: str, history: History, follower: Follower, ask: Callable[..., Any], kind: Kind
) -> None:
    """Whatever is recorded between the pages, they are together what the filters let through at that position."""
    random = Random(7)
    history.live(random, 400)
    history.write()
    catch_up(follower)

    def something_happens() -> None:
        history.live(random, 20)
        history.write()
        catch_up(follower)

    async def look(queries: Queries) -> None:
        full = 0
        for _ in range(40):
            request = random_request(kind, random, opinion(dsn, ledger, history.head))
            position, found = await pages(queries, kind, request, [something_happens] * 2)
            wanted = expected(kind, opinion(dsn, ledger, position), request)
            assert [each for page in found for each in page] == wanted, request
            size = request.page_size or 100
            assert [len(page) for page in found[:-1]] == [size] * (len(found) - 1)
            full += len(found) > 2
        assert full > 3, "too few lists went over several pages"

    ask(look)


def test_what_changed_since_the_first_page_is_listed_as_it_was(
    history: History, follower: Follower, ask: Callable[..., Any]
) -> None:
    """A payment that was captured meanwhile still passes for authorized, and one that is new is not there yet."""
    for number in range(4):
        history.do(authorize(10, payment_id=f"p{number}"))
    history.do(void(payment_id="p2"))
    history.write()
    catch_up(follower)

    def change() -> None:
        for command in (capture_and_keep("c", 4, payment_id="p1"), void(payment_id="p0"), authorize(10)):
            history.do(command)
        history.write()
        catch_up(follower)

    async def look(queries: Queries, *changes: Callable[[], object]) -> list[Any]:
        request = ListPaymentsRequest(states=[payment_pb2.PAYMENT_STATE_AUTHORIZED], page_size=1)
        _, found = await pages(queries, PAYMENTS, request, changes)
        return [(each.payment_id, each.amount_captured, each.version) for page in found for each in page]

    assert ask(lambda queries: look(queries, change)) == [("p3", 0, 1), ("p1", 0, 1), ("p0", 0, 1)]
    assert ask(look) == [("p", 0, 1), ("p3", 0, 1)]


def test_a_page_of_large_items_is_cut_short_of_its_size(
    history: History, follower: Follower, ask: Callable[..., Any]
) -> None:
    """What a client with gRPC's usual limit could not receive comes in more pages, and nothing is left out."""
    for number in range(450):
        history.do(authorize(1, payment_id=f"p{number}", metadata={"text": "x" * 8_000}))
    history.write()
    catch_up(follower)

    async def look(queries: Queries) -> list[list[Any]]:
        return (await pages(queries, PAYMENTS, ListPaymentsRequest(page_size=1_000)))[1]

    found = ask(look)
    assert [each.payment_id for page in found for each in page] == [f"p{number}" for number in reversed(range(450))]
    assert len(found) == 2
    assert all(sum(each.ByteSize() for each in page) < lists.PAGE_MOST_BYTES + 16_000 for page in found)


class Counting(Connections):
    """Connections that tell how many rows Postgres has read from tables for what ran on them."""

    read = 0

    async def rows(self, statement: LiteralString, *args: Any, **settings: Any) -> Rows:
        (((explained, *_),),) = await super().rows(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", *args, **settings)
        self.read += rows_read(explained["Plan"])
        return await super().rows(statement, *args, **settings)


async def rows_read_for(dsn: str, ledger: str, request: Any) -> float:
    """How many rows Postgres has read for one page."""
    connections = Counting(dsn, ledger)
    log_head = LogHead(connections.rows)
    freshness, as_of = Freshness(connections, None, log_head), AsOf(connections, log_head)
    asked = Lists(connections, freshness, as_of, Lookup(connections, balances.SQL.select_accounts, Balance._make))
    rpcs: dict[type[Any], Any] = {
        ListAccountsRequest: asked.list_accounts,
        ListEntriesRequest: asked.list_entries,
        ListPaymentsRequest: asked.list_payments,
    }
    try:
        await rpcs[type(request)](request, 10)
    finally:
        await connections.close()
    return connections.read


@pytest.mark.parametrize(
    "request_",
    [
        ListPaymentsRequest(account_id="shop"),
        ListPaymentsRequest(account_id="shop", order=SORT_ORDER_OLDEST_FIRST),
        ListEntriesRequest(account_id="bob", reference="salary"),
        ListEntriesRequest(account_id="alice", effective_since=Timestamp(seconds=253_402_300_799)),
    ],
    ids=["account", "account, oldest first", "reference that many have", "effective since"],
)
def test_a_page_reads_no_more_than_it_needs(
    dsn: str,
    ledger: str,
    session: psycopg.Connection[Any],
    history: History,
    follower: Follower,
    request_: Any,
) -> None:
    """Not all payments of a busy account, nor all that have a reference, nor all lines that were effective before."""
    history.do(open_account("bob"))
    history.do(transfer("to-bob", leg("alice", "bob", 1)))
    for number in range(1_500):
        history.do(authorize(1, payment_id=f"p{number}", reference="salary"))
        history.do(void(payment_id=f"p{number}"))
    history.write()
    catch_up(follower)
    session.execute("ANALYZE")

    request = type(request_)(page_size=10)
    request.MergeFrom(request_)
    assert asyncio.run(rows_read_for(dsn, ledger, request)) < 200


def test_a_later_page_does_not_go_through_what_happened_since_the_first(
    dsn: str,
    ledger: str,
    session: psycopg.Connection[Any],
    history: History,
    follower: Follower,
    ask: Callable[..., Any],
) -> None:
    """However much that was on an account of it."""

    def live(name: str) -> None:
        for number in range(1_000):
            history.do(authorize(1, payment_id=f"{name}-{number}"))
            history.do(void(payment_id=f"{name}-{number}"))
        history.write()
        catch_up(follower)

    history.do(open_account("bob"))
    live("before")
    request = ListAccountsRequest(page_size=1)
    request.page_token = ask(lambda queries: queries.by_rpc["ListAccounts"](request, 10)).next_page_token
    live("since")
    session.execute("ANALYZE")
    assert asyncio.run(rows_read_for(dsn, ledger, request)) < 200


def test_lists_that_take_long_keep_nobody_from_point_reads(
    dsn: str, session: psycopg.Connection[Any], history: History, follower: Follower, ask: Callable[..., Any]
) -> None:
    """However many are asked for, as with a filter that lets little pass."""
    history.write()
    catch_up(follower)
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name LIKE 'ledger-%'"
    )

    async def look(queries: Queries) -> None:
        with session.transaction(), psycopg.connect(dsn, autocommit=True) as other:
            session.execute("LOCK TABLE payments IN ACCESS EXCLUSIVE MODE")
            lists = [asyncio.create_task(queries.by_rpc["ListPayments"](ListPaymentsRequest(), 5)) for _ in range(8)]
            async with asyncio.timeout(5):
                while other.execute(waiting).fetchall() != [(LIST_CONNECTIONS_MOST,)]:
                    await asyncio.sleep(0.005)
            response = await queries.by_rpc["GetAccount"](GetAccountRequest(account_id="alice"), 5)
            assert response.account.account_id == "alice"
            assert not any(each.done() for each in lists)
        assert [list(each.payments) for each in await asyncio.gather(*lists)] == [[]] * 8

    ask(look)


def test_an_empty_ledger_has_empty_lists(dsn: str, ledger: str, history: History, ask: Callable[..., Any]) -> None:
    """At position 0, whatever is asked for; entries are of an account, and there is none."""

    async def look(queries: Queries) -> None:
        for kind in (ACCOUNTS, PAYMENTS, TRANSFERS):
            assert await pages(queries, kind, kind.request()) == (0, [[]])
        with pytest.raises(AccountNotFound):
            await queries.by_rpc["ListEntries"](ListEntriesRequest(account_id="alice"), 5)

    ask(look)


def test_a_list_waits_for_its_position(history: History, follower: Follower, ask: Callable[..., Any]) -> None:
    """As every read does: what was written is in it, or the read says why not."""
    head = history.write()

    async def look(queries: Queries) -> None:
        with pytest.raises(PositionAheadOfHead):
            await queries.by_rpc["ListAccounts"](ListAccountsRequest(min_position=head + 1), 5)
        follower.start()
        response = await queries.by_rpc["ListAccounts"](ListAccountsRequest(min_position=head), 5)
        assert (response.position, len(response.accounts)) == (head, 3)

    ask(look)


# --- bad requests ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (ListAccountsRequest(page_size=-1), ["page_size"]),
        (ListAccountsRequest(page_size=1_001, order=9, min_position=-1), ["page_size", "order", "min_position"]),
        (ListAccountsRequest(kinds=[1, 0, 7]), ["kinds[1]", "kinds[2]"]),
        (ListAccountsRequest(statuses=[0]), ["statuses[0]"]),
        (ListAccountsRequest(currency_code="eur"), ["currency_code"]),
        (ListAccountsRequest(opened_since=Timestamp(seconds=10**15)), ["opened_since"]),
        (ListAccountsRequest(opened_until=Timestamp(nanos=-1)), ["opened_until"]),
        (
            ListPaymentsRequest(account_id="a b", payer_account_id="é", payee_account_id="-"),
            ["account_id", "payer_account_id", "payee_account_id"],
        ),
        (ListPaymentsRequest(states=[7], reference="x" * 257), ["states[0]", "reference"]),
        (ListPaymentsRequest(reference="a\0b"), ["reference"]),
        (ListTransfersRequest(account_id="a/b", states=[0]), ["account_id", "states[0]"]),
        (ListEntriesRequest(), ["account_id"]),
        (
            ListEntriesRequest(account_id="a", kinds=[13], effective_since=Timestamp(seconds=-(10**15))),
            ["kinds[0]", "effective_since"],
        ),
    ],
)
def test_malformed_lists_name_their_fields(
    history: History, ask: Callable[..., Any], request_: Any, fields: list[str]
) -> None:
    """All of the fields that are wrong, by the names of the proto."""

    async def send(queries: Queries) -> None:
        with pytest.raises(InvalidCommand) as refused:
            await queries.by_rpc[request_.DESCRIPTOR.name.removesuffix("Request")](request_, 5)
        assert sorted(each.field for each in refused.value.violations) == sorted(fields)

    ask(send)


@pytest.mark.parametrize(
    "change",
    [
        {"page_token": "x"},
        {"page_token": "!!!"},
        {"page_token": "é"},
        {"page_token": "AAAA"},
        {"page_token": "A" * 43},
        {"page_token": "A" * 10_000},
        {"order": SORT_ORDER_OLDEST_FIRST},
        {"currency_code": "EUR"},
        {"kinds": [1]},
        {"ledger": "other"},
    ],
    ids=str,
)
def test_a_bad_token_or_a_changed_filter_is_invalid(
    history: History, follower: Follower, ask: Callable[..., Any], change: dict[str, Any]
) -> None:
    """A token goes on with the list that it was given out for, and with no other."""
    history.write()
    catch_up(follower)

    async def send(queries: Queries) -> None:
        first = await queries.by_rpc["ListAccounts"](ListAccountsRequest(page_size=1), 5)
        request = ListAccountsRequest(**{"page_size": 1, "page_token": first.next_page_token, **change})
        with pytest.raises(InvalidCommand) as refused:
            await queries.by_rpc["ListAccounts"](request, 5)
        assert [each.field for each in refused.value.violations] == ["page_token"]
        again = ListAccountsRequest(page_size=2, page_token=first.next_page_token, min_position=1)
        assert len((await queries.by_rpc["ListAccounts"](again, 5)).accounts) == 2

    ask(send)


def test_any_flipped_bit_of_a_token_is_noticed(history: History, follower: Follower, ask: Callable[..., Any]) -> None:
    """Nobody lands on another page than the one that was given out."""
    history.write()
    catch_up(follower)

    async def send(queries: Queries) -> None:
        token = (await queries.by_rpc["ListAccounts"](ListAccountsRequest(page_size=1), 5)).next_page_token
        for number, letter in enumerate(token[:-1]):
            forged = token[:number] + ("A" if letter != "A" else "B") + token[number + 1 :]
            with pytest.raises(InvalidCommand):
                await queries.by_rpc["ListAccounts"](ListAccountsRequest(page_size=1, page_token=forged), 5)

    ask(send)


# --- the past --------------------------------------------------------------------------------------------------------


def balance_of(folded: dict[str, Table], account_id: str) -> Any:
    row = folded["balances"].get(account_id)
    return None if row is None else shown(Balance, answers.balance_message)(row)


async def found(queries: Queries, rpc: str, request: Any) -> Any:
    """The response, or None for what did not exist then."""
    try:
        return await queries.by_rpc[rpc](request, 10)
    except (AccountNotFound, PaymentNotFound):
        return None


def test_the_past_is_what_the_log_said_then(
    dsn: str, ledger: str, history: History, follower: Follower, ask: Callable[..., Any]
) -> None:
    """At every position and time: balances and payments as known, those that did not exist yet not found."""
    random = Random(3)
    history.live(random, 300)
    history.write()
    catch_up(follower)
    log = log_until(dsn, ledger, history.head)
    now = fold(log)

    async def look(queries: Queries) -> None:
        for row in random.sample(log, 40):
            last = max(each.position for each in log if each.recorded_at <= row.recorded_at)
            for asked, position in (
                ({"at_position": row.position}, row.position),
                ({"recorded_at": timestamp(row.recorded_at)}, last),
            ):
                folded = fold(log[:position])
                account_id = random.choice(list(now["balances"]))
                answer = await found(
                    queries, "GetAccountBalance", GetAccountBalanceRequest(account_id=account_id, **asked)
                )
                assert (answer and answer.balance) == balance_of(folded, account_id)
                assert answer is None or answer.position == position
                payment_id = random.choice(list(now["payments"]))
                answer = await found(queries, "GetPayment", GetPaymentRequest(payment_id=payment_id, **asked))
                payment = folded["payments"].get(payment_id)
                assert (answer and answer.payment) == (payment and PAYMENTS.message(payment))
                assert answer is None or answer.position == position

    ask(look)


def test_what_was_effective_as_it_was_known(history: History, follower: Follower, ask: Callable[..., Any]) -> None:
    """Two times at once: a movement counts if it was known by then, and took effect by then."""
    day = timedelta(days=1)
    start = history.now - 10 * day
    early = history.do(transfer("early", leg("bank", "alice", 7), effective_at=start + day))
    history.do(transfer("late-news", leg("bank", "alice", 50), effective_at=start))
    head = history.write()
    catch_up(follower)
    before_news = early.position

    async def posted(queries: Queries, effective_at: datetime, at: int) -> int:
        request = GetAccountBalanceRequest(account_id="alice", at_position=at, effective_at=timestamp(effective_at))
        return int((await queries.get_account_balance(request, 5)).balance.posted)

    async def look(queries: Queries) -> None:
        assert await posted(queries, start, before_news) == 0
        assert await posted(queries, start, head) == 50
        assert await posted(queries, start + day, before_news) == 7
        assert await posted(queries, start + day, head) == 57

    ask(look)


@pytest.mark.parametrize("request_class", [GetAccountBalanceRequest, GetPaymentRequest])
def test_a_past_that_can_not_be_is_refused(
    history: History, follower: Follower, ask: Callable[..., Any], request_class: Any
) -> None:
    """Positions begin at 1 and end at the head; a time to come means now, one before the first event nothing."""
    history.do(authorize(5))
    head = history.write()
    catch_up(follower)
    (id_field,) = (each for each in ("account_id", "payment_id") if each in request_class.DESCRIPTOR.fields_by_name)
    thing = {id_field: "alice" if id_field == "account_id" else "p"}
    rpc = request_class.DESCRIPTOR.name.removesuffix("Request")

    async def look(queries: Queries) -> None:
        for position in (0, -1):
            with pytest.raises(InvalidCommand) as refused:
                await queries.by_rpc[rpc](request_class(**thing, at_position=position), 5)
            assert [each.field for each in refused.value.violations] == ["at_position"]
        with pytest.raises(InvalidCommand) as refused:
            await queries.by_rpc[rpc](request_class(**thing, recorded_at=Timestamp(seconds=10**15)), 5)
        assert [each.field for each in refused.value.violations] == ["recorded_at"]
        with pytest.raises(PositionAheadOfHead):
            await queries.by_rpc[rpc](request_class(**thing, at_position=head + 1), 5)
        far = request_class(**thing, recorded_at=timestamp(history.now + timedelta(days=9_000)))
        assert (await queries.by_rpc[rpc](far, 5)).position == head
        assert await found(queries, rpc, request_class(**thing, recorded_at=timestamp(LONG_AGO))) is None

    ask(look)


def test_a_payment_with_everything_looks_the_same_from_the_table_and_from_the_log(
    history: History, follower: Follower, ask: Callable[..., Any]
) -> None:
    """The past is folded from events and the present read from a row: where they meet they are one message."""
    history.do(open_account("pocket"))
    history.do(transfer("t", leg("bank", "alice", 500)))
    history.do(authorize(100, metadata={"a": "b"}, reference="r", effective_at=history.now - timedelta(days=1)))
    history.do(increment("i", 150))
    history.do(capture_and_keep("c", 40))
    history.do(refund("r", 5))
    history.do(void(reason="enough"))
    head = history.write()
    catch_up(follower)

    async def look(queries: Queries) -> None:
        now = await queries.get_payment(GetPaymentRequest(payment_id="p"), 5)
        then = await queries.get_payment(GetPaymentRequest(payment_id="p", at_position=head), 5)
        assert now == then
        assert len(now.payment.captures) == len(now.payment.refunds) == len(now.payment.increments) == 1

    ask(look)
