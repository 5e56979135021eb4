"""What this package needs of the parts around it, as types: the loop and the namespace."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

#: Called with a request's id and its reply. That can be before ``request`` returns.
OnReply = Callable[[int, dict[str, Any]], None]
#: Called with the id of a request with ``overlap`` whose call sleeps; never after its reply.
OnBlocked = Callable[[int], None]
#: Called once, with the reason, when an agent can make no more calls.
OnBroke = Callable[[str], None]


class Timer(Protocol):
    """``conform.run.loop.Timer``."""

    def cancel(self) -> None: ...


class Loop(Protocol):
    """``conform.run.loop.Loop``."""

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None: ...
    def remove_reader(self, fd: int) -> None: ...
    def call_at(self, when: float, callback: Callable[[], None]) -> Timer: ...


class NetworkNamespace(Protocol):
    """``conform.link.netns.Namespace``."""

    @property
    def fd(self) -> int: ...
    def enter(self) -> AbstractContextManager[Any]: ...
