"""Steps about state: ``state``, read out of the stack or inferred from the wire, and ``check`` of a value."""

from __future__ import annotations

from conform.case import model as m
from conform.engine import events as ev
from conform.engine.matcher import FieldMatcher
from conform.engine.runtime import Runtime, Script
from conform.tcp import states as st
from conform.tcp.tracker import Connection


def expect_state(run: Runtime, spec: m.StateSpec) -> Script:
    """The step ``state``: within its time, or at once. Raises StepFailed.

    Where the stack's state cannot be read, the wire must not exclude it, and the assertion counts as unverified.
    """
    if run.dirty:
        yield from run.settle()
    until = None
    if spec.within is not None:
        until = run.event.high + run.seconds(spec.within) + run.stack.tolerance
    again = until is None
    while True:
        state = yield from read_state(run, spec.conn)
        if state is None:
            _unread(run, spec)
            return
        if state in spec.is_:
            break
        if again:
            # Once more: an answer that the stack handed to another thread of its own may still be on its way.
            again = False
            yield from run.settle()
            continue
        if until is None or run.now >= until:
            wanted = " or ".join(spec.is_)
            raise run.fail(f"the state is {state}, want {wanted}", wanted, state, entry=len(run.transcript.entries) - 1)
        yield from _pause(run, min(until, run.now + 0.01))
    note_state(run, spec.conn, state)
    run.asserted()


def _unread(run: Runtime, spec: m.StateSpec) -> None:
    connection = run.connection(spec.conn)
    wanted = " or ".join(spec.is_)
    if not possible(run, spec):
        actual = " or ".join(sorted(connection.states))
        raise run.fail(f"the wire implies {actual}, want {wanted}", wanted, actual)
    run.unverified.append(f"{run.path}: state {wanted}")


def _pause(run: Runtime, until: float) -> Script:
    while run.now < until:
        yield from run.wait(until)


def read_state(run: Runtime, name: str) -> Script:
    """The state of the connection (or listener) *name* in the stack, ``None`` where it cannot be read.

    Spelt as RFC 9293 spells it; ``CLOSED`` where the stack has no record. Raises Broken.
    """
    port = run.descriptors.port_of(name)
    if port is not None and name not in run.connections:
        stack_port, tester_port = port, 0
    else:
        connection = run.connection(name)
        if connection.stack_port is None:
            return st.CLOSED
        stack_port, tester_port = connection.stack_port, connection.tester_port
    action = run.do(ev.ReadState, stack_port=stack_port, tester_port=tester_port)
    yield from run.answered(action, run.states, "the state read-out")
    return run.states.pop(action).state


def note_state(run: Runtime, name: str, state: str) -> None:
    """Record the *state* read of the connection *name*; a finding, where the wire implies another."""
    connection = run.connections.get(name)
    inferred = sorted(connection.states) if connection else []
    run.transcript.note(run.now, "state", step=run.path, conn=name, state=state, inferred=inferred)
    if connection is None or not connection.used or run.queues[name]:
        return
    if state not in _possible_states(run, connection):
        text = f"{run.path}: the stack says {state}, the wire implies {' or '.join(inferred)}"
        if text not in run.findings:
            run.findings.append(text)


def possible(run: Runtime, spec: m.StateSpec) -> bool:
    """Whether, by the wire, the state can be what *spec* says."""
    return bool(_possible_states(run, run.connection(spec.conn)) & set(spec.is_))


def _possible_states(run: Runtime, connection: Connection) -> set[str]:
    """What the wire implies, and what it does not show: a listener's end, and that of a connection by time."""
    stirred = run.stirred.get(connection.name, 0.0)
    in_time = run.now - stirred >= run.stack.timers["timer.rto.initial"]
    states = set(connection.states_in_time() if in_time else connection.states)
    if st.LISTEN in states:
        states.add(st.CLOSED)
    return states


def check(run: Runtime, spec: m.CheckSpec) -> None:
    """The step ``check``. Raises StepFailed, and LookupError when an expression has no value."""
    env = run.environment(run.connections[m.CONNECTION])
    out = FieldMatcher(env)
    out.number(spec.value.text.strip(), spec.is_, int(env.value(spec.value)), 0, sequence=True)
    if out.mismatches:
        first = out.mismatches[0]
        raise run.fail(first.words, first.expected, first.actual, (first.words,))
    run.captures.update(out.captured)
    run.asserted()
