"""Stacks that are not this machine's kernel: started by a command, or there already behind an interface.

Each trial has a stand (:mod:`conform.run.rig.stand`), one of its own or one that served trials before it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from conform.engine.trial import Trial
from conform.link import codec
from conform.run.rig import Ears
from conform.run.rig.stand import AGAIN, Stand
from conform.stacks import linux
from conform.stacks.description import Resolved, StackDescription, StackLostError

if TYPE_CHECKING:
    from conform.run.loop import Loop
    from conform.run.warden import Ward

#: After so many trials in a row for which the stack did not come up it is not started any more.
_GIVE_UP = 3
#: Of stacks that died between two trials so many are told of, by a worker.
_TOLD = 3
#: Ports of the stack that trials get in turn, where one stack serves many.
_PORTS = range(1100, 30000)


class StartedRig:
    """One trial on a stand."""

    def __init__(self, adapter: StartedAdapter, trial: Trial, ears: Ears) -> None:
        self.trial = adapter.own_port(trial)
        self.ears = ears
        self.resolved = adapter.description.resolve(trial.case.settings, trial.case.sysctl)
        self.is_up = False
        self._adapter = adapter
        self._stand: Stand | None = None
        self._agent: linux.ProcessAgent | None = None
        self._tries = 0
        self._over = False

    def open(self) -> None:
        """Have a stand. Raises OSError when none can be started."""
        adapter = self._adapter
        if adapter.failures >= _GIVE_UP:
            raise StackLostError(f"the stack did not come up for {adapter.failures} trials in a row")
        self._stand = adapter.idle(self.resolved)
        if self._stand is not None:
            self._stand.again(self)
        else:
            self._start()

    def _start(self) -> None:
        self._tries += 1
        self._stand = self._adapter.new(self.resolved)
        self._stand.start(self)

    def up(self) -> None:
        """The stand is ready."""
        assert self._stand is not None
        if self._adapter.description.agent == "kernel":
            try:
                self._agent = self._stand.kernel_agent(self)
            except OSError as error:
                self.ears.broke(str(error))
                return
        self._adapter.failures = 0
        self.is_up = True
        self.ears.ready()

    def down(self, reason: str, died: bool) -> None:
        """The stand is gone."""
        if self._over:
            return
        if self.is_up:
            (self.ears.died if died else self.ears.broke)(reason)
        elif self._tries < self._adapter.tries:
            try:
                self._start()  # not this trial's fault: the stand was broken, or its start is unsure
            except OSError as error:
                self.ears.broke(str(error))
        else:
            self._adapter.failures += 1
            self.ears.broke(reason)

    @property
    def capabilities(self) -> frozenset[str] | None:
        """What the agent said that it can do; ``None`` without an agent that says so."""
        return self._stand.capabilities if self._stand is not None else None

    def uses(self, ports: Iterable[int]) -> None:
        """See ``Rig``."""
        if self._stand is not None:
            self._stand.uses(ports)

    def send(self, data: bytes) -> None:
        """Inject *data*. Raises OSError."""
        assert self._stand is not None
        if self._stand.gone:
            return
        try:
            self._stand.send(data)
        except OSError as error:
            # Nobody has the device open any more: the stack is dying, which its process will say in a moment, or it
            # does not listen, which is as good as a packet lost.
            if error.errno not in (errno.ENOBUFS, errno.ENETDOWN, errno.ENXIO):
                raise

    def request(self, id: int, request: dict[str, Any]) -> None:
        """Have a call made."""
        if self._agent is not None:
            self._agent.request(id, request)
            return
        channel = self._stand.channel if self._stand is not None else None
        if channel is None:
            self.ears.broke("the stack has no agent, and a call was to be made")
            return
        channel.request(id, request, self.ears.replied, self.ears.blocked)

    def read_state(self, id: int, stack_port: int, tester_port: int) -> None:
        """Ask the agent, where it can tell."""
        channel = self._stand.channel if self._stand is not None else None
        if channel is None or "states" not in self.trial.stack.capabilities:
            self.ears.state_read(id, None, {})
            return
        request = {"do": "state", "port": stack_port, "peer": tester_port, "timeout": AGAIN}
        channel.request(id, request, self._state, lambda _: None)

    def _state(self, id: int, reply: dict[str, Any]) -> None:
        value = reply.get("value")
        self.ears.state_read(id, value if isinstance(value, str) else None, {})

    def lost(self) -> int:
        """The stand's port's."""
        return self._stand.lost() if self._stand is not None else 0

    def cleanups(self) -> list[Callable[[], object]]:
        """Give the stand back, or end it."""
        self._over = True
        steps: list[Callable[[], object]] = []
        if self._agent is not None:
            steps.append(self._agent.close)
        if self._stand is not None:
            stand = self._stand
            steps.append(lambda: self._adapter.done(stand))
        return steps


class StartedAdapter:
    """The stands of a worker."""

    #: How often a stand is started anew for one trial before the trial is an error.
    tries = 3

    def __init__(
        self,
        loop: Loop,
        ward: Ward,
        description: StackDescription,
        limit: int,
        scratch: str,
        complain: Callable[[str], None] = lambda text: None,
    ) -> None:
        """At most *limit* stands at once. Temporary directories of stands are made under *scratch*.

        *complain* is told of a stack that died while no trial was on it.
        """
        self.loop = loop
        self.ward = ward
        self.description = description
        self.failures = 0  # trials in a row for which no stand came up
        self._limit = limit
        self._scratch = scratch
        self._stands: list[Stand] = []
        self._idle: deque[Stand] = deque()
        self._next_port = 0
        self._numbers = 0
        self._fences: dict[int, codec.Fence] = {}
        self._nursery: linux.Nursery | None = None
        self._complain = complain
        self._buried = 0

    def room(self) -> bool:
        """Whether there is an idle stand, or another may be started."""
        return bool(self._idle) or len(self._stands) < self._limit

    def rig(self, trial: Trial, ears: Ears) -> StartedRig:
        """A stand for *trial*, begun when it is opened."""
        return StartedRig(self, trial, ears)

    def own_port(self, trial: Trial) -> Trial:
        """*trial* on a port of the stack that no trial had before, where one stack serves many."""
        if self.description.reset != "agent" or "calls" not in self.description.capabilities:
            return trial
        self._next_port = (self._next_port + 1) % len(_PORTS)
        return replace(trial, stack=replace(trial.stack, port=_PORTS[self._next_port]))

    def idle(self, resolved: Resolved) -> Stand | None:
        """A stand that waits for a trial with these settings, if there is one."""
        if resolved.mtu is not None:
            return None  # made for the device as it is; such a trial gets a stand of its own
        return self._idle.popleft() if self._idle else None

    def new(self, resolved: Resolved) -> Stand:
        """A stand to be started; where there are as many as may be, an idle one makes room."""
        if len(self._stands) >= self._limit and self._idle:
            self._idle.popleft().end()
        stand = Stand(self, resolved)
        self._stands.append(stand)
        return stand

    def done(self, stand: Stand) -> None:
        """Its trial is over."""
        if self.description.reset == "process" or stand.gone or stand.sized:
            stand.end()
        else:
            stand.release()
            self._idle.append(stand)

    def forget(self, stand: Stand) -> None:
        """*stand* is gone."""
        with contextlib.suppress(ValueError):
            self._stands.remove(stand)
        with contextlib.suppress(ValueError):
            self._idle.remove(stand)

    def bury(self, trial: str, reason: str) -> None:
        """A stack died when *trial*, the last that it served, was over: no verdict tells it, and to be known."""
        self._buried += 1
        if self._buried <= _TOLD:
            more = "; what dies so later is not told of" if self._buried == _TOLD else ""
            self._complain(f"after {trial} had its verdict {reason}{more}")

    def directory(self) -> str:
        """Where stands may have temporary directories."""
        os.makedirs(self._scratch, exist_ok=True)
        return self._scratch

    def number(self) -> int:
        """A fence's number that no trial's fence has."""
        self._numbers = (self._numbers + 1) & 0x7FFFFFFF
        return 0x80000000 | self._numbers

    def fence(self, trial: Trial) -> codec.Fence:
        """The echo by which a stack shows that it is there."""
        found = self._fences.get(trial.ip)
        if found is None:
            found = self._fences[trial.ip] = codec.Fence(trial.ip, *trial.stack.addresses[trial.ip])
        return found

    def nursery(self) -> linux.Nursery:
        """What forks conform's own agents. Raises OSError."""
        if self._nursery is None:
            self._nursery = linux.Nursery(self.loop)
        return self._nursery

    def children(self) -> set[int]:
        """The processes that someone here waits for."""
        found = set().union(*(stand.pids for stand in self._stands)) if self._stands else set()
        if self._nursery is not None and self._nursery.pid is not None:
            found.add(self._nursery.pid)
        return found

    def close(self) -> None:
        """End all stands."""
        for stand in list(self._stands):
            stand.end()
        if self._nursery is not None:
            self._nursery.close()
