"""Weights: who is paid and how much, in hand-computed cases."""

from __future__ import annotations

import pytest

from attribution.limits import PAYEES_MAX, WEIGHT_TOTAL
from attribution.overlap import SIGNAL_MIN, cluster_scores
from attribution.tables import Tables, build_tables
from attribution.text import ngrams, words
from attribution.weights import excess, mix, weigh
from gossip_ledger.amounts import tie
from gossip_ledger.records import ClusterId

SALT = b"s" * 32


def names(count: int) -> list[ClusterId]:
    return [ClusterId(bytes([number]) * 32) for number in range(count)]


def paid(*args: object, **kwargs: object) -> dict[int, int]:
    return {pair.cluster[0]: pair.weight for pair in weigh(*args, **kwargs)}  # pyright: ignore[reportArgumentType]


def test_only_what_is_above_the_mean_is_paid() -> None:
    assert excess((10, 4, 1), None) == (15, 0, 0)
    assert paid((10, 4, 1), names(3), SALT) == {0: WEIGHT_TOTAL}
    assert paid((10, 8, 0), names(3), SALT) == {0: 666_667, 1: 333_333}


def test_only_what_is_above_the_part_by_mass_is_paid() -> None:
    """A cluster with nine tenths of all text that gives nine tenths of the matches has shown nothing."""
    assert excess((9, 1), (90, 10)) == (0, 0)
    assert paid((9, 1), names(2), SALT, masses=(90, 10)) == {}
    assert paid((9, 2), names(2), SALT, masses=(90, 10)) == {1: WEIGHT_TOTAL}


def test_padding_a_shard_earns_nothing() -> None:
    """More mass with the same matches lowers one's weight, and never raises it."""
    before = paid((60, 50, 10), names(3), SALT, masses=(100, 100, 100))
    after = paid((60, 50, 10), names(3), SALT, masses=(150, 100, 100))
    assert after[0] < before[0]


def test_no_signal_gives_no_weights() -> None:
    assert weigh((0, 0), names(2), SALT) == ()
    assert weigh((7, 7, 7), names(3), SALT) == ()
    assert weigh((5,), names(1), SALT) == ()
    assert weigh((), [], SALT) == ()


def test_two_signals_count_half_each() -> None:
    assert mix((3, 1), (0, 8)) == (3 * 8, 1 * 8 + 8 * 4)
    assert mix((0, 0), (2, 1)) == (2, 1)
    assert mix((2, 1), (0, 0)) == (2, 1)
    assert paid((9, 0, 0), names(3), SALT, influence=(0, 9, 0)) == {0: 500_000, 1: 500_000}


def test_negative_influence_is_no_debt() -> None:
    assert paid((9, 0, 0), names(3), SALT, influence=(-100, 5, 5)) == {0: 500_000, 1: 250_000, 2: 250_000}


def test_the_best_eight_share_everything() -> None:
    scores = [*range(100, 110), *[0] * 30]
    weights = weigh(scores, names(40), SALT)
    assert [pair.cluster[0] for pair in weights] == [9, 8, 7, 6, 5, 4, 3, 2]
    assert len(weights) == PAYEES_MAX
    assert sum(pair.weight for pair in weights) == WEIGHT_TOTAL


def test_ties_are_ordered_by_the_salted_hash() -> None:
    scores = [5] * 10 + [0] * 10
    for salt in (b"a" * 32, b"b" * 32):
        expected = sorted(names(10), key=lambda name: tie(salt, name))[:PAYEES_MAX]
        assert [pair.cluster for pair in weigh(scores, names(20), salt)] == expected


def test_a_weight_that_rounds_to_nothing_is_left_out() -> None:
    assert paid((10**9, 3, 0), names(3), SALT, masses=(1, 0, 10**9)) == {0: WEIGHT_TOTAL}


def test_scores_count_information_once() -> None:
    tables = Tables(build_tables([[b"a b c d e f g h"], [b"p q r s t u v w"], [b"m n"], [b"y z"]]))
    text = list(ngrams(words(b"a b c d e f g h p q")))
    assert cluster_scores(tables, text) == (22 * 512 << 16, 512 << 16, 0, 0)
    assert cluster_scores(tables, text + text) == cluster_scores(tables, text)


def test_too_little_information_is_no_signal() -> None:
    """Two clusters: every n-gram of one says one bit, and 24 bits are needed."""
    long = b"a b c d e f g h i"  # 8 + 7 + 6 + 5 = 26 n-grams
    tables = Tables(build_tables([[long], [b"x y"]]))
    assert sum(cluster_scores(tables, ngrams(words(long)))) >= SIGNAL_MIN
    assert cluster_scores(tables, list(ngrams(words(long)))[:24]) == (SIGNAL_MIN, 0)
    assert cluster_scores(tables, list(ngrams(words(long)))[:23]) == (0, 0)


@pytest.mark.parametrize("masses", [None, (1, 1)])
def test_equal_masses_are_the_mean(masses: tuple[int, ...] | None) -> None:
    assert excess((3, 1), masses) == (2, 0)
