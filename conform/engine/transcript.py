"""The transcript: everything that happened in a trial, in order, as JSON-able entries (docs/run-format.md)."""

from __future__ import annotations

from typing import Any

from conform.engine import events as ev
from conform.tcp.segment import from_json, to_json

#: Times are kept to the microsecond, so that what is written is what the verdict was made of.
DIGITS = 6


class Transcript:
    """Entries in order; each method that records one gives its index."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []

    def action(self, now: float, action: ev.Action, step: str) -> int:
        """Record what the session wants done."""
        match action:
            case ev.Inject():
                return self._add(
                    {"t": now, "a": "inject", "id": action.id, "packet": to_json(action.packet), "step": step}
                )
            case ev.Call():
                return self._add({"t": now, "a": "call", "id": action.id, "request": action.request, "step": step})
            case ev.Settle():
                return self._add({"t": now, "a": "settle", "id": action.id, "step": step})
            case ev.ReadState():
                ports = {"stack_port": action.stack_port, "tester_port": action.tester_port}
                return self._add({"t": now, "a": "read-state", "id": action.id, **ports, "step": step})

    def event(self, now: float, event: ev.Event) -> int:
        """Record what happened."""
        match event:
            case ev.Injected():
                return self._add(
                    {"t": now, "e": "injected", "id": event.id, "before": event.before, "after": event.after}
                )
            case ev.Arrived():
                return self._add({"t": now, "e": "arrived", "since": event.since, "packet": to_json(event.packet)})
            case ev.Returned():
                return self._add({"t": now, "e": "returned", "id": event.id, "reply": event.reply})
            case ev.Blocked():
                return self._add({"t": now, "e": "blocked", "id": event.id})
            case ev.Settled():
                return self._add({"t": now, "e": "settled", "id": event.id})
            case ev.StateRead():
                return self._add({"t": now, "e": "state", "id": event.id, "state": event.state, "info": event.info})
            case ev.Ticked():
                return self._add({"t": now, "e": "ticked"})
            case ev.Broke():
                return self._add({"t": now, "e": "broke", "reason": event.reason})
            case ev.Lost():
                return self._add({"t": now, "e": "lost", "packets": event.packets})
            case ev.Died():
                return self._add({"t": now, "e": "died", "reason": event.reason})

    def note(self, now: float, name: str, /, **fields: Any) -> int:
        """Record what only explains."""
        return self._add({"t": now, "n": name, **fields})

    def _add(self, entry: dict[str, Any]) -> int:
        self.entries.append(entry)
        return len(self.entries) - 1


def rounded(event: ev.Event) -> ev.Event:
    """*event* with its times to the microsecond."""
    if isinstance(event, ev.Arrived):
        return ev.Arrived(event.packet, round(event.since, DIGITS))
    if isinstance(event, ev.Injected):
        return ev.Injected(event.id, round(event.before, DIGITS), round(event.after, DIGITS))
    return event


def event_of(entry: dict[str, Any]) -> ev.Event | None:
    """The event that *entry* records, ``None`` for an action or a note. Raises KeyError, ValueError or TypeError."""
    match entry.get("e"):
        case None:
            return None
        case "injected":
            return ev.Injected(entry["id"], entry["before"], entry["after"])
        case "arrived":
            return ev.Arrived(from_json(entry["packet"]), entry["since"])
        case "returned":
            return ev.Returned(entry["id"], entry["reply"])
        case "blocked":
            return ev.Blocked(entry["id"])
        case "settled":
            return ev.Settled(entry["id"])
        case "state":
            return ev.StateRead(entry["id"], entry["state"], entry["info"])
        case "ticked":
            return ev.Ticked()
        case "broke":
            return ev.Broke(entry["reason"])
        case "lost":
            return ev.Lost(entry["packets"])
        case "died":
            return ev.Died(entry["reason"])
    raise ValueError(f"no event is called {entry['e']!r}")
