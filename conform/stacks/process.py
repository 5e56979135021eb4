"""Agents that are processes, seen from the worker: the nursery that forks them, and the talk with each.

What runs in those processes is ``agent/process.py``.
"""

from __future__ import annotations

import array
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conform.stacks.agent.calls import PROTOCOL
from conform.stacks.agent.process import CAPABILITIES
from conform.stacks.seams import Loop, NetworkNamespace, OnBlocked, OnBroke, OnReply, Timer

_ROOT = Path(__file__).resolve().parent.parent.parent
_START = """import sys
sys.path.insert(0, sys.argv[2])
from conform.stacks.agent.process import nursery
nursery(int(sys.argv[1]))"""
#: Signals that end a process that is not asked.
_DEADLY = frozenset({"SIGKILL", "SIGTERM", "SIGINT", "SIGIO"})
#: What poll's own time-out may be late by before conform gives up on the agent.
_GRACE = 1.0

_Born = Callable[[int | None, str], None]


class Nursery:
    """The lean process that forks a worker's agents. Started at once, and again after it was lost."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count()
        self._born: dict[int, _Born] = {}
        self._start()

    @property
    def pid(self) -> int | None:
        """The nursery's process id, None when there is none."""
        return None if self._process is None else self._process.pid

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-I", "-S", "-W", "ignore", "-c", _START, str(theirs.fileno()), str(_ROOT)]
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,  # Ctrl-C is for main to interpret
                )
            except OSError:
                ours.close()
                raise
        self._control = ours
        self._loop.add_reader(ours.fileno(), self._heard)

    def spawn(self, netns: int, control: int, born: Callable[[int | None, str], None]) -> None:
        """Have an agent forked into the namespace *netns*, speaking on *control*; the caller may close both then.

        Later *born* is called with the agent's pidfd, or with None and the reason. Raises OSError.
        """
        if self._control is None:
            self._start()
        assert self._control is not None
        number = next(self._numbers)
        message = json.dumps({"number": number}).encode()
        try:
            socket.send_fds(self._control, [message], [netns, control])
        except (BrokenPipeError, ConnectionResetError):
            self._lost()
            self._start()
            socket.send_fds(self._control, [message], [netns, control])
        self._born[number] = born

    def _heard(self) -> None:
        assert self._control is not None
        try:
            message, descriptors, _, _ = socket.recv_fds(self._control, 512, 1)
        except ConnectionResetError:
            message, descriptors = b"", []
        if not message:
            self._lost()
            return
        told = json.loads(message)
        if "ready" in told:
            return
        born = self._born.pop(told["number"], None)
        if born is not None:
            born(descriptors[0] if descriptors else None, told.get("error", ""))
        else:
            for fd in descriptors:
                os.close(fd)

    def _lost(self) -> None:
        self.close()
        born, self._born = self._born, {}
        for each in born.values():
            each(None, "the nursery of agents died")

    def close(self) -> None:
        """End it, and with it the agents that live."""
        if self._control is not None:
            self._loop.remove_reader(self._control.fileno())
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.kill()  # at the end of its socket it would go by itself; its agents die with it either way
            self._process.wait()
            self._process = None


@dataclass(eq=False, slots=True)
class _Process:
    """One process of a trial, seen from outside."""

    name: str
    control: socket.socket | None
    pidfd: int | None = None
    inbox: bytes = b""
    outbox: bytes = b""
    ending: bool = False
    gone: bool = False
    awaiting_end: list[int] = field(default_factory=list)
    signals: list[tuple[int, str]] = field(default_factory=list)


@dataclass(slots=True)
class _Pending:
    process: _Process
    timer: Timer | None
    child: str | None


class ProcessAgent:
    """Has the calls of one trial made by processes in the namespace *netns*, really blocking.

    Parameters and callbacks are those of ``InlineAgent``. A call that was under way when its process ended has the
    reply ``{"gone": true, "fault": ...}``. Raises OSError when no process can be had.
    """

    capabilities = frozenset(CAPABILITIES)

    def __init__(
        self,
        loop: Loop,
        nursery: Nursery,
        netns: NetworkNamespace,
        version: int,
        addresses: tuple[str, str],
        on_reply: OnReply,
        on_blocked: OnBlocked,
        on_broke: OnBroke,
    ) -> None:
        self._loop = loop
        self._on_reply = on_reply
        self._on_blocked = on_blocked
        self._on_broke = on_broke
        self._pending: dict[int, _Pending] = {}
        self._owners: dict[int, _Process] = {}
        self._closed = False
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        main = _Process("main", ours)
        self._processes = {"main": main}
        with theirs:
            try:
                nursery.spawn(netns.fd, theirs.fileno(), lambda pidfd, reason: self._born(main, pidfd, reason))
            except OSError:
                ours.close()
                raise
        self._epoll = select.epoll()
        self._listen(main)
        loop.add_reader(self._epoll.fileno(), self._ready)
        hello = {"hello": PROTOCOL, "ip": version, "stack": addresses[0], "tester": addresses[1]}
        self._write(main, json.dumps(hello))

    def request(self, id: int, request: dict[str, Any]) -> None:
        """Have the call made that *request* says (docs/agent-protocol.md, less its id)."""
        do = request.get("do")
        name = request.get("process", "main") if do == "kill" else request.get("by", "main")
        process = self._processes.get(name)
        child = request.get("as") if do == "fork" else None
        fault = None
        if process is None:
            fault = f"no process has the name {name!r}"
        elif process.gone and do != "kill":
            fault = f"the process {name!r} is gone"
        elif do == "fork" and (not isinstance(child, str) or child in self._processes):
            fault = f"a fork needs a name that no process has: as: {child!r}"
        if fault is not None or process is None:
            self._on_reply(id, {"fault": fault})
            return
        timer = None
        timeout = request.get("timeout")
        if timeout is not None:
            grace = _GRACE if do == "poll" else 0.0
            timer = self._loop.call_at(
                time.monotonic() + timeout + grace, lambda: self._end_call(id, {"timeout": True})
            )
        self._pending[id] = _Pending(process, timer, child)
        if do == "kill":
            self._kill(id, process, request.get("with", "SIGKILL"))
            return
        if do == "exit":
            process.ending = True
            process.awaiting_end.append(id)
        self._write(process, json.dumps({"id": id, **request}))

    def close(self) -> None:
        """Let the processes go: each resets its connections and ends when its control socket does. Raises nothing."""
        if self._closed:
            return
        self._closed = True
        for pending in self._pending.values():
            if pending.timer is not None:
                pending.timer.cancel()
        self._pending.clear()
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        for process in self._processes.values():
            if process.control is not None:
                process.control.close()
                process.control = None
            if process.pidfd is not None:
                os.close(process.pidfd)
                process.pidfd = None

    # Processes -------------------------------------------------------------------------------------------------------
    def _born(self, process: _Process, pidfd: int | None, reason: str) -> None:
        if self._closed:
            if pidfd is not None:
                os.close(pidfd)
            return
        if pidfd is None:
            self._broke(f"no agent: {reason}")
            return
        process.pidfd = pidfd
        self._owners[pidfd] = process
        self._epoll.register(pidfd, select.EPOLLIN)
        for id, name in process.signals:
            self._kill(id, process, name)

    def _kill(self, id: int, process: _Process, name: str) -> None:
        if process.gone:
            self._end_call(id, {"returned": -1, "error": "ESRCH"})
            return
        if process.pidfd is None:
            process.signals.append((id, name))
            return
        number = getattr(signal, name, None)
        if not isinstance(number, signal.Signals):
            self._end_call(id, {"fault": f"unknown signal {name!r}"})
            return
        if name in _DEADLY:
            process.ending = True
            process.awaiting_end.append(id)
        try:
            signal.pidfd_send_signal(process.pidfd, number)
        except OSError:
            return  # it ends at this moment, which its pidfd will say
        if name not in _DEADLY:
            self._end_call(id, {"returned": 0})

    def _died(self, process: _Process) -> None:
        while process.control is not None and not self._closed:  # what it said before it went
            self._read(process)
        if self._closed:
            return
        process.gone = True
        assert process.pidfd is not None
        self._epoll.unregister(process.pidfd)
        del self._owners[process.pidfd]
        os.close(process.pidfd)
        process.pidfd = None
        if not process.ending:
            self._broke(f"the agent's process {process.name!r} died")
            return
        for id in [id for id, pending in self._pending.items() if pending.process is process]:
            if id not in process.awaiting_end:
                self._end_call(id, {"gone": True, "fault": f"the process {process.name!r} ended before the call did"})
        for id in process.awaiting_end:
            self._end_call(id, {"returned": 0})

    def _broke(self, reason: str) -> None:
        if not self._closed:
            self.close()
            self._on_broke(reason)

    # Talk ------------------------------------------------------------------------------------------------------------
    def _listen(self, process: _Process) -> None:
        assert process.control is not None
        process.control.setblocking(False)
        self._owners[process.control.fileno()] = process
        self._epoll.register(process.control.fileno(), select.EPOLLIN)

    def _ready(self) -> None:
        # Control sockets before pidfds: what a process said comes before its end.
        found = [(fd, events, self._owners[fd]) for fd, events in self._epoll.poll(0)]
        for end in (False, True):
            for fd, events, process in found:
                if self._closed:
                    return
                if self._owners.get(fd) is not process or (fd == process.pidfd) is not end:
                    continue
                if end:
                    self._died(process)
                    continue
                if events & select.EPOLLOUT:
                    self._flush(process)
                if events & ~select.EPOLLOUT and process.control is not None:
                    self._read(process)

    def _write(self, process: _Process, line: str) -> None:
        if process.control is None:
            return  # its end is near, and will end the call
        behind = bool(process.outbox)
        process.outbox += line.encode() + b"\n"
        if not behind:
            self._flush(process)

    def _flush(self, process: _Process) -> None:
        assert process.control is not None
        try:
            process.outbox = process.outbox[process.control.send(process.outbox) :]
        except BlockingIOError:
            pass
        except OSError:
            process.outbox = b""  # its end is near
        events = select.EPOLLIN | (select.EPOLLOUT if process.outbox else 0)
        self._epoll.modify(process.control.fileno(), events)

    def _read(self, process: _Process) -> None:
        assert process.control is not None
        try:
            data, ancillary, _, _ = process.control.recvmsg(1 << 16, socket.CMSG_SPACE(8), socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            if process.pidfd is not None and process.pidfd in self._owners and self._is_over(process.pidfd):
                self._hang_up(process)
            return
        except OSError:
            data, ancillary = b"", []
        descriptors = array.array("i")
        for _, _, raw in ancillary:
            descriptors.frombytes(raw[: len(raw) - len(raw) % descriptors.itemsize])
        if not data:
            self._hang_up(process)
            return
        *lines, process.inbox = (process.inbox + data).split(b"\n")
        for line in lines:
            if not self._closed:
                self._hear(process, line, descriptors)
        for fd in descriptors:
            os.close(fd)

    @staticmethod
    def _is_over(pidfd: int) -> bool:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def _hang_up(self, process: _Process) -> None:
        assert process.control is not None
        self._epoll.unregister(process.control.fileno())
        del self._owners[process.control.fileno()]
        process.control.close()
        process.control = None

    def _hear(self, process: _Process, line: bytes, descriptors: array.array[int]) -> None:
        try:
            message = json.loads(line)
            if "broke" in message:
                self._broke(str(message["broke"]))
                return
            if "hello" in message:
                return
            id = message.pop("id", None)
        except (ValueError, AttributeError, TypeError):
            self._broke(f"the agent said {line[:200]!r}, which is no message of the protocol")
            return
        pending = self._pending.get(id)
        if pending is None:
            if id is None:
                self._broke(f"the agent: {message.get('fault')}")
            return  # the late reply to a call that was given up
        if message.get("blocked"):
            self._on_blocked(id)
            return
        if pending.child is not None and "returned" in message and len(descriptors) == 2:
            pidfd, control = descriptors.pop(), descriptors.pop()
            child = _Process(pending.child, socket.socket(fileno=control))
            self._processes[pending.child] = child
            self._listen(child)
            self._born(child, pidfd, "")
        self._end_call(id, message)

    def _end_call(self, id: int, reply: dict[str, Any]) -> None:
        pending = self._pending.pop(id, None)
        if pending is None or self._closed:
            return
        if pending.timer is not None:
            pending.timer.cancel()
        self._on_reply(id, reply)
