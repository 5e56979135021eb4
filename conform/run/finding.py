"""One case by its file, its id, or the id of one of its trials."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conform.case.load import LoadedCase, Row, load


class NotFoundError(Exception):
    """There is no such case, or it is broken. Says what is wrong."""


@dataclass(frozen=True, slots=True)
class Found:
    """A case and one of its rows."""

    loaded: LoadedCase
    row: Row


def find(name: str, row: str | None, paths: Sequence[Path]) -> Found:
    """The case that *name* means; ids are looked for in *paths*. Raises :class:`NotFoundError`."""
    path = Path(name)
    if path.suffix == ".yaml" or path.is_file():
        loaded = load([path])
        if loaded.problems:
            raise NotFoundError("\n".join(map(str, loaded.problems)))
        return _row(loaded.cases[0], row)
    loaded = load(list(paths))
    wanted = re.sub(r"(\.v[46])?(#\d+)?$", "", name.lower())
    for case in loaded.cases:
        if case.case_id.lower() == wanted:
            return _row(case, row)
    for case in loaded.cases:
        for each in case.rows:
            if each.id and f"{case.case_id}.{each.id}".lower() == wanted:
                return _row(case, row or each.id)
    near = difflib.get_close_matches(name, [case.case_id for case in loaded.cases], 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise NotFoundError(f"there is no case {name!r} in {', '.join(map(str, paths))}{hint}")


def _row(case: LoadedCase, row: str | None) -> Found:
    if row is None:
        return Found(case, case.rows[0])
    for each in case.rows:
        if each.id.lower() == row.lower():
            return Found(case, each)
    raise NotFoundError(
        f"{case.case_id} has no row {row!r}; it has {', '.join(each.id for each in case.rows) or 'none'}"
    )
