"""Division to the last micro-unit."""

from __future__ import annotations

import hashlib
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from gossip_ledger.amounts import apportion, fee
from gossip_ledger.limits import MAX_AMOUNT

WEIGHTS = st.dictionaries(
    st.binary(min_size=1, max_size=32), st.integers(0, MAX_AMOUNT), min_size=1, max_size=70
)


@given(
    st.integers(0, MAX_AMOUNT),
    WEIGHTS.filter(lambda weights: sum(weights.values()) > 0),
    st.binary(max_size=40),
)
def test_shares_add_up_and_are_off_by_less_than_one(
    amount: int, weights: dict[bytes, int], salt: bytes
) -> None:
    shares = apportion(amount, weights, salt)
    total = sum(weights.values())
    assert sum(shares.values()) == amount
    assert shares.keys() == weights.keys()
    for key, weight in weights.items():
        assert abs(shares[key] - Fraction(amount * weight, total)) < 1
        assert weight or not shares[key]
    assert shares == apportion(amount, dict(reversed(weights.items())), salt)


@given(
    st.integers(0, 1000),
    st.dictionaries(st.sampled_from([b"a", b"b", b"c", b"d"]), st.integers(1, 3), min_size=2),
)
def test_largest_remainder_ties_by_hash(amount: int, weights: dict[bytes, int]) -> None:
    """Against the definition, told another way: hand out the missing units one by one."""
    salt, total = b"salt", sum(weights.values())

    def urge(key: bytes) -> tuple[Fraction, bytes]:
        exact = Fraction(amount * weights[key], total)
        tie = hashlib.sha256(b"upkeep/1/tie\0" + b"\0\x04" + salt + key).digest()
        return (-(exact - int(exact)), tie)

    expected = {key: amount * weight // total for key, weight in weights.items()}
    for key in sorted(weights, key=urge)[: amount - sum(expected.values())]:
        expected[key] += 1
    assert apportion(amount, weights, salt) == expected


def test_a_tie_depends_on_the_salt() -> None:
    winners = {
        next(k for k, v in apportion(1, {b"a": 1, b"b": 1}, bytes([s])).items() if v) for s in range(20)
    }
    assert winners == {b"a", b"b"}


def test_fees_round_up_once() -> None:
    assert fee(0, 0, 10, 10) == 0
    assert fee(1, 0, 1, 0) == 1
    assert fee(999, 1, 1, 1) == 1
    assert fee(1000, 1, 1, 1) == 2
    assert fee(120, 340, 1_000, 3_000) == 1140
