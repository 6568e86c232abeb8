"""`ledger audit history`: the one of the auditors' commands that asks a server, and believes nothing that it says."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from ledger.console.call import Check
from ledger.console.command import command
from ledger.domain.ids import id_violation
from ledger.exits import EXIT_FAILED, fail
from ledger.terminal import quoted

app = typer.Typer()

KINDS: Final = ("account", "payment", "transfer")


@command(app, "history")
def history(
    call: Check,
    thing: Annotated[str, typer.Argument(metavar="THING", help="account/ID, payment/ID, transfer/ID, or an ID alone.")],
    limit: Annotated[
        int, typer.Option("--limit", min=1, metavar="N", help="The last events to print at most.")
    ] = 1_000,
) -> None:
    """Tell the story of one account, payment or transfer, and prove every line of it."""
    from ledger.audit.note import NoteInvalid
    from ledger.console.history import as_json, history_of, show
    from ledger.console.rpc import asking

    streams, key, settings = _streams_of(thing), call.key(), call.settings
    with asking(settings) as ask:
        try:
            found = history_of(ask, settings.ledger, streams, key, limit)
        except NoteInvalid as error:
            fail(f"the tree head of the server is not to be trusted: {error}", EXIT_FAILED)
    call.show(lambda: as_json(found), lambda screen: show(screen, found))
    if not found.is_sound:
        raise typer.Exit(EXIT_FAILED)


def _streams_of(thing: str) -> list[str]:
    """The streams that are meant. Anything but KIND/ID or an ID alone is wrong usage."""
    kind, slash, id_ = thing.rpartition("/")
    if id_violation(id_) or (slash and kind not in KINDS):
        raise typer.BadParameter(f"{quoted(thing)} is not account/ID, payment/ID, transfer/ID or an ID alone.")
    return [thing] if slash else [f"{each}/{thing}" for each in KINDS]
