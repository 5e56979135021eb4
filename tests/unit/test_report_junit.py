"""JUnit XML, as readers of it see it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import junitparser
import pytest
from test_report_ladder import END, HEADER, TRIALS, golden

from conform.report import junit
from conform.requirements import catalogue


def written(tmp_path: Path, lines: Any) -> ElementTree.Element:
    path = tmp_path / "junit.xml"
    writer = junit.Writer(HEADER, path, catalogue())
    for line in lines:
        writer.trial(line)
    writer.finish()
    return ElementTree.parse(path).getroot()


def one(tmp_path: Path, name: str, **changes: Any) -> ElementTree.Element:
    root = written(tmp_path, [{**copy.deepcopy(TRIALS[name]), **changes}])
    (case,) = [each for each in root.iter("testcase") if each.get("name") == name]
    return case


def test_what_else_turns_a_run_red_is_there(tmp_path: Path) -> None:
    def rest(header: dict[str, Any], code: int | None) -> list[tuple[str | None, str, str | None]]:
        writer = junit.Writer({**HEADER, **header}, tmp_path / "junit.xml", catalogue())
        writer.trial(TRIALS["close/active-close.v4"])
        writer.finish(None if code is None else {**END, "exit": code})
        root = ElementTree.parse(tmp_path / "junit.xml").getroot()
        suites = [suite for suite in root if suite.get("name") == "the run"]
        numbers = [(s.get("tests"), s.get("failures"), s.get("errors"), s.get("skipped")) for s in suites]
        found = [(case.get("name"), case[0].tag, case[0].get("message")) for s in suites for case in s.iter("testcase")]
        tags = [tag for _, tag, _ in found]
        counted = [str(len(tags)), *(str(tags.count(tag)) for tag in ("failure", "error", "skipped"))]
        assert numbers == ([tuple(counted)] if found else [])
        return found

    planned = ["close/active-close.v4", "close/other.v4"]
    why = "the run ended before this trial had a verdict"
    assert rest({"planned": planned, "stale": []}, None) == [("close/other.v4", "error", why)]
    assert rest({"planned": planned, "stale": []}, 130) == [("close/other.v4", "error", why)]
    assert rest({"planned": planned, "stale": []}, 1) == [("close/other.v4", "skipped", why)]
    stale = "x.yaml:3:1: no trial matches a/b.*: the entry is out of date"
    assert rest({"planned": planned[:1], "stale": [f"{stale}\n   3 | - trials"]}, 1) == [(stale, "failure", stale)]
    assert rest({"planned": planned[:1], "stale": []}, 0) == []


def test_the_whole_file(tmp_path: Path) -> None:
    written(tmp_path, TRIALS.values())
    words = (tmp_path / "junit.xml").read_text("utf-8").replace(str(tmp_path), "RUN")
    golden("junit.xml", words)


def test_junitparser_reads_the_same_counts(tmp_path: Path) -> None:
    written(tmp_path, TRIALS.values())
    found = junitparser.JUnitXml.fromfile(str(tmp_path / "junit.xml"))
    assert (found.tests, found.failures, found.errors, found.skipped) == (19, 9, 1, 5)
    for suite in found:
        cases = list(suite)
        kinds = [type(result).__name__ for case in cases for result in case.result]
        assert suite.tests == len(cases)
        assert (suite.failures, suite.errors, suite.skipped) == tuple(map(kinds.count, ("Failure", "Error", "Skipped")))
    assert sorted(suite.name for suite in found) == ["calls", "close", "data", "states", "urgent"]


@pytest.mark.parametrize(
    ("name", "tag", "kind", "message"),
    [
        ("close/active-close.v4", None, "", ""),
        ("close/fin-not-counted.v4", "failure", "must", "short by 1: FIN not counted"),
        ("close/timeout.v4", "failure", "should", "nothing came"),
        ("close/broken.v4", "error", "conform", "the agent's process died"),
        ("close/late-loop.v4", "failure", "inconclusive", "loop was late"),
        ("close/known.v4", "skipped", "expected-failure", "as its makers know"),
        ("close/known-no-more.v4", "failure", "unexpected-pass", "it passed, though"),
        ("close/flaky.v4", "failure", "flaky", "passed when tried again, but first: ack IRS+1"),
        ("data/may-fail.v4", "skipped", "fail-may", "tolerated by the gate: flags A"),
        ("urgent/mark.v6", "skipped", "not-applicable", "does not claim urgent"),
    ],
)
def test_each_result(tmp_path: Path, name: str, tag: str | None, kind: str, message: str) -> None:
    case = one(tmp_path, name)
    children = [child for child in case if child.tag != "properties"]
    assert [child.tag for child in children] == ([tag] if tag else [])
    if tag:
        assert children[0].get("type") == kind
        assert message in (children[0].get("message") or "")
    assert (case.get("name"), case.get("classname")) == (name, name.rpartition(".")[0].replace("/", "."))
    assert case.get("file") == TRIALS[name]["file"]


def test_an_unexpected_result_is_never_a_pass(tmp_path: Path) -> None:
    for name, line in TRIALS.items():
        for result in {each["result"] for each in TRIALS.values()} - {"pass"}:
            case = one(tmp_path, name, result=result, expected=False, expectation=line["expectation"] or {})
            assert any(child.tag in ("failure", "error", "skipped") for child in case), (name, result)


def test_the_text_has_the_ladder_and_the_properties_the_levels(tmp_path: Path) -> None:
    case = one(tmp_path, "close/fin-not-counted.v4")
    failure = case.find("failure")
    assert failure is not None
    assert failure.text is not None
    assert "<- A seq=ISS+2 ack=IRS+1" in failure.text
    assert case.get("line") == "15"
    properties = {(p.get("name"), p.get("value")) for p in case.iter("property")}
    assert {
        ("level", "must"),
        ("requirement-level", "9293-3.4-fin-syn-seqspace rule"),
        ("result", "fail"),
    } <= properties


def test_what_xml_cannot_hold_is_not_in_it(tmp_path: Path) -> None:
    bad = "</failure><x>\x00\x1b\x0b\ud800\ufffe]]>&"
    line = copy.deepcopy(TRIALS["close/fin-not-counted.v4"])
    line |= {"id": bad, "case": f"{bad}/x", "file": bad}
    line["verdict"]["failure"]["summary"] = line["verdict"]["requirements"][0] = bad
    root = written(tmp_path, [line])
    assert [child.tag for child in root.iter()].count("x") == 0
    case = root.find("testsuite/testcase")
    assert case is not None
    assert (case.get("name") or "").startswith("</failure><x>")
    data = (tmp_path / "junit.xml").read_bytes()
    assert not set(data) & set(range(9))
    assert b"\x1b" not in data
