"""1,000 trials of handshake and passive close: wall, CPU, memory, with either kind of agent. By hand."""

from __future__ import annotations

import argparse
import resource
import subprocess
import tempfile
import time
from pathlib import Path

import harness


def main() -> None:
    """Run, print, and exit 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=1000, help="trials")
    parser.add_argument("--agent", choices=["inline", "process"], action="append")
    parser.add_argument("--link", default="auto")
    options = parser.parse_args()
    missed = False
    loops = harness.calibration()
    print(f"calibration: {loops / 1e6:.1f} million loops a second")
    for agent in options.agent or ["inline", "process"]:
        with tempfile.TemporaryDirectory() as temporary:
            missed |= _measure(Path(temporary), agent, options.n, options.link, loops)
    raise SystemExit(missed)


def _measure(directory: Path, agent: str, count: int, link: str, loops: float) -> bool:
    cases = harness.case(directory, "passive-close", harness.PASSIVE_CLOSE)
    out = directory / "out"
    arguments = harness.command(
        "run", str(cases), "--repeat", str(count), "--agent", agent, "--link", link, "--pcap", "all", "--out", str(out)
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    process = subprocess.Popen(arguments, env=harness.environment(), stdout=subprocess.DEVNULL)
    marks: dict[int, int] = {}
    last = highest = 0
    while process.poll() is None:
        time.sleep(0.1)
        with_verdict = _lines(out / "run.jsonl") - 1
        memory = harness.proportional_memory(harness.descendants(process.pid))
        if memory:
            last, highest = memory, max(highest, memory)
            if with_verdict >= 100:
                marks.setdefault(100, memory)
    wall = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    verdicts = _lines(out / "run.jsonl") - 2
    limit = (6.0 if agent == "inline" else 12.0) * count / 1000
    print(
        f"{agent}: {verdicts} trials, exit {process.returncode}, {wall:.2f} s wall ({verdicts / wall:.0f} a second),"
        f" {cpu / count * 1000:.2f} ms CPU a trial, {cpu / count * loops:.0f} calibration loops a trial;"
        f" memory {marks.get(100, 0) / 1e6:.0f} MB after 100 trials, {last / 1e6:.0f} MB at the last look,"
        f" {highest / 1e6:.0f} MB at most"
    )
    return bool(
        process.returncode
        or wall > limit
        or (agent == "inline" and cpu / count > 0.012)
        or highest > 400e6
        or verdicts != count
    )


def _lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except OSError:
        return 0


if __name__ == "__main__":
    main()
