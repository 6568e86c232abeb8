"""Who is calling: a name, a role, and the ledgers that it is for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from ledger.domain.errors import Refusal

ANONYMOUS: Final = "anonymous"
RESERVED: Final = frozenset({ANONYMOUS, "sweeper"})
"""Actors that are nobody's name: callers without a token, and the ledger's own expiries."""

caller_name: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}").fullmatch


class Role(StrEnum):
    """What somebody is here for. `ledger.permissions` has what each may call."""

    PAYMENTS = "payments"
    OPERATOR = "operator"
    AUDITOR = "auditor"
    ANALYST = "analyst"


class Unauthenticated(Refusal):
    """This server answers callers with a token, sent as `authorization: Bearer TOKEN`: {why}."""

    code = "UNAUTHENTICATED"


class PermissionDenied(Refusal):
    """A token of the role {role} is not for {rpc}."""

    code = "PERMISSION_DENIED"


class LedgerNotPermitted(Refusal):
    """This token is not for ledger {ledger!r}."""

    code = "LEDGER_NOT_PERMITTED"


class CallersUnavailable(Refusal):
    """This server can't read its tokens now. Nothing was recorded; try again."""

    code = "CALLERS_UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who is known. The name is the `actor` of every event that comes of what they ask for."""

    name: str
    roles: frozenset[Role] | None
    """None: everything, as where no tokens are asked for."""

    ledgers: frozenset[str] | None
    """None: every ledger."""

    def require_ledger(self, ledger: str) -> None:
        """Raise LedgerNotPermitted if the caller has no business there, be there such a ledger or not."""
        if self.ledgers is not None and ledger not in self.ledgers:
            raise LedgerNotPermitted(ledger=ledger)


ANYBODY: Final = Caller(ANONYMOUS, None, None)
"""Whoever calls a server that asks for no tokens."""
