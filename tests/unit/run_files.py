"""Small run files for the tests of what reads them: a trial is its id and how it came out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner

from conform.cli import group
from conform.run.fold import base, case_of, version_of
from conform.run.runfile import NAME, Writer, dumps

REQUIREMENTS = ["9293-3.10.7.4-seq-edge-past-window"]
WANT = "A seq=SND.NXT (ISS+1) ack=RCV.NXT (IRS+1) length=0"


def passed() -> dict[str, Any]:
    return {
        "outcome": "pass", "level": None, "requirements": [], "failure": None, "reason": "", "findings": [],
        "unverified": [], "late": False,
    }  # fmt: skip


def failed(
    summary: str, actual: str = "nothing", want: str = WANT, level: str = "must",
    requirements: list[str] | None = None, step: str = "steps[1]",
) -> dict[str, Any]:  # fmt: skip
    failure = {
        "step": step, "place": [9, 5], "summary": summary, "expected": want, "actual": actual, "arithmetic": [],
        "entry": None,
    }  # fmt: skip
    named = REQUIREMENTS if requirements is None else requirements
    return passed() | {"outcome": "fail", "level": level, "requirements": named, "failure": failure}


def other(outcome: str, reason: str) -> dict[str, Any]:
    """not-applicable, inconclusive or error."""
    return passed() | {"outcome": outcome, "reason": reason}


def line(name: str, verdict: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The line of the trial of that id; ``result`` follows from its verdict where it is not said."""
    case, version = case_of(name), version_of(name)
    return {
        "kind": "trial", "id": name, "case": case, "title": "A title", "file": f"cases/{case}.yaml",
        "row": base(name)[len(case) + 1 : -len(version)], "ip": int(version[-1]), "attempt": 1, "seed": 0,
        "link": "tun",
        "document": {
            "covers": REQUIREMENTS, "recipe": [{"call": {"do": "socket"}}],
            "steps": [{"send": {"flags": "R", "seq": "RCV.NXT + RCV.WND"}}, {"expect": {"flags": "A"}}],
        },
        "levels": dict.fromkeys(REQUIREMENTS, "rule"), "stack": {},
        "transcript": [{"t": 0.0, "a": "call", "id": 1, "step": "recipe[0]", "request": {"do": "socket"}},
                       {"t": 0.1, "a": "inject", "id": 2, "step": "steps[0]", "packet": {"flags": "R"}},
                       {"t": 0.2, "a": "inject", "id": 3, "step": "end", "packet": {"flags": "A"}}],
        "verdict": verdict, "expectation": None, "result": verdict["outcome"],
        "expected": verdict["outcome"] in ("pass", "not-applicable"), "duration": 0.1, "pcap": None, **more,
    }  # fmt: skip


def known(name: str, verdict: dict[str, Any], reason: str = "It was always so.", **more: Any) -> dict[str, Any]:
    """The line of an expected failure."""
    entry = {
        "trials": [name], "reason": reason, "rfc": "RFC 9293 section 3.10.7.4", "packets": "p", "message": "m",
        "file": "cases/expectations/x.yaml", "line": 1,
    }  # fmt: skip
    return line(name, verdict, result="expected-failure", expected=True, expectation=entry, **more)


def write(
    directory: Path, lines: list[dict[str, Any]], stack: str = "linux", planned: list[str] | None = None,
    **settings: Any,
) -> Path:  # fmt: skip
    """A run file of *lines* in *directory*, which is returned."""
    directory.mkdir(parents=True)
    writer = Writer(directory / NAME)
    description = {"title": f"The stack {stack}"}
    header = {
        "kind": "header", "format": 1, "conform": "0", "started": "2026-01-01T00:00:00Z",
        "stack": {"name": stack, "description": description}, "environment": {},
        "settings": {"paths": ["cases"], "gate": "all", **settings},
        "planned": [each["id"] for each in lines] if planned is None else planned,
    }  # fmt: skip
    for each in [header, *lines]:
        writer.write(dumps(each))
    writer.close()
    return directory


def invoke(*arguments: str, stdin: str | None = None) -> tuple[int, str, str]:
    """A verb's exit code, and what it said and complained of."""
    result = CliRunner().invoke(group, list(arguments), input=stdin, standalone_mode=False)
    if isinstance(result.exception, click.ClickException):
        return result.exception.exit_code, result.stdout, result.exception.format_message()
    if result.exception is not None:
        raise result.exception
    return result.return_value, result.stdout, result.stderr
