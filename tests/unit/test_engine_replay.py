"""A trial judged again from its line: the same verdict, or the news that the line was altered."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from fake_stack import Driver, ModelStack, also, alter, delay, drop, run, shifted
from hypothesis import given, settings
from hypothesis import strategies as s

from conform.engine import events as ev
from conform.engine.replay import Altered, judge, trial_of
from conform.engine.transcript import event_of, rounded
from conform.engine.verdict import Failure, Verdict
from conform.tcp.segment import ACK, PSH, IPFields, Segment

CLOSE: list[Any] = [
    {"call": "close"},
    {"expect": {"flags": "FA", "seq": "SND.NXT", "ack": "RCV.NXT", "as": "fin", "within": "200ms"}, "@": [3, 5]},
    {"state": "FIN-WAIT-1"},
    {"one_of": [{"name": "a", "steps": [{"silence": "now"}]}, {"name": "b", "steps": [{"expect": {"flags": "R"}}]}]},
    {"send": {"flags": "FA", "ack": "fin.end", "payload": "abc", "options": {"nop": 2, "mss": 5}}},
    {"expect": {"flags": "A", "ack": "RCV.NXT"}},
]


def trials() -> dict[str, Driver]:
    """A trial of each outcome."""
    blocked: list[Any] = [{"start": {"do": "recv", "as": "r", "returns": 4}}, {"blocked": "r"}, *CLOSE]
    return {
        "pass": run(CLOSE),
        "fail": run(CLOSE, stack=ModelStack(twist=alter(2, ack=shifted("ack", 1)))),
        "fail for silence": run(CLOSE, stack=ModelStack(twist=drop(2))),
        "fail for time": run(CLOSE, stack=ModelStack(twist=delay(1, 0.5))),
        "fail for a call": run(blocked),
        "inconclusive": run(CLOSE, stack=ModelStack(twist=alter(0, ack=shifted("ack", 1)))),
        "late": run(
            [CLOSE[0], {"expect": {"flags": "FA", "after": "90ms"}}],
            stack=ModelStack(twist=delay(1, 0.1)),
            lag={1: 0.05},
        ),
        "unverified": run(CLOSE, state=lambda n, state: None),
        "findings": run([*CLOSE, {"state": "FIN-WAIT-1"}], state=lambda n, state: "FIN-WAIT-1", liveness="port"),
        "error": run([{"silence": "1s"}, *CLOSE], at=[(0.5, ev.Broke("the link is gone"))]),
        "lost": run([{"silence": "1s"}, *CLOSE], at=[(0.5, ev.Lost(2))]),
        "fail for death": run(
            [{"silence": "1s"}, *CLOSE], at=[(0.5, ev.Died("the stack died: killed by SIGSEGV\nIt printed"))]
        ),
        "noise": run(CLOSE, stack=ModelStack(twist=also(1, (0.0, {})))),
        "v6": run(CLOSE, stack=ModelStack(6), ip=6),
        "icmp": run(
            [*CLOSE[:2], {"send": {"icmp": {"type": "host-unreachable", "quotes": "fin"}}}, {"silence": "now"}]
        ),
    }


TRIALS = trials()


@pytest.mark.parametrize("name", TRIALS)
def test_the_verdict_from_the_line_is_that_of_the_trial(name: str) -> None:
    driver = TRIALS[name]
    outcome = {"late": "inconclusive", "lost": "inconclusive"}.get(name, name.split()[0])
    assert driver.verdict.outcome == (outcome if outcome in ("fail", "inconclusive", "error") else "pass")
    assert judge(driver.line()) == driver.verdict


def test_the_stored_verdict_has_no_say() -> None:
    line = TRIALS["fail"].line() | {"verdict": TRIALS["pass"].verdict.to_json()}
    assert judge(line) == TRIALS["fail"].verdict


def changed(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """*entry*, each of its values changed in turn."""
    out = []
    for key, value in entry.items():
        other = copy.deepcopy(entry)
        if isinstance(value, bool) or value is None:
            continue
        if isinstance(value, (int, float)):
            other[key] = value + 1
        elif isinstance(value, str):
            other[key] = value + "x"
        elif isinstance(value, list):
            other[key] = [*value, "x"]
        else:
            for inner in changed(value):
                out.append(entry | {key: inner})
            continue
        out.append(other)
    return out


@pytest.mark.parametrize("name", ["pass", "fail", "fail for a call", "unverified", "noise"])
def test_what_follows_from_the_inputs_cannot_be_altered(name: str) -> None:
    line = TRIALS[name].line()
    for index, entry in enumerate(line["transcript"]):
        if "e" in entry:
            continue
        for other in changed(entry):
            altered = line | {"transcript": list(line["transcript"])}
            altered["transcript"][index] = other
            with pytest.raises(
                Altered, match=r"its transcript (is not what its own inputs give|ends before its verdict)"
            ):
                judge(altered)


@pytest.mark.parametrize("name", ["pass", "fail", "late"])
def test_no_entry_can_be_left_out_or_doubled(name: str) -> None:
    line = TRIALS[name].line()
    for index, entry in enumerate(line["transcript"]):
        for instead in ([], [entry, entry]):
            altered = line | {"transcript": list(line["transcript"])}
            altered["transcript"][index : index + 1] = instead
            with pytest.raises(Altered):
                judge(altered)


def test_no_two_entries_can_change_places() -> None:
    line = TRIALS["pass"].line()
    for index in range(len(line["transcript"]) - 1):
        altered = line | {"transcript": list(line["transcript"])}
        entries = altered["transcript"]
        entries[index], entries[index + 1] = entries[index + 1], entries[index]
        with pytest.raises(Altered):
            judge(altered)


def test_an_input_that_was_altered_is_noticed_or_judged_as_it_is() -> None:
    """Nobody signs a line: an input that could have been is an input. What it leads to is what it is judged by."""
    line = TRIALS["pass"].line()
    noticed = 0
    for index, entry in enumerate(line["transcript"]):
        for other in changed(entry) if "e" in entry else []:
            altered = line | {"transcript": list(line["transcript"])}
            altered["transcript"][index] = other
            try:
                judge(altered)
            except Altered:
                noticed += 1
    assert noticed > 50


@pytest.mark.parametrize(
    ("key", "value"),
    [("seed", 2), ("document", None), ("levels", {"some-rule": "may"}), ("stack", None)],
)
def test_what_the_trial_was_cannot_be_altered(key: str, value: Any) -> None:
    line = TRIALS["fail"].line()
    if key == "document":
        line[key]["steps"][1]["expect"]["seq"] = "SND.NXT + 1"
    elif key == "stack":
        line[key]["port"] = 81
    else:
        line[key] = value
    if key == "levels":
        assert judge(line).level == "may"
    else:
        with pytest.raises(Altered):
            judge(line)


@pytest.mark.parametrize(
    "entry",
    [
        {"t": 0, "e": "unheard-of"},
        {"t": 0, "e": "settled"},
        {"t": 0, "e": "arrived", "since": 0, "packet": {"flags": "Q"}},
        {"t": 0, "e": "returned", "id": 1, "reply": 5},
        {"t": None, "e": "ticked"},
        {"t": 0, "e": "arrived", "since": "x", "packet": {}},
    ],
)
def test_what_is_no_entry(entry: dict[str, Any]) -> None:
    line = TRIALS["pass"].line()
    line["transcript"].insert(2, entry)
    with pytest.raises(Altered):
        judge(line)


def test_a_transcript_that_is_cut_short() -> None:
    line = TRIALS["pass"].line()
    del line["transcript"][-3:]
    with pytest.raises(Altered, match="its transcript ends before its verdict"):
        judge(line)


@pytest.mark.parametrize(
    ("outcome", "kept"), [("not-applicable", True), ("error", True), ("pass", False), ("fail", False)]
)
def test_a_trial_that_never_ran(outcome: Any, kept: bool) -> None:
    stored = Verdict(outcome, reason="the stack lacks fork")
    line = TRIALS["pass"].line() | {"transcript": [], "verdict": stored.to_json()}
    if kept:
        assert judge(line) == stored
    else:
        with pytest.raises(Altered, match=f"a verdict of {outcome} without a transcript"):
            judge(line)


def test_a_line_that_is_none() -> None:
    line = TRIALS["pass"].line()
    del line["stack"]
    with pytest.raises(KeyError):
        judge(line)


def test_the_trial_of_a_line() -> None:
    driver = TRIALS["pass"]
    assert trial_of(driver.line()) == driver.trial


@pytest.mark.parametrize("failure", [None, Failure("end", None, "x"), Failure("end", (1, 2), "x", "y", "z", ("w",), 5)])
def test_the_verdict_round_trip(failure: Failure | None) -> None:
    verdict = Verdict("fail", "may", ("a", "b"), failure, "why", ("f",), ("u",), True)
    assert Verdict.from_json(json.loads(json.dumps(verdict.to_json()))) == verdict


def test_every_event_is_read_back() -> None:
    kinds = {type(event_of(entry)) for d in TRIALS.values() for entry in d.line()["transcript"] if "e" in entry}
    assert kinds == set(ev.Event.__args__)  # type: ignore[attr-defined]


def test_times_are_kept_to_the_microsecond() -> None:
    packet = Segment(IPFields(4, "a", "b"), 1, 2)
    assert rounded(ev.Arrived(packet, 0.12345678)) == ev.Arrived(packet, 0.123457)
    assert rounded(ev.Injected(1, 0.12345678, 1 / 3)) == ev.Injected(1, 0.123457, 0.333333)
    assert rounded(ev.Ticked()) == ev.Ticked()


FLAGS = s.sampled_from([ACK, ACK | PSH, 0, 2, 18, 17, 4, 20, 255])
DEVIATIONS = s.tuples(
    s.integers(0, 4),
    s.fixed_dictionaries(
        {},
        optional={
            "flags": FLAGS,
            "seq": s.integers(-3, 3).map(lambda n: shifted("seq", n)),
            "ack": s.integers(-3, 3).map(lambda n: shifted("ack", n)),
            "payload": s.sampled_from([b"", b"x", b"abcdefghij"]),
            "window": s.integers(0, 65535),
        },
    ),
    s.floats(0, 1.5),
)


@settings(max_examples=80, deadline=None)
@given(DEVIATIONS, s.floats(0, 0.4), s.integers(0, 5))
def test_whatever_a_stack_does_there_is_a_verdict_and_it_is_found_again(
    deviation: tuple[int, dict[str, Any], float], lag: float, lagging: int
) -> None:
    number, changes, seconds = deviation

    def twist(n: int, segment: Segment) -> list[tuple[float, Segment]]:
        return [(seconds, alter(n, **changes)(n, segment)[0][1])] if n == number else [(0.0, segment)]

    steps = [*CLOSE, {"silence": "1s"}, {"optional": [{"expect": {"flags": "A", "within": "1s"}}]}, {"probe": "alive"}]
    driver = run(steps, stack=ModelStack(twist=twist), lag={lagging: lag})
    assert judge(driver.line()) == driver.verdict
