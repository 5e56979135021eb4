"""Known deviations: what they cover, what they demand, and what is said of a bad file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from conform.engine.verdict import Failure, Verdict
from conform.run.expectations import Deviation, Expectations, classify, files, load, whole

GOOD = """\
- trials: close/active-*.v4
  reason: Linux acknowledges late
  rfc: RFC 9293 section 3.10.7.4
  packets: |
    FA seq=1 ->
    <- A ack=1
  message: want RCV.NXT
- trials:
    - reset/a.v?
    - reset/b.*
  reason: because
  rfc: RFC 5961
  packets: R
  message: nothing came
  requirement: 9293-MUST-1
"""


def _failed(summary: str, level: str = "must", *requirements: str) -> Verdict:
    return Verdict("fail", level, requirements, Failure("steps[0]", None, summary))  # type: ignore[arg-type]


def _entry(**changes: object) -> Deviation:
    fields: dict[str, object] = {
        "trials": ("a.*",), "reason": "r", "rfc": "x", "packets": "p", "message": "want RCV.NXT", "requirement": None,
        "path": Path("linux.yaml"), "line": 1,
    }  # fmt: skip
    return Deviation(**(fields | changes))  # type: ignore[arg-type]


def _load(tmp_path: Path, text: str | bytes) -> Expectations:
    file = tmp_path / "linux.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return load([file], tmp_path)


def test_a_good_file(tmp_path: Path) -> None:
    loaded = _load(tmp_path, GOOD)
    assert not loaded.problems
    first, second = loaded.deviations
    assert (first.line, second.line) == (1, 8)
    assert first.packets == "FA seq=1 ->\n<- A ack=1"
    assert second.trials == ("reset/a.v?", "reset/b.*")
    assert second.requirement == "9293-MUST-1"
    assert loaded.of("close/active-close.FIN-WAIT-2.v4") is first
    assert loaded.of("close/active-close.v4#3") is first
    assert loaded.of("CLOSE/ACTIVE-close.v4") is first
    assert loaded.of("close/active-close.v6") is None
    assert loaded.of("reset/b.v6") is second
    assert second.to_json()["requirement"] == "9293-MUST-1"
    assert "requirement" not in first.to_json()


SPORADIC = """\
- trials: close/a.*
  reason: always
  rfc: RFC 9293
  packets: R
  message: nothing came
- trials: "*"
  sporadic: true
  reason: a carry is lost
  rfc: RFC 1071
  packets: R
  message: its checksum is 0xffff
"""


def test_what_chance_does_is_asked_of_no_trial_and_explains_any(tmp_path: Path) -> None:
    loaded = _load(tmp_path, SPORADIC)
    assert not loaded.problems
    steady, chance = loaded.deviations
    assert (steady.sporadic, chance.sporadic) == (False, True)
    by_chance, nothing, other = _failed("its checksum is 0xffff"), _failed("nothing came"), _failed("seq 1")
    for trial, verdict, entry, result in [
        ("close/a.v4", Verdict("pass"), steady, ("unexpected-pass", False)),
        ("close/a.v4", nothing, steady, ("expected-failure", True)),
        ("close/a.v4", by_chance, chance, ("expected-failure", True)),
        ("close/a.v4", other, steady, ("fail", False)),
        ("close/b.v4", Verdict("pass"), None, ("pass", True)),
        ("close/b.v4", by_chance, chance, ("expected-failure", True)),
        ("close/b.v4", nothing, None, ("fail", False)),
    ]:
        assert loaded.of(trial, verdict) is entry
        assert classify(verdict, entry, "all") == result
    assert classify(Verdict("pass"), chance, "all") == ("pass", True)
    assert Deviation.from_json(chance.to_json()) == chance
    assert Deviation.from_json(steady.to_json()) == steady
    assert "sporadic" not in steady.to_json()


def test_a_steady_entry_that_explains_a_failure_goes_before_chance(tmp_path: Path) -> None:
    both = SPORADIC.replace("message: its checksum is 0xffff", "message: nothing came")
    loaded = _load(tmp_path, both)
    assert loaded.of("close/a.v4", _failed("nothing came")) is loaded.deviations[0]


def test_a_precondition_that_is_never_reached_can_be_known() -> None:
    failure = Failure("recipe[3]", None, "nothing came within 1.00 s")
    verdict = Verdict("inconclusive", failure=failure, reason="the precondition was not reached: nothing came")
    entry = _entry(message="nothing came")
    assert classify(verdict, entry, "all") == ("expected-failure", True)
    assert classify(verdict, None, "all") == ("inconclusive", False)
    assert classify(verdict, _entry(message="the state is"), "all") == ("inconclusive", False)
    assert classify(replace(verdict, late=True), entry, "all") == ("inconclusive", False)
    assert classify(replace(verdict, failure=None), entry, "all") == ("inconclusive", False)
    assert classify(Verdict("error", failure=failure), entry, "all") == ("error", False)


def test_an_entry_that_says_it_is_not_sporadic(tmp_path: Path) -> None:
    loaded = _load(tmp_path, SPORADIC.replace("sporadic: true", "sporadic: false"))
    assert not loaded.problems
    assert not loaded.deviations[1].sporadic


def test_an_entry_that_matches_nothing_is_out_of_date(tmp_path: Path) -> None:
    loaded = _load(tmp_path, GOOD)
    (problem,) = loaded.unmatched(["reset/a.v4", "close/passive.v4"])
    assert str(problem).startswith("linux.yaml:1:1: no trial matches close/active-*.v4")


def test_an_entry_behind_one_that_covers_all_of_it_never_counts(tmp_path: Path) -> None:
    one = "- trials: {}\n  reason: r\n  rfc: x\n  packets: p\n  message: m{}\n"
    trials = ["a/b.v4", "a/b.v6", "a/c.v4"]

    def told(*globs: str) -> list[str]:
        text = "".join(one.format(*glob.split("!"), *[""] * (1 - glob.count("!"))) for glob in globs)
        return [str(problem).partition("\n")[0] for problem in _load(tmp_path, text).unmatched(trials)]

    assert told("a/b.*", "a/*") == []
    words = "entries before this one cover all trials that match a/b.v4: it never counts"
    assert told("a/*", "a/b.v4") == [f"linux.yaml:6:1: {words}"]
    assert told("a/b.v4", "a/b.v6", "a/b.*")[0].startswith("linux.yaml:11:1: entries before")
    assert told("'*'!\n  sporadic: true", "a/b.v4") == []
    assert told("a/*", "'*'!\n  sporadic: true") == []


def test_an_empty_file_has_no_deviations(tmp_path: Path) -> None:
    assert _load(tmp_path, "# none\n") == Expectations()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: b\n", "linux.yaml:1:1: expected a list of deviations\n    1 | a: b\n      | ^"),
        ("- a\n", "linux.yaml:1:3: expected a deviation"),
        (GOOD.replace("reason: because", "raeson: because"), "linux.yaml:11:3: unknown key 'raeson'; a deviation has"),
        (GOOD.replace("reason: because", "raeson: because"), "did you mean 'reason'?"),
        (GOOD.replace("  message: nothing came\n", ""), "linux.yaml:8:3: message is missing"),
        (GOOD.replace("reason: because", "reason:"), "linux.yaml:11:10: no reason is given: write why"),
        (GOOD.replace("reason: because", "reason: '  '"), "linux.yaml:11:11: no reason is given: write why"),
        (GOOD.replace("reason: because", "reason: [a]"), "linux.yaml:11:11: reason is a text"),
        (GOOD.replace("rfc: RFC 5961", "reason: again"), "linux.yaml:12:3: reason is said twice"),
        (GOOD.replace("\n    - reset/a.v?\n    - reset/b.*", " []"), "linux.yaml:8:11: trials names at least one"),
        (GOOD.replace("- reset/a.v?", "- {}"), "linux.yaml:9:7: trials is a glob"),
        (SPORADIC.replace("true", "seldom"), "linux.yaml:7:13: sporadic is true or false"),
        ("- [\n", "linux.yaml:2:1: "),
        (b"\xff\xfe", "linux.yaml: the file is not UTF-8"),
        ("- \x01", "not YAML"),
    ],
)  # fmt: skip
def test_bad_files(tmp_path: Path, text: str | bytes, message: str) -> None:
    shown = "\n".join(str(problem) for problem in _load(tmp_path, text).problems)
    assert message in shown


def test_an_unreadable_file(tmp_path: Path) -> None:
    (tmp_path / "linux.yaml").mkdir()
    assert "cannot be read" in str(load([tmp_path / "linux.yaml"]).problems[0])


def test_found_beside_the_cases_or_above(tmp_path: Path) -> None:
    (tmp_path / "cases/expectations").mkdir(parents=True)
    (tmp_path / "cases/close").mkdir()
    case = tmp_path / "cases/close/a.yaml"
    case.touch()
    assert files([case], "linux") == []
    file = tmp_path / "cases/expectations/linux.yaml"
    file.touch()
    assert files([case, tmp_path / "cases"], "linux") == [file]
    assert files([case], "lwip") == []


def test_lists_below_and_above_hold_whatever_part_of_the_cases_is_run(tmp_path: Path) -> None:
    case = tmp_path / "cases/close/a.yaml"
    for name in ("cases/expectations/linux.yaml", "cases/close/expectations/linux.yaml", "cases/close/a.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    above, beside = tmp_path / "cases/expectations/linux.yaml", tmp_path / "cases/close/expectations/linux.yaml"
    for place in (tmp_path / "cases", tmp_path / "cases/close", case):
        assert set(files([place], "linux")) == set(files([place])) == {above, beside}
    assert whole(above, [tmp_path / "cases"])
    assert whole(beside, [tmp_path / "cases", case])
    assert not whole(above, [case, tmp_path / "cases/close"])


@pytest.mark.parametrize(
    ("verdict", "entry", "gate", "earlier", "wanted"),
    [
        (Verdict("pass"), None, "all", (), ("pass", True)),
        (Verdict("pass"), None, "all", (_failed("x"),), ("flaky", False)),
        (Verdict("pass"), _entry(), "all", (), ("unexpected-pass", False)),
        # What --retry did not accept is never forgotten, whatever came last.
        (Verdict("pass"), None, "must", (_failed("x", "must"),), ("flaky", False)),
        (Verdict("pass"), _entry(), "all", (_failed("another"),), ("flaky", False)),
        (_failed("want RCV.NXT"), _entry(), "all", (_failed("another"),), ("flaky", False)),
        (_failed("want RCV.NXT"), _entry(), "all", (Verdict("error"),), ("flaky", False)),
        (_failed("want RCV.NXT"), _entry(), "all", (_failed("want RCV.NXT"),), ("expected-failure", True)),
        (_failed("x", "may"), None, "must", (_failed("x", "must"),), ("fail", False)),
        (_failed("x", "may"), None, "must", (Verdict("inconclusive"),), ("fail", False)),
        (_failed("another"), _entry(), "all", (_failed("more"),), ("fail", False)),
        (_failed("ack 1, want RCV.NXT = 2"), _entry(), "all", (), ("expected-failure", True)),
        (_failed("ack 1, WANT rcv.nxt = 2"), _entry(), "all", (), ("expected-failure", True)),
        (_failed("nothing came"), _entry(), "all", (), ("fail", False)),
        (_failed("want RCV.NXT", "must", "A"), _entry(requirement="A"), "all", (), ("expected-failure", True)),
        (_failed("want RCV.NXT", "must", "B"), _entry(requirement="A"), "all", (), ("fail", False)),
        (_failed("x", "must"), None, "must", (), ("fail", False)),
        (_failed("x", "should"), None, "must", (), ("fail", True)),
        (_failed("x", "should"), None, "should", (), ("fail", False)),
        (_failed("x", "may"), None, "should", (), ("fail", True)),
        (_failed("x", "may"), None, "all", (), ("fail", False)),
        (Verdict("inconclusive"), _entry(), "all", (), ("inconclusive", False)),
        (Verdict("error"), None, "must", (), ("error", False)),
        (Verdict("not-applicable"), _entry(), "all", (), ("not-applicable", True)),
    ],
)
def test_classify(
    verdict: Verdict, entry: Deviation | None, gate: str, earlier: tuple[Verdict, ...], wanted: tuple[str, bool]
) -> None:
    assert classify(verdict, entry, gate, earlier) == wanted
