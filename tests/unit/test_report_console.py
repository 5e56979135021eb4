"""What a run tells the terminal."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
import rich.console
from test_report_ladder import END, HEADER, TRIALS, golden

from conform.report import console as module
from conform.report.console import Console
from conform.report.ladder import ladder
from conform.report.text import print_ladder
from conform.requirements import catalogue
from conform.run import events


def played(lines: Any = None, terminal: bool = False, **options: Any) -> str:
    out = io.StringIO()
    colours: Any = "standard" if terminal else None
    console = rich.console.Console(
        file=out, force_terminal=terminal, width=100, _environ={"TERM": "xterm"}, color_system=colours
    )
    told = Console(console, catalogue(), **options)
    lines = list(TRIALS.values()) if lines is None else lines
    told(events.RunStarted(HEADER, "reports/latest", len(lines)))
    for done, line in enumerate(lines, 1):
        raw = json.dumps(line, separators=(",", ":")).encode()
        told(
            events.TrialFinished(line["id"], line["result"], line["expected"], line["duration"], done, len(lines), raw)
        )
        told(events.Progress(done, 2, 1, len(lines)))
    told(events.Notice("worker 3 died [bold]not bold[/bold]\x1b[31m"))
    told(events.RunEnded(END, "reports/latest", 3.5, ("close/x.v4",)))
    return out.getvalue()


def test_a_log() -> None:
    words = played()
    lines = words.splitlines()
    progress = next(line for line in lines if line.startswith("100 %"))
    golden("console.txt", words.replace(progress, "100 %  19/19"))
    assert "\x1b" not in words


def test_what_is_not_as_expected_is_told_when_it_comes() -> None:
    words = played()
    assert [line["id"] for line in TRIALS.values() if f" {line['id']}  " in words] == [
        line["id"] for line in TRIALS.values() if not line["expected"]
    ]


def test_a_terminal_has_a_bar_and_colours() -> None:
    words = played(terminal=True)
    assert "19/19" in words
    assert "\x1b[31mFAIL MUST close/fin-not-counted.v4" in words
    assert "[bold]not bold[/bold]\\x1b[31m" in words


def test_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    out = io.StringIO()
    told = Console(rich.console.Console(file=out, force_terminal=True, width=100), catalogue())
    told.trial_finished(TRIALS["close/timeout.v4"])
    told.run_ended(1, [], 1.0)
    assert "FAIL SHOULD" in out.getvalue()
    assert "\x1b[3" not in out.getvalue()
    assert "\x1b[9" not in out.getvalue()


def test_after_many_failures_one_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_TOLD", 2)
    line = TRIALS["close/timeout.v4"]
    words = played([{**line, "id": f"close/t{n}.v4", "case": f"close/t{n}"} for n in range(5)])
    assert words.count("arithmetic" if line["verdict"]["failure"]["arithmetic"] else "actual") == 2
    assert words.count("FAIL close/t2.v4  close/t2, steps[") == 1
    assert "FAIL close/t1.v4  close/t1, steps[" not in words


def test_of_failures_that_are_one_the_first_is_told() -> None:
    line = TRIALS["close/timeout.v4"]
    other = json.loads(json.dumps(line))
    other["verdict"]["failure"]["step"] = "steps[0]"
    words = played(
        [{**line, "id": f"close/timeout.{n}.v4"} for n in range(3)] + [{**other, "id": "close/timeout.X.v4"}]
    )
    assert words.count("FAIL SHOULD close/timeout.0.v4") == 1
    assert [f"FAIL close/timeout.{n}.v4  as close/timeout.0.v4\n" in words for n in (1, 2)] == [True, True]
    assert words.count("FAIL SHOULD close/timeout.X.v4") == 1
    assert "unexpected       3 × close/timeout, steps[" in words
    assert "1 × close/timeout, steps[0]: nothing came within …" in words


def test_findings_of_trials_that_passed_are_counted() -> None:
    line = json.loads(json.dumps(TRIALS["close/active-close.v4"]))
    assert "findings" not in played([line])
    line["verdict"]["findings"] = ["the stack says X"]
    assert "findings     in 1 trials" in played([line])


def test_an_encoding_that_takes_ascii_only() -> None:
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, "ascii", write_through=True) as out:
        Console(rich.console.Console(file=out, width=100)).trial_finished(TRIALS["close/timeout.v4"])
        assert b"-> A seq=IRS+1" in raw.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_ladder_is_drawn_for_terminals_only(terminal: bool) -> None:
    out = io.StringIO()
    print_ladder(rich.console.Console(file=out, force_terminal=terminal, width=60), ladder(TRIALS["close/timeout.v4"]))
    assert ("│" in out.getvalue()) is terminal
    assert out.getvalue().isascii() is not terminal
