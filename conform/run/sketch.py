"""A case as a ladder, drawn from what it says: no run is needed to see what it is about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["send", "expect", "call", "note", "branch"]

WIDTH = 58
_FIELDS = ("seq", "ack", "window", "urgent", "payload", "length", "stream", "options", "ip", "bad", "reserved")
_TIMING = ("within", "after", "between", "from")


@dataclass(frozen=True, slots=True)
class Rung:
    """One line: a packet towards the stack or from it, a call on the stack's side, or words between."""

    kind: Kind
    text: str
    depth: int = 0
    in_recipe: bool = False
    why: str = ""


def rungs(document: Mapping[str, Any]) -> list[Rung]:
    """The recipe and the steps of a resolved case."""
    return [
        *_steps(document.get("recipe") or [], 0, True),
        *_steps(document["steps"], 0, False),
    ]


def draw(rung: Rung, width: int = WIDTH) -> str:
    """One rung, between the tester's line and the stack's."""
    indent = "  " * rung.depth
    room = width - len(indent)
    match rung.kind:
        case "send":
            body = f"── {rung.text} ".ljust(room - 1, "─") + "▶"
        case "expect":
            body = f"◀─ {rung.text} ".ljust(room, "─")
        case "call":
            body = f"{rung.text} ●".rjust(room)
        case "note":
            body = f"· {rung.text}".rjust(room)
        case "branch":
            body = rung.text.ljust(room)
    return f"│{indent}{body}│"


def _steps(steps: list[Any], depth: int, in_recipe: bool) -> Iterator[Rung]:
    for step in steps:
        yield from _step(step, depth, in_recipe)


def _step(step: Mapping[str, Any], depth: int, in_recipe: bool) -> Iterator[Rung]:
    why = str(step.get("why") or "")

    def rung(kind: Kind, text: str) -> Rung:
        return Rung(kind, text, depth, in_recipe, why)

    kind = next((key for key in step if key not in ("@", "why", "covers")), "")
    value: Any = step[kind] if kind else None
    match kind:
        case "send" | "expect":
            yield rung(kind, _packet(value))
        case "call" | "start":
            yield rung("call", ("start " if kind == "start" else "") + _call(value))
        case "blocked":
            yield rung("call", f"{value} sleeps")
        case "finish":
            ends = ", ".join(f"{name} {'ends' if end in ('ok', {}) else _words(end)}" for name, end in value.items())
            yield rung("call", ends)
        case "silence":
            told = value if isinstance(value, Mapping) else {"for": value}
            yield rung("note", "silence" if told.get("for", "now") == "now" else f"silence for {told['for']}")
        case "state":
            told = value if isinstance(value, Mapping) else {"is": value}
            names = told["is"] if isinstance(told["is"], list) else [told["is"]]
            of = f"{told['conn']}: " if told.get("conn", "c1") != "c1" else ""
            yield rung("note", of + " or ".join(names))
        case "check":
            yield rung("note", f"{value['value']} is {value['is']}")
        case "probe":
            yield rung("note", "alive?")
        case "one_of":
            for number, choice in enumerate(value):
                breaks = f", which violates {choice['violates']}" if choice.get("violates") else ""
                yield rung("branch", f"{'either' if number == 0 else 'or'} {choice['name']}{breaks}:")
                yield from _steps(choice["steps"], depth + 1, in_recipe)
        case "any_order":
            yield rung("branch", "in any order:")
            yield from _steps(value, depth + 1, in_recipe)
        case "optional":
            yield rung("branch", "perhaps:")
            yield from _steps(value if isinstance(value, list) else [value], depth + 1, in_recipe)
        case "repeat":
            least = value.get("at-least")
            times = f"{least} to {value['times']}" if least is not None else value["times"]
            gap = f", {value['gap']['is']} apart" if value.get("gap") else ""
            yield rung("branch", f"{times} times{gap}:")
            yield from _steps(value["steps"], depth + 1, in_recipe)
        case _:
            yield rung("note", _words(dict(step)))


def _packet(spec: Mapping[str, Any]) -> str:
    parts = []
    if spec.get("conn", "c1") != "c1":
        parts.append(f"[{spec['conn']}]")
    if "again" in spec:
        parts.append(f"{spec['again']} again")
    if "icmp" in spec:
        parts.append(f"ICMP {_words(spec['icmp'])}")
    if "flags" in spec:
        flags = spec["flags"]
        parts.append(" or ".join(map(str, flags)) if isinstance(flags, list) else str(flags))
    parts += [f"{name}={_words(spec[name])}" for name in _FIELDS if name in spec]
    if "as" in spec:
        parts.append(f"({spec['as']})")
    parts += [f"{name} {_words(spec[name])}" for name in _TIMING if name in spec]
    return " ".join(parts)


def _call(call: Any) -> str:
    if isinstance(call, str):
        return f"{call}()"
    said = {key: value for key, value in call.items() if key not in ("do", "by", "as", "returns", "error", "data")}
    arguments = (str(value) if key == "on" else f"{key} {_words(value)}" for key, value in said.items())
    text = f"{call['do']}({', '.join(arguments)})"
    if call.get("by", "main") != "main":
        text = f"{call['by']}: {text}"
    if "as" in call:
        text += f" as {call['as']}"
    for key in ("returns", "error", "data"):
        if key in call:
            text += f" → {_words(call[key])}"
    return text


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_words(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_words, value)) + "]"
    if isinstance(value, bool):
        return "on" if value else "off"
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
