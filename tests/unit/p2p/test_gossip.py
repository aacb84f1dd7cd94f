"""Record gossip over the memory transport, in virtual time."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random

import pytest
import trio
from trio.testing import MockClock

from gossip_ledger.limits import RECORD_BYTES_MAX
from gossip_ledger.records import AccountId
from p2p import limits
from p2p.gossip import RECORD_FRAMES, RecordFrame, RecordGossip
from p2p.memory_transport import MemoryNetwork, MemoryTransport

TOPIC = "records"


@dataclass
class Node:
    transport: MemoryTransport
    gossip: RecordGossip

    async def collect(self, count: int) -> list[bytes]:
        """The next `count` records."""
        got: list[bytes] = []
        with trio.fail_after(60):
            while len(got) < count:
                got += (await self.gossip.frames().receive())[1]
        return got


@asynccontextmanager
async def line(length: int) -> AsyncGenerator[list[Node]]:
    """Nodes in a row, each linked to the next."""
    network = MemoryNetwork(Random(3))

    @asynccontextmanager
    async def build(number: int) -> AsyncGenerator[list[Node]]:
        account = AccountId(bytes([number]) * 32)
        async with network.transport(account) as transport, trio.open_nursery() as nursery:
            node = Node(transport, RecordGossip(transport, TOPIC))
            nursery.start_soon(node.gossip.run)
            if number == length:
                yield [node]
            else:
                async with build(number + 1) as rest:
                    await transport.dial(rest[0].transport.addresses[0])
                    yield [node, *rest]
            nursery.cancel_scope.cancel()

    async with build(1) as nodes:
        yield nodes


async def test_a_lone_record_leaves_soon(autojump_clock: MockClock) -> None:
    async with line(3) as (a, _b, c):
        await trio.sleep(5)
        start = trio.current_time()
        assert a.gossip.queue(b"record")
        forwarder, records = await c.gossip.frames().receive()
        assert records == (b"record",)
        assert forwarder == _b.transport.account
        assert trio.current_time() - start == pytest.approx(limits.GOSSIP_FLUSH_S_MIN, abs=0.05)


async def test_records_share_frames(autojump_clock: MockClock) -> None:
    async with line(2) as (a, b):
        records = [number.to_bytes(4, "big") * 50 for number in range(1, 401)]
        for record in records:
            a.gossip.queue(record)
        assert sorted(await b.collect(400)) == records
        size = sum(map(len, records))
        assert a.gossip.counts["frames.sent"] == size // limits.GOSSIP_FRAME_BYTES_MAX + 1


async def test_steady_traffic_costs_about_a_frame_a_second(autojump_clock: MockClock) -> None:
    async with line(2) as (a, b):
        for number in range(2000):
            a.gossip.queue(number.to_bytes(4, "big"))
            await trio.sleep(0.01)
        await b.collect(2000)
        assert a.gossip.counts["frames.sent"] < 30


async def test_the_largest_records_fit(autojump_clock: MockClock) -> None:
    async with line(2) as (a, b):
        records = [bytes([number]) * RECORD_BYTES_MAX for number in range(40)]
        for record in records:
            a.gossip.queue(record)
        assert sorted(await b.collect(40)) == records


async def test_a_record_is_handed_over_once(autojump_clock: MockClock) -> None:
    async with line(3) as (a, b, c):
        a.gossip.queue(b"one")
        assert not a.gossip.queue(b"one"), "we published it"
        assert await b.collect(1) == [b"one"]
        assert not b.gossip.queue(b"one"), "we received it"
        assert await c.collect(1) == [b"one"]
        await a.transport.publish(TOPIC, RECORD_FRAMES.encode(RecordFrame(records=(b"one", b"two"))))
        assert await c.collect(1) == [b"two"]
        assert c.gossip.counts["records.repeated"] == 1


async def test_malformed_frames_are_counted_and_change_nothing(autojump_clock: MockClock) -> None:
    async with line(2) as (a, b):
        for data in (b"", b"\x00", b"\xff" * 100, RECORD_FRAMES.encode(RecordFrame(records=(b"x",))) + b"\0"):
            await a.transport.publish(TOPIC, data)
        a.gossip.queue(b"good")
        assert await b.collect(1) == [b"good"]
        assert b.gossip.counts["frames.malformed"] == 4


async def test_a_flooding_neighbour_is_cut_to_its_rate(autojump_clock: MockClock) -> None:
    async with line(2) as (a, b):
        frame_bytes = 60_000
        total = 2 * limits.GOSSIP_FORWARDER_BYTES_BURST // frame_bytes
        for number in range(total):
            record = number.to_bytes(4, "big") * 1000
            await a.transport.publish(TOPIC, RECORD_FRAMES.encode(RecordFrame(records=(record,) * 15)))
        await trio.sleep(1)
        passed = total - b.gossip.counts["frames.over_rate"]
        assert passed * frame_bytes == pytest.approx(limits.GOSSIP_FORWARDER_BYTES_BURST, rel=0.2)
        await trio.sleep(60)
        a.gossip.queue(b"later")
        await trio.sleep(1)
        assert b.gossip.counts["frames.over_rate"] == total - passed, "the bucket fills again"


async def test_queues_are_bounded(autojump_clock: MockClock) -> None:
    async with line(2) as (a, b):
        for number in range(limits.GOSSIP_QUEUE_BYTES_MAX // 4000 + 10):
            a.gossip.queue(number.to_bytes(4, "big") * 1000)
        assert a.gossip.counts["records.unsent"] > 0
        for number in range(limits.GOSSIP_OUTPUT_FRAMES_MAX + 5):
            frame = RecordFrame(records=(number.to_bytes(8, "big"),))
            await a.transport.publish(TOPIC, RECORD_FRAMES.encode(frame))
        await trio.sleep(1)
        assert b.gossip.counts["frames.dropped"] > 0
