"""A broadcast: everybody who waits is woken by the next change. Nothing is queued."""

from __future__ import annotations

from typing import final

import trio


@final
class Bell:
    """Rings when something changed. `count` tells a late reader whether it missed a ring."""

    def __init__(self) -> None:
        self._event = trio.Event()
        self.count = 0

    def ring(self) -> None:
        self.count += 1
        self._event.set()
        self._event = trio.Event()

    async def wait(self, seen: int) -> int:
        """Returns the current count as soon as it differs from `seen`. Cancelling loses nothing."""
        while self.count == seen:
            await self._event.wait()
        return self.count
