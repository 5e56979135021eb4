"""What the verbs print, and the reports that they write."""

from __future__ import annotations

import contextlib
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import click

from conform.report.output import UnheardError
from conform.run import events

if TYPE_CHECKING:
    from conform.report import Reports
    from conform.report.console import Console


def say(text: str) -> None:
    """Tell what was found. An output that is lost ends nothing."""
    with contextlib.suppress(UnheardError):
        click.echo(text)


def complain(text: str) -> None:
    """Tell what is wrong."""
    with contextlib.suppress(UnheardError, OSError):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


class Reporter:
    """Tells of a run as it goes and makes its reports, which are written before the run's end is told.

    The terminal and the reports have nothing to do with each other: what befalls one does not cost the others.
    """

    def __init__(self) -> None:
        self._reports: Reports | None = None
        self._console: Console | None = None
        self._listening = True
        self._wrong: list[str] = []

    def __call__(self, event: events.Event) -> None:
        """Handle *event*."""
        try:
            self._report(event)
        except OSError as error:
            self._wrong.append(f"no report can be written: {error.filename}: {error.strerror}")
        except Exception:
            self._wrong.append(f"no report can be written: {traceback.format_exc()}")
        if not self._listening:
            return
        try:
            self._tell(event)
        except UnheardError:  # conform run | head
            self._listening = False
        except Exception:
            self._listening = False
            self._wrong.append(f"what was printed is incomplete: {traceback.format_exc()}")

    @property
    def wrong(self) -> list[str]:
        """What could not be told or written, and why."""
        failed = self._reports.failed if self._reports is not None else []
        return [*self._wrong, *(f"a report is missing (conform judge writes it again): {text}" for text in failed)]

    def _report(self, event: events.Event) -> None:
        match event:
            case events.RunStarted():
                from conform.report import Reports

                self._reports = Reports(Path(event.directory), event.header)
            case events.TrialFinished() if self._reports is not None:
                self._reports.trial(event.line)
            case events.RunEnded() if self._reports is not None:
                self._reports.finish(event.end)

    def _tell(self, event: events.Event) -> None:
        if self._console is None:
            from conform.report.console import Console
            from conform.requirements import catalogue

            self._console = Console(requirements=catalogue())
        self._console(event)

    def close(self) -> None:
        """Leave the terminal as it should be."""
        if self._console is not None:
            with contextlib.suppress(UnheardError):
                self._console.close()
