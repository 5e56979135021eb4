"""The tester's end of a link to a stack that is not this kernel: a packet socket on a network device (packet(7)).

The device is the kernel's side of a TAP or TUN, one end of a veth pair, or an interface of this machine. It has no
address in the kernel, which therefore never answers in the tester's stead.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import socket
import struct
import threading
import time

from conform.link.medium import Deliver, Loop
from conform.link.neighbour import ETH_P_IP, ETH_P_IPV6, Neighbours

ETH_P_ALL = 0x0003
LARGEST = 65536
#: How many packets are read in one turn of the loop.
_READS = 1000
_SOL_PACKET, _PACKET_STATISTICS, _PACKET_QDISC_BYPASS, _PACKET_IGNORE_OUTGOING = 263, 6, 20, 23
_SO_TIMESTAMPNS = 35 if struct.calcsize("P") == 8 else 64  # SO_TIMESTAMPNS_OLD, _NEW where time_t grew


def open_socket(protocol: int) -> socket.socket:
    """A packet socket in the calling thread's namespace, non-blocking, whose packets carry their time. Raises OSError.

    With *protocol* 0 it receives nothing until it is bound.
    """
    kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    made = socket.socket(socket.AF_PACKET, kind, socket.htons(protocol))
    # Straight to the driver: behind a queueing discipline the first packets after link-up may be lost.
    made.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
    made.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    made.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    return made


def lost(sock: socket.socket) -> int:
    """How many packets *sock* had no room for since this was asked last: the tester's own fault."""
    dropped: int = struct.unpack("II", sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))[1]
    return dropped


def monotonic_shift() -> float:
    """What to add to a packet's time stamp for ``time.monotonic()``.

    A moment of the monotonic clock, then the same or a later one of the stamps' clock: what arrived at a stamp did not
    arrive before stamp + shift.
    """
    return time.monotonic() - time.time()


def since(floor: float, ancillary: list[tuple[int, int, bytes]], shift: float) -> float:
    """The latest moment before a packet's arrival: its time stamp, but not before *floor*, when none was unread."""
    for _, kind, stamp in ancillary:
        if kind == _SO_TIMESTAMPNS:
            seconds, nanoseconds = struct.unpack("qq", stamp[:16])
            moment: float = seconds + nanoseconds * 1e-9 + shift
            # Should the machine's clock have been set between, the loop's own bounds still hold.
            return min(max(floor, moment), time.monotonic())
    return floor


class PacketPort:
    """Sends and receives IP packets on the device *name* of the namespace that the calling thread is in.

    With *neighbours* the link is Ethernet, and they answer and are asked. ``since`` of a delivery is the packet's own
    time stamp. Raises OSError.
    """

    def __init__(self, loop: Loop, name: str, neighbours: Neighbours | None, deliver: Deliver) -> None:
        self._loop = loop
        self._name = name
        self._neighbours = neighbours
        self._deliver = deliver
        self._lost = 0
        self._closed = False
        self._emptied = True
        self._floor = loop.polled  # nothing that is unread came before
        self._socket = open_socket(0)  # bound before it is opened for any protocol: it must not see other devices
        try:
            self._socket.bind((name, ETH_P_ALL))
        except OSError as error:
            self._socket.close()
            raise OSError(error.errno, f"{os.strerror(error.errno or 0)}: a packet socket on {name}") from None
        loop.add_reader(self._socket.fileno(), self._read)

    @property
    def resolved(self) -> bool:
        """Whether it is known where to send: always, but on Ethernet until the stack was heard."""
        return self._neighbours is None or self._neighbours.known

    @property
    def heard(self) -> set[str]:
        """The addresses that somebody on the link has, as far as was heard."""
        return self._neighbours.heard if self._neighbours is not None else set()

    def resolve(self) -> None:
        """Ask for the stack's link-layer address, where it is not known. Raises OSError."""
        if self._neighbours is not None and not self._neighbours.known:
            for ethertype, data, to in self._neighbours.ask():
                self._put(ethertype, data, to)

    def send(self, data: bytes) -> None:
        """Send the IP packet *data* to the stack. Raises OSError."""
        to = self._neighbours.stack if self._neighbours is not None else b""
        self._put(ETH_P_IPV6 if data[:1] and data[0] >> 4 == 6 else ETH_P_IP, data, to)

    def _put(self, ethertype: int, data: bytes, to: bytes) -> None:
        try:
            self._socket.sendto(data, (self._name, ethertype, 0, 0, to))
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise
            text = f"a packet of {len(data)} octets exceeds the MTU of {self._name}; send smaller segments"
            raise OSError(errno.EMSGSIZE, text) from None

    def lost(self) -> int:
        """How many packets out of the stack there was no room for, so far: the tester's own fault."""
        if not self._closed:
            self._lost += lost(self._socket)
        return self._lost

    def _read(self) -> None:
        shift = monotonic_shift()
        if self._emptied:
            self._floor = self._loop.polled
        self._emptied = False
        for _ in range(_READS):  # others have their turn, too, whatever the stack sends
            if self._closed:  # by the receiver
                return
            try:
                data, ancillary, _, source = self._socket.recvmsg(LARGEST, 64)
            except BlockingIOError:
                self._emptied = True
                return
            except OSError as error:
                if error.errno == errno.ENETDOWN:  # told once
                    continue
                raise
            if self._neighbours is not None:
                answers = self._neighbours.hear(source[1], data, source[4])
                if answers is not None:
                    for ethertype, answer, to in answers:
                        with contextlib.suppress(OSError):  # as good as lost: whoever asks asks again
                            self._put(ethertype, answer, to)
                    continue
            if source[1] in (ETH_P_IP, ETH_P_IPV6):
                self._deliver(data, since(self._floor, ancillary, shift))

    def close(self) -> None:
        """Deliver nothing any more."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._socket.fileno())
            _closer.close(self._socket)


class _Closer:
    """Closes packet sockets in a thread: the kernel makes whoever closes one wait for all processors (10 to 30 ms)."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._pid = 0

    def close(self, sock: socket.socket) -> None:
        if self._pid != os.getpid():  # a fork leaves the thread behind
            self._queue = queue.SimpleQueue()
            self._thread = threading.Thread(target=self._run, args=(self._queue,), daemon=True)
            self._thread.start()
            self._pid = os.getpid()
        self._queue.put(sock)

    @staticmethod
    def _run(waiting: queue.SimpleQueue[socket.socket]) -> None:
        while True:
            waiting.get().close()


_closer = _Closer()
