"""Captures, written by scapy (the IETF draft draft-ietf-opsawg-pcapng)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

#: Packets begin with the IP header, of either version (tcpdump.org's registry of link types).
LINKTYPE_RAW = 101
_LONGEST_COMMENT = 65000


class Record(NamedTuple):
    """A captured packet: seconds since 1970, the IP packet, and a comment (empty: none)."""

    time: float
    data: bytes
    comment: str = ""


class _Annotated(bytes):
    """A raw packet with the attributes by which scapy's writer finds its time and comments."""

    time: float
    comments: list[bytes] | None
    comment: bytes | None  # scapy before 2.7 knows but one


def write(path: str | os.PathLike[str], records: Iterable[Record | tuple[float, bytes, str]]) -> None:
    """Write *records* to *path*, with its directories; a reader sees either no file or all of it. Raises OSError."""
    from scapy.utils import RawPcapNgWriter

    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = str(target.with_name(f".{target.name}.{os.getpid()}"))
    try:
        writer = RawPcapNgWriter(temporary)
        writer.linktype = LINKTYPE_RAW
        try:
            writer.write_header(None)
            for moment, data, comment in records:
                packet = _Annotated(data)
                packet.time = moment
                packet.comment = comment.encode()[:_LONGEST_COMMENT] or None
                packet.comments = [packet.comment] if packet.comment else None
                writer.write_packet(packet)
        finally:
            writer.close()
        os.replace(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
