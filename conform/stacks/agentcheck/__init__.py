"""Whether a program speaks the agent protocol (docs/agent-protocol.md): ``conform agent-check``.

Each check is a conversation with an agent on its standard input and output; a failed one shows what was sent, what
came, and what the document says. The stack has no peer but itself: what needs one is checked where the stack reaches
its own address, and is else reported as not checked.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from conform.case.vocabulary import CAPABILITIES
from conform.stacks.agent.calls import PROTOCOL
from conform.stacks.agentcheck.bench import Bench
from conform.stacks.agentcheck.checks import CHECKS
from conform.stacks.agentcheck.conversation import ADDRESSES, Setup, StartError, Unchecked, Violation

#: How many lines of the conversation a failed check shows.
_SHOWN = 12
_FIRST = "hello is replied to, and requests may follow it at once"


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


# The whole -----------------------------------------------------------------------------------------------------------
def _again(bench: Bench) -> None:
    """A second hello, with a listener open, a call asleep, and a connection."""
    ends = bench.ends()
    name, port = bench.listener()
    if "overlap" in bench.capabilities:
        bench.blocked(bench.begin("accept", on=name, name="never", overlap=True))
    rule = "it ends the trial before: every descriptor closed, every name forgotten; then the reply to hello"
    reply = bench.hello()
    bench.want("hello" in reply, f"a fault: {reply.get('fault')}", rule, "Hello")
    bench.forget()
    bench.agent.quiet()
    bench.faulty(bench.ask("listen", on=name), rule, "Hello")
    fresh = bench.socket()
    for do, more in (("bind", {"address": "any", "port": port}), ("listen", {})):
        reply = bench.ask(do, on=fresh, **more)
        bench.no_fault(reply, do)
        taken = f"the port is still taken: {do} ends in {reply.get('error')}"
        bench.want(reply.get("returned") == 0, taken, rule, "Hello")
    bench.free(ends, "it ends the trial before: the agent resets every connection", "Hello")


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
    ends = bench.ends()
    listener, _ = bench.listener()
    if "overlap" in bench.capabilities:
        bench.begin("accept", on=listener, name="never", overlap=True)
    status = bench.agent.finish()
    rule = "the agent resets every connection and ends"
    bench.want(status == 0, f"exit status {status}", rule, "The channel")
    # A stack that outlives the agent shows it to the next.
    after = Bench(bench.setup, bench.version)
    try:
        after.capabilities = bench.capabilities
        try:
            ends = ends if "hello" in after.hello() else []
        except Violation:
            ends = []  # whatever keeps it from starting is not what this is about
        try:
            after.free(ends, rule, "The channel")
        finally:
            bench.agent.lines += after.agent.lines
    finally:
        after.agent.close()


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
        for what, work in (*CHECKS, *last):
            if broken:
                try:
                    if not afresh():
                        return
                except Violation:
                    return
            yield one(what, work)
    finally:
        bench.agent.close()


__all__ = ["Finding", "Setup", "StartError", "check", "setup"]
