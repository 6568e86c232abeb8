"""The rows of the two files that an import reads: found line by line, then read as accounts and movements.

A row is one line. So a quote that is never closed spoils its own line and no other, and memory does not grow with the
file.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from google.protobuf.timestamp_pb2 import Timestamp

from ledger.domain.money import MalformedAmount, Money, UnknownCurrency, minor_digits, parse_amount
from ledger.moments import MalformedMoment, parse_moment
from ledger.terminal import quoted

ACCOUNT_COLUMNS: Final = ("account_id", "currency", "kind", "credit_limit")
MOVEMENT_COLUMNS: Final = ("id", "effective_at", "kind", "from_account", "to_account", "amount", "reference")

LINE_MOST_BYTES: Final = 64 * 1024

_BROKEN_SHOWN: Final = 60


class UnusableFile(ValueError):
    """The file as a whole is not what it must be."""


class MalformedRow(ValueError):
    """The row is not what it must be; the message names the column."""


class Row(NamedTuple):
    """One line of a file. `problem` is why it can't be used; its cells are then only fit to be shown."""

    line: int
    cells: list[str]
    problem: str = ""


class Account(NamedTuple):
    """A row of the accounts file. `credit_limit` is None where the cell is empty."""

    account_id: str
    currency_code: str
    is_external: bool
    credit_limit: Money | None


class Movement(NamedTuple):
    """A row of the movements file. `effective_at` is None where the cell is empty."""

    id: str
    effective_at: Timestamp | None
    is_payment: bool
    from_account: str
    to_account: str
    amount: Money
    reference: str


class CsvFile:
    """A CSV file with a header of just these columns, read once and line by line.

    Opening it raises UnusableFile if the header is another one, OSError if there is no such file. UTF-8, with or
    without a byte order mark; lines end with LF or CRLF; empty ones are passed over.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path = path
        self.columns: Final = tuple(columns)
        self.bytes_read = 0
        self._line = 0
        self._file = path.open("rb")
        try:
            self.size = path.stat().st_size
            self._check_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Row]:
        """The rows that follow the header, broken ones included."""
        while line := self._next_line():
            if not line.isspace():
                yield self._row(line)

    def _next_line(self) -> bytes:
        """The next line, b"" at the end. Of a line that is too long it is the beginning, one byte too long."""
        line = self._file.readline(LINE_MOST_BYTES + 1)
        self._line += 1
        self.bytes_read += len(line)
        rest = line
        while len(rest) > LINE_MOST_BYTES and not rest.endswith(b"\n"):
            rest = self._file.readline(LINE_MOST_BYTES + 1)
            self.bytes_read += len(rest)
        return line

    def _row(self, line: bytes) -> Row:
        if len(line) > LINE_MOST_BYTES:
            return self._broken(line[:_BROKEN_SHOWN], f"longer than {LINE_MOST_BYTES:,} bytes")
        try:
            text = line.decode().rstrip("\r\n")
            # Most lines have no quotes, and split is six times as fast as a reader for one line.
            cells = next(csv.reader([text], strict=True)) if '"' in text else text.split(",")
        except UnicodeDecodeError as error:
            return self._broken(
                line, f"not UTF-8: byte 0x{line[error.start]:02x} at place {error.start + 1} of the line"
            )
        except csv.Error as error:
            return self._broken(
                line, f"the quotes are wrong ({error}); a row is one line, and inside quotes a quote is doubled"
            )
        if len(cells) != len(self.columns):
            return self._broken(line, f"{len(cells)} columns instead of {len(self.columns)}")
        return Row(self._line, cells)

    def _broken(self, line: bytes, problem: str) -> Row:
        """A row to be shown: in as many columns as the file has, with what is too much in the last one."""
        text = line.decode(errors="backslashreplace").rstrip("\r\n")
        cells = next(csv.reader([text.replace("\r", " ")], strict=False))
        last = len(self.columns) - 1
        cells = [*cells[:last], ",".join(cells[last:])]
        return Row(self._line, cells + [""] * (len(self.columns) - len(cells)), problem)

    def _check_header(self) -> None:
        line = self._next_line()
        wanted = ",".join(self.columns)
        if line.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise UnusableFile(f"{self.path}: this is UTF-16; save it as UTF-8")
        if not line:
            raise UnusableFile(f"{self.path}: the file is empty; its first line must be {wanted}")
        try:
            found = next(csv.reader([line.decode("utf-8-sig").rstrip("\r\n")]), [])
        except (UnicodeDecodeError, csv.Error):
            found = []
        if tuple(found) != self.columns:
            raise UnusableFile(f"{self.path}: the first line must be {wanted}{_difference(found, self.columns)}")


def _difference(found: Sequence[str], wanted: Sequence[str]) -> str:
    """What is wrong with a header, for a person: " (missing: amount; unknown: sum)"."""
    missing = [name for name in wanted if name not in found]
    unknown = [quoted(name) for name in found if name not in wanted]
    parts = [f"missing: {', '.join(missing)}"] if missing else []
    parts += [f"unknown: {', '.join(unknown)}"] if unknown else []
    return f" ({'; '.join(parts) or 'in this order, each once'})"


def read_account(cells: Sequence[str]) -> Account:
    """The account that a row names. Raises MalformedRow; what an id must look like is left to the ledger."""
    account_id, currency_code, kind, limit = cells
    if kind.lower() not in ("customer", "external"):
        raise MalformedRow(f"kind: {quoted(kind)} is neither customer nor external")
    try:
        minor_digits(currency_code)
    except UnknownCurrency as error:
        raise MalformedRow(f"currency: {error}") from None
    credit_limit = _amount("credit_limit", limit, currency_code) if limit else None
    return Account(account_id, currency_code, kind.lower() == "external", credit_limit)


def read_movement(cells: Sequence[str], currency_of: Callable[[str], str]) -> Movement:
    """The movement that a row names, in the currency of its from_account. Raises MalformedRow, as `currency_of` may."""
    id_, effective_at, kind, from_account, to_account, amount, reference = cells
    if kind == "transfer":
        is_payment = False
    elif kind == "payment":
        is_payment = True
    else:
        raise MalformedRow(f"kind: {quoted(kind)} is neither transfer nor payment")
    moment = read_moment(effective_at) if effective_at else None
    money = _amount("amount", amount, currency_of(from_account))
    return Movement(id_, moment, is_payment, from_account, to_account, money, reference)


# A history has far more rows than days, and its rows stand in the order of time.
@lru_cache(maxsize=4096)
def read_moment(text: str) -> Timestamp:
    """The moment that an RFC 3339 text names. Raises MalformedRow."""
    try:
        return parse_moment(text)
    except MalformedMoment as error:
        raise MalformedRow(f"effective_at: {error}") from None


def _amount(column: str, text: str, currency_code: str) -> Money:
    try:
        return parse_amount(text, currency_code)
    except (MalformedAmount, UnknownCurrency) as error:
        raise MalformedRow(f"{column}: {error}") from None
