"""Status and command, cell by cell: the domain does what docs/freezes.md says."""

from __future__ import annotations

import pytest
from domain import Ledger
from freeze_table import HOLD_FOR, STORIES, Cell, cells, commands_before, in_cell


def test_the_table_has_every_story_and_no_other() -> None:
    """A row that is added wants a story here."""
    assert {(cell.command, cell.side) for cell in cells()} == STORIES.keys()


@pytest.mark.parametrize("cell", cells(), ids=lambda cell: f"{cell.command}-{cell.side}-{cell.status}")
def test_a_cell_is_what_happens(cell: Cell) -> None:
    """A dash is where the account can't come into that status."""
    ledger = Ledger()
    *before, last = commands_before(cell)
    for command in before[1:]:  # A ledger has its bank.
        assert in_cell(ledger.answer(command)) == "done", command
    if cell.said == "-":
        assert ledger.answer(last) == "refused ACCOUNT_IN_USE"
        return
    assert in_cell(ledger.answer(last)) == "done", last
    if cell.command == "expiry":
        ledger.wait(seconds=HOLD_FOR.total_seconds())
    assert in_cell(ledger.answer(STORIES[cell.command, cell.side].asked)) == cell.said
