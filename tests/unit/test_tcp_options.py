"""Options as octets: the tracker reads in a segment what the codec puts on the link."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as s
from test_tcp_segment import OPTIONS

from conform.link import codec
from conform.tcp.options import as_read, known, octets
from conform.tcp.segment import ACK, IPFields, Option, Segment

SEGMENT = Segment(IPFields(4, "192.0.2.2", "192.0.2.1"), 1, 2, flags=ACK)
SENSIBLE = s.lists(OPTIONS, max_size=4).map(
    lambda options: tuple(o for o in options if o.name not in ("kind-0", "kind-1"))
)
COUNTED = ("mss", "window-scale", "ts")


@settings(deadline=None)  # scapy is loaded on first use
@given(SENSIBLE)
def test_octets_are_those_of_the_codec(options: tuple[Option, ...]) -> None:
    made = octets(options)
    if len(made) <= 40:
        assert made == codec.build(replace(SEGMENT, options=options))[40:]


@settings(deadline=None)
@given(s.lists(OPTIONS, max_size=4).map(tuple), s.binary(max_size=9), s.none() | s.integers(0, 15))
def test_what_is_read_is_what_the_codec_parses(options: tuple[Option, ...], payload: bytes, offset: int | None) -> None:
    options = tuple(o for o in options if not o.name.startswith("kind-"))
    sent = replace(SEGMENT, payload=payload, data_offset=offset, raw_options=octets(options)[:40])
    read = as_read(sent)
    found = codec.parse(codec.build(sent))
    assert isinstance(found, Segment)
    if read is None:
        assert found.data_offset is not None
        return
    assert read.payload == found.payload
    assert read.options == tuple(o for o in found.options if o.name in COUNTED)


@given(s.binary(max_size=40))
def test_any_octets_can_be_read(area: bytes) -> None:
    assert all(option.name in COUNTED for option in known(area))


@pytest.mark.parametrize("fields", [{}, {"options": (Option("mss", 5),)}])
def test_an_ordinary_segment_is_read_as_it_is(fields: dict[str, tuple[Option, ...]]) -> None:
    sent = replace(SEGMENT, **fields)
    assert as_read(sent) is sent
