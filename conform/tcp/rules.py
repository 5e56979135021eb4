"""Rules that every segment of the stack must keep, whatever the case asserts."""

from __future__ import annotations

from conform.tcp import states as st
from conform.tcp.segment import ACK, RST, SYN, Segment
from conform.tcp.tcb import AE
from conform.tcp.tracker import Connection


def broken(seg: Segment, connection: Connection | None) -> tuple[str, str] | None:
    """The first rule that *seg* breaks, as (requirement id, what is wrong), or ``None``."""
    if seg.checksum is not None:
        return "9293-MUST-2", f"its checksum is {seg.checksum:#06x}, which is wrong"
    if seg.reserved & ~(AE if _may_use_ae(seg, connection) else 0):
        return "9293-3.1-reserved-zero", f"its reserved bits are {seg.reserved:#x}, not zero"
    if not seg.flags & SYN and seg.option("mss") is not None:
        return "9293-MUST-65", "it has an MSS option, and no SYN"
    if connection is not None and connection.states <= st.SYNCHRONIZED and not seg.flags & (ACK | RST | SYN):
        return "9293-3.1-ack-always-set", "it has no ACK in a synchronized state"
    return None


def _may_use_ae(seg: Segment, connection: Connection | None) -> bool:
    """Whether the stack offers accurate ECN in *seg*, or was offered it (RFC 9768 section 3.1)."""
    return seg.flags & (SYN | ACK) == SYN or (connection is not None and connection.accurate_ecn)
