"""A program that runs beside trials, and what it prints."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING

from conform.run.exits import signal_name

if TYPE_CHECKING:
    from conform.run.loop import Loop

#: How much of what a program printed is kept, in octets, and how many lines of it are shown.
_KEPT, _SHOWN, _WIDTH = 64 << 10, 12, 240
#: How often a stream is read from in one turn of the loop, 64 KiB at most each time.
_READS = 16


class Output:
    """What a program printed last."""

    def __init__(self) -> None:
        self._kept = b""

    def add(self, data: bytes) -> None:
        """More of it."""
        self._kept = (self._kept + data)[-_KEPT:]

    def __str__(self) -> str:
        lines = [line.rstrip() for line in self._kept.decode("utf-8", "replace").splitlines() if line.strip()]
        # Go says first what is wrong and then, at length, where everybody was.
        panic = next((number for number, line in enumerate(lines) if line.startswith(("panic:", "fatal error:"))), None)
        shown = lines[-_SHOWN:] if panic is None else lines[panic : panic + _SHOWN]
        return "\n".join(line if len(line) <= _WIDTH else line[:_WIDTH] + " …" for line in shown)


class Program:
    """A process that runs beside trials, in a session of its own, and what it prints."""

    def __init__(
        self,
        loop: Loop,
        command: list[str],
        environment: dict[str, str],
        output: Output,
        *,
        talks: bool,
        pass_fds: tuple[int, ...] = (),
        printed: Callable[[int, bytes], None],
        ended: Callable[[str], None],
    ) -> None:
        """Start it in the calling thread's network namespace. Raises OSError: it is not there, or cannot be run.

        With *talks* its standard input and output are pipes, in :attr:`stdin` and :attr:`stdout`. *printed* is called
        with a number of the stream and what was printed there, *ended* once, with how it ended.
        """
        self._loop = loop
        self._output = output
        self._printed = printed
        self._ended = ended
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **environment},
            pass_fds=pass_fds,
            start_new_session=True,
        )
        process = self._process
        assert process.stdout is not None
        assert process.stderr is not None
        self.stdin = os.dup(process.stdin.fileno()) if process.stdin is not None else -1
        self.stdout = os.dup(process.stdout.fileno()) if talks else -1
        self._streams = [os.dup(process.stderr.fileno())]
        if not talks:
            self._streams.append(os.dup(process.stdout.fileno()))
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        for fd in self._streams:
            os.set_blocking(fd, False)
            loop.add_reader(fd, lambda fd=fd: self._read(fd))  # type: ignore[misc]
        self._pidfd = os.pidfd_open(process.pid)
        loop.add_reader(self._pidfd, self._over)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def _read(self, fd: int) -> None:
        for _ in range(_READS):  # others have their turn, too, whatever it prints
            try:
                data = os.read(fd, 1 << 16)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._loop.remove_reader(fd)
                self._streams.remove(fd)
                os.close(fd)
                return
            self._output.add(data)
            self._printed(fd, data)

    def _over(self) -> None:
        if self._pidfd < 0:
            return
        status = self._process.wait()
        for fd in list(self._streams):
            self._read(fd)
        self._close()
        how = f"killed by {signal_name(-status)}" if status < 0 else f"exit status {status}"
        self._ended(how)

    def kill(self) -> None:
        """End it and what it started, now. *ended* is not called any more."""
        if self._pidfd < 0:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._close()
        self._process.wait()

    def _close(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # what it left of its own session
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        for fd in self._streams:
            self._loop.remove_reader(fd)
            os.close(fd)
        self._streams.clear()
