"""The table of docs/freezes.md, and for each of its cells the commands that lead there and the question."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Final, NamedTuple

from domain import (
    authorize,
    capture,
    close,
    expire,
    freeze,
    increment,
    leg,
    open_account,
    refund,
    set_limit,
    transfer,
    unfreeze,
    void,
)

from ledger.domain.commands import Command
from ledger.domain.events import AccountKind, FreezeScope

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "freezes.md"
HOLD_FOR: Final = timedelta(hours=1)

STATUSES: Final[tuple[tuple[str, Callable[[str], Command] | None], ...]] = (
    ("open", None),
    ("frozen, DEBITS", lambda account_id: freeze(account_id, FreezeScope.DEBITS)),
    ("frozen, CREDITS", lambda account_id: freeze(account_id, FreezeScope.CREDITS)),
    ("frozen, ALL", lambda account_id: freeze(account_id, FreezeScope.ALL)),
    ("closed", close),
)


class Story(NamedTuple):
    """What happens before the account changes its status, what has to go before it can be closed, and the question."""

    before: tuple[Command, ...]
    empties: tuple[Command, ...]
    asked: Command


class Cell(NamedTuple):
    command: str
    side: str
    status: str
    said: str


def cells() -> list[Cell]:
    """Every cell of the document's table."""
    lines = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("|")]
    header, rows = lines[0], lines[2:]
    statuses = [cell.strip() for cell in header.strip("|").split("|")][2:]
    assert statuses == [status for status, _ in STATUSES]
    found = []
    for row in rows:
        command, side, *said = (cell.strip().replace("`", "") for cell in row.strip("|").split("|"))
        found += [Cell(command, side, status, words) for status, words in zip(statuses, said, strict=True)]
    return found


def accounts() -> list[Command]:
    """A bank, the account of the table (`it`), and another one with money."""
    return [
        open_account("bank", kind=AccountKind.EXTERNAL),
        open_account("it"),
        open_account("other"),
        transfer("fund-other", leg("bank", "other", 100)),
    ]


FUNDED: Final = transfer("fund-it", leg("bank", "it", 100))
DRAINED: Final = transfer("drain-it", leg("it", "bank", 100))
FROM_IT: Final = authorize(50, payer="it", payee="other", hold_for=HOLD_FOR)
TO_IT: Final = authorize(50, payer="other", payee="it", hold_for=HOLD_FOR)

STORIES: Final[dict[tuple[str, str], Story]] = {
    ("OpenAccount, the same again", "itself"): Story((), (), open_account("it")),
    ("SetCreditLimit, another limit", "itself"): Story((), (), set_limit("it", 7)),
    ("SetCreditLimit, the same limit", "itself"): Story((), (), set_limit("it", 0)),
    ("FreezeAccount, scope DEBITS", "itself"): Story((), (), freeze("it", FreezeScope.DEBITS)),
    ("FreezeAccount, scope CREDITS", "itself"): Story((), (), freeze("it", FreezeScope.CREDITS)),
    ("FreezeAccount, scope ALL", "itself"): Story((), (), freeze("it", FreezeScope.ALL)),
    ("UnfreezeAccount", "itself"): Story((), (), unfreeze("it")),
    ("CloseAccount, empty", "itself"): Story((), (), close("it")),
    ("AuthorizePayment", "payer"): Story((FUNDED,), (DRAINED,), FROM_IT),
    ("AuthorizePayment", "payee"): Story((), (), TO_IT),
    ("IncrementAuthorization", "payer"): Story((FUNDED, FROM_IT), (), increment("i", 60)),
    ("IncrementAuthorization", "payee"): Story((TO_IT,), (), increment("i", 60)),
    ("CapturePayment", "payer"): Story((FUNDED, FROM_IT), (), capture("c")),
    ("CapturePayment", "payee"): Story((TO_IT,), (), capture("c")),
    ("VoidPayment", "payer"): Story((FUNDED, FROM_IT), (), void()),
    ("VoidPayment", "payee"): Story((TO_IT,), (), void()),
    ("expiry", "payer"): Story((FUNDED, FROM_IT), (), expire()),
    ("expiry", "payee"): Story((TO_IT,), (), expire()),
    ("RefundPayment", "payer"): Story(
        (FUNDED, FROM_IT, capture("c")), (transfer("rest", leg("it", "bank", 50)),), refund("r")
    ),
    ("RefundPayment", "payee"): Story((TO_IT, capture("c")), (transfer("on", leg("it", "bank", 50)),), refund("r")),
    ("PostTransfer", "from"): Story((FUNDED,), (DRAINED,), transfer("t", leg("it", "other", 1))),
    ("PostTransfer", "to"): Story((), (), transfer("t", leg("other", "it", 1))),
}


def commands_before(cell: Cell) -> list[Command]:
    """All that happens before the question of a cell is asked; what sets another status comes last."""
    story, change = STORIES[cell.command, cell.side], dict(STATUSES)[cell.status]
    commands = [*accounts(), *story.before]
    if cell.status == "closed":
        commands += story.empties
    return commands if change is None else [*commands, change("it")]


def in_cell(answer: str) -> str:
    """An answer in the words of the tests' ledger, in those of the table."""
    if answer.startswith("refused "):
        return answer
    declined = re.fullmatch(r"DECLINED (\w+)", answer)
    if declined:
        return f"declined {declined[1]}"
    return "replay" if answer.startswith("replayed ") else "done"
