"""200 trials that each only wait two seconds must overlap. By hand."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import harness


def main() -> None:
    """Run, print, and exit 1 when the bar is missed."""
    with tempfile.TemporaryDirectory() as temporary:
        cases = harness.case(Path(temporary), "waits", harness.WAITS)
        arguments = ["run", str(cases), "--repeat", "200", "--out", f"{temporary}/out", *sys.argv[1:]]
        cost = harness.measured(harness.command(*arguments))
    print(f"200 trials of 2 s each: {cost.wall:.2f} s wall, {cost.cpu:.2f} s CPU, exit {cost.code}")
    raise SystemExit(cost.code != 0 or cost.wall > 6.0)


if __name__ == "__main__":
    main()
