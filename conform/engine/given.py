"""What the application gave TCP to send on one connection: nothing else may the stack send as its data, and no FIN
before it was asked to close. Whatever a case asserts, that is held against every segment."""

from __future__ import annotations

from conform.tcp.segment import FIN, RST, SYN, Segment
from conform.tcp.sequence import add, diff

#: The requirements that are broken by other octets, and by a FIN that nobody asked for.
OCTETS, EARLY_FIN = "9293-3.10.2-only-user-octets", "9293-3.6-no-early-fin"


class Given:
    """The octets given by send calls so far, and whether a FIN may come.

    Of a call that has not returned, or failed, all it named may be sent: what it returns says how much it gave. Where
    two were under way at once, or one failed, only how many octets there can be is known, and not which.
    """

    def __init__(self) -> None:
        self._octets = bytearray()
        #: Up to where the octets are known to be those.
        self._known: int | None = None
        #: By the call's action: what calls that have not returned named.
        self._pending: dict[int, bytes] = {}
        #: The calls, by their actions, by which the stack may send a FIN.
        self._endings: set[int] = set()

    def sends(self, action: int, payload: bytes) -> None:
        """The call *action*, which names *payload*, was begun."""
        if self._pending:
            self._uncertain()
        self._pending[action] = payload

    def sent(self, action: int, count: int | None) -> None:
        """The call *action* returned that *count* octets of its payload were given; ``None``: it failed."""
        payload = self._pending.pop(action, None)
        if payload is None:
            return
        if count is None:
            self._uncertain()
        self._octets += payload if count is None else payload[:count]

    def _uncertain(self) -> None:
        if self._known is None:
            self._known = len(self._octets)

    def may_end(self, action: int) -> None:
        """By the call *action* the stack may send a FIN."""
        self._endings.add(action)

    def may_not_end(self, action: int) -> None:
        """The call *action* failed."""
        self._endings.discard(action)

    def broken_by(self, seg: Segment, iss: int, snd_nxt: int) -> tuple[str, str] | None:
        """The requirement that *seg* breaks, and what is wrong; ``None`` if none.

        *iss* and *snd_nxt* are of its connection, before it. A keep-alive may have any octet (section 3.8.4), and that
        of a RST is no data.
        """
        if seg.flags & RST:
            return None
        keep_alive = len(seg.payload) == 1 and seg.seq == add(snd_nxt, -1) and not seg.flags & SYN
        if seg.payload and not keep_alive:
            start = diff(add(seg.seq, bool(seg.flags & SYN)), add(iss, 1))
            end = start + len(seg.payload)
            most = len(self._octets) + sum(map(len, self._pending.values()))
            if end > most:
                given = f"{most} octets" if most else "none"
                return OCTETS, f"its octets go on to ISS+{end + 1}, and the application has given {given} to send"
            first = max(start, 0)
            known = self._known_octets(first, end)
            if seg.payload[first - start :][: len(known)] != known:
                return OCTETS, "its octets are not those that the application has given"
        if seg.flags & FIN and not self._endings:
            return EARLY_FIN, "it has a FIN, and the application has not closed"
        return None

    def _known_octets(self, first: int, end: int) -> bytes:
        """As many of the octets *first* .. *end* as are known, from *first* on."""
        if self._known is not None:
            return bytes(self._octets[first : min(end, self._known)])
        before = len(self._octets)
        out = bytes(self._octets[first:end])
        for payload in self._pending.values():  # at most one
            out += payload[max(first - before, 0) : max(end - before, 0)]
        return out
