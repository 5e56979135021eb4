"""Whole cases around what a test is about."""

from __future__ import annotations

from typing import Any

from conform.case.load import load_text

HEAD = "title: A close sends a FIN that takes one number\ncovers: 9293-MUST-13\n"


def case(steps: str = "- silence: now", top: str = "given: ESTABLISHED") -> str:
    """A case with *steps* and the keys in *top*."""
    return f"{HEAD}{top}\nsteps:\n" + "".join(f"  {line}\n" for line in steps.splitlines())


def rows(steps: str = "- silence: now", top: str = "given: ESTABLISHED") -> list[Any]:
    """The rows of a case that must be sound."""
    found, problems = load_text(case(steps, top))
    assert not problems, "\n".join(map(str, problems))
    return found


def messages(steps: str = "- silence: now", top: str = "given: ESTABLISHED") -> list[str]:
    """What is wrong with a case."""
    _, problems = load_text(case(steps, top))
    return [problem.message for problem in problems]
