"""What main and its workers say to each other: frames on a stream socket."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections import deque
from collections.abc import Iterator

_HEADER = struct.Struct("=cII")
_CHUNK = 1 << 18

#: Main to a worker: run that trial; end at once.
RUN, QUIT = b"T", b"Q"
#: A worker to main: there is room for so many more; that trial is begun; that trial is finished (payload: an Outcome);
#: running and waiting (index: running, payload: waiting), which also says that the worker lives; the worker itself
#: failed (payload: why).
ROOM, BEGUN, FINISHED, PROGRESS, FAILED = b"R", b"B", b"F", b"P", b"E"

_SUMMARY = struct.Struct("=?dB")
RESULTS = (
    "pass", "fail", "inconclusive", "error", "not-applicable", "expected-failure", "unexpected-pass", "flaky",
)  # fmt: skip


def summary(result: str, expected: bool, duration: float, line: bytes) -> bytes:
    """The payload of FINISHED."""
    return _SUMMARY.pack(expected, duration, RESULTS.index(result)) + line


def unpack_summary(payload: bytes) -> tuple[str, bool, float, bytes]:
    """``(result, expected, duration, line)`` of FINISHED."""
    expected, duration, result = _SUMMARY.unpack_from(payload)
    return RESULTS[result], expected, duration, payload[_SUMMARY.size :]


class Channel:
    """One end. It never blocks: what cannot be sent yet is kept, and ``flush`` tries again."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        with contextlib.suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self._end = end
        self._in = bytearray()
        self._out: deque[memoryview] = deque()
        self.ended = False

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._end.fileno()

    @property
    def behind(self) -> bool:
        """Whether something waits to be sent."""
        return bool(self._out)

    def send(self, kind: bytes, index: int, payload: bytes = b"") -> None:
        """Send a frame, now or with a later ``flush``. To an end that is gone it goes nowhere."""
        self._out.append(memoryview(_HEADER.pack(kind, index, len(payload)) + payload))
        self.flush()

    def flush(self) -> None:
        """Send what there is room for."""
        while self._out:
            try:
                sent = self._end.send(self._out[0], socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            except OSError:
                self._out.clear()
                return
            if sent == len(self._out[0]):
                self._out.popleft()
            else:
                self._out[0] = self._out[0][sent:]

    def receive(self) -> Iterator[tuple[bytes, int, bytes]]:
        """The frames that have arrived whole: ``(kind, index, payload)``. Sets ``ended`` at the end of file."""
        while True:
            try:
                data = self._end.recv(_CHUNK)
            except BlockingIOError:
                break
            except ConnectionError:
                data = b""
            if not data:
                self.ended = True
                break
            self._in += data
            if len(data) < _CHUNK:
                break
        at = 0
        while len(self._in) - at >= _HEADER.size:
            kind, index, length = _HEADER.unpack_from(self._in, at)
            end = at + _HEADER.size + length
            if len(self._in) < end:
                break
            payload = bytes(self._in[at + _HEADER.size : end])
            at = end
            yield kind, index, payload
        del self._in[:at]

    def close(self) -> None:
        """Close the socket."""
        self._end.close()
