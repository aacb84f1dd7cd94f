"""What this peer saw of workers itself: speed, failures, and how long they asked to be left alone."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final, final

from gossip_ledger.records import AccountId
from p2p.transport import Link
from peer.capabilities import Clock
from peer.routing import FAILURES_MAX, Observed

WORKERS_MAX: Final = 1024
"""Workers remembered; the one unseen for longest goes first."""
BUSY_MS: Final = 1000
"""Pause after a refusal that names none."""
FORGIVE_MS: Final = 10_000
"""A worker that failed too often is tried again after this."""


@final
class Observations:
    """A bounded table of `Observed` by worker."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: dict[AccountId, Observed] = {}

    def now_ms(self) -> int:
        """The monotonic clock that `busy_until_ms` is measured by."""
        return int(self._clock.monotonic() * 1000)

    def get(self, worker: AccountId) -> Observed:
        return self._seen.get(worker, Observed())

    def snapshot(self, links: Sequence[Link]) -> dict[AccountId, Observed]:
        """All observations, with the round trips of the links that exist now."""
        found = dict(self._seen)
        for link in links:
            if link.round_trip_ms is not None:
                found[link.peer] = replace(self.get(link.peer), round_trip_ms=link.round_trip_ms)
        return found

    def soonest_ms(self, workers: Iterable[AccountId]) -> int:
        """How long until the first of `workers` may be asked again, milliseconds."""
        now = self.now_ms()
        return max(0, min((self.get(worker).busy_until_ms for worker in workers), default=now) - now)

    def served(self, worker: AccountId, tokens_per_s: int) -> None:
        """An answer ended well at this rate; smoothed, and earlier failures are forgiven."""
        before = self.get(worker)
        rate = tokens_per_s if before.tokens_per_s is None else (3 * before.tokens_per_s + tokens_per_s) // 4
        self._keep(worker, replace(before, tokens_per_s=rate, failures=0, busy_until_ms=0))

    def refused(self, worker: AccountId, retry_after_ms: int) -> None:
        """It said no for now."""
        until = self.now_ms() + (retry_after_ms or BUSY_MS)
        self._keep(worker, replace(self.get(worker), busy_until_ms=until))

    def failed(self, worker: AccountId) -> None:
        """It was lost, or broke the protocol. After `FAILURES_MAX` in a row it is left alone for a while."""
        before = self.get(worker)
        failures = before.failures + 1
        if failures >= FAILURES_MAX:
            self._keep(
                worker, replace(before, failures=FAILURES_MAX - 1, busy_until_ms=self.now_ms() + FORGIVE_MS)
            )
        else:
            self._keep(worker, replace(before, failures=failures))

    @contextmanager
    def in_flight(self, worker: AccountId) -> Generator[None]:
        """Counts a request of ours while it runs."""
        before = self.get(worker)
        self._keep(worker, replace(before, in_flight=before.in_flight + 1))
        try:
            yield
        finally:
            after = self.get(worker)
            self._keep(worker, replace(after, in_flight=max(0, after.in_flight - 1)))

    def _keep(self, worker: AccountId, observed: Observed) -> None:
        self._seen.pop(worker, None)
        self._seen[worker] = observed
        while len(self._seen) > WORKERS_MAX:
            del self._seen[next(iter(self._seen))]
