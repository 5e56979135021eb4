"""A session step by step: each kind of assertion passes on a right stack, and fails on one that deviates, in words."""

# ruff: noqa: E501 - a table's rows stay on their lines
from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from fake_stack import (
    ESTABLISHED,
    HANDSHAKE,
    LISTEN_STEPS,
    SERVED,
    Driver,
    ModelStack,
    Twist,
    also,
    alter,
    delay,
    drop,
    profile,
    run,
    shifted,
    trial,
)  # fmt: skip

from conform.engine import events as ev
from conform.engine.session import Session
from conform.tcp.segment import ACK, FIN, PSH, RST, SYN, Option

CLOSE: list[Any] = [{"call": "close"}, {"expect": {"flags": "FA", "seq": "SND.NXT", "ack": "RCV.NXT", "as": "fin"}}]
DATA = {"send": {"flags": "PA", "payload": "abc"}}
ACKED = {"expect": {"flags": "A", "seq": "SND.NXT", "ack": "RCV.NXT"}}
SEND = {"call": {"do": "send", "payload": 10}}


def failure(driver: Driver) -> str:
    verdict = driver.verdict
    assert verdict.outcome == "fail", verdict
    assert verdict.failure is not None
    return verdict.failure.summary


def reason(driver: Driver, outcome: str) -> str:
    assert driver.verdict.outcome == outcome, driver.verdict
    assert driver.verdict.failure is None
    return driver.verdict.reason


def passes(driver: Driver) -> Driver:
    assert driver.verdict.outcome == "pass", driver.verdict
    return driver


def notes(driver: Driver, name: str) -> list[dict[str, Any]]:
    return [entry for entry in driver.session.transcript.entries if entry.get("n") == name]


# Expectations in a session -------------------------------------------------------------------------------------------
ACTIVE_CLOSE: list[Any] = [
    *CLOSE,
    {"state": "FIN-WAIT-1"},
    {"send": {"flags": "A", "ack": "fin.end"}},
    {"state": "FIN-WAIT-2"},
    {"send": {"flags": "FA"}},
    {"expect": {"flags": "A", "seq": "fin.end", "ack": "RCV.NXT", "within": "timer.delayed-ack.max"}},
    {"state": "TIME-WAIT"},
]


@pytest.mark.parametrize("ip", [4, 6])
@pytest.mark.parametrize("iss", [0, 1000, 0x7FFFFFFE, 0xFFFFFFFE, 0xFFFFFFFF])
@pytest.mark.parametrize("isn", [0, 5, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF])
def test_an_active_close(ip: int, iss: int, isn: int) -> None:
    driver = run(ACTIVE_CLOSE, stack=ModelStack(ip, iss), ip=ip, connections={"c1": {"isn": isn}})
    passes(driver)
    assert driver.verdict.findings == ()


@pytest.mark.parametrize(
    ("twist", "said"),
    [
        (alter(1, seq=shifted("seq", 1)), "seq ISS+2, want SND.NXT = ISS+1, too far by 1: an octet counted that was not sent"),
        (alter(1, ack=shifted("ack", -1)), "ack IRS+0, want RCV.NXT = IRS+1, short by 1: SYN not counted"),
        (alter(1, flags=ACK), "flags A, want FA (F missing)"),
        (drop(1), "nothing came within 100.0 ms"),
        (alter(2, ack=shifted("ack", -1)), "ack IRS+1, want RCV.NXT = IRS+2, short by 1: FIN not counted"),
        (alter(2, seq=shifted("seq", -1)), "seq ISS+1, want fin.end = ISS+2, short by 1: its own FIN not counted"),
        (drop(2), "nothing came within 210.0 ms"),
        (alter(1, sport=81), "a segment of no connection of this case came, from port 81 to port"),
        (alter(1, dport=81), "a segment of no connection of this case came, from port 80 to port 81"),
        (also(1, (0.0, {"flags": ACK, "seq": shifted("seq", 1)})), "the stack sent A seq=1002 ack="),
    ],
)  # fmt: skip
def test_a_field_off_by_one_fails_an_active_close(twist: Twist, said: str) -> None:
    driver = run(ACTIVE_CLOSE, stack=ModelStack(twist=twist))
    summary = failure(driver)
    assert summary.startswith(said), summary


def test_a_failure_tells_all() -> None:
    driver = run(
        ACTIVE_CLOSE, stack=ModelStack(twist=alter(2, ack=shifted("ack", -1))), connections={"c1": {"isn": 500}}
    )
    verdict = driver.verdict
    assert verdict.failure is not None
    assert verdict.failure.step == "steps[6]"
    assert verdict.failure.expected == "A seq=fin.end (ISS+2) ack=RCV.NXT (IRS+2)"
    assert verdict.failure.actual == "A seq=1002 ack=501 (ISS+2, acks IRS+1)"
    assert verdict.failure.arithmetic == ("ack IRS+1, want RCV.NXT = IRS+2, short by 1: FIN not counted",)
    assert verdict.failure.entry is not None
    assert driver.session.transcript.entries[verdict.failure.entry]["packet"]["ack"] == 501
    assert notes(driver, "failed") == [
        {"t": driver.session.now, "n": "failed", "step": "steps[6]", "of": verdict.failure.entry}
    ]


def test_again() -> None:
    steps = [*CLOSE, {"expect": {"again": "fin", "within": "1s"}}]
    again = also(1, (0.3, {}))
    passes(run(steps, stack=ModelStack(twist=again)))
    twist = also(1, (0.3, {"seq": shifted("seq", 1)}))
    assert failure(run(steps, stack=ModelStack(twist=twist))) == "seq 1002, want 1001 again, too far by 1"


def test_again_of_what_never_was() -> None:
    optional = {"optional": [{"expect": {"flags": "FA", "as": "fin"}}]}
    for step in (
        {"expect": {"again": "fin"}},
        {"send": {"again": "fin"}},
        {"expect": {"flags": "A", "within": "1s", "from": "fin"}},
    ):
        driver = run([DATA, ACKED, optional, step])
        said = reason(driver, "inconclusive")
        assert said == "steps[3]: there is no segment 'fin': the way that keeps it was not taken"


def test_a_value_that_never_was() -> None:
    optional = {"optional": [{"expect": {"flags": "FA", "as": "fin", "seq": {"as": "s0"}}}]}
    for expression in ("fin.seq", "s0"):
        driver = run([DATA, ACKED, optional, {"send": {"flags": "A", "seq": expression}}])
        said = reason(driver, "inconclusive")
        assert said == f"steps[3]: there is no value {expression}: what would keep it did not happen"


@pytest.mark.parametrize(
    ("of", "value"),
    [("seq", 1001), ("ack", 501), ("len", 11), ("end", 1012), ("window", 64240), ("urgent", 0)],
)
def test_what_a_snapshot_can_be_asked(of: str, value: int) -> None:
    stack = ModelStack(twist=alter(1, flags=FIN | ACK))
    steps = [SEND, {"expect": {"flags": "FA", "as": "x"}}, {"check": {"value": f"x.{of}", "is": f"absolute({value})"}}]
    connections = {"c1": {"isn": 500}}
    driver = run(steps, stack=stack, connections=connections, liveness="port", of=SERVED)
    passes(driver)
    stack = ModelStack(twist=alter(1, flags=FIN | ACK))
    steps[-1] = {"check": {"value": f"x.{of}", "is": f"absolute({value + 1})"}}
    said = failure(run(steps, stack=stack, connections=connections, liveness="port", of=SERVED))
    assert said == f"x.{of} {value}, want absolute({value + 1}) = {value + 1}, short by 1"


def test_captures_are_kept_and_compared() -> None:
    steps = [
        {"send": {"flags": "S", "options": {"ts": {"val": 5, "ecr": 0}}}},
        {"expect": {"flags": "SA", "options": {"ts": {"val": {"as": "t0"}, "ecr": 5}}, "as": "sa"}},
        {"check": {"value": "t0", "is": {"as": "kept"}}},
        {"check": {"value": "kept + 1", "is": 701}},
    ]
    passes(run(steps, LISTEN_STEPS, ModelStack(syn_options=(Option("ts", (700, 5)),))))
    off = ModelStack(syn_options=(Option("ts", (701, 5)),))
    assert failure(run(steps, LISTEN_STEPS, off)) == "kept + 1 702, want 701, too far by 1"


# Streams -------------------------------------------------------------------------------------------------------------
STREAM: list[Any] = [{"call": {"do": "send", "payload": 3000}}, {"expect": {"stream": 3000, "payload": 3000}}]


def test_a_stream_in_whatever_pieces() -> None:
    passes(run([*STREAM, {"send": {"flags": "A"}}]))
    pieces = [{"seq": shifted("seq", n), "payload": lambda s, n=n: s.payload[n : n + 250]} for n in (0, 250, 500, 750)]

    def twist(n: int, segment: Any) -> Any:
        return [found for p in pieces for found in alter(n, **p)(n, segment)] if segment.payload else [(0.0, segment)]

    passes(run([*STREAM, {"send": {"flags": "A"}}], stack=ModelStack(twist=twist)))


@pytest.mark.parametrize(
    ("twist", "said"),
    [
        (drop(3), "2000 octets came, want 3000"),
        (drop(2), "the stack sent A seq=3001 ack=501 len=1000, want the octets from SND.NXT = 2001 on"),
        (alter(3, payload=b"x" * 1001), "3001 octets came, want 3000"),
        (alter(3, payload=b"x" * 1000), "the octets are not those expected"),
        (alter(3, flags=FIN | ACK), "the stack sent FA seq=3001 ack=501 len=1000, want the octets from SND.NXT = 3001 on"),
        (alter(2, flags=RST | ACK), "the stack sent RA seq=2001 ack=501 len=1000, want the octets from SND.NXT = 2001 on"),
        (alter(2, seq=shifted("seq", -1)), "the stack sent A seq=2000 ack=501 len=1000, want the octets from SND.NXT = 2001 on"),
        (alter(2, seq=shifted("seq", 1)), "the stack sent A seq=2002 ack=501 len=1000, want the octets from SND.NXT = 2001 on"),
        (delay(3, 0.12), "2000 octets came, want 3000"),
    ],
)  # fmt: skip
def test_a_stream_that_is_not_right(twist: Twist, said: str) -> None:
    assert failure(run(STREAM, stack=ModelStack(twist=twist), connections={"c1": {"isn": 500}}, of=SERVED)) == said


@pytest.mark.parametrize(
    ("flags", "number", "said"),
    [
        ("FA", 3, None),
        (["A", "FA"], 3, None),
        ("A", 3, "flags FA, want A (F too many)"),
        ("FA", 2, "the stack sent FA seq=2001 ack=501 len=1000, want the octets from SND.NXT = 2001 on"),
        ("FA", 9, "flags A, want FA (F missing)"),
    ],
)
def test_a_stream_with_a_fin_on_its_last_segment(flags: Any, number: int, said: str | None) -> None:
    steps = [STREAM[0], {"expect": {"stream": 3000, "flags": flags}}]
    stack = ModelStack(twist=alter(number, flags=FIN | ACK))
    driver = run(steps, stack=stack, connections={"c1": {"isn": 500}}, liveness="port", of=SERVED)
    if said is None:
        passes(driver)
    else:
        assert driver.verdict.failure is not None
        assert said in driver.verdict.failure.arithmetic


def test_a_stream_can_say_more_of_each_segment() -> None:
    steps = [
        STREAM[0],
        {"expect": {"stream": 3000, "ack": "RCV.NXT", "as": "last"}},
        {"check": {"value": "last.end", "is": "SND.NXT"}},
    ]
    passes(run(steps))
    said = failure(run(steps, stack=ModelStack(twist=alter(2, ack=shifted("ack", 1)))))
    assert said == "ack IRS+2, want RCV.NXT = IRS+1, too far by 1: one octet acknowledged that was not sent"


def test_a_stream_tolerates_noise() -> None:
    passes(run(STREAM, stack=ModelStack(twist=also(1, (0.0, {})))))
    steps = [STREAM[0], {"expect": {"stream": 3000, "noise": "forbid"}}]
    said = failure(run(steps, stack=ModelStack(twist=also(1, (0.0, {})))))
    assert said.endswith("want the octets from SND.NXT = 2001 on")


@pytest.mark.parametrize(
    ("timing", "seconds", "said"),
    [
        ({"within": "500ms"}, 0.45, None),
        ({"within": "500ms"}, 0.6, "2000 octets came, want 3000"),
        ({"after": "300ms"}, 0.0, "it came too early: 0.0 ms after the event before, want after 300.0 ms"),
    ],
)
def test_a_streams_time_is_counted_from_its_start(timing: dict[str, Any], seconds: float, said: str | None) -> None:
    steps = [STREAM[0], {"expect": {"stream": 3000, **timing}}]
    driver = run(steps, stack=ModelStack(twist=delay(3, seconds)))
    if said is None:
        passes(driver)
    else:
        assert failure(driver) == said


def test_all_of_a_stream_comes_after() -> None:
    def twist(n: int, segment: Any) -> Any:
        return [(0.4 if segment.payload else 0.0, segment)]

    passes(run([STREAM[0], {"expect": {"stream": 3000, "after": "300ms"}}], stack=ModelStack(twist=twist)))


# Time ----------------------------------------------------------------------------------------------------------------
TIMINGS: list[tuple[dict[str, Any], float, str | None]] = [
    ({"within": "200ms"}, 0.2, None),
    ({"within": "200ms"}, 0.209, None),  # the stack's tolerance is 10 ms
    ({"within": "200ms"}, 0.2111, "nothing came within 210.0 ms"),
    ({"after": "200ms"}, 0.2, None),
    ({"after": "200ms"}, 0.191, None),
    ({"after": "200ms"}, 0.189, "it came too early: 189.0 ms after the event before, want after 200.0 ms"),
    ({"after": "200ms"}, 0.299, None),
    ({"after": "200ms"}, 0.301, "nothing came within 300.0 ms"),  # after it, the stack's time to answer
    ({"after": "200ms", "within": "400ms"}, 0.3, None),
    ({"after": "200ms", "within": "400ms"}, 0.1, "it came too early: 100.0 ms after the event before, want after 200.0 ms"),
    ({"after": "200ms", "within": "400ms"}, 0.5, "nothing came within 410.0 ms"),
    ({"between": ["200ms", "400ms"]}, 0.195, None),
    ({"between": ["200ms", "400ms"]}, 0.405, None),
    ({"between": ["200ms", "400ms"]}, 0.185, "it came too early: 185.0 ms after the event before, want after 200.0 ms"),
    ({"between": ["200ms", "400ms"]}, 0.415, "nothing came within 410.0 ms"),
    ({"between": ["timer.rto.min", "2 * timer.rto.min"]}, 0.3, None),
    ({}, 0.099, None),
    ({}, 0.1001, "nothing came within 100.0 ms"),
]  # fmt: skip


@pytest.mark.parametrize(("timing", "seconds", "said"), TIMINGS)
def test_timing(timing: dict[str, Any], seconds: float, said: str | None) -> None:
    # Behind a fence: what a stack delays may come later than what settles.
    steps = [DATA, {"expect": {"flags": "A", "ack": "RCV.NXT", **timing}}]
    driver = run(steps, stack=ModelStack(twist=delay(1, seconds)))
    if said is None:
        passes(driver)
    else:
        assert failure(driver) == said


@pytest.mark.parametrize(
    ("timing", "seconds", "said"),
    [
        ({"within": "1s"}, 0.9, None),
        ({"within": "1s"}, 1.2, "nothing came within 1.02 s"),
        ({"after": "1s"}, 1.0, None),
        ({"after": "1s"}, 0.95, "it came too early: 950.0 ms after first, want after 1.00 s"),
    ],
)
def test_timing_from_a_snapshot(timing: dict[str, Any], seconds: float, said: str | None) -> None:
    steps = [
        SEND,
        {"expect": {"flags": "A", "length": 10, "as": "first"}},
        {"expect": {"again": "first", "within": "1s"}},
        {"expect": {"again": "first", "from": "first", **timing}},
    ]
    driver = run(steps, stack=ModelStack(twist=also(1, (0.2, {}), (seconds, {}))))
    if said is None:
        passes(driver)
    elif seconds == 1.2:
        assert failure(driver) == "nothing came within 810.0 ms"
    else:
        assert failure(driver) == said


def test_the_time_of_a_snapshot_in_an_expression() -> None:
    steps = [SEND, {"expect": {"length": 10, "as": "a"}}, {"expect": {"again": "a", "within": "1s", "as": "b"}},
             {"expect": {"again": "a", "after": "2 * (b.time - a.time)", "within": "3 * (b.time - a.time)"}}]  # fmt: skip
    passes(run(steps, stack=ModelStack(twist=also(1, (0.2, {}), (0.6, {})))))
    said = failure(run(steps, stack=ModelStack(twist=also(1, (0.2, {}), (0.5, {})))))
    assert said == "it came too early: 300.0 ms after the event before, want after 400.0 ms"


LATE: list[tuple[dict[str, Any], float, float]] = [
    # timing, when it was read, how long the loop had not looked before that
    ({"within": "200ms"}, 0.3, 0.2),
    ({"after": "200ms"}, 0.25, 0.2),
    ({"between": ["200ms", "400ms"]}, 0.5, 0.2),
    ({"between": ["200ms", "400ms"]}, 0.3, 0.2),
]  # fmt: skip


def held_back(steps: list[Any], wanted: Callable[[ev.Event], bool]) -> tuple[Session, list[ev.Event]]:
    """A session at its last step, without the events that are *wanted*, and those."""
    driver = Driver(trial(steps))
    session, events = driver.session, []
    last = f"steps[{len(steps) - 1}]"
    session.start(0.0)
    while not any(entry.get("n") == "step" and entry["step"] == last for entry in session.transcript.entries):
        for action in session.actions():
            driver._act(action)
        when, _, event = driver._events.pop(0)
        if wanted(event):
            events.append(event)
        else:
            session.receive(event, when)
    return session, [*events, *(item[2] for item in driver._events if wanted(item[2]))]


@pytest.mark.parametrize(("timing", "read", "lag"), LATE)
def test_a_late_loop_fails_nobody(timing: dict[str, Any], read: float, lag: float) -> None:
    steps = [DATA, {"expect": {"flags": "A", "ack": "RCV.NXT", **timing}}]
    session, (arrived,) = held_back(steps, lambda event: isinstance(event, ev.Arrived) and event.packet.flags == ACK)  # type: ignore[union-attr]
    assert isinstance(arrived, ev.Arrived)
    session.receive(ev.Arrived(arrived.packet, read - lag), read)
    assert session.verdict is not None
    assert session.verdict.outcome == "inconclusive"
    assert session.verdict.late
    assert session.verdict.failure is None
    assert "conform's loop was late by 200.0 ms" in session.verdict.reason


LATER: list[Any] = [
    {"expect": {"flags": "A"}},
    {"expect": {"flags": "A", "after": "1us"}},
    {"one_of": [{"name": "a", "steps": [{"expect": {"flags": "A"}}]}, {"name": "b", "steps": [{"expect": {"flags": "R"}}]}]},
    {"any_order": [{"expect": {"flags": "A"}}, {"expect": {"flags": "FA"}}]},
    {"repeat": {"times": 1, "steps": [{"expect": {"flags": "A"}}]}},
    {"expect": {"stream": 3}},
]  # fmt: skip


@pytest.mark.parametrize("step", LATER, ids=lambda step: next(iter(step)))
@pytest.mark.parametrize(("since", "outcome"), [(0.099, "inconclusive"), (0.15, "fail")])
def test_an_answer_without_a_bound_of_its_own_has_the_stacks_time(step: Any, since: float, outcome: str) -> None:
    """Nobody ticked between, and it was read long after the stack's time to answer."""
    steps = [DATA, step]
    session, (arrived,) = held_back(steps, lambda event: isinstance(event, ev.Arrived) and event.packet.flags == ACK)  # type: ignore[union-attr]
    assert isinstance(arrived, ev.Arrived)
    session._run.all_given = False
    if "stream" in str(step):
        arrived = ev.Arrived(replace(arrived.packet, payload=b"abc"), 0.0)
    session.receive(ev.Arrived(arrived.packet, since), 3.0)
    if "any_order" in step:
        session.receive(ev.Arrived(replace(arrived.packet, flags=FIN | ACK), since), 3.0)
    assert session.verdict is not None
    assert session.verdict.outcome == outcome
    assert session.verdict.late is (outcome == "inconclusive")
    if outcome == "fail":
        assert session.verdict.failure is not None
        assert session.verdict.failure.summary.startswith(
            "it came too late: 3.00 s after the event before, want within"
        )


@pytest.mark.parametrize(("since", "outcome"), [(0.3, "late"), (0.6, "passed over"), (0.0, "late")])
def test_what_came_behind_an_options_time_is_not_the_option(since: float, outcome: str) -> None:
    optional = {"optional": [{"expect": {"flags": "A", "within": "500ms"}}]}
    session, (arrived,) = held_back(
        [DATA, optional], lambda event: isinstance(event, ev.Arrived) and event.packet.flags == ACK
    )  # type: ignore[union-attr]
    assert isinstance(arrived, ev.Arrived)
    session.receive(ev.Arrived(arrived.packet, since), 0.7)
    if outcome == "late":
        assert session.verdict is not None
        assert session.verdict.late
    else:
        taken = [entry["branch"] for entry in session.transcript.entries if entry.get("n") == "chosen"]
        assert taken == [outcome]


def test_only_what_was_looked_at_has_not_come() -> None:
    """A reply that is read late, after an expectation's time, does not say that nothing came."""
    steps = [{"start": {"do": "recv", "as": "r"}}, DATA, {"expect": {"flags": "A", "within": "200ms"}}]

    def wanted(event: ev.Event) -> bool:
        return (isinstance(event, ev.Arrived) and event.packet.flags == ACK) or (
            isinstance(event, ev.Returned) and "data" in event.reply
        )  # type: ignore[union-attr]

    session, events = held_back(steps, wanted)
    (arrived,) = [event for event in events if isinstance(event, ev.Arrived)]
    (reply,) = [event for event in events if isinstance(event, ev.Returned)]
    session.receive(reply, 0.3)
    assert session.verdict is None
    assert session.deadline() == pytest.approx(0.21, abs=2e-6)
    session.receive(ev.Arrived(arrived.packet, 0.1), 0.301)
    assert session.verdict is not None
    assert session.verdict.outcome == "inconclusive"
    assert session.verdict.late


# Silence -------------------------------------------------------------------------------------------------------------
def stray(seconds: float) -> Twist:
    """Behind the acknowledgment of data, after a time, a segment that nothing calls for."""
    return also(1, (seconds, {"flags": ACK | PSH, "payload": b"stray"}))


SILENCES: list[tuple[list[Any], float, str | None]] = [
    ([{"silence": "now"}], 0.0, "the stack sent PA seq=1001 ack=504 len=5, which nothing expects"),
    ([{"silence": "1s"}], 0.5, "the stack sent PA seq=1001 ack=504 len=5, which nothing expects"),
    ([{"silence": {"for": "1s"}}], 0.98, "the stack sent PA seq=1001 ack=504 len=5, which nothing expects"),
    ([{"silence": "1s"}, {"expect": {"flags": "PA", "payload": "stray"}}], 1.05, None),
    ([{"silence": "1s"}, {"expect": {"flags": "PA", "after": "200ms"}}], 1.25, None),
    ([{"silence": "1s"}, {"expect": {"flags": "PA", "after": "200ms"}}], 1.1, "it came too early: 100.0 ms after the event before, want after 200.0 ms"),
    ([{"send": {"flags": "A"}}], 0.0, "the stack sent PA seq=1001 ack=504 len=5, which nothing expects"),  # implied before a send
    ([{"call": {"do": "send", "payload": "x"}}], 0.0, "the stack sent PA seq=1001 ack=504 len=5, which nothing expects"),
    ([{"start": {"do": "recv", "as": "r"}}], 0.0, "the stack sent PA seq=1001 ack=504 len=5, which nothing expects"),
    ([{"probe": "alive"}], 0.0, "the stack sent PA seq=1001 ack=504 len=5, which nothing expects"),
    ([], 0.0, "the stack sent PA seq=1001 ack=504 len=5, which nothing expects"),  # implied at the end
]  # fmt: skip


@pytest.mark.parametrize(("steps", "seconds", "said"), SILENCES)
def test_silence(steps: list[Any], seconds: float, said: str | None) -> None:
    stack = ModelStack(twist=stray(seconds))
    driver = run([DATA, ACKED, *steps], stack=stack, connections={"c1": {"isn": 500}}, liveness="port", of=SERVED)
    if said is None:
        passes(driver)
    else:
        assert failure(driver) == said
    if said is not None and said.startswith("the stack sent"):
        quiet = run(
            [DATA, ACKED, *steps[:1]] if "call" not in str(steps) and "start" not in str(steps) else [DATA, ACKED]
        )
        passes(quiet)


def test_implied_silence_is_broken_by_what_was_done_last() -> None:
    driver = run([DATA, ACKED, {"state": "ESTABLISHED"}, {"send": {"flags": "A"}}], stack=ModelStack(twist=stray(0.0)))
    assert driver.verdict.failure is not None
    assert driver.verdict.failure.step == "steps[0]"
    assert driver.verdict.failure.expected == "silence before steps[3]"
    driver = run([DATA, ACKED, {"silence": "now"}], stack=ModelStack(twist=stray(0.0)))
    assert driver.verdict.failure is not None
    assert driver.verdict.failure.step == "steps[2]"
    assert driver.verdict.failure.expected == "silence"


def test_what_acknowledges_too_much_is_told() -> None:
    twist = also(1, (0.0, {"ack": shifted("ack", 1), "payload": b"x"}))
    driver = run([DATA, ACKED], stack=ModelStack(twist=twist), connections={"c1": {"isn": 500}})
    assert driver.verdict.failure is not None
    assert driver.verdict.failure.arithmetic == ("its ack is 505; RCV.NXT = 504",)


@pytest.mark.parametrize(
    ("read", "lag", "outcome"), [(0.5, 0.1, "fail"), (1.1, 0.4, "inconclusive"), (1.4, 0.3, "pass")]
)
def test_a_late_loop_and_a_silence(read: float, lag: float, outcome: str) -> None:
    steps = [DATA, ACKED, {"silence": "1s"}, {"expect": {"payload": "stray", "within": "2s"}}]

    class Slow(Driver):
        """Looks only when the packet is read."""

        def play(self) -> Driver:
            deadline = self.session.deadline
            self.session.deadline = lambda: None if (d := deadline()) is not None and self.now < d <= read else d  # type: ignore[method-assign]
            return super().play()

    driver = Slow(trial(steps, liveness="port", stack=SERVED), ModelStack(twist=stray(read)), lag={2: lag}).play()
    assert driver.verdict.outcome == outcome
    assert driver.verdict.late is (outcome == "inconclusive")


# Noise ---------------------------------------------------------------------------------------------------------------
def once_more(**changes: Any) -> Twist:
    return also(1, (0.0, changes))


KEEP = {"flags": ACK, "payload": b"", "seq": lambda s: s.seq + len(s.payload) - 1}
EMPTY = {"flags": ACK, "payload": b"", "seq": lambda s: s.seq + len(s.payload)}
NOISES: list[tuple[str, bool, Twist]] = [
    ("retransmission", True, once_more()),
    ("window-update", True, also(1, (0.0, EMPTY | {"window": 65000}))),
    ("duplicate-ack", False, also(1, (0.0, EMPTY))),
    ("keep-alive", False, also(1, (0.0, KEEP))),
]  # fmt: skip


@pytest.mark.parametrize(("name", "by_default", "twist"), NOISES, ids=[n[0] for n in NOISES])
@pytest.mark.parametrize("where", ["expect", "silence", "send", "case", "end"])
def test_noise_is_tolerated_where_it_is_allowed(name: str, by_default: bool, twist: Twist, where: str) -> None:
    def play(noise: Any) -> Driver:
        steps = [SEND, {"expect": {"length": 10}}]
        more: dict[str, Any] = {}
        if noise is not None and where not in ("expect", "silence"):
            more["noise"] = noise
        own = {} if noise is None or more else {"noise": noise}
        if where == "expect":
            steps.append({"expect": {"flags": "FA", **own}})
        elif where == "silence":
            steps.append({"silence": {"for": "now", **own}})
        elif where == "send":
            steps.append({"send": {"flags": "A"}})
        stack = ModelStack(twist=lambda n, s: [*twist(n, s), *(close(s) if n == 1 and where == "expect" else [])])
        return run(steps, stack=stack, liveness="port", of=SERVED, **more)

    def close(segment: Any) -> Any:
        return alter(0, flags=FIN | ACK, seq=shifted("seq", 10), payload=b"")(0, segment)

    allowed = play([name])
    passes(allowed)
    assert [note["name"] for note in notes(allowed, "noise")] == [name]
    assert play(None).verdict.outcome == ("pass" if by_default else "fail")
    assert play([]).verdict.outcome == "fail"
    if where in ("expect", "silence"):
        assert play("forbid").verdict.outcome == "fail"


@pytest.mark.parametrize(
    "step", [{"expect": {"flags": "FA"}}, {"any_order": [{"expect": {"flags": "FA"}}, {"expect": {"flags": "R"}}]}]
)
def test_what_was_passed_over_is_told_where_nothing_came(step: dict[str, Any]) -> None:
    def told(times: int) -> list[str]:
        twist = also(1, *[(0.01 * n, {}) for n in range(times)]) if times else None
        driver = run([SEND, {"expect": {"length": 10}}, step], stack=ModelStack(twist=twist))
        assert failure(driver) == "nothing came within 100.0 ms"
        found = driver.verdict.failure
        assert found is not None
        return list(found.arithmetic)

    assert told(0) == []
    first, once = told(1)
    assert first == "nothing came within 100.0 ms"
    assert re.fullmatch(r"passed over as retransmission: A seq=\d+ ack=\d+ len=10 \(ISS\+1, acks IRS\+1\)", once)
    assert told(5) == [first, "passed over as noise: 2 more before these", *[once] * 3]


@pytest.mark.parametrize(("stirred", "told"), [([], 1), ([{"send": {"flags": "A"}}], 0)])
def test_what_was_passed_over_before_the_stack_was_stirred_is_not_told(stirred: list[Any], told: int) -> None:
    stack = ModelStack(twist=also(1, (0.0, {})))
    steps = [SEND, {"expect": {"length": 10}}, {"silence": "50ms"}, *stirred, {"expect": {"flags": "FA"}}]
    driver = run(steps, stack=stack)
    assert driver.verdict.failure is not None
    assert sum("passed over as retransmission" in words for words in driver.verdict.failure.arithmetic) == told


@pytest.mark.parametrize(
    "step",
    [
        {"expect": {"stream": 20}},
        {"one_of": [{"name": name, "steps": [{"expect": {"flags": name}}]} for name in ("FA", "R")]},
    ],
)
def test_whatever_did_not_come_what_was_passed_over_is_told(step: dict[str, Any]) -> None:
    stack = ModelStack(twist=also(1, (0.0, {})))
    driver = run([SEND, {"expect": {"length": 10}}, step], stack=stack)
    assert driver.verdict.failure is not None
    summary, passed = driver.verdict.failure.arithmetic
    assert summary == driver.verdict.failure.summary
    assert passed.startswith("passed over as retransmission: A seq=")


def test_a_zero_window_probe_is_noise_by_name_only() -> None:
    steps: list[Any] = [{"send": {"flags": "A", "window": 0}}, {"call": {"do": "send", "payload": "x"}}]
    passes(run(steps, noise=["zero-window-probe", "retransmission"]))
    assert failure(run(steps)).endswith("len=1, which nothing expects")


def test_a_tail_loss_probe_is_noise_by_its_name() -> None:
    steps = [SEND, {"expect": {"length": 10}}]
    driver = run(steps, stack=ModelStack(twist=once_more()), noise=["tail-loss-probe"])
    passes(driver)
    assert [note["name"] for note in notes(driver, "noise")] == ["tail-loss-probe"]
    first = alter(1, payload=lambda s: s.payload[:5])
    twist = lambda n, s: [(0.0, s), *first(n, s)] if n == 1 else [(0.0, s)]  # noqa: E731
    assert run(steps, stack=ModelStack(twist=twist), noise=["tail-loss-probe"]).verdict.outcome == "fail"


def test_a_repetition_that_crossed_the_acknowledgment_is_noise() -> None:
    """The stack repeats its FIN while the loop is late with the acknowledgment of the first."""
    steps = [*CLOSE, {"send": {"flags": "A", "ack": "fin.end"}}, {"silence": "now"}]

    def play(crossed: float) -> Driver:
        driver = Driver(trial(steps))
        original = driver.stack.receive

        def receive(seg: Any) -> None:
            original(seg)
            if driver.stack.count == 2 and seg.flags == ACK:
                tcb = next(iter(driver.stack.tcbs.values()))
                driver.stack.emit(tcb, FIN | ACK, seq=1001)

        driver.stack.receive = receive  # type: ignore[method-assign]
        driver.lag = {2: crossed}
        return driver.play()

    passes(play(0.0))
    assert [note["name"] for note in notes(play(0.0), "noise")] == ["retransmission"]
    late = also(1, (0.3, {}))
    said = failure(run([*steps, {"silence": "1s"}], stack=ModelStack(twist=late)))
    assert said.startswith("the stack sent FA seq=1001")


# State ---------------------------------------------------------------------------------------------------------------
def test_state_is_read_out() -> None:
    passes(run([*CLOSE, {"state": ["FIN-WAIT-1", "FIN-WAIT-2"]}]))
    driver = run([*CLOSE, {"state": ["ESTABLISHED", "CLOSING"]}])
    assert failure(driver) == "the state is FIN-WAIT-1, want ESTABLISHED or CLOSING"
    assert driver.verdict.failure is not None
    assert driver.verdict.failure.entry is not None
    assert driver.session.transcript.entries[driver.verdict.failure.entry]["state"] == "FIN-WAIT-1"


def test_state_is_read_once_more() -> None:
    passes(run([*CLOSE, {"state": "FIN-WAIT-1"}], state=lambda n, s: "ESTABLISHED" if n == 0 else s))


def test_state_within_a_time() -> None:
    steps = [*CLOSE, {"state": {"is": "FIN-WAIT-1", "within": "100ms"}}]
    passes(run(steps, state=lambda n, s: "ESTABLISHED" if n < 5 else s))
    assert failure(run(steps, state=lambda n, s: "ESTABLISHED")) == "the state is ESTABLISHED, want FIN-WAIT-1"


def test_the_listeners_state() -> None:
    steps: list[Any] = [{"state": {"is": "LISTEN", "conn": "listener"}}]
    passes(run(steps))
    closed = [{"call": {"do": "close", "on": "listener"}}, *steps]
    assert failure(run(closed)) == "the state is CLOSED, want LISTEN"


def test_a_connection_without_a_port_is_closed() -> None:
    recipe = [{"call": {"do": "socket", "as": "c1"}}]
    connect = [{"start": {"do": "connect", "on": "c1", "as": "x"}}, {"state": "CLOSED"}, {"expect": {"flags": "S"}}]
    driver = run(connect, recipe, stack=ModelStack(replies={"connect": {"returned": 0}}))
    assert failure(driver).startswith("nothing came")


def test_without_read_out_the_tracker_answers() -> None:
    driver = run([*CLOSE, {"state": "FIN-WAIT-1"}], state=lambda n, s: None)
    passes(driver)
    assert driver.verdict.unverified == ("steps[2]: state FIN-WAIT-1",)
    assert driver.verdict.reason == "what could not be read out was not checked"
    driver = run([*CLOSE, {"state": "CLOSING"}], state=lambda n, s: None)
    assert failure(driver) == "the wire implies FIN-WAIT-1, want CLOSING"


def test_what_could_not_be_checked_at_all_is_inconclusive() -> None:
    driver = run([{"state": "ESTABLISHED"}], state=lambda n, s: None)
    assert driver.verdict.outcome == "inconclusive"
    assert driver.verdict.unverified == ("steps[0]: state ESTABLISHED",)


def test_a_listener_that_cannot_be_read() -> None:
    steps = [{"state": {"is": "LISTEN", "conn": "listener"}}, DATA, ACKED]
    passes(run(steps, state=lambda n, s: None))


def test_a_state_that_the_wire_does_not_imply_is_a_finding() -> None:
    steps = [DATA, ACKED, {"state": "CLOSE-WAIT"}, {"state": "CLOSE-WAIT"}]
    driver = run(steps, state=lambda n, s: "CLOSE-WAIT", liveness="port")
    passes(driver)
    assert driver.verdict.findings == (
        "steps[2]: the stack says CLOSE-WAIT, the wire implies ESTABLISHED",
        "steps[3]: the stack says CLOSE-WAIT, the wire implies ESTABLISHED",
    )
    assert passes(run([DATA, ACKED, {"state": "ESTABLISHED"}])).verdict.findings == ()


# Checks --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("value", "wanted", "said"),
    [
        ("SND.NXT - ISS", 1, "SND.NXT - ISS 1, want 2, short by 1"),
        ("RCV.NXT - IRS", "1..3", "RCV.NXT - IRS 1, want 2..4"),
        ("SND.MSS", "absolute(1460)", "SND.MSS 1460, want absolute(1461) = 1461, short by 1"),
        ("c1.RCV.NXT", "RCV.NXT", None),
    ],
)
def test_check(value: str, wanted: Any, said: str | None) -> None:
    passes(run([{"check": {"value": value, "is": wanted}}]))
    if said is not None:
        off = said.partition("want ")[2].partition(",")[0].partition(" = ")[0]
        assert failure(run([{"check": {"value": value, "is": off}}])) == said


# Choices -------------------------------------------------------------------------------------------------------------
def way(name: str, *steps: Any, **more: Any) -> dict[str, Any]:
    return {"name": name, "steps": list(steps), **more}


def chosen(driver: Driver) -> str:
    (note,) = notes(driver, "chosen")
    return str(note["branch"])


RESET = way("reset", {"expect": {"flags": ["R", "RA"]}})
FINISHED = way("fin", {"expect": {"flags": "FA"}})


def test_one_of_by_what_comes() -> None:
    step = {"one_of": [RESET, FINISHED]}
    assert chosen(passes(run([{"call": "close"}, step]))) == "fin"
    assert (
        chosen(
            passes(
                run(
                    [{"call": "close"}, step],
                    stack=ModelStack(twist=alter(1, flags=RST | ACK)),
                    liveness="port",
                    state=lambda n, s: "CLOSED",
                )
            )
        )
        == "reset"
    )
    driver = run(
        [{"call": "close"}, step], stack=ModelStack(twist=alter(1, flags=ACK)), connections={"c1": {"isn": 500}}
    )
    assert failure(driver) == "the stack sent A seq=1001 ack=501, which fits none of the ways"
    assert driver.verdict.failure is not None
    assert driver.verdict.failure.expected == "reset: R or RA; or fin: FA"
    assert driver.verdict.failure.arithmetic == (
        "not reset: flags A, want R or RA",
        "not fin: flags A, want FA (F missing)",
    )
    assert (
        failure(run([{"call": "close"}, step], stack=ModelStack(twist=drop(1))))
        == "the stack went none of the ways reset or fin"
    )


def test_one_of_violates() -> None:
    bad = way("fin", {"expect": {"flags": "FA"}}, violates="a-should")
    driver = run([{"call": "close"}, {"one_of": [RESET, bad]}])
    assert failure(driver) == "the stack went the way 'fin', which violates a-should"
    assert driver.verdict.level == "should"
    assert driver.verdict.requirements == ("a-should",)
    # A worse failure further on goes before it.
    driver = run([{"call": "close"}, {"one_of": [RESET, bad]}, {"state": "CLOSING"}])
    assert driver.verdict.level == "must"


def test_one_of_passes_noise_over() -> None:
    step = {"one_of": [way("fin", {"expect": {"flags": "FA"}}), way("reset", {"expect": {"flags": "R"}})]}
    twist = also(1, (0.0, {}), (0.0, {"flags": FIN | ACK, "seq": shifted("seq", 10), "payload": b""}))
    steps = [SEND, {"expect": {"length": 10}}, step]
    assert chosen(passes(run(steps, stack=ModelStack(twist=twist), liveness="port", of=SERVED))) == "fin"
    step["one_of"][0]["steps"][0]["expect"]["noise"] = "forbid"  # type: ignore[index]
    assert failure(run(steps, stack=ModelStack(twist=twist), liveness="port", of=SERVED)).endswith(
        "fits none of the ways"
    )


def test_one_of_by_silence_now() -> None:
    step = {"one_of": [way("quiet", {"silence": "now"}), way("acked", {"expect": {"flags": "A"}})]}
    assert chosen(passes(run([DATA, step]))) == "acked"
    assert chosen(passes(run([{"send": {"flags": "A"}}, step]))) == "quiet"
    assert failure(run([DATA, step], stack=ModelStack(twist=alter(1, flags=RST)))).endswith("fits none of the ways")


def test_one_of_by_lasting_silence() -> None:
    step = {"one_of": [way("quiet", {"silence": "500ms"}), way("acked", {"expect": {"flags": "A", "within": "500ms"}})]}
    assert chosen(passes(run([DATA, step]))) == "acked"
    assert chosen(passes(run([{"send": {"flags": "A"}}, step]))) == "quiet"
    # Comes behind the silence: that way was gone, and what comes is the next step's.
    late = [
        DATA,
        {"one_of": [way("quiet", {"silence": "500ms"}), way("fin", {"expect": {"flags": "FA", "within": "2s"}})]},
        {"expect": {"flags": "A"}},
    ]
    assert chosen(passes(run(late, stack=ModelStack(twist=delay(1, 0.55))))) == "quiet"
    # Breaks the silence, and fits nothing.
    assert failure(run(late, stack=ModelStack(twist=delay(1, 0.3)))).endswith("fits none of the ways")


def test_one_of_by_a_lasting_silence_and_a_late_loop() -> None:
    step = {"one_of": [way("quiet", {"silence": "500ms"}), way("fin", {"expect": {"flags": "FA", "within": "2s"}})]}

    class Slow(Driver):
        def play(self) -> Driver:
            deadline = self.session.deadline
            self.session.deadline = lambda: (
                None if (d := deadline()) is not None and self.now < d <= self.read_at else d
            )  # type: ignore[method-assign]
            return super().play()

        read_at = 0.0

    def play(read: float, lag: float) -> Driver:
        driver = Slow(trial([DATA, step, {"expect": {"flags": "A"}}]), ModelStack(twist=delay(1, read)), lag={1: lag})
        driver.read_at = read
        return driver.play()

    assert play(0.6, 0.3).verdict.late
    assert chosen(passes(play(0.6, 0.05))) == "quiet"


def test_one_of_by_finish() -> None:
    recipe = [*LISTEN_STEPS, *HANDSHAKE]
    start = {"start": {"do": "accept", "as": "a1"}}
    step = {
        "one_of": [way("refused", {"finish": {"a1": {"error": "ECONNABORTED"}}}), way("ok", {"finish": {"a1": "ok"}})]
    }
    assert chosen(passes(run([start, step], recipe))) == "ok"
    aborted = ModelStack(replies={"accept": {"error": "ECONNABORTED"}})
    assert chosen(passes(run([start, step], recipe, aborted))) == "refused"
    other = ModelStack(replies={"accept": {"error": "EPROTO"}})
    driver = run([start, step], recipe, other)
    assert failure(driver) == "the stack went none of the ways refused or ok: accept ended with EPROTO"
    assert driver.now < 1, "nothing is awaited when the call has ended"


def test_one_of_by_finish_leaves_what_comes_alone() -> None:
    steps = [
        {"start": {"do": "recv", "as": "r"}},
        DATA,
        {"one_of": [way("failed", {"finish": {"r": {"error": "ECONNRESET"}}}), way("ok", {"finish": {"r": {"data": "abc"}}})]},
        ACKED,
    ]  # fmt: skip
    assert chosen(passes(run(steps))) == "ok"


def test_one_of_by_a_call_that_sleeps() -> None:
    recipe = [*LISTEN_STEPS]
    start = {"start": {"do": "accept", "as": "a1"}}
    ways = {
        "one_of": [
            way("ok", {"finish": {"a1": "ok"}}),
            way("asleep", {"blocked": "a1"}, *HANDSHAKE, {"finish": {"a1": "ok"}}),
        ]
    }
    assert chosen(passes(run([start, ways], recipe))) == "asleep"
    assert chosen(passes(run([*HANDSHAKE, start, ways], recipe))) == "ok"


def test_one_of_by_state() -> None:
    step = {"one_of": [way("gone", {"state": "CLOSED"}), way("there", {"state": "ESTABLISHED"})]}
    assert chosen(passes(run([{"send": {"flags": "A"}}, step]))) == "there"
    assert chosen(passes(run([{"send": {"flags": "R", "seq": "RCV.NXT"}}, step]))) == "gone"
    said = failure(run([{"send": {"flags": "A"}}, step], state=lambda n, s: "LAST-ACK"))
    assert said == "the stack went none of the ways gone or there"
    # Without read-out, by what the wire implies.
    assert chosen(passes(run([DATA, ACKED, step], state=lambda n, s: None))) == "there"


def test_one_of_by_state_or_what_comes() -> None:
    step = {"one_of": [way("gone", {"state": "CLOSED"}), way("acked", {"expect": {"flags": "A", "ack": "RCV.NXT"}})]}
    assert chosen(passes(run([DATA, step]))) == "acked"
    assert chosen(passes(run([{"send": {"flags": "R", "seq": "RCV.NXT"}}, step]))) == "gone"
    said = failure(run([DATA, step], stack=ModelStack(twist=alter(1, ack=shifted("ack", 1)))))
    assert said.endswith("fits none of the ways")


def test_one_of_when_something_comes_while_the_state_is_read() -> None:
    step = {
        "one_of": [
            way("gone", {"state": "CLOSED"}),
            way("quiet", {"silence": "now"}),
            way("acked", {"expect": {"flags": "A"}}),
        ]
    }
    driver = Driver(trial([DATA, step]), ModelStack(twist=drop(1)))
    original = driver._act

    def act(action: ev.Action) -> None:
        if isinstance(action, ev.ReadState) and driver.stack.count == 2:
            driver.stack.emit(next(iter(driver.stack.tcbs.values())), ACK)
            out, driver.stack.out = driver.stack.out, []
            driver._push(driver.now, ev.Arrived(out[0][1], driver.now))
        original(action)

    driver._act = act  # type: ignore[method-assign]
    assert chosen(passes(driver.play())) == "acked"


@pytest.mark.parametrize("first", [{"send": {"flags": "A"}}, {"check": {"value": "ISS", "is": "> 5"}}])
def test_a_way_that_nothing_can_choose(first: Any) -> None:
    driver = run([DATA, ACKED, {"one_of": [way("a", first), way("b", {"silence": "now"})]}])
    assert driver.verdict.outcome == "error"
    assert driver.verdict.reason == "steps[2]: the way 'a' begins with nothing by which it could be chosen"


# any_order, optional, repeat -----------------------------------------------------------------------------------------
BOTH: list[Any] = [
    {"send": {"flags": "PA", "payload": "abc"}},
    {"any_order": [{"expect": {"flags": "FA", "payload": ""}}, {"expect": {"flags": "A", "length": 0, "ack": "RCV.NXT", "seq": "any"}}]},
]  # fmt: skip
CLOSE_TOO = {"flags": FIN | ACK, "ack": lambda s: s.ack}


@pytest.mark.parametrize("first", [0, 1])
def test_any_order(first: int) -> None:
    def twist(n: int, segment: Any) -> Any:
        if n != 1:
            return [(0.0, segment)]
        fin = alter(1, flags=FIN | ACK)(1, segment)[0]
        ack = alter(1, seq=shifted("seq", first))(1, segment)[0]
        return [ack, fin] if first == 0 else [fin, ack]

    passes(run(BOTH, stack=ModelStack(twist=twist), liveness="port", of=SERVED))


def test_any_order_misses_one() -> None:
    assert failure(run(BOTH)) == "nothing came within 100.0 ms"


def test_any_order_meets_another() -> None:
    twist = also(1, (0.0, {"payload": b"x"}))
    driver = run(BOTH, stack=ModelStack(twist=twist), connections={"c1": {"isn": 500}})
    assert failure(driver) == "the stack sent A seq=1001 ack=504 len=1, which fits none of the ways"
    assert driver.verdict.failure is not None
    assert driver.verdict.failure.expected == "[0]: FA payload=''"
    assert driver.verdict.failure.arithmetic == (
        "not [0]: flags A, want FA (F missing)",
        "not [0]: payload of 1 octets, want 0",
    )


def test_any_order_passes_noise_over() -> None:
    twist = also(1, (0.0, {"window": 65000}), (0.0, {"flags": FIN | ACK}))
    passes(run(BOTH, stack=ModelStack(twist=twist), liveness="port", of=SERVED))


def test_any_order_counts_time_from_its_start() -> None:
    steps = [
        DATA,
        {"any_order": [{"expect": {"flags": "A", "within": "1s"}}, {"expect": {"flags": "FA", "within": "1s"}}]},
    ]
    twist = lambda n, s: [(0.8, s), (at, alter(1, flags=FIN | ACK)(1, s)[0][1])] if n == 1 else [(0.0, s)]  # noqa: E731
    at = 0.9
    passes(run(steps, stack=ModelStack(twist=twist), liveness="port", of=SERVED))
    at = 1.2
    assert (
        failure(run(steps, stack=ModelStack(twist=twist), liveness="port", of=SERVED)) == "nothing came within 1.01 s"
    )


def test_any_order_over_two_connections() -> None:
    c2 = [{"send": {"conn": "c2", "flags": "S"}}, {"expect": {"conn": "c2", "flags": "SA", "ack": "RCV.NXT"}}]
    both = {"any_order": [{"expect": {"conn": "c2", "flags": "SA"}}, {"expect": {"flags": "A", "ack": "RCV.NXT"}}]}
    steps = [DATA, both]
    driver = Driver(trial(steps, connections={"c2": {"port": 50000, "isn": 9}}, liveness="port"))
    original = driver.stack.receive

    def receive(seg: Any) -> None:
        original(seg)
        if seg.payload:
            original(replace(seg, sport=50000, flags=SYN, seq=9, ack=0, payload=b""))

    driver.stack.receive = receive  # type: ignore[method-assign]
    passes(driver.play())
    passes(run([*c2, DATA, ACKED]))


ANY: list[Any] = [{"expect": {"flags": "A", "as": "any"}}, {"expect": {"flags": "A", "payload": "abc", "as": "data"}}]


@pytest.mark.parametrize("turn", [1, -1])
@pytest.mark.parametrize("first", [b"abc", b""])
def test_any_order_leaves_each_segment_to_what_it_alone_fits(turn: int, first: bytes) -> None:
    second = b"" if first else b"abc"
    twist = alter(1, payload=first)
    more = {"payload": second, "seq": shifted("seq", len(first))}
    steps = [
        {"call": {"do": "send", "payload": "abc"}},
        {"any_order": ANY[::turn]},
        {"check": {"value": "data.len", "is": 3}},
    ]
    stack = ModelStack(twist=lambda n, s: [*twist(n, s), *(alter(1, **more)(n, s) if n == 1 else [])])
    driver = passes(run([*steps, {"check": {"value": "any.len", "is": 0}}], stack=stack))
    matched = {entry["as"]: entry["step"] for entry in notes(driver, "matched") if "as" in entry}
    place = ["steps[1].any_order[0]", "steps[1].any_order[1]"][::turn]
    assert matched == {"any": place[0], "data": place[1]}


def test_any_order_finds_a_way_through_many() -> None:
    wanted: list[Any] = [
        {"expect": {"flags": "A"}},
        {"expect": {"length": "<= 2"}},
        {"expect": {"payload": "ab"}},
        {"expect": {"ack": "RCV.NXT", "window": 64240}},
    ]

    def pieces(n: int, s: Any) -> Any:
        cut = [(0, 2), (2, 3), (3, 6), (6, 9)]
        return [(0.0, replace(s, seq=s.seq + a, payload=s.payload[a:b])) for a, b in cut] if n == 1 else [(0.0, s)]

    steps = [{"call": {"do": "send", "payload": "abcdefghi"}}, {"any_order": wanted}]
    driver = passes(run(steps, stack=ModelStack(twist=pieces)))
    assert len(notes(driver, "matched")) == 6  # with the handshake's and the probe's
    wanted[3] = {"expect": {"payload": "xy"}}
    assert failure(run(steps, stack=ModelStack(twist=pieces))).endswith("fits none of the ways")


def test_any_order_tells_what_came_out_of_time() -> None:
    steps = [
        DATA,
        {"any_order": [{"expect": {"flags": "A", "after": "50ms"}}, {"expect": {"flags": "FA", "within": "1s"}}]},
    ]
    twist = also(1, (0.01, {"flags": FIN | ACK}))
    driver = run(steps, stack=ModelStack(twist=twist), liveness="port", of=SERVED)
    assert failure(driver) == "it came too early: 0.0 ms after the event before, want after 50.0 ms"
    assert driver.verdict.failure is not None
    assert driver.verdict.failure.step == "steps[1].any_order[0]"


def test_any_order_of_something_else() -> None:
    driver = run([DATA, {"any_order": [ACKED, {"silence": "now"}]}])
    assert driver.verdict.outcome == "error"
    assert driver.verdict.reason == "steps[1]: any_order holds a step that is no expectation of one segment"


def test_unknown_segments_fail_choices_too() -> None:
    twist = alter(1, sport=81)
    for step in (
        {"one_of": [RESET, FINISHED]},
        {"any_order": [{"expect": {"flags": "A"}}, {"expect": {"flags": "FA"}}]},
        STREAM[1],
    ):
        said = failure(run([DATA, step], stack=ModelStack(twist=twist)))
        assert said.startswith("a segment of no connection of this case came, from port 81")


OPTIONAL = {"optional": [{"expect": {"flags": "A", "ack": "RCV.NXT"}}, {"send": {"flags": "A"}}]}


def test_optional() -> None:
    assert chosen(passes(run([DATA, OPTIONAL]))) == "taken"
    assert chosen(passes(run([{"send": {"flags": "A"}}, OPTIONAL, {"state": "ESTABLISHED"}]))) == "passed over"
    # What does not fit is left for what comes next, which it fails.
    driver = run([DATA, OPTIONAL], stack=ModelStack(twist=alter(1, ack=shifted("ack", 1))))
    assert chosen(driver) == "passed over"
    assert failure(driver).endswith("which nothing expects")


def test_optional_waits_for_its_time() -> None:
    step = {"optional": [{"expect": {"flags": "A", "ack": "RCV.NXT", "within": "500ms"}}]}
    steps = [DATA, step, {"state": "ESTABLISHED"}]
    assert chosen(passes(run(steps, stack=ModelStack(twist=delay(1, 0.4))))) == "taken"
    assert chosen(passes(run(steps, stack=ModelStack(twist=drop(1))))) == "passed over"


def test_optional_passes_noise_over() -> None:
    twist = also(1, (0.0, {}), (0.0, {"flags": FIN | ACK, "seq": shifted("seq", 10), "payload": b""}))
    steps = [SEND, {"expect": {"length": 10}}, {"optional": [{"expect": {"flags": "FA"}}]}]
    assert chosen(passes(run(steps, stack=ModelStack(twist=twist), liveness="port", of=SERVED))) == "taken"


def test_optional_begins_with_an_expectation() -> None:
    driver = run([DATA, ACKED, {"optional": [{"silence": "now"}]}])
    assert driver.verdict.reason == "steps[2]: optional begins with a step that is no expectation"


def backing_off(*times: float) -> Twist:
    return also(1, *((t, {}) for t in times))


REPEAT: dict[str, Any] = {"times": 3, "steps": [{"expect": {"again": "first", "within": "5s"}}]}


def repeated(**more: Any) -> list[Any]:
    return [SEND, {"expect": {"length": 10, "as": "first"}}, {"repeat": REPEAT | more}]


def test_repeat() -> None:
    passes(run(repeated(), stack=ModelStack(twist=backing_off(0.2, 0.6, 1.4))))
    assert failure(run(repeated(), stack=ModelStack(twist=backing_off(0.2, 0.6)))) == "nothing came within 5.01 s"


def test_repeat_at_least() -> None:
    steps = repeated(**{"at-least": 2})
    passes(run(steps, stack=ModelStack(twist=backing_off(0.2, 0.6, 1.4))))
    passes(run(steps, stack=ModelStack(twist=backing_off(0.2, 0.6))))
    assert failure(run(steps, stack=ModelStack(twist=backing_off(0.2)))) == "nothing came within 5.01 s"
    other = also(1, (0.2, {}), (0.6, {}), (0.8, {"payload": b"other"}))
    assert failure(run(steps, stack=ModelStack(twist=other))).endswith("which nothing expects")


def test_repeat_more_often_than_at_least_needs_an_expectation() -> None:
    steps = [DATA, ACKED, {"repeat": {"times": 2, "at-least": 0, "steps": [{"send": {"flags": "A"}}]}}]
    assert "begins with a step that is no expectation" in run(steps).verdict.reason
    passes(run([DATA, ACKED, {"repeat": {"times": 2, "at-least": 2, "steps": [{"send": {"flags": "A"}}]}}]))


@pytest.mark.parametrize(
    ("gap", "times", "said"),
    [
        ({"is": "2 * previous", "tolerance": 10}, (1.0, 3.0, 7.0), None),
        ({"is": "2 * previous", "tolerance": 10}, (1.0, 3.15, 7.2), None),
        ({"is": "2 * previous", "tolerance": 10}, (1.0, 3.0, 7.5), "it came 4.50 s after the one before, want 4.00 s ± 10 %"),
        ({"is": "2 * previous", "tolerance": 10}, (1.0, 3.0, 6.5), "it came 3.50 s after the one before, want 4.00 s ± 10 %"),
        ({"is": "1s"}, (1.0, 2.0, 3.005), None),
        ({"is": "1s"}, (1.0, 2.0, 3.02), "it came 1.02 s after the one before, want 1.00 s ± 0 %"),
        ({"is": "1s"}, (1.0, 2.02, 3.0), "it came 1.02 s after the one before, want 1.00 s ± 0 %"),
    ],
)  # fmt: skip
def test_gaps(gap: dict[str, Any], times: tuple[float, ...], said: str | None) -> None:
    # A first that is sent at 0; the gaps are those between the three that follow.
    driver = run(repeated(gap=gap), stack=ModelStack(twist=backing_off(*times)))
    if said is None:
        passes(driver)
    else:
        assert failure(driver) == said


@pytest.mark.parametrize(("lag", "late"), [({}, False), ({3: 0.5}, True), ({4: 0.5}, True)])
def test_a_late_loop_and_gaps(lag: dict[int, float], late: bool) -> None:
    steps = repeated(gap={"is": "2 * previous", "tolerance": 10})
    driver = run(steps, stack=ModelStack(twist=backing_off(1.0, 3.0, 7.0)), lag=lag)
    assert driver.verdict.outcome == ("inconclusive" if late else "pass")
    assert driver.verdict.late is late


def test_a_repetition_in_a_repetition_has_gaps_of_its_own() -> None:
    inner = {"repeat": REPEAT | {"times": 2, "gap": {"is": "1s"}}}
    steps = [
        SEND,
        {"expect": {"length": 10, "as": "first"}},
        {"repeat": {"times": 2, "steps": [inner], "gap": {"is": "4s"}}},
    ]
    passes(run(steps, stack=ModelStack(twist=backing_off(1.0, 2.0, 5.0, 6.0))))


# The end: calls left, liveness ---------------------------------------------------------------------------------------
def test_an_unfinished_call() -> None:
    steps = [{"start": {"do": "recv", "as": "r"}}, {"blocked": "r"}]
    assert failure(run(steps)) == "the call r has not ended"
    passes(run([*steps, DATA, ACKED, {"finish": {"r": {"data": "abc"}}}]))


def test_a_call_that_ends_by_itself_is_held_against_what_was_said_when_it_began() -> None:
    for said, outcome in ({"returns": 3}, "pass"), ({"returns": 4}, "fail"), ({"error": "EPIPE"}, "fail"):
        driver = run([{"start": {"do": "recv", "as": "r", **said}}, DATA, ACKED])
        assert driver.verdict.outcome == outcome
    assert failure(driver) == "recv on c1 succeeded, want EPIPE"


@pytest.mark.parametrize(("seconds", "outcome"), [(0.05, "pass"), (0.2, "fail")])
def test_a_call_that_ends_late_is_waited_for(seconds: float, outcome: str) -> None:
    driver = Driver(trial([{"start": {"do": "recv", "as": "r"}}, DATA, ACKED]))
    original = driver._push

    def push(when: float, event: ev.Event) -> None:
        original(when + (seconds if isinstance(event, ev.Returned) and "data" in event.reply else 0.0), event)

    driver._push = push  # type: ignore[method-assign]
    assert driver.play().verdict.outcome == outcome


def test_a_call_of_the_recipe_may_sleep_on() -> None:
    recipe = [*LISTEN_STEPS, {"start": {"do": "accept", "as": "a1"}}, {"blocked": "a1"}]
    passes(run([{"state": {"is": "LISTEN", "conn": "listener"}}], recipe))


def test_blocked() -> None:
    start = {"start": {"do": "recv", "as": "r"}}
    said = failure(run([DATA, ACKED, start, {"blocked": "r"}]))
    assert said == "r did not sleep: it ended with success, data 'abc'"


@pytest.mark.parametrize(
    "step",
    [
        {"blocked": "r"},
        {"finish": {"r": "ok"}},
        {"one_of": [way("a", {"finish": {"r": "ok"}}), way("b", {"blocked": "r"})]},
    ],
)
def test_a_call_that_was_never_started(step: Any) -> None:
    optional = {"optional": [{"expect": {"flags": "FA"}}, {"start": {"do": "recv", "as": "r"}}]}
    said = reason(run([DATA, ACKED, optional, step]), "inconclusive")
    assert said == "steps[3]: no call 'r' is under way: it was not started, or has been finished"


DEATHS = {
    "ESTABLISHED": [DATA, ACKED],
    "SYN-RECEIVED": [{"silence": "now"}],
    "FIN-WAIT-1": CLOSE,
    "CLOSED": [{"send": {"flags": "R", "seq": "RCV.NXT"}}, {"silence": "now"}],
    "SYN-SENT": [{"silence": "now"}],
    "LISTEN": [{"state": {"is": "LISTEN", "conn": "listener"}}],
}
RECIPES = {
    "SYN-RECEIVED": [*LISTEN_STEPS, *HANDSHAKE[:2]],
    "SYN-SENT": [
        {"call": {"do": "socket", "as": "c1"}},
        {"start": {"do": "connect", "as": "x"}},
        {"expect": {"flags": "S"}},
    ],
    "LISTEN": LISTEN_STEPS,
}


@pytest.mark.parametrize("state", DEATHS)
@pytest.mark.parametrize("read", [True, False])
def test_a_stack_that_dies_is_noticed(state: str, read: bool) -> None:
    steps, recipe = DEATHS[state], RECIPES.get(state, ESTABLISHED)
    stack = profile() if read else profile(capabilities=profile().capabilities - {"states"})
    alive = passes(Driver(trial(steps, recipe, stack=stack)).play())
    dead = Driver(trial(steps, recipe, stack=stack), ModelStack(dead_after=alive.stack.count - 1)).play()
    assert failure(dead) == "the stack gives no sign of life: the probe was not answered"
    assert dead.verdict.failure is not None
    assert dead.verdict.failure.step == "end"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seq": shifted("seq", 1)}, "the probe of life was answered by A seq=1002 ack=504, want ACK seq=1001 ack=504"),
        ({"ack": shifted("ack", 1)}, "the probe of life was answered by A seq=1001 ack=505, want ACK seq=1001 ack=504"),
        ({"flags": RST | ACK}, "the probe of life was answered by RA seq=1001 ack=504, want ACK seq=1001 ack=504"),
        ({"payload": b"x"}, "the probe of life was answered by A seq=1001 ack=504 len=1, want ACK seq=1001 ack=504"),
    ],
)
def test_a_wrong_answer_to_the_probe(change: dict[str, Any], said: str) -> None:
    stack = ModelStack(twist=alter(2, **change))
    assert failure(run([DATA, ACKED], stack=stack, connections={"c1": {"isn": 500}})) == said


def test_a_probe_as_a_step() -> None:
    passes(run([{"send": {"flags": "A"}}, {"probe": "alive"}]))
    driver = run([{"send": {"flags": "A"}}, {"probe": "alive"}], stack=ModelStack(dead_after=1))
    assert failure(driver) == "the stack gives no sign of life: the probe was not answered"
    assert driver.verdict.failure is not None
    assert driver.verdict.failure.step == "steps[1]"


def test_noise_before_the_answer_to_a_probe() -> None:
    repeat = lambda n, s: [(0.0, alter(2, flags=FIN | ACK, seq=1001)(2, s)[0][1]), (0.0, s)] if n == 2 else [(0.0, s)]  # noqa: E731
    passes(run(CLOSE, stack=ModelStack(twist=repeat)))


def test_what_answers_a_probe_twice() -> None:
    passes(run([DATA, ACKED], stack=ModelStack(twist=also(2, (0.0, {})))))
    assert failure(run([DATA, ACKED], stack=ModelStack(twist=also(2, (0.0, {"payload": b"x"}))))).endswith(
        "which nothing expects"
    )


class Credulous(ModelStack):
    """Takes any reset for an exact one, on the connection of one port of the tester, and says so or goes deaf."""

    def __init__(self, port: int | None = None, deaf: bool = False) -> None:
        super().__init__()
        self.port, self.deaf, self.dead = port, deaf, False

    def receive(self, seg: Any) -> None:
        tcb = self.tcbs.get((seg.dport, seg.sport))
        if tcb is not None and self.port in (None, seg.sport):
            if seg.flags & RST and not self.deaf:
                tcb.state = "CLOSED"
                return
            self.dead = self.dead or bool(seg.flags & RST)
            if self.dead and self.deaf:
                return
        super().receive(seg)


BLIND: list[Any] = [{"send": {"flags": "R", "seq": "RCV.NXT - 1"}}, {"silence": "now"}]
SECOND: list[Any] = [
    {"send": {"conn": "c2", "flags": "S"}},
    {"expect": {"conn": "c2", "flags": "SA"}},
    {"send": {"conn": "c2", "flags": "A"}},
    {"send": {"conn": "c2", "flags": "R", "seq": "RCV.NXT - 1"}},
    {"silence": "now"},
]


def test_what_a_stack_says_of_itself_is_believed_only_where_the_wire_allows_it() -> None:
    for steps, where in ((BLIND, "end"), ([*BLIND, {"probe": "alive"}], "steps[2]")):
        driver = run(steps, stack=Credulous())
        assert failure(driver) == "the stack says CLOSED, the wire implies ESTABLISHED"
        assert driver.verdict.failure is not None
        assert driver.verdict.failure.step == where
        assert notes(driver, "state")[-1]["state"] == "CLOSED"
    assert failure(run(BLIND, stack=Credulous(), state=lambda n, s: None)).startswith(
        "the probe of life was answered by R"
    )
    # What it says once more, behind what settles, counts.
    passes(run(BLIND, state=lambda n, s: "CLOSED" if n == 0 else s))


@pytest.mark.parametrize("deaf", [False, True])
def test_every_connection_is_probed(deaf: bool) -> None:
    more: dict[str, Any] = {"connections": {"c2": {"port": 40002}}}
    if deaf:  # a finding where the port answers; a failure where a step asks
        silent = "in ESTABLISHED nothing answered an octet below the window (RFC 9293 section 3.10.7.4, first)"
        assert passes(run(SECOND, stack=Credulous(40002, deaf), **more)).verdict.findings == (silent,)
        asked = run([*SECOND, {"probe": "alive"}], stack=Credulous(40002, deaf), **more)
        assert failure(asked) == "the stack gives no sign of life: the probe was not answered"
    else:
        said = failure(run(SECOND, stack=Credulous(40002, deaf), **more))
        assert said == "the stack says CLOSED, the wire implies ESTABLISHED"
    driver = passes(run(SECOND, **more))
    assert [p.sport for p in driver.injected[-2:]] == [driver.injected[0].sport, 40002]


@pytest.mark.parametrize(
    ("call", "model", "outcome"),
    [
        # Whether it has closed is not known, and either state's answer is right; no other is.
        ("shutdown", "ESTABLISHED", "pass"),
        ("shutdown", "FIN-WAIT-1", "pass"),
        ("shutdown", "CLOSED", "fail"),
        ("close", "CLOSED", "pass"),
    ],
)
def test_without_read_out_each_state_that_the_wire_allows_may_answer(call: str, model: str, outcome: str) -> None:
    linger = {"call": {"do": "setsockopt", "option": "SO_LINGER", "value": {"onoff": True, "linger": 0}}}
    made = {"do": "shutdown", "how": "wr"} if call == "shutdown" else {"do": "close"}

    class Still(ModelStack):
        def call(self, request: dict[str, Any]) -> dict[str, Any] | None:
            if request["do"] == call:
                self.named["c1"].state = model
                return {"returned": 0}
            return super().call(request)

    steps = [*([linger] if call == "close" else []), {"call": made}]
    assert run(steps, stack=Still(), state=lambda n, s: None).verdict.outcome == outcome


def test_liveness_of_the_port() -> None:
    driver = passes(run([DATA, ACKED], liveness="port"))
    assert driver.injected[-1].sport != driver.injected[0].sport
    assert failure(run([DATA, ACKED], stack=ModelStack(dead_after=2), liveness="port")).startswith(
        "the stack gives no sign"
    )
    wrong = ModelStack(twist=alter(2, seq=shifted("seq", 1)))
    found = passes(run([DATA, ACKED], stack=wrong, liveness="port")).verdict.findings
    assert found == ("the probe of life was answered by R seq=4661, want RST seq=4660",)
    wrong = ModelStack(twist=alter(2, flags=ACK))
    assert failure(run([DATA, ACKED], stack=wrong, liveness="port")).startswith("the probe of life was answered by A")


# Rules, levels, faults -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"checksum": 0xBEEF}, "a segment breaks 9293-MUST-2: its checksum is 0xbeef, which is wrong"),
        ({"reserved": 1}, "a segment breaks 9293-3.1-reserved-zero: its reserved bits are 0x1, not zero"),
        ({"options": (Option("mss", 9),)}, "a segment breaks 9293-MUST-65: it has an MSS option, and no SYN"),
        ({"flags": PSH}, "a segment breaks 9293-3.1-ack-always-set: it has no ACK in a synchronized state"),
    ],
)
def test_a_rule_is_kept_whatever_is_asserted(change: dict[str, Any], said: str) -> None:
    driver = run([DATA, {"expect": {"length": "< 1000"}}], stack=ModelStack(twist=alter(1, **change)))
    assert failure(driver) == said
    assert driver.verdict.requirements == (said.split()[3].rstrip(":"),)
    passes(run([DATA, {"expect": {"length": "< 1000"}}]))


def test_a_rule_broken_in_the_recipe_is_the_stacks_fault_all_the_same() -> None:
    assert failure(run([DATA, ACKED], stack=ModelStack(twist=alter(0, reserved=2)))).endswith("are 0x2, not zero")


def test_a_precondition_that_is_not_reached() -> None:
    driver = run([DATA, ACKED], stack=ModelStack(twist=alter(0, ack=shifted("ack", 1))))
    assert driver.verdict.outcome == "inconclusive"
    assert not driver.verdict.late
    assert driver.verdict.reason.startswith("the precondition was not reached: ack IRS+2, want RCV.NXT = IRS+1")
    assert driver.verdict.failure is not None
    assert driver.verdict.failure.step == "recipe[4]"


def test_what_comes_of_the_recipe_alone_is_the_preconditions_affair() -> None:
    driver = run([DATA, ACKED], [*LISTEN_STEPS, *HANDSHAKE], ModelStack(twist=also(0, (0.0, {"payload": b"x"}))))
    assert driver.verdict.outcome == "inconclusive"


def test_levels() -> None:
    def level(**more: Any) -> str | None:
        return run([*CLOSE, {"state": "CLOSING", **more}]).verdict.level

    assert level() == "must"
    assert level(covers=["a-should"]) == "should"
    assert level(covers="a-may") == "may"
    assert level(covers=["a-may", "a-should"]) == "should"
    assert level(covers="unheard-of") == "must"
    assert run([*CLOSE, {"state": "CLOSING", "covers": "a-may"}]).verdict.requirements == ("a-may",)


def test_the_place_of_a_step_is_told() -> None:
    driver = run([*CLOSE, {"state": "CLOSING", "@": [7, 5]}])
    assert driver.verdict.failure is not None
    assert driver.verdict.failure.place == (7, 5)


def test_a_case_that_asserts_nothing_is_no_pass() -> None:
    driver = run([{"send": {"flags": "A"}}])
    assert driver.verdict.outcome == "error"
    assert driver.verdict.reason == "no assertion of the case ran, so it shows nothing"


def test_an_expression_that_divides_by_zero() -> None:
    driver = run([DATA, {"expect": {"window": "5 / (RCV.NXT - RCV.NXT)"}}])
    assert driver.verdict.outcome == "error"
    assert driver.verdict.reason == "steps[1]: an expression divides by zero"


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ({"send": {"flags": "A", "ack": "SND.NXT"}}, "SND.NXT of c1 is not known: the stack has sent no SYN"),
        ({"check": {"value": "ISS", "is": "SND.UNA"}}, "ISS of c1 is not known: the stack has sent no SYN"),
        ({"check": {"value": "IRS", "is": "SND.UNA"}}, "SND.UNA of c1 is not known: the stack has sent no SYN"),
        ({"silence": "IRS * " * 32 + "1s"}, None),
        ({"send": {"flags": "A", "seq": "1 / (IRS - IRS)"}}, "an expression divides by zero"),
    ],
)
def test_what_the_case_cannot_have_is_the_cases_fault(step: Any, said: str | None) -> None:
    steps = [step, {"state": {"is": "LISTEN", "conn": "listener"}}]
    got = reason(run(steps, LISTEN_STEPS, connections={"c1": {"isn": 0xFFFFFFFF}}), "error")
    assert got.startswith("steps[0]: " + (said or "an expression cannot be computed: "))


def test_an_answer_is_not_blamed_for_what_the_case_cannot_have() -> None:
    steps: list[Any] = [{"send": {"flags": "A", "ack": 77}}, {"expect": {"flags": "R", "seq": "SND.NXT"}}]
    assert (
        reason(run(steps, LISTEN_STEPS), "error") == "steps[1]: SND.NXT of c1 is not known: the stack has sent no SYN"
    )
    # But where the SYN should have come, it is the stack's.
    steps[1] = {"expect": {"seq": "ISS"}}
    assert "the stack has sent no SYN, nor is this one" in failure(run(steps, LISTEN_STEPS))
    steps[1] = {"expect": {"flags": "SA", "seq": "SND.NXT"}}
    assert failure(run(steps, LISTEN_STEPS)).startswith("flags R, want SA")


def test_a_timer_that_the_stack_does_not_declare() -> None:
    timers = {k: v for k, v in profile().timers.items() if k != "timer.msl"}
    driver = Driver(
        trial([DATA, {"expect": {"flags": "A", "within": "timer.msl"}}], stack=profile(timers=timers))
    ).play()
    assert driver.verdict.outcome == "error"
    assert driver.verdict.reason == "steps[1]: the stack's description has no timer.msl"


@pytest.mark.parametrize(("given", "step"), [("ESTABLISHED", "steps[0]"), ("SYN-SENT", "recipe[2]")])
def test_a_stack_that_dies_fails_the_trial_even_in_its_recipe(given: str, step: str) -> None:
    died = ev.Died("the stack died: killed by SIGSEGV\nIt printed last:\n  assertion")
    when = 0.5 if given == "ESTABLISHED" else 0.0
    driver = run([{"silence": "1s"}], given=given, at=[(when, died)])
    assert driver.verdict.outcome == "fail"
    assert driver.verdict.failure.summary == "the stack died: killed by SIGSEGV"
    assert driver.verdict.failure.arithmetic == ("It printed last:", "  assertion")
    assert driver.verdict.failure.step.startswith(step.partition("[")[0])


def test_when_conform_itself_breaks() -> None:
    driver = run([DATA, ACKED, {"silence": "1s"}], at=[(0.5, ev.Broke("the link is gone"))])
    assert driver.verdict.outcome == "error"
    assert driver.verdict.reason == "the link is gone"


@pytest.mark.parametrize(
    ("mute", "outcome", "said"),
    [
        (ev.Inject, "error", "the link gave no answer in 5 s"),
        (ev.ReadState, "error", "the state read-out gave no answer in 5 s"),
        (ev.Call, "error", "the agent gave no reply to socket"),
        (
            ev.Settle,
            "inconclusive",
            "the precondition was not reached: the stack gives no sign of life: it does not settle",
        ),
    ],
)
def test_no_wait_is_without_an_end(mute: type, outcome: str, said: str) -> None:
    driver = run([{"state": "ESTABLISHED"}], mute=mute)
    assert driver.verdict.outcome == outcome
    assert driver.verdict.reason == said


def test_an_agent_that_says_nothing_of_a_call_that_was_begun() -> None:
    for step in (
        {"blocked": "r"},
        {"finish": {"r": "ok"}},
        {"one_of": [way("a", {"finish": {"r": "ok"}}), way("b", {"blocked": "r"})]},
    ):
        driver = Driver(trial([{"start": {"do": "recv", "as": "r"}}, step]))
        original = driver._act
        driver._act = lambda a, o=original: None if isinstance(a, ev.Call) and a.request["do"] == "recv" else o(a)  # type: ignore[method-assign, misc]
        driver.play()
        assert driver.verdict.outcome == "error"
        assert "recv on c1" in driver.verdict.reason or "neither that r sleeps" in driver.verdict.reason


def test_a_stack_that_stops_settling_fails() -> None:
    driver = Driver(trial([DATA, ACKED, {"silence": "now"}]))
    original = driver._act
    driver._act = lambda a: None if isinstance(a, ev.Settle) and driver.stack.count > 1 else original(a)  # type: ignore[method-assign]
    assert failure(driver.play()) == "the stack gives no sign of life: it does not settle"


# Connections, and the driver's side ----------------------------------------------------------------------------------
def test_ports_and_isns_follow_from_the_seed() -> None:
    def of(**more: Any) -> list[tuple[int, int]]:
        session = Session(trial([DATA], connections={"c2": {}, "c3": {"port": 50000, "isn": 7}}, **more))
        return [(c.tester_port, c.irs) for c in session.connections.values()]

    assert of() == of()
    assert of() != of(seed=2)
    assert of()[2] == (50000, 7)
    assert len({port for port, _ in of()}) == 3


def test_two_connections() -> None:
    other = [
        {"send": {"conn": "c2", "flags": "S"}},
        {"expect": {"conn": "c2", "flags": "SA", "seq": "ISS", "ack": "RCV.NXT"}},
        {"send": {"conn": "c2", "flags": "A"}},
    ]
    steps = [*other, DATA, ACKED, {"check": {"value": "c2.SND.NXT - c1.SND.NXT", "is": 0}}]
    passes(run(steps))
    driver = run(steps, stack=ModelStack(twist=also(1, (0.0, {"seq": shifted("seq", 1), "options": (), "flags": ACK}))))
    assert failure(driver).startswith("the stack sent A seq=1001")


def test_what_names_a_connection_before_its_first_use() -> None:
    driver = run([{"check": {"value": "c2.SND.NXT", "is": 0}}], connections={"c2": {}})
    assert reason(driver, "error") == ("steps[0]: SND.NXT of c2 is not known: the stack has sent no SYN")


def test_closing_segments() -> None:
    driver = run([DATA, ACKED], connections={"c1": {"isn": 500}})
    (segment,) = driver.session.closing_segments()
    assert (segment.flags, segment.seq, segment.ack) == (RST | ACK, 504, 1001)
    assert run([{"send": {"flags": "R", "seq": "RCV.NXT"}}, {"silence": "now"}]).session.closing_segments() == []
    assert run([{"state": {"is": "LISTEN", "conn": "listener"}}], LISTEN_STEPS).session.closing_segments() == []


def test_after_the_verdict_nothing_counts() -> None:
    driver = run([DATA, ACKED])
    entries = len(driver.session.transcript.entries)
    driver.session.receive(ev.Broke("too late"), 99.0)
    assert driver.verdict.outcome == "pass"
    assert len(driver.session.transcript.entries) == entries
    assert driver.session.deadline() is None


def test_time_never_goes_back() -> None:
    session = Session(trial([{"silence": "1s"}], []))
    session.start(0.5)
    session.receive(ev.Ticked(), 0.2)
    assert session.now == 0.5


def test_an_answer_behind_its_fence_is_recorded() -> None:
    driver = run(
        [DATA, {"silence": "now"}, {"expect": {"flags": "A", "within": "1s"}}], stack=ModelStack(twist=delay(1, 0.2))
    )
    passes(driver)
    (note,) = notes(driver, "late")
    assert note["step"] == "steps[0]"


def test_simultaneous_open() -> None:
    recipe = [{"call": {"do": "socket", "as": "c1"}}]
    steps = [
        {"start": {"do": "connect", "as": "x"}},
        {"expect": {"flags": "S", "as": "syn"}},
        {"send": {"flags": "S"}},
        {"expect": {"flags": "SA", "seq": "ISS", "ack": "RCV.NXT"}},
        {"state": "SYN-RECEIVED"},
        {"send": {"flags": "A"}},
        {"state": "ESTABLISHED"},
        {"finish": {"x": "ok"}},
    ]
    driver = passes(run(steps, recipe))
    assert driver.verdict.findings == ()
    said = failure(run(steps, recipe, ModelStack(twist=alter(1, seq=shifted("seq", 1)))))
    assert said == "seq ISS+1, want ISS = ISS+0, too far by 1: an octet counted that was not sent"


def test_previous_means_something_in_a_gap_alone() -> None:
    driver = run([DATA, {"expect": {"flags": "A", "within": "2 * previous"}}])
    assert reason(driver, "error") == "steps[1]: there is no previous gap yet"


def test_a_fault_of_conforms_own_is_raised_and_never_the_stacks() -> None:
    driver = Driver(trial([DATA, ACKED]))
    driver.session.trial.stack.timers.clear()
    with pytest.raises(KeyError):
        driver.play()


def test_a_segment_before_any_syn_that_nothing_expects() -> None:
    driver = run([{"send": {"flags": "A", "ack": 5}}, {"silence": "now"}], [], connections={"c1": {"isn": 0}})
    assert failure(driver) == "the stack sent R seq=5, which nothing expects"


@pytest.mark.parametrize("read", [True, False])
@pytest.mark.parametrize("linger", [0, 5, None])
def test_a_close_that_aborts_sends_nothing_once_both_fins_are_out(linger: int | None, read: bool) -> None:
    close = [{"call": {"do": "shutdown", "how": "wr"}}, CLOSE[1], {"send": {"flags": "FA", "ack": "SND.UNA"}}, ACKED]
    option = {"do": "setsockopt", "option": "SO_LINGER", "value": {"onoff": linger is not None, "linger": linger or 0}}
    steps = [*close, {"call": option}, {"call": "close"}, {"state": "CLOSED"}]
    stack = ModelStack(replies={"close": {"returned": 0}})
    driver = run(steps, stack=stack, state=lambda n, s: "CLOSED" if read else None, liveness="port")
    if read:
        assert passes(driver).verdict.findings == (
            () if linger == 0 else ("steps[6]: the stack says CLOSED, the wire implies CLOSING",)
        )
    elif linger == 0:
        passes(driver)
    else:
        assert failure(driver) == "the wire implies CLOSING, want CLOSED"


@pytest.mark.parametrize(("seconds", "possible"), [("100ms", False), ("1500ms", True)])
@pytest.mark.parametrize("read", [True, False])
def test_time_alone_ends_a_connection_without_a_segment(seconds: str, possible: bool, read: bool) -> None:
    for before, state in (
        (ACTIVE_CLOSE, "TIME-WAIT"),
        ([*CLOSE, {"send": {"flags": "A", "ack": "fin.end"}}], "FIN-WAIT-2"),
    ):
        steps = [step for step in before if "state" not in step] + [{"silence": seconds}, {"state": "CLOSED"}]
        driver = run(steps, state=lambda n, s: "CLOSED" if read else None, liveness="port")
        if read:
            assert bool(passes(driver).verdict.findings) is not possible
        elif possible:
            passes(driver)
        else:
            assert failure(driver) == f"the wire implies {state}, want CLOSED"
    # What waits for nothing does not end by itself.
    driver = run([DATA, ACKED, {"silence": seconds}, {"state": "CLOSED"}], state=lambda n, s: None)
    assert failure(driver) == "the wire implies ESTABLISHED, want CLOSED"
    # What was never acknowledged may have been given up.
    steps = [SEND, {"expect": {"length": 10}}, {"silence": seconds}, {"state": "CLOSED"}]
    driver = run(steps, state=lambda n, s: None, liveness="port")
    assert driver.verdict.outcome == ("pass" if possible else "fail")


@pytest.mark.parametrize(("since", "outcome"), [(0.25, "fail"), (0.2, "inconclusive")])
def test_what_certainly_came_too_late_fails_though_nobody_ticked(since: float, outcome: str) -> None:
    steps = [DATA, {"expect": {"flags": "A", "within": "200ms"}}]
    session, (arrived,) = held_back(steps, lambda event: isinstance(event, ev.Arrived) and event.packet.flags == ACK)  # type: ignore[union-attr]
    assert isinstance(arrived, ev.Arrived)
    session.receive(ev.Arrived(arrived.packet, since), 0.3)
    assert session.verdict is not None
    assert session.verdict.outcome == outcome
    if session.verdict.failure is not None:
        said = session.verdict.failure.summary
        assert said == "it came too late: 300.0 ms after the event before, want within 200.0 ms"


def test_a_connection_without_a_record_of_its_own_is_closed_beside_its_listener() -> None:
    driver = run([{"state": "CLOSED"}, {"probe": "alive"}], LISTEN_STEPS, state=lambda n, s: None)
    assert passes(driver).verdict.unverified == ("steps[0]: state CLOSED",)


def test_a_connection_whose_port_is_not_known_is_not_read() -> None:
    recipe = [{"call": {"do": "socket", "as": "c1"}}]
    stack = ModelStack(replies={"connect": {"returned": 0}})
    driver = run([{"call": {"do": "connect", "on": "c1"}}, {"state": "CLOSED"}], recipe, stack, liveness="port")
    passes(driver)
    assert not [entry for entry in driver.session.transcript.entries if entry.get("a") == "read-state"]


@pytest.mark.parametrize(("last", "outcome"), [(9.0, "pass"), (9.5, "fail")])
def test_gaps_of_an_outer_repetition_outlast_the_inner(last: float, outcome: str) -> None:
    inner = {"repeat": REPEAT | {"times": 2, "gap": {"is": "1s"}}}
    outer = {"repeat": {"times": 3, "steps": [inner], "gap": {"is": "previous"}}}
    steps = [SEND, {"expect": {"length": 10, "as": "first"}}, outer]
    driver = run(steps, stack=ModelStack(twist=backing_off(1.0, 2.0, 5.0, 6.0, last, last + 1)))
    assert driver.verdict.outcome == outcome


@pytest.mark.parametrize(("seconds", "least"), [(0.0, 0.0), (0.2, 0.2)])
def test_the_round_trip_that_the_stack_is_to_measure(seconds: float, least: float) -> None:
    driver = Driver(trial([DATA, ACKED], stack=profile(round_trip=seconds))).play()
    assert driver.verdict.outcome == "pass", driver.verdict
    entries = driver.session.transcript.entries
    syn = next(e["t"] for e in entries if e.get("e") == "arrived" and e["packet"]["flags"] == "SA")
    acks = [e["t"] for e in entries if e.get("a") == "inject" and "A" in e["packet"]["flags"]]
    assert least <= acks[0] - syn < least + 0.1
    assert acks[1] - acks[0] < 0.1  # what comes behind the handshake does not wait
