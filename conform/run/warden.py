"""The warden outlives everything: it holds a descriptor of every live namespace and destroys what a kill leaves in it.

A connection that is open when its process dies becomes an orphan in FIN-WAIT-1 and pins its namespace for about 107 s.
Nobody but someone who was not killed can prevent that. So the warden is a process of its own, in a session of its own,
forked while main is still small, and deaf to every signal that can be ignored. It learns of a death by the end of file
on a socket, which no way of dying can withhold.

One message a trial: its namespace's descriptor, its number, and the numbers of those that ended since the last message.
"""

from __future__ import annotations

import array
import contextlib
import os
import selectors
import signal
import socket
import struct
import time
from collections.abc import Iterator

from conform.link.netns import setns
from conform.run import kernel

_NUMBER = struct.Struct("=I")
_MESSAGE = 65536
#: A dead worker's agents die a moment after its sockets are closed, and may use theirs until then: the pauses before
#: its namespaces are looked at again. (Not hiding a race: SOCK_DESTROY reaches what is there, whoever holds it; what
#: comes later needs a later look.)
_LOOKS = (0.0, 0.05, 0.3)


class WardenGoneError(Exception):
    """There is no warden any more. No OSError: nobody may take it for a fault of a single trial."""


class Ward:
    """A worker's side: it registers each namespace before anything is opened in it."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._next = 0
        self._done: list[bytes] = []

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._end.fileno()

    def hold(self, netns: int) -> int:
        """The warden holds the namespace of that descriptor from now on. Gives the number to release it by.

        Raises WardenGoneError, and then nothing may be opened in the namespace.
        """
        self._next = self._next + 1 & 0xFFFFFFFF
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [netns]))]
        try:
            self._end.sendmsg([_NUMBER.pack(self._next), *self._done], rights)
        except ConnectionError:
            raise WardenGoneError from None
        self._done.clear()
        return self._next

    def release(self, number: int) -> None:
        """The worker has let go of that namespace, and nothing is open in it. Told with the next message."""
        self._done.append(_NUMBER.pack(number))
        if len(self._done) >= 64:
            self.flush()

    def flush(self) -> None:
        """Tell now what was released. A warden that is gone need not know."""
        if self._done:
            with contextlib.suppress(ConnectionError):
                self._end.send(_NUMBER.pack(0) + b"".join(self._done))
            self._done.clear()

    def close(self) -> None:
        """The worker ends in order."""
        with contextlib.suppress(OSError):
            self.flush()
        self._end.close()


class Warden:
    """Main's side: it starts the warden and makes an end for each worker."""

    def __init__(self, scratch: str = "") -> None:
        """*scratch* is a directory that the run may make; it is removed when all have ended, however they did."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            with contextlib.suppress(BaseException):
                ours.close()
                _live(theirs)
                if scratch:
                    _remove(scratch)
            os._exit(0)
        theirs.close()
        self._end = ours
        self._pidfd = os.pidfd_open(self.pid)

    def fileno(self) -> int:
        """A descriptor that is readable once the warden is gone."""
        return self._pidfd

    def gone(self, timeout: float = 0.0) -> bool:
        """Whether it is gone, or is within *timeout* seconds."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._pidfd, selectors.EVENT_READ)
            return bool(selector.select(timeout))

    def new_end(self) -> socket.socket:
        """An end for one worker. To be closed here once that worker is forked, else its death goes unseen."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [theirs.fileno()]))]
            self._end.sendmsg([_NUMBER.pack(0)], rights)
        return ours

    def forget(self) -> None:
        """In a worker just forked: let go of main's end, which must close when main dies."""
        self._end.close()
        os.close(self._pidfd)

    def close(self, timeout: float = 2.0) -> bool:
        """Main ends in order: the warden does once all workers have. Whether it did within *timeout* seconds."""
        self._end.close()
        os.close(self._pidfd)
        return kernel.wait_for(self.pid, timeout) is not None


def _live(main: socket.socket) -> None:
    """The warden's life."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)
    kernel.close_other_descriptors({main.fileno()})
    kernel.raise_descriptor_limit()
    kernel.name_process("conform-warden")
    os.chdir("/")
    held: dict[socket.socket, dict[int, int]] = {main: {}}
    dead: list[tuple[float, int, int]] = []  # (when to look, which look it is, the namespace's descriptor)
    selector = selectors.DefaultSelector()
    selector.register(main, selectors.EVENT_READ)
    while held or dead:
        timeout = max(0.0, min(dead)[0] - time.monotonic()) if dead else None
        for key, _ in selector.select(timeout):
            end = key.fileobj
            assert isinstance(end, socket.socket)
            if _read(end, held, main, selector):
                continue
            selector.unregister(end)
            end.close()
            now = time.monotonic()
            dead += [(now + _LOOKS[0], 0, netns) for netns in held.pop(end).values()]
        dead = list(_look(dead))


def _remove(directory: str) -> None:
    import shutil  # not before: the warden is to stay small

    shutil.rmtree(directory, ignore_errors=True)


def _read(
    end: socket.socket,
    held: dict[socket.socket, dict[int, int]],
    main: socket.socket,
    selector: selectors.BaseSelector,
) -> bool:
    """Take one message from *end*. Whether there was one, not its end of file."""
    try:
        data, rights, _, _ = end.recvmsg(_MESSAGE, socket.CMSG_SPACE(_NUMBER.size), socket.MSG_CMSG_CLOEXEC)
    except ConnectionError:
        return False
    if not data:
        return False
    received = array.array("i")
    for level, kind, payload in rights:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            received.frombytes(payload)
    if end is main:
        for fd in received:
            worker = socket.socket(fileno=fd)
            held[worker] = {}
            selector.register(worker, selectors.EVENT_READ)
        return True
    mine = held[end]
    (number,) = _NUMBER.unpack_from(data)
    for fd in received:
        mine[number] = fd
    for (done,) in _NUMBER.iter_unpack(data[_NUMBER.size :]):
        released = mine.pop(done, None)
        if released is not None:
            os.close(released)
    return True


def _look(dead: list[tuple[float, int, int]]) -> Iterator[tuple[float, int, int]]:
    """Destroy what is open in the namespaces whose time has come; gives those that must be looked at again."""
    now = time.monotonic()
    for when, look, netns in dead:
        if when > now:
            yield when, look, netns
            continue
        with contextlib.suppress(OSError):
            setns(netns)
            _destroy_all()
        if look + 1 < len(_LOOKS):
            yield now + _LOOKS[look + 1], look + 1, netns
        else:
            os.close(netns)


class _Here:
    """The network namespace that the warden has just entered, as SockDiag wants one."""

    fd = -1

    @staticmethod
    def enter() -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def _destroy_all() -> None:
    from conform.stacks.sockdiag import SockDiag

    with contextlib.closing(SockDiag(_Here(), {})) as diag:
        diag.destroy_all()
