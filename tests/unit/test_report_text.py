"""Verdicts as plain text, and summaries."""

from __future__ import annotations

import copy
import json
import signal
from typing import Any

import pytest
from test_report_ladder import END, HEADER, TRIALS, golden

from conform.report import text
from conform.report.ladder import ladder
from conform.requirements import catalogue

KNOWN = catalogue()


def told(name: str) -> str:
    return text.trial(TRIALS[name], HEADER, KNOWN, "reports/latest")


def test_each_trial_that_is_not_as_expected() -> None:
    names = [name for name, line in TRIALS.items() if line["result"] != "pass"]
    golden("trials.txt", "\n\n".join(map(told, names)) + "\n")


def tally(lines: Any = None) -> text.Tally:
    out = text.Tally()
    for line in TRIALS.values() if lines is None else lines:
        out.add(line)
    return out


def test_the_summary() -> None:
    golden("summary.txt", text.summary(tally(), END["exit"], 3.5, ["reports/latest/report.html"], 2) + "\n")


def test_the_summary_of_nothing_claims_nothing() -> None:
    assert text.summary(text.Tally(), 5) == (
        "0 trials: no trial\nnothing was selected, or nothing applies to the stack (exit 5)"
    )
    assert "did not come to its end" in text.summary(text.Tally(), None)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_an_exit_by_a_signal_has_a_meaning(number: signal.Signals) -> None:
    assert "no meaning" not in text.exit_words(128 + number)


def test_the_summary_counts_what_it_is_given() -> None:
    one = copy.deepcopy(TRIALS["close/fin-not-counted.v4"])
    before = tally([one])
    assert (before.unexpected, dict(before.failed)) == (1, {"must": 1})
    one["verdict"]["level"], one["expected"] = "should", True
    after = tally([one])
    assert (after.unexpected, dict(after.failed)) == (0, {"should": 1})
    one["verdict"]["findings"] = ["x"]
    assert "findings" in text.summary(tally([one]), 0)
    assert "findings" not in text.summary(after, 0)


def test_the_slowest_are_the_slowest() -> None:
    lines = [{**TRIALS["close/active-close.v4"], "id": f"t{n}", "duration": n} for n in (3, 9, 1, 7, 2, 8, 5)]
    words = text.summary(tally(lines), 0)
    assert [line.split()[-1] for line in words.splitlines() if " s  t" in line] == ["t9", "t8", "t7", "t5", "t3"]


@pytest.mark.parametrize(
    ("change", "gone", "come"),
    [
        ({"summary": "all is lost", "arithmetic": []}, "arithmetic", "why          all is lost"),
        ({"place": [77, 3]}, ":15:5", ".yaml:77:3"),
        ({"expected": "peace"}, "A seq=fin.end", "expected     peace"),
        ({"actual": "war"}, "actual       A", "actual       war"),
        ({"step": "steps[5]"}, "steps[6]", "steps[5]  send: {flags: FA}"),
    ],
)
def test_what_the_verdict_says_is_what_is_told(change: dict[str, Any], gone: str, come: str) -> None:
    line = copy.deepcopy(TRIALS["close/fin-not-counted.v4"])
    line["verdict"]["failure"] |= change
    words = text.trial(line, HEADER, KNOWN)
    assert gone in told("close/fin-not-counted.v4")
    assert gone not in words
    assert come in words


def test_a_requirement_that_the_catalogue_lacks_is_still_named() -> None:
    assert text.requirement_words("9999-x", KNOWN, {"9999-x": "must"}) == "9999-x (must)"
    assert text.requirement_words("9999-x", KNOWN) == "9999-x"


def test_the_command_that_repeats_one_trial() -> None:
    line = TRIALS["close/active-close.v6"]
    assert text.repeat(line, HEADER) == (
        "conform run cases/close/active-close.yaml -k active-close.v6 --stack model --ip 6 --seed 1"
    )
    assert "-k active-close.v6 " in text.repeat({**line, "id": "close/active-close.v6#17"}, HEADER)
    assert "'a b.yaml'" in text.repeat({**line, "file": "a b.yaml"}, HEADER)
    header: dict[str, Any] = {"stack": {"name": "linux"}, "settings": {"link": "veth", "agent": "auto"}}
    assert text.repeat(line, header).endswith("-k active-close.v6 --link veth --ip 6 --seed 1")
    header["settings"]["expect"] = ["own list.yaml"]
    assert "--link veth --expect 'own list.yaml' --ip 6" in text.repeat(line, header)


def test_the_command_that_repeats_the_run() -> None:
    words = "conform run cases -k 'close or data' --stack model --gate should --retry 1 --seed 1"
    assert text.repeat_run(HEADER) == words
    settings = {"paths": ["a", "b"], "ip": [6], "selection": {"tag": ["x", "y"], "lf": True}, "seed": 3}
    assert text.repeat_run({"settings": settings}) == "conform run a b --tag x --tag y --lf --ip 6 --seed 3"


HOSTILE = "\x1b[2J\n::error::x\r\u202e\ud800\x9b31m"


def test_nothing_from_outside_drives_a_terminal_or_begins_a_line() -> None:
    line = copy.deepcopy(TRIALS["calls/recv-error.v4"])
    line["id"] = line["file"] = line["pcap"] = HOSTILE
    line["verdict"]["failure"] |= {"summary": HOSTILE, "expected": HOSTILE, "actual": HOSTILE, "arithmetic": [HOSTILE]}
    line["verdict"]["findings"] = [HOSTILE]
    for entry in line["transcript"]:
        if "reply" in entry:
            entry["reply"] = {"fault": HOSTILE}
        if "request" in entry:
            entry["request"] = {"do": HOSTILE, HOSTILE: HOSTILE}
    words = text.trial(line, HEADER, KNOWN)
    assert not [char for char in words if char != "\n" and text.clean(char) != char]
    assert not [begin for begin in words.split("\n") if begin.startswith("::")]
    for drawn in text.terminal_ladder(ladder(line)):
        assert text.clean(drawn.plain) == drawn.plain


def test_ascii_for_those_who_take_no_more() -> None:
    assert text.to_ascii("│◀── §3.6 → ✗ é") == r"|<-- section 3.6 -> X \xe9"


def test_of_a_flaky_trial_what_was_refused_is_told() -> None:
    line = json.loads(json.dumps(TRIALS["close/flaky.v4"]))
    (first,) = line["earlier"]
    late = {"outcome": "inconclusive", "late": True, "failure": None, "reason": "too late to tell", "requirements": []}
    line["earlier"].append({**first, "attempt": 2, "verdict": {**first["verdict"], **late}})
    assert text.judged(line)["attempt"] == 1
    assert text.reason(line).startswith("passed when tried again, but first: ack IRS+1")
    line["verdict"]["outcome"] = "fail"
    assert text.reason(line).startswith("failed as is known when tried again, but first: ack IRS+1")
