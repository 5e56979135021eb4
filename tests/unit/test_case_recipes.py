"""Every state is reached, by steps that are themselves sound and that RFC 9293's table allows."""

from __future__ import annotations

from typing import Any

import pytest
from case_texts import rows

from conform.case.model import Case, Given
from conform.case.recipes import NoRecipeError, chain, recipe, vias, ways
from conform.tcp.states import STATES, TRANSITIONS

ROLES = {"LISTEN": ["passive"], "SYN-SENT": ["active"], "CLOSED": ["passive"]}
CLOSING = ("FIN-WAIT-1", "FIN-WAIT-2", "CLOSING", "LAST-ACK", "TIME-WAIT")


def every_given() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for state in STATES:
        for role in ROLES.get(state, ["passive", "active"]):
            for via in vias(state, role) or (None,):
                base = {"state": state, "role": role} | ({"via": via} if via else {})
                found += [{**base, "by": by} for by in ("close", "shutdown")] if state in CLOSING else [base]
                if state in ("ESTABLISHED", "CLOSE-WAIT") and role == "passive":
                    found.append({**base, "accepted": False})
    return found


ALL = every_given()


def test_all_are_there() -> None:
    assert {given["state"] for given in ALL} == set(STATES)
    ways_to = {(given["state"], given["role"], given.get("via")) for given in ALL}
    assert {
        ("SYN-RECEIVED", "passive", "LISTEN"), ("SYN-RECEIVED", "active", "SYN-SENT"),
        ("CLOSING", "passive", "FIN-WAIT-1"), ("CLOSING", "active", "FIN-WAIT-1"),
        ("TIME-WAIT", "passive", "FIN-WAIT-2"), ("TIME-WAIT", "passive", "CLOSING"),
        ("TIME-WAIT", "active", "FIN-WAIT-1"),
    } <= ways_to  # fmt: skip
    assert vias("TIME-WAIT", "passive")[0] == "FIN-WAIT-2"


@pytest.mark.parametrize("given", ALL, ids=lambda given: ".".join(str(v) for v in given.values()))
def test_a_recipe_is_sound_and_ends_where_it_should(given: dict[str, Any]) -> None:
    steps = recipe(Given.model_validate(given), {"given": given}, (7, 3))
    assert all(step["@"] == [7, 3] for step in steps)
    last = steps[-1]["state"]
    assert (last["is"] if isinstance(last, dict) else last) == given["state"]
    document = {"title": "Reached by a recipe", "covers": ["x"], "given": given, "steps": steps, "recipe": steps}
    Case.model_validate(document, by_alias=True, by_name=False)
    accepts = [step for step in steps if step.get("call", {}).get("do") == "accept"]
    wants = given["role"] == "passive" and given.get("accepted", True)
    assert len(accepts) == (wants and given["state"] not in ("CLOSED", "LISTEN", "SYN-RECEIVED"))
    shut = [step for step in steps if step.get("call", {}).get("do") == "shutdown"]
    assert len(shut) == (given.get("by") == "shutdown")


@pytest.mark.parametrize("way", [w for w in ways() if "after" in w], ids=lambda w: f"{w['after']}-{w['state']}")
def test_every_way_is_a_transition(way: dict[str, Any]) -> None:
    assert way["state"] in TRANSITIONS[way["after"]].values()


def test_options_and_ports() -> None:
    top = "given: {state: ESTABLISHED, options: {nop: 2, mss: 500}}\nconnections: {c1: {stack-port: 81}}"
    document = rows(top=top)[0].document
    assert {"send": {"flags": "S", "options": {"nop": 2, "mss": 500}}}.items() <= document["recipe"][4].items()
    assert document["recipe"][2]["call"] == {"do": "bind", "on": "listener", "port": 81}
    active = rows(top="given: {state: SYN-SENT}\nconnections: {c1: {stack-port: 81}}")[0].document
    assert active["recipe"][1]["call"] == {"do": "bind", "on": "c1", "port": 81}


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"state": "LISTEN", "role": "active"}, "role"),
        ({"state": "SYN-SENT", "role": "passive"}, "role"),
        ({"state": "ESTABLISHED", "role": "active", "accepted": False}, "accepted"),
        ({"state": "TIME-WAIT", "accepted": False}, "accepted"),
        ({"state": "LISTEN", "accepted": False}, "accepted"),
        ({"state": "CLOSE-WAIT", "by": "close"}, "by"),
        ({"state": "ESTABLISHED", "via": "CLOSED"}, "via"),
        ({"state": "CLOSED", "via": "LISTEN"}, "via"),
        ({"state": "SYN-SENT", "options": {"mss": 5}}, "options"),
    ],
)
def test_what_is_impossible(given: dict[str, Any], key: str) -> None:
    with pytest.raises(NoRecipeError) as caught:
        chain(Given.model_validate(given))
    assert caught.value.key == key
