"""Connection states as Linux tells them: sock_diag(7), by messages built here.

An exact query is one message each way (about 5 us); a dump walks the kernel's hash of all namespaces (about 0.2 ms).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

from conform.stacks.seams import NetworkNamespace

_NETLINK_SOCK_DIAG = 4
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_SOCK_DIAG_BY_FAMILY, _SOCK_DESTROY = 20, 21
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_ALL_STATES = 0xFFFFFFFF
_NO_COOKIE = b"\xff" * 8
_ANY = bytes(16)

# struct nlmsghdr, struct inet_diag_req_v2 and struct inet_diag_msg of <linux/netlink.h>, <linux/inet_diag.h>.
_REQ = struct.Struct("=IHHII BBBBI 2s2s16s16sI8s")
_HEADER = struct.Struct("=IHHII")
_MSG = struct.Struct("=BBBB 2s2s16s16sI8s IIIII")
_HEADER_SIZE = _HEADER.size

#: The kernel's states (<net/tcp_states.h>) by their names in RFC 9293 section 3.3.2.
STATES = {
    1: "ESTABLISHED", 2: "SYN-SENT", 3: "SYN-RECEIVED", 4: "FIN-WAIT-1", 5: "FIN-WAIT-2", 6: "TIME-WAIT", 7: "CLOSED",
    8: "CLOSE-WAIT", 9: "LAST-ACK", 10: "LISTEN", 11: "CLOSING", 12: "SYN-RECEIVED", 13: "CLOSED",
}  # fmt: skip
_LISTEN = 10


class SockDiag:
    """State read-out and destruction of one namespace's TCP sockets.

    *addresses* maps the IP version to (the stack's, the tester's), as ``StackProfile.addresses`` does. Raises OSError
    where sock_diag is lacking.
    """

    def __init__(self, netns: NetworkNamespace, addresses: dict[int, tuple[str, str]]) -> None:
        self._addresses = {v: (_packed(v, stack), _packed(v, tester)) for v, (stack, tester) in addresses.items()}
        with netns.enter():
            self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
        self._seq = 0
        self._buffer = bytearray(65536)

    def close(self) -> None:
        """Let go of the netlink socket, which holds the namespace."""
        self._sock.close()

    def state(self, version: int, stack_port: int, tester_port: int) -> tuple[str, dict[str, Any]]:
        """The state of a connection, as RFC 9293 spells it, and what else the kernel told.

        ``CLOSED`` where there is no record. *tester_port* 0 asks for the listener on *stack_port*. The info has
        ``rqueue`` and ``wqueue`` (octets not yet read, and not yet acknowledged; in LISTEN the connections not yet
        accepted, and the backlog), ``inode`` (0 without a descriptor: an orphan, not yet accepted), ``timer``
        (0 none, 1 retransmission, 2 keep-alive or FIN-WAIT-2, 3 TIME-WAIT, 4 zero-window probe), ``expires`` (ms until
        it fires), ``retrans`` (how often it fired). Raises OSError.
        """
        found = self._find(version, stack_port, tester_port)
        if found is None:
            return "CLOSED", {}
        (_, state, timer, retrans, *_, expires, rqueue, wqueue, uid, inode) = found
        return STATES.get(state, f"state {state}"), {
            "rqueue": rqueue, "wqueue": wqueue, "inode": inode, "uid": uid, "timer": timer, "expires": expires,
            "retrans": retrans,
        }  # fmt: skip

    def destroy(self, version: int, stack_port: int, tester_port: int) -> bool:
        """Destroy exactly that connection (or with *tester_port* 0 that listener). Whether there was one.

        The kernel sends a reset where the peer may still send (tcp_abort). Raises OSError: EPERM without CAP_NET_ADMIN.
        """
        found = self._find(version, stack_port, tester_port)
        return found is not None and self._destroy(version, found)

    def destroy_all(self) -> int:
        """Destroy every TCP socket of the namespace, both IP versions, TIME-WAIT included. How many there were.

        Sockets in CLOSED stay: their owner has them, and nothing of theirs is on the way. Raises OSError.
        """
        count = 0
        for version in (4, 6):
            # Ended before the first is destroyed: a dump goes on from where it was in a hash that would change.
            count += sum(self._destroy(version, found) for found in list(self._dump(version)))
        return count

    # Messages --------------------------------------------------------------------------------------------------------
    def _ask(
        self, kind: int, flags: int, version: int, sport: bytes, dport: bytes, src: bytes, dst: bytes, cookie: bytes
    ) -> None:
        self._seq = self._seq + 1 & 0xFFFFFFFF
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        self._sock.send(
            _REQ.pack(
                _REQ.size, kind, _REQUEST | flags, self._seq, 0,
                family, socket.IPPROTO_TCP, 0, 0, _ALL_STATES, sport, dport, src, dst, 0, cookie,
            )
        )  # fmt: skip

    def _find(self, version: int, stack_port: int, tester_port: int) -> tuple[Any, ...] | None:
        stack, tester = self._addresses[version]
        sport, dport = stack_port.to_bytes(2, "big"), tester_port.to_bytes(2, "big")
        self._ask(_SOCK_DIAG_BY_FAMILY, 0, version, sport, dport, stack, tester if tester_port else _ANY, _NO_COOKIE)
        self._sock.recv_into(self._buffer)
        _, kind, _, _, _ = _HEADER.unpack_from(self._buffer)
        if kind == _NLMSG_ERROR:
            self._check({errno.ENOENT})
            return None
        found = _MSG.unpack_from(self._buffer, _HEADER_SIZE)
        # The kernel looks as for an arriving segment: the listener answers for a connection that is gone.
        if tester_port and (found[1] == _LISTEN or found[5] != dport):
            return None
        return None if not tester_port and found[1] != _LISTEN else found

    def _check(self, allowed: set[int]) -> int:
        (number,) = struct.unpack_from("=i", self._buffer, _HEADER_SIZE)
        if number and -number not in allowed:
            raise OSError(-number, os.strerror(-number))
        return -int(number)

    def _destroy(self, version: int, found: tuple[Any, ...]) -> bool:
        # With its cookie, so that it is this one that goes, and not the listener behind it.
        sport, dport, src, dst, _, cookie = found[4:10]
        self._ask(_SOCK_DESTROY, _ACK, version, sport, dport, src, dst, cookie)
        self._sock.recv_into(self._buffer)
        return self._check({errno.ENOENT, errno.ESTALE}) == 0

    def _dump(self, version: int) -> Iterator[tuple[Any, ...]]:
        self._ask(_SOCK_DIAG_BY_FAMILY, _DUMP, version, b"\0\0", b"\0\0", _ANY, _ANY, _NO_COOKIE)
        while True:
            size = self._sock.recv_into(self._buffer)
            at = 0
            while at < size:
                length, kind, *_ = _HEADER.unpack_from(self._buffer, at)
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    self._check(set())
                    return
                yield _MSG.unpack_from(self._buffer, at + _HEADER_SIZE)
                at += length + 3 & ~3

    def __enter__(self) -> SockDiag:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.close()


def _packed(version: int, address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET if version == 4 else socket.AF_INET6, address).ljust(16, b"\0")
