"""What the steps of one trial share: its clock, its connections and what arrived on them, its names and their values.

Step functions take the :class:`Runtime` as their first argument, and wait and fail by it alone. One that may wait is a
generator (:data:`Script`), to be called with ``yield from``: each ``yield`` in it lets one event happen.
"""

from __future__ import annotations

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
from conform.engine.craft import Craft, Senseless
from conform.engine.descriptors import Descriptors
from conform.engine.matcher import Environment
from conform.engine.outcomes import Outcomes
from conform.engine.transcript import DIGITS, Transcript
from conform.engine.trial import Trial
from conform.engine.verdict import Failure
from conform.tcp import rules
from conform.tcp.segment import ACK, IPFields, Segment
from conform.tcp.sequence import MODULUS, add, diff
from conform.tcp.tracker import Connection

#: What may wait: yields when it does, and returns what its docstring says.
Script = Generator[None, None, Any]

#: How long a call may take that says nothing of it, in multiples of the stack's own time to answer.
CALL_PATIENCE = 5
#: How long after that the agent itself may be silent, in seconds, before it counts as broken.
AGENT_GRACE = 5.0
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
    """A call that was begun by ``action``. An agent that has not said by ``deadline`` what came of it is broken."""

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
        #: In a repetition with gaps: the last one, and what ``previous`` is while the next is judged.
        self.gap: Interval | None = None
        self.previous_gap: float | None = None

        # Where the script is.
        #: The step at hand: its path, its [line, column], and the requirements that its failure breaks.
        self.path = "start"
        self.place: tuple[int, int] | None = None
        self.covers: tuple[str, ...] = tuple(trial.case.covers)
        self.in_recipe = False

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
        #: Whether it is being waited for that the stack settles.
        self.settling = False
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

        # Connections, and what waits on each.
        self.connections: dict[str, Connection] = {}
        self.queues: dict[str, deque[Arrival]] = {}
        #: Segments that belong to no connection.
        self.unknown: deque[Arrival] = deque()
        #: When each connection last had a segment, either way.
        self.stirred: dict[str, float] = {}
        #: SND.UNA before the tester's last segment that moved it, and the last moment at which that went out.
        self.moved: dict[str, tuple[int, float]] = {}
        self.descriptors = Descriptors(self.connections, self.stack.port, self.stack.services.values())
        self._random = random.Random(f"{trial.seed}:{trial.id.partition('#')[0]}")
        for name in {m.CONNECTION: None, **trial.case.connections}:
            self._open_connection(name)

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
        if self.descriptors.is_listening(connection.stack_port):
            connection.called("passive-open")
        self.connections[name] = connection
        self.queues[name] = deque()
        return connection

    def connection(self, name: str) -> Connection:
        """The connection called *name*, made on first use."""
        return self.connections.get(name) or self._open_connection(name)

    def addresses(self) -> IPFields:
        """The IP fields of what the tester sends."""
        stack, tester = self.stack.addresses[self.trial.ip]
        return IPFields(self.trial.ip, tester, stack)

    def arrive(self, segment: Segment, when: Interval, entry: int) -> None:
        """Queue *segment* on its connection, where it waits to be consumed; *entry* is its index in the transcript."""
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
            self.unknown.append(Arrival(segment, when, entry))
            return
        if found.stack_port is None:
            found.stack_port = segment.sport
        self.queues[found.name].append(Arrival(segment, when, entry))
        self.stirred[found.name] = self.now
        if not self.dirty:
            # Behind its fence: recorded against the step that caused it, and queued all the same.
            self.transcript.note(self.now, "late", of=entry, step=self.stimulus[0])

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
        """*expr* in seconds. Raises what :meth:`resolve` raises."""
        return float(expr.evaluate(lambda n: self.resolve(n, self.connections[m.CONNECTION])))

    def snapshot(self, name: str) -> Snapshot:
        """The segment kept as *name*. Raises LookupError."""
        found = self.snapshots.get(name)
        if found is None:
            raise LookupError(f"there is no segment {name!r}: the way that keeps it was not taken")
        return found

    # What comes of a step ----------------------------------------------------------------------------------------
    def asserted(self) -> None:
        """An assertion ran; the recipe's do not count."""
        self.assertions += not self.in_recipe

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
            requirement, words, entry = self._rule
            self.in_recipe = False
            failure = Failure(self.path, self.place, f"a segment breaks {requirement}: {words}", entry=entry)
            raise StepFailed(failure, (requirement,))

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

    def head(self, queue: deque[Arrival], deadline: float) -> Script:
        """The oldest arrival in *queue*, left in it; ``None`` when *deadline* passed without one."""
        while not queue:
            if self.unknown:
                self.require_silence()
            if self.looked >= deadline:
                return None
            yield from self.wait(deadline)
        return queue[0]

    # Settling and silence ----------------------------------------------------------------------------------------
    def settle(self) -> Script:
        """Wait until the stack's immediate answers to all so far have arrived. Raises StepFailed."""
        action = self.do(ev.Settle)
        self.settling = True
        deadline = self.now + CALL_PATIENCE * self.stack.timers["timer.response.max"]
        while action not in self.settled:
            if self.looked >= deadline:
                raise self.fail(
                    "the stack gives no sign of life: it does not settle", "an answer behind all others", "nothing"
                )
            yield from self.wait(deadline)
        self.settling = False
        self.dirty = False

    def quiet(self) -> Script:
        """The silence that is implied before every send and call. Raises StepFailed."""
        if self.dirty:
            yield from self.settle()
        self.require_silence()

    def noise(self, connection: Connection, arrival: Arrival, allowed: list[Any] | str | None) -> str | None:
        """Which noise *arrival* is of those *allowed* (``None``: the case's own), ``None`` if it is none of them."""
        if allowed == "forbid":
            return None
        if allowed is None:
            allowed = self.trial.case.noise if self.trial.case.noise is not None else list(DEFAULT_NOISE)
        una, moved = self.moved.get(connection.name, (None, 0.0))
        # What may have left the stack before the tester's last acknowledgment reached it is held against SND.UNA then.
        name = connection.noise(arrival.segment, una if arrival.when.low <= moved else None)
        if name == "retransmission" and name not in allowed:
            end = add(arrival.segment.seq, arrival.segment.length)
            name = "tail-loss-probe" if end == connection.snd_nxt else None
        return name if name in allowed else None

    def pass_over(self, connection: Connection, arrival: Arrival, name: str) -> None:
        """*arrival*, which was taken off its queue, is the noise *name*."""
        self.transcript.note(self.now, "noise", of=arrival.entry, name=name)
        connection.observed(arrival.segment)

    def require_silence(self, allowed: list[Any] | str | None = None, lasting: float | None = None) -> None:
        """Nothing waits to be consumed, but for noise, and what came when *lasting* seconds had passed.

        Raises StepFailed, and Undecided when it cannot be told which side of *lasting* something came.
        """
        for name, queue in self.queues.items():
            connection = self.connections[name]
            while queue and (lasting is None or not self.came_after(lasting, queue[0])):
                arrival = queue.popleft()
                noise = self.noise(connection, arrival, allowed)
                if noise is None:
                    self._unexpected(arrival, connection)
                else:
                    self.pass_over(connection, arrival, noise)
        if self.unknown:
            arrival = self.unknown[0]
            ports = f"from port {arrival.segment.sport} to port {arrival.segment.dport}"
            raise self.fail(
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
        summary = f"the stack sent {arrival.segment}, which nothing expects"
        expected = "silence"
        if not self.silence_asserted:
            # Implied silence is broken by what was done last, not by the step that was about to begin.
            expected += f" before {self.path}"
            self.path, self.place = self.stimulus
        raise self.fail(summary, expected, relative(arrival.segment, connection), tuple(words), arrival.entry)

    def came_after(self, lasting: float, arrival: Arrival) -> bool:
        """Whether *arrival* came when *lasting* seconds had passed since the last event. Raises Undecided."""
        end = lasting - min(self.stack.tolerance, lasting / 2)
        if arrival.when.high - self.event.low < end:
            return False
        if arrival.when.low - self.event.high < end:
            late = duration(arrival.when.high - arrival.when.low)
            raise Undecided(
                f"conform's loop was late by {late}; whether silence lasted {duration(lasting)} cannot be told"
            )
        return True


def relative(segment: Segment, connection: Connection) -> str:
    """*segment* for a reader, its numbers counted from the initial sequence numbers as well."""
    text = str(segment)
    notes = []
    if connection.iss is not None:
        notes.append(f"ISS+{(segment.seq - connection.iss) % MODULUS}")
    if segment.flags & ACK:
        notes.append(f"acks IRS+{(segment.ack - connection.irs) % MODULUS}")
    return f"{text} ({', '.join(notes)})" if notes else text


def duration(seconds: float) -> str:
    """*seconds* for a reader."""
    return f"{seconds * 1000:.1f} ms" if abs(seconds) < 1 else f"{seconds:.2f} s"
