"""What the verbs print, and the reports that they write."""

from __future__ import annotations

import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable
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
    """Tells of a run as it goes: on a terminal one line that moves, elsewhere a plain line now and then.

    It also hands each trial to the run's ``reports``, which it makes when the run starts.
    """

    def __init__(self) -> None:
        from conform.report import github
        from conform.report.text import Tally

        self.reports: Reports | None = None
        self.end: dict[str, Any] | None = None

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
        self.reports = Reports(Path(event.directory), event.header)
        settings = event.header["settings"]
        click.echo(
            f"{event.total} trials of {event.header['stack']['name']}, seed {settings['seed']}, to {event.directory}"
        )
        if github.active():
            from conform.requirements import catalogue

            self._github = github.Writer(event.header, sys.stdout, catalogue())

    def _trial(self, event: events.TrialFinished) -> None:
        line = event.line
        self._tally.add(line)
        if self.reports is not None:
            self.reports.trial(line)
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
        self.end = event.end
        if self._github is not None:
            self._github.finish(event.end)
        code = event.end["exit"]
        summary = text.summary(self._tally, code, event.duration, unfinished=len(event.unfinished))
        *head, last = summary.split("\n")
        click.echo("\n".join(head))
        click.echo(click.style(last, fg="green" if code == 0 else "red", bold=True))


class Reports:
    """junit.xml and report.html of a run, made trial by trial so that little is left to do at its end.

    A report that cannot be made is told of in ``failed`` and does not keep the others.
    """

    def __init__(self, directory: Path, header: dict[str, Any], run: Path | None = None) -> None:
        """Reports to *directory*, made if need be, of the run in *run* where that is another. Raises OSError."""
        from conform.report import html, junit
        from conform.requirements import catalogue

        directory.mkdir(parents=True, exist_ok=True)
        self.failed: list[str] = []
        self._writers: dict[Path, Writer] = {
            directory / JUNIT: junit.Writer(header, directory / JUNIT, catalogue()),
            directory / HTML: html.Writer(header, directory / HTML, catalogue(), run),
        }

    def trial(self, line: dict[str, Any]) -> None:
        """Take the trial of *line*."""
        self._each(lambda writer: writer.trial(line))

    def finish(self, end: dict[str, Any] | None) -> list[Path]:
        """Write the files; which there are then."""
        self._each(lambda writer: writer.finish(end))
        return list(self._writers)

    def _each(self, work: Callable[[Writer], None]) -> None:
        for path, writer in list(self._writers.items()):
            try:
                work(writer)
            except OSError as error:
                self.failed.append(f"{path}: {error.strerror}")
                del self._writers[path]
            except Exception:
                self.failed.append(f"{path}: {traceback.format_exc()}")
                del self._writers[path]
