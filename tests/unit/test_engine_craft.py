"""What the tester sends: what a case says of it, and what comes from the connection where it says nothing."""

from __future__ import annotations

from typing import Any

import pytest
from fake_stack import LISTEN_STEPS, Driver, ModelStack, profile, run, trial

from conform.engine.craft import ICMP_TYPES, TIMESTAMP_BASE
from conform.tcp.segment import ACK, FIN, PSH, SYN, IcmpError, IPFields, Option, Segment

HERE = {"c1": {"isn": 500, "port": 40000, "window": 1234}}


def sent(spec: dict[str, Any], before: list[Any] | None = None, **more: Any) -> Any:
    """What goes out for *spec* in ESTABLISHED, after *before*."""
    driver = run([*(before or []), {"send": spec}], liveness="port", connections=HERE, **more)
    index = 2 + len([step for step in before or [] if "send" in step])
    return driver.injected[index]


def test_what_is_unsaid_comes_from_the_connection() -> None:
    assert sent({"flags": "A"}) == Segment(
        IPFields(4, "192.0.2.2", "192.0.2.1"), 40000, 80, seq=501, ack=1001, flags=ACK, window=1234
    )
    assert sent({"flags": "F"}).ack == 0


def test_sequence_numbers_follow_what_was_sent() -> None:
    data = {"send": {"flags": "PA", "payload": "abc"}}
    acked = {"expect": {"flags": "A"}}
    assert sent({"flags": "FA"}, [data, acked]).seq == 504
    assert sent({"flags": "A"}, [{"send": {"flags": "A", "seq": "RCV.NXT + 100", "payload": "abc"}}, acked]).seq == 501
    assert sent({"flags": "A"}, [{"send": {"flags": "S"}}, acked]).seq == 501


@pytest.mark.parametrize(
    ("spec", "fields"),
    [
        ({"flags": "FPA"}, {"flags": FIN | PSH | ACK}),
        ({"flags": "none"}, {"flags": 0}),
        ({"flags": "A", "seq": 7}, {"seq": 507}),
        ({"flags": "A", "seq": "RCV.NXT - 1"}, {"seq": 500}),
        ({"flags": "A", "seq": "absolute(7)"}, {"seq": 7}),
        ({"flags": "A", "seq": "absolute(-1)"}, {"seq": 0xFFFFFFFF}),
        ({"flags": "A", "ack": 7}, {"ack": 1007}),
        ({"flags": "A", "ack": "SND.NXT + 1"}, {"ack": 1002}),
        ({"flags": "A", "window": 0}, {"window": 0}),
        ({"flags": "UA", "urgent": "1 + 2"}, {"urgent": 3}),
        ({"flags": "A", "payload": {"hex": "00ff"}}, {"payload": b"\0\xff"}),
        ({"flags": "A", "ports": {"tester": 1}}, {"sport": 1, "dport": 80}),
        ({"flags": "A", "ports": {"stack": 1}}, {"sport": 40000, "dport": 1}),
        ({"flags": "A", "bad": {"checksum": 9}}, {"checksum": 9}),
        ({"flags": "A", "bad": {"data-offset": 4}}, {"data_offset": 4}),
        ({"flags": "A", "bad": {"reserved": 7}}, {"reserved": 7}),
        ({"flags": "A", "bad": {"raw-options": "0204"}}, {"raw_options": b"\2\4"}),
        ({"flags": "A", "options": "none"}, {"options": ()}),
    ],
)
def test_field(spec: dict[str, Any], fields: dict[str, Any]) -> None:
    segment = sent(spec)
    assert {name: getattr(segment, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("spec", "fields"),
    [
        ({"ttl": 1, "dscp": 5, "ecn": "ce"}, {"ttl": 1, "dscp": 5, "ecn": 3}),
        ({"ident": 0, "df": False, "checksum": 1}, {"ident": 0, "df": False, "checksum": 1}),
        ({"options": "01010101", "src": "192.0.2.9"}, {"options": b"\1\1\1\1", "src": "192.0.2.9"}),
        ({"ecn": "not-ect", "dst": "192.0.2.8"}, {"ecn": 0, "dst": "192.0.2.8"}),
    ],
)
def test_ip(spec: dict[str, Any], fields: dict[str, Any]) -> None:
    ip = sent({"flags": "A", "ip": spec}).ip
    assert {name: getattr(ip, name) for name in fields} == fields


def test_options_in_the_order_in_which_they_are_written() -> None:
    some: dict[str, Any] = {
        "ts": {"val": "1 + 1", "ecr": 3}, "nop": 2, "mss": 536, "window-scale": 2, "sack-permitted": True,
        "sack": [[1, "SND.NXT"]],
    }  # fmt: skip
    others: dict[str, Any] = {
        "fast-open": "aabb", "user-timeout": {"timeout": 5, "unit": "minutes"}, "md5": "00",
        "unknown": [{"kind": 253, "data": "01"}, {"kind": 254}], "eol": True,
    }  # fmt: skip
    assert sent({"flags": "A", "options": some}).options == (
        Option("ts", (2, 3)), Option("nop"), Option("nop"), Option("mss", 536), Option("window-scale", 2),
        Option("sack-permitted"), Option("sack", ((1001, 1001),)),
    )  # fmt: skip
    assert sent({"flags": "A", "options": others}).options == (
        Option("fast-open", b"\xaa\xbb"), Option("user-timeout", (1, 5)), Option("md5", b"\0"),
        Option("kind-253", b"\1"), Option("kind-254", b""), Option("eol"),
    )  # fmt: skip
    assert sent({"flags": "A", "options": dict(reversed(others.items()))}).options[0] == Option("eol")


def test_timestamps_once_they_are_agreed() -> None:
    ts = {"options": {"ts": {"val": 5, "ecr": 0}}}
    recipe = [
        *LISTEN_STEPS,
        {"send": {"flags": "S", **ts}},
        {"expect": {"flags": "SA"}},
        {"send": {"flags": "A"}},
    ]
    stack = ModelStack(syn_options=(Option("ts", (700, 5)),))
    steps = [{"silence": "1s"}, {"send": {"flags": "A"}}, {"send": {"flags": "R", "seq": "RCV.NXT + 1"}}]
    driver = run(steps, recipe, stack, liveness="port")
    first, later, reset = driver.injected[1:4]
    assert first.options == (Option("ts", (TIMESTAMP_BASE, 700)),)
    assert later.options == (Option("ts", (TIMESTAMP_BASE + 1000, 700)),)
    assert reset.options == (Option("ts", (TIMESTAMP_BASE + 1000, 0)),)
    plain = run([{"send": {"flags": "A"}}], liveness="port")
    assert plain.injected[2].options == ()


def test_once_more() -> None:
    before = [{"send": {"flags": "PA", "payload": "abc", "as": "x"}}, {"expect": {"flags": "A"}}]
    again = sent({"again": "x"}, before)
    assert (again.seq, again.payload, again.flags) == (501, b"abc", PSH | ACK)
    again = sent({"again": "x", "flags": "FA", "payload": "de", "ports": {"tester": 9}}, before)
    assert (again.seq, again.payload, again.flags, again.sport) == (501, b"de", FIN | ACK, 9)
    of_stack = sent({"again": "syn"}, [{"send": {"flags": "A", "as": "syn"}}])
    assert of_stack.flags == ACK


def test_the_tester_s_clock_is_not_behind_what_the_case_sent() -> None:
    """Else PAWS, RFC 7323 section 5, would refuse all that comes after."""
    ahead = TIMESTAMP_BASE + 50_000
    ts = {"options": {"ts": {"val": ahead, "ecr": 0}}}
    recipe = [
        *LISTEN_STEPS,
        {"send": {"flags": "S", **ts}},
        {"expect": {"flags": "SA"}},
    ]
    stack = ModelStack(syn_options=(Option("ts", (700, ahead)),))
    driver = run([{"send": {"flags": "A"}}, {"state": "ESTABLISHED"}], recipe, stack, liveness="port")
    assert driver.injected[1].options == (Option("ts", (ahead, 700)),)


# What does not reach the stack's connection does not move its variables -----------------------------------------------
@pytest.mark.parametrize(
    "spec",
    [
        {"ports": {"tester": 9}},
        {"ports": {"stack": 9}},
        {"ip": {"src": "192.0.2.77"}},
        {"ip": {"dst": "192.0.2.77"}},
        {"ip": {"checksum": 1}},
        {"bad": {"checksum": 1}},
        {"bad": {"data-offset": 2}},
    ],
)
def test_astray(spec: dict[str, Any]) -> None:
    driver = Driver(trial([{"send": {"flags": "PA", "payload": "abc", **spec}}], connections=HERE))
    driver.stack.receive, received = lambda seg: original(seg) if seg.payload == b"" else None, []  # type: ignore[method-assign]
    original = type(driver.stack).receive.__get__(driver.stack)
    driver.play()
    assert not received
    assert driver.session.connections["c1"].rcv_nxt == 501


# ICMP ----------------------------------------------------------------------------------------------------------------
SEEN = [{"call": {"do": "send", "payload": 3}}, {"expect": {"length": 3, "as": "data"}}]


def icmp(spec: dict[str, Any], **more: Any) -> IcmpError:
    driver = run([*SEEN, {"send": {"icmp": {"quotes": "data", **spec}, **more}}, {"silence": "now"}], connections=HERE)
    error = driver.injected[2]
    assert isinstance(error, IcmpError)
    return error


def test_icmp() -> None:
    error = icmp({"type": "host-unreachable"})
    assert (error.type, error.code, error.quotes.seq, error.quotes.payload) == (3, 1, 1001, b"abc")
    assert error.ip == IPFields(4, "192.0.2.2", "192.0.2.1")
    error = icmp({"type": "fragmentation-needed", "mtu": 576, "quoted-length": 8, "code": 9})
    assert (error.type, error.code, error.mtu, error.quoted_length) == (3, 9, 576, 8)
    error = icmp({"type": 12, "pointer": 3})
    assert (error.type, error.code, error.pointer) == (12, 0, 3)
    assert icmp({"type": 12, "code": 2}).code == 2
    assert icmp({"type": "source-quench", "seq": "SND.NXT + 5"}).quotes.seq == 1009
    assert icmp({"type": "source-quench", "seq": 5}).quotes.seq == 1005
    assert icmp({"type": "time-exceeded"}, ip={"ttl": 3}).ip.ttl == 3


def test_what_an_ip_version_does_not_have_is_the_cases_fault() -> None:
    steps = [*SEEN, {"send": {"icmp": {"type": "source-quench", "quotes": "data"}}}]
    driver = run(steps, stack=ModelStack(6), ip=6)
    assert driver.verdict.outcome == "error"
    assert driver.verdict.reason == "steps[2]: IPv6 has no ICMP error source-quench"


def test_every_name_of_an_icmp_error_is_known() -> None:
    from conform.case import model

    assert set(ICMP_TYPES) == set(model.IcmpName.__args__)  # type: ignore[attr-defined]


def test_nothing_quoted() -> None:
    steps = [
        {"send": {"flags": "A"}},
        {"optional": [{"expect": {"flags": "FA", "as": "fin"}}]},
        {"send": {"icmp": {"type": 3, "quotes": "fin"}}},
    ]
    verdict = run(steps).verdict
    assert verdict.outcome == "inconclusive"
    assert verdict.reason == "steps[2]: there is no segment 'fin': the way that keeps it was not taken"


def test_before_any_syn_there_is_nothing_to_acknowledge() -> None:
    driver = run([{"send": {"flags": "A", "ack": 77}}, {"expect": {"flags": "R", "seq": 77}}], [], stack=ModelStack())
    assert driver.injected[0].ack == 77
    assert driver.verdict.outcome == "pass"
    driver = run([{"send": {"flags": "SA"}}, {"expect": {"flags": "R", "seq": 0}}], [], stack=ModelStack())
    assert driver.injected[0].flags == SYN | ACK
    assert driver.verdict.outcome == "pass"
    assert profile().port == driver.injected[0].dport
