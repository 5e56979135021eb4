"""The few rtnetlink messages that set up a trial, built by struct.

They are always the same, and a trial's whole fixed cost is smaller than a general library's for one address.
rtnetlink(7), netlink(7), linux/if_link.h, linux/rtnetlink.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

_NLMSG_ERROR = 2
_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK, _RTM_SETLINK, _RTM_NEWADDR, _RTM_NEWROUTE = 16, 17, 18, 19, 20, 24
_F_REQUEST, _F_ACK, _F_EXCL, _F_CREATE = 1, 4, 0x200, 0x400

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_OPERSTATE, _IFLA_LINKINFO = 1, 3, 4, 16, 18
_IFLA_AF_SPEC, _IFLA_NET_NS_FD, _IFLA_NUM_TX_QUEUES, _IFLA_NUM_RX_QUEUES = 26, 28, 31, 32
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_IFLA_INET6_ADDR_GEN_MODE, _IN6_ADDR_GEN_MODE_NONE = 8, 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_F_NODAD = 1, 2, 0x02
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_METRICS = 1, 4, 5, 8
_RT_TABLE_MAIN, _RT_TABLE_LOCAL, _RTPROT_STATIC, _RTN_UNICAST, _RTN_LOCAL = 254, 255, 4, 1, 2
_RT_SCOPE_UNIVERSE, _RT_SCOPE_LINK = 0, 253
_IF_OPER_UP = 6

IFF_UP = 0x1
IFF_NOARP = 0x80

#: Route metrics by the names of ip-route(8) (RTAX_* of linux/rtnetlink.h).
METRICS = {
    "mtu": 2, "window": 3, "rtt": 4, "rttvar": 5, "ssthresh": 6, "cwnd": 7, "advmss": 8, "reordering": 9,
    "hoplimit": 10, "initcwnd": 11, "features": 12, "rto_min": 13, "initrwnd": 14, "quickack": 15,
}  # fmt: skip

_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")


class Message(NamedTuple):
    """One request: its type, flags and body, and ``what`` it attempts, for the error that it may meet."""

    what: str
    type: int
    flags: int
    body: bytes


def _attribute(kind: int, data: bytes) -> bytes:
    length = 4 + len(data)
    return struct.pack("=HH", length, kind) + data + bytes(-length % 4)


def _u32(kind: int, value: int) -> bytes:
    return struct.pack("=HHI", 8, kind, value)


def _family(version: int) -> int:
    return socket.AF_INET if version == 4 else socket.AF_INET6


# Messages ------------------------------------------------------------------------------------------------------------
def link_set(index: int, *, flags: int = 0, mtu: int | None = None, autoconf: bool = True) -> Message:
    """Set the interface's *flags* (IFF_UP, IFF_NOARP) and its *mtu* in octets.

    Without *autoconf* the interface never makes itself an IPv6 link-local address (addr-gen-mode none), so that it
    sends no router solicitation. The kernel sets flags first: ask for that in a message before the one with IFF_UP.
    """
    body = _LINK.pack(socket.AF_UNSPEC, 0, index, flags, flags)
    if mtu is not None:
        body += _u32(_IFLA_MTU, mtu)
    if not autoconf:
        mode = _attribute(_IFLA_INET6_ADDR_GEN_MODE, bytes([_IN6_ADDR_GEN_MODE_NONE]))
        body += _attribute(_IFLA_AF_SPEC, _attribute(socket.AF_INET6, mode))
    what = f"set link {index}" + f" flags {flags:#x}" * bool(flags) + (f" mtu {mtu}" if mtu is not None else "")
    return Message(what, _RTM_SETLINK, 0, body)


def link_delete(index: int) -> Message:
    """Delete the interface (and the peer of a veth)."""
    return Message(f"delete link {index}", _RTM_DELLINK, 0, _LINK.pack(0, 0, index, 0, 0))


def address_add(index: int, version: int, address: str, prefix: int | None = None) -> Message:
    """Give the interface *address*, as a host address without *prefix* (its length); in IPv6 without duplicate
    address detection (RFC 4862).
    """
    family = _family(version)
    octets = socket.inet_pton(family, address)
    length = len(octets) * 8 if prefix is None else prefix
    body = struct.pack("=BBBBI", family, length, _IFA_F_NODAD if version == 6 else 0, 0, index)
    body += _attribute(_IFA_LOCAL, octets) + _attribute(_IFA_ADDRESS, octets)
    return Message(f"add address {address} to link {index}", _RTM_NEWADDR, _F_CREATE | _F_EXCL, body)


def default_route_add(
    index: int, version: int, metrics: Mapping[str, int] | None = None, via: str | None = None
) -> Message:
    """Send everything out of the interface, to the gateway *via* where there is one.

    *metrics* are as in :data:`METRICS`. Raises KeyError for an unknown one.
    """
    scope = _RT_SCOPE_LINK if version == 4 and via is None else _RT_SCOPE_UNIVERSE
    body = struct.pack("=BBBBBBBBI", _family(version), 0, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC, scope, _RTN_UNICAST, 0)
    body += _u32(_RTA_OIF, index)
    if via is not None:
        body += _attribute(_RTA_GATEWAY, socket.inet_pton(_family(version), via))
    if metrics:
        body += _attribute(_RTA_METRICS, b"".join(_u32(METRICS[name], value) for name, value in metrics.items()))
    return Message(f"add IPv{version} default route by link {index}", _RTM_NEWROUTE, _F_CREATE | _F_EXCL, body)


def local_route_add(index: int, address: str) -> Message:
    """Have the IPv6 *address* taken for our own from now on.

    The kernel adds such a route for each address by itself, but only later, in a work queue (addrconf_dad_work): what
    comes for the address before is not for us, and is dropped.
    """
    octets = socket.inet_pton(socket.AF_INET6, address)
    scope = _RT_SCOPE_UNIVERSE
    body = struct.pack("=BBBBBBBBI", socket.AF_INET6, 128, 0, 0, _RT_TABLE_LOCAL, _RTPROT_STATIC, scope, _RTN_LOCAL, 0)
    body += _attribute(_RTA_DST, octets) + _u32(_RTA_OIF, index)
    return Message(f"add local route to {address} by link {index}", _RTM_NEWROUTE, _F_CREATE | _F_EXCL, body)


@dataclass(frozen=True, slots=True)
class Interface:
    """One end of a veth pair to be made. ``hardware`` is its link-layer address, six octets."""

    index: int
    name: str
    hardware: bytes
    flags: int = 0


def _interface(end: Interface, mtu: int | None) -> bytes:
    body = _LINK.pack(socket.AF_UNSPEC, 0, end.index, end.flags, end.flags)
    body += _attribute(_IFLA_IFNAME, end.name.encode() + b"\0") + _attribute(_IFLA_ADDRESS, end.hardware)
    body += _u32(_IFLA_NUM_TX_QUEUES, 1) + _u32(_IFLA_NUM_RX_QUEUES, 1)
    if mtu is not None:
        body += _u32(_IFLA_MTU, mtu)
    return body


def veth_add(near: Interface, far: Interface, far_namespace: int, mtu: int | None = None) -> Message:
    """A veth pair: *near* in the socket's own namespace, *far* in the one with the descriptor *far_namespace*.

    *near* may come up at once (IFF_UP in its flags), *far* cannot: it has no peer yet when its flags are set.
    """
    peer = _interface(far, mtu) + _u32(_IFLA_NET_NS_FD, far_namespace)
    data = _attribute(_IFLA_INFO_DATA, _attribute(_VETH_INFO_PEER, peer))
    info = _attribute(_IFLA_LINKINFO, _attribute(_IFLA_INFO_KIND, b"veth") + data)
    what = f"add veth pair {near.name}, {far.name}"
    return Message(what, _RTM_NEWLINK, _F_CREATE | _F_EXCL, _interface(near, mtu) + info)


# The socket ----------------------------------------------------------------------------------------------------------
class Netlink:
    """A NETLINK_ROUTE socket in the namespace that the thread is in when it is made."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._sequence = 0

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """The descriptor; interface ioctls of netdevice(7) work on it too."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def do(self, messages: Iterable[Message]) -> None:
        """Send all *messages* in one datagram; only the last is acknowledged, an error of any is reported.

        The kernel goes on behind a message that failed. Raises OSError with the first error and what was attempted.
        """
        batch = list(messages)
        if not batch:
            return
        first = self._sequence + 1
        last = self._sequence = self._sequence + len(batch)
        datagram = b"".join(
            _HEADER.pack(_HEADER.size + len(m.body), m.type, m.flags | _F_REQUEST | (_F_ACK if n == last else 0), n, 0)
            + m.body
            for n, m in enumerate(batch, first)
        )
        self._socket.send(datagram)
        failed: OSError | None = None
        answered = False
        while not answered:
            data = self._socket.recv(65536)
            at = 0
            while at < len(data):
                length, kind, _, sequence, _ = _HEADER.unpack_from(data, at)
                if kind == _NLMSG_ERROR and first <= sequence <= last:
                    (code,) = struct.unpack_from("=i", data, at + _HEADER.size)
                    if code and failed is None:
                        failed = OSError(-code, f"{os.strerror(-code)}: {batch[sequence - first].what}")
                    answered = answered or sequence == last
                at += length + -length % 4
        if failed is not None:
            raise failed

    def operational(self, index: int) -> bool:
        """Whether the interface's operational state is up (RFC 2863). Raises OSError."""
        self._sequence += 1
        body = _LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0)
        header = _HEADER.pack(_HEADER.size + len(body), _RTM_GETLINK, _F_REQUEST, self._sequence, 0)
        self._socket.send(header + body)
        data = self._socket.recv(65536)
        if _HEADER.unpack_from(data)[1] == _NLMSG_ERROR:
            (code,) = struct.unpack_from("=i", data, _HEADER.size)
            raise OSError(-code, f"{os.strerror(-code)}: get link {index}")
        at = _HEADER.size + _LINK.size
        while at + 4 <= len(data):
            length, kind = struct.unpack_from("=HH", data, at)
            if kind == _IFLA_OPERSTATE:
                return data[at + 4] == _IF_OPER_UP
            at += max(4, length + -length % 4)
        return False

    def wait_operational(self, index: int, seconds: float = 1.0) -> None:
        """Return when the interface is up in operation, not only in intention: what is sent before may be lost.

        It takes some 50 us. Raises OSError: ETIMEDOUT after *seconds*.
        """
        end = time.monotonic() + seconds
        while not self.operational(index):
            if time.monotonic() > end:
                raise OSError(errno.ETIMEDOUT, f"{os.strerror(errno.ETIMEDOUT)}: link {index} does not come up")
            os.sched_yield()
