"""Scalars of the format, and the expressions: what they give, and where they point when they cannot be read."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from conform.case import values
from conform.case.expr import ExpressionError, Match, parse, parse_match
from conform.case.source import plain_scalar

NAMES = {"SND.NXT": 100, "RCV.NXT": 7, "timer.rto.min": 0.2, "t0": 5, "fin.seq": 100}


@pytest.mark.parametrize(
    ("text", "value", "kind"),
    [
        ("5", 5, "number"),
        ("0xff", 255, "number"),
        ("SND.NXT + 1", 101, "number"),
        ("2 * (SND.NXT - 1)", 198, "number"),
        ("-t0", -5, "number"),
        ("SND.NXT / 3", 33, "number"),
        ("-1 / 2", -1, "number"),
        ("t0 / 2 * 1ms", 0.0025, "duration"),
        ("3 / 2 * 200ms", 0.3, "duration"),
        ("200ms * 3 / 2", 0.3, "duration"),
        ("0.5 * 1s", 0.5, "duration"),
        ("absolute(RCV.NXT)", 7, "number"),
        ("500ms", 0.5, "duration"),
        ("2 * timer.rto.min + 5us", 0.400005, "duration"),
        ("1min - 1s", 59, "duration"),
        ("1s / 4", 0.25, "duration"),
        ("t0 + SND.NXT", 105, "number"),
    ],
)
def test_expressions(text: str, value: float, kind: str) -> None:
    expr = parse(text)
    assert expr.evaluate(NAMES.__getitem__) == pytest.approx(value)
    assert expr.kind == kind


@pytest.mark.parametrize(
    ("text", "offset"),
    [
        ("", 0),
        ("1 +", 3),
        ("1 ? 2", 2),
        ("(1", 2),
        ("1 2", 2),
        ("1s + 1", 3),
        ("1s * 1s", 3),
        ("1 / 1s", 2),
        ("*", 0),
        ("absolute(1", 10),
        ("0.5", 0),
        ("SND.NXT * 1.5", 10),
        ("5 / 0", 2),
        ("5 / (1 - 1) + t0", 2),
        (" 1s * " + "9" * 400, 1),
        ("\N{ARABIC-INDIC DIGIT THREE}", 0),
    ],
)
def test_expressions_that_cannot_be_read(text: str, offset: int) -> None:
    with pytest.raises(ExpressionError) as caught:
        parse(text)
    assert caught.value.offset == offset


@pytest.mark.parametrize(
    ("text", "op", "low", "high"),
    [
        ("any", "any", None, None), (" absent ", "absent", None, None), ("not 5", "!=", "5", None),
        (">= 5", ">=", " 5", None), ("<5", "<", "5", None), ("== 5", "==", " 5", None), ("1..5", "range", "1", "5"),
        ("SND.NXT", "==", "SND.NXT", None),
    ],
)  # fmt: skip
def test_matches(text: str, op: str, low: str | None, high: str | None) -> None:
    match = parse_match(text)
    assert match.op == op
    assert (match.low and match.low.text.strip()) == (low and low.strip())
    assert (match.high and match.high.text) == high


def test_names_know_where_they_stand() -> None:
    match = parse_match("  >= fin.seq + t0")
    assert match.exprs[0].names == (("fin.seq", 5), ("t0", 15))
    assert parse_match("t0 .. t0").exprs[1].names == (("t0", 6),)


def test_values_that_are_parsed_already_stay() -> None:
    for kind, value in (
        (values.Number, parse("1")),
        (values.SequenceMatch, Match("any", "any")),
        (values.Payload, b"abc"),
    ):
        (validator,) = (m for m in kind.__metadata__ if hasattr(m, "func"))
        assert validator.func(value) is value


def test_a_bare_number_is_no_duration_but_0_is() -> None:
    assert values.parse_duration(0).evaluate(NAMES.__getitem__) == 0
    with pytest.raises(PydanticCustomError, match="'5' has no unit"):
        values.parse_duration(5)
    with pytest.raises(PydanticCustomError, match="is a number"):
        values.parse_duration("SND.NXT")


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("any", "all"), ("{}", "some"), ("5", "some"), ("0", "some"), ("256", "none"), ("-1", "none"),
        ("not 5", "some"),
        ("not 256", "all"), ("> 255", "none"), (">= 255", "some"), (">= 0", "all"), ("< 0", "none"), ("<= 255", "all"),
        ("< 256", "all"), ("0..255", "all"), ("1..255", "some"), ("256..300", "none"), ("SND.NXT..5", "some"),
        ("absent", "some"),
    ],
)  # fmt: skip
def test_what_fits_among_the_values_of_an_octet(text: str, fits: str) -> None:
    match = Match(text, "capture", capture="t0") if text == "{}" else parse_match(text)
    assert match.among(0, 255) == fits


def test_a_match_that_everything_fits_is_any() -> None:
    assert values._match_within(0, 255)(">= 0") == Match(">= 0", "any")
    assert values._match_within(0, 255)("0..255").op == "any"
    assert values._match_within(0, 255, absent=True)("absent").op == "absent"


def test_ranges_of_sequence_numbers_wrap() -> None:
    for text in ("0xfffffff0..0x10", "absolute(0xffffffff)..absolute(0)", "1..absolute(0)", "SND.NXT..1", "5..5"):
        assert values._parse_sequence_match(text).op == "range"
    with pytest.raises(PydanticCustomError, match="ends before it begins"):
        values._parse_sequence_match("0x10..0xfffffff0")


def test_how_many_octets_a_payload_asks_for() -> None:
    asked = [
        values.octets_of(each) for each in (5, {"length": 7, "pattern": "ab"}, "abc", {"hex": "00"}, True, -1, None)
    ]
    assert asked == [5, 7, 0, 0, 0, 0, 0]


def test_pattern() -> None:
    assert values.pattern(28) == b"abcdefghijklmnopqrstuvwxyzab"
    assert values.pattern(0) == b""
    assert values.pattern(5, b"xy") == b"xyxyx"


def test_flags_fit() -> None:
    fin = values._parse_flags("FA-U")
    assert not fin.problems(0x11)
    assert not fin.problems(0x19)
    assert fin.problems(0x31)
    assert fin.problems(0x10)
    assert not values._parse_flags("none").problems(0x08)


@pytest.mark.parametrize("text", ["", "-", "F-"])
def test_flags_that_say_nothing(text: str) -> None:
    with pytest.raises(PydanticCustomError, match="expected flags"):
        values._parse_flags(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("null", None),
        ("True", "True"),
        ("no", "no"),
        ("12", 12),
        ("-3", -3),
        ("0x1F", 31),
        ("0.5", 0.5),
        ("1..5", "1..5"),
        ("5ms", "5ms"),
        ("192.0.2.1", "192.0.2.1"),
        ("0x", "0x"),
    ],
)
def test_plain_scalars(text: str, value: object) -> None:
    found, wrong = plain_scalar(text)
    assert wrong is None
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text", ["010", "-01", "1_0", "1:30", "0o7", "0b1", ".inf", "-.inf", ".nan", "1e3", ".5", "5.", "~", "9" * 21]
)
def test_ambiguous_scalars(text: str) -> None:
    assert plain_scalar(text)[1]


@given(st.text(max_size=30))
def test_no_text_breaks_the_parsers(text: str) -> None:
    for parser in (parse, parse_match):
        with contextlib.suppress(ExpressionError):
            parser(text)
    plain_scalar(text)


def test_a_timer_s_number_is_no_subtraction() -> None:
    assert parse("timer.fin-wait-2 - 2s").names == (("timer.fin-wait-2", 0),)
    assert parse("RCV.NXT-2").names == (("RCV.NXT", 0),)
