"""Hello, sync and blob over the memory transport: whole exchanges, and peers that misbehave."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from random import Random

import pytest
import trio
from trio.testing import MockClock

from gossip_ledger.reconcile import IdSet
from gossip_ledger.records import AccountId, BlobId, NetworkId, RecordId
from p2p.channel import FrameChannel
from p2p.exchange import (
    BLOB_PROTOCOL,
    HELLO_PROTOCOL,
    SYNC_PROTOCOL,
    DeniedError,
    ExchangeError,
    fetch_blobs,
    greet,
    serve_blobs,
    serve_hello,
    serve_sync,
    sync_with,
)
from p2p.memory_transport import MemoryNetwork
from p2p.messages import TO_BLOB_CLIENT, TO_BLOB_SERVER, Blob, Get, Hello
from p2p.protocols.codes import WRONG_NETWORK
from p2p.protocols.limits import BLOB_FRAME_BYTES_MAX, BLOB_STEP_MS, HELLO_MS, SYNC_FRAME_BYTES_MAX
from p2p.transport import Stream

A, B = AccountId(b"a" * 32), AccountId(b"b" * 32)
SALT = bytes(16)
OURS = Hello(network=NetworkId(bytes(32)), rules=1, software="a", clock_s=1, listening=(), known=())
THEIRS = replace(OURS, software="b", known=("somewhere",))

Serve = Callable[[FrameChannel], Awaitable[object]]


class Store:
    """Records and blobs in memory."""

    def __init__(self, *data: bytes) -> None:
        self.held = {hashlib.sha256(item).digest(): item for item in data}

    def ids(self) -> IdSet:
        return IdSet.of(RecordId(ident) for ident in self.held)

    async def get(self, ids: Sequence[RecordId]) -> tuple[bytes, ...]:
        return tuple(self.held[ident] for ident in ids if ident in self.held)

    async def deliver(self, records: tuple[bytes, ...]) -> None:
        await trio.lowlevel.checkpoint()
        self.held |= {hashlib.sha256(item).digest(): item for item in records}


class Blobs:
    """Blobs in memory."""

    def __init__(self, *data: bytes) -> None:
        self.held = {BlobId(hashlib.sha256(item).digest()): item for item in data}

    async def get(self, ident: BlobId) -> bytes | None:
        return self.held.get(ident)


@asynccontextmanager
async def talking(
    protocol: str, serve: Serve, bytes_max: int = SYNC_FRAME_BYTES_MAX
) -> AsyncGenerator[FrameChannel]:
    """A channel to a peer that serves `protocol`."""
    network = MemoryNetwork(Random(1))
    async with network.transport(A) as a, network.transport(B) as b:

        async def handle(stream: Stream) -> None:
            async with FrameChannel(stream, frame_bytes_max=bytes_max) as channel:
                await serve(channel)

        b.serve(protocol, handle)
        await a.dial(b.addresses[0])
        async with FrameChannel(await a.open(B, protocol), frame_bytes_max=bytes_max) as channel:
            yield channel


async def test_two_peers_greet(autojump_clock: MockClock) -> None:
    heard: list[Hello] = []

    async def serve(channel: FrameChannel) -> None:
        heard.append(await serve_hello(channel, THEIRS))

    async with talking(HELLO_PROTOCOL, serve) as channel:
        assert await greet(channel, OURS) == THEIRS
    assert heard == [OURS]


async def test_a_stranger_can_print_why(autojump_clock: MockClock) -> None:
    other = replace(THEIRS, network=NetworkId(b"x" * 32))
    told: list[str] = []

    async def serve(channel: FrameChannel) -> None:
        with pytest.raises(DeniedError) as caught:
            await serve_hello(channel, other)
        told.append(str(caught.value))

    async with talking(HELLO_PROTOCOL, serve) as channel:
        with pytest.raises(DeniedError) as caught:
            await greet(channel, OURS)
        assert caught.value.code == WRONG_NETWORK
        assert "two networks" in str(caught.value)
    assert told == [str(caught.value)]


async def test_a_silent_peer_is_given_up(autojump_clock: MockClock) -> None:
    async def serve(channel: FrameChannel) -> None:
        await trio.sleep_forever()

    async with talking(HELLO_PROTOCOL, serve) as channel:
        with pytest.raises(ExchangeError) as caught:
            await greet(channel, OURS)
        assert not caught.value.is_breach
        assert trio.current_time() == pytest.approx(HELLO_MS / 1000, abs=1)


async def test_a_peer_that_leaves_is_lost(autojump_clock: MockClock) -> None:
    async def leave(channel: FrameChannel) -> None:
        await trio.lowlevel.checkpoint()

    async def fall(channel: FrameChannel) -> None:
        raise ExchangeError("fell", is_breach=False)

    for serve in (leave, fall):
        async with talking(HELLO_PROTOCOL, serve) as channel:
            with pytest.raises(ExchangeError) as caught:
                await greet(channel, OURS)
            assert not caught.value.is_breach


async def test_nonsense_is_a_breach(autojump_clock: MockClock) -> None:
    async def serve(channel: FrameChannel) -> None:
        await channel.send(b"\x00 nonsense")
        await trio.sleep_forever()

    async with talking(HELLO_PROTOCOL, serve) as channel:
        with pytest.raises(ExchangeError) as caught:
            await greet(channel, OURS)
    assert caught.value.is_breach


async def test_sync_gives_both_the_union(autojump_clock: MockClock) -> None:
    common = [b"common %d" % n for n in range(700)]
    one = Store(*common, *(b"one %d" % n for n in range(400)))
    two = Store(*common, *(b"two %d" % n for n in range(300)))
    union = one.held | two.held
    ends: list[object] = []

    async def serve(channel: FrameChannel) -> None:
        ends.append(await serve_sync(channel, two))

    async with talking(SYNC_PROTOCOL, serve) as channel:
        end = await sync_with(channel, one, SALT)
    assert one.held == two.held == union
    assert (end.received, end.sent, end.unanswered, end.is_complete) == (300, 400, 0, True)
    assert len(ends) == 1


async def test_a_sync_cut_short_keeps_what_came(autojump_clock: MockClock) -> None:
    two = Store(*(b"two %d" % n for n in range(600)))
    one = Store()

    class Cut(Store):
        served = 0

        async def get(self, ids: Sequence[RecordId]) -> tuple[bytes, ...]:
            self.served += 1
            if self.served == 2:
                await trio.sleep_forever()
            return await super().get(ids)

    cut = Cut(*two.held.values())
    async with talking(SYNC_PROTOCOL, lambda channel: serve_sync(channel, cut)) as channel:
        with pytest.raises(ExchangeError):
            await sync_with(channel, one, SALT)
    assert len(one.held) == 256


async def test_blobs_arrive_and_absent_ones_are_named(autojump_clock: MockClock) -> None:
    big = [bytes([n]) * (1 << 20) for n in range(20)]
    blobs = Blobs(*big)
    missing = BlobId(bytes(32))
    got: list[bytes] = []

    async def sink(ident: BlobId, data: bytes) -> None:
        got.append(data)

    async with talking(BLOB_PROTOCOL, lambda c: serve_blobs(c, blobs), BLOB_FRAME_BYTES_MAX) as channel:
        assert await fetch_blobs(channel, (*blobs.held, missing), sink) == (missing,)
    assert got == big


async def test_a_blob_that_is_another_is_a_breach(autojump_clock: MockClock) -> None:
    async def serve(channel: FrameChannel) -> None:
        await channel.receive()
        await channel.send(TO_BLOB_CLIENT.encode(Blob(id=BlobId(bytes(32)), data=b"other")))
        await trio.sleep_forever()

    async def sink(ident: BlobId, data: bytes) -> None:
        pytest.fail("a blob with another hash was let through")

    async with talking(BLOB_PROTOCOL, serve, BLOB_FRAME_BYTES_MAX) as channel:
        with pytest.raises(ExchangeError) as caught:
            await fetch_blobs(channel, (BlobId(bytes(32)),), sink)
    assert caught.value.is_breach


async def test_a_peer_that_never_reads_is_given_up(autojump_clock: MockClock) -> None:
    """The window of the stream fills, writing blocks, and the deadline of the step ends it."""
    big = Blobs(*(bytes([n]) * (1 << 20) for n in range(16)))
    failed: list[float] = []

    async def serve(channel: FrameChannel) -> None:
        try:
            await serve_blobs(channel, big)
        except ExchangeError:
            failed.append(trio.current_time())
            raise

    async with talking(BLOB_PROTOCOL, serve, BLOB_FRAME_BYTES_MAX) as channel:
        await channel.send(TO_BLOB_SERVER.encode(Get(ids=tuple(big.held))))
        await trio.sleep(BLOB_STEP_MS / 1000 + 5)
    assert failed
