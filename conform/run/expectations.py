"""Known deviations of a stack: the trials that are expected to fail, and why each does.

``expectations/<stack>.yaml`` beside the cases holds a list. An entry says which trials, the RFC section, the packets
that show the deviation, and a text that the failure's summary must contain: a trial that fails in another way than the
known one is a failure like any other, and one that passes turns the gate red, so that the list never outlives the
truth. What a stack does by chance, in any trial and seldom, is a *sporadic* entry: it explains the failure that comes,
and asks for none.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from conform.case.source import Problem, did_you_mean
from conform.engine.verdict import LEVELS, Verdict

DIRECTORY = "expectations"
_REQUIRED = ("trials", "reason", "rfc", "packets", "message")
_KEYS = (*_REQUIRED, "requirement", "sporadic")

#: What is said of an entry whose reason is empty, as ``conform expect update`` leaves it.
UNREASONED = "no reason is given: write why the stack does that, in a sentence; conform cannot know it"

#: ``--gate``: the levels whose failures turn the gate red.
GATES: dict[str, tuple[str, ...]] = {"must": ("must",), "should": ("must", "should"), "all": LEVELS}


_MEANINGS = {
    "trials": "a glob over the ids of trials, or a list of them; * spans dots and slashes, capitals do not count",
    "message": "a text that the failure's summary must contain: another failure is not the known one",
    "requirement": "the id of a requirement that the failure must break",
    "sporadic": "chance decides whether a trial fails so: one that passes is as expected too",
    "reason": "why the stack does that",
    "rfc": "where the RFC says otherwise",
    "packets": "the packets that show it: what the tester (T) sends, what the stack (S) does, what it should do",
}


def schema() -> dict[str, Any]:
    """The JSON Schema of a list of deviations."""
    text = {"type": "string", "pattern": r"\S"}
    properties: dict[str, Any] = {name: {**text, "description": told} for name, told in _MEANINGS.items()}
    properties["trials"] = {
        "anyOf": [text, {"type": "array", "items": text, "minItems": 1}],
        "description": _MEANINGS["trials"],
    }
    properties["sporadic"] = {"type": "boolean", "description": _MEANINGS["sporadic"]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The known deviations of a stack",
        "type": ["array", "null"],
        "items": {
            "type": "object",
            "properties": properties,
            "required": list(_REQUIRED),
            "additionalProperties": False,
        },
    }


@dataclass(frozen=True, slots=True)
class Deviation:
    """One entry. ``trials`` are globs over trial ids, in which ``*`` also spans dots and slashes."""

    trials: tuple[str, ...]
    reason: str
    rfc: str
    packets: str
    message: str
    path: Path
    line: int
    requirement: str | None = None
    sporadic: bool = False

    def covers(self, trial: str) -> bool:
        """Whether the trial with that id (less its ``#n``) is meant."""
        name = trial.partition("#")[0].lower()
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.trials)

    def explains(self, verdict: Verdict) -> bool:
        """Whether a failure, or a precondition that was not reached, is the known one."""
        if verdict.failure is None or verdict.late or self.message.lower() not in verdict.failure.summary.lower():
            return False
        return self.requirement is None or self.requirement in verdict.requirements

    def to_json(self) -> dict[str, Any]:
        """As the run file has it."""
        entry: dict[str, Any] = {
            "trials": list(self.trials), "reason": self.reason, "rfc": self.rfc, "packets": self.packets,
            "message": self.message, "file": str(self.path), "line": self.line,
        }  # fmt: skip
        if self.requirement is not None:
            entry["requirement"] = self.requirement
        if self.sporadic:
            entry["sporadic"] = True
        return entry

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Deviation:
        """What :meth:`to_json` gave. Raises KeyError and TypeError."""
        entry = dict(data)
        path = Path(entry.pop("file"))
        return cls(**(entry | {"trials": tuple(entry["trials"]), "path": path}))


@dataclass(frozen=True, slots=True)
class Expectations:
    """All deviations that hold for a run, and what is wrong with the files that list them."""

    deviations: tuple[Deviation, ...] = ()
    problems: tuple[Problem, ...] = ()

    def of(self, trial: str, verdict: Verdict | None = None) -> Deviation | None:
        """The entry by which the trial with that id is judged, whose *verdict* it is: the first that covers it.

        A sporadic one says nothing but of a failure that it explains, and that no steady one does. What a stack does by
        chance in a trial's precondition leaves the trial inconclusive.
        """
        covering = [entry for entry in self.deviations if entry.covers(trial)]
        steady = next((entry for entry in covering if not entry.sporadic), None)
        if verdict is None or verdict.outcome != "fail" or (steady is not None and steady.explains(verdict)):
            return steady
        return next((entry for entry in covering if entry.sporadic and entry.explains(verdict)), steady)

    def unmatched(self, trials: Collection[str]) -> list[Problem]:
        """Entries that never count among *trials*, which must be all that the cases give on that stack.

        They cover none, or none that no entry before them covers.
        """
        found = []
        left = set(trials)
        for entry in self.deviations:
            mine = [trial for trial in trials if entry.covers(trial)]
            told = ", ".join(entry.trials)
            if not mine:
                found.append(f"no trial matches {told}: the entry is out of date")
            elif not entry.sporadic and left.isdisjoint(mine):
                found.append(f"entries before this one cover all trials that match {told}: it never counts")
            else:
                found.append("")
            if not entry.sporadic:
                left.difference_update(mine)
        return [
            Problem(str(entry.path), entry.line, 1, words, f"- trials: {', '.join(entry.trials)}")
            for entry, words in zip(self.deviations, found, strict=True)
            if words
        ]


def classify(verdict: Verdict, entry: Deviation | None, gate: str, earlier: Sequence[Verdict] = ()) -> tuple[str, bool]:
    """``result`` and ``expected`` of a trial with that *verdict* (docs/run-format.md).

    *earlier* are the verdicts of attempts that ``--retry`` followed by others. A trial of which any was not as expected
    is not, whatever came last: a conforming stack always is. Retrying only tells the flaky from what fails steadily.
    """
    result, expected = _alone(verdict, entry, gate)
    if all(_alone(each, entry, gate)[1] for each in earlier):
        return result, expected
    return ("flaky" if result in ("pass", "unexpected-pass", "expected-failure") else result), False


def _alone(verdict: Verdict, entry: Deviation | None, gate: str) -> tuple[str, bool]:
    outcome = verdict.outcome
    if outcome == "pass":
        return ("pass", True) if entry is None or entry.sporadic else ("unexpected-pass", False)
    if outcome in ("fail", "inconclusive") and entry is not None and entry.explains(verdict):
        return "expected-failure", True
    if outcome == "fail":
        return "fail", verdict.level not in GATES[gate]
    return outcome, outcome == "not-applicable"


def files(paths: Iterable[Path], stack: str = "*") -> list[Path]:
    """The expectations files of *stack* (of every one) that belong to the cases under *paths*.

    They are in directories called ``expectations``: in a directory of *paths*, above it or below it. What holds of a
    case does so however little else is run.
    """
    found: dict[Path, None] = {}
    for path in paths:
        place = path.resolve()
        beside = [directory / DIRECTORY for directory in (place, *place.parents)]
        below = sorted(place.glob(f"**/{DIRECTORY}")) if place.is_dir() else []
        for directory in [*beside, *below]:
            if directory.is_dir():
                found.update(dict.fromkeys(file for file in sorted(directory.glob(f"{stack}.yaml")) if file.is_file()))
    return list(found)


def whole(file: Path, paths: Iterable[Path]) -> bool:
    """Whether all the cases that the expectations *file* belongs to are in *paths*."""
    place = file.resolve().parent.parent
    return any(path.resolve() in (place, *place.parents) for path in paths)


def load(paths: Iterable[Path], shown: Path | None = None) -> Expectations:
    """Read expectations *files*. Places are shown relative to *shown* (the working directory) where they lie in it."""
    deviations: list[Deviation] = []
    problems: list[Problem] = []
    for path in paths:
        reader = _File(named(path, shown))
        deviations += reader.read(path)
        problems += reader.problems
    return Expectations(tuple(deviations), tuple(problems))


def named(path: Path, shown: Path | None = None) -> Path:
    """*path* as it is shown: relative to *shown* (the working directory) where it lies in it."""
    base = (shown or Path.cwd()).resolve()
    return path.relative_to(base) if path.is_relative_to(base) else path


def parse(text: str, name: Path, unreasoned: bool = False) -> Expectations:
    """The expectations that *text* holds. With *unreasoned* an entry may wait for its reason, which then is empty."""
    reader = _File(name, unreasoned)
    return Expectations(tuple(reader.parse(text)), tuple(reader.problems))


class _File:
    """One file on its way in."""

    def __init__(self, name: Path, unreasoned: bool = False) -> None:
        self._name = name
        self._unreasoned = unreasoned
        self._lines: list[str] = []
        self.problems: list[Problem] = []

    def _wrong(self, line: int, column: int, message: str, hint: str = "") -> None:
        source = self._lines[line] if line < len(self._lines) else ""
        self.problems.append(Problem(str(self._name), line + 1, column + 1, message, source, hint=hint))

    def _at(self, node: yaml.Node, message: str, hint: str = "") -> None:
        self._wrong(node.start_mark.line, node.start_mark.column, message, hint)

    def read(self, path: Path) -> list[Deviation]:
        try:
            return self.parse(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            self.problems.append(Problem(str(self._name), 0, 0, f"the file is not UTF-8 text: {error.reason}"))
        except OSError as error:
            self.problems.append(Problem(str(self._name), 0, 0, f"the file cannot be read: {error.strerror}"))
        return []

    def parse(self, text: str) -> list[Deviation]:
        self._lines = text.splitlines()
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self._wrong(mark.line if mark else 0, mark.column if mark else 0, error.problem or "not YAML")
            return []
        except (yaml.YAMLError, RecursionError) as error:
            self.problems.append(Problem(str(self._name), 0, 0, f"not YAML: {error}"))
            return []
        if root is None:
            return []
        if not isinstance(root, yaml.SequenceNode):
            self._at(root, "expected a list of deviations")
            return []
        return [entry for node in root.value if (entry := self._entry(node)) is not None]

    def _entry(self, node: yaml.Node) -> Deviation | None:
        before = len(self.problems)
        if not isinstance(node, yaml.MappingNode):
            self._at(node, f"expected a deviation: a mapping with {', '.join(_REQUIRED)}")
            return None
        texts: dict[str, tuple[str, ...]] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name not in _KEYS:
                known = ", ".join(_KEYS)
                self._at(key, f"unknown key {name!r}; a deviation has {known}", did_you_mean(str(name), _KEYS))
            elif name in texts:
                self._at(key, f"{name} is said twice")
            else:
                texts[name] = self._texts(name, value)
        for name in _REQUIRED:
            if name not in texts:
                self._at(node, f"{name} is missing: a deviation says {', '.join(_REQUIRED)}")
        if len(self.problems) > before:
            return None
        one = {name: values[0] for name, values in texts.items() if values and name != "trials"}
        return Deviation(
            trials=tuple(_pattern(pattern) for pattern in texts["trials"]),
            reason=one["reason"],
            rfc=one["rfc"],
            packets=one["packets"],
            message=one["message"],
            requirement=one.get("requirement"),
            path=self._name,
            line=node.start_mark.line + 1,
            sporadic="sporadic" in one,
        )

    def _texts(self, name: str, node: yaml.Node) -> tuple[str, ...]:
        if name == "sporadic":
            if node.tag != "tag:yaml.org,2002:bool":
                self._at(node, "sporadic is true or false")
            return ("true",) if node.value.lower() in ("true", "yes", "on") else ()
        nodes = node.value if name == "trials" and isinstance(node, yaml.SequenceNode) else [node]
        texts = []
        for item in nodes:
            if name == "reason" and _empty(item):
                if self._unreasoned:
                    texts.append("")
                else:
                    self._at(item, UNREASONED)
            elif (
                not isinstance(item, yaml.ScalarNode) or item.tag == "tag:yaml.org,2002:null" or not item.value.strip()
            ):
                self._at(
                    item, f"{name} is {'a glob over trial ids, or a list of them' if name == 'trials' else 'a text'}"
                )
            else:
                texts.append(item.value.strip())
        if not texts and not nodes:
            self._at(node, "trials names at least one trial")
        return tuple(texts)


def _empty(node: yaml.Node) -> bool:
    """Whether nothing is written, or nothing but quotes or ``~``."""
    return isinstance(node, yaml.ScalarNode) and (node.tag == "tag:yaml.org,2002:null" or not node.value.strip())


def _pattern(text: str) -> str:
    """A glob as fnmatch wants it. Ids hold no brackets, so ``[`` is only ever meant as itself."""
    return re.sub(r"\[", "[[]", text.lower())
