"""Knowing that a call sleeps where the system does not say in which call a thread does (gVisor has no ``syscall``).

What such a system does say is that a thread sleeps (proc(5), ``stat``). Which sleep it is follows from two things: the
same call was made without blocking before, and would have blocked; and the thread is in the call, because it said so
and gave the interpreter's lock away since, which it does nowhere else (:data:`SWITCH_INTERVAL`).
"""

from __future__ import annotations

import os
import select
import socket

from conform.stacks.agent.calls import MALFORMED, Descriptor, Reply, Request, RequestError, failure
from conform.stacks.agent.process import Job, Sleeper, asleep

#: Seconds for ``sys.setswitchinterval``: no thread is made to let go of the interpreter's lock, it does so by itself,
#: in a system call that may take long. So one that said that it enters its call, and lost the lock, is in the call.
SWITCH_INTERVAL = 1e3

_SYN_SENT, _SYN_RECV = 2, 3  # <linux/tcp.h>, tcpi_state
_POLLRDHUP = 0x2000
_RECEIVING = frozenset({"recv", "recvmsg"})  # with MSG_OOB they never sleep: an urgent octet is there, or is not


class TryingSleeper(Sleeper):
    """A thread that first makes a watched call without blocking, and sleeps in it only if that would have blocked."""

    #: Set while the thread is in the call itself.
    entered = False
    #: The call was tried: it sleeps.
    certain = False

    def open(self) -> None:
        """In the thread: open what tells of its sleep. Raises OSError."""
        self.stat = os.open("/proc/thread-self/stat", os.O_RDONLY | os.O_CLOEXEC)

    def execute(self, job: Job) -> Reply:
        """In the thread: the reply to the call of *job*."""
        if not job.watch:
            return self.agent.calls.execute(job.request)
        try:
            on = self.agent.calls.find(job.request)
            assert on is not None
            reply = self._try(job.request, on)
        except OSError as error:
            return failure(error)
        except (RequestError, *MALFORMED):
            return self.agent.calls.execute(job.request)  # which has the words for what is wrong with it
        if reply is not None and not _short(job.request, reply):
            return reply
        sent = 0 if reply is None else reply["returned"]
        request = job.request | {"payload": job.request["payload"][2 * sent :]} if sent else job.request
        try:
            self.entered = True
            reply = self.agent.calls.execute(request)
        finally:
            self.entered = self.certain = False
        if sent and "fault" not in reply:
            # Octets that went before an error are what the call returns (send(2)).
            reply["returned"] = sent + max(0, reply["returned"])
            reply.pop("error", None)
        return reply

    def sleeps(self, job: Job) -> bool:
        """Asked by the main thread: whether this one sleeps in the call of *job*."""
        return self.entered and asleep(self) and self.entered and (self.certain or self._waits(job))

    def _try(self, request: Request, on: Descriptor) -> Reply | None:
        """What the call ends in without sleeping. None, or less than all was sent: it sleeps, or nobody can tell yet.

        What is known is in ``certain``.
        """
        do = request["do"]
        flags = frozenset(request.get("flags") or ())
        calls = self.agent.calls
        if do == "poll":
            reply = calls.execute(request | {"timeout": 0})
            if request.get("timeout") == 0 or reply.get("returned") != 0:
                return reply
        elif do == "close":
            return None if on.file.linger else calls.execute(request)
        elif on.file.nonblocking or "MSG_DONTWAIT" in flags or (do in _RECEIVING and "MSG_OOB" in flags):
            return calls.execute(request)
        elif do == "connect":
            return None
        elif do == "accept":
            listens = on.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            self.certain = bool(listens) and not _ready(on, select.POLLIN)
            return None
        elif do in _RECEIVING and _too_little(request, on, flags):
            pass
        else:
            reply = calls.execute(request | {"flags": [*flags, "MSG_DONTWAIT"]})
            if reply.get("error") != "EAGAIN":
                self.certain = _short(request, reply)
                return reply
        self.certain = True
        return None

    def _waits(self, job: Job) -> bool:
        """Whether the call, which could not be tried, has still not got what it waits for."""
        try:
            on = self.agent.calls.find(job.request)
        except (OSError, RequestError):
            on = None
        do = job.request["do"]
        if do == "connect" and on is not None:
            state = on.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
            return state[0] in (_SYN_SENT, _SYN_RECV)
        if do == "accept" and on is not None:
            return not _ready(on, select.POLLIN)
        # close(2) with SO_LINGER leaves nothing to ask. If it has returned its thread waits for the lock that this one
        # holds, and gets it here.
        os.sched_yield()
        return self.entered and asleep(self)


def _short(request: Request, reply: Reply) -> bool:
    """Whether *reply* tells that less was sent than the call was given."""
    sent = reply.get("returned")
    return request["do"] in ("send", "sendmsg") and sent is not None and 0 <= sent < len(request["payload"]) // 2


def _ready(on: Descriptor, events: int) -> int:
    poll = select.poll()
    poll.register(on.sock.fileno(), events)
    found = poll.poll(0)
    return found[0][1] if found else 0


def _too_little(request: Request, on: Descriptor, flags: frozenset[str]) -> bool:
    """Whether a call without blocking takes what is there, and a blocking one waits for more. Raises OSError."""
    least = on.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)
    size = request.get("size", 65536)
    wanted = size if "MSG_WAITALL" in flags else min(least, size)
    if wanted <= 1 or not _ready(on, select.POLLIN | select.POLLHUP):
        return False
    try:
        there = len(on.sock.recv(wanted, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return False
    # An error is the call's own: looking took it away. At the stream's end what is there is all.
    return 0 < there < wanted and not _ready(on, _POLLRDHUP) & _POLLRDHUP
