"""A worker: one loop over many sessions.

Main tells it which trials to run and gets each one's finished line back. A :class:`Host` is one trial in progress: its
rig (stack, link, agent) around its :class:`~conform.engine.session.Session`.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import signal
import struct
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from conform.engine import events as ev
from conform.engine.session import Session
from conform.engine.trial import Trial
from conform.engine.verdict import Verdict
from conform.link import codec, netns
from conform.run import kernel, wire
from conform.run.expectations import Expectations, classify
from conform.run.lines import Attempt, line, pcap_name
from conform.run.loop import Loop, Timer
from conform.run.plan import Plan
from conform.run.rig import Adapter, Rig
from conform.run.warden import Ward, WardenGoneError
from conform.stacks.description import SettingError

#: How many trials are kept busy at once, and how many are live in all when most of them only wait.
BUSY, LIVE = 8, 256
#: A trial to which nothing happened for so long only waits.
_IDLE = 0.03
#: The loop's own work in one turn beyond which no trial is added.
_SLOW_TURN = 0.02
#: How long the loop looks at most while trials run: the precision with which a TUN's packets are timed.
_LOOK = 0.004
#: Trials asked for beyond those that run, so that the next is there when there is room.
_AHEAD = 4
#: How often a trial is run again that is inconclusive only because the loop was late.
_LATE_RUNS = 2
_SWEEP = 0.2
_PROGRESS = struct.Struct("=I")

PcapChoice = Literal["failed", "all", "none"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What the options say that concerns running a trial."""

    link: str
    directory: Path
    agent: Literal["auto", "inline", "process"] = "auto"
    gate: str = "all"
    pcap: PcapChoice = "failed"
    timeout: float = 180.0
    retry: int = 0
    scratch: str = ""


#: Makes a worker's adapter.
MakeAdapter = Callable[[Loop, Ward, Settings, Callable[[str], None]], Adapter]


@dataclass(slots=True)
class Job:
    """A trial to run, and what is behind it."""

    index: int
    number: int = 1
    earlier: list[Attempt] = field(default_factory=list)
    retries: int = 0
    late: int = 0


class Host:
    """One trial in progress."""

    def __init__(self, worker: Worker, job: Job) -> None:
        self.job = job
        self.trial = worker.plan.trial(job.index)
        self.busy = True  # whether something happened of late, as against only waiting
        self.begun = self.active = time.monotonic()
        self.records: list[tuple[float, bytes, str, int]] | None = None if worker.settings.pcap == "none" else []
        self.ended: Verdict | None = None  # without, or whatever, the session says
        self._worker = worker
        self._loop = worker.loop
        self._inbox: deque[tuple[ev.Event, float]] = deque()
        self._pumping = False
        self._session: Session | None = None
        self._rig: Rig | None = None
        self._timer: Timer | None = None
        self._settling: Timer | None = None
        self._fence = worker.fence(self.trial)
        self._fences: dict[int, int] = {}
        self._lost = 0
        self._arrivals = 0
        self._zero = self.begun

    # Its life ----------------------------------------------------------------------------------------------------
    def open(self) -> None:
        """Have a rig made; the trial begins when it is ready. What the machine has no way to do ends it here."""
        self._rig = self._worker.adapter.rig(self.trial, self)
        self.trial = self._rig.trial
        try:
            self._rig.open()
        except SettingError as error:
            self.ended = Verdict("not-applicable", reason=str(error))
        except OSError as error:
            self.ended = Verdict("error", reason=f"the trial could not be set up: {error.strerror or error}")

    def ready(self) -> None:
        """The stack is there: begin."""
        assert self._rig is not None
        self._session = Session(self.trial)
        self._rig.uses(connection.tester_port for connection in self._session.connections.values())
        self._lost = self._rig.lost()
        self._zero = self.begun = time.monotonic()
        self._session.start(0.0)
        self._pump()

    @property
    def started(self) -> bool:
        """Whether the stack was there, and the trial has begun."""
        return self._session is not None

    @property
    def finished(self) -> bool:
        """Whether there is a verdict, or no hope of one."""
        return self.ended is not None or (self._session is not None and self._session.finished)

    def outcome(self) -> tuple[Verdict, list[dict[str, Any]]]:
        """The verdict and the transcript that it follows from (none where conform itself failed)."""
        if self.ended is not None:
            return self.ended, []
        assert self._session is not None
        assert self._session.verdict is not None
        return self._session.verdict, self._session.transcript.entries

    def close(self) -> None:
        """Reset every connection exactly, let go of everything. Never raises."""
        for timer in (self._timer, self._settling):
            if timer is not None:
                timer.cancel()
        if self._rig is None:
            return
        steps: list[Callable[[], object]] = []
        if self._session is not None and self.ended is None:
            steps.append(self._reset)
        steps += self._rig.cleanups()
        for step in steps:
            try:
                step()
            except Exception:  # one that fails must not keep the others from being done
                self._worker.complain(f"{self.trial.id}: {traceback.format_exc()}")

    def _reset(self) -> None:
        assert self._session is not None
        assert self._rig is not None
        for segment in self._session.closing_segments():
            data = codec.build(segment)
            with contextlib.suppress(OSError):
                self._rig.send(data)
                self._record("closing", data)

    def crash(self) -> None:
        """An exception that concerns this trial alone: it ends in error."""
        self.ended = Verdict("error", reason=f"conform failed:\n{traceback.format_exc().rstrip()}")

    # What happens ------------------------------------------------------------------------------------------------
    def arrived(self, data: bytes, since: float) -> None:
        """See ``rig.Ears``, as for those that follow."""
        now = time.monotonic()
        number = self._fence.match(data) if self._fence is not None else None
        if number is not None:
            action = self._fences.pop(number, None)
            self._record("fence", data, now=now)
            if action is not None:
                self._event(ev.Settled(action), now)
            return
        segment = codec.parse(data)
        if segment is None:
            self._record("other", data, now=now)
            return
        self._record("arrived", data, self._arrivals, now)
        self._arrivals += 1
        self._event(ev.Arrived(segment, since - self._zero), now)

    def replied(self, id: int, reply: dict[str, Any]) -> None:
        """A call ended."""
        self._event(ev.Returned(id, reply), time.monotonic())

    def blocked(self, id: int) -> None:
        """A call sleeps."""
        self._event(ev.Blocked(id), time.monotonic())

    def state_read(self, id: int, state: str | None, info: dict[str, Any]) -> None:
        """A state was read."""
        self._event(ev.StateRead(id, state, info), time.monotonic())

    def broke(self, reason: str) -> None:
        """End in error for that reason."""
        if self._session is None:
            self.ended = Verdict("error", reason=reason)
            self._worker.ended(self)
        else:
            self._event(ev.Broke(reason), time.monotonic())

    def died(self, reason: str) -> None:
        """The stack is gone."""
        self._event(ev.Died(reason), time.monotonic())

    def _tick(self) -> None:
        self._timer = None
        self._event(ev.Ticked(), self._loop.looked)

    def _event(self, event: ev.Event, now: float) -> None:
        if self.finished:
            return  # what still comes is of no trial
        if self._rig is not None and self._session is not None:
            lost = self._rig.lost()
            if lost > self._lost:
                self._inbox.append((ev.Lost(lost - self._lost), now))
                self._lost = lost
        self._inbox.append((event, now))
        if not self._pumping:
            self._pump()

    # What is done ------------------------------------------------------------------------------------------------
    def _pump(self) -> None:
        """Hand the session what happened and do what it wants, until it waits."""
        session = self._session
        if session is None or self.ended is not None:
            return
        self._pumping = True
        try:
            while not session.finished:
                actions = session.actions()
                if actions:
                    for action in actions:
                        self._act(action)
                elif self._inbox:
                    event, now = self._inbox.popleft()
                    session.receive(event, now - self._zero)
                else:
                    break
        except Exception:
            self.crash()
        finally:
            self._pumping = False
        if self.finished:
            self._worker.ended(self)
            return
        self.active = self._loop.now
        if not self.busy:
            self.busy = True
            self._worker.busy += 1
        deadline = session.deadline()
        if deadline is not None:
            when = self._zero + deadline
            if self._timer is None or self._timer.when > when:
                if self._timer is not None:
                    self._timer.cancel()
                self._timer = self._loop.call_at(when, self._due)

    def _due(self) -> None:
        # The timer is not moved when the deadline is: most deadlines are met, and a heap of dead timers costs memory.
        self._timer = None
        session = self._session
        if session is None or self.finished:
            return
        deadline = session.deadline()
        if deadline is not None and self._zero + deadline > self._loop.looked:
            self._timer = self._loop.call_at(self._zero + deadline, self._due)
        elif deadline is not None:
            self._tick()

    def _act(self, action: ev.Action) -> None:
        match action:
            case ev.Inject():
                data = codec.build(action.packet)
                before = time.monotonic()
                self._send(data)
                after = time.monotonic()
                self._record("injected", data, action.id, before)
                self._inbox.append((ev.Injected(action.id, before - self._zero, after - self._zero), after))
            case ev.Call():
                assert self._rig is not None
                self._rig.request(action.id, action.request)
            case ev.Settle():
                self._settle(action)
            case ev.ReadState():
                assert self._rig is not None
                self._rig.read_state(action.id, action.stack_port, action.tester_port)

    def _settle(self, action: ev.Settle) -> None:
        if self._fence is None:
            settle = self.trial.stack.settle
            assert isinstance(settle, float)
            now = time.monotonic()
            self._settling = self._loop.call_at(
                now + settle, lambda: self._event(ev.Settled(action.id), self._loop.looked)
            )
            return
        number = self._worker.next_fence()
        self._fences[number] = action.id
        data = self._fence.build(number)
        self._send(data)
        self._record("fence", data)

    def _send(self, data: bytes) -> None:
        assert self._rig is not None
        self._rig.send(data)

    def _record(self, kind: str, data: bytes, reference: int = 0, now: float | None = None) -> None:
        if self.records is not None:
            self.records.append((time.monotonic() if now is None else now, data, kind, reference))


def comments(records: list[tuple[float, bytes, str, int]], transcript: list[dict[str, Any]]) -> list[str]:
    """For each of *records* the step that it belongs to, by the transcript."""
    injected: dict[int, str] = {}
    arrivals: list[int] = []
    said: dict[int, str] = {}
    step = "start"
    during: dict[int, str] = {}
    for index, entry in enumerate(transcript):
        if entry.get("a") == "inject":
            injected[entry["id"]] = entry["step"]
        elif entry.get("e") == "arrived":
            arrivals.append(index)
            during[index] = step
        elif entry.get("n") == "step":
            step = entry["step"]
        elif entry.get("n") == "matched":
            said[entry["of"]] = f"{entry['step']}: as expected"
        elif entry.get("n") == "noise":
            said.setdefault(entry["of"], f"{during.get(entry['of'], step)}: noise ({entry.get('name')})")
        elif entry.get("n") == "failed" and entry.get("of") is not None:
            said[entry["of"]] = f"{entry['step']}: FAILED"
    out = []
    for _, _, kind, reference in records:
        match kind:
            case "injected":
                out.append(f"{injected.get(reference, '?')}: sent")
            case "arrived" if reference < len(arrivals):
                arrival = arrivals[reference]
                out.append(said.get(arrival, f"during {during[arrival]}"))
            case "arrived":
                out.append("after the verdict")
            case "fence":
                out.append("fence: its reply comes behind all immediate answers")
            case "closing":
                out.append("conform resets what the trial left open")
            case _:
                out.append("not TCP")
    return out


class Worker:
    """Runs the trials that main names."""

    def __init__(
        self,
        channel: wire.Channel,
        ward: Ward,
        plan: Plan,
        settings: Settings,
        expectations: Expectations,
        adapter: MakeAdapter,
    ) -> None:
        self.channel = channel
        self.ward = ward
        self.plan = plan
        self.settings = settings
        self.expectations = expectations
        self.loop = Loop()
        self.adapter = adapter(self.loop, ward, settings, self.complain)
        self.busy = 0
        self._live: dict[int, Host] = {}
        self._ended: list[Host] = []
        self._jobs: deque[Job] = deque()
        self._asked = 0
        self._numbers = itertools.count(1)
        self._fences: dict[tuple[int, tuple[str, str]], codec.Fence] = {}
        self._quit = False
        self._pace = 0.0
        self._swept = self._glanced = 0.0
        self._most = min(LIVE, max(4, (kernel.raise_descriptor_limit() - 64) // 12))
        # The clock of captures is the machine's, that of all else is monotonic.
        self._epoch = time.time() - time.monotonic()
        self.loop.add_reader(channel.fileno(), self._told)

    def run(self) -> None:
        """Until main says so or is gone."""
        with contextlib.suppress(WardenGoneError):  # main sees that for itself
            while not self._quit:
                self._turn()
        for host in list(self._live.values()):
            host.close()
        self.adapter.close()
        self.ward.close()

    def _turn(self) -> None:
        self.loop.turn(_LOOK if self._live else 0.001 if self._jobs or self.channel.behind else _SWEEP)
        self._pace += (self.loop.busy - self._pace) * 0.1
        for host in self._ended:
            self._finish(host)
        self._ended.clear()
        if self.loop.now - self._glanced > _IDLE / 3:
            self._glance()
        self._admit()
        if self.channel.behind:
            self.channel.flush()
        if self.loop.now - self._swept > _SWEEP:
            self._sweep()

    def ended(self, host: Host) -> None:
        """*host* has its verdict; it is closed at the end of the turn, when nothing of it is on the way."""
        if host not in self._ended:
            self._ended.append(host)

    def complain(self, text: str) -> None:
        """Tell main what went wrong in the worker itself."""
        self.channel.send(wire.FAILED, 0, text.encode("utf-8", "replace"))

    def next_fence(self) -> int:
        """A number no fence of this worker had before."""
        return next(self._numbers) & 0xFFFFFFFF

    def fence(self, trial: Trial) -> codec.Fence | None:
        """The fence of the trial's addresses; ``None`` where the stack settles by time."""
        if trial.stack.settle != "fence":
            return None
        key = (trial.ip, trial.stack.addresses[trial.ip])
        found = self._fences.get(key)
        if found is None:
            found = self._fences[key] = codec.Fence(trial.ip, *trial.stack.addresses[trial.ip])
        return found

    # Main --------------------------------------------------------------------------------------------------------
    def _told(self) -> None:
        for kind, index, _ in self.channel.receive():
            if kind == wire.RUN:
                self._asked -= 1
                self._jobs.append(Job(index))
            elif kind == wire.QUIT:
                self._quit = True
        if self.channel.ended:
            self._quit = True

    def _room(self) -> bool:
        if len(self._live) >= self._most or self.busy >= BUSY or not self.adapter.room():
            return False
        return self._pace < _SLOW_TURN or not self.busy

    def _admit(self) -> None:
        """At most one new trial a turn: a burst would make all others late."""
        if self._jobs and self._room():
            self._begin(self._jobs.popleft())
        wanted = _AHEAD - len(self._jobs) - self._asked
        if wanted > 0 and (self._room() or not self._jobs):
            self._asked += wanted
            self.channel.send(wire.ROOM, wanted)

    def _begin(self, job: Job) -> None:
        if job.number == 1:
            self.channel.send(wire.BEGUN, job.index)
        host = Host(self, job)
        self._live[job.index] = host
        self.busy += 1
        try:
            host.open()
        except WardenGoneError:
            raise
        except Exception:
            host.crash()
        if host.finished:
            self.ended(host)

    def _glance(self) -> None:
        """Which trials only wait now: they make room for others."""
        self._glanced = self.loop.now
        for host in self._live.values():
            if host.busy and self.loop.now - host.active > _IDLE:
                host.busy = False
                self.busy -= 1

    def _sweep(self) -> None:
        """What is not urgent: time limits, zombies, progress, the warden's list."""
        self._swept = self.loop.now
        for host in list(self._live.values()):
            # How long a stack may take to start is its description's to say.
            if host.started and self.loop.now - host.begun > self.settings.timeout and not host.finished:
                host.broke(f"the trial took longer than {self.settings.timeout:g} s (--timeout)")
        self.ward.flush()
        self._reap()
        self.channel.send(wire.PROGRESS, len(self._live), _PROGRESS.pack(max(0, len(self._live) - self.busy)))

    def _reap(self) -> None:
        """As init of its PID namespace a worker inherits the agents whose nursery is gone."""
        ours = self.adapter.children()
        with contextlib.suppress(ChildProcessError):
            while True:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if found is None or found.si_pid in ours:
                    return
                os.waitpid(found.si_pid, os.WNOHANG)

    # The end of a trial ------------------------------------------------------------------------------------------
    def _finish(self, host: Host) -> None:
        host.close()
        job = host.job
        del self._live[job.index]
        self.busy -= host.busy
        verdict, transcript = host.outcome()
        duration = time.monotonic() - host.begun
        attempt = Attempt(job.number, verdict, transcript, duration)
        if verdict.late and job.late < _LATE_RUNS:
            again = Job(job.index, job.number + 1, [*job.earlier, attempt], job.retries, job.late + 1)
            self._jobs.appendleft(again)
            return
        entry = self.expectations.of(host.trial.id, verdict)
        refused = [e.verdict for e in job.earlier if not e.verdict.late]
        result, expected = classify(verdict, entry, self.settings.gate, refused)
        _, accepted = classify(verdict, entry, self.settings.gate)
        if not accepted and verdict.outcome != "pass" and job.retries < self.settings.retry:
            self._jobs.append(Job(job.index, job.number + 1, [*job.earlier, attempt], job.retries + 1, job.late))
            return
        pcap = self._capture(host, result, transcript)
        raw = line(
            host.trial,
            attempt,
            link=self.settings.link,
            entry=entry,
            result=result,
            expected=expected,
            pcap=pcap,
            earlier=job.earlier,
        )
        self.channel.send(wire.FINISHED, job.index, wire.summary(result, expected, duration, raw))

    def _capture(self, host: Host, result: str, transcript: list[dict[str, Any]]) -> str | None:
        if not host.records or (self.settings.pcap == "failed" and result == "pass"):
            return None
        from conform.link import pcapng

        name = pcap_name(host.trial.id)
        texts = comments(host.records, transcript)
        records = [(at + self._epoch, data, text) for (at, data, _, _), text in zip(host.records, texts, strict=True)]
        try:
            pcapng.write(self.settings.directory / name, records)
        except OSError as error:
            self.complain(f"{name}: {error}")
            return None
        return name


def main(
    channel: wire.Channel,
    ward: Ward,
    plan: Plan,
    settings: Settings,
    expectations: Expectations,
    adapter: MakeAdapter,
) -> None:
    """A worker's life, in a process of its own. What goes wrong outside any trial is told to main."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Ctrl-C reaches the whole group; main decides what it means. Not ignored: what is executed would inherit that.
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(-1)
    netns.die_with_parent()
    kernel.name_process("conform-worker")
    try:
        netns.unshare_home()
        codec.preload()  # now, that no trial's clock runs while scapy is imported
        gc.freeze()  # the plan is shared with main; the collector would copy it by visiting it
        Worker(channel, ward, plan, settings, expectations, adapter).run()
    except BaseException:
        channel.send(wire.FAILED, 1, traceback.format_exc().encode("utf-8", "replace"))
        raise
