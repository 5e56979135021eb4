"""Reports, each a function of a run's lines (docs/run-format.md): terminal, JUnit, HTML, GitHub Actions.

Each writer has ``trial(line)`` and ``finish(end)``, so that all reports are made in one pass over a run, whatever its
size; :func:`write_all` is that pass.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from conform.report.text import Requirements

JUNIT = "junit.xml"
HTML = "report.html"


def write_all(
    directory: Path,
    header: Mapping[str, Any],
    lines: Iterable[Mapping[str, Any]],
    end: Callable[[], Mapping[str, Any] | None],
    *,
    requirements: Requirements | None = None,
    run: Path | None = None,
    out: TextIO | None = None,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Write junit.xml and report.html of a run to *directory*, and tell GitHub where this runs under its Actions.

    *lines* are read once; *end* gives the end line when they are. *run* is the run's own directory, where that is
    another: captures are there. Raises OSError.
    """
    from conform.report import github, html, junit

    if requirements is None:
        from conform.requirements import catalogue

        requirements = catalogue()
    with html.Writer(header, directory / HTML, requirements, run) as page:
        xml = junit.Writer(header, directory / JUNIT, requirements)
        writers: list[html.Writer | junit.Writer | github.Writer] = [page, xml]
        if github.active(environment):
            writers.append(github.Writer(header, out or sys.stdout, requirements, environment))
        for line in lines:
            for writer in writers:
                writer.trial(line)
        for writer in writers:
            writer.finish(end())


__all__ = ["HTML", "JUNIT", "write_all"]
