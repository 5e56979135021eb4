"""The catalogue: what is generated is what is written."""

from __future__ import annotations

from conform.requirements import GENERATED, Requirement, catalogue, generate, read_source


def test_the_generated_file_is_up_to_date() -> None:
    assert GENERATED.read_text(encoding="utf-8") == generate(), "python -m conform.requirements"


def test_the_catalogue_is_the_source() -> None:
    source = read_source()
    found = catalogue()
    assert list(found) == [entry["id"] for entry in source]
    assert len(found) == len(source) > 600
    assert found["9293-MUST-13"] == Requirement(**next(e for e in source if e["id"] == "9293-MUST-13"))
    assert catalogue() is found


def test_levels_are_known() -> None:
    known = {"must", "must-not", "should", "should-not", "may", "recommended", "rule", "derived", "alternative"}
    assert {r.level for r in catalogue().values()} <= known | {"rfc5961-must", "rfc5961-may"}
