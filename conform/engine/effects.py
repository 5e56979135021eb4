"""What socket calls mean to TCP: told to the trackers when a call is begun, and taken back where it turns out to fail.

From the moment at which a call is begun all that it leads to is possible, whatever comes first, the stack's segments or
the reply. What only a success brings about is told when that is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from conform.case import model as m
from conform.engine.connections import End
from conform.engine.descriptors import OpenFile
from conform.engine.runtime import PendingCall, Runtime

#: The signals that end a process.
_DEADLY = frozenset({"SIGKILL", "SIGTERM", "SIGINT"})
#: Errors of a call that goes on, or has done its work, all the same.
_GOING_ON = frozenset({"EINTR", "EINPROGRESS", "EAGAIN", "EWOULDBLOCK"})


def target(run: Runtime, call: m.ConnectCall) -> str:
    """The name of the connection that *call* opens."""
    if call.conn is not None:
        return call.conn
    return call.on if call.on in run.connections else m.CONNECTION


# Begun ---------------------------------------------------------------------------------------------------------------
def begun(run: Runtime, pending: PendingCall) -> None:
    """*pending* was begun: what it leads to is possible from now on."""
    call, action = pending.call, pending.action
    match call:
        case m.ConnectCall():
            connection = run.connection(target(run, call))
            file = run.descriptors.file(call.by, call.on)
            if file is not None:
                file.connection = connection.name
                connection.stack_port = file.port
            connection.called("active-open")
        case m.SendCall():
            end = _of(run, run.descriptors.file(call.by, call.on))
            if end is not None:
                end.given.sends(action, call.payload)
            else:
                run.all_given = False
        case m.ShutdownCall() if call.how != "rd":
            file = run.descriptors.file(call.by, call.on)
            if file is not None:
                pending.undo = _ends(run, file, action, "close")
        case m.CloseCall():
            run.descriptors.file(call.by, call.on)
            file = run.descriptors.closes(call.by, call.on)
            if file is not None:
                pending.undo = _ends(run, file, action, "abort" if file.aborts else "close")
        case m.ExitCall():
            _dies(run, call.by, action)
        case m.KillCall() if call.with_ in _DEADLY:
            _dies(run, call.process, action)


def _of(run: Runtime, file: OpenFile | None) -> End | None:
    """The connection that *file* is of."""
    return run.ends[file.connection] if file is not None and file.connection is not None else None


def _ends(run: Runtime, file: OpenFile, action: int, event: str) -> Callable[[], None]:
    """*file* was closed, or its sending side, by *action*; what takes that back."""
    end = _of(run, file)
    if end is None:
        for each in _unaccepted(run, file.port):
            each.given.may_end(action)
        run.descriptors.unlistens(file)
        return lambda: None
    take_back = end.connection.called(event)
    end.given.may_end(action)

    def undo() -> None:
        take_back()
        end.given.may_not_end(action)

    return undo


def _dies(run: Runtime, process: str, action: int) -> None:
    """*process* is ended by *action*, and with it what it alone had open."""
    for file in run.descriptors.ends(process):
        _ends(run, file, action, "abort" if file.aborts else "close")
    for pending in run.calls.values():
        if pending.call.by == process and isinstance(pending.call, m.AcceptCall):
            # It may have accepted one of these, which then ended with it.
            for end in _unaccepted(run, None):
                end.connection.called("close")
                end.given.may_end(action)


def _unaccepted(run: Runtime, port: int | None) -> Iterable[End]:
    """The connections, to *port* of the stack or any, that no socket is of."""
    for end in run.ends.ends.values():
        if port in (None, end.connection.stack_port) and run.descriptors.is_of_none(end.connection.name):
            yield end


# Returned ------------------------------------------------------------------------------------------------------------
def returned(run: Runtime, pending: PendingCall, reply: dict[str, Any]) -> None:
    """*pending* has returned *reply*: what only that shows holds from now on."""
    call, error = pending.call, reply.get("error")
    count = reply.get("returned")
    if isinstance(call, m.SendCall):
        end = _of(run, run.descriptors.file(call.by, call.on))
        if end is not None:
            end.given.sent(pending.action, count if not error and isinstance(count, int) else None)
    if error:
        if pending.undo is not None and error not in _GOING_ON:
            pending.undo()
        return
    descriptors = run.descriptors
    file = descriptors.file(call.by, call.on) if hasattr(call, "on") else None
    match call:
        case m.SocketCall():
            descriptors.opens(call.by, call.as_ or m.LISTENER)
        case m.BindCall() if file is not None:
            file.port = None if call.port == "any" else call.port or run.stack.port
        case m.ListenCall() if file is not None:
            descriptors.listens(file)
        case m.SetsockoptCall(option="SO_LINGER", value=dict() as value) if file is not None:
            file.aborts = bool(value.get("onoff")) and not value.get("linger")
        case m.AcceptCall():
            descriptors.opens(call.by, call.as_ or m.CONNECTION, _accepted(run, call, reply))
        case m.DupCall() if file is not None:
            descriptors.holds(call.by, call.as_, file)
        case m.ForkCall():
            descriptors.forks(call.by, call.as_)
        case m.RecvCall() if "MSG_PEEK" not in call.flags and "MSG_OOB" not in call.flags:
            end = _of(run, file)
            if end is not None:
                data = len(reply.get("data") or "") // 2
                # What MSG_TRUNC throws away is counted, and not there.
                end.connection.read += max(data, count if isinstance(count, int) else 0)
        case m.ExitCall():
            _drop(run, call.by)
        case m.KillCall() if call.with_ in _DEADLY:
            _drop(run, call.process)


def _accepted(run: Runtime, call: m.AcceptCall, reply: dict[str, Any]) -> str:
    """The name of the connection that *call* accepted: by the peer that its reply tells, else by the descriptor."""
    peer = reply.get("address")
    if isinstance(peer, dict) and isinstance(peer.get("port"), int):
        end = run.ends.peer(str(peer.get("address")), peer["port"])
        if end is not None:
            return end.connection.name
    name = call.as_ or m.CONNECTION
    return name if run.ends.names(name) else m.CONNECTION


def _drop(run: Runtime, process: str) -> None:
    """The calls that *process* had under way ended with it, and nobody can tell how."""
    for name in [name for name, pending in run.calls.items() if pending.call.by == process]:
        del run.calls[name]
