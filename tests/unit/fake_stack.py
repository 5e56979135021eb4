"""A small TCP in memory that drives a Session on a clock of its own, with hooks to deviate by one field.

``ModelStack`` is what a test talks to through the session: it listens, connects, acknowledges, closes, resets, by RFC
9293's rules as far as the tests need them. ``Driver`` does what a worker does: it carries out the session's actions and
feeds it events, in the order of a virtual time.
"""

from __future__ import annotations

import heapq
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from conform.case.expr import TIMERS
from conform.case.model import Case
from conform.case.vocabulary import CAPABILITIES
from conform.engine import events as ev
from conform.engine.session import Session
from conform.engine.trial import StackProfile, Trial
from conform.engine.verdict import Verdict
from conform.tcp.segment import ACK, FIN, RST, SYN, IcmpError, IPFields, Option, Segment
from conform.tcp.sequence import add, between, lt

ADDRESSES = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}
SECONDS = {
    "timer.response.max": 0.1, "timer.delayed-ack.max": 0.2, "timer.rto.min": 0.2, "timer.rto.initial": 1.0,
    "timer.rto.max": 120.0, "timer.msl": 30.0, "timer.time-wait": 60.0, "timer.fin-wait-2": 60.0,
    "timer.persist.min": 0.2, "timer.keepalive.min": 7200.0,
}  # fmt: skip
assert set(SECONDS) == set(TIMERS)

LISTEN_STEPS: list[Any] = [{"call": {"do": "socket"}}, {"call": {"do": "bind"}}, {"call": {"do": "listen"}}]
HANDSHAKE: list[Any] = [
    {"send": {"flags": "S", "options": {"mss": 1460}}},
    {"expect": {"flags": "SA", "seq": "ISS", "ack": "RCV.NXT"}},
    {"send": {"flags": "A"}},
]
ESTABLISHED: list[Any] = [*LISTEN_STEPS, *HANDSHAKE, {"call": "accept"}]


def profile(**changes: Any) -> StackProfile:
    """A stack that can do everything."""
    fields: dict[str, Any] = {
        "name": "model",
        "capabilities": frozenset(CAPABILITIES),
        "timers": dict(SECONDS),
        "tolerance": 0.01,
        "settle": "fence",
        "addresses": ADDRESSES,
    }
    return StackProfile(**(fields | changes))


def trial(steps: list[Any], recipe: list[Any] | None = None, **more: Any) -> Trial:
    """A trial of *steps* after *recipe* (ESTABLISHED). *more* goes into the case, or into the trial by name."""
    own = {key: more.pop(key) for key in ("ip", "seed", "levels", "stack") if key in more}
    document = {"title": "A case of the unit tests", "covers": ["some-rule"], "steps": steps}
    document |= {"recipe": ESTABLISHED if recipe is None else recipe, **more}
    return Trial(
        id="unit/test.v4",
        case_id="unit/test",
        file="cases/unit/test.yaml",
        ip=own.get("ip", 4),
        row="",
        document=document,
        case=Case.model_validate(document),
        levels=own.get("levels", {"some-rule": "must", "a-should": "should", "a-may": "may"}),
        stack=own.get("stack") or profile(),
        seed=own.get("seed", 1),
    )


@dataclass
class Tcb:
    """One connection of the model."""

    port: int
    tester_port: int
    iss: int
    state: str = "CLOSED"
    rcv_nxt: int = 0
    snd_nxt: int = 0
    snd_una: int = 0
    received: bytearray = field(default_factory=bytearray)
    eof: bool = False
    reset: bool = False
    held: dict[int, bytes] = field(default_factory=dict)


Twist = Callable[[int, Segment], "list[tuple[float, Segment]]"]


class ModelStack:
    """The model. Each segment it would send gets a number, from 0 on, and goes through ``twist``, which gives what is
    sent instead, each with its delay. ``replies`` maps a call's name to a reply that is given instead of its own."""

    def __init__(self, version: int = 4, iss: int = 1000, twist: Twist | None = None, **options: Any) -> None:
        self.version = version
        self.iss = iss
        self.twist = twist or (lambda number, segment: [(0.0, segment)])
        self.replies: dict[str, dict[str, Any]] = options.pop("replies", {})
        self.syn_options: tuple[Option, ...] = options.pop("syn_options", (Option("mss", 1460),))
        self.window: int = options.pop("window", 64240)
        self.dead_after: int | None = options.pop("dead_after", None)
        self.linger = False
        assert not options, options
        self.listening: set[int] = set()
        self.tcbs: dict[tuple[int, int], Tcb] = {}
        self.bound: dict[str, int] = {}
        self.named: dict[str, Tcb] = {}
        self.unaccepted: list[Tcb] = []
        self.count = 0
        self.out: list[tuple[float, Segment]] = []
        self.waiting: list[tuple[int, dict[str, Any]]] = []

    # Sending
    def emit(self, tcb: Tcb, flags: int, payload: bytes = b"", **fields: Any) -> None:
        segment = Segment(
            ip=IPFields(self.version, *ADDRESSES[self.version]),
            sport=tcb.port,
            dport=tcb.tester_port,
            seq=fields.pop("seq", tcb.snd_nxt),
            ack=fields.pop("ack", tcb.rcv_nxt if flags & ACK else 0),
            flags=flags,
            window=0 if flags & RST else self.window,
            payload=payload,
            **fields,
        )
        number, self.count = self.count, self.count + 1
        if self.dead_after is None or number < self.dead_after:
            self.out += self.twist(number, segment)

    def send_data(self, tcb: Tcb, payload: bytes, flags: int = ACK) -> None:
        seq = tcb.snd_nxt
        tcb.snd_nxt = add(seq, len(payload) + bool(flags & FIN))
        self.emit(tcb, flags, payload, seq=seq)

    # Receiving
    def receive(self, seg: Segment) -> None:
        key = (seg.dport, seg.sport)
        tcb = self.tcbs.get(key)
        if tcb is None or tcb.state == "CLOSED":
            tcb = Tcb(seg.dport, seg.sport, self.iss)
            if seg.flags & RST:
                return
            if seg.flags & ACK:
                self.emit(tcb, RST, seq=seg.ack)
            elif seg.dport not in self.listening:
                self.emit(tcb, RST | ACK, seq=0, ack=add(seg.seq, seg.length))
            elif seg.flags & SYN:
                tcb.state, tcb.rcv_nxt, tcb.snd_una = "SYN-RECEIVED", add(seg.seq, 1), self.iss
                tcb.snd_nxt = add(self.iss, 1)
                self.tcbs[key] = tcb
                self.emit(tcb, SYN | ACK, seq=tcb.iss, options=self.syn_options)
            return
        if tcb.state == "SYN-SENT":
            self.in_syn_sent(tcb, seg)
            return
        last = add(tcb.rcv_nxt, self.window - 1)
        ends = (seg.seq, add(seg.seq, max(seg.length, 1) - 1))
        if not any(between(tcb.rcv_nxt, end, last) for end in ends):
            if not seg.flags & RST:
                self.emit(tcb, ACK)
            return
        if seg.flags & RST:
            if seg.seq == tcb.rcv_nxt:
                tcb.state, tcb.reset = "CLOSED", True
            else:
                self.emit(tcb, ACK)
            return
        if seg.flags & SYN:
            self.emit(tcb, ACK)
            return
        if not seg.flags & ACK:
            return
        if lt(tcb.snd_nxt, seg.ack):
            self.emit(tcb, ACK)
            return
        if tcb.state == "SYN-RECEIVED":
            tcb.state = "ESTABLISHED"
            self.unaccepted.append(tcb)
        if lt(tcb.snd_una, seg.ack):
            tcb.snd_una = seg.ack
        if tcb.snd_una == tcb.snd_nxt:
            after = {"FIN-WAIT-1": "FIN-WAIT-2", "CLOSING": "TIME-WAIT", "LAST-ACK": "CLOSED"}
            tcb.state = after.get(tcb.state, tcb.state)
        self.text(tcb, seg)

    def text(self, tcb: Tcb, seg: Segment) -> None:
        if not seg.length or tcb.state not in ("ESTABLISHED", "FIN-WAIT-1", "FIN-WAIT-2"):
            if seg.length:
                self.emit(tcb, ACK)
            return
        if seg.seq != tcb.rcv_nxt:
            if lt(tcb.rcv_nxt, seg.seq):
                tcb.held[seg.seq] = seg.payload
            self.emit(tcb, ACK)
            return
        data = seg.payload
        while data:
            tcb.received += data
            tcb.rcv_nxt = add(tcb.rcv_nxt, len(data))
            data = tcb.held.pop(tcb.rcv_nxt, b"")
        if seg.flags & FIN:
            tcb.rcv_nxt, tcb.eof = add(tcb.rcv_nxt, 1), True
            after = {"ESTABLISHED": "CLOSE-WAIT", "FIN-WAIT-1": "CLOSING", "FIN-WAIT-2": "TIME-WAIT"}
            tcb.state = after[tcb.state]
        self.emit(tcb, ACK)

    def in_syn_sent(self, tcb: Tcb, seg: Segment) -> None:
        good = bool(seg.flags & ACK) and seg.ack == tcb.snd_nxt
        if seg.flags & ACK and not good:
            if not seg.flags & RST:
                self.emit(tcb, RST, seq=seg.ack)
        elif seg.flags & RST:
            if good:
                tcb.state, tcb.reset = "CLOSED", True
        elif seg.flags & SYN:
            tcb.rcv_nxt = add(seg.seq, 1)
            if good:
                tcb.state, tcb.snd_una = "ESTABLISHED", seg.ack
                self.emit(tcb, ACK)
            else:
                tcb.state = "SYN-RECEIVED"
                self.emit(tcb, SYN | ACK, seq=tcb.iss, options=self.syn_options)

    # Calls
    def call(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """The reply, ``None`` while the call sleeps."""
        do, on = request["do"], request.get("on", "")
        if do in self.replies:
            return self.replies[do]
        tcb = self.named.get(on)
        match do:
            case "bind":
                self.bound[on] = request["port"]
            case "listen":
                self.listening.add(self.bound[on])
            case "accept":
                if not self.unaccepted:
                    return None
                self.named[request["as"]] = self.unaccepted.pop(0)
            case "connect":
                if tcb is None:
                    tcb = Tcb(self.bound.get(on, 40000), request["port"], self.iss, "SYN-SENT", 0, self.iss, self.iss)
                    self.named[on] = self.tcbs[(tcb.port, tcb.tester_port)] = tcb
                    tcb.snd_nxt = add(self.iss, 1)
                    self.emit(tcb, SYN, seq=self.iss, options=self.syn_options)
                if tcb.reset:
                    return {"error": "ECONNREFUSED"}
                return None if tcb.state in ("SYN-SENT", "SYN-RECEIVED") else {"returned": 0}
            case "send":
                assert tcb is not None
                payload = bytes.fromhex(request["payload"])
                for at in range(0, len(payload), 1000):
                    self.send_data(tcb, payload[at : at + 1000])
                return {"returned": len(payload)}
            case "recv":
                assert tcb is not None
                if not tcb.received and not tcb.eof:
                    return {"error": "ECONNRESET"} if tcb.reset else None
                data, tcb.received = bytes(tcb.received[: request["size"]]), tcb.received[request["size"] :]
                return {"returned": len(data), "data": data.hex()}
            case "setsockopt":
                self.linger = request["option"] == "SO_LINGER"
            case "close" | "shutdown":
                if tcb is None:
                    self.listening.discard(self.bound.get(on, 0))
                elif self.linger and do == "close":
                    tcb.state = "CLOSED"
                    self.emit(tcb, RST | ACK)
                elif tcb.state in ("ESTABLISHED", "CLOSE-WAIT"):
                    tcb.state = {"ESTABLISHED": "FIN-WAIT-1", "CLOSE-WAIT": "LAST-ACK"}[tcb.state]
                    self.send_data(tcb, b"", FIN | ACK)
        return {"returned": 0}

    def state(self, port: int, tester_port: int) -> str | None:
        if not tester_port:
            return "LISTEN" if port in self.listening else "CLOSED"
        tcb = self.tcbs.get((port, tester_port))
        return tcb.state if tcb else "CLOSED"


class Driver:
    """Plays one trial against a stack, in virtual time.

    ``at`` injects events of the test's own: (time, event). ``lag`` maps the number of an arrival to how long before it
    was read the loop had last looked. ``state`` replaces the read-out.
    """

    def __init__(
        self,
        trial: Trial,
        stack: ModelStack | None = None,
        at: list[tuple[float, ev.Event]] | None = None,
        lag: dict[int, float] | None = None,
        state: Callable[[int, str | None], str | None] | None = None,
        mute: type | None = None,
    ) -> None:
        self.trial = trial
        self.stack = stack or ModelStack(trial.ip)
        self.session = Session(trial)
        self.now = 0.0
        self.lag = lag or {}
        self.read = state or (lambda number, actual: actual)
        self.mute = mute
        self.arrivals = 0
        self.reads = 0
        self.injected: list[Any] = []
        self.requests: list[dict[str, Any]] = []
        self._order = itertools.count()
        self._events: list[tuple[float, int, ev.Event]] = []
        for when, event in at or []:
            self._push(when, event)

    def _push(self, when: float, event: ev.Event) -> None:
        heapq.heappush(self._events, (when, next(self._order), event))

    def play(self) -> Driver:
        """Run to the verdict."""
        session = self.session
        session.start(0.0)
        for _ in range(20000):
            for action in session.actions():
                self._act(action)
            if session.finished:
                return self
            deadline = session.deadline()
            if self._events and (deadline is None or self._events[0][0] <= deadline):
                self.now, _, event = heapq.heappop(self._events)
                if isinstance(event, ev.Arrived):
                    event = ev.Arrived(event.packet, self.now - self.lag.get(self.arrivals, 0.0))
                    self.arrivals += 1
                session.receive(event, self.now)
            else:
                assert deadline is not None, "the session waits for nothing: it would hang"
                self.now = max(self.now, deadline)
                session.receive(ev.Ticked(), self.now)
        raise AssertionError("the session does not end")

    def _act(self, action: ev.Action) -> None:
        if self.mute is not None and isinstance(action, self.mute):
            return
        match action:
            case ev.Inject():
                self.injected.append(action.packet)
                self._push(self.now, ev.Injected(action.id, self.now, self.now))
                if not isinstance(action.packet, IcmpError) and action.packet.checksum is None:
                    self.stack.receive(action.packet)
            case ev.Call():
                self.requests.append(action.request)
                reply = self.stack.call(action.request)
                if reply is not None:
                    self._push(self.now, ev.Returned(action.id, reply))
                else:
                    self.stack.waiting.append((action.id, action.request))
                    self._push(self.now, ev.Blocked(action.id))
            case ev.Settle():
                self._push(self.now, ev.Settled(action.id))
            case ev.ReadState():
                state = self.read(self.reads, self.stack.state(action.stack_port, action.tester_port))
                self.reads += 1
                self._push(self.now, ev.StateRead(action.id, state, {}))
        self._flush()

    def _flush(self) -> None:
        out, self.stack.out = self.stack.out, []
        for delay, segment in out:
            self._push(self.now + delay, ev.Arrived(segment, self.now + delay))
        for waiting in list(self.stack.waiting):
            reply = self.stack.call(waiting[1])
            if reply is not None:
                self.stack.waiting.remove(waiting)
                self._push(self.now, ev.Returned(waiting[0], reply))

    @property
    def verdict(self) -> Verdict:
        assert self.session.verdict is not None
        return self.session.verdict

    def line(self) -> dict[str, Any]:
        """The trial's line in the run file, as it would be read back."""
        t = self.trial
        line = {
            "id": t.id, "case": t.case_id, "file": t.file, "ip": t.ip, "row": t.row, "document": t.document,
            "levels": t.levels, "stack": t.stack.to_json(), "seed": t.seed,
            "transcript": self.session.transcript.entries, "verdict": self.verdict.to_json(),
        }  # fmt: skip
        return json.loads(json.dumps(line))  # type: ignore[no-any-return]


def run(steps: list[Any], recipe: list[Any] | None = None, stack: ModelStack | None = None, **more: Any) -> Driver:
    """Play *steps*; what :class:`Driver` takes goes there, ``of`` is the stack's profile, all else is the trial's."""
    own = {key: more.pop(key) for key in ("at", "lag", "state", "mute") if key in more}
    if "of" in more:
        more["stack"] = more.pop("of")
    return Driver(trial(steps, recipe, **more), stack, **own).play()


#: A stack of which nobody knows what its application sends, and when it closes.
SERVED = profile(services={"hold": 80})


# Twists --------------------------------------------------------------------------------------------------------------
def alter(number: int, **changes: Any) -> Twist:
    """The segment of that number with other fields; a function of the segment gives the new value."""

    def twist(n: int, segment: Segment) -> list[tuple[float, Segment]]:
        if n != number:
            return [(0.0, segment)]
        made = {k: v(segment) if callable(v) else v for k, v in changes.items()}
        return [(0.0, replace(segment, **made))]

    return twist


def drop(number: int) -> Twist:
    """The segment of that number is not sent."""
    return lambda n, segment: [] if n == number else [(0.0, segment)]


def delay(number: int, seconds: float) -> Twist:
    """The segment of that number is sent later."""
    return lambda n, segment: [(seconds if n == number else 0.0, segment)]


def also(number: int, *extra: tuple[float, dict[str, Any]]) -> Twist:
    """After the segment of that number others follow: like it, with other fields, after a time."""

    def twist(n: int, segment: Segment) -> list[tuple[float, Segment]]:
        if n != number:
            return [(0.0, segment)]
        made = []
        for seconds, changes in extra:
            values = {k: v(segment) if callable(v) else v for k, v in changes.items()}
            made.append((seconds, replace(segment, **values)))
        return [(0.0, segment), *made]

    return twist


def shifted(name: str, by: int) -> Callable[[Segment], int]:
    """That field of the segment, further by so much."""
    return lambda segment: add(getattr(segment, name), by)
