"""Trials in a worker's own loop, on a rig that is a model of a stack: settling by time, what was lost, what there is no
way to set up, and what of all that the judge derives again."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_stack import ModelStack, Twist, also, drop, profile, shifted, trial

from conform.engine.replay import judge
from conform.engine.trial import Trial
from conform.engine.verdict import Verdict
from conform.link import codec
from conform.run import wire
from conform.run.expectations import Expectations
from conform.run.plan import Plan
from conform.run.rig import Ears
from conform.run.warden import WardenGoneError
from conform.run.worker import Settings, Worker
from conform.stacks.description import SettingError
from conform.tcp.segment import ACK, Segment

CLOSE: list[Any] = [{"call": "close"}, {"expect": {"flags": "FA", "seq": "SND.NXT", "ack": "RCV.NXT"}}]


class Rig:
    """A model of a stack, with no link between. *losses* are packets lost once the model has sent so many segments."""

    def __init__(
        self, adapter: Adapter, trial: Trial, ears: Ears, twist: Twist | None, losses: dict[int, int], fault: Any
    ) -> None:
        self.trial = trial
        self.adapter = adapter
        self.ears = ears
        self.stack = ModelStack(trial.ip, twist=twist)
        self.losses = losses
        self.fault = fault

    def open(self) -> None:
        if self.fault is not None:
            raise self.fault
        self.ears.ready()

    def uses(self, ports: Iterable[int]) -> None:
        pass

    def send(self, data: bytes) -> None:
        segment = codec.parse(data)
        assert isinstance(segment, Segment)
        self.stack.receive(segment)
        self._flush()

    def request(self, id: int, request: dict[str, Any]) -> None:
        reply = self.stack.call(request)
        assert reply is not None
        self.adapter.later(0.0, lambda: self.ears.replied(id, reply))
        self._flush()

    def read_state(self, id: int, stack_port: int, tester_port: int) -> None:
        state = self.stack.state(stack_port, tester_port)
        self.adapter.later(0.0, lambda: self.ears.state_read(id, state, {}))

    def lost(self) -> int:
        return sum(packets for number, packets in self.losses.items() if self.stack.count >= number)

    def cleanups(self) -> list[Any]:
        return []

    def _flush(self) -> None:
        out, self.stack.out = self.stack.out, []
        for delay, segment in out:
            data, since = codec.build(segment), time.monotonic()
            self.adapter.later(delay, lambda data=data, since=since: self.ears.arrived(data, since))  # type: ignore[misc]


class Adapter:
    def __init__(self, loop: Any, **options: Any) -> None:
        self.loop = loop
        self.options: dict[str, Any] = {"twist": None, "losses": {}, "fault": None} | options

    def later(self, delay: float, call: Callable[[], None]) -> None:
        self.loop.call_at(time.monotonic() + delay, call)

    def room(self) -> bool:
        return True

    def rig(self, trial: Trial, ears: Ears) -> Rig:
        return Rig(self, trial, ears, **self.options)

    def children(self) -> set[int]:
        return set()

    def close(self) -> None:
        pass


def played(tmp_path: Path, steps: list[Any], **options: Any) -> tuple[dict[str, Any] | None, list[bytes]]:
    """The line of a trial of *steps*, played by a worker, and what kinds of frames main got of it."""
    ours, theirs = socket.socketpair()
    main = wire.Channel(ours)
    ward = SimpleNamespace(hold=lambda fd: 1, release=lambda n: None, flush=lambda: None, close=lambda: None)
    settle = options.pop("settle", 0.02)
    worker = Worker(
        wire.Channel(theirs),
        ward,  # type: ignore[arg-type]
        Plan([trial(steps, stack=profile(settle=settle))]),
        Settings(link="tun", directory=tmp_path, pcap="none"),
        Expectations(()),
        lambda loop, ward, settings, _: Adapter(loop, **options),
    )
    main.send(wire.RUN, 0)
    kinds: list[bytes] = []

    def heard() -> None:
        for kind, _, payload in main.receive():
            kinds.append(kind)
            if kind == wire.FINISHED:
                lines.append(json.loads(wire.unpack_summary(payload)[3]))
                main.send(wire.QUIT, 0)

    lines: list[dict[str, Any]] = []
    worker.loop.add_reader(main.fileno(), heard)
    worker.loop.call_at(time.monotonic() + 20, lambda: main.send(wire.QUIT, 0))
    worker.run()
    heard()
    worker.loop.remove_reader(main.fileno())
    worker.loop.close()
    main.close()
    worker.channel.close()
    return (lines[0] if lines else None), kinds


def _settlings(line: dict[str, Any]) -> list[float]:
    begun: dict[int, float] = {e["id"]: e["t"] for e in line["transcript"] if e.get("a") == "settle"}
    return [e["t"] - begun[e["id"]] for e in line["transcript"] if e.get("e") == "settled"]


def _judged(line: dict[str, Any]) -> Verdict:
    verdict = judge(line)
    assert verdict == Verdict.from_json(line["verdict"])
    return verdict


def test_a_settling_by_time_lasts_that_long(tmp_path: Path) -> None:
    line, kinds = played(tmp_path, CLOSE, settle=0.05)
    assert line is not None
    assert line["result"] == "pass", line["verdict"]
    assert _settlings(line)
    assert all(0.05 <= lasted < 0.5 for lasted in _settlings(line))
    assert kinds.index(wire.BEGUN) < kinds.index(wire.FINISHED)
    _judged(line)


def test_what_comes_within_a_settling_by_time_is_of_the_step_before(tmp_path: Path) -> None:
    twist = also(1, (0.03, {"flags": ACK, "seq": shifted("seq", 1)}))
    line, _ = played(tmp_path, [*CLOSE, {"silence": "now"}], settle=0.2, twist=twist)
    assert line is not None
    assert line["result"] == "fail", line["verdict"]
    assert line["verdict"]["failure"]["step"] == "steps[2]"
    _judged(line)


def test_a_failure_is_none_where_conform_itself_lost_packets(tmp_path: Path) -> None:
    line, _ = played(tmp_path, CLOSE, twist=drop(1))
    assert line is not None
    assert line["result"] == "fail"
    line, _ = played(tmp_path, CLOSE, twist=drop(1), losses={2: 3})
    assert line is not None
    assert line["result"] == "inconclusive"
    assert line["verdict"]["late"], "it is run again"
    assert len(line["earlier"]) == 2
    assert "no room for 3 of the link's packets" in line["verdict"]["reason"]
    _judged(line)


def test_what_was_lost_before_the_trial_is_not_its_own(tmp_path: Path) -> None:
    line, _ = played(tmp_path, CLOSE, losses={0: 7})
    assert line is not None
    assert line["result"] == "pass"


@pytest.mark.parametrize(
    ("fault", "result", "words"),
    [
        (SettingError("this kernel has no sysctl net.x"), "not-applicable", "this kernel has no sysctl net.x"),
        (OSError(22, "Invalid argument: sysctl net.x = 7"), "error", "set up: Invalid argument: sysctl net.x = 7"),
    ],
)
def test_what_cannot_be_set_up_is_told_in_a_line(tmp_path: Path, fault: Exception, result: str, words: str) -> None:
    line, _ = played(tmp_path, CLOSE, fault=fault)
    assert line is not None
    assert (line["result"], line["expected"]) == (result, result == "not-applicable")
    assert line["verdict"]["reason"].endswith(words)
    assert "\n" not in line["verdict"]["reason"]
    _judged(line)


def test_without_a_warden_a_worker_ends_and_says_nothing_of_its_trials(tmp_path: Path) -> None:
    line, kinds = played(tmp_path, CLOSE, fault=WardenGoneError())
    assert line is None
    assert wire.FAILED not in kinds
