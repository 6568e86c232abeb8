"""Fifteen months of a real bank, imported through a running server and held against what the bank itself printed."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any, Final, NamedTuple

import psycopg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from serving import ROOT, LedgerServer

from ledger.client import Target
from ledger.import_report import ImportSummary
from ledger.importer import run_import
from ledger.v1.account_pb2 import GetAccountBalanceRequest
from ledger.v1.account_pb2_grpc import AccountServiceStub

CROWN: Final = 100  # haléřů

AccountDay = tuple[str, date]


class Bank(NamedTuple):
    """What the bank's file says, in haléře. By account and day: the running sum at its end, the balances printed."""

    ends: Mapping[AccountDay, int]
    printed: Mapping[AccountDay, set[int]]
    came_in: int
    went_out: int


def transactions_file() -> Path:
    folder = Path(os.environ.get("LEDGER_TEST_DATA", ROOT.parent / "shared" / "data"))
    places = [folder / "berka" / "transactions.csv.gz", folder / "transactions.csv.gz"]
    return next((place for place in places if place.exists()), places[0])


def haler(text: str) -> int:
    crowns, _, rest = text.removeprefix("-").partition(".")
    amount = int(crowns) * CROWN + int(rest.ljust(2, "0"))
    return -amount if text.startswith("-") else amount


@pytest.fixture(scope="module")
def bank() -> Bank:
    """The file, added up by nothing but this function."""
    path = transactions_file()
    if not path.exists():
        pytest.skip(f"the Berka data are not there ({path}); LEDGER_TEST_DATA can name their folder")
    balances: defaultdict[str, int] = defaultdict(int)
    ends: dict[AccountDay, int] = {}
    printed: defaultdict[AccountDay, set[int]] = defaultdict(set)
    sums: Counter[bool] = Counter()
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            account_id, amount, is_credit = f"berka:{row['account_id']}", haler(row["amount"]), row["type"] == "PRIJEM"
            account_day = (account_id, date.fromisoformat(row["date"]))
            balances[account_id] += amount if is_credit else -amount
            ends[account_day] = balances[account_id]
            printed[account_day].add(haler(row["balance"]))
            sums[is_credit] += amount
    return Bank(ends, printed, sums[True], sums[False])


@pytest.fixture(scope="module")
def imported(bank: Bank, server: LedgerServer, tmp_path_factory: pytest.TempPathFactory) -> ImportSummary:
    """All rows, converted by the example's script and imported through the API."""
    folder = tmp_path_factory.mktemp("berka")
    script = ROOT / "examples" / "berka" / "convert.py"
    subprocess.run([sys.executable, script, transactions_file(), folder], check=True)
    return run_import(
        folder / "accounts.csv",
        folder / "movements.csv",
        target=Target(server.address),
        ledger=server.ledger,
        console=Console(file=io.StringIO()),
    )


@pytest.fixture
def database(imported: ImportSummary, server: LedgerServer) -> Iterator[psycopg.Connection[Any]]:
    """The ledger's tables, all of the import in them."""
    with server.database() as database:
        yield database


def test_every_row_is_done(imported: ImportSummary) -> None:
    """None is declined: a credit limit of 25,000.00 is enough for every order of the rows within a day."""
    assert imported.complete
    assert imported.accounts.done == 963 + 6
    assert imported.movements.done == 36_882
    assert imported.is_readable


def test_every_end_of_day_is_the_banks(bank: Bank, database: psycopg.Connection[Any]) -> None:
    """All 30,436 account-days, by the day on which the rows took effect, not by the order in which they came."""
    ends = {
        (account_id, day): posted
        for account_id, day, posted in database.execute("""
            SELECT account_id, (effective_at AT TIME ZONE 'UTC')::date AS day,
                   sum(sum(posted_change)) OVER (PARTITION BY account_id ORDER BY min(effective_at))::bigint
            FROM entries WHERE account_id ~ '^berka:[0-9]+$' AND posted_change <> 0
            GROUP BY account_id, day
        """)
    }

    assert len(ends) == 30_436
    assert ends == bank.ends
    # The bank rounds what it prints to 0.10, and the difference adds up.
    far = {key for key, posted in ends.items() if min(abs(posted - each) for each in bank.printed[key]) > CROWN}
    assert not far
    assert sum(posted in bank.printed[key] for key, posted in ends.items()) == 18_121
    assert sum(posted < 0 for posted in ends.values()) == 41
    assert min(ends.values()) == haler("-5446.60")


def test_a_sample_of_ends_of_day_is_read_over_the_api(
    bank: Bank, imported: ImportSummary, server: LedgerServer
) -> None:
    """GetAccountBalance at the last microsecond of a day is what the bank had at its end."""
    sample = sorted(bank.ends)[:: len(bank.ends) // 50]
    assert len(sample) >= 50
    with server.channel() as channel:
        accounts = AccountServiceStub(channel)
        for account_id, day in sample:
            midnight = Timestamp()
            midnight.FromDatetime(datetime.combine(day, time.max, UTC))
            request = GetAccountBalanceRequest(
                ledger=server.ledger,
                account_id=account_id,
                effective_at=midnight,
                min_position=imported.last_position,
            )
            assert accounts.GetAccountBalance(request).balance.posted == bank.ends[account_id, day], (account_id, day)


def test_the_totals_are_the_banks(bank: Bank, database: psycopg.Connection[Any]) -> None:
    """What came in and what went out, over the accounts of the world outside."""
    totals = database.execute("""
        SELECT -sum(posted_change) FILTER (WHERE posted_change < 0), sum(posted_change) FILTER (WHERE posted_change > 0)
        FROM entries WHERE account_id LIKE 'berka:external:%'
    """).fetchone()

    assert totals == (haler("139061477.90"), haler("108335658.10"))
    assert totals == (bank.came_in, bank.went_out)


def test_all_accounts_together_have_nothing(database: psycopg.Connection[Any]) -> None:
    """The world outside lacks what is here. Nothing is promised any more: every payment was captured."""
    posted = dict(database.execute("SELECT currency_code, sum(posted) FROM balances GROUP BY currency_code"))
    reserved = database.execute("SELECT sum(reserved) FROM balances WHERE account_id LIKE 'berka:%'").fetchone()

    assert posted["CZK"] == 0
    assert set(posted.values()) == {0}
    assert reserved == (0,)


def test_the_read_models_are_a_fold_over_the_log(imported: ImportSummary, database: psycopg.Connection[Any]) -> None:
    """Added up from the amounts of all events, by nothing that the ledger uses."""
    posted: Counter[str] = Counter()
    reserved: Counter[str] = Counter()
    versions: dict[str, int] = {}
    captured: Counter[str] = Counter()
    transfers = set()
    with database.cursor("events") as events:  # one by one: there are 150,000
        events.itersize = 5_000
        events.execute("SELECT stream, version, topic, state FROM events WHERE position <= %s ORDER BY position",
                       [imported.last_position])  # fmt: skip
        for stream, version, topic, state in events:
            kind, _, name = stream.partition("/")
            event = json.loads(state)
            if kind == "account":
                assert version == versions.get(name, 0) + 1
                versions[name] = version
                amount = event.get("amount", 0)
                posted[name] += {"FundsCredited": amount, "FundsDebited": -amount}.get(topic, 0)
                is_less = topic == "FundsReleased" or event.get("from_reserved", False)
                reserved[name] += amount if topic == "FundsReserved" else -amount if is_less else 0
            elif topic == "PaymentCaptured":
                captured[name] += event["after"]["captured"] - event["before"]["captured"]
            elif topic == "TransferPosted":
                transfers.add(name)

    mine = {name for name in versions if name.startswith("berka:")}
    assert {
        account_id: rest
        for account_id, *rest in database.execute(
            "SELECT account_id, posted, reserved, version FROM balances WHERE account_id LIKE 'berka:%'"
        )
    } == {name: [posted[name], reserved[name], versions[name]] for name in mine}
    assert dict(
        database.execute("SELECT payment_id, amount_captured FROM payments WHERE payment_id LIKE 'berka:%'")
    ) == {name: amount for name, amount in captured.items() if name.startswith("berka:")}
    assert {
        transfer_id
        for (transfer_id,) in database.execute("SELECT transfer_id FROM transfers WHERE transfer_id LIKE 'berka:%'")
    } == {name for name in transfers if name.startswith("berka:")}
    assert (
        database.execute(
            "SELECT count(*), count(DISTINCT position) FROM entries WHERE account_id LIKE 'berka:%'"
        ).fetchone()
        == (sum(versions[name] for name in mine),) * 2
    )
