"""Main's side of a run without a worker: who gets a dead one's trials, what a full disk, a signal and a silence do."""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_stack import trial

from conform.run import events, pool, wire
from conform.run.expectations import Expectations
from conform.run.plan import Plan
from conform.run.pool import Pool
from conform.run.runfile import Reader, Writer, dumps
from conform.run.worker import Settings

HEADER = {"kind": "header", "format": 1}


class Warden:
    """One that lives until it is told otherwise."""

    def __init__(self) -> None:
        self._end, self.other = socket.socketpair()
        self.pid = 1 << 22  # nobody's

    def fileno(self) -> int:
        return self._end.fileno()

    def gone(self, timeout: float = 0.0) -> bool:
        return self.other.fileno() < 0

    def close(self) -> None:
        self._end.close()
        self.other.close()


class Made:
    """A pool for *many* trials, and what it told."""

    def __init__(self, place: Path, many: int, **options: Any) -> None:
        self.warden = Warden()
        self.told: list[events.Event] = []
        self.path = place / "run.jsonl"
        writer = Writer(self.path)
        writer.write(dumps(HEADER))
        self.writer = writer
        reason = options.pop("not_applicable", None)
        base = trial([{"call": "close"}])
        trials = [replace(base, id=f"unit/{number}.v4", not_applicable=reason) for number in range(many)]
        self.pool = Pool(
            Plan(trials),
            Settings(link="tun", directory=place),
            Expectations(()),
            writer,
            self.warden,  # type: ignore[arg-type]
            lambda *_: None,  # type: ignore[arg-type]
            options.pop("report", self.told.append),
            jobs=1,
            **options,
        )

    def member(self) -> tuple[pool._Member, wire.Channel]:
        """A worker of the pool's, which is the test; and its end of the channel."""
        ours, theirs = socket.socketpair()
        member = pool._Member(_child(), wire.Channel(ours))
        self.pool._members[ours.fileno()] = member
        self.pool._selector.register(ours, 1)
        return member, wire.Channel(theirs)

    def notices(self) -> list[str]:
        return [event.text for event in self.told if isinstance(event, events.Notice)]

    def results(self) -> dict[str, str]:
        return {line["id"]: line["result"] for line in Reader(self.path).trials()}


def _child() -> int:
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        signal.pause()
        os._exit(0)
    return pid


def _started(made: Made) -> None:
    made.pool._queue.extend(range(len(made.pool._plan)))
    made.pool._begin = lambda: None  # type: ignore[method-assign]


def test_a_dead_worker_costs_only_what_it_had_begun(tmp_path: Path) -> None:
    made = Made(tmp_path, 6)
    _started(made)
    member, worker = made.member()
    wake = socket.socket()
    worker.send(wire.ROOM, 4)
    made.pool._turn(wake)
    made.pool._turn(wake)
    assert member.given == {0, 1, 2, 3}
    worker.send(wire.BEGUN, 0)
    worker.send(wire.BEGUN, 1)
    worker.close()
    os.kill(member.pid, signal.SIGKILL)
    while made.pool._members:
        made.pool._turn(wake)
    assert made.results() == {"unit/0.v4": "error", "unit/1.v4": "error"}
    assert list(made.pool._queue) == [2, 3, 4, 5]
    assert made.notices() == ["a worker died: killed by SIGKILL"]


def test_a_worker_that_says_nothing_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_SILENCE", 0.4)
    made = Made(tmp_path, 2)
    _started(made)
    member, worker = made.member()
    wake = socket.socket()
    worker.send(wire.ROOM, 1)
    worker.send(wire.BEGUN, 0)
    deadline = time.monotonic() + 10
    while made.pool._members:
        made.pool._turn(wake)
        assert time.monotonic() < deadline
    with pytest.raises(ProcessLookupError):
        os.kill(member.pid, 0)
    assert made.notices() == ["a worker died: it said nothing for 0.4 s"]


def test_where_main_itself_was_stopped_nobodys_silence_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_SILENCE", 0.5)
    monkeypatch.setattr(pool, "_ABSENCE", 0.4)
    made = Made(tmp_path, 2)
    _started(made)
    member, worker = made.member()
    wake = socket.socket()
    worker.send(wire.PROGRESS, 0, b"\0\0\0\0")
    made.pool._turn(wake)
    time.sleep(0.7)  # as SIGSTOP does, to main and its workers
    made.pool._turn(wake)
    assert made.pool._members
    os.kill(member.pid, signal.SIGKILL)
    os.waitpid(member.pid, 0)


def test_a_full_disk_ends_the_run_and_cuts_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(tmp_path, 9, not_applicable="of no account")
    real = os.write

    def full(fd: int, data: Any) -> int:
        if fd != made.writer._fd:
            return real(fd, data)
        left = 8000 - made.path.stat().st_size
        if left <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, bytes(data[:left]))

    monkeypatch.setattr(os, "write", full)
    outcome = made.pool.run()
    assert outcome.exit == 3
    assert 0 < len(made.results()) < 9
    assert len(made.results()) + len(outcome.unfinished) == 9
    reader = Reader(made.path)
    assert len(list(reader.trials())) == len(made.results())
    assert not reader.cut
    assert made.notices() == [f"{made.path}: No space left on device; the run is given up"]
    assert isinstance(made.told[-1], events.RunEnded), "what there is is reported"


def test_a_warden_that_is_gone_ends_the_run(tmp_path: Path) -> None:
    made = Made(tmp_path, 2)
    _started(made)
    _, worker = made.member()
    made.warden.other.shutdown(socket.SHUT_RDWR)
    made.pool._selector.register(made.warden, 1)
    wake = socket.socket()
    made.pool._turn(wake)
    assert made.pool._over()
    made.pool._end_members()
    outcome = made.pool._conclude()
    assert (outcome.exit, made.results()) == (3, {})
    assert len(made.notices()) == 1
    assert "the warden" in made.notices()[0]
    worker.close()


def test_one_workers_last_words_do_not_keep_another_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(tmp_path, 2)
    _started(made)
    one, first = made.member()
    two, second = made.member()
    first.send(wire.FINISHED, 0, b"?")  # nothing that can be unpacked
    with pytest.raises(Exception, match="unpack"):
        made.pool._end_members()
    for member in (one, two):
        with pytest.raises(ProcessLookupError):
            os.kill(member.pid, 0)
    first.close()
    second.close()


def test_a_signal_does_not_end_the_reports(tmp_path: Path) -> None:
    told: list[str] = []

    def report(event: events.Event) -> None:
        if isinstance(event, events.RunEnded):
            os.kill(os.getpid(), signal.SIGTERM)
            told.append("the reports are written")

    before = signal.getsignal(signal.SIGTERM)
    outcome = Made(tmp_path, 1, not_applicable="of no account", report=report).pool.run()
    assert told == ["the reports are written"]
    assert outcome.exit == 5
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_entry_that_is_out_of_date_is_unexpected(tmp_path: Path) -> None:
    made = Made(tmp_path, 1, not_applicable="of no account", stale=["linux.yaml:3:1: no trial matches x"])
    assert made.pool.run().exit == 1
    assert made.notices() == ["linux.yaml:3:1: no trial matches x"]
