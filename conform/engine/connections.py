"""The tester's ends of a trial's connections: which segment is of which, and what waits to be consumed on each."""

from __future__ import annotations

import ipaddress
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

from conform.case import model as m
from conform.engine.given import Given
from conform.engine.timing import Interval
from conform.engine.trial import Trial
from conform.tcp.segment import IPFields, Segment
from conform.tcp.sequence import MODULUS
from conform.tcp.tracker import Connection

#: Where a trial's tester ports come from.
_PORTS = range(32768, 60999)


@cache
def canonical(address: str) -> str:
    """*address* as every packet that was parsed spells it."""
    return str(ipaddress.ip_address(address))


@dataclass(slots=True)
class Arrival:
    """A segment that waits to be consumed. ``entry`` is its index in the transcript."""

    segment: Segment
    when: Interval
    entry: int


@dataclass(slots=True, eq=False)
class End:
    """The tester's end of one connection, at ``address``, and what is known of its other end.

    ``given`` is of the incarnation whose ISS is ``given_iss``. ``stirred`` is when a segment last went either way;
    ``moved`` is SND.UNA before the tester's last segment that moved it, and the last moment at which that went out.
    """

    connection: Connection
    address: str
    queue: deque[Arrival] = field(default_factory=deque)
    given: Given = field(default_factory=Given)
    given_iss: int | None = None
    stirred: float = 0.0
    moved: tuple[int | None, float] = (None, 0.0)


class Connections:
    """All of one trial. *is_listening* says of a port of the stack whether somebody listens there."""

    def __init__(self, trial: Trial, known: dict[str, Connection], is_listening: Callable[[int | None], bool]) -> None:
        self._trial = trial
        self._specs = trial.case.connections
        self._is_listening = is_listening
        self._random = random.Random(f"{trial.seed}:{trial.id.partition('#')[0]}")
        self._stack_address, self._tester_address = map(canonical, trial.stack.addresses[trial.ip])
        #: By name, the trackers of those in ``ends``.
        self.known = known
        self.ends: dict[str, End] = {}
        for name in {m.CONNECTION: None, **self._specs}:
            self._open(name)

    def _open(self, name: str) -> End:
        spec = self._specs.get(name, m.ConnectionSpec())
        stack = self._trial.stack
        taken = {c.tester_port for c in self.known.values()}
        taken |= {other.port for other in self._specs.values() if other.port is not None}
        port = spec.port
        while port is None or (spec.port is None and port in taken):
            port = self._random.choice(_PORTS)
        isn = spec.isn if spec.isn is not None else self._random.randrange(MODULUS)
        connection = Connection(
            name=name,
            version=self._trial.ip,
            tester_port=port,
            stack_port=spec.stack_port or stack.port,
            irs=isn,
            window=spec.window,
            blind_attack_checks="rfc5961" in stack.capabilities,
        )
        if self._is_listening(connection.stack_port):
            connection.called("passive-open")
        self.known[name] = connection
        end = self.ends[name] = End(connection, canonical(spec.address or self._tester_address))
        return end

    def __getitem__(self, name: str) -> End:
        """The end called *name*, made on first use."""
        return self.ends.get(name) or self._open(name)

    def names(self, name: str) -> bool:
        """Whether *name* is that of a connection that was begun or declared."""
        return name in self.ends or name in self._specs

    def has_usual_address(self, end: End) -> bool:
        """Whether *end* is where all are whose case says nothing of it."""
        return end.address == self._tester_address

    def are_usual(self, ip: IPFields) -> bool:
        """Whether *ip*, of the stack, is between the trial's two addresses."""
        return (ip.src, ip.dst) == (self._stack_address, self._tester_address)

    def ip(self, end: End) -> IPFields:
        """The IP fields of what *end* sends."""
        return IPFields(self._trial.ip, end.address, self._stack_address)

    def sender(self, segment: Segment) -> End | None:
        """The end from which *segment*, of the tester, seems to come."""
        source, destination = canonical(segment.ip.src), canonical(segment.ip.dst)
        if destination != self._stack_address:
            return None
        for end in self.ends.values():
            connection = end.connection
            if (
                connection.tester_port == segment.sport
                and connection.stack_port == segment.dport
                and end.address == source
            ):
                return end
        return None

    def receiver(self, segment: Segment) -> End | None:
        """The end to which *segment*, of the stack, is; it learns the stack's port of it."""
        if segment.ip.src != self._stack_address:
            return None
        for end in self.ends.values():
            connection = end.connection
            if (
                connection.tester_port == segment.dport
                and connection.stack_port in (None, segment.sport)
                and end.address == segment.ip.dst
            ):
                connection.stack_port = segment.sport
                return end
        return None

    def peer(self, address: str, port: int) -> End | None:
        """The end at the tester's *address* and *port*."""
        same = [end for end in self.ends.values() if end.connection.tester_port == port]
        return next((end for end in same if end.address == address), same[0] if len(same) == 1 else None)
