"""The documents of the case format say what the code does: each example loads, each key and word is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from conform.case import model, statesdoc
from conform.case import vocabulary as words
from conform.case.expr import SNAPSHOT_FIELDS, TIMERS, VARIABLES
from conform.case.load import load_text
from conform.case.model import PLACE

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "case-format.md").read_text(encoding="utf-8")
BLOCKS = [(TEXT[: m.start()].count("\n") + 1, m[1]) for m in re.finditer(r"^```yaml\n(.*?)^```", TEXT, re.M | re.S)]
BASE = {"title": "title: An example of the document, made whole\n", "covers": "covers: 9293-MUST-13\n"}


def whole(block: str) -> str:
    """*block* as a whole case: an example shows what it is about."""
    if block.startswith(("- ", "#")):
        block = "given: ESTABLISHED\nsteps:\n" + block
    for key, line in BASE.items():
        if not re.search(rf"^{key}:", block, re.M):
            block = line + block
    if not re.search(r"^steps:", block, re.M):
        block += "steps:\n  - silence: now\n"
    return block


@pytest.mark.parametrize(("line", "block"), BLOCKS, ids=[f"line{line}" for line, _ in BLOCKS])
def test_every_example_is_a_sound_case(line: int, block: str) -> None:
    rows, problems = load_text(whole(block), f"case-format.md+{line}")
    assert not problems, "\n".join(map(str, problems))
    assert rows


def test_there_are_examples() -> None:
    assert len(BLOCKS) >= 20


MODELS = [
    found
    for found in vars(model).values()
    if isinstance(found, type) and issubclass(found, BaseModel) and found.__module__ == model.__name__
]
NEVER_WRITTEN = {PLACE, "recipe"}


@pytest.mark.parametrize("of", MODELS, ids=lambda of: of.__name__)
def test_every_key_is_documented(of: type[BaseModel]) -> None:
    for name, info in of.model_fields.items():
        key = info.alias or name
        if key not in NEVER_WRITTEN:
            assert re.search(rf"(?<![\w-]){re.escape(key)}(?![\w-])", TEXT), f"{of.__name__}.{key}"


@pytest.mark.parametrize(
    "vocabulary",
    [
        words.CAPABILITIES, words.SETTINGS, words.NOISE, words.SIGNALS, words.ERRNOS, words.SOCKET_OPTIONS,
        words.MSG_FLAGS, model.CALL_NAMES, words.STATES, VARIABLES, SNAPSHOT_FIELDS, TIMERS,
        get_args(model.IcmpName), get_args(model.PollEvent),
    ],
)  # fmt: skip
def test_every_word_is_documented(vocabulary: tuple[str, ...]) -> None:
    for word in vocabulary:
        assert re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", TEXT), word


@pytest.mark.parametrize(("meanings"), [words.SETTINGS, words.CAPABILITIES])
def test_words_are_explained_as_the_vocabulary_does(meanings: dict[str, str]) -> None:
    for word, meaning in meanings.items():
        assert f"| `{word}` | {meaning} |" in TEXT


def test_links_within_the_document_lead_somewhere() -> None:
    headings = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^## (.*)$", TEXT, re.M)}
    for anchor in re.findall(r"\]\(#([^)]*)\)", TEXT):
        assert anchor in headings


def test_states_are_up_to_date() -> None:
    assert statesdoc.TARGET == DOCS / "states.md"
    assert statesdoc.TARGET.read_text(encoding="utf-8") == statesdoc.generate(), "python -m conform.case.statesdoc"


def test_recipes_in_the_document_are_steps() -> None:
    for block in re.findall(r"^```yaml\n(.*?)^```", statesdoc.generate(), re.M | re.S):
        rows, problems = load_text("".join(BASE.values()) + "steps:\n" + block)
        # A case that begins as the recipe of SYN-SENT does must finish its call; the recipe need not.
        assert [p.message for p in problems] in ([], ["the call connecting is begun here and never finished"])
        assert rows
