"""The tables of docs/ are what the code does."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from ledger import card_numbers, outages, services
from ledger.audit import errors as tree_errors
from ledger.domain import decisions
from ledger.domain.errors import InvalidCommand, Refusal
from ledger.domain.events import DeclineReason
from ledger.status import RETRY_AFTER_S, STATUS
from projections import errors as read_errors

ROOT: Final = Path(__file__).parents[2]
MODULES: Final = (card_numbers, outages, services, tree_errors, read_errors)
"""Where refusals are defined, beside the domain's: all that the table is to know."""


def rows_of(document: str, heading: str) -> Iterator[list[str]]:
    """The rows of the table under a heading, cell by cell."""
    text = (ROOT / "docs" / document).read_text()
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    for line in table[2:]:
        yield [cell.strip() for cell in line.strip("|").split("|")]


def refusals() -> dict[str, type[Refusal]]:
    """Every class of refusal, by its reason."""

    def below(refusal: type[Refusal]) -> Iterator[type[Refusal]]:
        for each in refusal.__subclasses__():
            yield each
            yield from below(each)

    return {each.__dict__["code"]: each for each in below(Refusal) if isinstance(each.__dict__.get("code"), str)}


def details() -> dict[str, set[str]]:
    """By reason, the details that its refusals are made with, anywhere in the code. Malformed requests have fields."""
    by_name = {each.__name__: reason for reason, each in refusals().items() if not issubclass(each, InvalidCommand)}
    found: dict[str, set[str]] = {}
    for source in (*(ROOT / "ledger").rglob("*.py"), *(ROOT / "projections").rglob("*.py")):
        for call in ast.walk(ast.parse(source.read_text())):
            if isinstance(call, ast.Call):
                for name in ast.walk(call.func):
                    if isinstance(name, ast.Name) and name.id in by_name:
                        given = {each.arg for each in call.keywords if each.arg}
                        found.setdefault(by_name[name.id], set()).update(given)
    return found


DETAILS: Final = details()
REASONS: Final = {row[0].strip("`"): row for row in rows_of("refusals.md", "Reasons of errors")}


def test_every_reason_is_in_the_table() -> None:
    """And no other; each once."""
    assert len(REASONS) == len(list(rows_of("refusals.md", "Reasons of errors")))
    assert REASONS.keys() == STATUS.keys(), "docs/refusals.md and ledger/status.py disagree"


@pytest.mark.parametrize("reason", STATUS)
def test_a_reason_is_as_the_table_says(reason: str) -> None:
    """Status, pause, and the details that it is made with; who answers it is held to a server, in test_api.py."""
    _, status, pause, metadata, by, meaning, _ = REASONS[reason]
    assert status == STATUS[reason].name
    assert float(pause or 0) == RETRY_AFTER_S.get(reason, 0)
    assert set(re.findall(r"`(\w+)`", metadata)) == DETAILS.get(reason, set())
    assert by
    assert meaning


def test_every_status_is_in_the_table_of_the_contract() -> None:
    """An integrator who reads the contract alone knows what may come."""
    contract = (ROOT / "proto" / "ledger" / "v1" / "ledger.proto").read_text()
    rules, _ = contract.split("\nsyntax = ")
    assert {each.name for each in STATUS.values()} - set(re.findall(r"\w+", rules)) == set()


def test_every_decline_reason_is_in_the_table() -> None:
    """With what to do."""
    declines = {row[0].strip("`"): row for row in rows_of("refusals.md", "Decline reasons")}
    assert declines.keys() == {str(each) for each in DeclineReason}
    assert all(all(row) for row in declines.values())


def test_the_order_of_checks_is_told_alike_everywhere() -> None:
    """In the docs, in the contract, and where the rules are."""
    order = "malformed, id used, not found, preconditions, currency, closed, frozen, amounts, funds"
    told = {
        "docs": (ROOT / "docs" / "refusals.md").read_text(),
        "contract": (ROOT / "proto" / "ledger" / "v1" / "ledger.proto").read_text().replace("\n//", " "),
        "rules": decisions.__doc__ or "",
    }
    for where, text in told.items():
        assert order in re.sub(r" \([^)]*\)", "", " ".join(text.split())).lower(), where
