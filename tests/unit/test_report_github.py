"""What GitHub Actions is told."""

from __future__ import annotations

import copy
import errno
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from test_report_ladder import END, HEADER, TRIALS, golden

from conform.report import Reports, github, html
from conform.requirements import catalogue


def told(environment: dict[str, str] | None = None, lines: Iterable[Any] | None = None) -> str:
    out = io.StringIO()
    writer = github.Writer(HEADER, out, catalogue(), environment or {})
    for line in TRIALS.values() if lines is None else lines:
        writer.trial(line)
    writer.finish(END)
    return out.getvalue()


def test_annotations_and_the_summary(tmp_path: Path) -> None:
    page = tmp_path / "summary.md"
    page.write_text("before\n")
    golden("github.txt", told({"GITHUB_STEP_SUMMARY": str(page)}))
    golden("summary.md", page.read_text("utf-8").removeprefix("before\n"))
    assert page.read_text("utf-8").startswith("before\n")


def test_what_is_expected_is_not_annotated() -> None:
    unexpected = [name for name, line in TRIALS.items() if not line["expected"]]
    assert told().count("::error ") == len(unexpected) == 10
    assert told(lines=[TRIALS["close/known.v4"], TRIALS["data/may-fail.v4"]]) == ""


def test_more_than_github_shows_is_counted() -> None:
    words = told(lines=[TRIALS["close/timeout.v4"]] * 13)
    assert words.count("::error ") == 10
    assert "::notice title=conform::3 more unexpected results" in words


def test_what_else_turns_a_run_red_is_told(tmp_path: Path) -> None:
    page = tmp_path / "summary.md"
    out = io.StringIO()
    stale = "x.yaml:3:1: no trial matches a/b.*\n   3 | - trials"
    header = {**HEADER, "planned": ["a.v4", "b.v4"], "stale": [stale]}
    writer = github.Writer(header, out, catalogue(), {"GITHUB_STEP_SUMMARY": str(page)})
    writer.finish(END)
    assert out.getvalue() == "::error title=conform::x.yaml:3:1: no trial matches a/b.*\n"
    assert "- x.yaml:3:1: no trial matches a/b.&#42;\n- 2 planned trials have no verdict\n" in page.read_text("utf-8")


def test_annotations_are_escaped() -> None:
    line = copy.deepcopy(TRIALS["close/timeout.v4"])
    line["file"] = "a,b:c%.yaml"
    line["verdict"]["failure"]["summary"] = "100%\n::error::x"
    words = github.annotation(line, HEADER)
    assert words.startswith(
        "::error file=a%2Cb%3Ac%25.yaml,line=10,col=5,title=FAIL SHOULD close/timeout.v4::100%25\\n::"
    )
    assert "\n" not in words


def test_markdown_is_escaped(tmp_path: Path) -> None:
    line = copy.deepcopy(TRIALS["close/timeout.v4"])
    line["verdict"]["failure"]["summary"] = "a|b <img onerror=x> `c` @all [x](y)\n# big"
    page = tmp_path / "summary.md"
    told({"GITHUB_STEP_SUMMARY": str(page)}, [line])
    row = next(row for row in page.read_text("utf-8").splitlines() if "timeout" in row)
    assert row.count("|") == 5
    assert not set("<>`@[]#") & set(row.replace("&#", ""))


def test_files_are_named_from_the_top_of_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub" / "dir").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "sub" / "dir")
    words = told({"GITHUB_WORKSPACE": str(tmp_path)}, [TRIALS["close/timeout.v4"]])
    assert "::error file=sub/dir/cases/close/timeout.yaml," in words


@pytest.mark.parametrize(("environment", "active"), [({}, False), ({"GITHUB_ACTIONS": "true"}, True)])
def test_all_reports_in_one_pass(tmp_path: Path, environment: dict[str, str], active: bool) -> None:
    out = io.StringIO()
    reports = Reports(tmp_path, HEADER, out=out, environment=environment)
    for line in TRIALS.values():
        reports.trial(line)
    reports.finish(END)
    assert reports.failed == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["junit.xml", "report.html"]
    assert ("::error" in out.getvalue()) is active


@pytest.mark.parametrize("key", [*TRIALS["close/timeout.v4"], "failure"])
@pytest.mark.parametrize("value", [None, [], {}, "x", 7, ...])
def test_a_line_that_was_altered_breaks_no_report(tmp_path: Path, key: str, value: object) -> None:
    line = copy.deepcopy(TRIALS["close/timeout.v4"])
    into = line["verdict"] if key == "failure" else line
    if value is ...:
        del into[key]
    else:
        into[key] = value
    if key == "id":
        return  # the run file's reader refuses such a line
    reports = Reports(tmp_path, HEADER, out=io.StringIO(), environment={"GITHUB_ACTIONS": "true"})
    reports.trial(line)
    reports.finish(None)
    assert reports.failed == []
    assert "1 trials" in (tmp_path / "report.html").read_text("utf-8")


def test_an_output_that_takes_ascii_only() -> None:
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, "ascii", write_through=True) as out:
        github.Writer(HEADER, out, catalogue(), {}).trial(TRIALS["close/timeout.v4"])
        assert raw.getvalue().startswith(b"::error file=cases/close/timeout.yaml")


def test_a_report_that_cannot_be_written_costs_no_other_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "report.html").write_text("an earlier one")

    def broken(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(html.Writer, "_section", broken)
    reports = Reports(tmp_path, HEADER, environment={})
    for line in TRIALS.values():
        reports.trial(line)
    reports.finish(END)
    assert reports.failed == [f"{tmp_path / 'report.html'}: No space left on device"]
    assert (tmp_path / "report.html").read_text() == "an earlier one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["junit.xml", "report.html"]
