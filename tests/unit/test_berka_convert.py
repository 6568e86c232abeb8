"""The script that turns the Berka data into the files of an import, run as a user runs it."""

import csv
import gzip
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "berka" / "convert.py"

HEADER = "trans_id,account_id,date,type,operation,amount,balance,k_symbol,bank,account\n"
TRANSACTIONS = (
    HEADER
    + """\
5,20,1993-01-01,PRIJEM,VKLAD,700.00,700.00,,,
4,10,1993-01-02,PRIJEM,PREVOD Z UCTU,3401.50,3401.50,DUCHOD,IJ,6149286
9,10,1993-01-03,VYDAJ,VYBER,200.00,3201.50,SLUZBY,,0
2,20,1993-01-03,VYDAJ,PREVOD NA UCET,14.60,685.40,SIPO,YZ,30300313
3,20,1993-01-04,VYBER,VYBER,85.40,600.00,,,
7,20,1993-01-05,VYDAJ,VYBER KARTOU,100.00,500.00,,,0
6,20,1993-01-31,PRIJEM,,1.70,501.70,UROK,,
"""
)


def convert(folder: Path, transactions: str) -> subprocess.CompletedProcess[str]:
    source = folder / "transactions.csv.gz"
    source.write_bytes(gzip.compress(transactions.encode()))
    # -I: without the project on the path. The script needs nothing but Python.
    command = [sys.executable, "-I", str(SCRIPT), str(source), str(folder / "out" / "berka")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def lines(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_credits_are_transfers_and_debits_are_payments_in_the_order_of_the_file(tmp_path: Path) -> None:
    """Against one account of the world outside for each way in or out, at noon of the day."""
    done = convert(tmp_path, TRANSACTIONS)

    assert (done.returncode, done.stderr) == (0, "")
    assert "8 accounts, 7 movements" in done.stdout
    assert lines(tmp_path / "out" / "berka" / "movements.csv") == [
        ["id", "effective_at", "kind", "from_account", "to_account", "amount", "reference"],
        ["berka:5", "1993-01-01T12:00:00Z", "transfer", "berka:external:cash-in", "berka:20", "700.00", ""],
        ["berka:4", "1993-01-02T12:00:00Z", "transfer", "berka:external:from-other-bank", "berka:10", "3401.50",
         "DUCHOD from IJ/6149286"],
        ["berka:9", "1993-01-03T12:00:00Z", "payment", "berka:10", "berka:external:cash-out", "200.00", "SLUZBY"],
        ["berka:2", "1993-01-03T12:00:00Z", "payment", "berka:20", "berka:external:to-other-bank", "14.60",
         "SIPO to YZ/30300313"],
        ["berka:3", "1993-01-04T12:00:00Z", "payment", "berka:20", "berka:external:cash-out", "85.40", ""],
        ["berka:7", "1993-01-05T12:00:00Z", "payment", "berka:20", "berka:external:card", "100.00", ""],
        ["berka:6", "1993-01-31T12:00:00Z", "transfer", "berka:external:interest", "berka:20", "1.70", "UROK"],
    ]  # fmt: skip


def test_accounts_stand_in_the_order_of_first_appearance(tmp_path: Path) -> None:
    """Customers have a credit limit of 25,000.00 CZK; the world outside has none."""
    convert(tmp_path, TRANSACTIONS)

    assert lines(tmp_path / "out" / "berka" / "accounts.csv") == [
        ["account_id", "currency", "kind", "credit_limit"],
        ["berka:external:cash-in", "CZK", "external", ""],
        ["berka:20", "CZK", "customer", "25000.00"],
        ["berka:external:from-other-bank", "CZK", "external", ""],
        ["berka:10", "CZK", "customer", "25000.00"],
        ["berka:external:cash-out", "CZK", "external", ""],
        ["berka:external:to-other-bank", "CZK", "external", ""],
        ["berka:external:card", "CZK", "external", ""],
        ["berka:external:interest", "CZK", "external", ""],
    ]


@pytest.mark.parametrize(
    ("transactions", "says"),
    [
        ("a,b\n1,2\n", "the columns must be trans_id,account_id"),
        (HEADER + "5,20,1993-01-01,GIFT,VKLAD,700.00,700.00,,,\n", "line 2: unknown type or operation 'GIFT'"),
        (HEADER + "5,20,1993-01-01,PRIJEM,VYBER,7.00,7.00,,,\n", "line 2: unknown type or operation 'VYBER'"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, transactions: str, says: str) -> None:
    """A row that it does not understand must not become a movement in the wrong direction."""
    done = convert(tmp_path, transactions)

    assert done.returncode == 1
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_file_that_is_not_gzip_is_refused_in_one_line(tmp_path: Path) -> None:
    """No traceback for a wrong argument."""
    command = [sys.executable, "-I", str(SCRIPT), str(SCRIPT), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert done.stderr.startswith("convert: ")
    assert done.stderr.count("\n") == 1
