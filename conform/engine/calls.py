"""Steps about socket calls: ``call``, ``start``, ``blocked``, ``finish``, and the agent's request for each call."""

from __future__ import annotations

from typing import Any

from conform.case import model as m
from conform.engine import events as ev
from conform.engine.runtime import (
    AGENT_GRACE,
    CALL_PATIENCE,
    Broken,
    Interval,
    PendingCall,
    Runtime,
    Script,
)

#: Calls that can make the stack send something, so that silence after them must be settled anew.
_EMITTING = frozenset(
    {"connect", "send", "sendmsg", "recv", "recvmsg", "shutdown", "close", "setsockopt", "kill", "exit"}
)
_OUTCOME = {"returns", "error", "data", "signal", "msg_flags", "timeout", "as_", "payload", "port", "address", "conn"}


def call(run: Runtime, call: m.Call) -> Script:
    """The step ``call``: a call that returns before the next step. Raises StepFailed, Broken."""
    yield from run.quiet()
    pending = _begin(run, call, overlap=False)
    yield from _returned(run, pending)
    run.outcomes.check(pending, call)


def start(run: Runtime, call: m.Call) -> Script:
    """The step ``start``: a call that goes on beside the steps that follow. Raises StepFailed."""
    yield from run.quiet()
    assert call.as_ is not None
    run.calls[call.as_] = _begin(run, call, overlap=True)


def blocked(run: Runtime, name: str) -> Script:
    """The step ``blocked``: the call started as *name* sleeps in the stack. Raises StepFailed, Broken, LookupError."""
    pending = under_way(run, name)
    while pending.action not in run.blocked:
        if pending.action in run.replies:
            reply = run.outcomes.text(run.replies[pending.action].reply)
            raise run.fail(
                f"{name} did not sleep: it ended with {reply}",
                "asleep",
                reply,
                entry=run.reply_entries[pending.action],
            )
        if run.looked >= pending.deadline:
            raise Broken(f"the agent said neither that {name} sleeps nor that it ended")
        yield from run.wait(pending.deadline)
    run.asserted()


def finish(run: Runtime, outcomes: dict[str, m.Outcome]) -> Script:
    """The step ``finish``: each call named returns with its outcome. Raises StepFailed, Broken, LookupError."""
    for name, outcome in outcomes.items():
        pending = under_way(run, name)
        yield from _returned(run, pending)
        del run.calls[name]
        run.outcomes.check(pending, outcome)


def under_way(run: Runtime, name: str) -> PendingCall:
    """The call started as *name*. Raises LookupError."""
    found = run.calls.get(name)
    if found is None:
        raise LookupError(f"no call {name!r} is under way: it was not started, or has been finished")
    return found


def no_reply(pending: PendingCall) -> Broken:
    """That the agent said nothing of *pending* in its time; to be raised."""
    do = getattr(pending.call, "do", "the call")
    on = getattr(pending.call, "on", None)
    return Broken(f"the agent gave no reply to {f'{do} on {on}' if on else do}")


def _begin(run: Runtime, call: m.Call, overlap: bool) -> PendingCall:
    patience = (
        run.seconds(call.timeout)
        if call.timeout is not None
        else CALL_PATIENCE * run.stack.timers["timer.response.max"]
    )
    request = _request_of(run, call, patience)
    if overlap:
        request["overlap"] = True
    action = run.do(ev.Call, request=request)
    if _emits(call):
        run.stimulated()
    _tell_tracker(run, call)
    return PendingCall(call, action, run.now, run.now + patience + AGENT_GRACE, run.in_recipe)


def _returned(run: Runtime, pending: PendingCall) -> Script:
    while pending.action not in run.replies:
        if run.looked >= pending.deadline:
            raise no_reply(pending)
        yield from run.wait(pending.deadline)
    run.event = Interval(max(pending.begun, run.event.low), run.now)


def _emits(call: m.Call) -> bool:
    """Whether *call* can make the stack send a segment."""
    return getattr(call, "do", "") in _EMITTING


def _request_of(run: Runtime, call: m.Call, timeout: float) -> dict[str, Any]:
    """The agent protocol's request for *call*, less its id."""
    request: dict[str, Any] = call.model_dump(by_alias=True, exclude=_OUTCOME)
    request["timeout"] = timeout
    name = call.as_
    if name is None:
        name = {"socket": m.LISTENER, "accept": m.CONNECTION}.get(request["do"])
    if name is not None:
        request["as"] = name
    own, tester = run.stack.addresses[run.trial.ip]
    match call:
        case m.BindCall():
            request["port"] = 0 if call.port == "any" else call.port or run.stack.port
            request["address"] = own if call.address == "stack" else {4: "0.0.0.0", 6: "::"}[run.trial.ip]
        case m.ConnectCall():
            connection = run.connection(_target(run, call))
            request["address"], request["port"] = tester, connection.tester_port
        case m.SendCall():
            request["payload"] = call.payload.hex()
    return request


def _target(run: Runtime, call: m.ConnectCall) -> str:
    if call.conn is not None:
        return call.conn
    return call.on if call.on in run.connections else m.CONNECTION


def _tell_tracker(run: Runtime, call: m.Call) -> None:
    """Tell the tracker of a call that was begun: what it leads to is possible from now on."""
    match call:
        case m.ConnectCall():
            connection = run.connection(_target(run, call))
            run.descriptors.describes(call.on, connection.name)
            connection.stack_port = run.descriptors.port_of(call.on)
            connection.called("active-open")
        case m.CloseCall() | m.ShutdownCall():
            if isinstance(call, m.ShutdownCall) and call.how == "rd":
                return
            name = run.descriptors.connection_of(call.on)
            if name is not None:
                aborts = isinstance(call, m.CloseCall) and run.descriptors.aborts(call.on)
                run.connection(name).called("abort" if aborts else "close")
            elif isinstance(call, m.CloseCall):
                run.descriptors.unlistens(call.on)
        case m.KillCall() | m.ExitCall():
            for connection in run.connections.values():
                connection.called("close")
