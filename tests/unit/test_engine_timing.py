"""Whether what came at a moment known to lie between two times came in time."""

from __future__ import annotations

import pytest

from conform.engine.timing import Interval, Judgment, duration, exactly, judge


@pytest.mark.parametrize(
    ("low", "high", "judgment"),
    [
        (0.1, 0.4, "early"),
        (0.1, 0.9, "early"),
        (0.1, 1.0, "early?"),
        (0.9, 1.5, "early?"),
        (1.0, 1.5, "ok"),
        (1.5, 2.0, "ok"),
        (1.5, 2.1, "late?"),
        (2.0, 2.5, "late?"),
        (2.1, 2.5, "late"),
        (0.1, 2.5, "late?"),
    ],
)
def test_between_two_bounds(low: float, high: float, judgment: Judgment) -> None:
    assert judge(Interval(low, high), exactly(1.0), exactly(2.0)) == judgment


@pytest.mark.parametrize(
    ("low", "high", "judgment"),
    [
        (0.8, 0.8, "early"),
        (0.9, 0.9, "early?"),
        (1.0, 1.0, "early?"),
        (1.1, 1.1, "ok"),
        (1.9, 1.9, "ok"),
        (2.0, 2.0, "late?"),
        (2.1, 2.1, "late?"),
        (2.2, 2.2, "late"),
    ],
)
def test_bounds_that_are_uncertain_themselves(low: float, high: float, judgment: Judgment) -> None:
    assert judge(Interval(low, high), Interval(0.9, 1.1), Interval(1.9, 2.1)) == judgment


def test_no_bound_and_slack() -> None:
    assert judge(Interval(0.0, 99.0)) == "ok"
    assert exactly(None, 5.0) is None
    assert exactly(1.0, -0.25) == Interval(0.75, 0.75)


def test_what_lies_between() -> None:
    assert Interval(5.0, 6.0).since(Interval(1.0, 3.0)) == Interval(2.0, 5.0)


def test_words() -> None:
    assert duration(0.0015) == "1.5 ms"
    assert duration(1.5) == "1.50 s"
