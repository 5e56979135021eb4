"""Whether a program speaks the agent protocol (docs/agent-protocol.md): ``conform agent-check``.

Each check is a conversation with an agent on its standard input and output; a failed one shows what was sent, what
came, and what the document says. The stack has no peer but itself: what needs one is checked where the stack reaches
its own address, and is else reported as not checked.
"""

from __future__ import annotations

import ipaddress
import itertools
import json
import os
import re
import select
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Literal

from conform.case.vocabulary import CAPABILITIES, SOCKET_OPTIONS, STATES
from conform.stacks.agent.calls import PROTOCOL

#: Loopback: what a kernel's stack reaches itself at.
ADDRESSES = {4: ("127.0.0.1", "127.0.0.1"), 6: ("::1", "::1")}
#: Seconds within which a call that does not sleep is replied to, and an agent ends after the end of its input.
BOUND = 5.0
#: Seconds in which what must not come would have come; after which a stack is taken for one that does not answer.
_QUIET, _PATIENCE = 0.2, 3.0
_SHOWN = 12
_ERROR = re.compile(r"E[A-Z0-9]+")
#: The other names of numbers that two names share.
_OTHER_NAMES = {"EWOULDBLOCK": "EAGAIN", "ENOTSUP": "EOPNOTSUPP"}
#: The calls of the least agent; another's may lack any of the rest.
_LEAST = frozenset({"socket", "bind", "listen", "accept", "connect", "send", "recv", "shutdown", "close"})

#: The id of a line whose id cannot be read.
_UNREAD = -1
#: Another in each process: a stack that outlives its agent may have connections in TIME-WAIT.
_PORTS = itertools.count(20000 + os.getpid() % 400 * 100)

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
class Finding:
    """What one check found. *lines* are the end of the conversation, ``>`` to the agent and ``<`` from it."""

    verdict: Literal["ok", "failed", "not checked"]
    what: str
    came: str = ""
    rule: str = ""
    section: str = ""
    lines: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.verdict == "ok":
            return f"ok      {self.what}"
        if self.verdict == "not checked":
            return f"--      {self.what}: not checked, {self.came}"
        shown = [f"FAILED  {self.what}", *(f"        {line}" for line in self.lines), f"        {self.came}"]
        return "\n".join([*shown, f'        docs/agent-protocol.md, "{self.section}": {self.rule}'])


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


def setup(
    command: Sequence[str],
    versions: Sequence[int],
    stacks: Sequence[str],
    testers: Sequence[str],
    link: dict[str, Any],
    within: float,
    settings: Sequence[str] = (),
) -> Setup:
    """A :class:`Setup` of addresses in either version, and of what hello tells of the link in both.

    A version that addresses are given without is left out; where none are given it is loopback. Raises ValueError for
    an address that is none, or without its other end, and for a setting that is not NAME=VALUE.
    """
    if any("=" not in each[1:] for each in settings):
        raise ValueError("--set wants NAME=VALUE")
    given = {ipaddress.ip_address(each).version: each for each in stacks}
    others = {ipaddress.ip_address(each).version: each for each in testers}
    if set(others) - set(given):
        raise ValueError("--tester without a --stack of its IP version")
    pairs = {version: (stack, others.get(version, stack)) for version, stack in given.items()} or ADDRESSES
    chosen = {version: pair for version, pair in pairs.items() if version in versions}
    if not chosen:
        raise ValueError("no --stack has that IP version")
    prefix = {4: 24, 6: 64}
    return Setup(
        command,
        dict(sorted(chosen.items())),
        {version: {**link, **({"prefix": prefix[version]} if given else {})} for version in chosen},
        within,
        settings=dict(each.split("=", 1) for each in settings),
    )


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
                raise _Silence(
                    f"no reply to {id} within {within:g} s", "each reply repeats the request's id", "Replies"
                )
            if "hello" not in message:
                self._keep(message)
        return self._kept[id].pop(0)

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
            id = _UNREAD
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
        except _Death as death:
            return death.status
        raise Violation(f"it still runs after {self._bound:g} s", rule, "The channel")

    def _death(self) -> _Death:
        try:
            status = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return _Death("it closed its standard output and runs on", -1)
        said = "".join(f"\n        | {line}" for line in self.error_output())
        return _Death(f"the agent ended with status {status}{said}", status)


class _Silence(Violation):
    """No reply came."""


class _Death(Violation):
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
        if not isinstance(name, str) or not _ERROR.fullmatch(name) or name in _OTHER_NAMES:
            raise Violation(
                f"{name!r} is no error's name",
                "the errno's name; where two names share a number: EAGAIN, EOPNOTSUPP",
                "Replies",
            )


class Bench:
    """An agent in a trial, and the words in which checks ask it."""

    def __init__(self, setup: Setup, version: int) -> None:
        self.setup, self.version = setup, version
        self.stack, self.tester = setup.addresses[version]
        self._ids = itertools.count(1)
        self._names = itertools.count(1)
        self._open: list[str] = []
        self.bound = setup.bound
        self.capabilities: frozenset[str] = frozenset()
        #: Why the stack does not reach itself, once that was tried; "" where it does.
        self.alone: str | None = None
        #: Whether a call sleeps that may hold up all others.
        self.stuck = False
        self.agent = Agent(setup)

    # Asking ----------------------------------------------------------------------------------------------------------
    def say_hello(self, **other: Any) -> None:
        """Say hello, with *other* keys."""
        said = {"hello": PROTOCOL, "ip": self.version, "stack": self.stack, "tester": self.tester}
        self.agent.send({**said, **self.setup.link.get(self.version, {}), **other})

    def hello(self, **other: Any) -> Reply:
        """Say hello, with *other* keys; the reply to it, or a fault. What belongs to the last trial may come first."""
        self.say_hello(**other)
        return self.heard_hello()

    def heard_hello(self) -> Reply:
        """The reply to a hello that was said."""
        end = time.monotonic() + self.setup.within
        while True:
            message = self.agent.receive(max(0.0, end - time.monotonic()))
            if message is None:
                raise Violation(f"no reply within {self.setup.within:g} s", "the first line in each direction", "Hello")
            if "hello" in message or "fault" in message:
                return message

    def begin(self, do: str, **arguments: Any) -> int:
        """Send a request; its id. ``name`` is the protocol's ``as``."""
        id = next(self._ids)
        renamed = {"as" if key == "name" and do != "set" else key: value for key, value in arguments.items()}
        self.agent.send({"id": id, "do": do, **renamed})
        return id

    def ask(self, do: str, **arguments: Any) -> Reply:
        """The reply to a request that is not to sleep."""
        reply = self.agent.reply(self.begin(do, **arguments))
        if "blocked" in reply:
            raise Violation("blocked, though overlap was not asked for", "with overlap alone", "Replies")
        if do not in _LEAST and "fault" in reply and "unknown call" in reply["fault"]:
            raise Unchecked(f"the agent has no {do}")
        return reply

    def ok(self, do: str, **arguments: Any) -> Reply:
        """As :meth:`ask`, of a call that must succeed. An error is the stack's, and leaves the check undone."""
        reply = self.ask(do, **arguments)
        self.no_fault(reply, do)
        if reply.get("timeout"):  # the agent counts as well: whose bound is over first is chance
            raise _Silence(f"{do} did not return in time", "each reply repeats the request's id", "Replies")
        if "error" in reply:
            raise Unchecked(f"{do} ended in {reply['error']} here")
        return reply

    def end(self, id: int) -> Reply:
        """The reply to a request that was begun and has slept: what it ended in."""
        reply = self.agent.reply(id)
        if "blocked" in reply:
            raise Violation("blocked instead of the reply", "the reply proper follows when it wakes", "Replies")
        self.no_fault(reply, "the call")
        return reply

    def soon(self, id: int) -> Reply:
        """The reply to a request that a stack may leave asleep for long, as one that timed out where none comes."""
        try:
            return self.agent.reply(id, _PATIENCE)
        except _Silence:
            self.stuck = True
            return {"timeout": True}

    def no_fault(self, reply: Reply, do: str) -> None:
        """Raise Violation where *reply* is a fault, for a request as the document has it."""
        if "fault" in reply:
            raise Violation(f"a fault: {reply['fault']}", f"{do} is made as it was asked for", "The calls")

    def faulty(self, reply: Reply, rule: str, section: str = "Replies") -> None:
        """Raise Violation where *reply* is no fault."""
        if "fault" not in reply:
            raise Violation("no fault", rule, section)

    def want(self, what: object, came: str, rule: str, section: str) -> None:
        """Raise Violation unless *what*."""
        if not what:
            raise Violation(came, rule, section)

    # Sockets ---------------------------------------------------------------------------------------------------------
    def need(self, capability: str) -> None:
        """Leave the check undone where the agent does not claim *capability*."""
        if capability not in self.capabilities:
            raise Unchecked(f"the agent does not claim {capability}")

    def socket(self) -> str:
        """A new socket, under a new name."""
        name = f"s{next(self._names)}"
        self.ok("socket", name=name)
        self._open.append(name)
        return name

    def listener(self) -> tuple[str, int]:
        """A socket that listens, and where."""
        name, port = self.socket(), next(_PORTS)
        self.ok("bind", on=name, address="any", port=port)
        self.ok("listen", on=name, backlog=4)
        return name, port

    def pair(self, overlap: bool = False) -> tuple[str, str, Reply]:
        """A connection of the stack with itself: its two ends, the one that connected first, and accept's reply.

        With *overlap*, accept sleeps when the other connects.
        """
        if self.alone:
            raise Unchecked(self.alone)
        listener, port = self.listener()
        client, server = self.socket(), f"s{next(self._names)}"
        sleeper = None
        if overlap:
            sleeper = self.begin("accept", on=listener, name=server, overlap=True)
            self.blocked(sleeper)
        id = self.begin("connect", on=client, address="stack", port=port, timeout=self.bound)
        if self.alone is None:
            reply = self.soon(id)
            self.alone = "" if reply.get("returned") == 0 else f"the stack does not reach itself at {self.stack}"
            if self.alone:
                raise Unchecked(self.alone)
        else:
            self.want(self.end(id)["returned"] == 0, "no connection", "connect with address and port", "The calls")
        reply = (
            self.end(sleeper)
            if sleeper is not None
            else self.ok("accept", on=listener, name=server, timeout=self.bound)
        )
        self._open.append(server)
        return client, server, reply

    def blocked(self, id: int) -> None:
        """Raise Violation where the call does not say that it sleeps."""
        rule = "if the call goes to sleep the agent says so, once, with blocked"
        try:
            reply = self.agent.reply(id)
        except _Silence as silent:
            raise Violation(silent.came, rule, "Overlapping") from None
        self.want("blocked" in reply, "a reply, where the call sleeps", rule, "Overlapping")

    def tidy(self) -> None:
        """Close what a check left open."""
        for name in self._open:
            self.agent.reply(self.begin("close", on=name))
        self._open.clear()


_FIRST = "hello is replied to, and requests may follow it at once"
_CHECKS: list[tuple[str, Callable[[Bench], None]]] = []


def _check(what: str) -> Callable[[Callable[[Bench], None]], Callable[[Bench], None]]:
    def add(function: Callable[[Bench], None]) -> Callable[[Bench], None]:
        _CHECKS.append((what, function))
        return function

    return add


# The channel ---------------------------------------------------------------------------------------------------------
@_check("unknown keys of a request are ignored")
def _unknown_keys(bench: Bench) -> None:
    reply = bench.ask("socket", name="odd", novelty=[1, {"x": None}])
    bench.want("returned" in reply, "a fault", "unknown keys of a request are to be ignored", "The channel")
    bench.ask("close", on="odd")


@_check("a line may come in pieces, and several at once")
def _pieces(bench: Bench) -> None:
    ids = (901, 902, 903)
    lines = [json.dumps({"id": id, "do": "socket", "as": f"p{id}"}) for id in ids]
    data = "".join(line + "\n" for line in lines).encode()
    bench.agent.send_octets((data[:10], data[10:50], data[50:]), lines, ids)
    for id in ids:
        reply = bench.agent.reply(id)
        rule = "one JSON object a line, ended by a line feed"
        bench.want(reply.get("returned") == 0, "no socket", rule, "The channel")
        bench.ask("close", on=f"p{id}")


@_check("each of many requests has one reply, with its id")
def _ids(bench: Bench) -> None:
    name = bench.socket()
    numbers = [2**31 + 7, 5_000_000, *range(5_000_100, 5_000_150)]
    for number in numbers:
        bench.agent.send({"id": number, "do": "shutdown", "on": name, "how": "rdwr"})
    for number in numbers:
        bench.agent.reply(number)


# Faults --------------------------------------------------------------------------------------------------------------
def _after_malformed(bench: Bench, line: str) -> None:
    bench.agent.send_octets([line.encode() + b"\n"], [line], [_UNREAD])
    rule = "the request cannot be made: a fault; the agent goes on"
    bench.faulty(bench.agent.reply(_UNREAD), rule)
    bench.want("returned" in bench.ask("socket", name="after"), "no socket", rule, "Replies")
    bench.ask("close", on="after")


@_check("a line that is no JSON is a fault")
def _no_json(bench: Bench) -> None:
    _after_malformed(bench, '{"id": 1, "do": "soc')


@_check("a line that is no object is a fault")
def _no_object(bench: Bench) -> None:
    _after_malformed(bench, '["socket"]')


@_check("an unknown call is a fault")
def _unknown_call(bench: Bench) -> None:
    # Not by ask(), which takes this for a call that the agent may lack.
    reply = bench.agent.reply(bench.begin("teleport"))
    bench.faulty(reply, "the request cannot be made: unknown call")


@_check("an unknown name is a fault, a closed one EBADF")
def _names(bench: Bench) -> None:
    bench.faulty(bench.ask("send", on="nobody", payload="00"), "the request cannot be made: unknown name")
    name = bench.socket()
    bench.ok("close", on=name)
    reply = bench.ask("send", on=name, payload="00")
    rule = "a name whose descriptor was closed stays known: a call on it ends in EBADF, and it can be given again"
    bench.want(reply.get("error") == "EBADF", "no EBADF", rule, "Requests")
    bench.want("returned" in bench.ask("socket", name=name), "a fault", rule, "Requests")
    bench.faulty(bench.ask("socket", name=name), "the request cannot be made: a name that is taken")


@_check("without a name, listener and c1 are meant")
def _defaults(bench: Bench) -> None:
    rule = "listener for bind, listen, accept, c1 for the others, if not said"
    bench.want(bench.ask("socket").get("returned") == 0, "no socket", rule, "Requests")
    bench.no_fault(bench.ask("bind", address="any", port=0), "bind")
    bench.no_fault(bench.ask("listen"), "listen")
    bench.want(bench.ask("close", on="listener").get("returned") == 0, "no listener to close", rule, "Requests")
    bench.no_fault(bench.ask("socket", name="c1"), "socket")
    bench.want(bench.ask("close").get("returned") == 0, "no c1 to close", rule, "Requests")


@_check("a value of the wrong shape is a fault")
def _shapes(bench: Bench) -> None:
    name = bench.socket()
    rule = "the request cannot be made: a value of the wrong shape"
    bench.faulty(bench.ask("send", on=name, payload="no octets"), rule)
    bench.faulty(bench.ask("send", on=name, payload="00", flags=["MSG_ODD"]), rule)
    bench.faulty(bench.ask("shutdown", on=name, how="sideways"), rule)
    bench.faulty(bench.ask("bind", on=name, address="any", port="http"), rule)
    bench.faulty(bench.ask("connect", on=name, address="stack"), rule)


@_check("an unknown socket option is a fault")
def _unknown_option(bench: Bench) -> None:
    name = bench.socket()
    bench.faulty(bench.ask("getsockopt", on=name, option="SO_ODD"), "the request cannot be made: an unknown name")


@_check("an unknown setting is not set")
def _unknown_setting(bench: Bench) -> None:
    reply = bench.agent.reply(bench.begin("set", name="no-such-setting", value=1))
    rule = "a setting of the stack, by the name that its description has for it"
    bench.want(reply.get("returned") != 0, "neither a fault nor an error", rule, "Requests")


# The calls -----------------------------------------------------------------------------------------------------------
@_check("a stack connects to itself: accept and connect")
def _connect(bench: Bench) -> None:
    _, _, reply = bench.pair()
    _address(bench, reply, bench.stack)


def _address(bench: Bench, reply: Reply, address: str, port: int | None = None) -> None:
    rule = '{"address": "192.0.2.2", "port": 1024}'
    found = reply.get("address")
    good = isinstance(found, dict) and found.get("address") == address and isinstance(found.get("port"), int)
    bench.want(good and (port is None or port == found["port"]), "another address, or none", rule, "Replies")  # type: ignore[index]


@_check("getsockname and getpeername give the addresses")
def _getname(bench: Bench) -> None:
    client, server, accepted = bench.pair()
    peer = accepted["address"]["port"]
    _address(bench, bench.ok("getpeername", on=server), bench.stack, peer)
    _address(bench, bench.ok("getsockname", on=client), bench.stack, peer)
    port = bench.ok("getsockname", on=server)["address"]["port"]
    _address(bench, bench.ok("getpeername", on=client), bench.stack, port)


@_check("a connection that nobody listens for is an error of the stack's")
def _refused(bench: Bench) -> None:
    if bench.alone:
        raise Unchecked(bench.alone)
    reply = bench.soon(bench.begin("connect", on=bench.socket(), address="stack", port=1, timeout=1.0))
    if "timeout" in reply:
        raise Unchecked("the stack does not answer")
    bench.no_fault(reply, "connect")
    bench.want("error" in reply, "no error", "-1 with error", "Replies")


@_check("send and recv carry octets; at the peer's end recv returns 0")
def _octets(bench: Bench) -> None:
    client, server, _ = bench.pair()
    rule = "send with payload, recv with size; at the peer's end they return 0 and no data"
    bench.want(bench.ok("send", on=client, payload="68656C6c6f")["returned"] == 5, "not 5 octets", rule, "The calls")
    reply = bench.ok("recv", on=server, size=2, timeout=bench.bound)
    bench.want((reply["returned"], reply.get("data")) == (2, "6865"), "other octets", rule, "The calls")
    reply = bench.ok("recv", on=server, timeout=bench.bound)
    bench.want((reply["returned"], reply.get("data")) == (3, "6c6c6f"), "other octets", rule, "The calls")
    bench.ok("close", on=client)
    reply = bench.ok("recv", on=server, timeout=bench.bound)
    bench.want((reply["returned"], reply.get("data", "")) == (0, ""), "not the end", rule, "The calls")


@_check("MSG_PEEK leaves octets, MSG_DONTWAIT does not sleep")
def _flags(bench: Bench) -> None:
    client, server, _ = bench.pair()
    rule = "flags (names of recv(2))"
    bench.ok("send", on=client, payload="6162")
    for flags in (["MSG_PEEK"], []):
        reply = bench.ok("recv", on=server, flags=flags, timeout=bench.bound)
        bench.want(reply.get("data") == "6162", "other octets", rule, "The calls")
    reply = bench.ask("recv", on=server, flags=["MSG_DONTWAIT"])
    bench.want(reply.get("error") == "EAGAIN", "no EAGAIN", rule, "The calls")


@_check("sendmsg and recvmsg carry octets, and recvmsg its flags")
def _messages(bench: Bench) -> None:
    client, server, _ = bench.pair()
    bench.want(bench.ok("sendmsg", on=client, payload="616263")["returned"] == 3, "not 3 octets", "a count", "Replies")
    reply = bench.ok("recvmsg", on=server, size=100, timeout=bench.bound)
    rule = '{"returned": 5, "data": "68656c6c6f", "msg_flags": []}'
    good = (reply["returned"], reply.get("data"), reply.get("msg_flags")) == (3, "616263", [])
    bench.want(good, "another reply", rule, "The calls")


@_check("a payload of 300,000 octets arrives whole")
def _big(bench: Bench) -> None:
    client, server, _ = bench.pair()
    payload = os.urandom(300_000 if "overlap" in bench.capabilities else 8_000)
    id = bench.begin(
        "send", on=client, payload=payload.hex(), timeout=4 * bench.bound, overlap="overlap" in bench.capabilities
    )
    got = b""
    while len(got) < len(payload):
        reply = bench.ok("recv", on=server, size=1 << 18, timeout=bench.bound)
        bench.want(reply["returned"] > 0, "an end too early", "the octets received", "Replies")
        bench.want(2 * reply["returned"] == len(reply["data"]), "data of another length", "a count for recv", "Replies")
        got += bytes.fromhex(reply["data"])
    bench.want(got == payload, "other octets than were sent", "the octets received", "Replies")
    reply = bench.agent.reply(id)
    if "blocked" in reply:
        reply = bench.agent.reply(id)
    bench.want(reply.get("returned") == len(payload), "another count", "a count for send", "Replies")


@_check("shutdown ends one direction")
def _shutdown(bench: Bench) -> None:
    client, server, _ = bench.pair()
    bench.ok("shutdown", on=client, how="wr")
    reply = bench.soon(bench.begin("recv", on=server, timeout=1.0))
    if "timeout" in reply:
        raise Unchecked("the stack sends no FIN for it")
    bench.want(reply.get("returned") == 0, "not the end", "shutdown with how", "The calls")
    reply = bench.ask("send", on=client, payload="00")
    bench.no_fault(reply, "send")
    if reply.get("error") == "EPIPE" and "sigpipe" in bench.capabilities:
        rule = "the signals that the call raised in its caller"
        bench.want(reply.get("signals") == ["SIGPIPE"], "no SIGPIPE", rule, "Replies")
        reply = bench.ask("send", on=client, payload="00", flags=["MSG_NOSIGNAL"])
        bench.want("signals" not in reply, "a signal in spite of MSG_NOSIGNAL", rule, "Replies")
    if "shutdown-read" in bench.capabilities:
        bench.no_fault(bench.ask("shutdown", on=server, how="rd"), "shutdown")


@_check("set-nonblocking: calls do not sleep")
def _nonblocking(bench: Bench) -> None:
    _, server, _ = bench.pair()
    bench.ok("set-nonblocking", on=server, value=True)
    reply = bench.ask("recv", on=server)
    bench.want(reply.get("error") == "EAGAIN", "no EAGAIN", "set-nonblocking with value (O_NONBLOCK)", "The calls")
    bench.ok("set-nonblocking", on=server, value=False)
    if "overlap" in bench.capabilities:
        bench.blocked(bench.begin("recv", on=server, overlap=True))


@_check("poll waits for events, at most for its time-out")
def _poll(bench: Bench) -> None:
    client, server, _ = bench.pair()
    rule = "returns how many descriptors have any, 0 or 1, with those that hold as value"
    reply = bench.ok("poll", on=server, events=["in"], timeout=0)
    bench.want((reply["returned"], reply.get("value")) == (0, []), "an event", rule, "The calls")
    began = time.monotonic()
    reply = bench.ok("poll", on=server, events=["in"], timeout=0.3)
    took = time.monotonic() - began
    bench.want((reply["returned"], reply.get("value")) == (0, []), "an event", rule, "The calls")
    bench.want(0.25 <= took < 2, f"after {took:.2f} s", "at most for its timeout", "The calls")
    bench.ok("send", on=client, payload="00")
    reply = bench.ok("poll", on=server, events=["in"], timeout=bench.bound)
    bench.want((reply["returned"], reply.get("value")) == (1, ["in"]), "no event", rule, "The calls")


@_check("dup makes another descriptor of the same socket")
def _dup(bench: Bench) -> None:
    bench.need("dup")
    client, server, _ = bench.pair()
    bench.ok("dup", on=client, name="copy")
    bench.ok("close", on=client)
    bench.want(bench.ok("send", on="copy", payload="00")["returned"] == 1, "not sent", "dup", "The calls")
    bench.ok("close", on="copy")
    bench.want(bench.ok("recv", on=server, timeout=bench.bound)["returned"] == 1, "no octet", "dup", "The calls")


@_check("an urgent octet is sent and received")
def _urgent(bench: Bench) -> None:
    bench.need("urgent")
    client, server, _ = bench.pair()
    bench.ok("send", on=client, payload="21", flags=["MSG_OOB"])
    bench.ok("poll", on=server, events=["pri"], timeout=bench.bound / 2)
    reply = bench.ok("recvmsg", on=server, size=1, flags=["MSG_OOB"])
    good = (reply.get("data"), reply.get("msg_flags")) == ("21", ["MSG_OOB"])
    bench.want(good, "another reply", '{"returned": 1, "data": "21", "msg_flags": ["MSG_OOB"]}', "The calls")


_VALUES: dict[str, Callable[[Any], bool]] = {
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "text": lambda value: isinstance(value, str),
    "hex": lambda value: isinstance(value, str) and re.fullmatch("([0-9a-f]{2})*", value) is not None,
    "errno": lambda value: value == 0 or (isinstance(value, str) and _ERROR.fullmatch(value) is not None),
    "fields": lambda value: isinstance(value, dict) and isinstance(value.get("tcpi_state"), int),
}


@_check("socket options have the values that the document has for them")
def _options(bench: Bench) -> None:
    name = bench.socket()
    for option, shape in SOCKET_OPTIONS.items():
        reply = bench.ask("getsockopt", on=name, option=option)
        bench.no_fault(reply, f"getsockopt of {option}")
        if "error" in reply:
            continue
        value = reply.get("value")
        if isinstance(shape, dict):
            good = isinstance(value, dict) and set(value) == set(shape)
        else:
            good = _VALUES[shape](value)
        bench.want(good, f"{option} has {value!r}", f"{option}: {shape}", "Socket options")
    for option, value in {"SO_REUSEADDR": True, "SO_RCVTIMEO": {"sec": 1, "usec": 500000}, "TCP_NODELAY": True}.items():
        bench.no_fault(bench.ask("setsockopt", on=name, option=option, value=value), f"setsockopt of {option}")
    reply = bench.ask("setsockopt", on=name, option="SO_RCVTIMEO", value=3)
    bench.faulty(reply, "the request cannot be made: a value of the wrong shape")


@_check("options of the capabilities that are claimed")
def _claimed_options(bench: Bench) -> None:
    name = bench.socket()
    claimed = {
        "linger": ("SO_LINGER", {"onoff": True, "linger": 0}),
        "reuse-port": ("SO_REUSEPORT", True),
        "urgent": ("SO_OOBINLINE", True),
    }
    for capability, (option, value) in claimed.items():
        if capability in bench.capabilities:
            reply = bench.ask("setsockopt", on=name, option=option, value=value)
            bench.want(reply.get("returned") == 0, f"no {option}", f"{capability} is a capability", "Hello")
    if "tcp-info" in bench.capabilities:
        reply = bench.ask("getsockopt", on=name, option="TCP_INFO")
        bench.want(reply.get("returned") == 0, "no TCP_INFO", "tcp-info is a capability", "Hello")


@_check("states are read out, in RFC 9293's spelling")
def _states(bench: Bench) -> None:
    bench.need("states")
    _, port = bench.listener()

    def state(port: int, peer: int) -> str | None:
        reply = bench.agent.reply(bench.begin("state", port=port, peer=peer))
        if "fault" in reply and "unknown call" in reply["fault"]:
            raise Unchecked("states are read without the agent")
        bench.no_fault(reply, "state")
        value = reply.get("value")
        rule = "the state, in RFC 9293's spelling, or null where it cannot be seen"
        bench.want(value is None or value in STATES, f"{value!r} is no state", rule, section)
        return value

    section = "States and settings"
    rule = "0: the listener on P; CLOSED where there is none; null where it cannot be seen"
    bench.want(state(port, 0) in ("LISTEN", None), "not LISTEN", rule, section)
    bench.want(state(port, 9) in ("CLOSED", None), "not CLOSED", rule, section)
    client, _, accepted = bench.pair()
    peer = accepted["address"]["port"]
    served = bench.ok("getpeername", on=client)["address"]["port"]
    found = [state(one, other) for one, other in ((peer, served), (served, peer))]
    bench.want("ESTABLISHED" in found, f"{found}, not ESTABLISHED", "the state of the connection", section)
    bench.want(set(found) <= {"ESTABLISHED", None}, f"{found}", "the state of the connection", section)


# Overlapping ---------------------------------------------------------------------------------------------------------
@_check("accept sleeps, says so once, and ends with the connection")
def _overlap_accept(bench: Bench) -> None:
    bench.need("overlap")
    bench.pair(overlap=True)


@_check("a call that sleeps holds up no other")
def _overlap_others(bench: Bench) -> None:
    bench.need("overlap")
    listener, _ = bench.listener()
    bench.blocked(bench.begin("accept", on=listener, name="never", overlap=True))
    bench.no_fault(bench.ask("socket", name="meanwhile"), "socket")
    bench.ask("close", on="meanwhile")


@_check("recv sleeps until octets come; two on one descriptor")
def _overlap_recv(bench: Bench) -> None:
    bench.need("overlap")
    client, server, _ = bench.pair()
    first, second = (bench.begin("recv", on=server, size=1, overlap=True) for _ in range(2))
    bench.blocked(first)
    bench.blocked(second)
    bench.agent.quiet()
    rule = "several calls may sleep at once, on one descriptor too"
    bench.want(bench.agent.unheard(first) and bench.agent.unheard(second), "a reply too early", rule, "Overlapping")
    bench.ok("send", on=client, payload="6162")
    data = sorted(str(bench.end(id).get("data")) for id in (first, second))
    bench.want(data == ["61", "62"], "other octets", rule, "Overlapping")


@_check("a call that does not sleep never says blocked")
def _overlap_ready(bench: Bench) -> None:
    bench.need("overlap")
    client, server, _ = bench.pair()
    rule = "if the call does not sleep the reply comes without blocked"
    bench.ok("send", on=client, payload="61" * 20)
    # No more than have come: as many as are seen without being taken.
    here = bench.ok("recv", on=server, size=20, flags=["MSG_PEEK"], timeout=bench.bound)["returned"]
    bench.want(here > 0, "no octet", rule, "Overlapping")
    for _ in range(here):
        reply = bench.agent.reply(bench.begin("recv", on=server, size=1, overlap=True))
        bench.want("blocked" not in reply, "blocked", rule, "Overlapping")
        bench.no_fault(reply, "recv")


@_check("a sleeping poll ends with its event")
def _overlap_poll(bench: Bench) -> None:
    bench.need("overlap")
    client, server, _ = bench.pair()
    looked = bench.ask("poll", on=server, events=["in"], timeout=0)
    bench.no_fault(looked, "poll")
    id = bench.begin("poll", on=server, events=["in"], overlap=True)
    bench.blocked(id)
    bench.ok("send", on=client, payload="61")
    reply = bench.end(id)
    bench.want((reply["returned"], reply.get("value")) == (1, ["in"]), "another reply", "poll", "The calls")


# Processes -----------------------------------------------------------------------------------------------------------
@_check("fork: a child with its parent's descriptors, on the same channel")
def _fork(bench: Bench) -> None:
    bench.need("fork")
    client, server, _ = bench.pair()
    reply = bench.ok("fork", name="child")
    bench.want(reply["returned"] > 0, "no process id", "the child's process id for fork", "Replies")
    bench.ok("close", on=server)
    bench.want(
        bench.ok("send", on=server, by="child", payload="6869")["returned"] == 2, "not sent", "fork", "Processes"
    )
    bench.want(
        bench.ok("recv", on=client, timeout=bench.bound).get("data") == "6869", "other octets", "fork", "Processes"
    )
    reply = bench.agent.reply(bench.begin("exit", status=3, by="child"))
    bench.want(reply.get("returned") == 0, "another reply", "exit ends the process", "Processes")
    reply = bench.ok("recv", on=client, timeout=bench.bound)
    bench.want(reply["returned"] == 0, "not the end", "its descriptors are closed, not reset", "Processes")


@_check("kill ends a process, and the calls that it left")
def _kill(bench: Bench) -> None:
    bench.need("fork")
    bench.need("kill")
    listener, _ = bench.listener()
    bench.ok("fork", name="victim")
    sleeper = bench.begin("accept", on=listener, name="never", by="victim", overlap=True)
    bench.blocked(sleeper)
    reply = bench.agent.reply(bench.begin("kill", process="victim", **{"with": "SIGKILL"}))
    bench.want(reply.get("returned") == 0, "another reply", "kill is replied when the process is gone", "Processes")
    reply = bench.agent.reply(sleeper)
    rule = 'calls that it had under way end in {"gone": true, "fault": "..."}'
    bench.want(reply.get("gone") is True and "fault" in reply, "another reply", rule, "Processes")


# The whole -----------------------------------------------------------------------------------------------------------
def _again(bench: Bench) -> None:
    """A second hello, with a listener open and a call asleep."""
    name, port = bench.listener()
    if "overlap" in bench.capabilities:
        bench.blocked(bench.begin("accept", on=name, name="never", overlap=True))
    rule = "it ends the trial before: every descriptor closed, every name forgotten; then the reply to hello"
    reply = bench.hello()
    bench.want("hello" in reply, f"a fault: {reply.get('fault')}", rule, "Hello")
    bench._open.clear()
    bench.faulty(bench.ask("listen", on=name), rule, "Hello")
    fresh = bench.socket()
    bench.ok("bind", on=fresh, address="any", port=port)
    reply = bench.ask("listen", on=fresh)
    bench.want(reply.get("returned") == 0, "the port is still taken", rule, "Hello")


def _given_back(bench: Bench) -> None:
    """A hello after settings were made, each of them twice."""
    section = "States and settings"
    if not bench.setup.settings:
        raise Unchecked("no setting to try was named: --set NAME=VALUE")

    def was(name: str, value: str) -> str:
        reply = bench.agent.reply(bench.begin("set", name=name, value=value))
        bench.want(reply.get("returned") == 0, f"{name} is not set", "the setting is made", section)
        if "value" not in reply:
            raise Unchecked(f"the agent does not tell what {name} was")
        bench.want(isinstance(reply["value"], str), f"{reply['value']!r} is no text", "as value, as text", section)
        return str(reply["value"])

    settings = bench.setup.settings
    first = {name: was(name, value) for name, value in settings.items()}
    for name, value in settings.items():
        changed = was(name, value)
        if changed == first[name]:
            raise Unchecked(f"{name} was {changed} already")
    reply = bench.hello()
    rule = "a hello that comes again gives back what set changed"
    bench.want("hello" in reply, f"a fault: {reply.get('fault')}", rule, "Hello")
    for name, value in settings.items():
        now = was(name, value)
        bench.want(now == first[name], f"{name} was {first[name]}, and is {now}", rule, "Hello")


def _first_hello(bench: Bench) -> None:
    bench.say_hello(novelty=True)
    bench.agent.send({"id": 0, "do": "socket", "as": "early"})
    reply = bench.heard_hello()
    if "fault" in reply:
        raise Unchecked(f"the agent declines IPv{bench.version}: {reply['fault']}")
    shape = '{"hello": 1, "agent": "...", "capabilities": ["calls", ...]}'
    good = reply["hello"] == PROTOCOL and isinstance(reply.get("agent"), str)
    words = reply.get("capabilities")
    bench.want(good and isinstance(words, list), "another reply", shape, "Hello")
    assert isinstance(words, list)
    unknown = [word for word in words if word not in CAPABILITIES]
    bench.want(not unknown, f"{', '.join(map(str, unknown))}: unknown", "words of the case format", "Hello")
    bench.want("calls" in words, "no calls", 'the least agent has ["calls"]', "Hello")
    bench.capabilities = frozenset(words)
    early = bench.agent.reply(0)
    bench.want(early.get("returned") == 0, "no socket", "requests may follow hello at once", "Hello")
    bench.ask("close", on="early")


def _end(bench: Bench) -> None:
    """The end of input, with a connection open and a call asleep."""
    listener, _ = bench.listener()
    if "overlap" in bench.capabilities:
        bench.begin("accept", on=listener, name="never", overlap=True)
    status = bench.agent.finish()
    bench.want(status == 0, f"exit status {status}", "the agent resets every connection and ends", "The channel")


def _version(bench: Bench) -> None:
    reply = bench.hello(hello=PROTOCOL + 98)
    bench.faulty(reply, "an agent that does not speak that version replies with a fault", "Hello")


def check(setup: Setup) -> Iterator[Finding]:
    """Check the agent, IP version by IP version; what each check found. Raises StartError."""
    bench = Bench(setup, next(iter(setup.addresses)))
    try:
        yield _found(bench, "a version that it does not speak is refused", _version)
    finally:
        bench.agent.close()
    declined = ""
    for version in setup.addresses:
        for finding in _trial(setup, version):
            yield finding
            if finding.verdict == "not checked" and finding.what.endswith(_FIRST):
                declined += f"{finding.came}\n"
    if declined.count("\n") == len(setup.addresses):
        yield Finding("failed", "hello is replied to in one IP version", declined.strip(), "hello", "Hello")


def _found(bench: Bench, what: str, work: Callable[[Bench], None]) -> Finding:
    start = len(bench.agent.lines)
    try:
        try:
            work(bench)
        except (KeyError, TypeError, ValueError) as error:
            came = f"a reply without what it is to have ({type(error).__name__}: {error})"
            raise Violation(came, "the keys of a reply", "Replies") from None
        if work not in (_version, _end):
            bench.tidy()
    except Violation as found:
        lines = tuple(bench.agent.lines[start:][-_SHOWN:])
        return Finding("failed", what, found.came, found.rule, found.section, lines)
    except Unchecked as reason:
        return Finding("not checked", what, str(reason))
    return Finding("ok", what)


def _trial(setup: Setup, version: int) -> Iterator[Finding]:
    bench = Bench(setup, version)
    broken = False

    def one(what: str, work: Callable[[Bench], None]) -> Finding:
        nonlocal broken
        found = _found(bench, f"IPv{version}: {what}", work)
        broken = found.verdict == "failed" or bench.stuck
        return found

    def afresh() -> bool:
        """Another process, where the last may not be what it was."""
        nonlocal bench
        capabilities, alone = bench.capabilities, bench.alone
        bench.agent.close()
        bench = Bench(setup, version)
        bench.capabilities, bench.alone = capabilities, alone
        return "hello" in bench.hello()

    try:
        first = one(_FIRST, _first_hello)
        yield first
        if first.verdict != "ok":
            return
        last = (
            ("a second hello begins another trial", _again),
            ("a hello gives back what set changed", _given_back),
            ("it ends with its input", _end),
        )
        for what, work in (*_CHECKS, *last):
            if broken:
                try:
                    if not afresh():
                        return
                except Violation:
                    return
            yield one(what, work)
    finally:
        bench.agent.close()
