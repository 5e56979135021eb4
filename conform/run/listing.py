"""``conform list``: which trials there are, on whatever stack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from conform.case.load import load
from conform.case.source import Problem
from conform.requirements import catalogue
from conform.run.plan import requirements, trial_id
from conform.run.select import Selection


@dataclass(slots=True)
class Listing:
    """The trials that are meant, their cases with titles, and the tags of those."""

    trials: list[str] = field(default_factory=list)
    cases: dict[str, str] = field(default_factory=dict)
    tags: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)


def listing(paths: Sequence[Path], selection: Selection, versions: Sequence[int]) -> Listing:
    """What *selection* leaves of the cases in *paths*. Raises SelectionError."""
    meant = selection.trials()
    loaded = load(list(paths))
    found = Listing(problems=loaded.problems)
    levels = {name: requirement.level for name, requirement in catalogue().items()}
    for each in loaded.cases:
        for row in each.rows:
            if not selection.case(row.case, requirements(row.document), levels):
                continue
            for version in versions:
                name = trial_id(each.case_id, row.id, version)
                if row.case.ip not in (version, "both") or not meant(name):
                    continue
                found.trials.append(name)
                if each.case_id not in found.cases:
                    found.cases[each.case_id] = each.rows[0].case.title
                    found.tags.update(each.rows[0].case.tags)
    return found
