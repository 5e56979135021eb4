"""Templates and the matrix."""

from __future__ import annotations

from typing import Any

import pytest
from case_texts import HEAD, case, messages, rows
from hypothesis import given
from hypothesis import strategies as st

from conform.case.expand import slug
from conform.case.load import load_text


def steps_of(steps: str, top: str = "given: ESTABLISHED") -> list[list[Any]]:
    """Each row's steps, without their places."""
    return [[{k: v for k, v in step.items() if k != "@"} for step in row.document["steps"]] for row in rows(steps, top)]


def test_a_template_gives_what_is_not_written() -> None:
    top = "templates: {fin: {flags: FA, seq: RCV.NXT}}"
    assert steps_of("- send: {use: fin, seq: IRS}", top) == [[{"send": {"flags": "FA", "seq": "IRS"}}]]


def test_null_leaves_a_templates_field_out() -> None:
    top = "templates: {fin: {flags: FA, payload: abc}}"
    assert steps_of("- send: {use: fin, payload: null}", top) == [[{"send": {"flags": "FA"}}]]


def test_templates_of_templates_and_of_calls() -> None:
    top = "given: ESTABLISHED\ntemplates: {a: {do: recv, size: 5}, b: {use: a, timeout: 1s}}"
    steps = "- start: {use: b, as: x}\n- finish: {x: ok}\n- call: {use: a}"
    found = steps_of(steps, top)
    assert found[0][0] == {"start": {"do": "recv", "size": 5, "timeout": "1s", "as": "x"}}
    assert found[0][2] == {"call": {"do": "recv", "size": 5}}


def test_the_template_can_be_a_variable() -> None:
    top = "templates: {fin: {flags: FA}, ack: {flags: A}}\nmatrix: {axes: {what: [fin, ack]}}"
    assert steps_of('- send: {use: "${what}"}', top) == [[{"send": {"flags": "FA"}}], [{"send": {"flags": "A"}}]]


def test_values_keep_their_type() -> None:
    top = "matrix: {rows: [{id: a, n: 5, t: '5', b: true, l: [{kind: 254}]}]}"
    steps = (
        '- send: {flags: A, window: "${n}", payload: "${t}", options: {unknown: "${l}"}}\n'
        '- call: {do: socket, as: s}\n- call: {do: set-nonblocking, on: s, value: "${b}"}'
    )
    send, _, call = steps_of(steps, top)[0]
    assert send["send"] == {"flags": "A", "window": 5, "payload": "5", "options": {"unknown": [{"kind": 254}]}}
    assert call["call"]["value"] is True


def test_text_is_filled_in() -> None:
    top = "matrix: {rows: [{id: a, n: -1, h: 0x10, b: true}]}"
    steps = '- send: {flags: A, seq: "RCV.NXT + ${n} + ${h}", payload: "${b} and $${n}"}'
    assert steps_of(steps, top) == [
        [{"send": {"flags": "A", "seq": "RCV.NXT + -1 + 0x10", "payload": "true and ${n}"}}]
    ]


def test_a_list_is_spliced() -> None:
    top = "matrix: {rows: [{id: a, more: [{probe: alive}, {silence: now}]}, {id: b, more: []}]}"
    both = steps_of("- ${more}\n- state: CLOSED", top)
    assert both == [[{"probe": "alive"}, {"silence": "now"}, {"state": "CLOSED"}], [{"state": "CLOSED"}]]


def test_then_is_appended_where_nothing_says_where() -> None:
    top = "matrix: {rows: [{id: a, then: [{probe: alive}]}, {id: b}, {id: c, then: {silence: now}}]}"
    assert [len(steps) for steps in steps_of("- state: CLOSED", top)] == [2, 1, 2]
    assert steps_of("- one_of:\n    - {name: a, steps: ['${then}']}\n    - {name: b, steps: [silence: now]}", THEN)


THEN = "matrix: {rows: [{id: a, then: [{state: CLOSED}]}]}"


def test_rows_alone_can_bring_the_steps() -> None:
    found, problems = load_text(HEAD + "matrix: {rows: [{id: a, then: [{probe: alive}]}]}\n")
    assert not problems
    assert [step["probe"] for step in found[0].document["steps"]] == ["alive"]


def test_values_refer_to_other_variables_of_their_row() -> None:
    top = 'matrix: {axes: {s: [CLOSED, LISTEN]}, rows: [{id: a, then: [{state: {is: "${s}", conn: listener}}]}]}'
    assert [steps[-1]["state"]["is"] for steps in steps_of("- silence: now", top)] == ["CLOSED", "LISTEN"]


def test_null_is_unsaid() -> None:
    top = "matrix: {rows: [{id: a, w: 5}, {id: b, w: null}]}"
    first, second = steps_of('- send: {flags: A, window: "${w}"}', top)
    assert first[0]["send"] == {"flags": "A", "window": 5}
    assert second[0]["send"] == {"flags": "A"}


def test_product_ids_and_exceptions() -> None:
    top = (
        "given: {state: '${state}', role: '${role}'}\n"
        "matrix:\n  axes: {state: [ESTABLISHED, CLOSE-WAIT, LISTEN], role: [passive, active]}\n"
        "  rows: [{delta: -1}, {id: exact, delta: 0}, {delta: 1, id: Next}]\n"
        "  except:\n    - {state: LISTEN, role: active, why: no way}\n"
        "    - {state: [CLOSE-WAIT], delta: [1, -1], why: dull}"
    )
    assert [row.id for row in rows('- send: {flags: A, seq: "RCV.NXT + ${delta}"}', top)] == [
        "ESTABLISHED.passive.-1", "ESTABLISHED.passive.exact", "ESTABLISHED.passive.Next",
        "ESTABLISHED.active.-1", "ESTABLISHED.active.exact", "ESTABLISHED.active.Next",
        "CLOSE-WAIT.passive.exact", "CLOSE-WAIT.active.exact",
        "LISTEN.passive.-1", "LISTEN.passive.exact", "LISTEN.passive.Next",
    ]  # fmt: skip


def test_a_problem_of_a_value_is_where_the_value_is_written() -> None:
    text = case('- send: {flags: "${f}"}', "given: ESTABLISHED\nmatrix:\n  axes:\n    f: [A, X]")
    _, (problem,) = load_text(text)
    assert (problem.line, problem.column) == (6, 12)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ("5", "matrix is a mapping with axes, rows or both"),
        ("{}", "a matrix has axes, rows or both"),
        ("{axes: {f: A}}", "the axis 'f' needs a list of at least one value"),
        ("{axes: {f: []}}", "the axis 'f' needs a list of at least one value"),
        ('{axes: {f: [A, "${g}"]}}', "a value of an axis cannot refer to a variable"),
        ("{axes: {id: [A]}}", "'id' cannot be a variable: a name is letters, digits, '_', and '-' before a letter"),
        ("{axes: {1f: [A]}}", "'1f' cannot be a variable: a name is letters, digits, '_', and '-' before a letter"),
        ("{rows: []}", "rows is a list of at least one mapping: rows: [{id: first, delta: 0}, …]"),
        ("{rows: [A]}", "a row is a mapping of variables to values"),
        ("{axes: {f: [A]}, except: {}}", "except is a list: except: [{state: LISTEN, why: …}]"),
        ("{axes: {f: [A]}, except: [A]}", "an exception is a mapping: {state: LISTEN, why: …}"),
        ("{axes: {f: [A]}, except: [{why: so}]}", "an exception says which rows: {NAME: VALUE, why: …}"),
        ("{rows: [{f: A}, {f: FA, g: 1}], except: [{g: 2, why: so}]}", "this exception excludes no row"),
        ("{rows: [{f: A, id: [1]}]}", "a row's id has 1 to 100 letters, digits, and any of '._+-'"),
        ("{rows: [{f: %s}]}" % ("A" * 101), f"the row's id is longer than 100 characters: {'A' * 40}…"),
        ("{axes: {f: [A, a]}}", "the ids 'A' and 'a' differ only in case"),
        ("{axes: {f: [A B, A/B]}}", "two rows have the id 'A_B'"),
    ],
)
def test_wrong_matrices(matrix: str, message: str) -> None:
    assert message in messages('- send: {flags: "${f}"}', f"matrix: {matrix}")


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        ("5", "templates is a mapping of names to fields: templates: {NAME: {flags: A, …}}"),
        ("{1a: {flags: A}}", "'1a' is no name: letters, digits, '_', and '-' before a letter"),
        ("{a: {flags: A, use: 5}}", "use names one template"),
    ],
)
def test_wrong_templates(templates: str, message: str) -> None:
    assert message in messages("- send: {use: a}", f"templates: {templates}")


def test_nothing_cannot_stand_in_a_text() -> None:
    top = "matrix: {rows: [{id: a, f: null}, {id: b, f: {a: 1}}]}"
    assert messages('- send: {flags: "F${f}"}', top) == ["${f} is nothing and cannot stand inside a text"]
    assert messages('- send: {flags: "F${f}"}', "matrix: {rows: [{id: b, f: {a: 1}}]}") == [
        "${f} is a mapping and cannot stand inside a text"
    ]


def test_steps_that_are_no_list_get_no_then() -> None:
    assert "steps: expected a list, found the text 'x'" in load_all(f"{HEAD}{THEN}\nsteps: x\n")


def load_all(text: str) -> list[str]:
    return [problem.message for problem in load_text(text)[1]]


@given(st.text(max_size=40))
def test_ids_are_fit_for_file_names(text: str) -> None:
    made = slug(text)
    assert made
    assert not set(made) - set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._+-")
    assert made not in (".", "..")


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("RCV.NXT + 1", "RCV.NXT+1"),
        ("a b/c", "a_b_c"),
        ("-1", "-1"),
        ("", "empty"),
        ("1..5", "1..5"),
        ("1...5", "1..5"),
    ],
)
def test_ids_are_readable(text: str, made: str) -> None:
    assert slug(text) == made
