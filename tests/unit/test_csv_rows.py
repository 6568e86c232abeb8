"""The rows of an import's files: how lines are found, how cells are read, and what is said of those that are wrong."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.csv_rows import (
    ACCOUNT_COLUMNS,
    LINE_MOST_BYTES,
    MOVEMENT_COLUMNS,
    Account,
    CsvFile,
    MalformedRow,
    Row,
    UnusableFile,
    read_account,
    read_moment,
    read_movement,
)
from ledger.domain.money import Money

HEADER = b"account_id,currency,kind,credit_limit\n"


def rows(folder: Path, content: bytes) -> list[Row]:
    path = folder / "accounts.csv"
    path.write_bytes(content)
    with CsvFile(path, ACCOUNT_COLUMNS) as file:
        return list(file)


# --- lines -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(HEADER + b"alice,EUR,customer,\nbob,EUR,customer,5\n", id="plain"),
        pytest.param(HEADER + b"alice,EUR,customer,\nbob,EUR,customer,5", id="no end of line at the end"),
        pytest.param((HEADER + b"alice,EUR,customer,\nbob,EUR,customer,5\n").replace(b"\n", b"\r\n"), id="CRLF"),
        pytest.param(b"\xef\xbb\xbf" + HEADER + b"alice,EUR,customer,\nbob,EUR,customer,5\n", id="byte order mark"),
        pytest.param(HEADER + b'"alice",EUR,"customer",\n"bob","EUR","customer","5"\n', id="quotes"),
        pytest.param(b'"account_id","currency","kind","credit_limit"\n' + b"alice,EUR,customer,\nbob,EUR,customer,5\n"),
    ],
)
def test_the_same_rows_are_found_however_the_file_was_written(tmp_path: Path, content: bytes) -> None:
    """Line ends, a byte order mark and needless quotes are matters of the program that wrote the file."""
    found = rows(tmp_path, content)

    assert found == [Row(2, ["alice", "EUR", "customer", ""]), Row(3, ["bob", "EUR", "customer", "5"])]


def test_blank_lines_are_passed_over_and_counted(tmp_path: Path) -> None:
    """The number of a line is the one that an editor shows."""
    found = rows(tmp_path, HEADER + b"\n  \r\nalice,EUR,customer,\n\n\nbob,EUR,customer,5\n\n")

    assert [row.line for row in found] == [4, 7]


def test_quotes_keep_commas_and_doubled_quotes(tmp_path: Path) -> None:
    """What is quoted is one cell."""
    (row,) = rows(tmp_path, HEADER + b'"a, ""b""",EUR,customer,\n')

    assert row.cells == ['a, "b"', "EUR", "customer", ""]


BROKEN = [
    pytest.param(b"alice,EUR,customer", "3 columns instead of 4", id="a column too few"),
    pytest.param(b"alice,EUR,customer,5,", "5 columns instead of 4", id="a column too many"),
    pytest.param(b'"alice,EUR,customer,5', "the quotes are wrong", id="a quote that is not closed"),
    pytest.param(b'"al"ice,EUR,customer,5', "the quotes are wrong", id="a quote inside"),
    pytest.param(b"al\xefce,EUR,customer,5", "not UTF-8: byte 0xef at place 3 of the line", id="not UTF-8"),
    pytest.param(b"a" * 2 * LINE_MOST_BYTES + b",EUR,customer,", "longer than 65,536 bytes", id="endless"),
    pytest.param(b'"' + b"a" * 3 * LINE_MOST_BYTES, "longer than 65,536 bytes", id="endless, in quotes"),
]


@pytest.mark.parametrize(("line", "problem"), BROKEN)
def test_a_broken_line_spoils_no_other(tmp_path: Path, line: bytes, problem: str) -> None:
    """It is found with its number and what is wrong with it, and so is the sound one that follows."""
    broken, sound = rows(tmp_path, HEADER + line + b"\nbob,EUR,customer,5\n")

    assert broken.line == 2
    assert problem in broken.problem
    assert sound == Row(3, ["bob", "EUR", "customer", "5"])


@pytest.mark.parametrize(("line", "cells"), [
    (b"alice,EUR", ["alice", "EUR", "", ""]),
    (b"alice,EUR,customer,5,6,7", ["alice", "EUR", "customer", "5,6,7"]),
    (b'"alice,EUR', ["alice,EUR", "", "", ""]),
    (b"al\xefce,EUR,customer,5", ["al\\xefce", "EUR", "customer", "5"]),
])  # fmt: skip
def test_a_broken_row_is_shown_in_the_columns_of_the_file(tmp_path: Path, line: bytes, cells: list[str]) -> None:
    """So that it fits into the file of rejected rows, where a person looks at it."""
    (row,) = rows(tmp_path, HEADER + line + b"\n")

    assert row.cells == cells


@given(st.binary(max_size=200))
def test_any_bytes_make_rows_of_the_right_width(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Whatever stands below the header, reading it does not fail."""
    found = rows(tmp_path_factory.mktemp("any"), HEADER + content)

    assert all(len(row.cells) == len(ACCOUNT_COLUMNS) for row in found)
    assert len(found) <= content.count(b"\n") + 1


# --- headers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the file is empty; its first line must be account_id,currency,kind,credit_limit"),
        (b"account_id,kind,currency,credit_limit\n", "(in this order, each once)"),
        (b"account_id,currency,kind\n", "(missing: credit_limit)"),
        (b"account,currency,kind,credit_limit\n", "(missing: account_id; unknown: 'account')"),
        (b"account_id;currency;kind;credit_limit\n", "unknown: 'account_id;currency;kind;credit_limit'"),
        (b"alice,EUR,customer,\n", "the first line must be account_id,currency,kind,credit_limit (missing: account_id"),
        (b"\xff\xfea\0c\0", "this is UTF-16"),
        (b"\xff,\xff\n", "the first line must be account_id"),
        (b'"account_id\n', "the first line must be account_id"),
    ],
)
def test_a_wrong_header_is_said_at_once(tmp_path: Path, content: bytes, says: str) -> None:
    """With the columns as they must be, and the difference."""
    with pytest.raises(UnusableFile) as caught:
        rows(tmp_path, content)

    assert says in str(caught.value)
    assert str(tmp_path / "accounts.csv") in str(caught.value)


# --- accounts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "account"),
    [
        (["a", "EUR", "customer", ""], Account("a", "EUR", False, None)),
        (["a", "EUR", "CUSTOMER", "25.5"], Account("a", "EUR", False, Money("EUR", 2550))),
        (["a", "JPY", "External", ""], Account("a", "JPY", True, None)),
        (["a", "KWD", "customer", "0"], Account("a", "KWD", False, Money("KWD", 0))),
    ],
)
def test_an_account_is_read(cells: list[str], account: Account) -> None:
    """The kind in any case, the limit in the currency's own digits, or none."""
    assert read_account(cells) == account


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        (["a", "EUR", "", ""], "kind: '' is neither customer nor external"),
        (["a", "EUR", "bank", ""], "kind: 'bank' is neither customer nor external"),
        (["a", "eur", "customer", ""], "currency: 'eur' is not a currency code of ISO 4217"),
        (["a", "XAU", "customer", ""], "has no minor units"),
        (["a", "EUR", "customer", "1.005"], "credit_limit: '1.005' has too many digits"),
        (["a", "JPY", "customer", "1.0"], "credit_limit: '1.0' has too many digits"),
        (["a", "EUR", "customer", "-5"], "credit_limit: '-5' is not an amount"),
    ],
)
def test_a_malformed_account_names_the_column(cells: list[str], says: str) -> None:
    """The reason says where to look."""
    with pytest.raises(MalformedRow) as caught:
        read_account(cells)

    assert says in str(caught.value)


# --- movements -------------------------------------------------------------------------------------------------------

MOVEMENT = ["m1", "1993-01-31T12:00:00Z", "transfer", "bank", "alice", "12.34", "rent"]


def changed(**cells: str) -> list[str]:
    return [cells.get(column, cell) for column, cell in zip(MOVEMENT_COLUMNS, MOVEMENT, strict=True)]


def test_a_movement_is_read_in_the_currency_of_the_account_it_comes_from() -> None:
    """The amount is exact: minor units of that currency."""
    movement = read_movement(MOVEMENT, {"bank": "CZK"}.__getitem__)

    assert movement.amount == Money("CZK", 1234)
    assert (movement.id, movement.from_account, movement.to_account) == ("m1", "bank", "alice")
    assert movement.reference == "rent"
    assert not movement.is_payment
    assert movement.effective_at is not None
    assert movement.effective_at.ToJsonString() == "1993-01-31T12:00:00Z"


def test_a_movement_can_be_a_payment_and_leave_out_when_it_took_effect() -> None:
    """An empty effective_at is left to the ledger: when it is recorded."""
    movement = read_movement(changed(kind="payment", effective_at=""), lambda _: "CZK")

    assert movement.is_payment
    assert movement.effective_at is None


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        (changed(kind="refund"), "kind: 'refund' is neither transfer nor payment"),
        (changed(kind=""), "kind: '' is neither transfer nor payment"),
        (changed(amount="12.345"), "amount: '12.345' has too many digits: CZK has 2 minor digits"),
        (changed(amount="12.340"), "amount: '12.340' has too many digits"),
        (changed(amount="1,000"), "amount: '1,000' is not an amount"),
        (changed(amount="1e3"), "amount: '1e3' is not an amount"),
        (changed(amount=""), "amount: '' is not an amount"),
        (changed(amount="9" * 30), "is too large"),
        (changed(effective_at="1993-01-31"), "effective_at: '1993-01-31' is not a time with a zone"),
    ],
)
def test_a_malformed_movement_names_the_column(cells: list[str], says: str) -> None:
    """Nothing is rounded, nothing guessed."""
    with pytest.raises(MalformedRow) as caught:
        read_movement(cells, lambda _: "CZK")

    assert says in str(caught.value)


# --- times -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("1993-01-31T12:00:00Z", "1993-01-31T12:00:00Z"),
        ("1993-01-31t12:00:00z", "1993-01-31T12:00:00Z"),
        ("1993-01-31 12:00:00+01:00", "1993-01-31T11:00:00Z"),
        ("2024-02-29T23:59:59.5-05:30", "2024-03-01T05:29:59.500Z"),
        ("2024-02-29T00:00:00.123456789Z", "2024-02-29T00:00:00.123456Z"),
    ],
)
def test_a_time_is_rfc_3339(text: str, moment: str) -> None:
    """With any zone, to the microsecond."""
    assert read_moment(text).ToJsonString() == moment


@pytest.mark.parametrize(
    "text",
    [
        "1993-01-31",
        "1993-01-31T12:00:00",
        "1993-01-31T12:00Z",
        "19930131T120000Z",
        "1993-W05-1T12:00:00Z",
        "31.1.1993 12:00:00Z",
        "1993-02-30T12:00:00Z",
        "1993-01-31T25:00:00Z",
        "1993-01-31T12:00:60Z",
        "1993-01-31T12:00:00+25:00",
        "0000-01-31T12:00:00Z",
        "١٩٩٣-01-31T12:00:00Z",
        "1993-01-31T12:00:00Z\n",
        "now",
    ],
)
def test_other_times_are_refused(text: str) -> None:
    """A day alone is not a moment, and a time without a zone is many."""
    with pytest.raises(MalformedRow, match=r"^effective_at: (.* is not a time with a zone|there is no such time)"):
        read_moment(text)
