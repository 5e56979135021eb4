"""The processes that make blocking calls: the nursery, and the agents that it forks.

The nursery is a lean Python, exec'd once a worker (``-I -S``, the standard library alone), so that a fork is cheap. It
is told by one message with two descriptors (SCM_RIGHTS) to fork an agent: a network namespace, and the agent's end of
its control socket. An agent speaks docs/agent-protocol.md there until the other end is closed.

A call that can sleep is made in a thread, so that the main thread always hears what it is told. That a call with
``overlap`` sleeps is what the kernel says (proc(5): task state, and ``syscall``), never what a delay suggests.
"""

from __future__ import annotations

import _thread
import array
import collections
import contextlib
import ctypes
import errno
import gc
import json
import os
import platform
import signal
import socket
import sys
from typing import Any, NoReturn

from conform.stacks.agent.calls import (
    LINGER_ZERO,
    MALFORMED,
    PROTOCOL,
    SLEEPERS,
    Calls,
    Reply,
    Request,
    RequestError,
    failure,
)

#: What an agent that is a process can do.
CAPABILITIES: tuple[str, ...] = (
    "calls", "overlap", "fork", "kill", "dup", "sigpipe", "linger", "urgent", "tcp-info", "repair", "shutdown-read",
    "reuse-port", "fast-open",
)  # fmt: skip

_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36
_CALL_NUMBERS = {
    "x86_64": {
        "close": (3,), "poll": (7, 271), "connect": (42,), "accept": (43, 288), "send": (44, 46), "recv": (45, 47),
    },
    "aarch64": {
        "close": (57,), "poll": (73,), "connect": (203,), "accept": (202, 242), "send": (206, 211), "recv": (207, 212),
    },
}  # fmt: skip
_NUMBERS = _CALL_NUMBERS.get(platform.machine()) or _CALL_NUMBERS["aarch64"]  # the generic table of newer machines

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _prctl(option: int, argument: int) -> None:
    _check(_libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0))


class Sleeper:
    """A thread that makes calls which may sleep, one at a time. Whether it sleeps in one is asked of the kernel."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.job: Job | None = None
        self.watched = False
        #: This thread's /proc files. Opened by the thread: /proc may be mounted for another PID namespace than ours,
        #: and then only thread-self names the right one.
        self.syscall = self.stat = -1
        self.wake = _thread.allocate_lock()
        self.wake.acquire()
        self.known = _thread.allocate_lock()
        self.known.acquire()
        _thread.start_new_thread(self.run, ())

    def run(self) -> None:
        while True:
            self.wake.acquire()
            job = self.job
            assert job is not None
            if job.watch and not self.watched:
                try:
                    self.open()
                except OSError as error:
                    job.done = True
                    self.known.release()
                    self.agent.send({"id": job.id, "fault": f"cannot see whether the call sleeps: {error}"})
                    self.agent.idle.append(self)
                    continue
                self.watched = True
            if job.watch:
                self.known.release()
            reply = self.execute(job)
            with job.lock:
                job.done = True
            self.job = None
            # Before the reply: what asks next must find this thread free.
            self.agent.idle.append(self)
            self.agent.send({"id": job.id, **reply})

    def open(self) -> None:
        """In the thread: open what tells of its sleep. Raises OSError."""
        self.syscall = os.open("/proc/thread-self/syscall", os.O_RDONLY | os.O_CLOEXEC)
        self.stat = os.open("/proc/thread-self/stat", os.O_RDONLY | os.O_CLOEXEC)

    def execute(self, job: Job) -> Reply:
        """In the thread: the reply to the call of *job*."""
        return self.agent.calls.execute(job.request)

    def sleeps(self, job: Job) -> bool:
        """Asked by the main thread: whether this one sleeps in the call of *job*."""
        # In the call, asleep, and still in the call. Without the third look the sleep might be another: waiting for the
        # interpreter's lock before the call, or after it. "D" (the socket's lock) is not what is meant either.
        return in_call(self, job) and asleep(self) and in_call(self, job)

    def forget(self) -> None:
        """In a forked child, where the thread does not exist: close what it had open."""
        for fd in (self.syscall, self.stat):
            if fd >= 0:
                os.close(fd)


class Job:
    """One call in a :class:`Sleeper`."""

    __slots__ = ("done", "id", "lock", "prefixes", "request", "watch")

    def __init__(self, id: int, request: Request, fd: int) -> None:
        self.id = id
        self.request = request
        self.watch = bool(request.get("overlap"))
        self.lock = _thread.allocate_lock()
        self.done = False
        do: str = request["do"]
        numbers = _NUMBERS[{"sendmsg": "send", "recvmsg": "recv"}.get(do, do)]
        # The file shows number and arguments of the system call in which the thread sleeps: "45 0x7 0x7f…".
        self.prefixes = tuple(b"%d " % n if do == "poll" else b"%d 0x%x " % (n, fd) for n in numbers)


class Agent:
    """One process of a trial: hears requests on its control socket, makes the calls, replies."""

    name = "conform-linux"
    capabilities = CAPABILITIES
    sleeper: type[Sleeper] = Sleeper

    def __init__(self, control: socket.socket) -> None:
        self.calls = Calls(4, "", "")
        self.greeted = False
        self.adopt(control)

    def adopt(self, control: socket.socket) -> None:
        """Speak on *control* from now on, with no call under way: at the start, and in a forked child."""
        self.control = control
        self.lock = _thread.allocate_lock()
        self.lines: collections.deque[bytes] = collections.deque()
        self.rest = b""
        self.sleepers: list[Sleeper] = []
        self.idle: collections.deque[Sleeper] = collections.deque()

    def run(self) -> NoReturn:
        """Until the other end is gone."""
        while True:
            while self.lines:
                line = self.lines.popleft()
                if line:
                    self.hear(line)
            try:
                data = self.control.recv(1 << 20)
            except ConnectionError:  # the other end went with something unread: an end like any other
                data = b""
            if not data:
                self.end()
            *lines, self.rest = (self.rest + data).split(b"\n")
            self.lines.extend(lines)

    def send(self, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        """One line, with *descriptors* beside it. Safe in any thread. An end that is gone ends this process."""
        data = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        try:
            with self.lock:
                if descriptors:
                    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
                    data = data[self.control.sendmsg([data], [rights]) :]
                self.control.sendall(data)
        except OSError:
            self.end()

    def end(self) -> NoReturn:
        """Reset the connections, so that none becomes an orphan that pins the namespace, and be gone."""
        for found in list(self.calls.table.values()):
            if found is not None:
                with contextlib.suppress(OSError):
                    found.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
        os._exit(0)

    def hear(self, line: bytes) -> None:
        """Do what one line says."""
        id: Any = None
        try:
            try:
                request = json.loads(line)
                id = request.get("id")
                if "hello" in request:
                    self.hello(request)
                elif not self.greeted:
                    raise RequestError("hello comes first")
                else:
                    self.do(id, request)
            except MALFORMED as error:
                raise RequestError(f"malformed request: {type(error).__name__}: {error}") from None
        except RequestError as fault:
            self.send({"id": id, "fault": str(fault)})
        except OSError as error:
            self.send({"id": id, **failure(error)})

    def hello(self, request: Request) -> None:
        if request["hello"] != PROTOCOL:
            raise RequestError(f"this agent speaks version {PROTOCOL} of the protocol, not {request['hello']!r}")
        if request["ip"] not in (4, 6):
            raise RequestError(f"there is no IP version {request['ip']!r}")
        calls = Calls(request["ip"], request["stack"], request["tester"])
        self.calls.drop()  # of the trial before
        self.calls = calls
        self.greeted = True
        self.send({"hello": PROTOCOL, "agent": self.name, "capabilities": self.capabilities})

    def do(self, id: int, request: Request) -> None:
        do = request["do"]
        if do == "fork":
            self.fork(id)
        elif do == "exit":
            os._exit(request.get("status", 0))
        elif do in SLEEPERS:
            found = self.calls.find(request)
            assert found is not None
            self.sleep(Job(id, request, found.sock.fileno()))
        else:
            self.send({"id": id, **self.calls.execute(request)})

    # Calls that can sleep --------------------------------------------------------------------------------------------
    def sleep(self, job: Job) -> None:
        """Have *job* done in a thread; with ``overlap``, say so once it sleeps."""
        if self.idle:
            sleeper = self.idle.popleft()
        else:
            sleeper = self.sleeper(self)
            self.sleepers.append(sleeper)
        sleeper.job = job
        sleeper.wake.release()
        if not job.watch:
            return
        sleeper.known.acquire()
        while not job.done:
            if sleeper.sleeps(job):
                with job.lock:
                    if not job.done:
                        self.send({"id": job.id, "blocked": True})
                return
            os.sched_yield()

    # Processes -------------------------------------------------------------------------------------------------------
    def fork(self, id: int) -> None:
        """A child with all descriptors, on a control socket of its own, whose other end goes out with the reply."""
        theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        pid = os.fork()
        if pid == 0:
            # No PR_SET_PDEATHSIG here: that this process's parent can be killed and leave it the descriptors is what
            # fork is for. It ends with its control socket, and the nursery adopts it.
            theirs.close()
            self.control.close()
            for sleeper in self.sleepers:
                sleeper.forget()
            self.adopt(ours)
            return
        ours.close()
        try:
            beside: tuple[int, ...] = (theirs.fileno(), os.pidfd_open(pid))
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            beside = (theirs.fileno(),)  # gVisor has no pidfds; stacks/agent/hub.py does without
        try:
            self.send({"id": id, "returned": pid}, beside)
        finally:
            theirs.close()
            for pidfd in beside[1:]:
                os.close(pidfd)


def in_call(sleeper: Sleeper, job: Job) -> bool:
    """Whether the thread is not running, and is in the system call of *job*."""
    return os.pread(sleeper.syscall, 64, 0).startswith(job.prefixes)


def asleep(sleeper: Sleeper) -> bool:
    """Whether the thread's state is S, an interruptible sleep (proc(5))."""
    return os.pread(sleeper.stat, 512, 0).rpartition(b") ")[2].startswith(b"S")


def nursery(fd: int) -> NoReturn:
    """Fork agents as told on the socket *fd*, until its other end is gone."""
    control = socket.socket(fileno=fd)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Children of an agent that was killed come here, and nobody is to wait for anyone.
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _name(b"conform-nursery")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # A signal that a case sends must do what it does to any process, whatever this one inherited.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGURG, signal.SIGIO):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, (signal.SIGPIPE,))
    # A thread that wakes would else wait 5 ms for the main thread, which watches it, to let go of the interpreter.
    sys.setswitchinterval(20e-6)
    gc.collect()
    gc.freeze()  # the collector would copy shared pages by visiting them
    gc.disable()
    own = os.getpid()

    def tell(message: dict[str, Any], *descriptors: int) -> None:
        try:
            socket.send_fds(control, [json.dumps(message).encode()], descriptors)
        except ConnectionError:  # the worker is gone
            os._exit(0)

    tell({"ready": True})
    while True:
        try:
            message, descriptors, _, _ = socket.recv_fds(control, 256, 2)
        except ConnectionError:  # the worker died with something unread: an end like any other
            message = b""
        if not message:
            os._exit(0)
        order: dict[str, Any] = json.loads(message)
        try:
            pid = os.fork()
        except OSError as error:
            for each in descriptors:
                os.close(each)
            tell(order | {"error": str(error)})
            continue
        if pid == 0:
            control.close()
            _agent(own, *descriptors)
        for each in descriptors:
            os.close(each)
        # Nobody waits for the child before this: its pidfd is surely its own, unless it is gone already.
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            tell(order | {"error": "the agent died at once"})
            continue
        tell(order | {"pid": pid}, pidfd)
        os.close(pidfd)


def _name(name: bytes) -> None:
    _libc.prctl(_PR_SET_NAME, ctypes.c_char_p(name), 0, 0, 0)


def _agent(parent: int, netns: int, fd: int) -> NoReturn:
    try:
        control = socket.socket(fileno=fd)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        _name(b"conform-agent")
        agent = Agent(control)
        try:
            _check(_libc.setns(netns, _CLONE_NEWNET))
        except OSError as error:
            agent.send({"broke": f"the agent cannot enter the trial's namespace: {error}"})
            os._exit(1)
        os.close(netns)
        agent.run()
    except BaseException as error:
        try:
            os.write(fd, json.dumps({"broke": f"{type(error).__name__}: {error}"}).encode() + b"\n")
        finally:
            os._exit(1)


__all__ = ["CAPABILITIES", "Agent", "Reply", "nursery"]
