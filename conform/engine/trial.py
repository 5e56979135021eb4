"""What one trial is: everything that its verdict depends on, but for what happened."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from conform.case.model import Case


@dataclass(frozen=True, slots=True)
class StackProfile:
    """What the engine must know of a stack; the rest of its description concerns only who runs it.

    ``timers`` maps the names of ``conform.case.expr.TIMERS`` to seconds; ``tolerance`` is the slack in seconds of any
    time that the stack keeps; ``settle`` is ``"fence"`` or a time in seconds. ``addresses`` maps the IP version to
    (the stack's, the tester's). ``port`` is where the first listener listens. ``services`` maps what listens without
    being told, in a stack without an agent, to its port. ``round_trip`` is how long, in seconds, the tester lets the
    stack's SYN wait for its acknowledgment.
    """

    name: str
    capabilities: frozenset[str]
    timers: dict[str, float]
    tolerance: float
    settle: str | float
    addresses: dict[int, tuple[str, str]]
    port: int = 80
    services: dict[str, int] = field(default_factory=dict)
    round_trip: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As the run file has it."""
        return {
            "name": self.name,
            "capabilities": sorted(self.capabilities),
            "timers": self.timers,
            "tolerance": self.tolerance,
            "settle": self.settle,
            "addresses": {str(v): list(pair) for v, pair in self.addresses.items()},
            "port": self.port,
            "services": self.services,
            "round_trip": self.round_trip,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> StackProfile:
        """The profile that :meth:`to_json` made *data* of."""
        return cls(
            name=data["name"],
            capabilities=frozenset(data["capabilities"]),
            timers=dict(data["timers"]),
            tolerance=data["tolerance"],
            settle=data["settle"],
            addresses={int(v): (pair[0], pair[1]) for v, pair in data["addresses"].items()},
            port=data["port"],
            services=dict(data.get("services", {})),
            round_trip=data.get("round_trip", 0.0),
        )


@dataclass(frozen=True, slots=True)
class Trial:
    """One case x one IP version x one row of its matrix, on one stack.

    ``id`` is readable, stable, unique in a run (compared without case) and fit for a file name but for its slashes:
    ``close/active-close.FIN-WAIT-2.v4``. ``document`` is the resolved case as JSON-able data: templates and matrix are
    expanded, the recipe is filled in, each step holds its place under ``"@"``; ``case`` is its model. ``levels`` maps
    each requirement id named in the case to its level in the catalogue.
    """

    id: str
    case_id: str
    file: str
    ip: int
    row: str
    document: dict[str, Any]
    case: Case
    levels: dict[str, str]
    stack: StackProfile
    seed: int
    not_applicable: str | None = None
