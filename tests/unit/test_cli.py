"""The verbs that need no link: what they print, and how they exit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from conform.cli import group
from conform.run.runfile import Writer, dumps

GOOD = """\
title: A closed port answers a SYN with a reset
covers: [9293-3.10.7.1-closed-syn-rst]
tags: [closed]
given: CLOSED
steps:
  - send: {flags: S, as: syn}
  - expect: {flags: RA, seq: 0, ack: syn.end}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cases/closed").mkdir(parents=True)
    (tmp_path / "cases/closed/syn.yaml").write_text(GOOD)
    return tmp_path


def _conform(*arguments: str) -> Result:
    """Run the command; ``exit_code`` is what a shell would see."""
    runner = CliRunner()
    result = runner.invoke(group, arguments, standalone_mode=True)
    returned = result.return_value if isinstance(result.return_value, int) else None
    if result.exit_code == 0 and returned:
        result.exit_code = returned
    return result


def _shell(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).resolve().parents[2]
    program = f"import sys; sys.path.insert(0, {str(root)!r}); from conform.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False, cwd=cwd
    )


def test_check_says_that_all_is_sound(place: Path) -> None:
    done = _shell("check", "cases", cwd=place)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 case, 2 trials: sound\n", "")


def test_check_shows_every_problem_of_every_file(place: Path) -> None:
    (place / "cases/closed/bad.yaml").write_text(GOOD.replace("expect:", "expcet:"))
    (place / "cases/closed/worse.yaml").write_text("title: [")
    done = _shell("check", "cases", cwd=place)
    assert done.returncode == 2
    assert "cases/closed/bad.yaml:7:5:" in done.stderr
    assert "cases/closed/worse.yaml:" in done.stderr
    assert "Traceback" not in done.stderr


def test_check_looks_at_the_list_of_deviations(place: Path) -> None:
    (place / "cases/expectations").mkdir()
    listed = place / "cases/expectations/linux.yaml"
    entry = "- {trials: closed/syn.*, reason: r, rfc: RFC 9293, packets: p, message: m}\n"
    listed.write_text(entry)
    assert "1 known deviation: sound" in _shell("check", "cases", cwd=place).stdout
    listed.write_text(entry + entry.replace("closed/syn", "closed/gone"))
    done = _shell("check", "cases", cwd=place)
    assert done.returncode == 2
    assert "cases/expectations/linux.yaml:2:1: no trial matches closed/gone.*" in done.stderr
    assert _shell("check", "cases/closed/syn.yaml", cwd=place).returncode == 0, "one case is no full run"
    listed.write_text(entry.replace("reason", "raeson"))
    assert "did you mean 'reason'?" in _shell("check", "cases/closed/syn.yaml", cwd=place).stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["frobnicate"], 2, "there is no verb 'frobnicate'"),
        (["chekc"], 2, "did you mean 'check'?"),
        (["run"], 2, "Missing argument"),
        (["run", "cases", "--link", "carrier-pigeon"], 2, "carrier-pigeon"),
        (["run", "cases", "-k", "(a"], 2, "a closing parenthesis is missing"),
        (["run", "cases", "--stack", "nonesuch"], 2, "nonesuch"),
        (["run", "cases", "--stack", "linux", "--stack", "lniux"], 2, "there is no stack 'lniux'"),
        (["run", "cases", "--stack", "lwip", "--stack", "lwip"], 2, "its name is lwip, and so is that of --stack lwip"),
        (["run", "nowhere"], 2, "nowhere: there is no such file"),
        (["run", "cases", "-k", "nothing-like-it"], 5, "no trial is selected; there are 2"),
        (["run", "cases", "--lf"], 2, "there is no run file here"),
        (["list", "cases", "-k", "nothing-like-it"], 5, "nothing is selected"),
        (["list", "nowhere"], 2, "there is no such file"),
        (["check", "nowhere"], 2, "there is no such file"),
        (["show", "closed/sny"], 2, "did you mean 'closed/syn'?"),
        (["show", "closed/syn", "--row", "x"], 2, "has no row 'x'"),
        (["judge", "nowhere"], 2, "there is no run file here"),
        (["new", "closed/syn"], 2, "is there already"),
    ],
)
def test_bad_usage_is_told_in_words(place: Path, arguments: list[str], code: int, words: str) -> None:
    done = _shell(*arguments, cwd=place)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (place / "reports").exists()


def test_a_bad_case_starts_no_run(place: Path) -> None:
    (place / "cases/closed/bad.yaml").write_text("title: [")
    done = _shell("run", "cases", cwd=place)
    assert done.returncode == 2
    assert "nothing was run" in done.stderr
    assert not (place / "reports").exists()


def test_list(place: Path) -> None:
    assert _conform("list").output == "closed/syn.v4\nclosed/syn.v6\n"
    assert _conform("list", "--ip", "6", "--tag", "closed").output == "closed/syn.v6\n"
    assert _conform("list", "--cases").output == "closed/syn  A closed port answers a SYN with a reset\n"
    assert _conform("list", "--tags").output == "closed  1\n"


@pytest.mark.parametrize("name", ["closed/syn", "CLOSED/syn.v6", "closed/syn.v4#3", "cases/closed/syn.yaml"])
def test_show(place: Path, name: str) -> None:
    shown = _conform("show", name)
    assert shown.exit_code == 0
    assert "9293-3.10.7.1-closed-syn-rst (rule, RFC 9293 section 3.10.7.1): CLOSED: SYN without ACK" in shown.output
    assert "|-- S" in shown.output
    assert "seq=0 ack=syn.end" in shown.output


def test_new_writes_a_case_that_checks(place: Path) -> None:
    made = _conform("new", "more/first-try")
    assert made.exit_code == 0
    assert "# " in (place / "cases/more/first-try.yaml").read_text()
    assert _shell("check", "cases", cwd=place).stdout == "2 cases, 4 trials: sound\n"
    assert _conform("new", "more/first-try", "--force").exit_code == 0


def test_schema_is_json() -> None:
    assert "steps" in json.loads(_conform("schema").output)["properties"]


def test_doctor_never_fails_to_speak() -> None:
    done = _conform("doctor")
    assert done.exit_code in (0, 3)
    assert "kernel" in done.output


def test_judge_finds_a_verdict_that_does_not_follow(place: Path) -> None:
    writer = Writer(place / "run.jsonl")
    writer.write(dumps(HEADER))
    writer.write(dumps(LINE))
    writer.write(dumps(LINE | {"id": "b.v4", "verdict": VERDICT | {"outcome": "pass"}, "result": "pass"}))
    writer.close()
    done = _shell("judge", ".", "--out", "elsewhere", cwd=place)
    assert done.returncode == 3
    assert "b.v4: a verdict of pass without a transcript" in done.stderr
    assert "a.v4" not in done.stderr


HEADER = {"kind": "header", "format": 1, "planned": ["a.v4", "b.v4"], "settings": {"gate": "all"}}
VERDICT: dict[str, Any] = {
    "outcome": "not-applicable", "level": None, "requirements": [], "failure": None, "reason": "no IPv4",
    "findings": [], "unverified": [], "late": False,
}  # fmt: skip
LINE = {
    "kind": "trial", "id": "a.v4", "case": "a", "title": "A title", "file": "a.yaml", "row": "", "ip": 4,
    "attempt": 1, "seed": 0, "link": "tun", "document": {"covers": []}, "levels": {}, "stack": {},
    "transcript": [], "verdict": VERDICT, "expectation": None, "result": "not-applicable", "expected": True,
}  # fmt: skip
BOTH = [LINE, LINE | {"id": "b.v4"}]


def _end(stopped: str | None) -> dict[str, Any]:
    return {"kind": "end", "finished": "2026-01-01", "counts": {}, "exit": 0, "stopped": stopped}


@pytest.mark.parametrize(
    ("changes", "lines", "code"),
    [
        ({}, [], 3),
        ({}, [LINE], 3),
        ({}, [LINE, _end(None)], 3),
        ({}, [LINE, _end("the disk is full")], 3),
        ({}, [LINE, _end("SIGINT")], 130),
        ({}, [LINE, _end("SIGTERM")], 143),
        ({}, [LINE, _end("-x")], 5),
        ({}, BOTH, 5),
        ({}, [*BOTH, _end(None)], 5),
        ({"planned": []}, [_end(None)], 5),
        ({"stale": ["linux.yaml:1:1: no trial matches x"]}, BOTH, 1),
    ],
)
def test_judge_exits_as_the_run_should_have(
    place: Path, changes: dict[str, Any], lines: list[dict[str, Any]], code: int
) -> None:
    writer = Writer(place / "run.jsonl")
    for line in [HEADER | changes, *lines]:
        writer.write(dumps(line))
    writer.close()
    done = _shell("judge", ".", "--out", "elsewhere", cwd=place)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [["list", "cases"], ["--help"], ["list", "--help"], ["schema"], ["show", "closed/syn"]]
)
def test_an_output_that_nobody_reads(place: Path, arguments: list[str]) -> None:
    root = Path(__file__).resolve().parents[2]
    program = f"import sys; sys.path.insert(0, {str(root)!r}); from conform.cli import main; main()"
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, cwd=place)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, cwd=place)
    assert (done.returncode, done.stderr) == (
        3,
        "standard output: No space left on device; nothing more is said there\n",
    )
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *command], stderr=subprocess.PIPE, text=True, check=False, cwd=place
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_help_imports_nothing_heavy(place: Path) -> None:
    """It is shown in some 50 ms; what would make it slow is an import."""
    root = Path(__file__).resolve().parents[2]
    program = (
        f"import sys; sys.path.insert(0, {str(root)!r})\n"
        "from conform.cli import main\n"
        "try: main()\n"
        "finally: print({'pydantic', 'scapy', 'rich', 'yaml', 'jinja2'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "--help"], capture_output=True, text=True, check=True, cwd=place
    )
    assert "judge" in done.stdout
    assert done.stdout.endswith("set()\n")
    assert _shell("--version", cwd=place).stdout.startswith("conform, version ")
