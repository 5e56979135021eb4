"""Compares a segment with an expectation, field by field, and says in words how each that differs does."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from conform.case.expr import Expr, Match
from conform.case.model import ExpectSpec, IPMatch, OptionsMatch
from conform.tcp.segment import ACK, FLAG_LETTERS, Option, Segment, flag_names
from conform.tcp.sequence import MODULUS, add, diff
from conform.tcp.tracker import Connection

_ECN_CODES = {"not-ect": 0, "ect1": 1, "ect0": 2, "ce": 3}
ECN_CODEPOINTS = _ECN_CODES
_PADDING = ("nop", "eol")


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A field that is not what was expected; ``words`` is the whole difference as a sentence."""

    field: str
    expected: str
    actual: str
    words: str


class _NoSyn(LookupError):  # noqa: N818
    """ISS was asked of a segment that should have been the SYN: not the case's fault."""


class Environment:
    """Where expressions find their values: a connection's variables, other connections, snapshots, captures, timers."""

    def __init__(self, connection: Connection, resolve: Callable[[str, Connection], float]) -> None:
        self.connection = connection
        self.candidate: Segment | None = None
        self._resolve = resolve

    def value(self, expr: Expr) -> float:
        """The value of *expr*. Raises LookupError, and ArithmeticError."""
        return finite(expr.evaluate(self._named))

    def _named(self, name: str) -> float:
        seg = self.candidate
        if name == "ISS" and self.connection.iss is None and seg is not None:
            # The stack chooses it, in the SYN that is held against the expectation.
            if not seg.flags & FLAG_LETTERS["S"]:
                raise _NoSyn("the stack has sent no SYN, nor is this one")
            return seg.seq
        if name == "RCV.NXT":
            return self.connection.variable(name, seg)
        return self._resolve(name, self.connection)

    def sequence(self, expr: Expr, base: int | None) -> int:
        """*expr* as a sequence number; a bare number counts from *base* (0 when that is unknown)."""
        value = int(self.value(expr))
        return add(base or 0, value) if expr.is_plain_number else value % MODULUS


def finite(value: float) -> float:
    """*value*, if it is a number. Raises OverflowError."""
    if isinstance(value, float) and not math.isfinite(value):
        raise OverflowError("its value is no number")
    return value


def _holds(op: str, actual: int, low: int, high: int | None, sequence: bool) -> bool:
    delta = diff(actual, low) if sequence else actual - low
    match op:
        case "==":
            return delta == 0
        case "!=":
            return delta != 0
        case "<":
            return delta < 0
        case "<=":
            return delta <= 0
        case ">":
            return delta > 0
        case ">=":
            return delta >= 0
    assert op == "range"
    assert high is not None
    if sequence:
        return delta >= 0 and diff(actual, high) <= 0
    return low <= actual <= high


def _distance(delta: int) -> str:
    return f"short by {-delta}" if delta < 0 else f"too far by {delta}"


def _why_off(field: str, delta: int, connection: Connection) -> str:
    """A likely cause of a sequence number that is off by *delta*, or nothing."""
    if field == "ack":
        if delta == -1 and connection.fin_received:
            return ": FIN not counted"
        if delta == -1 and connection.rcv_nxt == add(connection.irs, 1):
            return ": SYN not counted"
        if delta < 0 and -delta == len(connection.received):
            return ": data not counted"
        if delta < 0 and connection.fin_received and -delta == len(connection.received) + 1:
            return ": data and FIN not counted"
        if delta == 1:
            return ": one octet acknowledged that was not sent"
    if field == "seq":
        if delta == -1 and connection.fin_seq is not None:
            return ": its own FIN not counted"
        if delta == 1:
            return ": an octet counted that was not sent"
    return ""


class FieldMatcher:
    """Matches single values; collects what differs and what is captured."""

    def __init__(self, env: Environment) -> None:
        self.env = env
        self.mismatches: list[Mismatch] = []
        self.captured: dict[str, int] = {}
        self._unknown: list[LookupError] = []

    @property
    def fits(self) -> bool:
        """Whether nothing differs."""
        return not self.mismatches

    def known(self) -> FieldMatcher:
        """Itself. Raises LookupError if only values differ that the case cannot have: nobody can fit those."""
        if self._unknown and len(self._unknown) == len(self.mismatches):
            raise self._unknown[0]
        return self

    def miss(self, field: str, expected: str, actual: str, words: str = "") -> None:
        """Record that *field* is *actual* and not *expected*."""
        self.mismatches.append(Mismatch(field, expected, actual, words or f"{field} {actual}, want {expected}"))

    def number(
        self, field: str, match: Match | None, actual: int | None, base: int | None = None, sequence: bool = False
    ) -> None:
        """Match *actual* (``None``: absent). With *sequence*, modulo 2**32 and bare numbers counted from *base*."""
        if match is None:
            return
        if match.op == "absent":
            if actual is not None:
                self.miss(field, "absent", str(actual))
            return
        if actual is None:
            self.miss(field, match.text, "absent")
            return
        if match.op == "any":
            return
        if match.op == "capture":
            assert match.capture is not None
            self.captured[match.capture] = actual
            return
        assert match.low is not None
        value: Callable[[Expr], int] = (
            (lambda e: self.env.sequence(e, base)) if sequence else (lambda e: int(self.env.value(e)))
        )
        try:
            low = value(match.low)
            high = value(match.high) if match.high is not None else None
        except (KeyError, IndexError):
            raise
        except LookupError as error:
            self.miss(field, match.text.strip(), str(actual), f"{field} {actual}, want {match.text.strip()}: {error}")
            if not isinstance(error, _NoSyn):
                self._unknown.append(error)
            return
        if _holds(match.op, actual, low, high, sequence):
            return
        shown = self._shown(field, base) if sequence else str
        wanted = match.text.strip()
        if not match.low.is_plain_number or shown is not str:
            wanted += f" = {shown(low)}" if high is None else f" = {shown(low)}..{shown(high)}"
        words = f"{field} {shown(actual)}, want {wanted}"
        if match.op == "==" and not field.endswith("port"):  # a port is a name: there is no near and far
            delta = diff(actual, low) if sequence else actual - low
            words += ", " + _distance(delta) + _why_off(field, delta, self.env.connection)
        self.miss(field, wanted, shown(actual), words)

    @staticmethod
    def _shown(field: str, base: int | None) -> Callable[[int], str]:
        """Sequence numbers as a reader wants them: counted from the ISN that they belong to, where it is known."""
        name = {"seq": "ISS", "ack": "IRS"}.get(field)
        if name is None or base is None:
            return str
        return lambda n: f"{name}+{diff(n, base)}" if diff(n, base) >= 0 else f"{name}{diff(n, base)}"


def match_segment(spec: ExpectSpec, seg: Segment, env: Environment, again: Segment | None) -> FieldMatcher:
    """Hold *seg* against *spec*; ``mismatches`` of the result is empty when it fits.

    *again* is the segment that ``again:`` names. An expression that has no value is a mismatch beside others; alone it
    raises LookupError.
    """
    env.candidate = seg
    out = FieldMatcher(env)
    connection = env.connection
    if again is not None:
        _again(out, seg, again)
    if spec.flags is not None and all(f.problems(seg.flags) for f in spec.flags):
        wanted = " or ".join(f.text for f in spec.flags)
        actual = flag_names(seg.flags)
        out.miss("flags", wanted, actual, f"flags {actual}, want {wanted}{_flag_words(spec, seg)}")
    out.number("seq", spec.seq, seg.seq, connection.iss, sequence=True)
    out.number("ack", spec.ack, seg.ack, connection.irs, sequence=True)
    out.number("window", spec.window, seg.window)
    out.number("urgent", spec.urgent, seg.urgent)
    out.number("length", spec.length, len(seg.payload))
    out.number("reserved", spec.reserved, seg.reserved)
    if spec.payload is not None and spec.stream is None and seg.payload != spec.payload:
        _payload(out, spec.payload, seg.payload)
    if spec.options is not None:
        match_options(out, spec.options, seg)
    if spec.ip is not None:
        _ip(out, spec.ip, seg)
    return out.known()


def _flag_words(spec: ExpectSpec, seg: Segment) -> str:
    if spec.flags is None or len(spec.flags) != 1:
        return ""
    wanted = spec.flags[0]
    missing = flag_names(wanted.bits & ~seg.flags)
    extra = flag_names(
        seg.flags & (~wanted.bits & ~(FLAG_LETTERS["P"] | FLAG_LETTERS["E"] | FLAG_LETTERS["C"]) | wanted.forbidden)
    )
    parts = [f"{missing} missing"] if missing != "none" else []
    parts += [f"{extra} too many"] if extra != "none" else []
    return f" ({', '.join(parts)})" if parts else ""


def _again(out: FieldMatcher, seg: Segment, again: Segment) -> None:
    if seg.seq != again.seq:
        delta = diff(seg.seq, again.seq)
        out.miss("seq", str(again.seq), str(seg.seq), f"seq {seg.seq}, want {again.seq} again, {_distance(delta)}")
    kept = ~(FLAG_LETTERS["P"] | FLAG_LETTERS["E"] | FLAG_LETTERS["C"])
    if (seg.flags ^ again.flags) & kept:
        out.miss("flags", flag_names(again.flags), flag_names(seg.flags))
    if seg.payload != again.payload:
        _payload(out, again.payload, seg.payload)


def _payload(out: FieldMatcher, wanted: bytes, actual: bytes) -> None:
    if len(wanted) != len(actual):
        words = f"payload of {len(actual)} octets, want {len(wanted)}"
    else:
        at = next(i for i, (a, b) in enumerate(zip(wanted, actual, strict=True)) if a != b)
        words = f"payload differs from octet {at} on: {actual[at : at + 8]!r}, want {wanted[at : at + 8]!r}"
    out.miss("payload", preview(wanted), preview(actual), words)


def preview(octets: bytes, most: int = 24) -> str:
    """*octets* as text for a reader, cut short."""
    return f"{octets[:most]!r}"[1:] + (f"… ({len(octets)} octets)" if len(octets) > most else "")


def _any_or_absent(out: FieldMatcher, name: str, wanted: Any, found: Option | None) -> bool:
    """Deal with ``any`` and ``absent``, and with an option that should be there and is not. Whether that was all."""
    if wanted == "absent":
        if found is not None:
            out.miss(f"option {name}", "absent", str(found.value))
        return True
    if found is None:
        out.miss(f"option {name}", "present" if wanted == "any" else str(wanted), "absent")
        return True
    return bool(wanted == "any")


def match_options(out: FieldMatcher, spec: OptionsMatch | str, seg: Segment) -> None:
    """Hold *seg*'s options against *spec*."""
    names = [o.name for o in seg.options if o.name not in _PADDING]
    if spec == "none":
        if names:
            out.miss("options", "none", ", ".join(names))
        return
    assert isinstance(spec, OptionsMatch)
    named: set[str] = set()
    for attribute, name in (("mss", "mss"), ("window_scale", "window-scale")):
        match = getattr(spec, attribute)
        if match is not None:
            named.add(name)
            found = seg.option(name)
            out.number(f"option {name}", match, found.value if found else None)
    if spec.sack_permitted is not None:
        named.add("sack-permitted")
        if (seg.option("sack-permitted") is not None) != spec.sack_permitted:
            wanted, actual = ("present", "absent") if spec.sack_permitted else ("absent", "present")
            out.miss("option sack-permitted", wanted, actual)
    if spec.ts is not None:
        named.add("ts")
        found = seg.option("ts")
        if isinstance(spec.ts, str):
            _any_or_absent(out, "ts", spec.ts, found)
        elif found is None:
            out.miss("option ts", "present", "absent")
        else:
            out.number("TSval", spec.ts.val, found.value[0], sequence=True)
            out.number("TSecr", spec.ts.ecr, found.value[1], sequence=True)
    if spec.sack is not None:
        named.add("sack")
        found = seg.option("sack")
        blocks = () if isinstance(spec.sack, str) else spec.sack
        if not _any_or_absent(out, "sack", "blocks" if blocks else spec.sack, found):
            assert found is not None
            irs = out.env.connection.irs
            wanted_blocks = tuple((out.env.sequence(a, irs), out.env.sequence(b, irs)) for a, b in blocks)
            if tuple(found.value) != wanted_blocks:
                out.miss("option sack", str(wanted_blocks), str(tuple(found.value)))
    for attribute, name in (("fast_open", "fast-open"), ("user_timeout", "user-timeout"), ("md5", "md5")):
        wanted_value = getattr(spec, attribute)
        if wanted_value is None:
            continue
        named.add(name)
        found = seg.option(name)
        if name == "user-timeout" and not isinstance(wanted_value, str):
            wanted_value = (int(wanted_value.unit == "minutes"), wanted_value.timeout)
        if not _any_or_absent(out, name, wanted_value, found):
            assert found is not None
            if found.value != wanted_value:
                out.miss(f"option {name}", str(wanted_value), str(found.value))
    for unknown in spec.unknown or ():
        name = f"kind-{unknown.kind}"
        named.add(name)
        found = seg.option(name)
        if found is None or found.value != unknown.data:
            out.miss(f"option {name}", unknown.data.hex() or "empty", found.value.hex() if found else "absent")
    if spec.only and set(names) - named:
        out.miss("options", "only " + (", ".join(sorted(named)) or "none"), ", ".join(names))


def _ip(out: FieldMatcher, spec: IPMatch, seg: Segment) -> None:
    ip = seg.ip
    out.number("ttl", spec.ttl, ip.ttl)
    out.number("dscp", spec.dscp, ip.dscp)
    out.number("ident", spec.ident, ip.ident)
    out.number("flow", spec.flow, ip.flow)
    if spec.ecn is not None:
        wanted = (1, 2) if spec.ecn == "ect" else (_ECN_CODES[spec.ecn],)
        if ip.ecn not in wanted:
            out.miss("ecn", spec.ecn, next(name for name, code in _ECN_CODES.items() if code == ip.ecn))
    if spec.df is not None and ip.df != spec.df:
        out.miss("df", str(spec.df).lower(), str(ip.df).lower())


def describe(spec: ExpectSpec, env: Environment) -> str:
    """What *spec* asks for, with the numbers that its expressions have now."""
    parts: list[str] = []
    if spec.again:
        parts.append(f"{spec.again} again")
    if spec.stream is not None:
        parts.append(f"{spec.stream} octets")
    if spec.flags is not None:
        parts.append(" or ".join(f.text for f in spec.flags))
    bases = {"seq": env.connection.iss, "ack": env.connection.irs}
    for name in ("seq", "ack", "window", "urgent", "length", "reserved"):
        match: Match | None = getattr(spec, name)
        if match is None:
            continue
        text = f"{name}={match.text.strip()}"
        if match.low is not None and match.op == "==" and name in bases:
            try:
                value = env.sequence(match.low, bases[name])
            except LookupError:
                value = None
            if value is not None and bases[name] is not None:
                text += f" ({FieldMatcher._shown(name, bases[name])(value)})"
        parts.append(text)
    if spec.payload is not None:
        parts.append(f"payload={preview(spec.payload)}")
    if spec.options is not None:
        if isinstance(spec.options, str):
            parts.append("no options")
        else:
            parts.append("options " + ", ".join(sorted(spec.options.model_dump(by_alias=True, exclude_defaults=True))))
    if spec.ip is not None:
        parts.append("IP " + ", ".join(sorted(spec.ip.model_dump(exclude_none=True))))
    return " ".join(parts)


def relative(segment: Segment, connection: Connection) -> str:
    """*segment* for a reader, its numbers counted from the initial sequence numbers as well."""
    text = str(segment)
    notes = []
    if connection.iss is not None:
        notes.append(f"ISS+{(segment.seq - connection.iss) % MODULUS}")
    if segment.flags & ACK:
        notes.append(f"acks IRS+{(segment.ack - connection.irs) % MODULUS}")
    return f"{text} ({', '.join(notes)})" if notes else text
