"""Captures, read back by scapy and by hand."""

import struct

import pytest
from scapy.utils import RawPcapNgReader

from conform.link import pcapng

RECORDS = [
    (1700000000.000001, b"\x45" + bytes(39), "step 1: SYN"),
    (1700000000.5, b"\x60" + bytes(42), ""),
    (1700000001.25, b"\x45" + bytes(40), "naïve → comment"),
]


def blocks(octets):
    """(type, body) of each block, checking that they tile the file and say their length twice (section 3.1)."""
    at = 0
    while at < len(octets):
        kind, length = struct.unpack_from("<II", octets, at)
        assert length % 4 == 0
        assert struct.unpack_from("<I", octets, at + length - 4) == (length,)
        yield kind, octets[at + 8 : at + length - 4]
        at += length
    assert at == len(octets)


def test_structure(tmp_path):
    path = tmp_path / "a" / "b" / "trial.pcapng"
    pcapng.write(path, RECORDS)
    section, interface, *packets = blocks(path.read_bytes())
    assert section[0] == 0x0A0D0D0A
    assert section[1] == struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)
    assert interface[0] == 1
    assert struct.unpack_from("<H", interface[1]) == (pcapng.LINKTYPE_RAW,)
    assert [kind for kind, _ in packets] == [6, 6, 6]
    for (_, body), (moment, data, comment) in zip(packets, RECORDS, strict=True):
        number, high, low, captured, original = struct.unpack_from("<IIIII", body)
        assert number == 0
        assert high << 32 | low == round(moment * 1e6)
        assert captured == original == len(data)
        assert body[20 : 20 + len(data)] == data
        options = body[20 + len(data) + -len(data) % 4 :]
        text = comment.encode()
        if comment:
            assert options == struct.pack("<HH", 1, len(text)) + text + bytes(-len(text) % 4) + bytes(4)
        else:
            assert options == b""


def test_scapy_reads_it(tmp_path):
    path = tmp_path / "trial.pcapng"
    pcapng.write(path, RECORDS)
    with RawPcapNgReader(str(path)) as reader:
        read = [(data, metadata) for data, metadata in reader]
    assert [data for data, _ in read] == [data for _, data, _ in RECORDS]
    assert {metadata.linktype for _, metadata in read} == {101}
    assert [metadata.comments for _, metadata in read] == [[c.encode()] if c else None for _, _, c in RECORDS]


def test_no_packets_is_a_capture_too(tmp_path):
    path = tmp_path / "empty.pcapng"
    pcapng.write(path, [])
    assert [kind for kind, _ in blocks(path.read_bytes())] == [0x0A0D0D0A, 1]


def test_a_failure_leaves_neither_file_nor_leftovers(tmp_path):
    def records():
        yield RECORDS[0]
        raise RuntimeError("interrupted")

    path = tmp_path / "trial.pcapng"
    path.write_bytes(b"the one before")
    with pytest.raises(RuntimeError):
        pcapng.write(path, records())
    assert path.read_bytes() == b"the one before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_comment_too_long_is_cut(tmp_path):
    path = tmp_path / "trial.pcapng"
    pcapng.write(path, [(1.0, b"\x45", "x" * 70000)])
    assert len(list(blocks(path.read_bytes()))) == 3
