"""conform is killed at random moments; nothing of it may be left, and what had finished must be in the run file.

Wants root, for the canaries; ``--user ID`` runs conform itself as that user.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import harness

#: Many connections open at any moment, some for long, in either kind of agent, some of them blocked in a call.
CASES = {
    "passive-close": harness.PASSIVE_CLOSE,
    "waits": harness.WAITS,
    "blocked": """\
title: A process that sleeps in a read is left alone for two seconds
covers: [9293-3.6-normal-close-fig12]
ip: 4
given: ESTABLISHED
requires: [overlap, fork]
steps:
  - call: {do: fork, as: child}
  - start: {do: recv, by: child, as: r1}
  - blocked: r1
  - silence: 2s
  - send: {flags: PA, payload: x}
  - finish: {r1: {data: x}}
""",
}
LIMIT = 5.0
#: Whom to kill. The warden is in none of the groups: it is what must survive.
TARGETS = ("main", "main and workers", "process group", "everything but the warden")
#: The control: without the warden something must be left, else the canaries show nothing.
CONTROL = "everything, the warden too"


@dataclass(frozen=True, slots=True)
class Death:
    """One kill: of whom, after how long, how many namespaces were watched, how long until all was gone (or never)."""

    target: str
    after: float
    canaries: int
    gone: float | None
    problems: tuple[str, ...]


def kill_once(
    seed: int, *, user: int | None = None, link: str = "auto", latest: float = 3.0, control: bool = False
) -> Death:
    """Start conform, kill it at a random moment, and see what is left."""
    chance = random.Random(seed)
    target = CONTROL if control else chance.choice(TARGETS)
    after = latest if control else chance.uniform(0.3, latest)
    with tempfile.TemporaryDirectory() as temporary, contextlib.closing(harness.Canaries()) as canaries:
        directory = Path(temporary)
        directory.chmod(0o777)
        for name, text in CASES.items():
            harness.case(directory, name, text)
        out = directory / "out"
        arguments = ["run", str(directory / "cases"), "--repeat", "400", "--pcap", "all", "--out", str(out)]
        process = subprocess.Popen(
            harness.command(*arguments, "--link", link, user=user),
            env=harness.environment() | {"TMPDIR": temporary},
            cwd=temporary,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(after)
        family = harness.descendants(process.pid)
        wardens = [pid for pid in family if _comm(pid) == "conform-warden"]
        watched = sum(canaries.set(warden) for warden in wardens)
        finished = _verdicts(out)
        family = harness.descendants(process.pid)
        _kill(target, process.pid, family, wardens)
        process.wait()
        killed = time.monotonic()
        gone = None
        while time.monotonic() < killed + LIMIT:
            if not canaries.alive() and not any(_lives(pid) for pid in family):
                gone = time.monotonic() - killed
                break
            time.sleep(0.02)
        problems = [f"{canaries.alive()} of {watched} namespaces are left"] if canaries.alive() else []
        problems += [f"process {pid} ({_comm(pid)}) is left" for pid in family if _lives(pid)]
        problems += _files(out, directory, finished)
    return Death(target, after, watched, gone, tuple(problems))


def _kill(target: str, main: int, family: list[int], wardens: list[int]) -> None:
    if target == "process group":
        os.killpg(main, signal.SIGKILL)
        return
    if target == "main":
        victims = [main]
    elif target == "main and workers":
        victims = [main, *(pid for pid in family if _comm(pid) == "conform-worker")]
    else:
        spared = [] if target == CONTROL else wardens
        victims = [*(wardens if target == CONTROL else []), *(pid for pid in family if pid not in spared)]
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _comm(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return "gone"


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _verdicts(out: Path) -> set[str]:
    """The trials whose verdicts are in the run file, up to the last whole line."""
    with contextlib.suppress(OSError):
        whole = (out / "run.jsonl").read_bytes().rpartition(b"\n")[0].splitlines()
        return {line["id"] for line in map(json.loads, whole) if line["kind"] == "trial"}
    return set()


def _files(out: Path, directory: Path, finished: set[str]) -> list[str]:
    problems = []
    lost = finished - _verdicts(out)
    if lost:
        problems.append(f"{len(lost)} finished trials are not in the run file")
    allowed = {"cases", "out"}
    problems += [f"{path} is left" for path in directory.iterdir() if path.name not in allowed]
    if out.is_dir():
        problems += [f"{path} is left" for path in out.iterdir() if path.name not in ("run.jsonl", "pcap")]
    if (out / "pcap").is_dir():
        problems += [f"{path} is left" for path in (out / "pcap").iterdir() if path.suffix != ".pcapng"]
        problems += [f"{path} is left" for path in (out / "pcap").iterdir() if path.name.startswith(".")]
    return problems


def main() -> None:
    """Kill many times, print, and exit 1 when anything was left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=50, help="kills")
    parser.add_argument("--user", type=int, help="run conform as this user id")
    parser.add_argument("--link", default="auto", choices=["auto", "tun", "veth"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--control", action="store_true", help="kill the warden too: now something must be left")
    options = parser.parse_args()
    bad = 0
    watched = 0
    slowest = 0.0
    for number in range(options.n):
        death = kill_once(options.seed + number, user=options.user, link=options.link, control=options.control)
        watched += death.canaries
        slowest = max(slowest, death.gone if death.gone is not None else LIMIT)
        left = f"all gone after {death.gone:.2f} s" if death.gone is not None else f"NOT gone after {LIMIT:.0f} s"
        print(
            f"{number + 1}: {death.target} after {death.after:.2f} s, {death.canaries} namespaces: {left}", flush=True
        )
        for problem in death.problems:
            print(f"  {problem}", flush=True)
        bad += bool(death.problems)
    print(f"{options.n} kills, {watched} namespaces watched, slowest {slowest:.2f} s, {bad} with something left")
    raise SystemExit(bad == 0 if options.control else bad != 0)


if __name__ == "__main__":
    main()
