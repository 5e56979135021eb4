"""Stacks that go another way where the RFCs leave a choice pass, with a probe at the end; what is no choice fails."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fake_stack import ESTABLISHED, LISTEN_STEPS, Driver, ModelStack, Tcb, profile, run, trial

from conform.case.vocabulary import CAPABILITIES
from conform.tcp.segment import ACK, FIN, RST, SYN, Option, Segment
from conform.tcp.sequence import add, lt

GAP: list[Any] = [
    {"send": {"flags": "PA", "seq": "RCV.NXT + 3", "payload": "def"}},
    {"expect": {"flags": "A", "ack": "IRS + 1"}},
    {"send": {"flags": "PA", "seq": "IRS + 1", "payload": "abc"}},
]
#: The tester's and the stack's options with which windows are scaled.
SCALED = [*LISTEN_STEPS, {"send": {"flags": "S", "options": {"mss": 1460, "window-scale": 7}}}, *ESTABLISHED[4:]]
SCALE = (Option("mss", 1460), Option("window-scale", 7))


class Discarding(ModelStack):
    """Keeps nothing that lies beyond a gap."""

    def text(self, tcb: Tcb, seg: Segment) -> None:
        super().text(tcb, seg)
        tcb.held.clear()


class KeepingEarly(ModelStack):
    """Keeps the text of a SYN until the handshake is complete."""

    early = b""

    def receive(self, seg: Segment) -> None:
        tcb = self.tcbs.get((seg.dport, seg.sport))
        if tcb is None and seg.flags & SYN:
            self.early = seg.payload
        if tcb is not None and tcb.state == "SYN-RECEIVED":
            tcb.received += self.early
            tcb.rcv_nxt = add(tcb.rcv_nxt, len(self.early))
            self.emit(tcb, ACK)
            seg = replace(seg, seq=tcb.rcv_nxt)
        super().receive(seg)


class Answering(ModelStack):
    """Announces its window scaled, and answers a reset, which is not to be answered."""

    def emit(self, tcb: Tcb, flags: int, payload: bytes = b"", **fields: Any) -> None:
        self.window = 64256 if flags & SYN else 502
        super().emit(tcb, flags, payload, **fields)

    def receive(self, seg: Segment) -> None:
        tcb = self.tcbs.get((seg.dport, seg.sport))
        if tcb is not None and seg.flags & RST and lt(seg.seq, tcb.rcv_nxt):
            self.emit(tcb, ACK)
        else:
            super().receive(seg)


def outcome(driver: Driver) -> str:
    assert not driver.verdict.findings
    return driver.verdict.outcome


@pytest.mark.parametrize("stack", [ModelStack, Discarding])
@pytest.mark.parametrize("states", [True, False])
def test_what_lies_beyond_a_gap_is_kept_or_not(stack: type[ModelStack], states: bool) -> None:
    about = profile(capabilities=frozenset(CAPABILITIES) - (set() if states else {"states"}))
    steps = [*GAP, {"expect": {"flags": "A", "seq": "SND.NXT", "ack": "RCV.NXT"}}]
    read = None if states else (lambda number, actual: None)
    assert outcome(Driver(trial(steps, stack=about), stack(), state=read).play()) == "pass"
    # Where the answer was not asked for, the probe has to do with either.
    steps = [*GAP, {"expect": {"flags": "A"}}, {"send": {"flags": "PA", "seq": "RCV.NXT", "payload": "ghi"}}]
    steps.append({"expect": {"flags": "A", "ack": "RCV.NXT", "as": "last"}})
    assert outcome(Driver(trial(steps, stack=about), stack(), state=read).play()) == "pass"


@pytest.mark.parametrize("by", [-1, 1])
def test_an_acknowledgment_that_is_right_for_no_way_fails(by: int) -> None:
    def twist(number: int, segment: Segment) -> list[tuple[float, Segment]]:
        return [(0.0, replace(segment, ack=add(segment.ack, by)) if number == 2 else segment)]

    driver = run([*GAP, {"expect": {"flags": "A", "ack": "RCV.NXT"}}], stack=ModelStack(twist=twist))
    assert driver.verdict.outcome == "fail"


@pytest.mark.parametrize("stack", [ModelStack, KeepingEarly])
def test_the_text_of_a_syn_is_kept_or_not(stack: type[ModelStack]) -> None:
    steps: list[Any] = [
        {"send": {"flags": "S", "payload": "abc"}},
        {"expect": {"flags": "SA", "seq": "ISS", "ack": "IRS + 1"}},
        {"send": {"flags": "A", "seq": "IRS + 1"}},
        {"optional": [{"expect": {"flags": "A", "ack": "RCV.NXT"}}]},
    ]
    assert outcome(run(steps, recipe=LISTEN_STEPS, stack=stack())) == "pass"


def test_a_closed_port_acknowledges_the_syn() -> None:
    """The example of docs/case-format.md."""
    steps = [
        {"send": {"conn": "c2", "flags": "S"}},
        {"expect": {"conn": "c2", "flags": "RA", "ack": "RCV.NXT"}},
    ]
    assert outcome(run(steps, connections={"c2": {"port": 40000, "stack-port": 81}})) == "pass"


def test_an_answer_that_is_none_is_no_window_update() -> None:
    steps: list[Any] = [{"send": {"flags": "R", "seq": "RCV.NXT - 1"}}, {"silence": "now"}]
    driver = run(steps, recipe=SCALED, stack=Answering(syn_options=SCALE))
    assert driver.verdict.outcome == "fail"


def test_a_retransmission_that_acknowledges_less_is_none() -> None:
    def twist(number: int, segment: Segment) -> list[tuple[float, Segment]]:
        again = replace(segment, ack=add(segment.ack, -5000))
        return [(0.0, segment), *([(0.3, again)] if segment.flags & FIN else [])]

    steps: list[Any] = [{"call": "close"}, {"expect": {"flags": "FA"}}, {"silence": "1s"}]
    assert run(steps, stack=ModelStack(twist=twist)).verdict.outcome == "fail"


def test_the_end_resets_each_way() -> None:
    driver = run([*GAP, {"expect": {"flags": "A"}}], stack=ModelStack(dead_after=3))
    assert driver.verdict.outcome == "fail"
    assert len(driver.session.closing_segments()) == 1
    driver = run(GAP, stack=ModelStack(dead_after=2))
    first, second = (segment.seq for segment in driver.session.closing_segments())
    assert add(first, 3) == second
