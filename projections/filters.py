"""Filters: the conditions of a list request, each a part of its statement, and what is wrong with those that are."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from types import SimpleNamespace
from typing import Any, Final, LiteralString

from ledger.domain.errors import FieldViolation, InvalidCommand
from ledger.domain.ids import id_violation
from ledger.domain.money import UnknownCurrency, currency
from ledger.domain.text import text_violation
from ledger.wire import moment


class Filters:
    """Reads the filters of one request. A field that is not set lets everything pass.

    `sql` has a block `where_<name>` for each filter, whose parameter has that name.
    """

    def __init__(self, request: Any, sql: SimpleNamespace) -> None:
        self._request: Final = request
        self._sql: Final = sql
        self.conditions: list[LiteralString] = []
        self.parameters: dict[str, Any] = {}
        self.violations: list[FieldViolation] = []

    def ids(self, *fields: str) -> None:
        """Ids that must be the same."""
        for field in fields:
            value = getattr(self._request, field)
            if value and self.has_id(field):
                self._add(field, value)

    def has_id(self, field: str) -> bool:
        """Whether the field is a well-formed id; it is a violation if not."""
        wrong = id_violation(getattr(self._request, field))
        if wrong:
            self._refuse(field, wrong)
        return not wrong

    def currency(self) -> None:
        code = self._request.currency_code
        if code:
            try:
                currency(code)
            except UnknownCurrency as unknown:
                self._refuse("currency_code", str(unknown))
            else:
                self._add("currency_code", code)

    def reference(self) -> None:
        text = self._request.reference
        wrong = text_violation(text)
        if wrong:
            self._refuse("reference", wrong)
        elif text:
            self._add("reference", text)

    def any_of(self, field: str, names: Mapping[Any, str]) -> None:
        """Values of an enum, of which any will do; `names` are those of the read models."""
        values = getattr(self._request, field)
        for number, value in enumerate(values):
            if value not in names:
                self._refuse(f"{field}[{number}]", f"{value} is not a value to filter by")
        if values:
            self._add(field, [names[each] for each in values if each in names])

    def time(self, field: str, name: str) -> datetime | None:
        """A bound of time: the moment, if it is set."""
        if not self._request.HasField(field):
            return None
        try:
            bound = moment(getattr(self._request, field), field)
        except InvalidCommand as invalid:
            self.violations += invalid.violations
            return None
        self._add(name, bound)
        return bound

    def _add(self, name: str, value: Any) -> None:
        self.conditions.append(getattr(self._sql, f"where_{name}"))
        self.parameters[name] = value

    def _refuse(self, field: str, description: str) -> None:
        self.violations.append(FieldViolation(field, description))
