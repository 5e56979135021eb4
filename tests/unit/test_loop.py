"""The loop's promises to timing verdicts: when nothing was there, and timers only after a look."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest

from conform.run.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def test_timers_fire_in_order_and_once(loop: Loop) -> None:
    fired: list[str] = []
    start = time.monotonic()
    loop.call_at(start + 0.002, lambda: fired.append("second"))
    loop.call_at(start + 0.001, lambda: fired.append("first"))
    loop.call_at(start + 0.001, lambda: fired.append("cancelled")).cancel()
    while time.monotonic() < start + 0.05:
        loop.turn(0.01)
    assert fired == ["first", "second"]


def test_a_timer_fires_after_what_was_readable_at_its_time(loop: Loop) -> None:
    reader, writer = os.pipe()
    order: list[str] = []
    loop.add_reader(reader, lambda: order.append(os.read(reader, 1).decode()))
    loop.call_at(time.monotonic() - 1, lambda: order.append("timer"))
    os.write(writer, b"x")
    loop.turn()
    assert order == ["x", "timer"]
    loop.remove_reader(reader)
    os.close(reader)
    os.close(writer)


def test_a_timer_does_not_fire_in_a_turn_that_looked_before_its_time(loop: Loop) -> None:
    reader, writer = os.pipe()
    fired: list[float] = []

    def slow() -> None:
        os.read(reader, 1)
        time.sleep(0.01)  # the timer comes due while this turn is at work

    loop.add_reader(reader, slow)
    loop.call_at(time.monotonic() + 0.005, lambda: fired.append(loop.looked))
    os.write(writer, b"x")
    loop.turn()
    assert not fired
    loop.turn()
    assert len(fired) == 1
    assert loop.busy >= 0
    loop.remove_reader(reader)
    os.close(reader)
    os.close(writer)


def test_polled_is_never_after_the_arrival(loop: Loop) -> None:
    reader, writer = os.pipe()
    seen: list[tuple[float, float]] = []

    def read() -> None:
        os.read(reader, 1)
        seen.append((loop.polled, loop.now))

    loop.add_reader(reader, read)
    for _ in range(20):
        loop.turn(0.001)
        written = time.monotonic()
        os.write(writer, b"x")
        loop.turn()
        since, now = seen[-1]
        assert since <= written <= now
    loop.remove_reader(reader)
    os.close(reader)
    os.close(writer)


def test_a_reader_removed_by_another_is_not_called(loop: Loop) -> None:
    pipes = [os.pipe(), os.pipe()]
    called: list[int] = []

    def drop(mine: int, other: int) -> Callable[[], None]:
        def callback() -> None:
            called.append(mine)
            loop.remove_reader(other)
            os.read(mine, 1)

        return callback

    (first, _), (second, _) = pipes
    loop.add_reader(first, drop(first, second))
    loop.add_reader(second, drop(second, first))
    for _, writer in pipes:
        os.write(writer, b"x")
    loop.turn()
    assert len(called) == 1
    for pair in pipes:
        for fd in pair:
            os.close(fd)
