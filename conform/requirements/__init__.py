"""The catalogue of requirements: every id that a case can cover, from which RFC and how binding it is.

``requirements.yaml`` is the source, read and edited by people. ``catalogue.json`` is generated from it by
``python -m conform.requirements`` and is what is loaded: YAML takes about 70 ms, JSON about 3 ms (measured).
``tests/unit/test_requirements.py`` keeps the two equal.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

_HERE = Path(__file__).parent
SOURCE = _HERE / "requirements.yaml"
GENERATED = _HERE / "catalogue.json"


@dataclass(frozen=True, slots=True)
class Requirement:
    """One thing that an RFC demands of a stack.

    ``level`` is a keyword of RFC 2119 in small letters (``must``, ``should-not``, ``may``, ``recommended``), or
    ``rule`` and ``derived`` (text without a keyword), or ``rfc5961-must``, ``rfc5961-may`` (where the stack claims
    RFC 5961) and ``alternative`` (where it does not). ``observable`` says where it can be seen: ``wire``, ``api``,
    ``state`` or ``none``. ``req`` is the id in RFC 9293's appendix B. ``state`` and ``segment`` are set in the rules of
    segment processing. ``verified``: id and section exist in the RFC's text; ``basis``: how well the meaning was
    checked.
    """

    id: str
    rfc: int
    level: str
    section: str
    observable: str
    area: str
    summary: str
    catalogue: str
    verified: bool
    basis: str
    req: str | None = None
    state: str | None = None
    segment: str | None = None
    note: str | None = None


def read_source(path: Path = SOURCE) -> list[dict[str, Any]]:
    """The requirements as *path*, a YAML file, has them. Raises OSError and yaml.YAMLError."""
    with path.open(encoding="utf-8") as file:
        found: list[dict[str, Any]] = yaml.load(file, Loader=yaml.CSafeLoader)["requirements"]
    return found


def generate() -> str:
    """The text that ``catalogue.json`` must have."""
    lines = (json.dumps(entry, ensure_ascii=False, separators=(",", ":")) for entry in read_source())
    return "[\n" + ",\n".join(lines) + "\n]\n"


@cache
def catalogue() -> dict[str, Requirement]:
    """All requirements by id, in the catalogue's order. Read once; not to be changed by the caller."""
    return {entry["id"]: Requirement(**entry) for entry in json.loads(GENERATED.read_bytes())}
