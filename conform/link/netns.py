"""Network namespaces, and the user namespace that lets an ordinary user have them.

A thread has a *home*: the network namespace it is in when it does nothing else. Everything here changes the namespace
of the calling thread alone (network_namespaces(7), setns(2)) and returns home.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

_PR_SET_PDEATHSIG = 1

#: ``/proc/self`` would name the main thread's namespace, whichever thread asks.
_THREAD_NAMESPACE = "/proc/thread-self/ns/net"

_libc = ctypes.CDLL(None, use_errno=True)


class PrivilegeError(Exception):
    """The machine does not let us have what we need: ``cause`` says why, ``remedy`` which command mends it."""

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(f"{cause}; {remedy}" if remedy else cause)
        self.cause = cause
        self.remedy = remedy


def unshare(flags: int) -> None:
    """unshare(2). Raises OSError."""
    if _libc.unshare(flags):
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)}: unshare({flags:#x})")


def setns(fd: int) -> None:
    """Put the calling thread into the network namespace *fd* (setns(2)). Raises OSError."""
    if _libc.setns(fd, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)}: setns")


def die_with_parent() -> None:
    """The calling process is killed when its parent is gone (prctl(2)). Raises OSError."""
    if _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)}: prctl(PR_SET_PDEATHSIG)")


def _open_own() -> int:
    return os.open(_THREAD_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)


class _Here(threading.local):
    """Where the calling thread is: the descriptor of its namespace, and whether its home was made by us."""

    def __init__(self) -> None:
        self.fd = -1
        self.own_home = False
        self.outside = -1

    def get(self) -> int:
        if self.fd < 0:
            self.fd = _open_own()
        return self.fd


_here = _Here()


class Namespace:
    """A network namespace, held by a descriptor. It is gone when nothing refers to it any more.

    What refers to it besides descriptors: processes in it, open sockets (devices do not), and orphaned connections
    until they end.
    """

    def __init__(self, fd: int) -> None:
        """Take over the descriptor *fd* of a network namespace."""
        self._fd = fd

    @classmethod
    def create(cls) -> Namespace:
        """A new namespace; the calling thread is back where it was. Raises OSError (ENOSPC: too many, EPERM)."""
        back = _here.get()
        unshare(CLONE_NEWNET)
        try:
            return cls(_open_own())
        finally:
            setns(back)

    @property
    def fd(self) -> int:
        """The descriptor, for setns(2) and IFLA_NET_NS_FD; -1 once closed."""
        return self._fd

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Be inside for the length of a ``with``: a socket opened there stays there. Raises OSError."""
        back = _here.get()
        setns(self._fd)
        _here.fd = self._fd
        try:
            yield
        finally:
            _here.fd = back
            setns(back)

    def close(self) -> None:
        """Let go of it. The kernel takes it down in the background."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def unshare_home() -> None:
    """Give the calling thread a new, empty network namespace for its home, silent in IPv6.

    A worker does so once before it makes any veth pair. Raises OSError.
    """
    outside = _open_own()
    unshare(CLONE_NEWNET)
    _adopt_home()
    _here.outside = outside


def outside() -> Namespace | None:
    """The namespace that this thread was in before :func:`unshare_home`: this machine's own interfaces are there.

    ``None`` where it did not do that, or could not go back: in a user namespace.
    """
    if _here.outside < 0:
        return None
    found = Namespace(os.dup(_here.outside))
    try:
        with found.enter():
            return found
    except OSError:
        found.close()
        return None


def has_own_home() -> bool:
    """Whether this thread's home was made by :func:`unshare_home` or :func:`enter_user_namespace`."""
    return _here.own_home


def _adopt_home() -> None:
    if _here.fd >= 0:
        os.close(_here.fd)
    _here.fd = _open_own()
    _here.own_home = True
    # The tester's devices have no addresses and must not get any by themselves.
    for scope in ("all", "default"):
        with suppress(FileNotFoundError):  # a kernel without IPv6
            write_sysctl(f"net.ipv6.conf.{scope}.disable_ipv6", 1)


def map_user_namespace() -> None:
    """unshare into a user namespace with us as its root, and a network namespace of its own. Raises OSError."""
    uid, gid = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER | CLONE_NEWNET)
    # user_namespaces(7): an unprivileged process may map its group only after it gave up setgroups(2).
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        _write(f"/proc/self/{name}", text)


def enter_user_namespace() -> None:
    """Make this process root of a user namespace that owns its home and every namespace it creates from now on.

    For a process with one thread and without privileges; it cannot go back. Raises PrivilegeError, with the cause
    and the command that mends it.
    """
    try:
        map_user_namespace()
        _adopt_home()
    except OSError as error:
        from conform.link.privileges import explain_user_namespaces

        cause, remedy = explain_user_namespaces(error.errno or 0)
        raise PrivilegeError(cause, remedy) from error


# Settings ------------------------------------------------------------------------------------------------------------
def _sysctl_path(name: str) -> str:
    # As sysctl(8) does: in a name with slashes the dots are part of the words (an interface may be called eth0.1).
    return "/proc/sys/" + (name if "/" in name else name.replace(".", "/"))


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def write_sysctl(name: str, value: int | str) -> None:
    """Set ``net.ipv4.tcp_sack`` and the like in the namespace that the calling thread is in.

    Raises FileNotFoundError when the kernel has no such setting (here), OSError when it refuses the value.
    """
    try:
        _write(_sysctl_path(name), str(value))
    except OSError as error:
        raise _told(error, f"sysctl {name} = {value}") from None


def read_sysctl(name: str) -> str:
    """The setting's text, in the namespace that the calling thread is in. Raises FileNotFoundError, OSError."""
    try:
        with open(_sysctl_path(name)) as file:
            return file.read().strip()
    except OSError as error:
        raise _told(error, f"sysctl {name}") from None


def _told(error: OSError, attempted: str) -> OSError:
    return OSError(error.errno, f"{os.strerror(error.errno or 0)}: {attempted}")  # OSError picks the subclass
