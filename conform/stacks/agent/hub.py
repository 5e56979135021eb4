"""An agent on a channel that carries no descriptors: standard input and output (docs/agent-protocol.md).

The hub hears and says all lines. It makes no socket call: the processes of a trial are agents as in ``process.py``,
each on a socket pair, the first forked here, the others by ``fork``. A hello ends those of the trial before; the first
serves again, for a fork is dear in gVisor (20 ms), unless a call of it still sleeps.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import time
from typing import Any, NoReturn

from conform.stacks.agent.calls import MALFORMED, PROTOCOL, Request, failure
from conform.stacks.agent.process import Agent
from conform.stacks.agent.system import System
from conform.stacks.agent.trying import SWITCH_INTERVAL, TryingSleeper

#: Signals that end a process that is not asked.
_DEADLY = frozenset({"SIGKILL", "SIGTERM", "SIGINT", "SIGIO"})
#: How long a process may take to reset its connections and go, before it is killed; and to go then. Seconds.
_PATIENCE, _HOPE = 1.0, 5.0
#: How long a process that was just forked may take to reply to hello. Seconds.
_START = 30.0
#: How often it is looked whether a process is gone, where no pidfd tells. Seconds.
_LOOK = 0.0002
#: What the hub does by itself.
_OWN = frozenset({"state", "set"})
_SYN_RECV = 3  # <linux/tcp.h>, tcpi_state


class Pending:
    """A request that a process was given and has not replied to."""

    __slots__ = ("blocked", "child", "until")

    def __init__(self, request: dict[str, Any], child: str | None) -> None:
        #: The name of the child, where it is a fork.
        self.child = child
        #: It was said to sleep.
        self.blocked = False
        timeout = request.get("timeout")
        #: When conform gives it up; it is then taken to sleep, and soon where it has no such time.
        self.until = time.monotonic() + (timeout if isinstance(timeout, int | float) else _PATIENCE)


class Process:
    """One process of a trial, seen from the hub."""

    def __init__(self, name: str, pid: int, control: socket.socket, pidfd: int = -1) -> None:
        self.name = name
        self.pid = pid
        self.control: socket.socket | None = control
        self.pidfd = pidfd
        self.rest = b""
        #: What it was told and has not taken: it may be waiting for the hub to take what it says.
        self.outbox = bytearray()
        #: Whether its hello was replied to.
        self.greeted = False
        #: Requests under way.
        self.pending: dict[int, Pending] = {}
        #: Those that are replied to by its end.
        self.ends: list[int] = []

    def gone(self) -> bool:
        """Whether it has ended, and its descriptors are closed."""
        if self.pidfd >= 0:
            return bool(_poll(self.pidfd))
        # SIGCHLD is ignored by each: nobody stays a zombie.
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        return False

    def close(self) -> None:
        """Let go of its descriptors: it ends."""
        if self.control is not None:
            self.control.close()
            self.control = None
        self.outbox.clear()

    def forget(self) -> None:
        """It is gone."""
        self.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class Hub:
    """Speaks on the descriptors *read* and *write*, until the other end is closed."""

    def __init__(self, read: int, write: int) -> None:
        self.read = read
        self.write = write
        self.system = System()
        self.ip = 4
        self.processes: dict[str, Process] = {}
        self.poller = select.poll()
        self.poller.register(read, select.POLLIN)
        self.controls: dict[int, Process] = {}
        self.dying: list[Process] = []
        #: Questions for a state, with their ids, which wait for the calls that came before them.
        self.questions: list[tuple[int, dict[str, Any], list[Pending]]] = []
        self.rest = b""

    def run(self) -> NoReturn:
        """Until the other end is gone: then all connections are reset, and all processes end."""
        while True:
            for fd, events in self.poller.poll(1 if self.dying or self.questions else None):
                if fd == self.read:
                    self.hear()
                elif fd in self.controls:
                    process = self.controls[fd]
                    if events & ~select.POLLOUT:
                        self.relay(process, socket.MSG_DONTWAIT)  # the number may be another's by now
                    if events & select.POLLOUT and process.outbox:
                        self.flush(process)
            for process in [each for each in self.dying if each.gone()]:
                self.died(process)
            self.answer()

    def say(self, message: dict[str, Any]) -> None:
        """One line."""
        self.say_line(json.dumps(message, separators=(",", ":")).encode())

    def say_line(self, line: bytes) -> None:
        """One line as it stands. An end that is gone ends all."""
        data = line + b"\n"
        try:
            while data:
                data = data[os.write(self.write, data) :]
        except OSError:
            self.end()

    def end(self) -> NoReturn:
        """Reset the connections, give back what was set, and be gone."""
        self.end_processes()
        self.system.restore()
        os._exit(0)

    # From conform ----------------------------------------------------------------------------------------------------
    def hear(self) -> None:
        try:
            data = os.read(self.read, 1 << 20)
        except OSError:
            data = b""
        if not data:
            self.end()
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            if line:
                self.heed(line)

    def heed(self, line: bytes) -> None:
        """Do what one line says, or have it done."""
        id: Any = None
        try:
            request = json.loads(line)
            id = request.get("id")
            if "hello" in request:
                self.hello(request, line)
                return
            if not isinstance(id, int):
                raise ValueError("a request has an id")
            self.do(id, request, line)
        except OSError as error:
            self.say({"id": id, **failure(error)})
        except MALFORMED as error:
            self.say({"id": id, "fault": f"malformed request: {type(error).__name__}: {error}"})

    def hello(self, request: dict[str, Any], line: bytes) -> None:
        main = self.processes.get("main")
        if main is not None and (main.pending or main.control is None or main.gone()):
            main = None  # it is gone, or has a call that sleeps, which can be ended with its process alone
        self.end_processes(main)
        self.questions.clear()
        self.system.restore()
        if request["hello"] == PROTOCOL:
            self.ip = request["ip"]
        if main is not None and self.greets(main, line, _HOPE):
            return
        self.end_processes()
        if not self.greets(self.start(), line, _START):
            self.say({"broke": "a process of the agent does not reply to hello"})
            os._exit(1)

    def greets(self, process: Process, line: bytes, seconds: float) -> bool:
        """Whether *process*, with nothing under way, replies to hello; the reply is handed on.

        It is waited for: it is the first line of the trial, and what the hub does by itself comes behind it.
        """
        assert process.control is not None
        process.greeted = False
        end = time.monotonic() + seconds
        with contextlib.suppress(OSError):
            process.control.sendall(line + b"\n")
        while not process.greeted:
            if not _poll(process.control.fileno(), max(0, int((end - time.monotonic()) * 1000))):
                return False
            if not self.relay(process, socket.MSG_DONTWAIT):
                return False
        return True

    def do(self, id: int, request: dict[str, Any], line: bytes) -> None:
        do = request["do"]
        name = request.get("process" if do == "kill" else "by", "main")
        process = self.processes.get(name)
        child = request.get("as")
        if not self.processes:
            fault = "hello comes first"
        elif do in _OWN:
            self.own(id, do, request)
            return
        elif process is None:
            fault = f"no process has the name {name!r}"
        elif do == "kill":
            self.kill(id, process, request.get("with", "SIGKILL"))
            return
        elif process.control is None:
            fault = f"the process {name!r} is gone"
        elif do == "fork" and (not isinstance(child, str) or child in self.processes):
            fault = f"a fork needs a name that no process has: as: {child!r}"
        else:
            process.pending[id] = Pending(request, child if do == "fork" else None)
            if do == "exit":
                process.ends.append(id)
            process.outbox += line + b"\n"
            self.flush(process)
            return
        self.say({"id": id, "fault": fault})

    def flush(self, process: Process) -> None:
        """Tell *process* as much as it takes now. It does not read while nobody reads what it says."""
        assert process.control is not None
        try:
            while process.outbox:
                del process.outbox[: process.control.send(process.outbox, socket.MSG_DONTWAIT)]
        except BlockingIOError:
            pass
        except OSError:
            process.outbox.clear()  # its end is near, and is the reply
        self.poller.modify(process.control, select.POLLIN | (select.POLLOUT if process.outbox else 0))

    def own(self, id: int, do: str, request: dict[str, Any]) -> None:
        """What needs no process. Raises OSError, ValueError."""
        if do == "set":
            before = self.system.set(request["name"], request["value"])
            self.say({"id": id, "returned": 0, "value": before})
        else:
            earlier = [call for each in self.processes.values() for call in each.pending.values()]
            self.questions.append((id, request, earlier))
            self.answer()

    def answer(self) -> None:
        """Tell the states that were asked for, once the calls before them have returned or sleep."""
        if not self.questions:
            return
        now = time.monotonic()
        under_way = {id(call) for each in self.processes.values() for call in each.pending.values()}
        waiting = []
        for number, request, before in self.questions:
            if any(id(call) in under_way and not call.blocked and call.until > now for call in before):
                waiting.append((number, request, before))
                continue
            try:
                state = self.system.state(self.ip, request["port"], request.get("peer", 0))
                self.say({"id": number, "returned": 0, "value": state})
            except OSError as error:
                self.say({"id": number, **failure(error)})
            except MALFORMED as error:
                self.say({"id": number, "fault": f"malformed request: {type(error).__name__}: {error}"})
        self.questions = waiting

    def kill(self, id: int, process: Process, name: str) -> None:
        number = getattr(signal, name, None)
        if not isinstance(number, signal.Signals):
            self.say({"id": id, "fault": f"unknown signal {name!r}"})
        elif process.control is None:
            self.say({"id": id, "returned": -1, "error": "ESRCH"})
        else:
            os.kill(process.pid, number)
            if name not in _DEADLY:
                self.say({"id": id, "returned": 0})
                return
            process.ends.append(id)
            if process not in self.dying:
                self.dying.append(process)

    # From the processes ----------------------------------------------------------------------------------------------
    def relay(self, process: Process, flags: int = 0) -> bool:
        """Hand on what *process* said; whether it may say more."""
        assert process.control is not None
        try:
            data, descriptors, _, _ = socket.recv_fds(process.control, 1 << 20, 4, flags)
        except BlockingIOError:
            return False
        except OSError:
            data, descriptors = b"", []
        if not data:
            self.controls.pop(process.control.fileno(), None)
            self.poller.unregister(process.control)
            process.close()
            if process not in self.dying:
                self.dying.append(process)
            return False
        *lines, process.rest = (process.rest + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            id = message.get("id")
            if message.get("blocked"):
                if id in process.pending:
                    process.pending[id].blocked = True
            elif id in process.pending:
                child = process.pending.pop(id).child
                if id in process.ends:  # it refuses to end
                    process.ends.remove(id)
                if child is not None and message.get("returned", -1) >= 0 and descriptors:
                    control, *pidfd = descriptors
                    descriptors = []
                    self.adopt(Process(child, message["returned"], socket.socket(fileno=control), *pidfd))
            elif not process.greeted:
                process.greeted = "hello" in message or "fault" in message
            self.say_line(line)
        return True

    def died(self, process: Process) -> None:
        """*process* is gone: its last words, and the replies that its end is."""
        while process.control is not None and self.relay(process, socket.MSG_DONTWAIT):
            pass
        if process.control is not None:
            self.controls.pop(process.control.fileno(), None)
            self.poller.unregister(process.control)
        process.forget()
        self.dying.remove(process)
        gone = f"the process {process.name!r} ended before the call did"
        for id in process.pending:
            if id not in process.ends:
                self.say({"id": id, "gone": True, "fault": gone})
        for id in process.ends:
            self.say({"id": id, "returned": 0})
        process.pending.clear()

    # Processes -------------------------------------------------------------------------------------------------------
    def adopt(self, process: Process) -> None:
        assert process.control is not None
        self.processes[process.name] = process
        self.controls[process.control.fileno()] = process
        self.poller.register(process.control, select.POLLIN)

    def start(self) -> Process:
        """The first process of a trial. Raises OSError."""
        theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        pid = os.fork()
        if pid == 0:
            self._become_agent(ours)
        ours.close()
        process = Process("main", pid, theirs, _pidfd(pid))
        self.adopt(process)
        return process

    def _become_agent(self, control: socket.socket) -> NoReturn:
        try:
            # Whatever this process has of the hub must not outlive it: the other ends see its end by their close.
            keep = {0, 1, 2, control.fileno()}
            for fd in map(int, os.listdir("/proc/self/fd")):
                if fd not in keep:
                    with contextlib.suppress(OSError):  # the directory's own
                        os.close(fd)
            agent = HubAgent(control)
            agent.capabilities = self.system.capabilities
            agent.fragile = self.system.is_gvisor
            if not self.system.shows_calls:
                agent.sleeper = TryingSleeper
            # Else a thread that wakes would wait 5 ms for the main thread, which watches it, to let go of the
            # interpreter.
            sys.setswitchinterval(20e-6 if self.system.shows_calls else SWITCH_INTERVAL)
            agent.run()
        except BaseException as error:
            print(f"the agent's process ended by {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(1)

    def end_processes(self, spared: Process | None = None) -> None:
        """Each but *spared* resets its connections, and ends. Those that do not are killed."""
        ended = [each for each in self.processes.values() if each is not spared]
        living = [each for each in ended if each.control is not None or each in self.dying]
        for process in living:
            if process.control is not None:
                self.controls.pop(process.control.fileno(), None)
                self.poller.unregister(process.control)
                process.close()
        begun = time.monotonic()
        killed = False
        while living := [each for each in living if not each.gone()]:
            passed = time.monotonic() - begun
            if passed > _PATIENCE and not killed:
                killed = True
                for process in living:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGKILL)
            if passed > _PATIENCE + _HOPE:
                names = ", ".join(each.name for each in living)
                self.say({"broke": f"processes of the agent cannot be ended: {names}"})
                os._exit(1)
            if living[0].pidfd >= 0:
                _poll(living[0].pidfd, 10)
            else:
                time.sleep(_LOOK)
        for process in ended:
            process.forget()
            del self.processes[process.name]
        self.dying.clear()


class HubAgent(Agent):
    """A process of a trial behind a hub."""

    name = "conform-stdio"
    #: Whether a reset of a connection in SYN-RECEIVED must be avoided.
    fragile = False

    def hello(self, request: Request) -> None:
        self._spare()
        super().hello(request)

    def end(self) -> NoReturn:
        self._spare()
        super().end()

    def _spare(self) -> None:
        """Close what must not be reset."""
        for name, found in list(self.calls.table.items()) if self.fragile else ():
            with contextlib.suppress(OSError):
                if found is not None and found.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _SYN_RECV:
                    self.calls.table[name] = None
                    os.close(found.sock.detach())


def _pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except (OSError, AttributeError):  # gVisor has none; a Python may be built without; or it is gone already
        return -1


def _poll(fd: int, milliseconds: int = 0) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(milliseconds))


def main() -> NoReturn:
    """Be an agent on standard input and output."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGURG, signal.SIGIO):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, (signal.SIGPIPE,))
    read, write = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)  # what anybody prints is chatter
    os.close(null)
    hub = Hub(read, write)
    gc.collect()
    gc.freeze()  # the collector would copy shared pages by visiting them
    gc.disable()
    hub.run()
