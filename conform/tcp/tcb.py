"""What a conforming stack knows of one connection, and how it changes: RFC 9293 section 3.10.

Where the RFCs leave the stack a choice, :meth:`Tcb.receive` takes one way and gives the others.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

from conform.tcp import states as st
from conform.tcp.options import as_read
from conform.tcp.segment import ACK, FIN, RST, SYN, Segment
from conform.tcp.sequence import add, between, diff, le, lt

#: What a sender assumes that was told no MSS (RFC 9293, MUST-15), by IP version.
DEFAULT_MSS = {4: 536, 6: 1220}
#: The largest shift count (RFC 7323, section 2.3).
MAX_SHIFT = 14
#: The lowest of the four bits that RFC 9293 reserves: AE, where accurate ECN is agreed (RFC 9768 section 3.1).
AE = 1


class Text(NamedTuple):
    """Octets that the tester sent, where they begin, and whether a FIN follows them."""

    seq: int
    payload: bytes
    fin: bool

    @property
    def end(self) -> int:
        """The sequence number behind them, and behind the FIN."""
        return add(self.seq, len(self.payload) + self.fin)


@dataclass(slots=True, kw_only=True)
class Tcb:
    """The stack's side of a connection, as it must be if the stack went one certain way wherever it had a choice.

    ``_states`` are the states in which it may be: one, unless a call was made whose effect has not been seen on the
    wire. ``blind_attack_checks`` says that the stack claims RFC 5961. ``received`` holds the octets that its
    application is due, in order. ``tester_nxt`` is the tester's own next number.
    """

    version: int
    irs: int
    blind_attack_checks: bool = True
    listening: bool = False
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
    fin_seq: int | None = None
    fin_received: bool = False
    rcv_shift: int = 0
    snd_shift: int = 0
    peer_mss: int = 0
    timestamps: bool = False
    last_tsval: int = 0
    ts_recent: int = 0
    accurate_ecn: bool = False
    active: bool = False
    received: bytearray = field(default_factory=bytearray)
    read: int = 0
    _states: frozenset[str] = frozenset({st.CLOSED})
    _offered: dict[str, int] = field(default_factory=dict)
    _own_offer: dict[str, int] = field(default_factory=dict)
    _own_window: int = 0
    _sent: bytearray = field(default_factory=bytearray)
    #: Text beyond a gap. Whether it is kept is the stack's choice (RFC 9293, SHLD-31), made when the gap is filled.
    _held: tuple[Text, ...] = ()
    #: Text of the SYN, of which the same is true until the handshake is complete.
    _early: Text | None = None

    def __post_init__(self) -> None:
        self.rcv_nxt = self.tester_nxt = self.irs
        self.peer_mss = DEFAULT_MSS[self.version]

    # Copies ------------------------------------------------------------------------------------------------------
    def values(self) -> dict[str, Any]:
        """Everything that is known, by name; what can change is shared."""
        return {name: getattr(self, name) for name in _FIELDS}

    def become(self, other: Tcb) -> None:
        """Take over all that is known in *other*, which is not used any more."""
        for name, value in other.values().items():
            setattr(self, name, value)

    def copy(self) -> Tcb:
        """The same, to go another way."""
        made = Tcb(version=self.version, irs=self.irs)
        for name, value in self.values().items():
            setattr(made, name, bytearray(value) if isinstance(value, bytearray) else value)
        return made

    # What is asked of it -----------------------------------------------------------------------------------------
    @property
    def rcv_wnd(self) -> int:
        """RCV.WND: from RCV.NXT to the right edge that the stack last announced; 0 when past it or not announced."""
        return max(0, diff(self.right_edge, self.rcv_nxt)) if self.right_edge is not None else 0

    def acceptable(self, seg: Segment) -> bool:
        """Table 6 of RFC 9293 section 3.10.7.4: whether the first or the last of *seg* lies in the receive window."""
        if self.rcv_wnd == 0:
            return seg.length == 0 and seg.seq == self.rcv_nxt
        last = add(self.rcv_nxt, self.rcv_wnd - 1)
        if between(self.rcv_nxt, seg.seq, last):
            return True
        return seg.length > 0 and between(self.rcv_nxt, add(seg.seq, seg.length - 1), last)

    def states_in_time(self) -> frozenset[str]:
        """The states to which time alone can lead: where the stack waits for an answer, or for the end."""
        waiting = self._states if self.snd_una != self.snd_nxt else self._states & {st.TIME_WAIT, st.FIN_WAIT_2}
        return self._states | {st.follow(s, event) for s in waiting for event in ("2msl", "timeout")}

    def _follow(self, event: str) -> None:
        self._states = frozenset(st.follow(s, event) for s in self._states)

    # The user's calls --------------------------------------------------------------------------------------------
    def call(self, event: str) -> None:
        """A call was made: of a listener it holds at once, else both states are possible until the wire shows one."""
        if event == "passive-open":
            self.listening = True
            self._follow(event)
        elif event == "passive-close":
            self.listening = False
            self._states = frozenset(st.follow(s, "close") if s == st.LISTEN else s for s in self._states)
        else:
            self._states |= {st.follow(s, event) for s in self._states}

    # The tester's segments ---------------------------------------------------------------------------------------
    def receive(self, sent: Segment) -> list[Tcb]:
        """*sent* reaches the stack: section 3.10.7.

        This goes one way, the one by which a case counts until the stack has shown which it took. The result is where
        it is by the others that a conforming stack may take.
        """
        seg = as_read(sent)
        length = (seg or sent).length
        astray = sent.flags & SYN and self._states & (st.SYNCHRONIZED | {st.SYN_RECEIVED})
        if sent.seq == self.tester_nxt and not sent.flags & RST and not astray:
            self.tester_nxt = add(sent.seq, length)
        others = self._process(seg) if seg is not None else []
        for way in (self, *others):
            if lt(way.tester_nxt, way.rcv_nxt):
                way.tester_nxt = way.rcv_nxt
        return others

    def _process(self, seg: Segment) -> list[Tcb]:
        if self._states & {st.SYN_SENT} and self.iss is not None:
            return self._in_syn_sent(seg)
        others = []
        if seg.flags & (SYN | ACK | RST) == SYN:
            ready = {st.CLOSED, st.LISTEN} if self.listening else set()
            if self._states <= ready:
                self._incarnate(seg, self._states)
                return []
            # In TIME-WAIT it may open anew or not (MAY-2; RFC 6191), which shows in the answer.
            opened = self._states & (ready | {st.TIME_WAIT})
            if opened:
                others.append(self.copy())
                others[0]._incarnate(seg, opened)
                self._states -= ready
        if self._states <= {st.CLOSED, st.LISTEN}:
            if not self.listening and not seg.flags & (RST | ACK):
                self.rcv_nxt = add(seg.seq, seg.length)  # section 3.10.7.1: what its reset acknowledges
            return others
        return others + self._in_others(seg)

    def _offer(self, seg: Segment) -> None:
        self._offered = {o.name: o.value for o in seg.options if isinstance(o.value, int)}
        ts = seg.option("ts")
        if ts is not None:
            self._offered["ts"] = self.ts_recent = ts.value[0]
        self.peer_mss = self._offered.get("mss", DEFAULT_MSS[self.version])
        self.accurate_ecn = bool(seg.reserved & AE)
        self.snd_wnd = self.max_snd_wnd = seg.window
        self.snd_wl1, self.snd_wl2 = seg.seq, seg.ack

    def _begin(self, irs: int) -> None:
        """Nothing of an old incarnation counts in one that begins now."""
        kept = ("version", "blind_attack_checks", "listening", "_states")
        self.become(Tcb(irs=irs, **{name: getattr(self, name) for name in kept}))

    def _incarnate(self, seg: Segment, opened: frozenset[str]) -> None:
        """A SYN opens a new incarnation in each of the states *opened*, CLOSED among them if a listener is there."""
        self._states = frozenset(st.follow(st.follow(s, "passive-open"), "rcv syn") for s in opened)
        self._begin(seg.seq)
        self._synchronize(seg)

    def _synchronize(self, seg: Segment) -> None:
        self.irs, self.rcv_nxt = seg.seq, add(seg.seq, 1)
        self.tester_nxt = self.rcv_nxt
        self._offer(seg)
        if seg.payload or seg.flags & FIN:
            self._early = Text(self.rcv_nxt, seg.payload, bool(seg.flags & FIN))

    def _in_syn_sent(self, seg: Segment) -> list[Tcb]:
        acceptable = bool(seg.flags & ACK) and lt(self.iss or 0, seg.ack) and le(seg.ack, self.snd_nxt)
        if seg.flags & ACK and not acceptable:
            return []
        if seg.flags & RST:
            if acceptable:
                self._follow("rcv rst")
            return []
        if not seg.flags & SYN:
            return []
        self._synchronize(seg)
        self._agree(self._own_offer)
        self.right_edge = add(self.rcv_nxt, self._own_window)
        if not acceptable:
            self._follow("rcv syn")
            return []
        self.snd_una = seg.ack
        self._follow("rcv syn+ack")
        # Other controls and text of a SYN,ACK go through the steps from the sixth on.
        text, self._early = self._early, None
        if text is not None:
            self._take(text)
            self._move(False, self.fin_received)
        return []

    def _agree(self, own: dict[str, int]) -> None:
        """Options count where both SYNs had them (RFC 7323, sections 2.2 and 3.2)."""
        if "window-scale" in own and "window-scale" in self._offered:
            self.rcv_shift = min(own["window-scale"], MAX_SHIFT)
            self.snd_shift = min(self._offered["window-scale"], MAX_SHIFT)
        self.timestamps = "ts" in own and "ts" in self._offered

    def _in_others(self, seg: Segment) -> list[Tcb]:
        if self._completes_simultaneous_open(seg):
            return self._accept(seg)
        if self.timestamps and seg.option("ts") is None and not seg.flags & RST:
            other = self.copy()  # it SHOULD be dropped (RFC 7323 section 3.2)
            return [other, *other._checked(seg)]
        return self._checked(seg)

    def _checked(self, seg: Segment) -> list[Tcb]:
        acceptable = self.acceptable(seg)
        shut = self.rcv_wnd == 0 and seg.seq == self.rcv_nxt
        if self._outdated(seg) or not (acceptable or shut):
            return []
        if seg.flags & RST:
            if seg.seq == self.rcv_nxt or not self.blind_attack_checks:
                # RFC 1337 lets TIME-WAIT ignore it.
                survive = self._states & {st.TIME_WAIT}
                self._follow("rcv rst")
                self._states |= survive
            return []
        if seg.flags & SYN:
            if acceptable and not self.active:
                # Back to LISTEN (section 3.10.7.4, fourth), or a challenge (RFC 5961 section 4).
                self._states |= {st.follow(s, "rcv syn") for s in self._states & {st.SYN_RECEIVED}}
            return []
        if not seg.flags & ACK:
            return []
        if acceptable:
            return self._accept(seg)
        # A closed window: its ACK should be processed all the same, and nothing else of it.
        other = self.copy()
        return [other, *self._accept(replace(seg, payload=b"", flags=seg.flags & ~FIN))]

    def _completes_simultaneous_open(self, seg: Segment) -> bool:
        """Line 6 of figure 8: the SYN again, now with an ACK. By table 6 alone it would be unacceptable."""
        in_place = seg.seq == self.irs and seg.ack == self.snd_nxt and seg.length == 1
        return (
            self.active and st.SYN_RECEIVED in self._states and seg.flags & (SYN | ACK | RST) == SYN | ACK and in_place
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

    def _accept(self, seg: Segment) -> list[Tcb]:
        """Fifth to eighth: the ACK field, text, FIN."""
        if not self._acknowledged(seg):
            return []
        had_fin = self.fin_received
        others: list[Tcb] = []
        early, self._early = self._early, None
        if early is not None:
            others.append(self.copy())
            others[0]._take(early)
        if self._states & (st.RECEIVING | {st.SYN_RECEIVED}):
            text = Text(seg.seq, seg.payload, bool(seg.flags & FIN))
            others += [other for way in (self, *others) for other in way._text(text)]
        acked = self.fin_seq is not None and lt(self.fin_seq, self.snd_una)
        for way in (self, *others):
            way._move(acked, way.fin_received and not had_fin)
        return others

    def _move(self, acked: bool, fin: bool) -> None:
        """The tester's ACK was taken, *acked* if it covers the stack's FIN, and *fin* if a FIN of its was."""
        self._states = frozenset(_after(s, acked, fin) for s in self._states)

    def _acknowledged(self, seg: Segment) -> bool:
        """Fifth, the ACK field. Whether the segment is processed further."""
        if st.SYN_RECEIVED in self._states and not (lt(self.snd_una, seg.ack) and le(seg.ack, self.snd_nxt)):
            return False
        if lt(self.snd_nxt, seg.ack):
            return False
        if self.blind_attack_checks and lt(seg.ack, add(self.snd_una, -self.max_snd_wnd)):
            return False
        if lt(self.snd_una, seg.ack):
            self.snd_una = seg.ack
        newer = lt(self.snd_wl1, seg.seq) or (self.snd_wl1 == seg.seq and le(self.snd_wl2, seg.ack))
        if le(self.snd_una, seg.ack) and newer:
            self.snd_wl1, self.snd_wl2 = seg.seq, seg.ack
            self.snd_wnd = seg.window << (0 if seg.flags & SYN else self.snd_shift)
            self.max_snd_wnd = max(self.max_snd_wnd, self.snd_wnd)
        return True

    def _text(self, text: Text) -> list[Tcb]:
        """Seventh and eighth. This keeps what lies beyond a gap; the result is where it is by keeping less."""
        text = self._within(text)
        if lt(self.rcv_nxt, text.seq):
            if text.end != text.seq and text not in self._held:
                self._held = (*self._held, text)
            return []
        self._take(text)
        others = []
        while not self.fin_received:
            self._held = tuple(held for held in self._held if lt(self.rcv_nxt, held.end))
            reached = [held for held in self._held if le(held.seq, self.rcv_nxt)]
            if not reached:
                break
            other = self.copy()
            other._held = tuple(held for held in self._held if held not in reached)
            others.append(other)
            self._take(min(reached, key=lambda held: diff(held.end, self.rcv_nxt)))
        return others

    def _within(self, text: Text) -> Text:
        """*text* without what lies beyond the window."""
        room = max(0, diff(add(self.rcv_nxt, self.rcv_wnd), text.seq))
        return Text(text.seq, text.payload[:room], text.fin and len(text.payload) < room)

    def _take(self, text: Text) -> None:
        """Take what is new of *text*, which begins at RCV.NXT or before."""
        text = self._within(text)
        if self.fin_received or not lt(self.rcv_nxt, text.end):
            return
        self.received += text.payload[diff(self.rcv_nxt, text.seq) :]
        self.rcv_nxt, self.fin_received = text.end, text.fin
        if text.fin:
            self._held = ()  # nothing counts behind it

    # The stack's segments ----------------------------------------------------------------------------------------
    def shows(self, seg: Segment) -> bool:
        """Whether the stack's *seg* is what it sends where it is now, if it went this way."""
        if seg.flags & SYN:
            return seg.ack == add(self.irs, 1) and self.iss in (None, seg.seq)
        return seg.ack == self.rcv_nxt

    def observe(self, seg: Segment) -> None:
        """The stack's *seg* was consumed."""
        if seg.flags & RST:
            ended = self._states & st.SYNCHRONIZED
            maybe = self._states & {st.SYN_RECEIVED}  # its reset may have answered an ACK that was not acceptable
            self._states = (self._states - ended) | {st.follow(s, "abort") for s in ended | maybe}
            return
        if seg.flags & SYN:
            self._observe_syn(seg)
        elif self.iss is None:
            return
        start = add(seg.seq, 1) if seg.flags & SYN else seg.seq
        offset = diff(start, add(self.iss or 0, 1))
        if 0 <= offset <= len(self._sent):
            self._sent[offset : offset + len(seg.payload)] = seg.payload
        if seg.flags & FIN:
            self.fin_seq = add(start, len(seg.payload))
            self._follow("close")
            self._states = self._states & st.FIN_SENT or self._states
        end = add(seg.seq, seg.length)
        if lt(self.snd_nxt, end):
            self.snd_nxt = end
        if seg.flags & ACK:
            self.last_ack = seg.ack
            edge = self.edge(seg)
            # An old or shrunk announcement takes nothing back (RFC 9293, SHLD-14).
            if self.right_edge is None or lt(self.right_edge, edge):
                self.right_edge = edge
        ts = seg.option("ts")
        if ts is not None:
            self.last_tsval = ts.value[0]

    def edge(self, seg: Segment) -> int:
        """The right edge of the window that the stack's *seg* announces; in a SYN it is not scaled."""
        return add(seg.ack, seg.window << (0 if seg.flags & SYN else self.rcv_shift))

    def _observe_syn(self, seg: Segment) -> None:
        if self.iss == seg.seq:
            return
        own = {o.name: o.value for o in seg.options if isinstance(o.value, int)}
        if seg.option("ts") is not None:
            own["ts"] = 1
        if not seg.flags & ACK:
            self._states = frozenset({st.follow(st.CLOSED, "active-open")})
            mine = self.tester_nxt
            self._begin(self.irs)
            self.tester_nxt = mine
            self._own_offer, self._own_window, self.active = own, seg.window, True
        self.iss, self.snd_una = seg.seq, seg.seq
        self.snd_nxt = add(seg.seq, 1)
        if seg.flags & ACK:
            self._agree(own)


_FIELDS = tuple(f.name for f in fields(Tcb))


def _after(state: str, acked: bool, fin: bool) -> str:
    """The state after an ACK that was taken, *acked* if it covers the stack's FIN, with a FIN that was if *fin*."""
    if state == st.SYN_RECEIVED:
        return st.follow(state, "rcv fin" if fin else "rcv ack")
    if acked and fin and state == st.FIN_WAIT_1:
        return st.follow(state, "rcv fin+ack-of-fin")
    if acked:
        state = st.follow(state, "rcv ack-of-fin")
    return st.follow(state, "rcv fin") if fin else state
