"""The application's sockets: which process holds which, what each is of, and what the end of one means to TCP.

A descriptor is a process's name for an *open file*, which is TCP's socket. dup and fork give further descriptors of the
same file, and the file lives until its last descriptor is closed, by close or by its process's end (POSIX.1-2017,
section 2.14 and close()): only then does TCP hear of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from conform.case import model as m
from conform.tcp.tracker import Connection


@dataclass(slots=True, eq=False)
class OpenFile:
    """One socket. ``connection`` is the name of the connection that it is of, ``port`` where it is bound, if known.

    ``aborts``: its last close is an ABORT, because SO_LINGER is on, and its time zero (RFC 9293 section 3.10.5).
    """

    connection: str | None = None
    port: int | None = None
    listening: bool = False
    aborts: bool = False


class Descriptors:
    """The open files of one trial; *connections* are the trial's, told of listeners that come and go.

    *port* is where a listener listens of which nothing else is known. On the ports *served* somebody listens already.
    """

    def __init__(self, connections: dict[str, Connection], port: int, served: Iterable[int] = ()) -> None:
        self._connections = connections
        self._port = port
        self._served = frozenset(served)
        self._held: dict[tuple[str, str], OpenFile] = {}
        #: The file that each name was last given to, open or not.
        self._named: dict[str, OpenFile] = {}

    # Which file ------------------------------------------------------------------------------------------------------
    def file(self, process: str, name: str) -> OpenFile | None:
        """The file of *name* in *process*, ``None`` if it has none. A name never heard of gets one."""
        found = self._held.get((process, name))
        if found is None and name not in self._named:
            found = self.opens(process, name, m.CONNECTION if name == m.CONNECTION else None)
        return found

    def opens(self, process: str, name: str, connection: str | None = None) -> OpenFile:
        """*name* in *process* is a new socket, of *connection*."""
        file = OpenFile(connection)
        self.holds(process, name, file)
        return file

    def holds(self, process: str, name: str, file: OpenFile) -> None:
        """*name* in *process* is one more descriptor of *file*."""
        self._held[process, name] = self._named[name] = file

    def forks(self, parent: str, child: str) -> None:
        """*child* has all descriptors that *parent* has."""
        self._held |= {(child, name): file for (process, name), file in self._held.items() if process == parent}

    def of_name(self, name: str) -> OpenFile | None:
        """The file that *name* was last given to in any process."""
        return self._named.get(name)

    def is_of_none(self, connection: str) -> bool:
        """Whether no socket is of *connection*: the application has not accepted it, or has closed it."""
        return all(file.connection != connection for file in self._held.values())

    # How it ends -----------------------------------------------------------------------------------------------------
    def closes(self, process: str, name: str) -> OpenFile | None:
        """*process* closes *name*; the file, if that was its last descriptor."""
        file = self._held.pop((process, name), None)
        return file if file is not None and file not in self._held.values() else None

    def ends(self, process: str) -> list[OpenFile]:
        """*process* ends; the files of which it had the last descriptors."""
        names = [name for holder, name in self._held if holder == process]
        return [file for file in (self.closes(process, name) for name in names) if file is not None]

    # Listeners -------------------------------------------------------------------------------------------------------
    def listens(self, file: OpenFile) -> None:
        """*file* listens: a passive OPEN of the connections to its port (RFC 9293 section 3.10.1)."""
        file.port = file.port or self._port
        file.listening = True
        for connection in self._connections.values():
            if connection.stack_port == file.port:
                connection.called("passive-open")

    def unlistens(self, file: OpenFile) -> None:
        """*file* has ended, and if it was the last listener on its port nobody listens there any more."""
        if not file.listening or self.is_listening(file.port):
            return
        for connection in self._connections.values():
            if connection.stack_port == file.port:
                connection.called("passive-close")

    def is_listening(self, port: int | None) -> bool:
        """Whether a socket listens on *port*."""
        return port in self._served or any(file.listening and file.port == port for file in self._held.values())
