"""Arithmetic on sequence numbers, modulo 2**32 (RFC 9293 section 3.4)."""

from __future__ import annotations

MODULUS = 1 << 32
_HALF = 1 << 31


def add(seq: int, n: int) -> int:
    """The sequence number *n* octets after *seq* (before it, for a negative *n*)."""
    return (seq + n) % MODULUS


def diff(a: int, b: int) -> int:
    """How far *a* lies after *b*, as a signed number of octets in -2**31 .. 2**31-1."""
    return (a - b + _HALF) % MODULUS - _HALF


def lt(a: int, b: int) -> bool:
    """Whether *a* comes before *b* in sequence space."""
    return diff(a, b) < 0


def le(a: int, b: int) -> bool:
    """Whether *a* comes before *b* in sequence space, or is *b*."""
    return diff(a, b) <= 0


def between(low: int, x: int, high: int) -> bool:
    """Whether *x* lies in ``low .. high``, both included, going upwards from *low*."""
    return (x - low) % MODULUS <= (high - low) % MODULUS
