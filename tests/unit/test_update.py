"""``conform expect update``: what a run found goes into the list, and nothing else changes by an octet."""

from __future__ import annotations

import difflib
import json
import os
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from run_files import failed, invoke, line, other, passed, write

from conform.case.source import Problem
from conform.engine.verdict import Verdict
from conform.run import proof, update
from conform.run.expectations import UNREASONED, Deviation, Expectations, classify, parse, schema
from conform.run.fold import base
from conform.run.runfile import NAME, Reader
from conform.run.update import Seen, Update, UpdateError

NOTHING = failed("nothing came within 1.00 s")
LATER = failed("nothing came within 1.02 s")
RESET = failed("flags R, want A (A missing, R too many)", "R seq=5 (ISS+1)")
SENT = failed("the stack sent A seq=7 ack=8, which nothing expects", "A seq=7 ack=8 (ISS+1, acks IRS+2)", "silence")
NAMED = Path("cases/expectations/linux.yaml")

LIST = """\
# The head of the list.

# About a -------------
- trials: [a/one.*, a/two.X.*]   # both
  message: nothing came
  # Inside.
  reason: It was always so.
  rfc: RFC 9293 section 3.10.7.4

  packets: "T: R / S: nothing; want A"  # seen on a Tuesday

# About b -------------
-   trials:
      - b/one.X.*
      # between
      - b/one.Y.*   # this too
    reason: >-
      Folded, on
      two lines.
    rfc: 'RFC 5961'
    packets: |
      T: R
      S: nothing
    message: 'flags R'
# The end.
"""


def survey(*lines: dict[str, Any]) -> dict[str, Seen]:
    seen: dict[str, Seen] = {}
    for each in lines:
        of = seen.setdefault(base(each["id"]), Seen(packets="p"))
        earlier = tuple(Verdict.from_json(e["verdict"]) for e in each.get("earlier", ()))
        of.verdicts.append((Verdict.from_json(each["verdict"]), earlier))
        if each["verdict"]["failure"]:
            of.packets = proof.packets(each)
    return seen


def updated(text: str, *lines: dict[str, Any], **more: Any) -> Update:
    done = update.update(text, NAMED, survey(*lines), **more)
    assert isinstance(done, Update), done
    return done


#: A run by which LIST holds as it is.
HOLDS = {
    **{f"a/one.v{v}": NOTHING for v in (4, 6)}, **{f"a/two.X.v{v}": LATER for v in (4, 6)},
    **{f"a/two.Y.v{v}": passed() for v in (4, 6)}, **{f"b/one.{row}.v{v}": RESET for row in "XY" for v in (4, 6)},
    **{f"b/one.Z.v{v}": passed() for v in (4, 6)},
}  # fmt: skip


def run(**changes: dict[str, Any]) -> list[dict[str, Any]]:
    return [line(name, verdict) for name, verdict in {**HOLDS, **changes}.items() if verdict]


def changed(before: str, after: str) -> list[str]:
    """The lines that went, and those that came."""
    return [each for each in difflib.ndiff(before.splitlines(), after.splitlines()) if each[0] in "+-"]


def test_a_list_that_holds_is_left_alone() -> None:
    done = updated(LIST, *run())
    assert done.text == LIST
    assert (done.added, done.removed, done.narrowed, done.left, done.waiting, done.exit) == ([], [], [], [], [], 0)


def test_a_new_failure_is_an_entry_at_the_end() -> None:
    done = updated(LIST, *run(**{"a/two.Y.v4": SENT, "a/two.Y.v6": SENT}))
    assert done.text.startswith(LIST)
    assert (
        done.text[len(LIST) :]
        == """
- trials: a/two.Y.*
  message: the stack sent A
  requirement: 9293-3.10.7.4-seq-edge-past-window
  reason:
  rfc: RFC 9293 section 3.10.7.4
  packets: "T: R seq=RCV.NXT+RCV.WND / S: A seq=ISS+1 ack=IRS+2; want silence"
"""
    )
    assert done.exit == 1
    assert [entry.line for entry in done.waiting] == [27]


def test_it_is_refused_until_it_has_a_reason() -> None:
    text = updated(LIST, *run(**{"a/two.Y.v4": SENT})).text
    (problem,) = parse(text, NAMED).problems
    told = str(problem)
    assert told.startswith("cases/expectations/linux.yaml:30:10: no reason is given: write why")
    assert told.endswith("\n   30 |   reason:\n      |          ^")
    mended = text.replace("  reason:\n", "  reason: Because.\n")
    assert not parse(mended, NAMED).problems


def test_a_reason_that_is_given_is_written() -> None:
    done = updated(LIST, *run(**{"a/two.Y.v4": SENT}), ask=lambda entry: f"Because: of\n {entry.trials[0]}")
    assert '  reason: "Because: of a/two.Y.v4"\n' in done.text
    assert done.exit == 0
    assert not parse(done.text, NAMED).problems


def test_a_long_reason_is_folded() -> None:
    words = " ".join(["word"] * 60)
    done = updated("", line("x/y.v4", NOTHING), ask=lambda entry: words)
    assert "  reason: >-\n    word word" in done.text
    assert max(map(len, done.text.splitlines())) <= 120
    assert parse(done.text, NAMED).deviations[0].reason == words


@pytest.mark.parametrize("empty", ["reason:", "reason: ''", "reason: ~", "reason:   # not known"])
def test_an_entry_that_waits_gets_its_reason_later(empty: str) -> None:
    text = LIST.replace("reason: It was always so.", empty)
    assert updated(text, *run()).text == text
    done = updated(text, *run(), ask=lambda entry: "Now: it is known.")
    assert parse(done.text, NAMED).deviations[0].reason == "Now: it is known."
    assert ("# not known" in done.text) == ("#" in empty)
    assert [len(done.filled), len(done.waiting), done.exit] == [1, 0, 0]
    assert len(changed(text, done.text)) == 2


def test_an_entry_whose_trials_pass_is_taken_out_and_no_comment_with_it() -> None:
    gone = updated(LIST, *run(**{name: passed() for name in HOLDS if name.startswith("b/")})).text
    assert gone == LIST[: LIST.index("-   trials")] + "# The end.\n"
    gone = updated(LIST, *run(**{name: passed() for name in HOLDS if name.startswith("a/")})).text
    assert gone == LIST[: LIST.index("- trials")] + LIST[LIST.index("\n# About b") :]


def test_an_entry_that_holds_of_some_trials_is_narrowed() -> None:
    done = updated(LIST, *run(**{"a/two.X.v4": passed()}))
    assert changed(LIST, done.text) == [
        "- - trials: [a/one.*, a/two.X.*]   # both", "+ - trials: [a/one.*, a/two.X.v6]   # both",
    ]  # fmt: skip
    done = updated(LIST, *run(**{f"a/one.v{v}": passed() for v in (4, 6)}))
    assert changed(LIST, done.text) == [
        "- - trials: [a/one.*, a/two.X.*]   # both", "+ - trials: [a/two.X.*]   # both",
    ]  # fmt: skip
    done = updated(LIST, *run(**{f"b/one.Y.v{v}": passed() for v in (4, 6)}))
    assert changed(LIST, done.text) == ["-       - b/one.Y.*   # this too"]
    done = updated(LIST, *run(**{"b/one.X.v6": passed()}))
    assert changed(LIST, done.text) == ["-       - b/one.X.*", "+       - b/one.X.v4"]


def test_a_single_glob_may_become_several() -> None:
    text = "- {trials: a/*, message: nothing, reason: r, rfc: RFC 1, packets: p} # one\n"
    lines = [line(f"a/{name}.v4", NOTHING) for name in "bcd"] + [line("a/e.v4", passed())]
    assert updated(text, *lines).text == text.replace("a/*", "[a/b.v4, a/c.v4, a/d.v4]")


def test_a_block_item_may_become_several() -> None:
    text = "- trials:\n    - a/*  # all\n  message: nothing\n  reason: r\n  rfc: RFC 1\n  packets: p\n"
    lines = [line(f"a/{name}.v4", NOTHING) for name in "bc"] + [line("a/e.v4", passed())]
    assert updated(text, *lines).text == text.replace("    - a/*", "    - a/b.v4\n    - a/c.v4")


#: An entry whose patterns stand in brackets, over lines.
BRACKETS = """\
- trials: [
    a/one.*,    # always
    a/two.X.*, a/two.Y.*,
    # the last
    b/one.*     # no comma
  ]
  message: nothing came
  reason: r
  rfc: x
  packets: p
"""


@pytest.mark.parametrize(
    ("passing", "changes"),
    [
        (["b/one"], ["-     a/two.X.*, a/two.Y.*,", "+     a/two.X.*, a/two.Y.*",
                     "-     b/one.*     # no comma", "+          # no comma"]),
        (["a/two.X"], ["-     a/two.X.*, a/two.Y.*,", "+     a/two.Y.*,"]),
        (["a/two.Y"], ["-     a/two.X.*, a/two.Y.*,", "+     a/two.X.*,"]),
        (["a/two.X", "a/two.Y"], ["-     a/two.X.*, a/two.Y.*,"]),
        (["a/two.Y", "b/one"], ["-     a/two.X.*, a/two.Y.*,", "+     a/two.X.*",
                                "-     b/one.*     # no comma", "+          # no comma"]),
        (["a/one"], ["-     a/one.*,    # always", "+         # always"]),
        (["a/one", "a/two.X", "a/two.Y"], ["-     a/one.*,    # always", "+         # always",
                                           "-     a/two.X.*, a/two.Y.*,"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_patterns_in_brackets_over_lines(passing: list[str], changes: list[str], newline: str) -> None:
    trials = [f"{of}.v{v}" for of in ("a/one", "a/two.X", "a/two.Y", "b/one") for v in (4, 6)]
    lines = [line(each, passed() if each.startswith(tuple(passing)) else NOTHING) for each in trials]
    before = BRACKETS.replace("\n", newline)
    done = updated(before, *lines)
    assert sorted(changed(BRACKETS, done.text.replace("\r\n", "\n"))) == sorted(changes)
    assert done.text.count("\n") == done.text.count(newline)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("[a/b.*, a/c.*]", "[a/c.*]"),
        ("[ a/c.*, a/b.* ]", "[ a/c.* ]"),
        ("[a/c.*, a/b.*, a/e.*,]", "[a/c.*, a/e.*,]"),
        ("[a/c.*, a/b.*,]", "[a/c.*,]"),
        ('[ "a/b.*" ,a/c.*]', "[ a/c.*]"),
    ],
)
def test_patterns_in_brackets_on_one_line(before: str, after: str) -> None:
    text = "- trials: {}\n  message: nothing\n  reason: r\n  rfc: x\n  packets: p\n"
    done = updated(text.format(before), line("a/b.v4", passed()), line("a/c.v4", NOTHING), universe=["a/e.v4"])
    assert done.text == text.format(after)


def test_a_pattern_of_its_own_lines() -> None:
    text = "- trials:\n    - >-\n      a/b.*\n    - >-\n      a/c.*\n    - a/e.*\n"
    text += "  message: nothing\n  reason: r\n  rfc: x\n  packets: p\n"
    lines = [line("a/b.v4", passed()), line("a/c.v4", passed()), line("a/c.v6", NOTHING)]
    done = updated(text, *lines, universe=["a/e.v4"])
    assert done.text == text.replace("    - >-\n      a/b.*\n", "").replace(">-\n      a/c.*", "a/c.v6")


def test_what_was_not_run_is_not_lost_by_an_edit(monkeypatch: pytest.MonkeyPatch) -> None:
    work = update._Work
    monkeypatch.setattr(work, "_line_end", lambda self, index: self.text.find("\n", index + 1) + 1)
    monkeypatch.setattr(work, "_extent", lambda self, node: (node.start_mark.index, node.end_mark.index + 1))
    text = "- trials:\n    - a/b.*\n    - a/e.*\n    - a/c.*\n  message: nothing\n  reason: r\n  rfc: x\n  packets: p\n"
    with pytest.raises(UpdateError, match="an entry that holds would change"):
        updated(text, line("a/b.v4", passed()), line("a/c.v4", NOTHING), universe=["a/e.v4"])


def test_a_list_that_ends_in_dots_gets_its_entries_before_them() -> None:
    text = "---\n- {trials: a/c.*, message: nothing, reason: r, rfc: x, packets: p}\n...\n# The end.\n"
    done = updated(text, line("a/b.v4", NOTHING), line("a/c.v4", NOTHING), ask=lambda entry: "s")
    assert done.text.startswith(text[: text.index("...")] + "\n- trials: a/b.v4\n")
    assert done.text.endswith('length=0"\n...\n# The end.\n')
    assert updated(text, line("a/c.v4", passed()), line("a/b.v4", NOTHING)).text.count("trials") == 1


def test_a_trial_that_fails_in_another_way_leaves_its_entry_for_a_new_one() -> None:
    done = updated(LIST, *run(**{"a/two.X.v4": RESET}))
    assert "[a/one.*, a/two.X.v6]" in done.text
    assert [entry.trials for entry, _ in done.added] == [("a/two.X.v4",)]
    assert done.text.endswith('want A seq=SND.NXT (ISS+1) ack=RCV.NXT (IRS+1) length=0"\n')


def test_an_entry_of_which_nothing_holds_is_replaced() -> None:
    done = updated(LIST, *run(**{name: SENT for name in HOLDS if name.startswith("b/one.") and ".Z." not in name}))
    assert [entry.reason for entry in done.removed] == ["Folded, on two lines."]
    assert [entry.trials for entry, _ in done.added] == [("b/one.X.*", "b/one.Y.*")]


def test_another_entry_that_is_right_about_it_is_taken() -> None:
    text = LIST + "- {trials: b/one.X.*, message: nothing came, reason: r, rfc: RFC 1, packets: p}\n"
    done = updated(text, *run(**{"b/one.X.v4": NOTHING}))
    assert changed(text, done.text) == ["-       - b/one.X.*", "+       - b/one.X.v6"]


def test_what_an_entry_before_is_right_about_keeps_no_other() -> None:
    text = "- {trials: a/b.*, message: nothing, reason: r, rfc: x, packets: p}\n"
    both = text + text.replace("a/b.*", "[a/b.*, a/c.*]")
    assert updated(both, line("a/b.v4", NOTHING), line("a/c.v4", passed())).text == text


def test_an_entry_ends_with_its_last_value() -> None:
    text = "# Head.\n- trials: a/b.*\n  reason: r\n  rfc: x\n  message: m\n  packets: |\n    T: R\n\n\n# Tail.\n"
    assert updated(text, line("a/b.v4", passed())).text == "# Head.\n\n\n# Tail.\n"


@pytest.mark.parametrize(
    ("verdict", "why"),
    [
        (other("error", "the agent died"), "conform failed: the agent died; that is never written as expected"),
        (other("inconclusive", "late"), "inconclusive: late; that is never written as expected"),
    ],
)
def test_what_has_no_verdict_is_never_expected(verdict: dict[str, Any], why: str) -> None:
    done = updated(LIST, *run(**{"a/two.Y.v4": verdict, "a/one.v4": verdict}))
    assert done.text == LIST
    assert done.left == [("a/one.v4", why), ("a/two.Y.v4", why)]
    assert done.exit == 1


def test_a_precondition_that_is_never_reached_gets_an_entry() -> None:
    never = NOTHING | {"outcome": "inconclusive", "level": None, "requirements": []}
    done = updated(LIST, *run(**{"a/two.Y.v4": never}))
    assert [(entry.trials, entry.message) for entry, _ in done.added] == [(("a/two.Y.v4",), "nothing came")]
    assert not done.left
    again = updated(done.text, *run(**{"a/two.Y.v4": never}), ask=lambda entry: "Why not.")
    assert (again.added, again.removed, again.left) == ([], [], [])
    assert updated(again.text, *run()).removed
    done = updated(LIST, *run(**{"a/two.Y.v4": never | {"late": True, "reason": "a slow loop"}}))
    assert done.left == [("a/two.Y.v4", "inconclusive: a slow loop; that is never written as expected")]


@pytest.mark.parametrize(
    "lines",
    [
        [line("a/two.Y.v4#1", NOTHING), line("a/two.Y.v4#2", passed())],
        [line("a/two.Y.v4", passed(), earlier=[{"attempt": 1, "verdict": NOTHING}])],
        [line("a/two.Y.v4#1", NOTHING), line("a/two.Y.v4#2", RESET)],
    ],
)
def test_what_is_not_always_so_is_never_expected(lines: list[dict[str, Any]]) -> None:
    done = updated(LIST, *run(**{"a/two.Y.v4": {}}), *lines)
    assert done.text == LIST
    assert [trial for trial, _ in done.left] == ["a/two.Y.v4"]


def test_a_loop_that_was_late_once_is_no_failure(tmp_path: Path) -> None:
    late = other("inconclusive", "x") | {"late": True}
    path = write(tmp_path / "r", [line("a/b.v4", passed(), earlier=[{"attempt": 1, "verdict": late}])])
    done = update.update(LIST, NAMED, update.survey(Reader(path)))
    assert isinstance(done, Update)
    assert not done.left


def test_an_entry_explains_the_attempts_before_as_well() -> None:
    first = failed("nothing came within 1.00 s", requirements=["b", "c"])
    last = failed("nothing came within 1.00 s", requirements=["a", "b"])
    done = updated("", line("a/b.v4", last, earlier=[{"attempt": 1, "verdict": first}]))
    assert [entry.requirement for entry, _ in done.added] == ["b"]


def test_what_was_not_run_is_neither_claimed_nor_given_up() -> None:
    universe = [*HOLDS, "a/three.X.v4", "a/three.X.v6", "a/three.Y.v4"]
    done = updated("", line("a/three.X.v4", NOTHING), universe=universe)
    assert [entry.trials for entry, _ in done.added] == [("a/three.X.v4",)]
    done = updated(LIST, line("a/one.v4", passed()), line("a/two.X.v4", passed()), universe=universe)
    assert "[a/one.v6, a/two.X.v6]" in done.text


def test_what_does_not_apply_keeps_no_entry() -> None:
    changes = {"a/one.v4": passed(), "a/one.v6": other("not-applicable", "no IPv6")}
    assert "trials: [a/two.X.*]" in updated(LIST, *run(**changes)).text
    assert updated(LIST, *run(**{f"a/one.v{v}": other("not-applicable", "no") for v in (4, 6)})).text == LIST


def test_the_gate_says_what_is_unexpected() -> None:
    may = failed("nothing came within 1 s", level="may")
    assert updated("", line("a/b.v4", may), gate="should").text == ""
    assert updated("", line("a/b.v4", may), gate="all").added


def test_what_chance_does_is_neither_written_nor_taken_out() -> None:
    listed = (
        LIST + '\n- trials: "*"\n  sporadic: true\n  message: its checksum is 0xffff\n  reason: A carry is lost.\n'
        '  rfc: RFC 1071\n  packets: "S: SA"\n'
    )
    chance = failed("its checksum is 0xffff, which is wrong")
    assert updated(listed, *run()).text == listed
    for trial in ("a/one.v4", "a/two.Y.v4"):  # with a steady entry, and without
        done = updated(listed, *run(**{trial: chance}))
        assert (done.text, done.left) == (listed, [])
    done = updated(listed, *run(**{"a/two.Y.v4": {}}), line("a/two.Y.v4#1", chance), line("a/two.Y.v4#2", passed()))
    assert (done.text, done.left) == (listed, [])
    done = updated(listed, *run(**{"a/one.v6": chance, "a/one.v4": passed()}))  # v6 was not seen to pass
    assert "trials: [a/one.v6, a/two.X.*]" in done.text
    done = updated(listed, *run(**{"a/two.Y.v4": RESET}))
    assert [entry.message for entry, _ in done.added] == ["flags R, want A (A missing, R too many)"]


def test_what_chance_does_hides_no_attempt_that_nothing_explains() -> None:
    listed = '- {trials: "*", sporadic: true, message: checksum, reason: r, rfc: x, packets: p}\n'
    chance, before = failed("its checksum is wrong"), [{"attempt": 1, "verdict": RESET}]
    done = updated(listed, line("a/b.v4", chance, earlier=before))
    assert done.left == [("a/b.v4", "it fails, and not always in the same way; that is never written as expected")]
    assert not updated(listed, line("a/b.v4", chance, earlier=[{"attempt": 1, "verdict": chance}])).left
    never = chance | {"outcome": "inconclusive", "level": None, "requirements": []}
    assert [entry.trials for entry, _ in updated(listed, line("a/b.v4", never)).added] == [("a/b.v4",)]


def test_what_another_list_is_wrong_about_is_left() -> None:
    entry = Deviation(("a/b.*",), "r", "x", "p", "nothing", Path("other.yaml"), 7)
    others = Expectations((entry,))
    for verdict in (RESET, passed()):
        done = updated("", line("a/b.v4", verdict), others=others)
        told = "it did not go as listed, and other.yaml:7, an entry of another list, covers it"
        assert (done.text, done.left, done.exit) == ("", [("a/b.v4", told)], 1)
    (left,) = updated("", line("a/b.v4", other("error", "x")), others=others).left
    assert left[1].startswith("conform failed: x")
    # The list that came first is the one that counted.
    own = "- {trials: a/b.*, message: flags, reason: r, rfc: x, packets: p}\n"
    assert not updated(own, line("a/b.v4", RESET), others=others).left
    assert updated(own, line("a/b.v4", RESET), ahead=others).left
    assert not updated(own, line("a/b.v4", NOTHING), ahead=others).left


def test_an_entry_that_matches_no_trial_is_taken_out_where_the_run_said_so() -> None:
    listed = LIST + "- {trials: [a/Gone.*, c/*], message: m, reason: r, rfc: x, packets: p}\n"
    told = "cases/expectations/linux.yaml:26:1: no trial matches a/gone.*, c/*: the entry is out of date\n   26 | \n"
    assert updated(listed, *run()).text == listed
    done = updated(listed, *run(), stale=[told])
    assert (done.text, len(done.stale), done.removed, done.exit) == (LIST, 1, [], 0)
    assert updated(listed, *run(), stale=[told], universe=["c/new.v4"]).text == listed
    entry = parse(listed, Path("other.yaml")).deviations[-1]
    done = updated(LIST, *run(), stale=[told], others=Expectations((entry,)))
    why = "no trial matches this entry of another list, other.yaml:26"
    assert (done.text, done.left) == (LIST, [("a/gone.*, c/*", why)])
    sporadic = listed.replace("message: m,", "message: m, sporadic: true,")
    assert updated(sporadic, *run(), stale=[told]).text == LIST


def test_trials_of_other_lists_are_theirs() -> None:
    entry = Deviation(("a/b.*",), "r", "x", "p", "nothing", Path("other.yaml"), 1)
    assert updated("", line("a/b.v4", NOTHING), others=Expectations((entry,))).text == ""


def test_failures_are_folded_where_they_are_the_same() -> None:
    states = ["CLOSING", "LAST-ACK"]
    lines = [
        line(f"r/s.{at}.v{v}", failed(f"the state is CLOSED, want {at}", "CLOSED", at, requirements=[f"9293-3.5-{at}"]))
        for at in states
        for v in (4, 6)
    ]
    lines += [line("r/s.OPEN.v4", passed()), line("r/s.OPEN.v6", failed("nothing came within 1 s", step="steps[5]"))]
    lines += [line("r/t.v4", failed("the state is CLOSED, want CLOSING", "CLOSED", "CLOSING"))]
    done = updated("", *lines)
    assert [(entry.trials, entry.message, many) for entry, many in done.added] == [
        (("r/s.CLOSING.*", "r/s.LAST-ACK.*"), "the state is CLOSED", 4),
        (("r/s.OPEN.v6",), "nothing came", 1),
        (("r/t.v4",), "the state is CLOSED, want CLOSING", 1),
    ]
    assert done.added[0][0].requirement is None
    assert "T: R seq=RCV.NXT+RCV.WND / S: the state is CLOSED, want CLOSING" in done.text


@pytest.mark.parametrize("text", ["", "[]\n", "# none yet\n", "# none yet", "# a\r\n# b\r\n"])
def test_a_list_may_be_empty(text: str) -> None:
    done = updated(text, line("a/b.v4", NOTHING), ask=lambda entry: "r")
    assert len(parse(done.text, NAMED).deviations) == 1
    if "#" in text:
        assert done.text.startswith(text)
    assert ("\r\n" in text) == ("reason: r\r\n" in done.text)


def test_an_indented_list_stays_so() -> None:
    text = "  - trials: a/x.*\n    message: m\n    reason: r\n    rfc: x\n    packets: p\n"
    done = updated(text, line("a/b.v4", NOTHING), ask=lambda entry: "s")
    assert done.text.startswith(text)
    assert [entry.reason for entry in parse(done.text, NAMED).deviations] == ["r", "s"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[{trials: a/*, message: m, reason: r, rfc: x, packets: p}]\n", "stands in brackets"),
        ("- trials: &t [a/b.*, a/c.*]\n  message: nothing\n  reason: r\n  rfc: x\n  packets: p\n"
         "- trials: *t\n  message: flags\n  reason: r\n  rfc: x\n  packets: p\n", "without harm"),
        ("# One.\r- {trials: a/c.*, message: m, reason: r, rfc: x, packets: p}\n",
         r"linux.yaml:1: a line ends in '\\r'"),
        ("- trials: [a/b.* # one\n    , a/c.v6]\n  message: flags\n  reason: r\n  rfc: x\n  packets: p\n",
         "linux.yaml:1: a comment stands inside what would be taken out"),
        ("- trials: [a/c.v6,# one\n    a/b.*]\n  message: flags\n  reason: r\n  rfc: x\n  packets: p\n",
         "linux.yaml:2: a comment stands inside"),
        ("- trials:\n    - >- # one\n      a/c.*\n    - a/e.*\n  message: flags\n  reason: r\n  rfc: x\n  packets: p\n",
         "linux.yaml:2: a comment stands inside"),
    ],
)  # fmt: skip
def test_what_cannot_be_edited_is_left_and_told(text: str, said: str) -> None:
    lines = [line("a/b.v4", NOTHING), line("a/c.v4", passed()), line("a/c.v6", RESET), line("a/d.v4", NOTHING)]
    with pytest.raises(UpdateError, match=said):
        updated(text, *lines)


def test_a_bad_list_is_told_of() -> None:
    done = update.update("- trials: a\n", NAMED, survey(line("a/b.v4", NOTHING)))
    assert isinstance(done, list)
    assert isinstance(done[0], Problem)
    assert "rfc is missing" in "".join(map(str, done))
    assert "linux.yaml:1:3: reason is missing" in str(done[0])


# The property --------------------------------------------------------------------------------------------------------
IDS = [f"{case}.{row}.v{v}" for case in ("a/two", "b/one", "c/new") for row in "XYZ" for v in (4, 6)]
OUTCOMES = [
    passed(),
    NOTHING,
    RESET,
    SENT,
    other("not-applicable", "no"),
    other("error", "x"),
    other("inconclusive", "y"),
]
VERDICTS = st.dictionaries(st.sampled_from(["a/one.v4", "a/one.v6", *IDS]), st.sampled_from(OUTCOMES))


@settings(max_examples=150, deadline=None)
@given(VERDICTS, st.sampled_from(["must", "all"]))
def test_after_an_update_everything_is_as_expected(verdicts: dict[str, Any], gate: str) -> None:
    lines = [line(name, verdict) for name, verdict in verdicts.items()]
    done = updated(LIST, *lines, universe=IDS, gate=gate, ask=lambda entry: "Why not.")
    again = parse(done.text, NAMED)
    assert not again.problems
    left = {trial for trial, _ in done.left}
    for each in lines:
        verdict = Verdict.from_json(each["verdict"])
        result, expected = classify(verdict, again.of(each["id"]), gate)
        assert expected != (each["id"] in left), (each["id"], result)
        assert (each["id"] in left) == (verdict.outcome in ("error", "inconclusive"))
    # Nobody is accused of what was not seen.
    for trial in set(IDS) - verdicts.keys():
        before, after = parse(LIST, NAMED).of(trial), again.of(trial)
        assert (before is None) == (after is None), trial
    # What is no entry is kept to the octet.
    comments = [text for text in LIST.splitlines() if text.startswith("#") or not text]
    kept = iter(done.text.splitlines())
    assert all(comment in kept for comment in comments if comment)
    # Twice is once.
    twice = updated(done.text, *lines, universe=IDS, gate=gate, ask=lambda entry: "Something else.")
    assert twice.text == done.text
    assert not twice.added + twice.removed + twice.narrowed  # type: ignore[operator]


GAPS = st.sampled_from(["", " ", "  ", "\n    ", " # {}\n    ", "\n    # {}\n    "])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_brackets_lose_what_passes_and_nothing_else(data: st.DataObject) -> None:
    draw, many = data.draw, data.draw(st.integers(2, 5))
    wanted = draw(st.lists(st.sampled_from([passed(), NOTHING]), min_size=many, max_size=many))
    patterns, notes = [f"a/c{n}.*" for n in range(many)], iter(range(100))
    parts = [part for each in patterns for part in (draw(GAPS), each, draw(GAPS), ",")]
    parts = (parts if draw(st.booleans()) else parts[:-1]) + [draw(GAPS)]
    trials = "".join(part.format(f"note {next(notes)}.") if "#" in part else part for part in parts)
    text = f"- trials: [{trials}]\n  message: nothing\n  reason: r\n  rfc: x\n  packets: p\n"
    lines = [line(f"a/c{n}.v4", verdict) for n, verdict in enumerate(wanted)]
    try:
        done = updated(text, *lines)
    except UpdateError as error:
        if "a comment stands inside" not in str(error):
            raise
        return
    left = [each for each, verdict in zip(patterns, wanted, strict=True) if verdict is NOTHING]
    assert [list(entry.trials) for entry in parse(done.text, NAMED).deviations] == [left] * bool(left)
    if left:
        kept = list(yaml.safe_load(done.text)[0]["trials"])
        assert kept == left
        assert re.findall("# note .*", done.text) == re.findall("# note .*", text)
        strip = re.compile(r"[\s,]|a/c\d\.\*")
        assert strip.sub("", done.text) == strip.sub("", text)


# What is said of a failure -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("summary", "message"),
    [
        ("nothing came within 1.00 s", "nothing came"),
        ("the stack sent RA seq=0 ack=833038132, which nothing expects", "the stack sent RA seq=0"),
        ("the state is CLOSED, want FIN-WAIT-2", "the state is CLOSED, want FIN-WAIT-2"),
        ("flags R, want A (A missing, R too many)", "flags R, want A (A missing, R too many)"),
        ("it came too late: 1.20 s, want within 1.00 s", "it came too late"),
        ("1.20 s: too late", "too late"),
        ("the stack died\nSegmentation fault", "the stack died"),
        ("12 s", "12 s"),
    ],
)
def test_what_a_failure_is_known_by(summary: str, message: str) -> None:
    assert proof.message(summary) == message
    assert message in summary


@pytest.mark.parametrize(
    ("requirements", "told"),
    [
        (["9293-3.10.7.4-seq-edge-past-window"], "RFC 9293 section 3.10.7.4"),
        (["9293-3.10.7.4-rst-timewait-inwindow-challenge", "5961-3.2-rst-inwindow"],
         "RFC 9293 section 3.10.7.4; RFC 5961 section 3.2"),
        (["9293-3.5.2-x", "9293-3.4-y", "9293-3.5.2-z"], "RFC 9293 sections 3.5.2 and 3.4"),
        (["of-nobody"], "of-nobody"),
        ([], ""),
    ],
)  # fmt: skip
def test_where_the_rfc_says_so(requirements: list[str], told: str) -> None:
    assert proof.sections(requirements) == told


@pytest.mark.parametrize(
    ("steps", "verdict", "told"),
    [
        ([{"send": {"flags": "PA", "seq": "RCV.NXT + 0", "payload": "hello", "as": "x"}}], NOTHING,
         "T: PA seq=RCV.NXT, 5 octets / S: nothing; want A seq=SND.NXT (ISS+1) ack=RCV.NXT (IRS+1) length=0"),
        ([{"send": {"again": "x"}}], SENT, "T: x again / S: A seq=ISS+1 ack=IRS+2; want silence"),
        ([{"send": {"icmp": {"type": "port-unreachable"}}}], SENT,
         "T: ICMP type port-unreachable / S: A seq=ISS+1 ack=IRS+2; want silence"),
        ([{"send": {"flags": "S", "payload": 1, "options": {"mss": 1460}}}], SENT,
         "T: S, 1 octet, options mss 1460 / S: A seq=ISS+1 ack=IRS+2; want silence"),
        ([{"call": "close"}], NOTHING,
         "S: close() / S: nothing; want A seq=SND.NXT (ISS+1) ack=RCV.NXT (IRS+1) length=0"),
        ([{"send": {"flags": "S"}}],
         failed("it broke", "RA seq=0 ack=9 (ISS+4294967290, acks IRS+4000000000)", "silence"),
         "T: S / S: RA seq=0 ack=elsewhere; want silence"),
        ([{"send": {"flags": "S"}}], failed("x", "A seq=9 ack=9 (ISS+4294967290, acks IRS+1)", "silence"),
         "T: S / S: A seq=ISS-6 ack=IRS+1; want silence"),
        ([{"send": {"flags": "FA"}}, {"call": "recv"}], failed("recv on c1 failed with EIO", "EIO", "success"),
         "T: FA / S: recv on c1 failed with EIO"),
        ([{"repeat": {"steps": [{"send": {"flags": "U"}}]}}], NOTHING, None),
    ],
)  # fmt: skip
def test_the_packets_that_show_it(steps: list[Any], verdict: dict[str, Any], told: str | None) -> None:
    made = line("a/b.v4", verdict)
    made["document"]["steps"] = [*steps, {"expect": {"flags": "A"}}]
    made["transcript"][1]["a"] = "call" if "call" in steps[0] else "inject"
    if told is None:
        made["transcript"][1]["step"] = "steps[0].repeat[2][0]"
        assert proof.packets(made).startswith("T: U / S: nothing")
    else:
        assert proof.packets(made) == told


# The command ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cases/expectations").mkdir(parents=True)
    write(tmp_path / "run", [line("a/b.v4", NOTHING), line("a/c.v4", passed())])
    return tmp_path


def test_the_command_writes_the_list(place: Path) -> None:
    code, told, _ = invoke("expect", "update", "run")
    listed = place / NAMED
    assert code == 1
    assert "added: a/b.v4: nothing came (1 trial)\n" in told
    assert "cases/expectations/linux.yaml:3: this entry waits for its reason" in told
    assert listed.read_text().startswith(
        "# Where linux departs from the RFCs: trials that are expected to fail.\n\n- trials"
    )
    written = listed.read_bytes()
    assert invoke("expect", "update", "run")[0] == 1
    assert listed.read_bytes() == written
    code, told, _ = invoke("expect", "update", "run", "--reason", "So it is.")
    assert (code, "given its reason" in told) == (0, True)
    assert listed.read_bytes() == written.replace(b"reason:", b"reason: So it is.")
    assert invoke("expect", "update", "run") == (0, "nothing changes: the list says what the run found\n", "")


def test_of_many_that_wait_for_their_reason_some_are_told(place: Path) -> None:
    write(place / "many", [line(f"a/c{n}.v4", NOTHING) for n in range(13)])
    _, told, _ = invoke("expect", "update", "many")
    assert told.count("waits for its reason") == 10
    assert "and 3 more wait for theirs" in told


def test_a_dry_run_shows_and_writes_nothing(place: Path) -> None:
    code, told, _ = invoke("expect", "update", "run", "--dry-run", "--reason", "r")
    assert code == 0
    assert "+- trials: a/b.v4\n" in told
    assert "would be added: a/b.v4" in told
    assert not (place / NAMED).exists()


def test_a_list_of_ones_own(place: Path) -> None:
    (place / NAMED).write_text("- {trials: a/b.*, message: nothing, reason: r, rfc: x, packets: p}\n")
    assert "nothing changes" in invoke("expect", "update", "run")[1]
    assert invoke("expect", "update", "run", "--file", "mine.yaml", "--reason", "r")[0] == 0
    assert "a/b.v4" in (place / "mine.yaml").read_text()


def test_the_lists_of_other_cases_are_not_repeated(place: Path) -> None:
    for name in ("one", "two"):
        (place / name / "expectations").mkdir(parents=True)
        (place / name / "expectations/linux.yaml").write_text("# none\n")
    (place / "two/expectations/linux.yaml").write_text(
        "- {trials: a/b.*, message: nothing, reason: r, rfc: x, packets: p}\n"
    )
    write(place / "both", [line("a/b.v4", NOTHING), line("a/c.v4", RESET)], paths=["one", "two"])
    code, _, complaint = invoke("expect", "update", "both")
    assert (code, "which list is meant?" in complaint) == (2, True)
    assert invoke("expect", "update", "both", "--file", "one/expectations/linux.yaml")[0] == 1
    told = (place / "one/expectations/linux.yaml").read_text()
    assert "a/c.v4" in told
    assert "a/b.v4" not in told


def test_a_person_is_asked_on_a_terminal(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from conform.cli import expect

    monkeypatch.setattr(expect, "_is_terminal", lambda: True)
    code, told, _ = invoke("expect", "update", "run", stdin="It is lazy.\n")
    assert code == 0
    assert "a/b.v4\n  nothing came\n  T: R seq=RCV.NXT+RCV.WND / S: nothing" in told
    assert "reason: It is lazy." in (place / NAMED).read_text()


def test_a_dry_run_asks_nobody(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from conform.cli import expect

    monkeypatch.setattr(expect, "_is_terminal", lambda: True)
    code, told, _ = invoke("expect", "update", "run", "--dry-run", stdin="It is lazy.\n")
    assert (code, "Why does" in told, "lazy" in told) == (1, False, False)


def test_ctrl_c_keeps_what_was_answered(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from conform.cli import expect

    monkeypatch.setattr(expect, "_is_terminal", lambda: True)
    write(place / "three", [line(f"a/b{n}.v4", NOTHING) for n in range(3)])
    code, told, _ = invoke("expect", "update", "three", stdin="It is lazy.\n")
    assert (code, told.count("Why does"), told.count("waits for its reason")) == (1, 2, 2)
    assert re.findall("reason:(.*)", (place / NAMED).read_text()) == [" It is lazy.", "", ""]


def test_what_made_the_run_red_is_told_though_nothing_changes(place: Path) -> None:
    listed = "- {trials: a/b.*, message: nothing, reason: r, rfc: x, packets: p}\n"
    (place / NAMED).write_text(listed)
    planned = ["a/b.v4", "a/c.v4", "a/d.v4", "a/e.v4"]
    write(place / "cut", [line("a/b.v4", NOTHING), line("a/c.v4", passed())], planned=planned)
    told = (
        "left: 2 planned trials have no verdict in this run: conform run --lf runs what is missing\nnothing changes\n"
    )
    assert invoke("expect", "update", "cut") == (1, told, "")
    again = [line("a/b.v4#1", NOTHING)]
    write(place / "again", again, planned=["a/b.v4#1", "a/b.v4#2"])
    assert "left: 1 planned trial has no verdict" in invoke("expect", "update", "again")[1]


def test_an_entry_of_which_the_run_said_that_it_matches_nothing(place: Path) -> None:
    (place / NAMED).write_text(
        "- {trials: a/b.*, message: nothing, reason: r, rfc: x, packets: p}\n"
        "- {trials: a/gone.*, message: nothing, reason: r, rfc: x, packets: p}\n"
    )
    file = place / "run" / NAME
    header, rest = file.read_text().split("\n", 1)
    stale = "cases/expectations/linux.yaml:2:1: no trial matches a/gone.*: the entry is out of date"
    file.write_text(json.dumps({**json.loads(header), "stale": [stale]}) + "\n" + rest)
    code, told, _ = invoke("expect", "update", "run")
    assert (code, told) == (0, "removed: cases/expectations/linux.yaml:2: no trial matches a/gone.*\n")
    assert "gone" not in (place / NAMED).read_text()
    assert "nothing changes: the list says" in invoke("expect", "update", "run")[1]


def test_the_list_that_the_run_was_judged_by_is_the_one(place: Path) -> None:
    (place / NAMED).write_text("# not this\n")
    (place / "mine.yaml").write_text("# this\n")
    write(place / "own", [line("a/b.v4", NOTHING)], expect=["mine.yaml"])
    assert invoke("expect", "update", "own", "--reason", "r")[0] == 0
    assert "a/b.v4" in (place / "mine.yaml").read_text()
    assert (place / NAMED).read_text() == "# not this\n"
    (place / "more.yaml").write_text("# and this\n")
    write(place / "both", [line("a/b.v4", NOTHING), line("a/c.v4", RESET)], expect=["mine.yaml", "more.yaml"])
    code, _, complaint = invoke("expect", "update", "both")
    assert (code, "Say it with --file (mine.yaml, more.yaml)" in complaint) == (2, True)
    assert invoke("expect", "update", "both", "--file", "more.yaml", "--reason", "r")[0] == 0
    told = (place / "more.yaml").read_text()
    assert ("a/c.v4" in told, "a/b.v4" in told) == (True, False)
    (place / "mine.yaml").unlink()
    code, _, complaint = invoke("expect", "update", "own")
    assert (code, "judged by is not here: say it with --file (mine.yaml)" in complaint) == (2, True)


def test_the_run_records_its_lists() -> None:
    from conform.report.text import repeat_run
    from conform.run.command import Options

    made = Options((Path("cases"),), expect=(Path("a b.yaml"), Path("c.yaml"))).to_json()
    assert made["expect"] == ["a b.yaml", "c.yaml"]
    assert repeat_run({"settings": made}) == "conform run cases --expect 'a b.yaml' --expect c.yaml --seed 0"


def test_a_full_disk_leaves_the_list_as_it_was(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "shared.yaml").write_text("# Mine.\n")
    (place / "shared.yaml").chmod(0o664)
    (place / NAMED).symlink_to(place / "shared.yaml")

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        code, _, complaint = invoke("expect", "update", "run", "--reason", "r")
    assert (code, "No space left on device" in complaint) == (2, True)
    assert (place / "shared.yaml").read_text() == "# Mine.\n"
    assert invoke("expect", "update", "run", "--reason", "r")[0] == 0
    assert (place / NAMED).is_symlink()
    assert "a/b.v4" in (place / "shared.yaml").read_text()
    assert (place / "shared.yaml").stat().st_mode & 0o777 == 0o664
    assert [path.name for path in place.glob(".*")] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "there is no run file here"),
        (["run", "--file", "cases"], "cases: "),
        (["bad"], "the line of a/b.v4 is damaged"),
        (["elsewhere"], "which list is meant?"),
    ],
)
def test_bad_usage(place: Path, arguments: list[str], said: str) -> None:
    write(place / "bad", [line("a/b.v4", NOTHING | {"failure": {"step": "steps[0]"}})])
    write(place / "elsewhere", [line("a/b.v4", NOTHING)], paths=["not/here"])
    code, told, complaint = invoke("expect", "update", *arguments)
    assert (code, told) == (2, "")
    assert said in complaint


def test_a_bad_list_is_shown_where_it_is_bad(place: Path) -> None:
    (place / NAMED).write_text("- trials: a/b.*\n  raeson: x\n")
    code, _, complaint = invoke("expect", "update", "run")
    assert code == 2
    assert "cases/expectations/linux.yaml:2:3: unknown key 'raeson'" in complaint
    assert "did you mean 'reason'?" in complaint


def test_the_cases_beside_the_list_say_what_there_is(place: Path) -> None:
    (place / "cases/a").mkdir()
    (place / "cases/a/b.yaml").write_text(
        "title: A title that is long enough\ncovers: [9293-3.10.7.1-closed-syn-rst]\ngiven: CLOSED\n"
        "matrix: {axes: {n: [1, 2]}}\nsteps:\n"
        '  - send: {flags: S, window: "${n}", as: syn}\n  - expect: {flags: RA, seq: 0, ack: syn.end}\n'
    )
    assert update.trials_of(place / NAMED, []) == [f"a/b.{n}.v{v}" for n in (1, 2) for v in (4, 6)]
    assert len(update.trials_of(place / "mine.yaml", ["cases"])) == 4
    assert update.trials_of(place / "mine.yaml", ["not/here"]) == []
    assert len(update.trials_of(place / "own/expectations/mine.yaml", ["cases"], ["a/b.1.v4#1", "a/c.v4#2"])) == 5
    write(place / "part", [line("a/b.1.v4", NOTHING), line("a/b.1.v6", NOTHING)])
    invoke("expect", "update", "part")
    assert "- trials: a/b.1.*\n" in (place / NAMED).read_text()
    (place / "own/expectations").mkdir(parents=True)
    invoke("expect", "update", "part", "--file", "own/expectations/mine.yaml")
    assert "- trials: a/b.1.*\n" in (place / "own/expectations/mine.yaml").read_text()


def test_the_survey_of_a_run(place: Path) -> None:
    write(place / "many", [line("a/b.v4#1", NOTHING), line("a/b.v4#2", LATER)])
    seen = update.survey(Reader(place / "many" / NAME))
    assert list(seen) == ["a/b.v4"]
    assert len(seen["a/b.v4"].verdicts) == 2
    assert seen["a/b.v4"].packets.startswith("T: R seq=RCV.NXT+RCV.WND / S: nothing")


# The schema ----------------------------------------------------------------------------------------------------------
def test_the_schema_takes_what_the_reader_takes() -> None:
    validator = jsonschema.Draft202012Validator(schema())
    validator.check_schema(schema())
    good = yaml.safe_load(LIST)
    assert validator.is_valid(good)
    assert validator.is_valid(None)
    for key in ("trials", "message", "reason", "rfc", "packets"):
        assert not validator.is_valid([{k: v for k, v in good[0].items() if k != key}])
        assert not validator.is_valid([good[0] | {key: " "}])
    assert not validator.is_valid([good[0] | {"raeson": "x"}])
    assert not validator.is_valid([good[0] | {"trials": []}])
    assert validator.is_valid([good[0] | {"requirement": "x"}])
    assert validator.is_valid([good[0] | {"sporadic": True}])
    assert not validator.is_valid([good[0] | {"sporadic": "seldom"}])
    root = Path(__file__).parents[2]
    for file in (root / "cases/expectations").glob("*.yaml"):
        assert validator.is_valid(yaml.safe_load(file.read_text())), file


def test_the_document_has_every_key() -> None:
    told = (Path(__file__).parents[2] / "docs/expectations.md").read_text()
    assert re.findall(r"^\| `([a-z]+)` \|", told, re.M) == list(schema()["items"]["properties"])
    examples = [parse(each, NAMED) for each in re.findall(r"```yaml\n(.*?)```", told, re.S)]
    assert [[entry.sporadic for entry in each.deviations] for each in examples] == [[False], [True]]
    assert UNREASONED in told


def test_the_schema_is_printed() -> None:
    code, told, _ = invoke("schema", "expectations")
    assert (code, yaml.safe_load(told)) == (0, schema())
