"""`ledger projections`: the read models as an operator sees them."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from ledger.bars import Bars
from ledger.database import reached
from ledger.exits import EXIT_FAILED, fail, undo_when_told_to_end
from ledger.flags import DataDir, Dsn, LedgerName, settings_of
from ledger.migrations import require_migrated, require_read_models
from ledger.postgres import Role, connect
from ledger.tables import screen, table_of

app = typer.Typer(help="The read models: how far they have come, and how to make them anew.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")]


@app.command()
def status(
    dsn: Dsn = None,
    data_dir: DataDir = None,
    ledger: LedgerName = None,
    lag_most_s: Annotated[
        float | None, typer.Option("--lag-most", metavar="SECONDS", help="Exit with 1 if one is further behind.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show how far each follower has come, and how far it is behind the log. Exits with 1 if one has stopped."""
    from projections.checkpoint import read_status

    settings = settings_of(dsn=dsn, data_dir=data_dir, ledger=ledger)
    with reached(settings) as database:
        require_migrated(database, settings.ledger, Role.AUDITOR)
        require_read_models(database, settings.ledger, Role.AUDITOR)
        with connect(database, settings.ledger, "ledger-status", Role.AUDITOR) as connection:
            followers = read_status(connection)
    if as_json:
        print(json.dumps([each._asdict() for each in followers]))
    else:
        table = table_of("follower", "position", "head", "behind, events", "behind, s")
        for each in followers:
            lag = f"{each.lag_events:,}", f"{each.lag_s:,.1f}"
            table.add_row(each.name, f"{each.position:,}", f"{each.head:,}", *lag)
        screen().print(table)
    stopped = [f"{each.name} has stopped: {each.failure}" for each in followers if each.failure]
    if lag_most_s is not None:
        stopped += [f"{each.name} is {each.lag_s:,.1f} s behind" for each in followers if each.lag_s > lag_most_s]
    if stopped:
        fail("; ".join(stopped), EXIT_FAILED)


@app.command()
def rebuild(
    dsn: Dsn = None,
    data_dir: DataDir = None,
    ledger: LedgerName = None,
    check: Annotated[bool, typer.Option("--check", help="Only compare: leave the live tables as they are.")] = False,
    as_json: Json = False,
) -> None:
    """Make the read models anew from the log, compare them with the live ones row by row, and swap them in.

    Safe beside running servers. Exits with 1 if a row differed, having swapped it away (unless --check).
    """
    from projections.rebuild import Rebuild, RebuildImpossible

    settings = settings_of(dsn=dsn, data_dir=data_dir, ledger=ledger)
    undo_when_told_to_end()
    with reached(settings) as database, Bars() as bars:
        require_migrated(database, settings.ledger, Role.OWNER)
        require_read_models(database, settings.ledger, Role.OWNER)
        try:
            with Rebuild(database, settings.ledger, bars.show) as building:
                building.catch_up()
                comparison = building.compare()
                if not check:
                    building.swap()
                position = building.position
        except RebuildImpossible as error:
            fail(str(error))
        except KeyboardInterrupt:
            fail("stopped; what was not swapped in by then was removed", EXIT_FAILED)
    swapped = None if check else position
    if as_json:
        differences = [each._asdict() for each in comparison.differences]
        facts = {"compared_at": comparison.position, "rows": comparison.rows, "different": comparison.different}
        print(json.dumps({**facts, "differences": differences, "swapped_at": swapped}))
    else:
        print(
            f"compared at position {comparison.position:,}: {comparison.rows:,} rows, {comparison.different:,} differ"
        )
        for each in comparison.differences:
            print(f"  {each.table} {each.key}\n    was     {each.live}\n    must be {each.rebuilt}")
        print("nothing was swapped" if check else f"swapped in at position {position:,}")
    if comparison.different:
        raise typer.Exit(EXIT_FAILED)
