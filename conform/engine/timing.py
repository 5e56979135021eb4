"""Moments that are known to lie between two times, and whether what came then was in time. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Interval:
    """A time in seconds that is known to lie in ``low`` .. ``high``."""

    low: float
    high: float

    def since(self, base: Interval) -> Interval:
        """How long after *base* it is."""
        return Interval(self.low - base.high, self.high - base.low)


#: ``ok`` and the certain verdicts hold for every time in the interval; between them it cannot be told.
Judgment = Literal["ok", "early", "late", "early?", "late?"]


def judge(elapsed: Interval, least: Interval | None = None, most: Interval | None = None) -> Judgment:
    """Whether *elapsed* is at least *least* and at most *most*, which may be uncertain too; ``None`` is no bound.

    What any time in the intervals can excuse is not ``early`` and not ``late``, and what any can spoil is not ``ok``.
    """
    if most is not None:
        if elapsed.low > most.high:
            return "late"
        if elapsed.high > most.low:
            return "late?"
    if least is not None:
        if elapsed.high < least.low:
            return "early"
        if elapsed.low < least.high:
            return "early?"
    return "ok"


def exactly(seconds: float | None, slack: float = 0.0) -> Interval | None:
    """*seconds*, moved by *slack*, as a bound for :func:`judge`; ``None`` for none."""
    return None if seconds is None else Interval(seconds + slack, seconds + slack)


def duration(seconds: float) -> str:
    """*seconds* for a reader."""
    return f"{seconds * 1000:.1f} ms" if abs(seconds) < 1 else f"{seconds:.2f} s"
