"""What is done before and after the trials: reading the catalogue, loading cases, writing the page. By hand."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import harness

from conform.case.load import load
from conform.report import html
from conform.requirements import catalogue

TEXT = """\
title: An active close, from FIN-WAIT-1 over FIN-WAIT-2 to TIME-WAIT
covers: [9293-3.6-normal-close-fig12]
given: {state: ESTABLISHED, options: {mss: 1000}}
matrix: {axes: {n: [1, 2]}}
steps:
  - call: close
  - expect: {flags: FA, seq: SND.NXT, ack: RCV.NXT, as: fin}
  - state: FIN-WAIT-1
  - send: {flags: A, ack: fin.end, payload: "${n}"}
  - state: FIN-WAIT-2
  - send: {flags: FA}
  - expect: {flags: A, seq: SND.NXT, ack: RCV.NXT, within: timer.delayed-ack.max}
  - state: TIME-WAIT
"""
CASES, TRIALS = 300, 2000


def main() -> None:
    """Measure, print, and exit 1 when a bar is missed."""
    begun = time.process_time()
    catalogue()
    read = time.process_time() - begun
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(CASES):
            harness.case(Path(temporary), f"case-{number}", TEXT)
        begun = time.process_time()
        loaded = load([Path(temporary)])
        loading = time.process_time() - begun
        assert len(loaded.cases) == CASES
        cases = harness.case(Path(temporary) / "one", "passive", harness.PASSIVE_CLOSE)
        done = harness.measured(harness.command("run", str(cases), "--out", f"{temporary}/out"))
        assert done.code == 0
        header, line, end = map(json.loads, (Path(temporary) / "out/run.jsonl").read_text().splitlines())
        begun = time.process_time()
        writer = html.Writer(header, Path(temporary) / "page.html", catalogue())
        for number in range(TRIALS):
            writer.trial({**line, "id": f"{line['case']}.v4#{number}"})
        writer.finish(end)
        page = (time.process_time() - begun) / TRIALS
    print(f"the catalogue of requirements: {read * 1000:.0f} ms CPU")
    print(f"loading {CASES} cases of eight steps, two rows each: {loading:.2f} s CPU")
    print(f"the page: {page * 1000:.2f} ms CPU a trial")
    raise SystemExit(read > 0.05 or loading > 2 or page > 0.005)


if __name__ == "__main__":
    main()
