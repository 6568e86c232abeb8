"""Turn a Czech bank's transactions (the Berka data set) into the two files that `ledger import` reads.

    python examples/berka/convert.py TRANSACTIONS.csv.gz OUTDIR

Writes OUTDIR/accounts.csv and OUTDIR/movements.csv. Needs nothing but Python.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CURRENCY = "CZK"
CREDIT_LIMIT = "25000.00"

CREDIT = "PRIJEM"
DEBITS = ("VYDAJ", "VYBER")

# The world outside, one account for each way in or out. The bank leaves `operation` empty for interest.
WAYS_IN = {
    "VKLAD": "berka:external:cash-in",
    "PREVOD Z UCTU": "berka:external:from-other-bank",
    "": "berka:external:interest",
}
WAYS_OUT = {
    "VYBER": "berka:external:cash-out",
    "PREVOD NA UCET": "berka:external:to-other-bank",
    "VYBER KARTOU": "berka:external:card",
    "": "berka:external:charges",
}

COLUMNS = ["trans_id", "account_id", "date", "type", "operation", "amount", "balance", "k_symbol", "bank", "account"]


class Unreadable(ValueError):
    """The transactions are not what they must be."""


class Movement(NamedTuple):
    """A row of movements.csv: a credit is a transfer from the world outside, a debit a payment to it."""

    id: str
    effective_at: str
    kind: str
    from_account: str
    to_account: str
    amount: str
    reference: str


def movements(transactions: Path) -> Iterator[Movement]:
    """The transactions as movements, one for one and in the same order. Raises Unreadable."""
    with gzip.open(transactions, "rt", encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        if rows.fieldnames != COLUMNS:
            raise Unreadable(f"{transactions}: the columns must be {','.join(COLUMNS)}")
        for row in rows:
            try:
                yield movement(row)
            except KeyError as error:
                raise Unreadable(f"{transactions}, line {rows.line_num}: unknown type or operation {error}") from None


def movement(row: dict[str, str]) -> Movement:
    """One transaction as a movement. Raises KeyError if the type or the operation is unknown."""
    customer = f"berka:{row['account_id']}"
    # The data say the day. Noon UTC is on that day in Prague, and in most places from which it may be looked at.
    head = (f"berka:{row['trans_id']}", f"{row['date']}T12:00:00Z")
    tail = (row["amount"], reference(row))
    if row["type"] == CREDIT:
        return Movement(*head, "transfer", WAYS_IN[row["operation"]], customer, *tail)
    if row["type"] in DEBITS:
        return Movement(*head, "payment", customer, WAYS_OUT[row["operation"]], *tail)
    raise KeyError(row["type"])


def reference(row: dict[str, str]) -> str:
    """The purpose and the other side, where the bank names them: "SIPO to YZ/30300313"."""
    other_side = f"{row['bank']}/{row['account']}" if row["bank"] else ""
    word = "from" if row["type"] == CREDIT else "to"
    return " ".join(filter(None, [row["k_symbol"], other_side and f"{word} {other_side}"]))


def convert(transactions: Path, folder: Path) -> tuple[int, int]:
    """Write both files; how many accounts and movements they have."""
    external = {*WAYS_IN.values(), *WAYS_OUT.values()}
    accounts: dict[str, None] = {}  # in the order of first appearance
    count = 0
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "movements.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Movement._fields)
        for each in movements(transactions):
            accounts[each.from_account] = accounts[each.to_account] = None
            writer.writerow(each)
            count += 1
    with (folder / "accounts.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["account_id", "currency", "kind", "credit_limit"])
        for name in accounts:
            writer.writerow(
                [name, CURRENCY, "external", ""] if name in external else [name, CURRENCY, "customer", CREDIT_LIMIT]
            )
    return len(accounts), count


def main() -> None:
    parser = argparse.ArgumentParser(description="Turn the Berka transactions into accounts.csv and movements.csv.")
    parser.add_argument("transactions", type=Path, metavar="TRANSACTIONS.csv.gz")
    parser.add_argument("folder", type=Path, metavar="OUTDIR")
    arguments = parser.parse_args()
    try:
        accounts, count = convert(arguments.transactions, arguments.folder)
    except (OSError, EOFError, UnicodeDecodeError, Unreadable) as error:
        sys.exit(f"convert: {error}")
    print(f"{arguments.folder}: {accounts:,} accounts, {count:,} movements")


if __name__ == "__main__":
    main()
