"""The JSON Schema accepts what conform accepts, and refuses most of what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from conform.case import source
from conform.case.schema import MEANINGS, schema

HERE = Path(__file__).parent
CASES = HERE.parents[1] / "cases"
SCHEMA = schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def document(path: Path) -> Any:
    """The file as an editor sees it, or None if it is no YAML."""
    text = source.read(path)
    if isinstance(text, source.Problem):
        return None
    root, _ = source.parse(text)
    return None if root is None else source.plain(root)


def test_there_are_cases() -> None:
    assert any(CASES.rglob("*.yaml")), "what is below would test nothing"


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$id"] == "urn:conform:case:1"
    assert SCHEMA["title"] == "conform case, format 1"


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(p, id=p.relative_to(CASES).as_posix())
        for p in sorted(CASES.rglob("*.yaml"))
        if "expectations" not in p.parts
    ],
)
def test_every_shipped_case_satisfies_it(path: Path) -> None:
    VALIDATOR.validate(document(path))


#: What is wrong in these, only reading the case as a whole can tell; and YAML's own faults.
BEYOND: tuple[str, ...] = ("flow-", "text-", "yaml-", "scalar-", "matrix-", "template-", "expression-", "given-")
BEYOND += ("covers-unknown", "comparison-bad", "outcome-both", "missing-everything", "missing-flags", "expect-stream")
BEYOND += ("range-payload", "between-bad", "repeat-bounds", "name-bad", "flags-twice")
BEYOND += ("options-too-long", "address-bad", "match-impossible", "timing-bad", "payload-against-length", "gap-never")
BEYOND += ("says-nothing", "check-cannot-fail")


@pytest.mark.parametrize("path", sorted((HERE / "bad_cases").glob("*.yaml")), ids=lambda path: path.stem)
def test_broken_cases(path: Path) -> None:
    found = document(path)
    if not path.stem.startswith(BEYOND):
        assert not VALIDATOR.is_valid(found), "an editor would not see it"


def test_what_a_setting_can_be_is_seen_by_an_editor() -> None:
    base = {"title": "A close sends a FIN", "covers": "9293-MUST-13", "steps": [{"silence": "now"}]}

    def fits(name: str, value: Any) -> bool:
        return VALIDATOR.is_valid({**base, "settings": {name: value}})

    assert all(fits("ecn", value) for value in ("on", "passive", True, "${ecn}"))
    assert not any(fits("ecn", value) for value in ("always", 1, "passiv"))
    assert fits("mtu", 1500)
    assert not any(fits("mtu", value) for value in (20, "large", False))
    assert fits("challenge-limit", "off")
    assert fits("fin-wait-2-timeout", "2 * timer.msl")
    assert not fits("fin-wait-2-timeout", 5)


def test_most_broken_cases_do_not_satisfy_it() -> None:
    seen = [
        document(path) for path in (HERE / "bad_cases").glob("*.yaml") if not path.stem.startswith(("flow-", "text-"))
    ]
    refused = sum(found is None or not VALIDATOR.is_valid(found) for found in seen)
    assert refused > 0.55 * len(seen)


def test_every_key_says_what_it_means() -> None:
    used = set()
    for name, definition in {**SCHEMA["$defs"], "Case": SCHEMA}.items():
        for key, value in definition.get("properties", {}).items():
            assert value.get("description"), f"{name}.{key}"
            used |= {key, f"{name}.{key}"} & MEANINGS.keys()
    assert used | {"SegmentFields.ip"} >= set(MEANINGS) - {"Given.state"}
