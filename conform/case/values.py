"""Scalar types of the case format: what is written, parsed once into what the engine uses.

Each is an annotated type that pydantic parses and that carries its own JSON Schema. A value that cannot be read raises
PydanticCustomError with the message a user sees and, where known, ``offset``: the character in the text at fault.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from conform.case.expr import Expr, ExpressionError, Match, parse, parse_match
from conform.tcp.segment import FLAG_LETTERS
from conform.tcp.sequence import MODULUS, diff


def bad(message: str, offset: int | None = None, **context: Any) -> PydanticCustomError:
    """The error of a value, for raising. *offset* counts characters in its text; ``hint`` is a near name."""
    # Pydantic fills in {offset} and the like, and leaves every other brace as it is.
    return PydanticCustomError("conform", message, {"offset": offset, **context})


def _parsed(parser: Any, schema: dict[str, Any], kind: type) -> Any:
    def validate(value: Any) -> Any:
        return value if isinstance(value, kind) else parser(value)

    return Annotated[Any, BeforeValidator(validate), WithJsonSchema(schema)]


_LONGEST_EXPRESSION = 200


def _expression_text(value: Any, what: str) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise bad(f"expected {what}, found {_describe(value)}")
    if len(str(value)) > _LONGEST_EXPRESSION:  # also bounds the depth of what evaluates it
        raise bad(f"an expression has at most {_LONGEST_EXPRESSION} characters")
    return str(value)


def _describe(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if isinstance(value, (int, float)):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    return "a list" if isinstance(value, (list, tuple)) else "a mapping"


def parse_number(value: Any) -> Expr:
    """An expression that yields a number."""
    text = _expression_text(value, "an expression that gives a number")
    try:
        expr = parse(text)
    except ExpressionError as error:
        raise bad(f"in the expression {text!r}: {error}", error.offset) from None
    if expr.kind == "duration":
        raise bad(f"{text!r} is a duration, and a number is wanted here", 0)
    return expr


#: No stack's timer is longer, and no case waits so long.
LONGEST = 24 * 60 * 60


def parse_duration(value: Any) -> Expr:
    """An expression that yields a duration in seconds, 0 to a day; a bare number other than 0 is an error."""
    text = _expression_text(value, "a duration such as 500ms or timer.rto.min")
    try:
        expr = parse(text)
    except ExpressionError as error:
        raise bad(f"in the duration {text!r}: {error}", error.offset) from None
    if expr.kind == "number" and expr.text.strip() != "0":
        if expr.is_plain_number:
            raise bad(f"{text!r} has no unit: write {text}s or {text}ms", 0)
        raise bad(f"{text!r} is a number, and a duration is wanted here", 0)
    seconds = expr.constant
    if seconds is not None and not 0 <= seconds <= LONGEST:
        raise bad(f"{text!r} is {'negative' if seconds < 0 else 'longer than a day'}: a duration is 0 to 24 h", 0)
    return expr


def _parse_u16(value: Any) -> Expr:
    expr = parse_number(value)
    if expr.constant is not None and not 0 <= expr.constant <= 0xFFFF:
        raise bad(f"{expr.text.strip()} is out of range: 0 to 65535", 0)
    return expr


def _parse_positive_duration(value: Any) -> Expr:
    expr = parse_duration(value)
    if expr.constant == 0:
        raise bad(f"{expr.text!r} is no time at all: a duration is more than 0 here", 0)
    return expr


def _parse_match(value: Any) -> Match:
    if isinstance(value, dict):
        if set(value) != {"as"} or not isinstance(value["as"], str):
            raise bad("expected an expression, a comparison, any, absent, or {as: NAME} to keep the value")
        return Match(f"{{as: {value['as']}}}", "capture", capture=value["as"])
    text = _expression_text(value, "an expression, a comparison such as '>= 1', a range such as 1..5, or any")
    if text.strip()[:2] in ("=>", "=<"):
        raise bad(f"{text.strip()[:2]!r} is no comparison: write {text.strip()[1]}=", len(text) - len(text.lstrip()))
    try:
        match = parse_match(text)
    except ExpressionError as error:
        raise bad(f"in {text!r}: {error}", error.offset) from None
    if any(expr.kind == "duration" for expr in match.exprs):
        raise bad(f"{text!r} is a duration, and a number is wanted here", 0)
    return match


def _match_within(least: int, most: int, absent: bool = False) -> Callable[[Any], Match]:
    """A parser of matches of a field that holds *least* to *most*; *absent*: that may not be there."""

    def parser(value: Any) -> Match:
        match = _present(value) if not absent else _parse_match(value)
        _forwards(match)
        fits = match.among(least, most)
        if fits == "none":
            raise bad(f"nothing can be {match.text.strip()!r}: this is {least} to {most}", 0)
        return Match(match.text, "any") if fits == "all" else match  # what everything fits says nothing

    return parser


def _present(value: Any) -> Match:
    match = _parse_match(value)
    if match.op == "absent":
        raise bad("this is never absent; options can be", 0)
    return match


def _forwards(match: Match, wraps: bool = False) -> Match:
    """*match*. Raises what is wrong with a range that ends before it begins, modulo 2**32 where it *wraps*."""
    bounds = [expr.constant for expr in match.exprs]
    # A bare number counts from an initial sequence number, and cannot be held against one that does not.
    alike = len({expr.is_plain_number for expr in match.exprs}) == 1 or not wraps
    if match.op == "range" and alike and None not in bounds:
        low, high = (int(bound or 0) for bound in bounds)
        if (diff(high % MODULUS, low % MODULUS) if wraps else high - low) < 0:
            raise bad(f"the range {match.text.strip()!r} ends before it begins", 0)
    return match


def _parse_sequence_match(value: Any) -> Match:
    return _forwards(_present(value), wraps=True)


_EXPR_SCHEMA = {"anyOf": [{"type": "integer"}, {"type": "string"}]}
#: An expression that yields a number: ``RCV.NXT + 1``; in ``seq`` and ``ack`` a bare number counts from the ISN.
Number = _parsed(parse_number, _EXPR_SCHEMA | {"description": "a number or an expression: RCV.NXT + 1"}, Expr)
#: The same for a field of 16 bits, where nothing counts from an ISN.
Number16 = _parsed(_parse_u16, _EXPR_SCHEMA | {"description": "a number or an expression"}, Expr)
_DURATION_SCHEMA = {"type": ["string", "integer"], "description": "a duration: 200ms, 2 * timer.rto.min"}
#: A duration in seconds, written with its unit: ``200ms``, ``2 * timer.rto.min``. More than 0, where that is known.
Duration = _parsed(_parse_positive_duration, _DURATION_SCHEMA, Expr)
#: The same, or 0: from the event itself on.
DurationOr0 = _parsed(parse_duration, _DURATION_SCHEMA, Expr)


def _match(parser: Callable[[Any], Match]) -> Any:
    words = "a number, an expression, a comparison (>= 5, not 5), a range (1..5), any, {as: NAME}"
    capture = {
        "type": "object",
        "properties": {"as": {"type": "string"}},
        "required": ["as"],
        "additionalProperties": False,
    }
    return _parsed(parser, {"anyOf": [{"type": "integer"}, {"type": "string"}, capture], "description": words}, Match)


#: What a number must be: ``5``, ``not 5``, ``>= 5``, ``1..5``, ``any``, ``{as: name}``. Of a sequence number or another
#: that wraps at 2**32; of a field of so many bits; of one in an option, which can also be ``absent``.
SequenceMatch = _match(_parse_sequence_match)
Match4 = _match(_match_within(0, 0xF))
Match6 = _match(_match_within(0, 0x3F))
Match8 = _match(_match_within(0, 0xFF))
Match16 = _match(_match_within(0, 0xFFFF))
Match20 = _match(_match_within(0, 0xFFFFF))
Optional8 = _match(_match_within(0, 0xFF, absent=True))
Optional16 = _match(_match_within(0, 0xFFFF, absent=True))

#: The bits that an expectation compares exactly; PSH, ECE and CWR are ignored unless named.
COMPARED_FLAGS = "SFRAU"


@dataclass(frozen=True, slots=True)
class Flags:
    """Control bits as written. ``bits`` must be set, ``forbidden`` clear; of COMPARED_FLAGS no others may be set."""

    text: str
    bits: int
    forbidden: int = 0

    def problems(self, actual: int) -> bool:
        """Whether *actual* does not fit."""
        compared = sum(FLAG_LETTERS[letter] for letter in COMPARED_FLAGS)
        return bool((actual ^ self.bits) & compared or (actual & self.bits) != self.bits or actual & self.forbidden)


def _parse_flags(value: Any) -> Flags:
    if not isinstance(value, str):
        raise bad(f"expected flags as letters of SFRPAUEC, such as FA, found {_describe(value)}")
    if value == "none":
        return Flags(value, 0)
    bits = forbidden = 0
    negative = False
    for at, letter in enumerate(value):
        if letter == "-" and not negative:
            negative = True
            continue
        bit = FLAG_LETTERS.get(letter)
        if bit is None:
            hint = f"; did you mean {letter.upper()!r}?" if letter.upper() in FLAG_LETTERS else ""
            raise bad(f"{letter!r} is no flag: letters of SFRPAUEC, 'none' for no flag, and -P to forbid one{hint}", at)
        if (bits | forbidden) & bit:
            raise bad(f"the flag {letter} is named twice", at)
        if negative:
            forbidden |= bit
        else:
            bits |= bit
    if not bits | forbidden or value.endswith("-"):
        raise bad("expected flags as letters of SFRPAUEC, such as FA; 'none' for no flag")
    return Flags(value, bits, forbidden)


_FLAGS_PATTERN = r"^(none|[SFRPAUEC]*(-[SFRPAUEC]+)?)$"
FlagSet = _parsed(
    _parse_flags, {"type": "string", "pattern": _FLAGS_PATTERN, "description": "letters of SFRPAUEC, or none"}, Flags
)


def _parse_flag_choice(value: Any) -> tuple[Flags, ...]:
    if isinstance(value, list):
        if not value:
            raise bad("an empty list of flags fits nothing")
        return tuple(_parse_flags(v) for v in value)
    return (_parse_flags(value),)


FlagChoice = _parsed(
    _parse_flag_choice,
    {
        "anyOf": [
            {"type": "string", "pattern": _FLAGS_PATTERN},
            {"type": "array", "items": {"type": "string", "pattern": _FLAGS_PATTERN}},
        ]
    },
    tuple,
)

_PATTERN = bytes(range(ord("a"), ord("z") + 1))


def pattern(length: int, of: bytes = _PATTERN) -> bytes:
    """*length* octets that repeat *of* (a..z)."""
    return (of * (length // len(of) + 1))[:length]


_LONGEST_PAYLOAD = 1 << 20


def _parse_payload(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bool):
        raise bad("expected text, a length, or {length: …, pattern: …} or {hex: …}")
    if isinstance(value, int):
        value = {"length": value}
    if not isinstance(value, dict) or set(value) not in ({"length"}, {"length", "pattern"}, {"hex"}):
        raise bad("expected text, a length, or {length: …, pattern: …} or {hex: …}")
    if "hex" in value:
        return _hex(value["hex"])
    length, of = value["length"], value.get("pattern", _PATTERN.decode())
    if isinstance(length, bool) or not isinstance(length, int) or not 0 <= length <= _LONGEST_PAYLOAD:
        raise bad(f"a payload's length is 0 to {_LONGEST_PAYLOAD}")
    if not isinstance(of, str) or not of:
        raise bad("a pattern is text of at least one character")
    return pattern(length, of.encode())


def octets_of(value: Any) -> int:
    """How many octets *value* makes as a payload by its length alone; 0 where they are written out, or nothing fits."""
    length = value.get("length") if isinstance(value, dict) else value
    fits = isinstance(length, int) and not isinstance(length, bool) and 0 <= length <= _LONGEST_PAYLOAD
    return length if fits and isinstance(length, int) else 0


def _hex(value: Any) -> bytes:
    if not isinstance(value, str) or not re.fullmatch(r"\s*([0-9a-fA-F]{2}\s*)*", value):
        raise bad(f"expected octets as pairs of hexadecimal digits, in quotes, found {_describe(value)}")
    return bytes.fromhex(value)


#: Octets, written as text, as a length (of a..z repeated), ``{length, pattern}`` or ``{hex}``.
Payload = _parsed(
    _parse_payload,
    {
        "anyOf": [
            {"type": "string"},
            {"type": "integer", "minimum": 0, "maximum": _LONGEST_PAYLOAD},
            {
                "type": "object",
                "properties": {
                    "length": {"type": "integer", "minimum": 0},
                    "pattern": {"type": "string"},
                    "hex": {"type": "string"},
                },
                "additionalProperties": False,
            },
        ]
    },
    bytes,
)
#: Octets as hexadecimal digits.
Hex = _parsed(_hex, {"type": "string", "pattern": r"^\s*([0-9a-fA-F]{2}\s*)*$"}, bytes)
