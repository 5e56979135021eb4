"""Verdicts in plain text: one trial's, a run's summary, and a ladder for the terminal.

What comes from outside (names, titles, an agent's words) is made harmless by :func:`clean`: one line, no control
characters, so that it can neither drive a terminal nor pass for a command in a CI's log.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappush, heappushpop
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

from conform.report.ladder import Row, ladder, step_at, yaml_line
from conform.run.compare import stable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

Line = Mapping[str, Any]

#: All results, the alarming first, as they are called in reports.
RESULTS = {
    "fail": "FAIL",
    "unexpected-pass": "UNEXPECTED PASS",
    "error": "ERROR",
    "flaky": "FLAKY",
    "inconclusive": "INCONCLUSIVE",
    "expected-failure": "EXPECTED FAILURE",
    "not-applicable": "NOT APPLICABLE",
    "pass": "PASS",
}
EXITS = {
    0: "everything is as expected",
    1: "there are unexpected results",
    2: "a case or the usage is bad",
    3: "conform itself failed",
    5: "nothing was selected, or nothing applies to the stack",
    129: "stopped by SIGHUP",
    130: "stopped by Ctrl-C",
    143: "stopped by SIGTERM",
}
_SLOWEST = 5
#: Of the ways in which trials were not as expected, those of most trials are told.
_WAYS = 40
_PACKETS = 6
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]")
#: For output that takes no more than ASCII.
_ASCII = str.maketrans(
    {"│": "|", "─": "-", "▶": ">", "◀": "<", "●": "*", "■": "=", "✗": "X", "…": "...", "→": "->", "§": "section ",
     "×": "x", "±": "+/-", "┄": ".", "├": "+", "┤": "+", "–": "-", "’": "'"}
)  # fmt: skip


class Requirement(Protocol):
    """What reports want to know of an entry of the catalogue (``conform.requirements.catalogue()`` has them)."""

    @property
    def rfc(self) -> int: ...
    @property
    def section(self) -> str: ...
    @property
    def level(self) -> str: ...
    @property
    def summary(self) -> str: ...


Requirements = Mapping[str, Requirement]


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return {0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t"}.get(code) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def clean(text: object) -> str:
    """*text* as one line without control characters, bidirectional overrides and lone surrogates, which are spelt."""
    return _UNSAFE.sub(_escaped, str(text))


def to_ascii(text: str) -> str:
    """*text* with the nearest thing in ASCII for each character."""
    return text.translate(_ASCII).encode("ascii", "backslashreplace").decode("ascii")


def encodable(text: str, encoding: str | None) -> str:
    """*text* as an output of that *encoding* takes it: as it is in one that has all characters, else in ASCII."""
    plain = (encoding or "ascii").lower().replace("-", "").replace("_", "")
    return text if plain in ("utf8", "utf8sig", "utf16", "utf32") else to_ascii(text)


def duration_words(seconds: float) -> str:
    """*seconds* for a reader: ``1.40 ms``, ``2.03 s``."""
    if abs(seconds) < 1:
        return f"{seconds * 1000:.2f} ms"
    return f"{seconds:.2f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


#: What reports rely on. The engine's lines have all of it; a line that somebody altered may not.
_RELIED_ON: dict[str, tuple[type, ...]] = {
    "case": (str,), "title": (str,), "file": (str,), "ip": (int,), "seed": (int,), "document": (dict,),
    "verdict": (dict,), "result": (str,), "levels": (dict, type(None)), "expectation": (dict, type(None)),
    "duration": (int, float, type(None)), "pcap": (str, type(None)), "earlier": (list, type(None)),
}  # fmt: skip


def complete(line: Line) -> Line:
    """*line* itself where it holds what reports rely on, else an error's line with the same id."""
    wrong = [key for key, kinds in _RELIED_ON.items() if not isinstance(line.get(key), kinds)]
    if "verdict" not in wrong:
        failure = line["verdict"].get("failure")
        sound = failure is None or (isinstance(failure, dict) and {"step", "summary"} <= failure.keys())
        if not sound or not isinstance(line["verdict"].get("outcome"), str):
            wrong.append("verdict")
    if not wrong:
        return line
    words = f"the run file's line is damaged: {', '.join(wrong)} missing or of another kind"
    verdict: dict[str, Any] = {"outcome": "error", "level": None, "requirements": [], "failure": None, "reason": words}
    whole = {"case": "", "title": "", "file": "", "ip": 0, "seed": 0, "document": {}, "duration": 0.0, "pcap": None}
    kept = {key: line[key] for key in _RELIED_ON if key in line and key not in wrong}
    return {**whole, **kept, "id": line.get("id", "?"), "verdict": verdict, "result": "error", "expected": False}


# One trial -----------------------------------------------------------------------------------------------------------
def judged(line: Line) -> Line:
    """The part of a trial's line that is to be told of: of a flaky trial the last attempt that was refused."""
    if line["result"] == "flaky":
        for attempt in reversed(line.get("earlier") or ()):
            if attempt["verdict"].get("outcome") != "pass" and not attempt["verdict"].get("late"):
                return attempt  # type: ignore[no-any-return]
    return line


def place(line: Line) -> str:
    """``file:line:column`` of the step at fault, or the case's file."""
    failure = judged(line)["verdict"].get("failure")
    where = failure.get("place") if failure else None
    return f"{line['file']}:{where[0]}:{where[1]}" if where else str(line["file"])


def reason(line: Line) -> str:
    """In one sentence why the trial has its result."""
    verdict = judged(line)["verdict"]
    failure = verdict.get("failure")
    if line["result"] == "unexpected-pass":
        expected = (line.get("expectation") or {}).get("reason", "")
        return f"it passed, though it is listed as a known deviation: {expected}".rstrip(": ")
    if verdict.get("outcome") == "fail" and failure:
        told = str(failure["summary"])
    else:
        told = str(verdict.get("reason") or (failure["summary"] if failure else ""))
    if line["result"] == "flaky":
        then = "passed" if line["verdict"].get("outcome") == "pass" else "failed as is known"
        return f"{then} when tried again, but first: {told}"
    return told


def way(line: Line) -> str:
    """What a trial has in common with all that ended so: the case, the step, and why, less what is another in each."""
    failure = judged(line)["verdict"].get("failure") or {}
    where = ", ".join(str(word) for word in (line["case"], failure.get("step")) if word)
    return f"{where}: {stable(reason(line).partition(chr(10))[0])}"


def repeat(line: Line, header: Mapping[str, Any]) -> str:
    """The command that runs just this trial again."""
    settings = header.get("settings") or {}
    command = ["conform", "run", str(line["file"]), "-k", str(line["id"]).partition("#")[0].rpartition("/")[2]]
    stack = settings.get("stack") or (header.get("stack") or {}).get("name", "linux")
    if stack != "linux":
        command += ["--stack", str(stack)]
    for name in ("link", "agent"):
        if settings.get(name, "auto") != "auto":
            command += [f"--{name}", str(settings[name])]
    for file in settings.get("expect") or ():
        command += ["--expect", str(file)]
    command += ["--ip", str(line["ip"]), "--seed", str(line["seed"])]
    return clean(shlex.join(command))


def repeat_run(header: Mapping[str, Any]) -> str:
    """The command that runs all of it again."""
    settings = header.get("settings") or {}
    selection = settings.get("selection") or {}
    command = ["conform", "run", *map(str, settings.get("paths") or ["cases"])]
    for key, option in (("k", "-k"), ("tag", "--tag"), ("req", "--req"), ("level", "--level")):
        values = selection.get(key) or ()
        for value in [values] if isinstance(values, str) else values:
            command += [option, str(value)]
    command += ["--lf"] if selection.get("lf") else []
    stack = settings.get("stack") or (header.get("stack") or {}).get("name", "linux")
    if stack != "linux":
        command += ["--stack", str(stack)]
    usual = {
        "link": "auto",
        "agent": "auto",
        "gate": "all",
        "repeat": 1,
        "retry": 0,
        "timeout": 180.0,
        "pcap": "failed",
    }
    for name, value in usual.items():
        if settings.get(name, value) != value:
            command += [f"--{name}", str(settings[name])]
    for path in settings.get("expect") or ():
        command += ["--expect", str(path)]
    versions = settings.get("ip") or [4, 6]
    if len(versions) == 1:
        command += ["--ip", str(versions[0])]
    command += ["--seed", str(settings.get("seed", 0))]
    return clean(shlex.join(command))


def requirement_words(name: str, requirements: Requirements, levels: Mapping[str, str] | None = None) -> str:
    """A requirement's id with where it stands and what it says."""
    found = requirements.get(name)
    if found is None:
        level = (levels or {}).get(name)
        return clean(f"{name} ({level})" if level else name)
    return clean(f"{name} (RFC {found.rfc} §{found.section}, {found.level}): {found.summary}")


def broken(line: Line) -> list[str]:
    """The ids of the requirements that a trial's failure breaks; of one that did not fail, those that it covers."""
    verdict = judged(line)["verdict"]
    if verdict.get("requirements"):
        return list(verdict["requirements"])
    covers = line["document"].get("covers") or []
    return [covers] if isinstance(covers, str) else list(covers)


def packet_line(row: Row) -> str:
    """One row of a ladder in one line without drawing."""
    arrow = {"send": "->", "recv": "<-", "missing": "<-", "call": " *", "reply": " *", "state": " ="}.get(
        row.kind, "  "
    )
    time = f"{row.time * 1000:10.2f} ms" if row.time is not None else " " * 13
    text = f"nothing; want {row.text}" if row.kind == "missing" and row.mark == "failed" else row.text
    conn = f"[{row.conn}] " if row.conn else ""
    tail = "   <<< " + row.note if row.note else "   <<<" if row.mark == "failed" else ""
    return clean(f"{time} {arrow} {conn}{text}{tail}")


def trial(
    line: Line,
    header: Mapping[str, Any],
    requirements: Requirements | None = None,
    directory: str = "",
    packets: int = _PACKETS,
) -> str:
    """A trial that is to be told of, as plain text; *directory* is the run's, *packets* how many rows are shown."""
    known: Requirements = requirements if requirements is not None else {}
    told = judged(line)
    verdict, failure = told["verdict"], told["verdict"].get("failure")
    level = f" {verdict['level'].upper()}" if verdict.get("level") else ""
    out = [
        f"{RESULTS.get(line['result'], clean(line['result']).upper())}{level} {clean(line['id'])}  {clean(place(line))}"
    ]

    last = ""

    def say(label: str, text: object) -> None:
        nonlocal last
        if text:
            out.append(f"  {'' if label == last else label:<12} {clean(text)}")
            last = label

    for name in broken(line):
        say("requirement", requirement_words(name, known, line.get("levels")))
    rows = ladder(line, told) if told.get("transcript") else []
    at = next((i for i, row in enumerate(rows) if row.mark in ("failed", "broken")), len(rows) - 1)
    words = [str(text) for text in failure.get("arithmetic") or ()] if failure else []
    if reason(line) not in words:
        say("why", reason(line))
    if failure:
        step = step_at(line["document"], failure["step"])
        say("step", f"{failure['step']}  {yaml_line(step) if step is not None else ''}".rstrip())
        say("expected", failure.get("expected"))
        say("actual", failure.get("actual"))
        for text in words:
            say("arithmetic", text)
    for text in verdict.get("findings") or ():
        say("finding", text)
    for text in verdict.get("unverified") or ():
        say("unverified", text)
    if line["result"] == "expected-failure":
        say("known", f"{line['expectation'].get('reason')} ({line['expectation'].get('rfc')})")
    seen = [row for row in rows[: at + 1] if row.mark != "unreached" and (row.kind != "note" or row.mark)]
    if seen and seen[-1].mark in ("failed", "broken"):
        for index, row in enumerate(seen[-packets:] if packets else ()):
            out.append(f"  {'' if index else 'packets':<12} {packet_line(row)}")
    if line.get("pcap"):
        say("capture", str(PurePosixPath(directory) / str(line["pcap"])))
    say("repeat", repeat(line, header))
    return "\n".join(out)


# A run ---------------------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class Tally:
    """What a summary needs of a run's trials, gathered one by one."""

    results: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    known: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    unexpected: int = 0
    ways: Counter[str] = field(default_factory=Counter)
    findings: int = 0
    unverified: int = 0
    slowest: list[tuple[float, str]] = field(default_factory=list)

    def add(self, line: Line) -> None:
        """Count the trial of *line*."""
        if not line.get("expected", True):
            self.ways[way(line)] += 1
        self.count(line["id"], line["result"], line.get("expected", True), line.get("duration") or 0.0)
        verdict = line["verdict"]
        if line["result"] == "fail":
            self.failed[verdict.get("level") or "must"] += 1
        elif line["result"] == "expected-failure":
            if verdict.get("level"):  # none where a precondition was not reached
                self.known[verdict["level"]] += 1
        elif line["result"] == "not-applicable":
            self.reasons[str(verdict.get("reason") or "no reason given")] += 1
        self.findings += bool(verdict.get("findings"))
        self.unverified += bool(verdict.get("unverified"))

    def count(self, name: str, result: str, expected: bool, duration: float) -> None:
        """Count a trial of which no more is known."""
        self.results[result] += 1
        self.unexpected += not expected
        entry = (duration, name)
        if len(self.slowest) < _SLOWEST:
            heappush(self.slowest, entry)
        else:
            heappushpop(self.slowest, entry)

    @property
    def total(self) -> int:
        """How many trials."""
        return self.results.total()


def counts_words(results: Mapping[str, int]) -> str:
    """``3 fail, 1242 pass``: the alarming first."""
    order = list(RESULTS)
    named = sorted(results, key=lambda name: (order.index(name) if name in order else 0, name))
    return ", ".join(f"{results[name]} {clean(name)}" for name in named if results[name]) or "no trial"


def levels_words(levels: Mapping[str, int]) -> str:
    """``2 MUST, 1 SHOULD``."""
    return ", ".join(f"{levels[name]} {name.upper()}" for name in ("must", "should", "may") if levels.get(name))


def exit_words(code: int | None) -> str:
    """What an exit code means."""
    if code is None:
        return "the run did not come to its end"
    return f"{EXITS.get(code, 'an exit code of no meaning')} (exit {code})"


def summary(
    tally: Tally, exit_code: int | None, seconds: float | None = None, paths: Sequence[str] = (), unfinished: int = 0
) -> str:
    """A run's end: by result, by level, the slowest, why trials were not applicable, where the reports are."""
    lasted = f" in {seconds:.1f} s" if seconds is not None else ""
    out = [f"{tally.total} trials{lasted}: {counts_words(tally.results)}"]
    if tally.failed:
        out.append(f"  failures     {levels_words(tally.failed)}")
    if tally.known:
        out.append(f"  known        {levels_words(tally.known)}")
    if tally.findings:
        found = "something was observed that fails nothing (the report says what)"
        out.append(f"  findings     in {tally.findings} trials {found}")
    if tally.unverified:
        out.append(f"  unverified   in {tally.unverified} trials something could not be checked")
    if len(tally.ways) > 1 or tally.ways.total() > 1:
        for index, (how, number) in enumerate(tally.ways.most_common(_WAYS)):
            out.append(f"  {'' if index else 'unexpected':<12} {number:>5} × {clean(how)}")
        if len(tally.ways) > _WAYS:
            out.append(f"  {'':<12} and {len(tally.ways) - _WAYS} ways more")
    for index, (why, number) in enumerate(tally.reasons.most_common()):
        out.append(f"  {'' if index else 'n/a':<12} {number:>5} × {clean(why)}")
    slow = [entry for entry in sorted(tally.slowest, reverse=True) if entry[0] >= 0.5]
    for index, (lasting, name) in enumerate(slow):
        out.append(f"  {'' if index else 'slowest':<12} {duration_words(lasting):>9}  {clean(name)}")
    if unfinished:
        out.append(f"  unfinished   {unfinished} planned trials have no verdict")
    out.append(exit_words(exit_code))
    out += [f"  {clean(path)}" for path in paths]
    return "\n".join(out)


# Ladders -------------------------------------------------------------------------------------------------------------
_NARROW, _WIDE = 40, 76
_STYLES = {
    "failed": "bold red",
    "broken": "bold red",
    "noise": "dim",
    "unread": "dim",
    "unreached": "dim",
    "late": "yellow",
}


def _rung(row: Row, width: int) -> tuple[str, str]:
    """What stands between the lanes, and beside the stack's."""
    conn = f"[{row.conn}] " if row.conn else ""
    text = clean(conn + row.text)
    if row.mark == "unreached":
        return "┄ not reached".ljust(width), f" {clean(row.yaml)}"
    match row.kind:
        case "send":
            return f"── {text} ".ljust(width - 1, "─") + "▶", ""
        case "recv":
            return f"◀── {text} ".ljust(width, "─"), ""
        case "missing":
            return f"◀┄┄ {text} ".ljust(width, "┄"), ""
        case "call" | "reply":
            return " " * width, f" ● {text}"
        case "state":
            seen = f"; the wire implies {row.inferred}" if row.inferred and row.inferred != row.state else ""
            return " " * width, f" ■ {text}{clean(seen)}"
        case "silence":
            return f"({text})".center(width), ""
    return f" {text}".ljust(width), ""


def terminal_ladder(rows: Sequence[Row], *, plain: bool = False, recipe: bool = True) -> list[Text]:
    """*rows* as lines for a terminal: lanes of box characters, coloured by style; *plain*: ASCII.

    With ``recipe=False`` the way to the given state is left out.
    """
    from rich.text import Text

    rows = [row for row in rows if recipe or row.part != "recipe" or row.trouble is not None]
    packets = [len(clean(row.text)) + 2 * row.depth + 8 for row in rows if row.kind in ("send", "recv", "missing")]
    width = max(_NARROW, min(_WIDE, max(packets, default=0)))
    timed = any(row.time is not None for row in rows)
    pad = " " * 12 if timed else ""
    lines = [(f"{pad}tester{'stack':>{width - 4}}", "bold")]
    part = rows[0].part if rows else "steps"
    for row in rows:
        if row.part != part:
            name = {"steps": " the steps ", "end": " the end "}.get(row.part, " given ")
            lines.append((f"{pad}├{name:─^{width}}┤", "dim"))
            part = row.part
        time = (f"{row.time * 1000:9.2f}ms " if row.time is not None else pad) if timed else ""
        indent = "  " * row.depth
        between, beside = _rung(row, width - len(indent))
        note = f"  {clean(row.note)}" if row.note else ""
        why = f"  # {clean(row.why)}" if row.why else ""
        mark = " ✗" if row.mark in ("failed", "broken") else ""
        style = _STYLES.get(row.mark, "dim" if row.part == "recipe" else "")
        lines.append((f"{time}│{indent}{between}│{beside}{mark}{note}{why}", style))
        if row.trouble is not None:
            for label, told in _told(row):
                lines.append((f"{pad}│ {label:<10} {clean(told)}", "red"))
    return [Text(to_ascii(text) if plain else text, style="" if plain else style) for text, style in lines]


def _told(row: Row) -> Iterable[tuple[str, str]]:
    trouble = row.trouble
    assert trouble is not None
    yield from ([("step", row.yaml)] if row.yaml else [])
    yield from ([("expected", trouble.expected)] if trouble.expected else [])
    yield from ([("actual", trouble.actual)] if trouble.actual else [])
    for words in trouble.arithmetic or (trouble.summary,):
        yield "because", words


def print_ladder(console: Console, rows: Sequence[Row], *, recipe: bool = True) -> None:
    """Print *rows* to *console*: drawn on a terminal, plain ASCII elsewhere."""
    for text in terminal_ladder(rows, plain=not console.is_terminal, recipe=recipe):
        console.print(text, soft_wrap=True, highlight=False)


__all__ = [
    "EXITS", "RESULTS", "Requirement", "Requirements", "Tally", "clean", "complete", "encodable", "exit_words",
    "print_ladder", "repeat", "summary", "terminal_ladder", "to_ascii", "trial",
]  # fmt: skip
