"""What the operator of a worker decides while it runs: its prices, and whether it takes work on.

One `Trade` is read by whoever quotes, admits and advertises, so a decision holds from that moment. Prices
outlive the daemon, by way of `keep`; being closed does not: a daemon that starts is open.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, final

EXPOSURE_ASKS: Final = 8
"""A worker risks about this many answers of `TYPICAL_TOKENS` on an open that is not final yet."""
TYPICAL_TOKENS: Final = 512


class Standing(StrEnum):
    """Whether a worker takes questions."""

    OPEN = "open"
    PAUSED = "paused"
    """Not for now."""
    DRAINING = "draining"
    """Not any more: it is about to stop."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What a worker charges, micro-units per 1,000 tokens."""

    tokens_in: int
    tokens_out: int

    @property
    def exposure(self) -> int:
        """Most that one payer may owe under opens that are not final yet, micro-units."""
        return EXPOSURE_ASKS * max(1, TYPICAL_TOKENS * (self.tokens_in + self.tokens_out) // 1000)


Keep = Callable[[Prices], Awaitable[None]]
"""Writes prices down for the next start. Raises `LocalError`."""


async def forget(prices: Prices) -> None:
    """A `Keep` that keeps nothing."""
    del prices


@final
class Trade:
    """One worker's decisions."""

    def __init__(self, prices: Prices, keep: Keep = forget) -> None:
        self.prices: Prices = prices
        self.standing: Standing = Standing.OPEN
        self._keep = keep

    @property
    def is_open(self) -> bool:
        """Whether new questions are taken."""
        return self.standing is Standing.OPEN

    async def charge(self, prices: Prices) -> None:
        """New prices, for quotes from now on; quotes that were given hold. Raises `LocalError` where they
        cannot be written down, and then nothing changes."""
        await self._keep(prices)
        self.prices = prices
