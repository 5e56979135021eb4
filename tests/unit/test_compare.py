"""``conform compare``: what is found out of runs, how it is told, and how it exits."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import rich.console
from run_files import failed, invoke, known, line, other, passed, write

from conform.report import compare as report
from conform.run.compare import Comparison, Run, compare, read, stable
from conform.run.runfile import NAME

NOTHING = failed("nothing came within 1.00 s")
LATER = failed("nothing came within 1.02 s")
OTHERWISE = failed("flags R, want A (A missing, R too many)", "R seq=5 (ISS+1)")


def _compared(tmp_path: Path, *runs: list[dict[str, Any]], stacks: str = "", everything: bool = False) -> Comparison:
    """Runs of *stacks*, separated by blanks, or all of one."""
    names = stacks.split() or ["linux"] * len(runs)
    made = [
        write(tmp_path / f"r{number}", lines, name)
        for number, (lines, name) in enumerate(zip(runs, names, strict=True))
    ]
    return compare([read(path) for path in made], everything)


def _told(found: Comparison) -> str:
    out = io.StringIO()
    report.print_text(found, rich.console.Console(file=out, width=60))
    return out.getvalue()


def _conform(*arguments: str) -> tuple[int, str, str]:
    return invoke("compare", *arguments)


@pytest.mark.parametrize(
    ("one", "other_"),
    [
        ("nothing came within 1.00 s", "nothing came within 254.8 ms"),
        (
            "the stack sent A seq=1 ack=255, which nothing expects",
            "the stack sent A seq=9 ack=8, which nothing expects",
        ),
        ("a segment came, port 40001", "a segment came, port 1"),
        ("ack IRS+1767953408, want 3", "ack IRS-1234567, want 3"),
        ("TSecr 1000361, want 2000000, short by 999639", "TSecr 1000271, want 2000000, short by 999729"),
    ],
)
def test_what_is_another_in_each_run_makes_no_other_reason(one: str, other_: str) -> None:
    assert stable(one) == stable(other_)


@pytest.mark.parametrize(
    ("one", "other_"),
    [
        ("the stack sent RA seq=0 ack=5", "the stack sent A seq=0 ack=5"),
        ("the stack sent RA seq=0 ack=5", "the stack sent RA seq=7 ack=5"),
        ("ack IRS+1, want RCV.NXT = IRS+2, short by 1", "ack IRS+1, want RCV.NXT = IRS+3, short by 2"),
        ("window 29200, want 0", "window 65535, want 0"),
        ("TSecr 1000361, want 2000000, short by 999639", "TSval 1000361, want 2000000, short by 999639"),
    ],
)
def test_what_the_stack_does_makes_another_reason(one: str, other_: str) -> None:
    assert stable(one) != stable(other_)


# Several stacks ------------------------------------------------------------------------------------------------------
def _stacks(tmp_path: Path, everything: bool = False) -> Comparison:
    rows = [f"a/b.{row}.v{version}" for row in ("X", "Y") for version in (4, 6)]
    return _compared(
        tmp_path,
        [
            *(line(n, passed()) for n in rows),
            known("c/d.v4", NOTHING), line("e/f.v4", NOTHING), line("g/h.v4", passed()),
        ],
        [
            *(line(n, NOTHING if ".X." in n else passed()) for n in rows),
            known("c/d.v4", LATER), line("e/f.v4", other("not-applicable", "two cannot do that")),
            line("g/h.v4", passed()),
        ],
        [
            *(line(n, passed()) for n in rows),
            line("c/d.v4", OTHERWISE), line("e/f.v4", passed()), line("g/h.v4", passed()),
        ],
        stacks="one two three",
        everything=everything,
    )  # fmt: skip


def test_where_stacks_differ_and_why(tmp_path: Path) -> None:
    found = _stacks(tmp_path)
    assert found.kind == "stacks"
    assert [(row.case, row.globs, [cell.result for cell in row.cells]) for row in found.rows] == [
        ("a/b", ("a/b.X.*",), ["pass", "fail", "pass"]),
        ("c/d", ("c/d.v4",), ["expected-failure", "expected-failure", "fail"]),
        ("e/f", ("e/f.v4",), ["fail", "not-applicable", "pass"]),
    ]
    told = _told(found)
    assert "3 stacks, 7 trials: of 4 they differ" in told
    assert re.search(r"^  X\.\* +pass +FAIL +pass$", told, re.M)
    assert "two: nothing came within 1.00 s (must: 9293-3.10.7.4-seq-edge-past-window)" in told
    assert "two: two cannot do that" in told
    assert "g/h" not in told
    assert "(exit 1)" in told


def test_two_ways_to_fail_differ_and_two_waits_do_not(tmp_path: Path) -> None:
    same = _compared(tmp_path / "1", [known("a/b.v4", NOTHING)], [known("a/b.v4", LATER)], stacks="x y")
    assert not same.rows
    two = _compared(tmp_path / "2", [known("a/b.v4", NOTHING)], [known("a/b.v4", OTHERWISE)], stacks="x y")
    assert [row.differs for row in two.rows] == [True]


def test_reasons_not_to_apply_are_no_difference(tmp_path: Path) -> None:
    lines = [[line("a/b.v4", other("not-applicable", f"{name} cannot"))] for name in "xy"]
    assert not _compared(tmp_path, *lines, stacks="x y").rows


def test_all_shows_what_agrees(tmp_path: Path) -> None:
    found = _stacks(tmp_path, everything=True)
    assert [row.globs for row in found.rows if not row.differs] == [("a/b.Y.*",), ("g/h.v4",)]
    assert re.search(r"^  v4 +pass +pass +pass$", _told(found), re.M)


def test_who_fails_alone_and_what_fails_everywhere(tmp_path: Path) -> None:
    found = _stacks(tmp_path)
    assert found.alone == [{"e/f": ["e/f.v4"]}, {"a/b": ["a/b.X.*"]}, {}]
    assert found.everywhere == {"c/d": ["c/d.v4"]}
    told = _told(found)
    assert "Only two fails (1 case)\n  a/b.X.*\n" in told
    assert "is it the case? (1 case)\n  c/d.v4\n" in told


def test_one_stack_to_which_it_applies_says_nothing_of_the_case(tmp_path: Path) -> None:
    lines = [[known("a/b.v4", NOTHING)], [line("a/b.v4", other("not-applicable", "no"))]]
    found = _compared(tmp_path, *lines, stacks="x y")
    assert (found.alone, found.everywhere) == ([{}, {}], {})


def test_counts_by_result_and_by_level(tmp_path: Path) -> None:
    may = line("a/c.v4", passed(), levels={"x": "may"})
    found = _compared(tmp_path, [line("a/b.v4", NOTHING), may], [line("a/b.v4", passed()), may], stacks="x y")
    first = found.runs[0]
    assert first.results == {"fail": 1, "pass": 1}
    assert first.levels == {"must": {"fail": 1}, "may": {"pass": 1}}
    assert "MUST fail/pass" in _told(found)
    assert "MAY fail/pass" in _told(found)


def test_the_worst_of_repetitions_counts(tmp_path: Path) -> None:
    lines = [line("a/b.v4#1", passed()), line("a/b.v4#2", NOTHING), line("a/b.v4#3", passed())]
    run = read(write(tmp_path / "r", lines))
    assert {trial: cell.result for trial, cell in run.cells.items()} == {"a/b.v4": "fail"}


def test_of_repetitions_what_is_tolerated_hides_nothing_that_is_not(tmp_path: Path) -> None:
    tolerated, steady = failed("may be", level="should"), failed("must not be")
    lines = [
        line("a/b.v4#1", tolerated, expected=True),
        line("a/b.v4#2", other("inconclusive", "x")),
        line("a/b.v4#3", tolerated, expected=True),
        line("a/c.v4#1", tolerated, expected=True),
        line("a/c.v4#2", steady),
        line("a/c.v4#3", passed()),
    ]
    run = read(write(tmp_path / "r", lines))
    assert [(cell.result, cell.reason) for cell in run.cells.values()] == [
        ("inconclusive", "x"),
        ("fail", "must not be"),
    ]
    assert run.unexpected == 2


@pytest.mark.parametrize(
    ("seen", "result"),
    [
        ([passed()], "missing"),
        ([failed("x", level="may")], "missing"),
        ([other("inconclusive", "x")], "missing"),
        ([passed(), NOTHING], "fail"),
        ([passed(), passed(), passed()], "pass"),
    ],
)
def test_a_repetition_without_a_line_is_missing(tmp_path: Path, seen: list[dict[str, Any]], result: str) -> None:
    lines = [
        line(f"a/b.v4#{number}", verdict, expected=verdict["outcome"] == "pass" or verdict["level"] == "may")
        for number, verdict in enumerate(seen, 1)
    ]
    planned = [f"a/b.v4#{number}" for number in (1, 2, 3)]
    run = read(write(tmp_path / "r", lines, planned=planned))
    assert {trial: cell.result for trial, cell in run.cells.items()} == {"a/b.v4": result}
    assert run.unexpected == int(result != "pass")


def test_of_a_flaky_trial_the_attempt_that_failed(tmp_path: Path) -> None:
    flaky = line("a/b.v4", passed(), result="flaky", expected=False, earlier=[{"attempt": 1, "verdict": NOTHING}])
    assert read(write(tmp_path / "r", [flaky])).cells["a/b.v4"].reason == "nothing came within 1.00 s"


def test_of_a_flaky_trial_a_late_attempt_hides_nothing(tmp_path: Path) -> None:
    late = other("inconclusive", "the loop was late") | {"late": True}
    tries = [{"attempt": number, "verdict": verdict} for number, verdict in enumerate((NOTHING, late), 1)]
    flaky = line("a/b.v4", passed(), result="flaky", expected=False, earlier=tries)
    cell = read(write(tmp_path / "r", [flaky])).cells["a/b.v4"]
    assert (cell.reason, cell.level) == ("nothing came within 1.00 s", "must")


@pytest.mark.parametrize(
    ("lines", "planned", "code"),
    [
        ([line("a/b.v4", passed())], None, 0),
        ([known("a/b.v4", NOTHING)], None, 0),
        ([line("a/b.v4", other("not-applicable", "no"))], None, 0),
        ([line("a/b.v4", NOTHING)], None, 1),
        ([line("a/b.v4", NOTHING | {"level": "may"}, expected=True)], None, 0),
        ([line("a/b.v4", other("error", "x"))], None, 1),
        ([line("a/b.v4", passed(), result="unexpected-pass", expected=False)], None, 1),
        ([], ["a/b.v4"], 1),
    ],
)
def test_the_exit_code_of_stacks(tmp_path: Path, lines: list[Any], planned: list[str] | None, code: int) -> None:
    good = write(tmp_path / "x", [line("a/b.v4", passed())], "x")
    assert compare([read(good), read(write(tmp_path / "y", lines, "y", planned))]).exit == code


def test_a_trial_that_is_not_in_every_run_is_no_difference(tmp_path: Path) -> None:
    found = _compared(
        tmp_path, [line("a/b.v4", passed()), line("a/c.v4", passed())], [line("a/b.v4", passed())], stacks="x y"
    )
    assert (found.rows, found.absent, found.exit) == ([], [0, 1], 0)
    assert "not in it" in _told(found)


# One stack -----------------------------------------------------------------------------------------------------------
GONE: dict[str, Any] = {}


@pytest.mark.parametrize(
    ("before", "after", "what", "code"),
    [
        (line("a/b.v4", passed()), line("a/b.v4", passed()), None, 0),
        (line("a/b.v4", NOTHING), line("a/b.v4", LATER), None, 0),
        (line("a/b.v4", passed()), line("a/b.v4", NOTHING), "regression", 1),
        (known("a/b.v4", NOTHING), line("a/b.v4", OTHERWISE), "regression", 1),
        (known("a/b.v4", NOTHING), line("a/b.v4", passed(), result="unexpected-pass", expected=False), "regression", 1),
        (line("a/b.v4", passed()), line("a/b.v4", other("error", "x")), "regression", 1),
        (line("a/b.v4", NOTHING), line("a/b.v4", passed()), "fixed", 0),
        (line("a/b.v4", NOTHING), known("a/b.v4", NOTHING), "fixed", 0),
        (line("a/b.v4", NOTHING), line("a/b.v4", OTHERWISE), "changed", 0),
        (line("a/b.v4", NOTHING), line("a/b.v4", other("error", "x")), "changed", 0),
        (line("a/b.v4", passed()), known("a/b.v4", NOTHING), "changed", 0),
        (line("a/b.v4", passed()), line("a/b.v4", other("not-applicable", "no")), "changed", 0),
        (GONE, line("a/b.v4", NOTHING), "new", 0),
        (line("a/b.v4", passed()), GONE, "removed", 1),
        (line("a/b.v4", NOTHING), GONE, "removed", 1),
    ],
)  # fmt: skip
def test_what_became_of_a_trial(
    tmp_path: Path, before: dict[str, Any], after: dict[str, Any], what: str | None, code: int
) -> None:
    always = line("a/a.v4", passed())
    found = _compared(tmp_path, *([always, *([each] if each else [])] for each in (before, after)))
    assert found.kind == "runs"
    assert [(c.what, c.trials) for c in found.changes] == ([(what, ("a/b.v4",))] if what else [])
    assert found.exit == code
    assert len(found.rows) == len(found.changes)
    told = _told(found)
    assert (report.TITLES[what] in told) if what else ("nothing differs (exit 0)" in told)


SAME = "nothing came"
MUST = failed(SAME)


@pytest.mark.parametrize("other_", [
    failed(SAME, level="may"), failed(SAME, requirements=["9293-3.5.2-x"]), failed(SAME, step="steps[4]"),
])  # fmt: skip
def test_the_same_words_are_not_the_same_failure(tmp_path: Path, other_: dict[str, Any]) -> None:
    found = _compared(tmp_path / "1", [line("a/b.v4", other_)], [line("a/b.v4", MUST)])
    assert [change.what for change in found.changes] == ["changed"]
    (was,) = re.findall("was: (.*)", _told(found))
    (now,) = re.findall("now: (.*)", _told(found))
    assert was != now
    two = _compared(tmp_path / "2", [known("a/b.v4", other_)], [known("a/b.v4", MUST)], stacks="x y")
    assert [row.differs for row in two.rows] == [True]
    again = _compared(tmp_path / "3", [line("a/b.v4", other_)], [line("a/b.v4", other_)])
    assert again.changes == []


@pytest.mark.parametrize("stacks", ["", "x y"])
def test_rows_of_two_levels_share_no_line(tmp_path: Path, stacks: str) -> None:
    names = [f"a/b.{row}.v4" for row in "ABCDEFGH"]
    levels = ["may"] + ["must"] * 7
    after = [line(name, failed(SAME, level=level)) for name, level in zip(names, levels, strict=True)]
    found = _compared(tmp_path, [line(name, passed()) for name in names], after, stacks=stacks)
    assert [(row.cells[1].level, len(row.trials)) for row in found.rows] == [("may", 1), ("must", 7)]
    told = _told(found)
    assert (told.count("(may: "), told.count("(must: ")) == (1, 1)
    if not stacks:
        assert [(each.after.level, len(each.trials)) for each in found.changes] == [("may", 1), ("must", 7)]


def test_to_a_level_that_the_gate_looks_at_is_a_regression(tmp_path: Path) -> None:
    for expected in (True, False):  # it was refused for an attempt before, and not for its level
        before = line("a/b.v4", failed(SAME, level="may"), expected=expected)
        paths = [
            write(tmp_path / f"{expected}{number}", [each], gate="must")
            for number, each in enumerate((before, line("a/b.v4", MUST)))
        ]
        found = compare([read(path) for path in paths])
        assert [change.what for change in found.changes] == ["regression"]
        assert found.exit == 1
        assert [change.what for change in compare(found.runs[::-1]).changes] == ["fixed" if expected else "changed"]


@pytest.mark.parametrize("had", [True, False])
def test_a_planned_trial_without_a_verdict_is_missing(tmp_path: Path, had: bool) -> None:
    a, b = line("a/a.v4", passed()), line("a/b.v4", passed())
    first = write(tmp_path / "1", [a, b] if had else [a])
    cut = write(tmp_path / "2", [a], planned=["a/a.v4", "a/b.v4"])
    found = compare([read(first), read(cut)])
    assert [(change.what, change.trials) for change in found.changes] == [("missing", ("a/b.v4",))]
    assert found.exit == 1
    again = compare([read(cut), read(cut)])
    assert (again.changes, again.exit) == ([], 0)


def test_each_run_is_held_against_the_first(tmp_path: Path) -> None:
    good, bad = [line("a/b.v4", passed())], [line("a/b.v4", NOTHING)]
    found = _compared(tmp_path, good, bad, bad)
    assert [(change.run, change.what) for change in found.changes] == [(1, "regression"), (2, "regression")]
    assert "r2 against r0" in _told(found)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [(0.1, 1.0, False), (0.1, 1.2, True), (2.0, 3.9, False), (2.0, 4.1, True), (9.0, 1.0, True), (60.0, 61.5, False)],
)
def test_durations_grossly_different(tmp_path: Path, before: float, after: float, told: bool) -> None:
    found = _compared(tmp_path, *([line("a/b.v4", passed(), duration=each)] for each in (before, after)))
    assert bool(found.durations) == told
    assert found.exit == 0
    assert ("Durations" in _told(found)) == told


def test_one_stack_twice_among_several_is_told_apart(tmp_path: Path) -> None:
    lines = [line("a/b.v4", passed())]
    found = _compared(tmp_path, lines, lines, lines, stacks="x x y")
    assert [run.label for run in found.runs] == ["x (r0)", "x (r1)", "y"]


# Settings that differ ------------------------------------------------------------------------------------------------
def _gated(directory: Path, gate: str, tolerated: bool) -> Run:
    """A run in which a MAY fails, always, or once of two times."""
    may = failed("may be", level="may")
    again = line("a/c.v4", passed(), result="pass" if tolerated else "flaky", expected=tolerated,
                 earlier=[{"attempt": 1, "verdict": may}])  # fmt: skip
    lines = [line("a/b.v4", may, expected=tolerated), again, line("a/d.v4", MUST)]
    return read(write(directory, lines, gate=gate))


@pytest.mark.parametrize("gates", [("all", "must"), ("must", "all"), ("all", "must", "all")])
def test_a_gate_alone_changes_nothing_and_is_told(tmp_path: Path, gates: tuple[str, ...]) -> None:
    found = compare([_gated(tmp_path / f"{n}", gate, gate == "must") for n, gate in enumerate(gates)])
    assert (found.changes, found.rows, found.exit) == ([], [], 0)
    assert found.to_json()["settings"] == {"gate": list(gates)}
    told = _told(found)
    assert "the runs' gate differs: " in told
    assert "nothing differs (exit 0)" in told
    report.write_html(found, tmp_path / "page.html")
    assert "gate differs: " in (tmp_path / "page.html").read_text()


def test_a_regression_is_one_by_the_later_gate(tmp_path: Path) -> None:
    always, lines = line("a/d.v4", MUST), [line("a/b.v4", failed("x", level="may"), expected=True)]
    strict = read(write(tmp_path / "1", [always, line("a/b.v4", failed("x", level="should"))], gate="all"))
    lenient = read(write(tmp_path / "2", [always, *lines], gate="must"))
    (change,) = compare([strict, lenient]).changes
    assert (change.what, change.before.expected, change.after.expected) == ("changed", True, True)
    (change,) = compare([lenient, strict]).changes
    assert (change.what, change.before.expected, change.after.expected) == ("changed", False, False)


def test_settings_that_differ_are_told(tmp_path: Path) -> None:
    lines = [line("a/b.v4", passed())]
    one = write(tmp_path / "one", lines, selection={}, link="auto", seed=1, expect=[])
    two = write(
        tmp_path / "two",
        [each | {"link": "veth"} for each in lines],
        selection={"k": "b", "tag": ["!slow", "x"]}, link="auto", jobs=3, seed=1, expect=["my.yaml"],
    )  # fmt: skip
    found = compare([read(one), read(two)])
    assert found.to_json()["settings"] == {
        "selection": [{}, {"k": "b", "tag": ["!slow", "x"]}],
        "link": ["tun", "veth"],
        "expect": [[], ["my.yaml"]],
    }
    told = _told(found)
    assert "the runs' selection differs: all in one; k b, tag !slow x in two\n" in told
    assert "the runs' link differs: tun in one; veth in two\n" in told
    assert "the runs' expect differs: none in one; my.yaml in two\n" in told
    report.write_html(found, tmp_path / "page.html")
    assert "selection differs: all in one; k b, tag !slow x in two" in (tmp_path / "page.html").read_text()
    assert compare([read(one), read(one)]).settings == {}


def test_lists_of_deviations_that_differ_are_told(tmp_path: Path) -> None:
    """By what an entry judges: its wording, or a failure by chance, makes no other list."""
    chance = known("a/e.v4", NOTHING)
    chance["expectation"]["sporadic"] = True
    lines = [known("a/b.v4", NOTHING), known("a/c.v4", NOTHING), line("a/d.v4", NOTHING), line("a/e.v4", passed())]
    other_ = [known("a/b.v4", NOTHING, "Otherwise."), line("a/c.v4", NOTHING), known("a/d.v4", NOTHING), chance]
    found = _compared(tmp_path, lines, other_)
    assert found.to_json()["deviations"] == [0, 2]
    assert "the lists of deviations differ: 2 trials of r1 have another entry than in r0\n" in _told(found)
    assert "lists of deviations" not in _told(_compared(tmp_path / "again", lines, lines))
    assert "lists of deviations" not in _told(_compared(tmp_path / "stacks", lines, other_, stacks="x y"))


# Entries of the lists of deviations ----------------------------------------------------------------------------------
STALE = "no trial matches a/gone.*: the entry is out of date"


def _listed(directory: Path, *places: str, stack: str = "linux") -> Run:
    """A run of one trial that passes, with stale entries in *places* of its list."""
    path = write(directory, [line("a/b.v4", passed())], stack)
    header, *rest = (path / NAME).read_text().splitlines()
    entries = [f"cases/expectations/x.yaml:{place}: {STALE}\n    {place} | - trials: a/gone.*" for place in places]
    (path / NAME).write_text("\n".join([json.dumps(json.loads(header) | {"stale": entries}), *rest]) + "\n")
    return read(path)


def test_a_stale_entry_is_an_unexpected_result_of_its_stack(tmp_path: Path) -> None:
    found = compare([_listed(tmp_path / "x", stack="x"), _listed(tmp_path / "y", "9:1", stack="y")])
    assert (found.exit, [run.unexpected for run in found.runs]) == (1, [0, 1])
    told = _told(found)
    assert f"y: cases/expectations/x.yaml:9:1: {STALE}\n" in told
    assert "STALE" in told
    assert "1 result is not as expected, of which 1 entry of the lists of deviations that matches no trial" in told
    data = found.to_json()
    assert [run["stale"] for run in data["runs"]] == [[], [f"cases/expectations/x.yaml:9:1: {STALE}"]]
    assert data["runs"][1]["results"] == {"stale": 1, "pass": 1}
    report.write_html(found, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert STALE in page
    assert "<th>STALE" in page


@pytest.mark.parametrize(
    ("before", "after", "what", "code"),
    [
        ([], ["9:1"], ["stale"], 1),
        (["9:1"], ["12:1"], [], 0),
        (["9:1"], ["9:1", "12:1"], ["stale"], 1),
        (["9:1"], [], ["tidied"], 0),
    ],
)
def test_what_became_of_stale_entries(
    tmp_path: Path, before: list[str], after: list[str], what: list[str], code: int
) -> None:
    found = compare([_listed(tmp_path / "1", *before), _listed(tmp_path / "2", *after)])
    assert [change.what for change in found.changes] == what
    assert found.exit == code
    assert [change["what"] for change in found.to_json()["changes"]] == what
    told = _told(found)
    report.write_html(found, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    for name in what:
        assert report.TITLES[name] in told
        assert f":{max(before, after)[-1]}: {STALE}" in told
        assert report.TITLES[name] in page
        assert STALE in page
    assert ("1 stale (exit 1)" in told) == bool(code)


# The command ---------------------------------------------------------------------------------------------------------
def test_the_command(tmp_path: Path) -> None:
    good = write(tmp_path / "good", [line("a/b.v4", passed())])
    bad = write(tmp_path / "bad", [line("a/b.v4", NOTHING)])
    assert _conform(str(good), str(good))[0] == 0
    code, told, _ = _conform(str(good), str(bad / NAME))
    assert code == 1
    assert "a/b.v4:  pass, now FAIL" in told
    assert "now: nothing came within 1.00 s" in told


@pytest.mark.parametrize("arguments", [[], ["good"], ["good", "nowhere"], ["good", "odd"]])
def test_bad_usage_and_what_is_no_run(tmp_path: Path, arguments: list[str]) -> None:
    write(tmp_path / "good", [line("a/b.v4", passed())])
    (tmp_path / "odd").write_text("{}\n")
    code, told, complaint = _conform(*(str(tmp_path / name) for name in arguments))
    assert (code, told) == (2, "")
    assert complaint


def test_json(tmp_path: Path) -> None:
    runs = [str(write(tmp_path / n, [line("a/b.v4", v)])) for n, v in (("1", passed()), ("2", NOTHING))]
    code, told, _ = _conform(*runs, "--json", "-")
    data = json.loads(told)
    assert code == data["exit"] == 1
    assert (data["format"], data["kind"], data["trials"]) == (1, "runs", 1)
    (change,) = data["changes"]
    assert change["what"] == "regression"
    assert change["after"]["reason"] == "nothing came within 1.00 s"
    _, text, _ = _conform(*runs, "--json", str(tmp_path / "out.json"))
    assert json.loads((tmp_path / "out.json").read_text()) == data
    assert "Regressions" in text
    assert _conform(*runs, "--json", str(tmp_path / "no" / "out.json"))[0] == 2


# The page ------------------------------------------------------------------------------------------------------------
class _Page(HTMLParser):
    def __init__(self, content: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.tags: set[str] = set()
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            elif name in ("href", "src"):
                self.targets.append(str(value))
            assert not name.startswith("on")


@pytest.mark.parametrize("stacks", ["x y", ""])
def test_the_page_needs_nothing_else_and_its_links_lead_somewhere(tmp_path: Path, stacks: str) -> None:
    runs = (
        [line("a/b.v4", passed()), line("a/+c d.v4", passed())],
        [line("a/b.v4", NOTHING), line("a/+c d.v4", NOTHING)],
    )
    found = _compared(tmp_path, *runs, stacks=stacks)
    report.write_html(found, tmp_path / "page.html")
    content = (tmp_path / "page.html").read_text()
    page = _Page(content)
    assert not page.tags & {"script", "link", "img", "iframe"}
    assert "default-src 'none'" in content
    assert len(set(page.ids)) == len(page.ids)
    from urllib.parse import unquote

    assert {unquote(target)[1:] for target in page.targets} <= set(page.ids)
    assert bool(page.targets) == bool(stacks)
    assert "nothing came within 1.00 s" in content


def test_nothing_from_outside_becomes_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\x1b[31m"
    bad = failed(evil, requirements=[evil])
    for number, stacks in enumerate((f"{evil.replace(' ', '')} y", "")):
        runs = (
            [line(f"a/{evil}.v4", passed()), line("a/n.v4", other("not-applicable", evil))],
            [line(f"a/{evil}.v4", bad)],
        )
        found = _compared(tmp_path / str(number), *runs, stacks=stacks, everything=True)
        report.write_html(found, tmp_path / "page.html")
        content = (tmp_path / "page.html").read_text()
        assert "<script" not in content
        assert "\x1b" not in content
        assert "\x1b" not in _told(found)
        assert "<script" not in re.sub(r"`[^`]*`", "", report.markdown(found))


# The document's tables -----------------------------------------------------------------------------------------------
def test_markdown(tmp_path: Path) -> None:
    one = [
        line("a/b.v4", passed()),
        line("a/b.v6", passed()),
        known("c/d.v4", NOTHING, "One | does *that*."),
        line("c/e.v4", NOTHING),
    ]
    two = [
        line("a/b.v4", passed()),
        line("a/b.v6", other("error", "x")),
        known("c/d.v4", LATER, "Two does."),
        line("c/e.v4", other("not-applicable", "no")),
    ]
    told = report.markdown(_compared(tmp_path, one, two, stacks="one two"))
    assert "- **one**: The stack one\n" in told
    assert (
        "| topic | one | two |\n|---|---|---|\n| `a` | 2 / 0 / 0 | 1 / 0 / 0 ?1 |\n| `c` | 0 / 2 / 0 | 0 / 1 / 1 |\n"
        in told
    )
    assert "| **all** | **2 / 2 / 0** | **1 / 1 / 1 ?1** |" in told
    assert (
        r"| `c/d.*` | one: One \| does \*that\*.<br>two: Two does. | RFC 9293 section 3.10.7.4 | deviates | deviates |"
        in told.replace("`c/d.v4`", "`c/d.*`")
    )
    assert "## Failures that no list explains\n\n| trials | what came | one | two |" in told
    assert "| `c/e.v4` | nothing came within … | deviates | n/a |" in told


def test_markdown_is_the_same_whatever_a_run_took_and_in_which_order_trials_ended(tmp_path: Path) -> None:
    one = [known("a/b.v4", NOTHING), known("a/b.v6", NOTHING), line("a/c.v4", OTHERWISE), line("a/d.v4", NOTHING)]
    again = [
        line("a/d.v4", LATER),
        line("a/c.v4", OTHERWISE, duration=9),
        known("a/b.v6", LATER),
        known("a/b.v4", LATER),
    ]
    two = [line("a/b.v4", passed()), line("a/c.v4", passed()), line("a/e.W.v4", passed())]
    for name in ("e.X.v4", "e.Y.v4", "e.Z.v6"):  # which do not fold
        one.append(known(f"a/{name}", NOTHING, "It is so."))
        again.insert(0, known(f"a/{name}", NOTHING, "It is so."))
    first = report.markdown(_compared(tmp_path / "1", one, two, stacks="x y"))
    second = report.markdown(_compared(tmp_path / "2", again, two[::-1], stacks="x y"))
    assert first == second


def test_what_is_kept_of_a_trial_does_not_grow_with_its_line(tmp_path: Path) -> None:
    """A run is streamed: of what a line holds, only the result stays."""
    import tracemalloc

    heavy = {"transcript": [{"t": 0.0, "e": "arrived", "packet": {"payload": "00" * 4000}}]}
    path = write(tmp_path / "r", [line(f"a/b.{number}.v4", passed(), **heavy) for number in range(1000)])
    assert (path / NAME).stat().st_size > 8_000_000
    tracemalloc.start()
    try:
        run = read(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(run.cells) == 1000
    assert peak < 2_000_000
