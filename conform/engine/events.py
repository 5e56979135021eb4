"""The contract between a :class:`~conform.engine.session.Session` and whatever drives it.

*Actions* are what the session wants done; *events* are what happened. Each action has an ``id``, unique in its trial,
that the answering event repeats. All times are seconds since the trial's start.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from conform.tcp.segment import Packet


# Actions -------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Inject:
    """Put *packet* on the link now. Answered by :class:`Injected`."""

    id: int
    packet: Packet


@dataclass(frozen=True, slots=True)
class Call:
    """Have the agent make a call; *request* is the agent protocol's, less its id (docs/agent-protocol.md).

    Answered by :class:`Returned`, and before that, where ``request["overlap"]`` is true and the call goes to sleep,
    by :class:`Blocked`.
    """

    id: int
    request: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Settle:
    """Make sure that the stack's immediate answers to all so far have arrived. Answered by :class:`Settled`."""

    id: int


@dataclass(frozen=True, slots=True)
class ReadState:
    """Read a connection's state out of the stack. Answered by :class:`StateRead`.

    Ports name the connection; ``tester_port`` 0 means the listener on ``stack_port``.
    """

    id: int
    stack_port: int
    tester_port: int


Action = Inject | Call | Settle | ReadState


# Events --------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Injected:
    """The packet went out at some moment in ``before`` .. ``after``."""

    id: int
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Arrived:
    """A packet came from the stack at some moment in ``since`` .. ``now`` (the *now* it is received with).

    ``since`` is the packet's own time stamp where the link has one, else the last time the loop found nothing.
    """

    packet: Packet
    since: float


@dataclass(frozen=True, slots=True)
class Returned:
    """A call ended. *reply* is the agent protocol's, less its id."""

    id: int
    reply: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Blocked:
    """A call with ``overlap`` sleeps in the stack."""

    id: int


@dataclass(frozen=True, slots=True)
class Settled:
    """What :class:`Settle` asked for holds."""

    id: int


@dataclass(frozen=True, slots=True)
class StateRead:
    """The state, as RFC 9293 spells it; ``CLOSED`` where the stack has no record, ``None`` where it cannot tell.

    ``info`` holds what else the stack told, for the report.
    """

    id: int
    state: str | None
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time passed, and the link was looked at after that: nothing that came before ``now`` is unread."""


@dataclass(frozen=True, slots=True)
class Broke:
    """conform itself failed (the link, the agent's process): the trial ends in ``error``."""

    reason: str


@dataclass(frozen=True, slots=True)
class Lost:
    """conform had no room for so many of the link's *packets*: which of the stack's they were cannot be told.

    Told before any other event that comes after the loss.
    """

    packets: int


@dataclass(frozen=True, slots=True)
class Died:
    """The stack is gone: the trial fails, whatever step is under way. ``reason`` says how, and what it printed last."""

    reason: str


Event = Injected | Arrived | Returned | Blocked | Settled | StateRead | Ticked | Broke | Lost | Died
