"""What a run's exit code is: one rule, for the run itself and for whoever judges it again (docs/run-format.md)."""

from __future__ import annotations

import signal
from collections.abc import Mapping

EXIT_OK, EXIT_UNEXPECTED, EXIT_USAGE, EXIT_BROKEN, EXIT_NOTHING = 0, 1, 2, 3, 5

#: Why a run of ``-x`` ended early, as the ``end`` line has it. Else that is a signal's name, or words.
FIRST = "-x"


def signal_of(stopped: str | None) -> int:
    """The number of the signal that stopped a run, 0 where none did."""
    found = signal.Signals.__members__.get(stopped or "")
    return 0 if found is None else int(found)


def signal_name(number: int) -> str:
    """SIGTERM, or ``signal 40`` of one that has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def exit_code(
    counts: Mapping[str, int], unexpected: int, unfinished: int, stopped: str | None = None, broken: bool = False
) -> int:
    """The exit code of a run.

    *counts* are its results; *unexpected* how many of them the gate is not content with, out-of-date entries of the
    lists of deviations included; *unfinished* how many planned trials have no verdict; *stopped* why it ended early,
    if it did; *broken*: conform itself failed, whatever the verdicts.
    """
    number = signal_of(stopped)
    if number:
        return 128 + number
    if broken or counts.get("error") or (unfinished and stopped != FIRST):
        return EXIT_BROKEN
    if unexpected:
        return EXIT_UNEXPECTED
    if counts.get("not-applicable", 0) == sum(counts.values()):
        return EXIT_NOTHING
    return EXIT_OK
