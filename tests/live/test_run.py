"""`conform run` on this machine's own stack: verdicts, files, exit codes, and what happens when things go wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import pytest

from conform.run import preflight
from conform.run.runfile import Reader

PASSES = """\
title: A passive close, from the handshake to CLOSED
covers: [9293-3.6-normal-close-fig12]
tags: [close]
given: ESTABLISHED
steps:
  - send: {flags: FA}
  - expect: {flags: A, seq: SND.NXT, ack: RCV.NXT, within: timer.delayed-ack.max}
  - state: CLOSE-WAIT
  - call: close
  - expect: {flags: FA, seq: SND.NXT, ack: RCV.NXT, as: fin}
  - send: {flags: A, ack: fin.end}
  - state: CLOSED
"""
FAILS = PASSES.replace("A passive close, from", "A passive close, wrongly, from").replace(
    "{flags: FA, seq: SND.NXT,", "{flags: FA, seq: SND.NXT + 1,"
)
WAITS = """\
title: A connection that is left alone stays silent
covers: [9293-3.6-normal-close-fig12]
given: ESTABLISHED
steps:
  - silence: 30s
"""
FORKS = """\
title: A child that holds a copy of the descriptor keeps the connection open
covers: [9293-3.6-normal-close-fig12]
given: ESTABLISHED
requires: fork
steps:
  - call: {do: fork, as: child}
  - call: close
  - silence: now
  - call: {do: close, by: child}
  - expect: {flags: FA, seq: SND.NXT, ack: RCV.NXT}
"""
DEVIATION = """\
- trials: bench/fails.*
  reason: the case is wrong on purpose
  rfc: RFC 9293 section 3.6
  packets: FA seq=SND.NXT
  message: {message}
"""

Conform = Callable[..., subprocess.CompletedProcess[str]]


def _start(place: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    root = Path(__file__).resolve().parents[2]
    program = f"import sys; sys.path.insert(0, {str(root)!r}); from conform.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=place,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **{"stdout": subprocess.PIPE} | options,
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    machine.needs_trials()
    (tmp_path / "cases/bench").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def conform(place: Path) -> Conform:
    """Write the cases that are named and run the command."""

    def run(*arguments: str, **cases: str) -> subprocess.CompletedProcess[str]:
        for name, text in cases.items():
            (place / f"cases/bench/{name}.yaml").write_text(text)
        process = _start(place, *arguments)
        out, err = process.communicate(timeout=120)
        assert "Traceback" not in err, err
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    return run


def _run_file(place: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]], dict[str, Any] | None]:
    reader = Reader(place / "reports/latest")
    lines = {line["id"]: line for line in reader.trials()}
    return reader.header, lines, reader.end


@pytest.mark.parametrize("link", ["tun", "veth"])
@pytest.mark.parametrize("agent", ["inline", "process"])
def test_everything_as_expected(conform: Conform, place: Path, link: str, agent: str) -> None:
    machine.needs_link(link)
    arguments = ("run", "cases", "--link", link, "--agent", agent, "--pcap", "all", "--seed", "7")
    done = conform(*arguments, passes=PASSES)
    assert done.returncode == 0, done.stdout + done.stderr
    header, lines, end = _run_file(place)
    assert header["planned"] == ["bench/passes.v4", "bench/passes.v6"]
    assert (header["settings"]["seed"], header["environment"]["link"]) == (7, link)
    assert sorted(lines) == header["planned"]
    assert end is not None
    assert (end["counts"], end["exit"]) == ({"pass": 2}, 0)
    for line in lines.values():
        assert (line["result"], line["expected"], line["link"], line["attempt"]) == ("pass", True, link, 1)
        assert (place / "reports/latest" / line["pcap"]).stat().st_size > 500


def test_captures_say_which_step_each_packet_belongs_to(conform: Conform, place: Path) -> None:
    from scapy.utils import RawPcapNgReader

    conform("run", "cases", "--pcap", "all", "--ip", "4", passes=PASSES)
    (line,) = _run_file(place)[1].values()
    with RawPcapNgReader(str(place / "reports/latest" / line["pcap"])) as reader:
        comments = [packet[1].comments for packet in reader]
    texts = [comment.decode() for each in comments for comment in each or []]
    assert len(texts) == len(comments)
    assert "recipe[4]: sent" in texts
    assert "steps[1]: as expected" in texts
    assert texts.index("steps[0]: sent") < texts.index("steps[1]: as expected")


def test_an_unexpected_failure_and_its_repetition(conform: Conform, place: Path) -> None:
    done = conform("run", "cases", fails=FAILS, passes=PASSES)
    assert done.returncode == 1
    _, lines, end = _run_file(place)
    assert end is not None
    assert end["counts"] == {"pass": 2, "fail": 2}
    line = lines["bench/fails.v4"]
    assert line["verdict"]["failure"]["step"] == "steps[4]"
    assert line["pcap"] is not None
    assert lines["bench/passes.v4"]["pcap"] is None
    again = conform("run", "cases", "--lf", "--retry", "1")
    assert again.returncode == 1
    _, lines, _ = _run_file(place)
    assert sorted(lines) == ["bench/fails.v4", "bench/fails.v6"]
    line = lines["bench/fails.v4"]
    assert (line["attempt"], line["result"]) == (2, "fail")
    assert [each["attempt"] for each in line["earlier"]] == [1]


def test_the_gate_looks_at_levels(conform: Conform, place: Path) -> None:
    may = FAILS.replace("9293-3.6-normal-close-fig12", "9293-MAY-2")
    levels = json.loads((Path(preflight.__file__).parents[1] / "requirements/catalogue.json").read_text())
    assert next(each for each in levels if each["id"] == "9293-MAY-2")["level"] == "may"
    assert conform("run", "cases", "--gate", "should", fails=may).returncode == 0
    assert _run_file(place)[1]["bench/fails.v4"]["result"] == "fail"
    assert conform("run", "cases", "--gate", "all").returncode == 1


def test_a_known_deviation_is_expected_and_its_end_is_not(conform: Conform, place: Path) -> None:
    (place / "cases/expectations").mkdir()
    listed = place / "cases/expectations/linux.yaml"
    listed.write_text(DEVIATION.format(message="seq"))
    assert conform("run", "cases", fails=FAILS).returncode == 0
    line = _run_file(place)[1]["bench/fails.v4"]
    assert (line["result"], line["expectation"]["rfc"]) == ("expected-failure", "RFC 9293 section 3.6")
    listed.write_text(DEVIATION.format(message="another failure"))
    assert conform("run", "cases").returncode == 1
    assert _run_file(place)[1]["bench/fails.v4"]["result"] == "fail"
    listed.write_text(DEVIATION.format(message="seq"))
    assert conform("run", "cases", fails=PASSES).returncode == 1
    assert _run_file(place)[1]["bench/fails.v4"]["result"] == "unexpected-pass"


def test_stop_at_the_first(conform: Conform, place: Path) -> None:
    done = conform("run", "cases", "-x", "--repeat", "200", fails=FAILS)
    assert done.returncode == 1
    header, lines, end = _run_file(place)
    assert 1 <= len(lines) < len(header["planned"]) == 400
    assert end is not None


def test_what_does_not_apply_is_said_and_is_no_success(conform: Conform, place: Path) -> None:
    lacking = PASSES.replace("given:", "requires: md5\ngiven:")
    done = conform("run", "cases", lacking=lacking, passes=PASSES)
    assert done.returncode == 0
    line = _run_file(place)[1]["bench/lacking.v4"]
    assert (line["result"], line["transcript"]) == ("not-applicable", [])
    assert "md5" in line["verdict"]["reason"]
    assert conform("run", "cases/bench/lacking.yaml").returncode == 5


def test_a_trial_that_takes_too_long_is_an_error(conform: Conform, place: Path) -> None:
    done = conform("run", "cases", "--timeout", "1", "--ip", "4", waits=WAITS)
    assert done.returncode == 3
    line = _run_file(place)[1]["bench/waits.v4"]
    assert line["result"] == "error"
    assert "--timeout" in line["verdict"]["reason"]


def test_processes_and_shared_descriptors(conform: Conform, place: Path) -> None:
    done = conform("run", "cases", "--repeat", "5", forks=FORKS)
    assert done.returncode == 0, done.stdout
    assert _run_file(place)[2]["counts"] == {"pass": 10}  # type: ignore[index]


def test_judged_again_all_is_the_same(conform: Conform, place: Path) -> None:
    conform("run", "cases", passes=PASSES, fails=FAILS, forks=FORKS)
    done = conform("judge", "reports/latest", "--out", "again")
    assert done.returncode == 1
    assert "6 trials judged again: 4 pass, 2 fail" in done.stdout
    path = place / "reports/latest/run.jsonl"
    path.write_text(path.read_text().replace('"flags":"FA"', '"flags":"A"'))
    done = conform("judge", "reports/latest", "--out", "again")
    assert done.returncode == 3
    assert "bench/passes.v4" in done.stderr


def test_a_directory_is_used_again(conform: Conform, place: Path) -> None:
    assert conform("run", "cases", "--out", "here", "--pcap", "all", passes=PASSES, fails=FAILS).returncode == 1
    assert len(list((place / "here/pcap").iterdir())) == 4
    done = conform("run", "cases", "--out", "here", "--lf", "--pcap", "all")
    assert done.returncode == 1
    assert sorted(each.name for each in (place / "here/pcap").iterdir()) == [
        "bench--fails.v4.pcapng",
        "bench--fails.v6.pcapng",
    ]
    assert not (place / "reports").exists()


def _until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.01)


def _count(place: Path) -> int:
    path = place / "reports/latest/run.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_ends_within_a_second_and_reports(place: Path, number: signal.Signals) -> None:
    for name, text in {"passes": PASSES, "waits": WAITS}.items():
        (place / f"cases/bench/{name}.yaml").write_text(text)
    process = _start(place, "run", "cases", "--repeat", "20")
    _until(lambda: _count(place) > 20)
    os.killpg(process.pid, number)  # as a terminal does
    started = time.monotonic()
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - started < 1.5  # a second, on a machine that does other things
    assert process.returncode == 128 + number
    assert "Traceback" not in err
    header, lines, end = _run_file(place)
    assert len(header["planned"]) == 80
    assert end is not None
    assert end["counts"] == {"pass": len(lines)}
    assert f"{len(lines)}" in out


def test_a_worker_that_dies_costs_its_trials_and_no_others(place: Path) -> None:
    for name, text in {"passes": PASSES, "waits": WAITS.replace("30s", "2s")}.items():
        (place / f"cases/bench/{name}.yaml").write_text(text)
    process = _start(place, "run", "cases", "--repeat", "20")
    _until(lambda: _count(place) > 5)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text() == "conform-worker\n"]
    os.kill(workers[0], signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == 3
    header, lines, end = _run_file(place)
    assert end is not None
    assert sorted(lines) == sorted(header["planned"])
    assert set(end["counts"]) == {"pass", "error"}
    broken = [line for line in lines.values() if line["result"] == "error"]
    assert all("killed by SIGKILL" in line["verdict"]["reason"] for line in broken)
