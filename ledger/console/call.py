"""The kinds of commands: the options that all of a kind have, and how a request goes out and its answer is printed."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from google.protobuf.json_format import MessageToJson
from rich.console import Console

from ledger.console import show
from ledger.console.options import Expect, MinPosition, ValidateOnly
from ledger.exits import EXIT_FAILED
from ledger.flags import LedgerName, Server, TrustedKey, settings_of, trusted_key
from ledger.settings import Settings
from ledger.tables import screen
from ledger.v1.ledger_pb2 import SortOrder

if TYPE_CHECKING:
    from ledger.audit.note import PublicKey

PAGE_MOST: Final = 1_000

AsJson = Annotated[bool, typer.Option("--json", help="Print the response of the API as JSON, and nothing else.")]


class Order(StrEnum):
    """Which row of a list comes first."""

    NEWEST = "newest"
    OLDEST = "oldest"


@dataclass(frozen=True)
class Call:
    """Whom to ask, and how to print the answer."""

    server: Server = None
    ledger: LedgerName = None
    as_json: AsJson = False

    @cached_property
    def settings(self) -> Settings:
        return settings_of(server=self.server, ledger=self.ledger)

    def show(self, as_json: Callable[[], str], shown: Callable[[Console], None]) -> None:
        """Print an answer: as JSON if it was asked for, or for people."""
        if self.as_json:
            typer.echo(as_json())
        else:
            shown(screen())

    def _print(self, response: Any, shown: Callable[[Console, Any], None]) -> None:
        def as_json() -> str:
            # With zeros and empty lists too: a script that asks for `.balance.posted` gets "0", not null.
            return MessageToJson(response, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)

        self.show(as_json, lambda screen: shown(screen, response))


@dataclass(frozen=True)
class Write(Call):
    """A command that changes something."""

    validate_only: ValidateOnly = False
    expect: Expect = None

    def id_or_new(self, given: str | None, what: str) -> str:
        """The id that was given, or a new one. That is told at once: whatever happens now, a retry needs it."""
        if given is not None:
            return given
        made = f"{what[:3]}-{secrets.token_hex(4)}"
        if not self.validate_only:
            typer.echo(f"ledger: the id of this {what} is {made}; to repeat it, add --id {made}", err=True)
        return made

    def send(self, request: Any) -> None:
        """Have it done, and say what came of it. A decline ends with EXIT_FAILED."""
        from ledger.console.rpc import asking

        request.ledger = self.settings.ledger
        request.validate_only = self.validate_only
        request.preconditions.extend(self.expect or ())
        with asking(self.settings) as ask:
            response = ask(request)
        self._print(response, show.outcome)
        if show.decline_of(response):
            raise typer.Exit(EXIT_FAILED)


@dataclass(frozen=True)
class Read(Call):
    """A query."""

    min_position: MinPosition = None

    def get(self, request: Any) -> None:
        """Read one thing, and show all of it."""
        from ledger.console.rpc import asking

        request.ledger = self.settings.ledger
        request.min_position = self.min_position or 0
        with asking(self.settings) as ask:
            response = ask(request)
        self._print(response, show.found)


@dataclass(frozen=True)
class ReadMany(Read):
    """A query for a list."""

    order: Annotated[Order, typer.Option("--order", help="Which row comes first.")] = Order.NEWEST
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="Rows to print at most.")] = 100
    page_size: Annotated[
        int,
        typer.Option("--page-size", min=1, max=PAGE_MOST, metavar="N", help="Rows to ask the server for at a time."),
    ] = PAGE_MOST

    def get(self, request: Any) -> None:
        """Read a list, page after page, and show it as one."""
        from ledger.console.rpc import asking

        request.ledger = self.settings.ledger
        request.min_position = self.min_position or 0
        request.order = SortOrder.Value(f"SORT_ORDER_{self.order.name}_FIRST")
        request.page_size = min(self.page_size, self.limit)
        with asking(self.settings) as ask:
            response = ask(request)
            rows = show.subject(response)
            while response.next_page_token and len(rows) < self.limit:
                request.page_token = response.next_page_token
                request.page_size = min(self.page_size, self.limit - len(rows))
                page = ask(request)
                rows.extend(show.subject(page))
                response.next_page_token = page.next_page_token
        self._print(response, show.listed)


@dataclass(frozen=True)
class Check(Call):
    """A command that takes nobody's word for what the log says."""

    public_key: TrustedKey = None

    def key(self) -> PublicKey | None:
        """The key that is trusted, or None. One that is none is wrong usage."""
        return None if self.public_key is None else trusted_key(self.public_key)
