"""An agent at the other end of a pair of byte streams, seen from the worker (docs/agent-protocol.md).

One agent may serve many trials, one after the other: each begins with a hello.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from conform.stacks.agent.calls import PROTOCOL
from conform.stacks.seams import Loop, OnBlocked, OnBroke, OnReply, Timer

#: What poll's own time-out may be late by before conform gives up on the agent, in seconds.
_GRACE = 1.0
#: A line longer than this is no reply.
_LONGEST = 4 << 20
#: How often the agent is read from in one turn of the loop, 64 KiB at most each time.
_READS = 64


@dataclass(slots=True)
class _Pending:
    id: int
    reply: OnReply
    blocked: OnBlocked
    timer: Timer | None


class Channel:
    """Talks to an agent on the descriptors *read* and *write*, which it takes over.

    ``on_broke`` is called once, with the reason, when the agent says what it must not, or closes its end. Requests of
    a trial go through a :class:`ChannelAgent`.
    """

    def __init__(self, loop: Loop, read: int, write: int, on_broke: OnBroke) -> None:
        self._loop = loop
        self._read_fd = read
        self._write_fd = write
        self._on_broke = on_broke
        self._numbers = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._hello: Callable[[dict[str, Any]], None] | None = None
        self._hellos = 0  # that were sent and not replied to
        self._inbox = b""
        self._outbox = b""
        self._retry: Timer | None = None
        self.closed = False
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        loop.add_reader(read, self._ready)

    def hello(self, said: dict[str, Any], heard: Callable[[dict[str, Any]], None]) -> None:
        """Begin a trial: what was under way is forgotten, *heard* gets the agent's reply."""
        for pending in self._pending.values():
            if pending.timer is not None:
                pending.timer.cancel()
        self._pending.clear()
        self._hello = heard
        self._hellos += 1
        self._write({"hello": PROTOCOL, **said})

    def request(self, id: int, request: dict[str, Any], reply: OnReply, blocked: OnBlocked) -> None:
        """Have *request* done; *reply* is called with *id* and what came of it."""
        number = next(self._numbers)
        timer = None
        timeout = request.get("timeout")
        if timeout is not None:
            when = time.monotonic() + timeout + (_GRACE if request.get("do") == "poll" else 0.0)
            timer = self._loop.call_at(when, lambda: self._end(number, {"timeout": True}))
        self._pending[number] = _Pending(id, reply, blocked, timer)
        self._write({"id": number, **request})

    def close(self) -> None:
        """Close both descriptors: the agent ends. Raises nothing, calls nothing."""
        if self.closed:
            return
        self.closed = True
        for pending in self._pending.values():
            if pending.timer is not None:
                pending.timer.cancel()
        self._pending.clear()
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self._read_fd)
        os.close(self._read_fd)
        if self._write_fd != self._read_fd:
            os.close(self._write_fd)

    def drain(self) -> None:
        """Take what the agent said and was not read yet, as before its process is found dead."""
        self._ready(_READS * _READS)

    # Lines -----------------------------------------------------------------------------------------------------------
    def _write(self, message: dict[str, Any]) -> None:
        if self.closed:
            return
        self._outbox += json.dumps(message, separators=(",", ":")).encode() + b"\n"
        self._flush()

    def _flush(self) -> None:
        while self._outbox and not self.closed:
            try:
                self._outbox = self._outbox[os.write(self._write_fd, self._outbox) :]
            except BlockingIOError:
                # A pipe that is full is rare (the agent does not read): looked at again, not watched.
                if self._retry is None:
                    self._retry = self._loop.call_at(time.monotonic() + 0.005, self._again)
                return
            except OSError:
                self._outbox = b""  # its end is near, and is told by what it was read from
                return

    def _again(self) -> None:
        self._retry = None
        self._flush()

    def _ready(self, most: int = _READS) -> None:
        for _ in range(most):  # others have their turn, too, whatever it says
            if self.closed:
                return
            try:
                data = os.read(self._read_fd, 1 << 16)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.EINTR:
                    continue
                data = b""
            if not data:
                self._broke("the agent closed its channel")
                return
            *lines, self._inbox = (self._inbox + data).split(b"\n")
            for line in lines:
                if not self.closed:
                    self._hear(line)
            if len(self._inbox) > _LONGEST:
                self._broke("the agent says a line without end")

    def _hear(self, line: bytes) -> None:
        try:
            message = json.loads(line)
            if not isinstance(message, dict):
                raise ValueError
        except (ValueError, RecursionError):
            self._broke(f"the agent said what is no JSON object: {line[:200].decode('utf-8', 'replace')!r}")
            return
        if "broke" in message:
            self._broke(str(message["broke"]))
            return
        if "hello" in message:
            self._hellos -= 1
            if self._hello is not None and self._hellos <= 0:
                heard, self._hello, self._hellos = self._hello, None, 0
                heard(message)
            return
        number = message.pop("id", None)
        if type(number) is not int:
            self._broke(f"the agent: {message.get('fault', line[:200].decode('utf-8', 'replace'))}")
            return
        if message.get("blocked"):
            pending = self._pending.get(number)
            if pending is not None:
                pending.blocked(pending.id)
            return
        self._end(number, message)

    def _end(self, number: int, reply: dict[str, Any]) -> None:
        pending = self._pending.pop(number, None)
        if pending is None or self.closed:
            return  # the late reply to a call that was given up, or of a trial that is over
        if pending.timer is not None:
            pending.timer.cancel()
        pending.reply(pending.id, reply)

    def _broke(self, reason: str) -> None:
        if not self.closed:
            self.close()
            self._on_broke(reason)
