"""The application's socket descriptors: which connection each is of, where it is bound, what a close of it means."""

from __future__ import annotations

from collections.abc import Iterable

from conform.case import model as m
from conform.tcp.tracker import Connection


class Descriptors:
    """What is known of the descriptors of one trial; *connections* are the trial's, told of listeners that come and go.

    *port* is where a listener listens of which nothing else is known. On the ports *served* somebody listens already.
    """

    def __init__(self, connections: dict[str, Connection], port: int, served: Iterable[int] = ()) -> None:
        self._connections = connections
        self._port = port
        self._of: dict[str, str] = {m.CONNECTION: m.CONNECTION}
        self._ports: dict[str, int] = {}
        self._listening: set[int] = set(served)
        self._lingering: set[str] = set()

    def describes(self, descriptor: str, connection: str) -> None:
        """*descriptor* is of *connection*."""
        self._of[descriptor] = connection

    def connection_of(self, descriptor: str) -> str | None:
        """The name of the connection that *descriptor* is of, ``None`` where it is of none."""
        return self._of.get(descriptor)

    def binds(self, descriptor: str, port: int) -> None:
        """*descriptor* is bound to *port*."""
        self._ports[descriptor] = port

    def port_of(self, descriptor: str) -> int | None:
        """The port that *descriptor* is bound to, where that is known."""
        return self._ports.get(descriptor)

    def listens(self, descriptor: str) -> None:
        """*descriptor* listens: a passive OPEN of the connections to its port (RFC 9293 section 3.10.1)."""
        port = self._ports.get(descriptor, self._port)
        self._listening.add(port)
        for connection in self._connections.values():
            if connection.stack_port == port:
                connection.called("passive-open")

    def unlistens(self, descriptor: str) -> None:
        """*descriptor*, which may be a listener, was closed."""
        port = self._ports.get(descriptor)
        if port is None or descriptor in self._of:
            return
        self._listening.discard(port)
        for connection in self._connections.values():
            if connection.stack_port == port:
                connection.called("passive-close")

    def is_listening(self, port: int | None) -> bool:
        """Whether a descriptor listens on *port*."""
        return port in self._listening

    def lingers(self, descriptor: str, aborts: bool) -> None:
        """Whether a close of *descriptor* is an ABORT: SO_LINGER is on, and its time zero."""
        (self._lingering.add if aborts else self._lingering.discard)(descriptor)

    def aborts(self, descriptor: str) -> bool:
        """Whether a close of *descriptor* is an ABORT (RFC 9293 section 3.10.5)."""
        return descriptor in self._lingering
