"""Says how many live tests passed in words of their own: .ci/run wants to see some, whatever the others say."""

from __future__ import annotations

from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line(f"live tests: {len(terminalreporter.getreports('passed'))} passed")
