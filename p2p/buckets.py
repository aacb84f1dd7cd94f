"""Token buckets: so many in a burst, so many per second in the long run. No clock of its own."""

from __future__ import annotations

from typing import final


@final
class TokenBucket:
    """Starts full. Times are seconds of any clock that never goes back."""

    def __init__(self, *, per_s: float, burst: float, now_s: float) -> None:
        assert per_s > 0
        assert burst >= 1
        self._per_s = per_s
        self._burst = burst
        self._tokens = burst
        self._updated_s = now_s

    def take(self, now_s: float, amount: float = 1) -> bool:
        """Takes `amount` if that much is there, else nothing."""
        self._tokens = min(self._burst, self._tokens + (now_s - self._updated_s) * self._per_s)
        self._updated_s = now_s
        if self._tokens < amount:
            return False
        self._tokens -= amount
        return True
