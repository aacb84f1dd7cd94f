"""From two signals to the weights of a receipt: a pure function of integers.

Each signal is compared with what a cluster would get by its mass alone, and only what is above counts: a
cluster earns for fitting the answer better than its size explains, so padding a shard buys nothing. The two
are mixed half and half, the best `PAYEES_MAX` kept, and apportioned to parts per million. No signal gives no
weights: then the manifest's priors decide.
"""

from __future__ import annotations

from collections.abc import Sequence

from attribution.limits import PAYEES_MAX, WEIGHT_TOTAL
from gossip_ledger.amounts import apportion, tie
from gossip_ledger.records import ClusterId, Weight


def weigh(
    overlap: Sequence[int],
    clusters: Sequence[ClusterId],
    salt: bytes,
    *,
    masses: Sequence[int] | None = None,
    influence: Sequence[int] | None = None,
) -> tuple[Weight, ...]:
    """The weights, best first; ties are ordered by a hash of `salt` (the output commitment) and cluster.

    `masses` are the clusters' parts of the overlap tables (equal parts where None); `influence` is the second
    signal, where a model has one.
    """
    assert len(overlap) == len(clusters), "one score for each cluster"
    second = excess(overlap, masses)
    first = excess(influence, None) if influence is not None else (0,) * len(clusters)
    mixed = mix(first, second)
    ranked = sorted(
        ((score, cluster) for score, cluster in zip(mixed, clusters, strict=True) if score),
        key=lambda pair: (-pair[0], tie(salt, pair[1])),
    )[:PAYEES_MAX]
    if not ranked:
        return ()
    parts = apportion(WEIGHT_TOTAL, {cluster: score for score, cluster in ranked}, salt)
    return tuple(Weight(cluster=cluster, weight=parts[cluster]) for _, cluster in ranked if parts[cluster])


def excess(scores: Sequence[int], masses: Sequence[int] | None) -> tuple[int, ...]:
    """By how much each score exceeds its part of the sum by mass, never below 0, on one common scale."""
    given = masses if masses is not None else (1,) * len(scores)
    total, whole = sum(scores), sum(given)
    return tuple(max(0, score * whole - total * mass) for score, mass in zip(scores, given, strict=True))


def mix(first: Sequence[int], second: Sequence[int]) -> tuple[int, ...]:
    """Half of each where both say something, else the one that does."""
    first_sum, second_sum = sum(first), sum(second)
    if not first_sum or not second_sum:
        return tuple(second) if second_sum else tuple(first)
    return tuple(a * second_sum + b * first_sum for a, b in zip(first, second, strict=True))
