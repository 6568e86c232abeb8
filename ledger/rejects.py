"""The rows that an import could not do, with the reason of each, in a file beside the input."""

from __future__ import annotations

import csv
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from ledger.csv_rows import CsvFile, Row

REASON_COLUMNS: Final = ("line", "outcome", "reason")


def rejects_path(source: CsvFile, folder: Path | None) -> Path:
    """Where the rejected rows of a file go: beside it, or into a folder."""
    return (folder or source.path.parent) / f"{source.path.stem}.rejected.csv"


class RejectsUnwritable(Exception):
    """Why rejected rows can't be written down any more; the message is for whoever imports."""


class RejectsFile:
    """`movements.rejected.csv` for `movements.csv`: the rows' own columns, and line, outcome and reason.

    It is there when the import is over, whole, and only if a row was rejected; one of an earlier import goes. When
    the import fails or is stopped, nothing changes: running it again finds the same rows again.
    """

    def __init__(self, source: CsvFile, folder: Path | None = None) -> None:
        """Raises OSError if the file can't be written there: better now than when all rows are done."""
        self.path: Final = rejects_path(source, folder)
        if self.path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(self.path))
        self.rows = 0
        self._partial = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        self._file = self._partial.open("w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow([*source.columns, *REASON_COLUMNS])

    def add(self, row: Row, outcome: str, reason: str) -> None:
        """Raises RejectsUnwritable."""
        with self._writing():
            self._writer.writerow([*row.cells, row.line, outcome, reason])
        self.rows += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._put_in_place()
        finally:
            with suppress(OSError):  # Of what a full disk had no room for it would be told a second time.
                self._file.close()
            self._partial.unlink(missing_ok=True)

    def _put_in_place(self) -> None:
        with self._writing():
            self._file.flush()
            os.fsync(self._file.fileno())
            if self.rows:
                self._partial.replace(self.path)
            else:
                self.path.unlink(missing_ok=True)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RejectsUnwritable(
                f"can't write {self.path}: {error.strerror}. What was done stays done: when there is room, run it again"
            ) from error
