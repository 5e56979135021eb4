"""Steps about packets: ``send``, ``expect`` and ``silence``, and whether what came was in time."""

from __future__ import annotations

from typing import Any

from conform.case import model as m
from conform.case.expr import Expr
from conform.engine import events as ev
from conform.engine.matcher import FieldMatcher, describe, match_segment
from conform.engine.runtime import (
    Arrival,
    Interval,
    Runtime,
    Script,
    Snapshot,
    StepFailed,
    Undecided,
    duration,
    relative,
)
from conform.tcp.segment import FIN, RST, SYN, Segment
from conform.tcp.tracker import Connection


# Sending -------------------------------------------------------------------------------------------------------------
def send(run: Runtime, spec: m.SendSpec) -> Script:
    """The step ``send``. Raises Senseless, and LookupError when an expression has no value."""
    yield from run.quiet()
    connection = run.connection(spec.conn)
    packet = run.craft.packet(spec, connection)
    when = yield from inject(run, packet, connection)
    run.event = when
    if spec.as_ is not None and isinstance(packet, Segment):
        run.snapshots[spec.as_] = Snapshot(packet, when)


def inject(run: Runtime, packet: Any, connection: Connection) -> Script:
    """Put *packet*, of *connection*, on the link; when it went out, as an :class:`Interval`.

    The tracker of *connection* is told of a segment that belongs to it and that the stack is to process. Raises Broken.
    """
    action = run.do(ev.Inject, packet=packet)
    run.stimulated()
    yield from run.answered(action, run.injected, "the link")
    done = run.injected.pop(action)
    if isinstance(packet, Segment):
        own_ports = (packet.sport, packet.dport) == (connection.tester_port, connection.stack_port)
        own_addresses = (packet.ip.dst, packet.ip.src) == run.stack.addresses[run.trial.ip]
        if own_ports and own_addresses and packet.ip.checksum is None:
            una = connection.snd_una
            connection.injected(packet)
            run.stirred[connection.name] = run.now
            if connection.snd_una != una:
                run.moved[connection.name] = (una, done.after)
    return Interval(done.before, done.after)


# Expecting -----------------------------------------------------------------------------------------------------------
def expect(run: Runtime, spec: m.ExpectSpec) -> Script:
    """The step ``expect``. Raises StepFailed, Undecided, and LookupError when what it names has no value."""
    connection = run.connection(spec.conn)
    if spec.stream is not None:
        yield from _stream(run, spec, connection)
        return
    if spec.again is not None:
        run.snapshot(spec.again)
    queue = run.queues[connection.name]
    deadline = deadline_of(run, spec)
    while True:
        arrival = yield from run.head(queue, deadline)
        if arrival is None:
            raise nothing_came(run, spec, connection)
        found = fit(run, spec, arrival, connection)
        if not found.mismatches:
            queue.popleft()
            _consume(run, spec, arrival, connection, found)
            return
        noise = run.noise(connection, arrival, spec.noise)
        if noise is None:
            raise _mismatch(run, spec, arrival, connection, found)
        queue.popleft()
        run.pass_over(connection, arrival, noise)


def nothing_came(run: Runtime, spec: m.ExpectSpec, connection: Connection) -> StepFailed:
    """The failure that nothing came of what *spec* expects on *connection*; to be raised."""
    waited = duration(run.now - run.event.high)
    wanted = describe(spec, run.environment(connection))
    return run.fail(f"nothing came within {waited}", wanted, "nothing")


def _mismatch(
    run: Runtime, spec: m.ExpectSpec, arrival: Arrival, connection: Connection, found: FieldMatcher
) -> StepFailed:
    words = tuple(mismatch.words for mismatch in found.mismatches)
    return run.fail(
        words[0],
        describe(spec, run.environment(connection)),
        relative(arrival.segment, connection),
        words,
        arrival.entry,
    )


def fit(run: Runtime, spec: m.ExpectSpec, arrival: Arrival, connection: Connection) -> FieldMatcher:
    """Hold *arrival* against *spec*; ``mismatches`` of the result is empty when it fits. Raises LookupError."""
    again = run.snapshot(spec.again).segment if spec.again else None
    return match_segment(spec, arrival.segment, run.environment(connection), again)


def _consume(run: Runtime, spec: m.ExpectSpec, arrival: Arrival, connection: Connection, found: FieldMatcher) -> None:
    _check_time(run, spec, arrival.when, arrival.entry)
    run.captures.update(found.captured)
    connection.observed(arrival.segment)
    if spec.as_ is not None:
        run.snapshots[spec.as_] = Snapshot(arrival.segment, arrival.when)
    run.transcript.note(run.now, "matched", step=run.path, of=arrival.entry, **({"as": spec.as_} if spec.as_ else {}))
    run.event = arrival.when
    run.asserted()


def _stream(run: Runtime, spec: m.ExpectSpec, connection: Connection) -> Script:
    assert spec.stream is not None
    queue = run.queues[connection.name]
    deadline = deadline_of(run, spec)
    start = run.event
    got = bytearray()
    while len(got) < spec.stream:
        arrival = yield from run.head(queue, deadline)
        if arrival is None:
            raise run.fail(f"{len(got)} octets came, want {spec.stream}", f"{spec.stream} octets", f"{len(got)} octets")
        segment = arrival.segment
        fits = segment.payload and segment.seq == connection.snd_nxt and not segment.flags & (RST | SYN | FIN)
        if fits:
            found = match_segment(spec, segment, run.environment(connection), None)
            if found.mismatches:
                raise _mismatch(run, spec, arrival, connection, found)
            got += segment.payload
            if len(got) > spec.stream:
                raise run.fail(
                    f"{len(got)} octets came, want {spec.stream}",
                    f"{spec.stream} octets",
                    f"{len(got)} octets",
                    entry=arrival.entry,
                )
            queue.popleft()
            run.event = start  # what is said of time is said of the whole
            _consume(run, spec, arrival, connection, found)
            if spec.within is None and spec.between is None:
                deadline = deadline_of(run, spec)
            continue
        noise = run.noise(connection, arrival, spec.noise)
        if noise is None:
            raise run.fail(
                f"the stack sent {segment}, want the octets from SND.NXT = {connection.snd_nxt} on",
                f"{spec.stream - len(got)} more octets",
                relative(segment, connection),
                entry=arrival.entry,
            )
        queue.popleft()
        run.pass_over(connection, arrival, noise)
    if spec.payload is not None and bytes(got) != spec.payload:
        raise run.fail("the octets are not those expected", repr(spec.payload[:24]), repr(bytes(got[:24])))


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
def _bound(run: Runtime, spec: m.Timing) -> tuple[Interval, float | None, float | None]:
    """What a timing counts from, and its least and most in seconds."""
    base = run.snapshot(spec.from_).when if spec.from_ else run.event
    if spec.between is not None:
        return base, run.seconds(spec.between[0]), run.seconds(spec.between[1])
    after = run.seconds(spec.after) if spec.after is not None else None
    within = run.seconds(spec.within) if spec.within is not None else None
    return base, after, within


def deadline_of(run: Runtime, spec: m.Timing) -> float:
    """The moment by which what *spec* expects must have come, in seconds since the trial's start.

    Where *spec* sets none it is the stack's time to answer, from when it may. Raises LookupError.
    """
    base, after, within = _bound(run, spec)
    if within is None:
        # Without a bound of its own: the stack's time to answer, from when it may answer.
        return max(run.now, base.high) + (after or 0.0) + run.stack.timers["timer.response.max"]
    return base.high + within + run.stack.tolerance


def _check_time(run: Runtime, spec: m.Timing, when: Interval, entry: int) -> None:
    base, after, within = _bound(run, spec)
    if after is None and within is None:
        return
    least, most = when.low - base.high, when.high - base.low
    slack = run.stack.tolerance
    came = f"{duration(when.high - base.high)} after {spec.from_ or 'the event before'}"
    if within is not None:
        if least > within + slack:
            raise run.fail(
                f"it came too late: {came}, want within {duration(within)}",
                f"within {duration(within)}",
                came,
                entry=entry,
            )
        if most > within + slack:
            late = duration(when.high - when.low)
            raise Undecided(f"conform's loop was late by {late}; whether {came} is too late cannot be told")
    if after is not None:
        if most < after - slack:
            raise run.fail(
                f"it came too early: {came}, want after {duration(after)}",
                f"after {duration(after)}",
                came,
                entry=entry,
            )
        if least < after - slack:
            late = duration(when.high - when.low)
            raise Undecided(f"conform's loop was late by {late}; whether {came} is too early cannot be told")
