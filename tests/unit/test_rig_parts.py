"""What stands between a stack and a trial, as far as it needs no stack: channel, neighbours, ports, signals."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from typing import Any

import pytest

from conform.link.neighbour import ETH_P_ARP, ETH_P_IPV6, Neighbours
from conform.run.exits import signal_name
from conform.run.loop import Loop
from conform.run.rig import stand
from conform.stacks.channel import Channel


@pytest.fixture
def pipes() -> Any:
    """A channel's ends: (loop, what broke it, channel, the agent's input, the agent's output)."""
    loop, broken = Loop(), []
    heard, say = os.pipe()
    hear, said = os.pipe()
    channel = Channel(loop, heard, said, broken.append)
    yield loop, broken, channel, hear, say
    channel.close()
    for fd in (hear, say):
        os.close(fd)
    loop.close()


def test_a_channel_that_is_closed_writes_nowhere(pipes: Any) -> None:
    loop, _, channel, hear, _ = pipes
    for _ in range(40):  # more than a pipe holds
        channel.hello({"novelty": "x" * 4096}, lambda _: None)
    number = channel._write_fd
    channel.close()
    low, taken = os.pipe()
    fresh = fcntl.fcntl(low, fcntl.F_DUPFD, 200)
    os.close(low)
    os.dup2(taken, number)  # who has the number next
    if taken != number:
        os.close(taken)
    os.set_blocking(fresh, False)
    try:
        for _ in range(20):
            loop.turn(0.01)
        with pytest.raises(BlockingIOError):
            os.read(fresh, 1)
    finally:
        os.close(number)
        os.close(fresh)
    assert os.read(hear, 10).startswith(b'{"hello"')


@pytest.mark.parametrize(
    ("line", "why"),
    [(b"[" * 100_000, "no JSON object"), (b'{"id": [1], "returned": 0}', "the agent: "), (b"7", "no JSON object")],
)
def test_an_agents_odd_line_breaks_its_trial_and_nothing_else(pipes: Any, line: bytes, why: str) -> None:
    loop, broken, channel, _, say = pipes
    channel.request(1, {"do": "socket"}, lambda *_: None, lambda *_: None)
    rest = line + b"\n"
    os.set_blocking(say, False)
    while rest and not broken:
        with contextlib.suppress(BlockingIOError):
            rest = rest[os.write(say, rest[:4096]) :]
        loop.turn(0.0)
    loop.turn(0.0)
    assert len(broken) == 1
    assert why in broken[0]


def test_an_agent_that_never_stops_talking_leaves_time_for_others(pipes: Any) -> None:
    loop, _, _, _, say = pipes
    os.set_blocking(say, False)

    class Endless:
        """os.read of a pipe that never runs dry."""

        count = 0

        def __call__(self, fd: int, size: int) -> bytes:
            self.count += 1
            assert self.count < 10_000
            return b'{"id": 5, "returned": 0}\n'

    endless, read = Endless(), os.read
    os.write(say, b"\n")
    os.read = endless  # type: ignore[assignment]
    try:
        loop.turn(0.0)
    finally:
        os.read = read
    assert 0 < endless.count < 1000


PAIR = bytes([192, 0, 2, 9]), bytes([192, 0, 2, 7])
ARP = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, b"\2" * 6, PAIR[0], bytes(6), PAIR[1])


@pytest.mark.parametrize("place", range(8))
def test_arp_of_other_hardware_or_protocols_is_answered_with_nothing(place: int) -> None:
    neighbours = Neighbours({4: ("192.0.2.1", "192.0.2.2")}, b"\6" * 6)
    assert neighbours.hear(ETH_P_ARP, ARP, b"\2" * 6)
    odd = bytearray(ARP)
    odd[place] ^= 0xFF
    assert neighbours.hear(ETH_P_ARP, bytes(odd), b"\2" * 6) == []
    assert neighbours.heard <= {"192.0.2.9"}


def test_neighbour_discovery_that_cannot_be_read_is_answered_with_nothing() -> None:
    neighbours = Neighbours({6: ("2001:db8::1", "2001:db8::2")}, b"\6" * 6)
    head = bytes([0x60, 0, 0, 0, 0, 4, 58, 255]) + bytes(16) + bytes(15) + b"\1"
    for kind in (135, 136):
        for rest in (b"", b"\0", b"\0" * 3, b"\xff" * 30, b"\0" * 20 + b"\1\0"):
            assert neighbours.hear(ETH_P_IPV6, head + bytes([kind]) + rest, b"\2" * 6) == []
    assert not neighbours.known


def test_only_tcp_has_ports() -> None:
    tcp4 = bytes([0x45]) + bytes(8) + bytes([6]) + bytes(10) + struct.pack("!HH", 80, 40000)
    assert stand._ports(tcp4) == (80, 40000)
    assert stand._ports(tcp4[:9] + bytes([1]) + tcp4[10:]) == (0, 0)  # an echo reply's checksum is no port
    tcp6 = bytes([0x60]) + bytes(5) + bytes([6]) + bytes(33) + struct.pack("!HH", 80, 40000)
    assert stand._ports(tcp6) == (80, 40000)
    assert stand._ports(tcp6[:6] + bytes([58]) + tcp6[7:]) == (0, 0)
    assert [stand._ports(data) for data in (b"", b"\x45", tcp4[:23])] == [(0, 0)] * 3


def test_signals_without_a_name() -> None:
    assert (signal_name(15), signal_name(40)) == ("SIGTERM", "signal 40")
