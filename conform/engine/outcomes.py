"""Whether a call's reply is what the case says, and a reply in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conform.case import model as m
from conform.case.expr import ExpressionError, parse_match
from conform.engine.matcher import FieldMatcher, preview

if TYPE_CHECKING:
    from conform.engine.runtime import PendingCall, Runtime


class Outcomes:
    """Judges replies."""

    def __init__(self, run: Runtime) -> None:
        self._run = run

    def check(self, pending: PendingCall, outcome: m.Outcome) -> None:
        """Raise StepFailed unless the reply to *pending*, which has returned, is what *outcome* says."""
        reply = self._run.replies[pending.action].reply
        problem = self._problem(pending.call, outcome, reply)
        if problem is not None:
            summary, words = problem
            entry = self._run.reply_entries.get(pending.action)
            raise self._run.fail(summary, self._wanted(outcome), self.text(reply), words, entry)
        self._run.asserted()

    def fits(self, pending: PendingCall, outcome: m.Outcome) -> bool:
        """Whether the reply to *pending*, which has returned, is what *outcome* says."""
        return self._problem(pending.call, outcome, self._run.replies[pending.action].reply) is None

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

    def _problem(self, call: m.Call, outcome: m.Outcome, reply: dict[str, Any]) -> tuple[str, tuple[str, ...]] | None:
        """What is wrong with *reply*, and in what it differs; ``None`` if nothing is."""
        name = f"{getattr(call, 'do', 'call')}" + (f" on {call.on}" if hasattr(call, "on") else "")
        if "fault" in reply:
            return f"{name}: the agent refuses: {reply['fault']}", ()
        if reply.get("timeout"):
            return f"{name} did not return in time", ()
        error = reply.get("error")
        if outcome.error is not None:
            if error is None:
                return f"{name} succeeded, want {' or '.join(outcome.error)}", ()
            if error not in outcome.error:
                return f"{name} failed with {error}, want {' or '.join(outcome.error)}", ()
        elif error is not None:
            return f"{name} failed with {error}", ()
        if outcome.signal is not None and outcome.signal not in (reply.get("signals") or []):
            return f"{name} raised no {outcome.signal}", ()
        if outcome.msg_flags is not None and set(outcome.msg_flags) != set(reply.get("msg_flags") or []):
            seen = ", ".join(reply.get("msg_flags") or []) or "none"
            return f"{name} returned the flags {seen}, want {', '.join(outcome.msg_flags) or 'none'}", ()
        words = self._returned(call, outcome, reply) or self._data(call, outcome, reply)
        return (f"{name}: {words}", (words,)) if words is not None else None

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
        run = self._run
        out = FieldMatcher(run.environment(run.connection(m.CONNECTION)))
        out.number(what, match, int(actual))
        out.known()
        return out.mismatches[0].words if out.mismatches else None

    def _data(self, call: m.Call, outcome: m.Outcome, reply: dict[str, Any]) -> str | None:
        if outcome.data is None:
            return None
        actual = bytes.fromhex(reply.get("data") or "")
        if outcome.data == "sent":
            file = self._run.descriptors.file(call.by, getattr(call, "on", m.CONNECTION))
            name = file.connection if file is not None else None
            connection = self._run.connection(name or m.CONNECTION)
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
