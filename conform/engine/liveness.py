"""Whether the stack is still alive: the step ``probe``, and each trial's end."""

from __future__ import annotations

from conform.engine.packets import inject
from conform.engine.runtime import Runtime, Script, relative
from conform.engine.state import note_state, read_state
from conform.tcp import states as st
from conform.tcp.segment import ACK, RST, Segment
from conform.tcp.sequence import add
from conform.tcp.tracker import Connection


def probe(run: Runtime) -> Script:
    """The stack is alive: each state's own answer to a segment that it must answer and that changes nothing.

    RFC 9293 section 3.10.7. Where the state is not known, the port is probed. Raises StepFailed.
    """
    used = [c for c in run.connections.values() if c.used and c.stack_port is not None]
    connection = used[0] if used else None
    if connection is None:
        yield from probe_port(run)
        return
    state = None
    if "states" in run.stack.capabilities:
        state = yield from read_state(run, connection.name)
        if state is not None:
            note_state(run, connection.name, state)
    if state is None and len(connection.states) == 1:
        state = next(iter(connection.states))
    if state in st.SYNCHRONIZED | {st.SYN_RECEIVED} and connection.iss is not None:
        # One octet below the window: unacceptable, so it draws an ACK and is dropped (section 3.10.7.4, first).
        below = add(connection.lowest_rcv_nxt, -1)
        segment = run.craft.segment(connection, flags=ACK, seq=below, ack=connection.snd_nxt)
        yield from _probed(run, segment, connection, ACK, connection.snd_nxt, *sorted(connection.rcv_nxts))
    elif state == st.SYN_SENT and connection.iss is not None:
        wrong = add(connection.snd_nxt, 1000)
        segment = run.craft.segment(connection, flags=ACK, seq=connection.tester_nxt, ack=wrong)
        yield from _probed(run, segment, connection, RST, wrong)
    elif state in (st.CLOSED, st.LISTEN):
        segment = run.craft.segment(connection, flags=ACK, seq=connection.tester_nxt, ack=0x1234)
        yield from _probed(run, segment, connection, RST, 0x1234)
    else:
        yield from probe_port(run)


def probe_port(run: Runtime) -> Script:
    """From a port never used: an ACK that belongs to nothing draws a reset from CLOSED and LISTEN alike.

    RFC 9293 sections 3.10.7.1 and 3.10.7.2. Raises StepFailed.
    """
    connection = run.connection("probe")
    connection.stack_port = connection.stack_port or run.stack.port
    segment = run.craft.segment(connection, flags=ACK, seq=connection.tester_nxt, ack=0x1234)
    yield from _probed(run, segment, connection, RST, 0x1234)


def _probed(run: Runtime, probe: Segment, connection: Connection, flag: int, seq: int, *acks: int) -> Script:
    yield from inject(run, probe, connection)
    queue = run.queues[connection.name]
    wanted = f"{'ACK' if flag == ACK else 'RST'} seq={seq}" + (f" ack={' or '.join(map(str, acks))}" if acks else "")
    deadline = run.now + run.stack.timers["timer.response.max"]
    while True:
        arrival = yield from run.head(queue, deadline)
        if arrival is None:
            raise run.fail("the stack gives no sign of life: the probe was not answered", wanted, "nothing")
        queue.popleft()
        segment = arrival.segment
        right = segment.seq == seq and segment.flags & (RST | flag) == flag and (not acks or segment.ack in acks)
        if right and not segment.length:
            connection.observed(segment)
            run.transcript.note(run.now, "matched", step=run.path, of=arrival.entry)
            return
        noise = run.noise(connection, arrival, None)
        if noise is None:
            summary = f"the probe of life was answered by {segment}, want {wanted}"
            raise run.fail(summary, wanted, relative(segment, connection), entry=arrival.entry)
        run.pass_over(connection, arrival, noise)
