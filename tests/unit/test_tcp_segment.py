"""Segments, and their form in the run file."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as s

from conform.tcp.segment import (
    ACK,
    CWR,
    FIN,
    SYN,
    IcmpError,
    IPFields,
    Option,
    Segment,
    flag_names,
    from_json,
    to_json,
)  # fmt: skip

U8, U16, U32 = s.integers(0, 0xFF), s.integers(0, 0xFFFF), s.integers(0, 0xFFFFFFFF)
OPTIONS = s.one_of(
    s.sampled_from([Option("nop"), Option("eol"), Option("sack-permitted")]),
    U16.map(lambda v: Option("mss", v)),
    U8.map(lambda v: Option("window-scale", v)),
    s.lists(s.tuples(U32, U32), max_size=4).map(lambda v: Option("sack", tuple(v))),
    s.tuples(U32, U32).map(lambda v: Option("ts", v)),
    s.binary(max_size=16).map(lambda v: Option("fast-open", v)),
    s.tuples(s.integers(0, 1), s.integers(0, 0x7FFF)).map(lambda v: Option("user-timeout", v)),
    s.binary(min_size=16, max_size=16).map(lambda v: Option("md5", v)),
    s.tuples(U8, s.binary(max_size=9)).map(lambda v: Option(f"kind-{v[0]}", v[1])),
)
IP = s.builds(
    IPFields, s.sampled_from([4, 6]), s.just("a"), s.just("b"), U8, s.integers(0, 63), s.integers(0, 3),
    s.none() | U16, s.booleans(), s.integers(0, 0xFFFFF), s.binary(max_size=40), s.none() | U16,
)  # fmt: skip
SEGMENTS = s.builds(
    Segment, IP, U16, U16, U32, U32, U8, U16, U16, s.lists(OPTIONS, max_size=5).map(tuple), s.binary(max_size=64),
    s.integers(0, 15), s.none() | s.integers(0, 15), s.none() | U16, s.none() | s.binary(max_size=40),
)  # fmt: skip
ERRORS = s.builds(IcmpError, IP, U8, U8, SEGMENTS, U32, U8, s.none() | U16)


@given(SEGMENTS | ERRORS)
def test_json_round_trip(packet: Segment | IcmpError) -> None:
    data = to_json(packet)
    assert from_json(json.loads(json.dumps(data))) == packet
    assert from_json(data) == packet


def test_defaults_are_left_out() -> None:
    data = to_json(Segment(IPFields(4, "a", "b"), 1, 2, flags=SYN))
    assert data == {
        "ip": {"version": 4, "src": "a", "dst": "b"}, "sport": 1, "dport": 2, "flags": "S", "seq": 0, "ack": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [{"flags": "XQ"}, {"ip": {"version": 4}}, {"options": [["mss"]]}, {"payload": "zz"}, {"unheard": 1}],
)
def test_what_is_no_packet_is_refused(change: dict[str, Any]) -> None:
    data = to_json(Segment(IPFields(4, "a", "b"), 1, 2)) | change
    with pytest.raises((KeyError, TypeError, ValueError)):
        from_json(data)


def test_length_counts_syn_and_fin() -> None:
    ip = IPFields(4, "a", "b")
    assert Segment(ip, 1, 2, payload=b"abc").length == 3
    assert Segment(ip, 1, 2, flags=SYN | FIN, payload=b"abc").length == 5


def test_words() -> None:
    ip = IPFields(4, "a", "b")
    segment = Segment(ip, 1, 2, 7, 9, ACK | CWR, payload=b"abc")
    assert str(segment) == "AC seq=7 ack=9 len=3"
    assert str(Segment(ip, 1, 2, 7)) == "none seq=7"
    assert flag_names(0xFF) == "SFRPAUEC"
    assert str(IcmpError(ip, 3, 1, segment)) == "ICMP type 3 code 1 quoting AC seq=7 ack=9 len=3"
    assert segment.option("mss") is None
