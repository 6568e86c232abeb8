"""How a function becomes a command: the options of its kind are added to its own."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature, signature
from typing import Any, TypeAlias

import typer

Function: TypeAlias = Callable[..., None]


def command(app: typer.Typer, name: str) -> Callable[[Function], Function]:
    """Register a function whose first parameter is a kind of Call; the command has that kind's fields as options."""

    def register(function: Function) -> Function:
        first, *own = signature(function, eval_str=True).parameters.values()
        kind = first.annotation
        shared = signature(kind, eval_str=True).parameters

        def run(**given: Any) -> None:
            call = kind(**{name: given.pop(name) for name in shared})
            try:
                function(call, **given)
            except UnicodeEncodeError:
                raise typer.BadParameter("an argument is not UTF-8.") from None

        # What is most its own comes first: --server and --json, which all commands have, last.
        parameters = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in (*own, *reversed([*shared.values()]))]
        run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        run.__doc__ = function.__doc__
        app.command(name)(run)
        return function

    return register
