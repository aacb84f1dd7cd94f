"""Frames over a byte stream: an unsigned varint length, then that many bytes. No I/O here.

`FrameDecoder` takes bytes as they come and yields whole frames. The length is judged before anything is kept
for it. A length must be written in its shortest form and a frame is never empty. After an error the decoder
raises it again for ever.
"""

from __future__ import annotations

from typing import Final, final

from gossip_ledger.errors import RemoteError

_MORE: Final = 0x80
_BITS: Final = 7


class FrameError(RemoteError):
    """Bytes that are not a sequence of frames within the limit."""


def encode_length(length: int) -> bytes:
    """The shortest unsigned varint of `length`."""
    assert length >= 0
    head = bytearray()
    while length >= _MORE:
        head.append(length & 0x7F | _MORE)
        length >>= _BITS
    head.append(length)
    return bytes(head)


def encode_frame(payload: bytes) -> bytes:
    """One frame. `payload` is not empty."""
    assert payload, "frames are never empty"
    return encode_length(len(payload)) + payload


@final
class FrameDecoder:
    """Splits one direction of one stream into frames of at most `frame_bytes_max` bytes."""

    def __init__(self, frame_bytes_max: int) -> None:
        assert frame_bytes_max > 0
        self._frame_bytes_max = frame_bytes_max
        self._length_bytes_max = len(encode_length(frame_bytes_max))
        self._buffer = bytearray()
        self._error: str | None = None

    def receive(self, data: bytes) -> None:
        """Appends `data`. Take every frame out before the next call: that is what bounds the memory."""
        self._buffer += data

    def next_frame(self) -> bytes | None:
        """The next whole frame, or None until more bytes come. Raises `FrameError` and nothing else."""
        if self._error is not None:
            raise FrameError(self._error)
        header = self._read_length()
        if header is None:
            return None
        start, length = header
        if len(self._buffer) < start + length:
            return None
        frame = bytes(self._buffer[start : start + length])
        del self._buffer[: start + length]
        return frame

    def finish(self) -> None:
        """The stream has ended. Raises `FrameError` if it ended inside a frame."""
        if self._error is None and self._buffer:
            self._fail(f"the stream ended inside a frame, after {len(self._buffer)} bytes of it")
        if self._error is not None:
            raise FrameError(self._error)

    def _read_length(self) -> tuple[int, int] | None:
        """Where the payload starts and how long it is; None until the length is complete."""
        length = 0
        for index, byte in enumerate(self._buffer[: self._length_bytes_max]):
            length |= (byte & 0x7F) << (_BITS * index)
            if byte & _MORE:
                continue
            if byte == 0 and index > 0:
                self._fail("a frame length is not in its shortest form")
            if length == 0:
                self._fail("a frame is empty")
            if length > self._frame_bytes_max:
                self._fail(f"a frame of {length} bytes exceeds {self._frame_bytes_max}")
            return index + 1, length
        if len(self._buffer) >= self._length_bytes_max:
            self._fail(f"a frame length exceeds {self._frame_bytes_max}")
        return None

    def _fail(self, reason: str) -> None:
        self._error = reason
        self._buffer.clear()
        raise FrameError(reason)
