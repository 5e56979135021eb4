"""Every shipped case on this machine's own stack, on both links: what `conform run cases/` promises its user."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import machine
import pytest

from conform.engine.replay import judge
from conform.engine.verdict import Verdict

ROOT = Path(__file__).parents[2]
#: Nothing but these: no trial in error, inconclusive, flaky or unexpectedly good. Not applicable is what the machine
#: lacks, and has no place in the suite on a machine that has all.
CONTENT = {"pass", "expected-failure", "not-applicable"}
#: How many cases there are at least, so that a suite that is lost is not taken for one that passes.
CASES = 180


@pytest.mark.parametrize("link", ["tun", "veth"])
def test_all_is_as_expected_and_judged_alike(link: str, tmp_path: Path) -> None:
    machine.needs_trials()
    machine.needs_link(link)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "conform", "run", "cases", "--link", link, "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    cases, results, differing = set(), set(), []
    with (out / "run.jsonl").open(encoding="utf-8", errors="surrogatepass") as lines:
        for text in lines:
            line = json.loads(text)
            if line["kind"] != "trial":
                continue
            cases.add(line["case"])
            results.add(line["result"])
            if judge(line) != Verdict.from_json(line["verdict"]):
                differing.append(line["id"])
    assert len(cases) >= CASES
    assert results <= CONTENT
    assert not differing
