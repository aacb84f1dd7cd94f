"""The overlap signal: how much of an answer's information each cluster holds. Exact integers, no order.

Each different n-gram of the answer (and prompt) counts once and is worth log2(clusters / holders) bits,
shared among its holders; so everything credited together never exceeds the information in the answer, and a
phrase that all use is worth nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from attribution.fixed_point import FRACTION_BITS
from attribution.limits import OVERLAP_BITS_MIN
from attribution.tables import Tables

SIGNAL_MIN: Final = OVERLAP_BITS_MIN << FRACTION_BITS << 16
"""`OVERLAP_BITS_MIN` in the unit of the scores."""


def cluster_scores(tables: Tables, names: Iterable[int]) -> tuple[int, ...]:
    """Per cluster the information that it shares with the n-grams `names`; all zero where that is too
    little.
    """
    scores = tables.spread(tables.counts(names))
    return scores if sum(scores) >= SIGNAL_MIN else (0,) * tables.clusters
