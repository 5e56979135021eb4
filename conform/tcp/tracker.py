"""The stack's variables, as a conforming stack has them after everything injected so far.

RCV.NXT and RCV.WND follow from what the *tester* sent, by RFC 9293 section 3.10.7, and never from what the stack
acknowledged: an assertion about an acknowledgment would otherwise prove itself. SND.NXT follows from what the stack was
seen to send, SND.UNA from what the tester acknowledged of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from conform.tcp import states as st
from conform.tcp.segment import ACK, FIN, RST, SYN, Segment
from conform.tcp.sequence import add, between, diff, le, lt

#: What a sender assumes that was told no MSS (RFC 9293, MUST-15), by IP version.
DEFAULT_MSS = {4: 536, 6: 1220}
#: The largest shift count (RFC 7323, section 2.3).
MAX_SHIFT = 14
_EMPTY_ACK_BITS = SYN | FIN | RST


@dataclass(slots=True)
class Connection:
    """One connection: the tester's side of it as played, the stack's as it must be.

    ``states`` are the states in which a conforming stack may be: one, unless a call was made whose effect has not been
    seen on the wire. ``stack_port`` is ``None`` until the stack has chosen it. ``blind_attack_checks`` says that the
    stack claims RFC 5961. ``received`` holds the octets that its application is due, in order.
    """

    name: str
    version: int
    tester_port: int
    stack_port: int | None
    irs: int
    window: int = 65535
    blind_attack_checks: bool = True
    listening: bool = False
    states: frozenset[str] = frozenset({st.CLOSED})
    iss: int | None = None
    rcv_nxt: int = 0
    tester_nxt: int = 0
    snd_una: int = 0
    snd_nxt: int = 0
    snd_wnd: int = 0
    snd_wl1: int = 0
    snd_wl2: int = 0
    max_snd_wnd: int = 0
    right_edge: int | None = None
    last_ack: int | None = None
    last_window: int | None = None
    fin_seq: int | None = None
    fin_received: bool = False
    rcv_shift: int = 0
    snd_shift: int = 0
    peer_mss: int = 0
    timestamps: bool = False
    last_tsval: int = 0
    ts_recent: int = 0
    active: bool = False
    used: bool = False
    received: bytearray = field(default_factory=bytearray)
    read: int = 0
    _offered: dict[str, int] = field(default_factory=dict)
    _own_offer: dict[str, int] = field(default_factory=dict)
    _own_window: int = 0
    _sent: bytearray = field(default_factory=bytearray)
    _held: list[tuple[int, bytes, bool]] = field(default_factory=list)
    _reopening: Segment | None = None

    def __post_init__(self) -> None:
        self.rcv_nxt = self.tester_nxt = self.irs
        self.peer_mss = DEFAULT_MSS[self.version]

    # What an expression can ask ----------------------------------------------------------------------------------
    @property
    def rcv_wnd(self) -> int:
        """RCV.WND: from RCV.NXT to the right edge that the stack last announced; 0 when past it or not announced."""
        return max(0, diff(self.right_edge, self.rcv_nxt)) if self.right_edge is not None else 0

    def variable(self, name: str) -> int:
        """The value of ``SND.NXT`` and its like. Raises LookupError while the stack has not shown its ISS."""
        if name in ("ISS", "SND.UNA", "SND.NXT") and self.iss is None:
            raise LookupError(f"{name} of {self.name} is not known: the stack has sent no SYN")
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
    def called(self, event: str) -> None:
        """A user call was made whose effect the wire has yet to show: both states are possible."""
        if event == "passive-open":
            self.listening = True
            if self.states == {st.CLOSED}:
                self.states = frozenset({st.LISTEN})
        elif event == "passive-close":
            self.listening = False
            self.states = frozenset(st.CLOSED if s == st.LISTEN else s for s in self.states)
        else:
            self.states |= frozenset(st.follow(s, event) for s in self.states)

    def injected(self, seg: Segment) -> None:
        """The tester sent *seg*: RFC 9293 section 3.10.7, as a conforming stack applies it."""
        self.used = True
        astray = seg.flags & SYN and self.states & (st.SYNCHRONIZED | {st.SYN_RECEIVED})
        if seg.seq == self.tester_nxt and not seg.flags & RST and not astray:
            self.tester_nxt = add(seg.seq, seg.length)
        if seg.checksum is not None or seg.data_offset is not None:
            return  # discarded before anything else (sections 3.1 and 3.10.7)
        if self.states & {st.SYN_SENT} and self.iss is not None:
            self._in_syn_sent(seg)
        elif self.states <= {st.CLOSED, st.LISTEN}:
            if self.listening and seg.flags & (SYN | ACK | RST) == SYN:
                self._incarnate(seg)
                self.states = frozenset({st.SYN_RECEIVED})
        else:
            self._in_others(seg)
        if lt(self.tester_nxt, self.rcv_nxt):
            self.tester_nxt = self.rcv_nxt

    def _offer(self, seg: Segment) -> None:
        self._offered = {o.name: o.value for o in seg.options if isinstance(o.value, int)}
        ts = seg.option("ts")
        if ts is not None:
            self._offered["ts"] = self.ts_recent = ts.value[0]
        self.peer_mss = self._offered.get("mss", DEFAULT_MSS[self.version])
        self.snd_wnd = self.max_snd_wnd = seg.window
        self.snd_wl1, self.snd_wl2 = seg.seq, seg.ack

    def _incarnate(self, seg: Segment) -> None:
        """A SYN opens a new incarnation: nothing of an old one counts."""
        self.irs, self.rcv_nxt = seg.seq, add(seg.seq, 1)
        self.tester_nxt = self.rcv_nxt
        self.iss = self.right_edge = self.last_ack = self.last_window = self.fin_seq = None
        self.fin_received = self.timestamps = self.active = False
        self.rcv_shift = self.snd_shift = self.read = 0
        self.received, self._sent, self._held = bytearray(), bytearray(), []
        self._reopening = None
        self._offer(seg)

    def _in_syn_sent(self, seg: Segment) -> None:
        acceptable = bool(seg.flags & ACK) and lt(self.iss or 0, seg.ack) and le(seg.ack, self.snd_nxt)
        if seg.flags & ACK and not acceptable:
            return
        if seg.flags & RST:
            if acceptable:
                self.states = frozenset({st.CLOSED})
            return
        if seg.flags & SYN:
            self.irs, self.rcv_nxt = seg.seq, add(seg.seq, 1)
            self.tester_nxt = self.rcv_nxt
            self._offer(seg)
            self._agree(self._own_offer)
            self.right_edge = add(self.rcv_nxt, self._own_window)
            closed = self.states & {st.CLOSED}  # it is, if a close that was begun has been done
            self.states = closed | {st.ESTABLISHED if acceptable else st.SYN_RECEIVED}
            if acceptable:
                self.snd_una = seg.ack
                # Other controls and text of a SYN,ACK go through the steps from the sixth on.
                self._text(self.rcv_nxt, seg.payload, bool(seg.flags & FIN))
                if lt(self.tester_nxt, self.rcv_nxt):
                    self.tester_nxt = self.rcv_nxt

    def _agree(self, own: dict[str, int]) -> None:
        """Options count where both SYNs had them (RFC 7323, sections 2.2 and 3.2)."""
        if "window-scale" in own and "window-scale" in self._offered:
            self.rcv_shift = min(own["window-scale"], MAX_SHIFT)
            self.snd_shift = min(self._offered["window-scale"], MAX_SHIFT)
        self.timestamps = "ts" in own and "ts" in self._offered

    def acceptable(self, seg: Segment) -> bool:
        """Table 6 of RFC 9293 section 3.10.7.4: whether any of *seg* lies in the receive window."""
        if self.rcv_wnd == 0:
            return seg.length == 0 and seg.seq == self.rcv_nxt
        last = add(self.rcv_nxt, self.rcv_wnd - 1)
        if between(self.rcv_nxt, seg.seq, last):
            return True
        return seg.length > 0 and between(self.rcv_nxt, add(seg.seq, seg.length - 1), last)

    def _in_others(self, seg: Segment) -> None:
        if {st.SYN_RECEIVED, st.CLOSED} <= self.states and self.listening and seg.flags & (SYN | ACK | RST) == SYN:
            # Where the SYN before led back to LISTEN, this one opens anew; which it is shows in the answer.
            self._reopening = seg
            return
        if st.TIME_WAIT in self.states and seg.flags & (SYN | ACK | RST) == SYN:
            self._reopening = seg  # whether it is taken shows in the answer (RFC 9293, MAY-2; RFC 6191)
            return
        if self._completes_simultaneous_open(seg):
            self._acknowledged(seg)
            return
        if self._outdated(seg) or not self.acceptable(seg):
            return
        if seg.flags & RST:
            if seg.seq == self.rcv_nxt or not self.blind_attack_checks:
                # RFC 1337 lets TIME-WAIT ignore it.
                survive = self.states & {st.TIME_WAIT}
                self.states = frozenset({st.CLOSED}) | survive
            return
        if seg.flags & SYN and self.states & {st.SYN_RECEIVED} and not self.active:
            self.states |= {st.CLOSED}  # back to LISTEN (section 3.10.7.4, fourth)
        if seg.flags & SYN or not seg.flags & ACK:
            return
        if not self._acknowledged(seg):
            return
        if self.states & st.RECEIVING:
            self._text(seg.seq, seg.payload, bool(seg.flags & FIN))

    def _completes_simultaneous_open(self, seg: Segment) -> bool:
        """Line 6 of figure 8: the SYN again, now with an ACK. By table 6 alone it would be unacceptable."""
        in_place = seg.seq == self.irs and seg.ack == self.snd_nxt and seg.length == 1
        return (
            self.active and st.SYN_RECEIVED in self.states and seg.flags & (SYN | ACK | RST) == SYN | ACK and in_place
        )

    def _outdated(self, seg: Segment) -> bool:
        """RFC 7323 section 5.3, R1 to R3: whether PAWS refuses *seg*; keeps TS.Recent."""
        ts = seg.option("ts")
        if not self.timestamps or ts is None or seg.flags & RST:
            return False
        if lt(ts.value[0], self.ts_recent):
            return True
        if self.last_ack is not None and le(seg.seq, self.last_ack) and self.acceptable(seg):
            self.ts_recent = ts.value[0]
        return False

    def _acknowledged(self, seg: Segment) -> bool:
        """Fifth, the ACK field. Whether the segment is processed further."""
        if self.states & {st.SYN_RECEIVED}:
            if not (lt(self.snd_una, seg.ack) and le(seg.ack, self.snd_nxt)):
                return False
            self.states = frozenset(st.follow(s, "rcv ack") for s in self.states)
        if lt(self.snd_nxt, seg.ack):
            return False
        if self.blind_attack_checks and lt(seg.ack, add(self.snd_una, -self.max_snd_wnd)):
            return False
        if lt(self.snd_una, seg.ack):
            self.snd_una = seg.ack
        newer = lt(self.snd_wl1, seg.seq) or (self.snd_wl1 == seg.seq and le(self.snd_wl2, seg.ack))
        if le(self.snd_una, seg.ack) and newer:
            self.snd_wl1, self.snd_wl2 = seg.seq, seg.ack
            self.snd_wnd = seg.window << self.snd_shift
            self.max_snd_wnd = max(self.max_snd_wnd, self.snd_wnd)
        if self.fin_seq is not None and lt(self.fin_seq, self.snd_una):
            self.states = frozenset(st.follow(s, "rcv ack-of-fin") for s in self.states)
        return True

    def _text(self, seq: int, payload: bytes, fin: bool) -> None:
        """Seventh and eighth: text and FIN, out of order too; what lies beyond the window is cut off."""
        room = diff(add(self.rcv_nxt, self.rcv_wnd), seq)
        if len(payload) + fin > room:
            payload, fin = payload[:room], fin and len(payload) < room
        self._held.append((seq, payload, fin))
        progress = True
        while progress and not self.fin_received:
            progress = False
            for item in list(self._held):
                seq, payload, fin = item
                end = add(seq, len(payload))
                if lt(self.rcv_nxt, seq):
                    continue
                self._held.remove(item)
                if le(self.rcv_nxt, end):
                    self.received += payload[diff(self.rcv_nxt, seq) :]
                    progress = progress or self.rcv_nxt != end
                    self.rcv_nxt = end
                    if fin:
                        self.rcv_nxt = add(end, 1)
                        self.fin_received = True
                        self.states = frozenset(st.follow(s, "rcv fin") for s in self.states)
                        break

    def observed(self, seg: Segment) -> None:
        """The stack's *seg* was consumed."""
        self.used = True
        if self.stack_port is None:
            self.stack_port = seg.sport
        if seg.flags & RST:
            if self.states & st.SYNCHRONIZED:
                self.states = frozenset({st.CLOSED})
            elif self.states & {st.SYN_RECEIVED}:
                self.states |= {st.CLOSED}
            return
        if seg.flags & SYN:
            self._observed_syn(seg)
        elif self.iss is None:
            return
        start = add(seg.seq, 1) if seg.flags & SYN else seg.seq
        offset = diff(start, add(self.iss or 0, 1))
        if 0 <= offset <= len(self._sent):
            self._sent[offset : offset + len(seg.payload)] = seg.payload
        if seg.flags & FIN:
            self.fin_seq = add(start, len(seg.payload))
            moved = frozenset(st.follow(s, "close") for s in self.states)
            self.states = moved & (st.SYNCHRONIZED - {st.ESTABLISHED, st.CLOSE_WAIT}) or moved
        end = add(seg.seq, seg.length)
        if lt(self.snd_nxt, end):
            self.snd_nxt = end
        if seg.flags & ACK:
            self.last_ack, self.last_window = seg.ack, seg.window
            edge = add(seg.ack, seg.window << (0 if seg.flags & SYN else self.rcv_shift))
            # An old or shrunk announcement takes nothing back (RFC 9293, SHLD-14).
            if self.right_edge is None or lt(self.right_edge, edge):
                self.right_edge = edge
        ts = seg.option("ts")
        if ts is not None:
            self.last_tsval = ts.value[0]

    def _observed_syn(self, seg: Segment) -> None:
        reopening = self._reopening
        if reopening is not None and seg.flags & ACK and seg.ack == add(reopening.seq, 1):
            self._incarnate(reopening)
            self.states = frozenset({st.SYN_RECEIVED})
        if self.iss == seg.seq:
            return
        own = {o.name: o.value for o in seg.options if isinstance(o.value, int)}
        if seg.option("ts") is not None:
            own["ts"] = 1
        self.iss, self.snd_una = seg.seq, seg.seq
        self.snd_nxt = add(seg.seq, 1)
        if seg.flags & ACK:
            self._agree(own)
        else:
            self._own_offer, self._own_window, self.active = own, seg.window, True
            self.states = frozenset({st.SYN_SENT})

    def noise(self, seg: Segment, una: int | None = None) -> str | None:
        """The name in ``conform.case.vocabulary.NOISE`` of what *seg* is, if it is noise.

        *una* is SND.UNA as it was when the stack may have sent it, if that is not what it is now.
        """
        if self.iss is None or seg.flags & RST or (seg.flags & ACK and lt(self.rcv_nxt, seg.ack)):
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
            return "duplicate-ack" if seg.window == self.last_window else "window-update"
        return None
