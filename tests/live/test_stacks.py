"""Every stack that ships besides this machine's kernel, over the whole suite; and stacks that die or never start."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import machine
import pytest
import yaml

from conform.engine.replay import judge
from conform.engine.verdict import Verdict
from conform.stacks import shelf
from conform.stacks.description import load

ROOT = Path(__file__).parents[2]
#: The stacks that CI must have; others are tested where they are installed.
ALWAYS = {"lwip", "gvisor", "pytcp"}
STACKS = ["lwip", "pytcp", "gvisor", "slirp", "lwipv6"]
LINUX = yaml.safe_load((ROOT / "conform/stacks/linux.yaml").read_text())


def conform(*words: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "conform", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False, **kwargs)


def lines(run: Path) -> list[dict[str, Any]]:
    with (run / "run.jsonl").open(encoding="utf-8", errors="surrogatepass") as file:
        return [line for line in map(json.loads, file) if line["kind"] == "trial"]


def needs(stack: str) -> None:
    machine.needs_trials()
    description = load(stack)
    if description.link in ("tap", "tun", "made"):
        machine.needs_link("tun")
    lacks = list(shelf.lacking(description))
    if lacks == [f"conform stacks build {stack}"]:
        done = conform("stacks", "build", stack)
        assert done.returncode == 0, done.stdout + done.stderr
    elif lacks:
        reason = f"{stack} is not here: {'; '.join(lacks)}"
        machine.unusable(reason) if stack in ALWAYS else pytest.skip(reason)


def processes(mark: Path) -> dict[int, str]:
    """The processes in whose environment *mark* stands, with their command lines."""
    found = {}
    for each in Path("/proc").glob("[0-9]*"):
        try:
            if str(mark).encode() in (each / "environ").read_bytes():
                found[int(each.name)] = (each / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it has just ended
            continue
    return found


@pytest.mark.parametrize("stack", STACKS)
def test_the_whole_suite_is_as_expected(stack: str, tmp_path: Path) -> None:
    needs(stack)
    done = conform("run", "cases", "--tag", "!slow", "--stack", stack, "--out", str(tmp_path))
    found = lines(tmp_path)
    unexpected = {line["id"]: line["verdict"] for line in found if not line["expected"]}
    assert not unexpected, done.stdout[-6000:] + done.stderr
    assert done.returncode == 0, done.stderr
    assert {line["result"] for line in found} <= {"pass", "expected-failure", "not-applicable"}
    assert sum(line["result"] == "pass" for line in found) > 300
    differ = [line["id"] for line in found if judge(line) != Verdict.from_json(line["verdict"])]
    assert not differ


# Stacks that misbehave ------------------------------------------------------------------------------------------------
def described(tmp_path: Path, command: list[str], **changes: Any) -> str:
    """This kernel behind a veth, started by *command*, as if it were a stack of somebody's."""
    data = {key: value for key, value in LINUX.items() if key not in ("settings", "defaults")}
    data["capabilities"] = [word for word in data["capabilities"] if word not in ("states", "linux")]
    data |= {"name": "mine", "link": "veth", "start": {"command": command, "within": 2}, "agent": "kernel"} | changes
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in data.items() if value is not None}))
    return str(path)


def run(
    tmp_path: Path, stack: str, *more: str, case: str = "close/passive"
) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
    machine.needs_trials()
    done = conform("run", f"cases/{case}.yaml", "--stack", stack, "--out", str(tmp_path / "out"), *more)
    return done, lines(tmp_path / "out") if (tmp_path / "out/run.jsonl").exists() else []


def test_a_stack_that_lives(tmp_path: Path) -> None:
    done, found = run(tmp_path, described(tmp_path, ["sleep", "inf"]))
    assert done.returncode == 0, done.stdout + done.stderr
    assert found
    assert all(line["result"] == "pass" for line in found)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["/no/such-program"], "No such file or directory: '/no/such-program'"),
        (["sh", "-c", "echo no route to host >&2; exit 7"], "exit status 7"),
        (["sh", "-c", "echo no route to host >&2; kill -SEGV $$"], "killed by SIGSEGV"),
        (["sh", "-c", "ip link set stack0 down; sleep inf"], "was not ready in 2 s: "),
        (["sh", "-c", "kill -40 $$"], "killed by signal 40"),
        (["a\0b"], "embedded null byte"),
    ],
)
def test_a_stack_that_does_not_start(tmp_path: Path, command: list[str], words: str) -> None:
    done, found = run(tmp_path, described(tmp_path, command))
    assert done.returncode == 3
    assert words in done.stderr
    assert ("no route to host" in done.stderr) == ("route" in command[-1])
    assert not found


def test_a_stack_that_prints_much_when_it_is_ready(tmp_path: Path) -> None:
    command = ["sh", "-c", "for i in $(seq 40); do echo line $i; done; sleep inf"]
    done, found = run(tmp_path, described(tmp_path, command, ready=[{"line": "^line 3$"}]))
    assert done.returncode == 0, done.stdout + done.stderr
    assert found


WRAPPED = """
import os, subprocess, sys
agent = subprocess.Popen([sys.executable, "-I", "-S", sys.argv[1]], stdin=subprocess.PIPE)
hellos = 0
for line in sys.stdin.buffer:
    hellos += b'"hello"' in line
    if hellos == 2:
        os.abort()
    agent.stdin.write(line)
    agent.stdin.flush()
"""


def test_a_stack_that_dies_between_two_trials_is_told_of(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRAPPED, str(ROOT / "conform/stacks/agent/stdio.py")]
    stack = described(tmp_path, command, agent="stack", reset="agent", parallel=1)
    done, found = run(tmp_path, stack, "--ip", "4")
    assert [line["result"] for line in found] == ["pass"] * len(found)
    assert len(found) > 1
    words = f"after {found[0]['id']} had its verdict the stack died: killed by SIGABRT"
    assert words in done.stdout + done.stderr


def test_a_stack_that_is_made_for_one_trials_mtu_serves_no_other(tmp_path: Path) -> None:
    needs("lwip")
    cases = tmp_path / "cases"
    cases.mkdir()
    text = """\
title: The MSS that is announced follows from the MTU
covers: 9293-SHLD-5
ip: 4
{settings}
steps:
  - call: {{do: socket, as: listener}}
  - call: {{do: bind, on: listener}}
  - call: {{do: listen, on: listener}}
  - send: {{flags: S}}
  - expect: {{flags: SA, options: {{mss: {mss}}}}}
"""
    (cases / "small.yaml").write_text(text.format(settings="settings: {mtu: 600}", mss=560))
    for name in ("one", "two", "three"):
        (cases / f"{name}.yaml").write_text(text.format(settings="", mss=1460))
    done = conform("run", str(cases), "--stack", "lwip", "-j", "1", "--repeat", "8", "--out", str(tmp_path / "out"))
    found = lines(tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(found) == 32


def test_a_stack_that_dies_fails_the_trial_that_killed_it(tmp_path: Path) -> None:
    # It dies when a segment with FIN arrives; the trials that send none live.
    script = (
        "import socket,os,sys\n"
        "s=socket.socket(socket.AF_PACKET,socket.SOCK_DGRAM,socket.htons(0x800))\n"
        "while True:\n"
        "    d,a=s.recvfrom(65536)\n"
        "    if a[0]=='stack0' and a[2]!=4 and d[9]==6 and d[33]&1:\n"
        "        print('FIN!',file=sys.stderr,flush=True); os.abort()\n"
    )
    stack = described(tmp_path, [sys.executable, "-c", script])
    # This one waits when the peer's FIN is there: the death cannot come after its end.
    done, found = run(tmp_path, stack, "--ip", "4", case="close/no-fin-before-close")
    assert done.returncode == 1, done.stdout + done.stderr
    assert {line["result"] for line in found} == {"fail"}
    failure = found[0]["verdict"]["failure"]
    assert failure["summary"] == "the stack died: killed by SIGABRT"
    assert any("FIN!" in words for words in failure["arithmetic"])
    assert judge(found[0]) == Verdict.from_json(found[0]["verdict"])
    assert "FIN!" in done.stdout
    done, found = run(tmp_path, stack, "--ip", "4", case="listen/ack-is-reset")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {line["result"] for line in found} == {"pass"}


#: A machine behind a wire, as far as a test can have one: this script runs in a network namespace of its own.
WIRE = """
set -e
ip link set lo up
unshare -n sleep 60 & far=$!
trap 'kill $far' EXIT
until [ "$(readlink /proc/$far/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do :; done
ip link add eth1 type veth peer name eth0 netns $far
nsenter --net=/proc/$far/ns/net "$PYTHON" - <<END
import socket, subprocess
from conform.link.veth import disable_checksum_offload
with socket.socket() as sock:
    disable_checksum_offload(sock.fileno(), "eth0")
for words in ("link set lo up", "link set eth0 up", "addr add 192.0.2.1/24 dev eth0",
              "-6 addr add 2001:db8::1/64 dev eth0 nodad"):
    subprocess.run(["ip", *words.split()], check=True)
open("/proc/sys/net/ipv4/tcp_invalid_ratelimit", "w").write("0")
END
ip link set eth1 up
export FAR=$far
"$PYTHON" -m conform run cases/echo cases/listen --stack "$STACK" --out "$OUT" -j 1
"""


def test_a_stack_behind_an_interface_of_this_machine(tmp_path: Path) -> None:
    machine.needs_trials()
    if os.geteuid() != 0:
        pytest.skip("an interface of this machine can be used by root alone")
    agent = 'exec nsenter --net=/proc/$FAR/ns/net "$PYTHON" -I -S conform/stacks/agent/stdio.py'
    stack = described(
        tmp_path, [], link={"interface": "eth1"}, agent={"command": ["sh", "-c", agent]}, reset="agent", parallel=1,
        start=None,
    )  # fmt: skip
    environment = {**os.environ, "PYTHON": sys.executable, "STACK": stack, "OUT": str(tmp_path / "out")}
    done = subprocess.run(
        ["unshare", "-n", "bash", "-c", WIRE],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "trials in" in done.stdout, done.stdout + done.stderr
    found = lines(tmp_path / "out")
    unexpected = {line["case"]: line["verdict"] for line in found if not line["expected"]}
    assert set(unexpected) <= {"listen/syn-with-fin"}, unexpected  # a deviation of Linux
    assert sum(line["result"] == "pass" for line in found) > 20


def test_fences_that_do_not_hold_are_found(tmp_path: Path) -> None:
    # A queue of 20 ms before TCP alone: pings overtake.
    shape = (
        "tc qdisc add dev stack0 root handle 1: prio && "
        "tc qdisc add dev stack0 parent 1:1 netem delay 20ms && "
        "tc filter add dev stack0 parent 1: protocol ip u32 match ip protocol 6 0xff flowid 1:1 && "
        "tc filter add dev stack0 parent 1: protocol ip u32 match ip protocol 1 0xff flowid 1:2 && exec sleep inf"
    )
    done, _ = run(tmp_path, described(tmp_path, ["sh", "-c", shape]), "--ip", "4")
    if "fences do not hold" not in done.stderr:
        pytest.skip(f"this machine has no netem: {done.stderr[-200:]}")
    assert done.returncode == 3


def test_what_kills_stacks_leaves_right_verdicts_and_nothing_behind(tmp_path: Path) -> None:
    """Stacks are killed at random moments while they are tested: each trial passes, or fails with that death."""
    needs("lwip")
    stop = threading.Event()
    killed = []
    own = {**os.environ, "CONFORM_TEST": str(tmp_path)}

    def kill() -> None:
        dice = random.Random(7)
        while not stop.wait(dice.uniform(0.05, 0.4)):
            if not (tmp_path / "run.jsonl").exists():
                continue  # it is being tried: a stack that dies then is not run
            pids = [pid for pid, command in processes(tmp_path).items() if "conform-agent-lwip" in command]
            if pids:
                pid = dice.choice(pids)
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                killed.append(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        done = conform(
            "run", "cases/close", "cases/reset", "--tag", "!slow", "--stack", "lwip", "--out", str(tmp_path), env=own
        )
    finally:
        stop.set()
        killer.join()
    found = lines(tmp_path)
    assert killed
    assert done.returncode in (0, 1), done.stdout[-4000:] + done.stderr
    deaths = [line for line in found if not line["expected"]]
    for line in deaths:
        assert "the stack died: killed by SIGKILL" in line["verdict"]["failure"]["summary"], line["id"]
    assert {line["result"] for line in found} <= {"pass", "expected-failure", "not-applicable", "fail"}
    assert not processes(tmp_path)


@pytest.mark.parametrize("stack", ["lwip", "gvisor"])
def test_a_run_that_is_killed_leaves_no_stack_behind(stack: str, tmp_path: Path) -> None:
    needs(stack)
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    command = [sys.executable, "-m", "conform", "run", "cases/close", "--stack", stack, "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(scratch), "CONFORM_TEST": str(tmp_path)},
    )
    run_file = tmp_path / "out/run.jsonl"
    deadline = time.monotonic() + 60
    while not (run_file.exists() and run_file.read_bytes().count(b"\n") > 3):  # some have finished, others run
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 5
    while (left := processes(tmp_path)) or list(scratch.glob("conform-*")):
        assert time.monotonic() < deadline, (left, list(scratch.rglob("*"))[:5])
        time.sleep(0.05)
