"""``conform check``: everything that can be wrong with cases and lists of deviations, without running anything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from conform.case.load import LoadedCase, load
from conform.case.source import Problem
from conform.requirements import catalogue
from conform.run import expectations
from conform.run.plan import requirements, trial_id


@dataclass(slots=True)
class Checked:
    """What was found."""

    cases: int
    trials: int
    deviations: int
    problems: list[Problem]


def check(paths: Sequence[Path]) -> Checked:
    """Check the cases in *paths*, and the lists of deviations beside them.

    An entry that matches no trial is a problem where all the cases that the list belongs to are in *paths*.
    """
    loaded = load(list(paths))
    problems = [*loaded.problems, *_unknown(loaded.cases), *_twice(loaded.cases)]
    trials = list(trial_ids(loaded.cases))
    deviations = 0
    for file in expectations.files(paths):
        known = expectations.load([file])
        deviations += len(known.deviations)
        problems += known.problems
        if expectations.whole(file, paths) and not loaded.problems:
            problems += known.unmatched(trials)
    return Checked(len(loaded.cases), len(trials), deviations, problems)


def trial_ids(cases: Iterable[LoadedCase]) -> Iterable[str]:
    """The ids of the trials that *cases* give, on whatever stack."""
    for loaded in cases:
        for row in loaded.rows:
            for version in (4, 6):
                if row.case.ip in (version, "both"):
                    yield trial_id(loaded.case_id, row.id, version)


def _unknown(cases: Iterable[LoadedCase]) -> list[Problem]:
    """Requirements that the catalogue does not have, should the loader have let them pass."""
    known = catalogue()
    out = []
    for loaded in cases:
        names = {name for row in loaded.rows for name in requirements(row.document)}
        for name in sorted(names - known.keys()):
            out.append(Problem(str(loaded.path), 0, 0, f"the catalogue has no requirement {name}"))
    return out


def _twice(cases: Iterable[LoadedCase]) -> list[Problem]:
    """Cases whose ids are the same but for capitals: their reports could not be told apart on every file system."""
    seen: dict[str, str] = {}
    out = []
    for loaded in cases:
        other = seen.setdefault(loaded.case_id.lower(), str(loaded.path))
        if other != str(loaded.path):
            text = f"the case's id {loaded.case_id!r} is also that of {other}"
            out.append(Problem(str(loaded.path), 0, 0, text))
    return out
