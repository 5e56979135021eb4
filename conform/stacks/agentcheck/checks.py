"""The checks of an agent's calls, in the order of docs/agent-protocol.md; each raises Violation or Unchecked."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable
from typing import Any

from conform.case.vocabulary import SOCKET_OPTIONS, STATES
from conform.stacks.agentcheck.bench import Bench
from conform.stacks.agentcheck.conversation import ERROR_NAME, UNREAD, Reply, Unchecked

CHECKS: list[tuple[str, Callable[[Bench], None]]] = []


def _check(what: str) -> Callable[[Callable[[Bench], None]], Callable[[Bench], None]]:
    def add(function: Callable[[Bench], None]) -> Callable[[Bench], None]:
        CHECKS.append((what, function))
        return function

    return add


# The channel ---------------------------------------------------------------------------------------------------------
@_check("unknown keys of a request are ignored")
def _unknown_keys(bench: Bench) -> None:
    reply = bench.ask("socket", name="odd", novelty=[1, {"x": None}])
    bench.want("returned" in reply, "a fault", "unknown keys of a request are to be ignored", "The channel")
    bench.ask("close", on="odd")


@_check("a line may come in pieces, and several at once")
def _pieces(bench: Bench) -> None:
    ids = (901, 902, 903)
    lines = [json.dumps({"id": id, "do": "socket", "as": f"p{id}"}) for id in ids]
    data = "".join(line + "\n" for line in lines).encode()
    bench.agent.send_octets((data[:10], data[10:50], data[50:]), lines, ids)
    for id in ids:
        reply = bench.agent.reply(id)
        rule = "one JSON object a line, ended by a line feed"
        bench.want(reply.get("returned") == 0, "no socket", rule, "The channel")
        bench.ask("close", on=f"p{id}")


@_check("each of many requests has one reply, with its id")
def _ids(bench: Bench) -> None:
    name = bench.socket()
    numbers = [2**31 + 7, 5_000_000, *range(5_000_100, 5_001_100)]
    for number in numbers:
        bench.agent.send({"id": number, "do": "shutdown", "on": name, "how": "rdwr"})
    for number in numbers:
        bench.agent.reply(number)


# Faults --------------------------------------------------------------------------------------------------------------
def _after_malformed(bench: Bench, line: str) -> None:
    bench.agent.send_octets([line.encode() + b"\n"], [line], [UNREAD])
    rule = "the request cannot be made: a fault; the agent goes on"
    bench.faulty(bench.agent.reply(UNREAD), rule)
    bench.want("returned" in bench.ask("socket", name="after"), "no socket", rule, "Replies")
    bench.ask("close", on="after")


@_check("a line that is no JSON is a fault")
def _no_json(bench: Bench) -> None:
    _after_malformed(bench, '{"id": 1, "do": "soc')


@_check("a line that is no object is a fault")
def _no_object(bench: Bench) -> None:
    _after_malformed(bench, '["socket"]')


@_check("an unknown call is a fault")
def _unknown_call(bench: Bench) -> None:
    # Not by ask(), which takes this for a call that the agent may lack.
    reply = bench.agent.reply(bench.begin("teleport"))
    bench.faulty(reply, "the request cannot be made: unknown call")


@_check("an unknown name is a fault, a closed one EBADF")
def _names(bench: Bench) -> None:
    bench.faulty(bench.ask("send", on="nobody", payload="00"), "the request cannot be made: unknown name")
    name = bench.socket()
    bench.ok("close", on=name)
    reply = bench.ask("send", on=name, payload="00")
    rule = "a name whose descriptor was closed stays known: a call on it ends in EBADF, and it can be given again"
    bench.want(reply.get("error") == "EBADF", "no EBADF", rule, "Requests")
    bench.want("returned" in bench.ask("socket", name=name), "a fault", rule, "Requests")
    bench.faulty(bench.ask("socket", name=name), "the request cannot be made: a name that is taken")


@_check("without a name, listener and c1 are meant")
def _defaults(bench: Bench) -> None:
    rule = "listener for bind, listen, accept, c1 for the others, if not said"
    bench.want(bench.ask("socket").get("returned") == 0, "no socket", rule, "Requests")
    bench.no_fault(bench.ask("bind", address="any", port=0), "bind")
    bench.no_fault(bench.ask("listen"), "listen")
    bench.want(bench.ask("close", on="listener").get("returned") == 0, "no listener to close", rule, "Requests")
    bench.no_fault(bench.ask("socket", name="c1"), "socket")
    bench.want(bench.ask("close").get("returned") == 0, "no c1 to close", rule, "Requests")


@_check("a value of the wrong shape is a fault")
def _shapes(bench: Bench) -> None:
    name = bench.socket()
    rule = "the request cannot be made: a value of the wrong shape"
    bench.faulty(bench.ask("send", on=name, payload="no octets"), rule)
    bench.faulty(bench.ask("send", on=name, payload="00", flags=["MSG_ODD"]), rule)
    bench.faulty(bench.ask("shutdown", on=name, how="sideways"), rule)
    bench.faulty(bench.ask("bind", on=name, address="any", port="http"), rule)
    bench.faulty(bench.ask("connect", on=name, address=bench.stack), rule)


@_check("an unknown socket option is a fault")
def _unknown_option(bench: Bench) -> None:
    name = bench.socket()
    bench.faulty(bench.ask("getsockopt", on=name, option="SO_ODD"), "the request cannot be made: an unknown name")


@_check("an unknown setting is not set")
def _unknown_setting(bench: Bench) -> None:
    reply = bench.agent.reply(bench.begin("set", name="no-such-setting", value=1))
    rule = "a setting of the stack, by the name that its description has for it"
    bench.want(reply.get("returned") != 0, "neither a fault nor an error", rule, "Requests")


# The calls -----------------------------------------------------------------------------------------------------------
@_check("a stack connects to itself: accept and connect")
def _connect(bench: Bench) -> None:
    _, _, reply = bench.pair()
    _address(bench, reply, bench.stack)


def _octets_of(reply: Reply) -> bytes | None:
    """What was received, whatever the case of its digits."""
    try:
        return bytes.fromhex(reply.get("data", ""))
    except (TypeError, ValueError):
        return None


def _address(bench: Bench, reply: Reply, address: str, port: int | None = None) -> None:
    rule = '{"address": "192.0.2.2", "port": 1024}'
    found = reply.get("address")
    good = isinstance(found, dict) and found.get("address") == address and isinstance(found.get("port"), int)
    bench.want(good and (port is None or port == found["port"]), "another address, or none", rule, "Replies")  # type: ignore[index]


@_check("getsockname and getpeername give the addresses")
def _getname(bench: Bench) -> None:
    client, server, accepted = bench.pair()
    peer = accepted["address"]["port"]
    _address(bench, bench.ok("getpeername", on=server), bench.stack, peer)
    _address(bench, bench.ok("getsockname", on=client), bench.stack, peer)
    port = bench.ok("getsockname", on=server)["address"]["port"]
    _address(bench, bench.ok("getpeername", on=client), bench.stack, port)


@_check("a connection that nobody listens for is an error of the stack's")
def _refused(bench: Bench) -> None:
    if bench.alone:
        raise Unchecked(bench.alone)
    reply = bench.soon(bench.begin("connect", on=bench.socket(), address=bench.stack, port=1, timeout=1.0))
    if "timeout" in reply:
        raise Unchecked("the stack does not answer")
    bench.no_fault(reply, "connect")
    bench.want("error" in reply, "no error", "-1 with error", "Replies")


@_check("send and recv carry octets; at the peer's end recv returns 0")
def _octets(bench: Bench) -> None:
    client, server, _ = bench.pair()
    rule = "send with payload, recv with size; at the peer's end they return 0 and no data"
    bench.want(bench.ok("send", on=client, payload="68656C6c6f")["returned"] == 5, "not 5 octets", rule, "The calls")
    reply = bench.ok("recv", on=server, size=2, timeout=bench.bound)
    bench.want((reply["returned"], _octets_of(reply)) == (2, b"he"), "other octets", rule, "The calls")
    reply = bench.ok("recv", on=server, timeout=bench.bound)
    bench.want((reply["returned"], _octets_of(reply)) == (3, b"llo"), "other octets", rule, "The calls")
    bench.ok("close", on=client)
    reply = bench.ok("recv", on=server, timeout=bench.bound)
    bench.want((reply["returned"], _octets_of(reply)) == (0, b""), "not the end", rule, "The calls")


@_check("MSG_PEEK leaves octets, MSG_DONTWAIT does not sleep")
def _flags(bench: Bench) -> None:
    client, server, _ = bench.pair()
    rule = "flags (names of recv(2))"
    bench.ok("send", on=client, payload="6162")
    for flags in (["MSG_PEEK"], []):
        reply = bench.ok("recv", on=server, flags=flags, timeout=bench.bound)
        bench.want(_octets_of(reply) == b"ab", "other octets", rule, "The calls")
    reply = bench.ask("recv", on=server, flags=["MSG_DONTWAIT"])
    bench.want(reply.get("error") == "EAGAIN", "no EAGAIN", rule, "The calls")


@_check("sendmsg and recvmsg carry octets, and recvmsg its flags")
def _messages(bench: Bench) -> None:
    client, server, _ = bench.pair()
    bench.want(bench.ok("sendmsg", on=client, payload="616263")["returned"] == 3, "not 3 octets", "a count", "Replies")
    reply = bench.ok("recvmsg", on=server, size=100, timeout=bench.bound)
    rule = '{"returned": 5, "data": "68656c6c6f", "msg_flags": []}'
    good = (reply["returned"], _octets_of(reply), reply.get("msg_flags")) == (3, b"abc", [])
    bench.want(good, "another reply", rule, "The calls")


@_check("a payload of 300,000 octets arrives whole")
def _big(bench: Bench) -> None:
    client, server, _ = bench.pair()
    payload = os.urandom(300_000 if "overlap" in bench.capabilities else 8_000)
    id = bench.begin(
        "send", on=client, payload=payload.hex(), timeout=4 * bench.bound, overlap="overlap" in bench.capabilities
    )
    got = b""
    while len(got) < len(payload):
        reply = bench.ok("recv", on=server, size=1 << 18, timeout=bench.bound)
        bench.want(reply["returned"] > 0, "an end too early", "the octets received", "Replies")
        bench.want(2 * reply["returned"] == len(reply["data"]), "data of another length", "a count for recv", "Replies")
        got += bytes.fromhex(reply["data"])
    bench.want(got == payload, "other octets than were sent", "the octets received", "Replies")
    reply = bench.agent.reply(id)
    if "blocked" in reply:
        reply = bench.agent.reply(id)
    bench.want(reply.get("returned") == len(payload), "another count", "a count for send", "Replies")


@_check("shutdown ends one direction")
def _shutdown(bench: Bench) -> None:
    client, server, _ = bench.pair()
    bench.ok("shutdown", on=client, how="wr")
    reply = bench.soon(bench.begin("recv", on=server, timeout=1.0))
    if "timeout" in reply:
        raise Unchecked("the stack sends no FIN for it")
    bench.want(reply.get("returned") == 0, "not the end", "shutdown with how", "The calls")
    reply = bench.ask("send", on=client, payload="00")
    bench.no_fault(reply, "send")
    if reply.get("error") == "EPIPE" and "sigpipe" in bench.capabilities:
        rule = "the signals that the call raised in its caller"
        bench.want(reply.get("signals") == ["SIGPIPE"], "no SIGPIPE", rule, "Replies")
        reply = bench.ask("send", on=client, payload="00", flags=["MSG_NOSIGNAL"])
        bench.want("signals" not in reply, "a signal in spite of MSG_NOSIGNAL", rule, "Replies")
    if "shutdown-read" in bench.capabilities:
        bench.no_fault(bench.claimed("shutdown-read", "shutdown", on=server, how="rd"), "shutdown")


@_check("set-nonblocking: calls do not sleep")
def _nonblocking(bench: Bench) -> None:
    _, server, _ = bench.pair()
    bench.ok("set-nonblocking", on=server, value=True)
    reply = bench.ask("recv", on=server)
    bench.want(reply.get("error") == "EAGAIN", "no EAGAIN", "set-nonblocking with value (O_NONBLOCK)", "The calls")
    bench.ok("set-nonblocking", on=server, value=False)
    if "overlap" in bench.capabilities:
        bench.blocked(bench.begin("recv", on=server, overlap=True))


@_check("poll waits for events, at most for its time-out")
def _poll(bench: Bench) -> None:
    client, server, _ = bench.pair()
    rule = "returns how many descriptors have any, 0 or 1, with those that hold as value"
    reply = bench.ok("poll", on=server, events=["in"], timeout=0)
    bench.want((reply["returned"], reply.get("value")) == (0, []), "an event", rule, "The calls")
    began = time.monotonic()
    reply = bench.ok("poll", on=server, events=["in"], timeout=0.3)
    took = time.monotonic() - began
    bench.want((reply["returned"], reply.get("value")) == (0, []), "an event", rule, "The calls")
    bench.want(0.25 <= took < 2, f"after {took:.2f} s", "at most for its timeout", "The calls")
    bench.ok("send", on=client, payload="00")
    reply = bench.ok("poll", on=server, events=["in"], timeout=bench.bound)
    bench.want((reply["returned"], reply.get("value")) == (1, ["in"]), "no event", rule, "The calls")


@_check("dup makes another descriptor of the same socket")
def _dup(bench: Bench) -> None:
    bench.need("dup")
    client, server, _ = bench.pair()
    bench.ok("dup", on=client, name="copy")
    bench.ok("close", on=client)
    bench.want(bench.ok("send", on="copy", payload="00")["returned"] == 1, "not sent", "dup", "The calls")
    bench.ok("close", on="copy")
    bench.want(bench.ok("recv", on=server, timeout=bench.bound)["returned"] == 1, "no octet", "dup", "The calls")


@_check("an urgent octet is sent and received")
def _urgent(bench: Bench) -> None:
    bench.need("urgent")
    client, server, _ = bench.pair()
    sent = bench.claimed("urgent", "send", on=client, payload="21", flags=["MSG_OOB"])
    bench.want(sent.get("returned") == 1, "not sent", "urgent is among the capabilities", "Hello")
    with contextlib.suppress(Unchecked):  # the least agent has no poll, nor recvmsg
        bench.ok("poll", on=server, events=["pri"], timeout=bench.bound / 2)
    end = time.monotonic() + bench.bound / 2
    do = "recvmsg"
    while True:
        try:
            reply = bench.ask(do, on=server, size=1, flags=["MSG_OOB"])
        except Unchecked:
            do = "recv"
            continue
        if "error" not in reply or reply["error"] in ("ENOSYS", "EOPNOTSUPP") or time.monotonic() > end:
            break
        time.sleep(0.02)
    bench.possible(reply, "urgent", f"{do} of MSG_OOB")
    bench.no_fault(reply, do)
    flags = ["MSG_OOB"] if do == "recvmsg" else None
    good = (_octets_of(reply), reply.get("msg_flags")) == (b"!", flags)
    bench.want(good, "another reply", '{"returned": 1, "data": "21", "msg_flags": ["MSG_OOB"]}', "The calls")


_VALUES: dict[str, Callable[[Any], bool]] = {
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "text": lambda value: isinstance(value, str),
    "hex": lambda value: isinstance(value, str) and re.fullmatch("([0-9A-Fa-f]{2})*", value) is not None,
    "errno": lambda value: value == 0 or (isinstance(value, str) and ERROR_NAME.fullmatch(value) is not None),
    "fields": lambda value: isinstance(value, dict) and isinstance(value.get("tcpi_state"), int),
}


@_check("socket options have the values that the document has for them")
def _options(bench: Bench) -> None:
    name = bench.socket()
    for option, shape in SOCKET_OPTIONS.items():
        reply = bench.ask("getsockopt", on=name, option=option)
        bench.no_fault(reply, f"getsockopt of {option}")
        if "error" in reply:
            continue
        value = reply.get("value")
        if isinstance(shape, dict):
            good = isinstance(value, dict) and set(value) == set(shape)
        else:
            good = _VALUES[shape](value)
        bench.want(good, f"{option} has {value!r}", f"{option}: {shape}", "Socket options")
    for option, value in {"SO_REUSEADDR": True, "SO_RCVTIMEO": {"sec": 1, "usec": 500000}, "TCP_NODELAY": True}.items():
        bench.no_fault(bench.ask("setsockopt", on=name, option=option, value=value), f"setsockopt of {option}")
    reply = bench.ask("setsockopt", on=name, option="SO_RCVTIMEO", value=3)
    bench.faulty(reply, "the request cannot be made: a value of the wrong shape")


@_check("options of the capabilities that are claimed")
def _claimed_options(bench: Bench) -> None:
    name = bench.socket()
    claimed = {
        "linger": ("SO_LINGER", {"onoff": True, "linger": 0}),
        "reuse-port": ("SO_REUSEPORT", True),
        "urgent": ("SO_OOBINLINE", True),
    }
    for capability, (option, value) in claimed.items():
        if capability in bench.capabilities:
            reply = bench.claimed(capability, "setsockopt", on=name, option=option, value=value)
            bench.want(reply.get("returned") == 0, f"no {option}", f"{capability} is a capability", "Hello")
    for capability, option, number in (("repair", "TCP_REPAIR", 1), ("fast-open", "TCP_FASTOPEN", 5)):
        if capability in bench.capabilities:
            reply = bench.claimed(capability, "setsockopt", on=bench.socket(), option=option, value=number)
            bench.no_fault(reply, f"setsockopt of {option}")
            lacking = reply.get("error") == "ENOPROTOOPT"
            bench.want(not lacking, f"no {option}", f"{capability} is a capability", "Hello")
    if "tcp-info" in bench.capabilities:
        reply = bench.claimed("tcp-info", "getsockopt", on=name, option="TCP_INFO")
        bench.want(reply.get("returned") == 0, "no TCP_INFO", "tcp-info is a capability", "Hello")


@_check("states are read out, in RFC 9293's spelling")
def _states(bench: Bench) -> None:
    bench.need("states")
    _, port = bench.listener()

    def state(port: int, peer: int) -> str | None:
        reply = bench.claimed("states", "state", port=port, peer=peer)
        bench.no_fault(reply, "state")
        value = reply.get("value")
        rule = "the state, in RFC 9293's spelling, or null where it cannot be seen"
        bench.want(value is None or value in STATES, f"{value!r} is no state", rule, section)
        return value

    section = "States and settings"
    rule = "0: the listener on P; CLOSED where there is none; null where it cannot be seen"
    bench.want(state(port, 0) in ("LISTEN", None), "not LISTEN", rule, section)
    bench.want(state(port, 9) in ("CLOSED", None), "not CLOSED", rule, section)
    client, _, accepted = bench.pair()
    peer = accepted["address"]["port"]
    served = bench.ok("getpeername", on=client)["address"]["port"]
    found = [state(one, other) for one, other in ((peer, served), (served, peer))]
    bench.want(set(found) <= {"ESTABLISHED", None}, f"{found}", "the state of the connection", section)


# Overlapping ---------------------------------------------------------------------------------------------------------
@_check("accept sleeps, says so once, and ends with the connection")
def _overlap_accept(bench: Bench) -> None:
    bench.need("overlap")
    bench.pair(overlap=True)


@_check("a call that sleeps holds up no other")
def _overlap_others(bench: Bench) -> None:
    bench.need("overlap")
    listener, _ = bench.listener()
    bench.blocked(bench.begin("accept", on=listener, name="never", overlap=True))
    bench.no_fault(bench.ask("socket", name="meanwhile"), "socket")
    bench.ask("close", on="meanwhile")


@_check("recv sleeps until octets come; two on one descriptor")
def _overlap_recv(bench: Bench) -> None:
    bench.need("overlap")
    client, server, _ = bench.pair()
    first, second = (bench.begin("recv", on=server, size=1, overlap=True) for _ in range(2))
    bench.blocked(first)
    bench.blocked(second)
    bench.agent.quiet()
    rule = "several calls may sleep at once, on one descriptor too"
    bench.want(bench.agent.unheard(first) and bench.agent.unheard(second), "a reply too early", rule, "Overlapping")
    bench.ok("send", on=client, payload="6162")
    data = {_octets_of(bench.end(id)) for id in (first, second)}
    bench.want(data == {b"a", b"b"}, "other octets", rule, "Overlapping")


@_check("a call that does not sleep never says blocked")
def _overlap_ready(bench: Bench) -> None:
    bench.need("overlap")
    client, server, _ = bench.pair()
    rule = "if the call does not sleep the reply comes without blocked"
    bench.ok("send", on=client, payload="61" * 20)
    # No more than have come: as many as are seen without being taken.
    here = bench.ok("recv", on=server, size=20, flags=["MSG_PEEK"], timeout=bench.bound)["returned"]
    bench.want(here > 0, "no octet", rule, "Overlapping")
    for _ in range(here):
        reply = bench.agent.reply(bench.begin("recv", on=server, size=1, overlap=True))
        bench.want("blocked" not in reply, "blocked", rule, "Overlapping")
        bench.no_fault(reply, "recv")


@_check("a sleeping poll ends with its event")
def _overlap_poll(bench: Bench) -> None:
    bench.need("overlap")
    client, server, _ = bench.pair()
    looked = bench.ask("poll", on=server, events=["in"], timeout=0)
    bench.no_fault(looked, "poll")
    id = bench.begin("poll", on=server, events=["in"], overlap=True)
    bench.blocked(id)
    bench.ok("send", on=client, payload="61")
    reply = bench.end(id)
    bench.want((reply["returned"], reply.get("value")) == (1, ["in"]), "another reply", "poll", "The calls")


# Processes -----------------------------------------------------------------------------------------------------------
@_check("fork: a child with its parent's descriptors, on the same channel")
def _fork(bench: Bench) -> None:
    bench.need("fork")
    client, server, _ = bench.pair()
    reply = bench.ok("fork", name="child")
    bench.want(reply["returned"] > 0, "no process id", "the child's process id for fork", "Replies")
    bench.ok("close", on=server)
    bench.want(
        bench.ok("send", on=server, by="child", payload="6869")["returned"] == 2, "not sent", "fork", "Processes"
    )
    bench.want(
        _octets_of(bench.ok("recv", on=client, timeout=bench.bound)) == b"hi", "other octets", "fork", "Processes"
    )
    reply = bench.agent.reply(bench.begin("exit", status=3, by="child"))
    bench.want(reply.get("returned") == 0, "another reply", "exit ends the process", "Processes")
    reply = bench.ok("recv", on=client, timeout=bench.bound)
    bench.want(reply["returned"] == 0, "not the end", "its descriptors are closed, not reset", "Processes")


@_check("kill ends a process, and the calls that it left")
def _kill(bench: Bench) -> None:
    bench.need("fork")
    bench.need("kill")
    listener, _ = bench.listener()
    bench.ok("fork", name="victim")
    sleeper = bench.begin("accept", on=listener, name="never", by="victim", overlap=True)
    bench.blocked(sleeper)
    reply = bench.claimed("kill", "kill", process="victim", **{"with": "SIGKILL"})
    bench.want(reply.get("returned") == 0, "another reply", "kill is replied when the process is gone", "Processes")
    reply = bench.agent.reply(sleeper)
    rule = 'calls that it had under way end in {"gone": true, "fault": "..."}'
    bench.want(reply.get("gone") is True and "fault" in reply, "another reply", rule, "Processes")
