"""Main's side of a run: it starts the workers, feeds them, writes the run file and tells the reporters."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import struct
import time
import traceback
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from conform.engine.verdict import Verdict
from conform.link import netns
from conform.run import events, kernel, wire, worker
from conform.run.exits import FIRST, exit_code, signal_name
from conform.run.expectations import Expectations
from conform.run.lines import Attempt, line
from conform.run.plan import Plan
from conform.run.runfile import RunFileError, Writer, dumps
from conform.run.warden import Ward, Warden

_PID = struct.Struct("=I")
_WAITING = struct.Struct("=I")
#: Workers that die one after the other without a single trial finished between: something is wrong that a new one
#: does not mend.
_DEATHS = 3
#: What an orderly end may take before the workers are killed; the warden then does what they did not.
_PATIENCE = 0.3
#: A worker says something five times a second; one that was silent for so long does not come back. At its start it
#: imports what is large, and may take longer.
_SILENCE, _START = 15.0, 60.0
#: Where main itself was not run for so long, nobody's silence means anything.
_ABSENCE = 5.0
#: The warden's sockets close a moment before its end can be seen.
_LAG = 0.1


def now() -> str:
    """The time, as the run file has it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(slots=True)
class _Member:
    """A worker as main knows it."""

    pid: int
    channel: wire.Channel
    given: set[int] = field(default_factory=set)
    begun: set[int] = field(default_factory=set)
    silent_at: float = field(default_factory=lambda: time.monotonic() + _START)
    room: int = 0
    running: int = 0
    waiting: int = 0
    complaint: str = ""


@dataclass(slots=True)
class Outcome:
    """How a run ended. ``stopped`` is why it did before its time; ``reporting`` how the reporter failed, if it did."""

    counts: Counter[str]
    exit: int
    unfinished: tuple[str, ...]
    stopped: str | None = None
    reporting: str = ""


class Pool:
    """One run, from the first worker to the ``end`` line."""

    def __init__(
        self,
        plan: Plan,
        settings: worker.Settings,
        expectations: Expectations,
        writer: Writer,
        warden: Warden,
        adapter: worker.MakeAdapter,
        report: events.Reporter,
        *,
        jobs: int,
        stop_first: bool = False,
        stale: Sequence[str] = (),
    ) -> None:
        """*stale* are what is wrong with the lists of deviations: entries that match no trial."""
        self._plan = plan
        self._settings = settings
        self._expectations = expectations
        self._writer = writer
        self._warden = warden
        self._adapter = adapter
        self._report = report
        self._reporting = ""
        self._jobs = jobs
        self._stop_first = stop_first
        self._stale = stale
        self._selector = selectors.DefaultSelector()
        self._members: dict[int, _Member] = {}
        self._queue: deque[int] = deque()
        self._missing = set(range(len(plan)))
        self._counts: Counter[str] = Counter()
        self._unexpected = 0
        self._stopped: str | None = None
        self._deaths = 0
        self._turned = time.monotonic()
        self._shown = 0.0
        self._started = time.monotonic()

    def run(self) -> Outcome:
        """Run the plan. Signals end it early: what has finished by then is reported."""
        wake, woken = socket.socketpair()
        for end in (wake, woken):
            end.setblocking(False)
        kernel.adopt_orphans()
        before = {}
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup means what it says
                before[number] = signal.signal(number, self._interrupted)
        wakeup = signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
        self._inherited = (wake, woken)
        self._selector.register(wake, selectors.EVENT_READ)
        self._selector.register(self._warden, selectors.EVENT_READ)
        try:
            try:
                self._not_applicable()
                for _ in range(min(self._jobs, len(self._queue))):
                    self._begin()
                while self._members and not self._over():
                    self._turn(wake)
            finally:
                self._end_members()
            return self._conclude()
        finally:  # not before the reports are written: a signal may end the run, and not its reports
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._selector.close()
            wake.close()
            woken.close()

    def _tell(self, event: events.Event) -> None:
        """Tell the reporter, which must not be able to end the run: what it would have said is in the run file."""
        if self._reporting:
            return
        try:
            self._report(event)
        except Exception:
            self._reporting = traceback.format_exc()

    def _over(self) -> bool:
        return self._stopped is not None or not self._missing

    def _give_up(self, why: str) -> None:
        """End the run before its time, for a reason that is no verdict."""
        if self._stopped is None:
            self._stopped = why
            self._tell(events.Notice(f"{why}; the run is given up"))

    def _interrupted(self, number: int, _: object) -> None:
        if self._stopped is None:
            self._stopped = signal.Signals(number).name
        signal.signal(number, signal.SIG_DFL)  # who presses twice means it: the warden still cleans up

    def _turn(self, wake: socket.socket) -> None:
        self._feed()
        ready = [key for key, _ in self._selector.select(0.25)]
        if self._warden in [key.fileobj for key in ready]:
            self._warden_ended()
            return
        for key in ready:
            if key.fileobj is wake:
                with contextlib.suppress(BlockingIOError):
                    wake.recv(64)
                continue
            member = self._members.get(key.fd)
            if member is None:
                continue
            member.silent_at = time.monotonic() + _SILENCE
            for kind, index, payload in member.channel.receive():
                self._heard(member, kind, index, payload)
            if member.channel.ended:
                self._died(member)
        moment = time.monotonic()
        if moment - self._turned > _ABSENCE:
            for member in self._members.values():
                member.silent_at = max(member.silent_at, moment + _SILENCE)
        self._turned = moment
        for member in [each for each in self._members.values() if each.silent_at < moment]:
            member.complaint = f"it said nothing for {_SILENCE:g} s"
            with contextlib.suppress(ProcessLookupError):
                os.kill(member.pid, signal.SIGKILL)
            self._died(member)
        if moment - self._shown > 0.2:
            self._shown = moment
            running = sum(m.running for m in self._members.values())
            waiting = sum(m.waiting for m in self._members.values())
            done = len(self._plan) - len(self._missing)
            self._tell(events.Progress(done, running, waiting, len(self._plan)))

    def _heard(self, member: _Member, kind: bytes, index: int, payload: bytes) -> None:
        if kind == wire.ROOM:
            member.room += index
        elif kind == wire.PROGRESS:
            member.running, (member.waiting,) = index, _WAITING.unpack(payload)
        elif kind == wire.BEGUN:
            member.begun.add(index)
        elif kind == wire.FAILED:
            text = payload.decode("utf-8", "replace").rstrip()
            if index:
                member.complaint = text
            else:
                self._tell(events.Notice(text))
        elif kind == wire.FINISHED and index in self._missing:
            member.given.discard(index)
            member.begun.discard(index)
            self._deaths = 0
            self._finished(index, *wire.unpack_summary(payload))

    def _finished(self, index: int, result: str, expected: bool, duration: float, raw: bytes) -> None:
        if not self._append(raw):
            return
        self._missing.discard(index)
        self._counts[result] += 1
        self._unexpected += not expected
        done = len(self._plan) - len(self._missing)
        self._tell(events.TrialFinished(self._plan.id(index), result, expected, duration, done, len(self._plan), raw))
        if not expected and self._stop_first and self._stopped is None:
            self._stopped = FIRST

    def _append(self, raw: bytes) -> bool:
        """Append a line to the run file. Whether it is there: a disk may be full."""
        try:
            self._writer.write(raw)
        except RunFileError as error:
            self._give_up(str(error))
            return False
        return True

    def _feed(self) -> None:
        """Give out trials, one to each worker in turn, as many as they have room for."""
        hungry = [m for m in self._members.values() if m.room]
        while hungry and self._queue:
            for member in hungry:
                if not self._queue:
                    break
                index = self._queue.popleft()
                member.room -= 1
                member.given.add(index)
                member.channel.send(wire.RUN, index)
            hungry = [m for m in hungry if m.room]
        for member in self._members.values():
            if member.channel.behind:
                member.channel.flush()

    # Trials without a worker -------------------------------------------------------------------------------------
    def _not_applicable(self) -> None:
        for index in self._plan.dispatch():
            trial = self._plan.trial(index)
            if trial.not_applicable is None:
                self._queue.append(index)
            else:
                self._without(index, Verdict("not-applicable", reason=trial.not_applicable), "not-applicable", True)

    def _without(self, index: int, verdict: Verdict, result: str, expected: bool) -> None:
        """The line of a trial that has a verdict without a transcript."""
        trial = self._plan.trial(index)
        entry = self._expectations.of(trial.id, verdict)
        attempt = Attempt(1, verdict, [], 0.0)
        raw = line(trial, attempt, link=self._settings.link, entry=entry, result=result, expected=expected)
        self._finished(index, result, expected, 0.0, raw)

    # Workers -----------------------------------------------------------------------------------------------------
    def _begin(self) -> None:
        """Start a worker, or say why there is none; without any the run is over and its ledger does not agree."""
        try:
            self._start()
        except OSError as error:
            self._tell(events.Notice(f"a worker could not be started: {error}"))

    def _start(self) -> None:
        """Start a worker: init of a PID namespace of its own, child of main.

        unshare(CLONE_NEWPID) concerns the next child only, and once in a process: a process between makes it, forks
        the worker and ends, and the worker becomes main's child by adoption. It waits for that, as its death signal is
        to be main's death.
        """
        ours, theirs = socket.socketpair()
        end = self._warden.new_end()
        between = os.fork()
        if between == 0:
            with contextlib.suppress(BaseException):
                with contextlib.suppress(OSError):
                    netns.unshare(netns.CLONE_NEWPID)
                pid = os.fork()
                if pid == 0:
                    self._become_worker(ours, theirs, end)
                else:
                    theirs.send(_PID.pack(pid))
            os._exit(0)
        theirs.close()
        end.close()
        os.waitpid(between, 0)
        told = ours.recv(_PID.size)
        if len(told) < _PID.size:
            ours.close()
            raise OSError("the process that was to make it ended early")
        ours.send(b"!")
        member = _Member(_PID.unpack(told)[0], wire.Channel(ours))
        self._members[ours.fileno()] = member
        self._selector.register(ours, selectors.EVENT_READ)

    def _become_worker(self, ours: socket.socket, theirs: socket.socket, end: socket.socket) -> None:
        try:
            ours.close()
            for other in self._inherited:
                other.close()
            for member in self._members.values():
                member.channel.close()
            self._selector.close()
            self._warden.forget()
            self._writer.close()
            if theirs.recv(1) != b"!":
                return
            worker.main(wire.Channel(theirs), Ward(end), self._plan, self._settings, self._expectations, self._adapter)
        finally:
            os._exit(0)

    def _died(self, member: _Member) -> None:
        """A worker is gone without being told to: what it had begun are errors, and a new one takes its place."""
        self._selector.unregister(member.channel.fileno())
        del self._members[member.channel.fileno()]
        member.channel.close()
        status = kernel.wait_for(member.pid, 1.0)
        if self._warden.gone(_LAG):  # that is why
            self._warden_ended()
            return
        why = member.complaint or _how(status)
        self._tell(events.Notice(f"a worker died: {why}"))
        for index in sorted(member.begun & member.given):
            self._without(index, Verdict("error", reason=f"the worker died: {why}"), "error", False)
        self._queue.extendleft(sorted(member.given - member.begun, reverse=True))
        self._deaths += 1
        if self._deaths >= _DEATHS:
            self._give_up(f"{_DEATHS} workers died in a row")
        elif not self._over() and self._queue:
            self._begin()

    def _warden_ended(self) -> None:
        """Nobody would clean up after a run that is killed from now on, so there is none."""
        how = _how(kernel.wait_for(self._warden.pid, 0.0))
        self._give_up(f"the warden, which cleans up after a run that is killed, is itself gone ({how})")

    def _end_members(self) -> None:
        for member in self._members.values():
            member.channel.send(wire.QUIT, 0)
        deadline = time.monotonic() + _PATIENCE
        for member in self._members.values():
            if kernel.wait_for(member.pid, max(0.0, deadline - time.monotonic())) is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member.pid, signal.SIGKILL)
                kernel.wait_for(member.pid, 1.0)
        members = list(self._members.values())
        self._members.clear()
        for member in members:  # all have ended, whatever their last words may do here
            with contextlib.closing(member.channel):
                for kind, index, payload in member.channel.receive():  # what it had finished before it heard
                    self._heard(member, kind, index, payload)

    # The end -----------------------------------------------------------------------------------------------------
    def _conclude(self) -> Outcome:
        unfinished = tuple(self._plan.id(index) for index in sorted(self._missing))
        unexpected = self._unexpected + len(self._stale)
        code = exit_code(self._counts, unexpected, len(unfinished), self._stopped, bool(self._reporting))
        for text in self._stale:
            self._tell(events.Notice(text))
        counts = {name: self._counts[name] for name in wire.RESULTS if self._counts[name]}
        end: dict[str, Any] = {"kind": "end", "finished": now(), "counts": counts, "stopped": self._stopped}
        end["exit"] = code
        self._append(dumps(end))
        self._tell(events.RunEnded(end, str(self._settings.directory), time.monotonic() - self._started, unfinished))
        return Outcome(self._counts, code, unfinished, self._stopped, self._reporting)


def _how(status: int | None) -> str:
    if status is None:
        return "it does not answer"
    if os.WIFSIGNALED(status):
        return f"killed by {signal_name(os.WTERMSIG(status))}"
    return f"exit status {os.waitstatus_to_exitcode(status)}"
