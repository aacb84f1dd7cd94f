"""The choice of a worker: only those that can, the best first, and the same for the same draw."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip_ledger.records import AccountId, ModelId
from p2p.adverts import Advert
from peer.routing import FAILURES_MAX, Need, Observed, choose, expected_first_token_ms, is_eligible, price

MODEL, OTHER = ModelId(b"m" * 32), ModelId(b"o" * 32)
NEED = Need(model=MODEL, prompt_tokens=100, max_tokens=100)


def advert(number: int = 0, **changes: Any) -> Advert:
    fields: dict[str, Any] = {
        "worker": AccountId(number.to_bytes(32, "big")),
        "base": b"b" * 32,
        "quantization": "bf16",
        "kernels": "",
        "max_context": 2048,
        "resident": (MODEL,),
        "loadable": (),
        "running": 0,
        "waiting": 0,
        "slots": 4,
        "tokens_per_s": 50,
        "price_in": 1000,
        "price_out": 2000,
        "addresses": (),
        "sequence": 1,
        "expiry_s": 100,
        "software": "",
    }
    return Advert(**(fields | changes))


def best(adverts: list[Advert], seen: dict[AccountId, Observed] | None = None, **need: Any) -> Advert | None:
    ranked = choose(adverts, replace(NEED, **need), seen or {}, 0, Random(1))
    return ranked[0] if ranked else None


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        ({"resident": (OTHER,)}, Observed()),
        ({"max_context": 199}, Observed()),
        ({}, Observed(busy_until_ms=1)),
        ({}, Observed(failures=FAILURES_MAX)),
    ],
    ids=["another model", "too long", "busy", "failing"],
)
def test_who_cannot_serve_is_no_candidate(changes: dict[str, Any], seen: Observed) -> None:
    worker = advert(1, **changes)
    assert not is_eligible(worker, NEED, seen, 0)
    assert choose([worker], NEED, {worker.worker: seen}, 0, Random(1)) == ()
    assert is_eligible(advert(1), NEED, Observed(busy_until_ms=1), 1)


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        ({"waiting": 8, "running": 4}, {}),
        ({"running": 4}, {"running": 0}),
        ({"tokens_per_s": 5}, {"tokens_per_s": 80}),
        ({"resident": (), "loadable": (MODEL,)}, {}),
        ({"price_out": 4000}, {}),
    ],
    ids=["queue", "load", "speed", "not resident", "price"],
)
def test_the_better_of_two_comes_first(worse: dict[str, Any], better: dict[str, Any]) -> None:
    for first, second in ((1, 2), (2, 1)):
        good = advert(first, **better)
        assert best([advert(second, **worse), good]) == good


def test_what_was_seen_counts_more_than_what_is_said() -> None:
    boaster, honest = advert(1, tokens_per_s=10**9), advert(2)
    seen = {boaster.worker: Observed(tokens_per_s=2), honest.worker: Observed(tokens_per_s=40)}
    assert best([boaster, honest], seen) == honest
    assert best([boaster, honest], {boaster.worker: Observed(failures=1)}) == honest
    assert best([boaster, advert(3)], {boaster.worker: Observed(in_flight=9)}) == advert(3)


def test_policies_weigh_price_and_time() -> None:
    cheap, fast = advert(1, price_in=1, price_out=1, tokens_per_s=1), advert(2, tokens_per_s=100)
    assert best([cheap, fast], policy="cheapest") == cheap
    assert best([cheap, fast], policy="fastest") == fast
    assert price(advert(), NEED) == 300


def test_the_cheapest_looks_at_everybody() -> None:
    crowd = [advert(n, price_in=n, price_out=n) for n in range(1, 50)]
    assert best(crowd[::-1], policy="cheapest") == crowd[0]


def test_load_spreads_over_equal_workers() -> None:
    for count in (2, 20):
        crowd, rng = [advert(n) for n in range(1, count + 1)], Random(1)
        chosen = Counter(choose(crowd, NEED, {}, 0, rng)[0].worker for _ in range(count * 50))
        assert len(chosen) == count
        assert max(chosen.values()) < 100


@given(
    numbers=st.lists(st.integers(1, 40), unique=True, max_size=20),
    wild=st.lists(st.integers(0, 2**63 - 1), min_size=6, max_size=6),
    seed=st.integers(0, 1000),
    policy=st.sampled_from(("balanced", "fastest", "cheapest")),
)
def test_every_candidate_is_ranked_once_whatever_adverts_claim(
    numbers: list[int], wild: list[int], seed: int, policy: str
) -> None:
    names = ("running", "waiting", "slots", "tokens_per_s", "price_in", "price_out")
    adverts = [advert(n, **(dict(zip(names, wild, strict=True)) if n % 2 else {})) for n in numbers]
    need = replace(NEED, policy=policy)
    ranked = choose(adverts, need, {}, 0, Random(seed))
    assert sorted(a.worker for a in ranked) == sorted(a.worker for a in adverts)
    assert ranked == choose(adverts[::-1], need, {}, 0, Random(seed)), "the order of arrival decides nothing"
    assert all(expected_first_token_ms(a, need, Observed()) > 0 for a in adverts)
