"""The application's sockets: TCP hears of a close when the last descriptor goes, of a call that failed not at all."""

from __future__ import annotations

from typing import Any

import pytest
from fake_stack import ESTABLISHED, HANDSHAKE, LISTEN_STEPS, Driver, ModelStack, profile, run

from conform.case.vocabulary import CAPABILITIES

BLIND = profile(capabilities=frozenset(CAPABILITIES) - {"states"})
ESTABLISH = [HANDSHAKE[0], {"expect": {"flags": "SA", "seq": "ISS", "ack": "RCV.NXT"}}, HANDSHAKE[2]]


def call(do: str, **more: Any) -> dict[str, Any]:
    return {"call": {"do": do, **more}}


FORK = call("fork", **{"as": "child"})


class Tables(ModelStack):
    """Its application's descriptors are counted, as POSIX has it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.held: dict[tuple[str, str], object] = {}

    def call(self, request: dict[str, Any]) -> dict[str, Any] | None:
        do, by = request["do"], request["by"]
        on, name = request.get("on", ""), request.get("as", "")
        match do:
            case "socket":
                self.held[by, name] = object()
            case "dup":
                self.held[by, name] = self.held[by, on]
                if on in self.named:
                    self.named[name] = self.named[on]
                return {"returned": 0}
            case "fork":
                self.held |= {(name, n): file for (p, n), file in self.held.items() if p == by}
            case "close":
                file = self.held.pop((by, on))
                if file in self.held.values():
                    return {"returned": 0}
                return super().call(request | {"on": "listener" if on == "copy" else on})
            case "exit" | "kill":
                process = request.get("process", by)
                for holder, n in list(self.held):
                    if holder == process:
                        self.call({"do": "close", "by": process, "on": n})
                if do == "kill":
                    self.waiting = [w for w in self.waiting if w[1]["by"] != process]
                return {"returned": 0}
        reply = super().call(request)
        if do == "accept" and reply is not None:
            self.held[by, name] = object()
            tcb = self.named[name]
            reply = reply | {"address": {"address": "192.0.2.2", "port": tcb.tester_port}}
        return reply


def passes(driver: Driver) -> Driver:
    assert driver.verdict.outcome == "pass", driver.verdict
    assert driver.verdict.findings == ()
    return driver


OPEN = [{"send": {"conn": "c2", "flags": "S"}}, {"expect": {"conn": "c2", "flags": "SA", "ack": "RCV.NXT"}}]


@pytest.mark.parametrize(
    ("steps", "listening"),
    [
        ([call("close", on="listener")], False),
        ([call("dup", on="listener", **{"as": "copy"}), call("close", on="listener")], True),
        ([call("dup", on="listener", **{"as": "copy"}), call("close", on="copy")], True),
        (
            [
                call("dup", on="listener", **{"as": "copy"}),
                call("close", on="copy"),
                call("close", on="listener"),
            ],
            False,
        ),
        ([FORK, call("close", by="child", on="listener")], True),
        ([FORK, call("close", on="listener")], True),
        ([FORK, call("close", on="listener"), call("close", by="child", on="listener")], False),
        ([FORK, call("kill", process="child")], True),
        ([FORK, call("exit", by="child")], True),
        ([FORK, call("close", on="listener"), call("exit", by="child")], False),
        ([FORK, call("close", on="listener"), call("kill", process="child", **{"with": "SIGURG"})], True),
    ],
)
def test_a_listener_listens_until_its_last_descriptor_is_closed(steps: list[Any], listening: bool) -> None:
    class Ports(Tables):
        def call(self, request: dict[str, Any]) -> dict[str, Any] | None:
            return {"returned": 0} if request.get("with") == "SIGURG" else super().call(request)

    driver = run([*steps, *(OPEN if listening else [{"probe": "alive"}])], LISTEN_STEPS, Ports())
    passes(driver)
    assert driver.session.connections["c1"].states == {"LISTEN" if listening else "CLOSED"}


def test_another_listener_on_the_port_keeps_it() -> None:
    second = [
        call(do, **({"as": "other"} if do == "socket" else {"on": "other"})) for do in ("socket", "bind", "listen")
    ]
    driver = run([*second, call("close", on="other"), {"probe": "alive"}], LISTEN_STEPS, ModelStack())
    assert driver.session.connections["c1"].states == {"LISTEN"}


@pytest.mark.parametrize(
    ("steps", "closed"),
    [
        ([call("close")], True),
        ([FORK, call("close")], False),
        ([FORK, call("close"), call("close", by="child")], True),
        ([FORK, call("close"), call("kill", process="child")], True),
        ([FORK, call("kill", process="child"), call("close")], True),
        ([call("dup", **{"as": "twin"}), call("close")], False),
        ([call("dup", **{"as": "twin"}), call("close"), call("close", on="twin")], True),
    ],
)
def test_a_fin_is_possible_when_the_last_descriptor_is_closed(steps: list[Any], closed: bool) -> None:
    driver = run([*steps, *([{"expect": {"flags": "FA"}}] if closed else [])], ESTABLISHED, Tables(), of=BLIND)
    passes(driver)
    assert driver.session.connections["c1"].states == {"FIN-WAIT-1" if closed else "ESTABLISHED"}


def test_a_process_that_dies_aborts_what_does_not_linger() -> None:
    linger = call("setsockopt", option="SO_LINGER", value={"onoff": True, "linger": 0})
    stack = ModelStack(replies={"close": {"returned": 0}})
    driver = run([linger, FORK, call("close"), call("kill", process="child")], stack=stack, of=BLIND, liveness="port")
    assert driver.session.connections["c1"].states == {"ESTABLISHED", "CLOSED"}


def test_what_was_accepted_is_known_by_its_peer() -> None:
    steps = [
        *OPEN,
        {"send": {"conn": "c2", "flags": "A"}},
        call("accept", **{"as": "second"}),
        {"send": {"conn": "c2", "flags": "PA", "payload": "abc"}},
        {"expect": {"conn": "c2", "flags": "A", "ack": "RCV.NXT"}},
        call("recv", on="second", data="sent"),
        {"state": {"is": "ESTABLISHED", "conn": "second"}},
        call("close", on="second"),
        {"expect": {"conn": "c2", "flags": "FA"}},
        {"state": {"is": "FIN-WAIT-1", "conn": "c2"}},
        {"state": "ESTABLISHED"},
    ]
    passes(run(steps, stack=Tables()))


@pytest.mark.parametrize(("error", "state"), [("ENOTCONN", "ESTABLISHED"), ("EINTR", "FIN-WAIT-1")])
def test_a_shutdown_that_failed_makes_nothing_possible(error: str, state: str) -> None:
    stack = ModelStack(replies={"shutdown": {"error": error}})
    steps = [call("shutdown", how="wr", error=error), {"state": "FIN-WAIT-1"}]
    driver = run(steps, stack=stack, of=BLIND, state=lambda n, s: None)
    states = driver.session.connections["c1"].states
    assert states == {"ESTABLISHED"} | {state}
    if state == "ESTABLISHED":
        assert driver.verdict.outcome == "fail"
        assert driver.verdict.failure is not None
        assert driver.verdict.failure.summary == "the wire implies ESTABLISHED, want FIN-WAIT-1"


def test_a_shutdown_that_failed_takes_nothing_back_that_the_wire_has_shown() -> None:
    class Sends(ModelStack):
        def call(self, request: dict[str, Any]) -> dict[str, Any] | None:
            reply = super().call(request)
            return None if request["do"] == "shutdown" else reply

    driver = run(
        [
            {"start": {"do": "shutdown", "how": "wr", "as": "x"}},
            {"expect": {"flags": "FA"}},
        ],
        stack=Sends(),
        of=BLIND,
        liveness="port",
    )
    assert driver.session.connections["c1"].states == {"FIN-WAIT-1"}


def test_a_call_of_a_killed_process_is_nobodys() -> None:
    steps = [
        FORK,
        {"start": {"do": "recv", "by": "child", "as": "reading"}},
        {"blocked": "reading"},
        call("kill", process="child"),
        {"state": "ESTABLISHED"},
    ]
    passes(run(steps, stack=Tables()))
    left = run([*steps[:3], steps[4]], stack=Tables())
    assert left.verdict.outcome == "fail"


def test_what_a_killed_process_may_have_accepted_may_have_ended_with_it() -> None:
    steps = [{"start": {"do": "accept", "as": "second"}}, {"blocked": "second"}, *OPEN]
    steps += [{"send": {"conn": "c2", "flags": "A"}}, call("kill")]

    class Dies(Tables):
        def call(self, request: dict[str, Any]) -> dict[str, Any] | None:
            if request["do"] == "kill":
                for tcb in self.tcbs.values():
                    super().call({"do": "close", "by": "main", "on": "c1"}) if ("main", "c1") in self.held else None
                    if tcb.state == "ESTABLISHED":
                        self.named["it"] = tcb
                        self.held["main", "it"] = object()
                        super().call({"do": "close", "by": "main", "on": "it"})
                return {"returned": 0}
            return super().call(request)

    ends = [{"expect": {"conn": "c2", "flags": "FA"}}, {"expect": {"flags": "FA"}}]
    driver = run([*steps, {"any_order": ends}], stack=Dies(), of=BLIND, liveness="port")
    assert driver.verdict.outcome == "pass", driver.verdict
    assert driver.session.connections["c2"].states == {"FIN-WAIT-1"}


def test_the_state_of_a_listener_before_there_is_one() -> None:
    steps = [
        {"state": {"is": "CLOSED", "conn": "listener"}},
        *LISTEN_STEPS[:1],
        {"state": {"is": "CLOSED", "conn": "listener"}},
        *LISTEN_STEPS[1:],
        {"state": {"is": "LISTEN", "conn": "listener"}},
    ]
    driver = passes(run(steps, []))
    assert "listener" not in driver.session.connections


def test_a_call_on_what_is_closed_means_nothing() -> None:
    steps = [
        call("close"),
        {"expect": {"flags": "FA", "as": "fin"}},
        {"send": {"flags": "A", "ack": "fin.end"}},
        call("close", error="EBADF"),
        {"state": "FIN-WAIT-2"},
    ]

    class Closed(ModelStack):
        def call(self, request: dict[str, Any]) -> dict[str, Any] | None:
            if request["do"] == "close":
                self.replies["close"] = {"error": "EBADF"}
                self.named["c1"].state = "FIN-WAIT-1"
                self.send_data(self.named["c1"], b"", 17)
                return {"returned": 0}
            return super().call(request)

    class Once(Closed):
        def call(self, request: dict[str, Any]) -> dict[str, Any] | None:
            return {"error": "EBADF"} if "close" in self.replies and request["do"] == "close" else super().call(request)

    driver = passes(run(steps, stack=Once()))
    assert driver.session.connections["c1"].states == {"FIN-WAIT-2"}


def test_what_a_recv_throws_away_was_read() -> None:
    steps = [
        {"send": {"flags": "PA", "payload": "abcdef"}},
        {"expect": {"flags": "A", "ack": "RCV.NXT"}},
        call("recv", size=4, flags=["MSG_TRUNC"], returns=4),
        call("recv", size=4, data="sent"),
    ]

    class Truncates(ModelStack):
        def call(self, request: dict[str, Any]) -> dict[str, Any] | None:
            reply = super().call(request)
            if reply is not None and request.get("flags") == ["MSG_TRUNC"]:
                reply = {"returned": reply["returned"], "data": ""}
            return reply

    passes(run(steps, stack=Truncates()))
