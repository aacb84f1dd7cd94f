"""Dividing and computing money in whole micro-units. Nothing here rounds money away."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final, TypeVar

from gossip_ledger.records import MicroUnits

Key = TypeVar("Key", bound=bytes)

TOKENS_PER_PRICE: Final = 1000
"""Prices are in micro-units per this many tokens."""


def apportion(amount: MicroUnits, weights: Mapping[Key, int], salt: bytes) -> dict[Key, MicroUnits]:
    """`amount` divided in proportion to `weights`, by largest remainder; the parts add up to `amount`.

    Equal remainders are ordered by `tie(salt, key)`. At least one weight must be positive.
    """
    total = sum(weights.values())
    assert total > 0, "nobody to give it to"
    shares: dict[Key, MicroUnits] = {}
    remainders: list[tuple[int, Key]] = []
    for key, weight in weights.items():
        shares[key], remainder = divmod(amount * weight, total)
        remainders.append((-remainder, key))
    missing = amount - sum(shares.values())
    if missing:
        remainders.sort(key=lambda pair: (pair[0], tie(salt, pair[1])))
        for _, key in remainders[:missing]:
            shares[key] += 1
    return shares


def tie(salt: bytes, key: bytes) -> bytes:
    """Orders equal remainders, smaller hash first: it favours nobody and is the same for all."""
    return hashlib.sha256(b"upkeep/1/tie\0%s%s%s" % (len(salt).to_bytes(2, "big"), salt, key)).digest()


def fee(tokens_in: int, tokens_out: int, price_in: MicroUnits, price_out: MicroUnits) -> MicroUnits:
    """What cumulative token counts cost at prices per 1,000 tokens, rounded up once."""
    return -(-(tokens_in * price_in + tokens_out * price_out) // TOKENS_PER_PRICE)
