"""What the verbs print, and the reports that they write."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from conform.run import events

if TYPE_CHECKING:
    from conform.report.console import Console


class Writer(Protocol):
    """A report in the making (``conform.report``)."""

    def trial(self, line: dict[str, Any]) -> None: ...
    def finish(self, end: dict[str, Any] | None = None) -> None: ...


def say(text: str) -> None:
    """Tell what was found."""
    click.echo(text)


def complain(text: str) -> None:
    """Tell what is wrong."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    click.echo(text, err=True)


class Reports:
    """junit.xml and report.html of a run, made trial by trial so that little is left to do at its end.

    A report that cannot be made is told of in ``failed`` and does not keep the others.
    """

    def __init__(self, directory: Path, header: dict[str, Any], run: Path | None = None) -> None:
        """Reports to *directory*, made if need be, of the run in *run* where that is another. Raises OSError."""
        from conform.report import HTML, JUNIT, github, html, junit
        from conform.requirements import catalogue

        directory.mkdir(parents=True, exist_ok=True)
        self.failed: list[str] = []
        self._writers: dict[str, Writer] = {
            str(directory / JUNIT): junit.Writer(header, directory / JUNIT, catalogue()),
            str(directory / HTML): html.Writer(header, directory / HTML, catalogue(), run),
        }
        if github.active():
            self._writers["GitHub's annotations"] = github.Writer(header, sys.stdout, catalogue())

    def trial(self, line: dict[str, Any]) -> None:
        """Take the trial of *line*."""
        self._each(lambda writer: writer.trial(line))

    def finish(self, end: dict[str, Any] | None) -> None:
        """Write the files."""
        self._each(lambda writer: writer.finish(end))

    def _each(self, work: Callable[[Writer], None]) -> None:
        for name, writer in list(self._writers.items()):
            try:
                work(writer)
            except OSError as error:
                self.failed.append(f"{name}: {error.strerror}")
                del self._writers[name]
            except Exception:
                self.failed.append(f"{name}: {traceback.format_exc()}")
                del self._writers[name]


class Reporter:
    """Tells of a run as it goes and makes its reports, which are written before the run's end is told."""

    def __init__(self) -> None:
        self.reports: Reports | None = None
        self._console: Console | None = None
        self._listening = True

    def __call__(self, event: events.Event) -> None:
        """Handle *event*."""
        if self._console is None:
            from conform.report.console import Console
            from conform.requirements import catalogue

            self._console = Console(requirements=catalogue())
        match event:
            case events.RunStarted():
                self.reports = Reports(Path(event.directory), event.header)
            case events.TrialFinished() if self.reports is not None:
                self.reports.trial(event.line)
            case events.RunEnded() if self.reports is not None:
                self.reports.finish(event.end)
        if self._listening:
            try:
                self._console(event)
            except (BrokenPipeError, SystemExit):  # the latter is how rich says the former
                self._listening = False  # conform run | head: the run and its reports go on

    def close(self) -> None:
        """Leave the terminal as it should be."""
        if self._console is not None:
            self._console.close()
