"""`ledger tls`: what it takes to try TLS on one's own machine."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from ledger.exits import EXIT_FAILED, fail
from ledger.terminal import quoted

app = typer.Typer(help="Certificates to try TLS with.", no_args_is_help=True)

DAYS_MOST: Final = 365


@app.callback()
def tls() -> None:
    """Certificates to try TLS with."""


@app.command(name="dev-cert")
def dev_cert(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the files go. It is made if it isn't there.")],
    hosts: Annotated[
        list[str] | None,
        typer.Option(
            "--host",
            metavar="NAME",
            help="A name or IP address of the server, beside those of this machine's loopback.",
        ),
    ] = None,
    days: Annotated[
        int, typer.Option("--days", min=1, max=DAYS_MOST, metavar="N", help="How long they are good for.")
    ] = 30,
) -> None:
    """Make a CA, a server's certificate and a client's, to try TLS with. Not for production.

    Prints the settings that use them, as a file .env or a shell takes them. Nothing is ever replaced.
    """
    from ledger.dev_cert import FileInTheWay, is_host, make_dev_certificates

    for host in hosts or ():
        if not is_host(host):
            raise typer.BadParameter(f"{quoted(host)} is not a host's name or an IP address.", param_hint="--host")
    try:
        made = make_dev_certificates(folder.absolute(), hosts or (), days, datetime.now(UTC))
    except FileInTheWay as error:
        fail(f"{error}: name another folder, or remove it", EXIT_FAILED)
    except OSError as error:
        fail(f"can't write to {folder}: {error.strerror}")
    lines = [
        f"# Good for {days} days, to try TLS with. The key of the CA was not kept.",
        "# The server:",
        _setting("TLS_CERT", made.server),
        _setting("TLS_KEY", made.server_key),
        "# ... and if it is to take only clients that have a certificate, too:",
        _setting("TLS_CLIENT_CA", made.ca),
        "# Its clients:",
        _setting("CA", made.ca),
        "# ... and if the server asks for a certificate:",
        _setting("CLIENT_CERT", made.client),
        _setting("CLIENT_KEY", made.client_key),
    ]
    typer.echo("\n".join(lines))


def _setting(name: str, file: Path) -> str:
    return f"LEDGER_{name}={shlex.quote(str(file))}"
