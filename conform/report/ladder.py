"""A trial as a ladder: one row for each thing that happened between tester and stack, and what the case says of it.

This is the model that the HTML report and the terminal draw. It is made of plain data, a trial's line of the run file
(docs/run-format.md), and knows no engine. A case that never ran has a ladder as well (:func:`planned_ladder`).

Sequence numbers are shown counted from the ISN that they belong to, in the words that failures use: ``ISS+1`` is the
stack's first octet, ``IRS+1`` the tester's. The numbers on the wire are in :attr:`Row.exact`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Document = Mapping[str, Any]
Kind = Literal["send", "recv", "call", "reply", "state", "silence", "note", "missing"]
Mark = Literal["", "failed", "noise", "late", "broken", "unread", "unreached", "planned"]
Part = Literal["recipe", "steps", "end"]

_MODULUS = 1 << 32
#: What a step can hold besides its kind.
_BESIDE = ("@", "why", "covers")
#: Kinds of steps that hold steps.
_NESTING = ("one_of", "any_order", "optional", "repeat")
#: Longer than this a step is cut short: it is there to be recognised, the case's file has all of it.
_LONGEST_YAML = 110
_LONGEST_TEXT = 48
#: Text that needs no quotes and would not be read as anything else.
_PLAIN = re.compile(r"(?!(?:true|false|null|0[xX][0-9a-fA-F]+|[\d.]+)\Z)[A-Za-z0-9_][A-Za-z0-9_.+*/() -]*(?<! )\Z")
_FIELDS = ("flags", "seq", "ack", "window", "urgent", "length", "payload", "reserved", "options", "ip")
_PATH = re.compile(r"\.?([A-Za-z_][\w-]*)|\[(\d+)\]")
_SENDS_DEFAULT_CONNECTION = "c1"


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a segment that was expected. ``right`` is false where it differs."""

    name: str
    expected: str
    actual: str
    right: bool


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a row is the failing one: what was expected and what came, in words and field by field."""

    summary: str
    expected: str
    actual: str
    arithmetic: tuple[str, ...]
    fields: tuple[Field, ...] = ()


@dataclass(slots=True)
class Row:
    """One rung. ``text`` is what happened; ``exact`` the same with the numbers on the wire; ``yaml`` the step.

    ``step`` is the step's path; ``place`` its [line, column]. ``conn`` is set where a trial has several connections.
    ``state`` is what was read out of the stack, ``inferred`` what the wire implies; ``mark`` says what is special:
    ``failed`` (with ``trouble``), ``noise`` that was passed over, ``late`` behind its settling, ``unread`` after the
    verdict, ``unreached``, ``broken`` (conform's own fault), ``planned``.
    """

    kind: Kind
    text: str
    step: str = ""
    yaml: str = ""
    part: Part = "steps"
    time: float | None = None
    mark: Mark = ""
    exact: str = ""
    conn: str = ""
    state: str = ""
    inferred: str = ""
    why: str = ""
    note: str = ""
    depth: int = 0
    place: tuple[int, int] | None = None
    trouble: Trouble | None = None


# Steps ---------------------------------------------------------------------------------------------------------------
def kind_of(step: Mapping[str, Any]) -> str:
    """Which of the format's steps this is; empty for none."""
    return next((key for key in step if key not in _BESIDE), "")


def step_at(document: Document, path: str) -> Mapping[str, Any] | None:
    """The step of a resolved case that *path* names: ``steps[4].one_of.rst[0]``; ``None`` for ``end`` and the like."""
    here: Any = document
    repeated = False
    try:
        for name, index in _PATH.findall(path):
            if index:
                if repeated:  # the number of the repetition, which is not in the case
                    here, repeated = here["steps"], False
                    continue
                here = here[int(index)] if isinstance(here, list) else [here][int(index)]
            elif isinstance(here, list):  # a branch by its name
                here = next(branch["steps"] for branch in here if branch["name"] == name)
            else:
                here = here[name]
                repeated = name == "repeat"
    except (KeyError, IndexError, TypeError, StopIteration):
        return None
    return here if isinstance(here, Mapping) and path.endswith("]") else None


def yaml_line(step: Mapping[str, Any], longest: int = _LONGEST_YAML) -> str:
    """*step* as it is written, on one line; of a step that holds others only what it is."""
    kind = kind_of(step)
    value = step.get(kind)
    if kind == "one_of" and isinstance(value, list):
        text = "one_of: " + " | ".join(str(branch.get("name", "?")) for branch in value if isinstance(branch, Mapping))
    elif kind == "repeat" and isinstance(value, Mapping):
        text = "repeat: " + ", ".join(f"{k}: {_flow(v)}" for k, v in value.items() if k != "steps")
    elif kind in _NESTING:
        text = f"{kind}: …"
    else:
        text = f"{kind}: {_flow(value, outer=True)}"
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _flow(value: Any, outer: bool = False) -> str:
    if isinstance(value, str):
        return (
            value if _PLAIN.match(value) or (outer and value.isprintable()) else json.dumps(value, ensure_ascii=False)
        )
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_flow(v)}" for k, v in value.items() if k != "@") + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def given_words(document: Document) -> str:
    """The state in which the steps begin, with what is said of the way there."""
    given = document.get("given", "CLOSED")
    if not isinstance(given, Mapping):
        return f"given {given}"
    more = ", ".join(f"{key} {_flow(value)}" for key, value in given.items() if key != "state")
    return f"given {given.get('state', '?')}" + (f" ({more})" if more else "")


# Packets -------------------------------------------------------------------------------------------------------------
def relative(number: int, base: int | None, name: str) -> str:
    """*number* counted from the ISN *base* that is called *name*; as it is where that is unknown."""
    if base is None:
        return str(number)
    delta = (number - base) % _MODULUS
    if delta >= _MODULUS // 2:
        delta -= _MODULUS
    if number < 1 << 16 and abs(delta) >= 1 << 20:
        return str(number)  # 0, or a number that a case made up: it has nothing to do with the ISN
    return f"{name}{delta:+d}" if delta else name


@dataclass(slots=True)
class _Numbers:
    """The ISNs of one connection: the stack's and the tester's."""

    name: str
    iss: int | None = None
    irs: int | None = None

    def learn(self, packet: Mapping[str, Any], from_stack: bool) -> None:
        """A SYN tells its sender's ISN. Of the tester's only one that the stack took, or the first, counts: a SYN
        into a connection that stands is an attack on it, not a new beginning."""
        if "S" not in packet["flags"]:
            return
        if not from_stack:
            if self.irs is None:
                self.irs = packet["seq"]
        else:
            if "A" in packet["flags"]:
                self.irs = (packet["ack"] - 1) % _MODULUS
            self.iss = packet["seq"]


def _octets(data: Any) -> bytes:
    try:
        return bytes.fromhex(data)
    except (TypeError, ValueError):
        return b""


def octets_text(octets: bytes, most: int = _LONGEST_TEXT) -> str:
    """*octets* for a reader, cut short."""
    return repr(octets[:most])[1:] + (f"… ({len(octets)} octets)" if len(octets) > most else "")


def options_text(options: Any, numbers: _Numbers | None = None) -> str:
    """A segment's options in words: ``mss 1460, window-scale 7, sack-permitted``."""
    words = []
    for name, value in options or ():
        if value is None:
            words.append(str(name))
        elif isinstance(value, Mapping):
            words.append(f"{name} {value.get('hex') or 'empty'}")
        elif name == "sack":
            base = numbers.irs if numbers else None
            blocks = (f"{relative(left, base, 'IRS')}..{relative(right, base, 'IRS')}" for left, right in value)
            words.append("sack " + " ".join(blocks))
        elif name == "ts":
            words.append(f"ts {value[0]} echo {value[1]}")
        else:
            words.append(f"{name} {value}")
    return ", ".join(words)


def packet_text(packet: Mapping[str, Any], from_stack: bool, numbers: _Numbers) -> str:
    """*packet* in one line, its sequence numbers counted from the ISNs."""
    if "quotes" in packet:
        more = f" mtu {packet['mtu']}" if packet.get("mtu") else ""
        inner = packet_text(packet["quotes"], not from_stack, numbers)
        return f"ICMP type {packet['type']} code {packet['code']}{more}, quoting {inner}"
    own, other = (numbers.iss, numbers.irs) if from_stack else (numbers.irs, numbers.iss)
    mine, theirs = ("ISS", "IRS") if from_stack else ("IRS", "ISS")
    text = f"{packet['flags']} seq={relative(packet['seq'], own, mine)}"
    if "A" in packet["flags"]:
        text += f" ack={relative(packet['ack'], other, theirs)}"
    if "payload" in packet:
        text += f" len={len(packet['payload']) // 2}"
    text += f" win={packet.get('window', 65535)}"
    if "urgent" in packet:
        text += f" urg={packet['urgent']}"
    if "options" in packet:
        text += f" <{options_text(packet['options'], numbers)}>"
    odd = [name.replace("_", " ") for name in ("checksum", "data_offset", "reserved", "raw_options") if name in packet]
    return text + (f" (odd {', '.join(odd)})" if odd else "")


def packet_exact(packet: Mapping[str, Any]) -> str:
    """*packet* with the numbers on the wire, its addresses, and what :func:`packet_text` leaves out."""
    ip = packet["ip"]
    if "quotes" in packet:
        return f"{ip['src']} > {ip['dst']} ICMP, quoting {packet_exact(packet['quotes'])}"
    text = f"{ip['src']}:{packet['sport']} > {ip['dst']}:{packet['dport']} seq {packet['seq']} ack {packet['ack']}"
    for name in ("ttl", "dscp", "ecn", "ident", "flow"):
        if name in ip:
            text += f" {name} {ip[name]}"
    for name in ("checksum", "data_offset", "reserved", "raw_options"):
        if name in packet:
            text += f" {name.replace('_', '-')} {packet[name]}"
    if "payload" in packet:
        text += f" payload {octets_text(_octets(packet['payload']))}"
    return text


def _actual_field(name: str, packet: Mapping[str, Any], numbers: _Numbers) -> str:
    if name == "seq":
        return relative(packet["seq"], numbers.iss, "ISS")
    if name == "ack":
        return relative(packet["ack"], numbers.irs, "IRS")
    if name == "length":
        return str(len(packet.get("payload", "")) // 2)
    if name == "payload":
        return octets_text(_octets(packet.get("payload", "")), 24)
    if name == "options":
        return options_text(packet.get("options")) or "none"
    if name == "ip":
        return _flow({k: v for k, v in packet["ip"].items() if k not in ("version", "src", "dst")})
    return str(packet.get(name, {"window": 65535}.get(name, 0)))


def _fields(
    spec: Any, packet: Mapping[str, Any], numbers: _Numbers, words: tuple[str, ...], described: str
) -> tuple[Field, ...]:
    """What an expectation says of a segment against what the segment holds.

    Which fields differ, and what an expression came to (in *described*), the engine said.
    """
    if not isinstance(spec, Mapping) or "quotes" in packet:
        return ()
    out = []
    for name in _FIELDS:
        if name not in spec:
            continue
        wrong = next((w for w in words if w.startswith(f"{name} ") or _is_part(name, w)), None)
        expected = _flow(spec[name])
        if name in ("seq", "ack"):
            came_to = re.search(rf"\b{name}={re.escape(expected)} \(([^)]*)\)", described)
            expected += f" = {came_to[1]}" if came_to else ""
        if wrong is not None and not _is_part(name, wrong):
            found = re.search(r", want (.+?)(?:, (?:short by|too far by|the same)| \(|$)", wrong)
            expected = found[1] if found else expected
        out.append(Field(name, expected, _actual_field(name, packet, numbers), wrong is None))
    return tuple(out)


def _is_part(name: str, words: str) -> bool:
    """Whether *words* tell of a part of the field *name*."""
    first = words.partition(" ")[0]
    if name == "options":
        return first in ("option", "TSval", "TSecr")
    return name == "ip" and first in ("ttl", "dscp", "ident", "flow", "ecn", "df")


def _count(octets: int) -> str:
    return f"{octets} octet{'s' * (octets != 1)}"


# Calls ---------------------------------------------------------------------------------------------------------------
def call_text(request: Mapping[str, Any]) -> str:
    """An agent's request as a call: ``recv(c1, size 100)``."""
    said = []
    for key, value in request.items():
        if key in ("do", "by", "timeout", "as", "overlap"):
            continue
        if key == "on" or key == "option":
            said.append(str(value))
        elif key == "payload":
            said.append(_count(len(str(value)) // 2))
        elif (key == "size" and value == 65536) or (key == "flags" and not value):
            continue
        else:
            said.append(f"{key} {_flow(value)}")
    text = f"{request.get('do', 'call')}({', '.join(said)})"
    if request.get("by", "main") != "main":
        text = f"{request['by']}: {text}"
    return text + (f" as {request['as']}" if request.get("as") else "")


def reply_text(reply: Mapping[str, Any]) -> str:
    """How a call ended."""
    if "fault" in reply:
        return f"the agent refuses: {reply['fault']}"
    if reply.get("timeout"):
        return "no return in time"
    parts = []
    if reply.get("error"):
        parts.append(str(reply["error"]))
    elif reply.get("data") is not None:
        parts.append(octets_text(_octets(reply["data"]), 24))
    elif reply.get("value") is not None:
        parts.append(_flow(reply["value"]))
    else:
        parts.append(str(reply.get("returned", "ok")))
    parts += [str(signal) for signal in reply.get("signals") or ()]
    return ", ".join(parts)


# A trial's ladder ----------------------------------------------------------------------------------------------------
def ladder(line: Mapping[str, Any], attempt: Mapping[str, Any] | None = None) -> list[Row]:
    """The rows of a trial's *line*; of one of its ``earlier`` attempts where *attempt* is given.

    A line that somebody altered can hold anything: what cannot be drawn is one row that says so.
    """
    try:
        return _Builder(line, attempt or line).build()
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        words = f"the transcript cannot be drawn: {type(error).__name__}: {error}"
        return [Row("note", words, mark="broken")]


class _Builder:
    def __init__(self, line: Mapping[str, Any], attempt: Mapping[str, Any]) -> None:
        self._document: Document = line["document"]
        self._transcript: list[Mapping[str, Any]] = attempt.get("transcript") or []
        self._verdict: Mapping[str, Any] = attempt["verdict"]
        self._rows: list[Row] = []
        self._begun: set[str] = set()
        self._with_yaml: set[str] = set()
        self._now_in = ""
        self._calls: dict[int, tuple[Row, int]] = {}
        self._by_entry: dict[int, Row] = {}
        self._reads: dict[int, str] = {}
        self._numbers: dict[tuple[int, int], _Numbers] = {}
        self._steps: dict[str, Mapping[str, Any] | None] = {}
        self._matched: dict[int, str] = {}
        self._noise: dict[int, str] = {}
        self._late: dict[int, str] = {}

    def build(self) -> list[Row]:
        for entry in self._transcript:
            note = entry.get("n")
            if note == "matched":
                self._matched[entry["of"]] = entry["step"]
            elif note == "noise":
                self._noise[entry["of"]] = entry["name"]
            elif note == "late":
                self._late[entry["of"]] = entry.get("step", "")
        for index, entry in enumerate(self._transcript):
            if "a" in entry:
                self._action(entry)
            elif "e" in entry:
                self._event(index, entry)
            else:
                self._note(entry)
        self._undecided()
        self._end_step(last=True)
        self._fault()
        if self._transcript:
            self._rows += self._unreached()
        if len(self._numbers) < 2:
            for row in self._rows:
                row.conn = ""
        return self._rows

    # What happened ---------------------------------------------------------------------------------------------------
    def _action(self, entry: Mapping[str, Any]) -> None:
        action = entry["a"]
        step = entry.get("step", "")
        if action == "inject":
            packet = entry["packet"]
            segment = packet.get("quotes", packet)
            ports = (segment["dport"], segment["sport"])
            if "quotes" in packet:
                ports = (ports[1], ports[0])
            numbers = self._connection(ports, step, "send")
            if "quotes" not in packet:
                numbers.learn(packet, False)
            text = packet_text(packet, False, numbers)
            self._add(Row("send", text, time=entry["t"], exact=packet_exact(packet), conn=numbers.name), step)
        elif action == "call":
            row = self._add(Row("call", call_text(entry["request"]), time=entry["t"]), step)
            self._calls[entry["id"]] = (row, len(self._rows))
        elif action == "read-state":
            self._reads[entry["id"]] = step

    def _event(self, index: int, entry: Mapping[str, Any]) -> None:
        event = entry["e"]
        if event == "arrived":
            self._arrived(index, entry)
        elif event == "returned" or event == "blocked":
            words = reply_text(entry["reply"]) if event == "returned" else "sleeps"
            row, length = self._calls.get(entry["id"], (None, -1))
            if row is not None and length == len(self._rows):
                row.text += f" → {words}"
            else:
                call = row.text.partition(" → ")[0] if row is not None else "call"
                step = self._now_in if self._kind_at(self._now_in) in ("finish", "blocked") else ""
                row = self._add(Row("reply", f"{call} → {words}", time=entry["t"]), step)
            self._by_entry[index] = row
        elif event == "state":
            step = self._reads.get(entry["id"], "")
            state = entry["state"] or "cannot be read"
            last = self._rows[-1] if self._rows else None
            if last is not None and last.kind == "state" and last.step == step:  # a poll: the last reading counts
                last.text, last.state, last.time, row = state, entry["state"] or "", entry["t"], last
            else:
                row = self._add(Row("state", state, time=entry["t"], state=entry["state"] or ""), step)
            info = entry.get("info")
            row.exact = _flow(info)[1:-1] if info else ""
            self._by_entry[index] = row
        elif event in ("broke", "died"):
            reason = str(entry["reason"]).partition("\n")[0]  # what a stack printed last is told with the failure
            self._add(Row("note", reason, time=entry["t"], mark="broken"), self._now_in)
        elif event == "lost":
            words = f"conform had no room for {entry['packets']} packets"
            self._add(Row("note", words, time=entry["t"], mark="broken"), self._now_in)

    def _arrived(self, index: int, entry: Mapping[str, Any]) -> None:
        packet = entry["packet"]
        if "quotes" in packet:
            ports = (packet["quotes"]["dport"], packet["quotes"]["sport"])
        else:
            ports = (packet["sport"], packet["dport"])
        step = self._matched.get(index, "")
        numbers = self._connection(ports, step, "expect")
        if "quotes" not in packet:
            numbers.learn(packet, True)
        row = Row(
            "recv",
            packet_text(packet, True, numbers),
            time=entry["t"],
            exact=packet_exact(packet),
            conn=numbers.name,
            part=_part(self._now_in),
        )
        if index in self._noise:
            row.mark, row.note = "noise", f"{self._noise[index]}, passed over"
        elif index in self._late and not step:
            row.mark, row.note = "late", f"late, behind what {self._late[index] or 'a step'} had settled"
        elif not step:
            row.mark, row.note = "unread", "no step took it"
        self._add(row, step)
        self._by_entry[index] = row

    def _note(self, entry: Mapping[str, Any]) -> None:
        note = entry["n"]
        if note == "step":
            self._end_step()
            self._now_in = entry["step"]
            self._begun.add(entry["step"])
            words = {"any_order": "in any order", "repeat": "again and again"}.get(self._kind_at(entry["step"]))
            if words is not None:
                self._add(Row("note", words, time=entry["t"]), entry["step"])
        elif note == "state":
            row = self._rows[-1] if self._rows else None
            if row is not None and row.kind == "state":
                row.inferred = " or ".join(entry.get("inferred") or ())
        elif note == "silent":
            self._add(Row("silence", "silence", time=entry["t"]), entry["step"])
        elif note == "chosen":
            self._add(Row("note", f"the way: {entry['branch']}", time=entry["t"]), entry["step"])

    def _add(self, row: Row, step: str) -> Row:
        row.step = step
        if step:
            row.part = _part(step)
            row.depth = step.count(".")
            if step not in self._with_yaml:
                self._with_yaml.add(step)
                found = self._at(step)
                if found is not None:
                    _tell(row, found)
                elif step == "end":
                    row.note = row.note or "is it alive?"
        self._rows.append(row)
        return row

    def _end_step(self, last: bool = False) -> None:
        """A step that left no trace of its own: a check that held, a call that had ended before it was asked for."""
        step, kind = self._now_in, self._kind_at(self._now_in)
        if not kind or step in self._with_yaml or kind in _NESTING:
            return
        failure = self._verdict.get("failure")
        if failure is not None and failure["step"] == step:
            return
        if last and self._verdict.get("outcome") != "pass":
            self._add(Row(_drawn(kind), "", mark="unreached"), step)  # it had begun, and came to nothing
        elif kind in ("blocked", "finish"):
            self._add(Row("reply", "it sleeps" if kind == "blocked" else "it had ended"), step)
        else:
            done = {"check": "holds", "state": "cannot be read out", "expect": ""}
            self._add(Row("note", done.get(kind, "done")), step)

    def _undecided(self) -> None:
        """What came, and conform was too late to judge: the step that it was held against."""
        verdict, row = self._verdict, self._rows[-1] if self._rows else None
        if verdict.get("outcome") != "inconclusive" or verdict.get("failure") or row is None or row.mark != "unread":
            return
        row.mark, row.step, row.note = "broken", self._now_in, str(verdict.get("reason") or "")
        self._with_yaml.add(self._now_in)
        step = self._at(self._now_in)
        if step is not None:
            _tell(row, step)

    # The fault -------------------------------------------------------------------------------------------------------
    def _fault(self) -> None:
        failure = self._verdict.get("failure")
        if failure is None:
            told = any(row.mark == "broken" for row in self._rows)
            reason = self._verdict.get("reason")
            if self._verdict.get("outcome") in ("error", "inconclusive") and reason and not told:
                self._rows.append(Row("note", str(reason), mark="broken"))
            return
        words = tuple(failure.get("arithmetic") or ())
        entry = failure.get("entry")
        row = self._by_entry.get(entry) if entry is not None else None
        spec: Any = None
        step = self._at(failure["step"])
        if row is None:
            kind: Kind = "note"
            if step is not None and kind_of(step) == "expect" and failure.get("actual") == "nothing":
                kind = "missing"
            text = failure.get("expected") if kind == "missing" else failure["summary"]
            last = self._transcript[-1]["t"] if self._transcript else None
            row = self._add(Row(kind, str(text or failure["summary"]), time=last), failure["step"])
        elif row.kind == "recv":
            unexpected = failure.get("expected", "").startswith("silence before")  # implied, not the step's own
            if not row.step:
                row.step = failure["step"]
                row.part = _part(failure["step"])
                if step is not None and not unexpected:
                    _tell(row, step)
                    row.depth = row.step.count(".")
            row.note = "" if not unexpected else f"silence was due after {failure['step']}"
            if step is not None and not unexpected:
                spec = step.get("expect")
        elif not row.step:
            row.step = failure["step"]
        fields: tuple[Field, ...] = ()
        if spec is not None and entry is not None:
            packet = self._transcript[entry].get("packet", {})
            if "flags" in packet:
                numbers = self._connection((packet["sport"], packet["dport"]), "", "")
                fields = _fields(spec, packet, numbers, words, failure.get("expected", ""))
        row.mark = "failed"
        row.trouble = Trouble(failure["summary"], failure.get("expected", ""), failure.get("actual", ""), words, fields)
        if failure.get("place") and row.place is None:
            row.place = (failure["place"][0], failure["place"][1])

    def _unreached(self) -> Iterator[Row]:
        if self._verdict.get("outcome") == "pass":
            return
        for part in ("recipe", "steps"):
            for index, step in enumerate(self._document.get(part) or ()):
                path = f"{part}[{index}]"
                if path in self._begun:
                    continue
                row = Row(_drawn(kind_of(step)), "", path, part=_part(path), mark="unreached")
                _tell(row, step)
                yield row

    # Look-ups --------------------------------------------------------------------------------------------------------
    def _at(self, path: str) -> Mapping[str, Any] | None:
        if path not in self._steps:
            self._steps[path] = step_at(self._document, path)
        return self._steps[path]

    def _kind_at(self, path: str) -> str:
        step = self._at(path) if path else None
        return kind_of(step) if step is not None else ""

    def _connection(self, ports: tuple[int, int], step: str, key: str) -> _Numbers:
        found = self._numbers.get(ports)
        if found is None:
            spec = (self._at(step) or {}).get(key) if step else None
            name = spec.get("conn", _SENDS_DEFAULT_CONNECTION) if isinstance(spec, Mapping) else f"port {ports[1]}"
            found = self._numbers[ports] = _Numbers(str(name))
        return found


def _drawn(kind: str) -> Kind:
    """How a step of that kind is drawn that came to nothing."""
    kinds: dict[str, Kind] = {"send": "send", "expect": "missing", "call": "call", "start": "call", "state": "state"}
    return kinds.get(kind, "note")


def _part(step: str) -> Part:
    if step.startswith("recipe"):
        return "recipe"
    return "end" if step == "end" else "steps"


def _tell(row: Row, step: Mapping[str, Any]) -> None:
    """Put into *row* what the case says there."""
    row.yaml = yaml_line(step)
    row.why = str(step.get("why") or "")
    place = step.get("@")
    if isinstance(place, (list, tuple)) and len(place) == 2:
        row.place = (place[0], place[1])


# A case's ladder -----------------------------------------------------------------------------------------------------
def planned_ladder(document: Document) -> list[Row]:
    """The rows of a resolved case that has not run: its packets in the symbols that the case uses."""
    return [*_planned(document.get("recipe") or (), "recipe", 0), *_planned(document.get("steps") or (), "steps", 0)]


def _planned(steps: Any, path: str, depth: int) -> Iterator[Row]:
    for index, step in enumerate(steps):
        yield from _planned_step(step, f"{path}[{index}]", depth)


def _planned_step(step: Mapping[str, Any], path: str, depth: int) -> Iterator[Row]:
    kind = kind_of(step)
    value: Any = step.get(kind)

    def row(drawn: Kind, text: str) -> Row:
        made = Row(drawn, text, path, part=_part(path), mark="planned", depth=depth)
        _tell(made, step)
        return made

    if kind == "send" or kind == "expect":
        yield row("send" if kind == "send" else "recv", _symbols(value))
    elif kind == "call" or kind == "start":
        yield row("call", ("start " if kind == "start" else "") + _planned_call(value))
    elif kind == "blocked":
        yield row("call", f"{value} sleeps")
    elif kind == "finish":
        ends = (f"{name} → {'ok' if end in ('ok', {}) else _flow(end)}" for name, end in value.items())
        yield row("reply", ", ".join(ends))
    elif kind == "silence":
        lasting = value.get("for", "now") if isinstance(value, Mapping) else value
        yield row("silence", "silence" if lasting == "now" else f"silence for {lasting}")
    elif kind == "state":
        said = value if isinstance(value, Mapping) else {"is": value}
        states = said["is"] if isinstance(said["is"], list) else [said["is"]]
        of = f"{said['conn']}: " if said.get("conn", _SENDS_DEFAULT_CONNECTION) != _SENDS_DEFAULT_CONNECTION else ""
        yield row("state", of + " or ".join(map(str, states)))
    elif kind == "check":
        yield row("note", f"check: {value['value']} is {value['is']}")
    elif kind == "one_of":
        for number, branch in enumerate(value):
            breaks = f", which violates {branch['violates']}" if branch.get("violates") else ""
            yield row("note", f"{'or' if number else 'either'} {branch['name']}{breaks}:")
            yield from _planned(branch["steps"], f"{path}.one_of.{branch['name']}", depth + 1)
    elif kind == "any_order":
        yield row("note", "in any order:")
        yield from _planned(value, f"{path}.any_order", depth + 1)
    elif kind == "optional":
        yield row("note", "perhaps:")
        yield from _planned(value if isinstance(value, list) else [value], f"{path}.optional", depth + 1)
    elif kind == "repeat":
        least = value.get("at-least")
        times = value["times"] if least is None else f"{least} to {value['times']}"
        gap = f", {value['gap']['is']} apart" if value.get("gap") else ""
        yield row("note", f"{times} times{gap}:")
        yield from _planned(value["steps"], f"{path}.repeat", depth + 1)
    else:
        yield row("note", yaml_line(step))


def _symbols(spec: Mapping[str, Any]) -> str:
    parts = [f"[{spec['conn']}]"] if spec.get("conn", _SENDS_DEFAULT_CONNECTION) != _SENDS_DEFAULT_CONNECTION else []
    if "again" in spec:
        parts.append(f"{spec['again']} again")
    if "icmp" in spec:
        parts.append(f"ICMP {_flow(spec['icmp'])}")
    if "flags" in spec:
        flags = spec["flags"]
        parts.append(" or ".join(map(str, flags)) if isinstance(flags, list) else str(flags))
    parts += [f"{name}={_flow(spec[name])}" for name in (*_FIELDS[1:], "stream", "ports", "bad") if name in spec]
    parts += [f"{name} {_flow(spec[name])}" for name in ("within", "after", "between", "from") if name in spec]
    return " ".join(parts)


def _planned_call(call: Any) -> str:
    if isinstance(call, str):
        return f"{call}()"
    request = {
        key: value for key, value in call.items() if key not in ("returns", "error", "data", "signal", "payload")
    }
    text = call_text(request)
    if "payload" in call:
        text = text.replace("(", f"({_flow(call['payload'])}" + (", " if "()" not in text else ""), 1)
    ends = [_flow(call[key]) for key in ("error", "returns", "data", "signal") if key in call]
    return text + (f" → {', '.join(ends)}" if ends else "")


__all__ = ["Field", "Row", "Trouble", "given_words", "ladder", "planned_ladder", "step_at", "yaml_line"]
