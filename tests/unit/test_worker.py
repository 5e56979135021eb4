"""What needs no link of a worker: attempts and their results, captions of packets, and its talk with main."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conform.case.model import Case
from conform.engine.trial import StackProfile, Trial
from conform.engine.verdict import Failure, Verdict
from conform.run import wire
from conform.run.expectations import Deviation, Expectations
from conform.run.plan import Plan
from conform.run.worker import Job, Settings, Worker, comments

CASE = Case.model_validate(
    {"title": "A case for the worker", "covers": ["X"], "steps": [{"state": {"is": ["CLOSED"]}}]}
)
PROFILE = StackProfile("toy", frozenset(), {}, 0.1, "fence", {4: ("192.0.2.1", "192.0.2.2")})
TRIAL = Trial("a/b.v4", "a/b", "cases/a/b.yaml", 4, "", {"covers": ["X"]}, CASE, {"X": "must"}, PROFILE, 0)

PASS = Verdict("pass")
LATE = Verdict("inconclusive", reason="late", late=True)
FAIL = Verdict("fail", "must", ("X",), Failure("steps[0]", None, "it went wrong"))


class _Pair:
    """A worker without a link, and main's end of its channel."""

    def __init__(self, tmp_path: Path, **settings: Any) -> None:
        ours, theirs = socket.socketpair()
        self.main = wire.Channel(ours)
        ward = SimpleNamespace(hold=lambda fd: 1, release=lambda n: None, flush=lambda: None, close=lambda: None)
        adapter = SimpleNamespace(children=set, close=lambda: None, room=lambda: True)
        entries = settings.pop("deviations", ())
        self.worker = Worker(
            wire.Channel(theirs),
            ward,  # type: ignore[arg-type]
            Plan([TRIAL]),
            Settings(link="tun", directory=tmp_path, **settings),
            Expectations(entries),
            lambda loop, ward, settings, _: adapter,  # type: ignore[arg-type,return-value]
        )

    def run(self, *verdicts: Verdict) -> list[dict[str, Any]]:
        """Have the trial end in each of *verdicts* in turn; the lines that main got."""
        self.worker._jobs.append(Job(0))
        for verdict in verdicts:
            job = self.worker._jobs.popleft()
            host = SimpleNamespace(
                job=job, trial=TRIAL, busy=True, begun=0.0, records=None, close=lambda: None,
                outcome=lambda verdict=verdict: (verdict, [{"t": 0.0, "n": "step"}]),
            )  # fmt: skip
            self.worker._live[0] = host  # type: ignore[assignment]
            self.worker.busy += 1
            self.worker._finish(host)  # type: ignore[arg-type]
        frames = list(self.main.receive())
        return [json.loads(wire.unpack_summary(payload)[3]) for kind, _, payload in frames if kind == wire.FINISHED]

    def close(self) -> None:
        self.main.close()
        self.worker.channel.close()
        self.worker.loop.close()


@pytest.fixture
def pairs(tmp_path: Path) -> Iterator[Any]:
    made: list[_Pair] = []

    def make(**settings: Any) -> _Pair:
        made.append(_Pair(tmp_path, **settings))
        return made[-1]

    yield make
    for pair in made:
        pair.close()


def test_a_pass_is_one_line(pairs: Any) -> None:
    pair = pairs()
    (line,) = pair.run(PASS)
    assert (line["result"], line["expected"], line["attempt"]) == ("pass", True, 1)
    assert "earlier" not in line
    assert pair.worker.busy == 0


def test_late_is_run_again_twice_and_is_no_flaw(pairs: Any) -> None:
    (line,) = pairs().run(LATE, LATE, PASS)
    assert (line["result"], line["expected"], line["attempt"]) == ("pass", True, 3)
    assert [each["verdict"]["late"] for each in line["earlier"]] == [True, True]


def test_late_for_the_third_time_is_inconclusive(pairs: Any) -> None:
    (line,) = pairs().run(LATE, LATE, LATE)
    assert (line["result"], line["expected"], line["attempt"]) == ("inconclusive", False, 3)


def test_without_retry_a_failure_is_final(pairs: Any) -> None:
    (line,) = pairs().run(FAIL)
    assert (line["result"], line["attempt"]) == ("fail", 1)


def test_what_passes_on_retry_is_flaky_and_no_pass(pairs: Any) -> None:
    (line,) = pairs(retry=2).run(FAIL, LATE, PASS)
    assert (line["result"], line["expected"], line["attempt"]) == ("flaky", False, 3)
    assert [each["verdict"]["outcome"] for each in line["earlier"]] == ["fail", "inconclusive"]
    assert all(each["transcript"] for each in line["earlier"])


def test_what_fails_on_each_retry_is_a_failure(pairs: Any) -> None:
    (line,) = pairs(retry=1).run(FAIL, FAIL)
    assert (line["result"], line["attempt"]) == ("fail", 2)


def test_a_known_deviation_is_not_tried_again(pairs: Any) -> None:
    entry = Deviation(("a/*",), "r", "RFC", "p", "went wrong", Path("x.yaml"), 1)
    (line,) = pairs(retry=3, deviations=(entry,)).run(FAIL)
    assert (line["result"], line["expected"], line["attempt"]) == ("expected-failure", True, 1)
    (line,) = pairs(retry=3, deviations=(entry,)).run(PASS)
    assert (line["result"], line["attempt"]) == ("unexpected-pass", 1)


def test_a_known_deviation_does_not_hide_what_was_refused_before_it(pairs: Any) -> None:
    entry = Deviation(("a/*",), "r", "RFC", "p", "went wrong", Path("x.yaml"), 1)
    other = Verdict("fail", "must", ("X",), Failure("steps[0]", None, "something else"))
    for before in (other, Verdict("error", reason="conform failed")):
        (line,) = pairs(retry=3, deviations=(entry,)).run(before, FAIL)
        assert (line["result"], line["expected"], line["attempt"]) == ("flaky", False, 2)


def test_a_tolerated_failure_does_not_hide_a_graver_one(pairs: Any) -> None:
    mild = Verdict("fail", "may", ("X",), Failure("steps[0]", None, "it went wrong"))
    (line,) = pairs(retry=3, gate="must").run(FAIL, mild)
    assert (line["result"], line["expected"], line["attempt"]) == ("fail", False, 2)


def test_each_packet_has_its_step(tmp_path: Path) -> None:
    transcript = [
        {"t": 0.0, "n": "step", "step": "steps[0]"},
        {"t": 0.0, "a": "inject", "id": 4, "step": "steps[0]"},
        {"t": 0.1, "e": "arrived"},
        {"t": 0.1, "n": "step", "step": "steps[1]"},
        {"t": 0.1, "n": "noise", "of": 2, "name": "window-update"},
        {"t": 0.2, "e": "arrived"},
        {"t": 0.2, "n": "matched", "of": 5, "step": "steps[1]"},
        {"t": 0.3, "e": "arrived"},
        {"t": 0.3, "n": "failed", "of": 7, "step": "steps[2]"},
        {"t": 0.4, "e": "arrived"},
    ]
    kinds = [("injected", 4), ("arrived", 0), ("arrived", 1), ("arrived", 2), ("arrived", 3), ("arrived", 4)]
    kinds += [("fence", 0), ("closing", 0), ("other", 0), ("injected", 99)]
    records = [(0.0, b"", kind, reference) for kind, reference in kinds]
    assert comments(records, transcript) == [
        "steps[0]: sent", "steps[0]: noise (window-update)", "steps[1]: as expected", "steps[2]: FAILED",
        "during steps[1]", "after the verdict", "fence: its reply comes behind all immediate answers",
        "conform resets what the trial left open", "not TCP", "?: sent",
    ]  # fmt: skip


def test_frames_survive_whatever_the_socket_makes_of_them() -> None:
    ours, theirs = socket.socketpair()
    near, far = wire.Channel(ours), wire.Channel(theirs)
    payloads = [b"", b"x", b"y" * 3_000_000, wire.summary("flaky", False, 1.5, b"line\n")]
    for number, payload in enumerate(payloads):
        near.send(wire.FINISHED, number, payload)
    assert near.behind, "more than a socket holds is kept"
    got: list[tuple[bytes, int, bytes]] = []
    while len(got) < len(payloads):
        got += far.receive()
        near.flush()
    assert got == [(wire.FINISHED, number, payload) for number, payload in enumerate(payloads)]
    assert wire.unpack_summary(got[3][2]) == ("flaky", False, 1.5, b"line\n")
    assert not near.behind
    near.close()
    assert list(far.receive()) == []
    assert far.ended
    far.send(wire.RUN, 1)  # into the void, and no exception
    far.close()
