"""Socket calls: the agent's request for each, and whether its reply is what the case says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conform.case import model as m
from conform.case.expr import ExpressionError, parse_match
from conform.engine.matcher import FieldMatcher, preview

if TYPE_CHECKING:
    from conform.engine.session import PendingCall, Session

#: Calls that can make the stack send something, so that silence after them must be settled anew.
_EMITTING = frozenset(
    {"connect", "send", "sendmsg", "recv", "recvmsg", "shutdown", "close", "setsockopt", "kill", "exit"}
)
_OUTCOME = {"returns", "error", "data", "signal", "msg_flags", "timeout", "as_", "payload", "port", "address", "conn"}


def emits(call: m.Call) -> bool:
    """Whether *call* can make the stack send a segment."""
    return getattr(call, "do", "") in _EMITTING


def request_of(call: m.Call, session: Session, timeout: float) -> dict[str, Any]:
    """The agent protocol's request for *call*, less its id."""
    request: dict[str, Any] = call.model_dump(by_alias=True, exclude=_OUTCOME)
    request["timeout"] = timeout
    name = call.as_
    if name is None:
        name = {"socket": m.LISTENER, "accept": m.CONNECTION}.get(request["do"])
    if name is not None:
        request["as"] = name
    own, tester = session.stack.addresses[session.trial.ip]
    match call:
        case m.BindCall():
            request["port"] = 0 if call.port == "any" else call.port or session.stack.port
            request["address"] = own if call.address == "stack" else {4: "0.0.0.0", 6: "::"}[session.trial.ip]
        case m.ConnectCall():
            connection = session.connection(_target(call, session))
            request["address"], request["port"] = tester, connection.tester_port
        case m.SendCall():
            request["payload"] = call.payload.hex()
    return request


def _target(call: m.ConnectCall, session: Session) -> str:
    if call.conn is not None:
        return call.conn
    return call.on if call.on in session.connections else m.CONNECTION


def conn_of(call: m.Call, session: Session) -> None:
    """Tell the tracker of a call that was begun: what it leads to is possible from now on."""
    match call:
        case m.ConnectCall():
            connection = session.connection(_target(call, session))
            session.describes(call.on, connection.name)
            connection.stack_port = session.port_of(call.on)
            connection.called("active-open")
        case m.CloseCall() | m.ShutdownCall():
            if isinstance(call, m.ShutdownCall) and call.how == "rd":
                return
            name = session.descriptor(call.on)
            if name is not None:
                aborts = isinstance(call, m.CloseCall) and session.aborts(call.on)
                session.connection(name).called("abort" if aborts else "close")
            elif isinstance(call, m.CloseCall):
                session.unlistens(call.on)
        case m.KillCall() | m.ExitCall():
            for connection in session.connections.values():
                connection.called("close")


class Outcomes:
    """Judges replies, and tells the session what a call that succeeded means for later ones."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def check(self, call: m.Call, pending: PendingCall, outcome: m.Outcome, reply: dict[str, Any]) -> None:
        """Raise StepFailed unless *reply* is what *outcome* says."""
        problem = self._problem(call, outcome, reply)
        if problem is not None:
            raise self._session.fail(*problem, pending.action)
        self._took_place(call, reply)
        self._session.asserted()

    def fits(self, call: m.Call, pending: PendingCall, outcome: m.Outcome, reply: dict[str, Any]) -> bool:
        """Whether *reply* is what *outcome* says."""
        return self._problem(call, outcome, reply) is None

    def text(self, reply: dict[str, Any]) -> str:
        """*reply* for a reader."""
        if "fault" in reply:
            return f"a fault: {reply['fault']}"
        if reply.get("timeout"):
            return "no return in time"
        parts = [str(reply["error"])] if reply.get("error") else ["success"]
        if not reply.get("error"):
            if reply.get("data") is not None:
                parts.append(f"data {preview(bytes.fromhex(reply['data']))}")
            elif reply.get("value") is not None:
                parts.append(str(reply["value"]))
            elif reply.get("returned") is not None:
                parts.append(str(reply["returned"]))
        parts += reply.get("signals") or []
        return ", ".join(parts)

    def _problem(
        self, call: m.Call, outcome: m.Outcome, reply: dict[str, Any]
    ) -> tuple[str, str, str, tuple[str, ...]] | None:
        name = f"{getattr(call, 'do', 'call')}" + (f" on {call.on}" if hasattr(call, "on") else "")
        actual = self.text(reply)
        wanted = self._wanted(outcome)
        if "fault" in reply:
            return f"{name}: the agent refuses: {reply['fault']}", wanted, actual, ()
        if reply.get("timeout"):
            return f"{name} did not return in time", wanted, actual, ()
        error = reply.get("error")
        if outcome.error is not None:
            if error is None:
                return f"{name} succeeded, want {' or '.join(outcome.error)}", wanted, actual, ()
            if error not in outcome.error:
                return f"{name} failed with {error}, want {' or '.join(outcome.error)}", wanted, actual, ()
        elif error is not None:
            return f"{name} failed with {error}", wanted, actual, ()
        if outcome.signal is not None and outcome.signal not in (reply.get("signals") or []):
            return f"{name} raised no {outcome.signal}", wanted, actual, ()
        if outcome.msg_flags is not None and set(outcome.msg_flags) != set(reply.get("msg_flags") or []):
            seen = ", ".join(reply.get("msg_flags") or []) or "none"
            return (
                f"{name} returned the flags {seen}, want {', '.join(outcome.msg_flags) or 'none'}",
                wanted,
                actual,
                (),
            )
        words = self._returned(call, outcome, reply) or self._data(call, outcome, reply)
        if words is not None:
            return f"{name}: {words}", wanted, actual, (words,)
        return None

    @staticmethod
    def _wanted(outcome: m.Outcome) -> str:
        parts = [" or ".join(outcome.error)] if outcome.error else ["success"]
        if outcome.returns is not None:
            parts.append(f"returns {outcome.returns}")
        if outcome.data is not None:
            text = "what was sent" if isinstance(outcome.data, str) else preview(outcome.data)
            parts.append(f"data {text}")
        if outcome.signal is not None:
            parts.append(str(outcome.signal))
        return ", ".join(parts)

    def _returned(self, call: m.Call, outcome: m.Outcome, reply: dict[str, Any]) -> str | None:
        wanted = outcome.returns
        if wanted is None:
            return None
        for key in ("value", "address", "returned"):
            if reply.get(key) is not None:
                return self._compare("it returned", wanted, reply[key])
        return f"it returned nothing, want {wanted}"

    def _compare(self, what: str, wanted: Any, actual: Any) -> str | None:
        if isinstance(wanted, dict):
            if not isinstance(actual, dict):
                return f"{what} {actual}, want {wanted}"
            for key, value in wanted.items():
                if key not in actual:
                    return f"{what} no {key}"
                words = self._compare(f"{what} {key}", value, actual[key])
                if words is not None:
                    return words
            return None
        if isinstance(wanted, list):
            same = isinstance(actual, list) and sorted(map(str, wanted)) == sorted(map(str, actual))
            return None if same else f"{what} {actual}, want {wanted}"
        if isinstance(wanted, bool) or isinstance(actual, str) or not isinstance(actual, int):
            return None if wanted == actual else f"{what} {actual}, want {wanted}"
        try:
            match = parse_match(str(wanted))
        except ExpressionError:
            return f"{what} {actual}, want {wanted}"
        session = self._session
        out = FieldMatcher(session.environment(session.connection(m.CONNECTION)))
        out.number(what, match, int(actual))
        return out.mismatches[0].words if out.mismatches else None

    def _data(self, call: m.Call, outcome: m.Outcome, reply: dict[str, Any]) -> str | None:
        if outcome.data is None:
            return None
        actual = bytes.fromhex(reply.get("data") or "")
        if outcome.data == "sent":
            name = self._session.descriptor(getattr(call, "on", m.CONNECTION)) or m.CONNECTION
            connection = self._session.connection(name)
            wanted = bytes(connection.received[connection.read :][: getattr(call, "size", None)])
        else:
            assert isinstance(outcome.data, bytes)
            wanted = outcome.data
        if actual == wanted:
            return None
        if len(actual) != len(wanted):
            return f"the application read {len(actual)} octets, want {len(wanted)}"
        at = next(i for i, (a, b) in enumerate(zip(actual, wanted, strict=True)) if a != b)
        return f"the application read other octets than expected, from octet {at} on"

    def _took_place(self, call: m.Call, reply: dict[str, Any]) -> None:
        if reply.get("error"):
            return
        session = self._session
        match call:
            case m.BindCall():
                port = call.port if isinstance(call.port, int) else session.stack.port if call.port is None else 0
                if port:
                    session.heard_port(call.on, port)
            case m.ListenCall():
                session.listens(call.on)
            case m.SetsockoptCall(option="SO_LINGER", value=dict() as value):
                session.lingers(call.on, bool(value.get("onoff")) and not value.get("linger"))
            case m.AcceptCall():
                name = call.as_ or m.CONNECTION
                session.describes(name, name if name in session.connections else m.CONNECTION)
            case m.DupCall():
                of = session.descriptor(call.on)
                if of is not None:
                    session.describes(call.as_, of)
            case m.RecvCall():
                name = session.descriptor(call.on) or m.CONNECTION
                if "MSG_PEEK" not in call.flags and "MSG_OOB" not in call.flags:
                    session.connection(name).read += len(reply.get("data") or "") // 2
