"""``conform expect update``: the list of a stack's deviations brought up to date with a run (docs/expectations.md).

Only what a run found to be unexpected changes the list, and only whole entries, or patterns of an entry's ``trials``,
are taken out: every other octet of the file stays. What is made is read back and judged before it is handed out.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from conform.case.source import Problem
from conform.engine.verdict import Verdict
from conform.run import proof
from conform.run.expectations import DIRECTORY, Deviation, Expectations, classify, files, parse
from conform.run.fold import base, case_of, fold, matcher
from conform.run.runfile import Reader

_WIDTH = 120
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._/+*?;,=<>()'-]*\Z")
_GLOB = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+*?-]*\Z")


class UpdateError(Exception):
    """The list cannot be brought up to date by conform. Says why."""


@dataclass(slots=True)
class Seen:
    """What a run says of one trial, of all its repetitions: verdicts with those of earlier attempts, and failures."""

    verdicts: list[tuple[Verdict, tuple[Verdict, ...]]] = field(default_factory=list)
    packets: str = ""

    @property
    def attempts(self) -> list[Verdict]:
        """All verdicts, those of earlier attempts among them."""
        return [each for verdict, earlier in self.verdicts for each in (*earlier, verdict)]


@dataclass(slots=True)
class Update:
    """What became of the list. ``left`` are trials that conform writes nothing of, each with why."""

    before: str
    text: str
    added: list[tuple[Deviation, int]] = field(default_factory=list)
    removed: list[Deviation] = field(default_factory=list)
    narrowed: list[tuple[Deviation, list[str]]] = field(default_factory=list)
    filled: list[Deviation] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)
    waiting: list[Deviation] = field(default_factory=list)

    @property
    def exit(self) -> int:
        """1 where something is left for a person to do."""
        return int(bool(self.left or self.waiting))


Ask = Callable[[Deviation], str]


# What the run says ---------------------------------------------------------------------------------------------------
def survey(reader: Reader) -> dict[str, Seen]:
    """All trials of a run that have a verdict, by id. Raises RunFileError and :class:`UpdateError`."""
    found: dict[str, Seen] = {}
    for line in reader.trials():
        seen = found.setdefault(base(line["id"]), Seen())
        try:
            verdict = Verdict.from_json(line["verdict"])
            earlier = [Verdict.from_json(each["verdict"]) for each in line.get("earlier") or ()]
            if verdict.failure is not None and not seen.packets:
                seen.packets = proof.packets(line)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UpdateError(f"{reader.path}: the line of {line['id']} is damaged ({error!r})") from None
        seen.verdicts.append((verdict, tuple(each for each in earlier if not each.late)))
    return found


def trials_of(file: Path, paths: Iterable[str]) -> list[str]:
    """The ids of all trials of the cases to which *file* belongs, on whatever stack; none where there are no cases.

    Those are the cases beside it, or where it stands elsewhere those in *paths*, which the run was of.
    """
    from conform.case.load import load
    from conform.run.check import trial_ids

    beside = file.parent.name == DIRECTORY
    roots = [file.parent.parent] if beside else [path for path in map(Path, paths) if path.exists()]
    return list(trial_ids(load(roots).cases)) if roots else []


# The list ------------------------------------------------------------------------------------------------------------
def update(
    text: str,
    name: Path,
    seen: Mapping[str, Seen],
    *,
    universe: Collection[str] = (),
    gate: str = "all",
    others: Expectations = Expectations(),  # noqa: B008 - immutable
    ask: Ask = lambda entry: "",
) -> Update | list[Problem]:
    """The list *text*, which is shown as *name*, as it should be after the run whose trials are *seen*.

    *universe*: the ids of all trials there are, so that no glob covers what was not seen to fail. *others*: the lists
    of other cases of that run. *ask* is asked for the reason of each entry that has none. Returns what is wrong with
    the list if something is. Raises :class:`UpdateError`.
    """
    known = parse(text, name, unreasoned=True)
    if known.problems:
        return list(known.problems)
    everything = {base(trial).lower(): base(trial) for trial in [*universe, *seen]}
    seen = _less_chance(seen, Expectations((*known.deviations, *others.deviations)))
    work = _Work(text, name, known.deviations, gate, seen)
    failing: list[str] = []
    for trial, each in seen.items():
        if others.of(trial) is None and work.settle(trial, each):
            failing.append(trial)
    done = Update(text, text, left=sorted(work.left.items()))
    edits = work.edits(everything, done)
    added = [_ask(entry, ask) for entry in _entries(failing, seen, everything.values(), name)]
    for entry in added:
        meant = [matcher(glob) for glob in entry.trials]
        done.added.append((entry, sum(any(each(trial.lower()) for each in meant) for trial in failing)))
    edits += work.reasons(ask, done)
    done.text = work.apply(edits, added)
    _verify(done, name, seen, work, others, gate)
    return done


def _less_chance(seen: Mapping[str, Seen], known: Expectations) -> dict[str, Seen]:
    """*seen* without what a sporadic entry explains: it says nothing of how the trial goes else."""
    out = {}
    for trial, each in seen.items():
        explained = [(entry := known.of(trial, verdict)) is not None and entry.sporadic for verdict, _ in each.verdicts]
        kept = [found for found, chance in zip(each.verdicts, explained, strict=True) if not chance]
        if kept:
            out[trial] = Seen(kept, each.packets)
    return out


def _ask(entry: Deviation, ask: Ask) -> Deviation:
    return replace(entry, reason=" ".join(ask(entry).split()))


class _Work:
    """A list being brought up to date."""

    def __init__(
        self, text: str, name: Path, entries: Sequence[Deviation], gate: str, seen: Mapping[str, Seen]
    ) -> None:
        self.text = text
        self.name = name
        self.entries = entries
        self.gate = gate
        self.seen = {trial.lower() for trial in seen}
        self.left: dict[str, str] = {}
        #: Of each entry the trials, in small letters, that it must not cover any longer; and those it was settled by.
        self.gone: list[set[str]] = [set() for _ in entries]
        self.settled: dict[str, int] = {}
        self.applies: set[str] = set()
        self.newline = "\r\n" if "\r\n" in text else "\n"
        self.root: Any = yaml.compose(text, Loader=yaml.SafeLoader)

    # What is to change -------------------------------------------------------------------------------------------
    def settle(self, trial: str, seen: Seen) -> bool:
        """Find the entry that is right about *trial*; take it out of those that are not. Whether it needs a new one."""
        if all(verdict.outcome == "not-applicable" for verdict, _ in seen.verdicts):
            return False
        self.applies.add(trial.lower())
        wrong = []
        entries = [n for n, entry in enumerate(self.entries) if not entry.sporadic and entry.covers(trial)]
        for number in (*entries, None):
            entry = None if number is None else self.entries[number]
            if all(classify(verdict, entry, self.gate, earlier)[1] for verdict, earlier in seen.verdicts):
                needed = False
                if number is not None:
                    self.settled[trial.lower()] = number
                break
            if number is not None:
                wrong.append(number)
        else:
            needed = True
            if words := _unsettled(seen):
                self.left[trial] = words
                return False
        for number in wrong:
            self.gone[number].add(trial.lower())
        return needed

    def edits(self, everything: Mapping[str, str], done: Update) -> list[tuple[int, int, str]]:
        """How the text changes: spans and what replaces them."""
        out: list[tuple[int, int, str]] = []
        for number, (entry, gone) in enumerate(zip(self.entries, self.gone, strict=True)):
            if not gone:
                continue
            covered = [trial for trial in everything if entry.covers(trial)]
            # What an entry before it is right about does not matter here, nor does what never applies.
            mine = {t for t in covered if t not in gone and self.settled.get(t, number) == number}
            kept = {t for t in mine if t in self.applies or t not in self.seen}
            if not kept:
                done.removed.append(entry)
                out.append((*self._span(number), ""))
            else:
                done.narrowed.append((entry, fold([everything[trial] for trial in sorted(gone)], everything.values())))
                out += self._narrow(number, gone, kept, everything)
        return out

    def reasons(self, ask: Ask, done: Update) -> list[tuple[int, int, str]]:
        """Reasons for the entries that still wait for one."""
        out = []
        for number, entry in enumerate(self.entries):
            if entry.reason or entry in done.removed:
                continue
            told = " ".join(ask(entry).split())
            if told:
                node = self._value(number, "reason")
                start, end = node.start_mark.index, node.end_mark.index
                space = " " if self.text[start - 1 : start] == ":" else ""
                done.filled.append(replace(entry, reason=told))
                out.append((start, end, space + _scalar(told) + self.newline * self.text[start:end].endswith("\n")))
        return out

    # Where it is -------------------------------------------------------------------------------------------------
    def _node(self, number: int) -> yaml.MappingNode:
        if self.root.flow_style:
            raise UpdateError(f"{self.name}: the list stands in brackets; write it as lines that begin with '- '")
        node = self.root.value[number]
        assert isinstance(node, yaml.MappingNode)
        return node

    def _value(self, number: int, key: str) -> yaml.Node:
        found: yaml.Node = next(value for name, value in self._node(number).value if name.value == key)
        return found

    def _span(self, number: int) -> tuple[int, int]:
        """An entry's lines: from its dash to the end of its last value's line."""
        node: yaml.Node = self._node(number)
        column = self.root.start_mark.column
        dashes = [
            token.start_mark.index
            for token in yaml.scan(self.text, Loader=yaml.SafeLoader)
            if isinstance(token, yaml.BlockEntryToken) and token.start_mark.column == column
        ]
        start = self.text.rfind("\n", 0, dashes[number]) + 1
        while isinstance(node, yaml.CollectionNode) and node.value and not node.flow_style:
            node = node.value[-1][1] if isinstance(node, yaml.MappingNode) else node.value[-1]
        return start, self._line_end(start + len(self.text[start : node.end_mark.index].rstrip()))

    def _line_end(self, index: int) -> int:
        end = self.text.find("\n", index)
        return len(self.text) if end < 0 else end + 1

    def _narrow(
        self, number: int, gone: Collection[str], kept: Collection[str], everything: Mapping[str, str]
    ) -> list[tuple[int, int, str]]:
        """Take *gone* out of an entry's patterns, so that they cover *kept* still."""
        node = self._value(number, "trials")
        items = node.value if isinstance(node, yaml.SequenceNode) else [node]
        changes: dict[int, list[str]] = {}
        for place, item in enumerate(items):
            meant = matcher(item.value.strip())
            covered = [trial for trial in everything if meant(trial)]
            if not any(trial in gone for trial in covered):
                continue
            still = [everything[trial] for trial in covered if trial in kept]
            free = {t for t in covered if t not in kept and t not in gone}  # these may be covered or not
            changes[place] = fold(still, [trial for trial in everything if trial not in free])
        if not isinstance(node, yaml.SequenceNode):
            return [(node.start_mark.index, node.end_mark.index, _globs(changes[0]))]
        if node.flow_style:
            return [(node.start_mark.index, node.end_mark.index, self._flow(node, changes))]
        out = []
        for place, globs in changes.items():
            start, end = items[place].start_mark.index, items[place].end_mark.index
            line = self.text.rfind("\n", 0, start) + 1
            if globs:
                told = (self.newline + self.text[line:start]).join(map(_glob, globs))
                out.append((start, end, told))
            else:
                out.append((line, self._line_end(end), ""))
        return out

    def _flow(self, node: yaml.SequenceNode, changes: Mapping[int, list[str]]) -> str:
        items = node.value
        out = self.text[node.start_mark.index : items[0].start_mark.index]
        last = None
        for place, item in enumerate(items):
            told = (
                ", ".join(map(_glob, changes[place]))
                if place in changes
                else self.text[item.start_mark.index : item.end_mark.index]
            )
            if not told:
                continue
            if last is not None:
                between = self.text[items[place - 1].end_mark.index : item.start_mark.index]
                out += between if last == place - 1 else ", "
            out += told
            last = place
        return out + self.text[items[-1].end_mark.index : node.end_mark.index]

    # What comes of it --------------------------------------------------------------------------------------------
    def apply(self, edits: Iterable[tuple[int, int, str]], added: Sequence[Deviation]) -> str:
        """The text after *edits*, with *added* at its end."""
        text, upto = self.text, len(self.text)
        for start, end, told in sorted(set(edits), reverse=True):
            if end > upto:
                raise UpdateError(f"{self.name}: conform cannot edit this list without harm: entries share their text")
            text, upto = text[:start] + told + text[end:], start
        if not added:
            return text
        column = 0
        if isinstance(self.root, yaml.SequenceNode) and not self.root.value:
            span = slice(self.root.start_mark.index, self.root.end_mark.index)
            text = self.text[: span.start] + self.text[span.stop :]  # an empty list in brackets
        elif self.root is not None:
            self._node(0)
            column = self.root.start_mark.column
        if text and not text.endswith("\n"):
            text += self.newline
        if text.strip():
            text += self.newline
        blocks = (_block(entry) for entry in added)
        lines = [f"{' ' * column}{line}".rstrip() for block in blocks for line in block]
        return text + "".join(line + self.newline for line in lines)


def _unsettled(seen: Seen) -> str:
    """Why nothing can be said of a trial."""
    for verdict in seen.attempts:
        if verdict.outcome == "error":
            return f"conform failed: {verdict.reason}"
        if verdict.outcome == "inconclusive" and (verdict.late or verdict.failure is None):
            return f"inconclusive: {verdict.reason}"
    if len({verdict.outcome for verdict in seen.attempts}) > 1:
        return "it passes at one time and fails at another"
    if len({proof.message(verdict.failure.summary) for verdict in seen.attempts if verdict.failure}) != 1:
        return "it fails, and not always in the same way"
    return ""


# New entries ---------------------------------------------------------------------------------------------------------
def _entries(
    failing: Iterable[str], seen: Mapping[str, Seen], universe: Collection[str], name: Path
) -> list[Deviation]:
    """An entry for the trials of one case that fail at one step in one way."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for trial in sorted(failing):
        failure = seen[trial].verdicts[0][0].failure
        assert failure is not None
        head = proof.message(failure.summary).partition(", want ")[0]
        groups.setdefault((case_of(trial), failure.step, head), []).append(trial)
    out = []
    for (_, _, head), trials in groups.items():
        verdicts = [verdict for trial in trials for verdict in seen[trial].attempts]
        messages = {proof.message(verdict.failure.summary) for verdict in verdicts if verdict.failure}
        named = list(dict.fromkeys(requirement for verdict in verdicts for requirement in verdict.requirements))
        common = [each for each in named if all(each in verdict.requirements for verdict in verdicts)]
        out.append(
            Deviation(
                trials=tuple(fold(trials, universe)),
                reason="",
                rfc=proof.sections(named) or "no section is named by the case",
                packets=seen[trials[0]].packets,
                message=messages.pop() if len(messages) == 1 else head,
                requirement=common[0] if common else None,
                path=name,
                line=0,
            )
        )
    return out


def _block(entry: Deviation) -> list[str]:
    """An entry's lines."""
    trials = f"- trials: {_globs(entry.trials)}"
    lines = [trials] if len(trials) <= _WIDTH else ["- trials:", *(f"    - {_glob(each)}" for each in entry.trials)]
    values = [("message", entry.message)]
    values += [("requirement", entry.requirement)] if entry.requirement else []
    values += [("reason", entry.reason), ("rfc", entry.rfc)]
    for key, value in values:
        line = f"  {key}: {_scalar(value)}" if value else f"  {key}:"
        if len(line) > _WIDTH and key in ("reason", "rfc") and value.isprintable():
            lines += [f"  {key}: >-", *textwrap.wrap(value, _WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 4,
                                                     break_long_words=False, break_on_hyphens=False)]  # fmt: skip
        else:
            lines.append(line)
    return [*lines, f"  packets: {_quoted(entry.packets)}"]


def _globs(globs: Sequence[str]) -> str:
    return _glob(globs[0]) if len(globs) == 1 else f"[{', '.join(map(_glob, globs))}]"


def _glob(text: str) -> str:
    return text if _GLOB.match(text) and yaml.safe_load(text) == text else _quoted(text)


def _scalar(text: str) -> str:
    """*text* as one line of YAML: plain where every reader of YAML takes it for that text."""
    if _PLAIN.match(text) and text == text.rstrip() and yaml.safe_load(text) == text:
        return text
    return _quoted(text)


def _quoted(text: str) -> str:
    told = json.dumps(text, ensure_ascii=False)
    return told if told.isprintable() else json.dumps(text)


# The proof -----------------------------------------------------------------------------------------------------------
def _verify(done: Update, name: Path, seen: Mapping[str, Seen], work: _Work, others: Expectations, gate: str) -> None:
    """Read back what was made, and judge the run by it: what is not left to a person is as expected."""
    again = parse(done.text, name, unreasoned=True)
    told = f"{name}: conform cannot edit this list without harm"
    if again.problems:
        raise UpdateError(f"{told}; what it made:\n{again.problems[0]}")
    changed = {id(entry) for entry in done.removed} | {id(entry) for entry, _ in done.narrowed}
    filled = {entry.line: entry.reason for entry in done.filled}
    expected = [
        replace(entry, line=0, reason=filled.get(entry.line, entry.reason))
        for entry in work.entries
        if id(entry) not in changed
    ]
    left = iter(replace(entry, line=0) for entry in again.deviations)
    if not all(entry in left for entry in expected):  # in their order
        raise UpdateError(f"{told}: an entry that holds would change")
    for trial, each in seen.items():
        if trial in work.left or others.of(trial) is not None:
            continue
        entry = again.of(trial)
        if not all(classify(verdict, entry, gate, earlier)[1] for verdict, earlier in each.verdicts):
            raise UpdateError(f"{told}: {trial} would still not be as expected")
    done.waiting = [entry for entry in again.deviations if not entry.reason]


def read(path: Path) -> str:
    """The list as it stands, empty where there is none yet; newlines as they are. Raises OSError and ValueError."""
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return ""


def lists(paths: Iterable[str], stack: str) -> list[Path]:
    """The lists of *stack* that a run of the cases in *paths* is judged by; where there is none, where one belongs."""
    places = [Path(path) for path in paths if Path(path).exists()]
    found = files(places, stack)
    if found or not places:
        return found
    here = places[0].resolve()
    above = [here, *here.parents] if here.is_dir() else list(here.parents)
    beside = [place / DIRECTORY for place in above if (place / DIRECTORY).is_dir()]
    return [(beside[0] if beside else above[0] / DIRECTORY) / f"{stack}.yaml"]


def heading(stack: str) -> str:
    """How a new list begins."""
    return f"# Where {stack} departs from the RFCs: trials that are expected to fail.\n"
