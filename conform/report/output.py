"""Standard output that may be lost: nobody reads it any more, or the disk that it goes to is full.

Whoever prints hears of that once, by an exception that neither click nor rich makes something else of; from then on
what is printed goes nowhere.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys


class UnheardError(Exception):
    """Standard output takes nothing any more. ``number`` is the errno."""

    def __init__(self, number: int) -> None:
        super().__init__(os.strerror(number))
        self.number = number


class _Raw(io.FileIO):
    """A descriptor that says once that it takes nothing any more."""

    _lost = False

    def write(self, data: bytes) -> int:  # type: ignore[override]
        if not self._lost:
            try:
                return super().write(data)
            except OSError as error:
                self._lost = True
                if error.errno != errno.EPIPE:
                    with contextlib.suppress(OSError):
                        print(f"standard output: {error.strerror}; nothing more is said there", file=sys.stderr)
                raise UnheardError(error.errno or errno.EIO) from None
        return memoryview(data).nbytes


def install() -> None:
    """Have ``sys.stdout`` raise :class:`UnheardError`, once, where it raised OSError; to be called first of all."""
    for descriptor in (0, 1, 2):  # one that is closed would become the first file or socket that is opened
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    out = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 - it is as good as its descriptor
    if not isinstance(out, io.TextIOWrapper):
        return
    out.flush()
    raw = _Raw(out.fileno(), "wb", closefd=False)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(raw), out.encoding, out.errors, line_buffering=out.line_buffering or out.write_through
    )
