"""Verifying: a sound ledger is found sound, and whatever is done to one behind its back is found and named."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple

import psycopg
import pytest
from checks import Row, read_log
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from domain import authorize, capture, expire, freeze, leg, open_account, refund, transfer, unfreeze
from psycopg import sql
from psycopg.conninfo import make_conninfo
from read_side import History, catch_up
from tampering import ORIGIN, TAMPERINGS, Case, capture_past_the_rules

from ledger.audit import signer as signing
from ledger.audit.findings import Kind
from ledger.audit.keys import KeyFiles
from ledger.audit.note import Note, PublicKey, SigningKey, TreeHead
from ledger.audit.note import sign as signed
from ledger.audit.report import Report
from ledger.audit.restore import accept_restore
from ledger.audit.signer import Signer
from ledger.audit.verify import verify
from ledger.cli import prepare
from ledger.domain.aggregate import Stamp
from ledger.domain.book import Book
from ledger.domain.events import AccountKind
from ledger.postgres import Role, connect
from ledger.reader_roles import reader_dsn
from ledger.ticket import Mode
from projections import rebuild
from projections.follower import Follower
from projections.read_models import create_tables
from projections.rebuild import Rebuild, RebuildImpossible

CASES: Final = int(os.environ.get("LEDGER_TEST_TAMPERINGS", "60"))
"""How many tamperings are tried; `make test-tamper` tries more."""

COMMANDS: Final = 500


class Sound(NamedTuple):
    """A sound ledger `main` in a database of its own, and what an auditor has who looked at it."""

    dsn: str
    database: str
    key: PublicKey
    kept: tuple[str, str]
    log: list[Row]

    def verify(self, dsn: str | None = None, **more: Any) -> Report:
        """As the auditor does it."""
        return verify(dsn or self.dsn, "main", **{"key": self.key, "kept": [self.kept], **more})


@pytest.fixture(scope="session")
def sound(dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sound]:
    """A ledger with a long history of all kinds of commands, signed now and then, its read models up to date."""
    files = KeyFiles(tmp_path_factory.mktemp("key") / "tree.key", ORIGIN)
    key = files.make().public
    with new_database(dsn) as database:
        at = make_conninfo(dsn, dbname=database)
        prepare(at, "main")
        history, random = History(at, "main", alice=1_000, shop=0), Random(1)
        for stretch in range(10):
            history.live(random, COMMANDS // 10 + stretch)
            history.write()
            sign(at, files)
        follow(at)
        yield Sound(at, database, key, ("the kept head", newest_note(at)), read_log(at, "main"))


@contextmanager
def new_database(dsn: str, template: str = "template1") -> Iterator[str]:
    """A database that is a copy of another."""
    name, original = f"audit_{secrets.token_hex(6)}", sql.Identifier(template)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), original))
        try:
            yield name
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def sign(dsn: str, files: KeyFiles, ledger: str = "main") -> None:
    signer = Signer(dsn, ledger, files)
    signer.catch_up()
    signer.stop()


def follow(dsn: str, ledger: str = "main") -> None:
    follower = Follower(dsn, ledger)
    catch_up(follower)
    follower.stop()


def newest_note(dsn: str, ledger: str = "main") -> str:
    with connect(dsn, ledger, "test") as connection:
        (note,) = connection.execute("SELECT note FROM tree_heads ORDER BY number DESC LIMIT 1").fetchone() or ("",)
    return str(note)


def lines(report: Report) -> str:
    return "\n".join(each.line for each in report.findings)


@contextmanager
def tampered(sound: Sound, dsn: str, act: Callable[[Case], Any], seed: int = 0) -> Iterator[tuple[str, Any]]:
    """A copy of the sound ledger to which something was done; and what that came to."""
    with new_database(dsn, sound.database) as database:
        at = make_conninfo(dsn, dbname=database)
        with psycopg.connect(at, autocommit=True, options="-c search_path=ledger_main") as db:
            done = act(Case(db, sound.log, Random(seed)))
        yield at, done


# --- what is sound ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [{}, {"beside_from": 1}, {"memory_most": 3}], ids=["alone", "beside", "forgetful"])
def test_a_sound_ledger_is_found_sound(sound: Sound, way: dict[str, Any]) -> None:
    """All kinds of commands, heads, read models; in one process or two, and when next to nothing can be remembered."""
    report = sound.verify(**way)
    assert report.is_sound, lines(report)
    streams = {row.stream for row in sound.log}
    for kind, count in report.streams.items():
        assert count == sum(each.startswith(f"{kind}/") for each in streams)
    assert (report.events, report.compared_at, report.heads, report.kept) == (len(sound.log), len(sound.log), 10, 1)
    assert report.largest is not None
    assert report.largest.size == len(sound.log)
    assert len({row.topic for row in sound.log}) == 18


def test_what_a_committer_has_recorded_is_sound(dsn: str, ledger: str, serve: Callable[..., Any]) -> None:
    """Batches that hold together or don't, retries, refusals, dry runs, and a sweep by another actor."""
    with connect(dsn, ledger, "test") as connection:
        create_tables(connection)
    desk = serve()
    desk.do(open_account("bank", kind=AccountKind.EXTERNAL), open_account("alice", limit=50), open_account("shop"))
    desk.do(transfer("t", leg("bank", "alice", 100), leg("alice", "shop", 10)))
    random = Random(2)
    for number in range(60):
        mode = random.choice(list(Mode))
        commands = [
            authorize(random.choice((1, 40)), payment_id=f"p{number}", hold_for=timedelta(microseconds=number + 1)),
            capture(f"c{number}", payment_id=f"p{number - 1}"),
            refund(f"r{number}", 1, payment_id=f"p{random.randrange(number + 1)}"),
            transfer(f"t{number}", leg("bank", "alice", 5), leg("alice", "shop", random.choice((1, 1_000)))),
            random.choice((freeze, unfreeze))("shop"),
        ]
        random.shuffle(commands)
        desk.answers(*commands, mode=mode, validate_only=random.random() < 0.2)
    desk.answers(*(expire(f"p{number}") for number in range(60)), actor="sweeper")
    follow(dsn, ledger)
    report = verify(dsn, ledger)
    assert report.is_sound, lines(report)
    assert report.events > 100


def test_a_card_number_from_before_the_rule_is_no_finding(dsn: str, ledger: str, serve: Callable[..., Any]) -> None:
    """Servers refuse it at the border. What is in the log was decided without that, and is decided again alike."""
    with connect(dsn, ledger, "test") as connection:
        create_tables(connection)
    visa = "4111111111111111"
    desk = serve()
    desk.do(open_account(visa, metadata={"card": visa}), open_account("shop", limit=5))
    desk.do(authorize(1, payer="shop", payee=visa, payment_id=visa, reference=visa), capture("c", payment_id=visa))
    follow(dsn, ledger)
    report = verify(dsn, ledger)
    assert report.is_sound, lines(report)
    assert report.events == 7


def test_an_empty_ledger_is_sound(dsn: str, ledger: str) -> None:
    """There is nothing in it to be wrong."""
    with connect(dsn, ledger, "test") as connection:
        create_tables(connection)
    report = verify(dsn, ledger, beside_from=0)
    assert (report.is_sound, report.events, report.compared_at) == (True, 0, 0)


def test_an_auditor_needs_no_more_than_to_read(sound: Sound, tmp_path: Path) -> None:
    """The role that `ledger dsn --role auditor` makes, in two processes; and nothing is left behind by them."""
    auditor = reader_dsn(sound.dsn, tmp_path, Role.AUDITOR)
    report = sound.verify(auditor, beside_from=1)
    assert report.is_sound, lines(report)
    with psycopg.connect(auditor) as connection:
        assert connection.execute("SHOW transaction_read_only").fetchone() == ("on",)


def test_all_is_of_one_moment(dsn: str, ledger: str, history: History) -> None:
    """What is recorded while it reads is for the next time, whichever process reads it."""
    history.live(Random(4), 100)
    before = history.write()
    follow(dsn, ledger)

    def go_on(*_: object) -> None:
        if history.head == before:
            history.live(Random(5), 50)
            history.write()
            follow(dsn, ledger)

    report = verify(dsn, ledger, beside_from=1, progress=go_on)
    assert report.is_sound, lines(report)
    assert (report.events, report.compared_at) == (before, before)
    assert history.head > before


def test_a_rebuild_does_not_take_the_tables_away_meanwhile(
    dsn: str, ledger: str, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tables are newer than what is seen here, where they would be empty: it waits for the end, or gives up."""
    monkeypatch.setattr(rebuild, "_SWAP_TRIES", 1)
    history.live(Random(8), 60)
    history.write()
    follow(dsn, ledger)
    given_up = []

    def rebuild_once(*_: object) -> None:
        if not given_up:
            with Rebuild(dsn, ledger) as building:
                with pytest.raises(RebuildImpossible) as caught:
                    building.swap()
                given_up.append(caught)

    report = verify(dsn, ledger, progress=rebuild_once)
    assert report.is_sound, lines(report)
    assert len(given_up) == 1
    with Rebuild(dsn, ledger) as building:
        building.swap()
    assert verify(dsn, ledger).is_sound


@pytest.mark.parametrize("beside_from", [0, 1])
def test_a_ledger_without_read_models_can_be_verified(dsn: str, ledger: str, beside_from: int) -> None:
    """They are made when it is first served."""
    assert verify(dsn, ledger, read_models=False, beside_from=beside_from).is_sound


def test_read_models_that_are_behind_are_compared_where_they_are(dsn: str, ledger: str, history: History) -> None:
    """Or not at all, if nobody asks for that."""
    history.live(Random(6), 60)
    behind = history.write()
    follow(dsn, ledger)
    history.live(Random(7), 60)
    history.write()
    report = verify(dsn, ledger)
    assert report.is_sound, lines(report)
    assert report.compared_at == behind
    with connect(dsn, ledger, "test") as connection:
        connection.execute("UPDATE balances SET posted = 1 WHERE kind = 'EXTERNAL'")
        connection.execute("UPDATE checkpoints SET failure = 'position 7: something'")
    assert verify(dsn, ledger, read_models=False).is_sound
    report = verify(dsn, ledger)
    assert {each.kind for each in report.findings} == {Kind.READ_MODEL}
    assert report.stopped == "position 7: something"


# --- keys and breaks -------------------------------------------------------------------------------------------------


def test_a_head_of_another_ledger_is_none_of_this_one(dsn: str, ledger: str, history: History, tmp_path: Path) -> None:
    """Where both have one key: then the whole history of one, with its heads, could take the place of the other's."""
    files = KeyFiles(tmp_path / "tree.key", "ledger/another")
    key = SigningKey(ORIGIN, files.make().private)
    history.live(Random(1), 10)
    history.write()
    sign(dsn, files, ledger)
    note = newest_note(dsn, ledger)
    renamed = signed(Note.parse(note).text, [key])
    assert Note.parse(renamed).signatures[0].signature == Note.parse(note).signatures[0].signature
    with connect(dsn, ledger, "test") as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("UPDATE tree_heads SET note = %s", (renamed,))
        connection.execute("UPDATE tree_keys SET public_key = %s", (str(key.public),))
    follow(dsn, ledger)
    for kept, place in (([], "head 1"), ([("mine", renamed)], "mine")):  # One finding for each position.
        report = verify(dsn, ledger, key=key.public, kept=kept)
        assert [(each.kind, each.place) for each in report.findings] == [(Kind.SIGNATURE, place)], lines(report)


def test_a_history_without_heads_is_not_one_of_the_key(sound: Sound, dsn: str) -> None:
    """Who has all rights on the database writes another, and removes all that was signed of it."""

    def act(case: Case) -> None:
        TAMPERINGS["rewrite_history_and_sign_it_with_another_key"](case)
        case.db.execute("DELETE FROM tree_heads; DELETE FROM tree_tiles")
        case.db.execute("UPDATE tree_keys SET public_key = %s", (str(sound.key),))

    with tampered(sound, dsn, act) as (at, _):
        report = verify(at, "main", key=sound.key, read_models=False)
    assert [(each.kind, each.place) for each in report.findings] == [(Kind.HEADS, "the ledger's keys")], lines(report)


@pytest.fixture
def rotated(dsn: str, ledger: str, history: History, tmp_path: Path) -> list[PublicKey]:
    """The keys of a ledger with four heads: the second key was introduced by the third, and has signed the fourth."""
    files = KeyFiles(tmp_path / "tree.key", ORIGIN)
    keys = [files.make().public]
    for number in range(4):
        history.live(Random(number), 10)
        history.write()
        if number == 2:
            keys.append(files.prepare_next().public)
        sign(dsn, files, ledger)
    follow(dsn, ledger)
    return keys


def test_a_key_is_followed_by_another_that_it_has_introduced(dsn: str, ledger: str, rotated: list[PublicKey]) -> None:
    """Whichever of them the auditor was given; without one the report says whose word it takes for them."""
    for key in (*rotated, None):
        report = verify(dsn, ledger, key=key)
        assert report.is_sound, lines(report)
        assert report.keys == tuple(rotated)
        assert report.is_key_given == (key is not None)
    assert sum("by the ledger's OWN word" in each for each in report.lines()) == 2


def test_a_key_that_the_ledger_does_not_name_trusts_no_head(dsn: str, ledger: str, rotated: list[PublicKey]) -> None:
    """Heads in the right order, each of them signed: but not for this auditor."""
    stranger = SigningKey(ORIGIN, Ed25519PrivateKey.generate()).public
    report = verify(dsn, ledger, key=stranger)
    places = [(each.kind, each.place) for each in report.findings]
    assert places == [*((Kind.SIGNATURE, f"head {n}") for n in range(1, 5)), (Kind.HEADS, "the ledger's keys")]


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ("DELETE FROM tree_keys", "head 1"),
        ("DELETE FROM tree_keys WHERE number = 1", "head 1"),
        ("DELETE FROM tree_keys WHERE number = 2", "head 3"),
        ("UPDATE tree_keys SET number = 3 - number + 10", "head 1"),
        ("UPDATE tree_keys SET public_key = 'nonsense' WHERE number = 2", "head 3"),
    ],
)
def test_keys_that_were_changed_are_missed(
    dsn: str, ledger: str, rotated: list[PublicKey], change: str, place: str
) -> None:
    """By who was given the first one, and by who was given none."""
    with connect(dsn, ledger, "test") as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(change.encode())
    for key in (rotated[0], None):
        report = verify(dsn, ledger, key=key)
        assert not report.is_sound
        assert (report.findings[0].kind, report.findings[0].place) in [
            (Kind.SIGNATURE, place),
            (Kind.SIGNATURE, "head 3"),
        ], lines(report)


def sign_on(connection: psycopg.Connection[Any], note: str, stranger: SigningKey) -> None:
    """After the ledger's fourth and newest head, `note`: a fifth that a stranger has signed, and his key."""
    head = TreeHead.parse(Note.parse(note).text)
    add = "INSERT INTO tree_heads (number, tree_size, root_hash, note) VALUES (5, %s, %s, %s)"
    connection.execute(add, (head.size, head.root, signed(head.text, [stranger])))
    connection.execute("INSERT INTO tree_keys VALUES (3, %s, 5)", (str(stranger.public),))


def require_not_followed(report: Report, stranger: SigningKey) -> None:
    """It has to name the head and the key that the stranger brought, and nothing else."""
    places = [(each.kind, each.place) for each in report.findings]
    assert places == [(Kind.SIGNATURE, "head 5"), (Kind.HEADS, f"key {stranger.public}")]


def test_a_key_that_nobody_introduced_is_not_followed(dsn: str, ledger: str, rotated: list[PublicKey]) -> None:
    """Whoever brings a key of his own has to be named by the one before."""
    stranger = SigningKey(ORIGIN, Ed25519PrivateKey.generate())
    with connect(dsn, ledger, "test") as connection:
        sign_on(connection, newest_note(dsn, ledger), stranger)
    require_not_followed(verify(dsn, ledger, key=rotated[0]), stranger)


def test_a_signature_under_an_honest_head_introduces_nobody(dsn: str, ledger: str, rotated: list[PublicKey]) -> None:
    """Whoever has all rights on the database can add his own. Once that was enough to sign on with a key of his."""
    stranger = SigningKey(ORIGIN, Ed25519PrivateKey.generate())
    note = newest_note(dsn, ledger)
    signature = signed(Note.parse(note).text, [stranger]).rpartition("\n\n")[2]
    with connect(dsn, ledger, "test") as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("UPDATE tree_heads SET note = %s WHERE number = 4", (note + signature,))
        sign_on(connection, note, stranger)
    require_not_followed(verify(dsn, ledger, key=rotated[0]), stranger)


@pytest.mark.parametrize(("transfers", "kind"), [(0, Kind.TAIL), (1, Kind.TAIL), (50, Kind.ROOT)])
def test_a_restored_copy_is_told_by_the_head_that_was_kept(
    dsn: str, tmp_path: Path, serve: Callable[..., Any], transfers: int, kind: Kind
) -> None:
    """Whether or not it was written on, by the rules and with the right key; and a break says openly that it was."""
    files = KeyFiles(tmp_path / "tree.key", ORIGIN)
    key = files.make().public
    with ExitStack() as stack:
        database = stack.enter_context(new_database(dsn))
        lost = make_conninfo(dsn, dbname=database)
        prepare(lost, "main")
        history = History(lost, "main", alice=1_000, shop=0)
        older = history.write()
        sign(lost, files)
        restored = make_conninfo(dsn, dbname=stack.enter_context(new_database(dsn, database)))
        history.live(Random(1), 30)
        history.write()
        sign(lost, files)
        kept = "mine", newest_note(lost)

        accept_restore(restored, "main", files, "the disk was lost", history.now)
        desk = serve(at=restored, name="main")
        desk.do(*(transfer(f"new-{number}", leg("bank", "shop", 1)) for number in range(transfers)))
        desk.committer.stop()
        sign(restored, files)
        follow(restored)
        assert verify(restored, "main", key=key).is_sound
        report = verify(restored, "main", key=key, kept=[kept])
    first = report.findings[0]
    where = older + 1 + 3 * transfers if kind is Kind.TAIL else history.head
    assert (first.kind, first.position) == (kind, where), lines(report)
    assert first.what.endswith("(mine); break 1 says so")
    taken_back = f"positions {older + 1} to {history.head} were taken back"
    assert [each.line for each in report.breaks] == [
        f"break 1 ({history.now:%Y-%m-%dT%H:%M:%S.%fZ}): {taken_back}: the disk was lost"
    ]


# --- what is not -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(CASES))
def test_a_tampering_is_found_and_named(sound: Sound, dsn: str, number: int) -> None:
    """By an auditor with the public key and the latest head from before: the first bad position, and what is wrong."""
    name = sorted(TAMPERINGS)[number % len(TAMPERINGS)]
    with tampered(sound, dsn, TAMPERINGS[name], number) as (at, expected):
        report = sound.verify(at)
    assert report.findings, name
    first = report.findings[0]
    assert first.kind in expected.kinds, (name, lines(report))
    if expected.position is not None:
        assert first.position == expected.position, (name, lines(report))
    assert first.place.startswith(expected.place), (name, lines(report))
    assert "\n" not in first.line


def test_two_processes_find_what_one_does(sound: Sound, dsn: str) -> None:
    """A balance in the read models, a version in the log, and what follows from it."""

    def act(case: Case) -> None:
        case.set(case.any(lambda row: row.stream == "account/alice"), "version", 77)
        case.db.execute("UPDATE payments SET reference = 'another' WHERE payment_id = 'p1'")

    with tampered(sound, dsn, act) as (at, _):
        alone, beside = sound.verify(at), sound.verify(at, beside_from=1)
    assert alone.findings == beside.findings
    assert [each.kind for each in alone.findings if each.kind is not Kind.VERSIONS][-1] is Kind.READ_MODEL


FLIPPED: Final = "UPDATE tree_tiles SET hashes = set_byte(hashes, 3, get_byte(hashes, 3) # 1)"


@pytest.mark.parametrize("size", [1, 255, 256, 257, 511, 512])
def test_tiles_are_those_of_the_largest_head(
    dsn: str, ledger: str, history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """However far the log has gone on since: no more has to be stored, no less, and nothing else."""
    monkeypatch.setattr(signing, "BATCH_EVENTS", size)
    history.live(Random(9), 600)
    assert history.write() > 512
    files = KeyFiles(tmp_path / "tree.key", ORIGIN)
    files.make()
    signer = Signer(dsn, ledger, files)
    signer._grow(signer._connected())
    signer._sign(signer._connected())
    signer.stop()
    report = verify(dsn, ledger, read_models=False)
    assert report.is_sound, lines(report)
    assert report.largest is not None
    assert report.largest.size == size
    with connect(dsn, ledger, "test") as connection:
        connection.execute("SET session_replication_role = replica")
        tiles = connection.execute("SELECT level, index FROM tree_tiles ORDER BY level, index").fetchall()
        assert len(tiles) == -(-size // 256) + (size >= 256)
        for damage, wrong in (
            (FLIPPED, "hash 0 of it is not what the log comes to"),
            ("DELETE FROM tree_tiles", "it is missing"),
        ):
            connection.execute(damage.encode())
            report = verify(dsn, ledger, read_models=False)
            assert {each.kind for each in report.findings} == {Kind.TILES}
            expected = [f"tile {index} of level {level}: {wrong}" for level, index in tiles]
            assert [each.line for each in report.findings] == expected


def test_tiles_are_not_judged_by_a_log_that_was_changed(sound: Sound, dsn: str) -> None:
    """Only up to where it agrees with what was signed. Beyond, they tell the event that was changed."""
    late = sound.log[-3]

    def change_the_log(case: Case) -> None:
        case.set(late, "recorded_at", late.recorded_at + timedelta(microseconds=1))

    def change_both(case: Case) -> None:
        change_the_log(case)
        case.db.execute(f"{FLIPPED} WHERE index = 0".encode())

    for act, places in ((change_the_log, []), (change_both, ["tile 0 of level 0", "tile 0 of level 1"])):
        with tampered(sound, dsn, act) as (at, _):
            report = sound.verify(at)
        assert [each.place for each in report.findings if each.kind is Kind.TILES] == places, lines(report)
        assert report.findings[0].position in (late.position - 1, late.position)


def test_of_much_that_is_wrong_the_first_is_named_and_the_rest_counted(sound: Sound, dsn: str) -> None:
    """Every row of a read model."""
    with tampered(sound, dsn, lambda case: case.db.execute("UPDATE entries SET version = version + 1")) as (at, _):
        report = sound.verify(at)
    entries = sum(row.stream.startswith("account/") for row in sound.log)
    assert len(report.findings) == 20
    assert len(report.findings) + report.more_findings == entries
    assert report.findings[0].line.startswith("entries, bank 1 (position 1): version is 2, and 1 by the log")


def test_what_was_signed_can_be_changed_unseen_only_by_whoever_has_the_key(sound: Sound, dsn: str) -> None:
    """History written anew with all that follows is sound to an auditor who has kept nothing and trusts any key."""
    with tampered(sound, dsn, TAMPERINGS["rewrite_history_and_sign_it_with_another_key"]) as (at, _):
        trusting = verify(at, "main", read_models=False)
        knowing = verify(at, "main", key=sound.key, read_models=False)
    assert trusting.is_sound, lines(trusting)
    assert {each.kind for each in knowing.findings} == {Kind.SIGNATURE, Kind.HEADS}


# --- what is said of it ----------------------------------------------------------------------------------------------


def forged(history: History, act: Callable[[Book, Stamp], None]) -> None:
    """Write what `act` does to the aggregates, past all rules."""
    layer = history.book.layer()
    act(layer, Stamp(history.now, "anonymous", "forged", layer.next_position))
    history.book.merge(layer)
    history.write()


def test_a_capture_beyond_its_authorization_is_said_in_words(dsn: str, ledger: str, history: History) -> None:
    """On one line: where, what was done, and what there was."""
    history.do(authorize(30_00, payment_id="p-7", payer="bank"))
    history.write()
    position = history.head + 1

    def act(book: Book, stamp: Stamp) -> None:
        payment = book.find_payment("p-7")
        assert payment is not None
        capture_past_the_rules(book, payment, 50_00, "c", stamp)

    forged(history, act)
    report = verify(dsn, ledger, read_models=False)
    assert report.findings[0].line == (
        f"position {position} (payment/p-7, version 2): "
        "captured 50.00 EUR of an authorization of which 30.00 EUR was left"
    )


SAID: Final = {
    (
        "position 3 (transfer/fund:alice:2, version 1): recorded_at is 2026-01-01T11:59:59Z, earlier than "
        "2026-01-01T12:00:00Z right before it"
    ): "UPDATE events SET recorded_at = recorded_at - interval '1 s' WHERE position = 3",
    "position 5: there is no event": "DELETE FROM events WHERE position = 5",
    "position 2: positions 2 to 3 are missing": "DELETE FROM events WHERE position IN (2, 3)",
    "position 4 (account/bank, version 9): version 2 of this stream comes next": (
        "UPDATE events SET version = 9 WHERE position = 4"
    ),
    "position 4 (account/shop, version 2): version 1 of this stream stands behind it, at 6": (
        "UPDATE events SET stream = 'account/shop' WHERE position = 4"
    ),
    (
        "position 4 (account/alice, version 2): FundsCredited stands where FundsDebited of account/bank belongs, "
        "of the command at position 3"
    ): (
        "ALTER TABLE events DROP CONSTRAINT events_one_event_per_position;"
        "UPDATE events SET position = 9 - position WHERE position IN (4, 5)"
    ),
    "position 4 (account/bank, version 2): after.posted is -11.00 EUR, and -10.00 EUR by the rules": (
        "UPDATE events SET state = replace(encode(state, 'escape'), '-1000', '-1100')::bytea WHERE position = 4"
    ),
    "position 6 (account/shop, version 1): AccountOpened can't be read: object missing required field `metadata`": (
        "UPDATE events SET state = replace(encode(state, 'escape'), '\"metadata\":{},', '')::bytea WHERE position = 6"
    ),
    "position 6 (account/shop, version 1): AccountOpened can't be read: nested too deeply": (
        "UPDATE events SET state = convert_to("
        "'{\"class_version\":1,\"x\":' || repeat('[', 100000) || repeat(']', 100000) || '}', 'UTF8') WHERE position = 6"
    ),
    "position 6 (account/shop, version 1): topic is NULL": (
        "ALTER TABLE events ALTER topic DROP NOT NULL; UPDATE events SET topic = NULL WHERE position = 6"
    ),
    "balances, alice (position 5): posted is 10.01 EUR, and 10.00 EUR by the log": (
        "UPDATE balances SET posted = posted + 1 WHERE account_id = 'alice'"
    ),
    "payments, of-nobody: this row comes from nothing in the log": (
        "INSERT INTO payments SELECT 'of-nobody', 'a', 'b', 'EUR', 2, 'VOIDED', 1, 1, 0, 0, 1, 0, 0, now(), 3, now(),"
        " now(), '', '{}', '[]', '[]', '[]', NULL, NULL, NULL, 1, 3, now()"
    ),
}
"""What is said first, and of what it is said."""


@pytest.mark.parametrize("said", SAID)
def test_what_is_wrong_is_said_on_one_line(dsn: str, ledger: str, history: History, said: str) -> None:
    """To a person who knows the ledger and not its tables."""
    history.write()
    follow(dsn, ledger)
    with connect(dsn, ledger, "test") as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(SAID[said].encode())
    report = verify(dsn, ledger)
    assert report.findings[0].line == said, lines(report)
    assert next(report.lines()) == f"ledger {ledger} is NOT sound: {said}"
