"""What TUN and veth have in common: the stack's side of a trial's link, and the interface of both media."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import Protocol

from conform.link import netlink
from conform.link.netns import Namespace

#: The stack's interface has this name and index in every trial's namespace, whatever carries its packets. The index is
#: out of the way of devices that some kernels put into each new namespace (sit0, tunl0, ...).
STACK_INTERFACE = "stack0"
STACK_INDEX = 100
IPV6_LEAST_MTU = 1280

Addresses = Mapping[int, tuple[str, str]]
"""IP version to (the stack's address, the tester's)."""

Deliver = Callable[[bytes, float], None]
"""Called with each IP packet out of the stack, and the latest moment (``time.monotonic()``) before its arrival."""


class Loop(Protocol):
    """What a medium needs of a worker's loop (``conform.run.loop.Loop``)."""

    @property
    def now(self) -> float:
        """When this turn's look at the descriptors ended."""

    @property
    def polled(self) -> float:
        """When the look before this one ended: what is readable only now arrived after."""

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        """Call *callback* in each turn in which *fd* is readable."""

    def remove_reader(self, fd: int) -> None:
        """Forget *fd*."""


class Port(Protocol):
    """A trial's end of a link."""

    def send(self, data: bytes) -> None:
        """Inject the IP packet *data* into the stack. Raises OSError."""

    def close(self) -> None:
        """Deliver nothing any more. The device itself goes with its namespace."""


class Medium(Protocol):
    """A way to carry packets between a worker and the namespaces of its trials."""

    def attach(
        self,
        netns: Namespace,
        addresses: Addresses,
        deliver: Deliver,
        *,
        mtu: int | None = None,
        metrics: Mapping[str, int] | None = None,
    ) -> Port:
        """Connect *netns*: one interface, its addresses, and a default route to the tester."""

    def lost(self) -> int:
        """How many packets out of stacks there was no room for, so far, whosever they were: the tester's own fault."""

    def close(self) -> None:
        """Let go of what all ports share."""


def check_mtu(addresses: Addresses, mtu: int | None) -> None:
    """Raises ValueError for an MTU that IPv6 cannot have, where IPv6 is asked for (RFC 8200 section 5)."""
    if mtu is not None and mtu < IPV6_LEAST_MTU and 6 in addresses:
        raise ValueError(f"mtu {mtu}: IPv6 needs {IPV6_LEAST_MTU} (RFC 8200 section 5)")


@functools.cache
def _kernel_has_ipv6() -> bool:
    return os.path.exists("/proc/sys/net/ipv6")


def _has_ipv6(mtu: int | None) -> bool:
    """Whether an interface has IPv6 at all: below its least MTU the kernel takes it away."""
    return _kernel_has_ipv6() and (mtu is None or mtu >= IPV6_LEAST_MTU)


def configure_stack_side(
    link: netlink.Netlink,
    index: int,
    addresses: Addresses,
    *,
    mtu: int | None = None,
    metrics: Mapping[str, int] | None = None,
) -> None:
    """Bring up the stack's interface *index* with its addresses, and route everything to it.

    It never speaks by itself: without ARP and neighbour discovery (IFF_NOARP; that also spares joining the
    solicited-node group, and its MLD report), link-local address, router solicitation and duplicate address
    detection. The route takes any destination, so that a case may use addresses of its own for the tester.

    *mtu* is the interface's, in octets; *metrics* are the route's, by the names of
    :data:`~conform.link.netlink.METRICS`.

    Raises OSError with what was attempted, KeyError for an unknown metric.
    """
    messages = [
        # The kernel sets flags before anything else in a message: by itself, before the interface comes up.
        netlink.link_set(index, mtu=mtu, autoconf=not _has_ipv6(mtu)),
        netlink.link_set(index, flags=netlink.IFF_UP | netlink.IFF_NOARP),
    ]
    messages += [netlink.address_add(index, version, stack) for version, (stack, _) in addresses.items()]
    messages += [netlink.local_route_add(index, stack) for version, (stack, _) in addresses.items() if version == 6]
    messages += [netlink.default_route_add(index, version, metrics or {}) for version in addresses]
    link.do(messages)
