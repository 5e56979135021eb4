"""A test of what an attacker's text must not do: last for ever."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

#: Seconds of CPU. No measure of speed: what this is to catch grows with the square of the text, and takes hours.
PATIENCE = 60


@contextmanager
def ends() -> Iterator[None]:
    """Raise TimeoutError out of the body if it is still at it after :data:`PATIENCE`."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"still at it after {PATIENCE} s of CPU")

    before = signal.signal(signal.SIGVTALRM, give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
