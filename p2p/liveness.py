"""Echoes over a kept stream: whether a peer still answers, by our own clock and at the level of the program.

A stopped process keeps its connections open and its kernel answers; only silence shows that it is gone.
"""

from __future__ import annotations

from typing import Final, final

import trio

from gossip_ledger.records import AccountId
from p2p import limits
from p2p.transport import LinkError, Stream, Transport

PING_PROTOCOL: Final = "/upkeep/ping/1"

_ECHO_BYTES: Final = 8
_LATE_S: Final = 2.0
"""Where a timeout fires this much too late, our own program stood still: the peer is not to blame."""


async def answer_pings(stream: Stream) -> None:
    """Serves `PING_PROTOCOL`: every byte goes back."""
    while data := await stream.read(_ECHO_BYTES):
        await stream.write(data)


@final
class Pulse:
    """Asks one peer for echoes, over one stream that is opened again if it breaks."""

    def __init__(self, transport: Transport, peer: AccountId) -> None:
        self._transport = transport
        self._peer = peer
        self._stream: Stream | None = None
        self._number = 0
        self.round_trip_s: float | None = None

    async def check(self) -> bool:
        """Whether the peer echoed within `LIVENESS_TIMEOUT_S`. Raises `LinkError` if the link is gone."""
        while True:
            start_s = trio.current_time()
            with trio.move_on_after(limits.LIVENESS_TIMEOUT_S):
                await self._echo()
                self.round_trip_s = trio.current_time() - start_s
                return True
            await self.close()
            if trio.current_time() - start_s < limits.LIVENESS_TIMEOUT_S + _LATE_S:
                return False

    async def close(self) -> None:
        """Drops the stream. Never raises."""
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.reset()

    async def _echo(self) -> None:
        if self._stream is not None:
            try:
                await self._exchange(self._stream)
            except LinkError:
                await self.close()
            else:
                return
        self._stream = await self._transport.open(self._peer, PING_PROTOCOL)
        await self._exchange(self._stream)

    async def _exchange(self, stream: Stream) -> None:
        self._number += 1
        sent = self._number.to_bytes(_ECHO_BYTES, "big")
        await stream.write(sent)
        got = b""
        while len(got) < _ECHO_BYTES:
            data = await stream.read(_ECHO_BYTES - len(got))
            if not data:
                raise LinkError("the echo ended")
            got += data
        if got != sent:
            raise LinkError("not an echo")
