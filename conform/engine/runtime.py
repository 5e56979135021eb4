"""What the steps of one trial share: its clock, its connections and what arrived on them, its names and their values.

Step functions take the :class:`Runtime` as their first argument, and wait and fail by it alone. One that may wait is a
generator (:data:`Script`), to be called with ``yield from``: each ``yield`` in it lets one event happen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Generator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from conform.case import model as m
from conform.case.expr import VARIABLES, Expr
from conform.case.vocabulary import DEFAULT_NOISE
from conform.engine import events as ev
from conform.engine.connections import Arrival, Connections, End
from conform.engine.craft import Craft
from conform.engine.descriptors import Descriptors
from conform.engine.endings import Broken, NotTaken, Senseless, StepFailed, Undecided
from conform.engine.given import Given
from conform.engine.matcher import Environment, finite, relative
from conform.engine.outcomes import Outcomes
from conform.engine.timing import Interval, duration, exactly, judge
from conform.engine.transcript import DIGITS, Transcript
from conform.engine.trial import Trial
from conform.engine.verdict import Failure
from conform.tcp import rules
from conform.tcp.segment import ACK, SYN, Segment
from conform.tcp.sequence import add, diff
from conform.tcp.tracker import Connection

#: What may wait: yields when it does, and returns what its docstring says.
Script = Generator[None, None, Any]

#: How long a call may take that says nothing of it, in multiples of the stack's own time to answer.
CALL_PATIENCE = 5
#: How long after that the agent itself may be silent, in seconds, before it counts as broken.
AGENT_GRACE = 5.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A segment under a name."""

    segment: Segment
    when: Interval


@dataclass(slots=True)
class PendingCall:
    """A call that was begun by ``action``. An agent that has not said by ``deadline`` what came of it is broken.

    ``undo`` takes back what it made possible, should it turn out to have failed.
    """

    call: m.Call
    action: int
    begun: float
    deadline: float
    in_recipe: bool
    undo: Callable[[], None] | None = None


class _Held(Protocol):
    """What comes of holding an arrival against what is expected."""

    @property
    def fits(self) -> bool:
        """Whether it is what is expected."""


_H = TypeVar("_H", bound=_Held)

#: Noise as a step says it: names, ``"forbid"``, or ``None`` for the case's own.
Allowed = list[Any] | str | None


class _At:
    """The context of a step."""

    __slots__ = ("_outer", "_path", "_run", "_step")

    def __init__(self, run: Runtime, step: m.Step, path: str) -> None:
        self._run, self._step, self._path = run, step, path
        self._outer = run.path, run.place, run.covers

    def __enter__(self) -> None:
        run, step = self._run, self._step
        run.path, run.place = self._path, step.place or run.place
        if step.covers:
            run.covers = tuple(step.covers)
        run.transcript.note(run.now, "step", step=self._path)

    def __exit__(self, ended_by: object, *_: object) -> None:
        if ended_by is None:
            run = self._run
            run.path, run.place, run.covers = self._outer


class Runtime:
    """What is known in one trial at one moment, and how a step waits, settles, passes noise over and fails.

    All times are seconds since the trial's start. The session files each event here before it resumes the step.
    """

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.stack = trial.stack
        self.transcript = Transcript()
        self.craft = Craft(self)
        self.outcomes = Outcomes(self)

        # The clock.
        #: The time of the last event.
        self.now = 0.0
        #: When the link was last looked at: nothing that came before is unread.
        self.looked = 0.0
        #: When the step that waits wants to be resumed if nothing happens; ``None`` for never.
        self.deadline: float | None = None
        #: "The event before": what timing counts from.
        self.event = Interval(0.0, 0.0)
        #: Since when what the next step expects is awaited, where a step made of steps has awaited it already.
        self.awaited: float | None = None
        #: In a repetition with gaps: the last one, and what ``previous`` is while the next is judged.
        self.gap: Interval | None = None
        self.previous_gap: float | None = None

        # Where the script is.
        #: The step at hand: its path, its [line, column], and the requirements that its failure breaks.
        self.path = "start"
        self.place: tuple[int, int] | None = None
        self.covers: tuple[str, ...] = tuple(trial.case.covers)
        self.in_recipe = False
        #: What was passed over as noise since the stack was last stirred: of which kind, at which end, the arrival.
        self.passed: list[tuple[str, End, Arrival]] = []

        # Actions that were not given out yet, and what answered those that were, by the action's id.
        self.actions: list[ev.Action] = []
        self.replies: dict[int, ev.Returned] = {}
        #: Where each reply is in the transcript.
        self.reply_entries: dict[int, int] = {}
        self.blocked: set[int] = set()
        self.settled: set[int] = set()
        self.states: dict[int, ev.StateRead] = {}
        self.injected: dict[int, ev.Injected] = {}
        #: Why conform itself cannot go on.
        self.broke: str | None = None
        self.lost = 0
        self.died: str | None = None
        self.died_at: int | None = None
        self._next_id = 1

        # Silence.
        #: Whether something was done, since it last settled, that can make the stack send; and the step that did it.
        self.dirty = False
        self.stimulus: tuple[str, tuple[int, int] | None] = ("start", None)
        #: Whether the step at hand asserts silence, which is else only implied.
        self.silence_asserted = False

        # What the case has names for.
        self.snapshots: dict[str, Snapshot] = {}
        self.captures: dict[str, int] = {}
        self.calls: dict[str, PendingCall] = {}

        # What the verdict is made of.
        #: How many assertions of the case itself, not of its recipe, ran.
        self.assertions = 0
        self.violations: list[StepFailed] = []
        self.findings: list[str] = []
        self.unverified: list[str] = []
        self._rule: tuple[str, str, int] | None = None

        # Connections, the application's sockets, and what waits on each.
        self.connections: dict[str, Connection] = {}
        self.descriptors = Descriptors(self.connections, self.stack.port, self.stack.services.values())
        self.ends = Connections(trial, self.connections, self.descriptors.is_listening)
        #: Segments that belong to no connection.
        self.unknown: list[Arrival] = []
        #: Whether all that the application gave to send is known, and of which connection.
        self.all_given = "calls" in self.stack.capabilities

    # Connections -------------------------------------------------------------------------------------------------
    def connection(self, name: str) -> Connection:
        """The connection called *name*, made on first use."""
        return self.ends[name].connection

    def arrive(self, segment: Segment, when: Interval, entry: int) -> None:
        """Queue *segment* on its connection, where it waits to be consumed; *entry* is its index in the transcript."""
        end = self.ends.receiver(segment)
        broken = rules.broken(segment, end.connection if end is not None else None)
        if broken is not None and self._rule is None:
            self._rule = (*broken, entry)
        if end is None:
            self.unknown.append(Arrival(segment, when, entry))
            return
        end.queue.append(Arrival(segment, when, entry))
        end.stirred = self.now
        if not self.dirty:
            # Behind its fence: recorded against the step that caused it, and queued all the same.
            self.transcript.note(self.now, "late", of=entry, step=self.stimulus[0])

    def consumed(self, end: End, arrival: Arrival) -> None:
        """*arrival*, which was taken off the queue of *end*, was expected, or is noise. Raises StepFailed."""
        segment, connection = arrival.segment, end.connection
        iss = segment.seq if segment.flags & SYN else connection.iss
        if segment.flags & SYN:
            if end.given_iss not in (None, iss):
                end.given = Given()  # a new incarnation
            end.given_iss = iss
        if iss is not None and self.all_given and connection.stack_port not in self.stack.services.values():
            broken = end.given.broken_by(segment, iss, connection.snd_nxt)
            if broken is not None:
                raise self._breaks(*broken, arrival.entry)
        connection.observed(segment)

    # Values ------------------------------------------------------------------------------------------------------
    def resolve(self, name: str, connection: Connection) -> float:
        """The value of *name* in an expression about *connection*.

        Raises LookupError when it has none, and Senseless when the stack's description lacks it.
        """
        if name in self.stack.timers:
            return self.stack.timers[name]
        if name == "previous":
            if self.previous_gap is None:
                raise LookupError("there is no previous gap yet")
            return self.previous_gap
        if name in self.captures:
            return self.captures[name]
        head, _, rest = name.partition(".")
        if head in self.snapshots and rest:
            snapshot = self.snapshots[head]
            segment = snapshot.segment
            match rest:
                case "time":
                    return snapshot.when.low
                case "len":
                    return segment.length
                case "end":
                    return add(segment.seq, segment.length)
            return float(getattr(segment, rest)) if rest not in ("seq", "ack") else getattr(segment, rest)
        if rest in VARIABLES and self.ends.names(head):
            return self.connection(head).variable(rest)
        if name in VARIABLES:
            return connection.variable(name)
        if head == "timer":
            raise Senseless(f"the stack's description has no {name}")
        raise NotTaken(f"there is no value {name}: what would keep it did not happen")

    def environment(self, connection: Connection) -> Environment:
        """Where expressions about *connection* find their values."""
        return Environment(connection, self.resolve)

    def seconds(self, expr: Expr) -> float:
        """*expr* in seconds. Raises what :meth:`resolve` raises, and ArithmeticError."""
        return finite(float(expr.evaluate(lambda n: self.resolve(n, self.connections[m.CONNECTION]))))

    def snapshot(self, name: str) -> Snapshot:
        """The segment kept as *name*. Raises NotTaken."""
        found = self.snapshots.get(name)
        if found is None:
            raise NotTaken(f"there is no segment {name!r}: the way that keeps it was not taken")
        return found

    # Steps ---------------------------------------------------------------------------------------------------------
    def at(self, step: m.Step, path: str) -> _At:
        """A context in which *step*, at *path*, is at hand; where it ends the trial it stays so."""
        return _At(self, step, path)

    # What comes of a step ----------------------------------------------------------------------------------------
    def asserted(self) -> None:
        """An assertion ran; the recipe's do not count."""
        self.assertions += not self.in_recipe

    def finding(self, text: str) -> None:
        """Something was observed that fails nothing; told once."""
        if text not in self.findings:
            self.findings.append(text)

    def fail(
        self, summary: str, expected: str = "", actual: str = "", words: tuple[str, ...] = (), entry: int | None = None
    ) -> StepFailed:
        """The failure of the step at hand, to be raised; the arguments are those of :class:`Failure`."""
        return StepFailed(Failure(self.path, self.place, summary, expected, actual, words, entry), self.covers)

    def check_faults(self) -> None:
        """Raise Broken when conform itself failed, StepFailed when the stack died or a segment broke a rule of all.

        Neither is the precondition's fault: they fail in the recipe as behind it. Undecided where conform lost packets:
        neither what came nor what did not shows anything then.
        """
        if self.broke is not None:
            raise Broken(self.broke)
        if self.died is not None:
            self.in_recipe = False
            summary, *output = self.died.splitlines()
            raise self.fail(summary, "a stack that lives", "none", tuple(output), self.died_at)
        if self.lost:
            raise Undecided(
                f"conform had no room for {self.lost} of the link's packets: what the stack sent is not known"
            )
        if self._rule is not None:
            raise self._breaks(*self._rule)

    def _breaks(self, requirement: str, words: str, entry: int) -> StepFailed:
        self.in_recipe = False
        failure = Failure(self.path, self.place, f"a segment breaks {requirement}: {words}", entry=entry)
        return StepFailed(failure, (requirement,))

    # Doing and waiting -------------------------------------------------------------------------------------------
    def do(self, make: Any, **fields: Any) -> int:
        """Emit an action, of the class *make*; its id."""
        action = make(id=self._next_id, **fields)
        self._next_id += 1
        self.transcript.action(self.now, action, self.path)
        self.actions.append(action)
        return int(action.id)

    def stimulated(self) -> None:
        """What the step at hand did can make the stack send: silence must be settled anew."""
        self.dirty = True
        self.stimulus = (self.path, self.place)
        self.passed.clear()

    def wait(self, deadline: float | None = None) -> Script:
        """Let one event happen, or *deadline* pass. Raises what :meth:`check_faults` raises."""
        # Times are kept to the microsecond: a deadline between two would never be reached at the first.
        self.deadline = None if deadline is None else math.ceil(deadline * 10**DIGITS) / 10**DIGITS
        yield
        self.check_faults()

    def answered(self, action: int, answers: Container[int], who: str) -> Script:
        """Wait for conform's own part to do *action*, which takes it no time worth the name. Raises Broken."""
        deadline = self.now + AGENT_GRACE
        while action not in answers:
            if self.looked >= deadline:
                raise Broken(f"{who} gave no answer in {AGENT_GRACE:.0f} s")
            yield from self.wait(deadline)

    def oldest(self, end: End, hold: Callable[[Arrival], _H], allowed: list[Allowed]) -> tuple[Arrival, _H] | None:
        """The oldest arrival on *end*, left there, and what *hold* gives of it; ``None`` if nothing is left.

        What does not fit, and is noise by all of *allowed*, is passed over.
        """
        while end.queue:
            arrival = end.queue[0]
            found = hold(arrival)
            if found.fits:
                return arrival, found
            kinds = {self._noise(end, arrival, each) for each in allowed}
            kind = kinds.pop()
            if kind is None or kinds:
                return arrival, found
            end.queue.popleft()
            self.transcript.note(self.now, "noise", of=arrival.entry, name=kind)
            self.passed.append((kind, end, arrival))
            self.consumed(end, arrival)
        return None

    def next_arrival(self, end: End, deadline: float, hold: Callable[[Arrival], Any], allowed: Allowed) -> Script:
        """As :meth:`oldest`, waited for; ``None`` when *deadline* passed without one."""
        while True:
            found = self.oldest(end, hold, [allowed])
            if found is not None:
                return found
            if self.unknown:
                self.require_silence()
            if self.looked >= deadline:
                return None
            yield from self.wait(deadline)

    # Settling and silence ----------------------------------------------------------------------------------------
    def settle(self) -> Script:
        """Wait until the stack's immediate answers to all so far have arrived. Raises StepFailed."""
        action = self.do(ev.Settle)
        deadline = self.now + CALL_PATIENCE * self.stack.timers["timer.response.max"]
        while action not in self.settled:
            if self.looked >= deadline:
                raise self.fail(
                    "the stack gives no sign of life: it does not settle", "an answer behind all others", "nothing"
                )
            yield from self.wait(deadline)
        self.dirty = False

    def quiet(self) -> Script:
        """The silence that is implied before every send and call. Raises StepFailed."""
        if self.dirty:
            yield from self.settle()
        self.require_silence()

    def _noise(self, end: End, arrival: Arrival, allowed: Allowed) -> str | None:
        """Which noise *arrival* is of those *allowed*, ``None`` if it is none of them."""
        if allowed == "forbid":
            return None
        if allowed is None:
            allowed = self.trial.case.noise if self.trial.case.noise is not None else list(DEFAULT_NOISE)
        una, moved = end.moved
        # What may have left the stack before the tester's last acknowledgment reached it is held against SND.UNA then.
        name = end.connection.noise(arrival.segment, una if arrival.when.low <= moved else None)
        if name == "retransmission" and name not in allowed:
            after = add(arrival.segment.seq, arrival.segment.length)
            name = "tail-loss-probe" if after == end.connection.snd_nxt else None
        return name if name in allowed else None

    def require_silence(self, allowed: Allowed = None, lasting: float | None = None) -> None:
        """Nothing waits to be consumed, but for noise, and what came when *lasting* seconds had passed.

        Raises StepFailed, and Undecided when it cannot be told which side of *lasting* something came.
        """
        for end in self.ends.ends.values():
            if end.queue:
                found = self.oldest(end, lambda arrival: _Behind(self.came_after(lasting, arrival)), [allowed])
                if found is not None and not found[1].fits:
                    end.queue.popleft()
                    self._unexpected(found[0], end.connection)
        if self.unknown:
            arrival = self.unknown[0]
            segment = arrival.segment
            ports = f"from port {segment.sport} to port {segment.dport}"
            if not self.ends.are_usual(segment.ip):
                ports = f"from {segment.ip.src} port {segment.sport} to {segment.ip.dst} port {segment.dport}"
            raise self.fail(
                f"a segment of no connection of this case came, {ports}", "silence", str(segment), entry=arrival.entry
            )

    def _unexpected(self, arrival: Arrival, connection: Connection) -> None:
        words = []
        if connection.iss is not None and arrival.segment.flags & ACK:
            delta = diff(arrival.segment.ack, connection.rcv_nxt)
            if delta:
                words.append(f"its ack is {arrival.segment.ack}; RCV.NXT = {connection.rcv_nxt}")
        summary = f"the stack sent {arrival.segment}, which nothing expects"
        expected = "silence"
        if not self.silence_asserted:
            # Implied silence is broken by what was done last, not by the step that was about to begin.
            expected += f" before {self.path}"
            self.path, self.place = self.stimulus
        raise self.fail(summary, expected, relative(arrival.segment, connection), tuple(words), arrival.entry)

    def came_after(self, lasting: float | None, arrival: Arrival) -> bool:
        """Whether *arrival* came when *lasting* seconds had passed since the last event. Raises Undecided."""
        if lasting is None:
            return False
        slack = min(self.stack.tolerance, lasting / 2)
        judgment = judge(arrival.when.since(self.event), least=exactly(lasting, -slack))
        if judgment == "early?":
            raise too_late_to_tell(arrival.when, f"silence lasted {duration(lasting)}")
        return judgment == "ok"


@dataclass(frozen=True, slots=True)
class _Behind:
    """Whether an arrival belongs behind a silence."""

    fits: bool


def too_late_to_tell(when: Interval, what: str) -> Undecided:
    """That conform read what came at *when* so late that *what* cannot be told; to be raised."""
    late = duration(when.high - when.low)
    return Undecided(f"conform's loop was late by {late}; whether {what} cannot be told")
