"""What the system that an agent runs on has: its capabilities, its settings, the states of its connections.

All by trying, on the loopback device, because systems that look like Linux (gVisor's) have less than they say.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conform.stacks.agent.calls import Calls, Descriptor, OpenFile, Reply

_LOOPBACK = "127.0.0.1"
_SECONDS = 2.0
#: The states' numbers in /proc/net/tcp (<net/tcp_states.h>).
_STATES = {
    1: "ESTABLISHED", 2: "SYN-SENT", 3: "SYN-RECEIVED", 4: "FIN-WAIT-1", 5: "FIN-WAIT-2", 6: "TIME-WAIT", 7: "CLOSED",
    8: "CLOSE-WAIT", 9: "LAST-ACK", 10: "LISTEN", 11: "CLOSING", 12: "SYN-RECEIVED",
}  # fmt: skip


class System:
    """The system that this process runs on. Nothing is looked at before it is asked for, and then once."""

    def __init__(self) -> None:
        self._written: dict[Path, str] = {}
        #: Whether the kernel says in which call a thread sleeps (proc(5)).
        self.shows_calls = os.path.exists("/proc/thread-self/syscall")
        #: Told by the version that each of its releases says it is. Its kernel panics where SO_LINGER with no time
        #: resets a connection in SYN-RECEIVED that this end opened (pkg/tcpip/transport/tcp, resetConnectionLocked).
        self.is_gvisor = os.uname().version == "#1 SMP Sun Jan 10 15:06:54 PST 2016"
        #: Whether connections are listed that no descriptor refers to: those not yet accepted, orphans, TIME-WAIT.
        self.lists_all = False
        self.capabilities = tuple(self._find())

    # Settings --------------------------------------------------------------------------------------------------------
    def set(self, name: str, value: Any) -> str:
        """Write *value* to the sysctl *name*, until :meth:`restore`; what it was. Raises OSError, ValueError."""
        path = Path("/proc/sys", *name.split("."))
        if not path.is_relative_to("/proc/sys") or ".." in path.parts or "/" in name:
            raise ValueError(f"{name!r} is no sysctl's name")
        before = path.read_text()
        path.write_text(f"{value}\n")
        self._written.setdefault(path, before)
        return before.strip()

    def restore(self) -> None:
        """Give back their values to the sysctls that were written."""
        for path, before in self._written.items():
            with contextlib.suppress(OSError):
                path.write_text(before)
        self._written.clear()

    # States ----------------------------------------------------------------------------------------------------------
    def state(self, ip: int, port: int, peer: int) -> str | None:
        """The state of the connection between *port* and the peer's port, 0 for the listener; None: cannot be seen.

        Raises OSError.
        """
        with open("/proc/self/net/tcp" if ip == 4 else "/proc/self/net/tcp6") as table:
            for line in table.readlines()[1:]:
                _, local, remote, state, *_ = line.split()
                number = int(state, 16)
                here, there = (int(address.rpartition(":")[2], 16) for address in (local, remote))
                if here == port and there == peer and (number == 10) == (peer == 0):
                    return _STATES.get(number)
        return "CLOSED" if self.lists_all or not peer else None

    # Capabilities ----------------------------------------------------------------------------------------------------
    def _find(self) -> list[str]:
        found = ["calls"]
        if self.shows_calls or os.path.exists("/proc/thread-self/stat"):
            found.append("overlap")
        if _can(_kill):
            found += ["fork", "kill"]
        with contextlib.suppress(OSError), _Pair() as pair:
            found += [name for name, test in _TESTS.items() if _can(test, pair)]
            with contextlib.suppress(OSError):
                if self.state(4, pair.port, pair.client.getsockname()[1]) == "ESTABLISHED":
                    found.append("states")
                self.lists_all = pair.unaccepted_is_listed(self)
        return found


class _Pair:
    """A connection over the loopback device, closed by reset."""

    def __init__(self) -> None:
        self.calls = Calls(4, _LOOPBACK, _LOOPBACK)
        self.sockets: list[socket.socket] = []

    def __enter__(self) -> _Pair:
        try:
            self.listener = self.unbound()
            self.listener.bind((_LOOPBACK, 0))
            self.listener.listen(4)
            self.port: int = self.listener.getsockname()[1]
            self.client = self.connect()
            self.server = self.listener.accept()[0]
            self.sockets.append(self.server)
            self.server.settimeout(_SECONDS)
        except OSError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self.sockets:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))
            sock.close()
        self.calls.drop()

    def unbound(self) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.settimeout(_SECONDS)
        self.sockets.append(sock)
        return sock

    def connect(self) -> socket.socket:
        sock = self.unbound()
        sock.connect((_LOOPBACK, self.port))
        return sock

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """Another connection: the client's end, the server's."""
        client = self.connect()
        server = self.listener.accept()[0]
        server.settimeout(_SECONDS)
        self.sockets.append(server)
        return client, server

    def unaccepted_is_listed(self, system: System) -> bool:
        """Whether a connection shows that waits in the listener's queue."""
        port = self.connect().getsockname()[1]
        return system.state(4, self.port, port) is not None


def _can(test: Callable[..., bool], *arguments: Any) -> bool:
    try:
        return test(*arguments)
    except OSError:
        return False


def _kill() -> bool:
    child = os.fork()
    if child == 0:
        while True:
            signal.pause()
    os.kill(child, signal.SIGKILL)
    try:
        return os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    except ChildProcessError:  # SIGCHLD is ignored: nobody has to wait, and waitpid(2) returned at the child's end
        return True


def _dup(pair: _Pair) -> bool:
    os.close(os.dup(pair.client.fileno()))
    return True


def _option(level: int, number: int, value: bytes) -> Callable[[_Pair], bool]:
    """Whether an option has the value that it was given."""

    def test(pair: _Pair) -> bool:
        sock = pair.unbound()
        sock.setsockopt(level, number, value)
        return bytes(sock.getsockopt(level, number, len(value))) == value

    return test


def _sigpipe(pair: _Pair) -> bool:
    client, _ = pair.pair()
    client.shutdown(socket.SHUT_WR)
    descriptor = Descriptor(client, OpenFile())
    reply: Reply = pair.calls.perform({"do": "send", "payload": "00"}, descriptor)
    return reply.get("signals") == ["SIGPIPE"]


def _urgent(pair: _Pair) -> bool:
    client, server = pair.pair()
    client.send(b"!", socket.MSG_OOB)
    poll = select.poll()
    poll.register(server.fileno(), select.POLLPRI | select.POLLIN)
    found = poll.poll(_SECONDS * 1000)
    if not found or not found[0][1] & select.POLLPRI:  # or it came as any other octet
        return False
    server.settimeout(None)  # with a time Python waits for readability first, which an urgent octet is not
    return bytes(server.recv(1, socket.MSG_OOB | socket.MSG_DONTWAIT)) == b"!"


def _tcp_info(pair: _Pair) -> bool:
    return bool(pair.client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)[0] == 1)


def _repair(pair: _Pair) -> bool:
    sock = pair.unbound()
    for number, value in ((19, 1), (20, 2), (21, 0x12345678)):  # TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ
        sock.setsockopt(socket.IPPROTO_TCP, number, value)
    return sock.getsockopt(socket.IPPROTO_TCP, 21) == 0x12345678


def _shutdown_read(pair: _Pair) -> bool:
    client, _ = pair.pair()
    client.shutdown(socket.SHUT_RD)
    return client.recv(1) == b""


def _reuse_port(pair: _Pair) -> bool:
    first, second = pair.unbound(), pair.unbound()
    for sock in (first, second):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((_LOOPBACK, 0 if sock is first else first.getsockname()[1]))
        sock.listen(1)
    return True


def _fast_open(pair: _Pair) -> bool:
    sock = pair.unbound()
    sock.setsockopt(socket.IPPROTO_TCP, 23, 5)
    return sock.getsockopt(socket.IPPROTO_TCP, 23) == 5 and sock.getsockopt(socket.IPPROTO_TCP, 30) >= 0


_TESTS: dict[str, Callable[[_Pair], bool]] = {
    "dup": _dup,
    "sigpipe": _sigpipe,
    "linger": _option(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 3)),
    "urgent": _urgent,
    "tcp-info": _tcp_info,
    "repair": _repair,
    "shutdown-read": _shutdown_read,
    "reuse-port": _reuse_port,
    "fast-open": _fast_open,
}
