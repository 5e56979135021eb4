"""A worker's event loop: descriptors, timers, and how late it is.

asyncio would do, but for two things that timing verdicts need: the time at which a descriptor was last found empty,
and timers that fire only after the descriptors were looked at.
"""

from __future__ import annotations

import heapq
import itertools
import selectors
import time
from collections.abc import Callable


class Timer:
    """A call to come; ``cancel`` it to have it not come."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callable[[], None] | None) -> None:
        self.when = when
        self.callback = callback

    def cancel(self) -> None:
        self.callback = None


class Loop:
    """Descriptors and timers, one thread.

    ``now`` is the monotonic time at which this turn's look at the descriptors ended, ``looked`` when it began, and
    ``polled`` the latest moment at which the turn before knew that nothing was unread: what is readable now and was not
    then arrived between ``polled`` and ``now``. These are not the clock read after the look before: a process that is
    put off between a look and its clock reading would swear to an emptiness that it had not seen.

    ``busy`` is how long the turn before took beyond its look: what another event would have had to wait.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self.now = self.polled = self.looked = self._empty = time.monotonic()
        self.busy = 0.0

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        """Call *callback* in each turn in which *fd* is readable or at its end."""
        self._selector.register(fd, selectors.EVENT_READ, callback)

    def remove_reader(self, fd: int) -> None:
        """Forget *fd*. To be called before it is closed."""
        self._selector.unregister(fd)

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call *callback* once, in the first turn that began to look at the descriptors at or after *when*."""
        timer = Timer(when, callback)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def turn(self, longest: float = 1.0) -> None:
        """One turn: look (for at most *longest* seconds), serve what is readable, then the timers that are due."""
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        looked = time.monotonic()
        self.busy = looked - self.now
        timeout = longest
        if self._timers:
            timeout = min(longest, max(0.0, self._timers[0][0] - looked))
        self.polled = self._empty
        self.looked = looked
        ready = self._selector.select(timeout)
        self.now = time.monotonic()
        # A look that found nothing waited its whole timeout; one that found something may have found it at once.
        self._empty = looked if ready else min(looked + timeout, self.now)
        for key, _ in ready:
            if self._selector.get_map().get(key.fd) is key:  # a callback before this one may have removed it
                key.data()
        while self._timers and self._timers[0][0] <= looked:
            timer = heapq.heappop(self._timers)[2]
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()

    def close(self) -> None:
        """Let go of the selector."""
        self._selector.close()
