"""``conform expect update``: the list of a stack's deviations brought up to date with a run (docs/expectations.md).

Only what a run found to be unexpected changes the list, and only whole entries, or patterns of an entry's ``trials``,
are taken out: every other octet of the file stays. What is made is read back and judged before it is handed out.
"""

from __future__ import annotations

import functools
import json
import re
import textwrap
from collections import Counter
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
#: What ends a line for YAML, and not for what edits the list.
_OTHER_BREAK = re.compile("\r(?!\n)|[\x85\u2028\u2029]")
_NEVER = "; that is never written as expected"


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
    """What became of the list. ``left`` are trials that conform writes nothing of, each with why.

    ``stale`` are the entries that were taken out since they match no trial; ``unfinished`` is how many trials the run
    was to make and did not.
    """

    before: str
    text: str
    added: list[tuple[Deviation, int]] = field(default_factory=list)
    removed: list[Deviation] = field(default_factory=list)
    stale: list[Deviation] = field(default_factory=list)
    narrowed: list[tuple[Deviation, list[str]]] = field(default_factory=list)
    filled: list[Deviation] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)
    waiting: list[Deviation] = field(default_factory=list)
    unfinished: int = 0

    @property
    def exit(self) -> int:
        """1 where something is left for a person to do."""
        return int(bool(self.left or self.waiting or self.unfinished))


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


def unfinished(planned: Iterable[str], seen: Mapping[str, Seen]) -> int:
    """How many of the trials that a run was to make have no line."""
    wanted = Counter(map(base, planned))
    return sum(max(0, many - len(seen[trial].verdicts if trial in seen else ())) for trial, many in wanted.items())


def trials_of(file: Path, paths: Iterable[str], planned: Iterable[str] = ()) -> list[str]:
    """The ids of all trials that are known of where the list *file* is held against a run, on whatever stack.

    Those are of the cases beside the list, of those in the run's *paths* that are here, and the *planned* ones. A list
    may stand beside nothing, and what is known of no trial is that it failed: no glob is to cover it.
    """
    from conform.case.load import load
    from conform.run.check import trial_ids

    beside = [file.parent.parent] if file.parent.name == DIRECTORY else []
    ran = [path for path in map(Path, paths) if path.exists()]
    if [path.resolve() for path in ran] == [path.resolve() for path in beside]:
        ran = []
    # One by one: a case's id depends on where it was looked for.
    found = [trial for roots in (beside, ran) if roots for trial in trial_ids(load(roots).cases)]
    return list(dict.fromkeys([*found, *map(base, planned)]))


# The list ------------------------------------------------------------------------------------------------------------
def update(
    text: str,
    name: Path,
    seen: Mapping[str, Seen],
    *,
    universe: Collection[str] = (),
    gate: str = "all",
    ahead: Expectations = Expectations(),  # noqa: B008 - immutable
    others: Expectations = Expectations(),  # noqa: B008 - immutable
    stale: Sequence[str] = (),
    ask: Ask = lambda entry: "",
) -> Update | list[Problem]:
    """The list *text*, which is shown as *name*, as it should be after the run whose trials are *seen*.

    *universe*: the ids of all trials there are, so that no glob covers what was not seen to fail. *ahead* and *others*:
    the lists of other cases that the run was judged by, before this one and after it. *stale*: what the run said of
    entries that match no trial. *ask* is asked for the reason of each entry that has none. Returns what is wrong with
    the list if something is. Raises :class:`UpdateError`.
    """
    known = parse(text, name, unreasoned=True)
    if known.problems:
        return list(known.problems)
    everything = {base(trial).lower(): base(trial) for trial in [*universe, *seen]}
    order = Expectations((*ahead.deviations, *known.deviations, *others.deviations))
    others = Expectations((*ahead.deviations, *others.deviations))
    seen = _less_chance(seen, order)
    work = _Work(text, name, known.deviations, gate, seen)
    work.stale = {n for n, entry in enumerate(known.deviations) if _is_stale(entry, everything.values(), stale)}
    failing: list[str] = []
    for trial, each in seen.items():
        theirs = others.of(trial)
        if theirs is None:
            if work.settle(trial, each):
                failing.append(trial)
        elif not all(
            classify(verdict, order.of(trial, verdict), gate, earlier)[1] for verdict, earlier in each.verdicts
        ):
            told = f"it did not go as listed, and {theirs.path}:{theirs.line}, an entry of another list, covers it"
            passes = all(verdict.outcome == "pass" for verdict in each.attempts)
            work.left[trial] = ("" if passes else _unsettled(each)) or told
    done = Update(text, text, left=sorted(work.left.items()))
    for entry in others.deviations:
        if _is_stale(entry, everything.values(), stale):
            told = f"no trial matches this entry of another list, {entry.path}:{entry.line}"
            done.left.append((", ".join(entry.trials), told))
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
    """*seen* without what sporadic entries explain: it says nothing of how the trial goes else.

    Only failures come by chance, and an attempt that nothing explains stays, whatever came after it.
    """

    def chance(trial: str, verdict: Verdict) -> bool:
        entry = known.of(trial, verdict) if verdict.outcome == "fail" else None
        return entry is not None and entry.sporadic

    out = {}
    for trial, each in seen.items():
        kept = [
            (verdict, earlier)
            for verdict, earlier in each.verdicts
            if not all(chance(trial, attempt) for attempt in (*earlier, verdict))
        ]
        if kept:
            out[trial] = Seen(kept, each.packets)
    return out


def _is_stale(entry: Deviation, trials: Collection[str], told: Sequence[str]) -> bool:
    """Whether a run said that *entry* matches no trial, and none of *trials* contradicts it."""
    if not told:
        return False
    return any(problem.message in each for problem in Expectations((entry,)).unmatched(trials) for each in told)


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
        #: The entries that match no trial; and of those that lost some what they must not and must still cover.
        self.stale: set[int] = set()
        self.bounds: dict[int, tuple[set[str], set[str]]] = {}
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
            if number in self.stale:
                done.stale.append(entry)
                out.append((*self._span(number), ""))
                continue
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
                self.bounds[number] = gone, kept
                done.narrowed.append((entry, fold([everything[trial] for trial in sorted(gone)], everything.values())))
                out += self._narrow(number, gone, kept, everything)
        return out

    def reasons(self, ask: Ask, done: Update) -> list[tuple[int, int, str]]:
        """Reasons for the entries that still wait for one."""
        out = []
        for number, entry in enumerate(self.entries):
            if entry.reason or entry in done.removed or entry in done.stale:
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

    @functools.cached_property
    def _tokens(self) -> list[yaml.Token]:
        return list(yaml.scan(self.text, Loader=yaml.SafeLoader))

    def _extent(self, node: yaml.Node) -> tuple[int, int]:
        """Where a text stands; one in lines of its own (``>-``) ends with the last of them."""
        start, end = node.start_mark.index, node.end_mark.index
        end = start + len(self.text[start:end].rstrip())
        if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">") and "#" in self.text[start:end]:
            raise self._commented(node)
        return start, end

    def _commented(self, node: yaml.Node) -> UpdateError:
        place = f"{self.name}:{node.start_mark.line + 1}"
        return UpdateError(
            f"{place}: a comment stands inside what would be taken out ({node.value.strip()}); do it by hand"
        )

    def _value(self, number: int, key: str) -> yaml.Node:
        found: yaml.Node = next(value for name, value in self._node(number).value if name.value == key)
        return found

    def _span(self, number: int) -> tuple[int, int]:
        """An entry's lines: from its dash to the end of its last value's line."""
        node: yaml.Node = self._node(number)
        column = self.root.start_mark.column
        dashes = [
            token.start_mark.index
            for token in self._tokens
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
            return [(*self._extent(node), _globs(changes[0]))]
        if node.flow_style:
            return self._flow(node, changes)
        out = []
        for place, globs in changes.items():
            start, end = self._extent(items[place])
            line = self.text.rfind("\n", 0, start) + 1
            if globs:
                told = (self.newline + self.text[line:start]).join(map(_glob, globs))
                out.append((start, end, told))
            else:
                out.append((line, self._line_end(end), ""))
        return out

    def _flow(self, node: yaml.SequenceNode, changes: Mapping[int, list[str]]) -> list[tuple[int, int, str]]:
        """Patterns in brackets: a pattern goes with its comma, and what stands about the others stays."""
        first, last = node.start_mark.index, node.end_mark.index
        spans = [self._extent(item) for item in node.value]
        commas = [
            token.start_mark.index
            for token in self._tokens
            if isinstance(token, yaml.FlowEntryToken) and first < token.start_mark.index < last
        ]
        if not all(first < start <= end < last for start, end in spans) or len(commas) not in (
            len(spans), len(spans) - 1
        ):  # fmt: skip
            raise UpdateError(f"{self.name}: conform cannot edit this list without harm: entries share their text")
        out = [(*spans[place], ", ".join(map(_glob, globs))) for place, globs in changes.items() if globs]
        cuts: list[tuple[int, int]] = []
        tail = len(spans)  # from here on all go, and no comma stands behind the last: that of the one before goes
        while len(commas) < len(spans) and not changes.get(tail - 1, True):
            tail -= 1
        for place in (place for place, globs in changes.items() if not globs):
            start, end = spans[place]
            if place >= tail:
                comma = commas[place - 1]
                if self.text[comma + 1] == "#":
                    raise self._commented(node.value[place])
                cuts += [(comma, comma + 1), (start, end)]
            else:
                if "#" in self.text[end : commas[place]]:
                    raise self._commented(node.value[place])
                cuts.append((start, commas[place] + 1))
        return out + [(*self._tidy(start, end), "") for start, end in self._joined(cuts)]

    def _joined(self, cuts: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """*cuts* with the blanks between them and what follows, those that then touch as one."""
        out: list[tuple[int, int]] = []
        for start, end in sorted(cuts):
            after = self._blanks(end)
            if self.text[after] not in "#]\r\n":
                end = after
            out.append((out.pop()[0], end) if out and out[-1][1] == start else (start, end))
        return out

    def _blanks(self, index: int) -> int:
        return index + len(self.text[index:]) - len(self.text[index:].lstrip(" \t"))

    def _tidy(self, start: int, end: int) -> tuple[int, int]:
        """What is cut so that no line is left empty, and none ends in blanks."""
        after = self._blanks(end)
        line = self.text.rfind("\n", 0, start) + 1
        before = self.text[line:start].rstrip()
        if self.text[after] in "\r\n":
            return (line + len(before), after) if before else (line, self._line_end(after))
        return (line + len(before), end) if before and self.text[end] == "]" else (start, end)

    # What comes of it --------------------------------------------------------------------------------------------
    def apply(self, edits: Iterable[tuple[int, int, str]], added: Sequence[Deviation]) -> str:
        """The text after *edits*, with *added* at its end."""
        edits = set(edits)
        if (edits or added) and (found := _OTHER_BREAK.search(self.text)):
            line = self.text.count("\n", 0, found.start()) + 1
            raise UpdateError(
                f"{self.name}:{line}: a line ends in {found[0]!r}; conform edits none but those with a newline"
            )
        end = next((t.start_mark.index for t in self._tokens if isinstance(t, yaml.DocumentEndToken)), len(self.text))
        text, tail, upto = self.text[:end], self.text[end:], end  # entries belong before a line of three dots
        for start, stop, told in sorted(edits, reverse=True):
            if stop > upto:
                raise UpdateError(f"{self.name}: conform cannot edit this list without harm: entries share their text")
            text, upto = text[:start] + told + text[stop:], start
        if not added:
            return text + tail
        column = 0
        if isinstance(self.root, yaml.SequenceNode) and not self.root.value:
            span = slice(self.root.start_mark.index, self.root.end_mark.index)
            text = text[: span.start] + text[span.stop :]  # an empty list in brackets
        elif self.root is not None:
            self._node(0)
            column = self.root.start_mark.column
        if text and not text.endswith("\n"):
            text += self.newline
        if text.strip():
            text += self.newline
        blocks = (_block(entry) for entry in added)
        lines = [f"{' ' * column}{line}".rstrip() for block in blocks for line in block]
        return text + "".join(line + self.newline for line in lines) + tail


def _unsettled(seen: Seen) -> str:
    """Why nothing can be said of a trial."""
    for verdict in seen.attempts:
        if verdict.outcome == "error":
            return f"conform failed: {verdict.reason}{_NEVER}"
        if verdict.outcome == "inconclusive" and (verdict.late or verdict.failure is None):
            return f"inconclusive: {verdict.reason}{_NEVER}"
    if len({verdict.outcome for verdict in seen.attempts}) > 1:
        return f"it passes at one time and fails at another{_NEVER}"
    if len({proof.message(verdict.failure.summary) for verdict in seen.attempts if verdict.failure}) != 1:
        return f"it fails, and not always in the same way{_NEVER}"
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
    removed = {id(entry) for entry in (*done.removed, *done.stale)}
    filled = {entry.line: entry.reason for entry in done.filled}
    left = iter(again.deviations)
    for number, entry in enumerate(work.entries):  # in their order
        wanted = replace(entry, reason=filled.get(entry.line, entry.reason))
        if id(entry) not in removed and not any(_stands(wanted, each, work.bounds.get(number)) for each in left):
            raise UpdateError(f"{told}: an entry that holds would change")
    for trial, each in seen.items():
        if trial in work.left or others.of(trial) is not None:
            continue
        known = again.of(trial)
        if not all(classify(verdict, known, gate, earlier)[1] for verdict, earlier in each.verdicts):
            raise UpdateError(f"{told}: {trial} would still not be as expected")
    done.waiting = [entry for entry in again.deviations if not entry.reason]


def _stands(wanted: Deviation, found: Deviation, bounds: tuple[set[str], set[str]] | None) -> bool:
    """Whether *found* is *wanted* still; with *bounds* but for its trials, of which it covers what it should."""
    if bounds is None:
        return replace(wanted, line=0) == replace(found, line=0)
    gone, kept = bounds
    same = replace(wanted, line=0, trials=()) == replace(found, line=0, trials=())
    return same and all(map(found.covers, kept)) and not any(map(found.covers, gone))


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
