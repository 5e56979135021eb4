"""The directory that a run writes into: made or, of an earlier run's files, cleared; one run's at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from datetime import UTC, datetime
from pathlib import Path

from conform.run.lines import PCAP_DIRECTORY, pcap_name
from conform.run.runfile import LATEST, NAME, REPORTS, Reader, RunFileError, Writer

#: What a run writes into its directory besides its run file and its captures.
_REPORTS = ("junit.xml", "report.html")


class PlaceError(Exception):
    """The directory cannot be this run's. Says why."""


class Place:
    """A run's directory while the run lasts."""

    def __init__(self, out: Path | None, stack: str) -> None:
        """*out*, or a new one under ``reports``, named by the time and *stack*. Raises PlaceError."""
        self._lock = -1
        try:
            if out is not None:
                out.mkdir(parents=True, exist_ok=True)
                self.directory = out
            else:
                self.directory = _new(stack)
            self._take()
            if out is not None:
                _clear(out)
            self.writer = Writer(self.directory / NAME)
            if out is None:
                _point(REPORTS / LATEST, self.directory.name)
        except (OSError, PlaceError) as error:
            self._release()
            if isinstance(error, PlaceError):
                raise
            raise PlaceError(
                f"the run's directory cannot be made: {error.filename or out or REPORTS}: {error.strerror}"
            ) from None

    def _take(self) -> None:
        self._lock = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PlaceError(f"{self.directory}: another run writes there; give this one another --out") from None
        except OSError:
            return  # a file system without locks: that nobody else is there is left to the user

    def forget(self) -> None:
        """Take away a run file that does not even have its header."""
        self.writer.close()
        with contextlib.suppress(OSError):
            self.writer.path.unlink()

    def close(self) -> None:
        """The run is over."""
        self.writer.close()
        self._release()

    def _release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _clear(directory: Path) -> None:
    """Delete what an earlier run wrote to *directory*, and nothing else. Raises OSError, PlaceError."""
    run, captures = directory / NAME, directory / PCAP_DIRECTORY
    if not os.path.lexists(run):
        taken = [name for name in _REPORTS if os.path.lexists(directory / name)]
        if os.path.lexists(captures) and not (captures.is_dir() and not any(captures.iterdir())):
            taken.append(PCAP_DIRECTORY)
        if taken:
            raise PlaceError(
                f"{directory}: {', '.join(taken)} would be replaced, and there is no {NAME} beside that says that a run"
                " of conform wrote it; give another --out, or remove it"
            )
        return
    try:
        planned = Reader(run).header.get("planned")
    except RunFileError as error:
        raise PlaceError(f"{directory} is not replaced, as what is there is of no run of conform: {error}") from None
    own = {pcap_name(str(each)) for each in planned} if isinstance(planned, list) else set()
    if captures.is_dir():
        for each in list(captures.iterdir()):
            if f"{PCAP_DIRECTORY}/{each.name}" in own:
                each.unlink()
        with contextlib.suppress(OSError):  # what else is there is not ours
            captures.rmdir()
    for name in (*_REPORTS, NAME):
        (directory / name).unlink(missing_ok=True)


def _new(stack: str) -> Path:
    REPORTS.mkdir(exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    directory = REPORTS / f"{stamp}-{stack}"
    for number in range(2, 1000):
        try:
            directory.mkdir()
            break
        except FileExistsError:  # another run of this second
            directory = REPORTS / f"{stamp}-{stack}-{number}"
    return directory


def _point(link: Path, target: str) -> None:
    """Make *link* lead to *target*, at once. Where symbolic links cannot be had the run goes on without."""
    new = link.with_name(f".{link.name}-{os.getpid()}-{time.monotonic_ns()}")
    try:
        new.symlink_to(target)
        new.replace(link)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()
