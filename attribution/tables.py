"""Which clusters hold which n-grams: the published table that overlap is computed from.

An n-gram is kept by the first 40 bits of its name, with the set of clusters that hold it (its group). N-grams
that all clusters share, or more than `POSTING_CLUSTERS_MAX`, carry no information and are left out. Equal
texts give equal bytes, whatever the order of the texts inside a cluster. A file from elsewhere is parsed
strictly: one encoding per table, every bound checked before anything is allocated for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast, final

import numpy as np
from numpy.typing import NDArray

from attribution.fixed_point import log2_q8
from attribution.limits import (
    POSTING_CLUSTERS_MAX,
    TABLES_BYTES_MAX,
    TABLES_GROUPS_MAX,
    TABLES_KEYS_MAX,
)
from attribution.text import ngrams, words
from gossip_ledger.codec import Schema, Table, many, nested, octets_up_to, uint
from gossip_ledger.limits import CLUSTERS_MAX

KEY_BYTES: Final = 5
"""Bytes of an n-gram's name that tables keep."""
KEY_SHIFT: Final = 64 - 8 * KEY_BYTES


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A set of clusters that share n-grams."""

    clusters: tuple[int, ...]
    """Places in the manifest's list of clusters, ascending."""

    def __post_init__(self) -> None:
        if any(low >= high for low, high in zip(self.clusters, self.clusters[1:], strict=False)):
            raise ValueError("clusters must ascend")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TableFile:
    """The tables of one model, as they are encoded."""

    clusters: int
    groups: tuple[Group, ...]
    """Ascending, each used."""
    keys: bytes
    """`KEY_BYTES` per n-gram, big-endian, ascending."""
    places: bytes
    """Per n-gram the place of its group: 1, 2 or 4 bytes, big-endian, the least that holds them all."""

    def __post_init__(self) -> None:
        count, rest = divmod(len(self.keys), KEY_BYTES)
        if rest or len(self.places) != count * place_width(len(self.groups)):
            raise ValueError("keys and places must match")
        for group in self.groups:
            size = len(group.clusters)
            if group.clusters[-1] >= self.clusters or size >= self.clusters or size > POSTING_CLUSTERS_MAX:
                raise ValueError("a group must be a smaller set of the clusters")
        if any(
            low.clusters >= high.clusters for low, high in zip(self.groups, self.groups[1:], strict=False)
        ):
            raise ValueError("groups must ascend")
        keys, places = self.key_array(), self.place_array()
        if count and not bool((keys[1:] > keys[:-1]).all()):
            raise ValueError("keys must ascend")
        if np.unique(places).tolist() != list(range(len(self.groups))):
            raise ValueError("every group must be used, and no other")

    def key_array(self) -> NDArray[np.uint64]:
        """The keys as numbers."""
        raw = np.frombuffer(self.keys, dtype=np.uint8).reshape(-1, KEY_BYTES)
        wide = np.zeros((raw.shape[0], 8), dtype=np.uint8)
        wide[:, 8 - KEY_BYTES :] = raw
        return wide.view(">u8").reshape(-1).astype(np.uint64)

    def place_array(self) -> NDArray[np.int64]:
        """The groups' places as numbers."""
        width = place_width(len(self.groups))
        return np.frombuffer(self.places, dtype=f">u{width}").astype(np.int64)


def place_width(groups: int) -> int:
    """Bytes that a place among `groups` takes."""
    return 1 if groups <= 1 << 8 else 2 if groups <= 1 << 16 else 4


_GROUP: Final = Table(
    80, Group, (("clusters", many(uint(CLUSTERS_MAX - 1), POSTING_CLUSTERS_MAX, minimum=1)),)
)
_FILE: Final = Table(
    81,
    TableFile,
    (
        ("clusters", uint(CLUSTERS_MAX)),
        ("groups", many(nested(_GROUP), TABLES_GROUPS_MAX)),
        ("keys", octets_up_to(TABLES_KEYS_MAX * KEY_BYTES)),
        ("places", octets_up_to(TABLES_KEYS_MAX * 4)),
    ),
)
TABLES: Final = Schema(_FILE, bytes_max=TABLES_BYTES_MAX)
"""What a manifest's first table file holds."""


def build_tables(texts: Sequence[Iterable[bytes]]) -> TableFile:
    """The table file over the texts of each cluster, clusters in the manifest's order."""
    assert len(texts) <= CLUSTERS_MAX, "more clusters than a manifest can name"
    held = [_keys_of(own) for own in texts]
    keys = np.concatenate([np.zeros(0, dtype=np.uint64), *held])
    owners = np.repeat(np.arange(len(held), dtype=np.int64), [len(own) for own in held])
    order = np.lexsort((owners, keys))
    keys, owners = keys[order], owners[order]
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))[: len(keys)]
    ends = np.append(starts, len(keys))[1:]
    sets: dict[tuple[int, ...], list[int]] = {}
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        if end - start < len(held) and end - start <= POSTING_CLUSTERS_MAX:
            sets.setdefault(tuple(owners[start:end].tolist()), []).append(start)
    return _assemble(len(held), keys, sets)


def _keys_of(texts: Iterable[bytes]) -> NDArray[np.uint64]:
    found: set[int] = set()
    for text in texts:
        found.update(name >> KEY_SHIFT for name in ngrams(words(text)))
    return np.array(sorted(found), dtype=np.uint64)


def _assemble(
    clusters: int, keys: NDArray[np.uint64], sets: Mapping[tuple[int, ...], list[int]]
) -> TableFile:
    groups = sorted(sets)
    kept = np.array([start for group in groups for start in sets[group]], dtype=np.int64)
    places = np.repeat(np.arange(len(groups), dtype=np.int64), [len(sets[group]) for group in groups])
    chosen = keys[kept]
    order = np.argsort(chosen, kind="stable")
    wide = chosen[order].astype(">u8").view(np.uint8).reshape(-1, 8)
    return TableFile(
        clusters=clusters,
        groups=tuple(Group(clusters=group) for group in groups),
        keys=wide[:, 8 - KEY_BYTES :].tobytes(),
        places=places[order].astype(f">u{place_width(len(groups))}").tobytes(),
    )


@final
class Tables:
    """What a table file says, ready for look-ups."""

    def __init__(self, file: TableFile) -> None:
        self.clusters = file.clusters
        self.groups = tuple(group.clusters for group in file.groups)
        self.worth = tuple(_worth(len(group), file.clusters) for group in self.groups)
        """Per group: the information in one of its n-grams for each of its clusters, 2^-16 of `log2_q8`."""
        self._keys = file.key_array()
        self._places = file.place_array()
        counts = np.bincount(self._places, minlength=len(self.groups)).tolist()
        self.masses = self.spread(counts)
        """Per cluster: the information in everything that it holds, in the same unit."""

    def places_of(self, names: Sequence[int]) -> list[int]:
        """For each n-gram the place of its group, or -1 where it is in no table."""
        wanted = np.array(names, dtype=np.uint64) >> np.uint64(KEY_SHIFT)
        if not len(self._keys):
            return [-1] * len(names)
        at = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        return np.where(self._keys[at] == wanted, self._places[at], -1).tolist()

    def spread(self, counts: Sequence[int]) -> tuple[int, ...]:
        """Per cluster: the information in `counts` n-grams of each group. Exact integers."""
        totals = [0] * self.clusters
        for group, worth, count in zip(self.groups, self.worth, counts, strict=True):
            if count:
                for cluster in group:
                    totals[cluster] += worth * count
        return tuple(totals)

    def counts(self, names: Iterable[int]) -> list[int]:
        """How many different n-grams of `names` fall into each group."""
        distinct = {name >> KEY_SHIFT for name in names}
        counts = [0] * len(self.groups)
        for place in self.places_of([key << KEY_SHIFT for key in distinct]):
            if place >= 0:
                counts[place] += 1
        return counts


def _worth(holders: int, clusters: int) -> int:
    """What one n-gram says for each of its `holders`: its information, shared among them."""
    return ((log2_q8(clusters) - log2_q8(holders)) << 16) // holders


def decode_tables(data: bytes) -> Tables:
    """Tables from the bytes of their file. Raises `DecodeError`."""
    return Tables(cast("TableFile", TABLES.decode(data)))
