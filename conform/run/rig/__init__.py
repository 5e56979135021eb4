"""What a trial runs on: the stack, the link to it, its agent. A *rig* is one trial's; an *adapter* makes them.

``rig.kernel`` runs trials on this machine's own stack, ``rig.started`` on stacks that a command starts or that are
there already.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from conform.engine.trial import Trial


class Ears(Protocol):
    """What a rig tells its trial."""

    def ready(self) -> None:
        """The stack is up and answers; the trial may begin. Once, and possibly before ``open`` returns."""

    def arrived(self, data: bytes, since: float) -> None:
        """An IP packet out of the stack; it came after *since* (``time.monotonic()``)."""

    def replied(self, id: int, reply: dict[str, Any]) -> None:
        """The agent's reply to the request of that id."""

    def blocked(self, id: int) -> None:
        """The call of that id, begun with ``overlap``, sleeps."""

    def state_read(self, id: int, state: str | None, info: dict[str, Any]) -> None:
        """The answer to ``read_state``; ``None`` where the state cannot be read."""

    def broke(self, reason: str) -> None:
        """The rig itself cannot go on."""

    def died(self, reason: str) -> None:
        """The stack is gone, by a fault of its own."""


class Rig(Protocol):
    """One trial's."""

    @property
    def trial(self) -> Trial:
        """The trial as it runs here: its stack's port may be another than the description's."""

    def open(self) -> None:
        """Make everything; ``Ears.ready`` follows. Raises OSError and SettingError."""

    def uses(self, ports: Iterable[int]) -> None:
        """The trial's connections have these ports of the tester."""

    def send(self, data: bytes) -> None:
        """Inject the IP packet *data*. Raises OSError."""

    def request(self, id: int, request: dict[str, Any]) -> None:
        """Have the agent make a call (docs/agent-protocol.md)."""

    def read_state(self, id: int, stack_port: int, tester_port: int) -> None:
        """Read the state of a connection, of a listener with *tester_port* 0."""

    def lost(self) -> int:
        """How many packets of the link conform had no room for, so far; it may not be this trial's alone."""

    def cleanups(self) -> list[Any]:
        """What is to be called, in order, when the trial is over: each whatever became of those before."""


class Adapter(Protocol):
    """Makes rigs for one stack; one a worker."""

    def room(self) -> bool:
        """Whether another trial could have a rig now."""

    def rig(self, trial: Trial, ears: Ears) -> Rig:
        """A rig for *trial*."""

    def children(self) -> set[int]:
        """The process ids that someone here waits for."""

    def close(self) -> None:
        """End everything."""
