"""TUN: one character device a trial, whose packets begin with the IP header.

Documentation/networking/tuntap.rst of Linux, linux/if_tun.h.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Mapping

from conform.link.medium import STACK_INDEX, STACK_INTERFACE, Addresses, Deliver, Loop, check_mtu, configure_stack_side
from conform.link.netlink import Netlink
from conform.link.netns import Namespace

DEVICE = "/dev/net/tun"
_TUNSETIFF, _TUNSETPERSIST, _TUNSETIFINDEX = 0x400454CA, 0x400454CB, 0x400454DA
_IFF_TUN, _IFF_TAP, _IFF_NO_PI = 0x0001, 0x0002, 0x1000
_LARGEST = 65536


def make_persistent(index: int, name: str, *, ethernet: bool) -> None:
    """Make a TUN (or, with *ethernet*, TAP) interface that someone else will open by its name. Raises OSError."""
    os.close(open_device(index, name, ethernet=ethernet))


def open_device(index: int, name: str, *, ethernet: bool = False) -> int:
    """A non-blocking descriptor of a new TUN (TAP) interface in the calling thread's namespace. Raises OSError.

    No offload is asked for: the kernel fills in checksums and cuts super-segments before they come here. The interface
    persists, because taking it down with its descriptor costs some 27 ms; it dies with the namespace.
    """
    fd = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _TUNSETIFINDEX, struct.pack("=I", index))
        fcntl.ioctl(
            fd, _TUNSETIFF, struct.pack("=16sH22x", name.encode(), (_IFF_TAP if ethernet else _IFF_TUN) | _IFF_NO_PI)
        )
        fcntl.ioctl(fd, _TUNSETPERSIST, 1)
    except OSError as error:
        os.close(fd)
        raise OSError(error.errno, f"{os.strerror(error.errno or 0)}: make TUN interface {name}") from error
    return fd


class TunPort:
    """A trial's end of a TUN link. Its packets carry no time: ``since`` is when the loop last found none."""

    def __init__(self, loop: Loop, fd: int, deliver: Deliver) -> None:
        self._loop = loop
        self._fd = fd
        self._deliver = deliver
        self._found_empty = time.monotonic()
        loop.add_reader(fd, self._read)

    def send(self, data: bytes) -> None:
        """Inject *data*. When this returns the stack has processed it. Raises OSError."""
        os.write(self._fd, data)

    def _read(self) -> None:
        since = max(self._found_empty, self._loop.polled)
        while self._fd >= 0:  # the receiver may close us
            before = time.monotonic()
            try:
                data = os.read(self._fd, _LARGEST)
            except BlockingIOError:
                self._found_empty = before
                return
            self._deliver(data, since)

    def close(self) -> None:
        """Deliver nothing any more."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


class TunMedium:
    """Makes a TUN interface in each trial's namespace."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def attach(
        self,
        netns: Namespace,
        addresses: Addresses,
        deliver: Deliver,
        *,
        mtu: int | None = None,
        metrics: Mapping[str, int] | None = None,
    ) -> TunPort:
        """Connect *netns*, once. See :func:`~conform.link.medium.configure_stack_side`.

        Raises OSError with what was attempted, ValueError for an MTU that IPv6 cannot have, KeyError for an
        unknown metric.
        """
        check_mtu(addresses, mtu)
        with netns.enter():
            fd = open_device(STACK_INDEX, STACK_INTERFACE)
            try:
                link = Netlink()
            except OSError:
                os.close(fd)
                raise
        try:
            with link:
                configure_stack_side(link, STACK_INDEX, addresses, mtu=mtu, metrics=metrics)
        except (OSError, KeyError):
            os.close(fd)
            raise
        return TunPort(self._loop, fd, deliver)

    def lost(self) -> int:
        """None: each port has a queue of its own, of 500 packets, which a stack under test does not fill."""
        return 0

    def close(self) -> None:
        """Nothing is shared between ports."""
