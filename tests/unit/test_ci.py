"""What lands must have been tested: .ci/run does not take a run for a success in which no live test ran."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("told", "code"),
    [
        ("1800 passed in 60 s; live tests: 120 passed", 0),
        ("1800 passed in 60 s", 1),
        ("1800 passed in 60 s; live tests: 0 passed", 1),
        ("live tests: 120 passed", 1),
        ("no tests ran", 1),
    ],
)
def test_no_run_without_tests_is_a_success(tmp_path: Path, told: str, code: int) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")
    lines = "".join(f"echo '{line.strip()}'\n" for line in told.split(";"))
    (tmp_path / "README.md").write_text(f"<!-- tests -->\n```sh\n{lines}```\n")
    done = subprocess.run([tmp_path / ".ci/run"], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
