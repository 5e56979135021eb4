"""PyTCP's agent as far as it goes without PyTCP: pings as a fence, the protocol's lines, sockets made up by a test."""

from __future__ import annotations

import asyncio
import errno
import heapq
import json
import os
import struct
from types import SimpleNamespace
from typing import Any

import pytest

from conform.link import codec
from conform.stacks.agent.calls import OPTIONS, RequestError
from conform.stacks.description import load
from conform.stacks.pytcp import agent as pytcp
from conform.tcp.segment import SYN, IPFields, Segment
from conform.tcp.states import STATES

ADDRESSES = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}
ETHERNET = {4: bytes(12) + b"\x08\x00", 6: bytes(12) + b"\x86\xdd"}


# Pings ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("version", [4, 6])
def test_echo_requests_are_told_from_all_else(version: int) -> None:
    stack, tester = ADDRESSES[version]
    ping = ETHERNET[version] + codec.Fence(version, stack, tester).build(1)
    segment = ETHERNET[version] + codec.build(Segment(IPFields(version, tester, stack), 1, 2, 3, 4, SYN))
    assert pytcp.is_echo_request(ping)
    assert not pytcp.is_echo_request(segment)
    at = 34 if version == 4 else 54
    for kind in set(range(256)) - {8 if version == 4 else 128}:
        assert not pytcp.is_echo_request(ping[:at] + bytes([kind]) + ping[at + 1 :])
    for size in range(at + 1):
        assert not pytcp.is_echo_request(ping[:size])
    if version == 4:
        assert pytcp.is_echo_request(ping[:14] + b"\x46" + ping[15:34] + bytes(4) + ping[34:])
    assert not pytcp.is_echo_request(bytes(12) + b"\x08\x06" + ping[14:])


class Clock:
    """A loop's clock, and what is to be done when, in the order of times as asyncio has it."""

    def __init__(self) -> None:
        self.time = 10.0
        self.queue: list[tuple[float, int, Any, tuple[Any, ...]]] = []
        self.count = 0

    def at(self, when: float, callback: Any, *args: Any) -> None:
        self.count += 1
        heapq.heappush(self.queue, (when, self.count, callback, args))

    def run(self, late: float = 0.0) -> None:
        """All of it, each time *late* by so much."""
        while self.queue:
            self.time = max(self.time, self.queue[0][0] + late)
            while self.queue and self.queue[0][0] <= self.time:
                _, _, callback, args = heapq.heappop(self.queue)
                callback(*args)


class Ticking:
    """A stack that does its work in ticks of 1 ms: so many of them with nothing to show, then one answer."""

    def __init__(self, clock: Clock, ticks: int, ever: bool = False) -> None:
        self.clock, self.left, self.ever = clock, ticks, ever
        self.next: float | None = None
        self.did: list[str] = []
        self.arm()

    def arm(self) -> None:
        self.next = self.clock.time + 0.001
        self.clock.at(self.next, self.tick)

    def tick(self) -> None:
        self.next = None
        self.left -= 1
        if self.left == 0:
            self.did.append("answer")
        if self.left > 0 or (self.ever and self.left > -50):
            self.arm()

    def due(self, before: float) -> float | None:
        return self.next if self.next is not None and self.next < before else None


def frame(version: int, ping: bool) -> SimpleNamespace:
    stack, tester = ADDRESSES[version]
    if ping:
        return SimpleNamespace(frame=ETHERNET[version] + codec.Fence(version, stack, tester).build(1))
    return SimpleNamespace(frame=ETHERNET[version] + codec.build(Segment(IPFields(version, tester, stack), 1, 2)))


@pytest.mark.parametrize("late", [0.0, 0.0004, 0.05])
@pytest.mark.parametrize("ticks", [1, 2, 3])
@pytest.mark.parametrize("ever", [False, True])
def test_a_ping_comes_behind_what_the_stack_does_in_ticks(late: float, ticks: int, ever: bool) -> None:
    clock = Clock()
    stack = Ticking(clock, ticks, ever)
    fence = pytcp.Fence(lambda _: stack.did.append("ping"), stack.due, lambda: clock.time, clock.at)
    fence.deliver(frame(4, ping=True))
    assert stack.did == []
    clock.run(late)
    assert stack.did == ["answer", "ping"]


def test_a_ping_does_not_wait_for_what_is_far_off() -> None:
    clock = Clock()
    came: list[str] = []
    for due in (None, clock.time + 0.1):
        fence = pytcp.Fence(
            lambda _: came.append("ping"),
            lambda before, due=due: due if due is not None and due < before else None,  # type: ignore[misc]
            lambda: clock.time,
            clock.at,
        )
        fence.deliver(frame(6, ping=True))
    assert came == ["ping", "ping"]
    assert not clock.queue


def test_other_frames_never_wait() -> None:
    clock = Clock()
    stack = Ticking(clock, 2)
    fence = pytcp.Fence(lambda _: stack.did.append("frame"), stack.due, lambda: clock.time, clock.at)
    fence.deliver(frame(4, ping=False))
    assert stack.did == ["frame"]


# Words ---------------------------------------------------------------------------------------------------------------
def test_states_are_spelt_as_in_the_rfc() -> None:
    assert pytcp.rfc_state("SYN_RCVD") == "SYN-RECEIVED"
    others = set(STATES) - {"SYN-RECEIVED"}
    assert {pytcp.rfc_state(state.replace("-", "_")) for state in others} == others


def test_failures() -> None:
    assert pytcp.failure(BrokenPipeError(errno.EPIPE, "gone")) == {"returned": -1, "error": "EPIPE"}
    assert pytcp.failure(BlockingIOError(errno.EWOULDBLOCK, "")) == {"returned": -1, "error": "EAGAIN"}
    assert pytcp.failure(TimeoutError("in time")) == {"returned": -1, "error": "ETIMEDOUT"}
    reply = pytcp.failure(AssertionError("no session"))
    assert reply == {"returned": -1, "error": "EIO", "why": "AssertionError: no session"}


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    options = pytcp.parse(["--stack4=192.0.2.1", "--stack6=", "--prefix4=30", "--sysctl=tcp.rto.min_ms=200"])
    assert (options.stack4, options.stack6, options.prefix4, options.prefix6) == ("192.0.2.1", "", 30, 64)
    assert options.sysctl == {"tcp.rto.min_ms": 200}
    with pytest.raises(SystemExit):
        pytcp.parse(["--sysctl=tcp.rto.min_ms"])
    assert "KEY=NUMBER" in capsys.readouterr().err


def test_the_description_claims_what_the_agent_says() -> None:
    description = load("pytcp")
    assert set(pytcp.CAPABILITIES) <= description.capabilities
    assert description.settle == "fence"
    assert description.resolve({}, {}).agent


# The protocol --------------------------------------------------------------------------------------------------------
class Socket:
    """Some of PyTCP's socket, on no network: what is put into its queues is what it finds there."""

    def __init__(self) -> None:
        self.arrived = asyncio.Event()
        self.data = b""
        self.blocking = True
        self.options: dict[tuple[Any, int], Any] = {}
        self.sent: list[bytes] = []
        self.closed = self.aborted = False
        self.tcp_session: Any = SimpleNamespace(_event__rx_buffer=self.arrived, _connection_error=None)
        self.state = SimpleNamespace(name="ESTABLISHED")

    def getblocking(self) -> bool:
        return self.blocking

    def setblocking(self, flag: bool) -> None:
        self.blocking = flag

    def setsockopt(self, level: Any, number: int, value: Any) -> None:
        self.options[level, number] = value

    def getsockopt(self, level: Any, number: int) -> Any:
        try:
            return self.options[level, number]
        except KeyError:
            raise OSError(errno.ENOPROTOOPT, "no such option") from None

    def getsockname(self) -> tuple[str, int]:
        return "192.0.2.1", 80

    async def send(self, data: bytes) -> int:
        assert data != b"assert"
        self.sent.append(data)
        return len(data)

    async def recv(self, size: int, timeout: float | None = None) -> bytes:
        if timeout == 0 and not self.arrived.is_set():
            raise TimeoutError("PyTCP's has no number")
        await self.arrived.wait()
        self.arrived.clear()
        data, self.data = self.data[:size], self.data[size:]
        return data

    def close(self) -> None:
        self.closed = True


class Stack:
    """In place of PyTCP."""

    def __init__(self) -> None:
        self.sockets: list[Socket] = []
        self.resets = 0
        self.options: dict[str, Any] = {}
        levels = {name: name for name in ("IPPROTO_IP", "SOL_SOCKET", "IPPROTO_TCP", "IPPROTO_IPV6")}
        self.socket = SimpleNamespace(**levels)
        self.assigned: list[tuple[str, int]] = []
        self.mtu = 1500

    def new_socket(self, _: int) -> Socket:
        self.sockets.append(Socket())
        return self.sockets[-1]

    def assign(self, address: str, prefix: int) -> None:
        self.assigned.append((address, prefix))

    def set_mtu(self, mtu: int) -> None:
        self.mtu = mtu

    def set(self, name: str, value: Any) -> None:
        if name != "known" and not name.startswith("socket."):
            raise RequestError(f"{name} cannot be set to {value!r}: unknown")

    def state(self, ip: int, port: int, peer: int) -> str:
        return "LISTEN" if (ip, port, peer) == (4, 80, 0) else "CLOSED"

    async def reset(self) -> None:
        self.resets += 1


class Talk:
    """An agent that has started, in a trial."""

    def __init__(self) -> None:
        self.said: list[dict[str, Any]] = []
        self.agent = pytcp.Agent(lambda line: self.said.append(json.loads(line)), pytcp.parse([]))
        self.stack = Stack()
        self.agent._stack = self.stack  # type: ignore[assignment]
        self.count = 0

    async def hello(self, **other: Any) -> None:
        await self.say({"hello": 1, "ip": 4, "stack": "192.0.2.1", "tester": "192.0.2.2", **other})
        assert self.said.pop()["agent"] == "conform-pytcp"

    async def say(self, message: Any) -> None:
        await self.agent.hear(message if isinstance(message, bytes) else json.dumps(message).encode())

    async def begin(self, do: str, **arguments: Any) -> int:
        self.count += 1
        await self.say({"id": self.count, "do": do, **arguments})
        return self.count

    async def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        id = await self.begin(do, **arguments)
        reply = self.said.pop()
        assert reply.pop("id") == id
        assert self.said == []
        return reply


def talk(conversation: Any) -> None:
    async def run() -> None:
        made = Talk()
        await made.hello()
        await conversation(made)

    asyncio.run(run())


def test_calls_and_names() -> None:
    async def conversation(made: Talk) -> None:
        assert await made.ask("socket", **{"as": "c1"}) == {"returned": 0}
        assert "belongs to" in (await made.ask("socket", **{"as": "c1"}))["fault"]
        assert await made.ask("send", payload="6869") == {"returned": 2}
        assert made.stack.sockets[0].sent == [b"hi"]
        assert await made.ask("getsockname") == {"returned": 0, "address": {"address": "192.0.2.1", "port": 80}}
        assert await made.ask("send", payload="00", flags=["MSG_OOB"]) == {"returned": -1, "error": "EOPNOTSUPP"}
        assert await made.ask("send", payload="00", flags=["MSG_NOSIGNAL"]) == {"returned": 1}
        assert "unknown flag" in (await made.ask("send", payload="00", flags=["MSG_FUN"]))["fault"]
        assert "malformed" in (await made.ask("send"))["fault"]
        assert (await made.ask("send", payload=b"assert".hex()))["error"] == "EIO"
        assert await made.ask("close") == {"returned": 0}
        assert made.stack.sockets[0].closed
        assert await made.ask("send", payload="00") == {"returned": -1, "error": "EBADF"}
        assert "no descriptor" in (await made.ask("send", on="c2", payload="00"))["fault"]
        assert "unknown call" in (await made.ask("fork"))["fault"]
        assert await made.ask("state", port=80, peer=0) == {"returned": 0, "value": "LISTEN"}
        assert await made.ask("state", port=80, peer=9) == {"returned": 0, "value": "CLOSED"}
        assert await made.ask("set", name="known", value=1) == {"returned": 0}
        assert "cannot be set" in (await made.ask("set", name="unknown", value=1))["fault"]

    talk(conversation)


def test_blocked_is_said_once_and_before_the_reply() -> None:
    async def conversation(made: Talk) -> None:
        await made.ask("socket", **{"as": "c1"})
        (sock,) = made.stack.sockets
        sleeping = await made.begin("recv", overlap=True)
        assert made.said == [{"id": sleeping, "blocked": True}]
        made.said.clear()
        assert await made.ask("send", payload="00") == {"returned": 1}  # others go on
        sock.data = b"late"
        sock.arrived.set()
        await asyncio.sleep(0.01)
        assert made.said == [{"id": sleeping, "returned": 4, "data": b"late".hex()}]
        made.said.clear()
        sock.data = b"there"
        sock.arrived.set()
        assert (await made.ask("recv", overlap=True))["data"] == b"there".hex()
        assert await made.ask("recv", flags=["MSG_DONTWAIT"], overlap=True) == {"returned": -1, "error": "EAGAIN"}
        silent = await made.begin("recv")  # without overlap nothing is said
        assert made.said == []
        sock.arrived.set()
        await asyncio.sleep(0.01)
        assert made.said.pop() == {"id": silent, "returned": 0, "data": ""}

    talk(conversation)


def test_all_that_is_asked_for_is_read_in_as_many_pieces_as_it_takes() -> None:
    async def conversation(made: Talk) -> None:
        await made.ask("socket", **{"as": "c1"})
        (sock,) = made.stack.sockets
        waiting = await made.begin("recv", size=5, flags=["MSG_WAITALL"])
        for piece in (b"ab", b"cd", b"ef"):
            assert made.said == []
            sock.data = piece
            sock.arrived.set()
            await asyncio.sleep(0.01)
        assert made.said.pop() == {"id": waiting, "returned": 5, "data": b"abcde".hex()}
        waiting = await made.begin("recv", size=5, flags=["MSG_WAITALL"])
        for piece in (b"g", b""):  # the end of the stream
            sock.data = piece
            sock.arrived.set()
            await asyncio.sleep(0.01)
        assert made.said.pop() == {"id": waiting, "returned": 1, "data": b"g".hex()}
        assert await made.ask("send", payload="00", flags=["MSG_WAITALL"]) == {"returned": -1, "error": "EOPNOTSUPP"}

    talk(conversation)


def test_a_hello_ends_the_trial_before() -> None:
    async def conversation(made: Talk) -> None:
        await made.ask("socket", **{"as": "c1"})
        await made.begin("recv", overlap=True)
        made.said.clear()
        await made.hello(mtu=600, prefix=30)
        assert made.stack.resets == 2
        assert (made.stack.mtu, made.stack.assigned[-1]) == (600, ("192.0.2.1", 30))
        made.stack.sockets[0].arrived.set()
        await asyncio.sleep(0.01)
        assert made.said == []  # nobody waits for that call any more
        assert "no descriptor" in (await made.ask("recv"))["fault"]

    talk(conversation)


def test_lines_that_are_no_requests() -> None:
    async def run() -> None:
        said: list[dict[str, Any]] = []
        agent = pytcp.Agent(lambda line: said.append(json.loads(line)), pytcp.parse([]))
        for line, words in (
            (b"no json", "malformed"),
            (b"[]", "malformed"),
            (b'{"id": 1, "do": "socket"}', "hello comes first"),
            (b'{"hello": 2}', "version 1"),
            (b'{"hello": 1}', "malformed"),
            (b"[" * 100_000, "malformed"),
            (b'{"hello": 1, "ip": 5, "stack": "192.0.2.1", "tester": "192.0.2.2"}', "no IP version 5"),
            (b'{"hello": 1, "ip": 4, "stack": "192.0.2.1", "tester": "192.0.2.2"}', "no interface"),
        ):
            await agent.hear(line)
            assert words in said.pop()["fault"]
        assert said == []

    asyncio.run(run())


def test_values_of_the_wrong_shape_end_nothing() -> None:
    async def conversation(made: Talk) -> None:
        assert "a name is text" in (await made.ask("socket", **{"as": 5}))["fault"]
        await made.ask("socket", **{"as": "c1"})
        made.stack.sockets[0].arrived.set()
        assert await made.ask("recv", events=5) == {"returned": 0, "data": ""}
        waiting = await made.begin("recv", events=5, overlap=True)
        assert made.said.pop() == {"id": waiting, "blocked": True}
        for do in ("bind", "connect"):
            for address in ("nonsense", "2001:db8::1"):
                assert "no address" in (await made.ask(do, on="c1", address=address, port=80))["fault"]
        assert "malformed" in (await made.ask("state", port=float("inf"), peer=0))["fault"]
        for value in ("x", None, {"onoff": True}):
            reply = await made.ask("set", name="socket.SO_RCVBUF", value=value)
            assert "SO_RCVBUF takes a number" in reply["fault"]
        reply = await made.ask("set", name="socket.TCP_CONGESTION", value="vegas")
        assert "no such congestion control" in reply["fault"]
        assert "unknown option" in (await made.ask("set", name="socket.SO_FUN", value=1))["fault"]
        made.stack.options["SO_RCVBUF"] = "x"  # whatever a new socket refuses
        assert "takes a number" in (await made.ask("socket", **{"as": "c2"}))["fault"]
        made.stack.options.clear()
        assert await made.ask("socket", **{"as": "c2"}) == {"returned": 0}

    talk(conversation)


@pytest.mark.parametrize("value", ["0", 0, "-1", "x", None])
def test_a_limit_of_challenge_acks_is_a_number(value: Any) -> None:
    with pytest.raises(RequestError, match="at least 1"):
        pytcp.Stack.set(SimpleNamespace(), "challenge-limit", value)  # type: ignore[arg-type]


def test_options_are_given_as_pytcp_takes_them() -> None:
    async def conversation(made: Talk) -> None:
        await made.ask("socket", **{"as": "c1"})
        (sock,) = made.stack.sockets
        for option, value, taken, back in (
            ("SO_LINGER", {"onoff": True, "linger": 5}, struct.pack("@ii", 1, 5), None),
            ("SO_RCVTIMEO", {"sec": 2, "usec": 0}, 2, None),
            ("SO_RCVTIMEO", {"sec": 1, "usec": 500000}, 1.5, {"sec": 1, "usec": 0}),
            ("TCP_KEEPIDLE", 7200, 7_200_000, None),
            ("TCP_NODELAY", True, 1, None),
            ("IP_TTL", 9, 9, None),
        ):
            assert await made.ask("setsockopt", option=option, value=value) == {"returned": 0}
            (got,) = [each for (_, number), each in sock.options.items() if number == OPTIONS[option][1]]
            assert got == taken
            assert (await made.ask("getsockopt", option=option))["value"] == (value if back is None else back)
            sock.options.clear()
        assert (await made.ask("getsockopt", option="SO_ERROR"))["error"] == "ENOPROTOOPT"
        assert (await made.ask("setsockopt", option="TCP_CONGESTION", value="vegas"))["error"] == "ENOENT"
        assert "unknown option" in (await made.ask("setsockopt", option="SO_FUN", value=1))["fault"]
        assert "takes a number" in (await made.ask("setsockopt", option="TCP_NODELAY", value="on"))["fault"]

    talk(conversation)


def test_lines_come_in_pieces_and_end() -> None:
    async def run() -> None:
        reading, writing = os.pipe()
        reader = pytcp.Reader(reading)
        os.write(writing, b'{"a": 1}\n{"b"')
        assert await reader.line() == b'{"a": 1}'
        os.write(writing, b": 2}\n\n")
        assert await reader.line() == b'{"b": 2}'
        os.close(writing)
        assert await reader.line() is None
        os.close(reading)

    asyncio.run(run())
