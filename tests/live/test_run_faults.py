"""`conform run` when the world is not kind: its output, its disk, its workers, its warden, its directory."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

from test_run import DEVIATION, FAILS, PASSES, WAITS, Conform, _count, _run_file, _start, _until, conform, place

from conform.run.runfile import Reader

__all__ = ["conform", "place"]  # fixtures


def _write(place: Path, **cases: str) -> None:
    for name, text in cases.items():
        (place / f"cases/bench/{name}.yaml").write_text(text)


def _named(main: int, name: str) -> list[int]:
    """The children of *main* of that name."""
    pids = Path(f"/proc/{main}/task/{main}/children").read_text().split()
    return [int(pid) for pid in pids if Path(f"/proc/{pid}/comm").read_text() == f"{name}\n"]


def test_a_full_disk_ends_the_run_in_order(place: Path) -> None:
    _write(place, passes=PASSES)
    limit = 300_000  # of a file's size: as a full disk, but for the word
    process = _start(
        place, "run", "cases", "--repeat", "200",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    out, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "Traceback" not in out + err
    assert out.count("run.jsonl: File too large; the run is given up") == 1
    header, lines, end = _run_file(place)
    assert end is None
    assert 0 < len(lines) < len(header["planned"])
    assert (place / "reports/latest/run.jsonl").read_bytes().endswith(b"\n")
    junit = (place / "reports/latest/junit.xml").read_text()
    assert junit.count("<testcase") == len(header["planned"])
    assert junit.count("<error") == len(header["planned"]) - len(lines)  # those without a verdict
    assert "did not come to its end" not in err
    assert (place / "reports/latest/report.html").exists()


def test_a_worker_that_does_not_come_back_costs_its_trials_and_no_others(place: Path) -> None:
    _write(place, passes=PASSES, waits=WAITS.replace("30s", "2s"))
    process = _start(place, "run", "cases", "--repeat", "20", "-j", "2")
    _until(lambda: _count(place) > 5)
    stopped = _named(process.pid, "conform-worker")[0]
    os.kill(stopped, signal.SIGSTOP)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 3
    assert not Path(f"/proc/{stopped}").exists()
    assert "a worker died: it said nothing for 15 s" in out
    header, lines, _ = _run_file(place)
    assert sorted(lines) == sorted(header["planned"])
    broken = [line for line in lines.values() if line["result"] == "error"]
    assert 0 < len(broken) < len(lines) / 2


def test_without_a_warden_there_is_no_run(place: Path) -> None:
    _write(place, passes=PASSES)
    process = _start(place, "run", "cases", "--repeat", "2000")
    _until(lambda: _count(place) > 20)
    os.kill(_named(process.pid, "conform-warden")[0], signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "Traceback" not in out + err
    assert out.count("the warden, which cleans up") == 1
    assert "BrokenPipe" not in out
    header, lines, end = _run_file(place)
    assert end is not None
    assert set(end["counts"]) == {"pass"}
    assert len(lines) < len(header["planned"])


def test_one_directory_is_one_runs(place: Path, conform: Conform) -> None:
    _write(place, waits=WAITS)
    first = _start(place, "run", "cases", "--out", "here")
    _until(lambda: (place / "here/run.jsonl").exists() and (place / "here/run.jsonl").stat().st_size > 0)
    second = conform("run", "cases", "--out", "here")
    assert (second.returncode, second.stderr) == (
        2,
        "here: another run writes there; give this one another --out\n",
    )
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=30)
    reader = Reader(place / "here")
    assert list(reader.trials()) == []
    assert reader.end is not None
    assert (reader.end["stopped"], reader.end["exit"]) == ("SIGINT", 130)
    assert conform("judge", "here").returncode == 130


def test_what_is_not_conforms_is_not_deleted(place: Path, conform: Conform) -> None:
    (place / "here/pcap").mkdir(parents=True)
    (place / "here/pcap/mine.pcapng").write_text("mine")
    done = conform("run", "cases", "--out", "here", passes=PASSES)
    assert done.returncode == 2
    assert "here: pcap would be replaced" in done.stderr
    assert (place / "here/pcap/mine.pcapng").read_text() == "mine"


def _finished(place: Path) -> None:
    header, lines, end = _run_file(place)
    assert end is not None
    assert sorted(lines) == header["planned"]
    assert (place / "reports/latest/junit.xml").exists()
    assert (place / "reports/latest/report.html").exists()


def test_a_run_that_nobody_reads_goes_on(place: Path) -> None:
    _write(place, passes=PASSES)
    reading, writing = os.pipe()
    os.close(reading)
    with open("/dev/full", "w") as full:
        for out, said in (
            (writing, ""),
            (full, "standard output: No space left on device; nothing more is said there\n"),
        ):
            process = _start(place, "run", "cases", stdout=out)
            _, err = process.communicate(timeout=60)
            assert (process.returncode, err) == (0, said)
            _finished(place)
    os.close(writing)


def test_annotations_where_the_output_takes_ascii_only(place: Path) -> None:
    _write(place, fails=FAILS)
    process = _start(
        place, "run", "cases",
        env=os.environ | {"GITHUB_ACTIONS": "true", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"},
    )  # fmt: skip
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert out.count("::error file=cases/bench/fails.yaml") == 2
    assert out.isascii()
    assert err == ""


def test_settings_that_the_machine_cannot_have(place: Path, conform: Conform) -> None:
    done = conform(
        "run", "cases",
        small=PASSES.replace("given:", "settings: {mtu: 576}\ngiven:"),
        unknown=PASSES.replace("given:", "requires: linux\nsysctl: {net.ipv4.tcp_no_such_thing: 1}\ngiven:"),
        refused=PASSES.replace("given:", "requires: linux\nsysctl: {net.ipv4.tcp_syn_retries: 100000}\ngiven:"),
    )  # fmt: skip
    lines = _run_file(place)[1]
    assert {name: line["result"] for name, line in lines.items()} == {
        "bench/small.v4": "pass", "bench/small.v6": "not-applicable",
        "bench/unknown.v4": "not-applicable", "bench/unknown.v6": "not-applicable",
        "bench/refused.v4": "error", "bench/refused.v6": "error",
    }  # fmt: skip
    assert lines["bench/unknown.v4"]["verdict"]["reason"] == "this kernel has no sysctl net.ipv4.tcp_no_such_thing"
    told = "the trial could not be set up: Invalid argument: sysctl net.ipv4.tcp_syn_retries = 100000"
    assert lines["bench/refused.v4"]["verdict"]["reason"] == told
    assert "Traceback" not in done.stdout
    assert done.returncode == 3


def test_an_entry_that_matches_nothing_reddens_the_whole_run_alone(place: Path, conform: Conform) -> None:
    (place / "cases/bench/expectations").mkdir()
    (place / "cases/bench/expectations/linux.yaml").write_text(
        DEVIATION.format(message="seq") + DEVIATION.format(message="seq").replace("fails", "gone")
    )
    done = conform("run", "cases", fails=FAILS)
    assert "cases/bench/expectations/linux.yaml:6:1: no trial matches bench/gone.*" in done.stdout
    assert done.returncode == 1
    _, lines, end = _run_file(place)
    assert {line["result"] for line in lines.values()} == {"expected-failure"}
    assert end is not None
    assert end["exit"] == 1
    assert conform("judge", "reports/latest").returncode == 1
    assert conform("run", "cases", "-k", "fails").returncode == 0
    assert conform("run", "cases/bench/fails.yaml").returncode == 0
    assert conform("run", "cases", "--ip", "4").returncode == 0
