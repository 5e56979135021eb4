"""Trial ids as globs: as few as may be, and never one that covers what was not meant."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conform.run.fold import base, case_of, fold, matcher, version_of

ROWS = [f"{a}.{b}" for a in ("0", "1", "100") for b in ("ESTABLISHED", "FIN-WAIT-1", "LAST-ACK")]
ALL = [f"reset/edge.{row}.v{version}" for row in ROWS for version in (4, 6)]
OTHERS = ["reset/edge-too.v4", "reset/edgeless.0.v4", "open/edge.v4"]


def test_the_parts_of_an_id() -> None:
    assert case_of("a/b.c.d.v4#3") == "a/b"
    assert case_of("b.v4") == "b"
    assert base("a/b.v4#3") == "a/b.v4"
    assert version_of("a/b.c.v6#2") == ".v6"
    assert version_of("a/b") == ""


@pytest.mark.parametrize(
    ("wanted", "globs"),
    [
        (ALL, ["reset/edge.*"]),
        ([t for t in ALL if t.endswith(".v4")], ["reset/edge.*.v4"]),
        ([t for t in ALL if ".0." in t], ["reset/edge.0.*"]),
        ([t for t in ALL if "LAST-ACK" in t], ["reset/edge.*.LAST-ACK.*"]),
        ([t for t in ALL if "LAST-ACK.v6" in t], ["reset/edge.*.LAST-ACK.v6"]),
        (["reset/edge.0.LAST-ACK.v4", "reset/edge.0.LAST-ACK.v6"], ["reset/edge.0.LAST-ACK.*"]),
        (["reset/edge.0.LAST-ACK.v4#1", "reset/edge.0.LAST-ACK.v4#2"], ["reset/edge.0.LAST-ACK.v4"]),
        (
            [t for t in ALL if ".0." in t or t == "reset/edge.100.LAST-ACK.v4"],
            ["reset/edge.0.*", "reset/edge.100.LAST-ACK.v4"],
        ),
        ([], []),
    ],
)
def test_versions_and_rows_are_folded(wanted: list[str], globs: list[str]) -> None:
    assert fold(wanted, ALL + OTHERS) == globs


def test_of_globs_that_mean_the_same_the_one_that_says_most() -> None:
    assert fold(["a/b.ROW.v4", "a/b.ROW.v6"], ["a/b.ROW.v4", "a/b.ROW.v6"]) == ["a/b.ROW.*"]


def test_capitals_do_not_count() -> None:
    assert fold(["a/B.x.v4"], ["a/b.X.v4", "a/b.Y.v4"]) == ["a/B.x.v4"]


def test_brackets_are_themselves() -> None:
    assert matcher("A/b[c].*")("a/b[c].v4")
    assert not matcher("a/b[c].*")("a/bc.v4")


def test_rows_of_many_parts() -> None:
    row = ".".join("abcdefghij")
    assert fold([f"x/y.{row}.v4", f"x/y.{row}.v6"], [f"x/y.{row}.v4", "x/y.a.v4"]) == [f"x/y.{row}.*"]


@given(st.sets(st.sampled_from(ALL)), st.sets(st.sampled_from(ALL)))
def test_all_that_is_wanted_and_nothing_else(wanted: set[str], universe: set[str]) -> None:
    globs = fold(sorted(wanted), [*universe, *OTHERS])
    meant = [matcher(glob) for glob in globs]
    for trial in itertools.chain(universe | wanted, OTHERS):
        assert any(each(trial.lower()) for each in meant) == (trial in wanted), (trial, globs)
    assert len(globs) <= len(wanted)
