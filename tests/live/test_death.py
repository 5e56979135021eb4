"""conform is killed, and nothing of it stays: a small version of tests/bench/death.py, which says how it is seen."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

import death
import machine

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="canaries want root")


@pytest.mark.parametrize("seed", [3, 0, 1])
def test_nothing_is_left(seed: int) -> None:
    machine.needs_trials()
    found = death.kill_once(seed)
    assert found.problems == ()
    assert found.gone is not None
