"""Many trial ids as few globs: IP versions and rows folded, and nothing covered that is not meant."""

from __future__ import annotations

import fnmatch
import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable

_VERSION = re.compile(r"\.v\d+\Z")
#: A row of more parts than this is folded from its end only: the ways to fold double with each.
_MOST_PARTS = 7


def base(trial: str) -> str:
    """A trial's id without the number that ``--repeat`` gives it."""
    return trial.partition("#")[0]


def case_of(trial: str) -> str:
    """The case that gave the trial of that id."""
    directory, slash, name = base(trial).rpartition("/")
    return directory + slash + name.partition(".")[0]


def version_of(trial: str) -> str:
    """The end of a trial's id that names its IP version: ``.v4``; empty where there is none."""
    found = _VERSION.search(base(trial))
    return found[0] if found else ""


def matcher(glob: str) -> Callable[[str], object]:
    """What tells whether an id, in small letters, is meant by *glob*; ``*`` spans dots, ``[`` is only itself."""
    return re.compile(fnmatch.translate(glob.lower().replace("[", "[[]"))).match


def fold(wanted: Iterable[str], universe: Iterable[str]) -> list[str]:
    """Globs that cover all of *wanted* and nothing else of *universe*; as few as are easily found.

    Where few do, those that say most are taken: ``a.ROW.*`` before ``a.*`` when ROW is the only one there is.
    """
    cases: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for trial in wanted:
        cases[case_of(trial).lower()].setdefault(base(trial).lower(), base(trial))
    others: defaultdict[str, set[str]] = defaultdict(set)
    for trial in universe:
        case = case_of(trial).lower()
        if case in cases and base(trial).lower() not in cases[case]:
            others[case].add(base(trial).lower())
    return [glob for case, trials in cases.items() for glob in _fold(trials, others[case])]


def _fold(trials: dict[str, str], others: Collection[str]) -> list[str]:
    """The globs of one case; *trials* maps ids in small letters to themselves."""
    candidates: dict[str, None] = {}
    for trial in trials.values():
        candidates.update(dict.fromkeys(_candidates(trial)))
    covers: dict[str, set[str]] = {}
    for glob in candidates:
        meant = matcher(glob)
        if glob.lower() in trials or not any(meant(other) for other in others):
            covers[glob] = {trial for trial in trials if meant(trial)}
    order = {trial: number for number, trial in enumerate(trials)}
    left, chosen = set(trials), []
    while left:
        best = max(covers, key=lambda glob: (len(covers[glob] & left), -glob.count("*"), len(glob)))
        chosen.append(best)
        left -= covers[best]
    for glob in list(chosen):  # the others may have come to cover all of an early one
        rest = set().union(*(covers[other] for other in chosen if other != glob))
        if covers[glob] <= rest:
            chosen.remove(glob)
    return sorted(chosen, key=lambda glob: min(order[trial] for trial in covers[glob]))


def _candidates(trial: str) -> Iterable[str]:
    """The globs by which a trial might be meant: any parts of its row, and its IP version, replaced by ``*``."""
    case = case_of(trial)
    parts = trial[len(case) :].split(".")[1:]
    yield trial
    if len(parts) > _MOST_PARTS:
        for kept in range(len(parts)):
            yield ".".join([case, *parts[:kept], "*"])
        return
    for stars in itertools.product((False, True), repeat=len(parts)):
        made = [case]
        for part, star in zip(parts, stars, strict=True):
            if not star:
                made.append(part)
            elif made[-1] != "*":
                made.append("*")
        yield ".".join(made)
