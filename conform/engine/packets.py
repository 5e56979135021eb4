"""Steps about packets: ``send``, ``expect`` and ``silence``, and whether what came was in time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from conform.case import model as m
from conform.case.expr import Expr
from conform.engine import events as ev
from conform.engine.connections import Arrival, End
from conform.engine.endings import StepFailed
from conform.engine.matcher import FieldMatcher, Mismatch, describe, match_segment, relative
from conform.engine.runtime import Runtime, Script, Snapshot, too_late_to_tell
from conform.engine.timing import Interval, duration, exactly, judge
from conform.tcp.segment import FIN, RST, SYN, Segment

#: How much of what was passed over a failure tells.
_SHOWN = 3


# Sending -------------------------------------------------------------------------------------------------------------
def send(run: Runtime, spec: m.SendSpec) -> Script:
    """The step ``send``. Raises Senseless, and LookupError when an expression has no value."""
    yield from _linger(run, spec)
    yield from run.quiet()
    packet = run.craft.packet(spec, run.connection(spec.conn))
    when = yield from inject(run, packet)
    run.event = when
    if spec.as_ is not None and isinstance(packet, Segment):
        run.snapshots[spec.as_] = Snapshot(packet, when)


def _linger(run: Runtime, spec: m.SendSpec) -> Script:
    """Let the stack's SYN wait, so that the round trip that it measures is the one that its description says."""
    connection = run.ends[spec.conn].connection
    if not run.stack.round_trip or connection.iss is None or spec.icmp is not None:
        return
    until = run.event.high + run.stack.round_trip
    while connection.snd_una == connection.iss and run.looked < until:
        yield from run.wait(until)


def inject(run: Runtime, packet: Any) -> Script:
    """Put *packet* on the link; when it went out, as an :class:`Interval`.

    The tracker of the connection that a segment belongs to, by its addresses and ports, is told of it, if the stack is
    to process it. Raises Broken.
    """
    action = run.do(ev.Inject, packet=packet)
    run.stimulated()
    yield from run.answered(action, run.injected, "the link")
    done = run.injected.pop(action)
    end = run.ends.sender(packet) if isinstance(packet, Segment) and packet.ip.checksum is None else None
    if end is not None:
        una = end.connection.snd_una
        end.connection.injected(packet)
        end.stirred = run.now
        if end.connection.snd_una != una:
            end.moved = (una, done.after)
    return Interval(done.before, done.after)


# Expecting -----------------------------------------------------------------------------------------------------------
def expect(run: Runtime, spec: m.ExpectSpec) -> Script:
    """The step ``expect``. Raises StepFailed, Undecided, and LookupError when what it names has no value."""
    end = run.ends[spec.conn]
    if spec.stream is not None:
        yield from _stream(run, spec, end)
        return
    if spec.again is not None:
        run.snapshot(spec.again)
    due = due_of(run, spec)
    came = yield from run.next_arrival(end, due.deadline, lambda arrival: fit(run, spec, arrival, end), spec.noise)
    if came is None:
        raise nothing_came(run, spec, end)
    arrival, found = came
    if not found.fits:
        raise _mismatch(run, spec, arrival, end, found)
    check_time(run, spec, due, arrival)
    take(run, end, arrival)
    keep(run, spec, arrival, found)
    run.event = arrival.when


def nothing_came(run: Runtime, spec: m.ExpectSpec, end: End) -> StepFailed:
    """The failure that nothing came of what *spec* expects on *end*; to be raised."""
    waited = duration(run.now - run.event.high)
    wanted = describe(spec, run.environment(end.connection))
    summary = f"nothing came within {waited}"
    return run.fail(summary, wanted, "nothing", passed_over(run, summary))


def passed_over(run: Runtime, summary: str) -> tuple[str, ...]:
    """*summary*, of something that did not come, with what came and was passed over as noise; nothing if nothing was.

    It may be what the case was after: whoever reads the failure must see it.
    """
    last = run.passed[-_SHOWN:]
    words = [f"passed over as {kind}: {relative(came.segment, at.connection)}" for kind, at, came in last]
    if len(run.passed) > _SHOWN:
        words.insert(0, f"passed over as noise: {len(run.passed) - _SHOWN} more before these")
    return (summary, *words) if words else ()


def _mismatch(run: Runtime, spec: m.ExpectSpec, arrival: Arrival, end: End, found: FieldMatcher) -> StepFailed:
    words = tuple(mismatch.words for mismatch in found.mismatches)
    wanted = describe(spec, run.environment(end.connection))
    return run.fail(words[0], wanted, relative(arrival.segment, end.connection), words, arrival.entry)


def fit(run: Runtime, spec: m.ExpectSpec, arrival: Arrival, end: End) -> FieldMatcher:
    """Hold *arrival* against *spec*, time aside. Raises LookupError."""
    again = run.snapshot(spec.again).segment if spec.again else None
    return match_segment(spec, arrival.segment, run.environment(end.connection), again)


def take(run: Runtime, end: End, arrival: Arrival) -> None:
    """Consume *arrival*, the oldest on *end*, as expected. Raises StepFailed."""
    end.queue.popleft()
    run.consumed(end, arrival)


def keep(run: Runtime, spec: m.ExpectSpec, arrival: Arrival, found: FieldMatcher) -> None:
    """*arrival* is what *spec* expects, and *found* says so: keep what it names of it."""
    run.captures.update(found.captured)
    if spec.as_ is not None:
        run.snapshots[spec.as_] = Snapshot(arrival.segment, arrival.when)
    run.transcript.note(run.now, "matched", step=run.path, of=arrival.entry, **({"as": spec.as_} if spec.as_ else {}))
    run.asserted()


def _stream(run: Runtime, spec: m.ExpectSpec, end: End) -> Script:
    wanted = spec.stream or 0
    start = run.event
    due = due_of(run, spec)
    got = bytearray()

    def hold(arrival: Arrival) -> FieldMatcher:
        return _in_stream(run, spec, arrival, end, wanted - len(got))

    while len(got) < wanted:
        came = yield from run.next_arrival(end, due.deadline, hold, spec.noise)
        if came is None:
            summary = f"{len(got)} octets came, want {wanted}"
            raise run.fail(summary, f"{wanted} octets", f"{len(got)} octets", passed_over(run, summary))
        arrival, found = came
        if not found.fits:
            words = tuple(mismatch.words for mismatch in found.mismatches)
            actual = relative(arrival.segment, end.connection)
            raise run.fail(words[0], f"{wanted - len(got)} more octets", actual, words, arrival.entry)
        got += arrival.segment.payload
        if len(got) > wanted:
            so_far = f"{len(got)} octets"
            raise run.fail(f"{so_far} came, want {wanted}", f"{wanted} octets", so_far, entry=arrival.entry)
        check_time(run, spec, due, arrival)
        take(run, end, arrival)
        keep(run, spec, arrival, found)
        run.event = arrival.when
        if spec.within is None and spec.between is None:
            # What is said of time is said of the whole; else each piece has the stack's time to answer.
            due = Due(start, due.least, None, due_of(run, spec).deadline)
    if spec.payload is not None and bytes(got) != spec.payload:
        raise run.fail("the octets are not those expected", repr(spec.payload[:24]), repr(bytes(got[:24])))


def _in_stream(run: Runtime, spec: m.ExpectSpec, arrival: Arrival, end: End, left: int) -> FieldMatcher:
    """Hold *arrival* against what *spec* says of each segment of a stream of which *left* octets are to come.

    The flags that *spec* names are the last segment's; without them none has a FIN.
    """
    segment, connection = arrival.segment, end.connection
    last = len(segment.payload) >= left
    if spec.flags is not None and not last:
        spec = spec.model_copy(update={"flags": None})
    found = fit(run, spec, arrival, end)
    ends = FIN if spec.flags is not None else 0
    if not segment.payload or segment.seq != connection.snd_nxt or segment.flags & (RST | SYN | FIN) & ~ends:
        words = f"the stack sent {segment}, want the octets from SND.NXT = {connection.snd_nxt} on"
        found.mismatches.insert(0, Mismatch("seq", str(connection.snd_nxt), str(segment.seq), words))
    return found


# Silence -------------------------------------------------------------------------------------------------------------
def silence(run: Runtime, spec: m.SilenceSpec) -> Script:
    """The step ``silence``: nothing comes that is no noise, for its time or at once. Raises StepFailed, Undecided.

    The end of its time is "the event before" of the next step.
    """
    run.asserted()
    run.silence_asserted = True
    lasting = run.seconds(spec.for_) if isinstance(spec.for_, Expr) else None
    if lasting is not None:
        until = run.event.high + lasting
        while run.looked < until:
            run.require_silence(spec.noise, lasting)
            yield from run.wait(until)
    yield from run.settle()
    run.require_silence(spec.noise, lasting)
    run.silence_asserted = False
    run.transcript.note(run.now, "silent", step=run.path)
    if lasting is not None:
        run.event = Interval(run.event.low + lasting, run.event.high + lasting)


# Timing --------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Due:
    """When what is expected must come: at least and at most so long after ``base``, and by ``deadline`` at all.

    Where the case sets no ``most``, the deadline is the stack's time to answer.
    """

    base: Interval
    least: float | None
    most: float | None
    deadline: float


def due_of(run: Runtime, spec: m.Timing) -> Due:
    """When what *spec* expects must come. Raises LookupError."""
    awaited, run.awaited = run.now if run.awaited is None else run.awaited, None
    base = run.snapshot(spec.from_).when if spec.from_ else run.event
    after, within = spec.between or (spec.after, spec.within)
    least = run.seconds(after) if after is not None else None
    most = run.seconds(within) if within is not None else None
    if most is not None:
        return Due(base, least, most, base.high + most + run.stack.tolerance)
    # Without a bound of its own: the stack's time to answer, from when it may answer.
    return Due(base, least, None, max(awaited, base.high) + (least or 0.0) + run.stack.timers["timer.response.max"])


def check_time(run: Runtime, spec: m.Timing, due: Due, arrival: Arrival) -> None:
    """Raise StepFailed when *arrival*, which *spec* expects, was early or late; Undecided if it may have been."""
    when, slack = arrival.when, run.stack.tolerance
    judgment = judge(when.since(due.base), exactly(due.least, -slack), exactly(due.most, slack))
    if judgment == "ok" and due.most is None:
        judgment = judge(when, most=exactly(due.deadline))
    if judgment == "ok":
        return
    came = f"{duration(when.high - due.base.high)} after {spec.from_ or 'the event before'}"
    side = judgment.rstrip("?")
    if side == "early":
        wanted = f"after {duration(due.least or 0)}"
    elif due.most is not None:
        wanted = f"within {duration(due.most)}"
    else:
        wanted = f"within {duration(run.stack.timers['timer.response.max'])}, the stack's time to answer"
    if side != judgment:
        raise too_late_to_tell(when, f"{came} is too {side}")
    raise run.fail(f"it came too {side}: {came}, want {wanted}", wanted, came, entry=arrival.entry)
