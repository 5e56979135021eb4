"""Which connection a segment is of: by both addresses and both ports, whichever way it goes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fake_stack import ADDRESSES, Driver, ModelStack, Twist, profile, run, trial

from conform.engine import events as ev
from conform.tcp.segment import RST, IPFields, Segment

DATA: list[Any] = [{"send": {"flags": "PA", "payload": "abc"}}, {"expect": {"flags": "A", "ack": "RCV.NXT"}}]
ELSEWHERE = "192.0.2.77"


def readdressed(**changes: str) -> Twist:
    """The second segment has other addresses."""
    return lambda n, s: [(0.0, replace(s, ip=replace(s.ip, **changes)) if n == 1 else s)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"src": ELSEWHERE}, f"from {ELSEWHERE} port 80 to 192.0.2.2 port "),
        ({"dst": ELSEWHERE}, f"from 192.0.2.1 port 80 to {ELSEWHERE} port "),
    ],
)
def test_a_stack_that_answers_from_or_to_another_address(changes: dict[str, str], said: str) -> None:
    verdict = run(DATA, stack=ModelStack(twist=readdressed(**changes))).verdict
    assert verdict.outcome == "fail"
    assert verdict.failure is not None
    assert verdict.failure.summary.startswith(f"a segment of no connection of this case came, {said}")


class Spoofed(ModelStack):
    """Resets what comes from elsewhere, as its address is no connection's."""

    def receive(self, seg: Segment) -> None:
        if seg.ip.src != ADDRESSES[4][1]:
            ip = IPFields(4, seg.ip.dst, seg.ip.src)
            self.out.append((0.0, Segment(ip=ip, sport=seg.dport, dport=seg.sport, seq=seg.ack, flags=RST, window=0)))
            return
        super().receive(seg)


def test_a_reset_of_what_was_spoofed_is_not_the_connections() -> None:
    spoof = {"send": {"flags": "A", "ip": {"src": ELSEWHERE}}}
    verdict = run([spoof, {"expect": {"flags": "R"}}], stack=Spoofed(), ip=4).verdict
    assert verdict.outcome == "fail"
    assert verdict.failure is not None
    assert "which" not in verdict.failure.summary
    assert f"to {ELSEWHERE} port " in verdict.failure.summary


def test_a_connection_with_an_address_of_its_own() -> None:
    connections = {"c1": {"port": 40000}, "c2": {"port": 40000, "address": ELSEWHERE}}
    steps = [
        {"send": {"conn": "c2", "flags": "A", "ack": 77}},
        {"expect": {"conn": "c2", "flags": "R", "seq": 77}},
        *DATA,
    ]
    driver = run(steps, stack=Spoofed(), ip=4, connections=connections)
    assert driver.verdict.outcome == "pass", driver.verdict
    assert [p.ip.src for p in driver.injected if p.sport == 40000][-3:].count(ELSEWHERE) == 1  # the probe of c2
    assert driver.session.connections["c1"].states == {"ESTABLISHED"}


def test_its_state_cannot_be_read() -> None:
    connections = {"c2": {"port": 40001, "address": ELSEWHERE}}
    steps = [
        {"send": {"conn": "c2", "flags": "S"}},
        {"expect": {"conn": "c2", "flags": "SA"}},
        {"state": {"is": "SYN-RECEIVED", "conn": "c2"}},
    ]

    class There(ModelStack):
        def emit(self, tcb: Any, flags: int, payload: bytes = b"", **fields: Any) -> None:
            super().emit(tcb, flags, payload, **fields)
            if tcb.tester_port == 40001:
                when, segment = self.out[-1]
                self.out[-1] = (when, replace(segment, ip=replace(segment.ip, dst=ELSEWHERE)))

    driver = run(steps, stack=There(), ip=4, connections=connections)
    assert driver.verdict.outcome == "pass", driver.verdict
    assert driver.verdict.unverified == ("steps[2]: state SYN-RECEIVED",)


def test_it_is_connected_to_where_it_is() -> None:
    connections = {"c1": {"port": 40001, "address": ELSEWHERE}}
    recipe = [{"call": {"do": "socket", "as": "c1"}}]
    driver = run([{"start": {"do": "connect", "as": "x"}}], recipe, ip=4, connections=connections, liveness="port")
    assert driver.requests[1]["address"] == ELSEWHERE


def test_however_an_address_is_spelt() -> None:
    stack = profile(addresses={6: ("2001:DB8:0::1", "2001:db8::0:2")})
    driver = run(DATA, stack=ModelStack(6), ip=6, of=stack)
    assert driver.verdict.outcome == "pass", driver.verdict
    assert driver.injected[0].ip == IPFields(6, "2001:db8::2", "2001:db8::1")


def test_what_is_sent_again_is_of_the_connection_that_it_was_of() -> None:
    steps = [
        {"send": {"conn": "c2", "flags": "S"}},
        {"expect": {"conn": "c2", "flags": "SA"}},
        {"send": {"conn": "c2", "flags": "A"}},
        {"send": {"conn": "c2", "flags": "PA", "payload": "abc", "bad": {"checksum": 0xDEAD}, "as": "d"}},
        {"silence": "now"},
        {"send": {"again": "d", "bad": {}}},
        {"expect": {"conn": "c2", "flags": "A", "ack": "RCV.NXT"}},
    ]
    driver = run(steps)
    assert driver.verdict.outcome == "pass", driver.verdict
    assert driver.session.connections["c2"].received == b"abc"


def test_closing_segments_come_from_where_the_connection_is() -> None:
    driver = Driver(trial([{"send": {"flags": "S"}}], [], ip=4, connections={"c1": {"address": ELSEWHERE}}))
    session = driver.session
    session.start(0.0)
    for _ in range(4):
        for action in session.actions():
            driver._act(action)
        if driver._events:
            when, _, event = driver._events.pop(0)
            if not isinstance(event, ev.Arrived):
                session.receive(event, when)
    session.connections["c1"].called("active-open")
    assert [s.ip.src for s in session.closing_segments()] == [ELSEWHERE]
