"""What the benchmarks share: running conform, what it cost, and whether namespaces are really gone."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from conform.link import netns  # noqa: E402
from conform.link.netlink import Interface, Netlink, veth_add  # noqa: E402

PASSIVE_CLOSE = """\
title: A passive close, from the handshake over CLOSE-WAIT and LAST-ACK to CLOSED
covers: [9293-3.6-normal-close-fig12]
ip: 4
given: ESTABLISHED
steps:
  - send: {flags: FA}
  - expect: {flags: A, seq: SND.NXT, ack: RCV.NXT, within: timer.delayed-ack.max}
  - state: CLOSE-WAIT
  - call: close
  - expect: {flags: FA, seq: SND.NXT, ack: RCV.NXT, as: fin}
  - silence: now
  - send: {flags: A, ack: fin.end}
  - state: CLOSED
"""

WAITS = """\
title: A connection that is left alone for two seconds stays silent
covers: [9293-3.6-normal-close-fig12]
ip: 4
given: ESTABLISHED
steps:
  - silence: 2s
"""


def case(directory: Path, name: str, text: str) -> Path:
    """Write a case for a benchmark; gives the directory to run."""
    path = directory / "cases" / "bench" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return directory / "cases"


def command(*arguments: str, user: int | None = None) -> list[str]:
    """The command line of ``conform``, as this interpreter runs it; with *user*, under that id."""
    run = [os.environ.get("CONFORM_PYTHON", sys.executable), "-m", "conform", *arguments]
    if user is None:
        return run
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *run]


def environment() -> dict[str, str]:
    """The environment to run it in."""
    paths = [str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1", "NO_COLOR": "1"}


@dataclass(frozen=True, slots=True)
class Cost:
    """What a command took: wall and CPU seconds, of it and all its descendants that were waited for."""

    wall: float
    cpu: float
    code: int


def measured(arguments: list[str], *, quiet: bool = True) -> Cost:
    """Run a command to its end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    out = subprocess.DEVNULL if quiet else None
    done = subprocess.run(arguments, env=environment(), stdout=out, check=False)
    wall = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(wall, cpu, done.returncode)


def calibration(seconds: float = 0.5) -> float:
    """Loops a second of plain Python on this machine now: figures of machines compare by their ratio to it."""
    started = time.perf_counter()
    count = 0
    while time.perf_counter() - started < seconds:
        for _ in range(1000):
            count += 1
    return count / (time.perf_counter() - started)


def descendants(pid: int) -> list[int]:
    """*pid* and all processes below it."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parent = int(Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry))
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found


def proportional_memory(pids: list[int]) -> int:
    """The PSS of *pids* together, in octets: what they share is counted once."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += int(next(line for line in lines if line.startswith("Pss:")).split()[1]) * 1024
    return total


def named(comm: str) -> list[int]:
    """The processes with that name."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if Path("/proc", entry, "comm").read_text().strip() == comm:
                    found.append(int(entry))
    return found


class Canaries:
    """Witnesses that a namespace is gone: a veth pair with one end in it, the other here.

    The kernel takes down both ends when either's namespace dies, and a namespace that anything still pins (a process,
    a descriptor, an orphaned connection) does not die. So the end here is alive exactly as long as the namespace is,
    whether anybody can name it or not. Wants root, who may reach into every user's namespaces.
    """

    def __init__(self) -> None:
        self._home = netns.Namespace.create()
        with self._home.enter():
            self._link = Netlink()
        self._numbers = itertools.count(1000)

    def close(self) -> None:
        """Let go of them."""
        self._link.close()
        self._home.close()

    def set(self, holder: int) -> int:
        """One in each network namespace that the process *holder* has a descriptor of. How many."""
        count = 0
        seen = set()
        for entry in self._descriptors(holder):
            path = f"/proc/{holder}/fd/{entry}"
            with contextlib.suppress(OSError):
                target = os.readlink(path)
                if not target.startswith("net:") or target in seen:
                    continue
                seen.add(target)
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    number = next(self._numbers)
                    near = Interface(number, f"canary{number}", bytes.fromhex("020000000001"))
                    far = Interface(number, f"canary{number}", bytes.fromhex("020000000002"))
                    self._link.do([veth_add(near, far, fd)])
                    count += 1
                finally:
                    os.close(fd)
        return count

    @staticmethod
    def _descriptors(pid: int) -> list[str]:
        try:
            return os.listdir(f"/proc/{pid}/fd")
        except OSError:
            return []

    def alive(self) -> int:
        """How many of their namespaces still exist."""
        with self._home.enter(), open("/proc/thread-self/net/dev") as file:
            return sum("canary" in line for line in file)


@contextlib.contextmanager
def busy(loops: int) -> Iterator[None]:
    """*loops* processes beside that only burn CPU."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)]
    try:
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.wait()
