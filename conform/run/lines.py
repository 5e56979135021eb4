"""A trial's line of the run file, and the name of its capture (docs/run-format.md)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from conform.engine.trial import Trial
from conform.engine.verdict import Verdict
from conform.run.expectations import Deviation
from conform.run.runfile import dumps

PCAP_DIRECTORY = "pcap"
_LONGEST_NAME = 150
#: Names that Windows keeps for devices, whatever follows their first dot.
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\.|$)")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a trial: what is in its line beyond the trial itself."""

    number: int
    verdict: Verdict
    transcript: list[dict[str, Any]]
    duration: float


def line(
    trial: Trial,
    attempt: Attempt,
    *,
    link: str,
    entry: Deviation | None,
    result: str,
    expected: bool,
    pcap: str | None = None,
    earlier: Sequence[Attempt] = (),
) -> bytes:
    """The line of *trial*. *earlier* are the attempts that ``--retry`` or a late loop made it repeat."""
    value: dict[str, Any] = {
        "kind": "trial",
        "id": trial.id,
        "case": trial.case_id,
        "title": trial.case.title,
        "file": trial.file,
        "row": trial.row,
        "ip": trial.ip,
        "attempt": attempt.number,
        "seed": trial.seed,
        "link": link,
        "document": trial.document,
        "levels": trial.levels,
        "stack": trial.stack.to_json(),
        "transcript": attempt.transcript,
        "verdict": attempt.verdict.to_json(),
        "expectation": entry.to_json() if entry is not None else None,
        "result": result,
        "expected": expected,
        "duration": round(attempt.duration, 6),
        "pcap": pcap,
    }
    if earlier:
        value["earlier"] = [
            {"attempt": e.number, "verdict": e.verdict.to_json(), "transcript": e.transcript} for e in earlier
        ]
    return dumps(value)


def pcap_name(trial: str) -> str:
    """The capture's path in the run's directory: a name that every file system and artifact store takes.

    Ids that differ have names that differ, also where case does not count.
    """
    plain = trial.replace("/", "--").replace("#", "--n")
    name = re.sub(r"[^A-Za-z0-9._-]", "_", plain).strip(".")
    if _RESERVED.match(name):
        name = f"_{name}"
    if name != plain or len(name) > _LONGEST_NAME:
        name = f"{name[:_LONGEST_NAME]}-{hashlib.sha256(trial.lower().encode()).hexdigest()[:8]}"
    return f"{PCAP_DIRECTORY}/{name}.pcapng"
