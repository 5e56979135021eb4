"""Octets to packets and back, by scapy.

scapy builds and dissects header by header; what is put together here is only what it would do several times over
(each checksum from octets already at hand, no copy of a layer, no payload guessed). It is imported at the first use:
a process that never touches a packet need not pay for it.

What is built for :class:`~conform.tcp.segment.Segment` can be parsed back: ``build(parse(data)) == data`` for every
TCP segment in an unfragmented packet without IPv6 extension headers, malformed options and all.
"""

from __future__ import annotations

import functools
import logging
import socket
import struct
from types import SimpleNamespace
from typing import Any, cast

from conform.tcp.segment import IcmpError, IPFields, Option, Packet, Segment

_TCP = socket.IPPROTO_TCP
_TCP_HEADER = 20
#: Hop-by-hop, routing, fragment, destination options (RFC 8200 section 4): what may stand between IPv6 and TCP.
_EXTENSION_HEADERS = frozenset({0, 43, 44, 60})
_FRAGMENT_HEADER = 44
#: Loose and strict source and record route (RFC 791 section 3.1).
_SOURCE_ROUTES = frozenset({131, 137})
#: What scapy's dissection may raise on octets that it can make nothing of.
_UNREADABLE = (LookupError, ValueError, TypeError, AttributeError, struct.error, OSError)


@functools.cache
def _scapy() -> SimpleNamespace:
    """What is used of scapy, imported once. It must neither print nor look for routes."""
    logging.getLogger("scapy").setLevel(logging.CRITICAL)
    from scapy.config import conf

    conf.verb = 0
    from scapy.layers import inet, inet6
    from scapy.utils import checksum

    return SimpleNamespace(
        IP=inet.IP,
        TCP=inet.TCP,
        ICMP=inet.ICMP,
        IPv6=inet6.IPv6,
        option_field=inet.TCPOptionsField("options", None),
        unreachable=inet6.ICMPv6DestUnreach,
        too_big=inet6.ICMPv6PacketTooBig,
        time_exceeded=inet6.ICMPv6TimeExceeded,
        parameter_problem=inet6.ICMPv6ParamProblem,
        unknown=inet6.ICMPv6Unknown,
        checksum=checksum,
    )


def preload() -> None:
    """Import scapy now (about 0.4 s), that the first packet need not wait for it."""
    _scapy()


@functools.lru_cache(maxsize=256)
def _packed(version: int, address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET if version == 4 else socket.AF_INET6, address)


# Building ------------------------------------------------------------------------------------------------------------
def build(packet: Packet) -> bytes:
    """The octets of *packet*, from its IP header on.

    What is ``None`` in it is computed; IPv4's identification is then 0, as an atomic datagram's may be (RFC 6864
    section 4). ``options`` are padded with end-of-list octets to a whole word (RFC 9293 section 3.1), and so are
    ``raw_options``, unless ``data_offset`` says on purpose where they end.

    Raises ValueError where a field does not fit the packet.
    """
    try:
        return _build_icmp(packet) if isinstance(packet, IcmpError) else _build_segment(packet)
    except (struct.error, OSError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"cannot build {packet}: {error}") from error


def _build_segment(segment: Segment) -> bytes:
    scapy = _scapy()
    area = segment.raw_options
    if area is None:
        area = _option_octets(segment.options)
    elif segment.data_offset is None:
        area += bytes(-len(area) % 4)
    data_offset = segment.data_offset
    if data_offset is None:
        data_offset = (_TCP_HEADER + len(area)) // 4
    if not 0 <= data_offset <= 15:
        raise ValueError(f"{len(area)} octets of options do not fit a TCP header, which has room for 40")
    if not (0 <= segment.flags <= 0xFF and 0 <= segment.reserved <= 0xF):
        raise ValueError(f"flags {segment.flags:#x} or reserved bits {segment.reserved:#x} are out of range")
    layer = scapy.TCP(
        sport=segment.sport,
        dport=segment.dport,
        seq=segment.seq,
        ack=segment.ack,
        dataofs=data_offset,
        # scapy still counts the lowest reserved bit among the flags (RFC 3540's NS, historic since RFC 8311).
        reserved=segment.reserved >> 1,
        flags=segment.flags | (segment.reserved & 1) << 8,
        window=segment.window,
        chksum=segment.checksum or 0,
        urgptr=segment.urgent,
    )
    layer.explicit = 1  # every field has one value: scapy need not clone the packet to find that out
    octets = cast(bytes, layer.build()) + area + segment.payload
    if segment.checksum is None:
        right = _tcp_checksum(segment.ip.version, _pseudo_addresses(segment.ip), octets)
        octets = octets[:16] + right.to_bytes(2, "big") + octets[18:]
    return _ip_header(segment.ip, _TCP, len(octets)) + octets


def _checksum(octets: bytes) -> bytes:
    """The Internet checksum (RFC 1071), two octets."""
    return cast(int, _scapy().checksum(octets)).to_bytes(2, "big")


def _ip_header(ip: IPFields, protocol: int, length: int) -> bytes:
    """The IP header in front of *length* octets."""
    scapy = _scapy()
    if not (0 <= ip.dscp <= 0x3F and 0 <= ip.ecn <= 3):
        raise ValueError(f"dscp {ip.dscp} or ecn {ip.ecn} is out of range")
    traffic_class = ip.dscp << 2 | ip.ecn
    if ip.version == 6:
        if not 0 <= ip.flow <= 0xFFFFF:
            raise ValueError(f"flow label {ip.flow:#x} is out of range")
        header = scapy.IPv6(tc=traffic_class, fl=ip.flow, plen=length, nh=protocol, hlim=ip.ttl, src=ip.src, dst=ip.dst)
        header.explicit = 1
        return cast(bytes, header.build())
    options = ip.options + bytes(-len(ip.options) % 4)
    if len(options) > 40:
        raise ValueError(f"{len(options)} octets of IPv4 options; there is room for 40")
    header = scapy.IP(
        ihl=5 + len(options) // 4,
        tos=traffic_class,
        len=20 + len(options) + length,
        id=ip.ident or 0,
        flags=2 if ip.df else 0,
        ttl=ip.ttl,
        proto=protocol,
        chksum=ip.checksum or 0,
        src=ip.src,
        dst=ip.dst,
    )
    header.explicit = 1
    octets = cast(bytes, header.build()) + options
    if ip.checksum is None:
        octets = octets[:10] + _checksum(octets) + octets[12:]
    return octets


def _option_octets(options: tuple[Option, ...]) -> bytes:
    """*options* as in a header, padded to a whole word."""
    if not options:
        return b""
    encoded = [_scapy_option(option) for option in options]
    return cast(bytes, _scapy().option_field.i2m(None, encoded))


def _scapy_option(option: Option) -> tuple[str | int, Any]:
    name, value = option
    match name:
        case "nop":
            return "NOP", None
        case "eol":
            return "EOL", None
        case "mss":
            return "MSS", value
        case "window-scale":
            return "WScale", value
        case "sack-permitted":
            return "SAckOK", b""
        case "sack":
            return "SAck", tuple(edge for block in value for edge in block)
        case "ts":
            return "Timestamp", tuple(value)
        case "fast-open":
            return 34, value
        case "user-timeout":
            granularity, timeout = value
            if granularity not in (0, 1) or not 0 <= timeout <= 0x7FFF:
                raise ValueError(f"user-timeout {value}: one bit and fifteen (RFC 5482 section 3)")
            return "UTO", granularity << 15 | timeout
        case "md5":
            return 19, value
    if name.startswith("kind-") and name[5:].isdigit() and 2 <= int(name[5:]) <= 255:
        if not isinstance(value, bytes) or len(value) > 38:
            raise ValueError(f"option {name} wants at most 38 octets, not {value!r}")
        return int(name[5:]), value
    raise ValueError(f"unknown TCP option {name!r}")


def _final_destination(destination: bytes, options: bytes) -> bytes:
    """Where a datagram with these IPv4 *options* ends: a source route's last address while it is not used up.

    The TCP checksum is over the final destination (RFC 9293 section 3.9.2.1).
    """
    at = 0
    while at < len(options) and options[at] != 0:
        if options[at] == 1:
            at += 1
            continue
        if at + 2 >= len(options) or options[at + 1] < 2:
            break
        length = options[at + 1]
        if options[at] in _SOURCE_ROUTES and 4 <= options[at + 2] <= length - 3 and at + length <= len(options):
            return options[at + length - 4 : at + length]
        at += length
    return destination


def _pseudo_addresses(ip: IPFields) -> bytes:
    destination = _packed(ip.version, ip.dst)
    if ip.options and ip.version == 4:
        destination = _final_destination(destination, ip.options)
    return _packed(ip.version, ip.src) + destination


def _tcp_checksum(version: int, addresses: bytes, octets: bytes) -> int:
    """The checksum over the pseudo-header (RFC 9293 section 3.1; RFC 8200 section 8.1) and *octets*.

    Of octets with their right checksum in place it is 0.
    """
    pseudo = struct.pack("!HH" if version == 4 else "!II", *((_TCP, len(octets)) if version == 4 else (len(octets), 6)))
    return cast(int, _scapy().checksum(addresses + pseudo + octets))


def _build_icmp(error: IcmpError) -> bytes:
    scapy = _scapy()
    quoted = _build_segment(error.quotes)
    if error.quoted_length is not None:
        header = 40 if error.quotes.ip.version == 6 else (quoted[0] & 0xF) * 4
        quoted = quoted[: header + error.quoted_length]
    if error.ip.version == 4:
        fields: dict[str, Any] = {}
        if error.type == 3:
            fields["nexthopmtu"] = error.mtu  # RFC 1191 section 4
        elif error.type == 12:
            fields["ptr"] = error.pointer
        layer = scapy.ICMP(type=error.type, code=error.code, chksum=0, **fields)
        layer.explicit = 1
        octets = cast(bytes, layer.build()) + quoted
        octets = octets[:2] + _checksum(octets) + octets[4:]
        return _ip_header(error.ip, socket.IPPROTO_ICMP, len(octets)) + octets
    if error.type == 1:
        layer = scapy.unreachable(code=error.code, cksum=0)
    elif error.type == 2:
        layer = scapy.too_big(code=error.code, cksum=0, mtu=error.mtu)
    elif error.type == 3:
        layer = scapy.time_exceeded(code=error.code, cksum=0)
    elif error.type == 4:
        layer = scapy.parameter_problem(code=error.code, cksum=0, ptr=error.pointer)
    else:
        layer = scapy.unknown(type=error.type, code=error.code, cksum=0, msgbody=bytes(4))
    layer.explicit = 1
    octets = cast(bytes, layer.build()) + quoted
    pseudo = _packed(6, error.ip.src) + _packed(6, error.ip.dst) + struct.pack("!II", len(octets), 58)
    octets = octets[:2] + _checksum(pseudo + octets) + octets[4:]
    return _ip_header(error.ip, socket.IPPROTO_ICMPV6, len(octets)) + octets


# Parsing -------------------------------------------------------------------------------------------------------------
def parse(data: bytes) -> Segment | None:
    """The TCP segment in the IP packet *data*; ``None`` when there is none (or only a later fragment of one).

    It never raises: of a malformed segment it gives what can be read. ``checksum`` (and ``ip.checksum``) is the value
    found, where that is wrong; ``data_offset`` is given where it points into the header or behind the segment;
    ``raw_options`` holds the option area where ``options`` alone would not be built into the same octets: an option
    with a length that cannot be, one cut short, octets behind the end of the list. End-of-list octets that only fill
    the last word are padding and no options. An option of a known kind with the wrong length appears as ``kind-N``.
    IPv6 extension headers are skipped. Of a first fragment it is what is in it, and its checksum cannot be told.
    """
    try:
        place = _find_tcp(data)
        return None if place is None else _parse_segment(data, *place)
    except _UNREADABLE:
        return None


def _find_tcp(data: bytes) -> tuple[int, int, int, bool] | None:
    """Where the IP header ends, where TCP's begins, where the packet ends, and whether it is a first fragment; ``None``
    without a whole TCP header.
    """
    if len(data) < 20:
        return None
    first = False
    version = data[0] >> 4
    if version == 4:
        start = header = (data[0] & 0xF) * 4
        if header < 20 or data[9] != _TCP or int.from_bytes(data[6:8], "big") & 0x1FFF:
            return None
        first = bool(data[6] & 0x20)
        end = int.from_bytes(data[2:4], "big")
    elif version == 6 and len(data) >= 40:
        start = header = 40
        following = data[6]
        while following in _EXTENSION_HEADERS and start + 8 <= len(data):
            if following == _FRAGMENT_HEADER:
                if int.from_bytes(data[start + 2 : start + 4], "big") & 0xFFF8:
                    return None
                first = bool(data[start + 3] & 1)
                length = 8
            else:
                length = (data[start + 1] + 1) * 8
            following = data[start]
            start += length
        if following != _TCP:
            return None
        end = 40 + int.from_bytes(data[4:6], "big")
    else:
        return None
    if not start < end <= len(data):  # a wrong length: all that is there is the best guess
        end = len(data)
    return (header, start, end, first) if start + _TCP_HEADER <= end else None


def _parse_segment(data: bytes, ip_end: int, start: int, end: int, first: bool) -> Segment:
    scapy = _scapy()
    version = data[0] >> 4
    words = data[start + 12] >> 4
    options_start = start + _TCP_HEADER
    options_end = min(max(options_start, start + words * 4), end)
    # scapy sees the fixed headers alone: what follows them would only be copied, and guessed at by port number, and
    # malformed options make it give up on the whole header.
    ip = (scapy.IP(data[:20]) if version == 4 else scapy.IPv6(data[:40])).fields
    tcp = scapy.TCP(data[start:options_start]).fields
    octets = data[start:end]
    if version == 4:
        ip_options = data[20:ip_end]
        destination = _final_destination(data[16:20], ip_options) if ip_options else data[16:20]
        addresses = data[12:16] + destination
    else:
        addresses = data[8:40]
    checksum_right = first or _tcp_checksum(version, addresses, octets) == 0
    options, raw_options = _parse_options(data[options_start:options_end])
    misplaced = words < 5 or start + words * 4 > end
    if misplaced and options_end > options_start:
        raw_options = data[options_start:options_end]
    flags = int(tcp["flags"])
    return Segment(
        ip=_ip_fields(ip, version, data, ip_end),
        sport=tcp["sport"],
        dport=tcp["dport"],
        seq=tcp["seq"],
        ack=tcp["ack"],
        flags=flags & 0xFF,
        window=tcp["window"],
        urgent=tcp["urgptr"],
        options=options,
        payload=data[options_end:end],
        reserved=tcp["reserved"] << 1 | flags >> 8,
        data_offset=words if misplaced else None,
        checksum=None if checksum_right else tcp["chksum"],
        raw_options=raw_options,
    )


def _ip_fields(ip: dict[str, Any], version: int, data: bytes, end: int) -> IPFields:
    if version == 6:
        traffic_class = ip["tc"]
        return IPFields(
            6, ip["src"], ip["dst"], ip["hlim"], dscp=traffic_class >> 2, ecn=traffic_class & 3, flow=ip["fl"]
        )
    right = _scapy().checksum(data[:end]) == 0
    return IPFields(
        version=4,
        src=ip["src"],
        dst=ip["dst"],
        ttl=ip["ttl"],
        dscp=ip["tos"] >> 2,
        ecn=ip["tos"] & 3,
        ident=ip["id"],
        df=bool(int(ip["flags"]) & 2),
        options=data[20:end],
        checksum=None if right else ip["chksum"],
    )


def _parse_options(area: bytes) -> tuple[tuple[Option, ...], bytes | None]:
    """The options in *area* by our names, and *area* itself where they do not say all that is in it."""
    if not area:
        return (), None
    field = _scapy().option_field
    try:
        dissected = iter(field.m2i(None, area))
    except _UNREADABLE:  # scapy gives up on all of them: see below
        dissected = None
    options: list[Option] = []
    at = 0
    while at < len(area):
        kind = area[at]
        if kind == 0:
            rest = area[at:]
            if len(rest) >= 4:
                options.append(Option("eol"))
            # More than one end of list and its padding, or something behind it, would not be built again.
            return tuple(options), area if rest.strip(b"\0") or len(rest) > 4 else None
        length = 1 if kind == 1 else area[at + 1] if at + 1 < len(area) else 0
        if length < (1 if kind == 1 else 2) or at + length > len(area):
            return tuple(options), area
        octets = area[at : at + length]
        at += length
        try:
            name, value = next(dissected) if dissected is not None else field.m2i(None, octets)[0]
        except _UNREADABLE:
            name, value = kind, octets[2:]
        options.append(_named_option(name, value, kind, octets[2:]))
    return tuple(options), None


def _named_option(name: str | int, value: Any, kind: int, data: bytes) -> Option:
    match name:
        case "NOP":
            return Option("nop")
        case "MSS" if isinstance(value, int):
            return Option("mss", value)
        case "WScale" if isinstance(value, int):
            return Option("window-scale", value)
        case "SAckOK" if not data:
            return Option("sack-permitted")
        case "SAck" if isinstance(value, tuple) and len(value) % 2 == 0:
            return Option("sack", tuple(zip(value[::2], value[1::2], strict=True)))
        case "Timestamp" if isinstance(value, tuple):
            return Option("ts", value)
        case "TFO":
            return Option("fast-open", data)
        case "UTO" if isinstance(value, int):
            return Option("user-timeout", (value >> 15, value & 0x7FFF))
        case "MD5" if len(data) == 16:
            return Option("md5", data)
    return Option(f"kind-{kind}", data)


# Fences --------------------------------------------------------------------------------------------------------------
class Fence:
    """Numbered ICMP (or ICMPv6) echo requests, and their replies told apart, without scapy.

    An echo injected behind a packet is answered behind the immediate answers to that packet
    (docs/architecture.md, "Settling"). Numbers are taken modulo 2**32: identifier and sequence number of RFC 792 and
    RFC 4443 section 4.1.
    """

    #: What the echo carries, so that no other ping is taken for ours.
    MARK = b"conform fence\0\0\0"

    def __init__(self, version: int, stack: str, tester: str) -> None:
        """A fence from the address *tester* to *stack*. Raises OSError when they are no addresses of *version*."""
        self.version = version
        source, destination = _packed(version, tester), _packed(version, stack)
        length = 8 + len(self.MARK)
        if version == 4:
            header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0x4000, 64, 1, 0) + source + destination
            self._header = header[:10] + struct.pack("!H", _complement(_sum(header))) + header[12:]
            self._request, self._reply = 8, 0
            pseudo = 0  # ICMP in IPv4 has none
        else:
            self._header = struct.pack("!IHBB", 6 << 28, length, 58, 64) + source + destination
            self._request, self._reply = 128, 129
            pseudo = _sum(source + destination) + length + 58
        self._constant_sum = pseudo + (self._request << 8) + _sum(self.MARK)
        self._back = destination + source

    def build(self, n: int) -> bytes:
        """The IP packet of echo request number *n*."""
        n &= 0xFFFFFFFF
        checksum = _complement(self._constant_sum + (n >> 16) + (n & 0xFFFF))
        return self._header + struct.pack("!BBHI", self._request, 0, checksum, n) + self.MARK

    def match(self, data: bytes) -> int | None:
        """The number of the request that *data* answers, ``None`` when it is no reply to one of this fence's."""
        if self.version == 4:
            at = (data[0] & 0xF) * 4 if data else 0
            if len(data) < at + 24 or data[0] >> 4 != 4 or data[9] != 1 or data[12:20] != self._back:
                return None
        else:
            at = 40
            if len(data) < 64 or data[0] >> 4 != 6 or data[6] != 58 or data[8:40] != self._back:
                return None
        if data[at] != self._reply or data[at + 1] != 0 or data[at + 8 : at + 24] != self.MARK:
            return None
        return int.from_bytes(data[at + 4 : at + 8], "big")


def _sum(octets: bytes) -> int:
    return sum(struct.unpack(f"!{len(octets) // 2}H", octets))


def _complement(total: int) -> int:
    """The Internet checksum of what adds up to *total* (RFC 1071)."""
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF
