"""What the verbs print, and the reports that they write."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import click

from conform.run import events

JUNIT, HTML = "junit.xml", "report.html"
#: How often a line of progress comes where no terminal shows it moving.
_PLAIN_PROGRESS = 10.0


class Writer(Protocol):
    """A report in the making (``conform.report``)."""

    def trial(self, line: dict[str, Any]) -> None: ...
    def finish(self, end: dict[str, Any] | None = None) -> None: ...


def say(text: str) -> None:
    """Tell what was found."""
    click.echo(text)


def complain(text: str) -> None:
    """Tell what is wrong."""
    _flush()
    click.echo(text, err=True)


def _flush() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Console:
    """Tells of a run as it goes: on a terminal one line that moves, elsewhere a plain line now and then."""

    def __init__(self) -> None:
        from conform.report import github
        from conform.report.text import Tally

        self._terminal = sys.stdout.isatty()
        self._tally = Tally()
        self._header: dict[str, Any] = {}
        self._directory = ""
        self._total = 0
        self._shown = False
        self._last = time.monotonic()
        self._github: github.Writer | None = None

    def __call__(self, event: events.Event) -> None:
        """Handle *event*."""
        match event:
            case events.RunStarted():
                self._begin(event)
            case events.TrialFinished():
                self._trial(event)
            case events.Progress():
                self._progress(event)
            case events.Notice():
                self._wipe()
                click.echo(event.text, err=True)
            case events.RunEnded():
                self._end(event)
        _flush()

    def _begin(self, event: events.RunStarted) -> None:
        from conform.report import github

        self._header, self._directory, self._total = event.header, event.directory, event.total
        settings = event.header["settings"]
        click.echo(
            f"{event.total} trials of {event.header['stack']['name']}, seed {settings['seed']}, to {event.directory}"
        )
        if github.active():
            from conform.requirements import catalogue

            self._github = github.Writer(event.header, sys.stdout, catalogue())

    def _trial(self, event: events.TrialFinished) -> None:
        if event.expected and event.result == "pass" and self._github is None:
            self._tally.count(event.id, event.result, event.expected, event.duration)
            return
        line = event.line
        self._tally.add(line)
        if not event.expected:
            from conform.report import text
            from conform.requirements import catalogue

            self._wipe()
            told = text.trial(line, self._header, catalogue(), self._directory)
            first, _, rest = told.partition("\n")
            click.echo(click.style(first, fg="red", bold=True) + ("\n" + rest if rest else "") + "\n")
        if self._github is not None:
            self._github.trial(line)

    def _progress(self, event: events.Progress) -> None:
        unexpected = f", {self._tally.unexpected} unexpected" if self._tally.unexpected else ""
        running = f", {event.running} running" if event.running else ""
        waiting = f" ({event.waiting} of them only wait)" if event.waiting else ""
        words = f"{event.done} of {event.total} trials{unexpected}{running}{waiting}"
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            filled = 20 * event.done // max(1, event.total)
            click.echo(f"\r\x1b[K{'━' * filled}{'╌' * (20 - filled)} {words}"[: width + 4], nl=False)
            self._shown = True
        elif time.monotonic() - self._last > _PLAIN_PROGRESS:
            self._last = time.monotonic()
            click.echo(words)

    def _wipe(self) -> None:
        if self._shown:
            click.echo("\r\x1b[K", nl=False)
            self._shown = False

    def _end(self, event: events.RunEnded) -> None:
        from conform.report import text

        self._wipe()
        if self._github is not None:
            self._github.finish(event.end)
        code = event.end["exit"]
        summary = text.summary(self._tally, code, event.duration, unfinished=len(event.unfinished))
        *head, last = summary.split("\n")
        click.echo("\n".join(head))
        click.echo(click.style(last, fg="green" if code == 0 else "red", bold=True))


def write(
    directory: Path, header: dict[str, Any], lines: Iterable[dict[str, Any]], end: Callable[[], dict[str, Any] | None]
) -> list[Path]:
    """Write junit.xml and report.html of a run to *directory*, in one pass over *lines*; *end* gives the end line
    once they are read. Which files there are then. Raises OSError."""
    from conform.report import junit
    from conform.requirements import catalogue

    directory.mkdir(parents=True, exist_ok=True)
    writers: dict[str, Writer] = {JUNIT: junit.Writer(header, directory / JUNIT, catalogue())}
    html = getattr(importlib.import_module("conform.report.html"), "Writer", None)
    if html is not None:
        writers[HTML] = html(header, directory / HTML, catalogue())
    for line in lines:
        for writer in writers.values():
            writer.trial(line)
    for writer in writers.values():
        writer.finish(end())
    return [directory / name for name in writers]
