"""The first question of a sync: a count and a digest for each of a few ranges of what one side holds.

Ids are in the order of their epochs, then of their bytes. Records without an epoch (acks and releases) have
epoch 0 and so come first, cut by id into ranges of about one size. The others are cut from the newest on: two
ranges of 512 ids, two of 1,024, and so on. What peers do not share is mostly new, so the short ranges
at the end catch it and the long ones before are settled by a few bytes each.

The side that asks decides the bounds, and the other applies them to its own ids: nothing has to be agreed on.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final, final

from gossip_ledger.reconcile import KEY_BYTES, IdSet, separator
from p2p.protocols.limits import SYNC_RANGE_IDS_MIN, SYNC_RANGES_MAX, SYNC_UNDATED_RANGES
from p2p.protocols.session import ProtocolError

EPOCH_BYTES: Final = 8
RANGE_DIGEST_BYTES: Final = 8
"""Salted, so nobody can prepare two ranges with one digest; by chance 2^-64."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """The ids from the bound of the range before up to this bound; the last one has the bound 0 and none."""

    epoch: int
    prefix: bytes
    """Ids of `epoch` below this belong to the range as well."""
    count: int
    digest: bytes

    @property
    def upper(self) -> bytes:
        """The bound as it compares to keys."""
        return self.epoch.to_bytes(EPOCH_BYTES, "big") + self.prefix


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What differs, as seen by the side that was asked."""

    dirty: bytes
    """One bit per range, lowest first."""
    keys: bytes
    """Its own ids in the ranges that differ, each behind its epoch."""
    surplus: int
    """Sum of the differences of the counts: there are at least so many differences."""


_END: Final = bytes(EPOCH_BYTES)


def cut(ids: IdSet, salt: bytes) -> tuple[Range, ...]:
    """All ids of a side, in ranges."""
    total = len(ids.ids)
    undated = ids.find_dated((1).to_bytes(EPOCH_BYTES, "big"))
    parts = max(1, min(SYNC_UNDATED_RANGES, undated // SYNC_RANGE_IDS_MIN))
    cuts = {undated * part // parts for part in range(1, parts + 1)}
    place, size, step = total, SYNC_RANGE_IDS_MIN, 0
    while place > undated:
        cuts.add(place)
        place -= size
        step += 1
        size <<= step % 2 == 0
    ranges: list[Range] = []
    for start, stop in pairwise(sorted(cuts - {0, total} | {0, total}) if total else (0, 0)):
        bound = _END
        if stop < total:
            bound = separator(_key(ids, stop - 1), _key(ids, stop)).ljust(EPOCH_BYTES, b"\0")
        ranges.append(
            Range(
                epoch=int.from_bytes(bound[:EPOCH_BYTES], "big"),
                prefix=bound[EPOCH_BYTES:],
                count=stop - start,
                digest=ids.digest_dated(start, stop, salt)[:RANGE_DIGEST_BYTES],
            )
        )
    assert len(ranges) <= SYNC_RANGES_MAX
    return tuple(ranges)


def select(ids: IdSet, ranges: tuple[Range, ...], salt: bytes) -> Choice:
    """Which of the other side's ranges differ here. Raises `ProtocolError` if they are no ranges."""
    dirty = surplus = start = 0
    keys: list[memoryview] = []
    lower = _END
    for place, part in enumerate(ranges):
        is_last = place == len(ranges) - 1
        if (part.upper == _END) != is_last or (not is_last and part.upper <= lower):
            raise ProtocolError("the ranges are not in order")
        stop = len(ids.ids) if is_last else ids.find_dated(part.upper)
        digest = ids.digest_dated(start, stop, salt)[:RANGE_DIGEST_BYTES]
        if (stop - start, digest) != (part.count, part.digest):
            dirty |= 1 << place
            surplus += abs(stop - start - part.count)
            keys.append(memoryview(ids.dated)[KEY_BYTES * start : KEY_BYTES * stop])
        start, lower = stop, part.upper
    return Choice(
        dirty=dirty.to_bytes((len(ranges) + 7) // 8, "little"),
        keys=b"".join(keys),
        surplus=surplus,
    )


def _key(ids: IdSet, place: int) -> bytes:
    return ids.dated[KEY_BYTES * place : KEY_BYTES * (place + 1)]
