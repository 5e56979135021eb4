"""A *stand*: a stack that runs, with its link and its agent.

It serves one trial (``reset: process``), or trial after trial, each begun by a hello and on a port of the stack that no
trial before it had (``reset: agent``).
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from conform.link import device, netns
from conform.link.neighbour import Neighbours
from conform.link.packet import PacketPort
from conform.run.rig.program import Output, Program
from conform.stacks import builds, linux
from conform.stacks.channel import Channel
from conform.stacks.description import AgentCommand, ExistingInterface, ReadyLine, Resolved, StackLostError

if TYPE_CHECKING:
    from conform.run.loop import Timer
    from conform.run.rig.started import StartedAdapter, StartedRig

#: How long a stand that served a trial may take to be ready for the next, in seconds; after that it is given up.
AGAIN = 3.0
_TCP = 6
#: How long it may take until a stack whose channel closed is found dead, and one whose agent ended, in seconds.
_LAST_BREATH, _HELPERS = 0.9, 0.3
_LONGEST_LINE = 4096
#: How often what is awaited at the start is asked for again, in seconds.
_ASK = 0.02
#: For how long a packet to a port of an earlier trial is that trial's, in seconds.
_STALE = 10.0


class Stand:
    """A stack that runs, with its link and its agent."""

    def __init__(self, adapter: StartedAdapter, resolved: Resolved) -> None:
        """Nothing is made yet. *resolved* are the settings of the (first) trial."""
        self._adapter = adapter
        self._loop = adapter.loop
        self._description = adapter.description
        self._resolved = resolved
        self._space: netns.Namespace | None = None
        self._link_space: netns.Namespace | None = None
        self._held: list[int] = []
        self._port: PacketPort | None = None
        self._stack: Program | None = None
        self._helper: Program | None = None  # the agent, where it is a program of its own
        self._channel: Channel | None = None
        self._agent: linux.ProcessAgent | None = None  # conform's own, in the stack's namespace
        self._directory: str | None = None
        self._output = Output()
        self._unfinished: dict[int, str] = {}  # the line that is not ended yet, of each stream
        self._waiting: set[str] = set()
        self._timer: Timer | None = None
        self._within = self._deadline = 0.0
        self._fence_numbers: set[int] = set()
        self._rig: StartedRig | None = None
        self._stale: dict[int, float] = {}
        self._ports: set[int] = set()
        self.capabilities: frozenset[str] | None = None  # what the agent's hello said
        self.served = 0
        self._last = ""  # the trial that it served last
        self.gone = False

    # Its start -------------------------------------------------------------------------------------------------------
    def start(self, rig: StartedRig) -> None:
        """Start the stack for *rig*'s trial; ``rig.up`` or ``rig.down`` follows. Raises OSError."""
        self._rig = rig
        description = self._description
        try:
            self._prepare()
            if description.start is not None:
                self._run()
            self._open_agent()
        except (OSError, ValueError) as error:  # a word with a NUL in it, say
            self.end()
            raise StackLostError(f"the stack could not be started: {error}") from error
        self._begin(description.start.within if description.start is not None else AGAIN)

    def _prepare(self) -> None:
        description, adapter = self._description, self._adapter
        if isinstance(description.link, ExistingInterface):
            self._link_space = self._space = netns.outside()
            if self._space is None:
                raise OSError("an interface of this machine can be used by root alone, not in a user namespace")
            self._listen(description.link.interface)
            return
        self._space = self._new_space()
        self._link_space = self._new_space() if description.link == "made" else self._space
        if any("{directory}" in word for words in description.commands() for word in words):
            self._directory = tempfile.mkdtemp(prefix="stand-", dir=adapter.directory())
        with self._space.enter():
            device.loopback_up()
        with self._link_space.enter():
            mtu = self._resolved.mtu
            match description.link:
                case "tap" | "tun":
                    device.make_tun(device.INTERFACE, ethernet=description.link == "tap", mtu=mtu)
                    self._listen(device.INTERFACE)
                case "veth":
                    device.make_veth(description.pairs, device.PREFIXES, mtu=mtu)
                    self._listen(device.TESTER)

    def _new_space(self) -> netns.Namespace:
        space = netns.Namespace.create()
        self._held.append(self._adapter.ward.hold(space.fd))
        return space

    def _listen(self, interface: str) -> None:
        """Open conform's end, on *interface* of the link's namespace."""
        assert self._link_space is not None
        with self._link_space.enter():
            neighbours = None
            if self._description.link != "tun":
                neighbours = Neighbours(self._description.pairs, device.hardware_address(interface))
            self._port = PacketPort(self._loop, interface, neighbours, self._arrived)

    def _values(self) -> dict[str, str]:
        values = {
            "interface": self._interface(),
            "mtu": str(self._resolved.mtu or 1500),
            "namespace": f"/proc/self/fd/{self._link_space.fd}" if self._link_space is not None else "",
            "directory": self._directory or "",
            "build": str(builds.directory(self._description)),
            "here": str(self._description.path.parent) if self._description.path is not None else "",
            "python": sys.executable,
        }
        for version, (stack, tester) in self._description.pairs.items():
            values[f"stack{version}"], values[f"tester{version}"] = stack, tester
            values[f"prefix{version}"] = str(device.PREFIXES[version])
            if version == 4:
                values["netmask4"] = str(ipaddress.ip_network(f"{stack}/{device.PREFIXES[4]}", strict=False).netmask)
        return values

    def _program(
        self, command: list[str], environment: dict[str, str], talks: bool, ended: Callable[[str], None]
    ) -> Program:
        assert self._space is not None
        values = self._values()
        words = self._description.filled(command, values)
        filled = dict(zip(environment, self._description.filled(environment.values(), values), strict=True))
        fds = (self._link_space.fd,) if self._link_space is not None else ()
        with self._space.enter():
            return Program(
                self._loop, words, filled, self._output, talks=talks, pass_fds=fds, printed=self._printed, ended=ended
            )

    def _run(self) -> None:
        start = self._description.start
        assert start is not None
        talks = self._description.agent == "stack"
        self._stack = self._program(start.command, start.environment, talks, self._stack_ended)
        if talks:
            self._channel = Channel(self._loop, self._stack.stdout, self._stack.stdin, self._channel_broke)

    def _open_agent(self) -> None:
        agent = self._description.agent
        if isinstance(agent, AgentCommand):
            self._helper = self._program(agent.command, agent.environment, True, self._helper_ended)
            self._channel = Channel(self._loop, self._helper.stdout, self._helper.stdin, self._channel_broke)

    # Ready -----------------------------------------------------------------------------------------------------------
    def _begin(self, within: float) -> None:
        """Say hello, and wait until the stack shows that it is there."""
        rig = self._rig
        assert rig is not None
        trial = rig.trial
        stack, tester = trial.stack.addresses[trial.ip]
        self._waiting = {"link"}
        if self._description.settle == "fence" or "echo" in self._description.ready:
            self._waiting.add("echo")
        if not self.served:
            self._waiting |= {f"line {e.line}" for e in self._description.ready if isinstance(e, ReadyLine)}
        if self._channel is not None:
            self._waiting.add("hello")
            said = {
                "ip": trial.ip,
                "stack": stack,
                "tester": tester,
                "interface": self._interface(),
                "mtu": self._resolved.mtu or 1500,
                "prefix": device.PREFIXES[trial.ip],
            }
            self._channel.hello(said, self._greeted)
        self._within = within
        self._deadline = time.monotonic() + within
        self._ask()

    def _interface(self) -> str:
        link = self._description.link
        return link.interface if isinstance(link, ExistingInterface) else device.INTERFACE

    def _ask(self) -> None:
        self._timer = None
        if self.gone or not self._waiting or self._rig is None:
            return
        if self._port is None and self._description.link == "made":
            assert self._link_space is not None
            try:
                with self._link_space.enter():
                    there = device.adopt(device.INTERFACE)
                if there:
                    self._listen(device.INTERFACE)
            except OSError as error:  # it is gone again
                self._lost(f"the stack's device: {error}")
                return
        if self._port is not None:
            if self._port.resolved:
                self._waiting.discard("link")
                if "echo" in self._waiting:
                    self._send_echo()
                elif not self._waiting:
                    self._ready()
                    return
            else:
                with contextlib.suppress(OSError):
                    self._port.resolve()
        if time.monotonic() > self._deadline:
            self._lost(f"the stack was not ready in {self._within:g} s: {'; '.join(self._awaited())}")
            return
        self._timer = self._loop.call_at(time.monotonic() + _ASK, self._ask)

    def _awaited(self) -> Iterator[str]:
        """What did not come, in words."""
        rig, port = self._rig, self._port
        assert rig is not None
        own = rig.trial.stack.addresses[rig.trial.ip][0]
        device_name = self._interface()
        if "link" in self._waiting:
            assert self._link_space is not None
            with self._link_space.enter():
                opened = self._description.link not in ("tap", "tun", "made") or device.is_open(device_name)
            others = sorted((port.heard if port is not None else set()) - {own})
            if port is None:
                yield f"it did not make the device {device_name}"
            elif not opened:
                yield f"it did not open the device {device_name}"
            else:
                asked = "ARP" if rig.trial.ip == 4 else "neighbour discovery"
                yield f"nobody answered {asked} for {own}" + (f", only {', '.join(others)} is there" if others else "")
        elif "echo" in self._waiting:
            yield f"{own} answered no ping (where it never does: settle by seconds, and no echo in ready)"
        if "hello" in self._waiting:
            yield "the agent did not reply to hello"
        for each in sorted(self._waiting):
            if each.startswith("line "):
                yield f"it printed no line with {each.removeprefix('line ')!r}"
            elif each.startswith("setting "):
                yield f"the agent did not reply to set {each.removeprefix('setting ')}"

    def _send_echo(self) -> None:
        assert self._rig is not None
        assert self._port is not None
        fence = self._adapter.fence(self._rig.trial)
        number = self._adapter.number()
        self._fence_numbers.add(number)
        with contextlib.suppress(OSError):
            self._port.send(fence.build(number))

    def _greeted(self, hello: dict[str, Any]) -> None:
        found = hello.get("capabilities")
        words = found if isinstance(found, list) else []
        self.capabilities = frozenset(word for word in words if isinstance(word, str))
        assert self._channel is not None
        settings = {} if self._rig is None else self._rig.resolved.agent
        for name, value in settings.items():
            request = {"do": "set", "name": name, "value": value, "timeout": AGAIN}
            self._channel.request(0, request, lambda _, reply, name=name: self._was_set(name, reply), lambda _: None)  # type: ignore[misc]
            self._waiting.add(f"setting {name}")
        self._came("hello")

    def _was_set(self, name: str, reply: dict[str, Any]) -> None:
        if reply.get("returned") == 0:
            self._came(f"setting {name}")
        else:
            self._lost(f"the agent did not set {name}: {reply.get('fault') or reply.get('error') or reply}")

    def _came(self, what: str) -> None:
        if what in self._waiting:
            self._waiting.discard(what)
            if not self._waiting:
                self._ready()

    def _ready(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._fence_numbers.clear()
        rig = self._rig
        if rig is not None:
            self.served += 1
            rig.up()

    def _printed(self, stream: int, data: bytes) -> None:
        wanted = [each.line for each in self._description.ready if isinstance(each, ReadyLine)]
        if not any(f"line {each}" in self._waiting for each in wanted):
            return
        text = (self._unfinished.get(stream, "") + data.decode("utf-8", "replace")).replace("\r\n", "\n")
        self._unfinished[stream] = text.rpartition("\n")[2][-_LONGEST_LINE:]
        for each in wanted:
            if re.search(each, text, re.MULTILINE):
                self._came(f"line {each}")

    # One trial -------------------------------------------------------------------------------------------------------
    def again(self, rig: StartedRig) -> None:
        """Serve another trial, *rig*'s."""
        self._rig = rig
        self._begin(AGAIN)

    def release(self) -> None:
        """The trial is over: forget what was under way, and reset what it left."""
        now = time.monotonic()
        self._stale = {port: end for port, end in self._stale.items() if end > now}
        self._stale |= dict.fromkeys(self._ports, now + _STALE)
        self._ports = set()
        rig, self._rig = self._rig, None
        self._last = rig.trial.id if rig is not None else self._last
        if rig is not None and self._channel is not None and not self.gone:
            trial = rig.trial
            stack, tester = trial.stack.addresses[trial.ip]
            said = {"ip": trial.ip, "stack": stack, "tester": tester, "interface": self._interface()}
            self._channel.hello(said, lambda _: None)

    def uses(self, ports: Iterable[int]) -> None:
        """The trial's tester has these ports."""
        self._ports |= set(ports)

    def send(self, data: bytes) -> None:
        """Inject *data*. Raises OSError."""
        assert self._port is not None
        self._ports.add(_ports(data)[0])
        self._port.send(data)

    def lost(self) -> int:
        """How many packets out of the stack conform had no room for, so far."""
        return self._port.lost() if self._port is not None else 0

    def _arrived(self, data: bytes, since: float) -> None:
        rig = self._rig
        if rig is None:
            return
        if self._fence_numbers:
            number = self._adapter.fence(rig.trial).match(data)
            if number is not None:
                if number in self._fence_numbers:
                    self._came("echo")
                return
        if not rig.is_up:
            return
        port = _ports(data)[1]
        if port not in self._ports and self._stale.get(port, 0.0) > time.monotonic():
            return  # of the trial before
        rig.ears.arrived(data, since)

    @property
    def sized(self) -> bool:
        """Whether its device was made for one trial's MTU."""
        return self._resolved.mtu is not None

    @property
    def channel(self) -> Channel | None:
        """Where requests go."""
        return self._channel

    def kernel_agent(self, rig: StartedRig) -> linux.ProcessAgent:
        """conform's own agent in the stack's namespace, for one trial. Raises OSError."""
        assert self._space is not None
        ears, trial = rig.ears, rig.trial
        pair = trial.stack.addresses[trial.ip]
        nursery = self._adapter.nursery()
        self._agent = linux.ProcessAgent(
            self._loop, nursery, self._space, trial.ip, pair, ears.replied, ears.blocked, ears.broke
        )
        return self._agent

    # Its end ---------------------------------------------------------------------------------------------------------
    def _stack_ended(self, how: str) -> None:
        if self._channel is not None and self._description.agent == "stack":
            self._channel.drain()
        self._lost(f"the stack died: {how}", died=True)

    def _helper_ended(self, how: str) -> None:
        self._unless_it_died(f"the agent died: {how}", _HELPERS)

    def _unless_it_died(self, reason: str, seconds: float) -> None:
        """The agent is lost for *reason*, unless the stack is found dead in so many *seconds*: then that was why."""
        if self._stack is None:
            self._lost(reason)
        else:
            self._loop.call_at(time.monotonic() + seconds, lambda: self._lost(reason))

    def _channel_broke(self, reason: str) -> None:
        # A stack that dies closes its channel first, and its agent's is closed by it: how it died is known in a moment.
        self._unless_it_died(reason, _LAST_BREATH if self._description.agent == "stack" else _HELPERS)

    def _lost(self, reason: str, died: bool = False) -> None:
        if self.gone:
            return
        said = str(self._output)
        if said:
            reason += "\nIt printed last:\n" + "\n".join(f"  {line}" for line in said.splitlines())
        rig = self._rig
        self.end()
        if died and self._last and (rig is None or not rig.is_up):
            self._adapter.bury(self._last, reason)
        if rig is not None:
            rig.down(reason, died)

    def end(self) -> None:
        """End the stack and let go of everything. Raises nothing."""
        if self.gone:
            return
        self.gone = True
        self._adapter.forget(self)
        if self._timer is not None:
            self._timer.cancel()
        steps: list[Callable[[], object]] = []
        if self._agent is not None:
            steps.append(self._agent.close)
        if self._channel is not None:
            steps.append(self._channel.close)
        steps += [program.kill for program in (self._helper, self._stack) if program is not None]
        if self._port is not None:
            steps.append(self._port.close)
        if not isinstance(self._description.link, ExistingInterface):
            steps += [space.close for space in {self._space, self._link_space} if space is not None]
        steps += [lambda number=number: self._adapter.ward.release(number) for number in self._held]  # type: ignore[misc]
        if self._directory is not None:
            directory = self._directory
            steps.append(lambda: shutil.rmtree(directory, ignore_errors=True))
        for step in steps:
            with contextlib.suppress(OSError):
                step()

    @property
    def pids(self) -> set[int]:
        """The processes that it waits for."""
        return {program.pid for program in (self._stack, self._helper) if program is not None}


def _ports(data: bytes) -> tuple[int, int]:
    """The TCP ports of an IP packet, source and destination; (0, 0) where it is none, or has more than one header."""
    version = data[0] >> 4 if data[:1] else 0
    start = (data[0] & 15) * 4 if version == 4 else 40
    if len(data) < start + 4 or data[9 if version == 4 else 6] != _TCP:
        return 0, 0
    return int.from_bytes(data[start : start + 2], "big"), int.from_bytes(data[start + 2 : start + 4], "big")
