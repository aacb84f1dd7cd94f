"""Records over gossip: many in a frame, each handed on once, every queue and rate bounded.

Verifying a frame costs each node of the network milliseconds, so records wait a moment for company: a lone
one leaves after `GOSSIP_FLUSH_S_MIN`, and under steady traffic the wait grows to `GOSSIP_FLUSH_S_MAX`.
Gossip may lose anything; whatever must arrive is also synchronised. What a record says is not looked at here.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from typing import Final, final

import trio

from gossip_ledger.codec import Schema, Table, many, octets_up_to
from gossip_ledger.errors import DecodeError
from gossip_ledger.limits import RECORD_BYTES_MAX
from gossip_ledger.records import AccountId
from p2p import limits
from p2p.buckets import TokenBucket
from p2p.transport import GossipFrame, Transport


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFrame:
    """What one gossip frame carries."""

    records: tuple[bytes, ...]


_RECORDS: Final = many(octets_up_to(RECORD_BYTES_MAX), limits.GOSSIP_RECORDS_MAX, minimum=1)
RECORD_FRAME: Final = Table(90, RecordFrame, (("records", _RECORDS),))
RECORD_FRAMES: Final = Schema(RECORD_FRAME, bytes_max=limits.GOSSIP_FRAME_BYTES_MAX)

_HEAD_BYTES: Final = 8
"""CBOR around the records of a frame, at most."""
_RECORD_HEAD_BYTES: Final = 3
"""CBOR around one record, at most."""

Records = tuple[AccountId, tuple[bytes, ...]]
"""Who handed us the records, and the records that are new to us."""


@final
class RecordGossip:
    """One topic's records. `run` must be running for anything to flow."""

    def __init__(self, transport: Transport, topic: str) -> None:
        self.counts: Counter[str] = Counter()
        """Frames and records by fate: sent, received, malformed, repeated, dropped."""
        self._transport = transport
        self._topic = topic
        self._incoming = transport.subscribe(topic)
        self._send, self._frames = trio.open_memory_channel[Records](limits.GOSSIP_OUTPUT_FRAMES_MAX)
        self._oldest = self._frames.clone()
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._has_queued = trio.Event()
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._buckets: OrderedDict[AccountId, TokenBucket] = OrderedDict()

    def queue(self, record: bytes) -> bool:
        """Publishes `record` soon. False if it was published or received before."""
        assert 0 < len(record) <= RECORD_BYTES_MAX, f"a record of {len(record)} bytes"
        if not self._is_new(record):
            return False
        self._queue.append(record)
        self._queued_bytes += len(record)
        while self._queued_bytes > limits.GOSSIP_QUEUE_BYTES_MAX:
            self._queued_bytes -= len(self._queue.popleft())
            self.counts["records.unsent"] += 1
        self._has_queued.set()
        return True

    def frames(self) -> trio.MemoryReceiveChannel[Records]:
        """Where the records of others come out. One reader."""
        return self._frames

    async def run(self) -> None:
        """Sends and receives until cancelled, or until the transport ends."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_frames)
            async for frame in self._incoming:
                self._take(frame)
            nursery.cancel_scope.cancel()

    async def _send_frames(self) -> None:
        wait_s = limits.GOSSIP_FLUSH_S_MIN
        while True:
            quiet_since_s = trio.current_time()
            await self._has_queued.wait()
            if trio.current_time() - quiet_since_s > wait_s:
                wait_s = limits.GOSSIP_FLUSH_S_MIN
            await trio.sleep(wait_s)
            self.counts["frames.sent"] += 1
            await self._transport.publish(self._topic, RECORD_FRAMES.encode(self._next_frame()))
            wait_s = min(2 * wait_s, limits.GOSSIP_FLUSH_S_MAX)

    def _next_frame(self) -> RecordFrame:
        records: list[bytes] = []
        room = limits.GOSSIP_FRAME_BYTES_MAX - _HEAD_BYTES
        while self._queue and len(records) < limits.GOSSIP_RECORDS_MAX:
            room -= len(self._queue[0]) + _RECORD_HEAD_BYTES
            if room < 0:
                break
            records.append(self._queue.popleft())
            self._queued_bytes -= len(records[-1])
        if not self._queue:
            self._has_queued = trio.Event()
        return RecordFrame(records=tuple(records))

    def _take(self, frame: GossipFrame) -> None:
        self.counts["frames.received"] += 1
        if not self._bucket(frame.forwarder).take(trio.current_time(), len(frame.data)):
            self.counts["frames.over_rate"] += 1
            return
        try:
            records = RECORD_FRAMES.decode(frame.data).records
        except DecodeError:
            self.counts["frames.malformed"] += 1
            return
        fresh = tuple(record for record in records if record and self._is_new(record))
        self.counts["records.repeated"] += len(records) - len(fresh)
        if not fresh:
            return
        if self._send.statistics().current_buffer_used >= limits.GOSSIP_OUTPUT_FRAMES_MAX:
            self._oldest.receive_nowait()
            self.counts["frames.dropped"] += 1
        try:
            self._send.send_nowait((frame.forwarder, fresh))
        except trio.BrokenResourceError:
            self.counts["frames.dropped"] += 1

    def _is_new(self, record: bytes) -> bool:
        """Remembers `record`; False if it was remembered already."""
        digest = hashlib.sha256(record).digest()
        if digest in self._seen:
            self._seen.move_to_end(digest)
            return False
        self._seen[digest] = None
        if len(self._seen) > limits.SEEN_RECORDS_MAX:
            self._seen.popitem(last=False)
        return True

    def _bucket(self, forwarder: AccountId) -> TokenBucket:
        bucket = self._buckets.pop(forwarder, None)
        if bucket is None:
            bucket = TokenBucket(
                per_s=limits.GOSSIP_FORWARDER_BYTES_PER_S,
                burst=limits.GOSSIP_FORWARDER_BYTES_BURST,
                now_s=trio.current_time(),
            )
        self._buckets[forwarder] = bucket
        if len(self._buckets) > limits.FORWARDERS_MAX:
            self._buckets.popitem(last=False)
        return bucket
