"""What stands in for the tester's neighbours on an Ethernet link: ARP (RFC 826) and neighbour discovery (RFC 4861).

A stack on TAP or behind a wire asks for the link-layer address of whom it wants to send to. conform answers for every
address but the stack's own, so that a case may use addresses of its own for the tester, and asks for the stack's.
scapy builds and dissects; these packets are few.
"""

from __future__ import annotations

import functools
import ipaddress
from types import SimpleNamespace

ETH_P_IP, ETH_P_ARP, ETH_P_IPV6 = 0x0800, 0x0806, 0x86DD
BROADCAST = b"\xff" * 6
_REQUEST, _REPLY = 1, 2
_SOLICITATION, _ADVERTISEMENT = 135, 136
_ETHERNET_AND_IP = b"\x00\x01\x08\x00\x06\x04"  # what an ARP packet is of: hardware, protocol, and their lengths
_HOP_LIMIT = 255  # RFC 4861 section 7.1: a packet that was forwarded is no neighbour's
_UNSPECIFIED = "::"


@functools.cache
def _scapy() -> SimpleNamespace:
    from conform.link import codec

    codec.preload()
    from scapy.layers import inet6, l2

    return SimpleNamespace(
        ARP=l2.ARP,
        IPv6=inet6.IPv6,
        NS=inet6.ICMPv6ND_NS,
        NA=inet6.ICMPv6ND_NA,
        source=inet6.ICMPv6NDOptSrcLLAddr,
        target=inet6.ICMPv6NDOptDstLLAddr,
    )


def _text(hardware: bytes) -> str:
    return hardware.hex(":")


class Neighbours:
    """The tester's side of address resolution on one link.

    ``hardware`` is the tester's link-layer address (six octets). ``stack`` is the stack's, once it is known, by
    whatever it said of itself; until then :data:`BROADCAST`. ``heard`` are the addresses that anyone said are theirs.
    """

    def __init__(self, addresses: dict[int, tuple[str, str]], hardware: bytes) -> None:
        self.hardware = hardware
        self.stack = BROADCAST
        self.heard: set[str] = set()
        self._addresses = addresses
        self._own = {ipaddress.ip_address(stack) for stack, _ in addresses.values()}

    @property
    def known(self) -> bool:
        """Whether the stack's link-layer address is known."""
        return self.stack != BROADCAST

    def ask(self) -> list[tuple[int, bytes, bytes]]:
        """Questions for the stack's link-layer address: (ethertype, packet, link-layer destination) each."""
        scapy = _scapy()
        out = []
        for version, (stack, tester) in self._addresses.items():
            if version == 4:
                arp = scapy.ARP(op=_REQUEST, hwsrc=_text(self.hardware), psrc=tester, pdst=stack)
                out.append((ETH_P_ARP, bytes(arp), BROADCAST))
                continue
            group, hardware = _solicited_node(stack)
            packet = scapy.IPv6(src=tester, dst=group, hlim=_HOP_LIMIT) / scapy.NS(tgt=stack)
            packet /= scapy.source(lladdr=_text(self.hardware))
            out.append((ETH_P_IPV6, bytes(packet), hardware))
        return out

    def hear(self, ethertype: int, data: bytes, source: bytes) -> list[tuple[int, bytes, bytes]] | None:
        """What *data* from the link-layer address *source* is answered with; ``None`` if it is no address resolution.

        Learns the stack's link-layer address. What cannot be read is answered with nothing.
        """
        try:
            if ethertype == ETH_P_ARP:
                return self._arp(data, source)
            # Next header ICMPv6, type neighbour solicitation or advertisement: nothing else is worth dissecting.
            if ethertype == ETH_P_IPV6 and len(data) > 40 and data[6] == 58:
                return self._discovery(data, source) if data[40] in (_SOLICITATION, _ADVERTISEMENT) else None
        except Exception:  # scapy raises what comes to it; the stack's octets are anybody's
            return []
        return None

    def _learn(self, address: str, hardware: bytes) -> None:
        self.heard.add(address)
        if ipaddress.ip_address(address) in self._own:
            self.stack = hardware

    def _arp(self, data: bytes, source: bytes) -> list[tuple[int, bytes, bytes]]:
        scapy = _scapy()
        if len(data) < 28 or data[:6] != _ETHERNET_AND_IP:
            return []
        arp = scapy.ARP(data[:28])
        self._learn(arp.psrc, source)
        if arp.op != _REQUEST or ipaddress.ip_address(arp.pdst) in self._own:
            return []  # it asks whether anyone else has its address: nobody has
        reply = scapy.ARP(op=_REPLY, hwsrc=_text(self.hardware), psrc=arp.pdst, hwdst=arp.hwsrc, pdst=arp.psrc)
        return [(ETH_P_ARP, bytes(reply), source)]

    def _discovery(self, data: bytes, source: bytes) -> list[tuple[int, bytes, bytes]]:
        scapy = _scapy()
        packet = scapy.IPv6(data)
        if packet.hlim != _HOP_LIMIT:
            return []
        if scapy.NA in packet:
            self._learn(packet[scapy.NA].tgt, source)
            return []
        if scapy.NS not in packet:
            return []
        self._learn(packet.src, source)
        target = packet[scapy.NS].tgt
        if packet.src == _UNSPECIFIED or ipaddress.ip_address(target) in self._own:
            return []  # duplicate address detection (RFC 4862 section 5.4.3): nobody else has it
        reply = scapy.IPv6(src=target, dst=packet.src, hlim=_HOP_LIMIT) / scapy.NA(tgt=target, R=0, S=1, O=1)
        reply /= scapy.target(lladdr=_text(self.hardware))
        return [(ETH_P_IPV6, bytes(reply), source)]


def _solicited_node(address: str) -> tuple[str, bytes]:
    """The multicast group of *address* and its link-layer address (RFC 4291 section 2.7.1, RFC 2464 section 7)."""
    low = ipaddress.ip_address(address).packed[-3:]
    group = ipaddress.ip_address(bytes.fromhex("ff0200000000000000000001ff") + low)
    return str(group), b"\x33\x33\xff" + low
