"""Socket calls: the requests made of them, each part of an outcome right and wrong, and what they mean for the rest."""

# ruff: noqa: E501 - a table's rows stay on their lines
from __future__ import annotations

from typing import Any

import pytest
from fake_stack import LISTEN_STEPS, Driver, ModelStack, profile, run, trial

from conform.engine import events as ev
from conform.tcp.segment import FIN

DATA = {"send": {"flags": "PA", "payload": "abc"}}
ACKED = {"expect": {"flags": "A", "ack": "RCV.NXT"}}


def one(call: dict[str, Any], reply: dict[str, Any]) -> Driver:
    """A call whose reply is *reply*."""
    stack = ModelStack(replies={call["do"]: reply})
    return run([{"call": call}], stack=stack, liveness="port")


#: The call, a reply that fits, one that does not, what is said then.
OUTCOMES: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], str]] = [
    ("success", {"do": "recv"}, {"returned": 0, "data": ""}, {"error": "EPIPE"}, "recv on c1 failed with EPIPE"),
    ("error", {"do": "recv", "error": "EPIPE"}, {"error": "EPIPE"}, {"returned": 0}, "recv on c1 succeeded, want EPIPE"),
    ("another error", {"do": "recv", "error": ["EPIPE", "EIO"]}, {"error": "EIO"}, {"error": "EBADF"}, "recv on c1 failed with EBADF, want EPIPE or EIO"),
    ("no return", {"do": "recv"}, {"returned": 0}, {"timeout": True}, "recv on c1 did not return in time"),
    ("no return, though an error is wanted", {"do": "recv", "error": "EPIPE"}, {"error": "EPIPE"}, {"timeout": True}, "recv on c1 did not return in time"),
    ("fault", {"do": "exit"}, {"returned": 0}, {"fault": "no such call"}, "exit: the agent refuses: no such call"),
    ("returns", {"do": "send", "payload": "abc", "returns": 3}, {"returned": 3}, {"returned": 2}, "send on c1: it returned 2, want 3, short by 1"),
    ("returns at least", {"do": "send", "payload": "abc", "returns": ">= 3"}, {"returned": 4}, {"returned": 2}, "send on c1: it returned 2, want >= 3"),
    ("returns a variable", {"do": "send", "payload": "abc", "returns": "SND.MSS"}, {"returned": 1460}, {"returned": 1459}, "send on c1: it returned 1459, want SND.MSS = 1460, short by 1"),
    ("returns what is no expression", {"do": "send", "payload": "abc", "returns": "a b"}, {"returned": "a b"}, {"returned": 1}, "send on c1: it returned 1, want a b"),
    ("returns something", {"do": "send", "payload": "abc", "returns": 0}, {"returned": 0}, {}, "send on c1: it returned nothing, want 0"),
    ("returns zero", {"do": "recv", "returns": 0}, {"returned": 0, "data": ""}, {"returned": 1, "data": "61"}, "recv on c1: it returned 1, want 0, too far by 1"),
    ("data", {"do": "recv", "data": "abc"}, {"returned": 3, "data": "616263"}, {"returned": 3, "data": "616264"}, "recv on c1: the application read other octets than expected, from octet 2 on"),
    ("data's length", {"do": "recv", "data": "abc"}, {"returned": 3, "data": "616263"}, {"returned": 2, "data": "6162"}, "recv on c1: the application read 2 octets, want 3"),
    ("no data", {"do": "recv", "data": ""}, {"returned": 0, "data": ""}, {"returned": 1, "data": "61"}, "recv on c1: the application read 1 octets, want 0"),
    ("signal", {"do": "send", "payload": "x", "error": "EPIPE", "signal": "SIGPIPE"}, {"error": "EPIPE", "signals": ["SIGPIPE"]}, {"error": "EPIPE", "signals": []}, "send on c1 raised no SIGPIPE"),
    ("msg-flags", {"do": "recvmsg", "msg-flags": ["MSG_OOB", "MSG_TRUNC"]}, {"returned": 0, "msg_flags": ["MSG_TRUNC", "MSG_OOB"]}, {"returned": 0, "msg_flags": ["MSG_TRUNC"]}, "recvmsg on c1 returned the flags MSG_TRUNC, want MSG_OOB, MSG_TRUNC"),
    ("no msg-flags", {"do": "recvmsg", "msg-flags": []}, {"returned": 0, "msg_flags": []}, {"returned": 0, "msg_flags": ["MSG_OOB"]}, "recvmsg on c1 returned the flags MSG_OOB, want none"),
    ("an option", {"do": "getsockopt", "option": "SO_SNDBUF", "returns": 5}, {"value": 5}, {"value": 4}, "getsockopt on c1: it returned 4, want 5, short by 1"),
    ("a flag", {"do": "getsockopt", "option": "TCP_NODELAY", "returns": True}, {"value": True}, {"value": False}, "getsockopt on c1: it returned False, want True"),
    ("a text", {"do": "getsockopt", "option": "TCP_CONGESTION", "returns": "reno"}, {"value": "reno"}, {"value": "cubic"}, "getsockopt on c1: it returned cubic, want reno"),
    ("an error's name", {"do": "getsockopt", "option": "SO_ERROR", "returns": "ECONNRESET"}, {"value": "ECONNRESET"}, {"value": "EPIPE"}, "getsockopt on c1: it returned EPIPE, want ECONNRESET"),
    ("a field", {"do": "getsockopt", "option": "TCP_INFO", "returns": {"state": 1, "retransmits": "<= 2"}}, {"value": {"state": 1, "retransmits": 2, "more": 9}}, {"value": {"state": 1, "retransmits": 3}}, "getsockopt on c1: it returned retransmits 3, want <= 2"),
    ("a field that lacks", {"do": "getsockopt", "option": "TCP_INFO", "returns": {"state": 1}}, {"value": {"state": 1}}, {"value": {"other": 1}}, "getsockopt on c1: it returned no state"),
    ("fields at all", {"do": "getsockopt", "option": "SO_LINGER", "returns": {"onoff": True}}, {"value": {"onoff": True, "linger": 0}}, {"value": 1}, "getsockopt on c1: it returned 1, want {'onoff': True}"),
    ("an address", {"do": "getpeername", "returns": {"port": 40000}}, {"address": {"ip": "x", "port": 40000}}, {"address": {"ip": "x", "port": 40001}}, "getpeername on c1: it returned port 40001, want 40000"),
    ("events", {"do": "poll", "events": ["in", "out"], "returns": ["in", "hup"]}, {"returned": ["hup", "in"]}, {"returned": ["in"]}, "poll on c1: it returned ['in'], want ['in', 'hup']"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "good", "bad", "said"), [o[1:] for o in OUTCOMES], ids=[o[0] for o in OUTCOMES])
def test_outcome(call: dict[str, Any], good: dict[str, Any], bad: dict[str, Any], said: str) -> None:
    assert one(call, good).verdict.outcome == "pass"
    driver = one(call, bad)
    verdict = driver.verdict
    assert verdict.outcome == "fail"
    assert verdict.failure is not None
    assert verdict.failure.summary == said
    assert verdict.failure.entry is not None
    assert driver.session.transcript.entries[verdict.failure.entry]["reply"] == bad


@pytest.mark.parametrize(
    ("call", "reply", "expected", "actual"),
    [
        ({"do": "recv", "data": "abc", "returns": 3}, {"returned": 2, "data": "6162"}, "success, returns 3, data 'abc'", "success, data 'ab'"),
        ({"do": "recv", "data": "sent"}, {"returned": 2, "data": "6162"}, "success, data what was sent", "success, data 'ab'"),
        ({"do": "recv", "error": "EPIPE", "signal": "SIGPIPE"}, {"error": "EIO", "signals": ["SIGPIPE"]}, "EPIPE, SIGPIPE", "EIO, SIGPIPE"),
        ({"do": "recv"}, {"timeout": True}, "success", "no return in time"),
        ({"do": "recv"}, {"fault": "x"}, "success", "a fault: x"),
        ({"do": "getsockopt", "option": "SO_TYPE", "returns": 2}, {"value": 1}, "success, returns 2", "success, 1"),
        ({"do": "send", "payload": "x", "returns": 2}, {"returned": 1}, "success, returns 2", "success, 1"),
        ({"do": "send", "payload": "x", "returns": 2}, {}, "success, returns 2", "success"),
    ],
)  # fmt: skip
def test_what_a_failure_shows(call: dict[str, Any], reply: dict[str, Any], expected: str, actual: str) -> None:
    failure = one(call, reply).verdict.failure
    assert failure is not None
    assert (failure.expected, failure.actual) == (expected, actual)


def test_a_call_that_should_return_what_never_was() -> None:
    verdict = one({"do": "send", "payload": "x", "returns": "gone.seq"}, {"returned": 1}).verdict
    assert verdict.outcome == "inconclusive"
    assert "there is no value gone.seq" in verdict.reason


# What was sent is what is read ---------------------------------------------------------------------------------------
def read(size: int, data: Any, flags: Any = ()) -> dict[str, Any]:
    return {"call": {"do": "recv", "size": size, "data": data, "flags": list(flags)}}


def test_data_sent() -> None:
    steps = [DATA, ACKED, DATA, ACKED, read(4, "sent"), read(100, "sent")]
    assert run(steps).verdict.outcome == "pass"
    peeked = [DATA, ACKED, read(3, "sent", ["MSG_PEEK"]), read(3, "sent")]
    stack = ModelStack(replies={"recv": {"returned": 3, "data": "616263"}})
    assert run(peeked, stack=stack).verdict.outcome == "pass"
    twice = [DATA, ACKED, read(3, "sent"), read(3, "sent")]
    failure = run(twice, stack=ModelStack(replies={"recv": {"returned": 3, "data": "616263"}})).verdict.failure
    assert failure is not None
    assert failure.summary == "recv on c1: the application read 3 octets, want 0"


def test_what_arrived_out_of_order_is_read_in_order() -> None:
    steps = [
        {"send": {"flags": "A", "seq": "RCV.NXT + 3", "payload": "def"}},
        {"expect": {"ack": "RCV.NXT"}},
        {"send": {"flags": "A", "seq": "RCV.NXT", "payload": "abc"}},
        {"expect": {"ack": "RCV.NXT"}},
        read(100, "abcdef"),
    ]
    assert run(steps).verdict.outcome == "pass"


# Requests ------------------------------------------------------------------------------------------------------------
def request_of(call: dict[str, Any], **more: Any) -> dict[str, Any]:
    stack = ModelStack(more.get("ip", 4), replies={call["do"]: {"returned": 0}})
    return run([{"call": call}], [], stack, liveness="port", **more).requests[0]


@pytest.mark.parametrize(
    ("call", "fields"),
    [
        ({"do": "socket"}, {"do": "socket", "by": "main", "timeout": 0.5, "as": "listener"}),
        ({"do": "socket", "as": "c9", "by": "child", "timeout": "2s"}, {"as": "c9", "by": "child", "timeout": 2.0}),
        ({"do": "bind"}, {"on": "listener", "port": 80, "address": "0.0.0.0"}),
        ({"do": "bind", "on": "c9", "port": 81, "address": "stack"}, {"on": "c9", "port": 81, "address": "192.0.2.1"}),
        ({"do": "bind", "port": "any"}, {"port": 0}),
        ({"do": "listen", "backlog": 0}, {"on": "listener", "backlog": 0}),
        ({"do": "accept"}, {"on": "listener", "as": "c1"}),
        ({"do": "send", "payload": "abc", "flags": "MSG_OOB"}, {"on": "c1", "payload": "616263", "flags": ["MSG_OOB"]}),
        ({"do": "setsockopt", "option": "SO_LINGER", "value": {"onoff": True, "linger": 0}}, {"option": "SO_LINGER", "value": {"onoff": True, "linger": 0}}),
        ({"do": "kill", "process": "child"}, {"process": "child", "with": "SIGKILL"}),
        ({"do": "fork", "as": "child"}, {"as": "child"}),
        ({"do": "dup", "as": "c1b"}, {"on": "c1", "as": "c1b"}),
        ({"do": "poll", "events": ["in"], "returns": 0}, {"events": ["in"]}),
        ({"do": "set-nonblocking"}, {"value": True}),
        ({"do": "shutdown", "how": "rd"}, {"how": "rd"}),
    ],
)  # fmt: skip
def test_request(call: dict[str, Any], fields: dict[str, Any]) -> None:
    request = request_of(call)
    assert {key: request[key] for key in fields} == fields
    assert not {"returns", "error", "data", "signal", "msg_flags", "msg-flags", "conn"} & set(request)


def test_a_request_over_ipv6() -> None:
    assert request_of({"do": "bind"}, ip=6)["address"] == "::"
    assert request_of({"do": "bind", "address": "stack"}, ip=6)["address"] == "2001:db8::1"


@pytest.mark.parametrize(
    ("call", "conn"),
    [({"on": "c1"}, "c1"), ({"on": "c2"}, "c2"), ({"on": "s", "conn": "c2"}, "c2"), ({"on": "s"}, "c1")],
)
def test_connect_goes_to_the_testers_port_of_its_connection(call: dict[str, Any], conn: str) -> None:
    steps = [
        {"start": {"do": "connect", "as": "x", **call}},
        {"blocked": "x"},
        {"expect": {"conn": conn, "flags": "S"}},
    ]
    recipe: list[Any] = []
    driver = Driver(
        trial(steps, recipe, connections={"c1": {"port": 41000}, "c2": {"port": 42000}}, liveness="port")
    ).play()
    request = driver.requests[0]
    assert request["overlap"] is True
    assert (request["address"], request["port"]) == ("192.0.2.2", 41000 if conn == "c1" else 42000)
    assert driver.session.connections[conn].stack_port == 40000


def test_a_bound_port_is_known() -> None:
    recipe = [{"call": {"do": "socket", "as": "c1"}}, {"call": {"do": "bind", "on": "c1", "port": 555}}]
    steps = [{"start": {"do": "connect", "on": "c1", "as": "x"}}, {"expect": {"flags": "S"}}]
    driver = Driver(trial(steps, recipe, liveness="port"))
    driver.stack.replies = {"bind": {"error": "EADDRINUSE"}}
    assert driver.play().verdict.outcome == "inconclusive"
    driver = run(steps, recipe, liveness="port", stack=ModelStack())
    assert driver.session.connections["c1"].stack_port == 555


# What calls mean for the tracker -------------------------------------------------------------------------------------
def states_after(*calls: Any, recipe: list[Any] | None = None, **more: Any) -> set[str]:
    steps = [{"call": call} for call in calls]
    replies = {"close": {"returned": 0}, "shutdown": {"returned": 0}, "exit": {}, "kill": {}, "dup": {}, "fork": {}}
    driver = run([DATA, ACKED, *steps] if recipe is None else steps, recipe, ModelStack(replies=replies), **more)
    return set(driver.session.connections["c1"].states)


@pytest.mark.parametrize(
    ("calls", "states"),
    [
        ([{"do": "close"}], {"ESTABLISHED", "FIN-WAIT-1"}),
        ([{"do": "shutdown", "how": "wr"}], {"ESTABLISHED", "FIN-WAIT-1"}),
        ([{"do": "shutdown", "how": "rdwr"}], {"ESTABLISHED", "FIN-WAIT-1"}),
        ([{"do": "shutdown", "how": "rd"}], {"ESTABLISHED"}),
        ([{"do": "dup", "as": "twin"}, {"do": "close", "on": "twin"}], {"ESTABLISHED"}),
        ([{"do": "dup", "as": "twin"}, {"do": "shutdown", "how": "wr", "on": "twin"}], {"ESTABLISHED", "FIN-WAIT-1"}),
        ([{"do": "dup", "as": "twin"}, {"do": "close", "on": "twin"}, {"do": "close"}], {"ESTABLISHED", "FIN-WAIT-1"}),
        ([{"do": "close", "on": "stranger"}], {"ESTABLISHED"}),
        ([{"do": "dup", "on": "stranger", "as": "twin"}, {"do": "close", "on": "twin"}], {"ESTABLISHED"}),
        ([{"do": "exit"}], {"ESTABLISHED", "FIN-WAIT-1"}),
        ([{"do": "kill"}], {"ESTABLISHED", "FIN-WAIT-1"}),
    ],
)
def test_what_a_close_makes_possible(calls: list[Any], states: set[str]) -> None:
    assert states_after(*calls) == states


def test_a_listener_listens_and_stops() -> None:
    assert states_after({"do": "getsockopt", "option": "SO_TYPE"}, recipe=LISTEN_STEPS) == {"LISTEN"}
    assert states_after({"do": "close", "on": "listener"}, recipe=LISTEN_STEPS) == {"CLOSED"}
    others = states_after(
        {"do": "close", "on": "listener"}, recipe=LISTEN_STEPS, connections={"c1": {"stack-port": 81}}
    )
    assert others == {"CLOSED"}
    late = run([{"send": {"conn": "new", "flags": "S"}}, {"expect": {"conn": "new", "flags": "SA"}}], LISTEN_STEPS)
    assert set(late.session.connections["new"].states) == {"SYN-RECEIVED"}


def test_a_call_that_failed_means_nothing() -> None:
    recipe = [*LISTEN_STEPS[:2], {"call": {"do": "listen", "error": "EADDRINUSE"}}]
    driver = run([{"probe": "alive"}], recipe, ModelStack(replies={"listen": {"error": "EADDRINUSE"}}))
    assert driver.verdict.outcome == "pass"
    assert set(driver.session.connections["c1"].states) == {"CLOSED"}


def test_an_accepted_descriptor_is_of_its_connection() -> None:
    hello = [
        {"send": {"conn": "c2", "flags": "S"}},
        {"expect": {"conn": "c2", "flags": "SA"}},
        {"send": {"conn": "c2", "flags": "A"}},
    ]
    steps = [
        *hello,
        {"call": {"do": "accept", "as": "c2"}},
        {"call": {"do": "close", "on": "c2"}},
        {"expect": {"conn": "c2", "flags": "FA"}},
    ]
    driver = run(steps)
    assert driver.verdict.outcome == "pass"
    assert set(driver.session.connections["c2"].states) == {"FIN-WAIT-1"}
    assert set(driver.session.connections["c1"].states) == {"ESTABLISHED"}


def test_silence_is_settled_anew_after_a_call_that_can_send() -> None:
    def settles(call: dict[str, Any]) -> int:
        replies = {call["do"]: {"returned": 0, "value": 1}}
        driver = run(
            [{"state": "ESTABLISHED"}, {"call": call}, {"send": {"flags": "A"}}], stack=ModelStack(replies=replies)
        )
        return len([e for e in driver.session.transcript.entries if e.get("a") == "settle"])

    quiet = settles({"do": "getsockopt", "option": "SO_TYPE"})
    assert settles({"do": "setsockopt", "option": "TCP_CORK", "value": False}) == quiet + 1
    assert settles({"do": "shutdown", "how": "wr"}) == quiet + 1


def test_what_a_call_made_the_stack_send_must_be_expected() -> None:
    driver = run([{"call": "close"}, {"state": "FIN-WAIT-1"}, {"send": {"flags": "A"}}])
    assert driver.verdict.failure is not None
    assert driver.verdict.failure.summary.startswith("the stack sent FA seq=1001")
    assert driver.verdict.failure.step == "steps[0]"


def test_a_linger_reset() -> None:
    linger = {"call": {"do": "setsockopt", "option": "SO_LINGER", "value": {"onoff": True, "linger": 0}}}
    steps = [linger, {"call": "close"}, {"expect": {"flags": ["R", "RA"], "seq": "SND.NXT"}}, {"state": "CLOSED"}]
    assert run(steps).verdict.outcome == "pass"


def test_the_time_of_a_call_is_between_its_beginning_and_its_return() -> None:
    driver = Driver(trial([{"call": "close"}, {"expect": {"flags": "FA", "within": "100ms"}}]))
    original = driver._push

    def push(when: float, event: ev.Event) -> None:
        slow = isinstance(event, ev.Returned) and driver.requests[-1]["do"] == "close"
        original(when + (0.05 if slow else 0.0), event)

    driver._push = push  # type: ignore[method-assign]
    assert driver.play().verdict.outcome == "pass"


def test_a_connection_refused() -> None:
    recipe = [{"call": {"do": "socket", "as": "c1"}}]
    steps = [
        {"start": {"do": "connect", "as": "x"}},
        {"expect": {"flags": "S"}},
        {"send": {"flags": "RA"}},
        {"finish": {"x": {"error": "ECONNREFUSED"}}},
        {"state": "CLOSED"},
    ]
    driver = run(steps, recipe)
    assert driver.verdict.outcome == "pass"
    assert driver.verdict.findings == ()


def test_the_profile_round_trip() -> None:
    assert type(profile()).from_json(profile().to_json()) == profile()


def test_a_fin_by_close_after_the_peers() -> None:
    steps = [
        {"send": {"flags": "FA"}},
        {"expect": {"flags": "A", "ack": "RCV.NXT"}},
        {"call": {"do": "recv", "returns": 0, "data": "sent"}},
        {"call": "close"},
        {"expect": {"flags": "FA", "as": "fin"}},
        {"state": "LAST-ACK"},
        {"send": {"flags": "A"}},
        {"state": "CLOSED"},
    ]
    driver = run(steps)
    assert driver.verdict.outcome == "pass", driver.verdict
    assert driver.injected[-1].flags & FIN == 0
