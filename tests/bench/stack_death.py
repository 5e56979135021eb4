"""A stack is killed at 50 random moments of a run: verdicts are right, and nothing is left behind. By hand, as root.

Right is: each trial ends as in a run that nobody disturbs, or fails by that very death; none is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import harness

#: How the processes of a stack are known.
KNOWN = {"lwip": "conform-agent-lwip", "lwipv6": "conform-agent-lwipv6", "pytcp": r"pytcp/agent\.py", "gvisor": "runsc",
         "slirp": "slirp4netns", "uml": "linux"}  # fmt: skip


def main() -> None:
    """Run twice, print what came of it, and exit 1 when anything is not right."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("stack")
    parser.add_argument("-n", type=int, default=50, help="kills")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--match", help="a regular expression for the command line of what is killed")
    options = parser.parse_args()
    pattern = re.compile(options.match or KNOWN[options.stack])
    with tempfile.TemporaryDirectory() as temporary:
        calm, code, lasted = _run(options.stack, Path(temporary, "calm"))
        print(f"undisturbed: exit {code}, {lasted:.1f} s, {len(calm)} trials", flush=True)
        dice = random.Random(options.seed)
        moments = sorted(dice.uniform(0.02, 0.85) * lasted for _ in range(options.n))
        scratch = Path(temporary, "tmp")
        scratch.mkdir()
        found, code, lasted, killed = _disturbed(options.stack, Path(temporary, "run"), scratch, pattern, moments, dice)
        wrong = []
        deaths = Counter[str]()
        for name, line in found.items():
            failure = line["verdict"]["failure"] or {}
            if "SIGKILL" in failure.get("summary", ""):
                deaths[failure["summary"].partition("\n")[0]] += 1
                wrong += [f"{name}: its death is as expected"] if line["expected"] else []
            elif line["result"] != calm[name]["result"]:
                wrong.append(f"{name}: {line['result']}, {failure.get('summary') or line['verdict']['reason']}")
        wrong += [f"{name}: no verdict" for name in calm.keys() - found.keys()]
        deadline = time.monotonic() + 5  # the bar: within that all is gone
        while (left := _marked(scratch)) and time.monotonic() < deadline:
            time.sleep(0.01)
        wrong += [f"left: process {pid}: {command}" for pid, command in left.items()]
        wrong += [f"left: {path}" for path in scratch.iterdir()]
    print(
        f"{killed} kills: exit {code}, {lasted:.1f} s, {len(found)} trials, {dict(deaths)}, {len(wrong)} wrong or left"
    )
    print("".join(f"  {words}\n" for words in wrong), end="")
    raise SystemExit(bool(wrong) or killed < options.n or code != (1 if deaths else 0))


def _command(stack: str, out: Path) -> list[str]:
    cases = str(harness.ROOT / "cases")
    return harness.command("run", cases, "--tag", "!slow", "--stack", stack, "--out", str(out))


def _lines(out: Path) -> dict[str, dict[str, Any]]:
    with (out / "run.jsonl").open(encoding="utf-8", errors="surrogatepass") as file:
        return {line["id"]: line for line in map(json.loads, file) if line["kind"] == "trial"}


def _run(stack: str, out: Path) -> tuple[dict[str, dict[str, Any]], int, float]:
    cost = harness.measured(_command(stack, out))
    return _lines(out), cost.code, cost.wall


def _disturbed(
    stack: str, out: Path, scratch: Path, pattern: re.Pattern[str], moments: list[float], dice: random.Random
) -> tuple[dict[str, dict[str, Any]], int, float, int]:
    environment = {**harness.environment(), "TMPDIR": str(scratch)}
    process = subprocess.Popen(_command(stack, out), env=environment, stdout=subprocess.DEVNULL)
    while not (out / "run.jsonl").exists():  # it is being tried: a stack that dies then is not run
        time.sleep(0.01)
    begun, killed = time.monotonic(), 0
    for moment in moments:
        time.sleep(max(0.0, begun + moment - time.monotonic()))
        while process.poll() is None:  # at that moment there may be none
            pids = [pid for pid, command in _marked(scratch).items() if pattern.search(command)]
            if pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(dice.choice(pids), signal.SIGKILL)
                    killed += 1
                    break
            time.sleep(0.01)
    code = process.wait()
    return _lines(out), code, time.monotonic() - begun, killed


def _marked(scratch: Path) -> dict[int, str]:
    """The processes of that run, conform's own among them, with their command lines."""
    found = {}
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"TMPDIR={scratch}".encode() in (each / "environ").read_bytes().split(b"\0"):
                found[int(each.name)] = (each / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


if __name__ == "__main__":
    main()
