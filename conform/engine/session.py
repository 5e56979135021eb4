"""Interprets one trial: the case's steps against what the stack does.

A :class:`Session` does no I/O and reads no clock. Its interpreter is one generator; a step that must wait yields, and
is resumed at each event. The same events at the same times give the same actions, transcript and verdict.
"""

from __future__ import annotations

import contextlib
import random
from collections import deque
from collections.abc import Generator
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
from conform.tcp.segment import ACK, RST, IPFields, Segment
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
        self._previous_gap: float | None = None
        self._looked = 0.0
        self._moved: dict[str, tuple[int, float]] = {}
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
        return Environment(connection, self.resolve, self._captures.__setitem__)

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
        self._deadline = deadline
        yield
        self._check_faults()

    def _do(self, make: Any, **fields: Any) -> int:
        """Emit an action; its id."""
        action = make(id=self._next_id, **fields)
        self._next_id += 1
        self.transcript.action(self._now, action, self._path)
        self._actions.append(action)
        return int(action.id)

    # Settling and silence ----------------------------------------------------------------------------------------
    def _settle(self) -> Script:
        action = self._do(ev.Settle)
        self._settled_once = False
        deadline = self._now + _CALL_PATIENCE * self.stack.timers["timer.response.max"]
        while action not in self._settled:
            if self._now >= deadline:
                raise self._fail(
                    "the stack gives no sign of life: it does not settle", "an answer behind all others", "nothing"
                )
            yield from self._wait(deadline)
        self._settled_once = True
        self._dirty = False

    def _noise(self, connection: Connection, segment: Segment, allowed: list[Any] | str | None) -> str | None:
        name = connection.noise(segment)
        if allowed == "forbid":
            return None
        if allowed is None:
            allowed = self.trial.case.noise if self.trial.case.noise is not None else list(DEFAULT_NOISE)
        return name if name in allowed else None

    def _pass_over(self, connection: Connection, arrival: Arrival, name: str) -> None:
        self.transcript.note(self._now, "noise", of=arrival.entry, name=name)
        connection.observed(arrival.segment)

    def _require_silence(self, allowed: list[Any] | str | None = None) -> None:
        """Nothing waits to be consumed, but for noise."""
        for name, queue in self._queues.items():
            connection = self.connections[name]
            while queue:
                arrival = queue.popleft()
                noise = self._noise(connection, arrival.segment, allowed)
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

    def _silence(self, spec: m.SilenceSpec) -> Script:
        self._asserted += not self._in_recipe
        self._silence_asserted = True
        if isinstance(spec.for_, Expr):
            until = self._event.high + self.seconds(spec.for_)
            while self._now < until:
                self._require_silence(spec.noise)
                yield from self._wait(until)
        yield from self._settle()
        self._require_silence(spec.noise)
        self._silence_asserted = False
        self.transcript.note(self._now, "silent", step=self._path)
        if isinstance(spec.for_, Expr):
            self._event = Interval(self._now, self._now)

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
        while action not in self._injected:
            yield from self._wait()
        done = self._injected.pop(action)
        self._dirty = True
        self._stimulus = (self._path, self._place)
        if isinstance(packet, Segment):
            own_ports = (packet.sport, packet.dport) == (connection.tester_port, connection.stack_port)
            if own_ports and packet.ip.checksum is None and packet.ip.src == self.stack.addresses[self.trial.ip][1]:
                connection.injected(packet)
        return Interval(done.before, done.after)

    def _bound(self, spec: m.Timing) -> tuple[Interval, float | None, float | None]:
        """What a timing counts from, and its least and most in seconds."""
        base = self._snapshots[spec.from_].when if spec.from_ else self._event
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
                raise Undecided(
                    f"conform's loop was late by {_seconds(when.high - when.low)}; whether {came} is too late cannot be told"
                )
        if after is not None:
            if most < after - slack:
                raise self._fail(
                    f"it came too early: {came}, want after {_seconds(after)}",
                    f"after {_seconds(after)}",
                    came,
                    entry=entry,
                )
            if least < after - slack:
                raise Undecided(
                    f"conform's loop was late by {_seconds(when.high - when.low)}; whether {came} is too early cannot be told"
                )

    def _fit(self, spec: m.ExpectSpec, arrival: Arrival, connection: Connection) -> FieldMatcher:
        again = self._snapshots[spec.again].segment if spec.again else None
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
            noise = self._noise(connection, arrival.segment, spec.noise)
            if noise is None:
                raise self._mismatch(spec, arrival, connection, found)
            queue.popleft()
            self._pass_over(connection, arrival, noise)

    def _head(self, queue: deque[Arrival], deadline: float) -> Script:
        """The oldest arrival in *queue*, left in it; ``None`` when *deadline* passed without one."""
        while not queue:
            if self._unknown:
                self._require_silence()
            if self._now >= deadline:
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
        got = bytearray()
        while len(got) < spec.stream:
            arrival = yield from self._head(queue, deadline)
            if arrival is None:
                raise self._fail(
                    f"{len(got)} octets came, want {spec.stream}", f"{spec.stream} octets", f"{len(got)} octets"
                )
            segment = arrival.segment
            fits = segment.payload and segment.seq == connection.snd_nxt and not segment.flags & RST
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
                self._consume(spec, arrival, connection, found)
                if spec.within is None:
                    deadline = self._deadline_of(spec)
                continue
            noise = self._noise(connection, segment, spec.noise)
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
            if self._now >= pending.deadline:
                raise Broken(f"the agent gave no reply to {_call_name(pending.call)}")
            yield from self._wait(pending.deadline)
        self._event = Interval(pending.begun, self._now)

    def _start_call(self, call: m.Call) -> Script:
        yield from self._quiet()
        assert call.as_ is not None
        self._calls[call.as_] = self._begin(call, overlap=True)

    def _blocked_step(self, name: str) -> Script:
        pending = self._calls[name]
        while pending.action not in self._blocked:
            if pending.action in self._replies:
                reply = self._outcomes.text(self._replies[pending.action].reply)
                raise self._fail(
                    f"{name} did not sleep: it ended with {reply}",
                    "asleep",
                    reply,
                    entry=self._reply_entries[pending.action],
                )
            if self._now >= pending.deadline:
                raise Broken(f"the agent said neither that {name} sleeps nor that it ended")
            yield from self._wait(pending.deadline)
        self._asserted += not self._in_recipe

    def _finish(self, outcomes: dict[str, m.Outcome]) -> Script:
        for name, outcome in outcomes.items():
            pending = self._calls[name]
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
        while action not in self._states:
            yield from self._wait()
        return self._states.pop(action).state

    def _state(self, spec: m.StateSpec) -> Script:
        if self._dirty:
            yield from self._settle()
        until = self._event.high + self.seconds(spec.within) if spec.within is not None else None
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
        possible = connection.states | ({st.CLOSED} if connection.states == {st.LISTEN} else set())
        if state not in possible:
            text = f"{self._path}: the stack says {state}, the wire implies {' or '.join(inferred)}"
            if text not in self._findings:
                self._findings.append(text)

    def _unread_state(self, spec: m.StateSpec) -> None:
        connection = self.connection(spec.conn)
        possible = connection.states | ({st.CLOSED} if st.LISTEN in connection.states else set())
        wanted = " or ".join(spec.is_)
        if not possible & set(spec.is_):
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
        expects = [(b, b.steps[0].expect) for b in step.one_of if isinstance(b.steps[0], m.ExpectStep)]
        finishes = [(b, b.steps[0].finish) for b in step.one_of if isinstance(b.steps[0], m.FinishStep)]
        sleeps = [(b, self._calls[b.steps[0].blocked]) for b in step.one_of if isinstance(b.steps[0], m.BlockedStep)]
        silences = [(b, b.steps[0].silence) for b in step.one_of if isinstance(b.steps[0], m.SilenceStep)]
        reads = [(b, b.steps[0].state) for b in step.one_of if isinstance(b.steps[0], m.StateStep)]
        deadlines = [self._deadline_of(spec) for _, spec in expects]
        deadlines += [self._calls[name].deadline for _, outcomes in finishes for name in outcomes]
        deadlines += [pending.deadline for _, pending in sleeps]
        lasting = [(b, self._event.high + self.seconds(s.for_)) for b, s in silences if isinstance(s.for_, Expr)]
        deadline = max([*deadlines, *(until for _, until in lasting), self._now])
        momentary = [b for b, s in silences if not isinstance(s.for_, Expr)]
        names = list(dict.fromkeys(spec.conn for _, spec in expects)) or [m.CONNECTION]
        if momentary or reads:
            yield from self._settle()
        while True:
            for name in names:
                connection = self.connection(name)
                queue = self._queues[name]
                while queue:
                    arrival = queue[0]
                    tried = []
                    for branch, spec in expects:
                        if spec.conn != name:
                            continue
                        found = self._fit(spec, arrival, connection)
                        if not found.mismatches:
                            return branch
                        tried.append((branch, spec, found))
                    noise = self._noise(connection, arrival.segment, None)
                    if noise is None:
                        raise self._no_branch(arrival, connection, tried)
                    queue.popleft()
                    self._pass_over(connection, arrival, noise)
            for branch, outcomes in finishes:
                pendings = [self._calls[name] for name in outcomes]
                if all(p.action in self._replies for p in pendings):
                    replies = [self._replies[p.action].reply for p in pendings]
                    if all(
                        self._outcomes.fits(p.call, p, o, r)
                        for p, o, r in zip(pendings, outcomes.values(), replies, strict=True)
                    ):
                        return branch
            for branch, pending in sleeps:
                if pending.action in self._blocked:
                    return branch
            for branch, state in reads:
                actual = yield from self._read_state(state.conn)
                if actual is None or actual in state.is_:
                    return branch
            if momentary:
                return momentary[0]
            passed = [b for b, until in lasting if self._now >= until]
            if passed:
                return passed[0]
            if self._now >= deadline or (reads and not (expects or finishes or sleeps or lasting)):
                names_ = " or ".join(b.name for b in step.one_of)
                raise self._fail(f"the stack went none of the ways {names_}", names_, "none of them")
            waits = [until for _, until in lasting if until > self._now]
            yield from self._wait(min([deadline, *waits]))

    def _no_branch(self, arrival: Arrival, connection: Connection, tried: list[Any]) -> StepFailed:
        env = self.environment(connection)
        words = tuple(
            f"not {branch.name}: {mismatch.words}" for branch, _, found in tried for mismatch in found.mismatches
        )
        expected = "; or ".join(f"{branch.name}: {describe(spec, env)}" for branch, spec, _ in tried) or "silence"
        return self._fail(
            f"the stack sent {_named(arrival.segment)}, which fits none of the ways",
            expected,
            self._relative(arrival.segment, connection),
            words,
            arrival.entry,
        )

    def _any_order(self, step: m.AnyOrderStep, path: str) -> Script:
        left = [(index, inner) for index, inner in enumerate(step.any_order)]
        deadline = max(self._deadline_of(inner.expect) for _, inner in left)
        while left:
            taken = None
            for index, inner in left:
                connection = self.connection(inner.expect.conn)
                queue = self._queues[connection.name]
                if queue and not self._fit(inner.expect, queue[0], connection).mismatches:
                    taken = (index, inner)
                    break
            if taken is not None:
                yield from self._step(taken[1], f"{path}.any_order[{taken[0]}]")
                left.remove(taken)
                continue
            for name in dict.fromkeys(inner.expect.conn for _, inner in left):
                queue, connection = self._queues[name], self.connections[name]
                while queue:
                    arrival = queue[0]
                    tried = [
                        (
                            m.Choice.model_construct(name=f"[{i}]"),
                            inner.expect,
                            self._fit(inner.expect, arrival, connection),
                        )
                        for i, inner in left
                        if inner.expect.conn == name
                    ]
                    if any(not found.mismatches for _, _, found in tried):
                        break
                    noise = self._noise(connection, arrival.segment, None)
                    if noise is None:
                        raise self._no_branch(arrival, connection, tried)
                    queue.popleft()
                    self._pass_over(connection, arrival, noise)
            if any(self._queues[inner.expect.conn] for _, inner in left):
                continue
            if self._now >= deadline:
                raise self._nothing_came(left[0][1].expect, self.connection(left[0][1].expect.conn))
            yield from self._wait(deadline)

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
            noise = self._noise(connection, arrival.segment, spec.noise)
            if noise is None:
                return False
            queue.popleft()
            self._pass_over(connection, arrival, noise)

    def _optional(self, steps: list[Any], path: str) -> Script:
        taken = yield from self._comes(steps[0].expect)
        self.transcript.note(self._now, "chosen", step=path, branch="taken" if taken else "passed over")
        if taken:
            yield from self._steps(steps, f"{path}.optional")

    def _repeat(self, spec: m.RepeatSpec, path: str) -> Script:
        before: Interval | None = None
        for index in range(spec.times):
            first = spec.steps[0]
            if spec.at_least is not None and index >= spec.at_least and isinstance(first, m.ExpectStep):
                more = yield from self._comes(first.expect)
                if not more:
                    break
            yield from self._steps(spec.steps, f"{path}.repeat[{index}]")
            if spec.gap is not None:
                if before is not None:
                    self._check_gap(spec.gap, before, self._event)
                before = self._event
        self._previous_gap = None

    def _check_gap(self, gap: m.Gap, before: Interval, event: Interval) -> None:
        low, high = event.low - before.high, event.high - before.low
        try:
            wanted = self.seconds(gap.is_)
        except LookupError:  # the first gap has none before it
            self._previous_gap = (low + high) / 2
            return
        slack = wanted * gap.tolerance / 100 + self.stack.tolerance
        came = f"{_seconds((low + high) / 2)} after the one before"
        if high < wanted - slack or low > wanted + slack:
            raise self._fail(
                f"it came {came}, want {_seconds(wanted)} ± {gap.tolerance} %",
                f"{_seconds(wanted)} ± {gap.tolerance} %",
                came,
            )
        if low < wanted - slack or high > wanted + slack:
            raise Undecided(f"conform's loop was late; whether {came} is right cannot be told")
        self._previous_gap = (low + high) / 2

    # The end -----------------------------------------------------------------------------------------------------
    def _end(self) -> Script:
        self._path, self._place = "end", self._place
        self.transcript.note(self._now, "step", step="end")
        yield from self._quiet()
        left = [name for name, pending in self._calls.items() if not pending.in_recipe]
        for name in left:
            if self._calls[name].action in self._replies:
                continue
            raise self._fail(f"the call {name} has not ended", f"{name} ended", "it still sleeps")
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
            noise = self._noise(connection, segment, None)
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
