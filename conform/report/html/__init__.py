"""One self-contained page: what failed and why, first and open; all else folded.

A run is read once. Each trial is rendered as it comes and spooled to a temporary file; at the end the pieces are put
into their order. Memory holds an index of the pieces, so the number of trials hardly matters.

The page needs neither scripts nor anything from elsewhere, and says so in a Content-Security-Policy of its own; its
only script narrows the list while one types.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape

from conform.report import text
from conform.report.files import replacing
from conform.report.ladder import Row, given_words, ladder
from conform.report.text import Line, Requirements, Tally

_HERE = Path(__file__).parent
#: More than this open at once is a wall; the others open at a click.
_MOST_OPEN = 25
_MOST_FINDINGS = 200
_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]"
)

#: The sections in their order: title, what it means, whether its trials are open.
_SECTIONS: dict[str, tuple[str, str, bool]] = {
    "fail": ("Failures", "", True),
    "unexpected-pass": (
        "Unexpected passes",
        "Listed as known deviations, and they pass: the list is out of date.",
        True,
    ),
    "error": ("Errors", "conform's own failures: they say nothing of the stack.", True),
    "flaky": ("Flaky", "They failed, and passed when tried again.", False),
    "inconclusive": (
        "Inconclusive",
        "What was to be shown could not be: not a failure of what the case is about.",
        False,
    ),
    "tolerated": ("Failures that the gate does not ask for", "", False),
    "expected-failure": ("Expected failures", "Known deviations, with their reasons.", False),
    "not-applicable": ("Not applicable", "What the stack does not claim to do.", False),
    "pass": ("Passed", "", False),
}
#: Where trials are grouped by the way they ended.
_BY_WAY = ("fail", "unexpected-pass", "error", "flaky", "inconclusive")


class _Piece(NamedTuple):
    """Where a rendered trial is in the spool, and where it belongs."""

    section: int
    group: str
    id: str
    offset: int
    length: int


@cache
def _macros() -> Any:
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True, auto_reload=False
    )
    return environment.get_template("report.html.j2").module


def _encoded(markup: object) -> bytes:
    """Rendered *markup* as it is written. Control characters and the like do no harm here, and are nothing to see."""
    return _CONTROL.sub("\ufffd", str(markup)).encode("utf-8", "replace")


def _link(directory: str, path: str) -> str:
    return quote(f"./{directory}/{path}" if directory else f"./{path}", errors="replace")


def hashed(content: str) -> str:
    """What a Content-Security-Policy calls *content* by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


class Writer:
    """Takes a run's trials one by one, and writes *path* at the end.

    *requirements* are the catalogue's entries by id; *directory* is the run's, where it is not *path*'s own.
    """

    def __init__(
        self,
        header: Mapping[str, Any],
        path: Path,
        requirements: Requirements | None = None,
        directory: Path | None = None,
    ) -> None:
        self._header = header
        self._path = path
        self._requirements: Requirements = requirements if requirements is not None else {}
        self._to_run = "" if directory is None else os.path.relpath(directory, path.parent)
        self._tally = Tally()
        self._spool: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed when all is written
        self._pieces: list[_Piece] = []
        self._entries: dict[str, Mapping[str, Any]] = {}
        self._known: dict[tuple[str, str], Markup] = {}
        self._findings: list[tuple[str, str]] = []
        self._render = _macros()

    # A trial -----------------------------------------------------------------------------------------------------
    def trial(self, line: Line) -> None:
        """Take the trial of *line*."""
        line = text.complete(line)
        self._tally.add(line)
        for words in line["verdict"].get("findings") or ():
            if len(self._findings) < _MOST_FINDINGS:
                self._findings.append((text.clean(line["id"]), text.clean(words)))
        section, group = self._place(line)
        content = _encoded(self._render.trial(self._view(line)))
        offset = self._spool.tell()
        self._spool.write(content)
        self._pieces.append(_Piece(section, group, str(line["id"]), offset, len(content)))

    def _place(self, line: Line) -> tuple[int, str]:
        result = str(line["result"])
        if result == "fail" and line.get("expected"):
            result = "tolerated"
        order = list(_SECTIONS)
        group = ""
        if result == "expected-failure":
            entry = line.get("expectation") or {}
            group = f"{entry.get('reason', '')}\0{entry.get('file', '')}:{entry.get('line', '')}"
            self._entries[group] = entry
        elif result == "not-applicable":
            group = str(line["verdict"].get("reason") or "no reason given")
        elif result in ("pass", "tolerated"):
            group = str(line["case"]).rpartition("/")[0] or "cases"
        else:
            group = text.way(line)
        return (order.index(result) if result in order else 0), group

    def _view(self, line: Line) -> dict[str, Any]:
        told = text.judged(line)
        verdict = told["verdict"]
        passed = line["result"] == "pass"
        rows = ladder(line, told) if told.get("transcript") else []
        recipe = [row for row in rows if row.part == "recipe"]
        given = given_words(line["document"])
        if passed:
            # How the state was reached and that the stack was alive afterwards is the same everywhere.
            if recipe and recipe[-1].time is not None:
                given += f", reached in {text.duration_words(recipe[-1].time)}"
            recipe, rows = [], _shortened(rows)
        else:
            rows = [row for row in rows if row.part != "recipe"]
        astray = any(row.mark in ("failed", "broken", "unreached") for row in recipe)
        pcap = line.get("pcap")
        return {
            "id": text.clean(line["id"]),
            "title": text.clean(line["title"]),
            "result": line["result"] if line["result"] in text.RESULTS else "fail",
            "label": " ".join((text.RESULTS.get(line["result"], "?"), (verdict.get("level") or "").upper())).strip(),
            "lasted": text.duration_words(line.get("duration") or 0.0),
            "said": "" if line["result"] in ("pass", "not-applicable") else text.clean(text.reason(line)),
            "facts": list(self._facts(line, told)),
            "requirements": Markup("<br>").join(self._requirement(name, line) for name in text.broken(line)),
            "repeat": text.repeat(line, self._header),
            "pcap": _link(self._to_run, str(pcap)) if pcap else "",
            "pcap_name": text.clean(pcap),
            "given": given + (", not reached" if astray else f", reached by {len(recipe)} events" if recipe else ""),
            "recipe": recipe,
            "recipe_open": astray,
            "rows": rows,
        }

    def _facts(self, line: Line, told: Line) -> Iterator[tuple[str, str]]:
        verdict = told["verdict"]
        yield "case", text.clean(text.place(line))
        why = line["document"].get("why")
        if why and line["result"] != "pass":
            yield "why", text.clean(why)
        entry = line.get("expectation")
        if entry and line["result"] == "unexpected-pass":  # of an expected failure the group says it
            yield "known as", text.clean(f"{entry.get('reason', '')} ({entry.get('file', '')}:{entry.get('line', '')})")
        for name, label in (("findings", "finding"), ("unverified", "not checked")):
            for words in verdict.get(name) or ():
                yield label, text.clean(words)
        if line.get("attempt", 1) != 1 or told is not line:
            yield "attempt", f"{told.get('attempt', '?')} is shown; the last was {line.get('attempt', 1)}"

    def _requirement(self, name: str, line: Line) -> Markup:
        """A requirement as HTML: the same hundreds of times, so escaped once."""
        level = (line.get("levels") or {}).get(name, "")
        found = self._known.get((name, level))
        if found is None:
            words = text.requirement_words(name, self._requirements, line.get("levels"))
            head = text.clean(name)
            found = Markup("<code>{}</code>").format(head) + escape(words.removeprefix(head))
            self._known[(name, level)] = found
        return found

    # The page ----------------------------------------------------------------------------------------------------
    def finish(self, end: Mapping[str, Any] | None = None) -> None:
        """Write the page. *end* is the run's ``end`` line; without one the run was cut short."""
        page = self._page(end)
        self._pieces.sort()
        with self._spool, replacing(self._path) as out:

            def put(markup: Any) -> None:
                out.write(_encoded(markup))

            put(self._render.head(page))
            for section, members in groupby(self._pieces, lambda piece: piece.section):
                self._section(out, put, list(_SECTIONS)[section], list(members))
            put(self._render.tail(page))

    def _section(self, out: IO[bytes], put: Any, name: str, pieces: list[_Piece]) -> None:
        title, about, opened = _SECTIONS[name]
        put(self._render.section(name, title, len(pieces), about))
        left = _MOST_OPEN if opened else 0
        for group, members in groupby(pieces, lambda piece: piece.group):
            inside = list(members)
            alone = name in _BY_WAY and len(inside) == 1
            if not alone:
                entry = self._entries.get(group) if name == "expected-failure" else None
                shown = (
                    [(key, text.clean(entry[key])) for key in ("rfc", "packets", "message") if entry.get(key)]
                    if entry
                    else []
                )
                if entry:
                    shown.append(("listed in", text.clean(f"{entry.get('file', '')}:{entry.get('line', '')}")))
                wide = name == "expected-failure" or (name in _BY_WAY and left > 0)
                put(self._render.group(text.clean(group.partition("\0")[0]), len(inside), wide, shown))
            for number, piece in enumerate(inside):
                shows = left > 0 and (number == 0 or name not in _BY_WAY)  # of those that failed in one way, the first
                out.write(b"<details open" if shows else b"<details")
                left -= shows
                self._spool.seek(piece.offset)
                out.write(self._spool.read(piece.length))
            if not alone:
                out.write(b"</details>\n")
        out.write(b"</section>\n")

    def _page(self, end: Mapping[str, Any] | None) -> dict[str, Any]:
        header, tally = self._header, self._tally
        style, script = (_HERE / "style.css").read_text("utf-8"), (_HERE / "filter.js").read_text("utf-8")
        code = end.get("exit") if end else None
        stack = header.get("stack") or {}
        warnings = [text.clean(words) for words in header.get("stale") or ()]
        missing = len(header.get("planned") or ()) - tally.total
        if end is None:
            warnings.append("The run did not come to its end: what had finished is here.")
        if missing > 0:
            warnings.append(f"{missing} planned trials have no verdict.")
        if tally.findings:
            warnings.append(f"In {tally.findings} trials the state that the stack tells is none that the wire implies.")
        levels = {"fail": text.levels_words(tally.failed), "expected-failure": text.levels_words(tally.known)}
        unexpected = f"{tally.unexpected} of {tally.total} trials are not as expected. " if tally.unexpected else ""
        return {
            "title": f"conform: {text.clean(stack.get('name', ''))}: {text.counts_words(tally.results)}",
            "stack": text.clean((stack.get("description") or {}).get("title") or stack.get("name", "")),
            "verdict": f"{unexpected}{text.exit_words(code).capitalize()}",
            "mood": "good" if code == 0 else "warn" if code is None and not tally.unexpected else "bad",
            "total": tally.total,
            "lasted": _lasted(header.get("started"), (end or {}).get("finished")),
            "started": text.clean(header.get("started", "")),
            "conform": text.clean(header.get("conform", "")),
            "warnings": warnings,
            "chips": [
                {"name": name, "number": tally.results[name], "levels": levels.get(name, "")}
                for name in text.RESULTS
                if tally.results[name]
            ],
            "command": text.repeat_run(header),
            "facts": list(_facts(header)),
            "findings": sorted(self._findings),
            "slowest": [
                (text.duration_words(seconds), text.clean(name))
                for seconds, name in sorted(tally.slowest, reverse=True)
            ],
            "style": style,
            "style_hash": hashed(style),
            "script": script,
            "script_hash": hashed(script),
        }


def _shortened(rows: list[Row]) -> list[Row]:
    """The rows of a trial that passed: its own steps, and one for its end."""
    kept = [row for row in rows if row.part == "steps"]
    last = next((row for row in reversed(rows) if row.part == "end" and row.kind == "recv"), None)
    if last is not None:
        kept.append(Row("note", "alive: the last probe was answered", part="end", time=last.time))
    return kept


def _lasted(started: Any, finished: Any) -> str:
    try:
        begun, ended = (datetime.fromisoformat(str(moment)) for moment in (started, finished))
        return text.duration_words((ended - begun).total_seconds())
    except (TypeError, ValueError):
        return ""


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_words, value))
    return value if isinstance(value, str) else json.dumps(value)


def _facts(header: Mapping[str, Any]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """What a reader of the page wants to know of where it comes from."""
    stack = header.get("stack") or {}
    description = stack.get("description") or {}
    # The mapping of settings to one system's switches is long, and the same for all runs on that system.
    told = {"name": stack.get("name", ""), **{k: v for k, v in description.items() if k not in ("settings", "format")}}
    for title, facts in (
        ("Stack", told),
        ("Environment", header.get("environment") or {}),
        ("Settings", header.get("settings") or {}),
    ):
        shown = [
            (text.clean(key), text.clean(_words(value)))
            for key, value in facts.items()
            if value not in (None, "", [], {})
        ]
        yield title, shown
