"""Which trials are meant: ``-k``, ``--tag``, ``--req``, ``--level``, ``--lf``."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from conform.engine.verdict import GATING

if TYPE_CHECKING:
    from conform.case.model import Case  # 25 MB and 0.2 s that the warden, forked early, shall not have

_TOKEN = re.compile(r"\s*(?:([()])|([^\s()]+))")


class SelectionError(ValueError):
    """The selection cannot be understood: bad usage."""


Match = Callable[[str], bool]


def keyword(text: str) -> Match:
    """The meaning of ``-k``: words that a trial's id contains (whatever their case), ``and``, ``or``, ``not``, ``( )``.

    Words side by side without an operator are an error rather than a guess.
    """
    tokens: list[tuple[str, int]] = []
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            break
        tokens.append((found[1] or found[2], found.start(1) if found[1] else found.start(2)))
        at = found.end()
    where = 0

    def wrong(what: str) -> SelectionError:
        column = tokens[where][1] if where < len(tokens) else len(text)
        return SelectionError(f"-k: {what}\n  {text}\n  {' ' * column}^")

    def peek() -> str | None:
        return tokens[where][0] if where < len(tokens) else None

    def disjunction() -> Match:
        nonlocal where
        parts = [conjunction()]
        while peek() == "or":
            where += 1
            parts.append(conjunction())
        return parts[0] if len(parts) == 1 else lambda name: any(part(name) for part in parts)

    def conjunction() -> Match:
        nonlocal where
        parts = [negation()]
        while peek() == "and":
            where += 1
            parts.append(negation())
        return parts[0] if len(parts) == 1 else lambda name: all(part(name) for part in parts)

    def negation() -> Match:
        nonlocal where
        token = peek()
        if token == "not":
            where += 1
            inner = negation()
            return lambda name: not inner(name)
        if token == "(":
            where += 1
            inner = disjunction()
            if peek() != ")":
                raise wrong("a closing parenthesis is missing")
            where += 1
            return inner
        if token is None or token in (")", "and", "or"):
            raise wrong("a word is missing here")
        where += 1
        word = token.lower()
        return lambda name: word in name

    if not tokens:
        raise SelectionError("-k: nothing is said")
    whole = disjunction()
    if where < len(tokens):
        raise wrong("and, or, or the end is wanted here")
    return lambda name: whole(name.lower())


@dataclass(frozen=True, slots=True)
class Selection:
    """What the options say. Each that is given must hold; of one that is given several times, any.

    A tag behind ``!`` is one that a case must not have.
    """

    keyword: str | None = None
    tags: tuple[str, ...] = ()
    requirements: tuple[str, ...] = ()
    levels: tuple[str, ...] = ()
    only: Collection[str] | None = None  # trial ids, of --lf

    def case(self, case: Case, named: Iterable[str], levels: dict[str, str]) -> bool:
        """Whether *case* is meant, which names the requirements *named*; *levels* maps them to the catalogue's."""
        unwanted = {tag[1:] for tag in self.tags if tag.startswith("!")}
        tags = {tag for tag in self.tags if not tag.startswith("!")}
        if unwanted & set(case.tags) or (tags and not tags & set(case.tags)):
            return False
        wanted = {requirement.lower() for requirement in self.requirements}
        if wanted and not wanted & {requirement.lower() for requirement in named}:
            return False
        if not self.levels:
            return True
        return any(GATING.get(levels.get(requirement, "")) in self.levels for requirement in named)

    def trials(self) -> Match:
        """Whether a trial's id is meant."""
        match = keyword(self.keyword) if self.keyword is not None else None
        only = None if self.only is None else {name.lower() for name in self.only}

        def meant(name: str) -> bool:
            return (only is None or name.lower() in only) and (match is None or match(name))

        return meant

    def to_json(self) -> dict[str, object]:
        """As the run file's settings have it: what was said, and nothing else."""
        said: dict[str, object] = {}
        if self.keyword is not None:
            said["k"] = self.keyword
        if self.tags:
            said["tag"] = list(self.tags)
        if self.requirements:
            said["req"] = list(self.requirements)
        if self.levels:
            said["level"] = list(self.levels)
        if self.only is not None:
            said["lf"] = True
        return said
