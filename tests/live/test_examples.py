"""The example of docs/testing-your-stack.md: it builds by the document's command, comes up and is tested."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import machine
import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs/examples"
DOCUMENT = (ROOT / "docs/testing-your-stack.md").read_text()
#: The case that the document begins with, and others that lwIP mostly keeps to: over the states that services reach.
FIRST = "cases/reset/bad-checksum.yaml"
CASES = [
    FIRST,
    "cases/listen/reset-is-ignored.yaml",
    "cases/open/SYN-again-in-SYN-RECEIVED.yaml",
    "cases/late/data-after-close-in-FIN-WAIT-1.yaml",
    "cases/reset/exact-ack-is-not-checked.yaml",
    "cases/close/fin-repeated.yaml",
]


def lacking() -> str:
    """What the document's command needs and this machine has not."""
    for program in ("cc", "pkg-config"):
        if shutil.which(program) is None:
            return f"there is no {program}: sudo apt-get install gcc pkg-config"
    if subprocess.run(["pkg-config", "--exists", "lwip"], check=False).returncode != 0:
        return "lwIP's library is not installed: sudo apt-get install liblwip-dev"
    return ""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A copy of the example, built as the document says."""
    machine.needs_trials()
    machine.needs_link("tun")
    reason = lacking()
    if reason:
        pytest.skip(reason)
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("services.c", "mystack.yaml"):
        shutil.copy(EXAMPLES / name, mine)
    command = re.search(r"^cc mine/services\.c .*$", DOCUMENT, re.M)
    assert command
    done = subprocess.run(command[0], shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return mine


def run(mine: Path, *cases: str) -> tuple[subprocess.CompletedProcess[str], list[dict[str, str]]]:
    out = mine / "report"
    command = [sys.executable, "-m", "conform", "run", *cases, "--stack", str(mine / "mystack.yaml"), "--ip", "4"]
    done = subprocess.run(
        [*command, "--out", str(out)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode in (0, 1), done.stdout[-6000:] + done.stderr
    with (out / "run.jsonl").open(encoding="utf-8", errors="surrogatepass") as file:
        return done, [line for line in map(json.loads, file) if line["kind"] == "trial"]


def test_the_first_case_passes(mine: Path) -> None:
    assert FIRST in DOCUMENT
    done, trials = run(mine, FIRST)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    passed = re.search(r"It says `(\d+) pass`", DOCUMENT)
    assert passed
    assert Counter(trial["result"] for trial in trials) == {"pass": int(passed[1])}


def test_most_pass_and_none_ends_in_error(mine: Path) -> None:
    done, trials = run(mine, *CASES)
    results = Counter(trial["result"] for trial in trials)
    assert set(results) <= {"pass", "fail", "not-applicable"}, done.stdout[-6000:]
    assert results["pass"] > (results.total() - results["not-applicable"]) / 2, done.stdout[-6000:]
    assert results["pass"] > 15
