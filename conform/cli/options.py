"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)


def paths(required: bool) -> Callable[[_F], _F]:
    """The cases' files and directories."""
    default = None if required else (Path("cases"),)
    metavar = "PATH..." if required else "[PATH]..."
    return click.argument("paths", type=PATH, nargs=-1, required=required, default=default, metavar=metavar)


def selecting(command: _F) -> _F:
    """-k, --tag, --req, --level."""
    for option in reversed(
        (
            click.option("-k", "keyword", metavar="EXPR", help="Trials whose id contains this; and, or, not, ( )."),
            click.option(
                "--tag",
                "tags",
                multiple=True,
                metavar="TAG",
                help="Cases with this tag (or another given); !TAG: without it.",
            ),
            click.option(
                "--req", "requirements", multiple=True, metavar="ID", help="Cases that cover this requirement."
            ),
            click.option(
                "--level",
                "levels",
                multiple=True,
                type=click.Choice(["must", "should", "may"]),
                help="Cases that cover a requirement of this level.",
            ),
        )
    ):
        command = option(command)
    return command


def versions(choice: str) -> tuple[int, ...]:
    """The IP versions that ``--ip`` means."""
    return (4, 6) if choice == "both" else (int(choice),)


ip = click.option("--ip", "ip", type=click.Choice(["4", "6", "both"]), default="both", help="IP version.  [both]")
