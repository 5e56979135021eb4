"""gVisor as conform starts it, in a namespace of its own: the agent in the sandbox, and that nothing is left behind."""

import functools
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from machine import isolated

from conform.link import codec, device, netns
from conform.link.neighbour import Neighbours
from conform.link.packet import PacketPort
from conform.run.loop import Loop
from conform.run.rig.tryout import AGENTS_OWN
from conform.stacks.channel import Channel
from conform.stacks.description import load
from conform.tcp.segment import ACK, FIN, PSH, RST, SYN, IPFields, Option, Segment

pytestmark = pytest.mark.skipif(
    shutil.which("runsc") is None, reason="runsc is not installed: sudo apt-get install runsc"
)
versions = pytest.mark.parametrize("version", [4, 6])


class Stand:
    """The stack that the description tells of, and conform's ends of the link and of the channel."""

    def __init__(self):
        self.description = load("gvisor")
        self.addresses = self.description.pairs
        self.loop = Loop()
        self.directory = tempfile.mkdtemp(prefix="stand-")
        self.space = netns.Namespace.create()
        self.arrived, self.broken, self.replies, self.asleep = [], [], {}, set()
        self.numbers, self.ports = itertools.count(1), itertools.count(2000)
        self.fences = {version: codec.Fence(version, *pair) for version, pair in self.addresses.items()}
        values = {
            "python": sys.executable,
            "here": str(self.description.path.parent),
            "directory": self.directory,
        }
        with self.space.enter():
            device.loopback_up()
            device.make_veth(self.addresses, device.PREFIXES)
            neighbours = Neighbours(self.addresses, device.hardware_address(device.TESTER))
            self.port = PacketPort(self.loop, device.TESTER, neighbours, self.deliver)
            self.process = subprocess.Popen(
                self.description.filled(self.description.start.command, values),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
        read, write = (os.dup(stream.fileno()) for stream in (self.process.stdout, self.process.stdin))
        self.process.stdin.close()
        self.process.stdout.close()
        self.channel = Channel(self.loop, read, write, self.broken.append)

    def deliver(self, data, since):
        segment = codec.parse(data)
        if segment is not None:  # multicast listener reports, router solicitations
            self.arrived.append(segment)

    def until(self, done, seconds=20):
        end = time.monotonic() + seconds
        while not done():
            assert not self.broken, self.broken
            assert time.monotonic() < end, (self.replies, self.arrived)
            self.loop.turn(0.05)

    def hello(self, version=4):
        heard = []
        stack, tester = self.addresses[version]
        self.channel.hello({"ip": version, "stack": stack, "tester": tester}, heard.append)
        self.until(lambda: heard)
        self.version = version
        return heard[0]

    def ready(self, version=4):
        """Greeted, and its link-layer address known."""
        self.hello(version)
        while not self.port.resolved:
            self.port.resolve()
            self.loop.turn(0.02)
        return self

    def start(self, do, **arguments):
        number = next(self.numbers)
        if "name" in arguments and do != "set":
            arguments["as"] = arguments.pop("name")
        self.channel.request(number, {"do": do, **arguments}, self.replies.__setitem__, self.asleep.add)
        return number

    def end(self, number):
        self.until(lambda: number in self.replies)
        return self.replies[number]

    def call(self, do, **arguments):
        return self.end(self.start(do, **arguments))

    def ok(self, do, **arguments):
        reply = self.call(do, **arguments)
        assert reply.get("returned", -1) >= 0, reply
        return reply

    def sleeping(self, do, **arguments):
        """A call begun, which sleeps."""
        number = self.start(do, overlap=True, **arguments)
        self.until(lambda: number in self.asleep or number in self.replies)
        assert number in self.asleep, self.replies[number]
        return number

    def send(self, flags, **fields):
        stack, tester = self.addresses[self.version]
        fields = {"dport": 80, "window": 65535, "seq": 0, "ack": 0} | fields
        self.port.send(codec.build(Segment(IPFields(self.version, tester, stack), flags=flags, **fields)))

    def next(self):
        """The next segment that arrives."""
        self.until(lambda: self.arrived, 5)
        return self.arrived.pop(0)

    def listen(self):
        self.ok("socket")
        self.ok("setsockopt", on="listener", option="SO_REUSEADDR", value=True)
        self.ok("bind", port=80)
        self.ok("listen")

    def established(self, name="c1"):
        """A connection to the listener: the tester's port, the stack's next sequence number."""
        port = next(self.ports)
        self.send(SYN, sport=port, seq=1000)
        answer = self.next()
        assert answer.flags == SYN | ACK
        assert answer.ack == 1001
        self.send(ACK, sport=port, seq=1001, ack=answer.seq + 1)
        self.ok("accept", name=name)
        return port, answer.seq + 1

    def pids(self):
        """The host's processes of the sandbox."""
        parents = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                parents[int(path.parent.name)] = int(path.read_text().rpartition(") ")[2].split()[1])
            except OSError:
                continue
        found = {self.process.pid}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return found

    def leave(self):
        pids = self.pids()
        self.channel.close()
        self.port.close()
        assert self.process.wait(10) == 0
        assert not living(pids)
        shutil.rmtree(self.directory)


def living(pids, seconds=5):
    """Those of *pids* that live after so long."""
    end = time.monotonic() + seconds
    while left := [pid for pid in pids if Path(f"/proc/{pid}/stat").exists() and state(pid) not in "ZX"]:
        if time.monotonic() > end:
            return left
        time.sleep(0.01)
    return []


def state(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return "X"


def stand(test):
    """Run *test* isolated, with a Stand, of which nothing is left."""

    def inner(version=4):
        made = Stand()
        try:
            test(made.ready(version))
            made.leave()
        finally:
            made.process.kill()
            shutil.rmtree(made.directory, ignore_errors=True)

    @functools.wraps(test)
    def run(version=4):
        isolated(inner)(version)

    del run.__wrapped__
    return run


def with_versions(test):
    def run(version):
        test(version)

    run.__name__ = test.__name__
    return versions(run)


@stand
def test_what_the_agent_says_is_what_is_described(made):
    found = set(made.hello()["capabilities"])
    assert found == set(made.description.capabilities & AGENTS_OWN)


@with_versions
@stand
def test_a_whole_connection(made):
    made.listen()
    port, seq = made.established()
    stack = made.addresses[made.version][0]
    assert made.ok("getsockname", on="c1")["address"] == {"address": stack, "port": 80}
    made.send(ACK | PSH, sport=port, seq=1001, ack=seq, payload=b"hello")
    assert made.next().ack == 1006
    assert made.ok("recv")["data"] == b"hello".hex()
    made.ok("send", payload=b"hi".hex())
    answer = made.next()
    assert (answer.seq, answer.payload) == (seq, b"hi")
    made.send(ACK, sport=port, seq=1006, ack=seq + 2)
    assert made.ok("state", port=80, peer=port)["value"] == "ESTABLISHED"
    made.ok("close", on="c1")
    assert made.next().flags & FIN
    assert made.ok("state", port=80, peer=port)["value"] is None, "what no descriptor refers to cannot be seen"


@stand
def test_calls_that_sleep(made):
    made.listen()
    accept = made.sleeping("accept", name="c1")
    port = next(made.ports)
    made.send(SYN, sport=port, seq=1000)
    answer = made.next()
    made.send(ACK, sport=port, seq=1001, ack=answer.seq + 1)
    assert made.end(accept)["address"]["port"] == port
    poll = made.sleeping("poll", events=["in"])
    made.send(ACK | PSH, sport=port, seq=1001, ack=answer.seq + 1, payload=b"x")
    assert made.end(poll)["value"] == ["in"]
    made.next()
    made.ok("recv", overlap=True)
    whole = made.sleeping("recv", size=3, flags=["MSG_WAITALL"])
    made.send(ACK | PSH, sport=port, seq=1002, ack=answer.seq + 1, payload=b"ab")
    made.send(ACK | PSH, sport=port, seq=1004, ack=answer.seq + 1, payload=b"c")
    assert made.end(whole)["data"] == b"abc".hex()
    send = made.sleeping("send", payload="00" * (8 << 20))
    assert made.start("getsockname", on="c1") not in made.asleep
    made.arrived.clear()
    made.ok("socket", name="client")
    connect = made.sleeping("connect", on="client", address=made.addresses[4][1], port=7)
    made.until(lambda: any(segment.flags == SYN for segment in made.arrived))
    for number in (connect, send):
        assert number not in made.replies
    # None of these sleeps.
    made.ok("poll", on="listener", events=["in"], timeout=0, overlap=True)
    assert made.call("recv", flags=["MSG_DONTWAIT"], overlap=True)["error"] == "EAGAIN"
    assert made.call("accept", on="client", name="other", overlap=True)["error"] == "EINVAL"


@stand
def test_processes(made):
    made.listen()
    made.established()
    assert made.ok("fork", name="child")["returned"] > 0
    sleeping = made.sleeping("recv", by="child")
    made.ok("close", on="c1")
    made.ok("kill", process="child")
    assert made.replies[sleeping]["gone"] is True
    assert made.next().flags & FIN, "the last descriptor of the connection is closed"
    assert made.call("kill", process="child")["error"] == "ESRCH"
    made.ok("fork", name="other")
    made.ok("exit", by="other")
    assert "is gone" in made.call("getsockname", on="listener", by="other")["fault"]
    made.ok("getsockname", on="listener")


@stand
def test_a_hello_begins_anew(made):
    before = len(made.pids())
    for trial in range(30):
        made.listen()
        made.established()
        if trial % 10 == 9:
            made.ok("fork", name="child")
            made.sleeping("recv", by="child")
        if trial % 10 == 8:
            made.sleeping("recv")
        made.hello()
        assert made.next().flags & RST
        assert "no descriptor" in made.call("getsockname", on="c1")["fault"]
    # gVisor keeps an address space or two for processes to come.
    assert len(made.pids()) <= before + 3


@stand
def test_settings(made):
    def options():
        made.listen()
        port = next(made.ports)
        made.send(SYN, sport=port, seq=1000, options=(Option("mss", 1460), Option("sack-permitted")))
        return {option.name for option in made.next().options}

    assert "sack-permitted" in options()
    made.hello()
    made.ok("set", name="net.ipv4.tcp_sack", value="0")
    assert "sack-permitted" not in options()
    made.hello()
    assert "sack-permitted" in options()
    assert made.call("set", name="net.ipv4.tcp_timestamps", value="0")["error"] == "EACCES"


@stand
def test_a_reset_that_its_kernel_does_not_survive(made):
    """SO_LINGER without time on a connection in SYN-RECEIVED that was opened from here: the agent resets no such."""
    made.ok("socket", name="c1")
    made.ok("set-nonblocking", on="c1")
    made.ok("bind", on="c1", port=81)
    made.call("connect", on="c1", address=made.addresses[4][1], port=82)
    made.next()
    made.send(SYN, sport=82, dport=81, seq=1000)
    assert made.next().flags == SYN | ACK
    made.hello()
    made.hello()
    assert made.broken == []


@isolated
def test_nothing_outlives_a_kill():
    made = Stand()
    made.ready()
    pids = made.pids()
    assert len(pids) > 3
    os.kill(made.process.pid, signal.SIGKILL)
    made.process.wait()
    assert not living(pids)
    assert made.directory not in Path("/proc/mounts").read_text()
    shutil.rmtree(made.directory)


@isolated
def test_the_machine_keeps_its_mounts():
    made = Stand()
    before = Path("/proc/self/mounts").read_text()
    made.ready()
    assert Path("/proc/self/mounts").read_text() == before
    made.leave()


def test_start_says_what_is_missing(tmp_path):
    start = load("gvisor").path.parent / "gvisor" / "start.py"
    ran = subprocess.run(
        [sys.executable, str(start), str(tmp_path), "true"], env={"PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert ran.returncode == 1
    assert "sudo apt-get install runsc" in ran.stderr
