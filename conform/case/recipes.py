"""How the state that a case is given is reached: the chain of ways of ``recipes.yaml`` that leads there."""

from __future__ import annotations

import copy
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

from conform.case import source
from conform.case.model import PLACE, Given

SOURCE = Path(__file__).with_name("recipes.yaml")

#: States in which the stack's side has been closed by a call.
CLOSED_BY_CALL = frozenset({"FIN-WAIT-1", "FIN-WAIT-2", "CLOSING", "LAST-ACK", "TIME-WAIT"})
#: States in which the handshake is over, so that the application may have accepted.
ACCEPTABLE = frozenset({"ESTABLISHED", "CLOSE-WAIT"})


class NoRecipeError(ValueError):
    """What is given cannot be reached. ``key`` is the key of given at fault."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


@cache
def _read() -> dict[str, Any]:
    text = source.decode(SOURCE.read_bytes(), SOURCE.name)
    assert isinstance(text, source.Source), text
    root, problems = source.parse(text)
    assert root is not None, problems
    assert not problems
    found: dict[str, Any] = source.plain(root)
    return found


def ways() -> list[dict[str, Any]]:
    """All ways: ``state``, ``after`` (the state before), ``role`` (absent: both), ``steps``."""
    found: list[dict[str, Any]] = _read()["ways"]
    return found


def _into(state: str, role: str) -> list[dict[str, Any]]:
    return [way for way in ways() if way["state"] == state and way.get("role", role) == role]


def vias(state: str, role: str) -> tuple[str, ...]:
    """The states from which *state* is reached by a recipe, the usual one first."""
    return tuple(way["after"] for way in _into(state, role) if "after" in way)


def _check(given: Given) -> None:
    said = given.model_fields_set
    state = given.state
    if not _into(state, given.role):
        raise NoRecipeError(
            "role",
            f"{state} is not reached by an {given.role} open"
            if given.role == "active"
            else f"{state} is not reached by a {given.role} open",
        )
    if given.role == "active" and not given.accepted:
        raise NoRecipeError("accepted", "accepted: false goes with role: passive; an active open accepts nothing")
    if not given.accepted and state in CLOSED_BY_CALL:
        raise NoRecipeError(
            "accepted", f"{state} needs the application to close, and it can only close what it has accepted"
        )
    if not given.accepted and state not in ACCEPTABLE:
        raise NoRecipeError("accepted", f"in {state} nothing can have been accepted yet; leave accepted out")
    if "by" in said and state not in CLOSED_BY_CALL:
        raise NoRecipeError("by", f"by says which call closed the stack's side, and in {state} none has")
    if given.via is not None and given.via not in vias(state, given.role):
        known = " or ".join(vias(state, given.role)) or "nothing"
        raise NoRecipeError(
            "via", f"{state} is not reached via {given.via} by a recipe (role: {given.role}), only via {known}"
        )
    if "options" in said and state in ("CLOSED", "LISTEN", "SYN-SENT"):
        raise NoRecipeError("options", f"options are those of the tester's SYN, and in {state} it has sent none")


def chain(given: Given) -> list[dict[str, Any]]:
    """The ways that lead to *given*, from CLOSED. Raises NoRecipeError."""
    if given.state == "SYN-SENT" and "role" not in given.model_fields_set:
        given = given.model_copy(update={"role": "active"})  # there is no other role in it
    _check(given)
    found: list[dict[str, Any]] = []
    state: str | None = given.state
    via: str | None = given.via
    while state is not None:
        candidates = _into(state, given.role)
        way = next((w for w in candidates if via in (None, w.get("after"))), candidates[0])
        found.append(way)
        state, via = way.get("after"), None
    return found[::-1]


def _port(document: dict[str, Any]) -> int | None:
    connections = document.get("connections")
    first = connections.get("c1") if isinstance(connections, dict) else None
    port = first.get("stack-port") if isinstance(first, dict) else None
    return port if isinstance(port, int) and not isinstance(port, bool) else None


def recipe(given: Given, document: dict[str, Any], place: tuple[int, int] = (1, 1)) -> list[dict[str, Any]]:
    """The steps that lead to *given*, as a case's *document* has steps, each at *place*.

    The last is a ``state`` step. *document* is the case's: its first connection may say a port of the stack. Raises
    NoRecipeError if there is no way.
    """
    data = _read()
    port = _port(document)
    options = document["given"].get("options") if isinstance(document.get("given"), dict) else None
    values: dict[str, Any] = {"${options}": options if options is not None else data["options"], "${port}": port}
    pieces: dict[str, list[Any]] = {
        "${accept}": data["pieces"]["accept"] if given.accepted else [],
        "${close}": data["pieces"][given.by],
        "${bind}": [{"call": {"do": "bind", "on": "c1", "port": port}}] if port is not None else [],
    }
    steps: list[dict[str, Any]] = []
    for way in chain(given):
        for written in way["steps"]:
            steps += pieces[written] if isinstance(written, str) else [written]
    steps.append(
        {"state": {"is": given.state, "conn": "listener"}} if given.state == "LISTEN" else {"state": given.state}
    )
    return [{PLACE: list(place), **_filled(step, values)} for step in steps]


def by_service(given: Given, document: dict[str, Any], services: Collection[str]) -> tuple[str, list[dict[str, Any]]]:
    """Which of *services* brings a stack without an agent to *given*, and the steps that do (see :func:`recipe`).

    Raises NoRecipeError: there is none, or it takes another service.
    """
    data = _read()
    if given.role == "active":
        raise NoRecipeError("role", "without an agent nobody opens a connection")
    options = document["given"].get("options") if isinstance(document.get("given"), dict) else None
    values: dict[str, Any] = {"${options}": options if options is not None else data["options"]}
    found: list[dict[str, Any]] = []
    of: list[str] | None = None
    state: str | None = given.state
    via: str | None = given.via
    while state is not None:
        candidates = [way for way in data["services"] if way["state"] == state]
        # The ways from one closing state to another ask nothing of the application.
        candidates += [way for way in data["ways"] if way["state"] == state and way.get("after") in CLOSED_BY_CALL]
        way = next((w for w in candidates if via in (None, w.get("after"))), None)
        if way is None:
            raise NoRecipeError("state", f"{state} is not reached by a service")
        of = way.get("of", of) if of is None else of
        found.append(way)
        state, via = way.get("after"), None
    service = next((name for name in of or () if name in services), None)
    if service is None and of is not None:
        raise NoRecipeError("state", f"{given.state} takes a service: {' or '.join(of)}")
    steps = [step for way in found[::-1] for step in way["steps"]]
    place = document["recipe"][-1][PLACE] if document.get("recipe") else [1, 1]
    if given.state != "LISTEN":  # no descriptor of conform's own listens
        steps.append({"state": given.state})
    return service or "", [{PLACE: place, **_filled(step, values)} for step in steps]


def _filled(value: Any, values: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        filled = {key: _filled(inner, values) for key, inner in value.items()}
        return {key: inner for key, inner in filled.items() if inner is not None}
    if isinstance(value, list):
        return [_filled(inner, values) for inner in value]
    return copy.deepcopy(values[value]) if isinstance(value, str) and value in values else value
