"""What the model cannot see: names, and the order of a case's steps.

:func:`check` walks the steps as they would be executed and keeps what exists at each: snapshots, captures, calls that
were begun, processes and the descriptors that each holds open. A name is only good after the step that makes it. The
recipe is walked first, so that what it leaves behind (``listener``, ``c1``, ``connecting``) is there.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticCustomError

from conform.case import model as m
from conform.case.expr import SNAPSHOT_FIELDS, TIMERS, VARIABLES, Expr, ExpressionError, Match, parse_match
from conform.case.source import did_you_mean
from conform.case.values import parse_duration
from conform.case.vocabulary import ERRNOS, SETTING_VALUES, SOCKET_OPTIONS
from conform.tcp.segment import SYN

Loc = tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong at *loc*, keys and indices from the case's root. ``offset`` counts characters in a text there."""

    loc: Loc
    message: str
    hint: str = ""
    offset: int | None = None
    length: int = 1
    at_key: bool = False


@dataclass(slots=True)
class _Begun:
    """A call that was started."""

    call: m.Call
    loc: Loc
    line: int
    in_recipe: bool


@dataclass(slots=True)
class _Process:
    """A process: the descriptors that it holds open, those that it closed (with the line), how it ended."""

    open: dict[str, int] = field(default_factory=dict)
    closed: dict[str, int] = field(default_factory=dict)
    ended: str = ""


@dataclass(frozen=True, slots=True)
class _Length:
    """How many octets of a packet that the tester sends are options (``None``: cannot be told), payload, IP options."""

    options: int | None = 0
    payload: int = 0
    ip_options: int = 0


@dataclass(slots=True)
class _World:
    """What exists before a step."""

    #: Snapshots: the line of each, and whether the stack sent it.
    snapshots: dict[str, tuple[int, bool]] = field(default_factory=dict)
    captures: dict[str, int] = field(default_factory=dict)
    begun: dict[str, _Begun] = field(default_factory=dict)
    #: Calls that are over, with the line of their finish.
    over: dict[str, int] = field(default_factory=dict)
    processes: dict[str, _Process] = field(default_factory=lambda: {m.PROCESS: _Process()})
    #: Names that only some ways lead to: why each may be missing.
    partial: dict[str, str] = field(default_factory=dict)
    #: Connections on which something may have happened: the tester sent, or the stack connects.
    begun_on: set[str] = field(default_factory=set)
    #: Connections of which the stack's SYN may have been seen, and with it its ISS.
    numbered: set[str] = field(default_factory=set)
    #: Connections on which the tester's SYN may have offered timestamps.
    timestamped: set[str] = field(default_factory=set)
    #: What the tester sent, by the snapshot's name: how long it is.
    sent: dict[str, _Length] = field(default_factory=dict)

    def copy(self) -> _World:
        """A world of its own, to be changed."""
        processes = {name: _Process(dict(p.open), dict(p.closed), p.ended) for name, p in self.processes.items()}
        return _World(
            dict(self.snapshots), dict(self.captures), dict(self.begun), dict(self.over), processes, dict(self.partial),
            set(self.begun_on), set(self.numbered), set(self.timestamped), dict(self.sent),
        )  # fmt: skip


#: Names that an expression understands otherwise.
_RESERVED = frozenset({*VARIABLES, "previous", "absolute", "any", "absent", "timer", "not"})
#: Names that a connection cannot have either: they are asked for where connections are.
_NO_CONNECTION = _RESERVED | {m.LISTENER, "probe"}
#: The variables that begin with the stack's SYN.
_OF_ISS = ("ISS", "SND.UNA", "SND.NXT")
#: So many steps may be performed in one trial, repetitions counted, and so many octets sent in payloads.
MOST_PERFORMED = 10_000
MOST_OCTETS = 16 << 20
_LARGEST_PACKET = 65535
_FIRST_OF_BRANCH = (m.ExpectStep, m.SilenceStep, m.StateStep, m.FinishStep, m.BlockedStep)
_ALGORITHM = re.compile(r"[a-z][a-z0-9_-]{0,39}\Z")
_V4_ONLY = ("ident", "df", "options", "checksum")
_V4_ICMP = ("source-route-failed", "source-quench")
#: Calls whose value is a number that ``returns`` may compare.
_COUNTING = frozenset({"send", "sendmsg", "recv", "recvmsg"})
_NAMING = frozenset({"getsockname", "getpeername"})


@cache
def _aliases(of: type[BaseModel]) -> tuple[tuple[str, str], ...]:
    return tuple((name, info.alias or name) for name, info in of.model_fields.items())


def _expressions(value: Any, loc: Loc) -> Iterator[tuple[Loc, Expr, Match | None]]:
    """Every expression in *value*, with where it is and the match that it belongs to."""
    if isinstance(value, Expr):
        yield loc, value, None
    elif isinstance(value, Match):
        for expr in value.exprs:
            yield loc, expr, value
    elif isinstance(value, BaseModel):
        for name, alias in _aliases(type(value)):
            inner = getattr(value, name)
            if inner is not None and not isinstance(inner, (str, int, bytes)):
                yield from _expressions(inner, (*loc, alias))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from _expressions(inner, (*loc, index))
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _expressions(inner, (*loc, key))


def _captures(value: Any, loc: Loc) -> Iterator[tuple[Loc, str]]:
    if isinstance(value, Match):
        if value.capture is not None:
            yield loc, value.capture
    elif isinstance(value, BaseModel):
        for name, alias in _aliases(type(value)):
            inner = getattr(value, name)
            if isinstance(inner, (Match, BaseModel)):
                yield from _captures(inner, (*loc, alias))


class _Walk:
    def __init__(self, case: m.Case) -> None:
        self.case = case
        self.faults: list[Fault] = []
        self.connections = {m.CONNECTION, *case.connections}
        self.in_recipe = False
        self.in_gap = False

    def fault(
        self, loc: Loc, message: str, hint: str = "", offset: int | None = None, length: int = 1, at_key: bool = False
    ) -> None:
        if not self.in_recipe:
            self.faults.append(Fault(loc, message, hint, offset, length, at_key))

    def run(self) -> None:
        world = _World()
        self._case()
        if self._too_much():
            return
        self.in_recipe = True
        self.steps(self.case.recipe, ("recipe",), world)
        self.in_recipe = False
        self.steps(self.case.steps, ("steps",), world)
        for name, begun in world.begun.items():
            if not begun.in_recipe:
                why = world.partial.get(f"finish {name}", "")
                self.fault(
                    begun.loc,
                    f"the call {name} is begun here and never finished{why}",
                    f"finish: {{{name}: ok}}",
                    at_key=True,
                )

    # The case as a whole ---------------------------------------------------------------------------------------------
    def _case(self) -> None:
        case = self.case
        if case.sysctl and "linux" not in case.requires:
            self.fault(("sysctl",), "sysctl is Linux's own way: the case needs requires: linux", at_key=True)
        for version, name in ((6, "ipv4"), (4, "ipv6")):
            if case.ip == version and name in case.requires:
                self.fault(("requires",), f"ip: {version} leaves no trial to a case that requires {name}", at_key=True)
        ports: dict[tuple[str | None, int], str] = {}
        for name, spec in case.connections.items():
            self._connection_name(_World(), name, ("connections", name), at_key=True)
            self._address(spec.address, ("connections", name, "address"))
            if spec.port is None:
                continue
            other = ports.setdefault((spec.address, spec.port), name)
            if other != name:
                self.fault(("connections", name, "port"), f"{name} and {other} have the same port of the tester")

        for name, value in case.settings.items():
            self._setting(name, value, ("settings", name))

    def _setting(self, name: str, value: bool | int | str, loc: Loc) -> None:
        can = SETTING_VALUES[name]
        word = ("on" if value else "off") if isinstance(value, bool) else value
        if word in can.words:
            return
        wanted = list(can.words)
        match can.takes:
            case "count":
                if isinstance(word, int) and word >= can.least:
                    return
                wanted.append(f"a number of at least {can.least}" if can.least else "a number")
            case "name":
                if isinstance(word, str) and _ALGORITHM.match(word):
                    return
                wanted.append("the name of an algorithm")
            case "duration":
                try:
                    expr = parse_duration(word)
                except PydanticCustomError as error:
                    if isinstance(word, int) or word[:1].isdigit():
                        self.fault(loc, f"{name}: {error.message()}")
                        return
                else:
                    for used, at in expr.names:
                        if used not in TIMERS:
                            self.fault(loc, f"{name}: only timers are known before a trial", "", at, len(used))
                    return
                wanted.append("a duration such as 500ms")
        self.fault(loc, f"{name} is {' or '.join(wanted)}, not {value!r}", did_you_mean(str(word), can.words))

    def _too_much(self) -> bool:
        """Whether a trial would perform more steps, or send more octets, than one may."""
        steps, octets = _cost(self.case.steps)
        if steps <= MOST_PERFORMED and octets <= MOST_OCTETS:
            return False
        loc: Loc = ("steps",)
        for index, step in enumerate(self.case.steps):
            if isinstance(step, m.RepeatStep) and (_cost([step])[0] > MOST_PERFORMED or _cost([step])[1] > MOST_OCTETS):
                loc = ("steps", index, "repeat")
                break
        if steps > MOST_PERFORMED:
            message = f"a trial of this case performs {steps:,} steps, and at most {MOST_PERFORMED:,} are allowed"
        else:
            message = f"a trial of this case sends {octets:,} octets, and at most {MOST_OCTETS:,} are allowed"
        self.fault(loc, message, at_key=True)
        return True

    # Names -----------------------------------------------------------------------------------------------------------
    def _defines(self, world: _World, name: str, loc: Loc, kind: str, line: int) -> bool:
        """Whether *name* is free for a snapshot or a capture."""
        taken = {**{n: at for n, (at, _) in world.snapshots.items()}, **world.captures}
        if name in _RESERVED:
            self.fault(loc, f"{name!r} has a meaning in expressions and cannot name a {kind}")
        elif name in self.connections:
            self.fault(loc, f"{name!r} is a connection and cannot name a {kind} too")
        elif name in taken and taken[name] != line:
            self.fault(loc, f"the name {name!r} is taken, in line {taken[name]}")
        else:
            return True
        return False

    def _connection_name(self, world: _World, name: str, loc: Loc, at_key: bool = False) -> bool:
        """Whether *name* can be a connection's."""
        if name in _NO_CONNECTION:
            self.fault(loc, f"{name!r} cannot be a connection's name: it has a meaning of its own", at_key=at_key)
        elif name in world.snapshots or name in world.captures:
            line = world.snapshots[name][0] if name in world.snapshots else world.captures[name]
            self.fault(loc, f"the name {name!r} is taken, in line {line}", at_key=at_key)
        else:
            return True
        return False

    def _begins(self, world: _World, name: str, loc: Loc) -> None:
        """A SYN of the tester or a connect begins the connection *name*, which needs no declaration."""
        if name in self.connections or self._connection_name(world, name, loc):
            self.connections.add(name)
            world.begun_on.add(name)

    def _connection(self, name: str, loc: Loc) -> None:
        if name not in self.connections and name not in _NO_CONNECTION:
            hint = did_you_mean(name, self.connections)
            self.fault(
                loc,
                f"no SYN and no connect before this begins a connection {name!r}",
                hint or f"or declare it: connections: {{{name}: {{}}}}",
            )

    def _snapshot(self, world: _World, name: str, loc: Loc, of_stack: bool | None = None, of: str = "") -> None:
        if name in world.partial:
            self.fault(loc, f"there may be no snapshot {name!r}: {world.partial[name]}")
        elif name not in world.snapshots:
            hint = did_you_mean(name, world.snapshots, few=6)
            self.fault(loc, f"no step before this names a segment {name!r} (as: {name})", hint)
        elif of_stack is not None and world.snapshots[name][1] is not of_stack:
            sender = "the tester" if of_stack else "the stack"
            self.fault(loc, f"{of}, and {name!r} is what {sender} sent, in line {world.snapshots[name][0]}")

    def _expression(self, world: _World, loc: Loc, expr: Expr, conn: str = m.CONNECTION, syn: bool = False) -> None:
        """Check the names in *expr*, which is about *conn*; *syn*: a segment is at hand that may be the stack's SYN."""
        for name, at in expr.names:
            # An inner expression knows its own text alone; the offsets of its names count from the whole.
            message, hint = self._name(world, name)
            if not message:
                message, hint = self._unnumbered(world, name, conn, syn)
            if message:
                self.fault(loc, message, hint, at, len(name))

    def _unnumbered(self, world: _World, name: str, conn: str, syn: bool) -> tuple[str, str]:
        """What is wrong with *name* where no SYN of the stack can have been seen, and a hint."""
        of, variable = next(
            ((name[: -len(v) - 1] or conn, v) for v in _OF_ISS if name == v or name.endswith(f".{v}")), (conn, "")
        )
        if not variable or of in world.numbered or of not in self.connections or (syn and name == "ISS"):
            return "", ""
        hint = "in the expectation of that SYN it is ISS" if syn and of == conn else ""
        return f"{name} is not known here: no step before this expects a SYN of the stack on {of}", hint

    def _name(self, world: _World, name: str) -> tuple[str, str]:
        """What is wrong with *name* in an expression, and a hint."""
        if name in VARIABLES or name in TIMERS or (name in world.captures and name not in world.partial):
            return "", ""
        if name == "previous":
            return ("", "") if self.in_gap else ("previous is the gap before, and only repeat's gap has one", "")
        if name in world.partial:
            return f"{name!r} may not be there: {world.partial[name]}", ""
        head, dot, rest = name.partition(".")
        if head == "timer":
            return f"there is no timer {name!r}", did_you_mean(name, TIMERS) or f"timers: {', '.join(TIMERS)}"
        if head in world.partial and dot:
            return f"{head!r} may not be there: {world.partial[head]}", ""
        if head in world.snapshots:
            if rest in SNAPSHOT_FIELDS:
                return "", ""
            what = f"a segment has no {rest!r}" if dot else f"{head!r} is a whole segment"
            return f"{what}: ask for {', '.join(f'{head}.{f}' for f in SNAPSHOT_FIELDS)}", did_you_mean(
                rest, SNAPSHOT_FIELDS
            )
        if head in self.connections:
            if rest in VARIABLES:
                return "", ""
            what = f"a connection has no {rest!r}" if dot else f"{head!r} is a whole connection"
            return f"{what}: ask for {', '.join(f'{head}.{v}' for v in VARIABLES)}", did_you_mean(rest, VARIABLES)
        known = [*VARIABLES, *TIMERS, *world.captures, *(f"{s}.{f}" for s in world.snapshots for f in SNAPSHOT_FIELDS)]
        known += [f"{c}.{v}" for c in self.connections for v in VARIABLES]
        hint = did_you_mean(name, known)
        if head in ("SND", "RCV", "SEG"):
            return f"there is no variable {name!r}", hint or f"variables: {', '.join(VARIABLES)}"
        if dot:
            return f"no step before this names a segment or a connection {head!r}", hint
        return f"nothing is called {name!r} here", hint or f"variables: {', '.join(VARIABLES)}"

    def _all_expressions(
        self, world: _World, value: Any, loc: Loc, conn: str = m.CONNECTION, syn: bool = False
    ) -> None:
        for at, expr, _ in _expressions(value, loc):
            self._expression(world, at, expr, conn, syn)

    # Steps -----------------------------------------------------------------------------------------------------------
    def steps(self, steps: list[Any], loc: Loc, world: _World) -> None:
        for index, step in enumerate(steps):
            self.step(step, (*loc, index), world)

    def step(self, step: Any, loc: Loc, world: _World) -> None:
        line = step.place[0] if step.place else 0
        match step:
            case m.SendStep():
                self._send(step.send, (*loc, "send"), world, line)
            case m.ExpectStep():
                self._expect(step.expect, (*loc, "expect"), world, line)
            case m.CallStep():
                if self._call(step.call, (*loc, "call"), world):
                    self._took_place(step.call, step.call, (*loc, "call"), world, line)
            case m.StartStep():
                self._start(step.start, (*loc, "start"), world, line)
            case m.BlockedStep():
                self._pending(world, step.blocked, (*loc, "blocked"))
            case m.FinishStep():
                self._finish(step.finish, (*loc, "finish"), world, line)
            case m.SilenceStep():
                self._all_expressions(world, step.silence, (*loc, "silence"))
            case m.StateStep():
                if step.state.conn != m.LISTENER:
                    self._state_of(world, step.state.conn, (*loc, "state", "conn"))
                self._all_expressions(world, step.state, (*loc, "state"))
            case m.CheckStep():
                self._all_expressions(world, step.check, (*loc, "check"))
                self._captured(step.check, (*loc, "check"), world, line)
            case m.OneOfStep():
                self._one_of(step.one_of, (*loc, "one_of"), world, line)
            case m.AnyOrderStep():
                self._any_order(step.any_order, (*loc, "any_order"), world)
            case m.OptionalStep():
                self._optional(step.optional, (*loc, "optional"), world, line)
            case m.RepeatStep():
                self._repeat(step.repeat, (*loc, "repeat"), world, line)

    def _state_of(self, world: _World, name: str, loc: Loc) -> None:
        if not any(name in p.open or name in p.closed for p in world.processes.values()):  # another listener's state
            self._connection(name, loc)

    def _captured(self, spec: Any, loc: Loc, world: _World, line: int) -> None:
        for at, name in _captures(spec, loc):
            if self._defines(world, name, at, "captured value", line):
                world.captures[name] = line
                world.partial.pop(name, None)

    def _named(self, name: str | None, loc: Loc, world: _World, line: int, of_stack: bool) -> None:
        if name is not None and self._defines(world, name, (*loc, "as"), "segment", line):
            world.snapshots[name] = (line, of_stack)
            world.partial.pop(name, None)

    def _send(self, spec: m.SendSpec, loc: Loc, world: _World, line: int) -> None:
        syn = spec.flags is not None and bool(spec.flags.bits & SYN)
        if syn:
            self._begins(world, spec.conn, (*loc, "conn"))
        elif spec.conn not in self.connections:
            self._connection_name(world, spec.conn, (*loc, "conn"))
        self._connection(spec.conn, (*loc, "conn"))
        self._all_expressions(world, spec, loc, spec.conn)
        if spec.again is not None:
            self._snapshot(world, spec.again, (*loc, "again"), False, "the tester sends again what it sent")
        self._ip_fields(spec.ip, (*loc, "ip"))
        if spec.icmp is not None:
            self._icmp(spec, spec.icmp, loc, world)
            return
        if syn and isinstance(spec.options, m.OptionsSpec) and spec.options.ts is not None:
            world.timestamped.add(spec.conn)
        length = self._length(spec, loc, world)
        self._bad_fields(spec, length, (*loc, "bad"))
        world.begun_on.add(spec.conn)
        self._named(spec.as_, loc, world, line, False)
        if spec.as_ is not None:
            world.sent[spec.as_] = length

    def _icmp(self, spec: m.SendSpec, icmp: m.IcmpSpec, loc: Loc, world: _World) -> None:
        of_segments = spec.model_fields_set - {"icmp", "conn", "ip", "again"}
        for name, alias in _aliases(type(spec)):
            if name in of_segments:
                what = "cannot be named" if name == "as_" else f"has no {alias}: that is a segment's"
                self.fault((*loc, alias), f"an ICMP error {what}", at_key=True)
        at = (*loc, "icmp")
        self._snapshot(world, icmp.quotes, (*at, "quotes"), True, "an ICMP error quotes what the stack sent")
        if self.case.ip != 4 and icmp.type in _V4_ICMP:
            self.fault((*at, "type"), f"only IPv4 has the ICMP error {icmp.type}", "say ip: 4 at the top of the case")
        for name, most in (("mtu", 0xFFFF), ("pointer", 0xFF)):
            if self.case.ip != 6 and getattr(icmp, name) > most:
                self.fault((*at, name), f"in IPv4 {name} is at most {most}", "say ip: 6 at the top of the case")

    def _length(self, spec: m.SendSpec, loc: Loc, world: _World) -> _Length:
        """How long the segment of *spec* is; a fault if that is longer than a packet can be."""
        before = world.sent.get(spec.again, _Length()) if spec.again is not None else _Length()
        options = before.options
        if spec.bad is not None and spec.bad.raw_options is not None:
            options = len(spec.bad.raw_options)
        elif isinstance(spec.options, m.OptionsSpec):
            options = spec.options.size
        elif spec.options is not None:
            options = 0
        elif spec.again is None and not (spec.flags is not None and spec.flags.bits & SYN):
            options = None if spec.conn in world.timestamped else 0  # the connection's timestamps, once negotiated
        payload = before.payload if spec.payload is None else len(spec.payload)
        ip_options = before.ip_options if spec.ip is None or spec.ip.options is None else len(spec.ip.options)
        room = _LARGEST_PACKET - 20 - _words(_TIMESTAMPS if options is None else options) * 4
        if self.case.ip != 6:
            room -= 20 + _words(ip_options) * 4
        if payload > room:
            at = (*loc, "payload") if spec.payload is not None else (*loc, "again")
            self.fault(at, f"a packet with these headers has room for {room:,} octets, and these are {payload:,}")
        return _Length(options, payload, ip_options)

    def _bad_fields(self, spec: m.SendSpec, length: _Length, loc: Loc) -> None:
        wrong = spec.bad
        if wrong is None:
            return
        if wrong == m.BadFields() and spec.again is None:  # of what is sent again it takes the faults away
            self.fault(loc, "nothing is bad by this: say which field", "or leave it out", at_key=True)
        if wrong.raw_options is not None and isinstance(spec.options, m.OptionsSpec):
            self.fault((*loc, "raw-options"), "raw-options stand in place of options: say one of them", at_key=True)
        if length.options is not None and wrong.data_offset == 5 + _words(length.options):
            self.fault(
                (*loc, "data-offset"),
                f"{wrong.data_offset} is where the data of this segment begins, and nothing is bad in that",
                "leave it out",
            )

    def _address(self, address: str | None, loc: Loc) -> None:
        version = ipaddress.ip_address(address).version if address is not None else self.case.ip
        if version != self.case.ip:
            runs = "both versions" if self.case.ip == "both" else f"IPv{self.case.ip}"
            self.fault(
                loc,
                f"this is an address of IPv{version}, and the case is run on {runs}",
                f"say ip: {version} at the top of the case",
            )

    def _ip_fields(self, spec: m.IPSpec | m.IPMatch | None, loc: Loc) -> None:
        if spec is None:
            return
        for name in ("src", "dst"):
            self._address(getattr(spec, name, None), (*loc, name))
        if spec.flow is not None and self.case.ip != 6:
            self.fault((*loc, "flow"), "only IPv6 has a flow label", "say ip: 6 at the top of the case", at_key=True)
        for name in _V4_ONLY:
            if getattr(spec, name, None) is not None and self.case.ip != 4:
                self.fault(
                    (*loc, name), f"only IPv4's header has {name}", "say ip: 4 at the top of the case", at_key=True
                )

    def _expect(self, spec: m.ExpectSpec, loc: Loc, world: _World, line: int) -> None:
        self._connection(spec.conn, (*loc, "conn"))
        if spec.conn in self.connections and spec.conn not in world.begun_on:
            at = (*loc, "conn") if "conn" in spec.model_fields_set else loc
            self.fault(at, f"nothing can come: no step before this sends on {spec.conn} or connects it", at_key=True)
            world.begun_on.add(spec.conn)  # said once
            world.numbered.add(spec.conn)
        may_be_syn = spec.stream is None and (spec.flags is None or any(f.bits & SYN for f in spec.flags))
        self._all_expressions(world, spec, loc, spec.conn, may_be_syn)
        if may_be_syn:
            world.numbered.add(spec.conn)
        if spec.again is not None:
            self._snapshot(world, spec.again, (*loc, "again"), True, "the stack sends again what it sent")
        if spec.from_ is not None:
            self._snapshot(world, spec.from_, (*loc, "from"))
            if spec.within is None and spec.after is None and spec.between is None:
                self.fault(
                    (*loc, "from"), "from says where time begins, and this has no within, after or between", at_key=True
                )
        self._ip_fields(spec.ip, (*loc, "ip"))
        self._captured(spec, loc, world, line)
        self._named(spec.as_, loc, world, line, True)

    # Calls -----------------------------------------------------------------------------------------------------------
    def _process(self, world: _World, name: str, loc: Loc) -> _Process | None:
        process = world.processes.get(name)
        if process is None:
            if f"process {name}" in world.partial:
                self.fault(loc, f"there may be no process {name!r}: {world.partial[f'process {name}']}")
            else:
                self.fault(loc, f"there is no process {name!r}", did_you_mean(name, world.processes, few=6))
        elif process.ended:
            self.fault(loc, f"this call can never be made: the process {name} {process.ended}")
            return None
        return process

    def _call(self, call: m.Call, loc: Loc, world: _World) -> bool:
        """Check *call* before it is made; whether it can be."""
        self._all_expressions(world, call.timeout, (*loc, "timeout"))
        self._outcome(call, call, loc, world)
        process = self._process(world, call.by, (*loc, "by") if "by" in call.model_fields_set else loc)
        if process is None:
            return False
        on = getattr(call, "on", None)
        if on is not None and on not in process.open and call.error != ["EBADF"]:
            at = (*loc, "on") if "on" in call.model_fields_set else loc
            if f"descriptor {on}" in world.partial:
                self.fault(at, f"{on!r} may not be open: {world.partial[f'descriptor {on}']}")
            elif on in process.closed:
                self.fault(at, f"{on!r} was closed in line {process.closed[on]}", "error: EBADF expects just that")
            else:
                holder = next((name for name, p in world.processes.items() if on in p.open), None)
                hint = f"the process {holder} has it: by: {holder}" if holder else did_you_mean(on, process.open, few=6)
                self.fault(
                    at,
                    f"there is no descriptor {on!r}" + ("" if call.by == m.PROCESS else f" in the process {call.by}"),
                    hint,
                )
            return False
        match call:
            case m.ConnectCall():
                of_descriptor = call.on if call.on in self.connections else m.CONNECTION
                self._begins(world, call.conn or of_descriptor, (*loc, "conn") if call.conn else loc)
            case m.SetsockoptCall():
                self._option_value(call, loc)
            case m.KillCall():
                return self._process(world, call.process, (*loc, "process")) is not None
            case m.ForkCall() if call.as_ in world.processes:
                self.fault((*loc, "as"), f"there is a process {call.as_!r} already")
                return False
        return True

    def _made(self, call: m.Call) -> str | None:
        """The name of the descriptor that *call* makes."""
        match call:
            case m.SocketCall():
                return call.as_ or m.LISTENER
            case m.AcceptCall():
                return call.as_ or m.CONNECTION
            case m.DupCall():
                return call.as_
        return None

    def _took_place(self, call: m.Call, outcome: m.Outcome, loc: Loc, world: _World, line: int) -> None:
        if outcome.error is not None:
            return
        process = world.processes[call.by]
        made = self._made(call)
        if made is not None:
            if made in process.open:
                at = (*loc, "as") if "as_" in call.model_fields_set else loc
                self.fault(at, f"the name {made!r} is that of an open descriptor", "give it another: as: NAME")
            process.open[made] = line
            process.closed.pop(made, None)
            world.partial.pop(f"descriptor {made}", None)
        match call:
            case m.CloseCall():
                process.closed[call.on] = line
                process.open.pop(call.on, None)
            case m.ForkCall():
                world.processes[call.as_] = _Process(dict(process.open), dict(process.closed))
                world.partial.pop(f"process {call.as_}", None)
            case m.ExitCall():
                self._ends(world, call.by, f"ended in line {line} (exit)")
            case m.KillCall() if call.with_ in ("SIGKILL", "SIGTERM", "SIGINT"):
                self._ends(world, call.process, f"was killed in line {line}")

    def _ends(self, world: _World, name: str, how: str) -> None:
        process = world.processes[name]
        process.ended = how
        process.open.clear()
        for call_name, begun in list(world.begun.items()):
            if begun.call.by == name:  # its calls ended with it, and nobody can tell how
                del world.begun[call_name]

    def _start(self, call: m.Call, loc: Loc, world: _World, line: int) -> None:
        name = call.as_
        assert name is not None  # the model saw to it
        if name in world.begun:
            self.fault((*loc, "as"), f"a call {name} is under way, begun in line {world.begun[name].line}")
        if call.model_fields_set & {"returns", "error", "data", "signal", "msg_flags"}:
            said = next(
                a
                for n, a in _aliases(type(call))
                if n in call.model_fields_set & {"returns", "error", "data", "signal", "msg_flags"}
            )
            self.fault(
                (*loc, said),
                "how a started call ends is said where it is finished",
                f"finish: {{{name}: {{{said}: …}}}}",
                at_key=True,
            )
        if self._call(call, loc, world):
            world.begun[name] = _Begun(call, loc, line, self.in_recipe)
            world.over.pop(name, None)
            world.partial.pop(f"call {name}", None)
            world.partial.pop(f"finish {name}", None)
            if isinstance(call, m.CloseCall):
                process = world.processes[call.by]
                process.open.pop(call.on, None)
                process.closed[call.on] = line
            elif isinstance(call, (m.ForkCall, m.ExitCall, m.KillCall)):
                self.fault(loc, f"{call.do} does not sleep: make it a call", at_key=True)

    def _pending(self, world: _World, name: str, loc: Loc, at_key: bool = False) -> _Begun | None:
        begun = world.begun.get(name)
        if f"call {name}" in world.partial:
            self.fault(loc, f"the call {name} may not be under way: {world.partial[f'call {name}']}", at_key=at_key)
        elif begun is None:
            if name in world.over:
                self.fault(loc, f"the call {name} is over since line {world.over[name]}", at_key=at_key)
            else:
                self.fault(
                    loc,
                    f"no call {name!r} was begun before this",
                    did_you_mean(name, world.begun, few=6),
                    at_key=at_key,
                )
        return begun

    def _finish(self, outcomes: dict[str, m.Outcome], loc: Loc, world: _World, line: int) -> None:
        for name, outcome in outcomes.items():
            begun = self._pending(world, name, (*loc, name), at_key=True)
            if begun is None:
                continue
            self._outcome(begun.call, outcome, (*loc, name), world)
            del world.begun[name]
            world.over[name] = line
            if not isinstance(begun.call, m.CloseCall):
                self._took_place(begun.call, outcome, (*loc, name), world, line)

    def _outcome(self, call: m.Call, outcome: m.Outcome, loc: Loc, world: _World) -> None:
        do = getattr(call, "do", "")
        if outcome.data is not None and do not in ("recv", "recvmsg"):
            self.fault((*loc, "data"), f"{do} gives no data; only recv and recvmsg do", at_key=True)
        if outcome.msg_flags is not None and do != "recvmsg":
            self.fault((*loc, "msg-flags"), f"{do} gives no flags; only recvmsg does", at_key=True)
        if outcome.returns is not None:
            self._returns(call, do, outcome.returns, (*loc, "returns"), world)

    def _returns(self, call: m.Call, do: str, value: Any, loc: Loc, world: _World) -> None:
        if do in _COUNTING:
            self._comparison(value, loc, world, f"{do} returns a number of octets")
        elif isinstance(call, m.GetsockoptCall):
            self._option_shape(call.option, SOCKET_OPTIONS[call.option], value, loc, world)
        elif isinstance(call, m.PollCall):
            known = m.PollEvent.__args__  # type: ignore[attr-defined]
            if not isinstance(value, list) or any(v not in known for v in value):
                self.fault(loc, f"poll returns a list of {', '.join(known)}")
        elif do in _NAMING or isinstance(call, m.AcceptCall):
            if not isinstance(value, dict) or not value or not set(value) <= {"address", "port"}:
                self.fault(loc, f"{do} returns an address: returns: {{address: …, port: …}}")
        elif value != 0 or isinstance(value, bool):
            self.fault(
                loc, f"{do} returns 0 or fails, so there is nothing to compare", "leave returns out, or name the error"
            )

    def _comparison(self, value: Any, loc: Loc, world: _World, what: str) -> None:
        """*value*, compared with a number as a field of a segment is."""
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            self.fault(loc, f"{what}: write a number or a comparison such as '>= 1'")
            return
        try:
            match = parse_match(str(value))
        except ExpressionError as error:
            self.fault(loc, f"in {str(value)!r}: {error}", "", error.offset)
            return
        for expr in match.exprs:
            self._expression(world, loc, expr)
            if expr.kind == "duration":
                self.fault(loc, f"{what}, not a duration")

    def _option_value(self, call: m.SetsockoptCall, loc: Loc) -> None:
        shape = SOCKET_OPTIONS[call.option]
        at = (*loc, "value")
        if isinstance(shape, dict):
            if not isinstance(call.value, dict) or set(call.value) != set(shape):
                self.fault(at, f"{call.option} takes {_struct(shape)}")
                return
            for name, kind in shape.items():
                if not _has_shape(kind, call.value[name]):
                    self.fault((*at, name), f"{call.option}: {name} is {_SHAPES[kind]}")
        elif shape in ("errno", "fields"):
            self.fault((*loc, "option"), f"{call.option} can only be read: getsockopt")
        elif not _has_shape(shape, call.value):
            self.fault(at, f"{call.option} takes {_SHAPES[shape]}")

    def _option_shape(self, option: str, shape: str | dict[str, str], value: Any, loc: Loc, world: _World) -> None:
        if isinstance(shape, dict):
            if not isinstance(value, dict) or not value or not set(value) <= set(shape):
                self.fault(loc, f"{option} gives {_struct(shape)}, or some of it")
                return
            for name, inner in value.items():
                self._option_shape(f"{option}: {name}", shape[name], inner, (*loc, name), world)
        elif shape == "int":
            self._comparison(value, loc, world, f"{option} gives a number")
        elif shape == "fields":
            if not isinstance(value, dict) or not value:
                self.fault(loc, f"{option} gives named numbers: returns: {{tcpi_retransmits: 0, tcpi_rto: '>= 1'}}")
                return
            for name, inner in value.items():
                self._comparison(inner, (*loc, name), world, f"{option}: {name} is a number")
        elif shape == "errno":
            if not (value == 0 and not isinstance(value, bool)) and value not in ERRNOS:
                self.fault(loc, f"{option} gives an error's name, or 0 for none", did_you_mean(str(value), ERRNOS))
        elif not _has_shape(shape, value):
            self.fault(loc, f"{option} gives {_SHAPES[shape]}")

    # Structure -------------------------------------------------------------------------------------------------------
    def _one_of(self, choices: list[m.Choice], loc: Loc, world: _World, line: int) -> None:
        seen: set[str] = set()
        after: list[tuple[str, _World]] = []
        for index, choice in enumerate(choices):
            at = (*loc, index)
            if choice.name in seen:
                self.fault((*at, "name"), f"two branches have the name {choice.name!r}")
            seen.add(choice.name)
            if not isinstance(choice.steps[0], _FIRST_OF_BRANCH):
                kind = _kind(choice.steps[0])
                self.fault(
                    (*at, "steps", 0, kind),
                    "a branch begins with expect, silence, state, finish or blocked, by which it is chosen; "
                    f"this begins with {kind}",
                    at_key=True,
                )
            branch = world.copy()
            self.steps(choice.steps, (*at, "steps"), branch)
            after.append((choice.name, branch))
        self._merge(world, after, line)

    def _merge(self, world: _World, ways: list[tuple[str, _World]], line: int, what: str = "one_of") -> None:
        """Make *world* that after *ways*, one of which is taken."""

        def some(has: list[str]) -> str:
            where = f"the {what} in line {line}"
            return (
                f"{where} makes it only in {' and '.join(has)}"
                if what == "one_of"
                else f"{where} may pass over what makes it"
            )

        partial = {name: why for _, way in ways for name, why in way.partial.items()}
        for attribute in ("snapshots", "captures"):
            tables = [getattr(way, attribute) for _, way in ways]
            merged: dict[str, Any] = {}
            for name in dict.fromkeys(n for table in tables for n in table):
                has = [way for (way, _), table in zip(ways, tables, strict=True) if name in table]
                if len(has) == len(ways):
                    merged[name] = next(table[name] for table in tables)
                else:
                    partial[name] = some(has)
            setattr(world, attribute, merged)
        begun: dict[str, _Begun] = {}
        for name in dict.fromkeys(n for _, way in ways for n in way.begun):
            has = [way for way, w in ways if name in w.begun]
            first = next(w.begun[name] for _, w in ways if name in w.begun)
            begun[name] = first
            if len(has) < len(ways):
                partial[f"finish {name}"] = f" in {' and '.join(has)}" if what == "one_of" else " on every way"
                partial[f"call {name}"] = f"the {what} in line {line} leaves it so only on some ways"
        world.begun = begun
        world.over = {name: at for _, way in ways for name, at in way.over.items() if name not in begun}
        names = dict.fromkeys(n for _, way in ways for n in way.processes)
        processes: dict[str, _Process] = {}
        for name in names:
            having = [(way, w.processes[name]) for way, w in ways if name in w.processes]
            if len(having) < len(ways):
                partial[f"process {name}"] = some([way for way, _ in having])
                continue
            process = _Process()
            process.ended = next((p.ended for _, p in having if p.ended), "")
            for descriptor in dict.fromkeys(d for _, p in having for d in (*p.open, *p.closed)):
                if all(descriptor in p.open for _, p in having):
                    process.open[descriptor] = having[0][1].open[descriptor]
                elif any(descriptor in p.open for _, p in having):
                    partial[f"descriptor {descriptor}"] = f"the {what} in line {line} leaves it open only on some ways"
                elif any(descriptor in p.closed for _, p in having):
                    process.closed[descriptor] = max(p.closed.get(descriptor, 0) for _, p in having)
            processes[name] = process
        world.processes = processes
        world.partial = partial
        for attribute in ("begun_on", "numbered", "timestamped"):
            setattr(world, attribute, set().union(*(getattr(way, attribute) for _, way in ways)))
        world.sent = {name: length for _, way in ways for name, length in way.sent.items()}

    def _any_order(self, steps: list[Any], loc: Loc, world: _World) -> None:
        before = world.copy()
        for index, step in enumerate(steps):
            if not isinstance(step, m.ExpectStep):
                kind = _kind(step)
                self.fault((*loc, index, kind), f"any_order holds expectations, not {kind}", at_key=True)
                continue
            # In which order they come is open: none can refer to another.
            own = before.copy()
            self.step(step, (*loc, index), own)
            for attribute in ("snapshots", "captures", "begun_on", "numbered"):
                getattr(world, attribute).update(getattr(own, attribute))

    def _optional(self, steps: list[Any], loc: Loc, world: _World, line: int) -> None:
        if not isinstance(steps[0], m.ExpectStep):
            kind = _kind(steps[0])
            self.fault(
                (*loc, 0, kind),
                f"optional begins with expect, by which it is taken or passed over; this begins with {kind}",
                at_key=True,
            )
        taken = world.copy()
        self.steps(steps, (*loc,), taken)
        self._merge(world, [("taken", taken), ("passed over", world.copy())], line, "optional")

    def _repeat(self, spec: m.RepeatSpec, loc: Loc, world: _World, line: int) -> None:
        if spec.at_least is not None and spec.at_least < spec.times and not isinstance(spec.steps[0], m.ExpectStep):
            kind = _kind(spec.steps[0])
            self.fault(
                (*loc, "steps", 0, kind),
                f"with at-least, what is repeated begins with expect, by which it goes on; this begins with {kind}",
                at_key=True,
            )
        inner = world.copy()
        self.steps(spec.steps, (*loc, "steps"), inner)
        if spec.times > 1:  # what is made or closed in one round is so in the next
            again = inner.copy()
            self.steps(spec.steps, (*loc, "steps"), again)
        self.in_gap = True
        self._all_expressions(inner, spec.gap, (*loc, "gap"))
        self.in_gap = False
        if spec.at_least == 0:
            self._merge(world, [("taken", inner), ("passed over", world.copy())], line, "repeat")
        else:
            self._merge(world, [("taken", inner)], line)


def _cost(steps: list[Any]) -> tuple[int, int]:
    """How many steps are performed at most, those inside of others counted, and how many octets of payload are sent."""
    performed = octets = 0
    for step in steps:
        performed += 1
        inner: list[tuple[int, int]] = [(0, 0)]
        times = 1
        match step:
            case m.SendStep():
                octets += len(step.send.payload or b"")
            case m.CallStep(call=m.SendCall() as call) | m.StartStep(start=m.SendCall() as call):
                octets += len(call.payload)
            case m.OneOfStep():
                inner = [_cost(choice.steps) for choice in step.one_of]
            case m.AnyOrderStep():
                inner = [_cost(step.any_order)]
            case m.OptionalStep():
                inner = [_cost(step.optional)]
            case m.RepeatStep():
                inner, times = [_cost(step.repeat.steps)], step.repeat.times
        performed += times * max(steps for steps, _ in inner)
        octets += times * max(sent for _, sent in inner)
    return performed, octets


#: The octets of a timestamps option, padded.
_TIMESTAMPS = 12


def _words(octets: int) -> int:
    """How many 32-bit words *octets* of options take."""
    return -(-octets // 4)


def _kind(step: Any) -> str:
    return next((name for name, of in m.STEP_KINDS.items() if type(step) is of), "this step")


_SHAPES = {
    "bool": "a boolean: true or false",
    "int": "a whole number",
    "text": "text",
    "hex": "octets as hexadecimal digits, in quotes",
}


def _struct(shape: dict[str, str]) -> str:
    return "{" + ", ".join(f"{name}: {'true' if kind == 'bool' else '0'}" for name, kind in shape.items()) + "}"


def _has_shape(shape: str, value: Any) -> bool:
    match shape:
        case "bool":
            return isinstance(value, bool)
        case "int":
            return isinstance(value, int) and not isinstance(value, bool)
        case "hex":
            return isinstance(value, str) and len(value) % 2 == 0 and all(c in "0123456789abcdefABCDEF" for c in value)
    return isinstance(value, str)


def check(case: m.Case) -> list[Fault]:
    """What is wrong with the order of *case*'s steps and the names in them; nothing if all is well."""
    walk = _Walk(case)
    walk.run()
    # A repeated step is walked twice and says the same twice.
    return list(dict.fromkeys(walk.faults))
