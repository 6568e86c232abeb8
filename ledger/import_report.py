"""What a person sees of an import: bars while it runs, and a summary at the end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from ledger.row_outcomes import Counts


@dataclass(frozen=True, slots=True)
class ImportSummary:
    """What an import came to."""

    accounts: Counts
    movements: Counts

    seconds: float
    """From the first row read until reads know the last one."""

    last_position: int
    """The highest position of the rows' events; 0 if there are none."""

    is_readable: bool
    """Whether the read models have reached `last_position`."""

    rejects: tuple[Path, ...]
    """The files with the rows that were declined or refused."""

    @property
    def complete(self) -> bool:
        """Whether every row was done, now or before."""
        return all(each.done == each.rows for each in (self.accounts, self.movements))


class ProgressBars:
    """The progress of an import. On a terminal a bar per file; elsewhere only what goes wrong."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[rows]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            refresh_per_second=4,
            transient=True,
        )
        self._waiting_for = ""
        self._began = monotonic()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, name: str, size: int) -> None:
        """A file of so many bytes."""
        self._began = monotonic()
        self._task = self._progress.add_task(escape(name), total=size, rows="")

    def advance(self, bytes_read: int, rows: int) -> None:
        """Of the file, so much is done."""
        self._waiting_for = ""
        speed = rows / max(monotonic() - self._began, 0.001)
        self._progress.update(self._task, completed=bytes_read, rows=f"{rows:,} rows, {speed:,.0f}/s")

    def say(self, text: str) -> None:
        self._progress.add_task(escape(text), total=None, rows="")

    def waiting(self, reason: str) -> None:
        """The server can't answer now. Said once, until something goes forward again."""
        if not self._waiting_for:
            self._progress.console.print(
                f"waiting for the server: {reason}", style="yellow", markup=False, soft_wrap=True
            )
        self._waiting_for = reason


def print_summary(summary: ImportSummary, console: Console) -> None:
    """How an import went."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for name in ("rows", "done", "of these replayed", "declined", "refused"):
        table.add_column(name, justify="right")
    for name, counts in (("accounts", summary.accounts), ("movements", summary.movements)):
        numbers = (counts.rows, counts.done, counts.replayed, counts.declined, counts.refused)
        table.add_row(name, *(f"{number:,}" for number in numbers))
    console.print(table)
    rows = summary.accounts.rows + summary.movements.rows
    speed = rows / summary.seconds
    console.print(f"{rows:,} rows in {summary.seconds:.1f} s: {speed:,.0f} rows/s", highlight=False)
    if summary.is_readable:
        console.print(f"Last position {summary.last_position:,}, and the read models have reached it.", highlight=False)
    else:
        console.print(
            f"Last position {summary.last_position:,}. All is recorded, but the read models are not there yet.",
            style="yellow",
            soft_wrap=True,
        )
    for path in summary.rejects:
        console.print(f"Rows that were not done, with the reasons: {path}", style="red", markup=False, soft_wrap=True)
