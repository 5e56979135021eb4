"""The ladder of a trial: what happened, in order, with what the case says of it."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest

from conform.report.ladder import Row, given_words, kind_of, ladder, planned_ladder, relative, step_at, yaml_line
from conform.report.text import terminal_ladder

GOLDEN = Path(__file__).parent / "golden_reports"


def sample() -> tuple[dict[str, Any], dict[str, dict[str, Any]], dict[str, Any]]:
    """The sample run: its header, its trials by id, its end."""
    lines = [json.loads(line) for line in (GOLDEN / "sample-run.jsonl").read_text("utf-8").splitlines()]
    return lines[0], {line["id"]: line for line in lines if line["kind"] == "trial"}, lines[-1]


def golden(name: str, text: str) -> None:
    """*text* is what the file of that name holds. ``UPDATE_GOLDEN=1`` writes it."""
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, "utf-8")
    assert text == path.read_text("utf-8")


HEADER, TRIALS, END = sample()


def drawn(rows: list[Row]) -> str:
    return "\n".join(line.plain.rstrip() for line in terminal_ladder(rows, plain=True)) + "\n"


def test_the_ladders_of_all_trials() -> None:
    golden("ladders.txt", "\n".join(f"{name}\n{drawn(ladder(line))}" for name, line in TRIALS.items()))


def test_what_a_dead_stack_printed_is_not_drawn() -> None:
    line = json.loads(json.dumps(TRIALS["close/broken.v4"]))
    (entry,) = [entry for entry in line["transcript"] if entry.get("e") == "broke"]
    entry |= {"e": "died", "reason": "the stack died: killed by SIGSEGV\nIt printed last:\n  oh"}
    assert "the stack died: killed by SIGSEGV" in drawn(ladder(line))
    assert "It printed last" not in drawn(ladder(line))


def test_the_ladder_of_a_case_that_has_not_run() -> None:
    cases = {line["case"]: line["document"] for line in TRIALS.values()}
    golden("planned.txt", "\n".join(f"{name}\n{drawn(planned_ladder(document))}" for name, document in cases.items()))


def test_a_failing_row_says_what_was_expected_field_by_field() -> None:
    row = next(row for row in ladder(TRIALS["close/fin-not-counted.v4"]) if row.mark == "failed")
    assert row.trouble is not None
    fields = [(f.name, f.expected, f.actual, f.right) for f in row.trouble.fields]
    assert fields == [
        ("flags", "A", "A", True),
        ("seq", "fin.end = ISS+2", "ISS+2", True),
        ("ack", "RCV.NXT = IRS+2", "IRS+1", False),
    ]
    assert row.trouble.arithmetic == ("ack IRS+1, want RCV.NXT = IRS+2, short by 1: FIN not counted",)
    assert row.place == (15, 5)
    assert "seq 1002" in row.exact


def test_the_ladder_follows_the_packet() -> None:
    line = copy.deepcopy(TRIALS["close/active-close.v4"])
    arrival = next(e for e in line["transcript"] if e.get("e") == "arrived" and e["packet"]["flags"] == "FA")
    before = [row.text for row in ladder(line)]
    arrival["packet"]["seq"] += 5
    after = [row.text for row in ladder(line)]
    assert "FA seq=ISS+6 ack=IRS+1 win=64240" in after
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 1


def test_steps_that_were_never_reached_are_shown_as_such() -> None:
    rows = ladder(TRIALS["close/unreached.v4"])
    unreached = [row.step for row in rows if row.mark == "unreached"]
    assert unreached == ["recipe[5]", "recipe[6]", *(f"steps[{n}]" for n in range(8))]
    assert [row.step for row in rows if row.mark == "failed"] == ["recipe[4]"]
    assert not any(row.mark for row in ladder(TRIALS["close/active-close.v4"]))


def test_each_step_is_said_once() -> None:
    for line in TRIALS.values():
        said = [row.step for row in ladder(line) if row.yaml]
        assert len(said) == len(set(said))


def test_a_segment_that_nothing_expects_stands_where_it_came() -> None:
    row = next(row for row in ladder(TRIALS["close/unexpected-segment.v4"]) if row.mark == "failed")
    assert (row.kind, row.text, row.note) == (
        "recv",
        "A seq=ISS+2 ack=IRS+1 win=64240",
        "silence was due after steps[0]",
    )


def test_what_did_not_come_has_a_row() -> None:
    row = next(row for row in ladder(TRIALS["close/timeout.v4"]) if row.mark == "failed")
    assert row.kind == "missing"
    assert row.yaml.startswith("expect: {flags: FA")


def test_a_state_that_the_wire_does_not_imply_shows_both() -> None:
    line = copy.deepcopy(TRIALS["close/active-close.v4"])
    note = next(e for e in line["transcript"] if e.get("n") == "state")
    note["inferred"] = ["CLOSE-WAIT", "LAST-ACK"]
    row = next(row for row in ladder(line) if row.kind == "state")
    assert (row.state, row.inferred) == ("FIN-WAIT-1", "CLOSE-WAIT or LAST-ACK")
    assert "the wire implies CLOSE-WAIT or LAST-ACK" in drawn([row])


def test_connections_are_named_where_there_are_several() -> None:
    assert {row.conn for row in ladder(TRIALS["data/two-connections.v4"]) if row.kind in ("send", "recv")} == {
        "c1",
        "c2",
    }
    assert {row.conn for row in ladder(TRIALS["close/active-close.v4"])} == {""}


def test_an_attempt_before_the_last_has_a_ladder_of_its_own() -> None:
    line = TRIALS["close/flaky.v4"]
    assert not any(row.trouble for row in ladder(line))
    assert any(row.trouble for row in ladder(line, line["earlier"][0]))


@pytest.mark.parametrize("mark", ["noise", "late", "unread"])
def test_what_was_passed_over_is_marked(mark: str) -> None:
    line = copy.deepcopy(TRIALS["close/active-close.v4"])
    transcript = line["transcript"]
    at = next(i for i, e in enumerate(transcript) if e.get("n") == "matched" and e["step"] == "steps[1]")
    of = transcript[at]["of"]
    notes = {
        "noise": {"t": 0.0, "n": "noise", "of": of, "name": "retransmission"},
        "late": {"t": 0.0, "n": "late", "of": of, "step": "steps[0]"},
        "unread": {"t": 0.0, "n": "silent", "step": "steps[1]"},
    }
    transcript[at] = notes[mark]
    rows = [row for row in ladder(line) if row.kind == "recv" and row.mark]
    assert [row.mark for row in rows] == [mark]
    assert rows[0].note


@pytest.mark.parametrize(
    ("number", "base", "text"),
    [
        (1001, 1000, "ISS+1"), (1000, 1000, "ISS"), (0, 0xFFFFFFFF, "ISS+1"), (0xFFFFFFFF, 0, "ISS-1"),
        (5, None, "5"), (0x1234, 3_000_000_000, "4660"), (0x90001234, 0x10001234, "ISS-2147483648"),
    ],
)  # fmt: skip
def test_sequence_numbers_count_from_the_isn(number: int, base: int | None, text: str) -> None:
    assert relative(number, base, "ISS") == text


STEPS: dict[str, Any] = {
    "steps": [
        {"call": "close"},
        {
            "one_of": [
                {"name": "rst", "steps": [{"expect": {"flags": "R"}}]},
                {"name": "b", "steps": [{"silence": "now"}]},
            ]
        },
        {"any_order": [{"expect": {"flags": "A"}}, {"expect": {"flags": "FA"}}]},
        {"optional": {"expect": {"flags": "PA"}}},
        {"repeat": {"times": 3, "at-least": 1, "steps": [{"expect": {"flags": "SA"}}], "gap": {"is": "2 * previous"}}},
    ]
}


@pytest.mark.parametrize(
    ("path", "yaml"),
    [
        ("steps[0]", "call: close"),
        ("steps[1]", "one_of: rst | b"),
        ("steps[1].one_of.rst[0]", "expect: {flags: R}"),
        ("steps[1].one_of.b[0]", "silence: now"),
        ("steps[2].any_order[1]", "expect: {flags: FA}"),
        ("steps[3].optional[0]", "expect: {flags: PA}"),
        ("steps[4]", "repeat: times: 3, at-least: 1, gap: {is: 2 * previous}"),
        ("steps[4].repeat[2][0]", "expect: {flags: SA}"),
    ],
)
def test_a_path_leads_to_its_step(path: str, yaml: str) -> None:
    step = step_at(STEPS, path)
    assert step is not None
    assert yaml_line(step) == yaml


@pytest.mark.parametrize("path", ["end", "start", "steps[9]", "steps[1].one_of.none[0]", "steps", "", "recipe[0]"])
def test_a_path_that_leads_nowhere(path: str) -> None:
    assert step_at(STEPS, path) is None


def test_what_yaml_would_read_otherwise_is_quoted_and_what_is_long_is_cut() -> None:
    assert (
        yaml_line({"@": [1, 1], "send": {"payload": 'a"b: }', "flags": "S"}}) == r'send: {payload: "a\"b: }", flags: S}'
    )
    assert len(yaml_line({"send": {"payload": "x" * 500}})) == 110
    assert kind_of({"@": [1, 1], "why": "x"}) == ""


def test_what_is_given() -> None:
    assert given_words({"given": "LISTEN"}) == "given LISTEN"
    assert given_words({"given": {"state": "ESTABLISHED", "role": "active", "accepted": False}}) == (
        "given ESTABLISHED (role active, accepted false)"
    )
    assert given_words({}) == "given CLOSED"


def test_a_transcript_that_cannot_be_drawn_says_so() -> None:
    line = copy.deepcopy(TRIALS["close/timeout.v4"])
    for entry in line["transcript"]:
        entry.pop("packet", None)
    rows = ladder(line)
    assert [row.mark for row in rows] == ["broken"]
    assert rows[0].text == "the transcript cannot be drawn: KeyError: 'packet'"
