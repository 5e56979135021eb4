"""The documents hold together: their links lead somewhere, and the README's commands are the ones that are tested."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("tests/**/*.md")])
_LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#([^)\s]+))?\)")


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    broken = []
    for target, anchor in _LINK.findall(document.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path = document.parent / target
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in _anchors(path.read_text())):
            broken.append(f"{target}#{anchor}")
    assert not broken


@pytest.mark.parametrize("name", ["run", "tests"])
def test_readme_has_one_line_for_each_command(name: str) -> None:
    text = (ROOT / "README.md").read_text()
    block = re.search(rf"<!-- {name} -->\n```\w*\n(.*?)\n```", text, re.S)
    assert block
    assert "\n" not in block[1]


def test_every_document_is_reached_from_the_readme() -> None:
    seen = set()
    todo = [ROOT / "README.md"]
    while todo:
        document = todo.pop().resolve()
        if document in seen:
            continue
        seen.add(document)
        for target, _ in _LINK.findall(document.read_text()):
            path = (document.parent / target).resolve()
            if path.suffix == ".md" and path.exists():
                todo.append(path)
    unreached = {p.resolve() for p in ROOT.glob("docs/**/*.md")} - seen
    assert not unreached
