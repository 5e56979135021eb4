"""Expressions of the case format: ``RCV.NXT + RCV.WND - 1``, ``timer.rto.min * 2``, ``fin.seq``.

Numbers and durations are kept apart statically, so that ``within: 5`` is an error and not five of something. Numbers
are whole: ``/`` rounds down between them, and a fraction is only good where it is a factor of a duration. Sequence
numbers are plain integers here; whoever uses the value takes it modulo 2**32.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["number", "duration"]

#: The stack's variables (RFC 9293 section 3.3.1) that an expression can name.
VARIABLES = ("SND.UNA", "SND.NXT", "SND.WND", "RCV.NXT", "RCV.WND", "ISS", "IRS", "SND.MSS")

#: What a snapshot (``as: fin``) can be asked for. ``end`` is seq + SEG.LEN; ``time`` a moment, the rest numbers.
SNAPSHOT_FIELDS = ("seq", "ack", "end", "len", "window", "urgent", "time")

#: Bounds that a stack's description declares, in seconds.
TIMERS = (
    "timer.response.max",
    "timer.delayed-ack.max",
    "timer.rto.min",
    "timer.rto.initial",
    "timer.rto.max",
    "timer.msl",
    "timer.time-wait",
    "timer.fin-wait-2",
    "timer.persist.min",
    "timer.keepalive.min",
)

_TOKEN = re.compile(
    r"\s*(?:(?P<duration>\d+(?:\.\d+)?(?:us|ms|s|min))(?![\w.])"
    r"|(?P<timer>timer(?:\.[a-z]+(?:-[a-z0-9]+)*)+)(?![\w.])"  # its own line: timer.fin-wait-2 is no subtraction
    r"|(?P<number>0[xX][0-9a-fA-F]+|\d+(?:\.\d+)?)(?![\w.])"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*(?:-[A-Za-z][A-Za-z0-9_]*)*(?:\.[A-Za-z_][A-Za-z0-9_]*(?:-[A-Za-z][A-Za-z0-9_]*)*)*)"
    r"|(?P<op>[-+*/()]))",
    re.ASCII,
)
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}
_DEEPEST = 32


class ExpressionError(ValueError):
    """An expression that cannot be read; ``offset`` is where in its text (0-based)."""

    def __init__(self, message: str, offset: int = 0) -> None:
        super().__init__(message)
        self.offset = offset


@dataclass(frozen=True, slots=True)
class Expr:
    """A parsed expression. ``text`` is what was written; ``kind`` what it yields; ``names`` what it refers to."""

    text: str
    kind: Kind
    names: tuple[tuple[str, int], ...]
    _node: Any

    def evaluate(self, resolve: Callable[[str], float]) -> float:
        """The value, with *resolve* giving each name's.

        Raises what *resolve* raises, and ArithmeticError: a division by zero, a number too large for a duration.
        """
        return _evaluate(self._node, resolve, self.kind == "duration")

    @property
    def constant(self) -> float | None:
        """The value, if it refers to nothing."""
        return None if self.names else self.evaluate(_nothing)

    @property
    def is_plain_number(self) -> bool:
        """Whether this is a number alone: relative to an ISN where a sequence number is wanted."""
        return bool(self._node[0] == "number")


def _nothing(name: str) -> float:
    raise LookupError(name)


def _evaluate(node: Any, resolve: Callable[[str], float], exact: bool) -> float:
    """The value of *node*; *exact* where it is part of a duration, whose factors are not rounded."""
    match node:
        case ("number" | "duration", value):
            return value  # type: ignore[no-any-return]
        case ("absolute", inner):
            return _evaluate(inner, resolve, exact)
        case ("name", name):
            return resolve(name)
        case ("neg", inner):
            return -_evaluate(inner, resolve, exact)
        case (op, left, right):
            a, b = _evaluate(left, resolve, exact), _evaluate(right, resolve, exact)
            if op == "+":
                return a + b
            if op == "-":
                return a - b
            if op == "*":
                return a * b
            return a / b if exact else a // b
    raise AssertionError(node)


def _name_kind(name: str) -> Kind:
    last = name.rpartition(".")[2]
    if name.startswith("timer.") or name == "previous" or (last == "time" and "." in name):
        return "duration"
    return "number"


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.pos = 0
        self.depth = 0
        self.names: list[tuple[str, int]] = []
        self.fraction: tuple[str, int] | None = None
        self.token: tuple[str, str, int] = ("end", "", 0)
        self.advance()

    def advance(self) -> None:
        match = _TOKEN.match(self.text, self.pos)
        if match and match.end() > self.pos and match.lastgroup:
            group = "name" if match.lastgroup == "timer" else match.lastgroup
            self.token = (group, match[match.lastgroup], match.start(match.lastgroup))
            self.pos = match.end()
            return
        rest = self.text[self.pos :]
        at = self.pos + len(rest) - len(rest.lstrip())
        if rest.strip():
            raise ExpressionError(f"cannot read {rest.strip()[:20]!r} here", at)
        self.token = ("end", "", at)

    def expression(self) -> tuple[Any, Kind]:
        left, kind = self.term()
        while self.token[1] in ("+", "-") and self.token[0] == "op":
            op, at = self.token[1], self.token[2]
            self.advance()
            right, right_kind = self.term()
            if kind != right_kind:
                raise ExpressionError(f"a number and a duration cannot be joined by {op!r}", at)
            left = (op, left, right)
        return left, kind

    def term(self) -> tuple[Any, Kind]:
        left, kind = self.factor()
        while self.token[1] in ("*", "/") and self.token[0] == "op":
            op, at = self.token[1], self.token[2]
            self.advance()
            named = len(self.names)
            right, right_kind = self.factor()
            if op == "/" and len(self.names) == named and _evaluate(right, _nothing, True) == 0:
                raise ExpressionError("this divides by zero", at)
            if right_kind == "duration" and (kind == "duration" or op == "/"):
                raise ExpressionError(f"{op!r} makes no sense between durations", at)
            left, kind = (op, left, right), ("duration" if "duration" in (kind, right_kind) else kind)
        return left, kind

    def factor(self) -> tuple[Any, Kind]:
        group, text, at = self.token
        self.depth += 1
        if self.depth > _DEEPEST:
            raise ExpressionError("nested too deeply", at)
        try:
            if group == "op" and text == "-":
                self.advance()
                node, kind = self.factor()
                return ("neg", node), kind
            if group == "op" and text == "(":
                self.advance()
                node, kind = self.expression()
                self.expect(")")
                return node, kind
            if group == "number":
                self.advance()
                if "." in text:
                    self.fraction = self.fraction or (text, at)
                    return ("number", float(text)), "number"
                return ("number", int(text, 16 if text[:2].lower() == "0x" else 10)), "number"
            if group == "duration":
                self.advance()
                unit = next(u for u in ("us", "ms", "min", "s") if text.endswith(u))
                return ("duration", float(text[: -len(unit)]) * _UNITS[unit]), "duration"
            if group == "name":
                self.advance()
                if text == "absolute" and self.token[1] == "(":
                    self.advance()
                    node, kind = self.expression()
                    self.expect(")")
                    return ("absolute", node), kind
                self.names.append((text, at))
                return ("name", text), _name_kind(text)
        finally:
            self.depth -= 1
        raise ExpressionError("a value is missing here" if group == "end" else f"{text!r} cannot stand here", at)

    def expect(self, op: str) -> None:
        if self.token[1] != op:
            raise ExpressionError(f"{op!r} is missing", self.token[2])
        self.advance()


def parse(text: str, offset: int = 0) -> Expr:
    """*text* as an expression. Raises ExpressionError, its offset counted from *offset*."""
    try:
        parser = _Parser(text)
        node, kind = parser.expression()
        if parser.token[0] != "end":
            raise ExpressionError(f"{parser.token[1]!r} cannot stand here", parser.token[2])
        if parser.fraction is not None and kind == "number":
            written, at = parser.fraction
            raise ExpressionError(f"{written} is no whole number, and only a duration can have fractions", at)
        found = Expr(text, kind, tuple((n, at + offset) for n, at in parser.names), node)
        if not math.isfinite(found.constant or 0):
            raise OverflowError
    except ExpressionError as error:
        error.offset += offset
        raise
    except ArithmeticError:
        raise ExpressionError("this is too large", offset + len(text) - len(text.lstrip())) from None
    return found


Operator = Literal["any", "absent", "==", "!=", "<", "<=", ">", ">=", "range", "capture"]


@dataclass(frozen=True, slots=True)
class Match:
    """What a field must be. ``low`` alone for the comparisons, ``low`` and ``high`` (included) for ``range``.

    ``capture`` names where the value found is kept (``{as: t0}``).
    """

    text: str
    op: Operator
    low: Expr | None = None
    high: Expr | None = None
    capture: str | None = None

    @property
    def exprs(self) -> tuple[Expr, ...]:
        """The expressions in it."""
        return tuple(e for e in (self.low, self.high) if e is not None)

    def among(self, least: int, most: int) -> Literal["all", "some", "none"]:
        """Which of the numbers from *least* to *most* fit, as far as it can be told before a trial."""
        bounds = [expr.constant for expr in self.exprs]
        if self.op == "any":
            return "all"
        if self.op in ("absent", "capture") or None in bounds:
            return "some"
        low, high = bounds[0] or 0, bounds[-1] or 0
        if self.op == "!=":
            return "some" if least <= low <= most else "all"
        first = {"<": least, "<=": least, ">": low + 1}.get(self.op, low)
        last = {"<": low - 1, "<=": low, ">": most, ">=": most}.get(self.op, high)
        first, last = max(first, least), min(last, most)
        return "none" if first > last else "all" if (first, last) == (least, most) else "some"


def parse_match(text: str) -> Match:
    """*text* as a match: ``any``, ``absent``, ``EXPR``, ``not EXPR``, ``< EXPR`` (and <= > >=), ``EXPR..EXPR``.

    Raises ExpressionError.
    """
    stripped = text.strip()
    lead = len(text) - len(text.lstrip())
    if stripped in ("any", "absent"):
        return Match(text, stripped)  # type: ignore[arg-type]
    if stripped.startswith("not "):
        return Match(text, "!=", parse(stripped[4:], lead + 4))
    for op in ("<=", ">=", "<", ">", "=="):
        if stripped.startswith(op):
            return Match(text, op, parse(stripped[len(op) :], lead + len(op)))
    if ".." in text:
        low, _, high = text.partition("..")
        return Match(text, "range", parse(low), parse(high, len(low) + 2))
    return Match(text, "==", parse(text))
