"""Steps about state: ``state``, read out of the stack or inferred from the wire, and ``check`` of a value."""

from __future__ import annotations

from conform.case import model as m
from conform.engine import events as ev
from conform.engine.connections import End
from conform.engine.matcher import FieldMatcher
from conform.engine.runtime import Runtime, Script
from conform.tcp import states as st


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
    wanted = " or ".join(spec.is_)
    end = end_of(run, spec.conn)
    if end is not None and not possible(run, spec):
        actual = " or ".join(sorted(end.connection.states))
        raise run.fail(f"the wire implies {actual}, want {wanted}", wanted, actual)
    run.unverified.append(f"{run.path}: state {wanted}")


def _pause(run: Runtime, until: float) -> Script:
    while run.now < until:
        yield from run.wait(until)


def read_state(run: Runtime, name: str) -> Script:
    """The state of what is called *name* in the stack, ``None`` where it cannot be read.

    That is a connection, or an application's socket: the connection that it is of, else the listener. Spelt as RFC 9293
    spells it; ``CLOSED`` where the stack has no record. Raises Broken.
    """
    end = end_of(run, name)
    if end is not None:
        stack_port, tester_port = end.connection.stack_port, end.connection.tester_port
        if not run.ends.has_usual_address(end):
            return None  # read-outs name a connection by its ports
    else:
        file = run.descriptors.of_name(name)
        stack_port, tester_port = file.port if file is not None else None, 0
    if stack_port is None:
        return st.CLOSED
    action = run.do(ev.ReadState, stack_port=stack_port, tester_port=tester_port)
    yield from run.answered(action, run.states, "the state read-out")
    return run.states.pop(action).state


def end_of(run: Runtime, name: str) -> End | None:
    """The connection of that *name*, or of the socket of that name; ``None`` for a socket of none."""
    if not run.ends.names(name):
        file = run.descriptors.of_name(name)
        if file is None or file.connection is None:
            return None
        name = file.connection
    return run.ends[name]


def note_state(run: Runtime, name: str, state: str) -> None:
    """Record the *state* read of what is called *name*; a finding, where the wire implies another."""
    end = end_of(run, name)
    inferred = sorted(end.connection.states) if end is not None else []
    run.transcript.note(run.now, "state", step=run.path, conn=name, state=state, inferred=inferred)
    if end is None or not end.connection.used or end.queue:
        return
    if state not in possible_states(run, end):
        text = f"{run.path}: {implied(state, end)}"
        run.finding(text)


def implied(state: str, end: End) -> str:
    """That the stack says *state* of *end*, and what the wire implies instead."""
    return f"the stack says {state}, the wire implies {' or '.join(sorted(end.connection.states))}"


def possible(run: Runtime, spec: m.StateSpec) -> bool:
    """Whether, by the wire, the state can be what *spec* says; of a socket of no connection it tells nothing."""
    end = end_of(run, spec.conn)
    return end is None or bool(possible_states(run, end) & set(spec.is_))


def possible_states(run: Runtime, end: End) -> set[str]:
    """What the wire implies, and what it does not show: a listener's end, and that of a connection by time."""
    in_time = run.now - end.stirred >= run.stack.timers["timer.rto.initial"]
    states = set(end.connection.states_in_time() if in_time else end.connection.states)
    if st.LISTEN in states:
        states.add(st.CLOSED)
    return states


def check(run: Runtime, spec: m.CheckSpec) -> None:
    """The step ``check``. Raises StepFailed, and LookupError when an expression has no value."""
    env = run.environment(run.connections[m.CONNECTION])
    out = FieldMatcher(env)
    out.number(spec.value.text.strip(), spec.is_, int(env.value(spec.value)), 0, sequence=True)
    if not out.known().fits:
        first = out.mismatches[0]
        raise run.fail(first.words, first.expected, first.actual, (first.words,))
    run.captures.update(out.captured)
    run.asserted()
