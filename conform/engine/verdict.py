"""Verdicts, as ISO 9646 has them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Outcome = Literal["pass", "fail", "inconclusive", "error", "not-applicable"]
Level = Literal["must", "should", "may"]

#: How the catalogue's levels gate: text without a keyword is what most of segment processing is made of.
GATING: dict[str, Level] = {
    "must": "must", "must-not": "must", "rule": "must", "derived": "must", "rfc5961-must": "must",
    "should": "should", "should-not": "should", "recommended": "should",
    "may": "may", "rfc5961-may": "may", "alternative": "may",
}  # fmt: skip
LEVELS: tuple[Level, ...] = ("must", "should", "may")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a trial did not pass.

    ``step`` is the step's path (``steps[3]``, ``recipe[0]``, ``end``); ``place`` its [line, column] in the case's file.
    ``arithmetic`` says in words how each field that differs does: "ack 2001, want RCV.NXT = 2002, short by 1".
    ``entry`` is the index in the transcript of the packet, reply or reading at fault.
    """

    step: str
    place: tuple[int, int] | None
    summary: str
    expected: str = ""
    actual: str = ""
    arithmetic: tuple[str, ...] = ()
    entry: int | None = None

    def to_json(self) -> dict[str, Any]:
        """As the run file has it."""
        return {
            "step": self.step,
            "place": list(self.place) if self.place else None,
            "summary": self.summary,
            "expected": self.expected,
            "actual": self.actual,
            "arithmetic": list(self.arithmetic),
            "entry": self.entry,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Failure:
        """The failure that :meth:`to_json` made *data* of."""
        place = data["place"]
        return cls(
            step=data["step"],
            place=(place[0], place[1]) if place else None,
            summary=data["summary"],
            expected=data["expected"],
            actual=data["actual"],
            arithmetic=tuple(data["arithmetic"]),
            entry=data["entry"],
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict of one trial.

    ``level`` and ``requirements`` are those that a failure breaks. ``findings`` are observations that fail nothing
    (the state read out disagrees with what the wire implies); ``unverified`` are assertions that the stack offers no
    means to check. ``late`` says that it is inconclusive only because conform's own loop was late.
    """

    outcome: Outcome
    level: Level | None = None
    requirements: tuple[str, ...] = ()
    failure: Failure | None = None
    reason: str = ""
    findings: tuple[str, ...] = ()
    unverified: tuple[str, ...] = ()
    late: bool = field(default=False)

    def to_json(self) -> dict[str, Any]:
        """As the run file has it."""
        return {
            "outcome": self.outcome,
            "level": self.level,
            "requirements": list(self.requirements),
            "failure": self.failure.to_json() if self.failure else None,
            "reason": self.reason,
            "findings": list(self.findings),
            "unverified": list(self.unverified),
            "late": self.late,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Verdict:
        """The verdict that :meth:`to_json` made *data* of."""
        return cls(
            outcome=data["outcome"],
            level=data["level"],
            requirements=tuple(data["requirements"]),
            failure=Failure.from_json(data["failure"]) if data["failure"] else None,
            reason=data["reason"],
            findings=tuple(data["findings"]),
            unverified=tuple(data["unverified"]),
            late=data["late"],
        )
