"""The console: a payment's life from a shell, in words and as JSON, against a running server."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import Parse
from google.protobuf.message import Message
from serving import LEDGER, ROOT, LedgerServer, environment, run_ledger
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
from typer.testing import CliRunner

from ledger.cli import app
from ledger.services import SERVICES
from ledger.v1.account_pb2 import (
    ACCOUNT_KIND_CUSTOMER,
    ACCOUNT_KIND_EXTERNAL,
    FREEZE_SCOPE_CREDITS,
    GetAccountBalanceRequest,
    GetAccountBalanceResponse,
    GetAccountRequest,
    GetAccountResponse,
    ListAccountsResponse,
    ListEntriesResponse,
)
from ledger.v1.ledger_pb2 import DECLINE_REASON_INSUFFICIENT_FUNDS, Money
from ledger.v1.payment_pb2 import (
    AuthorizePaymentResponse,
    CapturePaymentResponse,
    GetPaymentRequest,
    GetPaymentResponse,
    ListPaymentsResponse,
)
from ledger.v1.transfer_pb2 import GetTransferRequest, GetTransferResponse, ListTransfersResponse

NOBODY: Final = "127.0.0.1:1"


class Ended(NamedTuple):
    """What came of a command; the test's tag is `~` again."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """What it printed, without the rules of tables, and with one blank between words."""
        return [" ".join(line.split()) for line in self.out.splitlines() if line.strip("─")]

    @property
    def complaint(self) -> str:
        """What it says is wrong, out of the frame that is drawn around wrong usage."""
        return " ".join(self.err.translate(dict.fromkeys(map(ord, "│╭╮╰╯─"))).split())

    def read(self, response: type[Any], client: Client) -> Any:
        """The JSON, which is all that was printed."""
        return Parse(client.name(self.out), response())


class Shell:
    """Runs `ledger` in this process. Every `~` in a command becomes the test's tag."""

    def __init__(self, server: LedgerServer, client: Client) -> None:
        self._server, self._client = server, client

    def __call__(self, line: str) -> Ended:
        """What came of `ledger` with this line after it, asked of the test's server."""
        where = ["--server", self._server.address, "--ledger", self._server.ledger]
        return self.anywhere(line, *where)

    def anywhere(self, line: str, *where: str, **env: str) -> Ended:
        words = [self._client.name(each) for each in shlex.split(line)]
        result = CliRunner().invoke(app, [*words[:2], *where, *words[2:]], env=env)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        return Ended(result.exit_code, self._plain(result.stdout), self._plain(result.stderr))

    def ok(self, line: str) -> list[str]:
        """The lines of a command that has to end well, and without a word beside them."""
        ended = self(line)
        assert (ended.code, ended.err) == (0, ""), ended
        return ended.lines

    def usage(self, line: str) -> str:
        """What a command says of wrong usage: on stderr alone, with exit code 2."""
        ended = self(line)
        assert (ended.code, ended.out) == (2, ""), ended
        return ended.complaint

    def refused(self, line: str) -> str:
        """The line of a refusal: on stderr alone, with exit code 1."""
        ended = self(line)
        assert (ended.code, ended.out) == (1, ""), ended
        return ended.err

    def _plain(self, text: str) -> str:
        return text.replace(f":{self._client.tag}", "~")


@pytest.fixture
def client(server: LedgerServer, tag: str) -> Iterator[Client]:
    with server.channel() as channel:
        yield Client(channel, server.ledger, tag)


@pytest.fixture
def shell(server: LedgerServer, client: Client) -> Shell:
    return Shell(server, client)


@pytest.fixture
def funded(client: Client) -> Client:
    """A client of a ledger in which alice has 100 EUR."""
    client.do(opening("bank~", kind=ACCOUNT_KIND_EXTERNAL), opening("alice~"), opening("shop~"))
    client.do(transfer("fund~", leg("bank~", "alice~", 100_00)))
    return client


# --- a payment's life ------------------------------------------------------------------------------------------------


def test_a_payment_goes_through_its_life(shell: Shell) -> None:
    """From the first account to the refund; every command says where things stand after it."""
    account = "account kind status posted reserved available credit limit version"
    assert shell.ok("account open bank~ EUR --kind external")[:2] == [
        account,
        "bank~ external open 0.00 EUR 0.00 0.00 1",
    ]
    assert shell.ok("account open shop~ EUR")[1] == "shop~ customer open 0.00 EUR 0.00 0.00 0.00 1"
    assert shell.ok("account open alice~ EUR --credit-limit 10.5")[1].endswith("0.00 EUR 0.00 10.50 10.50 1")
    head, posted, recorded = shell.ok("transfer post top-up~ 1000.00 EUR --from bank~ --to alice~")
    assert head == "transfer state recorded at from to amount"
    assert re.fullmatch(r"top-up~ posted 20\S+Z bank~ alice~ 1,000.00 EUR", posted)
    assert re.fullmatch(r"Recorded at position \d+\.", recorded)

    payment = "payment state authorized captured capturable"
    assert shell.ok("payment authorize order~ --from alice~ --to shop~ 25.00 EUR")[:2] == [
        payment,
        "order~ authorized 25.00 EUR 0.00 25.00",
    ]
    assert shell.ok("payment increment order~ 40 EUR --id i1")[1] == "order~ authorized 40.00 EUR 0.00 40.00"
    captured = shell.ok("payment capture order~ 15.00 EUR --keep-remainder --id c1")
    assert captured[:2] == [payment, "order~ partially captured 40.00 EUR 15.00 25.00"]
    assert shell.ok("payment capture order~ 5.00 EUR --keep-remainder --id c2")[1].endswith("40.00 EUR 20.00 20.00")
    assert shell.ok("payment void order~ --reason 'out of stock'")[:2] == [
        f"{payment} released",
        "order~ captured 40.00 EUR 20.00 0.00 20.00",
    ]
    refunded = shell.ok("payment refund order~ 4 EUR --id r1")
    assert refunded[:2] == [f"{payment} released refunded", "order~ captured 40.00 EUR 20.00 0.00 20.00 4.00"]

    position = refunded[-1].removeprefix("Recorded at position ").rstrip(".")
    shown = shell.ok(f"payment show order~ --min-position {position}")
    for line in (
        "payment order~",
        "payer account alice~",
        "payee account shop~",
        "currency EUR",
        "state captured",
        "amount requested 25.00 EUR",
        "amount authorized 40.00 EUR",
        "amount captured 20.00 EUR",
        "amount capturable 0.00 EUR",
        "amount released 20.00 EUR",
        "amount expired 0.00 EUR",
        "amount refunded 4.00 EUR",
        "version 6",
        "void reason out of stock",
        f"Read at position {position}.",
    ):
        assert line in shown
    changes = [re.sub(r" 20\S+Z", "", line) for line in shown[-6:-1]]
    assert changes == [
        "change id recorded at amount",
        "increment to i1 40.00 EUR",
        "capture c1 15.00 EUR",
        "capture c2 5.00 EUR",
        "refund r1 4.00 EUR",
    ]


def test_an_account_goes_through_its_life(shell: Shell) -> None:
    """A limit, a freeze, its end, and closing; what is so already is called a replay."""
    shell.ok("account open alice~ JPY")
    assert shell.ok("account set-limit alice~ 500 JPY --reason trusted")[1] == "alice~ customer open 0 JPY 0 500 500 2"
    frozen = shell.ok("account freeze alice~ --scope credits --reason 'a dispute'")
    assert frozen[1] == "alice~ customer frozen (credits) 0 JPY 0 500 500 3"
    again = shell.ok("account freeze alice~ --scope credits")
    assert again[1] == frozen[1]
    assert re.fullmatch(r"Replayed: it was so already at position \d+\. Nothing was recorded now\.", again[-1])
    assert shell.ok("account freeze alice~")[1].startswith("alice~ customer frozen (all)")
    assert shell.ok("account unfreeze alice~ --reason settled")[1].startswith("alice~ customer open")
    closed = shell.ok("account close alice~ --reason moved")
    assert closed[1] == "alice~ customer closed 0 JPY 0 500 500 6"

    position = closed[-1].removeprefix("Recorded at position ").rstrip(".")
    assert "status closed" in shell.ok(f"account show alice~ --min-position {position}")
    history = [" ".join(line.split()[1:-5]) for line in shell.ok("account entries alice~ --order oldest")[1:-1]]
    assert history == [
        "opening 0",
        "credit limit trusted 0",
        "freeze a dispute 0",
        "freeze 0",
        "unfreeze settled 0",
        "closing moved 0",
    ]
    assert shell.refused("account freeze alice~") == "ledger: Account 'alice~' is closed. (ACCOUNT_CLOSED)\n"


def test_a_command_again_is_a_replay(funded: Client, shell: Shell) -> None:
    """It shows the first outcome, says that nothing was recorded, and ends well."""
    line = "payment authorize order~ 25.00 EUR --from alice~ --to shop~"
    first = shell.ok(line)
    shell.ok("payment void order~")

    again = shell.ok(line)

    assert again[:2] == first[:2]
    position = first[-1].removeprefix("Recorded at position ")
    assert again[-1] == f"Replayed: it was so already at position {position} Nothing was recorded now."
    assert shell.refused(line.replace("25", "26")).endswith("whose amount differs. (ID_ALREADY_USED)\n")


@pytest.mark.parametrize(("name", "line"), [("capture", "payment capture order~"), ("refund", "payment refund paid~")])
def test_an_id_that_was_left_out_is_made_and_told(name: str, line: str, funded: Client, shell: Shell) -> None:
    """On stderr, before anything is sent; the same command with it is a replay."""
    funded.do(authorize("order~"), authorize("paid~"), capture("paid~", "c1"))

    first = shell(line)
    (made,) = re.findall(rf"^ledger: the id of this {name} is ({name[:3]}-[0-9a-f]{{8}}); ", first.err)

    assert first.err == f"ledger: the id of this {name} is {made}; to repeat it, add --id {made}\n"
    assert first.lines[-1].startswith("Recorded at position ")
    assert shell.ok(f"{line} --id {made}")[-1].startswith("Replayed: ")
    assert f"{made} " in shell(f"payment show {line.split()[-1]} --min-position {funded.position}").out


def test_an_increment_id_is_made_too(funded: Client, shell: Shell) -> None:
    """Without one that was given; for a mere validation nobody needs it."""
    funded.do(authorize("order~", 10_00))

    assert shell("payment increment order~ 20 EUR --validate-only").err == ""
    raised = shell("payment increment order~ 20 EUR")
    assert re.fullmatch(
        r"ledger: the id of this increment is (inc-[0-9a-f]{8}); to repeat it, add --id \1\n", raised.err
    )
    assert raised.lines[1] == "order~ authorized 20.00 EUR 0.00 20.00"


def test_a_transfer_takes_several_legs(funded: Client, shell: Shell) -> None:
    """The first as arguments or like the others; in their order, each in its currency."""
    funded.do(*(opening(f"{name}~", kind=ACCOUNT_KIND_EXTERNAL, currency_code="USD") for name in ("fx", "us")))
    first = shell.ok("transfer post t1~ 10 EUR --from alice~ --to bank~ --leg 'fx~ us~ 10.81 USD'")
    second = shell.ok("transfer post t2~ --leg 'alice~ bank~ 1 EUR' --leg 'fx~ us~ 1.08 USD' --leg 'us~ fx~ 1 USD'")

    assert first[1].endswith("alice~ bank~ 10.00 EUR")
    assert first[2] == "fx~ us~ 10.81 USD"
    assert [line.split()[-2:] for line in second[1:4]] == [["1.00", "EUR"], ["1.08", "USD"], ["1.00", "USD"]]
    shown = shell.ok("transfer show t1~ --min-position " + second[-1].split()[-1].rstrip("."))
    assert shown[-4:-1] == ["leg from to amount", "0 alice~ bank~ 10.00 EUR", "1 fx~ us~ 10.81 USD"]


# --- every field arrives ---------------------------------------------------------------------------------------------

# A request with the same id but another field would be refused: that the API takes the request for a replay of the
# command shows that each of its fields arrived, and no other.
SAID: Final[list[tuple[str, Any]]] = [
    (
        "account open new~ EUR --kind customer --credit-limit 10.00 --metadata tier=gold --metadata note=a=b",
        opening(
            "new~",
            kind=ACCOUNT_KIND_CUSTOMER,
            credit_limit=eur(10_00),
            metadata={"tier": "gold", "note": "a=b"},
        ),
    ),
    ("account open new~ USD --kind external", opening("new~", currency_code="USD", kind=ACCOUNT_KIND_EXTERNAL)),
    ("account set-limit alice~ 7.5 EUR --reason why", limit("alice~", eur(7_50))),
    ("account freeze alice~ --scope credits", freeze("alice~", scope=FREEZE_SCOPE_CREDITS)),
    ("account freeze alice~", freeze("alice~")),
    ("account unfreeze frozen~", unfreeze("frozen~")),
    ("account close empty~", close("empty~")),
    (
        "payment authorize new~ 1.00 EUR --from alice~ --to shop~ --hold-for 90s --reference R~ --metadata k=v"
        " --effective-at 2024-01-31T01:00:00+01:00",
        authorize(
            "new~",
            1_00,
            hold_for=Duration(seconds=90),
            reference="R~",
            metadata={"k": "v"},
            effective_at=at(2024, 1, 31),
        ),
    ),
    ("payment increment order~ 20 EUR --id i1", increment("order~", "i1", 20_00)),
    ("payment capture order~ --id c1", capture("order~", "c1")),
    (
        "payment capture order~ 3 EUR --keep-remainder --id c1 --effective-at 2024-02-01T00:00:00Z",
        capture("order~", "c1", amount=eur(3_00), keep_remainder=True, effective_at=at(2024, 2)),
    ),
    ("payment void order~ --reason why", void("order~", reason="why")),
    ("payment refund paid~ --id r1", refund("paid~", "r1")),
    (
        "payment refund paid~ 3 EUR --id r1 --effective-at 2024-02-01T00:00:00Z",
        refund("paid~", "r1", amount=eur(3_00), effective_at=at(2024, 2)),
    ),
    (
        "transfer post new~ 2 EUR --from bank~ --to alice~ --reference R --metadata k=v --metadata l="
        " --effective-at 2024-02-01T00:00:00Z",
        transfer(
            "new~",
            leg("bank~", "alice~", 2_00),
            reference="R",
            metadata={"k": "v", "l": ""},
            effective_at=at(2024, 2),
        ),
    ),
]


@pytest.mark.parametrize(("line", "request_"), SAID, ids=[" ".join(line.split()[:2]) for line, _ in SAID])
def test_a_command_sends_what_it_is_told(line: str, request_: Message, funded: Client, shell: Shell) -> None:
    """And prints the API's response to just that, as JSON and nothing else."""
    funded.do(
        opening("empty~"),
        opening("frozen~"),
        freeze("frozen~"),
        authorize("order~"),
        authorize("paid~"),
        capture("paid~", "c0"),
    )

    ended = shell(f"{line} --json")

    assert (ended.code, ended.err) == (0, "")
    again = funded(request_)
    assert again.replayed
    # Of what is found to be so already, the position is the head.
    again.replayed, again.position = False, ended.read(type(again), funded).position
    assert ended.read(type(again), funded) == again


@pytest.mark.parametrize(
    ("line", "request_", "response"),
    [
        ("account show alice~", GetAccountRequest(account_id="alice~"), GetAccountResponse),
        ("account balance alice~", GetAccountBalanceRequest(account_id="alice~"), GetAccountBalanceResponse),
        ("payment show paid~", GetPaymentRequest(payment_id="paid~"), GetPaymentResponse),
        ("transfer show fund~", GetTransferRequest(transfer_id="fund~"), GetTransferResponse),
    ],
)
def test_a_query_prints_the_response_as_json(
    line: str, request_: Message, response: type[Message], funded: Client, shell: Shell
) -> None:
    """Just as the API has it, under the names of the contract."""
    funded.do(authorize("paid~", reference="R"), capture("paid~", "c1"))

    ended = shell(f"{line} --json --min-position {funded.position}")

    assert (ended.code, ended.err) == (0, "")
    expected = funded(request_)
    shown = ended.read(response, funded)
    expected.position = shown.position  # the head, which other tests move
    assert shown == expected
    assert not re.findall(r'"\w*[A-Z]\w*":', ended.out)


def test_json_has_zeros(funded: Client, shell: Shell) -> None:
    """So that a script which asks for an amount gets "0" and not nothing."""
    balance = json.loads(shell(f"account balance shop~ --json --min-position {funded.position}").out)["balance"]

    assert [balance[name] for name in ("posted", "reserved", "available", "credit_limit")] == ["0"] * 4


def test_the_balance_is_shown_to_the_last_digit(client: Client, shell: Shell) -> None:
    """In the digits of its currency: three for dinars, none for yen."""
    client.do(
        *(
            request
            for code, amount in (("KWD", 1_234_567), ("JPY", 1_234_567))
            for request in (
                opening(f"bank{code}~", currency_code=code, kind=ACCOUNT_KIND_EXTERNAL),
                opening(f"alice{code}~", currency_code=code),
                transfer(
                    f"fund{code}~", leg(f"bank{code}~", f"alice{code}~", Money(currency_code=code, minor_units=amount))
                ),
            )
        )
    )
    for line in ("account aliceKWD~", "posted 1,234.567 KWD", "reserved 0.000 KWD", "version 2"):
        assert line in shell.ok(f"account balance aliceKWD~ --min-position {client.position}")
    assert "posted -1,234,567 JPY" in shell.ok("account balance bankJPY~")


def test_a_payment_is_shown_as_it_was(funded: Client, shell: Shell) -> None:
    """At a position, or at a time."""
    authorized = funded(authorize("order~"))
    captured = funded(capture("order~"))

    for line in (
        f"payment show order~ --at-position {authorized.position}",
        f"payment show order~ --recorded-at {authorized.recorded_at.ToJsonString()}",
    ):
        then = shell.ok(line)
        assert {"state authorized", f"Read at position {authorized.position}."} <= set(then)
    assert "state captured" in shell.ok(f"payment show order~ --min-position {captured.position}")
    assert "(POSITION_AHEAD_OF_HEAD)" in shell.refused("payment show order~ --at-position 999999999999")


def test_a_balance_is_shown_as_it_was(funded: Client, shell: Shell) -> None:
    """As known at a position or a time, and by what had taken effect."""
    before = funded.position
    moved = funded(transfer("t~", leg("alice~", "shop~", 40_00), effective_at=at(2024)))
    known = moved.recorded_at.ToJsonString()

    for options, posted in (
        (f"--min-position {moved.position}", "60.00"),
        (f"--at-position {before}", "100.00"),
        (f"--recorded-at {known}", "60.00"),
        ("--effective-at 2024-01-01T00:00:00Z", "-40.00"),
        (f"--at-position {before} --effective-at 2024-01-01T00:00:00Z", "0.00"),
    ):
        assert f"posted {posted} EUR" in shell.ok(f"account balance alice~ {options}"), options


# --- lists -----------------------------------------------------------------------------------------------------------


def test_a_list_of_accounts_goes_by_its_filters(client: Client, shell: Shell) -> None:
    """Kinds, statuses, a currency, and when they were opened."""
    tunisian = {"currency_code": "TND"}
    client(opening("bank~", kind=ACCOUNT_KIND_EXTERNAL, **tunisian))
    alice = client(opening("alice~", **tunisian)).recorded_at.ToJsonString()
    client(opening("bob~", **tunisian))
    client(freeze("bob~", scope=FREEZE_SCOPE_CREDITS))
    client(opening("carol~", **tunisian))
    client(close("carol~"))
    client(opening("other~"))

    def listed(options: str) -> list[str]:
        line = f"account list --currency TND --order oldest --min-position {client.position} {options}"
        return [row.split()[0] for row in shell.ok(line)[1:-1]]

    assert listed("") == ["bank~", "alice~", "bob~", "carol~"]
    assert listed("--order newest") == ["carol~", "bob~", "alice~", "bank~"]
    assert listed("--kind external") == ["bank~"]
    assert listed("--kind external --kind customer --status frozen --status closed") == ["bob~", "carol~"]
    assert listed(f"--opened-since {alice}") == ["alice~", "bob~", "carol~"]
    assert listed(f"--opened-until {alice}") == ["bank~"]
    lines = shell.ok("account list --currency TND --status frozen")
    assert lines[:2] == [
        "account kind status posted reserved available credit limit version",
        "bob~ customer frozen (credits) 0.000 TND 0.000 0.000 0.000 2",
    ]
    assert re.fullmatch(r"1 account\. Read at position \d+\.", lines[-1])
    assert shell.ok("account list --currency XPF")[0].startswith("0 accounts. Read at position ")


def test_a_list_of_payments_goes_by_its_filters(funded: Client, shell: Shell) -> None:
    """Accounts on either side, states, a currency, a reference, and when they were authorized."""
    funded(authorize("p1~", reference="R~"))
    second = funded(authorize("p2~")).recorded_at.ToJsonString()
    funded(capture("p2~"))
    funded(authorize("p3~", payer_account_id="shop~", payee_account_id="alice~"))
    funded(authorize("p4~", 1_000_00))

    def listed(options: str) -> list[str]:
        line = f"payment list --account alice~ --order oldest --min-position {funded.position} {options}"
        return [row.split()[0] for row in shell.ok(line)[1:-1]]

    assert listed("") == ["p1~", "p2~", "p3~", "p4~"]
    assert listed("--from shop~") == ["p3~"]
    assert listed("--to shop~") == ["p1~", "p2~", "p4~"]
    assert listed("--state declined --state captured") == ["p2~", "p4~"]
    assert listed("--currency USD") == []
    assert listed(f"--authorized-since {second}") == ["p2~", "p3~", "p4~"]
    assert listed(f"--authorized-until {second}") == ["p1~"]
    assert listed("--reference R~") == ["p1~"]
    assert shell.ok("payment list --account alice~")[:-1] == [
        "payment state from to authorized captured capturable",
        "p4~ declined alice~ shop~ 0.00 EUR 0.00 0.00",
        "p3~ authorized shop~ alice~ 10.00 EUR 0.00 10.00",
        "p2~ captured alice~ shop~ 10.00 EUR 10.00 0.00",
        "p1~ authorized alice~ shop~ 10.00 EUR 0.00 10.00",
    ]


def test_a_list_of_transfers_goes_by_its_filters(funded: Client, shell: Shell) -> None:
    """An account in a leg, states, a currency, a reference, and when they were recorded."""
    second = funded(transfer("t2~", leg("bank~", "alice~", 1_00), leg("alice~", "shop~", 2_00))).recorded_at
    funded(transfer("t3~", leg("alice~", "bank~", 1_000_00), reference="R~"))

    def listed(options: str) -> list[str]:
        line = f"transfer list --account alice~ --order oldest --min-position {funded.position} {options}"
        return [row.split()[0] for row in shell.ok(line)[1:-1]]

    assert listed("") == ["fund~", "t2~", "alice~", "t3~"]  # of the second leg only the accounts are shown
    assert listed("--account shop~") == ["t2~", "alice~"]
    assert listed("--state declined") == ["t3~"]
    assert listed("--currency USD") == []
    assert listed(f"--recorded-since {second.ToJsonString()}") == ["t2~", "alice~", "t3~"]
    assert listed(f"--recorded-until {second.ToJsonString()}") == ["fund~"]
    assert listed("--reference R~") == ["t3~"]
    when = f"{second.ToDatetime():%Y-%m-%dT%H:%M:%SZ}"
    assert shell.ok("transfer list --account shop~")[:3] == [
        "transfer state recorded at from to amount",
        f"t2~ posted {when} bank~ alice~ 1.00 EUR",
        "alice~ shop~ 2.00 EUR",
    ]


def test_a_list_of_entries_goes_by_its_filters(funded: Client, shell: Shell) -> None:
    """Kinds, a reference, and times; each line has what it did, why, and what is left."""
    second = funded(authorize("order~", reference="R~", effective_at=at(2024))).recorded_at.ToJsonString()
    funded(capture("order~", amount=eur(4_00), keep_remainder=True))
    funded(freeze("alice~", reason="a dispute"))
    line = f"account entries alice~ --order oldest --min-position {funded.position}"

    def listed(options: str) -> list[str]:
        return [row.split()[1] for row in shell.ok(f"{line} {options}")[1:-1]]

    assert listed("") == ["opening", "transfer", "authorization", "capture", "freeze"]
    assert listed("--kind capture --kind freeze") == ["capture", "freeze"]
    assert listed(f"--recorded-since {second}") == ["authorization", "capture", "freeze"]
    assert listed(f"--recorded-until {second}") == ["opening", "transfer"]
    assert listed("--effective-since 2024-01-01T00:00:01Z") == ["opening", "transfer", "capture", "freeze"]
    assert listed("--effective-until 2024-01-01T00:00:01Z") == ["authorization"]
    assert listed("--reference R~") == ["authorization", "capture"]
    head, *rows, last = shell.ok(line)
    assert head == "recorded at kind cause counterparty amount reserved change posted available position"
    assert [re.sub(r"^20\S+Z | \d+$", "", row) for row in rows] == [
        "opening 0.00 0.00 0.00 EUR 0.00",
        "transfer fund~ bank~ 100.00 0.00 100.00 EUR 100.00",
        "authorization order~ 0.00 10.00 100.00 EUR 90.00",
        "capture order~/c1 shop~ -4.00 -4.00 96.00 EUR 90.00",
        "freeze a dispute 0.00 0.00 96.00 EUR 90.00",
    ]
    assert re.fullmatch(r"5 entries\. Read at position \d+\.", last)
    assert "(ACCOUNT_NOT_FOUND)" in shell.refused("account entries nobody~")


def test_a_list_is_read_page_after_page(funded: Client, shell: Shell) -> None:
    """And shown as one: as many rows as asked for, however many come at a time; and it says if there are more."""
    funded.do(*(authorize(f"p{number}~", 1) for number in range(7)))
    line = f"payment list --account alice~ --min-position {funded.position}"
    newest = [f"p{number}~" for number in reversed(range(7))]

    for options, rows, more in (
        ("", 7, False),
        ("--page-size 1", 7, False),
        ("--page-size 3", 7, False),
        ("--page-size 7 --limit 7", 7, False),
        ("--page-size 3 --limit 6", 6, True),
        ("--page-size 3 --limit 5", 5, True),
        ("--limit 1", 1, True),
    ):
        lines = shell.ok(f"{line} {options}")
        assert [row.split()[0] for row in lines[1:-1]] == newest[:rows], options
        ending = ", and there are more: see --limit" if more else ""
        name = "payment" if rows == 1 else "payments"
        assert lines[-1].startswith(f"{rows} {name}{ending}. Read at position "), options
        listing = shell(f"{line} {options} --json").read(ListPaymentsResponse, funded)
        assert [each.payment_id for each in listing.payments] == list(map(funded.name, newest[:rows]))
        assert bool(listing.next_page_token) == more
        assert listing.payments[0] == funded.payment(newest[0])


@pytest.mark.parametrize(
    ("line", "response"),
    [
        ("account list --kind external", ListAccountsResponse),
        ("account entries alice~", ListEntriesResponse),
        ("payment list --account alice~", ListPaymentsResponse),
        ("transfer list --account alice~", ListTransfersResponse),
    ],
)
def test_a_list_is_one_object_of_json(line: str, response: type[Any], funded: Client, shell: Shell) -> None:
    """The response of the API, with the rows of all pages."""
    funded.do(authorize("order~"))

    # Of all the accounts of the server's tests only those of this one.
    since = f" --opened-since {funded.account('bank~').opened_at.ToJsonString()}" if "account list" in line else ""

    ended = shell(f"{line}{since} --json --page-size 1 --min-position {funded.position}")

    assert (ended.code, ended.err) == (0, "")
    listing = ended.read(response, funded)
    assert listing.position >= funded.position
    assert not listing.next_page_token
    assert set(json.loads(ended.out)) == {each.name for each in response.DESCRIPTOR.fields}


# --- declines and refusals -------------------------------------------------------------------------------------------


def test_a_declined_payment_says_why_and_ends_with_1(funded: Client, shell: Shell) -> None:
    """In words on stdout; as JSON it is the response, with the same exit code. A look at it later ends well."""
    line = "payment authorize order~ 100.01 EUR --from alice~ --to shop~"
    declined = shell(line)

    assert (declined.code, declined.err) == (1, "")
    assert declined.lines[1] == "order~ declined 0.00 EUR 0.00 0.00"
    assert declined.lines[2] == (
        "DECLINED: INSUFFICIENT_FUNDS on account alice~. The id is used up: to try again, take a new one."
    )
    again = shell(f"{line} --json")
    assert (again.code, again.err) == (1, "")
    response = again.read(AuthorizePaymentResponse, funded)
    assert response.replayed
    assert response.payment.decline_reason == DECLINE_REASON_INSUFFICIENT_FUNDS
    shown = shell.ok(f"payment show order~ --min-position {response.position}")
    assert {"state declined", "decline reason insufficient funds", "declined account alice~"} <= set(shown)


def test_a_declined_transfer_names_the_leg(funded: Client, shell: Shell) -> None:
    """And the account of that leg."""
    funded.do(freeze("shop~"))
    declined = shell("transfer post t~ --leg 'alice~ bank~ 1 EUR' --leg 'alice~ shop~ 1 EUR'")
    alone = shell("transfer post u~ 1 EUR --from alice~ --to shop~")

    assert (declined.code, alone.code) == (1, 1)
    assert declined.lines[3].startswith("DECLINED: ACCOUNT_FROZEN on account shop~, in leg 1. ")
    assert alone.lines[2].startswith("DECLINED: ACCOUNT_FROZEN on account shop~. ")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("account show nobody~", "There is no account 'nobody~' in this ledger. (ACCOUNT_NOT_FOUND)"),
        ("payment show none~", "There is no payment 'none~' in this ledger. (PAYMENT_NOT_FOUND)"),
        ("transfer show none~", "There is no transfer 'none~' in this ledger. (TRANSFER_NOT_FOUND)"),
        (
            "payment authorize order~ 1 USD --from alice~ --to shop~",
            "Account 'alice~' holds EUR, not USD. (CURRENCY_MISMATCH)",
        ),
        (
            "account set-limit alice~ 1 EUR --expect alice~=1 --expect shop~=1",
            "Account 'alice~' is at version 2, not at 1 as the precondition says. (VERSION_MISMATCH)",
        ),
        (
            "account close alice~ --json",
            "Account 'alice~' can't be closed: 10000 is posted on it and 0 reserved",
        ),
        ("account show alice~ --min-position 999999999999", "There is no position 999999999999 yet: the log ends at "),
    ],
)
def test_a_refusal_is_one_line_on_stderr(line: str, complaint: str, funded: Client, shell: Shell) -> None:
    """With the reason that programs go by; also where JSON was asked for."""
    said = shell.refused(line)

    assert said.startswith("ledger: ")
    assert said.count("\n") == 1
    assert complaint in said


def test_a_malformed_request_names_its_fields(funded: Client, shell: Shell) -> None:
    """One per line, after the message."""
    said = shell.refused("payment authorize 'order 17' 0 EUR --from alice~ --to alice~ --hold-for 32d")

    message, *fields = said.splitlines()
    assert re.fullmatch(r"ledger: The request is malformed: .* \(INVALID_REQUEST\)", message)
    assert [line.split(":")[0] for line in fields] == ["  payment_id", "  amount.minor_units", "  hold_for"]


def test_preconditions_that_hold_change_nothing(funded: Client, shell: Shell) -> None:
    """The versions are those that every command shows."""
    version = shell.ok("account set-limit alice~ 1 EUR")[1].split()[-1]

    assert shell.ok(f"account set-limit alice~ 2 EUR --expect alice~={version} --expect shop~=1")[1].endswith(" 2.00 4")


def test_a_validation_records_nothing(funded: Client, shell: Shell) -> None:
    """It shows what would be, also of the accounts."""
    line = "payment authorize order~ 25 EUR --from alice~ --to shop~ --validate-only"
    lines = shell.ok(line)

    assert lines[1:] == [
        "order~ authorized 25.00 EUR 0.00 25.00",
        "Only validated, nothing was recorded.",
        "The accounts as they would be afterwards:",
        "account posted reserved available credit limit version",
        "alice~ 100.00 EUR 25.00 75.00 0.00 3",
        "shop~ 0.00 EUR 0.00 0.00 0.00 1",
    ]
    assert "(PAYMENT_NOT_FOUND)" in shell.refused("payment show order~")
    declined = shell(line.replace("25", "101"))
    assert declined.code == 1
    assert "DECLINED: INSUFFICIENT_FUNDS on account alice~." in declined.lines
    assert "Only validated, nothing was recorded." in declined.lines
    replay = shell.ok("account unfreeze alice~ --validate-only")
    assert "Only validated, nothing was recorded. It would be a replay." in replay


def test_texts_of_others_can_not_play_with_the_terminal(funded: Client, shell: Shell) -> None:
    """What can't be printed is shown escaped, and square brackets are no markup."""
    funded.do(authorize("order~", reference="\x1b[2J\n[red]Müller[/red] :smile:", metadata={"\u202eevil": "\x07"}))

    shown = shell.ok(f"payment show order~ --min-position {funded.position}")

    assert r"reference \x1b[2J\n[red]Müller[/red] :smile:" in shown
    assert r"metadata \u202eevil=\x07" in shown


# --- wrong usage -----------------------------------------------------------------------------------------------------

AUTHORIZE: Final = "payment authorize order~ --from alice~ --to shop~"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (f"{AUTHORIZE} 25.001 EUR", "'25.001' has too many digits: EUR has 2 minor digits"),
        (f"{AUTHORIZE} 25.0 JPY", "JPY has no minor digits"),
        (f"{AUTHORIZE} 1,000 EUR", "'1,000' is not an amount"),
        (f"{AUTHORIZE} 1e3 EUR", "'1e3' is not an amount"),
        (f"{AUTHORIZE} -- -5 EUR", "'-5' is not an amount"),
        (f"{AUTHORIZE} 10000000000000000.01 EUR", "is too large"),
        (f"{AUTHORIZE} 25 eur", "'eur' is not a currency code of ISO 4217"),
        (f"{AUTHORIZE} 25 XAU", "has no minor units"),
        (f"{AUTHORIZE} 25", "Missing argument 'CURRENCY'"),
        ("payment authorize order~ 25 EUR --to shop~", "Missing option '--from'"),
        (f"{AUTHORIZE} 25 EUR --hold-for 7", "'7' is not a length of time, such as 7d, 12h, 30m or 90s"),
        (f"{AUTHORIZE} 25 EUR --hold-for -1d", "'-1d' is not a length of time"),
        (f"{AUTHORIZE} 25 EUR --hold-for 1d12h", "'1d12h' is not a length of time"),
        (f"{AUTHORIZE} 25 EUR --effective-at 2024-01-31", "'--effective-at': '2024-01-31' is not a time with a zone"),
        (f"{AUTHORIZE} 25 EUR --effective-at 2024-02-30T12:00:00Z", "there is no such time"),
        (f"{AUTHORIZE} 25 EUR --metadata tier", "'--metadata': 'tier' is not KEY=VALUE"),
        (f"{AUTHORIZE} 25 EUR --metadata a=1 --metadata a=1", "the key 'a' is given twice"),
        (f"{AUTHORIZE} 25 EUR --expect alice~", "is not ACCOUNT=VERSION"),
        (f"{AUTHORIZE} 25 EUR --expect alice~=-1", "is not ACCOUNT=VERSION"),
        (f"{AUTHORIZE} 25 EUR --expect =1", "'=1' is not ACCOUNT=VERSION"),
        (f"{AUTHORIZE} 25 EUR --expect alice~=9999999999999999999", "is not ACCOUNT=VERSION"),
        (f"{AUTHORIZE} 25 EUR --reference \udcff", "an argument is not UTF-8"),
        ("payment capture order~ 25", "'25' needs its currency, such as '25 EUR'"),
        ("payment show order~ --at-position 1 --recorded-at 2024-01-31T12:00:00Z", "exclude each other"),
        ("payment show order~ --at-position -1", "'-1' is not a position"),
        ("account balance alice~ --min-position many", "'many' is not a position"),
        ("account open alice~ EUR --kind bank", "'bank' is none of customer, external"),
        ("account open alice~ EUR --credit-limit -1", "'-1' is not an amount"),
        ("account freeze alice~ --scope some", "'some' is none of debits, credits, all"),
        ("account entries alice~ --kind interest", "'interest' is none of opening, authorization, increment, capture,"),
        ("payment list --state partially_captured", "is none of declined, authorized, partially-captured, captured,"),
        ("payment list --limit 0", "Input should be greater than or equal to 1"),
        ("payment list --page-size 1001", "Input should be less than or equal to 1000"),
        ("payment list --order sideways", "'sideways' is not one of 'newest', 'oldest'"),
        ("transfer post t~", "a leg needs all of --from, --to, AMOUNT and CURRENCY"),
        ("transfer post t~ 1 EUR --from alice~", "a leg needs all of --from, --to, AMOUNT and CURRENCY"),
        ("transfer post t~ 1 EUR --leg 'alice~ shop~ 1 EUR'", "a leg needs all of --from, --to, AMOUNT and CURRENCY"),
        ("transfer post t~ --leg 'alice~ shop~ 1'", "1' is not FROM TO AMOUNT CURRENCY"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_sent(line: str, complaint: str, shell: Shell) -> None:
    """On stderr, with exit code 2."""
    assert complaint in shell.usage(line)


@pytest.mark.parametrize(
    ("flag", "complaint"),
    [
        ("--ledger=Main", "ledger: --ledger: 'Main'"),
        ("--server=nowhere", "ledger: --server: 'nowhere' is not HOST:PORT"),
        ("--server=127.0.0.1:99999", "ledger: --server: '127.0.0.1:99999' is not HOST:PORT"),
    ],
)
def test_a_server_or_ledger_that_can_not_be_is_wrong_usage(flag: str, complaint: str, shell: Shell) -> None:
    """Found by the settings, which all commands share."""
    ended = shell.anywhere("account show alice~", flag)

    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(complaint)


# --- the server ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["account show alice~", "payment void order~ --json", "payment list"])
def test_a_server_that_is_not_there_ends_with_3(line: str, shell: Shell) -> None:
    """In one line, with what to do."""
    ended = shell.anywhere(line, "--server", NOBODY)

    assert ended == (3, "", f"ledger: no ledger answers at {NOBODY}: is `ledger serve` running there?\n")


def test_something_else_that_answers_is_no_ledger(shell: Shell) -> None:
    """A gRPC server that does not know the call: its error has none of a ledger's reasons."""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    ended = shell.anywhere("account show alice~", "--server", f"127.0.0.1:{port}")
    server.stop(None).wait()

    assert (ended.code, ended.out) == (3, "")
    assert ended.err.startswith(
        f"ledger: no answer from the ledger at 127.0.0.1:{port}: Method not found! (UNIMPLEMENTED)"
    )


def test_the_server_can_be_named_by_the_environment(server: LedgerServer, funded: Client, shell: Shell) -> None:
    """And the ledger; a flag goes before both."""
    named = {"LEDGER_SERVER": server.address, "LEDGER_LEDGER": server.ledger}
    line = f"account show alice~ --min-position {funded.position}"

    assert shell.anywhere(line, **named).code == 0
    assert shell.anywhere(line, "--server", NOBODY, **named).code == 3
    nowhere = shell.anywhere(line, "--ledger", "nowhere", **named)
    assert (nowhere.code, nowhere.err) == (1, "ledger: This server has no ledger 'nowhere'. (LEDGER_NOT_FOUND)\n")


def test_a_server_on_this_machine_is_not_asked_by_way_of_a_proxy(server: LedgerServer) -> None:
    """A proxy would call its own machine, and a token goes to a loopback address in the clear."""
    where = ("--server", server.address, "--ledger", server.ledger)
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.setblocking(False)
        proxies = dict.fromkeys(
            ("http_proxy", "https_proxy", "grpc_proxy"), f"http://127.0.0.1:{proxy.getsockname()[1]}"
        )
        listed = run_ledger("account", "list", *where, LEDGER_TOKEN="secret", **proxies)
        with pytest.raises(BlockingIOError):
            proxy.accept()

    assert listed.returncode == 0, listed.stderr


# --- as processes ----------------------------------------------------------------------------------------------------


def test_a_process_keeps_its_streams_apart(server: LedgerServer, funded: Client) -> None:
    """JSON alone on stdout, and what a person has to know on stderr; a file of words has no colours."""
    where = ("--server", server.address, "--ledger", server.ledger)
    funded.do(authorize("order~"))
    order = funded.name("order~")

    captured = run_ledger("payment", "capture", order, *where, "--json")
    assert captured.returncode == 0, captured.stderr
    response = Parse(captured.stdout, CapturePaymentResponse())
    (part,) = response.payment.captures
    assert captured.stderr == (
        f"ledger: the id of this capture is {part.capture_id}; to repeat it, add --id {part.capture_id}\n"
    )
    refused = run_ledger("payment", "void", order, *where)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert (
        refused.stderr == f"ledger: Payment '{order}' is captured in full: nothing of it is left. (PAYMENT_CAPTURED)\n"
    )
    shown = run_ledger("payment", "show", order, "--min-position", response.position, *where)
    assert shown.returncode == 0
    assert "amount captured    10.00 EUR" in shown.stdout
    assert "\x1b" not in shown.stdout


def test_a_letter_that_an_encoding_lacks_is_escaped(server: LedgerServer, funded: Client, tmp_path: Path) -> None:
    """A command that was done does not end like a failure for how its answer would look."""
    position = funded(authorize("order~", reference="Müller")).position
    where = ("--server", server.address, "--ledger", server.ledger, "--min-position", position)
    shown = run_ledger("payment", "show", funded.name("order~"), *where, PYTHONIOENCODING="ascii")
    made = run_ledger("backup", tmp_path / "für-später", *server.where, PYTHONIOENCODING="ascii")

    assert (shown.returncode, shown.stderr) == (0, "")
    assert re.search(r"^reference +M\\xfcller *$", shown.stdout, re.MULTILINE)
    assert (made.returncode, made.stderr) == (0, "")
    assert r"f\xfcr-sp\xe4ter (" in made.stdout


@pytest.mark.parametrize("line", ["account list", "healthcheck"])
def test_a_reader_that_is_gone_is_told_nothing(line: str, server: LedgerServer) -> None:
    """As behind `| head`: no traceback, whoever notices."""
    command = [*LEDGER, *line.split(), "--server", server.address]
    env = environment() | {"LEDGER_LEDGER": server.ledger, "PYTHONUNBUFFERED": ""}
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        ended = subprocess.run(command, cwd=ROOT, env=env, stdout=gone, stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (1, "")


@pytest.mark.parametrize("group", ["account", "payment", "transfer"])
def test_there_is_a_command_for_every_rpc(group: str, shell: Shell) -> None:
    """As many as the service has, each with a line in the help of its group."""
    ended = shell.anywhere(f"{group} --help")
    listed = re.findall(r"^│ ([a-z][a-z-]+) +\S", ended.out, re.MULTILINE)
    service = next(each for each in SERVICES if each.name.lower().startswith(group))

    assert ended.code == 0
    assert len(set(listed)) == len(service.methods)
    assert shell.anywhere(group).code == 2
