"""The whole suite many times, with busy loops beside it: not one verdict may differ. By hand.

``--loops 0 -n 10 --option=--stack=lwip --option='--tag=!slow'``: the same of another stack. What a sporadic entry of
its list of deviations explains is told, and is no difference.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

import harness


def main() -> None:
    """Run, print what differs, and exit 1 when anything does."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-n", type=int, default=20, help="runs")
    parser.add_argument("--loops", type=int, default=2, help="busy loops beside")
    parser.add_argument("--user", type=int, help="run as that user id (wants root)")
    parser.add_argument("paths", nargs="*", default=[str(harness.ROOT / "cases")])
    parser.add_argument(
        "--option", action="append", default=[], help="passed on to conform run, as --option=--link=veth"
    )
    options = parser.parse_args()
    verdicts: dict[str, Counter[str]] = {}
    chance: list[str] = []
    with tempfile.TemporaryDirectory() as temporary, harness.busy(options.loops):
        Path(temporary).chmod(0o777)
        for number in range(options.n):
            out = Path(temporary, str(number))
            arguments = ["run", *options.paths, "--out", str(out), *options.option]
            started = time.monotonic()
            done = subprocess.run(
                harness.command(*arguments, user=options.user),
                env=harness.environment(),
                stdout=subprocess.DEVNULL,
                check=False,
            )
            counts: Counter[str] = Counter()
            again = 0
            for line in map(json.loads, (out / "run.jsonl").read_text().splitlines()):
                if line["kind"] == "trial":
                    if (line["expectation"] or {}).get("sporadic"):
                        chance.append(f"run {number + 1}: {line['id']}: {line['verdict']['failure']['summary']}")
                    else:
                        verdicts.setdefault(line["id"], Counter())[_verdict(line)] += 1
                    counts[line["result"]] += 1
                    again += line["attempt"] > 1
            wall = time.monotonic() - started
            print(
                f"run {number + 1}: exit {done.returncode}, {wall:.1f} s, {dict(counts)}, {again} run again", flush=True
            )
    missed = Counter(entry.split(": ")[1] for entry in chance)
    differ = {n: seen for n, seen in verdicts.items() if len(seen) > 1 or seen.total() + missed[n] != options.n}
    print("".join(f"by chance, {entry}\n" for entry in chance), end="")
    for name, seen in differ.items():
        print(f"{name}:")
        for verdict, count in seen.most_common():
            print(f"  {count} x {verdict}")
    print(f"{len(verdicts)} trials x {options.n} runs beside {options.loops} busy loops: {len(differ)} differ")
    raise SystemExit(bool(differ))


def _verdict(line: dict[str, object]) -> str:
    verdict = line["verdict"]
    assert isinstance(verdict, dict)
    failure = verdict["failure"]
    return f"{line['result']} {failure['step'] if failure else ''} {verdict['reason']}"


if __name__ == "__main__":
    main()
