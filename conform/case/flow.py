"""What the model cannot see: the order of a case's steps. Not written yet; finds nothing."""

from __future__ import annotations
from dataclasses import dataclass
from conform.case.model import Case
@dataclass
class Fault:
    loc: tuple[int | str, ...]
    message: str
    hint: str = ""
    offset: int | None = None
    length: int = 1
    at_key: bool = False
def check(case: Case) -> list[Fault]:
    return []
