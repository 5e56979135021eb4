"""Captures, written by scapy (the IETF draft draft-ietf-opsawg-pcapng)."""

from __future__ import annotations

import errno
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
    """Write *records* to *path*, with its directories; a reader sees either no file or all of it. Raises OSError.

    Where the file system can, the file has no name until it is whole: a process that is killed leaves nothing behind.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        fd = os.open(target.parent, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
        _write_named(target, records)
        return
    try:
        _write_to(f"/proc/self/fd/{fd}", records)
        with suppress(FileNotFoundError):
            os.unlink(target)
        # With a directory's descriptor Python asks linkat(2), which alone follows the link that /proc has.
        os.link(f"/proc/self/fd/{fd}", target, src_dir_fd=fd, follow_symlinks=True)
    finally:
        os.close(fd)


def _write_named(target: Path, records: Iterable[Record | tuple[float, bytes, str]]) -> None:
    temporary = str(target.with_name(f".{target.name}.{os.getpid()}"))
    try:
        _write_to(temporary, records)
        os.replace(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _write_to(path: str, records: Iterable[Record | tuple[float, bytes, str]]) -> None:
    from scapy.utils import RawPcapNgWriter

    writer = RawPcapNgWriter(path)
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
