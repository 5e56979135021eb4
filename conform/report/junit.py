"""JUnit XML: one test suite a directory of cases, one test case a trial.

JUnit knows pass, failure, error and skipped. What the gate is content with (known deviations, what does not apply) is
skipped and says why; whatever turns the gate red is a failure, a flaky trial among them: it failed once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from conform.report import text
from conform.report.files import replacing
from conform.report.text import Line, Requirements

#: What XML 1.0 cannot hold, not even escaped.
_ILLEGAL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_DECLARATION = b"<?xml version='1.0' encoding='utf-8'?>\n"


def legal(value: object) -> str:
    """*value* as text that XML 1.0 can hold."""
    return _ILLEGAL.sub("\ufffd", str(value))


def _words(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@dataclass(slots=True)
class _Suite:
    cases: list[tuple[str, bytes]] = field(default_factory=list)
    failures: int = 0
    errors: int = 0
    skipped: int = 0
    time: float = 0.0


class Writer:
    """Takes a run's trials one by one, and writes the file at the end. What it keeps is the XML alone."""

    def __init__(self, header: Mapping[str, Any], path: Path, requirements: Requirements | None = None) -> None:
        self._header = header
        self._path = path
        self._requirements = requirements
        self._suites: dict[str, _Suite] = {}
        self._missing = dict.fromkeys(map(str, header.get("planned") or ()))

    def trial(self, line: Line) -> None:
        """Take the trial of *line*."""
        line = text.complete(line)
        case = str(line["case"])
        self._missing.pop(str(line["id"]), None)
        suite = self._suites.setdefault(case.rpartition("/")[0] or "cases", _Suite())
        element = ElementTree.Element(
            "testcase",
            {
                "classname": legal(case.replace("/", ".")),
                "name": legal(line["id"]),
                "time": f"{line.get('duration') or 0.0:.6f}",
                "file": legal(line["file"]),
            },
        )
        failure = text.judged(line)["verdict"].get("failure")
        if failure and failure.get("place"):
            element.set("line", str(int(failure["place"][0])))
        properties = ElementTree.SubElement(element, "properties")
        for name, value in self._properties(line):
            ElementTree.SubElement(properties, "property", {"name": name, "value": legal(value)})
        suite.time += line.get("duration") or 0.0
        self._outcome(element, line, suite)
        suite.cases.append((str(line["id"]), ElementTree.tostring(element)))

    def _properties(self, line: Line) -> Iterable[tuple[str, object]]:
        for name in text.broken(line):
            yield "requirement", name
            level = (line.get("levels") or {}).get(name)
            if level:
                yield "requirement-level", f"{name} {level}"
        yield "result", line["result"]
        if line["verdict"].get("level"):
            yield "level", line["verdict"]["level"]
        if line.get("attempt", 1) != 1:
            yield "attempt", line["attempt"]
        for name in ("findings", "unverified"):
            for words in line["verdict"].get(name) or ():
                yield name, words

    def _outcome(self, element: ElementTree.Element, line: Line, suite: _Suite) -> None:
        result = line["result"]
        why = text.reason(line)
        tag, kind = "failure", str(text.judged(line)["verdict"].get("level") or "must")
        if result == "pass":
            return
        if result == "error":
            tag, kind = "error", "conform"
        elif result in ("not-applicable", "expected-failure"):
            tag, kind = "skipped", result
            if result == "expected-failure":
                why = f"known deviation: {(line.get('expectation') or {}).get('reason', '')} ({why})"
        elif result == "fail" and line.get("expected"):
            tag, kind = "skipped", f"fail-{kind}"  # of a level that the gate does not ask for
            why = f"tolerated by the gate: {why}"
        elif result == "inconclusive" and line.get("expected"):
            tag, kind = "skipped", result
        elif result != "fail":
            kind = result
        told = ElementTree.SubElement(element, tag, {"message": legal(text.clean(why)), "type": legal(kind)})
        if tag == "skipped":
            suite.skipped += 1
        elif tag == "error":
            suite.errors += 1
        else:
            suite.failures += 1
        if result != "not-applicable":
            told.text = legal(text.trial(line, self._header, self._requirements, str(self._path.parent)))

    def _rest(self, code: int | None) -> None:
        """What else turns a run red: planned trials without a verdict, entries of lists of deviations out of date."""
        missing = "skipped" if code == 1 else "error"  # by -x
        rest = [(name, missing, "the run ended before this trial had a verdict") for name in self._missing]
        rest += [(words.partition("\n")[0], "failure", words) for words in map(str, self._header.get("stale") or ())]
        if not rest:
            return
        suite = self._suites.setdefault("the run", _Suite())
        for name, tag, words in rest:
            element = ElementTree.Element("testcase", {"classname": "conform", "name": legal(text.clean(name))})
            told = {"message": legal(text.clean(words.partition("\n")[0])), "type": "conform"}
            ElementTree.SubElement(element, tag, told).text = legal(words)
            suite.cases.append((name, ElementTree.tostring(element)))
            suite.errors += tag == "error"
            suite.failures += tag == "failure"
            suite.skipped += tag == "skipped"

    def finish(self, end: Mapping[str, Any] | None = None) -> None:
        """Write the file. *end* is the run's ``end`` line, if it has one."""
        self._rest((end or {}).get("exit"))
        suites = self._suites.values()
        with replacing(self._path) as file:
            file.write(_DECLARATION)
            total = {
                "name": "conform",
                "tests": str(sum(len(s.cases) for s in suites)),
                "failures": str(sum(s.failures for s in suites)),
                "errors": str(sum(s.errors for s in suites)),
                "skipped": str(sum(s.skipped for s in suites)),
                "time": f"{sum(s.time for s in suites):.6f}",
            }
            file.write(_opening("testsuites", total))
            for name in sorted(self._suites):
                self._write_suite(file, name, self._suites[name])
            file.write(b"</testsuites>\n")

    def _write_suite(self, file: Any, name: str, suite: _Suite) -> None:
        attributes = {
            "name": legal(name),
            "tests": str(len(suite.cases)),
            "failures": str(suite.failures),
            "errors": str(suite.errors),
            "skipped": str(suite.skipped),
            "time": f"{suite.time:.6f}",
            "timestamp": legal(str(self._header.get("started", "")).partition(".")[0].rstrip("Z")),
            "hostname": legal((self._header.get("environment") or {}).get("hostname", "localhost")),
        }
        file.write(_opening("testsuite", attributes))
        properties = ElementTree.Element("properties")
        stack = (self._header.get("stack") or {}).get("name", "")
        settings = {"conform": self._header.get("conform", ""), "stack": stack, **(self._header.get("settings") or {})}
        for key, value in settings.items():
            ElementTree.SubElement(properties, "property", {"name": legal(key), "value": legal(_words(value))})
        file.write(ElementTree.tostring(properties) + b"\n")
        for _, case in sorted(suite.cases):
            file.write(case + b"\n")
        file.write(b"</testsuite>\n")


def _opening(tag: str, attributes: dict[str, str]) -> bytes:
    """An element's start, by the same escaping as all others."""
    return ElementTree.tostring(ElementTree.Element(tag, attributes), short_empty_elements=False).replace(
        f"</{tag}>".encode(), b"\n"
    )
