"""Makes sample-run.jsonl, the run that the tests of the reports read. To be run as a script.

Each line is a trial that the engine judged, played against the model stack of ``fake_stack.py``; what the run would
have added (results, expectations, captures) is put in by hand. Times and numbers are virtual, so the file is the same
each time.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[2])]

from fake_stack import ESTABLISHED, Driver, ModelStack, also, alter, drop, profile, shifted, trial  # noqa: E402

from conform.engine import events as ev  # noqa: E402

COVERS = ["9293-3.6-normal-close-fig12", "9293-3.4-fin-syn-seqspace"]
LEVELS = {"9293-3.6-normal-close-fig12": "rule", "9293-3.4-fin-syn-seqspace": "rule", "9293-SHLD-14": "should"}
CLOSE: list[Any] = [
    {"call": "close"},
    {"expect": {"flags": "FA", "seq": "SND.NXT", "ack": "RCV.NXT", "as": "fin"}},
    {"state": "FIN-WAIT-1"},
    {"send": {"flags": "A", "ack": "fin.end"}},
    {"state": "FIN-WAIT-2"},
    {"send": {"flags": "FA"}, "why": "the peer closes as well"},
    {"expect": {"flags": "A", "seq": "fin.end", "ack": "RCV.NXT", "within": "timer.delayed-ack.max"}},
    {"state": "TIME-WAIT"},
]
TITLE = "An active close numbers its FIN with SND.NXT, and acknowledges the peer's FIN with SEQ+1"
KNOWN = {
    "trials": ["close/known.*"],
    "reason": "The model acknowledges one octet too many, as its makers know.",
    "rfc": "RFC 9293 section 3.10.7.4, first",
    "packets": "T: FA seq=RCV.NXT / S: A ack=SEG.SEQ+2; want A ack=SEG.SEQ+1",
    "message": "too far by 1",
    "file": "cases/expectations/model.yaml",
    "line": 5,
}


def placed(steps: list[Any], line: int) -> list[Any]:
    """*steps* as the loader gives them: with their places."""
    return [{"@": [line + index, 5], **step} for index, step in enumerate(steps)]


def line(
    case: str, steps: list[Any], stack: ModelStack | None = None, result: str = "pass", expected: bool = True,
    title: str = TITLE, recipe: list[Any] | None = None, more: dict[str, Any] | None = None, **driver: Any,
) -> dict[str, Any]:  # fmt: skip
    """The line of one trial that was played."""
    document = {"given": "ESTABLISHED", "covers": COVERS, **(more or {})}
    version = stack.version if stack else 4
    way = ESTABLISHED if recipe is None else recipe
    made = trial(placed(steps, 9), [{"@": [7, 1], **step} for step in way], ip=version, levels=LEVELS, **document)
    made = type(made)(
        f"{case}.v{version}", case, f"cases/{case}.yaml", version, "", {**made.document, "title": title}, made.case,
        made.levels, made.stack, made.seed,
    )  # fmt: skip
    played = Driver(made, stack, **driver).play()
    out: dict[str, Any] = {"kind": "trial", "attempt": 1, "link": "tun", "title": title, **played.line()}
    out |= {"expectation": None, "result": result, "expected": expected}
    out |= {"duration": round(played.now, 6), "pcap": None}
    if result not in ("pass", "not-applicable"):
        out["pcap"] = f"pcap/{case.replace('/', '--')}.v{version}.pcapng"
    return out


def lines() -> list[dict[str, Any]]:
    """All trials of the sample."""
    short = [{"call": "close"}, {"expect": {"flags": "FA", "seq": "SND.NXT", "ack": "RCV.NXT"}}]
    two = [
        {"send": {"conn": "c2", "flags": "S"}},
        {"expect": {"conn": "c2", "flags": "SA", "seq": "ISS", "ack": "RCV.NXT"}},
        {"send": {"conn": "c2", "flags": "A"}},
        {"send": {"flags": "PA", "payload": "hello"}},
        {"expect": {"flags": "A", "seq": "SND.NXT", "ack": "RCV.NXT"}},
    ]
    unexpected = also(1, (0.0, {"flags": 16, "seq": shifted("seq", 1)}))
    out = [
        line("close/active-close", CLOSE),
        line("close/active-close", CLOSE, ModelStack(6)),
        line("close/fin-not-counted", CLOSE, ModelStack(twist=alter(2, ack=shifted("ack", -1))), "fail", False),
        line("close/unexpected-segment", CLOSE, ModelStack(twist=unexpected), "fail", False),
        line("close/timeout", CLOSE, ModelStack(twist=drop(1)), "fail", False, more={"covers": ["9293-SHLD-14"]}),
        line(
            "calls/recv-error",
            [
                {"start": {"do": "recv", "as": "r1"}},
                {"blocked": "r1"},
                {"send": {"flags": "PA", "payload": "hello"}},
                {"expect": {"flags": "A", "ack": "RCV.NXT"}},
                {"finish": {"r1": {"data": "hello"}}},
                {"call": {"do": "send", "payload": "x"}},
            ],
            ModelStack(replies={"send": {"returned": -1, "error": "EPIPE", "signals": ["SIGPIPE"]}}),
            "fail",
            False,
            title="A connection that stands can be written to",
        ),
        line(
            "states/wrong-state", CLOSE, None, "fail", False,
            state=lambda number, actual: "CLOSING" if actual == "FIN-WAIT-2" else actual,
        ),
        line(
            "close/late-loop", [*CLOSE[:6], {"expect": {"flags": "A", "ack": "RCV.NXT", "after": "40ms"}}],
            ModelStack(twist=lambda n, s: [(0.06 if n == 2 else 0.0, s)]), "inconclusive", False, lag={2: 0.05},
        ),
        line("close/unreached", CLOSE, ModelStack(twist=drop(0)), "inconclusive", False),
        line("close/broken", CLOSE, None, "error", False, at=[(0.0, ev.Broke("the agent's process died: exit 1"))]),
        line("close/known", CLOSE, ModelStack(twist=alter(2, ack=shifted("ack", 1))), "expected-failure"),
        line("close/known", CLOSE, ModelStack(6, twist=alter(2, ack=shifted("ack", 1))), "expected-failure"),
        line("close/known-no-more", CLOSE, None, "unexpected-pass", False),
        line("close/flaky", CLOSE, None, "flaky", False),
        line("data/two-connections", two, title="What one connection undergoes is nothing to the other"),
        line(
            "data/one-of",
            [
                *short[:1],
                {"one_of": [
                    {"name": "reset", "steps": [{"expect": {"flags": "RA"}}]},
                    {"name": "orderly", "steps": [short[1], {"state": "FIN-WAIT-1"}]},
                ]},
            ],
            title="A close is orderly, or it is not",
        ),
        line("data/may-fail", short, ModelStack(twist=alter(1, flags=16)), "fail", True, title="A MAY not done"),
    ]  # fmt: skip
    for each in out:
        if each["case"].startswith("close/known"):
            each["expectation"] = KNOWN
        if each["case"] == "close/flaky":
            first = line("close/flaky", CLOSE, ModelStack(twist=alter(2, ack=shifted("ack", -1))))
            each["attempt"] = 2
            each["earlier"] = [{"attempt": 1, "verdict": first["verdict"], "transcript": first["transcript"]}]
        if each["case"] == "data/may-fail":
            each["verdict"]["level"] = "may"
    for version in (4, 6):
        absent = dict(out[0]) | {
            "id": f"urgent/mark.v{version}",
            "case": "urgent/mark",
            "file": "cases/urgent/mark.yaml",
        }
        absent |= {"ip": version, "transcript": [], "result": "not-applicable", "duration": 0.0}
        absent["verdict"] = dict(absent["verdict"]) | {
            "outcome": "not-applicable", "reason": "the stack does not claim urgent",
        }  # fmt: skip
        out.append(absent)
    return out


def main() -> None:
    """Write the sample."""
    trials = lines()
    stack = profile().to_json()
    header = {
        "kind": "header", "format": 1, "conform": "0.1.0", "started": "2026-11-21T10:00:00.000Z",
        "environment": {"kernel": "6.1.0", "machine": "x86_64", "link": "tun", "privileges": "root", "hz": 250},
        "stack": {"name": "model", "description": {"title": "The model stack", "timers": stack["timers"]}},
        "settings": {"paths": ["cases"], "seed": 1, "ip": [4, 6], "link": "auto", "gate": "should", "jobs": 0,
                     "retry": 1, "repeat": 1, "pcap": "failed", "timeout": 180.0, "selection": {"k": "close or data"}},
        "planned": [each["id"] for each in trials],
    }  # fmt: skip
    counts: dict[str, int] = {}
    for each in trials:
        counts[each["result"]] = counts.get(each["result"], 0) + 1
    end = {"kind": "end", "finished": "2026-11-21T10:00:03.500Z", "counts": counts, "exit": 1}
    with (HERE / "sample-run.jsonl").open("w", encoding="utf-8") as file:
        for each in (header, *trials, end):
            file.write(json.dumps(each, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
