"""The messages by which two peers find their differences, as frozen values, and their field tables.

One schema per direction. In which order they may come is in `differences.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from gossip_ledger.codec import Schema, Table, many, nested, octets, octets_up_to, uint
from gossip_ledger.limits import RECONCILE_BYTES_MAX
from gossip_ledger.reconcile import KEY_BYTES, SALT_BYTES
from p2p.protocols.limits import SYNC_CELLS_MAX, SYNC_RANGES_MAX
from p2p.protocols.ranges import EPOCH_BYTES, RANGE_DIGEST_BYTES, Range
from p2p.protocols.sketch import PARITY_BYTES


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """The initiator's first message."""

    salt: bytes
    """Random; the key of digests and short ids."""
    ranges: tuple[Range, ...]
    """In order; the last one ends with the space."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """The responder's first message. Without a range that differs it is the last of all."""

    dirty: bytes
    """One bit per range, lowest first: set where the digests differ."""
    count: int
    """The responder's ids in those ranges."""
    parity: bytes
    """Of those ids; empty where they are listed."""
    cells: bytes
    """The first cells over those ids."""
    listed: bytes
    """Their short ids instead, from the lowest, as many as find room."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MoreCells:
    """The initiator needs the cells up to `stop`."""

    stop: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MoreShorts:
    """The initiator prefers short ids, those after the first `start`."""

    start: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Answers a question: cells or short ids."""

    data: bytes


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the initiator found out, as short ids that rise strictly, also from part to part."""

    offered: bytes
    """Held by the initiator alone."""
    wanted: bytes
    """Held by the responder alone."""
    is_last: int
    is_cut: int
    """1 if a bound was reached, so differences may remain."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """The responder took a part of `Found` and waits for the next."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """The initiator goes on with ranges: the first message of `reconcile`."""

    data: bytes


_RANGE = Table(
    1,
    Range,
    (
        ("epoch", uint(2 ** (8 * EPOCH_BYTES) - 1)),
        ("prefix", octets_up_to(KEY_BYTES - EPOCH_BYTES)),
        ("count", uint()),
        ("digest", octets(RANGE_DIGEST_BYTES)),
    ),
)
_page = octets_up_to(RECONCILE_BYTES_MAX)
_OPENING = Table(
    2,
    Opening,
    (("salt", octets(SALT_BYTES)), ("ranges", many(nested(_RANGE), SYNC_RANGES_MAX, minimum=1))),
)
_OVERVIEW = Table(
    3,
    Overview,
    (
        ("dirty", octets_up_to((SYNC_RANGES_MAX + 7) // 8)),
        ("count", uint()),
        ("parity", octets(PARITY_BYTES, or_empty=True)),
        ("cells", _page),
        ("listed", _page),
    ),
)
_TO_RESPONDER = (
    _OPENING,
    Table(4, MoreCells, (("stop", uint(SYNC_CELLS_MAX)),)),
    Table(5, MoreShorts, (("start", uint()),)),
    Table(7, Found, (("offered", _page), ("wanted", _page), ("is_last", uint(1)), ("is_cut", uint(1)))),
    Table(9, Fallback, (("data", _page),)),
)
_TO_INITIATOR = (_OVERVIEW, Table(6, Page, (("data", _page),)), Table(8, Noted, ()))
TO_RESPONDER = Schema(*_TO_RESPONDER, bytes_max=RECONCILE_BYTES_MAX)
TO_INITIATOR = Schema(*_TO_INITIATOR, bytes_max=RECONCILE_BYTES_MAX)
