"""TCP options as octets: as much of them as it takes to read a segment the way its receiver does.

``conform.link.codec`` builds and parses what goes over a link. This is for the tracker, which must know what the stack
makes of a header whose data offset or options a case wrote out itself.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from conform.tcp.segment import Option, Segment

_NOP, _EOL = 1, 0
#: name -> (kind, how many octets of data, how often: each value of the option in turn)
_NUMBERS = {
    "mss": (2, 2), "window-scale": (3, 1), "sack-permitted": (4, 0), "sack": (5, 4), "ts": (8, 4),
}  # fmt: skip
_BLOBS = {"md5": 19, "fast-open": 34}
_HEADER = 20


def as_read(seg: Segment) -> Segment | None:
    """*seg* as its receiver reads it, options and text parted where the data offset says.

    ``None`` where it is discarded before anything else: a wrong checksum, or a data offset that cannot be (RFC 9293
    section 3.1).
    """
    if seg.checksum is not None:
        return None
    if seg.data_offset is None and seg.raw_options is None:
        return seg
    area = seg.raw_options if seg.raw_options is not None else octets(seg.options)
    end = len(area) + -len(area) % 4
    if seg.data_offset is None:
        area = area.ljust(end, b"\0")
    else:
        end = seg.data_offset * 4 - _HEADER
    rest = area + seg.payload
    if not 0 <= end <= len(rest):
        return None
    return replace(seg, options=known(rest[:end]), payload=rest[end:], data_offset=None, raw_options=None)


def octets(options: tuple[Option, ...]) -> bytes:
    """*options* as they stand in a header, padded to a whole word."""
    out = bytearray()
    for name, value in options:
        if name in ("nop", "eol"):
            out.append(_NOP if name == "nop" else _EOL)
            continue
        kind, data = _encoded(name, value)
        out += bytes((kind, 2 + len(data))) + data
    return bytes(out) + bytes(-len(out) % 4)


def _encoded(name: str, value: Any) -> tuple[int, bytes]:
    if name in _NUMBERS:
        kind, size = _NUMBERS[name]
        flat = [edge for block in value for edge in block] if name == "sack" else value
        numbers = flat if isinstance(flat, list | tuple) else [] if flat is None else [flat]
        return kind, b"".join(number.to_bytes(size, "big") for number in numbers)
    if name == "user-timeout":
        granularity, timeout = value
        return 28, (granularity << 15 | timeout).to_bytes(2, "big")
    return _BLOBS[name] if name in _BLOBS else int(name.removeprefix("kind-")), value


def known(area: bytes) -> tuple[Option, ...]:
    """The options in *area* on which the stack's variables depend: MSS, window scale and timestamps.

    What follows an option with a length that cannot be is not read, nor is an option of the wrong length.
    """
    found = []
    at = 0
    while at < len(area) and area[at] != _EOL:
        if area[at] == _NOP:
            at += 1
            continue
        length = area[at + 1] if at + 1 < len(area) else 0
        if length < 2 or at + length > len(area):
            break
        data = area[at + 2 : at + length]
        match area[at], length:
            case 2, 4:
                found.append(Option("mss", int.from_bytes(data, "big")))
            case 3, 3:
                found.append(Option("window-scale", data[0]))
            case 8, 10:
                found.append(Option("ts", (int.from_bytes(data[:4], "big"), int.from_bytes(data[4:], "big"))))
        at += length
    return tuple(found)
