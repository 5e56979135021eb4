"""Each kind of field of an expectation: shown to fit what is right, and to fail on what is off by one, in words."""

# ruff: noqa: E501 - a table's rows stay on their lines
from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fake_stack import ADDRESSES

from conform.case.expr import parse_match
from conform.case.model import ExpectSpec
from conform.engine.matcher import Environment, FieldMatcher, describe, match_segment, preview
from conform.tcp.segment import ACK, CWR, ECE, FIN, PSH, RST, SYN, URG, IPFields, Option, Segment
from conform.tcp.tracker import Connection

IP4 = IPFields(4, *ADDRESSES[4], ttl=64, dscp=10, ecn=2, ident=77, df=True)
IP6 = IPFields(6, *ADDRESSES[6], flow=0x12345)
ISS, IRS = 5000, 1000


def connection(**changes: Any) -> Connection:
    made = Connection("c1", 4, 40000, 80, IRS)
    made.iss, made.rcv_nxt, made.snd_nxt, made.snd_una, made.right_edge = ISS, IRS + 10, ISS + 20, ISS + 20, IRS + 510
    made.received = bytearray(9)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def segment(**changes: Any) -> Segment:
    fields: dict[str, Any] = {"ip": IP4, "sport": 80, "dport": 40000, "seq": ISS + 20, "ack": IRS + 10, "flags": ACK}
    return Segment(**(fields | changes))


def matched(
    spec: dict[str, Any], seg: Segment, again: Segment | None = None, of: Connection | None = None
) -> FieldMatcher:
    values = {"fin.seq": ISS + 20, "t0": 700, "small": 3}
    made = of or connection()

    def resolve(name: str, about: Connection) -> float:
        return values[name] if name in values else about.variable(name)

    return match_segment(ExpectSpec.model_validate(spec), seg, Environment(made, resolve), again)


def words(found: FieldMatcher) -> list[str]:
    return [mismatch.words for mismatch in found.mismatches]


MSS, WS, TS = Option("mss", 1460), Option("window-scale", 7), Option("ts", (700, 800))
SACK = Option("sack", ((IRS + 20, IRS + 30), (IRS + 40, IRS + 50)))
COOKIE, TIMEOUT, DIGEST, KIND = (
    Option("fast-open", b"12345678"),
    Option("user-timeout", (0, 30)),
    Option("md5", b"x" * 16),
    Option("kind-99", b"\1"),
)
PADS = (Option("nop"), Option("eol"))


def with_options(*options: Option) -> Segment:
    return segment(options=options)


#: What is expected; a segment that fits; one that is off by one; what the failure says.
FIELDS: list[tuple[str, dict[str, Any], Segment, Segment, str]] = [
    # Flags: each bit
    ("S", {"flags": "S"}, segment(flags=SYN), segment(flags=SYN | ACK), "flags SA, want S (A too many)"),
    ("F", {"flags": "FA"}, segment(flags=FIN | ACK), segment(flags=ACK), "flags A, want FA (F missing)"),
    ("R", {"flags": "R"}, segment(flags=RST), segment(flags=RST | ACK), "flags RA, want R (A too many)"),
    ("A", {"flags": "RA"}, segment(flags=RST | ACK), segment(flags=RST), "flags R, want RA (A missing)"),
    ("U", {"flags": "UA"}, segment(flags=URG | ACK), segment(flags=ACK), "flags A, want UA (U missing)"),
    ("P", {"flags": "PA"}, segment(flags=PSH | ACK), segment(flags=ACK), "flags A, want PA (P missing)"),
    ("E", {"flags": "SAE"}, segment(flags=SYN | ACK | ECE), segment(flags=SYN | ACK), "flags SA, want SAE (E missing)"),
    ("C", {"flags": "AC"}, segment(flags=ACK | CWR), segment(flags=ACK), "flags A, want AC (C missing)"),
    ("no F", {"flags": "A"}, segment(flags=ACK), segment(flags=ACK | FIN), "flags FA, want A (F too many)"),
    ("no U", {"flags": "A"}, segment(flags=ACK | PSH), segment(flags=ACK | URG), "flags AU, want A (U too many)"),
    ("-P", {"flags": "A-P"}, segment(flags=ACK), segment(flags=ACK | PSH), "flags PA, want A-P (P too many)"),
    ("-E", {"flags": "A-E"}, segment(flags=ACK), segment(flags=ACK | ECE), "flags AE, want A-E (E too many)"),
    ("-C", {"flags": "A-EC"}, segment(flags=ACK), segment(flags=ACK | CWR), "flags AC, want A-EC (C too many)"),
    ("none", {"flags": "none"}, segment(flags=0), segment(flags=ACK), "flags A, want none (A too many)"),
    ("choice", {"flags": ["R", "RA"]}, segment(flags=RST | ACK), segment(flags=ACK), "flags A, want R or RA"),
    # Numbers
    ("seq", {"seq": "SND.NXT"}, segment(), segment(seq=ISS + 19), "seq ISS+19, want SND.NXT = ISS+20, short by 1"),
    ("seq too far", {"seq": "SND.NXT"}, segment(), segment(seq=ISS + 21), "seq ISS+21, want SND.NXT = ISS+20, too far by 1: an octet counted that was not sent"),
    ("seq from the ISN", {"seq": 20}, segment(), segment(seq=ISS + 21), "seq ISS+21, want 20 = ISS+20, too far by 1: an octet counted that was not sent"),
    ("seq before the ISN", {"seq": "ISS"}, segment(seq=ISS), segment(seq=ISS - 1), "seq ISS-1, want ISS = ISS+0, short by 1"),
    ("seq of a snapshot", {"seq": "fin.seq"}, segment(), segment(seq=ISS), "seq ISS+0, want fin.seq = ISS+20, short by 20"),
    ("ack", {"ack": "RCV.NXT"}, segment(), segment(ack=IRS + 11), "ack IRS+11, want RCV.NXT = IRS+10, too far by 1: one octet acknowledged that was not sent"),
    ("ack not", {"ack": "not RCV.NXT"}, segment(ack=IRS + 9), segment(), "ack IRS+10, want not RCV.NXT = IRS+10"),
    ("ack range", {"ack": "RCV.NXT - 1..RCV.NXT"}, segment(), segment(ack=IRS + 8), "ack IRS+8, want RCV.NXT - 1..RCV.NXT = IRS+9..IRS+10"),
    ("ack below", {"ack": "< RCV.NXT"}, segment(ack=IRS + 9), segment(), "ack IRS+10, want < RCV.NXT = IRS+10"),
    ("ack at most", {"ack": "<= RCV.NXT"}, segment(), segment(ack=IRS + 11), "ack IRS+11, want <= RCV.NXT = IRS+10"),
    ("ack above", {"ack": "> RCV.NXT"}, segment(ack=IRS + 11), segment(), "ack IRS+10, want > RCV.NXT = IRS+10"),
    ("ack at least", {"ack": ">= RCV.NXT"}, segment(), segment(ack=IRS + 9), "ack IRS+9, want >= RCV.NXT = IRS+10"),
    ("ack ==", {"ack": "== RCV.NXT"}, segment(), segment(ack=IRS + 8), "ack IRS+8, want == RCV.NXT = IRS+10, short by 2"),
    ("window", {"window": 500}, segment(window=500), segment(window=501), "window 501, want 500, too far by 1"),
    ("window of a variable", {"window": "RCV.WND"}, segment(window=500), segment(window=499), "window 499, want RCV.WND = 500, short by 1"),
    ("window below", {"window": "< 500"}, segment(window=499), segment(window=500), "window 500, want < 500"),
    ("window above", {"window": "> 500"}, segment(window=501), segment(window=500), "window 500, want > 500"),
    ("window at most", {"window": "<= 500"}, segment(window=500), segment(window=501), "window 501, want <= 500"),
    ("window at least", {"window": ">= 500"}, segment(window=500), segment(window=499), "window 499, want >= 500"),
    ("window not", {"window": "not 0"}, segment(window=1), segment(window=0), "window 0, want not 0"),
    ("window range", {"window": "1..5"}, segment(window=5), segment(window=6), "window 6, want 1..5"),
    ("window of half", {"window": "RCV.WND / 2"}, segment(window=250), segment(window=251), "window 251, want RCV.WND / 2 = 250, too far by 1"),
    ("urgent", {"urgent": 3}, segment(urgent=3), segment(urgent=2), "urgent 2, want 3, short by 1"),
    ("length", {"length": 3}, segment(payload=b"abc"), segment(payload=b"abcd"), "length 4, want 3, too far by 1"),
    ("length of a name", {"length": "small"}, segment(payload=b"abc"), segment(payload=b"ab"), "length 2, want small = 3, short by 1"),
    ("reserved", {"reserved": 0}, segment(), segment(reserved=1), "reserved 1, want 0, too far by 1"),
    # Payload
    ("payload", {"payload": "abc"}, segment(payload=b"abc"), segment(payload=b"abd"), "payload differs from octet 2 on: b'd', want b'c'"),
    ("payload's length", {"payload": 3}, segment(payload=b"abc"), segment(payload=b"abca"), "payload of 4 octets, want 3"),
    # Options
    ("mss", {"options": {"mss": 1460}}, with_options(MSS), with_options(Option("mss", 1461)), "option mss 1461, want 1460, too far by 1"),
    ("mss is there", {"options": {"mss": "any"}}, with_options(MSS), segment(), "option mss absent, want any"),
    ("mss is not there", {"options": {"mss": "absent"}}, segment(), with_options(MSS), "option mss 1460, want absent"),
    ("mss named", {"options": {"mss": 1460}}, with_options(MSS), segment(), "option mss absent, want 1460"),
    ("window-scale", {"options": {"window-scale": 7}}, with_options(WS), with_options(Option("window-scale", 6)), "option window-scale 6, want 7, short by 1"),
    ("sack-permitted", {"options": {"sack-permitted": True}}, with_options(Option("sack-permitted")), segment(), "option sack-permitted absent, want present"),
    ("no sack-permitted", {"options": {"sack-permitted": False}}, segment(), with_options(Option("sack-permitted")), "option sack-permitted present, want absent"),
    ("sack", {"options": {"sack": [[20, 30], [40, 50]]}}, with_options(SACK), with_options(Option("sack", ((IRS + 20, IRS + 31), (IRS + 40, IRS + 50)))), "option sack ((1020, 1031), (1040, 1050)), want ((1020, 1030), (1040, 1050))"),
    ("sack: number of blocks", {"options": {"sack": [["RCV.NXT + 10", 30]]}}, with_options(Option("sack", ((IRS + 20, IRS + 30),))), with_options(SACK), "option sack ((1020, 1030), (1040, 1050)), want ((1020, 1030),)"),
    ("sack is there", {"options": {"sack": "any"}}, with_options(SACK), segment(), "option sack absent, want present"),
    ("sack blocks are there", {"options": {"sack": [[20, 30], [40, 50]]}}, with_options(SACK), segment(), "option sack absent, want blocks"),
    ("sack is not there", {"options": {"sack": "absent"}}, segment(), with_options(SACK), "option sack ((1020, 1030), (1040, 1050)), want absent"),
    ("ts val", {"options": {"ts": {"val": "t0"}}}, with_options(TS), with_options(Option("ts", (701, 800))), "TSval 701, want t0 = 700, too far by 1"),
    ("ts ecr", {"options": {"ts": {"ecr": 800}}}, with_options(TS), with_options(Option("ts", (700, 799))), "TSecr 799, want 800, short by 1"),
    ("ts ecr, wrapped", {"options": {"ts": {"ecr": "> 0xfffffff0"}}}, with_options(Option("ts", (0, 5))), with_options(Option("ts", (0, 0xFFFFFFF0))), "TSecr 4294967280, want > 0xfffffff0"),
    ("ts with values", {"options": {"ts": {"val": "any"}}}, with_options(TS), segment(), "option ts absent, want present"),
    ("ts is there", {"options": {"ts": "any"}}, with_options(TS), segment(), "option ts absent, want present"),
    ("ts is not there", {"options": {"ts": "absent"}}, segment(), with_options(TS), "option ts (700, 800), want absent"),
    ("fast-open", {"options": {"fast-open": "3132333435363738"}}, with_options(COOKIE), with_options(Option("fast-open", b"12345679")), "option fast-open b'12345679', want b'12345678'"),
    ("fast-open is there", {"options": {"fast-open": "any"}}, with_options(COOKIE), segment(), "option fast-open absent, want present"),
    ("fast-open is not there", {"options": {"fast-open": "absent"}}, segment(), with_options(COOKIE), "option fast-open b'12345678', want absent"),
    ("user-timeout", {"options": {"user-timeout": {"timeout": 30}}}, with_options(TIMEOUT), with_options(Option("user-timeout", (0, 31))), "option user-timeout (0, 31), want (0, 30)"),
    ("user-timeout's unit", {"options": {"user-timeout": {"timeout": 30}}}, with_options(TIMEOUT), with_options(Option("user-timeout", (1, 30))), "option user-timeout (1, 30), want (0, 30)"),
    ("user-timeout is there", {"options": {"user-timeout": "any"}}, with_options(TIMEOUT), segment(), "option user-timeout absent, want present"),
    ("md5 is there", {"options": {"md5": "any"}}, with_options(DIGEST), segment(), "option md5 absent, want present"),
    ("md5 is not there", {"options": {"md5": "absent"}}, segment(), with_options(DIGEST), f"option md5 {b'x' * 16}, want absent"),
    ("unknown", {"options": {"unknown": [{"kind": 99, "data": "01"}]}}, with_options(KIND), with_options(Option("kind-99", b"\2")), "option kind-99 02, want 01"),
    ("unknown is there", {"options": {"unknown": [{"kind": 99}]}}, with_options(Option("kind-99", b"")), segment(), "option kind-99 absent, want empty"),
    ("only", {"options": {"mss": 1460, "only": True}}, with_options(MSS, *PADS), with_options(MSS, WS), "options mss, window-scale, want only mss"),
    ("only, of all", {"options": {"mss": "any", "window-scale": "any", "sack-permitted": True, "sack": "any", "ts": "any", "fast-open": "any", "user-timeout": "any", "md5": "any", "unknown": [{"kind": 99, "data": "01"}], "only": True}}, with_options(MSS, WS, Option("sack-permitted"), SACK, TS, COOKIE, TIMEOUT, DIGEST, KIND), with_options(MSS, WS, Option("sack-permitted"), SACK, TS, COOKIE, TIMEOUT, DIGEST, KIND, Option("kind-98", b"")), "options mss, window-scale, sack-permitted, sack, ts, fast-open, user-timeout, md5, kind-99, kind-98, want only fast-open, kind-99, md5, mss, sack, sack-permitted, ts, user-timeout, window-scale"),
    ("only none", {"options": {"only": True}}, with_options(*PADS), with_options(WS), "options window-scale, want only none"),
    ("none", {"options": "none"}, with_options(*PADS), with_options(WS), "options window-scale, want none"),
    # IP
    ("ttl", {"ip": {"ttl": 64}}, segment(), segment(ip=replace(IP4, ttl=63)), "ttl 63, want 64, short by 1"),
    ("dscp", {"ip": {"dscp": 10}}, segment(), segment(ip=replace(IP4, dscp=11)), "dscp 11, want 10, too far by 1"),
    ("ecn", {"ip": {"ecn": "ect0"}}, segment(), segment(ip=replace(IP4, ecn=1)), "ecn ect1, want ect0"),
    ("ecn not-ect", {"ip": {"ecn": "not-ect"}}, segment(ip=replace(IP4, ecn=0)), segment(), "ecn ect0, want not-ect"),
    ("ecn ce", {"ip": {"ecn": "ce"}}, segment(ip=replace(IP4, ecn=3)), segment(), "ecn ect0, want ce"),
    ("ecn ect", {"ip": {"ecn": "ect"}}, segment(ip=replace(IP4, ecn=1)), segment(ip=replace(IP4, ecn=3)), "ecn ce, want ect"),
    ("ident", {"ip": {"ident": 77}}, segment(), segment(ip=replace(IP4, ident=78)), "ident 78, want 77, too far by 1"),
    ("ident is there", {"ip": {"ident": "> 0"}}, segment(), segment(ip=IP6), "ident absent, want > 0"),
    ("df", {"ip": {"df": True}}, segment(), segment(ip=replace(IP4, df=False)), "df false, want true"),
    ("no df", {"ip": {"df": False}}, segment(ip=replace(IP4, df=False)), segment(), "df true, want false"),
    ("flow", {"ip": {"flow": 0x12345}}, segment(ip=IP6), segment(ip=replace(IP6, flow=0x12344)), "flow 74564, want 74565, short by 1"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "good", "bad", "said"), [case[1:] for case in FIELDS], ids=[case[0] for case in FIELDS]
)
def test_field(spec: dict[str, Any], good: Segment, bad: Segment, said: str) -> None:
    assert words(matched(spec, good)) == []
    assert words(matched(spec, bad)) == [said]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seq": ISS + 5}, "seq 5005, want 5004 again, too far by 1"),
        ({"flags": ACK}, "flags A, want FPA"),
        ({"payload": b"abc"}, "payload of 3 octets, want 2"),
        ({"payload": b"aX"}, "payload differs from octet 1 on: b'X', want b'b'"),
    ],
)
def test_again(change: dict[str, Any], said: str) -> None:
    first = segment(seq=ISS + 4, flags=FIN | ACK | PSH, payload=b"ab")
    # What a repetition may differ in: PSH, the acknowledgment, the window.
    assert words(matched({"again": "fin"}, replace(first, flags=FIN | ACK, ack=IRS + 9, window=1), first)) == []
    assert words(matched({"again": "fin"}, replace(first, **change), first)) == [said]


@pytest.mark.parametrize(
    ("spec", "seg", "captured"),
    [
        ({"flags": "A", "seq": {"as": "s0"}}, segment(), {"s0": ISS + 20}),
        ({"options": {"ts": {"val": {"as": "t1"}, "ecr": {"as": "t2"}}}}, with_options(TS), {"t1": 700, "t2": 800}),
        ({"options": {"mss": {"as": "mss"}}}, with_options(MSS), {"mss": 1460}),
    ],
)
def test_capture(spec: dict[str, Any], seg: Segment, captured: dict[str, int]) -> None:
    found = matched(spec, seg)
    assert not found.mismatches
    assert found.captured == captured


def test_a_capture_needs_something_to_keep() -> None:
    assert words(matched({"options": {"mss": {"as": "mss"}}}, segment())) == ["option mss absent, want {as: mss}"]
    assert words(matched({"options": {"ts": {"val": {"as": "x"}}}}, segment())) == ["option ts absent, want present"]


def test_any_fits_all_and_absent_what_is_not_there() -> None:
    assert not matched({"flags": "A", "seq": "any", "window": "any"}, segment()).mismatches
    assert words(matched({"options": {"mss": "absent"}}, with_options(MSS))) == ["option mss 1460, want absent"]


def test_each_field_that_differs_is_told() -> None:
    found = matched({"flags": "FA", "seq": "SND.NXT", "ack": "RCV.NXT"}, segment(seq=ISS, ack=IRS))
    assert [mismatch.field for mismatch in found.mismatches] == ["flags", "seq", "ack"]


@pytest.mark.parametrize(
    ("of", "spec", "seg", "hint"),
    [
        ({"fin_received": True}, {"ack": "RCV.NXT"}, segment(ack=IRS + 9), "short by 1: FIN not counted"),
        ({"rcv_nxt": IRS + 1}, {"ack": "RCV.NXT"}, segment(ack=IRS), "short by 1: SYN not counted"),
        ({}, {"ack": "RCV.NXT"}, segment(ack=IRS + 1), "short by 9: data not counted"),
        ({"fin_received": True}, {"ack": "RCV.NXT"}, segment(ack=IRS), "short by 10: data and FIN not counted"),
        ({"fin_seq": ISS + 19}, {"seq": "SND.NXT"}, segment(seq=ISS + 19), "short by 1: its own FIN not counted"),
    ],
)
def test_hints(of: dict[str, Any], spec: dict[str, Any], seg: Segment, hint: str) -> None:
    assert words(matched(spec, seg, of=connection(**of)))[0].endswith(hint)


def test_no_hint_where_there_is_no_cause() -> None:
    for ack in (IRS + 9, IRS + 8):
        assert words(matched({"ack": "RCV.NXT"}, segment(ack=ack)))[0].endswith(f"short by {IRS + 10 - ack}")
    later = connection(rcv_nxt=IRS + 1)
    assert words(matched({"ack": "RCV.NXT"}, segment(ack=IRS - 1), of=later))[0].endswith("short by 2")


@pytest.mark.parametrize("edge", [0, 0xFFFFFFFF, 0x7FFFFFFF])
@pytest.mark.parametrize(
    ("match", "fits"),
    [("SND.NXT", {0}), ("> SND.NXT", {1, 2}), ("< SND.NXT", {-2, -1}), ("SND.NXT - 1..SND.NXT + 1", {-1, 0, 1})],
)
def test_sequence_numbers_wrap(edge: int, match: str, fits: set[int]) -> None:
    of = connection(iss=edge, snd_nxt=edge)
    for by in range(-2, 3):
        found = matched({"seq": match}, segment(seq=(edge + by) % (1 << 32)), of=of)
        assert (not found.mismatches) == (by in fits)


@pytest.mark.parametrize(("window", "fits"), [(0, False), (1, True), (5, True), (6, False)])
def test_a_range_includes_both_ends(window: int, fits: bool) -> None:
    assert (not matched({"window": "1..5"}, segment(window=window)).mismatches) is fits


def test_an_isn_of_zero_is_an_isn() -> None:
    said = words(matched({"seq": 2}, segment(seq=3), of=connection(iss=0)))
    assert said == ["seq ISS+3, want 2 = ISS+2, too far by 1: an octet counted that was not sent"]


def test_a_value_that_is_not_known_yet() -> None:
    of = connection(iss=None)
    # Beside another difference it is one more; alone it is the case's fault.
    assert words(matched({"seq": "SND.NXT", "flags": "R"}, segment(), of=of))[1:] == [
        "seq 5020, want SND.NXT: SND.NXT of c1 is not known: the stack has sent no SYN"
    ]
    with pytest.raises(LookupError, match=r"SND\.NXT of c1 is not known"):
        matched({"seq": "SND.NXT"}, segment(), of=of)
    # But the ISS is what the SYN says that brings it.
    assert not matched({"seq": "ISS"}, segment(flags=SYN), of=of).mismatches
    assert words(matched({"seq": "ISS + 1"}, segment(flags=SYN, seq=7), of=of)) == [
        "seq 7, want ISS + 1 = 8, short by 1"
    ]
    assert matched({"seq": "ISS"}, segment(flags=RST), of=of).mismatches


def test_a_name_that_conform_forgot_is_no_fault_of_the_stack() -> None:
    with pytest.raises(KeyError):
        matched({"window": "nothing"}, segment())


def test_describe() -> None:
    env = Environment(connection(), lambda name, about: about.variable(name))

    def said(spec: dict[str, Any]) -> str:
        return describe(ExpectSpec.model_validate(spec), env)

    assert said({"flags": "FA", "seq": "SND.NXT", "ack": "RCV.NXT", "window": "> 0"}) == (
        "FA seq=SND.NXT (ISS+20) ack=RCV.NXT (IRS+10) window=> 0"
    )
    assert said({"flags": ["R", "RA"], "payload": "abc"}) == "R or RA payload='abc'"
    assert said({"again": "fin"}) == "fin again"
    assert said({"stream": 3000}) == "3000 octets"
    assert said({"options": "none"}) == "no options"
    assert said({"options": {"mss": 5, "window-scale": "any"}}) == "options mss, window-scale"
    assert said({"ip": {"ttl": 5}}) == "IP ttl"
    env.connection.iss = None
    assert said({"seq": "SND.NXT"}) == "seq=SND.NXT"
    assert said({"seq": 0}) == "seq=0"


def test_preview() -> None:
    assert preview(b"abc") == "'abc'"
    assert preview(b"a" * 30) == f"'{'a' * 24}'… (30 octets)"


def test_numbers_compared_with_numbers_alone() -> None:
    env = Environment(connection(), lambda name, about: about.variable(name))
    out = FieldMatcher(env)
    out.number("it returned", parse_match("4"), 5)
    out.number("x", None, 5)
    assert words(out) == ["it returned 5, want 4, too far by 1"]
