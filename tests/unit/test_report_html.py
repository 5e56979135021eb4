"""The page: what is on it, in which order, and that nothing from outside becomes markup."""

from __future__ import annotations

import base64
import copy
import hashlib
import re
import tracemalloc
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from test_report_ladder import END, HEADER, TRIALS

from conform.report import html
from conform.requirements import catalogue

VOID = {"meta", "br", "input", "link", "img", "hr"}
#: Elements whose end is implied by what follows.
IMPLIED = {"li", "dt", "dd", "tr", "td", "th", "tbody", "p"}


class Page(HTMLParser):
    """Which elements there are, which ids, and what the text is."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.wrong: list[str] = []
        self.feed(content)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID | IMPLIED:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in IMPLIED and (not self.open or self.open.pop() != tag):
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def page(path: Path, lines: Any = None, header: Any = HEADER, end: Any = END, **options: Any) -> str:
    out = path / "report.html"
    writer = html.Writer(header, out, catalogue(), **options)
    for line in TRIALS.values() if lines is None else lines:
        writer.trial(line)
    writer.finish(end)
    return out.read_text("utf-8")


def block(content: str, name: str) -> str:
    """The part of the page about one trial."""
    at = content.index(f'id="{name}"')
    return content[content.rindex("<details", 0, at) : content.find('class="trial', at) % len(content)]


def test_the_order_of_the_sections_and_what_is_open(tmp_path: Path) -> None:
    content = page(tmp_path)
    assert re.findall(r'<section id="([a-z-]+)"', content) == [
        "fail", "unexpected-pass", "error", "flaky", "inconclusive", "tolerated", "expected-failure", "not-applicable",
        "pass",
    ]  # fmt: skip
    opened = re.findall(r'<details open class="trial [a-z-]+" id="([^"]+)"', content)
    assert opened == [
        "calls/recv-error.v4", "close/fin-not-counted.v4", "close/timeout.v4", "close/unexpected-segment.v4",
        "states/wrong-state.v4", "close/known-no-more.v4", "close/broken.v4",
    ]  # fmt: skip
    assert sorted(re.findall(r'class="trial [a-z-]+" id="([^"]+)"', content)) == sorted(TRIALS)


def test_the_markup_is_sound(tmp_path: Path) -> None:
    parsed = Page(page(tmp_path))
    assert parsed.wrong == []
    assert parsed.open == ["html"] or parsed.open == []
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_a_failure_shows_all_that_is_needed_to_mend_it(tmp_path: Path) -> None:
    content = block(page(tmp_path), "close/fin-not-counted.v4")
    for words in (
        "ack IRS+1, want RCV.NXT = IRS+2, short by 1: FIN not counted",
        "cases/close/fin-not-counted.yaml:15:5",
        "SYN and FIN each occupy one sequence number",
        "RFC 9293 §3.4, rule",
        "expect: {flags: A, seq: fin.end, ack: RCV.NXT, within: timer.delayed-ack.max}",
        '<tr class="wrong"><td>ack<td>RCV.NXT = IRS+2<td>IRS+1',
        "A seq=ISS+2 ack=IRS+1 win=64240",
        "FIN-WAIT-2",
        "not reached",
        "given ESTABLISHED",
        'href="./pcap/close--fin-not-counted.v4.pcapng"',
        "conform run cases/close/fin-not-counted.yaml -k fin-not-counted.v4 --stack model --ip 4 --seed 1",
    ):
        assert words in content, words


@pytest.mark.parametrize(
    ("change", "come"),
    [
        ({"summary": "all is lost", "arithmetic": []}, "all is lost"),
        ({"place": [77, 3]}, "fin-not-counted.yaml:77:3"),
        (
            {"arithmetic": ["seq ISS+9, want fin.end = ISS+2, too far by 7"]},
            '<tr class="wrong"><td>seq<td>fin.end = ISS+2',
        ),
    ],
)
def test_the_page_follows_the_verdict(tmp_path: Path, change: dict[str, Any], come: str) -> None:
    line = copy.deepcopy(TRIALS["close/fin-not-counted.v4"])
    assert come not in page(tmp_path, [line])
    line["verdict"]["failure"] |= change
    assert come in page(tmp_path, [line])


def test_what_the_run_says_of_itself(tmp_path: Path) -> None:
    content = page(tmp_path)
    assert "10 of 19 trials are not as expected. There are unexpected results (exit 1)" in content
    assert "conform run cases -k &#39;close or data&#39; --stack model --gate should --retry 1 --seed 1" in content
    assert '<b>6</b> fail <span class="dim">4 MUST, 1 SHOULD, 1 MAY</span>' in content
    assert "did not come to its end" not in content
    cut = page(tmp_path, list(TRIALS.values())[:3], end=None)
    assert "The run did not come to its end" in cut
    assert "16 planned trials have no verdict" in cut
    good = page(tmp_path, [TRIALS["close/active-close.v4"]], end={**END, "exit": 0})
    assert '<p class="verdict good">Everything is as expected (exit 0)</p>' in good


def test_failures_are_grouped_by_the_way_they_failed(tmp_path: Path) -> None:
    line = TRIALS["close/timeout.v4"]
    other = {**line, "id": "close/other.v4", "case": "close/other"}
    content = page(tmp_path, [*({**line, "id": f"close/timeout.{n}.v4"} for n in range(3)), other])
    (group,) = re.findall(r'<details class="group"([^>]*)><summary>(.*?)</summary>', content)
    assert group[0] == " open"
    assert re.fullmatch(r'close/timeout, steps\[\d\]: nothing came within … <span class="dim">\(3\)</span>', group[1])
    shown = re.findall(r'<details( open)? class="trial fail" id="([^"]*)"', content)
    assert shown == [
        (" open", "close/other.v4"), (" open", "close/timeout.0.v4"), ("", "close/timeout.1.v4"),
        ("", "close/timeout.2.v4"),
    ]  # fmt: skip


def test_known_deviations_and_what_does_not_apply_are_grouped_by_reason(tmp_path: Path) -> None:
    content = page(tmp_path)
    assert 'The model acknowledges one octet too many, as its makers know. <span class="dim">(2)</span>' in content
    assert "cases/expectations/model.yaml:5" in content
    assert 'the stack does not claim urgent <span class="dim">(2)</span>' in content


def test_entries_with_one_reason_are_told_apart(tmp_path: Path) -> None:
    line = TRIALS["close/known.v4"]
    entry = {**line["expectation"], "line": 99, "message": "another message"}
    content = page(tmp_path, [line, {**line, "id": "close/known.v6", "expectation": entry}])
    assert content.count('its makers know. <span class="dim">(1)</span>') == 2
    assert "model.yaml:99" in content
    assert f"model.yaml:{line['expectation']['line']}<" in content


def test_findings_are_listed(tmp_path: Path) -> None:
    line = copy.deepcopy(TRIALS["close/active-close.v4"])
    line["verdict"]["findings"] = ["steps[2]: the stack says CLOSED"]
    assert page(tmp_path, [line]).count("steps[2]: the stack says CLOSED") == 2


def test_a_flaky_trial_shows_the_attempt_that_failed(tmp_path: Path) -> None:
    content = block(page(tmp_path), "close/flaky.v4")
    assert "passed when tried again, but first: ack IRS+1" in content
    assert '<tr class="wrong"><td>ack' in content


def test_captures_are_linked_from_where_the_page_is(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    content = page(tmp_path / "elsewhere", directory=tmp_path / "run")
    assert 'href="./../run/pcap/close--timeout.v4.pcapng"' in content


EVIL = "</script></style></code><img src=x onerror=alert(1)>\"'&<!--{{7*7}}\x1b\n\u202e\ud800"


def defaced(value: Any, keep: frozenset[str]) -> Any:
    """*value* with each text replaced, but for those that are structure."""
    if isinstance(value, dict):
        return {k: v if k in keep else defaced(v, keep) for k, v in value.items()}
    if isinstance(value, list):
        return [defaced(item, keep) for item in value]
    return EVIL if isinstance(value, str) else value


STRUCTURE = frozenset(
    {
        "kind",
        "result",
        "outcome",
        "a",
        "e",
        "n",
        "step",
        "flags",
        "payload",
        "data",
        "steps",
        "recipe",
        "level",
        "started",
    }
)


def test_nothing_from_outside_becomes_markup(tmp_path: Path) -> None:
    clean = Page(page(tmp_path))
    lines = [defaced(copy.deepcopy(line), STRUCTURE) for line in TRIALS.values()]
    for number, line in enumerate(lines):
        line["id"] = f"{EVIL}{number}"
    content = page(tmp_path, lines, defaced(copy.deepcopy(HEADER), STRUCTURE))
    parsed = Page(content)
    assert parsed.wrong == []
    assert {tag for tag, _ in parsed.tags} <= {tag for tag, _ in clean.tags}
    assert not [attributes for _, attributes in parsed.tags if any(name.startswith("on") for name in attributes)]
    assert not [
        v
        for _, a in parsed.tags
        for k, v in a.items()
        if k in ("href", "src") and not (v or "").startswith(("#", "./"))
    ]
    assert "{{7*7}}" in content
    assert "\x1b" not in content
    assert "\u202e" not in content


def test_titles_of_steps_and_options_are_escaped(tmp_path: Path) -> None:
    line = copy.deepcopy(TRIALS["close/fin-not-counted.v4"])
    line["document"]["steps"][0] = {"@": [1, 1], "call": EVIL, "why": EVIL}
    line["document"]["given"] = {"state": EVIL}
    for entry in line["transcript"]:
        if "packet" in entry:
            entry["packet"]["options"] = [["kind-9", {"hex": EVIL}], [EVIL, None]]
        if entry.get("e") == "state":
            entry["state"] = entry["info"] = EVIL
            entry["info"] = {EVIL: EVIL}
    parsed = Page(page(tmp_path, [line]))
    assert parsed.wrong == []
    assert "img" not in {tag for tag, _ in parsed.tags}


def test_the_page_allows_itself_nothing_but_its_own_style_and_script(tmp_path: Path) -> None:
    content = page(tmp_path)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', content)
    assert policy is not None
    rules = policy[1].replace("&#39;", "'").replace("&#43;", "+")
    assert "default-src 'none'" in rules
    for tag in ("style", "script"):
        inside = re.search(f"<{tag}>(.*?)</{tag}>", content, re.DOTALL)
        assert inside is not None
        digest = base64.b64encode(hashlib.sha256(inside[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in rules
    parsed = Page(content)
    assert not [
        tag for tag, attributes in parsed.tags if "style" in attributes or tag in ("link", "iframe", "img", "base")
    ]
    assert not re.search(r"https?://", content)


def test_thousands_of_trials_need_little_memory(tmp_path: Path) -> None:
    line = TRIALS["close/active-close.v4"]
    page(tmp_path, [line])  # the templates are compiled
    tracemalloc.start()
    writer = html.Writer({**HEADER, "planned": []}, tmp_path / "big.html", catalogue())
    for number in range(1000):
        writer.trial({**line, "id": f"close/active-close.v4#{number}"})
    writer.finish(END)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000
