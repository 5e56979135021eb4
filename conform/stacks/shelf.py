"""Which stacks ship, and what each lacks on this machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from conform.stacks import builds
from conform.stacks.description import StackDescription, load, shipped


@dataclass(frozen=True, slots=True)
class Found:
    """One stack. ``remedies`` are commands that make it ready."""

    name: str
    title: str
    state: str
    remedies: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether it can be run here, as far as can be told without starting it."""
        return not self.remedies

    @property
    def line(self) -> str:
        """In one line."""
        return f"{self.name:<10} {self.state:<14} {self.title}"


def look() -> Iterator[Found]:
    """Each stack that ships, in the order of names."""
    for name in shipped():
        description = load(name)
        lacks = list(lacking(description))
        state = "ready" if not lacks else "not built" if _only_build(description) else "not installed"
        yield Found(name, description.title, state, tuple(lacks))


def _only_build(description: StackDescription) -> bool:
    return description.build is not None and not builds.missing(description) and not _program(description)


def _program(description: StackDescription) -> str | None:
    """The program that the stack is started with, where it is missing from this machine."""
    if description.start is None:
        return None
    first = description.start.command[0]
    return first if "{" not in first and shutil.which(first) is None else None


def lacking(description: StackDescription) -> Iterator[str]:
    """What makes the stack ready, command by command; nothing where it is."""
    program = _program(description)
    if program is not None:
        yield description.install or f"install {program}"
    if not builds.built(description):
        yield from (remedy.partition(": ")[2] for remedy in builds.missing(description))
        yield f"conform stacks build {description.name}"
