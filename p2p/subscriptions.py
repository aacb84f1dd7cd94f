"""Bounded queues between a transport and those who read its topics. A slow reader loses the oldest frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import trio

from p2p.transport import GossipFrame


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    send: trio.MemorySendChannel[GossipFrame]
    oldest: trio.MemoryReceiveChannel[GossipFrame]
    """A clone of the reader's end, to take out what it did not read in time."""


@final
class Subscriptions:
    """The readers of one transport, by topic."""

    def __init__(self, *, frames_max: int) -> None:
        self._frames_max = frames_max
        self._readers: dict[str, list[_Reader]] = {}
        self.dropped_frames = 0
        """Frames that a reader did not take in time."""

    def topics(self) -> frozenset[str]:
        """Topics with at least one reader so far."""
        return frozenset(self._readers)

    def add(self, topic: str) -> trio.MemoryReceiveChannel[GossipFrame]:
        """A new reader. Closing the channel ends it."""
        send, receive = trio.open_memory_channel[GossipFrame](self._frames_max)
        self._readers.setdefault(topic, []).append(_Reader(send=send, oldest=receive.clone()))
        return receive

    def deliver(self, topic: str, frame: GossipFrame) -> None:
        """Queues `frame` for every reader of `topic`, dropping the oldest where a queue is full."""
        readers = self._readers.get(topic, [])
        for reader in tuple(readers):
            if reader.send.statistics().open_receive_channels < 2:
                reader.send.close()
                reader.oldest.close()
                readers.remove(reader)
                continue
            if reader.send.statistics().current_buffer_used >= self._frames_max:
                reader.oldest.receive_nowait()
                self.dropped_frames += 1
            reader.send.send_nowait(frame)

    def close(self) -> None:
        """Ends every reader's channel, after what is queued."""
        for readers in self._readers.values():
            for reader in readers:
                reader.send.close()
                reader.oldest.close()
        self._readers.clear()
