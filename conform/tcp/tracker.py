"""The stack's variables, as a conforming stack has them after everything injected so far.

RCV.NXT and RCV.WND follow from what the *tester* sent, by RFC 9293 section 3.10.7, and never from what the stack
acknowledged: an assertion about an acknowledgment would otherwise prove itself. SND.NXT follows from what the stack was
seen to send, SND.UNA from what the tester acknowledged of it.

Where the RFCs leave the stack a choice (to keep text beyond a gap, or of a SYN; to take a segment without the time
stamps that were agreed, or the ACK of one to a closed window; to open anew from TIME-WAIT), every way is followed. An
acknowledgment of the stack's tells which of them it went; one that is right for none of them tells nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from conform.tcp.segment import ACK, FIN, RST, SYN, Segment
from conform.tcp.sequence import add, diff, le, lt
from conform.tcp.tcb import Tcb

#: How many ways are followed at most: those on which least depends, the latest, are given up first.
_MOST_WAYS = 64
_EMPTY_ACK_BITS = SYN | FIN | RST


class Connection(Tcb):
    """One connection: the tester's side of it as played, the stack's as it must be.

    It is itself the way by which its variables count; ``others`` are those that the stack may have gone as well.
    ``stack_port`` is ``None`` until the stack has chosen it.
    """

    __slots__ = ("name", "others", "stack_port", "tester_port", "used", "window")

    def __init__(
        self,
        name: str,
        version: int,
        tester_port: int,
        stack_port: int | None,
        irs: int,
        window: int = 65535,
        blind_attack_checks: bool = True,
    ) -> None:
        super().__init__(version=version, irs=irs, blind_attack_checks=blind_attack_checks)
        self.name = name
        self.tester_port, self.stack_port = tester_port, stack_port
        self.window = window
        self.used = False
        self.others: list[Tcb] = []

    @property
    def ways(self) -> tuple[Tcb, ...]:
        """All ways that the stack may have gone."""
        return (self, *self.others)

    # What can be asked -------------------------------------------------------------------------------------------
    @property
    def states(self) -> frozenset[str]:
        """The states in which a conforming stack may be."""
        return frozenset().union(*(way._states for way in self.ways))

    @property
    def rcv_nxts(self) -> frozenset[int]:
        """The values that RCV.NXT may have."""
        return frozenset(way.rcv_nxt for way in self.ways)

    @property
    def lowest_rcv_nxt(self) -> int:
        """The first of :attr:`rcv_nxts` in sequence space."""
        return min(self.rcv_nxts, key=lambda n: diff(n, self.rcv_nxt))

    def states_in_time(self) -> frozenset[str]:
        """The states to which time alone can lead, those as of now among them."""
        return frozenset().union(*(Tcb.states_in_time(way) for way in self.ways))

    def variable(self, name: str, of: Segment | None = None) -> int:
        """The value of ``SND.NXT`` and its like. Raises LookupError while the stack has not shown its ISS.

        Held against the stack's segment *of*, RCV.NXT is what that acknowledges, if it may be.
        """
        if name in ("ISS", "SND.UNA", "SND.NXT") and self.iss is None:
            raise LookupError(f"{name} of {self.name} is not known: the stack has sent no SYN")
        if name == "RCV.NXT" and of is not None and of.flags & ACK and of.ack in self.rcv_nxts:
            return of.ack
        return {
            "SND.UNA": self.snd_una,
            "SND.NXT": self.snd_nxt,
            "SND.WND": self.snd_wnd,
            "SND.MSS": self.peer_mss,
            "RCV.NXT": self.rcv_nxt,
            "RCV.WND": self.rcv_wnd,
            "ISS": self.iss or 0,
            "IRS": self.irs,
        }[name]

    # What happens ------------------------------------------------------------------------------------------------
    def called(self, event: str) -> Callable[[], None]:
        """A user call was made, or a listener made or closed (``passive-open``, ``passive-close``).

        The result, for when the call turns out to have failed, takes back each way's states that are still those.
        """
        before = [(way, way._states) for way in self.ways]
        for way in self.ways:
            way.call(event)
        after = [way._states for way in self.ways]

        def take_back() -> None:
            for (way, earlier), later in zip(before, after, strict=True):
                if way._states == later:
                    way._states = earlier

        return take_back

    def injected(self, seg: Segment) -> None:
        """The tester sent *seg*: RFC 9293 section 3.10.7, as a conforming stack applies it."""
        self.used = True
        self._keep([other for way in self.ways for other in (way, *way.receive(seg))])

    def observed(self, seg: Segment) -> None:
        """The stack's *seg* was consumed."""
        self.used = True
        if self.stack_port is None:
            self.stack_port = seg.sport
        ways = list(self.ways)
        if len(ways) > 1 and seg.flags & ACK and not seg.flags & RST:
            ways = [way for way in ways if way.shows(seg)] or ways
        for way in ways:
            way.observe(seg)
        self._keep(ways)

    def _keep(self, ways: list[Tcb]) -> None:
        """*ways*, of which the first counts, are all that there are; each is kept once."""
        if ways[0] is not self:
            self.become(ways[0])
        self.others = []
        seen = [self.values()]
        for way in ways[1:_MOST_WAYS]:
            if way.values() not in seen:
                seen.append(way.values())
                self.others.append(way)

    # Noise -------------------------------------------------------------------------------------------------------
    def noise(self, seg: Segment, una: int | None = None) -> str | None:
        """The name in ``conform.case.vocabulary.NOISE`` of what *seg* is, if it is noise.

        *una* is SND.UNA as it was when the stack may have sent it, if that is not what it is now.
        """
        if self.iss is None or seg.flags & RST or not self._acknowledges_what_came(seg):
            return None
        end = add(seg.seq, seg.length)
        una = self.snd_una if una is None else una
        if seg.length and le(self.iss, seg.seq) and le(end, self.snd_nxt) and lt(una, end):
            start = add(seg.seq, 1) if seg.flags & SYN else seg.seq
            offset = diff(start, add(self.iss, 1))
            same = self._sent[offset : offset + len(seg.payload)] == seg.payload
            syn_right = bool(seg.flags & SYN) == (seg.seq == self.iss)
            fin_right = not seg.flags & FIN or self.fin_seq == add(start, len(seg.payload))
            return "retransmission" if same and syn_right and fin_right else None
        if seg.flags & SYN or not seg.flags & ACK:
            return None
        if len(seg.payload) <= 1 and not seg.flags & FIN and seg.seq == add(self.snd_nxt, -1):
            return "keep-alive"
        if seg.payload and seg.seq == self.snd_nxt and self.snd_wnd == 0:
            return "zero-window-probe"
        if seg.length == 0 and seg.seq == self.snd_nxt and seg.ack == self.last_ack and not seg.flags & _EMPTY_ACK_BITS:
            return self._repeated(seg)
        return None

    def _acknowledges_what_came(self, seg: Segment) -> bool:
        """Whether *seg* takes no acknowledgment back, and gives none of what the tester has not sent."""
        if not seg.flags & ACK:
            return self.last_ack is None  # after its own SYN all have one
        first = self.irs if self.last_ack is None else self.last_ack
        return le(first, seg.ack) and any(le(seg.ack, last) for last in self.rcv_nxts)

    def _repeated(self, seg: Segment) -> str | None:
        """What *seg* is, which acknowledges nothing new. A window that only scaling rounds is the same."""
        moved = diff(self.edge(seg), self.right_edge or 0)
        unit = 1 << self.rcv_shift
        if moved >= unit:
            return "window-update"
        return "duplicate-ack" if moved > -unit else None
