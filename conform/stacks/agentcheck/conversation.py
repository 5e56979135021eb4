"""An agent under check: its process, what was said to it and what it said, and what of that the protocol forbids."""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, Any

#: Loopback: what a kernel's stack reaches itself at.
ADDRESSES = {4: ("127.0.0.1", "127.0.0.1"), 6: ("::1", "::1")}
#: Seconds within which a call that does not sleep is replied to, and an agent ends after the end of its input.
BOUND = 5.0
#: Seconds in which what must not come would have come.
_QUIET = 0.2
#: How the protocol names an errno.
ERROR_NAME = re.compile(r"E[A-Z0-9]+")
#: The other names of numbers that two names share.
_OTHER_NAMES = {"EWOULDBLOCK": "EAGAIN", "ENOTSUP": "EOPNOTSUPP"}
#: The id of a line whose id cannot be read.
UNREAD = -1

Reply = dict[str, Any]


class Violation(Exception):  # noqa: N818
    """The agent does otherwise than *rule*, which the document's *section* says."""

    def __init__(self, came: str, rule: str, section: str) -> None:
        super().__init__(came)
        self.came, self.rule, self.section = came, rule, section


class Unchecked(Exception):  # noqa: N818
    """The check cannot be made here; the text says why."""


class StartError(Exception):
    """The command cannot be started."""


@dataclass(frozen=True, slots=True)
class Setup:
    """How the agent is run: its command; by IP version the addresses, and what hello tells of the link beside them;
    within how many seconds of its start it replies to hello; and to a call that does not sleep, or ends.
    """

    command: Sequence[str]
    addresses: dict[int, tuple[str, str]] = field(default_factory=lambda: dict(ADDRESSES))
    link: dict[int, dict[str, Any]] = field(default_factory=dict)
    within: float = 30.0
    bound: float = BOUND
    #: A setting that the stack has, and a value for it that it does not have by itself.
    settings: dict[str, str] = field(default_factory=dict)


class Agent:
    """The program, and what was said on its standard input and output."""

    def __init__(self, setup: Setup) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                setup.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, bufsize=0
            )
        except OSError as error:
            self._errors.close()
            raise StartError(f"{setup.command[0]}: {error.strerror}") from None
        self._bound = setup.bound
        self._rest = b""
        self.lines: list[str] = []
        self._pending: set[int] = set()
        self._told: set[int] = set()
        #: What the last hello ended: the calls that slept, and those that may have been replied to already.
        self._slept: set[int] = set()
        self._flying: set[int] = set()
        #: Replies that came before they were asked for, by id.
        self._kept: dict[int, list[Reply]] = {}
        self.ended = False

    def close(self) -> None:
        """End it, whatever it does."""
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        try:
            self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def error_output(self) -> list[str]:
        """The last lines of its standard error."""
        self._errors.seek(0)
        return self._errors.read()[-4096:].decode("utf-8", "replace").splitlines()[-5:]

    def write(self, data: bytes) -> None:
        """Send *data*, which need be no whole line."""
        assert self._process.stdin is not None
        fd = self._process.stdin.fileno()
        os.set_blocking(fd, False)
        end = time.monotonic() + BOUND
        while data:
            if not select.select([], [fd], [], max(0.0, end - time.monotonic()))[1]:
                raise Violation(
                    "it does not read its input", "requests may follow at once, without waiting for a reply", "Hello"
                )
            try:
                data = data[os.write(fd, data) :]
            except BrokenPipeError:
                raise self._death() from None

    def send(self, message: dict[str, Any]) -> None:
        """Send one line."""
        text = json.dumps(message)
        self.lines.append("> " + _short(text))
        if "hello" in message:
            self._slept = self._told & self._pending
            self._flying = self._pending - self._told
            self._pending.clear()
            self._told.clear()
            self._kept.clear()
        elif isinstance(message.get("id"), int):
            self._pending.add(message["id"])
        self.write(text.encode() + b"\n")

    def send_octets(self, parts: Sequence[bytes], lines: Sequence[str], ids: Sequence[int]) -> None:
        """Send *lines*, requests of those *ids*, in *parts* with a little time between."""
        self.lines += ["> " + line for line in lines]
        self._pending.update(ids)
        for part in parts:
            self.write(part)
            time.sleep(0.02)

    def receive(self, within: float) -> Reply | None:
        """The next line, ``None`` where none comes *within* so many seconds. Raises Violation for one that is none."""
        end = time.monotonic() + within
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        while b"\n" not in self._rest:
            if self.ended:
                raise self._death()
            if not select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]:
                return None
            data = os.read(fd, 1 << 16)
            self.ended = not data
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        self.lines.append("< " + _short(line.decode("utf-8", "replace")))
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise Violation(
                "a line that is no JSON object", "what is not JSON on standard output is a fault", "The channel"
            )
        if "broke" in message:
            raise Violation("the agent broke", "the agent itself cannot go on", "Replies")
        return message

    def reply(self, id: int, within: float | None = None) -> Reply:
        """The next message for the request *id*; those for others are kept. Raises Violation where none comes."""
        within = self._bound if within is None else within
        end = time.monotonic() + within
        while not self._kept.get(id):
            message = self.receive(max(0.0, end - time.monotonic()))
            if message is None:
                raise Silence(f"no reply to {id} within {within:g} s", "each reply repeats the request's id", "Replies")
            if "hello" not in message:
                self._keep(message)
        return self._kept[id].pop(0)

    def greeting(self, within: float) -> Reply:
        """The reply to a hello that was sent, or the fault that refuses it. Raises Violation.

        What was under way and was not said to sleep may have been replied to before the hello was heard.
        """
        end = time.monotonic() + within
        while True:
            message = self.receive(max(0.0, end - time.monotonic()))
            if message is None:
                raise Violation(f"no reply within {within:g} s", "the first line in each direction", "Hello")
            id = message.get("id")
            if "hello" in message or ("fault" in message and id is None):
                return message
            if id in self._slept:
                raise Violation(f"a reply to {id}, which slept", "what was under way gets no reply", "Hello")
            if id not in self._flying:
                raise Violation("neither hello nor a fault without id", "the first line in each direction", "Hello")

    def quiet(self, seconds: float = _QUIET) -> None:
        """Raise Violation where a message comes in the next *seconds* that is none of a request under way."""
        end = time.monotonic() + seconds
        while (message := self.receive(max(0.0, end - time.monotonic()))) is not None:
            self._keep(message)

    def unheard(self, id: int) -> bool:
        """Whether no message for the request *id* has come that was not taken."""
        return not self._kept.get(id)

    def _keep(self, message: Reply) -> None:
        _check_shape(message)
        id = message.get("id")
        if id is None and "fault" in message:
            id = UNREAD
        if id not in self._pending:
            raise Violation(f"a reply to {id!r}, which awaits none", "one reply to each request", "Replies")
        if "blocked" in message:
            if id in self._told:
                raise Violation(f"blocked twice for {id}", "the agent says so once", "Overlapping")
            self._told.add(id)
        else:
            self._pending.discard(id)
        self._kept.setdefault(id, []).append(message)

    def finish(self) -> int:
        """Close its input; its exit status. Raises Violation where it does not end, or says what is no line of JSON."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self.lines.append("> (the end)")
        end = time.monotonic() + self._bound
        rule = "when conform closes the channel the agent resets every connection and ends"
        try:
            while self.receive(max(0.0, end - time.monotonic())) is not None:
                pass
        except Death as death:
            return death.status
        raise Violation(f"it still runs after {self._bound:g} s", rule, "The channel")

    def _death(self) -> Death:
        try:
            status = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return Death("it closed its standard output and runs on", -1)
        said = "".join(f"\n        | {line}" for line in self.error_output())
        return Death(f"the agent ended with status {status}{said}", status)


class Silence(Violation):
    """No reply came."""


class Death(Violation):
    """The agent ended, or its output did."""

    def __init__(self, came: str, status: int) -> None:
        super().__init__(came, "the agent ends when conform closes the channel, and not before", "The channel")
        self.status = status


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:150]}...{text[-30:]} ({len(text)} characters)"


def _check_shape(message: Reply) -> None:
    """Raise Violation where *message* is none of the replies that the document knows."""
    if "fault" in message:
        if not isinstance(message["fault"], str) or "returned" in message:
            raise Violation(
                "a fault that is no text, or a result too", "a fault is text, instead of a result", "Replies"
            )
    elif "blocked" in message or "timeout" in message:
        word = "blocked" if "blocked" in message else "timeout"
        if message[word] is not True or "returned" in message:
            raise Violation(f"{word} is not true, or comes with a result", f'{{"id": 7, "{word}": true}}', "Replies")
    elif not isinstance(message.get("returned"), int) or isinstance(message["returned"], bool):
        raise Violation("neither a number that was returned nor a fault", "returned: what the call returned", "Replies")
    elif (message["returned"] == -1) != ("error" in message):
        raise Violation("-1 without an error, or an error without -1", "else 0; -1 with error", "Replies")
    elif "error" in message:
        name = message["error"]
        if not isinstance(name, str) or not ERROR_NAME.fullmatch(name) or name in _OTHER_NAMES:
            raise Violation(
                f"{name!r} is no error's name",
                "the errno's name; where two names share a number: EAGAIN, EOPNOTSUPP",
                "Replies",
            )
