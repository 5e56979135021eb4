"""An agent in a trial, and the words in which checks ask it."""

from __future__ import annotations

import itertools
import os
from typing import Any

from conform.stacks.agent.calls import PROTOCOL
from conform.stacks.agentcheck.conversation import Agent, Reply, Setup, Silence, Unchecked, Violation

#: Seconds after which a stack is taken for one that does not answer.
PATIENCE = 3.0
#: The calls of the least agent; another's may lack any of the rest.
_LEAST = frozenset({"socket", "bind", "listen", "accept", "connect", "send", "recv", "shutdown", "close"})
#: The calls that belong to a capability: an agent that claims it makes them.
_CLAIMED = {"fork": "fork", "exit": "fork", "kill": "kill", "dup": "dup", "state": "states"}
#: The errors of a call that a system does not have.
_LACKING = frozenset({"ENOSYS", "EOPNOTSUPP"})
#: Another in each process, since a stack that outlives its agent may have connections in TIME-WAIT; below those that
#: stacks choose by themselves.
PORTS = itertools.count(10000 + os.getpid() % 220 * 100)


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
        """The reply to a hello that was said, or the fault that refuses it."""
        return self.agent.greeting(self.setup.within)

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
        if (capability := _CLAIMED.get(do)) in self.capabilities:
            self.possible(reply, capability, do)
        if do not in _LEAST and "fault" in reply and "unknown call" in reply["fault"]:
            raise Unchecked(f"the agent has no {do}")
        return reply

    def possible(self, reply: Reply, capability: str | None, do: str) -> None:
        """Raise Violation where *reply* says that there is no *do*, which belongs to the *capability* claimed."""
        lacking = "unknown call" in str(reply.get("fault", "")) or reply.get("error") in _LACKING
        self.want(not lacking, f"no {do}", f"{capability} is among the capabilities", "Hello")

    def claimed(self, capability: str, do: str, **arguments: Any) -> Reply:
        """The reply to a request that the *capability*, which the agent claims, is about."""
        reply = self.agent.reply(self.begin(do, **arguments))
        self.possible(reply, capability, f"{do} of {arguments.get('option') or arguments.get('flags') or capability}")
        return reply

    def ok(self, do: str, **arguments: Any) -> Reply:
        """As :meth:`ask`, of a call that must succeed. An error is the stack's, and leaves the check undone."""
        reply = self.ask(do, **arguments)
        self.no_fault(reply, do)
        if reply.get("timeout"):  # the agent counts as well: whose bound is over first is chance
            raise Silence(f"{do} did not return in time", "each reply repeats the request's id", "Replies")
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
            return self.agent.reply(id, PATIENCE)
        except Silence:
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
        name, port = self.socket(), next(PORTS)
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
        id = self.begin("connect", on=client, address=self.stack, port=port, timeout=self.bound)
        if self.alone is None:
            reply = self.soon(id)
            self.no_fault(reply, "connect")
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

    def ends(self) -> list[tuple[int, int]]:
        """A connection of the stack with itself, by the ports of either end, its own first; none where it is alone."""
        if self.alone != "":
            return []
        client, _, accepted = self.pair()
        here = accepted["address"]["port"]
        there = self.ok("getpeername", on=client)["address"]["port"]
        return [(here, there), (there, here)]

    def free(self, ends: list[tuple[int, int]], rule: str, section: str) -> None:
        """Raise Violation where one of the *ends* of what was a connection is left: it is seen, or has its port."""
        for here, there in ends:
            if "states" in self.capabilities:
                state = self.agent.reply(self.begin("state", port=here, peer=there)).get("value")
                self.want(state in ("CLOSED", None), f"a connection is left, in {state}", rule, section)
            fresh = self.socket()
            reply = self.ask("bind", on=fresh, address="any", port=here)
            self.want("error" not in reply, f"its port is still taken: {reply.get('error')}", rule, section)

    def blocked(self, id: int) -> None:
        """Raise Violation where the call does not say that it sleeps."""
        rule = "if the call goes to sleep the agent says so, once, with blocked"
        try:
            reply = self.agent.reply(id)
        except Silence as silent:
            raise Violation(silent.came, rule, "Overlapping") from None
        self.want("blocked" in reply, "a reply, where the call sleeps", rule, "Overlapping")

    def tidy(self) -> None:
        """Close what a check left open."""
        for name in self._open:
            self.agent.reply(self.begin("close", on=name))
        self._open.clear()

    def forget(self) -> None:
        """A hello closed all that was open."""
        self._open.clear()
