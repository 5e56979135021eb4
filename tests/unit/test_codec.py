"""The codec: what is built is parsed back, and nothing that comes from a stack makes it raise."""

import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conform.link.codec import Fence, build, parse
from conform.tcp.segment import ACK, FIN, PSH, SYN, IcmpError, IPFields, Option, Segment

V4 = ("192.0.2.1", "192.0.2.2")
V6 = ("2001:db8::1", "2001:db8::2")

u8, u16, u32 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32))


def checksum(octets: bytes) -> int:
    """The Internet checksum, the slow and plain way (RFC 1071), to hold scapy's against."""
    octets += b"\0" * (len(octets) % 2)
    total = sum(int.from_bytes(octets[i : i + 2], "big") for i in range(0, len(octets), 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


option = st.one_of(
    st.just(Option("nop")),
    st.builds(Option, st.just("mss"), u16),
    st.builds(Option, st.just("window-scale"), u8),
    st.just(Option("sack-permitted")),
    st.builds(Option, st.just("sack"), st.lists(st.tuples(u32, u32), max_size=4).map(tuple)),
    st.builds(Option, st.just("ts"), st.tuples(u32, u32)),
    st.builds(Option, st.just("fast-open"), st.binary(max_size=16)),
    st.builds(Option, st.just("user-timeout"), st.tuples(st.integers(0, 1), st.integers(0, 0x7FFF))),
    st.builds(Option, st.just("md5"), st.binary(min_size=16, max_size=16)),
    st.builds(
        lambda kind, data: Option(f"kind-{kind}", data),
        st.sampled_from([6, 14, 15, 25, 29, 30, 69, 253, 254]),
        st.binary(max_size=12),
    ),
    # Of a known kind, with a length that it never has.
    st.builds(lambda kind: Option(f"kind-{kind}", b"\1\2\3\4\5"), st.sampled_from([2, 3, 4, 5, 8, 19, 28])),
)
_FIXED_SIZE = {"nop": 1, "mss": 4, "window-scale": 3, "sack-permitted": 2, "ts": 10, "user-timeout": 4}


def size(option: Option) -> int:
    if option.name == "sack":
        return 2 + 8 * len(option.value)
    return _FIXED_SIZE.get(option.name) or 2 + len(option.value)


options = st.lists(option, max_size=6).map(tuple).filter(lambda listed: sum(map(size, listed)) <= 40)


def record_route(words: int) -> bytes:
    """An IPv4 record route option that fills so many words."""
    return bytes([7, 4 * words - 1, 4]) + bytes(4 * words - 3) if words else b""


ipv4 = st.builds(
    lambda ttl, dscp, ecn, ident, df, words: IPFields(
        4, *V4, ttl=ttl, dscp=dscp, ecn=ecn, ident=ident, df=df, options=record_route(words)
    ),
    u8, st.integers(0, 63), st.integers(0, 3), u16, st.booleans(), st.integers(0, 10),
)  # fmt: skip
ipv6 = st.builds(
    lambda ttl, dscp, ecn, flow: IPFields(6, *V6, ttl=ttl, dscp=dscp, ecn=ecn, flow=flow),
    u8, st.integers(0, 63), st.integers(0, 3), st.integers(0, 2**20 - 1),
)  # fmt: skip
segment = st.builds(
    Segment,
    ip=ipv4 | ipv6,
    sport=u16,
    dport=u16,
    seq=u32,
    ack=u32,
    flags=u8,
    window=u16,
    urgent=u16,
    options=options,
    payload=st.binary(max_size=64),
    reserved=st.integers(0, 15),
)


@given(segment)
@settings(max_examples=400, deadline=None)
def test_what_is_built_is_parsed_back(sent):
    data = build(sent)
    assert parse(data) == sent
    header = 40 if sent.ip.version == 6 else (data[0] & 15) * 4
    addresses = data[8:40] if sent.ip.version == 6 else data[12:20]
    assert checksum(addresses + struct.pack("!II", len(data) - header, 6) + data[header:]) == 0
    if sent.ip.version == 4:
        assert checksum(data[:header]) == 0
        assert int.from_bytes(data[2:4], "big") == len(data)
    else:
        assert int.from_bytes(data[4:6], "big") == len(data) - 40


@given(segment, st.data())
@settings(max_examples=300, deadline=None)
def test_any_tcp_header_is_built_again_from_what_was_parsed(sent, data):
    """Whatever the TCP header says of itself: data offset, option area, checksum."""
    octets = bytearray(build(sent))
    start = 40 if sent.ip.version == 6 else (octets[0] & 15) * 4
    for at in data.draw(st.lists(st.integers(start, len(octets) - 1), max_size=8)):
        octets[at] = data.draw(u8)
    parsed = parse(bytes(octets))
    assert parsed is not None
    assert build(parsed) == bytes(octets)


@given(st.one_of(st.binary(max_size=120), st.builds(lambda b: b"\x45" + b, st.binary(min_size=40, max_size=90))))
@example(b"")
@example(b"\x45")
@example(bytes.fromhex("4f") + bytes(8) + b"\x06" + bytes(60))
@settings(max_examples=300, deadline=None)
def test_rubbish_never_raises(data):
    parse(data)


@given(segment, st.data())
@settings(max_examples=200, deadline=None)
def test_a_truncated_packet_never_raises(sent, data):
    octets = build(sent)
    parse(octets[: data.draw(st.integers(0, len(octets)))])


def plain(**fields):
    version = fields.pop("version", 4)
    ip = fields.pop("ip", {})
    addresses = V4 if version == 4 else V6
    ident = {"ident": 0} if version == 4 else {}
    return Segment(IPFields(version, *addresses, **(ident | ip)), 1000, 80, **fields)


@pytest.mark.parametrize("version", [4, 6])
class TestWrongOnPurpose:
    def test_checksum(self, version):
        sent = plain(version=version, checksum=0xDEAD)
        assert parse(build(sent)) == sent

    def test_checksum_zero(self, version):
        assert parse(build(plain(version=version, checksum=0))).checksum == 0

    def test_a_checksum_given_and_right_is_right(self, version):
        data = build(plain(version=version))
        right = int.from_bytes(data[-4:-2], "big")
        assert parse(build(plain(version=version, checksum=right))).checksum is None

    def test_data_offset_into_the_header(self, version):
        sent = plain(version=version, data_offset=4, payload=b"abcd")
        assert parse(build(sent)) == sent

    def test_data_offset_behind_the_segment(self, version):
        parsed = parse(build(plain(version=version, data_offset=15, payload=b"")))
        assert parsed.data_offset == 15
        assert parsed.options == ()

    def test_data_offset_that_takes_payload_for_options(self, version):
        parsed = parse(build(plain(version=version, data_offset=6, payload=b"\1\1\1\1abc")))
        assert (parsed.data_offset, parsed.options, parsed.payload) == (None, (Option("nop"),) * 4, b"abc")

    @pytest.mark.parametrize("area", ["02000000", "01010208", "01010105", "fd010101", "00000200", "0000000000000000"])
    def test_raw_options(self, version, area):
        sent = plain(version=version, raw_options=bytes.fromhex(area), payload=b"x")
        parsed = parse(build(sent))
        assert parsed.raw_options == bytes.fromhex(area)
        assert parsed.payload == b"x"
        assert parsed.checksum is None

    def test_raw_options_are_padded_to_a_word(self, version):
        parsed = parse(build(plain(version=version, raw_options=bytes.fromhex("0204 05"), payload=b"x")))
        assert parsed.raw_options == bytes.fromhex("02040500") or parsed.options == (Option("mss", 0x0500),)

    def test_well_formed_raw_options_are_options(self, version):
        parsed = parse(build(plain(version=version, raw_options=bytes.fromhex("020405b4"))))
        assert (parsed.options, parsed.raw_options) == ((Option("mss", 1460),), None)


def test_end_of_list_is_padding_only_where_it_fills_a_word():
    padded = parse(build(plain(options=(Option("window-scale", 7),))))
    assert padded.options == (Option("window-scale", 7),)
    ended = parse(build(plain(options=(Option("mss", 536), Option("eol")))))
    assert ended.options == (Option("mss", 536), Option("eol"))


def test_wrong_ipv4_header_checksum():
    sent = plain(ip={"checksum": 0x1234})
    assert parse(build(sent)) == sent


def test_identification_left_open_is_zero():
    assert parse(build(Segment(IPFields(4, *V4), 1, 2))).ip.ident == 0


def test_source_route_is_summed_with_its_final_destination():
    route = bytes([131, 7, 4]) + bytes([198, 51, 100, 7]) + b"\0"
    data = build(plain(ip={"options": route}))
    pseudo = data[12:16] + bytes([198, 51, 100, 7]) + struct.pack("!HH", 6, len(data) - 28)
    assert checksum(pseudo + data[28:]) == 0
    assert parse(data).checksum is None
    used_up = bytes([131, 7, 8]) + bytes([198, 51, 100, 7]) + b"\0"
    data = build(plain(ip={"options": used_up}))
    assert checksum(data[12:20] + struct.pack("!HH", 6, len(data) - 28) + data[28:]) == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"options": (Option("no-such"),)},
        {"options": (Option("kind-1", b""),)},
        {"options": (Option("kind-256", b""),)},
        {"options": (Option("mss", None),)},
        {"options": (Option("mss", 70000),)},
        {"options": (Option("ts", (1, 2)),) * 5},
        {"seq": -1},
        {"seq": 2**32},
        {"window": 65536},
        {"flags": 256},
        {"reserved": 16},
        {"data_offset": 16},
        {"payload": bytes(65520)},
        {"ip": {"dscp": 64}},
        {"ip": {"ttl": 256}},
        {"ip": {"options": bytes(41)}},
    ],
)
def test_what_fits_no_packet_is_a_value_error(fields):
    with pytest.raises(ValueError, match="cannot build"):
        build(plain(**fields))


def test_not_tcp_is_none():
    udp = bytearray(build(plain()))
    udp[9] = 17
    assert parse(bytes(udp)) is None


def test_a_later_fragment_is_none():
    data = bytearray(build(plain(payload=bytes(64))))
    data[6:8] = (0x2000 | 3).to_bytes(2, "big")
    assert parse(bytes(data)) is None


@pytest.mark.parametrize("version", [4, 6])
def test_of_a_first_fragment_the_checksum_is_not_judged(version):
    data = build(plain(version=version, payload=bytes(64)))[:-8]
    if version == 4:
        data = data[:2] + len(data).to_bytes(2, "big") + b"\0\0\x20\0" + data[8:]
    else:
        data = data[:4] + (len(data) - 32).to_bytes(2, "big") + b"\x2c" + data[7:40] + b"\6\0\0\1\0\0\0\0" + data[40:]
    parsed = parse(data)
    assert (len(parsed.payload), parsed.checksum) == (56, None)


def test_ipv6_extension_headers_are_skipped():
    data = build(plain(version=6, payload=b"hello"))
    hop_by_hop = bytes([6, 0, 1, 4, 0, 0, 0, 0])
    data = data[:4] + (len(data) - 40 + 8).to_bytes(2, "big") + b"\0" + data[7:40] + hop_by_hop + data[40:]
    parsed = parse(data)
    assert (parsed.payload, parsed.sport, parsed.checksum) == (b"hello", 1000, None)


def test_link_layer_padding_is_no_payload():
    assert parse(build(plain(payload=b"a")) + bytes(10)).payload == b"a"


# ICMP ----------------------------------------------------------------------------------------------------------------
QUOTED = {
    4: Segment(IPFields(4, V4[1], V4[0], ident=7), 80, 1000, seq=77, flags=SYN, options=(Option("mss", 1460),)),
    6: Segment(IPFields(6, V6[1], V6[0]), 80, 1000, seq=77, flags=ACK | PSH, payload=b"data"),
}


def icmp(version, type, code, **fields):
    addresses = V4 if version == 4 else V6
    return build(IcmpError(IPFields(version, *addresses), type, code, QUOTED[version], **fields))


def test_fragmentation_needed():
    data = icmp(4, 3, 4, mtu=576, quoted_length=8)
    assert data[9] == 1
    assert checksum(data[:20]) == 0
    assert checksum(data[20:]) == 0
    assert data[20:22] == bytes([3, 4])
    assert data[24:28] == bytes([0, 0, 576 >> 8, 576 & 255])
    assert data[28:] == build(QUOTED[4])[:28]


def test_parameter_problem_points():
    data = icmp(4, 12, 0, pointer=20)
    assert data[24:28] == bytes([20, 0, 0, 0])
    assert data[28:] == build(QUOTED[4])


@pytest.mark.parametrize("type", [3, 4, 5, 11, 12])
def test_every_icmp_error_has_eight_octets_before_its_quotation(type):
    data = icmp(4, type, 0, quoted_length=8)
    assert data[28:] == build(QUOTED[4])[:28]
    assert checksum(data[20:]) == 0


@pytest.mark.parametrize(
    ("type", "code", "fields", "word"),
    [(1, 4, {}, 0), (2, 0, {"mtu": 1280}, 1280), (3, 0, {}, 0), (4, 1, {"pointer": 40}, 40), (100, 2, {}, 0)],
)
def test_icmpv6_errors(type, code, fields, word):
    data = icmp(6, type, code, **fields)
    assert data[6] == 58
    assert data[40:42] == bytes([type, code])
    assert int.from_bytes(data[44:48], "big") == word
    assert data[48:] == build(QUOTED[6])
    assert checksum(data[8:40] + struct.pack("!II", len(data) - 40, 58) + data[40:]) == 0


def test_an_icmp_error_is_no_segment():
    assert parse(icmp(4, 3, 1)) is None
    assert parse(icmp(6, 1, 4)) is None


# Fences --------------------------------------------------------------------------------------------------------------
def reply(data):
    """What a stack makes of an echo request."""
    if data[0] >> 4 == 4:
        return data[:12] + data[16:20] + data[12:16] + b"\0" + data[21:]
    return data[:8] + data[24:40] + data[8:24] + b"\x81" + data[41:]


@pytest.mark.parametrize(("version", "addresses"), [(4, V4), (6, V6)])
class TestFence:
    @given(n=u32)
    def test_octets(self, version, addresses, n):
        data = Fence(version, *addresses).build(n)
        if version == 4:
            assert checksum(data[:20]) == 0
            assert checksum(data[20:]) == 0
            assert data[20] == 8
        else:
            assert checksum(data[8:40] + struct.pack("!II", len(data) - 40, 58) + data[40:]) == 0
            assert data[40] == 128
        assert Fence(version, *addresses).match(reply(data)) == n

    def test_what_is_no_reply_of_ours(self, version, addresses):
        fence = Fence(version, *addresses)
        request = fence.build(5)
        assert fence.match(request) is None
        assert fence.match(b"") is None
        assert fence.match(reply(request)[:-1]) is None
        assert fence.match(reply(request)[:-1] + b"?") is None
        assert fence.match(build(plain(version=version, flags=FIN))) is None
        assert fence.match(reply(Fence(version, *reversed(addresses)).build(5))) is None
