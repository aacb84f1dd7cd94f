"""Frames over a transport stream, and the one way to end a stream.

`FrameChannel` may be read by one task and written by many. Cancelling `receive` loses nothing. Cancelling
`send` half-way tears the outgoing side, and every later `send` says so.
"""

from __future__ import annotations

from types import TracebackType
from typing import Final, Self, final

import trio

from gossip_ledger.records import AccountId
from p2p.framing import FrameDecoder, encode_frame
from p2p.limits import CLOSE_LINGER_S, CONTROL_FRAME_BYTES_MAX, WRITE_PIECE_BYTES
from p2p.transport import LinkError, Stream

_READ_BYTES: Final = WRITE_PIECE_BYTES


class SilenceError(LinkError):
    """The peer sent no whole frame in time."""


@final
class FrameChannel:
    """Whole frames of at most `frame_bytes_max` bytes, both ways, over one stream that it owns."""

    def __init__(self, stream: Stream, *, frame_bytes_max: int = CONTROL_FRAME_BYTES_MAX) -> None:
        self._stream = stream
        self._frame_bytes_max = frame_bytes_max
        self._decoder = FrameDecoder(frame_bytes_max)
        self._send_lock = trio.Lock()
        self._is_torn = False
        self._is_ended = False

    @property
    def remote(self) -> AccountId:
        return self._stream.remote

    async def send(self, payload: bytes) -> None:
        """Sends one frame. Raises `LinkError`."""
        assert 0 < len(payload) <= self._frame_bytes_max, f"a frame of {len(payload)} bytes"
        async with self._send_lock:
            if self._is_torn:
                raise LinkError("an earlier frame was cut short; the stream takes no more")
            self._is_torn = True
            await self._stream.write(encode_frame(payload))
            self._is_torn = False

    async def receive(self, timeout_s: float | None = None) -> bytes | None:
        """The next frame, or None at a clean end.

        Raises `SilenceError` after `timeout_s`, `FrameError` for broken framing or an end inside a frame, and
        `LinkError`.
        """
        with trio.move_on_after(float("inf") if timeout_s is None else timeout_s):
            return await self._receive()
        raise SilenceError(f"no frame within {timeout_s} s")

    async def finish(self) -> None:
        """Ends our side; receiving goes on. Raises `LinkError`."""
        async with self._send_lock:
            await self._stream.close_write()

    async def close(self) -> None:
        """Ends the stream in good order if the peer plays along, else resets it. Never raises."""
        await close_stream(self._stream)

    async def reset(self) -> None:
        """Drops the stream now. Never raises."""
        await self._stream.reset()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes in good order after success, resets after an error or cancellation."""
        if error is None:
            await self.close()
        else:
            with trio.CancelScope(shield=True):
                await self.reset()

    async def _receive(self) -> bytes | None:
        while not self._is_ended:
            frame = self._decoder.next_frame()
            if frame is not None:
                return frame
            data = await self._stream.read(_READ_BYTES)
            if data:
                self._decoder.receive(data)
            else:
                self._is_ended = True
        self._decoder.finish()
        return None


async def close_stream(stream: Stream) -> None:
    """Ends our side, waits at most `CLOSE_LINGER_S` for the other to end its own, then drops the stream.

    What the peer still sends is thrown away. Raises nothing of its own. Cancelled, it drops the stream now.
    """
    try:
        with trio.move_on_after(CLOSE_LINGER_S):
            await stream.close_write()
            while await stream.read(_READ_BYTES):
                pass
    except LinkError:
        pass
    finally:
        with trio.CancelScope(shield=True):
            await stream.reset()
