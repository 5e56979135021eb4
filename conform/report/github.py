"""GitHub Actions: annotations at the steps that failed, and a summary of the run on its page."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from conform.report import text
from conform.report.output import UnheardError
from conform.report.text import Line, Requirements, Tally

#: GitHub shows no more than ten annotations of a kind for one step.
_MOST_ANNOTATIONS = 10
#: The page takes 1 MiB for one step, and nobody reads that much.
_MOST_ROWS = 100
_LONGEST_CELL = 300
_MARKUP = frozenset("\\`*_{}[]()#!|~@<>&\"'")


def active(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this runs under GitHub Actions."""
    return environment.get("GITHUB_ACTIONS") == "true"


def _data(value: str) -> str:
    return value.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(value: str) -> str:
    return _data(value).replace(":", "%3A").replace(",", "%2C")


def annotation(line: Line, header: Mapping[str, Any], requirements: Requirements | None = None, root: str = "") -> str:
    """The workflow command that shows *line* at its place in the case's file. *root*: how to get from the top of the
    repository to where the run was started."""
    verdict = text.judged(line)["verdict"]
    failure = verdict.get("failure")
    where = (failure or {}).get("place") or (1, 1)
    title = f"{text.RESULTS.get(line['result'], line['result'])} {(verdict.get('level') or '').upper()} {line['id']}"
    file = f"{root}{line['file']}"
    fields = {"file": file, "line": where[0], "col": where[1], "title": " ".join(title.split())}
    head = ",".join(f"{name}={_property(text.clean(value))}" for name, value in fields.items())
    body = text.trial(line, header, requirements).split("\n", 1)
    return f"::error {head}::{_data(text.clean(text.reason(line)))}" + (f"%0A{_data(body[1])}" if body[1:] else "")


def _cell(value: object) -> str:
    """*value* for a cell of a Markdown table: neither HTML nor Markdown nor the cell's end comes through."""
    told = text.clean(value)
    if len(told) > _LONGEST_CELL:
        told = told[: _LONGEST_CELL - 1] + "…"
    return "".join(f"&#{ord(char)};" if char in _MARKUP else char for char in told)


def _from_root(environment: Mapping[str, str]) -> str:
    workspace = environment.get("GITHUB_WORKSPACE")
    if not workspace:
        return ""
    here, top = Path.cwd().resolve(), Path(workspace).resolve()
    if here == top or not here.is_relative_to(top):
        return ""
    return f"{here.relative_to(top).as_posix()}/"


class Writer:
    """Takes a run's trials one by one; prints annotations as they come, and the summary at the end."""

    def __init__(
        self,
        header: Mapping[str, Any],
        out: TextIO,
        requirements: Requirements | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._header = header
        self._out = out
        self._requirements = requirements
        self._environment = environment
        self._root = _from_root(environment)
        self._tally = Tally()
        self._rows: list[str] = []

    def trial(self, line: Line) -> None:
        """Take the trial of *line*."""
        line = text.complete(line)
        self._tally.add(line)
        if line.get("expected", True):
            return
        if self._tally.unexpected <= _MOST_ANNOTATIONS:
            self._print(annotation(line, self._header, self._requirements, self._root))
        if len(self._rows) < _MOST_ROWS:
            verdict = text.judged(line)["verdict"]
            level = (verdict.get("level") or "").upper()
            cells = (text.RESULTS.get(line["result"], line["result"]), level, line["id"], text.reason(line))
            self._rows.append("| " + " | ".join(map(_cell, cells)) + " |")

    def finish(self, end: Mapping[str, Any] | None = None) -> None:
        """Print what remains, and append the summary to ``GITHUB_STEP_SUMMARY``."""
        for words in self._header.get("stale") or ():
            self._print(f"::error title=conform::{_data(text.clean(str(words).partition(chr(10))[0]))}")
        more = self._tally.unexpected - _MOST_ANNOTATIONS
        if more > 0:
            self._print(f"::notice title=conform::{more} more unexpected results: see the summary and report.html")
        path = self._environment.get("GITHUB_STEP_SUMMARY")
        if path:
            with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(self.summary(end.get("exit") if end else None))

    def _print(self, words: str) -> None:
        with contextlib.suppress(UnheardError):  # the summary may still be read
            print(text.encodable(words, getattr(self._out, "encoding", None) or "utf-8"), file=self._out)

    def summary(self, exit_code: int | None) -> str:
        """The run as Markdown."""
        tally = self._tally
        stack = (self._header.get("stack") or {}).get("name", "")
        out = [f"### conform: {_cell(stack)}: {text.exit_words(exit_code)}", ""]
        out += ["| result | trials |", "| --- | ---: |"]
        out += [f"| {_cell(name)} | {tally.results[name]} |" for name in text.RESULTS if tally.results[name]]
        if self._rows:
            out += ["", "| result | level | trial | why |", "| --- | --- | --- | --- |", *self._rows]
        if tally.unexpected > len(self._rows):
            out += ["", f"{tally.unexpected - len(self._rows)} more are in report.html."]
        stale = [str(words).partition("\n")[0] for words in self._header.get("stale") or ()]
        missing = len(self._header.get("planned") or ()) - tally.total
        out += [""] * bool(stale or missing > 0) + [f"- {_cell(words)}" for words in stale]
        out += [f"- {missing} planned trials have no verdict"] * (missing > 0)
        if tally.reasons:
            out += ["", "| not applicable | trials |", "| --- | ---: |"]
            out += [f"| {_cell(why)} | {number} |" for why, number in tally.reasons.most_common()]
        return "\n".join(out) + "\n\n"
