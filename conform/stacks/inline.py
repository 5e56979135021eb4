"""The agent that makes socket calls in the caller's own process.

Its sockets are O_NONBLOCK underneath, and blocking for the case: a call that would sleep is put aside until its
descriptor is ready, and is then made again. What this cannot be true to needs a process (``linux.needs_process``).
"""

from __future__ import annotations

import select
import time
from dataclasses import dataclass
from typing import Any

from conform.stacks.agent.calls import (
    POLL_EVENTS,
    Calls,
    Descriptor,
    Reply,
    Request,
    RequestError,
    abandon,
    failure,
    poll_mask,
)  # fmt: skip
from conform.stacks.seams import Loop, NetworkNamespace, OnBlocked, OnBroke, OnReply, Timer

#: What a descriptor must be ready for before a call that would have slept is made again.
_READY_FOR = {
    "accept": select.EPOLLIN, "recv": select.EPOLLIN, "recvmsg": select.EPOLLIN, "connect": select.EPOLLOUT,
    "send": select.EPOLLOUT, "sendmsg": select.EPOLLOUT,
}  # fmt: skip
_WOULD_SLEEP = frozenset({"EAGAIN", "EINPROGRESS", "EALREADY"})
_NEVER_SLEEPS = frozenset({"MSG_DONTWAIT", "MSG_OOB"})  # an urgent octet is there or is not: tcp_recv_urg

#: What this agent can do. No fork and no kill: there is no process to do it to.
CAPABILITIES = frozenset(
    {"calls", "overlap", "dup", "sigpipe", "urgent", "tcp-info", "repair", "shutdown-read", "reuse-port", "fast-open"}
)


@dataclass(slots=True)
class _Parked:
    """A call that sleeps, on a descriptor of its own: closing the name does not end a call that is under way."""

    id: int
    order: int
    request: Request
    on: Descriptor
    sent: int = 0
    timer: Timer | None = None


class InlineAgent:
    """Makes the calls of one trial in this process, in the namespace *netns*.

    *addresses* are (the stack's, the tester's) for the trial's IP *version*. ``on_reply(id, reply)`` can be called
    before ``request`` returns; ``on_blocked(id)`` comes before the reply of a call with ``overlap`` that sleeps.
    """

    capabilities = CAPABILITIES

    def __init__(
        self,
        loop: Loop,
        netns: NetworkNamespace,
        version: int,
        addresses: tuple[str, str],
        on_reply: OnReply,
        on_blocked: OnBlocked,
        on_broke: OnBroke,
    ) -> None:
        self._loop = loop
        self._netns = netns
        self._calls = Calls(version, addresses[0], addresses[1], blocking=False)
        self._on_reply = on_reply
        self._on_blocked = on_blocked
        self._on_broke = on_broke
        self._epoll: select.epoll | None = None
        self._parked: dict[int, _Parked] = {}
        self._order = 0

    def request(self, id: int, request: dict[str, Any]) -> None:
        """Make the call that *request* says (docs/agent-protocol.md, less its id)."""
        try:
            if request.get("do") == "socket":
                with self._netns.enter():  # a socket stays in the namespace in which it was made
                    reply = self._calls.execute(request)
            else:
                on = self._calls.find(request)
                reply = self._calls.perform(request, on)
                if on is not None and self._sleeps(request, on, reply):
                    self._park(id, request, on, reply)
                    return
        except RequestError as fault:
            reply = {"fault": str(fault)}
        except OSError as error:
            reply = failure(error)
        self._on_reply(id, reply)

    def close(self) -> None:
        """Drop all descriptors, connections by reset; calls under way get no reply. Raises nothing."""
        for parked in self._parked.values():
            if parked.timer is not None:
                parked.timer.cancel()
            abandon(parked.on.sock)
        self._parked.clear()
        if self._epoll is not None:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None
        self._calls.drop()

    # Calls that sleep ------------------------------------------------------------------------------------------------
    def _sleeps(self, request: Request, on: Descriptor, reply: Reply, sent: int = 0) -> bool:
        """Whether a blocking call would now sleep instead of ending in *reply*."""
        do = request["do"]
        if do == "poll":
            return bool(reply.get("returned") == 0 and request.get("timeout") != 0)
        if do not in _READY_FOR or on.file.nonblocking or not _NEVER_SLEEPS.isdisjoint(request.get("flags") or ()):
            return False
        if do in ("send", "sendmsg") and "error" not in reply:
            return bool(sent + reply["returned"] < len(request["payload"]) // 2)
        return reply.get("error") in _WOULD_SLEEP

    def _park(self, id: int, request: Request, on: Descriptor, reply: Reply) -> None:
        if self._epoll is None:
            self._epoll = select.epoll()
            self._loop.add_reader(self._epoll.fileno(), self._ready)
        parked = _Parked(id, self._order, request, on.duplicate(), max(0, reply.get("returned", 0)))
        self._order += 1
        fd = parked.on.sock.fileno()
        self._parked[fd] = parked
        self._epoll.register(fd, poll_mask(request) if request["do"] == "poll" else _READY_FOR[request["do"]])
        timeout = request.get("timeout")
        if timeout is not None:
            parked.timer = self._loop.call_at(time.monotonic() + timeout, lambda: self._timed_out(fd, parked))
        if request.get("overlap"):
            self._on_blocked(id)

    def _ready(self) -> None:
        assert self._epoll is not None
        ready = [self._parked[fd] for fd, _ in self._epoll.poll(0) if fd in self._parked]
        # Those that sleep on one thing are woken in the order in which they went to sleep.
        for parked in sorted(ready, key=lambda each: each.order):
            if self._parked.get(parked.on.sock.fileno()) is parked:  # no callback before this one closed the agent
                self._again(parked)

    def _again(self, parked: _Parked) -> None:
        request, on = parked.request, parked.on
        if parked.sent:
            request = request | {"payload": request["payload"][2 * parked.sent :]}
        try:
            reply = self._calls.perform(request, on)
        except RequestError as fault:
            reply = {"fault": str(fault)}
        if self._sleeps(parked.request, on, reply, parked.sent):
            parked.sent += max(0, reply.get("returned", 0))
            return
        if parked.sent:
            # Octets that went before an error are what the call returns; the error is the next call's (send(2)).
            reply["returned"] = parked.sent + max(0, reply.get("returned", 0))
            reply.pop("error", None)
        self._end(parked, reply)

    def _timed_out(self, fd: int, parked: _Parked) -> None:
        if self._parked.get(fd) is parked:
            poll = parked.request["do"] == "poll"  # whose time-out is its own argument: poll(2) then returns 0
            self._end(parked, {"returned": 0, "value": []} if poll else {"timeout": True})

    def _end(self, parked: _Parked, reply: Reply) -> None:
        if parked.timer is not None:
            parked.timer.cancel()
        fd = parked.on.sock.fileno()
        del self._parked[fd]
        assert self._epoll is not None
        self._epoll.unregister(fd)
        parked.on.sock.close()
        self._on_reply(parked.id, reply)


assert int(select.EPOLLIN) == POLL_EVENTS["in"], "poll and epoll share their bits (epoll_ctl(2))"
