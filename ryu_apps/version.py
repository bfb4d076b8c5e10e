"""Which release of Lark this is: `--version`.

Invariants: never fails, also not in a bare checkout; loads nothing before it is asked (the engine must be imported
while little is loaded).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


def version() -> str:
    """The installed distribution's version."""
    from importlib import metadata

    try:
        return metadata.version("htlark")
    except metadata.PackageNotFoundError:
        # The commands can run from a checkout that was never installed.
        return "0+source"


def version_option(program: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option `--version` of a command."""

    def say(context: click.Context, _: click.Parameter, asked: bool) -> None:
        if asked and not context.resilient_parsing:
            click.echo(f"{program} {version()}")
            context.exit()

    return click.option(
        "--version", is_flag=True, is_eager=True, expose_value=False, callback=say, help="Print the version."
    )
