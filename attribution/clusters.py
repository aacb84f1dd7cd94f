"""Near-duplicates: which shards are copies of earlier ones, so that the first one admitted is the only one
paid.

Shards are judged in the order in which the datanet's owner admitted them, each against those before it and
none after it, so a later admission never changes an earlier verdict. A document's shingles are weighted by
one over the number of earlier shards that hold them: phrases that everybody uses convict nobody. A document
that is a copy is left out of its shard's tables, and a shard that mostly consists of copies joins the cluster
of its original. So neither padding a copy with other text helps, nor does admitting a small shard early
capture the large ones that quote it.

A copy with every fifth word swapped is caught; one in other words is not (that is for the influence signal to
see).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, final

from attribution.limits import COPIED_PERCENT, COPY_PERCENT
from attribution.text import shingles

_UNIT: Final = 1 << 20
"""The weight of a shingle that at most one earlier shard holds."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of one admitted shard."""

    original: int
    """Place of the shard whose cluster it belongs to: its own, or an earlier one's."""
    copied: frozenset[int]
    """Places of its documents that are copies of an earlier shard's."""


def judge_shards(shards: Sequence[Sequence[bytes]]) -> tuple[Verdict, ...]:
    """A verdict for each shard (the texts of its documents), in the order of admission."""
    holders: dict[int, list[int]] = {}
    verdicts: list[Verdict] = []
    for place, documents in enumerate(shards):
        pieces = [shingles(document) for document in documents]
        sources = [_source(piece, holders) for piece in pieces]
        verdicts.append(
            Verdict(
                original=_original(place, pieces, sources, verdicts),
                copied=frozenset(number for number, source in enumerate(sources) if source is not None),
            )
        )
        for shingle in frozenset[int]().union(*pieces):
            holders.setdefault(shingle, []).append(place)
    return tuple(verdicts)


def _source(piece: Collection[int], holders: dict[int, list[int]]) -> int | None:
    """The earlier shard that a document is copied from, if any; of several the one with most, then the
    first.
    """
    total = 0
    shared: dict[int, int] = {}
    for shingle in piece:
        earlier = holders.get(shingle, ())
        weight = _UNIT // max(1, len(earlier))
        total += weight
        for place in earlier:
            shared[place] = shared.get(place, 0) + weight
    if not shared:
        return None
    most, place = max((weight, -place) for place, weight in shared.items())
    return -place if most * 100 > total * COPY_PERCENT else None


def _original(
    place: int,
    pieces: Sequence[Collection[int]],
    sources: Sequence[int | None],
    verdicts: Sequence[Verdict],
) -> int:
    """The shard whose cluster this one joins: that which most of its copies come from, or itself."""
    size = sum(map(len, pieces))
    copied: dict[int, int] = {}
    for piece, source in zip(pieces, sources, strict=True):
        if source is not None:
            original = verdicts[source].original
            copied[original] = copied.get(original, 0) + len(piece)
    if sum(copied.values()) * 100 <= size * COPIED_PERCENT:
        return place
    return min(copied, key=lambda original: (-copied[original], original))
