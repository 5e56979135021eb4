"""veth: a pair of Ethernet interfaces a trial, one end in its namespace, the other in the worker's home.

veth(4), packet(7). It works wherever network namespaces do, /dev/net/tun or not.
"""

from __future__ import annotations

import array
import errno
import fcntl
import itertools
import socket
import struct
from collections.abc import Mapping

from conform.link import netlink, packet
from conform.link.medium import STACK_INDEX, STACK_INTERFACE, Addresses, Deliver, Loop, check_mtu, configure_stack_side
from conform.link.neighbour import ETH_P_IP, ETH_P_IPV6
from conform.link.netlink import Interface, Netlink
from conform.link.netns import Namespace, has_own_home

_SO_RCVBUFFORCE = 33
_SIOCETHTOOL, _ETHTOOL_STXCSUM = 0x8946, 0x17
_RECEIVE_BUFFER = 8 << 20

# Never used twice: an interface outlives its trial a little, and packets of it may be queued still.
_numbers = itertools.count(STACK_INDEX)

#: Locally administered (IEEE 802). The same in each trial: the two ends of a pair never meet others.
STACK_HARDWARE = bytes.fromhex("02000000000a")
TESTER_HARDWARE = bytes.fromhex("02000000000b")


def disable_checksum_offload(descriptor: int, name: str) -> None:
    """Have the interface *name* in *descriptor*'s namespace fill in checksums itself.

    Without that they leave unfilled, and large segments uncut: both are left to hardware that a veth does not have.
    Segmentation offload goes with it. ethtool(8) ``tx off``. Raises OSError.
    """
    value = array.array("I", [_ETHTOOL_STXCSUM, 0])
    address, _ = value.buffer_info()
    fcntl.ioctl(descriptor, _SIOCETHTOOL, struct.pack("16sP16x", name.encode(), address))


class VethPort:
    """A trial's end of a veth link. ``since`` is the packet's own time stamp."""

    def __init__(self, medium: VethMedium, name: str, deliver: Deliver) -> None:
        self._medium = medium
        self._name = name
        self._deliver = deliver

    def send(self, data: bytes) -> None:
        """Inject *data*. Raises OSError."""
        self._medium.send(self._name, data)

    def deliver(self, data: bytes, since: float) -> None:
        """Hand *data* to the trial."""
        self._deliver(data, since)

    def close(self) -> None:
        """Deliver nothing any more."""
        self._medium.forget(self._name)


class VethMedium:
    """Makes a veth pair for each trial, and tells their packets apart by interface on one packet socket.

    One socket for all, because closing one that packets were received with costs more than 10 ms.
    """

    def __init__(self, loop: Loop) -> None:
        """To be made in a home of its own. Raises RuntimeError elsewhere, OSError."""
        if not has_own_home():
            raise RuntimeError("a veth medium wants netns.unshare_home() or netns.enter_user_namespace() first")
        self._loop = loop
        self._ports: dict[str, VethPort] = {}
        self._link = Netlink()
        self._socket = packet.open_socket(packet.ETH_P_ALL)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        except PermissionError:  # only the machine's own root may exceed net.core.rmem_max
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        self._lost = 0
        loop.add_reader(self._socket.fileno(), self._read)

    def attach(
        self,
        netns: Namespace,
        addresses: Addresses,
        deliver: Deliver,
        *,
        mtu: int | None = None,
        metrics: Mapping[str, int] | None = None,
    ) -> VethPort:
        """Connect *netns*, once. See :func:`~conform.link.medium.configure_stack_side`.

        Raises OSError with what was attempted, ValueError for an MTU that IPv6 cannot have, KeyError for an
        unknown metric.
        """
        check_mtu(addresses, mtu)
        number = next(_numbers)
        name = f"tester{number}"
        near = Interface(number, name, TESTER_HARDWARE, netlink.IFF_UP | netlink.IFF_NOARP)
        far = Interface(STACK_INDEX, STACK_INTERFACE, STACK_HARDWARE)
        self._link.do([netlink.veth_add(near, far, netns.fd, mtu)])
        try:
            with netns.enter():
                link = Netlink()
            with link:
                disable_checksum_offload(link.fileno(), STACK_INTERFACE)
                configure_stack_side(link, STACK_INDEX, addresses, mtu=mtu, metrics=metrics)
                link.wait_operational(STACK_INDEX)
        except (OSError, KeyError):
            self._link.do([netlink.link_delete(number)])
            raise
        port = self._ports[name] = VethPort(self, name, deliver)
        return port

    def send(self, name: str, data: bytes) -> None:
        """Send *data* out of the tester's interface *name*. Raises OSError, in words where it exceeds the MTU."""
        protocol = ETH_P_IPV6 if data[:1] and data[0] >> 4 == 6 else ETH_P_IP
        try:
            self._socket.sendto(data, (name, protocol, 0, 0, STACK_HARDWARE))
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise
            text = f"a packet of {len(data)} octets exceeds the MTU of the veth; send smaller segments"
            raise OSError(errno.EMSGSIZE, text) from None

    def forget(self, name: str) -> None:
        """Deliver nothing of *name* any more."""
        self._ports.pop(name, None)

    def lost(self) -> int:
        """How many packets the tester's socket had no room for, so far: the tester's own fault."""
        self._lost += packet.lost(self._socket)
        return self._lost

    def _read(self) -> None:
        shift = packet.monotonic_shift()
        while self._socket.fileno() >= 0:  # the receiver may close us
            try:
                data, ancillary, _, source = self._socket.recvmsg(packet.LARGEST, 64)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.ENETDOWN:  # an interface went away; told once
                    continue
                raise
            port = self._ports.get(source[0])
            if port is not None:
                port.deliver(data, packet.since(self._loop.polled, ancillary, shift))

    def close(self) -> None:
        """Close the socket (some 10 ms). The interfaces go with the namespaces."""
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        self._link.close()
        self._ports.clear()
