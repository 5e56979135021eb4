"""Reports of a run, from its lines (docs/run-format.md): terminal, JUnit, HTML, GitHub Actions.

Each writer has ``trial(line)`` and ``finish(end)``, so that all reports are made in one pass over a run, whatever its
size; :class:`Reports` is all of them.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

JUNIT = "junit.xml"
HTML = "report.html"


class Writer(Protocol):
    """A report in the making."""

    def trial(self, line: Mapping[str, Any]) -> None:
        """Take the trial of *line*."""

    def finish(self, end: Mapping[str, Any] | None = None) -> None:
        """Write it. *end* is the run's ``end`` line, where it has one."""


class Reports:
    """junit.xml and report.html of a run, and what GitHub is told where this runs under its Actions.

    They are made trial by trial, so that little is left to do at the end. One that cannot be made is told of in
    ``failed`` and does not keep the others.
    """

    def __init__(
        self,
        directory: Path,
        header: Mapping[str, Any],
        run: Path | None = None,
        *,
        out: TextIO | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        """Reports to *directory*, made if need be, of the run in *run* where that is another. Raises OSError."""
        from conform.report import github, html, junit
        from conform.requirements import catalogue

        directory.mkdir(parents=True, exist_ok=True)
        known = catalogue()
        self.failed: list[str] = []
        self._writers: dict[str, Writer] = {
            str(directory / JUNIT): junit.Writer(header, directory / JUNIT, known),
            str(directory / HTML): html.Writer(header, directory / HTML, known, run),
        }
        if github.active(environment):
            self._writers["GitHub's annotations"] = github.Writer(header, out or sys.stdout, known, environment)

    def trial(self, line: Mapping[str, Any]) -> None:
        """Take the trial of *line*."""
        self._each(lambda writer: writer.trial(line))

    def finish(self, end: Mapping[str, Any] | None) -> None:
        """Write the files. *end* is the run's ``end`` line, where it has one."""
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


__all__ = ["HTML", "JUNIT", "Reports", "Writer"]
