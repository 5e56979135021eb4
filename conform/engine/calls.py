"""Steps about socket calls: ``call``, ``start``, ``blocked``, ``finish``, and the agent's request for each call."""

from __future__ import annotations

from typing import Any

from conform.case import model as m
from conform.engine import effects
from conform.engine import events as ev
from conform.engine.endings import Broken, NotTaken
from conform.engine.runtime import AGENT_GRACE, CALL_PATIENCE, PendingCall, Runtime, Script
from conform.engine.timing import Interval

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
    check(run, pending, call)


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
        check(run, pending, outcome)


def check(run: Runtime, pending: PendingCall, outcome: m.Outcome) -> None:
    """*pending* has returned, with *outcome*: what it did is known from now on. Raises StepFailed."""
    run.outcomes.check(pending, outcome)
    effects.returned(run, pending, run.replies[pending.action].reply)


def under_way(run: Runtime, name: str) -> PendingCall:
    """The call started as *name*. Raises NotTaken."""
    found = run.calls.get(name)
    if found is None:
        raise NotTaken(f"no call {name!r} is under way: it was not started, or has been finished")
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
    pending = PendingCall(call, action, run.now, run.now + patience + AGENT_GRACE, run.in_recipe)
    effects.begun(run, pending)
    return pending


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
    own, _ = run.stack.addresses[run.trial.ip]
    match call:
        case m.BindCall():
            request["port"] = 0 if call.port == "any" else call.port or run.stack.port
            request["address"] = own if call.address == "stack" else {4: "0.0.0.0", 6: "::"}[run.trial.ip]
        case m.ConnectCall():
            end = run.ends[effects.target(run, call)]
            request["address"], request["port"] = end.address, end.connection.tester_port
        case m.SendCall():
            request["payload"] = call.payload.hex()
    return request
