"""Says how many live tests passed in words of their own: .ci/run wants to see some, whatever the others say."""

from __future__ import annotations

from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    passed = [each for each in terminalreporter.getreports("passed") if "tests/live/" in each.nodeid]
    terminalreporter.write_line(f"live tests: {len(passed)} passed")
