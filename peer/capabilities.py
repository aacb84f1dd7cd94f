"""Time and chance, as arguments. The only module of the shell that reads a clock or draws from the system.

Whoever needs the time or a random number receives a `Clock` or an `Entropy`; simulations pass the virtual
ones. Cryptographic secrets come from `Entropy.token` alone.
"""

from __future__ import annotations

import os
import random
import time
from typing import Protocol, final

import trio


class Clock(Protocol):
    """Two clocks: one that never jumps, for durations, and one that people share, for dates."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary origin; never goes back. Inside trio only."""
        ...

    def now_s(self) -> int:
        """Unix seconds. May jump when the machine's clock is set."""
        ...


class Entropy(Protocol):
    """A source of chance."""

    def token(self, length: int) -> bytes:
        """`length` random bytes; unpredictable in production."""
        ...

    def randbits(self, bits: int) -> int:
        """A uniform integer in `0 .. 2**bits - 1`."""
        ...

    def generator(self) -> random.Random:
        """A fresh generator for choices that need no secrecy, seeded from this source."""
        ...


@final
class SystemClock:
    """The machine's clocks."""

    def monotonic(self) -> float:
        return trio.current_time()

    def now_s(self) -> int:
        return int(time.time())


@final
class SystemEntropy:
    """The operating system's generator."""

    def token(self, length: int) -> bytes:
        return os.urandom(length)

    def randbits(self, bits: int) -> int:
        return int.from_bytes(os.urandom((bits + 7) // 8), "big") >> (-bits % 8)

    def generator(self) -> random.Random:
        return random.Random(os.urandom(32))


@final
class VirtualClock:
    """Both clocks follow trio's, so that a simulation's clock moves them. Inside trio only.

    `skew_s` is how far this node's wall clock is off.
    """

    def __init__(self, *, start_s: int, skew_s: int = 0) -> None:
        self._start_s = start_s
        self._origin = trio.current_time()
        self.skew_s = skew_s

    def monotonic(self) -> float:
        return trio.current_time()

    def now_s(self) -> int:
        return self._start_s + self.skew_s + int(trio.current_time() - self._origin)


@final
class SeededEntropy:
    """Chance that a seed decides. For simulations and tests; never for a key that holds money."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def token(self, length: int) -> bytes:
        return self._rng.randbytes(length)

    def randbits(self, bits: int) -> int:
        return self._rng.getrandbits(bits) if bits else 0

    def generator(self) -> random.Random:
        return random.Random(self._rng.getrandbits(256))
