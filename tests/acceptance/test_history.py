"""`ledger audit history`: the story of one thing on a screen, every line of it proven by a head that was signed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.json_format import ParseDict
from rich.console import Console
from serving import LedgerServer, run_ledger, serving
from test_api import (
    Client,
    at,
    authorize,
    capture,
    close,
    eur,
    freeze,
    increment,
    leg,
    limit,
    opening,
    refund,
    transfer,
    unfreeze,
    void,
)
from test_console import Shell

from ledger.audit.note import SigningKey, read_head
from ledger.console.history import History, as_json, history_of, show
from ledger.v1.account_pb2 import ACCOUNT_KIND_EXTERNAL
from ledger.v1.audit_pb2 import Event as LoggedEvent
from ledger.v1.audit_pb2 import GetTreeHeadRequest, ReadEventsRequest


@pytest.fixture
def client(server: LedgerServer, tag: str) -> Iterator[Client]:
    with server.channel() as channel:
        yield Client(channel, server.ledger, tag)


@pytest.fixture
def lived(client: Client) -> Client:
    """A client of a ledger in which much has happened to alice, a payment and a transfer."""
    client.do(
        opening("bank~", kind=ACCOUNT_KIND_EXTERNAL),
        opening("alice~", credit_limit=eur(5_00)),
        opening("shop~"),
        transfer("fund~", leg("bank~", "alice~", 1_000_00), effective_at=at(2024, 1, 31)),
        transfer("two~", leg("alice~", "shop~", 2_00), leg("shop~", "alice~", 50)),
        authorize("order~", 25_00, effective_at=at(2024, 2)),
        increment("order~", "i1", 40_00),
        capture("order~", "c1", amount=eur(15_00), keep_remainder=True),
        capture("order~", "c2", amount=eur(5_00)),
        refund("order~", "r1", amount=eur(4_00)),
        authorize("other~", 1_00),
        void("other~", reason="out of stock"),
        limit("alice~", eur(7_00), reason="trusted"),
        freeze("alice~", reason="a dispute"),
        unfreeze("alice~"),
        transfer("empty~", leg("shop~", "bank~", 17_50)),
        close("shop~", reason="moved"),
    )
    client(authorize("declined~", 5_000_00, payee_account_id="bank~"))
    client(transfer("declined~", leg("bank~", "alice~", 1), leg("alice~", "shop~", 1)))
    return client


@pytest.fixture
def shell(server: LedgerServer, client: Client) -> Shell:
    return Shell(server, client)


def story(lines: list[str]) -> list[str]:
    """The lines of a table without the moment and who it was, which are checked, and without the position."""
    told = []
    for line in lines:
        found = re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ anonymous (.*) \d+", line)
        assert found, line
        told.append(re.sub(r"until 20\S+Z", "until then", found[1]))
    return told


# --- the story -------------------------------------------------------------------------------------------------------


def test_the_story_of_an_account(lived: Client, shell: Shell) -> None:
    """What happened, with whom, the amount and the balances after it; an id alone will do."""
    head, *lines, summary = shell.ok("audit history alice~")

    assert head == "recorded at by what happened with amount posted reserved available position"
    assert story(lines) == [
        "opened, with a credit limit of 5.00 EUR 0.00 EUR 0.00 5.00",
        "received: transfer fund~, leg 0 (effective 2024-01-31T00:00:00Z) bank~ 1,000.00 1,000.00 EUR 0.00 1,005.00",
        "paid: transfer two~, leg 0 shop~ -2.00 998.00 EUR 0.00 1,003.00",
        "received: transfer two~, leg 1 shop~ 0.50 998.50 EUR 0.00 1,003.50",
        "reserved: authorization of payment order~ (effective 2024-02-01T00:00:00Z) 25.00 998.50 EUR 25.00 978.50",
        "reserved: increment i1 of payment order~ 15.00 998.50 EUR 40.00 963.50",
        "paid: capture c1 of payment order~ shop~ -15.00 983.50 EUR 25.00 963.50",
        "paid: capture c2 of payment order~ shop~ -5.00 978.50 EUR 20.00 963.50",
        "released: capture c2 of payment order~ 20.00 978.50 EUR 0.00 983.50",
        "received: refund r1 of payment order~ shop~ 4.00 982.50 EUR 0.00 987.50",
        "reserved: authorization of payment other~ 1.00 982.50 EUR 1.00 986.50",
        "released: void of payment other~ 1.00 982.50 EUR 0.00 987.50",
        "credit limit set to 7.00 EUR: trusted 982.50 EUR 0.00 989.50",
        "frozen for all: a dispute 982.50 EUR 0.00 989.50",
        "unfrozen 982.50 EUR 0.00 989.50",
    ]
    assert re.fullmatch(r"15 events\. Read at position \d+\. Not proven: for that give --public-key\.", summary)
    assert (
        shell.ok("audit history account/bank~")[1].split(" anonymous ")[1].startswith("opened, for the world outside")
    )
    assert "closed: moved 0.00 EUR 0.00 0.00" in story(shell.ok("audit history shop~")[1:-1])


def test_the_story_of_a_payment(lived: Client, shell: Shell) -> None:
    """With its amounts after each change."""
    head, *lines, _ = shell.ok("audit history payment/order~")

    assert head == ("recorded at by what happened authorized captured capturable released expired refunded position")
    assert story(lines) == [
        "authorized 25.00 EUR from alice~ to shop~, until then (effective 2024-02-01T00:00:00Z)"
        " 25.00 EUR 0.00 25.00 0.00 0.00 0.00",
        "raised to 40.00 EUR: increment i1 40.00 EUR 0.00 40.00 0.00 0.00 0.00",
        "captured 15.00 EUR: capture c1 40.00 EUR 15.00 25.00 0.00 0.00 0.00",
        "captured 5.00 EUR, and released 20.00 EUR: capture c2 40.00 EUR 20.00 0.00 20.00 0.00 0.00",
        "refunded 4.00 EUR: refund r1 40.00 EUR 20.00 0.00 20.00 0.00 4.00",
    ]
    assert story(shell.ok("audit history other~")[2:-1]) == [
        "voided, and released 1.00 EUR: out of stock 1.00 EUR 0.00 0.00 1.00 0.00 0.00"
    ]
    assert story(shell.ok("audit history payment/declined~")[1:-1]) == [
        "declined 5,000.00 EUR from alice~ to bank~: insufficient funds on account alice~"
        " 0.00 EUR 0.00 0.00 0.00 0.00 0.00"
    ]


def test_the_story_of_a_transfer(lived: Client, shell: Shell) -> None:
    """One leg is told in the line, several stand below it."""
    head, *lines, _ = shell.ok("audit history fund~")
    assert head == "recorded at by what happened position"
    assert story(lines) == ["posted 1,000.00 EUR from bank~ to alice~ (effective 2024-01-31T00:00:00Z)"]
    lines = [line for line in shell.ok("audit history transfer/two~")[1:-1] if line]
    assert story(lines[:1]) == ["posted 2 legs"]
    assert lines[1:] == ["leg from to amount", "0 alice~ shop~ 2.00 EUR", "1 shop~ alice~ 0.50 EUR"]
    (declined,) = story(shell.ok("audit history transfer/declined~")[1:2])
    assert declined == "declined 2 legs: account closed on account shop~, in leg 1"


def test_only_the_last_events_are_told_if_one_likes(lived: Client, shell: Shell) -> None:
    """It is said that there are more; and of a payment the currency is known all the same."""
    lines = shell.ok("audit history order~ --limit 2")

    assert story(lines[1:-1])[-1] == "refunded 4.00 EUR: refund r1 40.00 EUR 20.00 0.00 20.00 0.00 4.00"
    assert lines[-1].startswith("The last 2 of 5 events, see --limit. Read at position ")


def test_the_story_as_json(lived: Client, shell: Shell) -> None:
    """The events as the API has them, their states as objects, and each with the words for people."""
    (response,) = lived.stream(ReadEventsRequest(streams=["payment/order~"]))

    found = json.loads(lived.name(shell("audit history order~ --json").out))

    assert found["stream"] == lived.name("payment/order~")
    assert int(found["position"]) >= response.position
    assert len(found["events"]) == len(response.events) == 5
    for event, stored in zip(found["events"], response.events, strict=True):
        assert event.pop("state") == json.loads(stored.state)
        assert event.pop("what")
        assert ParseDict(event, LoggedEvent(state=stored.state)) == stored


def test_what_is_not_there_or_not_clear_is_said(lived: Client, shell: Shell, tmp_path: Path) -> None:
    """With the exit codes that the help explains."""
    for thing, says in (
        ("nobody~", "nothing of account/nobody~ or payment/nobody~ or transfer/nobody~"),
        ("payment/alice~", "nothing of payment/alice~"),
    ):
        assert says in shell.refused(f"audit history {thing}")
    assert "say payment/declined~ or transfer/declined~" in shell.usage("audit history declined~")
    for thing in ("'a b'", "bank/alice", "/alice", "account/", "''", "account/a/b"):
        assert "is not account/ID" in shell.usage(f"audit history {thing}"), thing
    for key in ("nonsense+a+b", "/nowhere", "ledger/main+00000000+AaaaAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"):
        assert "--public-key" in shell.usage(f"audit history alice~ --public-key {key}"), key
    empty = tmp_path / "empty"
    empty.write_text("\n")
    for key in ("''", "' '", empty):
        assert "the key is empty" in shell.usage(f"audit history alice~ --public-key {key}"), key


# --- the proof -------------------------------------------------------------------------------------------------------


def test_every_line_is_proven_by_a_head_that_the_key_has_signed(
    lived: Client, shell: Shell, server: LedgerServer, tmp_path: Path
) -> None:
    """A check mark with the size of the tree, for each; the key as text or as a file, and the head in the JSON."""
    key = str(server.public_key)
    file = tmp_path / "tree.key.pub"
    file.write_text(f"{key}\n")

    for given in (key, file):
        head, *lines, summary = shell.ok(f"audit history alice~ --public-key {given}")
        assert head.endswith("position proof")
        (size,) = {int(found[1]) for found in map(re.compile(r".* \d+ ✓ (\d+)").fullmatch, lines) if found}
        assert len(lines) == 15
        assert f"All are in the log of {size:,} events that {server.public_key.name} signed." in summary
    found = json.loads(shell(f"audit history order~ --json --public-key {key}").out)
    assert [each["proven"] for each in found["events"]] == [True] * 5
    assert read_head(found["tree_head"]["signed_note"], [server.public_key]).size >= size


def test_a_head_that_another_key_has_signed_proves_nothing(lived: Client, shell: Shell, server: LedgerServer) -> None:
    """Then not a line is shown."""
    stranger = SigningKey(server.public_key.name, Ed25519PrivateKey.generate()).public
    other_ledger = SigningKey("ledger/other", Ed25519PrivateKey.generate()).public

    for key in (stranger, other_ledger):
        assert "is not to be trusted" in shell.refused(f"audit history alice~ --public-key {key}")


def test_who_has_an_older_key_is_told_how_to_get_the_new_one(tmp_path: Path) -> None:
    """A key that was changed is no sign of fraud: the older one has introduced the new one, and `verify` names it."""
    with serving(tmp_path) as server, server.channel() as channel:
        client, old = Client(channel, server.ledger, "x"), server.public_key
        shell = Shell(server, client)
        client.do(opening("alice~"))
        client(GetTreeHeadRequest(min_position=client.position))
        server.rotate_key()
        for name in ("bob~", "carol~"):  # The first head may be signed by both keys, the second only by the new one.
            client.do(opening(name))
            client(GetTreeHeadRequest(min_position=client.position))

        says = shell.refused(f"audit history alice~ --public-key {old}")
        assert "your key has not signed it; if the ledger's key was changed since, give the new one" in says
        assert len(says.splitlines()) == 1
        verified = run_ledger("audit", "verify", *server.where, "--ledger", server.ledger, "--public-key", old)
        assert f"  key: {server.public_key}" in verified.stdout.splitlines()
        assert shell.ok(f"audit history alice~ --public-key {server.public_key}")


def lying(client: Client, number: int, **lie: Any) -> Callable[[Any], Any]:
    """The server, but for one event of those that it is asked for."""

    def ask(request: Any) -> Any:
        if not isinstance(request, ReadEventsRequest):
            return client(request)
        responses = list(client.stream(request))
        responses[0].events[number].MergeFrom(LoggedEvent(**lie))
        return responses

    return ask


def printed(history: History) -> str:
    text = StringIO()
    show(Console(width=1_000, file=text), history)
    return text.getvalue()


def test_an_event_that_was_not_recorded_so_is_found_out(lived: Client, server: LedgerServer) -> None:
    """Whatever of it a server tells otherwise than it was recorded, its line is marked, and no other."""
    stream = lived.name("account/alice~")
    lies: list[dict[str, Any]] = [
        {"state": b'{"amount": 1}'},
        {"state": b"\xff"},
        {"topic": "FundsCredited"},
        {"version": 2},
        {"recorded_at": at(2020)},
        {"position": 1},
    ]
    for lie in lies:
        found = history_of(lying(lived, 2, **lie), server.ledger, [stream], server.public_key, 100)
        assert found.proven
        assert [each is not None for each in found.proven.wrong] == [number == 2 for number in range(15)], lie
        assert not found.is_sound
        assert [each["proven"] for each in json.loads(as_json(found))["events"]].count(False) == 1
        text = printed(found)
        assert (text.count("✗"), text.count("✓")) == (1, 14)
        assert "The server's proof of 1 of these does NOT hold, for the log of " in text
    assert history_of(lying(lived, 2), server.ledger, [stream], server.public_key, 100).is_sound


def test_no_line_of_a_payment_is_proven_without_its_first_event(lived: Client, server: LedgerServer) -> None:
    """Only that one says in what currency the others are, whether it is among those that are shown or not."""
    stream = lived.name("payment/order~")
    (response,) = lived.stream(ReadEventsRequest(streams=[stream]))
    in_yen = response.events[0].state.replace(b'"EUR"', b'"JPY"')
    for shown in (1, 4, 5):
        found = history_of(lying(lived, 0, state=in_yen), server.ledger, [stream], server.public_key, shown)
        assert not found.is_sound
        text = printed(found)
        assert "refunded 400 JPY" in text
        assert (text.count("✗"), text.count("✓")) == (shown, 0)
        assert "The FIRST event is not proven, which alone says in what currency the amounts are." in text
        assert [each["proven"] for each in json.loads(as_json(found))["events"]] == [False] * shown
        honest = history_of(lying(lived, 0), server.ledger, [stream], server.public_key, shown)
        assert honest.is_sound
        assert (printed(honest).count("✗"), printed(honest).count("✓")) == (0, shown)


def test_the_first_event_of_an_account_is_proven_if_it_is_not_shown(lived: Client, server: LedgerServer) -> None:
    """What the later ones say they say themselves: their lines stay proven, and yet something is wrong."""
    stream = lived.name("account/alice~")
    found = history_of(lying(lived, 0, state=b"{}"), server.ledger, [stream], server.public_key, 3)
    assert not found.is_sound
    text = printed(found)
    assert (text.count("✗"), text.count("✓")) == (0, 3)
    assert text.endswith("The FIRST event is not proven.\n")


def test_an_event_that_is_left_out_is_missed(lived: Client, server: LedgerServer) -> None:
    """The versions of a stream have no gaps: whoever hides one of its events can't show those after it."""

    def hiding(request: Any) -> Any:
        if not isinstance(request, ReadEventsRequest):
            return lived(request)
        (response,) = lived.stream(request)
        del response.events[2]
        return [response]

    found = history_of(hiding, server.ledger, [lived.name("account/alice~")], server.public_key, 3)
    assert not found.is_sound
    assert "events are MISSING between them" in printed(found)
