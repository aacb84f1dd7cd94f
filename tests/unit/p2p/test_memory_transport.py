"""The faults of the memory network look as they do on real wires."""

from __future__ import annotations

from random import Random

import pytest
import trio
from trio.testing import MockClock

from gossip_ledger.records import AccountId
from p2p.limits import DIAL_TIMEOUT_S, INBOUND_STREAMS_MAX, SUBSCRIPTION_FRAMES_MAX
from p2p.memory_transport import MemoryNetwork
from p2p.transport import DialError, LinkError, Stream

A, B, C = (AccountId(letter * 32) for letter in (b"a", b"b", b"c"))
PROTOCOL = "/upkeep/test/1"
TOPIC = "topic"


async def echo(stream: Stream) -> None:
    while data := await stream.read(1000):
        await stream.write(data)


async def test_a_cut_is_silent_and_healing_delivers_what_was_under_way(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(Random(1))
    async with network.transport(A) as a, network.transport(B) as b:
        b.serve(PROTOCOL, echo)
        await a.dial(b.addresses[0])
        stream = await a.open(B, PROTOCOL)
        network.partition({A}, {B})
        await stream.write(b"into the void")
        with trio.move_on_after(100) as scope:
            await stream.read(100)
        assert scope.cancelled_caught
        assert a.links()
        assert b.links()
        network.heal()
        with trio.fail_after(1):
            assert await stream.read(100) == b"into the void"


async def test_dial_and_open_time_out_over_a_cut(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(Random(1))
    async with network.transport(A) as a, network.transport(B) as b:
        await a.dial(b.addresses[0])
        network.freeze(B)
        with pytest.raises(LinkError):
            await a.open(B, PROTOCOL)
        await a.disconnect(B)
        assert not a.links()
        assert b.links(), "the frozen side cannot know"
        start = trio.current_time()
        with pytest.raises(DialError):
            await a.dial(b.addresses[0])
        assert trio.current_time() - start == pytest.approx(DIAL_TIMEOUT_S, abs=0.1)
        network.thaw(B)
        await trio.sleep(1)
        assert not b.links(), "and learns when it wakes"
        await a.dial(b.addresses[0])
        assert b.links()


async def test_an_address_that_changed_hands(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(Random(1))
    async with network.transport(A) as a:
        async with network.transport(B, place="here") as b:
            address = b.addresses[0]
            await a.dial(address)
        async with network.transport(C, place="here"):
            await trio.sleep(1)
            with pytest.raises(DialError, match="answered as"):
                await a.dial(address)


async def test_streams_beyond_the_limit_are_refused(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(Random(1))
    async with network.transport(A) as a, network.transport(B) as b:
        b.serve(PROTOCOL, echo)
        await a.dial(b.addresses[0])
        streams = [await a.open(B, PROTOCOL) for _ in range(INBOUND_STREAMS_MAX)]
        with pytest.raises(LinkError, match="no more streams"):
            await a.open(B, PROTOCOL)
        await streams[0].reset()
        await trio.sleep(1)
        await a.open(B, PROTOCOL)


async def test_a_slow_subscriber_loses_the_oldest_and_it_is_counted(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(Random(1))
    async with network.transport(A) as a, network.transport(B) as b:
        frames = b.subscribe(TOPIC)
        await a.dial(b.addresses[0])
        for number in range(SUBSCRIPTION_FRAMES_MAX + 3):
            await a.publish(TOPIC, str(number).encode())
        await trio.sleep(1)
        assert b.dropped_frames == 3
        assert (await frames.receive()).data == b"3"


async def test_a_closed_subscription_is_forgotten(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(Random(1))
    async with network.transport(A) as a, network.transport(B) as b:
        gone, kept = b.subscribe(TOPIC), b.subscribe(TOPIC)
        await a.dial(b.addresses[0])
        gone.close()
        await a.publish(TOPIC, b"x")
        assert (await kept.receive()).data == b"x"


async def test_gossip_loss_is_seeded(autojump_clock: MockClock) -> None:
    async def count(seed: int) -> int:
        network = MemoryNetwork(Random(seed), gossip_loss=0.5)
        async with network.transport(A) as a, network.transport(B) as b:
            frames = b.subscribe(TOPIC)
            await a.dial(b.addresses[0])
            for _ in range(100):
                await a.publish(TOPIC, b"x")
            await trio.sleep(1)
            return frames.statistics().current_buffer_used

    first = await count(1)
    assert 20 < first < 80
    assert await count(1) == first
