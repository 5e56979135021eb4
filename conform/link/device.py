"""Network devices of stacks that conform starts: made in the network namespace that the calling thread is in.

conform's end has no address and never speaks by itself; the stack's is called ``stack0``.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress

from conform.link import netlink, netns
from conform.link.medium import STACK_INDEX, STACK_INTERFACE
from conform.link.netlink import Netlink
from conform.link.tun import make_persistent
from conform.link.veth import STACK_HARDWARE, TESTER_HARDWARE, disable_checksum_offload

#: The device that the stack opens or takes over, and conform's end where that is another.
INTERFACE, TESTER = STACK_INTERFACE, "tester0"
_TESTER_INDEX = STACK_INDEX + 1
#: The lengths of the prefixes that both ends' addresses share.
PREFIXES = {4: 24, 6: 64}
_SIOCGIFHWADDR = 0x8927
_LOOPBACK = 1


def loopback_up() -> None:
    """Bring the loopback device up. Raises OSError."""
    with Netlink() as link:
        link.do([netlink.link_set(_LOOPBACK, flags=netlink.IFF_UP)])


def silence(name: str) -> None:
    """Keep the kernel from speaking on the device *name* by itself. Raises OSError."""
    with suppress(FileNotFoundError):  # a kernel without IPv6
        netns.write_sysctl(f"net/ipv6/conf/{name}/disable_ipv6", 1)


def make_tun(name: str, *, ethernet: bool, mtu: int | None = None) -> None:
    """Make the TAP (*ethernet*) or TUN device *name*, which stays when nobody has it open, and bring it up.

    A stack opens it by its name. Raises OSError.
    """
    make_persistent(STACK_INDEX, name, ethernet=ethernet)
    silence(name)
    with Netlink() as link:
        link.do([netlink.link_set(STACK_INDEX, mtu=mtu)] if mtu is not None else [])
        link.do([netlink.link_set(STACK_INDEX, flags=netlink.IFF_UP | netlink.IFF_NOARP)])


def make_veth(addresses: Mapping[int, tuple[str, str]], prefixes: Mapping[int, int], *, mtu: int | None = None) -> None:
    """Make a veth pair, both ends here: ``stack0`` with the stack's addresses and routes to the tester, ``tester0``.

    *addresses* maps the IP version to (the stack's, the tester's). Raises OSError.
    """
    near = netlink.Interface(_TESTER_INDEX, TESTER, TESTER_HARDWARE)
    far = netlink.Interface(STACK_INDEX, INTERFACE, STACK_HARDWARE)
    with open("/proc/thread-self/ns/net") as here, Netlink() as link:
        link.do([netlink.veth_add(near, far, here.fileno(), mtu)])
        silence(TESTER)
        for name in (TESTER, INTERFACE):
            disable_checksum_offload(link.fileno(), name)
        link.do([netlink.link_set(STACK_INDEX, autoconf=False)])
        link.do([netlink.link_set(index, flags=netlink.IFF_UP) for index in (_TESTER_INDEX, STACK_INDEX)])
        for version, (stack, tester) in addresses.items():
            link.do([netlink.address_add(STACK_INDEX, version, stack, prefixes[version])])
            link.do([netlink.default_route_add(STACK_INDEX, version, via=tester)])
        link.wait_operational(STACK_INDEX)


def adopt(name: str) -> bool:
    """Bring up the device *name* that the stack made, silent; ``False`` while there is none. Raises OSError."""
    try:
        index = socket.if_nametoindex(name)
    except OSError:
        return False
    silence(name)
    with Netlink() as link:
        link.do([netlink.link_set(index, flags=netlink.IFF_UP | netlink.IFF_NOARP)])
    return True


def is_open(name: str) -> bool:
    """Whether somebody has the TAP or TUN device *name* open: it has a carrier then."""
    try:
        with Netlink() as link:
            return link.operational(socket.if_nametoindex(name))
    except OSError:
        return False


def hardware_address(name: str) -> bytes:
    """The device's link-layer address (netdevice(7)). Raises OSError: there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            found = fcntl.ioctl(sock, _SIOCGIFHWADDR, struct.pack("256s", name.encode()[:15]))
        except OSError as error:
            raise OSError(error.errno, f"{os.strerror(error.errno or 0)}: network interface {name}") from None
    return found[18:24]
