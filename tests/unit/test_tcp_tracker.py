"""The tracker: RFC 9293 section 3.10.7, branch by branch, with ISNs on both sides of the wrap."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as s

from conform.tcp import rules
from conform.tcp import states as st
from conform.tcp.segment import ACK, FIN, PSH, RST, SYN, IPFields, Option, Segment
from conform.tcp.sequence import MODULUS, add, diff
from conform.tcp.tracker import Connection

IP = IPFields(4, "192.0.2.2", "192.0.2.1")
ISNS = [0, 1, 1000, (1 << 31) - 2, 0xFFFFFFFE, 0xFFFFFFFF]
WINDOW = 1000


class Wire:
    """A connection, and segments numbered from the ISNs: what the tester sends, and what the stack does."""

    def __init__(self, irs: int = 1000, iss: int = 5000, **fields: Any) -> None:
        self.c = Connection("c1", 4, 40000, 80, irs, **fields)
        self.irs, self.iss = irs, iss

    def tester(self, flags: int, seq: int, ack: int | None = None, payload: bytes = b"", **fields: Any) -> None:
        fields["ack"] = add(self.iss, ack) if ack is not None else 0
        self.c.injected(Segment(IP, 40000, 80, add(self.irs, seq), flags=flags, payload=payload, **fields))

    def stack(self, flags: int, seq: int, ack: int | None = None, payload: bytes = b"", **fields: Any) -> None:
        self.c.observed(self.segment(flags, seq, ack, payload, **fields))

    def segment(self, flags: int, seq: int, ack: int | None = None, payload: bytes = b"", **fields: Any) -> Segment:
        """A segment of the stack."""
        fields["ack"] = add(self.irs, ack) if ack is not None else 0
        fields.setdefault("window", WINDOW)
        return Segment(IP, 80, 40000, add(self.iss, seq), flags=flags, payload=payload, **fields)

    @property
    def rcv_nxt(self) -> int:
        return diff(self.c.rcv_nxt, self.irs)

    @property
    def rcv_nxts(self) -> list[int]:
        return sorted(diff(n, self.irs) for n in self.c.rcv_nxts)

    @property
    def states(self) -> set[str]:
        return set(self.c.states)


def listening(irs: int = 1000, iss: int = 5000, **fields: Any) -> Wire:
    wire = Wire(irs, iss, **fields)
    wire.c.called("passive-open")
    return wire


def syn_received(irs: int = 1000, iss: int = 5000, **fields: Any) -> Wire:
    wire = listening(irs, iss, **fields)
    wire.tester(SYN, 0)
    wire.stack(SYN | ACK, 0, 1)
    return wire


def established(irs: int = 1000, iss: int = 5000, **fields: Any) -> Wire:
    wire = syn_received(irs, iss, **fields)
    wire.tester(ACK, 1, 1)
    assert wire.states == {"ESTABLISHED"}
    return wire


def fin_wait_1(irs: int = 1000, iss: int = 5000) -> Wire:
    wire = established(irs, iss)
    wire.c.called("close")
    assert wire.states == {"ESTABLISHED", "FIN-WAIT-1"}
    wire.stack(FIN | ACK, 1, 1)
    assert wire.states == {"FIN-WAIT-1"}
    return wire


def fin_wait_2() -> Wire:
    wire = fin_wait_1()
    wire.tester(ACK, 1, 2)
    return wire


def closing() -> Wire:
    wire = fin_wait_1()
    wire.tester(FIN | ACK, 1, 1)
    wire.stack(ACK, 2, 2)
    return wire


def time_wait() -> Wire:
    wire = fin_wait_2()
    wire.tester(FIN | ACK, 1, 2)
    wire.stack(ACK, 2, 2)
    return wire


def close_wait() -> Wire:
    wire = established()
    wire.tester(FIN | ACK, 1, 1)
    wire.stack(ACK, 1, 2)
    return wire


def last_ack() -> Wire:
    wire = close_wait()
    wire.c.called("close")
    wire.stack(FIN | ACK, 1, 2)
    return wire


def syn_sent(irs: int = 1000, iss: int = 5000, options: tuple[Option, ...] = ()) -> Wire:
    wire = Wire(irs, iss)
    wire.c.called("active-open")
    assert wire.states == {"CLOSED", "SYN-SENT"}
    wire.stack(SYN, 0, options=options)
    assert wire.states == {"SYN-SENT"}
    return wire


WAYS = {
    "SYN-RECEIVED": syn_received, "ESTABLISHED": established, "FIN-WAIT-1": fin_wait_1, "FIN-WAIT-2": fin_wait_2,
    "CLOSING": closing, "TIME-WAIT": time_wait, "CLOSE-WAIT": close_wait, "LAST-ACK": last_ack, "SYN-SENT": syn_sent,
}  # fmt: skip


@pytest.mark.parametrize("state", WAYS)
def test_the_ways_lead_there(state: str) -> None:
    assert WAYS[state]().states == {state}


# Every row of the table ----------------------------------------------------------------------------------------------
ROWS = [(state, event) for state, events in st.TRANSITIONS.items() for event in events]
#: What the stack may ignore, or what was begun and not seen yet.
MAY_STAY = {
    ("CLOSED", "active-open"), ("LISTEN", "active-open"), ("TIME-WAIT", "rcv rst"), ("TIME-WAIT", "rcv syn"),
    ("SYN-RECEIVED", "rcv syn"),
} | {(state, event) for state, event in ROWS if event in ("abort", "2msl", "timeout")} | {
    (state, "close") for state in WAYS
}  # fmt: skip


def reach(state: str) -> Wire:
    """A connection in *state*, with something unacknowledged where that can be."""
    wire = WAYS[state]() if state in WAYS else listening() if state == "LISTEN" else Wire()
    if state in ("ESTABLISHED", "CLOSE-WAIT"):
        wire.stack(ACK, 1, wire.rcv_nxt, b"x")
    return wire


def happens(wire: Wire, state: str, event: str) -> set[str]:
    """The states in which the stack may be once *event* happened."""
    if event in ("2msl", "timeout"):
        return set(wire.c.states_in_time())
    rcv_nxt = wire.rcv_nxt
    match event:
        case "rcv syn":
            wire.tester(SYN, {"SYN-RECEIVED": 5, "TIME-WAIT": 5000}.get(state, 0))
        case "rcv syn+ack":
            wire.tester(SYN | ACK, 0, 1)
        case "rcv rst":
            wire.tester(RST | ACK, rcv_nxt, 1)
        case "rcv ack":
            wire.tester(ACK, 1, 1)
        case "rcv ack-of-fin":
            wire.tester(ACK, rcv_nxt, 2)
        case "rcv fin":
            wire.tester(FIN | ACK, rcv_nxt, 2 if state == "FIN-WAIT-2" else 1)
        case "rcv fin+ack-of-fin":
            wire.tester(FIN | ACK, rcv_nxt, 2)
        case _:
            wire.c.called("passive-close" if (state, event) == ("LISTEN", "close") else event)
    return wire.states


@pytest.mark.parametrize(("state", "event"), ROWS)
def test_the_tracker_follows_the_table(state: str, event: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row, and that each is where the tracker has it from: another state in it is another result."""
    after = st.TRANSITIONS[state][event]
    expected = {after, state} if (state, event) in MAY_STAY else {after}
    assert happens(reach(state), state, event) == expected
    for other in st.STATES:
        wire = reach(state)
        monkeypatch.setitem(st.TRANSITIONS[state], event, other)
        assert (happens(wire, state, event) == expected) is (other == after), other
        monkeypatch.undo()
    wire = reach(state)
    monkeypatch.delitem(st.TRANSITIONS[state], event)
    assert happens(wire, state, event) != expected


def test_what_ends_by_time_waits_for_something() -> None:
    assert established().c.states_in_time() == {"ESTABLISHED"}
    assert listening().c.states_in_time() == {"LISTEN"}


# 3.10.7.1 and 3.10.7.2: CLOSED and LISTEN ---------------------------------------------------------------------------
@pytest.mark.parametrize("irs", ISNS)
def test_a_syn_to_a_listener(irs: int) -> None:
    wire = listening(irs)
    wire.tester(SYN, 0, payload=b"abc", window=77, options=(Option("mss", 900),))
    assert wire.states == {"SYN-RECEIVED"}
    assert wire.c.rcv_nxt == wire.c.tester_nxt == add(irs, 1)
    assert wire.c.variable("IRS") == irs
    assert wire.c.variable("SND.MSS") == 900
    assert wire.c.variable("SND.WND") == 77
    assert wire.c.variable("RCV.WND") == 0
    with pytest.raises(LookupError, match="ISS of c1 is not known"):
        wire.c.variable("ISS")


@pytest.mark.parametrize(("version", "mss"), [(4, 536), (6, 1220)])
def test_what_is_assumed_of_a_syn_without_mss(version: int, mss: int) -> None:
    assert Connection("c1", version, 1, 2, 0).variable("SND.MSS") == mss


@pytest.mark.parametrize("flags", [ACK, SYN | ACK, RST, SYN | RST, 0, FIN])
def test_what_opens_no_connection(flags: int) -> None:
    wire = listening()
    wire.tester(flags, 0, 5)
    assert wire.states == {"LISTEN"}
    assert wire.rcv_nxt == 0


def test_a_syn_to_a_closed_port() -> None:
    wire = Wire()
    wire.tester(SYN | FIN, 0, payload=b"abc")
    assert wire.states == {"CLOSED"}
    assert wire.rcv_nxt == 5  # what the reset acknowledges (section 3.10.7.1)
    for flags in (RST, ACK, RST | ACK):
        wire.tester(flags, 70, 1)
        assert wire.rcv_nxt == 5


def test_a_listener_that_is_closed() -> None:
    wire = listening()
    wire.c.called("passive-close")
    assert wire.states == {"CLOSED"}
    wire.tester(SYN, 0)
    assert wire.states == {"CLOSED"}


def test_a_connection_outlives_its_listener() -> None:
    wire = established()
    wire.c.called("passive-open")
    wire.c.called("passive-close")
    assert wire.states == {"ESTABLISHED"}


# 3.10.7.3: SYN-SENT --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("irs", ISNS)
@pytest.mark.parametrize("iss", ISNS)
def test_syn_sent_takes_a_syn_ack(irs: int, iss: int) -> None:
    wire = syn_sent(irs, iss)
    wire.tester(SYN | ACK, 0, 1)
    assert wire.states == {"ESTABLISHED"}
    assert wire.rcv_nxt == 1
    assert wire.c.variable("SND.UNA") == wire.c.variable("SND.NXT") == add(iss, 1)
    assert wire.c.variable("RCV.WND") == WINDOW


@pytest.mark.parametrize("ack", [0, 2, -1])
@pytest.mark.parametrize("flags", [ACK, SYN | ACK, RST | ACK, FIN | ACK])
def test_syn_sent_refuses_a_wrong_ack(flags: int, ack: int) -> None:
    wire = syn_sent()
    wire.tester(flags, 0, ack)
    assert wire.states == {"SYN-SENT"}
    assert wire.rcv_nxt == 0


@pytest.mark.parametrize(
    ("flags", "states"), [(RST, {"SYN-SENT"}), (RST | ACK, {"CLOSED"}), (RST | SYN | ACK, {"CLOSED"})]
)
def test_syn_sent_takes_only_a_reset_with_a_good_ack(flags: int, states: set[str]) -> None:
    wire = syn_sent()
    wire.tester(flags, 0, 1)
    assert wire.states == states


@pytest.mark.parametrize("flags", [ACK, FIN | ACK, FIN, 0])
def test_syn_sent_drops_what_has_neither_syn_nor_rst(flags: int) -> None:
    wire = syn_sent()
    wire.tester(flags, 0, 1, b"abc")
    assert wire.states == {"SYN-SENT"}
    assert wire.rcv_nxt == 0


@pytest.mark.parametrize("irs", ISNS)
def test_text_of_a_syn_ack_is_processed(irs: int) -> None:
    wire = syn_sent(irs)
    wire.tester(SYN | ACK | FIN, 0, 1, b"abc")
    assert wire.states == {"CLOSE-WAIT"}
    assert wire.rcv_nxt == 5
    assert wire.c.tester_nxt == wire.c.rcv_nxt
    assert wire.c.received == b"abc"


def test_a_close_in_syn_sent_may_have_come_first() -> None:
    wire = syn_sent()
    wire.c.called("close")
    wire.tester(SYN | ACK, 0, 1)
    assert wire.states == {"CLOSED", "ESTABLISHED"}
    wire.stack(RST, 1)
    assert wire.states == {"CLOSED"}


@pytest.mark.parametrize("irs", ISNS)
@pytest.mark.parametrize("last", [ACK, SYN | ACK])
def test_simultaneous_open(irs: int, last: int) -> None:
    """Figure 8: the SYNs cross; each end repeats its SYN, with an ACK."""
    wire = syn_sent(irs)
    wire.tester(SYN, 0)
    assert wire.states == {"SYN-RECEIVED"}
    assert wire.rcv_nxt == 1
    wire.stack(SYN | ACK, 0, 1)
    assert wire.states == {"SYN-RECEIVED"}
    wire.tester(last, 0 if last & SYN else 1, 1)
    assert wire.states == {"ESTABLISHED"}
    assert wire.c.tester_nxt == add(irs, 1)
    assert wire.c.snd_una == wire.c.snd_nxt


def test_a_reopening_that_came_to_nothing_is_forgotten() -> None:
    wire = time_wait()
    wire.tester(SYN, 900)
    wire.tester(SYN, 5000)
    wire.c.observed(Segment(IP, 80, 40000, 77, add(wire.irs, 5001), SYN | ACK, WINDOW))
    assert wire.states == {"SYN-RECEIVED"}
    assert wire.rcv_nxt == 5001
    wire.c.observed(Segment(IP, 80, 40000, 77, add(wire.irs, 5001), SYN | ACK, WINDOW))
    assert wire.states == {"SYN-RECEIVED"}


def test_a_window_counts_from_the_syn_on() -> None:
    wire = syn_received()
    wire.tester(ACK, 1, 1, window=40)
    wire.tester(ACK, 0, 1, b"xy", window=30)  # older than what the window came with
    assert wire.c.variable("SND.WND") == 40


def test_the_tester_goes_on_behind_what_filled_a_gap() -> None:
    wire = established()
    wire.tester(ACK, 4, 1, b"def")
    wire.tester(ACK, 1, 1, b"abc")
    assert wire.c.tester_nxt == wire.c.rcv_nxt == add(wire.irs, 7)


@pytest.mark.parametrize(("seq", "ack", "payload"), [(1, 1, b""), (0, 0, b""), (0, 2, b""), (0, 1, b"x")])
def test_what_does_not_complete_a_simultaneous_open(seq: int, ack: int, payload: bytes) -> None:
    wire = syn_sent()
    wire.tester(SYN, 0)
    wire.stack(SYN | ACK, 0, 1)
    wire.tester(SYN | ACK, seq, ack, payload)
    assert wire.states == {"SYN-RECEIVED"}


def test_a_syn_ack_completes_no_passive_open() -> None:
    wire = syn_received()
    wire.tester(SYN | ACK, 0, 1)
    assert wire.states == {"SYN-RECEIVED"}


# 3.10.7.4 first: the window ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("irs", ISNS)
@pytest.mark.parametrize(
    ("seq", "length", "acceptable"),
    [
        (1, 0, True), (0, 0, False), (WINDOW, 0, True), (WINDOW + 1, 0, False),
        (1, 1, True), (0, 1, False), (0, 2, True), (-5, 6, False),
        (-5, 7, True), (WINDOW, 1, True), (WINDOW + 1, 1, False),
        (WINDOW, 9, True), (-9, WINDOW + 100, False),
    ],
)  # fmt: skip
def test_table_6(irs: int, seq: int, length: int, acceptable: bool) -> None:
    wire = established(irs)
    segment = Segment(IP, 40000, 80, add(irs, seq), flags=ACK, payload=b"x" * length)
    assert wire.c.acceptable(segment) is acceptable


@pytest.mark.parametrize(("seq", "length", "acceptable"), [(1, 0, True), (0, 0, False), (2, 0, False), (1, 1, False)])
def test_table_6_with_a_closed_window(seq: int, length: int, acceptable: bool) -> None:
    wire = established()
    wire.c.right_edge = wire.c.rcv_nxt
    assert wire.c.variable("RCV.WND") == 0
    segment = Segment(IP, 40000, 80, add(wire.irs, seq), flags=ACK, payload=b"x" * length)
    assert wire.c.acceptable(segment) is acceptable


@pytest.mark.parametrize("state", [state for state in WAYS if state != "SYN-SENT"])
def test_an_unacceptable_segment_changes_nothing(state: str) -> None:
    for flags in (ACK, FIN | ACK, RST, SYN):
        wire = WAYS[state]()
        before = (wire.rcv_nxt, wire.c.snd_una)
        wire.tester(flags, 5000, 1, b"")
        assert (wire.rcv_nxt, wire.c.snd_una) == before
        assert wire.states == {state} | ({"SYN-RECEIVED"} if (state, flags) == ("TIME-WAIT", SYN) else set())


# Second: RST ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("state", [state for state in WAYS if state != "SYN-SENT"])
@pytest.mark.parametrize(
    ("by", "closes"), [(0, True), (1, False), (-1, False), (WINDOW - 1, False), (WINDOW + 9, False)]
)
def test_a_reset_closes_only_when_exact(state: str, by: int, closes: bool) -> None:
    wire = WAYS[state]()
    wire.tester(RST, wire.rcv_nxt + by)
    if not closes:
        assert wire.states == {state}
    else:
        # RFC 1337 lets TIME-WAIT ignore it.
        assert wire.states == {"CLOSED"} | ({"TIME-WAIT"} & {state})


@pytest.mark.parametrize(("by", "closes"), [(0, True), (5, True), (-1, False), (WINDOW, False)])
def test_without_rfc_5961_a_reset_closes_anywhere_in_the_window(by: int, closes: bool) -> None:
    wire = established(blind_attack_checks=False)
    wire.tester(RST, 1 + by)
    assert wire.states == ({"CLOSED"} if closes else {"ESTABLISHED"})


# Fourth: SYN ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("state", ["ESTABLISHED", "FIN-WAIT-1", "FIN-WAIT-2", "CLOSE-WAIT", "CLOSING", "LAST-ACK"])
def test_a_syn_changes_nothing_in_a_synchronized_state(state: str) -> None:
    wire = WAYS[state]()
    tester_nxt = wire.c.tester_nxt
    wire.tester(SYN, wire.rcv_nxt)
    wire.tester(SYN | ACK, wire.rcv_nxt + 5, 1)
    assert wire.states == {state}
    assert wire.c.tester_nxt == tester_nxt


def test_a_syn_in_the_window_returns_a_passive_open_to_listen() -> None:
    wire = syn_received()
    wire.tester(SYN, 5)
    assert wire.states == {"SYN-RECEIVED", "CLOSED"}
    wire = syn_sent()
    wire.tester(SYN, 0)
    wire.stack(SYN | ACK, 0, 1)
    wire.tester(SYN, 5)
    assert wire.states == {"SYN-RECEIVED"}


@pytest.mark.parametrize("taken", [True, False])
@pytest.mark.parametrize("seq", [100000, -100000])
def test_a_syn_in_time_wait_is_taken_or_not(taken: bool, seq: int) -> None:
    wire = time_wait()
    wire.tester(SYN, seq, window=99)
    assert wire.states == {"TIME-WAIT", "SYN-RECEIVED"}
    assert wire.rcv_nxt == 2
    if not taken:
        wire.stack(ACK, 2, 2)
        assert wire.states == {"TIME-WAIT"}
        assert wire.rcv_nxt == 2
        return
    irs = add(wire.irs, seq)
    wire.c.observed(Segment(IP, 80, 40000, 77, add(irs, 1), SYN | ACK, WINDOW))
    assert wire.states == {"SYN-RECEIVED"}
    assert wire.c.variable("IRS") == irs
    assert wire.c.variable("ISS") == 77
    assert wire.c.variable("SND.NXT") == 78
    assert wire.c.rcv_nxt == wire.c.tester_nxt == add(irs, 1)
    assert wire.c.variable("RCV.WND") == WINDOW
    assert not wire.c.fin_received
    wire.c.injected(Segment(IP, 40000, 80, add(irs, 1), 78, ACK))
    assert wire.states == {"ESTABLISHED"}


def test_nothing_of_an_old_incarnation_counts() -> None:
    wire = listening()
    wire.tester(SYN, 0, options=(Option("window-scale", 2), TS))
    wire.stack(SYN | ACK, 0, 1, options=(Option("window-scale", 7), Option("ts", (9, 100))))
    wire.tester(ACK, 1, 1, b"abc", window=9)
    wire.c.read = 2
    wire.stack(ACK, 1, 4, b"0123456789")
    wire.tester(ACK, 9, 1, b"held")
    wire.tester(RST, 4)
    irs = add(wire.irs, 5000)
    wire.c.injected(Segment(IP, 40000, 80, irs, flags=SYN, window=50))
    wire.c.observed(Segment(IP, 80, 40000, 77, add(irs, 1), SYN | ACK, WINDOW))
    fresh = syn_received(irs, 77)
    fresh.c.snd_wnd = fresh.c.max_snd_wnd = 50
    for name in ("rcv_shift", "snd_shift", "read", "received", "_sent", "_held", "_early", "timestamps", "fin_seq"):
        assert getattr(wire.c, name) == getattr(fresh.c, name), name
    assert wire.c.variable("SND.UNA") == 77
    assert wire.c.variable("SND.WND") == 50
    wire.c.injected(Segment(IP, 40000, 80, add(irs, 1), 78, ACK, window=40))
    assert wire.c.variable("SND.WND") == 40


def test_a_new_connection_after_the_old_one_is_closed() -> None:
    wire = last_ack()
    wire.tester(ACK, 2, 2)
    assert wire.states == {"CLOSED"}
    wire.tester(SYN, 900)
    assert wire.states == {"SYN-RECEIVED"}
    assert wire.c.iss is None
    assert wire.c.received == b""


# Fifth: ACK ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("ack", "state"), [(1, "ESTABLISHED"), (0, "SYN-RECEIVED"), (2, "SYN-RECEIVED"), (-5, "SYN-RECEIVED")]
)
def test_the_ack_that_completes_a_handshake(ack: int, state: str) -> None:
    wire = syn_received()
    wire.tester(ACK, 1, ack, b"abc")
    assert wire.states == {state}
    assert wire.rcv_nxt == (4 if state == "ESTABLISHED" else 1)


def test_without_ack_a_segment_is_dropped() -> None:
    wire = established()
    wire.tester(PSH, 1, None, b"abc")
    assert wire.rcv_nxt == 1


@pytest.mark.parametrize("iss", ISNS)
@pytest.mark.parametrize(
    ("ack", "una", "rcv"), [(1, 1, 4), (6, 6, 4), (11, 11, 4), (12, 1, 1), (0, 1, 4), (-65535, 1, 1)]
)
def test_acknowledgments(iss: int, ack: int, una: int, rcv: int) -> None:
    wire = established(iss=iss)
    wire.stack(ACK, 1, 1, b"0123456789")
    assert wire.c.variable("SND.NXT") == add(iss, 11)
    wire.tester(ACK, 1, ack, b"abc")
    assert diff(wire.c.variable("SND.UNA"), iss) == una
    assert wire.rcv_nxt == rcv


@pytest.mark.parametrize(("ack", "taken"), [(-499, True), (-500, False)])
def test_how_old_an_ack_may_be_follows_the_largest_window(ack: int, taken: bool) -> None:
    wire = listening()
    wire.tester(SYN, 0, window=10)
    wire.stack(SYN | ACK, 0, 1)
    wire.tester(ACK, 1, 1, window=500)
    wire.tester(ACK, 1, 1, window=5)
    wire.tester(ACK, 1, ack, b"abc")
    assert wire.rcv_nxt == (4 if taken else 1)


def test_an_old_ack_is_taken_where_rfc_5961_is_not() -> None:
    wire = established(blind_attack_checks=False)
    wire.tester(ACK, 1, -65535, b"abc")
    assert wire.rcv_nxt == 4


def test_the_window_is_that_of_the_newest_segment() -> None:
    wire = established()
    wire.tester(ACK, 1, 1, window=500)
    assert wire.c.variable("SND.WND") == 500
    wire.tester(ACK, 4, 1, b"x", window=400)
    wire.tester(ACK, 1, 1, window=300)
    assert wire.c.variable("SND.WND") == 400


@pytest.mark.parametrize(
    ("state", "after"), [("FIN-WAIT-1", "FIN-WAIT-2"), ("CLOSING", "TIME-WAIT"), ("LAST-ACK", "CLOSED")]
)
def test_the_ack_of_the_fin(state: str, after: str) -> None:
    wire = WAYS[state]()
    wire.tester(ACK, wire.rcv_nxt, 1)
    assert wire.states == {state}
    wire.tester(ACK, wire.rcv_nxt, 2)
    assert wire.states == {after}


# Seventh and eighth: text and FIN ------------------------------------------------------------------------------------
@pytest.mark.parametrize("irs", ISNS)
def test_in_order_text(irs: int) -> None:
    wire = established(irs)
    wire.tester(ACK, 1, 1, b"abc")
    wire.tester(ACK, 4, 1, b"def")
    assert wire.rcv_nxt == 7
    assert wire.c.tester_nxt == wire.c.rcv_nxt
    assert wire.c.received == b"abcdef"
    assert wire.c.variable("RCV.WND") == WINDOW - 6


@pytest.mark.parametrize("irs", ISNS)
def test_text_out_of_order(irs: int) -> None:
    wire = established(irs)
    wire.tester(ACK, 4, 1, b"def")
    assert wire.rcv_nxt == 1
    wire.tester(ACK, 7, 1, b"ghi")
    assert wire.rcv_nxt == 1
    wire.tester(ACK, 1, 1, b"abc")
    assert wire.rcv_nxt == 10
    assert wire.c.received == b"abcdefghi"


@pytest.mark.parametrize("irs", ISNS)
def test_overlapping_text(irs: int) -> None:
    wire = established(irs)
    wire.tester(ACK, 1, 1, b"abc")
    wire.tester(ACK, 2, 1, b"bcdef")
    assert wire.rcv_nxt == 7
    wire.tester(ACK, 1, 1, b"abc")
    assert wire.rcv_nxt == 7
    assert wire.c.received == b"abcdef"


@pytest.mark.parametrize("irs", ISNS)
@pytest.mark.parametrize("fin", [0, FIN])
def test_text_beyond_the_window_is_cut(irs: int, fin: int) -> None:
    wire = established(irs)
    wire.tester(ACK | fin, 1, 1, b"x" * (WINDOW + 5))
    assert wire.rcv_nxt == WINDOW + 1
    assert wire.states == {"ESTABLISHED"}
    assert wire.c.variable("RCV.WND") == 0


def test_a_fin_that_just_fits_and_one_that_does_not() -> None:
    for length, taken in ((WINDOW - 1, True), (WINDOW, False)):
        wire = established()
        wire.tester(ACK | FIN, 1, 1, b"x" * length)
        assert wire.rcv_nxt == WINDOW + 1
        assert wire.states == ({"CLOSE-WAIT"} if taken else {"ESTABLISHED"})


@pytest.mark.parametrize("irs", ISNS)
@pytest.mark.parametrize("payload", [b"", b"abcde"])
def test_a_fin_with_and_without_text(irs: int, payload: bytes) -> None:
    wire = established(irs)
    wire.tester(ACK | FIN, 1, 1, payload)
    assert wire.states == {"CLOSE-WAIT"}
    assert wire.rcv_nxt == 2 + len(payload)
    assert wire.c.tester_nxt == wire.c.rcv_nxt


@pytest.mark.parametrize("irs", ISNS)
def test_a_fin_out_of_order(irs: int) -> None:
    wire = established(irs)
    wire.tester(ACK | FIN, 4, 1, b"def")
    assert wire.states == {"ESTABLISHED"}
    wire.tester(ACK, 1, 1, b"abc")
    assert wire.states == {"CLOSE-WAIT", "ESTABLISHED"}
    assert wire.rcv_nxt == 8
    wire.stack(ACK, 1, 8)
    assert wire.states == {"CLOSE-WAIT"}
    assert wire.c.received == b"abcdef"


def test_nothing_counts_behind_a_fin() -> None:
    wire = established()
    wire.tester(ACK, 4, 1, b"beyond")
    wire.tester(ACK | FIN, 1, 1, b"ab")
    assert wire.rcv_nxt == 4
    assert wire.c.received == b"ab"
    wire.tester(ACK, 4, 1, b"more")
    assert wire.rcv_nxt == 4


@pytest.mark.parametrize(
    ("state", "ack", "after"),
    [
        ("ESTABLISHED", 1, "CLOSE-WAIT"), ("FIN-WAIT-1", 1, "CLOSING"), ("FIN-WAIT-1", 2, "TIME-WAIT"),
        ("FIN-WAIT-2", 2, "TIME-WAIT"), ("CLOSE-WAIT", 1, "CLOSE-WAIT"), ("CLOSING", 1, "CLOSING"),
        ("LAST-ACK", 1, "LAST-ACK"), ("TIME-WAIT", 2, "TIME-WAIT"), ("SYN-RECEIVED", 1, "CLOSE-WAIT"),
    ],
)  # fmt: skip
def test_a_fin_in_each_state(state: str, ack: int, after: str) -> None:
    wire = WAYS[state]()
    wire.tester(FIN | ACK, wire.rcv_nxt, ack)
    assert wire.states == {after}


def test_a_close_in_syn_received() -> None:
    wire = syn_received()
    wire.c.called("close")
    assert wire.states == {"SYN-RECEIVED", "FIN-WAIT-1"}
    wire.stack(FIN | ACK, 1, 1)
    assert wire.states == {"FIN-WAIT-1"}


@given(
    s.integers(0, MODULUS - 1), s.lists(s.tuples(s.integers(0, 40), s.integers(1, 20)), min_size=1, max_size=12)
)  # fmt: skip
def test_text_in_any_order_is_what_was_covered_without_a_gap(irs: int, pieces: list[tuple[int, int]]) -> None:
    octets = bytes(range(100))
    wire = established(irs)
    covered: set[int] = set()
    for at, length in pieces:
        wire.tester(ACK, 1 + at, 1, octets[at : at + length])
        covered |= set(range(at, at + length))
        end = next(n for n in range(101) if n not in covered)
        assert wire.c.received == octets[:end]
        assert wire.rcv_nxt == 1 + end


# Choices -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("irs", ISNS)
@pytest.mark.parametrize(("ack", "values", "received"), [(4, [4], b"abc"), (7, [7], b"abcdef"), (9, [4, 7, 10], b"")])
def test_text_beyond_a_gap_may_be_kept_or_not(irs: int, ack: int, values: list[int], received: bytes) -> None:
    """RFC 9293, SHLD-31. The stack's acknowledgment tells, if it is one of those that may be."""
    wire = established(irs)
    wire.tester(ACK, 7, 1, b"ghi")
    wire.tester(ACK, 4, 1, b"def")
    assert wire.rcv_nxts == [1]
    wire.tester(ACK, 1, 1, b"abc")
    assert wire.rcv_nxts == [4, 7, 10]
    assert wire.rcv_nxt == 10
    assert wire.c.lowest_rcv_nxt == add(irs, 4)
    for seen in (4, 7, 10):
        assert wire.c.variable("RCV.NXT", wire.segment(ACK, 1, seen)) == add(irs, seen)
    assert wire.c.variable("RCV.NXT", wire.segment(ACK, 1, 6)) == add(irs, 10)
    assert wire.c.variable("RCV.NXT", wire.segment(RST, 1, None)) == add(irs, 10)
    wire.stack(ACK, 1, ack)
    assert wire.rcv_nxts == values
    if received:
        assert wire.c.received == received
        wire.tester(ACK, 4, 1, b"defghi")
        wire.stack(ACK, 1, 10)
    else:
        wire.stack(ACK, 1, 10)
    assert wire.rcv_nxts == [10]
    assert wire.c.received == b"abcdefghi"


def test_ways_meet_again() -> None:
    wire = established()
    wire.tester(ACK | FIN, 4, 1, b"def")
    wire.tester(ACK, 1, 1, b"abc")
    assert wire.rcv_nxts == [4, 8]
    assert wire.states == {"ESTABLISHED", "CLOSE-WAIT"}
    wire.tester(ACK | FIN, 4, 1, b"def")
    assert wire.rcv_nxts == [8]
    assert wire.states == {"CLOSE-WAIT"}
    wire.tester(ACK, 8, 1)
    assert wire.c.ways == (wire.c,)


def test_a_call_goes_all_ways() -> None:
    wire = established()
    wire.tester(ACK | FIN, 4, 1, b"def")
    wire.tester(ACK, 1, 1, b"abc")
    wire.c.called("close")
    assert wire.states == {"ESTABLISHED", "CLOSE-WAIT", "FIN-WAIT-1", "LAST-ACK"}
    wire.stack(FIN | ACK, 1, 4)
    assert wire.states == {"FIN-WAIT-1"}


def test_overlapping_text_beyond_a_gap() -> None:
    wire = established()
    wire.tester(ACK, 3, 1, b"cdefgh")
    wire.tester(ACK, 3, 1, b"cdefgh")
    wire.tester(ACK, 2, 1, b"bcd")
    wire.tester(ACK, 1, 1, b"a")
    assert wire.rcv_nxts == [2, 5, 9]
    assert wire.c.received == b"abcdefgh"


@pytest.mark.parametrize("flags", [ACK, ACK | FIN])
@pytest.mark.parametrize(("ack", "kept"), [(4, True), (1, False)])
def test_text_of_a_syn_may_be_kept_or_not(flags: int, ack: int, kept: bool) -> None:
    wire = listening()
    wire.tester(SYN | (flags & FIN), 0, payload=b"abc")
    wire.stack(SYN | ACK, 0, 1)
    assert wire.rcv_nxts == [1]
    wire.tester(ACK, 1, 1)
    all_ = 5 if flags & FIN else 4
    assert wire.rcv_nxts == [1, all_]
    assert diff(wire.c.tester_nxt, wire.irs) == wire.rcv_nxt == 1
    assert wire.states == ({"ESTABLISHED", "CLOSE-WAIT"} if flags & FIN else {"ESTABLISHED"})
    wire.stack(SYN | ACK, 0, 1)  # again: it left the stack before the handshake was complete
    assert wire.rcv_nxts == [1, all_]
    wire.stack(ACK, 1, all_ if kept else 1)
    assert wire.rcv_nxts == [all_ if kept else 1]
    assert wire.c.received == (b"abc" if kept else b"")
    if kept:
        assert wire.c.tester_nxt >= wire.c.rcv_nxt
    wire.tester(flags, 1, 1, b"abc")
    assert wire.rcv_nxts == [all_]
    assert wire.c.received == b"abc"


def test_text_of_a_syn_comes_before_that_of_the_ack() -> None:
    wire = listening()
    wire.tester(SYN, 0, payload=b"abc")
    wire.stack(SYN | ACK, 0, 1)
    wire.tester(ACK, 4, 1, b"def")
    assert wire.rcv_nxts == [1, 7]
    wire.stack(ACK, 1, 7)
    assert wire.c.received == b"abcdef"


def test_text_of_a_simultaneous_syn_may_be_kept_or_not() -> None:
    wire = syn_sent()
    wire.tester(SYN, 0, payload=b"abc")
    wire.stack(SYN | ACK, 0, 1)
    wire.tester(SYN | ACK, 0, 1)
    assert wire.rcv_nxts == [1, 4]


def test_the_window_cuts_text_of_a_syn() -> None:
    wire = listening()
    wire.tester(SYN, 0, payload=b"x" * WINDOW + b"beyond")
    wire.stack(SYN | ACK, 0, 1)
    wire.tester(ACK, 1, 1)
    assert wire.rcv_nxts == [1, 1 + WINDOW]


@pytest.mark.parametrize("ack", [4, 1])
def test_a_segment_without_the_agreed_timestamps_may_be_dropped(ack: int) -> None:
    """RFC 7323 section 3.2: it SHOULD be."""
    wire = with_timestamps()
    wire.tester(ACK, 1, 1, b"abc")
    assert wire.rcv_nxts == [1, 4]
    assert wire.rcv_nxt == 1
    wire.stack(ACK, 1, ack)
    assert wire.rcv_nxts == [ack]
    wire.tester(RST, ack)
    assert wire.states == {"CLOSED"}


def test_a_fin_without_the_agreed_timestamps() -> None:
    wire = with_timestamps()
    wire.tester(ACK | FIN, 1, 1)
    assert wire.states == {"ESTABLISHED", "CLOSE-WAIT"}
    wire.stack(ACK, 1, 2)
    assert wire.states == {"CLOSE-WAIT"}


def test_a_reset_is_no_evidence_of_a_way() -> None:
    wire = syn_received()
    wire.c.others = [wire.c.copy()]
    wire.c.others[0].rcv_nxt = add(wire.irs, 9)
    wire.stack(RST | ACK, 1, 9)
    assert wire.rcv_nxts == [1, 9]


def test_ways_are_bounded() -> None:
    wire = with_timestamps()
    for n in range(100):
        wire.tester(ACK, 1 + n, 1, b"x")
    assert 2 < len(wire.c.ways) <= 64
    assert wire.rcv_nxt == 1


def shut(flags: int = ACK, ack: int = 2) -> Wire:
    """FIN-WAIT-1 and a window that is closed; then an octet at RCV.NXT."""
    wire = fin_wait_1()
    wire.c.right_edge = wire.c.rcv_nxt
    wire.tester(flags, 1, ack, b"x")
    return wire


def test_a_closed_window_still_takes_acks() -> None:
    """Section 3.10.7.4, first: the ACK should be processed, and nothing else of the segment can be."""
    wire = shut()
    assert wire.states == {"FIN-WAIT-1", "FIN-WAIT-2"}
    assert wire.rcv_nxts == [1]
    assert diff(wire.c.variable("SND.UNA"), wire.iss) == 2
    assert shut(FIN | ACK).states == {"FIN-WAIT-1", "FIN-WAIT-2"}
    assert shut(FIN | ACK).rcv_nxts == [1]
    assert shut(ack=1).states == {"FIN-WAIT-1"}


def test_a_closed_window_still_takes_resets_and_no_syn() -> None:
    assert shut(RST).states == {"CLOSED"}
    assert shut(SYN | ACK).states == {"FIN-WAIT-1"}
    wire = fin_wait_1()
    wire.c.right_edge = wire.c.rcv_nxt
    wire.tester(ACK, 2, 2, b"x")  # not at RCV.NXT
    wire.tester(RST, 2, payload=b"x")
    assert wire.states == {"FIN-WAIT-1"}


# Discarded before anything else --------------------------------------------------------------------------------------
@pytest.mark.parametrize("fields", [{"checksum": 1}, {"data_offset": 4}, {"data_offset": 0}, {"data_offset": 6}])
def test_what_is_discarded_counts_for_nothing_but_the_testers_own_number(fields: dict[str, Any]) -> None:
    wire = established()
    wire.tester(ACK, 1, 1, b"abc", **fields)
    assert wire.rcv_nxt == 1
    assert diff(wire.c.tester_nxt, wire.irs) == 4


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"data_offset": 5}, b"abcd"),
        ({"data_offset": 6}, b""),
        ({"data_offset": 5, "options": (Option("nop"),)}, b"\1\0\0\0abcd"),
        ({"data_offset": 7, "options": (Option("nop"),)}, b""),
        ({"raw_options": b"\1"}, b"abcd"),
        ({"raw_options": b"\1", "data_offset": 5}, b"\1abcd"),
    ],
)
def test_a_data_offset_says_where_text_begins(fields: dict[str, Any], text: bytes) -> None:
    wire = established()
    wire.tester(ACK, 1, 1, b"abcd", **fields)
    assert wire.c.received == text
    assert wire.rcv_nxt == 1 + len(text)
    assert wire.c.tester_nxt == wire.c.rcv_nxt


# Options -------------------------------------------------------------------------------------------------------------
TS = Option("ts", (100, 0))


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("theirs", [True, False])
@pytest.mark.parametrize("active", [True, False])
def test_options_count_where_both_had_them(ours: bool, theirs: bool, active: bool) -> None:
    of_stack = (Option("window-scale", 7), Option("ts", (9, 0))) if theirs else ()
    of_tester = (Option("window-scale", 20), TS) if ours else ()
    if active:
        wire = syn_sent(options=of_stack)
        wire.tester(SYN | ACK, 0, 1, options=of_tester, window=10)
        wire.stack(ACK, 1, 1, window=2)
    else:
        wire = listening()
        wire.tester(SYN, 0, options=of_tester, window=10)
        wire.stack(SYN | ACK, 0, 1, options=of_stack, window=100)
        assert wire.c.variable("RCV.WND") == 100  # never scaled in a SYN
        wire.tester(ACK, 1, 1)
        wire.stack(ACK, 1, 1, window=2)
    both = ours and theirs
    assert wire.c.timestamps is both
    assert wire.c.rcv_shift == (7 if both else 0)
    assert wire.c.snd_shift == (14 if both else 0)  # RFC 7323, section 2.3: at most 14
    edge = 2 << 7 if both else 2
    assert wire.c.variable("RCV.WND") == max(WINDOW if active else 100, edge)
    wire.tester(ACK, 1, 1, window=3, options=of_tester[1:])
    assert wire.c.variable("SND.WND") == (3 << 14 if both else 3)


@pytest.mark.parametrize(
    ("octets", "mss"),
    [
        ("020405b4", 1460), ("01010204007b", 123), ("00020405b4", 536), ("020305b4", 536), ("02", 536), ("0200", 536),
        ("0206", 536), ("fe0301020405b4", 1460), ("01020400", 536),
    ],
)  # fmt: skip
def test_options_written_as_octets_count(octets: str, mss: int) -> None:
    wire = listening()
    wire.tester(SYN, 0, raw_options=bytes.fromhex(octets))
    assert wire.c.variable("SND.MSS") == mss


def test_window_scale_and_timestamps_written_as_octets_count() -> None:
    wire = listening()
    wire.tester(SYN, 0, raw_options=bytes.fromhex("0303020402080a0000006400000000"))
    wire.stack(SYN | ACK, 0, 1, options=(Option("window-scale", 7), Option("ts", (900, 100))))
    assert (wire.c.snd_shift, wire.c.timestamps, wire.c.ts_recent) == (2, True, 100)


def test_no_window_of_a_syn_is_scaled() -> None:
    """RFC 7323 section 2.2, in a simultaneous open's last SYN,ACK too."""
    scale = (Option("window-scale", 7),)
    wire = syn_sent(options=scale)
    wire.tester(SYN, 0, window=900, options=scale)
    wire.stack(SYN | ACK, 0, 1, options=scale)
    wire.tester(SYN | ACK, 0, 1, window=1000, options=scale)
    assert wire.c.variable("SND.WND") == 1000
    wire.tester(ACK, 1, 1, window=1000)
    assert wire.c.variable("SND.WND") == 128000


def test_a_scaled_window() -> None:
    wire = listening()
    wire.tester(SYN, 0, options=(Option("window-scale", 2),))
    wire.stack(SYN | ACK, 0, 1, options=(Option("window-scale", 7),), window=100)
    wire.tester(ACK, 1, 1, window=5)
    assert wire.c.variable("SND.WND") == 20
    wire.stack(ACK, 1, 1, window=10)
    assert wire.c.variable("RCV.WND") == 1280


def test_a_window_is_never_taken_back() -> None:
    wire = established()
    wire.stack(ACK, 1, 1, window=10)
    assert wire.c.variable("RCV.WND") == WINDOW


def with_timestamps() -> Wire:
    wire = listening()
    wire.tester(SYN, 0, options=(TS,))
    wire.stack(SYN | ACK, 0, 1, options=(Option("ts", (900, 100)),))
    wire.tester(ACK, 1, 1, options=(Option("ts", (100, 900)),))
    return wire


@pytest.mark.parametrize(("value", "taken"), [(100, True), (101, True), (99, False), (100 + (1 << 31), False)])
def test_paws(value: int, taken: bool) -> None:
    wire = with_timestamps()
    wire.tester(ACK, 1, 1, b"abc", options=(Option("ts", (value, 900)),))
    assert wire.rcv_nxt == (4 if taken else 1)


def test_paws_spares_resets_and_follows_the_clock() -> None:
    wire = with_timestamps()
    wire.tester(ACK, 1, 1, b"abc", options=(Option("ts", (200, 900)),))
    wire.stack(ACK, 1, 4, options=(Option("ts", (950, 200)),))
    assert wire.c.last_tsval == 950
    wire.tester(ACK, 4, 1, b"def", options=(Option("ts", (150, 900)),))
    assert wire.rcv_nxt == 4
    wire.tester(ACK, 7, 1, b"ghi", options=(Option("ts", (300, 900)),))  # not the next: TS.Recent stays
    wire.tester(ACK, 4, 1, b"def", options=(Option("ts", (250, 900)),))
    assert wire.rcv_nxt == 10
    wire.stack(ACK, 1, 10)
    wire.tester(RST, 10, options=(Option("ts", (1, 0)),))
    assert wire.states == {"CLOSED"}


# What the stack was seen to send -------------------------------------------------------------------------------------
@pytest.mark.parametrize("iss", ISNS)
def test_snd_nxt_follows_what_was_seen(iss: int) -> None:
    wire = established(iss=iss)
    wire.stack(ACK, 1, 1, b"abc")
    assert diff(wire.c.variable("SND.NXT"), iss) == 4
    wire.stack(ACK, 1, 1, b"abc")
    assert diff(wire.c.variable("SND.NXT"), iss) == 4
    wire.stack(ACK | FIN, 4, 1, b"d")
    assert diff(wire.c.variable("SND.NXT"), iss) == 6
    assert diff(wire.c.variable("SND.UNA"), iss) == 1


def test_a_repeated_syn_ack_changes_nothing() -> None:
    wire = established()
    wire.stack(ACK, 1, 1, b"abc")
    wire.tester(ACK, 1, 3)
    before = (wire.c.snd_una, wire.c.snd_nxt)
    wire.stack(SYN | ACK, 0, 1)
    assert (wire.c.snd_una, wire.c.snd_nxt) == before
    assert wire.states == {"ESTABLISHED"}


def test_rcv_nxt_never_follows_an_acknowledgment() -> None:
    wire = established()
    wire.stack(ACK, 1, 500)
    assert wire.rcv_nxt == 1


@pytest.mark.parametrize(
    ("state", "after"),
    [
        ("ESTABLISHED", {"CLOSED"}), ("TIME-WAIT", {"CLOSED"}), ("SYN-RECEIVED", {"SYN-RECEIVED", "CLOSED"}),
        ("SYN-SENT", {"SYN-SENT"}),
    ],
)  # fmt: skip
def test_a_reset_by_the_stack(state: str, after: set[str]) -> None:
    wire = WAYS[state]()
    wire.stack(RST, 1)
    assert wire.states == after


def test_a_fin_after_the_peers_may_mean_either_state() -> None:
    wire = established()
    wire.c.called("close")
    wire.tester(FIN | ACK, 1, 1)
    assert wire.states == {"CLOSE-WAIT", "CLOSING"}
    wire.stack(FIN | ACK, 1, 2)
    assert wire.states == {"LAST-ACK", "CLOSING"}


def test_a_segment_before_any_syn_tells_nothing() -> None:
    wire = Wire()
    wire.c.stack_port = None
    wire.stack(ACK, 1, 1, b"abc")
    assert wire.c.iss is None
    assert wire.c.stack_port == 80
    assert wire.c.used
    assert (wire.c.snd_nxt, wire.c.right_edge) == (0, None)
    assert wire.c.noise(wire.segment(ACK, 1, 1)) is None


# Noise ---------------------------------------------------------------------------------------------------------------
def talking() -> Wire:
    """ESTABLISHED; the stack has sent ten octets of which five are acknowledged, and the tester three."""
    wire = established()
    wire.tester(ACK, 1, 1, b"abc")
    wire.stack(ACK, 1, 4, b"0123456789")
    wire.tester(ACK, 4, 6)
    return wire


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ((ACK, 6, 4, b"56789"), "retransmission"),
        ((ACK, 8, 4, b"78"), "retransmission"),
        ((ACK, 1, 4, b"0123456789"), "retransmission"),
        ((ACK, 1, 4, b"012345"), "retransmission"),
        ((ACK, 1, 4, b"01234"), None),  # acknowledged all
        ((ACK, 6, 4, b"5678X"), None),  # other octets
        ((ACK, 6, 4, b"56789A"), None),  # new ones
        ((ACK | FIN, 6, 4, b"5678"), None),  # no FIN was there
        ((ACK | SYN, 6, 4, b"5678"), None),
        ((ACK | RST, 6, 4, b"56789"), None),
        ((ACK, 6, 5, b"56789"), None),  # acknowledges what was not sent
        ((ACK, 11, 4, b"new"), None),
        ((ACK, 11, 4), "duplicate-ack"),
        ((ACK, 11, 3), None),
        ((ACK | FIN, 11, 4), None),
        ((PSH, 11, 4), None),
        ((SYN | ACK, 11, 4), None),
        ((ACK, 10, 4), "keep-alive"),
        ((ACK, 12, 4), None),
    ],
)
def test_noise(fields: tuple[Any, ...], name: str | None) -> None:
    wire = talking()
    assert wire.c.noise(wire.segment(*fields)) == name


@pytest.mark.parametrize(
    ("window", "name"),
    [(WINDOW + 1, "window-update"), (WINDOW - 1, None), (0, None), (WINDOW, "duplicate-ack")],
)
def test_a_window_update_goes_forward(window: int, name: str | None) -> None:
    wire = talking()
    assert wire.c.noise(wire.segment(ACK, 11, 4, window=window)) == name


@pytest.mark.parametrize(
    ("first", "window", "name"),
    [
        (64256, 502, "duplicate-ack"),  # the same, scaled
        (64240, 502, "duplicate-ack"), (64380, 502, "duplicate-ack"),  # but for what scaling rounds
        (64240, 503, "window-update"), (64256, 501, None), (64256, 503, "window-update"),
    ],
)  # fmt: skip
def test_windows_are_compared_scaled(first: int, window: int, name: str | None) -> None:
    wire = listening()
    wire.tester(SYN, 0, options=(Option("window-scale", 2),))
    wire.stack(SYN | ACK, 0, 1, options=(Option("window-scale", 7),), window=first)
    wire.tester(ACK, 1, 1)
    assert wire.c.noise(wire.segment(ACK, 1, 1, window=window)) == name


@pytest.mark.parametrize("ack", [-5000, 0, 1, 3, 5])
def test_a_retransmission_takes_no_acknowledgment_back(ack: int) -> None:
    wire = talking()
    assert wire.c.noise(wire.segment(ACK, 6, ack, b"56789")) is None
    assert wire.c.noise(wire.segment(ACK, 10, ack)) is None
    wire.tester(ACK, 4, 11, window=0)
    assert wire.c.noise(wire.segment(ACK, 11, ack, b"A")) is None


def test_a_retransmission_has_an_ack_but_for_the_first_syn() -> None:
    assert talking().c.noise(talking().segment(PSH, 6, None, b"56789")) is None
    wire = syn_sent()
    assert wire.c.noise(wire.segment(SYN, 0)) == "retransmission"
    assert wire.c.noise(wire.segment(SYN | ACK, 0, -7)) is None


def test_a_retransmission_acknowledges_what_may_have_been_taken() -> None:
    wire = talking()
    wire.tester(ACK, 7, 6, b"ghi")
    wire.tester(ACK, 4, 6, b"def")
    for ack in (4, 7, 10):
        assert wire.c.noise(wire.segment(ACK, 6, ack, b"56789")) == "retransmission"
    assert wire.c.noise(wire.segment(ACK, 6, 11, b"56789")) is None
    wire.stack(ACK, 11, 7)
    assert wire.c.noise(wire.segment(ACK, 6, 10, b"56789")) is None


@pytest.mark.parametrize(
    ("payload", "name"), [(b"", "keep-alive"), (b"9", "keep-alive"), (b"\0", "keep-alive"), (b"99", None)]
)
def test_a_keep_alive_when_all_is_acknowledged(payload: bytes, name: str | None) -> None:
    wire = talking()
    wire.tester(ACK, 4, 11)
    assert wire.c.noise(wire.segment(ACK, 10, 4, payload)) == name


def test_a_zero_window_probe_needs_a_closed_window() -> None:
    wire = talking()
    probe = wire.segment(ACK, 11, 4, b"A")
    assert wire.c.noise(probe) is None
    wire.tester(ACK, 4, 11, window=0)
    assert wire.c.noise(probe) == "zero-window-probe"


def test_a_repeated_syn_ack_and_fin() -> None:
    wire = syn_received()
    assert wire.c.noise(wire.segment(SYN | ACK, 0, 1)) == "retransmission"
    assert wire.c.noise(wire.segment(ACK, 0, 1, b"x")) is None
    wire = fin_wait_1()
    assert wire.c.noise(wire.segment(FIN | ACK, 1, 1)) == "retransmission"
    wire.tester(ACK, 1, 2)
    assert wire.c.noise(wire.segment(FIN | ACK, 1, 1)) is None
    assert wire.c.noise(wire.segment(FIN | ACK, 1, 1), una=add(wire.iss, 1)) == "retransmission"


# Rules ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("flags", "fields", "requirement"),
    [
        (ACK, {"checksum": 0xDEAD}, "9293-MUST-2"),
        (ACK, {"reserved": 4}, "9293-3.1-reserved-zero"),
        (ACK, {"reserved": 1}, "9293-3.1-reserved-zero"),
        (SYN | ACK, {"reserved": 1}, "9293-3.1-reserved-zero"),
        (SYN, {"reserved": 1}, None),  # an offer of accurate ECN
        (SYN, {"reserved": 3}, "9293-3.1-reserved-zero"),
        (ACK, {"options": (Option("mss", 1460),)}, "9293-MUST-65"),
        (PSH, {}, "9293-3.1-ack-always-set"),
        (FIN, {}, "9293-3.1-ack-always-set"),
        (RST, {}, None),
        (SYN | ACK, {"options": (Option("mss", 1460),)}, None),
        (ACK, {}, None),
    ],
)
def test_rules(flags: int, fields: dict[str, Any], requirement: str | None) -> None:
    wire = established()
    broken = rules.broken(wire.segment(flags, 1, 1, **fields), wire.c)
    assert (broken[0] if broken else None) == requirement


def test_accurate_ecn_is_answered_where_it_was_offered() -> None:
    """RFC 9768 section 3.1: AE is then no reserved bit."""
    wire = listening()
    wire.tester(SYN, 0, reserved=1)
    assert rules.broken(wire.segment(SYN | ACK, 0, 1, reserved=1), wire.c) is None
    assert rules.broken(wire.segment(SYN | ACK, 0, 1, reserved=9), wire.c)
    wire.stack(SYN | ACK, 0, 1)
    wire.tester(ACK, 1, 1)
    assert rules.broken(wire.segment(ACK, 1, 1, reserved=1), wire.c) is None


def test_the_rule_of_the_ack_is_one_of_synchronized_states() -> None:
    wire = syn_sent()
    assert rules.broken(wire.segment(SYN, 0), wire.c) is None
    assert rules.broken(wire.segment(PSH, 1), wire.c) is None
    assert rules.broken(wire.segment(PSH, 1), None) is None


def test_a_second_active_open_begins_anew() -> None:
    wire = syn_sent()
    wire.tester(SYN | ACK, 0, 1)
    wire.tester(ACK, 1, 1, b"abc")
    wire.tester(RST, 4)
    tester_nxt = wire.c.tester_nxt
    wire.c.called("active-open")
    wire.stack(SYN, 90000)
    assert wire.states == {"SYN-SENT"}
    assert wire.c.received == b""
    assert wire.c.tester_nxt == tester_nxt
    assert wire.c.active


def test_a_syn_after_the_way_back_to_listen_opens_anew() -> None:
    wire = syn_received()
    wire.tester(SYN, 1)
    assert wire.states == {"SYN-RECEIVED", "CLOSED"}
    wire.tester(SYN, 700)
    wire.stack(SYN | ACK, 9000, 701)
    assert wire.states == {"SYN-RECEIVED"}
    assert wire.rcv_nxt == 701
    assert wire.c.iss == 14000
