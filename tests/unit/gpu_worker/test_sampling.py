"""Draws: repeatable, in proportion, and only from what top-p leaves."""

from __future__ import annotations

from collections import Counter

import pytest

torch = pytest.importorskip("torch")

from gpu_worker.sampling import choose, uniform  # noqa: E402

LOGITS = torch.tensor([1.0, 3.0, 2.0, 3.0, -1.0])


def draws(count: int, **options: int) -> Counter[int]:
    return Counter(choose(LOGITS, seed=7, position=n, **options) for n in range(count))


def test_the_likeliest_wins_and_the_lowest_of_equals() -> None:
    assert choose(LOGITS, temperature_milli=0, top_p_milli=1000, seed=1, position=1) == 1


def test_draws_are_in_proportion() -> None:
    found = draws(4000, temperature_milli=1000, top_p_milli=1000)
    expected = torch.softmax(LOGITS, -1)
    for token, share in enumerate(expected.tolist()):
        assert abs(found[token] / 4000 - share) < 0.03


def test_temperature_sharpens() -> None:
    assert draws(500, temperature_milli=100, top_p_milli=1000).keys() <= {1, 3}
    assert draws(500, temperature_milli=5000, top_p_milli=1000).keys() == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("top_p", "left"),
    [(1, {1}), (390, {1}), (500, {1, 3}), (790, {1, 3}), (800, {1, 2, 3}), (980, {0, 1, 2, 3})],
)
def test_top_p_leaves_the_most_probable(top_p: int, left: set[int]) -> None:
    assert draws(600, temperature_milli=1000, top_p_milli=top_p).keys() == left


def test_a_flat_distribution_needs_more_than_the_first_look() -> None:
    flat = torch.zeros(5000)
    found = {choose(flat, temperature_milli=1000, top_p_milli=500, seed=1, position=n) for n in range(300)}
    assert max(found) > 1000
    assert max(found) < 2600


def test_draws_depend_on_seed_and_position_alone() -> None:
    assert uniform(1, 2) == uniform(1, 2) == 0.03457107257171421
    assert len({uniform(seed, position) for seed in range(20) for position in range(20)}) == 400
    assert 0 <= min(uniform(0, n) for n in range(2000)) < 0.01
