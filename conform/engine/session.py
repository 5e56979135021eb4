"""Interprets one trial: the case's steps against what the stack does.

A :class:`Session` does no I/O and reads no clock. Its interpreter is one generator; a step that must wait yields, and
is resumed at each event. The same events at the same times give the same actions, transcript and verdict.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections import deque
from collections.abc import Container, Generator
from dataclasses import dataclass
from typing import Any

from conform.case import model as m
from conform.case.expr import VARIABLES, Expr
from conform.case.vocabulary import DEFAULT_NOISE
from conform.engine import events as ev
from conform.engine.calls import Outcomes, conn_of, emits, request_of
from conform.engine.craft import Craft, Senseless
from conform.engine.matcher import Environment, FieldMatcher, describe, match_segment
from conform.engine.transcript import DIGITS, Transcript, rounded
from conform.engine.trial import Trial
from conform.engine.verdict import GATING, LEVELS, Failure, Level, Verdict
from conform.tcp import rules
from conform.tcp import states as st
from conform.tcp.segment import ACK, FIN, RST, SYN, IPFields, Segment
from conform.tcp.sequence import MODULUS, add, diff
from conform.tcp.tracker import Connection

Script = Generator[None, None, Any]

#: How long a call may take that says nothing of it, in multiples of the stack's own time to answer.
_CALL_PATIENCE = 5
#: How long after that the agent itself may be silent, in seconds, before it counts as broken.
_AGENT_GRACE = 5.0
#: Where a trial's tester ports come from.
_PORTS = range(32768, 60999)


@dataclass(frozen=True, slots=True)
class Interval:
    """A moment that is known to lie in ``low`` .. ``high``."""

    low: float
    high: float


@dataclass(slots=True)
class Arrival:
    """A segment that waits to be consumed. ``entry`` is its index in the transcript."""

    segment: Segment
    when: Interval
    entry: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A segment under a name."""

    segment: Segment
    when: Interval


@dataclass(slots=True)
class PendingCall:
    """A call that was begun."""

    call: m.Call
    action: int
    begun: float
    deadline: float
    in_recipe: bool


#: What was held against an arrival that may go several ways: the way's name, its expectation, what came of it.
_Tried = tuple[str, m.ExpectSpec, FieldMatcher]


class StepFailed(Exception):  # noqa: N818
    """The stack did not do what the step says."""

    def __init__(self, failure: Failure, covers: tuple[str, ...] = ()) -> None:
        super().__init__(failure.summary)
        self.failure = failure
        self.covers = covers


class Undecided(Exception):  # noqa: N818
    """conform was late, and whether the stack was cannot be told."""


class Broken(Exception):  # noqa: N818
    """conform itself failed."""


class Session:
    """One trial in progress. See ``conform.engine.events`` for the contract with its driver."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.stack = trial.stack
        self.transcript = Transcript()
        self.verdict: Verdict | None = None
        self.connections: dict[str, Connection] = {}
        self._random = random.Random(f"{trial.seed}:{trial.id.partition('#')[0]}")
        self._queues: dict[str, deque[Arrival]] = {}
        self._unknown: deque[Arrival] = deque()
        self._snapshots: dict[str, Snapshot] = {}
        self._captures: dict[str, int] = {}
        self._calls: dict[str, PendingCall] = {}
        self._replies: dict[int, ev.Returned] = {}
        self._reply_entries: dict[int, int] = {}
        self._blocked: set[int] = set()
        self._settled: set[int] = set()
        self._states: dict[int, ev.StateRead] = {}
        self._injected: dict[int, ev.Injected] = {}
        self._descriptors: dict[str, str] = {m.CONNECTION: m.CONNECTION}
        self._ports: dict[str, int] = {}
        self._listening: set[int] = set()
        self._actions: list[ev.Action] = []
        self._next_id = 1
        self._now = 0.0
        self._deadline: float | None = None
        self._event = Interval(0.0, 0.0)
        self._gap: Interval | None = None
        self._previous_gap: float | None = None
        self._looked = 0.0
        self._moved: dict[str, tuple[int, float]] = {}
        self._stirred: dict[str, float] = {}
        self._lingering: set[str] = set()
        self._dirty = False
        self._stimulus: tuple[str, tuple[int, int] | None] = ("start", None)
        self._settled_once = True
        self._path = "start"
        self._place: tuple[int, int] | None = None
        self._covers: tuple[str, ...] = tuple(trial.case.covers)
        self._in_recipe = False
        self._silence_asserted = False
        self._rule: tuple[str, str, int] | None = None
        self._broke: str | None = None
        self._violations: list[StepFailed] = []
        self._findings: list[str] = []
        self._unverified: list[str] = []
        self._asserted = 0
        self._craft = Craft(self)
        self._outcomes = Outcomes(self)
        for name in {m.CONNECTION: None, **trial.case.connections}:
            self._open_connection(name)
        self._script = self._main()

    # The driver's side -------------------------------------------------------------------------------------------
    @property
    def finished(self) -> bool:
        """Whether there is a verdict."""
        return self.verdict is not None

    @property
    def waiting(self) -> bool:
        """Whether nothing is owed to the session: it only lets time pass."""
        return self._deadline is not None and self._settled_once

    def start(self, now: float = 0.0) -> None:
        """Begin at *now* (0 by convention)."""
        self._now = round(now, DIGITS)
        self._event = Interval(self._now, self._now)
        self._resume()

    def receive(self, event: ev.Event, now: float) -> None:
        """Something happened at *now* seconds since the start. After the verdict, nothing counts any more."""
        if self.verdict is not None:
            return
        event = rounded(event)
        self._now = max(self._now, round(now, DIGITS))
        entry = self.transcript.event(self._now, event)
        match event:
            case ev.Arrived(packet=Segment() as segment):
                self._arrive(segment, Interval(min(event.since, self._now), self._now), entry)
            case ev.Injected():
                self._injected[event.id] = event
            case ev.Returned():
                self._replies[event.id] = event
                self._reply_entries[event.id] = entry
            case ev.Blocked():
                self._blocked.add(event.id)
            case ev.Settled():
                self._settled.add(event.id)
                self._looked = self._now
            case ev.Ticked():
                self._looked = self._now
            case ev.StateRead():
                self._states[event.id] = event
            case ev.Broke():
                self._broke = event.reason
        self._resume()

    def actions(self) -> list[ev.Action]:
        """What is to be done, in order; each is given once."""
        taken, self._actions = self._actions, []
        return taken

    def deadline(self) -> float | None:
        """When the session wants to hear ``Ticked`` if nothing else happens; ``None`` for never."""
        return None if self.verdict is not None else self._deadline

    def closing_segments(self) -> list[Segment]:
        """An exact reset for each connection that may still be open, to be sent when all is over."""
        out = []
        for connection in self.connections.values():
            if connection.stack_port is None or not connection.used or connection.states <= {st.CLOSED, st.LISTEN}:
                continue
            flags, ack = RST | ACK, connection.snd_nxt
            out.append(self._craft.segment(connection, flags=flags, seq=connection.rcv_nxt, ack=ack))
        return out

    def _resume(self) -> None:
        self._deadline = None
        with contextlib.suppress(StopIteration):
            next(self._script)

    # Connections -------------------------------------------------------------------------------------------------
    def _open_connection(self, name: str) -> Connection:
        spec = self.trial.case.connections.get(name, m.ConnectionSpec())
        taken = {c.tester_port for c in self.connections.values()}
        taken |= {other.port for other in self.trial.case.connections.values() if other.port is not None}
        port = spec.port
        while port is None or (spec.port is None and port in taken):
            port = self._random.choice(_PORTS)
        isn = spec.isn if spec.isn is not None else self._random.randrange(MODULUS)
        connection = Connection(
            name=name,
            version=self.trial.ip,
            tester_port=port,
            stack_port=spec.stack_port or self.stack.port,
            irs=isn,
            window=spec.window,
            blind_attack_checks="rfc5961" in self.stack.capabilities,
        )
        if connection.stack_port in self._listening:
            connection.called("passive-open")
        self.connections[name] = connection
        self._queues[name] = deque()
        return connection

    def connection(self, name: str) -> Connection:
        """The connection called *name*, made on first use."""
        return self.connections.get(name) or self._open_connection(name)

    def _arrive(self, segment: Segment, when: Interval, entry: int) -> None:
        found = next(
            (
                c
                for c in self.connections.values()
                if c.tester_port == segment.dport and c.stack_port in (None, segment.sport)
            ),
            None,
        )
        broken = rules.broken(segment, found)
        if broken is not None and self._rule is None:
            self._rule = (*broken, entry)
        if found is None:
            self._unknown.append(Arrival(segment, when, entry))
            return
        if found.stack_port is None:
            found.stack_port = segment.sport
        self._queues[found.name].append(Arrival(segment, when, entry))
        self._stirred[found.name] = self._now
        if not self._dirty:
            # Behind its fence: recorded against the step that caused it, and queued all the same.
            self.transcript.note(self._now, "late", of=entry, step=self._stimulus[0])

    # Values ------------------------------------------------------------------------------------------------------
    def resolve(self, name: str, connection: Connection) -> float:
        """The value of *name* in an expression about *connection*. Raises LookupError."""
        if name in self.stack.timers:
            return self.stack.timers[name]
        if name == "previous":
            if self._previous_gap is None:
                raise LookupError("there is no previous gap yet")
            return self._previous_gap
        if name in self._captures:
            return self._captures[name]
        head, _, rest = name.partition(".")
        if head in self._snapshots and rest:
            snapshot = self._snapshots[head]
            segment = snapshot.segment
            match rest:
                case "time":
                    return snapshot.when.low
                case "len":
                    return segment.length
                case "end":
                    return add(segment.seq, segment.length)
            return float(getattr(segment, rest)) if rest not in ("seq", "ack") else getattr(segment, rest)
        if rest in VARIABLES and (head in self.connections or head in self.trial.case.connections):
            return self.connection(head).variable(rest)
        if name in VARIABLES:
            return connection.variable(name)
        if head == "timer":
            raise Senseless(f"the stack's description has no {name}")
        raise LookupError(f"there is no value {name}: what would keep it did not happen")

    def environment(self, connection: Connection) -> Environment:
        """Where expressions about *connection* find their values."""
        return Environment(connection, self.resolve)

    def seconds(self, expr: Expr) -> float:
        """*expr* in seconds. Raises LookupError."""
        return float(expr.evaluate(lambda n: self.resolve(n, self.connections[m.CONNECTION])))

    @property
    def now(self) -> float:
        """The time of the last event."""
        return self._now

    # The script --------------------------------------------------------------------------------------------------
    def _main(self) -> Script:
        try:
            self._in_recipe = True
            yield from self._steps(self.trial.case.recipe, "recipe")
            yield from self._quiet()
            self._in_recipe = False
            yield from self._steps(self.trial.case.steps, "steps")
            yield from self._end()
            self.verdict = self._passed()
        except StepFailed as failed:
            self.transcript.note(self._now, "failed", step=failed.failure.step, of=failed.failure.entry)
            self.verdict = self._failed(failed)
        except Undecided as undecided:
            self.verdict = Verdict("inconclusive", reason=str(undecided), late=True)
        except Broken as broken:
            self.verdict = Verdict("error", reason=str(broken))
        except Senseless as senseless:
            self.verdict = Verdict("error", reason=f"{self._path}: {senseless}")
        except ZeroDivisionError:
            self.verdict = Verdict("error", reason=f"{self._path}: an expression divides by zero")
        except (KeyError, IndexError):
            raise  # a fault of conform's own, and never the stack's
        except LookupError as error:
            # An expression had no value, because what it names never happened.
            self.verdict = self._failed(StepFailed(Failure(self._path, self._place, str(error))))

    def _passed(self) -> Verdict:
        if self._violations:
            return self._failed(self._violations[0])
        found, unverified = tuple(self._findings), tuple(self._unverified)
        if not self._asserted and not unverified:
            return Verdict("error", reason="no assertion of the case ran, so it shows nothing")
        reason = "what could not be read out was not checked" if unverified else ""
        return Verdict("pass" if self._asserted else "inconclusive", None, (), None, reason, found, unverified)

    def _failed(self, failed: StepFailed) -> Verdict:
        found, unverified = tuple(self._findings), tuple(self._unverified)
        if self._in_recipe:
            reason = f"the precondition was not reached: {failed.failure.summary}"
            return Verdict("inconclusive", failure=failed.failure, reason=reason, findings=found, unverified=unverified)
        requirements = failed.covers or self._covers
        levels = [GATING[self.trial.levels[r]] for r in requirements if r in self.trial.levels]
        level: Level = min(levels, key=LEVELS.index, default="must")
        return Verdict("fail", level, requirements, failed.failure, "", found, unverified)

    def _steps(self, steps: list[Any], path: str) -> Script:
        for index, step in enumerate(steps):
            yield from self._step(step, f"{path}[{index}]")

    def _step(self, step: m.Step, path: str) -> Script:
        outer = self._path, self._place, self._covers
        self._path, self._place = path, step.place or self._place
        if step.covers:
            self._covers = tuple(step.covers)
        self.transcript.note(self._now, "step", step=path)
        match step:
            case m.SendStep():
                yield from self._send(step.send)
            case m.ExpectStep():
                yield from self._expect(step.expect)
            case m.CallStep():
                yield from self._call(step.call)
            case m.StartStep():
                yield from self._start_call(step.start)
            case m.BlockedStep():
                yield from self._blocked_step(step.blocked)
            case m.FinishStep():
                yield from self._finish(step.finish)
            case m.SilenceStep():
                yield from self._silence(step.silence)
            case m.StateStep():
                yield from self._state(step.state)
            case m.CheckStep():
                self._check(step.check)
            case m.ProbeStep():
                yield from self._quiet()
                yield from self._probe()
                self.asserted()
            case m.OneOfStep():
                yield from self._one_of(step, path)
            case m.AnyOrderStep():
                yield from self._any_order(step, path)
            case m.OptionalStep():
                yield from self._optional(step.optional, path)
            case m.RepeatStep():
                yield from self._repeat(step.repeat, path)
        self._path, self._place, self._covers = outer

    def _fail(
        self, summary: str, expected: str = "", actual: str = "", words: tuple[str, ...] = (), entry: int | None = None
    ) -> StepFailed:
        return StepFailed(Failure(self._path, self._place, summary, expected, actual, words, entry), self._covers)

    def _check_faults(self) -> None:
        if self._broke is not None:
            raise Broken(self._broke)
        if self._rule is not None:
            requirement, words, entry = self._rule
            self._in_recipe = False
            failure = Failure(self._path, self._place, f"a segment breaks {requirement}: {words}", entry=entry)
            raise StepFailed(failure, (requirement,))

    def _wait(self, deadline: float | None = None) -> Script:
        """Let one event happen, or *deadline* pass."""
        # Times are kept to the microsecond: a deadline between two would never be reached at the first.
        self._deadline = None if deadline is None else math.ceil(deadline * 10**DIGITS) / 10**DIGITS
        yield
        self._check_faults()

    def _do(self, make: Any, **fields: Any) -> int:
        """Emit an action; its id."""
        action = make(id=self._next_id, **fields)
        self._next_id += 1
        self.transcript.action(self._now, action, self._path)
        self._actions.append(action)
        return int(action.id)

    def _answered(self, action: int, answers: Container[int], who: str) -> Script:
        """Wait for conform's own part to do *action*, which takes it no time worth the name."""
        deadline = self._now + _AGENT_GRACE
        while action not in answers:
            if self._looked >= deadline:
                raise Broken(f"{who} gave no answer in {_AGENT_GRACE:.0f} s")
            yield from self._wait(deadline)

    # Settling and silence ----------------------------------------------------------------------------------------
    def _settle(self) -> Script:
        action = self._do(ev.Settle)
        self._settled_once = False
        deadline = self._now + _CALL_PATIENCE * self.stack.timers["timer.response.max"]
        while action not in self._settled:
            if self._looked >= deadline:
                raise self._fail(
                    "the stack gives no sign of life: it does not settle", "an answer behind all others", "nothing"
                )
            yield from self._wait(deadline)
        self._settled_once = True
        self._dirty = False

    def _noise(self, connection: Connection, arrival: Arrival, allowed: list[Any] | str | None) -> str | None:
        if allowed == "forbid":
            return None
        if allowed is None:
            allowed = self.trial.case.noise if self.trial.case.noise is not None else list(DEFAULT_NOISE)
        una, moved = self._moved.get(connection.name, (None, 0.0))
        # What may have left the stack before the tester's last acknowledgment reached it is held against SND.UNA then.
        name = connection.noise(arrival.segment, una if arrival.when.low <= moved else None)
        if name == "retransmission" and name not in allowed:
            end = add(arrival.segment.seq, arrival.segment.length)
            name = "tail-loss-probe" if end == connection.snd_nxt else None
        return name if name in allowed else None

    def _pass_over(self, connection: Connection, arrival: Arrival, name: str) -> None:
        self.transcript.note(self._now, "noise", of=arrival.entry, name=name)
        connection.observed(arrival.segment)

    def _require_silence(self, allowed: list[Any] | str | None = None, lasting: float | None = None) -> None:
        """Nothing waits to be consumed, but for noise, and what came when *lasting* seconds had passed."""
        for name, queue in self._queues.items():
            connection = self.connections[name]
            while queue and (lasting is None or not self._came_after(lasting, queue[0])):
                arrival = queue.popleft()
                noise = self._noise(connection, arrival, allowed)
                if noise is None:
                    self._unexpected(arrival, connection)
                else:
                    self._pass_over(connection, arrival, noise)
        if self._unknown:
            arrival = self._unknown[0]
            ports = f"from port {arrival.segment.sport} to port {arrival.segment.dport}"
            raise self._fail(
                f"a segment of no connection of this case came, {ports}",
                "silence",
                str(arrival.segment),
                entry=arrival.entry,
            )

    def _unexpected(self, arrival: Arrival, connection: Connection) -> None:
        words = []
        if connection.iss is not None and arrival.segment.flags & ACK:
            delta = diff(arrival.segment.ack, connection.rcv_nxt)
            if delta:
                words.append(f"its ack is {arrival.segment.ack}; RCV.NXT = {connection.rcv_nxt}")
        summary = f"the stack sent {_named(arrival.segment)}, which nothing expects"
        expected = "silence"
        if not self._silence_asserted:
            # Implied silence is broken by what was done last, not by the step that was about to begin.
            expected += f" before {self._path}"
            self._path, self._place = self._stimulus
        raise self._fail(summary, expected, self._relative(arrival.segment, connection), tuple(words), arrival.entry)

    def _relative(self, segment: Segment, connection: Connection) -> str:
        text = str(segment)
        notes = []
        if connection.iss is not None:
            notes.append(f"ISS+{(segment.seq - connection.iss) % MODULUS}")
        if segment.flags & ACK:
            notes.append(f"acks IRS+{(segment.ack - connection.irs) % MODULUS}")
        return f"{text} ({', '.join(notes)})" if notes else text

    def _quiet(self) -> Script:
        """The silence that is implied before every send and call."""
        if self._dirty:
            yield from self._settle()
        self._require_silence()

    def _came_after(self, lasting: float, arrival: Arrival) -> bool:
        """Whether *arrival* came when *lasting* seconds had passed since the last event. Raises Undecided."""
        end = lasting - min(self.stack.tolerance, lasting / 2)
        if arrival.when.high - self._event.low < end:
            return False
        if arrival.when.low - self._event.high < end:
            late = _seconds(arrival.when.high - arrival.when.low)
            raise Undecided(
                f"conform's loop was late by {late}; whether silence lasted {_seconds(lasting)} cannot be told"
            )
        return True

    def _silence(self, spec: m.SilenceSpec) -> Script:
        self._asserted += not self._in_recipe
        self._silence_asserted = True
        lasting = self.seconds(spec.for_) if isinstance(spec.for_, Expr) else None
        if lasting is not None:
            until = self._event.high + lasting
            while self._looked < until:
                self._require_silence(spec.noise, lasting)
                yield from self._wait(until)
        yield from self._settle()
        self._require_silence(spec.noise, lasting)
        self._silence_asserted = False
        self.transcript.note(self._now, "silent", step=self._path)
        if lasting is not None:
            self._event = Interval(self._event.low + lasting, self._event.high + lasting)

    # Packets -----------------------------------------------------------------------------------------------------
    def _send(self, spec: m.SendSpec) -> Script:
        yield from self._quiet()
        connection = self.connection(spec.conn)
        packet = self._craft.packet(spec, connection)
        when = yield from self._inject(packet, connection)
        self._event = when
        if spec.as_ is not None and isinstance(packet, Segment):
            self._snapshots[spec.as_] = Snapshot(packet, when)

    def _inject(self, packet: Any, connection: Connection) -> Script:
        action = self._do(ev.Inject, packet=packet)
        self._dirty = True
        self._stimulus = (self._path, self._place)
        yield from self._answered(action, self._injected, "the link")
        done = self._injected.pop(action)
        if isinstance(packet, Segment):
            own_ports = (packet.sport, packet.dport) == (connection.tester_port, connection.stack_port)
            own_addresses = (packet.ip.dst, packet.ip.src) == self.stack.addresses[self.trial.ip]
            if own_ports and own_addresses and packet.ip.checksum is None:
                una = connection.snd_una
                connection.injected(packet)
                self._stirred[connection.name] = self._now
                if connection.snd_una != una:
                    self._moved[connection.name] = (una, done.after)
        return Interval(done.before, done.after)

    def _bound(self, spec: m.Timing) -> tuple[Interval, float | None, float | None]:
        """What a timing counts from, and its least and most in seconds."""
        base = self.snapshot(spec.from_).when if spec.from_ else self._event
        if spec.between is not None:
            return base, self.seconds(spec.between[0]), self.seconds(spec.between[1])
        after = self.seconds(spec.after) if spec.after is not None else None
        within = self.seconds(spec.within) if spec.within is not None else None
        return base, after, within

    def _deadline_of(self, spec: m.Timing) -> float:
        base, after, within = self._bound(spec)
        if within is None:
            # Without a bound of its own: the stack's time to answer, from when it may answer.
            return max(self._now, base.high) + (after or 0.0) + self.stack.timers["timer.response.max"]
        return base.high + within + self.stack.tolerance

    def _check_time(self, spec: m.Timing, when: Interval, entry: int) -> None:
        base, after, within = self._bound(spec)
        if after is None and within is None:
            return
        least, most = when.low - base.high, when.high - base.low
        slack = self.stack.tolerance
        came = f"{_seconds(when.high - base.high)} after {spec.from_ or 'the event before'}"
        if within is not None:
            if least > within + slack:
                raise self._fail(
                    f"it came too late: {came}, want within {_seconds(within)}",
                    f"within {_seconds(within)}",
                    came,
                    entry=entry,
                )
            if most > within + slack:
                late = _seconds(when.high - when.low)
                raise Undecided(f"conform's loop was late by {late}; whether {came} is too late cannot be told")
        if after is not None:
            if most < after - slack:
                raise self._fail(
                    f"it came too early: {came}, want after {_seconds(after)}",
                    f"after {_seconds(after)}",
                    came,
                    entry=entry,
                )
            if least < after - slack:
                late = _seconds(when.high - when.low)
                raise Undecided(f"conform's loop was late by {late}; whether {came} is too early cannot be told")

    def _fit(self, spec: m.ExpectSpec, arrival: Arrival, connection: Connection) -> FieldMatcher:
        again = self.snapshot(spec.again).segment if spec.again else None
        return match_segment(spec, arrival.segment, self.environment(connection), again)

    def _consume(self, spec: m.ExpectSpec, arrival: Arrival, connection: Connection, found: FieldMatcher) -> None:
        self._check_time(spec, arrival.when, arrival.entry)
        self._captures.update(found.captured)
        connection.observed(arrival.segment)
        if spec.as_ is not None:
            self._snapshots[spec.as_] = Snapshot(arrival.segment, arrival.when)
        self.transcript.note(
            self._now, "matched", step=self._path, of=arrival.entry, **({"as": spec.as_} if spec.as_ else {})
        )
        self._event = arrival.when
        self._asserted += not self._in_recipe

    def _expect(self, spec: m.ExpectSpec) -> Script:
        connection = self.connection(spec.conn)
        if spec.stream is not None:
            yield from self._stream(spec, connection)
            return
        if spec.again is not None:
            self.snapshot(spec.again)
        queue = self._queues[connection.name]
        deadline = self._deadline_of(spec)
        while True:
            arrival = yield from self._head(queue, deadline)
            if arrival is None:
                raise self._nothing_came(spec, connection)
            found = self._fit(spec, arrival, connection)
            if not found.mismatches:
                queue.popleft()
                self._consume(spec, arrival, connection, found)
                return
            noise = self._noise(connection, arrival, spec.noise)
            if noise is None:
                raise self._mismatch(spec, arrival, connection, found)
            queue.popleft()
            self._pass_over(connection, arrival, noise)

    def _head(self, queue: deque[Arrival], deadline: float) -> Script:
        """The oldest arrival in *queue*, left in it; ``None`` when *deadline* passed without one."""
        while not queue:
            if self._unknown:
                self._require_silence()
            if self._looked >= deadline:
                return None
            yield from self._wait(deadline)
        return queue[0]

    def _nothing_came(self, spec: m.ExpectSpec, connection: Connection) -> StepFailed:
        waited = _seconds(self._now - self._event.high)
        wanted = describe(spec, self.environment(connection))
        return self._fail(f"nothing came within {waited}", wanted, "nothing")

    def _mismatch(
        self, spec: m.ExpectSpec, arrival: Arrival, connection: Connection, found: FieldMatcher
    ) -> StepFailed:
        words = tuple(mismatch.words for mismatch in found.mismatches)
        return self._fail(
            words[0],
            describe(spec, self.environment(connection)),
            self._relative(arrival.segment, connection),
            words,
            arrival.entry,
        )

    def _stream(self, spec: m.ExpectSpec, connection: Connection) -> Script:
        assert spec.stream is not None
        queue = self._queues[connection.name]
        deadline = self._deadline_of(spec)
        start = self._event
        got = bytearray()
        while len(got) < spec.stream:
            arrival = yield from self._head(queue, deadline)
            if arrival is None:
                raise self._fail(
                    f"{len(got)} octets came, want {spec.stream}", f"{spec.stream} octets", f"{len(got)} octets"
                )
            segment = arrival.segment
            fits = segment.payload and segment.seq == connection.snd_nxt and not segment.flags & (RST | SYN | FIN)
            if fits:
                found = match_segment(spec, segment, self.environment(connection), None)
                if found.mismatches:
                    raise self._mismatch(spec, arrival, connection, found)
                got += segment.payload
                if len(got) > spec.stream:
                    raise self._fail(
                        f"{len(got)} octets came, want {spec.stream}",
                        f"{spec.stream} octets",
                        f"{len(got)} octets",
                        entry=arrival.entry,
                    )
                queue.popleft()
                self._event = start  # what is said of time is said of the whole
                self._consume(spec, arrival, connection, found)
                if spec.within is None and spec.between is None:
                    deadline = self._deadline_of(spec)
                continue
            noise = self._noise(connection, arrival, spec.noise)
            if noise is None:
                raise self._fail(
                    f"the stack sent {_named(segment)}, want the octets from SND.NXT = {connection.snd_nxt} on",
                    f"{spec.stream - len(got)} more octets",
                    self._relative(segment, connection),
                    entry=arrival.entry,
                )
            queue.popleft()
            self._pass_over(connection, arrival, noise)
        if spec.payload is not None and bytes(got) != spec.payload:
            raise self._fail("the octets are not those expected", repr(spec.payload[:24]), repr(bytes(got[:24])))

    # Calls -------------------------------------------------------------------------------------------------------
    def _begin(self, call: m.Call, overlap: bool) -> PendingCall:
        patience = (
            self.seconds(call.timeout)
            if call.timeout is not None
            else _CALL_PATIENCE * self.stack.timers["timer.response.max"]
        )
        request = request_of(call, self, patience)
        if overlap:
            request["overlap"] = True
        action = self._do(ev.Call, request=request)
        if emits(call):
            self._dirty = True
            self._stimulus = (self._path, self._place)
        conn_of(call, self)
        return PendingCall(call, action, self._now, self._now + patience + _AGENT_GRACE, self._in_recipe)

    def _call(self, call: m.Call) -> Script:
        yield from self._quiet()
        pending = self._begin(call, overlap=False)
        yield from self._returned(pending)
        self._outcomes.check(pending.call, pending, call, self._replies[pending.action].reply)

    def _returned(self, pending: PendingCall) -> Script:
        while pending.action not in self._replies:
            if self._looked >= pending.deadline:
                raise Broken(f"the agent gave no reply to {_call_name(pending.call)}")
            yield from self._wait(pending.deadline)
        self._event = Interval(max(pending.begun, self._event.low), self._now)

    def _pending(self, name: str) -> PendingCall:
        """The call started as *name*. Raises LookupError."""
        found = self._calls.get(name)
        if found is None:
            raise LookupError(f"no call {name!r} is under way: it was not started, or has been finished")
        return found

    def _start_call(self, call: m.Call) -> Script:
        yield from self._quiet()
        assert call.as_ is not None
        self._calls[call.as_] = self._begin(call, overlap=True)

    def _blocked_step(self, name: str) -> Script:
        pending = self._pending(name)
        while pending.action not in self._blocked:
            if pending.action in self._replies:
                reply = self._outcomes.text(self._replies[pending.action].reply)
                raise self._fail(
                    f"{name} did not sleep: it ended with {reply}",
                    "asleep",
                    reply,
                    entry=self._reply_entries[pending.action],
                )
            if self._looked >= pending.deadline:
                raise Broken(f"the agent said neither that {name} sleeps nor that it ended")
            yield from self._wait(pending.deadline)
        self._asserted += not self._in_recipe

    def _finish(self, outcomes: dict[str, m.Outcome]) -> Script:
        for name, outcome in outcomes.items():
            pending = self._pending(name)
            yield from self._returned(pending)
            del self._calls[name]
            self._outcomes.check(pending.call, pending, outcome, self._replies[pending.action].reply)

    # State -------------------------------------------------------------------------------------------------------
    def _read_state(self, name: str) -> Script:
        """The state of the connection (or listener) *name* in the stack, ``None`` where it cannot be read."""
        if name in self._ports and name not in self.connections:
            stack_port, tester_port = self._ports[name], 0
        else:
            connection = self.connection(name)
            if connection.stack_port is None:
                return st.CLOSED
            stack_port, tester_port = connection.stack_port, connection.tester_port
        action = self._do(ev.ReadState, stack_port=stack_port, tester_port=tester_port)
        yield from self._answered(action, self._states, "the state read-out")
        return self._states.pop(action).state

    def _state(self, spec: m.StateSpec) -> Script:
        if self._dirty:
            yield from self._settle()
        until = None
        if spec.within is not None:
            until = self._event.high + self.seconds(spec.within) + self.stack.tolerance
        again = until is None
        while True:
            state = yield from self._read_state(spec.conn)
            if state is None:
                self._unread_state(spec)
                return
            if state in spec.is_:
                break
            if again:
                # Once more: an answer that the stack handed to another thread of its own may still be on its way.
                again = False
                yield from self._settle()
                continue
            if until is None or self._now >= until:
                wanted = " or ".join(spec.is_)
                raise self._fail(
                    f"the state is {state}, want {wanted}", wanted, state, entry=len(self.transcript.entries) - 1
                )
            yield from self._pause(min(until, self._now + 0.01))
        self._note_state(spec.conn, state)
        self._asserted += not self._in_recipe

    def _pause(self, until: float) -> Script:
        while self._now < until:
            yield from self._wait(until)

    def _note_state(self, name: str, state: str) -> None:
        connection = self.connections.get(name)
        inferred = sorted(connection.states) if connection else []
        self.transcript.note(self._now, "state", step=self._path, conn=name, state=state, inferred=inferred)
        if connection is None or not connection.used or self._queues[name]:
            return
        if state not in self._possible_states(connection):
            text = f"{self._path}: the stack says {state}, the wire implies {' or '.join(inferred)}"
            if text not in self._findings:
                self._findings.append(text)

    def _possible(self, spec: m.StateSpec) -> bool:
        """Whether, by the wire, the state can be what *spec* says."""
        return bool(self._possible_states(self.connection(spec.conn)) & set(spec.is_))

    def _possible_states(self, connection: Connection) -> set[str]:
        """What the wire implies, and what it does not show: a listener's end, and that of a connection by time."""
        states = set(connection.states)
        if st.LISTEN in states:
            states.add(st.CLOSED)
        if self._now - self._stirred.get(connection.name, 0.0) >= self.stack.timers["timer.rto.initial"]:
            unanswered = connection.snd_una != connection.snd_nxt
            ending = states if unanswered else states & {st.TIME_WAIT, st.FIN_WAIT_2}
            states |= {st.follow(state, event) for state in ending for event in ("2msl", "timeout")}
        return states

    def _unread_state(self, spec: m.StateSpec) -> None:
        connection = self.connection(spec.conn)
        wanted = " or ".join(spec.is_)
        if not self._possible(spec):
            actual = " or ".join(sorted(connection.states))
            raise self._fail(f"the wire implies {actual}, want {wanted}", wanted, actual)
        self._unverified.append(f"{self._path}: state {wanted}")

    def _check(self, spec: m.CheckSpec) -> None:
        env = self.environment(self.connections[m.CONNECTION])
        out = FieldMatcher(env)
        out.number(spec.value.text.strip(), spec.is_, int(env.value(spec.value)), 0, sequence=True)
        if out.mismatches:
            first = out.mismatches[0]
            raise self._fail(first.words, first.expected, first.actual, (first.words,))
        self._captures.update(out.captured)
        self._asserted += not self._in_recipe

    # Structure ---------------------------------------------------------------------------------------------------
    def _one_of(self, step: m.OneOfStep, path: str) -> Script:
        chosen = yield from self._choose(step)
        self.transcript.note(self._now, "chosen", step=path, branch=chosen.name)
        yield from self._steps(chosen.steps, f"{path}.one_of.{chosen.name}")
        if chosen.violates is not None:
            summary = f"the stack went the way {chosen.name!r}, which violates {chosen.violates}"
            failure = Failure(path, self._place, summary)
            self._violations.append(StepFailed(failure, (chosen.violates,)))

    def _choose(self, step: m.OneOfStep) -> Script:
        expects: list[tuple[m.Choice, m.ExpectSpec]] = []
        finishes: list[tuple[m.Choice, dict[str, m.Outcome]]] = []
        sleeps: list[tuple[m.Choice, PendingCall]] = []
        lasting: list[tuple[m.Choice, float]] = []
        momentary: list[m.Choice] = []
        reads: list[tuple[m.Choice, m.StateSpec]] = []
        for branch in step.one_of:
            match branch.steps[0]:
                case m.ExpectStep(expect=expect):
                    expects.append((branch, expect))
                case m.FinishStep(finish=outcomes):
                    finishes.append((branch, outcomes))
                case m.BlockedStep(blocked=name):
                    sleeps.append((branch, self._pending(name)))
                case m.SilenceStep(silence=silence) if isinstance(silence.for_, Expr):
                    lasting.append((branch, self.seconds(silence.for_)))
                case m.SilenceStep():
                    momentary.append(branch)
                case m.StateStep(state=state):
                    reads.append((branch, state))
                case _:
                    raise Senseless(f"the way {branch.name!r} begins with nothing by which it could be chosen")
        calls = [self._pending(name) for _, outcomes in finishes for name in outcomes] + [p for _, p in sleeps]
        ends = [(branch, self._event.high + seconds) for branch, seconds in lasting]
        deadlines = [self._deadline_of(spec) for _, spec in expects] + [p.deadline for p in calls]
        deadline = max([*deadlines, *(until for _, until in ends), self._now])
        names = [spec.conn for _, spec in expects] + ([m.CONNECTION] if lasting or momentary else [])
        queues = [self._queues[self.connection(name).name] for name in dict.fromkeys(names)]
        if momentary or reads:
            yield from self._settle()
        while True:
            refused = None
            for name in dict.fromkeys(names):
                found = self._chosen_by_arrival(name, expects, lasting)
                if isinstance(found, m.Choice):
                    return found
                refused = refused or found
            if refused is not None and not (calls or reads):
                raise refused
            for branch, outcomes in finishes:
                pendings = [(self._pending(name), outcome) for name, outcome in outcomes.items()]
                if all(p.action in self._replies for p, _ in pendings) and all(
                    self._outcomes.fits(p.call, p, outcome, self._replies[p.action].reply) for p, outcome in pendings
                ):
                    return branch
            for branch, pending in sleeps:
                if pending.action in self._blocked:
                    return branch
            for branch, state in reads:
                actual = yield from self._read_state(state.conn)
                if actual in state.is_ or (actual is None and self._possible(state)):
                    return branch
            if refused is None and any(queues):
                continue  # it came while the state was read
            if momentary and refused is None:
                return momentary[0]
            passed = [branch for branch, until in ends if self._looked >= until]
            if passed and refused is None:
                return passed[0]
            if self._looked >= deadline or not (deadlines or ends):
                for pending in calls:
                    if pending.action not in self._replies and pending.action not in self._blocked:
                        raise Broken(f"the agent gave no reply to {_call_name(pending.call)}")
                ways = " or ".join(b.name for b in step.one_of)
                raise refused or self._fail(f"the stack went none of the ways {ways}", ways, "none of them")
            yield from self._wait(min([deadline, *(until for _, until in ends if until > self._looked)]))

    def _chosen_by_arrival(
        self, name: str, expects: list[tuple[m.Choice, m.ExpectSpec]], lasting: list[tuple[m.Choice, float]]
    ) -> m.Choice | StepFailed | None:
        """The way that the oldest arrival on *name* fits, the failure if it fits none; ``None`` if nothing came."""
        connection, queue = self.connection(name), self._queues[name]
        if self._unknown:
            self._require_silence()
        while queue:
            arrival = queue[0]
            tried = []
            for branch, spec in expects:
                if spec.conn == name:
                    found = self._fit(spec, arrival, connection)
                    if not found.mismatches:
                        return branch
                    tried.append((branch.name, spec, found))
            if not self._is_noise_to_all(tried, arrival, connection):
                for branch, seconds in lasting:
                    if self._came_after(seconds, arrival):
                        return branch
                return self._no_branch(arrival, connection, tried)
            queue.popleft()
        return None

    def _is_noise_to_all(self, tried: list[_Tried], arrival: Arrival, connection: Connection) -> bool:
        """Whether *arrival*, which fits none of *tried*, is noise to each; then it is passed over."""
        kinds = {self._noise(connection, arrival, spec.noise) for _, spec, _ in tried} or {
            self._noise(connection, arrival, None)
        }
        kind = kinds.pop()
        if kind is None or kinds:
            return False
        self._pass_over(connection, arrival, kind)
        return True

    def _no_branch(self, arrival: Arrival, connection: Connection, tried: list[_Tried]) -> StepFailed:
        env = self.environment(connection)
        words = tuple(f"not {name}: {mismatch.words}" for name, _, found in tried for mismatch in found.mismatches)
        expected = "; or ".join(f"{name}: {describe(spec, env)}" for name, spec, _ in tried) or "silence"
        return self._fail(
            f"the stack sent {_named(arrival.segment)}, which fits none of the ways",
            expected,
            self._relative(arrival.segment, connection),
            words,
            arrival.entry,
        )

    def _any_order(self, step: m.AnyOrderStep, path: str) -> Script:
        left: dict[int, m.ExpectStep] = {}
        for index, inner in enumerate(step.any_order):
            if not isinstance(inner, m.ExpectStep):
                raise Senseless("any_order holds a step that is no expectation")
            left[index] = inner
        start = self._event
        deadline = max(self._deadline_of(inner.expect) for inner in left.values())
        while left:
            names = list(dict.fromkeys(inner.expect.conn for inner in left.values()))
            name = next((name for name in names if self._queues[self.connection(name).name]), None)
            if name is None:
                if self._unknown:
                    self._require_silence()
                if self._looked >= deadline:
                    first = next(iter(left.values())).expect
                    raise self._nothing_came(first, self.connection(first.conn))
                yield from self._wait(deadline)
                continue
            connection, arrival = self.connections[name], self._queues[name][0]
            tried: list[_Tried] = []
            taken = None
            for index, inner in left.items():
                if inner.expect.conn == name:
                    found = self._fit(inner.expect, arrival, connection)
                    if not found.mismatches:
                        taken = index
                        break
                    tried.append((f"[{index}]", inner.expect, found))
            if taken is not None:
                self._event = start  # none of them is the event before another
                yield from self._step(left.pop(taken), f"{path}.any_order[{taken}]")
            elif self._is_noise_to_all(tried, arrival, connection):
                self._queues[name].popleft()
            else:
                raise self._no_branch(arrival, connection, tried)

    def _comes(self, spec: m.ExpectSpec) -> Script:
        """Whether what comes next fits *spec*; waits for its ``within``, else only settles."""
        connection = self.connection(spec.conn)
        queue = self._queues[connection.name]
        if spec.within is not None or spec.between is not None or spec.after is not None:
            deadline = self._deadline_of(spec)
        else:
            yield from self._settle()
            deadline = self._now
        while True:
            arrival = yield from self._head(queue, deadline)
            if arrival is None:
                return False
            if not self._fit(spec, arrival, connection).mismatches:
                return True
            noise = self._noise(connection, arrival, spec.noise)
            if noise is None:
                return False
            queue.popleft()
            self._pass_over(connection, arrival, noise)

    def _optional(self, steps: list[Any], path: str) -> Script:
        if not isinstance(steps[0], m.ExpectStep):
            raise Senseless("optional begins with a step that is no expectation")
        taken = yield from self._comes(steps[0].expect)
        self.transcript.note(self._now, "chosen", step=path, branch="taken" if taken else "passed over")
        if taken:
            yield from self._steps(steps, f"{path}.optional")

    def _repeat(self, spec: m.RepeatSpec, path: str) -> Script:
        before: Interval | None = None
        outer, self._gap = self._gap, None
        first = spec.steps[0]
        for index in range(spec.times):
            if spec.at_least is not None and index >= spec.at_least:
                if not isinstance(first, m.ExpectStep):
                    raise Senseless("what may come more often than at-least begins with a step that is no expectation")
                more = yield from self._comes(first.expect)
                if not more:
                    break
            yield from self._steps(spec.steps, f"{path}.repeat[{index}]")
            if spec.gap is not None:
                if before is not None:
                    self._check_gap(spec.gap, before, self._event)
                before = self._event
        self._gap, self._previous_gap = outer, None

    def _check_gap(self, gap: m.Gap, before: Interval, event: Interval) -> None:
        low, high = event.low - before.high, event.high - before.low
        previous, self._gap = self._gap, Interval(low, high)
        if previous is None and any(name == "previous" for name, _ in gap.is_.names):
            return  # the first gap has none before it
        bounds = []
        for self._previous_gap in (previous.low, previous.high) if previous is not None else (None,):
            bounds.append(self.seconds(gap.is_))
        least, most = min(bounds), max(bounds)
        low_slack, high_slack = (t * gap.tolerance / 100 + self.stack.tolerance for t in (least, most))
        came = f"{_seconds((low + high) / 2)} after the one before"
        wanted = f"{_seconds((least + most) / 2)} ± {gap.tolerance} %"
        if high < least - low_slack or low > most + high_slack:
            raise self._fail(f"it came {came}, want {wanted}", wanted, came)
        if low < most - high_slack or high > least + low_slack:
            raise Undecided(f"conform's loop was late; whether {came} is right cannot be told")

    # The end -----------------------------------------------------------------------------------------------------
    def _end(self) -> Script:
        self._path, self._place = "end", self._place
        self.transcript.note(self._now, "step", step="end")
        yield from self._quiet()
        for name, pending in self._calls.items():
            until = self._now + self.stack.timers["timer.response.max"]
            while pending.action not in self._replies and not pending.in_recipe:
                if self._looked >= until:
                    raise self._fail(f"the call {name} has not ended", f"{name} ended", "it still sleeps")
                yield from self._wait(until)
            if not pending.in_recipe:
                self._outcomes.check(pending.call, pending, pending.call, self._replies[pending.action].reply)
        if self.trial.case.liveness == "connection":
            yield from self._probe()
        else:
            yield from self._probe_port()
        yield from self._settle()
        self._require_silence()
        self._check_faults()

    def _probe(self) -> Script:
        """The stack is alive: each state's own answer to a segment that it must answer and that changes nothing."""
        used = [c for c in self.connections.values() if c.used and c.stack_port is not None]
        connection = used[0] if used else None
        if connection is None:
            yield from self._probe_port()
            return
        state = None
        if "states" in self.stack.capabilities:
            state = yield from self._read_state(connection.name)
            if state is not None:
                self._note_state(connection.name, state)
        if state is None and len(connection.states) == 1:
            state = next(iter(connection.states))
        if state in st.SYNCHRONIZED | {st.SYN_RECEIVED} and connection.iss is not None:
            # One octet below the window: unacceptable, so it draws an ACK and is dropped (section 3.10.7.4, first).
            segment = self._craft.segment(
                connection, flags=ACK, seq=add(connection.rcv_nxt, -1), ack=connection.snd_nxt
            )
            yield from self._probed(segment, connection, ACK, connection.snd_nxt, connection.rcv_nxt)
        elif state == st.SYN_SENT and connection.iss is not None:
            wrong = add(connection.snd_nxt, 1000)
            segment = self._craft.segment(connection, flags=ACK, seq=connection.tester_nxt, ack=wrong)
            yield from self._probed(segment, connection, RST, wrong, None)
        elif state in (st.CLOSED, st.LISTEN):
            segment = self._craft.segment(connection, flags=ACK, seq=connection.tester_nxt, ack=0x1234)
            yield from self._probed(segment, connection, RST, 0x1234, None)
        else:
            yield from self._probe_port()

    def _probe_port(self) -> Script:
        """From a port never used: an ACK that belongs to nothing draws a reset from CLOSED and LISTEN alike."""
        connection = self.connection("probe")
        connection.stack_port = connection.stack_port or self.stack.port
        segment = self._craft.segment(connection, flags=ACK, seq=connection.tester_nxt, ack=0x1234)
        yield from self._probed(segment, connection, RST, 0x1234, None)

    def _probed(self, probe: Segment, connection: Connection, flag: int, seq: int, ack: int | None) -> Script:
        yield from self._inject(probe, connection)
        queue = self._queues[connection.name]
        wanted = f"{'ACK' if flag == ACK else 'RST'} seq={seq}" + (f" ack={ack}" if ack is not None else "")
        deadline = self._now + self.stack.timers["timer.response.max"]
        while True:
            arrival = yield from self._head(queue, deadline)
            if arrival is None:
                raise self._fail("the stack gives no sign of life: the probe was not answered", wanted, "nothing")
            queue.popleft()
            segment = arrival.segment
            right = segment.seq == seq and segment.flags & (RST | flag) == flag and (ack is None or segment.ack == ack)
            if right and not segment.length:
                connection.observed(segment)
                self.transcript.note(self._now, "matched", step=self._path, of=arrival.entry)
                return
            noise = self._noise(connection, arrival, None)
            if noise is None:
                summary = f"the probe of life was answered by {_named(segment)}, want {wanted}"
                raise self._fail(summary, wanted, self._relative(segment, connection), entry=arrival.entry)
            self._pass_over(connection, arrival, noise)

    # For Craft and Outcomes --------------------------------------------------------------------------------------
    def snapshot(self, name: str) -> Snapshot:
        """The segment kept as *name*. Raises LookupError."""
        found = self._snapshots.get(name)
        if found is None:
            raise LookupError(f"there is no segment {name!r}: the way that keeps it was not taken")
        return found

    def addresses(self) -> IPFields:
        """The IP fields of what the tester sends."""
        stack, tester = self.stack.addresses[self.trial.ip]
        return IPFields(self.trial.ip, tester, stack)

    def fail(self, summary: str, expected: str, actual: str, words: tuple[str, ...], action: int) -> StepFailed:
        """The failure of the call that *action* began."""
        return self._fail(summary, expected, actual, words, self._reply_entries.get(action))

    def asserted(self) -> None:
        """An assertion of the case itself ran."""
        self._asserted += not self._in_recipe

    def heard_port(self, descriptor: str, port: int) -> None:
        """*descriptor* is bound to *port*."""
        self._ports[descriptor] = port

    def listens(self, descriptor: str) -> None:
        """*descriptor* listens."""
        port = self._ports.get(descriptor, self.stack.port)
        self._listening.add(port)
        for connection in self.connections.values():
            if connection.stack_port == port:
                connection.called("passive-open")

    def unlistens(self, descriptor: str) -> None:
        """*descriptor*, which may be a listener, was closed."""
        port = self._ports.get(descriptor)
        if port is None or descriptor in self._descriptors:
            return
        self._listening.discard(port)
        for connection in self.connections.values():
            if connection.stack_port == port:
                connection.called("passive-close")

    def port_of(self, descriptor: str) -> int | None:
        """The port that *descriptor* is bound to, where that is known."""
        return self._ports.get(descriptor)

    def descriptor(self, name: str) -> str | None:
        """The connection that the descriptor *name* is of."""
        return self._descriptors.get(name)

    def lingers(self, descriptor: str, aborts: bool) -> None:
        """Whether a close of *descriptor* is an ABORT: SO_LINGER is on, and its time zero."""
        (self._lingering.add if aborts else self._lingering.discard)(descriptor)

    def aborts(self, descriptor: str) -> bool:
        """Whether a close of *descriptor* is an ABORT (RFC 9293 section 3.10.5)."""
        return descriptor in self._lingering

    def describes(self, name: str, connection: str) -> None:
        """The descriptor *name* is of *connection*."""
        self._descriptors[name] = connection


def _named(segment: Segment) -> str:
    return str(segment)


def _call_name(call: m.Call) -> str:
    do = getattr(call, "do", "the call")
    on = getattr(call, "on", None)
    return f"{do} on {on}" if on else str(do)


def _seconds(value: float) -> str:
    return f"{value * 1000:.1f} ms" if abs(value) < 1 else f"{value:.2f} s"
