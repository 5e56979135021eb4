"""``conform compare``: cases against runs. Runs of several stacks are held beside each other; of runs of one stack the
first is what the others are held against (docs/comparing.md).

Each run file is read once, line by line; what stays of a trial is its result and, where it did not pass, one line of
why.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from conform.engine.verdict import GATING, LEVELS, Verdict
from conform.run.fold import base, case_of, fold
from conform.run.runfile import Reader

#: Of a trial that was planned and has no line, and of one that the run knows nothing of.
MISSING, ABSENT = "missing", "absent"
#: Of an entry of a list of deviations, beside the trials.
STALE = "stale"
#: All that a cell can be, the alarming first.
RESULTS = (
    "fail", "unexpected-pass", "error", MISSING, STALE, "flaky", "inconclusive", "expected-failure", "not-applicable",
    "pass", ABSENT,
)  # fmt: skip
FORMAT = 1
_ORDER = {result: number for number, result in enumerate(RESULTS)}
_FAILED = ("fail", "expected-failure")
_PASSED = ("pass", "unexpected-pass")
#: A trial is slower or faster when it takes more than so many times as long, and so many seconds longer.
_TIMES, _SECONDS = 2.0, 1.0
#: What a summary holds that is another in each run: how long was waited, absolute numbers, ports, timestamps.
VOLATILE = re.compile(
    r"\b\d+(?:\.\d+)? (?:ns|µs|us|ms|s|min)\b|(?<=seq=)[1-9]\d*|(?<=ack=)[1-9]\d*|(?<=port )\d+|\b0x[0-9a-f]{6,}\b"
    r"|(?<=checksum is )0x[0-9a-f]+"
    r"|(?<=TS(?:ecr|val) )\d+(?:, want \d+)?(?:, (?:short|too far) by \d+)?|[-+]?\d{7,}"
)

#: Settings that decide what trials there are, and how they come out; of one stack there are more.
_SETTINGS = ("gate", "selection", "paths", "ip", "repeat", "retry", "timeout", "seed")
_OF_ONE_STACK = ("link", "agent", "expect")

Kind = Literal["stacks", "runs"]


@dataclass(frozen=True, slots=True)
class Cell:
    """What one run says of one trial. ``words`` are ``reason`` less what is another in each run."""

    result: str
    expected: bool = True
    level: str | None = None
    reason: str = ""
    words: str = ""
    step: str = ""
    requirements: tuple[str, ...] = ()
    known: tuple[str, str] | None = None  # reason and RFC of the entry that lists it

    @property
    def key(self) -> tuple[str, ...]:
        """What tells two ways to fail apart: the words alone do not say where it is, nor how bad."""
        return self.words, self.step, self.level or "", *sorted(self.requirements)

    @property
    def verdict(self) -> str:
        """The result, whether or not it was known before: ``fail``, ``pass``, or the result itself."""
        return "fail" if self.result in _FAILED else "pass" if self.result in _PASSED else self.result

    def to_json(self) -> dict[str, Any]:
        """As ``--json`` has it: what says nothing is left out."""
        out: dict[str, Any] = {"result": self.result, "expected": self.expected}
        if self.level:
            out["level"] = self.level
        if self.reason:
            out["reason"] = self.reason
        if self.step:
            out["step"] = self.step
        if self.requirements:
            out["requirements"] = list(self.requirements)
        if self.known:
            out["known"] = {"reason": self.known[0], "rfc": self.known[1]}
        return out


_PASS, _MISSING, _ABSENT = Cell("pass"), Cell(MISSING, False, reason="planned, and without a verdict"), Cell(ABSENT)
_STALE = Cell(STALE, False)
#: Where a list of deviations has an entry: another line in each version of the list.
_PLACE = re.compile(r"\A.*?:\d+:\d+: ")


@dataclass(slots=True)
class Run:
    """One run: what it was, and a cell for each trial."""

    label: str
    path: str
    stack: str
    title: str
    conform: str
    started: str
    gate: str = "all"
    cells: dict[str, Cell] = field(default_factory=dict)
    durations: dict[str, float] = field(default_factory=dict)
    results: Counter[str] = field(default_factory=Counter)
    #: Level of the strongest requirement that a trial is about -> verdict -> how many.
    levels: dict[str, Counter[str]] = field(default_factory=dict)
    unexpected: int = 0
    #: Entries of the lists of deviations that match no trial, in words.
    stale: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    #: The cells as other gates would have them.
    gates: dict[str, dict[str, Cell]] = field(default_factory=dict)
    #: Trial -> what the entry of a list of deviations that covers it knows the failure by, if there is one. Of a trial
    #: that failed by chance no more is known than that.
    entries: dict[str, tuple[str, str] | None] = field(default_factory=dict)

    def cell(self, trial: str, gate: str = "") -> Cell:
        """What the run says of *trial*, or would under another *gate*."""
        return self.gates.get(gate, self.cells).get(trial, _ABSENT)

    def to_json(self) -> dict[str, Any]:
        """As ``--json`` has it."""
        return {
            "label": self.label, "path": self.path, "stack": self.stack, "title": self.title, "conform": self.conform,
            "started": self.started, "trials": len(self.cells), "unexpected": self.unexpected,
            "results": {name: self.results[name] for name in RESULTS if self.results[name]},
            "levels": {level: dict(sorted(self.levels[level].items())) for level in LEVELS if level in self.levels},
            "stale": self.stale,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """Trials of one case of which each run says the same; ``globs`` are their ids, folded."""

    case: str
    trials: tuple[str, ...]
    globs: tuple[str, ...]
    cells: tuple[Cell, ...]
    differs: bool

    def to_json(self) -> dict[str, Any]:
        """As ``--json`` has it."""
        return {
            "case": self.case, "globs": list(self.globs), "trials": list(self.trials), "differs": self.differs,
            "cells": [cell.to_json() for cell in self.cells],
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Change:
    """Of runs of one stack: how trials of one case came out in the first run and in that of number ``run``.

    A stale entry has neither case nor trials; ``globs`` are what is said of it.
    """

    what: str
    run: int
    case: str
    trials: tuple[str, ...]
    globs: tuple[str, ...]
    before: Cell
    after: Cell

    @property
    def count(self) -> int:
        """How many trials changed, or entries."""
        return len(self.trials) or 1

    def to_json(self) -> dict[str, Any]:
        """As ``--json`` has it."""
        return {
            "what": self.what, "run": self.run, "case": self.case, "globs": list(self.globs),
            "trials": list(self.trials), "before": self.before.to_json(), "after": self.after.to_json(),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Duration:
    """A trial that took grossly longer or shorter than in the first run."""

    run: int
    trial: str
    before: float
    after: float


#: What can become of a trial between two runs of one stack, and whether the exit code tells of it.
CHANGES = {
    "regression": True,  # expected, and no longer
    "missing": True,  # planned, and without a verdict
    "removed": True,  # had a verdict, and is not planned any more
    "stale": True,  # no trial, but an entry of a list of deviations: matches none, and was not told of before
    "fixed": False,  # unexpected, and no longer
    "changed": False,  # another result, or another reason
    "new": False,
    "tidied": False,  # an entry that was stale, and is not
}


@dataclass(slots=True)
class Comparison:
    """What came of it. ``alone`` has for each run the trials that fail on that stack only, ``everywhere`` those that
    fail on every stack to which they apply (two at least), both folded by case."""

    kind: Kind
    runs: list[Run]
    rows: list[Row] = field(default_factory=list)
    alone: list[dict[str, list[str]]] = field(default_factory=list)
    everywhere: dict[str, list[str]] = field(default_factory=dict)
    absent: list[int] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    durations: list[Duration] = field(default_factory=list)
    trials: int = 0
    #: Settings that are not the same in all runs -> each run's, ``None`` where it does not say.
    settings: dict[str, list[Any]] = field(default_factory=dict)
    #: For each run of one stack: how many trials another entry of the lists of deviations covers than in the first.
    entries: list[int] = field(default_factory=list)

    @property
    def exit(self) -> int:
        """1 where the comparison is a reason to look: docs/comparing.md defines it for both uses."""
        if self.kind == "runs":
            return int(any(CHANGES[change.what] for change in self.changes))
        return int(any(run.unexpected for run in self.runs))

    def to_json(self) -> dict[str, Any]:
        """As ``--json`` has it."""
        out: dict[str, Any] = {
            "format": FORMAT, "kind": self.kind, "exit": self.exit, "trials": self.trials,
            "settings": self.settings,
            "runs": [run.to_json() for run in self.runs],
            "rows": [row.to_json() for row in self.rows],
        }  # fmt: skip
        if self.kind == "stacks":
            out["alone"] = [{"run": number, "cases": cases} for number, cases in enumerate(self.alone) if cases]
            out["everywhere"] = self.everywhere
        else:
            out["deviations"] = self.entries
            out["changes"] = [change.to_json() for change in self.changes]
            out["durations"] = [
                {"run": each.run, "trial": each.trial, "before": each.before, "after": each.after}
                for each in self.durations
            ]
        return out


def stable(text: str) -> str:
    """*text* with what is another in each run replaced: two failures with the same are the same failure."""
    return VOLATILE.sub("…", text)


# Reading -------------------------------------------------------------------------------------------------------------
def read(path: Path) -> Run:
    """The run in *path*. Raises RunFileError."""
    reader = Reader(path)
    header = reader.header
    stack, settings = _mapping(header.get("stack")), _mapping(header.get("settings"))
    name = str(stack.get("name", "?"))
    run = Run(
        label=name,
        path=str(path),
        stack=name,
        title=str(_mapping(stack.get("description")).get("title") or name),
        conform=str(header.get("conform", "")),
        started=str(header.get("started", "")),
        gate=str(settings.get("gate", "all")),
    )
    planned = header.get("planned")
    left = dict.fromkeys(str(each) for each in planned) if isinstance(planned, list) else {}
    wanted = dict.fromkeys(map(base, left))
    run.gates = {gate: {} for gate in _gates() if gate != run.gate}
    links: set[str] = set()
    shared: dict[Any, Any] = {}
    levels: dict[str, str] = {}
    for line in reader.trials():
        trial = base(line["id"])
        own = line["result"], line["expected"]
        cell = _cell(line, *own)
        cell = shared.setdefault(cell, cell)
        run.cells[trial] = _worse(run.cells.get(trial), cell)
        for gate, cells in run.gates.items():
            judged = _judged(line, gate)
            other = cell if judged == own else _cell(line, *judged)
            cells[trial] = _worse(cells.get(trial), shared.setdefault(other, other))
        links.add(line["link"])
        entry = _mapping(line.get("expectation"))
        if not entry.get("sporadic"):
            known = (str(entry.get("message")), str(entry.get("requirement"))) if entry else None
            run.entries[trial] = shared.setdefault(known, known)
        left.pop(line["id"], None)
        levels[trial] = _level(line)
        lasted = line.get("duration")
        if isinstance(lasted, (int, float)):
            run.durations[trial] = max(float(lasted), run.durations.get(trial, 0.0))
    for cells in (run.cells, *run.gates.values()):
        for trial in map(base, left):  # also where only some of its repetitions have no line
            cells[trial] = _worse(cells.get(trial), _MISSING)
    run.settings = {name: settings.get(name) for name in (*_SETTINGS, *_OF_ONE_STACK)}
    run.settings["link"] = ", ".join(sorted(links)) or None  # that was used, which "auto" does not say
    # In the order of the plan, which is the same for all runs of the same cases; trials finish in any.
    run.cells = {trial: run.cells[trial] for trial in wanted} | run.cells
    stale = header.get("stale")
    run.stale = [str(each).partition("\n")[0] for each in stale] if isinstance(stale, list) else []
    run.unexpected = len(run.stale)
    run.results.update([STALE] * len(run.stale))
    for trial, cell in run.cells.items():
        run.results[cell.result] += 1
        run.unexpected += not cell.expected
        run.levels.setdefault(cell.level or levels.get(trial, "must"), Counter())[cell.verdict] += 1
    return run


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _worse(one: Cell | None, other: Cell) -> Cell:
    """What counts of two repetitions: what is not as expected, then the more alarming; the first of equals."""
    return other if one is None or _rank(other) < _rank(one) else one


def _rank(cell: Cell) -> tuple[bool, int]:
    return cell.expected, _ORDER.get(cell.result, 0)


def _gates() -> Mapping[str, Sequence[str]]:
    from conform.run.expectations import GATES

    return GATES


def _judged(line: Mapping[str, Any], gate: str) -> tuple[str, bool]:
    """``result`` and ``expected`` of a trial's *line*, had the run had that *gate*."""
    from conform.run.expectations import Deviation, classify

    earlier = line.get("earlier") or ()
    if earlier or line["verdict"].get("outcome") == "fail":
        try:
            before = [Verdict.from_json(each["verdict"]) for each in earlier]
            entry = Deviation.from_json(line["expectation"]) if line.get("expectation") else None
            return classify(Verdict.from_json(line["verdict"]), entry, gate, [each for each in before if not each.late])
        except (KeyError, TypeError, ValueError, AttributeError):
            pass  # a line that somebody altered stays as it is
    return line["result"], line["expected"]


def _cell(line: Mapping[str, Any], result: str, expected: bool) -> Cell:
    verdict = line["verdict"]
    if result == "pass":
        return _PASS if expected else Cell("pass", False)
    if result == "flaky":  # what is to be told of is the attempt that was refused, which a late one never is
        earlier = line.get("earlier")
        tries = [_mapping(_mapping(each).get("verdict")) for each in (earlier if isinstance(earlier, list) else ())]
        refused = (each for each in reversed(tries) if each.get("outcome") != "pass" and not each.get("late"))
        verdict = next(refused, verdict)
    failure = _mapping(verdict.get("failure"))
    reason = failure.get("summary") if verdict.get("outcome") == "fail" else verdict.get("reason")
    entry = _mapping(line.get("expectation"))
    if result == "unexpected-pass":
        reason = "it passes, though it is listed as a known deviation"
    named = verdict.get("requirements")
    requirements = tuple(dict.fromkeys(str(name) for name in named)) if isinstance(named, list) else ()
    told = str(reason or "no reason given")
    return Cell(
        result=result,
        expected=expected,
        level=verdict.get("level") if verdict.get("level") in LEVELS else None,
        reason=told,
        words=stable(told),
        step=str(failure.get("step") or ""),
        requirements=requirements,
        known=(str(entry.get("reason", "")), str(entry.get("rfc", ""))) if entry else None,
    )


def _level(line: Mapping[str, Any]) -> str:
    """The strongest level of what a trial is about."""
    named = {GATING.get(str(level), "must") for level in line["levels"].values()}
    return next((level for level in LEVELS if level in named), "must")


# Comparing -----------------------------------------------------------------------------------------------------------
def compare(runs: Sequence[Run], everything: bool = False) -> Comparison:
    """Hold *runs* beside each other, or the others against the first where all are of one stack.

    *everything*: the rows that agree are wanted too.
    """
    kind: Kind = "runs" if len({run.stack for run in runs}) == 1 else "stacks"
    _label(runs)
    found = Comparison(kind, list(runs), settings=_settings(runs, kind))
    universe: dict[str, None] = {}
    for run in runs:
        universe.update(dict.fromkeys(run.cells))
    found.trials = len(universe)
    found.absent = [len(universe) - len(run.cells) for run in runs]
    cases: dict[str, list[str]] = {}
    for trial in universe:
        cases.setdefault(case_of(trial), []).append(trial)
    for case in sorted(cases):
        groups: dict[tuple[Any, ...], list[str]] = {}
        for trial in cases[case]:
            cells = [run.cell(trial) for run in runs]
            if kind == "runs":
                cells += [runs[0].cell(trial, run.gate) for run in runs[1:]]
            groups.setdefault(tuple(map(_told, cells)), []).append(trial)
        for members in groups.values():
            cells = [run.cell(members[0]) for run in runs]
            differs = _differ(cells) if kind == "stacks" else _changed(runs, members[0])
            if differs or everything:
                globs = tuple(fold(members, cases[case]))
                found.rows.append(Row(case, tuple(members), globs, tuple(cells), differs))
    if kind == "stacks":
        _who_fails(found, cases)
    else:
        found.entries = [_covered_otherwise(runs[0], run) for run in runs]
        for number in range(1, len(runs)):
            found.changes += _changes(runs[0], runs[number], number, cases)
            found.changes += _entries(runs[0], runs[number], number)
            found.durations += _durations(runs[0], runs[number], number)
        order = list(CHANGES)
        found.changes.sort(key=lambda change: (change.run, order.index(change.what)))
    return found


def _settings(runs: Sequence[Run], kind: Kind) -> dict[str, list[Any]]:
    out = {}
    for name in (*_SETTINGS, *(_OF_ONE_STACK if kind == "runs" else ())):
        values = [run.settings.get(name) for run in runs]
        said = [value for value in values if value is not None]
        if any(value != said[0] for value in said):
            out[name] = values
    return out


def _covered_otherwise(first: Run, other: Run) -> int:
    return sum(first.entries[trial] != entry for trial, entry in other.entries.items() if trial in first.entries)


def _told(cell: Cell) -> tuple[Any, ...]:
    """All of a cell that must be the same where trials share a line."""
    return cell.result, cell.expected, cell.key


def _label(runs: Sequence[Run]) -> None:
    """Names for the columns: the stack's where that tells them apart, else the run's own."""
    many = Counter(run.stack for run in runs)
    for run in runs:
        if many[run.stack] > 1:
            path = Path(run.path)
            own = (path.parent if path.suffix == ".jsonl" else path).resolve().name
            run.label = own if len(many) == 1 else f"{run.stack} ({own})"
    twice = Counter(run.label for run in runs)
    for number, run in enumerate(runs, 1):
        if twice[run.label] > 1:
            run.label = f"{run.label} [{number}]"


def _differ(cells: Iterable[Cell]) -> bool:
    """Whether stacks differ: another verdict, or another way to fail. What a run knows nothing of is no verdict."""
    told = {(cell.verdict, cell.key if cell.verdict == "fail" else ()) for cell in cells if cell.result != ABSENT}
    return len(told) > 1


def _changed(runs: Sequence[Run], trial: str) -> bool:
    return any(_what(runs[0].cell(trial, run.gate), run.cell(trial), run.gate) is not None for run in runs[1:])


def _who_fails(found: Comparison, cases: Mapping[str, list[str]]) -> None:
    alone: list[list[str]] = [[] for _ in found.runs]
    everywhere = []
    for trial in (trial for members in cases.values() for trial in members):
        verdicts = {n: run.cell(trial).verdict for n, run in enumerate(found.runs)}
        decided = [n for n, verdict in verdicts.items() if verdict in ("pass", "fail")]
        failing = [n for n in decided if verdicts[n] == "fail"]
        if len(decided) < 2 or not failing:
            continue
        if len(failing) == 1:
            alone[failing[0]].append(trial)
        elif len(failing) == len(decided):
            everywhere.append(trial)
    found.alone = [_by_case(trials, cases) for trials in alone]
    found.everywhere = _by_case(everywhere, cases)


def _by_case(trials: Iterable[str], cases: Mapping[str, list[str]]) -> dict[str, list[str]]:
    wanted: dict[str, list[str]] = {}
    for trial in trials:
        wanted.setdefault(case_of(trial), []).append(trial)
    return {case: fold(wanted[case], cases[case]) for case in sorted(wanted)}


def _what(before: Cell, after: Cell, gate: str) -> str | None:
    """What became of a trial, as :data:`CHANGES` names it; ``None``: nothing."""
    has, had = after.result not in (MISSING, ABSENT), before.result not in (MISSING, ABSENT)
    if not has:
        gone = "missing" if after.result == MISSING else "removed"
        return gone if had or (gone == "missing" and before.result == ABSENT) else None
    if not had:
        return "new"
    if before.expected != after.expected:
        return "regression" if before.expected else "fixed"
    if before.result == after.result == "fail" and _tolerated(before, gate) and not _tolerated(after, gate):
        return "regression"  # though an attempt before was refused in both
    return None if (before.result, before.key) == (after.result, after.key) else "changed"


def _tolerated(failure: Cell, gate: str) -> bool:
    return failure.level not in _gates().get(gate, LEVELS)


def _changes(first: Run, other: Run, number: int, cases: Mapping[str, list[str]]) -> Iterator[Change]:
    """Both are judged by the gate of the *other*: a stack does not change because a gate does."""
    gate = other.gate
    for case in sorted(cases):
        groups: dict[tuple[Any, ...], list[str]] = {}
        for trial in cases[case]:
            before, after = first.cell(trial, gate), other.cell(trial)
            what = _what(before, after, gate)
            if what is not None:
                groups.setdefault((what, *_told(before), *_told(after)), []).append(trial)
        for (what, *_), members in groups.items():
            globs = tuple(fold(members, cases[case]))
            before, after = first.cell(members[0], gate), other.cell(members[0])
            yield Change(what, number, case, tuple(members), globs, before, after)


def _entries(first: Run, other: Run, number: int) -> Iterator[Change]:
    """What became of stale entries."""
    for what, those, these, before, after in (
        ("stale", first, other, _ABSENT, _STALE),
        ("tidied", other, first, _STALE, _ABSENT),
    ):
        had = Counter(_PLACE.sub("", words) for words in those.stale)
        for words in these.stale:
            told = _PLACE.sub("", words)
            if had[told]:
                had[told] -= 1
            else:
                yield Change(what, number, "", (), (words,), before, after)


def _durations(first: Run, other: Run, number: int) -> list[Duration]:
    out = []
    for trial, before in first.durations.items():
        after = other.durations.get(trial)
        if after is None:
            continue
        short, long = sorted((before, after))
        if long > _TIMES * short and long - short > _SECONDS:
            out.append(Duration(number, trial, before, after))
    return sorted(out, key=lambda each: (each.before - each.after, each.trial))
