"""Whether the stack is still alive: the step ``probe``, and each trial's end."""

from __future__ import annotations

from dataclasses import dataclass

from conform.engine.connections import Arrival, End
from conform.engine.matcher import relative
from conform.engine.packets import inject, take
from conform.engine.runtime import Runtime, Script
from conform.engine.state import implied, note_state, possible_states, read_state
from conform.tcp import states as st
from conform.tcp.segment import ACK, RST, Segment
from conform.tcp.sequence import add

#: The connection of which only the port is probed.
PORT = "probe"
#: What an ACK acknowledges that belongs to nothing: the reset that it draws has that sequence number.
_ASTRAY = 0x1234
_RESETTING = frozenset({st.CLOSED, st.LISTEN})
_ACKNOWLEDGING = st.SYNCHRONIZED | {st.SYN_RECEIVED}


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a probe is to be answered with: an ACK or a RST of that number, which acknowledges one of ``acks``."""

    flag: int
    seq: int
    acks: frozenset[int] = frozenset()

    def is_given_by(self, seg: Segment) -> bool:
        """Whether *seg* is this answer."""
        right = seg.seq == self.seq and seg.flags & (RST | self.flag) == self.flag
        return right and (not self.acks or seg.ack in self.acks) and not seg.length

    def __str__(self) -> str:
        text = f"{'ACK' if self.flag == ACK else 'RST'} seq={self.seq}"
        return text + (f" ack={' or '.join(map(str, sorted(self.acks)))}" if self.acks else "")


@dataclass(slots=True)
class _Held:
    """Whether an arrival answers a probe."""

    fits: bool


def probe(run: Runtime, *, asked: bool) -> Script:
    """The stack is alive, and so is each connection of the case. Raises StepFailed, Broken.

    It is *asked* for by a step; or it is implied, at a trial's end. Then a connection that keeps silent is a finding
    and no failure, where the port answers: that a state answers what is unacceptable has cases of its own, and a stack
    that departs from it there is to be told by those, and not by every case that ends in that state.
    """
    used = [end for end in run.ends.ends.values() if end.connection.used and end.connection.name != PORT]
    used = [end for end in used if end.connection.stack_port is not None]
    for end in used:
        yield from _probe_connection(run, end, asked)
    if not used:
        yield from probe_port(run)


def _probe_connection(run: Runtime, end: End, asked: bool) -> Script:
    """Each state's own answer to a segment that it must answer and that changes nothing (RFC 9293 section 3.10.7).

    The state that the stack says is believed only where the wire allows it. Where it says none, the answer of any state
    that the wire allows is right.
    """
    connection = end.connection
    state = None
    if "states" in run.stack.capabilities:
        state = yield from read_state(run, connection.name)
        if state is not None and not end.queue and state not in possible_states(run, end):
            yield from run.settle()  # once more, as for the step state
            state = yield from read_state(run, connection.name)
    possible = possible_states(run, end)
    if state is not None:
        note_state(run, connection.name, state)
        if not end.queue and state not in possible:
            wanted = " or ".join(sorted(possible))
            raise run.fail(implied(state, end), wanted, state, entry=len(run.transcript.entries) - 1)
        possible = {state}
    if connection.iss is None and not possible <= _RESETTING:
        yield from probe_port(run)
    elif possible <= _ACKNOWLEDGING | _RESETTING:
        # Below the window: unacceptable, so it draws an ACK and is dropped (section 3.10.7.4, first). It has an octet,
        # as a keep-alive for those who do not answer an empty one (section 3.8.4). It does not touch the window: there
        # are stacks that take what ends at RCV.NXT for acceptable, and heed its acknowledgment.
        astray = connection.snd_nxt if possible & _ACKNOWLEDGING else _ASTRAY
        seq = connection.tester_nxt if possible <= _RESETTING else add(connection.lowest_rcv_nxt, -2)
        answers = []
        if possible & _ACKNOWLEDGING:
            answers.append(_Answer(ACK, connection.snd_nxt, connection.rcv_nxts))
        if possible & _RESETTING:
            answers.append(_Answer(RST, astray))
        octet = b"\0" if possible & _ACKNOWLEDGING else b""
        segment = run.craft.segment(connection, flags=ACK, seq=seq, ack=astray, payload=octet)
        answered = yield from _probed(run, end, segment, answers, asked or not possible & _ACKNOWLEDGING)
        if not answered:
            yield from probe_port(run)
            states = " or ".join(sorted(possible))
            run.finding(f"in {states} nothing answered an octet below the window (RFC 9293 section 3.10.7.4, first)")
    elif possible <= {st.SYN_SENT} | _RESETTING:
        wrong = add(connection.snd_nxt, 1000)
        segment = run.craft.segment(connection, flags=ACK, seq=connection.tester_nxt, ack=wrong)
        yield from _probed(run, end, segment, [_Answer(RST, wrong)], True)
    else:
        yield from probe_port(run)


def probe_port(run: Runtime) -> Script:
    """From a port never used: an ACK that belongs to nothing draws a reset from CLOSED and LISTEN alike.

    RFC 9293 sections 3.10.7.1 and 3.10.7.2. Raises StepFailed.
    """
    end = run.ends[PORT]
    segment = run.craft.segment(end.connection, flags=ACK, seq=end.connection.tester_nxt, ack=_ASTRAY)
    yield from _probed(run, end, segment, [_Answer(RST, _ASTRAY)], True)


def _probed(run: Runtime, end: End, segment: Segment, answers: list[_Answer], must: bool) -> Script:
    """Send *segment*; whether one of *answers* came. Raises StepFailed for another, and for none if one *must* come.

    A reset with another number shows life as well: how resets are numbered has cases of its own.
    """
    yield from inject(run, segment)
    wanted = " or ".join(str(answer) for answer in answers)
    deadline = run.now + run.stack.timers["timer.response.max"]

    def hold(arrival: Arrival) -> _Held:
        return _Held(any(answer.is_given_by(arrival.segment) for answer in answers))

    came = yield from run.next_arrival(end, deadline, hold, None)
    if came is None and not must:
        return False
    if came is None:
        raise run.fail("the stack gives no sign of life: the probe was not answered", wanted, "nothing")
    arrival, found = came
    if not found.fits and arrival.segment.flags & RST and all(answer.flag == RST for answer in answers):
        run.finding(f"the probe of life was answered by {relative(arrival.segment, end.connection)}, want {wanted}")
    elif not found.fits:
        summary = f"the probe of life was answered by {arrival.segment}, want {wanted}"
        raise run.fail(summary, wanted, relative(arrival.segment, end.connection), entry=arrival.entry)
    take(run, end, arrival)
    run.transcript.note(run.now, "matched", step=run.path, of=arrival.entry)
    return True
