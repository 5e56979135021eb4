"""What the processes of a run ask of the kernel that Python's ``os`` (of 3.11) does not have."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import selectors
import time

_PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 15, 36

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _prctl(option: int, argument: int) -> None:
    _check(_libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0))


def adopt_orphans() -> None:
    """Descendants whose parent is gone become children of this process, not of init."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def name_process(name: str) -> None:
    """What ``ps`` shows, cut to 15 octets."""
    with contextlib.suppress(OSError):
        _check(_libc.prctl(_PR_SET_NAME, ctypes.c_char_p(name.encode()[:15]), 0, 0, 0))


def tcp_sockets() -> int:
    """How many TCP sockets, of both IP versions, are in the network namespace that the calling thread is in.

    TIME-WAIT and connections not yet established (which go with their listener) are not counted: they pin nothing.
    """
    count = 0
    for name in ("sockstat", "sockstat6"):
        try:
            fd = os.open(f"/proc/thread-self/net/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # a kernel without IPv6
            continue
        try:
            text = os.read(fd, 4096)
        finally:
            os.close(fd)
        for line in text.splitlines():
            if line.startswith((b"TCP:", b"TCP6:")):
                count += int(line.split()[2])
    return count


def close_other_descriptors(keep: set[int]) -> None:
    """Close all but *keep*; standard input, output and error become /dev/null, so that nobody waits for their end."""
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        if fd not in keep:
            os.dup2(null, fd)
    low = 3
    for fd in sorted(keep | {1 << 20}):
        if fd >= low:
            os.closerange(low, fd)
            low = fd + 1


def raise_descriptor_limit(wanted: int = 65536) -> int:
    """As many descriptors as wanted, or as are allowed. How many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft == resource.RLIM_INFINITY or soft >= limit:
        return soft if soft != resource.RLIM_INFINITY else wanted
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit


def wait_for(pid: int, timeout: float) -> int | None:
    """The exit status of the child *pid* once it is gone, ``None`` if it is not within *timeout* seconds."""
    deadline = time.monotonic() + timeout
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return 0
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(fd, selectors.EVENT_READ)
            while True:
                try:
                    done, status = os.waitpid(pid, os.WNOHANG)
                except ChildProcessError:
                    return 0
                if done:
                    return status
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                selector.select(left)
    finally:
        os.close(fd)
