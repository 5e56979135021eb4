"""What a run tells its reporters, as typed events. A reporter is a callable that takes one.

An event is announced after what it tells of is in the run file, so a reporter that fails loses nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class RunStarted:
    """The plan stands and the header is written. ``directory`` is where the run's files go."""

    header: dict[str, Any]
    directory: str
    total: int


@dataclass(frozen=True, slots=True)
class TrialFinished:
    """One trial has its verdict. ``raw`` is its line in the run file; :attr:`line` parses it, for who needs more."""

    id: str
    result: str
    expected: bool
    duration: float
    done: int
    total: int
    raw: bytes = field(repr=False)

    @property
    def line(self) -> dict[str, Any]:
        """The trial's line of the run file."""
        line: dict[str, Any] = json.loads(self.raw)
        return line


@dataclass(frozen=True, slots=True)
class Progress:
    """Sent a few times a second while trials run: ``waiting`` of the ``running`` trials only wait for time to pass."""

    done: int
    running: int
    waiting: int
    total: int


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that the user should know and that is no verdict: a worker died, Ctrl-C was seen."""

    text: str


@dataclass(frozen=True, slots=True)
class RunEnded:
    """All is over and the ``end`` line is written. ``unfinished`` are the planned trials without a verdict."""

    end: dict[str, Any]
    directory: str
    duration: float
    unfinished: tuple[str, ...] = ()


Event = RunStarted | TrialFinished | Progress | Notice | RunEnded
Reporter = Callable[[Event], None]
