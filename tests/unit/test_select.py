"""-k and its friends."""

from __future__ import annotations

import pytest

from conform.case.model import Case
from conform.run.select import Selection, SelectionError, keyword

NAMES = ["close/active-close.FIN-WAIT-2.v4", "close/active-close.CLOSING.v6", "reset/closed-port.v4"]


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("close", [0, 1, 2]),
        ("active-close", [0, 1]),
        ("ACTIVE and v6", [1]),
        ("not active", [2]),
        ("not not active", [0, 1]),
        ("fin-wait or reset", [0, 2]),
        ("(fin-wait or reset) and not v6", [0, 2]),
        ("reset or active and v6", [1, 2]),
        ("(reset or active) and v6", [1]),
        ("nothing-like-it", []),
    ],
)
def test_keyword(text: str, meant: list[int]) -> None:
    match = keyword(text)
    assert [n for n, name in enumerate(NAMES) if match(name)] == meant


@pytest.mark.parametrize(
    ("text", "words", "column"),
    [
        ("a and", "a word is missing here", 5),
        ("or a", "a word is missing here", 0),
        ("(a", "a closing parenthesis is missing", 2),
        ("a)", "the end is wanted here", 1),
        ("a b", "the end is wanted here", 2),
        ("()", "a word is missing here", 1),
    ],
)
def test_a_bad_keyword_is_pointed_at(text: str, words: str, column: int) -> None:
    with pytest.raises(SelectionError) as caught:
        keyword(text)
    first, shown, caret = str(caught.value).split("\n")
    assert words in first
    assert shown[2:] == text
    assert caret.index("^") - 2 == column


def test_an_empty_keyword() -> None:
    with pytest.raises(SelectionError):
        keyword("  ")


CASE = Case.model_validate(
    {
        "title": "A case to select by its tags",
        "covers": ["9293-MUST-1"],
        "tags": ["slow", "close"],
        "steps": [{"state": {"is": ["CLOSED"]}}],
    }
)
LEVELS = {"9293-MUST-1": "must", "9293-SHLD-2": "should"}


@pytest.mark.parametrize(
    ("selection", "meant"),
    [
        (Selection(), True),
        (Selection(tags=("slow",)), True),
        (Selection(tags=("fast", "close")), True),
        (Selection(tags=("fast",)), False),
        (Selection(tags=("!slow",)), False),
        (Selection(tags=("!fast",)), True),
        (Selection(tags=("slow", "!close")), False),
        (Selection(requirements=("9293-must-1",)), True),
        (Selection(requirements=("9293-MUST-2",)), False),
        (Selection(levels=("must",)), True),
        (Selection(levels=("should", "may")), False),
        (Selection(tags=("slow",), levels=("should",)), False),
    ],
)
def test_cases(selection: Selection, meant: bool) -> None:
    assert selection.case(CASE, ["9293-MUST-1"], LEVELS) is meant


def test_only_and_keyword_both_hold() -> None:
    meant = Selection(keyword="v4", only={"CLOSE/a.v4", "close/a.v6"}).trials()
    assert meant("close/a.v4")
    assert not meant("close/a.v6")
    assert not meant("close/b.v4")


def test_to_json_says_what_was_said() -> None:
    assert Selection().to_json() == {}
    assert Selection("a", ("t",), ("r",), ("must",), {"x"}).to_json() == {
        "k": "a", "tag": ["t"], "req": ["r"], "level": ["must"], "lf": True,
    }  # fmt: skip
