"""Sketches of sets: as many cells as two sets have differences, and half as many again, tell all of them.

    mine = Sketch.of(keys, salt)              # my ids, as short ids of 8 bytes
    cells = mine.cells(0, 400)                # sent to the other side; ask for more cells at any time
    found = mine.peel(theirs)                 # the other side's cells against mine; None: more are needed

A rateless invertible Bloom lookup table: the difference of two sketches is the sketch of the difference.
A **short id** is a linear hash of the id under the session's key, mixed, so nobody can prepare ids that
collide. A **cell** is the sum modulo 2^64 of the short ids in it, and the sum modulo 2^32 of a check of each.
Cells come in octaves: octave k is the cells 2^k - 1 .. 2^(k+1) - 2, and a short id lies in one of them, or
in two, as 98 of 256 do. So cells thin out as 1/n does, and any number of them from the first is a sketch.

A cell of the difference that holds one short id shows it: its check fits its sum, or both fit negated where
it is ours. It is taken out of all its cells, which frees others. Where all cells end up empty, everything was
found. Integers throughout; no cell depends on the machine that computes it.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from gossip_ledger.reconcile import ID_BYTES, KEY_BYTES
from gossip_ledger.records import RecordId
from p2p.protocols.limits import PEEL_PASSES_MAX

Words = NDArray[np.uint64]
Places = NDArray[np.int64]

SHORT_BYTES: Final = 8
CELL_BYTES: Final = 12

_BLOCK: Final = 1 << 15
"""Short ids worked on at once: they stay in the processor's cache."""
_SECOND_OF_256: Final = 98
_GOLDEN: Final = 0x9E3779B97F4A7C15
_CHECK: Final = np.uint64(0x6A09E667F3BCC909)
_SAMPLE: Final = np.uint64(0xBB67AE8584CAA73B)

_LEVELS: Final = 16
_LEVEL_BITS: Final = 256
PARITY_BYTES: Final = _LEVELS * _LEVEL_BITS // 8
_CROWDED: Final = 90
"""Odd bits of a level up to which it tells a number: beyond it they say little."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """The first cells of a sketch, or some that follow."""

    sums: Words
    checks: NDArray[np.uint32]

    @staticmethod
    def decode(data: bytes) -> Cells:
        """What `encode` gave; `data` is a whole number of cells."""
        count = len(data) // CELL_BYTES
        return Cells(
            np.frombuffer(data, "<u8", count).astype(np.uint64),
            np.frombuffer(data, "<u4", count, offset=8 * count).astype(np.uint32),
        )

    def encode(self) -> bytes:
        """All sums, then all checks."""
        return self.sums.astype("<u8").tobytes() + self.checks.astype("<u4").tobytes()

    def then(self, more: Cells) -> Cells:
        """These, followed by those."""
        return Cells(
            np.concatenate((self.sums, more.sums)),
            np.concatenate((self.checks, more.checks)),
        )

    def __len__(self) -> int:
        return len(self.sums)


@final
@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """A whole difference, as short ids in rising order."""

    mine: Words
    theirs: Words


@final
@dataclass(frozen=True, slots=True, eq=False)
class Sketch:
    """Ids of this side, as short ids in rising order."""

    shorts: Words
    order: Places
    """Where the id of each short id stands in `keys`."""
    keys: bytes

    @staticmethod
    def of(keys: bytes, salt: bytes) -> Sketch:
        """Sketches ids, given one after the other, each behind its epoch."""
        words = np.frombuffer(keys, "<u8").reshape(-1, KEY_BYTES // 8)
        seed = np.frombuffer(hashlib.sha512(b"upkeep/sync/short" + salt).digest(), "<u8").astype(np.uint64)
        hashed = np.full(len(words), seed[0], np.uint64)
        for column in range(ID_BYTES // 8):
            hashed += words[:, column + 1].astype(np.uint64) * (seed[column + 1] | np.uint64(1))
        shorts = _mix(hashed)
        order = np.argsort(shorts, kind="stable")
        return Sketch(shorts[order], order, keys)

    def __len__(self) -> int:
        return len(self.shorts)

    def cells(self, start: int, stop: int) -> Cells:
        """The cells `start .. stop`."""
        sums, checks = np.zeros(stop - start, np.uint64), np.zeros(stop - start, np.uint32)
        for block in range(0, len(self.shorts), _BLOCK):
            shorts = self.shorts[block : block + _BLOCK]
            marks = _check(shorts)
            for places, members in _places(shorts, start, stop):
                np.add.at(sums, places, shorts[members])
                np.add.at(checks, places, marks[members])
        return Cells(sums, checks)

    def count_to(self, short: Words) -> int:
        """How many short ids of this side are at most the one in `short`."""
        return int(np.searchsorted(self.shorts, short, side="right")[0])

    def has(self, shorts: Words) -> NDArray[np.bool_]:
        """Which of `shorts` are of this side."""
        if not len(self.shorts):
            return np.zeros(len(shorts), np.bool_)
        at = np.minimum(np.searchsorted(self.shorts, shorts), len(self.shorts) - 1)
        return self.shorts[at] == shorts

    def ids(self, shorts: Words) -> tuple[RecordId, ...]:
        """The ids behind `shorts`, all of this side."""
        places = self.order[np.searchsorted(self.shorts, shorts)].tolist()
        return tuple(
            RecordId(self.keys[KEY_BYTES * (place + 1) - ID_BYTES : KEY_BYTES * (place + 1)])
            for place in places
        )

    def peel(self, theirs: Cells) -> Found | None:
        """Both differences to the side that these are the first cells of; None if they do not tell all."""
        size = len(theirs)
        ours = self.cells(0, size)
        peeled = _peel(theirs.sums - ours.sums, theirs.checks - ours.checks)
        if peeled is None:
            return None
        found = Found(*(np.sort(shorts) for shorts in peeled))
        distinct = all(len(np.unique(shorts)) == len(shorts) for shorts in (found.mine, found.theirs))
        is_true = distinct and self.has(found.mine).all() and not self.has(found.theirs).any()
        return found if is_true else None

    def parity(self) -> bytes:
        """Whether an even or an odd number of the short ids fell on each bit; two tell about how many differ.

        Level k has 256 bits for one of 2^(k+1) short ids; the last takes the rest.
        """
        odd = np.zeros((_LEVELS, _LEVEL_BITS), np.uint8)
        hashed = _mix(self.shorts ^ _SAMPLE)
        bits = (hashed >> np.uint64(56)).astype(np.int64)
        for level in range(_LEVELS):
            here = (hashed >> np.uint64(level)) & np.uint64(1) == 1
            if level == _LEVELS - 1:
                here[:] = True
            odd[level] = np.bincount(bits[here], minlength=_LEVEL_BITS) & 1
            hashed, bits = hashed[~here], bits[~here]
        return np.packbits(odd, bitorder="little").tobytes()


def estimate(mine: bytes, theirs: bytes) -> int:
    """About how many differences two sets have, from their parities; off by a tenth, mostly."""
    bits = int.from_bytes(mine, "little") ^ int.from_bytes(theirs, "little")
    seen = 0.0
    for level in reversed(range(_LEVELS)):
        odd = (bits >> _LEVEL_BITS * level & (1 << _LEVEL_BITS) - 1).bit_count()
        if odd > _CROWDED:
            return round(seen * 2 ** (level + 1)) or 2 ** (level + 1) * _LEVEL_BITS
        seen += -_LEVEL_BITS / 2 * math.log(1 - 2 * odd / _LEVEL_BITS)
    return round(seen)


def shorts_of(data: bytes) -> Words:
    """Short ids from their wire form."""
    return np.frombuffer(data, "<u8").astype(np.uint64)


def packed(shorts: Words) -> bytes:
    """The wire form of short ids."""
    return shorts.astype("<u8").tobytes()


def _mix(words: Words) -> Words:
    """A permutation of the 64-bit words without pattern (the finalizer of splitmix64)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _check(shorts: Words) -> NDArray[np.uint32]:
    return (_mix(shorts ^ _CHECK) & np.uint64(0xFFFFFFFF)).astype(np.uint32)


def _places(shorts: Words, start: int, stop: int) -> list[tuple[Places, Places]]:
    """The cells `start .. stop` that each short id lies in: cells less `start`, and who is there."""
    found: list[tuple[Places, Places]] = []
    for octave in range((start + 1).bit_length() - 1, stop.bit_length()):
        first_cell = (1 << octave) - 1
        hashed = _mix(shorts + np.uint64((octave + 1) * _GOLDEN & 0xFFFFFFFFFFFFFFFF))
        within = np.uint64(first_cell)
        one = (hashed & within).astype(np.int64)
        two = ((hashed >> np.uint64(24)) & within).astype(np.int64)
        is_twice = (hashed >> np.uint64(56) < np.uint64(_SECOND_OF_256)) & (one != two)
        for places, mask in ((one, None), (two, is_twice)):
            cells = places + (first_cell - start)
            inside = (cells >= 0) & (cells < stop - start)
            members = np.flatnonzero(inside if mask is None else inside & mask)
            found.append((cells[members], members))
    return found


def _peel(sums: Words, checks: NDArray[np.uint32]) -> tuple[Words, Words] | None:
    """Takes a difference of sketches apart, in place: what only we have, what only they have."""
    size, total = len(sums), 0
    mine: list[Words] = []
    theirs: list[Words] = []
    active: Places = np.arange(size)
    for _ in range(PEEL_PASSES_MAX):
        held = active[(sums[active] != 0) | (checks[active] != 0)]
        plain, negated = sums[held], np.uint64(0) - sums[held]
        fits = _check(plain) == checks[held]
        fits_negated = _check(negated) == np.uint32(0) - checks[held]
        plus, minus = np.unique(plain[fits]), np.unique(negated[fits_negated])
        total += len(plus) + len(minus)
        if not len(plus) + len(minus) or total > size:
            break
        touched: list[Places] = []
        for shorts, ufunc in ((plus, np.subtract), (minus, np.add)):
            marks = _check(shorts)
            for places, members in _places(shorts, 0, size):
                ufunc.at(sums, places, shorts[members])
                ufunc.at(checks, places, marks[members])
                touched.append(places)
        theirs.append(plus)
        mine.append(minus)
        active = np.unique(np.concatenate(touched))
    if sums.any() or checks.any():
        return None
    nothing = np.zeros(0, np.uint64)
    return np.concatenate([nothing, *mine]), np.concatenate([nothing, *theirs])
