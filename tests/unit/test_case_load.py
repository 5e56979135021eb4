"""Loading: ids, documents, places, speed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from case_texts import HEAD, case, messages, rows
from hang import ends

from conform.case.load import case_id, load, load_text
from conform.case.model import Case, CloseCall
from conform.case.source import Problem, near

CASES = Path(__file__).parents[2] / "cases"


def test_shipped_cases_are_sound() -> None:
    loaded = load([CASES])
    assert len(loaded.cases) > 180, "the shipped cases are lost"
    assert not loaded.problems, "\n".join(map(str, loaded.problems))
    assert [c.case_id for c in loaded.cases] == sorted(c.case_id for c in loaded.cases)


def test_ids(tmp_path: Path) -> None:
    assert case_id(Path("/x/cases/close/a.yaml")) == "close/a"
    assert case_id(Path("/x/cases/old/cases/b/a.yaml")) == "b/a"
    assert case_id(Path("/x/a.yaml")) == "a"
    assert case_id(Path("/x/y/a.yaml"), Path("/x")) == "y/a"
    (tmp_path / "close").mkdir()
    (tmp_path / "close" / "a.yaml").write_text(case())
    (tmp_path / "expectations").mkdir()
    (tmp_path / "expectations" / "x.yaml").write_text("not a case")
    (tmp_path / ".hidden.yaml").write_text("not a case")
    (loaded,) = load([tmp_path, tmp_path / "close", tmp_path / "close" / "a.yaml"]).cases
    assert loaded.case_id == "close/a"
    assert loaded.path == tmp_path / "close" / "a.yaml"
    assert loaded.text == case()
    assert loaded.lines[0].startswith("title: ")
    assert [row.id for row in loaded.rows] == [""]


def test_the_document_is_the_case() -> None:
    (row,) = rows(
        "- call: close\n- one_of:\n    - {name: a, steps: [expect: {flags: FA}]}\n"
        "    - {name: b, steps: [silence: now]}\n"
        "- any_order:\n    - expect: {flags: A}\n    - expect: {flags: FA}\n- optional:\n    expect: {flags: A}\n"
        "- repeat: {times: 2, steps: [expect: {flags: A}]}"
    )
    document = json.loads(json.dumps(row.document))
    assert Case.model_validate(document) == row.case
    assert document["steps"][0] == {"@": [5, 5], "call": "close"}
    assert document["steps"][1]["one_of"][0]["steps"][0]["@"] == [7, 27]
    assert row.case.steps[3].optional[0].place == (13, 7)
    assert row.case.steps[4].repeat.steps[0].place == (14, 32)
    assert isinstance(row.case.steps[0].call, CloseCall)
    assert [step["@"] for step in document["recipe"]] == [[3, 1]] * 9
    assert row.case.recipe[-1].state.is_ == ["ESTABLISHED"]


def test_without_given_there_is_no_connection() -> None:
    (row,) = rows(top="ip: 4")
    assert [list(step) for step in row.document["recipe"]] == [["@", "state"]]


def test_a_case_with_windows_line_ends() -> None:
    found, problems = load_text(case().replace("\n", "\r\n"))
    assert not problems
    assert len(found) == 1


def test_the_caret_of_a_quoted_or_folded_text() -> None:
    (problem,) = load_text(case('- expect: {seq: "SND.NXT + "}'))[1]
    assert (problem.column, problem.length) == (30, 1)
    (problem,) = load_text(case('- expect: {seq: "SND.NXT\\x20+ "}'))[1]
    assert problem.column == 19
    (problem,) = load_text(case("- expect:\n    seq: >-\n      SND.NXT\n      +"))[1]
    assert (problem.line, problem.column) == (6, 12)
    (problem,) = load_text(case("- expect: {seq: SND.NXT\n    +}"))[1]
    assert (problem.line, problem.column) == (5, 19)


def test_a_long_line_is_shown_around_its_caret() -> None:
    text = str(Problem("x.yaml", 1, 301, "wrong", "a" * 300 + "b" + "c" * 300))
    assert len(text.splitlines()[1]) < 160
    shown, caret = text.splitlines()[1:]
    assert shown[caret.index("^")] == "b"


@pytest.mark.parametrize(
    ("word", "known", "found"),
    [("sned", ["send", "expect"], "send"), ("window_scale", ["window-scale"], "window-scale"), ("zzz", ["send"], None)],
)
def test_near_names(word: str, known: list[str], found: str | None) -> None:
    assert near(word, known) == found


def test_a_hundred_problems_are_enough() -> None:
    problems = load_text(case("\n".join(["- expect: {flag: FA}"] * 150)))[1]
    assert len(problems) == 101
    assert problems[-1].message == "50 more problems are not shown"


def test_odd_values_are_named_in_words() -> None:
    assert messages(top="given: 5") == ["given: expected a mapping, found the number 5"]
    assert messages(top="ip: true") == ["ip: expected one of 4, 6, both, found the boolean true"]
    assert messages("- send: {flags: null, window: 1}") == ["what is sent needs flags (or again: NAME, or icmp: …)"]
    assert messages("- send: {flags: A, window: 1.5}") == ["window: expected a whole number, found the number 1.5"]
    assert messages("- send: {flags: true}") == [
        "expected flags as letters of SFRPAUEC, such as FA, found the boolean true"
    ]
    assert messages("- expect: {seq: true}")[0].startswith("expected an expression")
    assert messages("- send: {flags: A, payload: true}")[0].startswith("expected text, a length")
    assert messages("- send: {flags: A, payload: {length: 3, pattern: ''}}") == [
        "a pattern is text of at least one character"
    ]
    assert messages("- silence: [1]") == ["expected a duration such as 500ms or timer.rto.min, found a list"]
    assert messages("- repeat: {times: 1, steps: [silence: now], gap: {is: ISS}}") == [
        "'ISS' is a number, and a duration is wanted here"
    ]
    assert messages("- call: {do: poll, events: in}") == ["events: expected a list, found the text 'in'"]
    assert messages(top="title: " + "x" * 201)[0].startswith("the key 'title' is already there")
    assert load_text(f"title: {'x' * 201}\ncovers: 9293-MUST-13\nsteps: [silence: now]\n")[1][0].message == (
        "title: at most 200 characters, found 201"
    )
    many = ", ".join(["{kind: 254}"] * 21)
    assert messages(f"- send: {{flags: A, options: {{unknown: [{many}]}}}}") == ["unknown: at most 20 items, found 21"]
    assert messages("- call: {do: 5}") == ["a call says what is done: call: close, or call: {do: recv, …}"]
    assert messages("- call: 5") == ["a call says what is done: call: close, or call: {do: recv, …}"]
    assert messages(top="tags: [a b]") == ["'a b' is no name: letters, digits, '_', and '-' before a letter"]
    assert messages(top="sysctl: {net.ipv4.x: [1]}\nrequires: linux") == [
        "net.ipv4.x: expected a whole number or text, found a list"
    ]
    assert messages(top="covers: []") == ["the key 'covers' is already there, in line 2"]
    assert load_text("title: An empty list of requirements\ncovers: []\nsteps: [silence: now]\n")[1][0].message == (
        "covers: at least 1 item, found 0"
    )


def test_a_matrix_of_many_wrong_rows_is_given_up() -> None:
    sixty = ", ".join(map(str, range(60)))
    top = f"matrix: {{axes: {{a: [{sixty}], b: [{sixty}]}}}}"
    with ends():
        assert messages('- expect: {flag: "${a}${b}"}', top) == ["unknown key 'flag' in expect"]


def test_head_is_a_case() -> None:
    assert HEAD in case()
