"""Stacks that are not this machine's kernel: started by a command, or there already behind an interface.

A *stand* is a stack that runs, with its link and its agent. It serves one trial (``reset: process``), or trial after
trial, each begun by a hello and on a port of the stack that no trial before it had (``reset: agent``).
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from conform.engine.trial import Trial
from conform.link import codec, device, netns
from conform.link.neighbour import Neighbours
from conform.link.packet import PacketPort
from conform.run.rig import Ears
from conform.stacks import builds, linux
from conform.stacks.channel import Channel
from conform.stacks.description import (
    AgentCommand,
    ExistingInterface,
    ReadyLine,
    Resolved,
    StackDescription,
    StackLostError,
)

if TYPE_CHECKING:
    from conform.run.loop import Loop, Timer
    from conform.run.warden import Ward

#: How much of what a stack printed is kept, in octets, and how many lines of it are shown.
_KEPT, _SHOWN, _WIDTH = 64 << 10, 12, 240
#: How often what is awaited at the start is asked for again, in seconds.
_ASK = 0.02
#: How long a stand that served a trial may take to be ready for the next; one that takes longer is given up.
_AGAIN = 3.0
#: After so many trials in a row for which the stack did not come up it is not started any more.
_GIVE_UP = 3
#: Ports of the stack that trials get in turn, where one stack serves many.
_PORTS = range(1100, 30000)
#: For how long a packet to a port of an earlier trial is that trial's, in seconds.
_STALE = 10.0


class Output:
    """What a program printed last."""

    def __init__(self) -> None:
        self._kept = b""

    def add(self, data: bytes) -> None:
        """More of it."""
        self._kept = (self._kept + data)[-_KEPT:]

    def __str__(self) -> str:
        lines = [line.rstrip() for line in self._kept.decode("utf-8", "replace").splitlines() if line.strip()]
        # Go says first what is wrong and then, at length, where everybody was.
        panic = next((number for number, line in enumerate(lines) if line.startswith(("panic:", "fatal error:"))), None)
        shown = lines[-_SHOWN:] if panic is None else lines[panic : panic + _SHOWN]
        return "\n".join(line if len(line) <= _WIDTH else line[:_WIDTH] + " …" for line in shown)


class Program:
    """A process that runs beside trials, in a session of its own, and what it prints."""

    def __init__(
        self,
        loop: Loop,
        command: list[str],
        environment: dict[str, str],
        output: Output,
        *,
        talks: bool,
        pass_fds: tuple[int, ...] = (),
        printed: Callable[[], None],
        ended: Callable[[str], None],
    ) -> None:
        """Start it in the calling thread's network namespace. Raises OSError: it is not there, or cannot be run.

        With *talks* its standard input and output are pipes, in :attr:`stdin` and :attr:`stdout`. *printed* is called
        when it printed something, *ended* once, with how it ended.
        """
        self._loop = loop
        self._output = output
        self._printed = printed
        self._ended = ended
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **environment},
            pass_fds=pass_fds,
            start_new_session=True,
        )
        process = self._process
        assert process.stdout is not None
        assert process.stderr is not None
        self.stdin = os.dup(process.stdin.fileno()) if process.stdin is not None else -1
        self.stdout = os.dup(process.stdout.fileno()) if talks else -1
        self._streams = [os.dup(process.stderr.fileno())]
        if not talks:
            self._streams.append(os.dup(process.stdout.fileno()))
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        for fd in self._streams:
            os.set_blocking(fd, False)
            loop.add_reader(fd, lambda fd=fd: self._read(fd))  # type: ignore[misc]
        self._pidfd = os.pidfd_open(process.pid)
        loop.add_reader(self._pidfd, self._over)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def _read(self, fd: int) -> None:
        while True:
            try:
                data = os.read(fd, 1 << 16)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._loop.remove_reader(fd)
                self._streams.remove(fd)
                os.close(fd)
                return
            self._output.add(data)
            self._printed()

    def _over(self) -> None:
        if self._pidfd < 0:
            return
        status = self._process.wait()
        for fd in list(self._streams):
            self._read(fd)
        self._close()
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        self._ended(how)

    def kill(self) -> None:
        """End it and what it started, now. *ended* is not called any more."""
        if self._pidfd < 0:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._close()
        self._process.wait()

    def _close(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # what it left of its own session
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        for fd in self._streams:
            self._loop.remove_reader(fd)
            os.close(fd)
        self._streams.clear()


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
        self._waiting: set[str] = set()
        self._timer: Timer | None = None
        self._within = self._deadline = 0.0
        self._fence_numbers: set[int] = set()
        self._rig: StartedRig | None = None
        self._stale: dict[int, float] = {}
        self._ports: set[int] = set()
        self.capabilities: frozenset[str] | None = None  # what the agent's hello said
        self.served = 0
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
        except OSError as error:
            self.end()
            raise StackLostError(f"the stack could not be started: {error}") from error
        self._begin(description.start.within if description.start is not None else _AGAIN)

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
            "interface": device.INTERFACE,
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
            with self._link_space.enter():
                there = device.adopt(device.INTERFACE)
            if there:
                self._listen(device.INTERFACE)
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
        self.capabilities = frozenset(found) if isinstance(found, list) else frozenset()
        assert self._channel is not None
        settings = {} if self._rig is None else self._rig.resolved.agent
        for name, value in settings.items():
            request = {"do": "set", "name": name, "value": value, "timeout": _AGAIN}
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

    def _printed(self) -> None:
        for each in self._description.ready:
            if isinstance(each, ReadyLine) and re.search(each.line, str(self._output), re.MULTILINE):
                self._came(f"line {each.line}")

    # One trial -------------------------------------------------------------------------------------------------------
    def again(self, rig: StartedRig) -> None:
        """Serve another trial, *rig*'s."""
        self._rig = rig
        self._begin(_AGAIN)

    def release(self) -> None:
        """The trial is over: forget what was under way, and reset what it left."""
        now = time.monotonic()
        self._stale = {port: end for port, end in self._stale.items() if end > now}
        self._stale |= dict.fromkeys(self._ports, now + _STALE)
        self._ports = set()
        rig, self._rig = self._rig, None
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
        self._lost(f"the agent died: {how}")

    def _channel_broke(self, reason: str) -> None:
        # A stack that dies closes its channel first: how it died is known in a moment.
        died = self._description.agent == "stack"
        if died:
            self._loop.call_at(time.monotonic() + 0.5, lambda: self._lost(reason, died=False))
        else:
            self._lost(reason)

    def _lost(self, reason: str, died: bool = False) -> None:
        if self.gone:
            return
        said = str(self._output)
        if said:
            reason += "\nIt printed last:\n" + "\n".join(f"  {line}" for line in said.splitlines())
        rig = self._rig
        self.end()
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
    """The TCP ports of an IP packet, source and destination; (0, 0) where it is none."""
    start = (data[0] & 15) * 4 if data[:1] and data[0] >> 4 == 4 else 40
    if len(data) < start + 4:
        return 0, 0
    return int.from_bytes(data[start : start + 2], "big"), int.from_bytes(data[start + 2 : start + 4], "big")


class StartedRig:
    """One trial on a stand."""

    def __init__(self, adapter: StartedAdapter, trial: Trial, ears: Ears) -> None:
        self.trial = adapter.own_port(trial)
        self.ears = ears
        self.resolved = adapter.description.resolve(trial.case.settings, trial.case.sysctl)
        self.is_up = False
        self._adapter = adapter
        self._stand: Stand | None = None
        self._agent: linux.ProcessAgent | None = None
        self._tries = 0
        self._over = False

    def open(self) -> None:
        """Have a stand. Raises OSError when none can be started."""
        adapter = self._adapter
        if adapter.failures >= _GIVE_UP:
            raise StackLostError(f"the stack did not come up for {adapter.failures} trials in a row")
        self._stand = adapter.idle(self.resolved)
        if self._stand is not None:
            self._stand.again(self)
        else:
            self._start()

    def _start(self) -> None:
        self._tries += 1
        self._stand = self._adapter.new(self.resolved)
        self._stand.start(self)

    def up(self) -> None:
        """The stand is ready."""
        assert self._stand is not None
        if self._adapter.description.agent == "kernel":
            try:
                self._agent = self._stand.kernel_agent(self)
            except OSError as error:
                self.ears.broke(str(error))
                return
        self._adapter.failures = 0
        self.is_up = True
        self.ears.ready()

    def down(self, reason: str, died: bool) -> None:
        """The stand is gone."""
        if self._over:
            return
        if self.is_up:
            (self.ears.died if died else self.ears.broke)(reason)
        elif self._tries < self._adapter.tries:
            try:
                self._start()  # not this trial's fault: the stand was broken, or its start is unsure
            except OSError as error:
                self.ears.broke(str(error))
        else:
            self._adapter.failures += 1
            self.ears.broke(reason)

    @property
    def capabilities(self) -> frozenset[str] | None:
        """What the agent said that it can do; ``None`` without an agent that says so."""
        return self._stand.capabilities if self._stand is not None else None

    def uses(self, ports: Iterable[int]) -> None:
        """See ``Rig``."""
        if self._stand is not None:
            self._stand.uses(ports)

    def send(self, data: bytes) -> None:
        """Inject *data*. Raises OSError."""
        assert self._stand is not None
        if self._stand.gone:
            return
        try:
            self._stand.send(data)
        except OSError as error:
            # Nobody has the device open any more: the stack is dying, which its process will say in a moment, or it
            # does not listen, which is as good as a packet lost.
            if error.errno not in (errno.ENOBUFS, errno.ENETDOWN, errno.ENXIO):
                raise

    def request(self, id: int, request: dict[str, Any]) -> None:
        """Have a call made."""
        if self._agent is not None:
            self._agent.request(id, request)
            return
        channel = self._stand.channel if self._stand is not None else None
        if channel is None:
            self.ears.broke("the stack has no agent, and a call was to be made")
            return
        channel.request(id, request, self.ears.replied, self.ears.blocked)

    def read_state(self, id: int, stack_port: int, tester_port: int) -> None:
        """Ask the agent, where it can tell."""
        channel = self._stand.channel if self._stand is not None else None
        if channel is None or "states" not in self.trial.stack.capabilities:
            self.ears.state_read(id, None, {})
            return
        request = {"do": "state", "port": stack_port, "peer": tester_port, "timeout": _AGAIN}
        channel.request(id, request, self._state, lambda _: None)

    def _state(self, id: int, reply: dict[str, Any]) -> None:
        value = reply.get("value")
        self.ears.state_read(id, value if isinstance(value, str) else None, {})

    def lost(self) -> int:
        """The stand's port's."""
        return self._stand.lost() if self._stand is not None else 0

    def cleanups(self) -> list[Callable[[], object]]:
        """Give the stand back, or end it."""
        self._over = True
        steps: list[Callable[[], object]] = []
        if self._agent is not None:
            steps.append(self._agent.close)
        if self._stand is not None:
            stand = self._stand
            steps.append(lambda: self._adapter.done(stand))
        return steps


class StartedAdapter:
    """The stands of a worker."""

    #: How often a stand is started anew for one trial before the trial is an error.
    tries = 3

    def __init__(self, loop: Loop, ward: Ward, description: StackDescription, limit: int, scratch: str) -> None:
        """At most *limit* stands at once. Temporary directories of stands are made under *scratch*."""
        self.loop = loop
        self.ward = ward
        self.description = description
        self.failures = 0  # trials in a row for which no stand came up
        self._limit = limit
        self._scratch = scratch
        self._stands: list[Stand] = []
        self._idle: deque[Stand] = deque()
        self._next_port = 0
        self._numbers = 0
        self._fences: dict[int, codec.Fence] = {}
        self._nursery: linux.Nursery | None = None

    def room(self) -> bool:
        """Whether there is an idle stand, or another may be started."""
        return bool(self._idle) or len(self._stands) < self._limit

    def rig(self, trial: Trial, ears: Ears) -> StartedRig:
        """A stand for *trial*, begun when it is opened."""
        return StartedRig(self, trial, ears)

    def own_port(self, trial: Trial) -> Trial:
        """*trial* on a port of the stack that no trial had before, where one stack serves many."""
        if self.description.reset != "agent" or "calls" not in self.description.capabilities:
            return trial
        self._next_port = (self._next_port + 1) % len(_PORTS)
        return replace(trial, stack=replace(trial.stack, port=_PORTS[self._next_port]))

    def idle(self, resolved: Resolved) -> Stand | None:
        """A stand that waits for a trial with these settings, if there is one."""
        if resolved.mtu is not None:
            return None  # made for the device as it is; such a trial gets a stand of its own
        return self._idle.popleft() if self._idle else None

    def new(self, resolved: Resolved) -> Stand:
        """A stand to be started."""
        stand = Stand(self, resolved)
        self._stands.append(stand)
        return stand

    def done(self, stand: Stand) -> None:
        """Its trial is over."""
        if self.description.reset == "process" or stand.gone:
            stand.end()
        else:
            stand.release()
            self._idle.append(stand)

    def forget(self, stand: Stand) -> None:
        """*stand* is gone."""
        with contextlib.suppress(ValueError):
            self._stands.remove(stand)
        with contextlib.suppress(ValueError):
            self._idle.remove(stand)

    def directory(self) -> str:
        """Where stands may have temporary directories."""
        os.makedirs(self._scratch, exist_ok=True)
        return self._scratch

    def number(self) -> int:
        """A fence's number that no trial's fence has."""
        self._numbers = (self._numbers + 1) & 0x7FFFFFFF
        return 0x80000000 | self._numbers

    def fence(self, trial: Trial) -> codec.Fence:
        """The echo by which a stack shows that it is there."""
        found = self._fences.get(trial.ip)
        if found is None:
            found = self._fences[trial.ip] = codec.Fence(trial.ip, *trial.stack.addresses[trial.ip])
        return found

    def nursery(self) -> linux.Nursery:
        """What forks conform's own agents. Raises OSError."""
        if self._nursery is None:
            self._nursery = linux.Nursery(self.loop)
        return self._nursery

    def children(self) -> set[int]:
        """The processes that someone here waits for."""
        found = set().union(*(stand.pids for stand in self._stands)) if self._stands else set()
        if self._nursery is not None and self._nursery.pid is not None:
            found.add(self._nursery.pid)
        return found

    def close(self) -> None:
        """End all stands."""
        for stand in list(self._stands):
            stand.end()
        if self._nursery is not None:
            self._nursery.close()
