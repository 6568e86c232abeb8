"""What breaks while commands are under way: connections, the server, the committer's process.

Whatever happens: nothing acknowledged is lost, nothing is done twice, and the log stays sound.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from itertools import count
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any, Final

import psutil
import psycopg
import pytest
from checks import Row, check_log, commands_of, eventually, read_log
from domain import authorize, capture, leg, open_account, refund, transfer, void
from unreliable_network import Break, Proxy

from ledger.domain.commands import Command
from ledger.domain.events import AccountKind
from ledger.embedded import EmbeddedPostgres
from ledger.migrations import migrate
from ledger.outages import DatabaseUnavailable
from ledger.ticket import Mode

Serve = Callable[..., Any]

ROUNDS: Final = 30 if os.environ.get("LEDGER_TEST_LONG") else 4
"""How often the bigger things are killed. With LEDGER_TEST_LONG set it takes minutes."""

LONG_S: Final = 60.0

WORLD: Final = (
    open_account("bank", kind=AccountKind.EXTERNAL),
    open_account("alice"),
    open_account("shop"),
    transfer("seed", leg("bank", "alice", 100)),
)

TRY_AGAIN: Final = tuple(
    f"refused {code}" for code in ("DATABASE_UNAVAILABLE", "NOT_RECORDED", "OUTCOME_UNKNOWN", "SHUTTING_DOWN")
)


# What the client sends when it appends a payment. Loading what the payment needs sends no topic.
APPEND: Final = b"PaymentAuthorized"
COMMIT: Final = b"COMMIT"


def recorded_once(dsn: str, ledger: str, payment_id: str = "p") -> int:
    """The position of the payment's first event; 0 if it is not there. The log must be sound."""
    found = [row for row in check_log(dsn, ledger) if row.stream == f"payment/{payment_id}" and row.version == 1]
    assert len(found) <= 1
    return found[0].position if found else 0


def head(session: psycopg.Connection[Any]) -> int:
    """The last position of the log."""
    ((position,),) = session.execute("SELECT coalesce(max(position), 0) FROM events").fetchall()
    return int(position)


def end(session: psycopg.Connection[Any], *backends: int) -> None:
    """End connections at the server's side."""
    for backend in backends:
        assert session.execute("SELECT pg_terminate_backend(%s, 5000)", [backend]).fetchone() == (True,)


# --- the connection: before the append -------------------------------------------------------------------------------


def test_a_connection_that_was_ended_while_idle_is_replaced(
    dsn: str, ledger: str, serve: Serve, session: psycopg.Connection[Any]
) -> None:
    """A command that has to look something up first finds out in time, and is done on a new connection."""
    desk = serve()
    desk.do(*WORLD)
    for number in range(3):
        end(session, desk.backend)
        assert desk.answer(open_account(f"x{number}")) == "OPEN"
    check_log(dsn, ledger)


def test_an_append_on_a_connection_that_was_ended_is_not_recorded(
    dsn: str, ledger: str, serve: Serve, session: psycopg.Connection[Any]
) -> None:
    """When the append is the first to find out, the log is asked: it says no, and the same command then is done."""
    desk = serve()
    desk.do(*WORLD, authorize(10))
    before = read_log(dsn, ledger)
    end(session, desk.backend)
    # All that this needs is remembered, so nothing is looked up before it.
    words = desk.answer(capture("c"))
    assert words in ("refused NOT_RECORDED", "CAPTURED")
    if words != "CAPTURED":
        assert read_log(dsn, ledger) == before
        assert desk.answer(capture("c")) == "CAPTURED"
    check_log(dsn, ledger)


@pytest.mark.parametrize("how", [Break.UNSENT, Break.HALF_SENT])
def test_an_append_that_did_not_reach_the_server_is_not_recorded(
    dsn: str, ledger: str, serve: Serve, proxy: Proxy, how: Break
) -> None:
    """The client is told so, it is so, and the same command again is the first."""
    desk = serve(at=proxy.dsn)
    desk.do(*WORLD)
    before = read_log(dsn, ledger)
    proxy.break_at(APPEND, how)
    assert desk.answer(authorize(10)) == "refused NOT_RECORDED"
    assert proxy.broke.wait(LONG_S)
    assert read_log(dsn, ledger) == before
    assert desk.answer(authorize(10)) == "AUTHORIZED"
    assert recorded_once(dsn, ledger) == len(before) + 1


def test_a_connection_that_is_cut_while_something_is_looked_up_is_replaced(
    dsn: str, ledger: str, serve: Serve, proxy: Proxy
) -> None:
    """Nothing was sent that could have been recorded: the command is done on a new connection, once."""
    desk = serve(at=proxy.dsn)
    desk.do(*WORLD)
    for number, how in enumerate((Break.UNSENT, Break.HALF_SENT, Break.SENT, Break.UNHEARD)):
        # Whether there is such an account is looked up before it is opened.
        proxy.break_at(f"account/x{number}".encode(), how)
        assert desk.answer(open_account(f"x{number}")) == "OPEN"
        assert proxy.broke.wait(LONG_S)
    assert len(check_log(dsn, ledger)) == 6 + 4


# --- the connection: during and after the append ---------------------------------------------------------------------


def test_an_append_whose_answer_was_lost_is_found_in_the_log(dsn: str, ledger: str, serve: Serve, proxy: Proxy) -> None:
    """It was committed, and only the client's side did not hear: the client is given the recorded outcome."""
    desk = serve(at=proxy.dsn)
    desk.do(*WORLD)
    proxy.break_at(APPEND, Break.UNHEARD)
    (answer,) = desk.answers(authorize(10))
    assert proxy.broke.wait(LONG_S)
    assert answer.words == "AUTHORIZED"
    assert recorded_once(dsn, ledger) == answer.position - 1
    assert desk.answers(authorize(10)) == [answer._replace(words="replayed AUTHORIZED")]
    assert desk.answer(capture("c")) == "CAPTURED"
    check_log(dsn, ledger)


def test_an_append_that_was_sent_is_recorded_or_not(dsn: str, ledger: str, serve: Serve, proxy: Proxy) -> None:
    """Cut right after it was sent, either may have come of it; what the client is told is what is so."""
    desk = serve(at=proxy.dsn)
    desk.do(*WORLD)
    for number in range(10):
        payment_id = f"p{number}"
        proxy.break_at(APPEND, Break.SENT)
        words = desk.answer(authorize(1, payment_id=payment_id))
        assert proxy.broke.wait(LONG_S)
        assert words in ("AUTHORIZED", "refused NOT_RECORDED")
        assert bool(recorded_once(dsn, ledger, payment_id)) == (words == "AUTHORIZED")
        again = desk.answer(authorize(1, payment_id=payment_id))
        assert again == ("replayed AUTHORIZED" if words == "AUTHORIZED" else "AUTHORIZED")


BATCH: Final = (
    *(authorize(1, payment_id=f"p{number}") for number in range(20)),
    capture("c", payment_id="p0"),
    void("p1"),
    open_account("bob"),
    transfer("t", leg("alice", "bob", 1), leg("bob", "shop", 1)),
)
"""What is to be done as one: a client that was not answered sends it again."""


@pytest.mark.parametrize("how", [Break.UNSENT, Break.HALF_SENT, Break.SENT, Break.UNHEARD])
def test_an_atomic_batch_is_recorded_whole_or_not_at_all(
    dsn: str, ledger: str, serve: Serve, proxy: Proxy, how: Break
) -> None:
    """However its append ended, all of it is there or nothing; sent again it is done or, all of it, replayed."""
    desk = serve(at=proxy.dsn)
    desk.do(*WORLD)
    proxy.break_at(APPEND, how)
    first = desk.answers(*BATCH, mode=Mode.ATOMIC)
    assert proxy.broke.wait(LONG_S)
    was_done = not any(each.words == "refused NOT_RECORDED" for each in first)
    assert was_done or {each.words for each in first} == {"refused NOT_RECORDED"}
    assert len(list(commands_of(check_log(dsn, ledger)))) == len(WORLD) + len(BATCH) * was_done
    again = desk.do(*BATCH, mode=Mode.ATOMIC)
    assert {each.words.startswith("replayed") for each in again} == {was_done}
    if was_done:
        assert [each[1:] for each in again] == [each[1:] for each in first]
    assert len(list(commands_of(check_log(dsn, ledger)))) == len(WORLD) + len(BATCH)


@pytest.mark.parametrize("killed_at", ["the server's side", "the client's side"])
def test_an_append_that_waits_for_its_turn_dies_with_its_connection(
    dsn: str,
    ledger: str,
    serve: Serve,
    proxy: Proxy,
    hold_turn: Serve,
    session: psycopg.Connection[Any],
    killed_at: str,
) -> None:
    """The statement is in the server's hands and waits: after its connection it cannot be committed any more."""
    desk = serve(at=proxy.dsn)
    desk.do(*WORLD)
    before = read_log(dsn, ledger)
    turn = hold_turn()
    future = desk.submit(authorize(10))
    eventually(lambda: turn.waiting)
    waiting = set(turn.waiting)
    if killed_at == "the server's side":
        end(session, *waiting)
    else:
        proxy.cut()
    # The log is asked under the turn, when nothing of the lost session is left.
    eventually(lambda: turn.waiting and not waiting & set(turn.waiting))
    assert not future.done()
    turn.release()
    (result,) = future.result(LONG_S)
    assert getattr(result, "code", "done") == "NOT_RECORDED"
    assert read_log(dsn, ledger) == before
    assert desk.answer(authorize(10)) == "AUTHORIZED"
    assert recorded_once(dsn, ledger)


def test_finding_out_is_tried_again_when_it_is_cut_short(
    dsn: str, ledger: str, serve: Serve, proxy: Proxy, hold_turn: Serve, session: psycopg.Connection[Any]
) -> None:
    """The connection on which the log is asked is killed as well, twice: the third one brings the answer."""
    desk = serve(at=proxy.dsn)
    desk.do(*WORLD)
    proxy.break_at(APPEND, Break.SILENT)
    future = desk.submit(authorize(10))
    assert proxy.broke.wait(LONG_S)
    turn = hold_turn()
    proxy.cut()
    killed: set[int] = set()

    def asking() -> set[int]:
        return set(turn.waiting) - killed

    for _ in range(2):
        eventually(asking)
        asked = asking()
        end(session, *asked)
        killed |= asked
    eventually(asking)
    turn.release()
    (outcome,) = future.result(LONG_S)
    assert recorded_once(dsn, ledger) == outcome.position - 1


def test_others_may_append_before_the_log_is_asked(dsn: str, ledger: str, serve: Serve, new_proxy: Serve) -> None:
    """What was recorded is found under what others recorded since; what was not is not mistaken for theirs."""
    elsewhere = serve()
    elsewhere.do(*WORLD)
    for number, (how, words) in enumerate({Break.SILENT: "AUTHORIZED", Break.UNSENT: "refused NOT_RECORDED"}.items()):
        command = authorize(1, payment_id=f"p{number}")
        proxy = new_proxy()
        desk = serve(at=proxy.dsn)
        # The way to the database is barred until others have appended.
        proxy.break_at(APPEND, how, then_close=True)
        future = desk.submit(command)
        assert proxy.broke.wait(LONG_S)
        elsewhere.do(open_account(f"x{number}"), authorize(1, payment_id=f"q{number}"))
        proxy.cut()
        proxy.open()
        (result,) = future.result(LONG_S)
        assert (f"refused {result.code}" if hasattr(result, "code") else str(result.thing.state)) == words
        assert bool(recorded_once(dsn, ledger, f"p{number}")) == (words == "AUTHORIZED")
        again = desk.answer(command)
        assert again == ("replayed AUTHORIZED" if words == "AUTHORIZED" else "AUTHORIZED")
        assert recorded_once(dsn, ledger, f"p{number}")


# --- the connection: in the second try, which is a transaction -------------------------------------------------------


def fall_behind(desk: Any, elsewhere: Any) -> None:
    """Let another committer record something that `desk` does not know of."""
    elsewhere.do(*WORLD)
    for _ in range(2):  # After the first it looks at the log's head, not again for a while.
        desk.answers(*WORLD)
    elsewhere.do(open_account("x"))
    assert desk.committer.head != elsewhere.committer.head


@pytest.mark.parametrize("how", [Break.UNSENT, Break.HALF_SENT, Break.SENT, Break.UNHEARD])
@pytest.mark.parametrize("marker", [APPEND, COMMIT])
def test_a_second_try_is_told_as_it_is(
    dsn: str, ledger: str, serve: Serve, proxy: Proxy, marker: bytes, how: Break
) -> None:
    """A batch that lost a race is decided again and committed in a transaction: cut anywhere, the answer is true."""
    desk, elsewhere = serve(at=proxy.dsn), serve()
    fall_behind(desk, elsewhere)
    proxy.break_at(marker, how)
    answer, _ = desk.answers(authorize(10), open_account("y"))
    assert proxy.broke.wait(LONG_S)
    if how is Break.UNHEARD and marker is COMMIT:
        assert answer.words == "AUTHORIZED"
    elif how is Break.SENT and marker is COMMIT:
        assert answer.words in ("AUTHORIZED", "refused NOT_RECORDED")
    else:
        assert answer.words == "refused NOT_RECORDED"
    if answer.words == "AUTHORIZED":
        assert recorded_once(dsn, ledger) == answer.position - 1
    else:
        assert not recorded_once(dsn, ledger)
    again = desk.answer(authorize(10))
    assert again == ("replayed AUTHORIZED" if answer.words == "AUTHORIZED" else "AUTHORIZED")
    assert recorded_once(dsn, ledger)


def test_a_second_try_that_waits_for_its_turn_is_made_on_a_new_connection(
    dsn: str, ledger: str, serve: Serve, hold_turn: Serve, session: psycopg.Connection[Any]
) -> None:
    """Killed before it decided again: nothing was sent, and the command is done."""
    desk, elsewhere = serve(), serve()
    fall_behind(desk, elsewhere)
    turn = hold_turn()
    future = desk.submit(authorize(10), open_account("y"))
    eventually(lambda: turn.waiting)
    killed = set(turn.waiting)
    end(session, *killed)
    eventually(lambda: set(turn.waiting) - killed)
    turn.release()
    outcome, _ = future.result(LONG_S)
    assert recorded_once(dsn, ledger) == outcome.position - 1


# --- the database is away --------------------------------------------------------------------------------------------


def test_commands_are_refused_at_once_while_the_database_is_away(
    dsn: str, ledger: str, serve: Serve, proxy: Proxy
) -> None:
    """Without any command it is noticed; each is refused while it is still away; after it is back all goes on."""
    desk = serve(at=proxy.dsn)
    desk.do(*WORLD)
    before = read_log(dsn, ledger)
    proxy.close()
    eventually(lambda: isinstance(desk.committer.outage, DatabaseUnavailable))
    for number in range(20):
        with pytest.raises(DatabaseUnavailable):
            desk.submit(authorize(1, payment_id=f"p{number}"))
    assert read_log(dsn, ledger) == before
    proxy.open()
    eventually(lambda: desk.committer.outage is None)
    assert desk.answer(authorize(1)) == "AUTHORIZED"
    assert len(check_log(dsn, ledger)) == len(before) + 2


def test_the_command_that_finds_the_database_away_is_answered(
    dsn: str, ledger: str, serve: Serve, proxy: Proxy
) -> None:
    """It was not sent: it is refused, with all that waited with it, before the database is back."""
    desk = serve(at=proxy.dsn)
    desk.do(*WORLD)
    proxy.close()
    words = {each.words for each in desk.answers(authorize(1), open_account("x"), mode=Mode.ATOMIC)}
    assert words == {"refused DATABASE_UNAVAILABLE"}
    with pytest.raises(DatabaseUnavailable):
        desk.submit(authorize(1))
    assert not recorded_once(dsn, ledger)


def test_an_outcome_stays_unknown_while_the_database_is_away(
    dsn: str, ledger: str, serve: Serve, new_proxy: Serve, new_ledger: Callable[[], str], hold_turn: Serve
) -> None:
    """The client is told so; meanwhile others are refused at once; after it is back the same id gives the truth.

    Twice at once, as it takes a while: in one ledger the append that waited for its turn is committed when nobody
    looks, in the other it is not.
    """
    ledgers = {"committed": ledger, "killed": new_ledger()}
    desks, proxies, turns, unknown, waiting = {}, {}, {}, {}, {}
    for what, name in ledgers.items():
        proxies[what] = new_proxy()
        desks[what] = serve(at=proxies[what].dsn, name=name)
        desks[what].do(*WORLD)
        turns[what] = hold_turn(name)
        unknown[what] = desks[what].submit(authorize(10))
        eventually(lambda turn=turns[what]: turn.waiting)
        waiting[what] = desks[what].submit(open_account("x"))
    for what, proxy in proxies.items():
        proxy.close()
        eventually(lambda desk=desks[what]: isinstance(desk.committer.outage, DatabaseUnavailable))
    for what, desk in desks.items():
        with pytest.raises(DatabaseUnavailable):
            desk.submit(open_account("y"))
        assert not unknown[what].done(), "it was refused while the outcome was being found out"
    with psycopg.connect(dsn, autocommit=True) as session:
        end(session, *turns["killed"].waiting)
    for what, turn in turns.items():
        turn.release()
        (result,) = unknown[what].result(LONG_S)
        assert getattr(result, "code", "done") == "OUTCOME_UNKNOWN"
        (result,) = waiting[what].result(LONG_S)
        assert getattr(result, "code", "done") == "DATABASE_UNAVAILABLE"
    for what, proxy in proxies.items():
        assert len(read_log(dsn, ledgers[what])) == (8 if what == "committed" else 6)
        proxy.open()
        eventually(lambda desk=desks[what]: desk.committer.outage is None)
        assert desks[what].answer(authorize(10)) == ("replayed AUTHORIZED" if what == "committed" else "AUTHORIZED")
        assert recorded_once(dsn, ledgers[what]) == 7
        assert desks[what].answer(open_account("x")) == "OPEN"


def test_a_committer_that_stops_while_the_database_is_away_answers_all(serve: Serve, proxy: Proxy) -> None:
    """It ends, and whoever waits is told."""
    desk = serve(at=proxy.dsn)
    desk.do(*WORLD)
    proxy.close()
    with suppress(DatabaseUnavailable):
        futures = [desk.submit(open_account(f"x{number}")) for number in range(10)]
        desk.committer.stop()
        codes = {future.result(LONG_S)[0].code for future in futures}
        assert codes <= {"DATABASE_UNAVAILABLE", "SHUTTING_DOWN"}


# --- under load ------------------------------------------------------------------------------------------------------


def key_of(command: Command) -> tuple[str, ...]:
    """What a command creates, by its ids."""
    ids = command.model_dump(include={"account_id", "payment_id", "capture_id", "refund_id", "transfer_id"})
    return type(command).__name__, *ids.values()


CREATED_BY: Final = {
    "AccountOpened": ("OpenAccount", "account_id"),
    "PaymentAuthorized": ("AuthorizePayment", "payment_id"),
    "PaymentDeclined": ("AuthorizePayment", "payment_id"),
    "PaymentCaptured": ("CapturePayment", "payment_id", "capture_id"),
    "PaymentRefunded": ("RefundPayment", "payment_id", "refund_id"),
    "PaymentVoided": ("VoidPayment", "payment_id"),
    "TransferPosted": ("PostTransfer", "transfer_id"),
    "TransferDeclined": ("PostTransfer", "transfer_id"),
}


def created(log: list[Row]) -> dict[tuple[str, ...], Row]:
    """What the commands of a log have created, each with the command's last event."""
    found: dict[tuple[str, ...], Row] = {}
    for events in commands_of(log):
        first = events[0]
        name, *id_fields = CREATED_BY[first.topic]
        ids = {"payment_id": first.stream.removeprefix("payment/"), **first.fields}
        key = (name, *(ids[each] for each in id_fields))
        assert key not in found, f"done twice: {key}"
        found[key] = events[-1]
    return found


class Clients:
    """Threads that send commands and send each again until they know what came of it."""

    def __init__(self, number: int, ask: Callable[[Command], Any]) -> None:
        self.told: dict[tuple[str, ...], Any] = {}
        self._ask, self._stopped = ask, Event()
        self._threads = ThreadPoolExecutor(number)
        self._running = [self._threads.submit(self._run, name) for name in range(number)]

    def wait_for(self, more: int) -> None:
        """Wait until so many more commands have been answered."""
        enough = len(self.told) + more
        eventually(lambda: len(self.told) >= enough or self._failed(), within_s=LONG_S)

    def stop(self) -> None:
        self._stopped.set()
        for each in self._running:
            each.result(LONG_S)
        self._threads.shutdown()

    def _failed(self) -> bool:
        return any(each.done() for each in self._running)

    def _run(self, name: int) -> None:
        chance = random.Random(name)
        for number in count():
            payment_id = f"{name}-{number}"
            one, other = chance.sample(["alice", "bob", "carol"], 2)
            for command in (
                transfer(payment_id, leg("bank", one, 5), leg(one, other, chance.randint(1, 9))),
                authorize(chance.randint(1, 9), payment_id=payment_id, payer=one, payee=other),
                capture("c", chance.randint(1, 4), payment_id=payment_id, keep_remainder=True),
                refund("r", 1, payment_id=payment_id),
                void(payment_id),
            ):
                while (answer := self._ask(command)).words in TRY_AGAIN:
                    if self._stopped.wait(0.005):
                        return
                self.told[key_of(command)] = answer
                if self._stopped.is_set():
                    return

    def check(self, dsn: str, ledger: str) -> None:
        """All that the clients were told is in the log, as they were told, and nothing else that they know of."""
        found = created(check_log(dsn, ledger))
        told = dict(self.told)
        refused = {key for key, answer in told.items() if answer.words.startswith("refused")}
        assert not refused & found.keys()
        for key in told.keys() - refused:
            answer, last = told[key], found[key]
            assert (last.position, last.recorded_at) == answer[1:], (key, answer)
        words = {answer.words for answer in told.values()}
        assert {"POSTED", "AUTHORIZED", "PARTIALLY_CAPTURED"} <= words, words


def prepare(desk: Any) -> None:
    accounts = [open_account(each) for each in ("alice", "bob", "carol")]
    desk.answers(open_account("bank", kind=AccountKind.EXTERNAL), *accounts, mode=Mode.ATOMIC)


def test_connections_are_killed_under_load(
    dsn: str, ledger: str, serve: Serve, session: psycopg.Connection[Any]
) -> None:
    """Two committers race while their connections are ended again and again: every answer is true."""
    desks = [serve(), serve()]
    prepare(desks[0])
    turns = count()
    clients = Clients(6, lambda command: desks[next(turns) % 2].answers(command)[0])
    chance = random.Random(1)
    for _ in range(10 * ROUNDS):
        clients.wait_for(chance.randint(1, 20))
        desk = chance.choice(desks)
        with suppress(AssertionError):  # It may be between two connections.
            session.execute("SELECT pg_terminate_backend(%s)", [desk.backend])
    clients.wait_for(20)
    clients.stop()
    clients.check(dsn, ledger)


def test_the_network_breaks_under_load(dsn: str, ledger: str, serve: Serve, new_proxy: Serve) -> None:
    """Two committers race over a network that breaks in every way, at every kind of message: every answer is true."""
    proxies = [new_proxy(), new_proxy()]
    desks = [serve(at=proxy.dsn) for proxy in proxies]
    prepare(desks[0])
    turns = count()
    clients = Clients(6, lambda command: desks[next(turns) % 2].answers(command)[0])
    chance = random.Random(2)
    for _ in range(10 * ROUNDS):
        clients.wait_for(chance.randint(1, 20))
        proxy = chance.choice(proxies)
        how = chance.choice([Break.UNSENT, Break.HALF_SENT, Break.SENT, Break.UNHEARD])
        proxy.break_at(chance.choice([APPEND, COMMIT, b"Captured", b"FundsCredited", b"payment/"]), how)
        clients.wait_for(1)
    clients.wait_for(20)
    clients.stop()
    clients.check(dsn, ledger)


class OwnServer:
    """A server of these tests' own, to be killed and to be set otherwise."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._postgres = EmbeddedPostgres(folder)
        self.start()

    @property
    def dsn(self) -> str:
        return self._postgres.dsn

    def start(self) -> None:
        self._postgres.start()

    def kill(self) -> None:
        postmaster = (self._folder / "postgres" / "postmaster.pid").read_text().splitlines()[0]
        os.kill(int(postmaster), signal.SIGKILL)
        eventually(lambda: not self._postgres.running)

    def stop(self) -> None:
        self._postgres.stop()


@pytest.fixture(scope="module")
def one_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnServer]:
    with ExitStack() as at_the_end:
        server = OwnServer(tmp_path_factory.mktemp("own"))
        at_the_end.callback(server.stop)
        yield server


@pytest.fixture
def own_server(one_server: OwnServer) -> OwnServer:
    one_server.start()
    return one_server


@pytest.fixture
def own_ledger(own_server: OwnServer) -> str:
    """A fresh ledger on the tests' own server."""
    name = f"test_{secrets.token_hex(6)}"
    migrate(own_server.dsn, name)
    return name


@pytest.fixture
def own_session(own_server: OwnServer, own_ledger: str) -> Iterator[psycopg.Connection[Any]]:
    options = f"-c search_path=ledger_{own_ledger} -c default_transaction_read_only=off"
    with psycopg.connect(own_server.dsn, autocommit=True, options=options) as connection:
        yield connection


@pytest.mark.parametrize("victim", ["the server", "a process of it"])
def test_postgres_is_killed_under_load(own_server: OwnServer, own_ledger: str, serve: Serve, victim: str) -> None:
    """After kill -9 and a restart all that was acknowledged is there once, and the committer goes on by itself."""
    desk = serve(at=own_server.dsn, name=own_ledger)
    prepare(desk)
    clients = Clients(4, lambda command: desk.answers(command)[0])
    chance = random.Random(3)
    for number in range(ROUNDS):
        clients.wait_for(chance.randint(20, 60))
        if victim == "the server":
            own_server.kill()
            eventually(lambda: desk.committer.outage is not None)
            assert desk.answer(open_account(f"x{number}")) == "refused DATABASE_UNAVAILABLE"
            own_server.start()
        else:  # All its others end with it, and it starts anew by itself.
            eventually(lambda: desk.committer.outage is None)
            os.kill(desk.backend, signal.SIGKILL)
    clients.wait_for(20)
    clients.stop()
    eventually(lambda: desk.committer.outage is None)
    clients.check(own_server.dsn, own_ledger)


def test_the_committers_process_is_killed_under_load(dsn: str, ledger: str, serve_in_process: Serve) -> None:
    """After kill -9 another process goes on, clients send again what was not answered, and all is there once."""
    desks = [serve_in_process()]
    prepare(desks[0])

    def ask(command: Command) -> Any:
        try:
            return desks[-1].answers(command)[0]
        except desks[0].Ended:
            return SimpleNamespace(words="refused OUTCOME_UNKNOWN")

    clients = Clients(6, ask)
    chance = random.Random(4)
    for _ in range(ROUNDS):
        clients.wait_for(chance.randint(20, 80))
        successor = serve_in_process() if chance.random() < 0.5 else None
        desks[-1].kill()
        desks.append(successor or serve_in_process())
    clients.wait_for(20)
    clients.stop()
    clients.check(dsn, ledger)


def test_a_process_is_killed_in_the_middle_of_a_large_batch(
    dsn: str, ledger: str, serve: Serve, serve_in_process: Serve, session: psycopg.Connection[Any]
) -> None:
    """kill -9 while one part is recorded and the next decided: sent again to another, each command is done once."""
    elsewhere = serve()
    prepare(elsewhere)
    elsewhere.do(transfer("seed", leg("bank", "alice", 10**6)))
    chance, cut = random.Random(5), 0
    for number in range(ROUNDS):
        desk, before = serve_in_process(), head(session)
        batch = [
            each
            for name in (f"p{number}-{each}" for each in range(1_500))
            for each in (authorize(2, payment_id=name, payee="bob"), capture("c", 1, payment_id=name))
        ]
        desk.submit(*batch)
        enough = before + chance.randint(1, 6_000)
        eventually(lambda enough=enough: head(session) > enough)
        desk.kill()
        again = elsewhere.submit(*batch).result(LONG_S)
        last = {events[-1].position: events[-1] for events in commands_of(check_log(dsn, ledger))}
        assert len({each.position for each in again}) == len(batch)
        assert all(last[each.position].recorded_at == each.recorded_at for each in again)
        # What was done before is the beginning of the batch, and at least its first part.
        done_before = [each.replayed for each in again]
        assert done_before == sorted(done_before, reverse=True)
        assert done_before[0]
        cut += not done_before[-1]
        assert head(session) == before + 6 * 1_500
    assert cut, "each of the batches was through when its process was killed"


def test_a_process_that_is_killed_in_its_turn_leaves_the_turn_to_others(
    dsn: str, ledger: str, serve: Serve, serve_in_process: Serve, hold_turn: Serve
) -> None:
    """Its statement waits in the server when it is killed; whatever comes of it, the next committer goes on."""
    elsewhere, desk = serve(), serve_in_process()
    elsewhere.do(*WORLD)
    turn = hold_turn()
    future = desk.submit(authorize(10))
    eventually(lambda: turn.waiting)
    desk.kill()
    assert isinstance(future.exception(LONG_S), desk.Ended)
    retried = elsewhere.submit(authorize(10))
    turn.release()
    (outcome,) = retried.result(LONG_S)
    assert str(outcome.thing.state) == "AUTHORIZED"
    eventually(lambda: not turn.waiting)
    assert recorded_once(dsn, ledger) == outcome.position - 1


def test_an_atomic_batch_whose_answer_was_lost_in_a_crash_is_done_once(
    dsn: str, ledger: str, serve: Serve, serve_in_process: Serve, hold_turn: Serve
) -> None:
    """kill -9 while Postgres has all of it in hand: sent again to another process it is done, or replayed whole."""
    elsewhere, desk = serve(), serve_in_process()
    elsewhere.do(*WORLD)
    turn = hold_turn()
    future = desk.submit(*BATCH, mode=Mode.ATOMIC)
    eventually(lambda: turn.waiting)
    desk.kill()
    assert isinstance(future.exception(LONG_S), desk.Ended)
    turn.release()
    again = elsewhere.do(*BATCH, mode=Mode.ATOMIC)
    assert len({each.words.startswith("replayed") for each in again}) == 1
    eventually(lambda: not turn.waiting)
    assert len(list(commands_of(check_log(dsn, ledger)))) == len(WORLD) + len(BATCH)


# --- what only a server of one's own can be put through --------------------------------------------------------------


def test_a_server_process_that_froze_with_the_append_in_hand_records_nothing_later(
    own_server: OwnServer, own_ledger: str, own_session: psycopg.Connection[Any], serve: Serve
) -> None:
    """It was sent to a stopped process and the client's side cut: what was told stays true when the process goes on."""
    idle = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND state = 'idle' AND wait_event = 'ClientRead'"
    with closing(Proxy(own_server.dsn)) as proxy:
        desk = serve(at=proxy.dsn, name=own_ledger)
        desk.do(*WORLD, authorize(10))
        before = read_log(own_server.dsn, own_ledger)
        frozen = desk.backend
        # Not while it holds what all others need.
        eventually(lambda: own_session.execute(idle, [frozen]).fetchone())
        os.kill(frozen, signal.SIGSTOP)
        try:
            proxy.break_at(b"PaymentCaptured", Break.SENT)
            words = desk.answer(capture("c"))
            assert proxy.broke.wait(LONG_S)
        finally:
            os.kill(frozen, signal.SIGCONT)
        assert words in ("refused NOT_RECORDED", "refused OUTCOME_UNKNOWN")
        eventually(lambda: not psutil.pid_exists(frozen))
        assert words == "refused OUTCOME_UNKNOWN" or read_log(own_server.dsn, own_ledger) == before
        eventually(lambda: desk.committer.outage is None)
        assert desk.answer(capture("c")).endswith("CAPTURED")
        check_log(own_server.dsn, own_ledger)


def test_an_append_that_no_standby_has_is_not_acknowledged(
    own_server: OwnServer, own_ledger: str, own_session: psycopg.Connection[Any], serve: Serve
) -> None:
    """Its wait was cancelled: the outcome is unknown, and a retry is not told that it is recorded until it is."""
    desk = serve(at=own_server.dsn, name=own_ledger)
    desk.do(*WORLD)
    waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    own_session.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    own_session.execute("SELECT pg_reload_conf()")
    try:
        for number in count():  # The setting takes a moment to be in force.
            command = authorize(1, payment_id=f"p{number}")
            future = desk.submit(command)
            eventually(lambda future=future: future.done() or own_session.execute(waiting).fetchall())
            if not future.done():
                break
        own_session.execute(f"SELECT pg_cancel_backend(pid) FROM ({waiting}) AS waiting")
        (result,) = future.result(LONG_S)
        assert getattr(result, "code", "done") == "OUTCOME_UNKNOWN"
        eventually(lambda: desk.committer.outage is None or own_session.execute(waiting).fetchall())
        with suppress(DatabaseUnavailable):
            retry = desk.submit(command)
            eventually(lambda: retry.done() or own_session.execute(waiting).fetchall())
            assert not retry.done() or hasattr(retry.result()[0], "code"), "acknowledged, and on one machine only"
    finally:
        own_session.execute("ALTER SYSTEM RESET synchronous_standby_names")
        own_session.execute("SELECT pg_reload_conf()")
    eventually(lambda: desk.answer(command) == "replayed AUTHORIZED")
    check_log(own_server.dsn, own_ledger)


def test_a_committer_does_not_stay_on_a_server_that_only_reads(
    own_server: OwnServer, own_ledger: str, own_session: psycopg.Connection[Any], serve: Serve
) -> None:
    """While the server refuses to write nothing is recorded; when new connections may write again, it finds one."""
    desk = serve(at=own_server.dsn, name=own_ledger)
    desk.do(*WORLD)
    before = read_log(own_server.dsn, own_ledger)
    own_session.execute("ALTER DATABASE ledger SET default_transaction_read_only = on")
    end(own_session, desk.backend)
    assert desk.answer(authorize(10)) in TRY_AGAIN
    assert read_log(own_server.dsn, own_ledger) == before
    own_session.execute("ALTER DATABASE ledger RESET default_transaction_read_only")
    eventually(lambda: desk.answer(authorize(10)) == "AUTHORIZED", within_s=5)
    check_log(own_server.dsn, own_ledger)
