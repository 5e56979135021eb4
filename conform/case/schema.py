"""The JSON Schema of a case file, made from the model: what ``conform schema`` prints and editors check against.

It says what a file may hold *as it is written*: with the shorthands, with templates, and with ``${name}`` wherever the
matrix may put a value. What a schema cannot say (names, order, ids of the catalogue) only ``load`` finds.
"""

from __future__ import annotations

from typing import Any

from conform.case import model
from conform.case import vocabulary as words
from conform.case.model import PLACE, Case

ID = "urn:conform:case:1"
_VARIABLE = {"$ref": "#/$defs/Variable"}

#: Keys that take a list or a single item of it.
_LISTED = frozenset({"covers", "error", "msg-flags", "requires", "is", "SendCall.flags", "RecvCall.flags"})

#: What each key means: by ``Class.key`` where it differs from the key's usual meaning.
MEANINGS: dict[str, str] = {
    # The case
    "format": "the version of the format that this file is written in",
    "title": "one sentence that says what a conforming stack does",
    "why": "the reason, in words, for whoever reads a failure",
    "covers": "ids of the requirements whose breach a failure would show",
    "tags": "words by which cases are selected",
    "Case.ip": "the IP versions that the case is run on",
    "requires": "capabilities without which a stack is not asked",
    "settings": "settings of the stack, by abstract name",
    "sysctl": "raw sysctls of a Linux stack's network namespace; needs requires: linux",
    "given": "the state in which the steps begin, reached by a recipe",
    "connections": "the tester's ends of connections, where they are not as usual",
    "templates": "named sets of fields that send, expect, call and start can use",
    "matrix": "the rows over which the case is repeated",
    "Case.noise": "which segments are recorded and passed over while something else is awaited; [] for none",
    "noise": "which segments are recorded and passed over while something else is awaited; forbid for none",
    "liveness": "what is probed at the end: the connection, or only the stack's port",
    "steps": "what happens, in order",
    # given
    "Given.state": "the state of RFC 9293 in which the steps begin",
    "role": "whether the stack opened passively or actively",
    "accepted": "whether the application has accepted the connection",
    "Given.by": "the call that closed the stack's side",
    "via": "the state before, where there are several ways",
    "Given.options": "the options of the tester's SYN or SYN,ACK",
    # connections
    "isn": "the tester's initial sequence number; unsaid, one from the trial's seed",
    "ConnectionSpec.port": "the tester's port",
    "stack-port": "the stack's port",
    "ConnectionSpec.window": "the window field of what the tester sends, unscaled",
    # matrix
    "axes": "variables, each with the values over which it runs; all combinations are rows",
    "rows": "rows written out: variables and their values, and an id",
    "except": "combinations that are left out, each with why",
    # segments
    "conn": "the connection",
    "SendSpec.flags": "control bits as letters of SFRPAUEC; none for none",
    "ExpectSpec.flags": "control bits: exact over S, F, R, A, U; P, E, C only if named; -P forbids; or a list of them",
    "seq": "the sequence number; a bare number counts from the sender's ISN",
    "ack": "the acknowledgment number; a bare number counts from the receiver's ISN",
    "window": "the window field, as it is on the wire",
    "urgent": "the urgent pointer field",
    "payload": "octets: text, a length, {length, pattern} or {hex}",
    "options": "the TCP options",
    "SegmentFields.ip": "fields of the IP header",
    "SendSpec.ip": "fields of the IP header",
    "ExpectSpec.ip": "fields of the IP header",
    "ports": "ports other than the connection's own",
    "bad": "header fields that are not what they should be",
    "again": "that segment once more, by the name it was given",
    "icmp": "an ICMP error instead of a segment",
    "as": "the name under which later steps refer to it",
    "length": "how many octets of payload",
    "reserved": "the four reserved bits",
    "stream": "so many octets, in whatever segments they come",
    "within": "at most this long after the previous event",
    "after": "not sooner than this after the previous event",
    "between": "the earliest and the latest time after the previous event",
    "from": "the segment from whose time is counted, instead of the previous event",
    "use": "a template whose fields are taken where they are not written here",
    # options
    "mss": "maximum segment size",
    "window-scale": "the shift count of RFC 7323",
    "sack-permitted": "SACK is permitted, RFC 2018",
    "sack": "SACK blocks: pairs of the first sequence number in it and the first after it",
    "ts": "timestamps, RFC 7323",
    "val": "TSval",
    "ecr": "TSecr",
    "fast-open": "the cookie of RFC 7413 as hexadecimal digits; empty asks for one",
    "user-timeout": "RFC 5482's user timeout",
    "md5": "RFC 2385's digest as hexadecimal digits",
    "nop": "so many no-operations",
    "eol": "the end of the list",
    "unknown": "options by number",
    "only": "no option that is not named may be there",
    "timeout": "how long the call may take",
    "UserTimeout.timeout": "the timeout in units",
    "unit": "the unit",
    "kind": "the option's number",
    "UnknownOption.data": "its octets as hexadecimal digits",
    # bad, ip, icmp, ports
    "checksum": "a checksum that is sent as it is, right or not",
    "data-offset": "the data offset field in 32-bit words",
    "raw-options": "octets in place of the options, as hexadecimal digits",
    "ttl": "the time to live, or IPv6's hop limit",
    "dscp": "the differentiated services codepoint",
    "ecn": "the ECN codepoint",
    "ident": "IPv4's identification",
    "df": "IPv4's don't-fragment bit",
    "flow": "IPv6's flow label",
    "IPSpec.options": "raw IPv4 options, as hexadecimal digits",
    "src": "another source address",
    "dst": "another destination address",
    "type": "the error by name, or its type by number",
    "code": "the code, where the type is a number",
    "quotes": "the segment of the stack that is quoted, by its name",
    "quoted-length": "how many octets of the IP packet are quoted",
    "mtu": "the next hop's MTU",
    "pointer": "the octet at fault",
    "IcmpSpec.seq": "another sequence number in the quotation",
    "tester": "the tester's port",
    "stack": "the stack's port",
    # calls
    "do": "the call",
    "by": "the process that calls",
    "on": "the descriptor",
    "returns": "what the call must return",
    "error": "the errno with which the call must fail, or a list of them",
    "data": "the octets that must be read; sent for those that the tester sent",
    "signal": "the signal that must be raised",
    "msg-flags": "the flags that recvmsg must return",
    "BindCall.port": "the port; any for one of the stack's choice; unsaid, the trial's",
    "address": "the local address: any or the stack's",
    "backlog": "how many connections may wait to be accepted",
    "ConnectCall.conn": "the connection that it becomes",
    "SendCall.flags": "flags of the call",
    "RecvCall.flags": "flags of the call",
    "size": "at most so many octets",
    "how": "which side is shut down",
    "option": "the socket option",
    "SetsockoptCall.value": "its value",
    "events": "the events asked for",
    "NonblockingCall.value": "whether calls return rather than sleep",
    "process": "the process that is killed",
    "with": "the signal",
    "status": "the exit status",
    # steps
    "call": "a socket call, and its end awaited",
    "start": "a socket call begun; finish awaits its end",
    "blocked": "the started call of that name sleeps",
    "finish": "started calls end, each as said",
    "send": "the tester sends a packet",
    "expect": "the stack's next segment",
    "silence": "nothing comes: now, or for a time",
    "StateStep.state": "the connection's state in the stack",
    "check": "a comparison of what was captured",
    "probe": "the stack is alive, and so is its connection",
    "one_of": "one of several ways goes on; the first step of each chooses",
    "any_order": "expectations that are met in whatever order",
    "optional": "steps that are taken if their first, an expectation, fits what comes",
    "repeat": "the same steps several times",
    "for": "how long; now for as long as settling takes",
    "is": "what it must be",
    "CheckSpec.value": "an expression",
    "name": "the name of this way",
    "violates": "the requirement that is broken by going this way",
    "times": "how often, at most",
    "at-least": "how often, at least; unsaid, as often as times",
    "gap": "the time from one round to the next",
    "tolerance": "the tolerance in percent",
}


def _clean(schema: Any) -> Any:
    """Without the titles that pydantic makes of names, the nulls of what is optional, and what only conform writes."""
    if isinstance(schema, list):
        return [_clean(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    cleaned = {key: _clean(value) for key, value in schema.items() if key != "title" or not isinstance(value, str)}
    if cleaned.get("default", 0) is None or isinstance(cleaned.get("default"), dict):
        del cleaned["default"]
    if isinstance(properties := cleaned.get("properties"), dict):
        properties.pop(PLACE, None)
    if "patternProperties" in cleaned:
        cleaned["additionalProperties"] = False
    return cleaned


def _alternatives(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return (
        list(schema["anyOf"])
        if "anyOf" in schema and not schema.keys() - {"anyOf", "description", "default"}
        else [schema]
    )


def _takes_any_text(schema: dict[str, Any]) -> bool:
    """Whether ``${name}`` fits as it is."""
    return any(
        not s or ("string" in s.get("type", ()) and not s.keys() & {"enum", "const", "pattern"})
        for s in _alternatives(schema)
    )


def _variable(schema: dict[str, Any]) -> dict[str, Any]:
    """*schema*, or ``${name}`` in its place; the same for what is inside."""
    found = []
    for one in _alternatives(schema):
        one = dict(one)
        for key in ("items", "additionalProperties"):
            if isinstance(one.get(key), dict):
                one[key] = _variable(one[key])
        for key in ("patternProperties", "properties"):
            if key in one:
                one[key] = {name: _variable(inner) for name, inner in one[key].items()}
        if "prefixItems" in one:
            one["prefixItems"] = [_variable(inner) for inner in one["prefixItems"]]
        if "oneOf" in one:  # one_of would count matches: that one fits is enough, and faster
            one = {("anyOf" if key == "oneOf" else key): value for key, value in one.items()}
        found.append(one)
    if not _takes_any_text(schema):
        found.append(_VARIABLE)
    extra = {key: value for key, value in schema.items() if key in ("description", "default") and "anyOf" in schema}
    return {**extra, "anyOf": found} if len(found) > 1 else {**extra, **found[0]}


def _also(schema: dict[str, Any], *more: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [*more, *_alternatives(schema)]}


def _setting(can: words.Values) -> dict[str, Any]:
    booleans = [value for word, value in (("on", True), ("off", False)) if word in can.words]
    found: list[dict[str, Any]] = [{"enum": [*can.words, *booleans]}] if can.words else []
    if can.takes == "count":
        found.append({"type": "integer", "minimum": can.least})
    elif can.takes is not None:
        found.append({"type": "string"})
    return {"anyOf": found}


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a case file."""
    raw = _clean(Case.model_json_schema(by_alias=True))
    defs: dict[str, Any] = raw.pop("$defs")
    raw["properties"].pop("recipe")
    defs["Case"] = raw
    states = {"enum": defs["Given"]["properties"]["state"]["enum"]}
    defs["OneOfStep"]["properties"]["one_of"]["items"] = {"$ref": "#/$defs/Choice"}
    for name, definition in defs.items():
        properties = definition.get("properties", {})
        for key, value in properties.items():
            if key in _LISTED or f"{name}.{key}" in _LISTED:
                items = [one["items"] for one in _alternatives(value) if "items" in one]
                properties[key] = _also(value, *items)
        call = issubclass(getattr(model, name, Case), model.Call)
        if call or name in ("SendSpec", "ExpectSpec"):
            properties["use"] = {"type": "string"}
        if call and (required := definition.get("required")):
            definition["anyOf"] = [{"required": required}, {"required": ["use"]}]
            del definition["required"]
    any_step = {"anyOf": [{"$ref": f"#/$defs/{kind.__name__}"} for kind in model.STEP_KINDS.values()]}
    for name, key in (
        ("Case", "steps"),
        ("Choice", "steps"),
        ("RepeatSpec", "steps"),
        ("AnyOrderStep", "any_order"),
        ("OptionalStep", "optional"),
    ):
        defs[name]["properties"][key]["items"] = {"$ref": "#/$defs/Step"}
    shorthands: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("CallStep", "call", {"enum": list(model.CALL_NAMES)}),
        ("Case", "given", states),
        ("StateStep", "state", states),
        ("StateStep", "state", {"type": "array", "items": states}),
        ("SilenceStep", "silence", {"type": "string"}),
        ("OptionalStep", "optional", {"$ref": "#/$defs/Step"}),
    )
    for name, key, shorthand in shorthands:
        defs[name]["properties"][key] = _also(defs[name]["properties"][key], shorthand)
    for pattern, value in defs["FinishStep"]["properties"]["finish"]["patternProperties"].items():
        defs["FinishStep"]["properties"]["finish"]["patternProperties"][pattern] = _also(value, {"const": "ok"})
    settings = defs["Case"]["properties"]["settings"]
    del settings["propertyNames"]
    settings["properties"] = {
        name: {**_setting(words.SETTING_VALUES[name]), "description": meaning}
        for name, meaning in words.SETTINGS.items()
    }
    settings["additionalProperties"] = False
    for name, definition in defs.items():
        properties = definition.get("properties", {})
        for key, value in properties.items():
            if not (name == "Case" and key in ("matrix", "templates", "format")) and key != "use" and name != "Matrix":
                value = _variable(value)
            if meaning := MEANINGS.get(f"{name}.{key}") or MEANINGS.get(key):
                value = {**value, "description": meaning}
            properties[key] = value
    defs["Step"] = {**any_step, "description": f"one of: {', '.join(model.STEP_KINDS)}"}
    defs["Variable"] = {
        "type": "string",
        "pattern": r"^\$\{[A-Za-z_][A-Za-z0-9_-]*\}$",
        "description": "a variable of the matrix",
    }
    case = defs.pop("Case")
    # The rows of a matrix can carry every step there is.
    case["required"].remove("steps")
    case["anyOf"] = [{"required": ["steps"]}, {"required": ["matrix"]}]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": ID,
        "title": f"conform case, format {model.FORMAT_VERSION}",
        **case,
        "$defs": dict(sorted(defs.items())),
    }
