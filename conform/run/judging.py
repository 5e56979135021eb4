"""``conform judge``: the verdicts of a saved run, derived again from what its lines hold."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from conform.engine.replay import Altered, judge
from conform.engine.verdict import Verdict
from conform.run.exits import EXIT_BROKEN, exit_code
from conform.run.expectations import Deviation, classify
from conform.run.runfile import Reader


@dataclass(slots=True)
class Judged:
    """What came of it. ``differ`` says of each line that does not hold what it should, in words."""

    counts: Counter[str] = field(default_factory=Counter)
    unexpected: int = 0
    differ: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    stopped: str | None = None

    @property
    def exit(self) -> int:
        """As a run's, but 3 also where a line was altered."""
        if self.differ:
            return EXIT_BROKEN
        return exit_code(self.counts, self.unexpected, len(self.unfinished), self.stopped)


def derive(reader: Reader, into: Judged) -> Iterator[dict[str, Any]]:
    """The run's trial lines with the verdict and the result that follow from the rest of each."""
    gate = reader.header.get("settings", {}).get("gate", "all")
    left = dict.fromkeys(reader.header.get("planned", ()))
    for line in reader.trials():
        left.pop(line["id"], None)
        derived = _derive(line, gate, into.differ.append)
        into.counts[derived["result"]] += 1
        into.unexpected += not derived["expected"]
        yield derived
    into.unfinished = list(left)
    into.unexpected += len(reader.header.get("stale", ()))
    into.stopped = (reader.end or {}).get("stopped")


def _derive(line: dict[str, Any], gate: str, differs: Callable[[str], None]) -> dict[str, Any]:
    name = line["id"]
    try:
        verdict = judge(line)
    except Altered as error:
        differs(str(error))
        return line
    except Exception as error:  # an altered line can break anything
        differs(f"{name}: its line cannot be judged: {type(error).__name__}: {error}")
        return line
    try:
        earlier = [Verdict.from_json(each["verdict"]) for each in line.get("earlier", ())]
        entry = Deviation.from_json(line["expectation"]) if line.get("expectation") is not None else None
        result, expected = classify(verdict, entry, gate, [each for each in earlier if not each.late])
    except (KeyError, TypeError, ValueError) as error:
        differs(f"{name}: its line cannot be judged: {type(error).__name__}: {error}")
        return line
    stored = line["verdict"]
    derived = json.loads(json.dumps(verdict.to_json()))
    if derived != stored:
        keys = ", ".join(key for key in derived if derived[key] != stored.get(key))
        differs(f"{name}: stored verdict {stored.get('outcome')}, derived {verdict.outcome} (differs in {keys})")
    elif (result, expected) != (line.get("result"), line.get("expected")):
        differs(f"{name}: stored result {line.get('result')}, derived {result}")
    return {**line, "verdict": derived, "result": result, "expected": expected}
