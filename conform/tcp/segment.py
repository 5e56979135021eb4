"""What the core knows of a packet: a frozen :class:`Segment`, and the ICMP errors that quote one.

Only ``conform.link.codec`` turns these into octets and back. A field that the sender leaves to be computed is ``None``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << n for n in range(8))

#: The letter of each control bit, in the order in which flags are written (RFC 9293 section 3.1).
FLAG_LETTERS = {"S": SYN, "F": FIN, "R": RST, "P": PSH, "A": ACK, "U": URG, "E": ECE, "C": CWR}


def flag_names(flags: int) -> str:
    """*flags* as letters, ``SA`` for SYN,ACK; ``none`` when no bit is set."""
    return "".join(letter for letter, bit in FLAG_LETTERS.items() if flags & bit) or "none"


class Option(NamedTuple):
    """One TCP option: its name in the case format, and its value.

    ===================  ==========================================================================
    name                 value
    ===================  ==========================================================================
    ``eol``, ``nop``     ``None``
    ``mss``              int
    ``window-scale``     int, the shift count
    ``sack-permitted``   ``None``
    ``sack``             tuple of (left, right) pairs
    ``ts``               (TSval, TSecr)
    ``fast-open``        bytes, the cookie (RFC 7413; empty: a request)
    ``user-timeout``     (granularity bit, timeout) (RFC 5482)
    ``md5``              bytes, the digest (RFC 2385)
    ``kind-N``           bytes, the data of an option of kind N that has no name here
    ===================  ==========================================================================
    """

    name: str
    value: Any = None


@dataclass(frozen=True, slots=True)
class IPFields:
    """The IP header's fields that a case can set or assert.

    ``ttl`` is the hop limit in IPv6; ``ident`` and ``df`` exist in IPv4 only, ``flow`` (label) in IPv6 only.
    ``options`` are raw IPv4 options. ``checksum`` is the IPv4 header's when it is not the right one.
    """

    version: int
    src: str
    dst: str
    ttl: int = 64
    dscp: int = 0
    ecn: int = 0
    ident: int | None = None
    df: bool = True
    flow: int = 0
    options: bytes = b""
    checksum: int | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    """One TCP segment in its IP packet.

    ``checksum`` is ``None`` when it is right (or to be computed), else the wrong value. ``data_offset`` is in 32-bit
    words, ``None`` when it follows from the options. ``raw_options`` replaces ``options`` on sending, octet for octet.
    ``window`` is the field as it is on the wire, not scaled.
    """

    ip: IPFields
    sport: int
    dport: int
    seq: int = 0
    ack: int = 0
    flags: int = 0
    window: int = 65535
    urgent: int = 0
    options: tuple[Option, ...] = ()
    payload: bytes = b""
    reserved: int = 0
    data_offset: int | None = None
    checksum: int | None = None
    raw_options: bytes | None = None

    @property
    def length(self) -> int:
        """SEG.LEN: octets of sequence space, SYN and FIN counted (RFC 9293 section 3.4)."""
        return len(self.payload) + bool(self.flags & SYN) + bool(self.flags & FIN)

    def option(self, name: str) -> Option | None:
        """The first option called *name*, or ``None``."""
        return next((o for o in self.options if o.name == name), None)

    def __str__(self) -> str:
        text = f"{flag_names(self.flags)} seq={self.seq}"
        if self.flags & ACK:
            text += f" ack={self.ack}"
        if self.payload:
            text += f" len={len(self.payload)}"
        return text


@dataclass(frozen=True, slots=True)
class IcmpError:
    """An ICMP (or ICMPv6, by ``ip.version``) error that quotes a segment of its receiver.

    ``quoted_length`` cuts the quotation to that many octets of transport header (RFC 792 asks for 8), ``None`` quotes
    all. ``mtu`` is the next-hop MTU of fragmentation-needed and packet-too-big; ``pointer`` of parameter problem.
    """

    ip: IPFields
    type: int
    code: int
    quotes: Segment
    mtu: int = 0
    pointer: int = 0
    quoted_length: int | None = None

    def __str__(self) -> str:
        return f"ICMP type {self.type} code {self.code} quoting {self.quotes}"


Packet = Segment | IcmpError

_SEGMENT_DEFAULTS = {
    "window": 65535, "urgent": 0, "options": (), "payload": b"", "reserved": 0,
    "data_offset": None, "checksum": None, "raw_options": None,
}  # fmt: skip
_IP_DEFAULTS = {
    "ttl": 64, "dscp": 0, "ecn": 0, "ident": None, "df": True, "flow": 0, "options": b"", "checksum": None,
}  # fmt: skip


def _option_value(value: Any) -> Any:
    return {"hex": value.hex()} if isinstance(value, bytes) else value


def to_json(packet: Packet) -> dict[str, Any]:
    """*packet* as the run file has it: fields with their default are left out, octets are hexadecimal."""
    ip = packet.ip
    ip_json: dict[str, Any] = {"version": ip.version, "src": ip.src, "dst": ip.dst}
    for name, default in _IP_DEFAULTS.items():
        value = getattr(ip, name)
        if value != default:
            ip_json[name] = value.hex() if isinstance(value, bytes) else value
    if isinstance(packet, IcmpError):
        out: dict[str, Any] = {"ip": ip_json, "type": packet.type, "code": packet.code}
        out["quotes"] = to_json(packet.quotes)
        for name in ("mtu", "pointer"):
            if getattr(packet, name):
                out[name] = getattr(packet, name)
        if packet.quoted_length is not None:
            out["quoted_length"] = packet.quoted_length
        return out
    out = {"ip": ip_json, "sport": packet.sport, "dport": packet.dport, "flags": flag_names(packet.flags)}
    out |= {"seq": packet.seq, "ack": packet.ack}
    for name, standard in _SEGMENT_DEFAULTS.items():
        value = getattr(packet, name)
        if value != standard:
            if name == "options":
                value = [[o.name, _option_value(o.value)] for o in value]
            out[name] = value.hex() if isinstance(value, bytes) else value
    return out


def _option_from_json(item: list[Any]) -> Option:
    name, value = item
    if isinstance(value, dict):
        value = bytes.fromhex(value["hex"])
    elif name == "sack":
        value = tuple((left, right) for left, right in value)
    elif isinstance(value, list):
        value = tuple(value)
    return Option(name, value)


def from_json(data: dict[str, Any]) -> Packet:
    """The packet that :func:`to_json` made *data* of.

    Raises KeyError, TypeError or ValueError when *data* is not of that shape.
    """
    ip_data = dict(data["ip"])
    if "options" in ip_data:
        ip_data["options"] = bytes.fromhex(ip_data["options"])
    ip = IPFields(**ip_data)
    rest = {k: v for k, v in data.items() if k != "ip"}
    if "quotes" in rest:
        quoted = from_json(rest.pop("quotes"))
        assert isinstance(quoted, Segment)
        return IcmpError(ip=ip, quotes=quoted, **rest)
    flags = rest.pop("flags")
    rest["flags"] = 0 if flags == "none" else sum(FLAG_LETTERS[letter] for letter in flags)
    if "options" in rest:
        rest["options"] = tuple(_option_from_json(o) for o in rest["options"])
    for name in ("payload", "raw_options"):
        if name in rest:
            rest[name] = bytes.fromhex(rest[name])
    return Segment(ip=ip, **rest)
