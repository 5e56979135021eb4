"""PyTCP and its agent on a TAP device, by the agent protocol and packet by packet.

Where PyTCP was built (``conform stacks build pytcp``). Each test runs in a child process, in a namespace that goes with
it.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from machine import isolated

from conform.link import codec, device
from conform.link.neighbour import Neighbours
from conform.link.netns import Namespace
from conform.link.packet import PacketPort
from conform.run.loop import Loop
from conform.stacks import agentcheck, builds
from conform.stacks.description import load
from conform.stacks.pytcp.agent import HARDWARE
from conform.tcp.segment import ACK, FIN, PSH, RST, SYN, IPFields, Option, Segment

DESCRIPTION = load("pytcp")
ADDRESSES = DESCRIPTION.pairs
MASK = 0xFFFFFFFF

versions = pytest.mark.parametrize("version", [4, 6])
pytestmark = [
    pytest.mark.skipif(not builds.built(DESCRIPTION), reason="PyTCP is not built: conform stacks build pytcp"),
    pytest.mark.skipif(not os.access("/dev/net/tun", os.R_OK | os.W_OK), reason="/dev/net/tun may not be opened"),
]


def setup(*versions: int) -> agentcheck.Setup:
    """The agent as the description starts it."""
    assert DESCRIPTION.start is not None
    assert DESCRIPTION.path is not None
    values = {"build": str(builds.directory(DESCRIPTION)), "here": str(DESCRIPTION.path.parent)}
    for version, (stack, _) in ADDRESSES.items():
        values |= {f"stack{version}": stack, f"prefix{version}": str(device.PREFIXES[version])}
    command = DESCRIPTION.filled(DESCRIPTION.start.command, values)
    link = {version: {"interface": device.INTERFACE, "mtu": 1500} for version in versions}
    return agentcheck.Setup(command, {version: ADDRESSES[version] for version in versions}, link, bound=20.0)


class Wire:
    """A TAP device in a new namespace, the agent on it, and the tester's end; a trial in IP *version*."""

    def __init__(self, version: int) -> None:
        self.loop = Loop()
        self.heard: list[Segment] = []
        self.pings = 0
        self.answered: set[int] = set()
        self.iss: dict[int, int] = {}
        with Namespace.create().enter():
            device.make_tun(device.INTERFACE, ethernet=True)
            neighbours = Neighbours(ADDRESSES, device.hardware_address(device.INTERFACE))
            self.port = PacketPort(self.loop, device.INTERFACE, neighbours, self.arrived)
            self.bench = agentcheck.Bench(setup(version), version)
        self.hello(version)
        self.until(lambda: self.port.resolved, self.port.resolve)

    def hello(self, version: int) -> None:
        self.version = self.bench.version = version
        self.bench.stack, self.bench.tester = ADDRESSES[version]
        self.bench.setup = setup(version)
        assert set(self.bench.hello()["capabilities"]) <= DESCRIPTION.capabilities

    def arrived(self, data: bytes, _: float) -> None:
        number = codec.Fence(self.version, *ADDRESSES[self.version]).match(data)
        if number is not None:
            self.answered.add(number)
        elif (segment := codec.parse(data)) is not None:
            self.heard.append(segment)

    def until(self, what: Callable[[], object], again: Callable[[], object] = lambda: None) -> None:
        end = time.monotonic() + 20
        while not what():
            assert time.monotonic() < end
            again()
            self.loop.turn(0.02)

    def send(self, sport: int, flags: int, seq: int, ack: int = 0, **other: object) -> None:
        stack, tester = ADDRESSES[self.version]
        ip = IPFields(self.version, tester, stack)
        self.port.send(codec.build(Segment(ip, sport, 80, seq & MASK, ack & MASK, flags, **other)))  # type: ignore[arg-type]

    def fence(self) -> list[Segment]:
        """What came before the answer to a ping, but for what was sent before."""
        self.pings += 1
        self.port.send(codec.Fence(self.version, *ADDRESSES[self.version]).build(self.pings))
        self.until(lambda: self.pings in self.answered)
        came, self.heard = self.heard, []
        return came

    def answer(self) -> list[Segment]:
        """What came, in the end."""
        self.until(lambda: self.heard)
        came, self.heard = self.heard, []
        return came

    def state(self, sport: int) -> str:
        return self.bench.ok("state", port=80, peer=sport)["value"]

    def set(self, name: str, value: object) -> None:
        self.bench.ok("set", name=name, value=value)

    def listen(self) -> None:
        self.bench.ok("socket")
        self.bench.ok("bind", address="any", port=80)
        self.bench.ok("listen", backlog=4)

    def established(self, sport: int, name: str = "c1") -> int:
        """A connection from *sport* that was accepted as *name*; the stack's ISS. What it has sent is IRS 1000."""
        self.send(sport, SYN, 1000, options=(Option("mss", 1460),))
        (answer,) = self.fence()
        assert (answer.flags, answer.ack) == (SYN | ACK, 1001)
        assert self.state(sport) == "SYN-RECEIVED"
        self.send(sport, ACK, 1001, answer.seq + 1)
        assert self.fence() == []
        assert self.bench.ok("accept", name=name)["address"] == {
            "address": ADDRESSES[self.version][1],
            "port": sport,
        }
        assert self.state(sport) == "ESTABLISHED"
        return answer.seq


def close(wire: Wire) -> None:
    """The agent ends by itself, and said nothing on its standard error."""
    said = wire.bench.agent.error_output()
    assert wire.bench.agent.finish() == 0
    wire.bench.agent.close()
    assert said == []


def test_the_protocol() -> None:
    """The stack talks to itself, through a mirror; PyTCP does so in IPv6 alone."""

    @isolated
    def run() -> None:
        stop = threading.Event()
        there = threading.Event()

        def mirror() -> None:
            loop = Loop()
            # Somebody else's neighbours: they answer for PyTCP's own address too.
            neighbours = Neighbours({6: ("2001:db8::f", "2001:db8::e")}, device.hardware_address(device.INTERFACE))
            neighbours.stack = bytes.fromhex(HARDWARE.replace(":", ""))
            port = PacketPort(loop, device.INTERFACE, neighbours, lambda data, _: port.send(data))
            there.set()
            while not stop.is_set():
                loop.turn(0.05)

        with Namespace.create().enter():
            device.make_tun(device.INTERFACE, ethernet=True)
            thread = threading.Thread(target=mirror)
            thread.start()
            assert there.wait(20)
            try:
                found = list(agentcheck.check(setup(6)))
            finally:
                stop.set()
                thread.join()
        assert [str(each) for each in found if each.verdict == "failed"] == []
        unchecked = [str(each) for each in found if each.verdict == "not checked"]
        # What PyTCP has not: MSG_PEEK, a recvmsg of data, what the agent does not claim. No setting was named to try.
        assert all(re.search("EOPNOTSUPP|does not claim (dup|urgent|fork)|--set", each) for each in unchecked), (
            unchecked
        )
        assert len(found) - len(unchecked) > 25

    run()


@versions
def test_echo_and_the_close_of_either_side(version: int) -> None:
    @isolated
    def run() -> None:
        wire = Wire(version)
        for setting, value in DESCRIPTION.resolve({}, {}).agent.items():
            wire.set(setting, value)
        wire.listen()
        assert wire.state(0) == "LISTEN"
        # A tail loss probe would come a few round trips after data; it is passed over.
        for number in range(10):
            active, passive = 2000 + number, 3000 + number
            for sport, name in ((active, "a"), (passive, "p")):
                iss = wire.iss[sport] = wire.established(sport, name)
                wire.send(sport, ACK | PSH, 1001, iss + 1, payload=b"hello")
                (answer,) = wire.fence()
                assert (answer.flags, answer.ack, answer.payload) == (ACK, 1006, b"")
                assert wire.bench.ok("recv", on=name)["data"] == b"hello".hex()
                assert wire.bench.ok("send", on=name, payload=b"hello".hex())["returned"] == 5
                assert {s.payload for s in wire.fence()} == {b"hello"}
                wire.send(sport, ACK, 1006, iss + 6)
                assert [s for s in wire.fence() if not s.payload] == []

            iss = wire.iss[active]
            wire.bench.ok("close", on="a")
            # The FIN comes from PyTCP's timer, two ticks later; the ping waits for it.
            (fin,) = wire.fence()
            assert (fin.flags, fin.seq, fin.ack) == (FIN | ACK, (iss + 6) & MASK, 1006)
            assert wire.state(active) == "FIN-WAIT-1"
            wire.send(active, ACK, 1006, iss + 7)
            assert wire.fence() == []
            assert wire.state(active) == "FIN-WAIT-2"
            wire.send(active, FIN | ACK, 1006, iss + 7)
            (answer,) = wire.fence()
            assert (answer.flags, answer.ack) == (ACK, 1007)
            assert wire.state(active) == "TIME-WAIT"

            iss = wire.iss[passive]
            wire.send(passive, FIN | ACK, 1006, iss + 6)
            (answer,) = wire.fence()
            assert (answer.flags, answer.ack) == (ACK, 1007)
            assert wire.state(passive) == "CLOSE-WAIT"
            assert wire.bench.ok("recv", on="p")["returned"] == 0
            wire.bench.ok("close", on="p")
            (fin,) = wire.fence()
            assert (fin.flags, fin.seq, fin.ack) == (FIN | ACK, (iss + 6) & MASK, 1007)
            assert wire.state(passive) == "LAST-ACK"
            wire.send(passive, ACK, 1007, iss + 7)
            assert wire.fence() == []
            assert wire.state(passive) == "CLOSED"
        close(wire)

    run()


def test_resets() -> None:
    @isolated
    def run() -> None:
        wire = Wire(4)
        wire.listen()
        iss = wire.established(2000)
        sleeping = wire.bench.begin("recv", on="c1", overlap=True)
        wire.bench.blocked(sleeping)
        wire.send(2000, RST, 1001)
        assert wire.fence() == []
        assert wire.bench.end(sleeping)["error"] == "ECONNRESET"
        assert wire.state(2000) == "CLOSED"
        iss = wire.established(2001, "c2")
        wire.bench.ok("setsockopt", on="c2", option="SO_LINGER", value={"onoff": True, "linger": 0})
        wire.bench.ok("close", on="c2")
        (answer,) = wire.fence()
        assert (answer.flags, answer.seq) == (RST | ACK, (iss + 1) & MASK)
        # A failed assertion of PyTCP's is the stack's failure, and no errno of POSIX.
        wire.bench.ok("socket", name="c3")
        reply = wire.bench.ask("recv", on="c3")
        assert reply["error"] == "EIO"
        assert reply["why"].startswith("AssertionError")
        assert wire.bench.agent.finish() == 0

    run()


def test_connect_that_is_not_waited_for() -> None:
    @isolated
    def run() -> None:
        wire = Wire(4)
        wire.bench.ok("socket", name="c1")
        wire.bench.ok("set-nonblocking", value=True)
        assert wire.bench.ask("connect", port=9)["error"] == "EINPROGRESS"
        (syn,) = wire.fence()
        assert syn.flags & SYN
        assert not syn.flags & ACK
        assert wire.bench.ok("state", port=syn.sport, peer=9)["value"] == "SYN-SENT"
        assert wire.bench.ask("connect", port=9)["error"] == "EALREADY"
        stack, tester = ADDRESSES[4]
        answer = Segment(IPFields(4, tester, stack), 9, syn.sport, 0, (syn.seq + 1) & MASK, RST | ACK)
        wire.port.send(codec.build(answer))
        assert wire.fence() == []
        assert wire.bench.ask("connect", port=9)["error"] == "ECONNREFUSED"
        wire.bench.ok("close")
        wire.bench.ok("socket", name="c2")
        sleeping = wire.bench.begin("connect", on="c2", port=9, overlap=True)
        wire.bench.blocked(sleeping)
        wire.hello(4)  # which forgets it
        wire.bench.ok("socket", name="c2")
        close(wire)

    run()


def test_settings_hold_for_one_trial() -> None:
    @isolated
    def run() -> None:
        wire = Wire(4)

        def offered() -> set[str]:
            wire.bench.ok("socket", name="c1")
            wire.bench.ok("set-nonblocking", value=True)
            wire.bench.ask("connect", port=9)
            (syn,) = wire.fence()
            wire.bench.ok("close")
            return {option.name for option in syn.options} | ({"ecn"} if syn.flags & ~(SYN) else set())

        assert offered() >= {"ts", "sack-permitted", "window-scale", "fast-open", "ecn"}
        settings = dict.fromkeys(("timestamps", "sack", "window-scaling", "ecn", "fast-open"), "off")
        for name, value in DESCRIPTION.resolve(settings, {}).agent.items():
            wire.set(name, value)
        assert offered() <= {"mss", "nop", "eol"}
        wire.set("tcp.fin_wait_2.timeout_ms", "300")
        wire.listen()
        iss = wire.established(2000, "c9")
        assert wire.bench.ok("getsockopt", on="c9", option="TCP_CONGESTION")["value"] == "reno"  # as its listener
        wire.bench.ok("close", on="c9")
        wire.fence()
        wire.send(2000, ACK, 1001, iss + 2)
        wire.fence()
        assert wire.state(2000) == "FIN-WAIT-2"
        wire.until(lambda: wire.state(2000) == "CLOSED")
        for name, value in (("tcp.no_such", 1), ("tcp.fin_wait_2.timeout_ms", -1), ("tcp.rto.min_ms", "soon")):
            assert "cannot be set" in wire.bench.ask("set", name=name, value=value)["fault"]
        wire.hello(4)
        assert offered() >= {"ts", "sack-permitted", "window-scale", "fast-open", "ecn"}
        close(wire)

    run()


def test_trial_after_trial_in_one_process() -> None:
    @isolated
    def run() -> None:
        wire = Wire(4)
        pid = wire.bench.agent._process.pid
        sizes, times = [], []
        for number in range(60):
            begun = time.monotonic()
            wire.listen()
            iss = wire.established(2000 + number)
            wire.bench.blocked(wire.bench.begin("recv", on="c1", overlap=True))
            wire.send(4000 + number, SYN, 1000)
            assert len(wire.fence()) == 1
            wire.hello(6 if number % 2 == 0 else 4)
            wire.version ^= 2  # what is reset is of the trial before
            came = wire.fence()
            wire.version ^= 2
            assert all(segment.flags & RST for segment in came)
            assert {segment.dport for segment in came} == {2000 + number, 4000 + number}
            assert (iss + 1) & MASK in {segment.seq for segment in came}
            assert wire.state(2000 + number) == wire.state(0) == "CLOSED"
            assert "fault" in wire.bench.ask("recv", on="c1")
            if number >= 20:
                status = Path(f"/proc/{pid}/status").read_text()
                sizes.append((int(re.search(r"VmRSS:\s*(\d+)", status)[1]), len(os.listdir(f"/proc/{pid}/fd"))))  # type: ignore[index]
                times.append(time.monotonic() - begun)
        assert sizes[-1][0] - sizes[0][0] < 1024, sizes
        assert sizes[-1][1] == sizes[0][1]
        print(f"{sizes[-1][0]} KiB, {sorted(times)[len(times) // 2] * 1e3:.0f} ms a trial")
        close(wire)

    run()


def test_the_end_of_input_resets() -> None:
    @isolated
    def run() -> None:
        wire = Wire(6)
        wire.listen()
        iss = wire.established(2000)
        wire.bench.blocked(wire.bench.begin("recv", on="c1", overlap=True))
        close(wire)
        (answer,) = wire.answer()
        assert answer.flags & RST
        assert answer.seq == (iss + 1) & MASK

    run()


def test_a_device_that_is_no_tap() -> None:
    @isolated
    def run() -> None:
        with Namespace.create().enter():
            bench = agentcheck.Bench(setup(4), 4)
        assert re.search("cannot be started on lo: .*EINVAL", bench.hello(interface="lo")["fault"])
        bench.agent.close()

    run()
