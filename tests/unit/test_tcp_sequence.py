"""Sequence arithmetic, modulo 2**32."""

from hypothesis import given
from hypothesis import strategies as s

from conform.tcp.sequence import MODULUS, add, between, diff, le, lt

SEQ = s.integers(0, MODULUS - 1)
NEAR = s.integers(-(1 << 31), (1 << 31) - 1)


@given(SEQ, NEAR)
def test_diff_undoes_add(seq: int, n: int) -> None:
    assert 0 <= add(seq, n) < MODULUS
    assert diff(add(seq, n), seq) == n


@given(SEQ, NEAR)
def test_order_is_that_of_the_distance(seq: int, n: int) -> None:
    other = add(seq, n)
    assert lt(other, seq) == (n < 0)
    assert le(other, seq) == (n <= 0)


@given(SEQ, s.integers(0, MODULUS - 1), s.integers(0, MODULUS - 1))
def test_between_is_containment_going_upwards(low: int, width: int, offset: int) -> None:
    assert between(low, add(low, offset), add(low, width)) == (offset <= width)


def test_the_wrap() -> None:
    assert add(0xFFFFFFFF, 1) == 0
    assert add(0, -1) == 0xFFFFFFFF
    assert lt(0xFFFFFFFF, 0)
    assert not lt(0, 0xFFFFFFFF)
    assert le(5, 5)
    assert not lt(5, 5)
    assert between(0xFFFFFFF0, 3, 10)
    assert not between(0xFFFFFFF0, 11, 10)
    assert diff(1 << 31, 0) == -(1 << 31)
