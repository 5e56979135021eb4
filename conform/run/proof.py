"""A failure as an entry of a list of deviations tells it: the text to know it by, the RFC, the packets that show it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from conform.requirements import catalogue
from conform.run.compare import VOLATILE

_PATH = re.compile(r"([\w-]+)|\[(\d+)\]")
_NAMED = re.compile(r"(\d{3,5})-(\d+(?:\.\d+)*)-")
#: A segment as the engine tells of it: "A seq=1910156937 ack=483568518 (ISS+2, acks IRS+2)".
_SEGMENT = re.compile(
    r"(?P<flags>[A-Z]+) seq=(?P<seq>\d+)(?: ack=(?P<ack>\d+))?(?P<rest>.*?)"
    r"(?: \((?:ISS\+(?P<iss>\d+))?(?:, )?(?:acks IRS\+(?P<irs>\d+))?\))?\Z"
)
_MODULUS = 1 << 32
#: A number farther than this from an initial one has nothing to do with it.
_FAR = 10_000_000
_SHORTEST = 4


def message(summary: str) -> str:
    """What an entry knows a failure by: its summary up to what is another in each run."""
    summary = summary.partition("\n")[0].strip()
    pieces = VOLATILE.split(summary)
    if len(pieces) == 1:
        return summary
    return next((piece for piece in map(_trimmed, pieces) if len(piece) >= _SHORTEST), summary)


def _trimmed(piece: str) -> str:
    piece = piece.strip(" =,:;()'\"")
    return re.sub(r"\s+(?:within|after|before|by|in|at|of|on|seq|ack|port)\Z", "", piece)


def sections(requirements: Iterable[str]) -> str:
    """Where the RFCs say so: ``RFC 9293 sections 3.5.2 and 3.10.7.4; RFC 5961 section 3.2``."""
    known = catalogue()
    found: dict[int | str, dict[str, None]] = {}
    for name in requirements:
        entry = known.get(name)
        if entry is not None:
            found.setdefault(entry.rfc, {})[entry.section] = None
        elif part := _NAMED.match(name):
            found.setdefault(int(part[1]), {})[part[2]] = None
        else:
            found.setdefault(name, {})
    out = []
    for rfc, places in found.items():
        *first, last = places or [""]
        told = f"{', '.join(first)} and {last}" if first else last
        out.append(f"RFC {rfc} section{'s' * bool(first)} {told}" if last else str(rfc))
    return "; ".join(out)


def packets(line: Mapping[str, Any]) -> str:
    """What shows the failure of a trial's *line*: ``T: R seq=RCV.NXT+1 / S: nothing; want A seq=SND.NXT``."""
    failure = line["verdict"]["failure"]
    document = line["document"]
    told = []
    at_fault = _action(_step(document, str(failure.get("step", ""))))
    if at_fault is None or at_fault.startswith("S: "):  # of a call the summary tells; what came before led to it
        at_fault = _last_action(line) or at_fault
    if at_fault:
        told.append(at_fault)
    expected, actual = str(failure.get("expected") or ""), str(failure.get("actual") or "")
    if actual == "nothing":
        told.append(f"S: nothing; want {expected}")
    elif segment := _relative(actual):
        told.append(f"S: {segment}; want {expected}")
    else:
        told.append(f"S: {str(failure['summary']).partition(chr(10))[0]}")
    return " / ".join(told)


def _relative(actual: str) -> str | None:
    found = _SEGMENT.fullmatch(actual)
    if found is None:
        return None
    told = f"{found['flags']} seq={_number(found['seq'], found['iss'], 'ISS')}"
    if found["ack"] is not None:
        told += f" ack={_number(found['ack'], found['irs'], 'IRS')}"
    return told + found["rest"]


def _number(raw: str, offset: str | None, name: str) -> str:
    if raw == "0" or offset is None:
        return raw
    delta = int(offset)
    if delta <= _FAR:
        return f"{name}+{delta}"
    return f"{name}-{_MODULUS - delta}" if _MODULUS - delta <= _FAR else "elsewhere"


def _last_action(line: Mapping[str, Any]) -> str | None:
    """The tester's last segment, or the last call, before the failure and not of the trial's end."""
    failure, last = line["verdict"]["failure"], None
    until = failure.get("entry")
    for number, entry in enumerate(line["transcript"]):
        if isinstance(until, int) and number > until:
            break
        if entry.get("a") in ("inject", "call") and str(entry.get("step", "end")) != "end":
            last = entry
    return None if last is None else _action(_step(line["document"], str(last["step"])))


def _step(document: Any, path: str) -> Mapping[str, Any]:
    """The step of a resolved case that *path* names; empty where there is none."""
    here, repeated = document, False
    try:
        for name, index in _PATH.findall(path):
            if index and repeated:  # the number of the repetition, which is not in the case
                here, repeated = here["steps"], False
            elif index:
                here = here[int(index)] if isinstance(here, list) else [here][int(index)]
            elif isinstance(here, list):  # a branch by its name
                here = next(branch["steps"] for branch in here if branch["name"] == name)
            else:
                here, repeated = here[name], name == "repeat"
    except (KeyError, IndexError, TypeError, StopIteration):
        return {}
    return here if isinstance(here, Mapping) else {}


def _action(step: Mapping[str, Any]) -> str | None:
    if "send" in step:
        return f"T: {_sent(step['send'])}"
    call = step.get("call") or step.get("start")
    if call:
        return f"S: {call['do'] if isinstance(call, Mapping) else call}()"
    return None


def _sent(send: Any) -> str:
    if not isinstance(send, Mapping):
        return str(send)
    told = []
    if "icmp" in send:
        told.append(f"ICMP {_plain(send['icmp'])}")
    elif "again" in send:
        told.append(f"{send['again']} again")
    else:
        told.append(str(send.get("flags", "none")))
    for name in ("seq", "ack"):
        if name in send:
            told.append(f"{name}={_plain(send[name])}")
    out = " ".join(told)
    payload = send.get("payload")
    if isinstance(payload, Mapping):
        payload = payload.get("length", payload.get("hex"))
    if payload not in (None, 0, ""):
        octets = payload if isinstance(payload, int) else len(str(payload))
        out += f", {octets} octet{'s' * (octets != 1)}"
    for name, value in send.items():
        if name not in ("flags", "seq", "ack", "payload", "icmp", "again", "as", "@"):
            out += f", {name} {_plain(value)}"
    return out


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items() if k != "@")
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value))
    return re.sub(r"(?<=\w)[+-]0\Z", "", str(value).replace(" ", ""))
