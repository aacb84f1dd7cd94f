"""Frame channels over the memory transport: silence, truncation, torn writes, orderly ends."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random

import pytest
import trio
from trio.testing import MockClock

from gossip_ledger.records import AccountId
from p2p.channel import FrameChannel, SilenceError
from p2p.framing import FrameError, encode_frame
from p2p.limits import CLOSE_LINGER_S, STREAM_WINDOW_BYTES
from p2p.memory_transport import MemoryNetwork
from p2p.transport import LinkError, Stream

PROTOCOL = "/upkeep/test/1"


@asynccontextmanager
async def stream_to(handler: Callable[[Stream], Awaitable[None]]) -> AsyncGenerator[Stream]:
    network = MemoryNetwork(Random(1))
    async with (
        network.transport(AccountId(b"a" * 32)) as near,
        network.transport(AccountId(b"b" * 32)) as far,
    ):
        far.serve(PROTOCOL, handler)
        await near.dial(far.addresses[0])
        yield await near.open(far.account, PROTOCOL)


async def stay_silent(_stream: Stream) -> None:
    await trio.sleep_forever()


async def test_silence_is_told_after_the_timeout(autojump_clock: MockClock) -> None:
    async with stream_to(stay_silent) as stream:
        channel = FrameChannel(stream)
        start = trio.current_time()
        with pytest.raises(SilenceError):
            await channel.receive(3)
        assert trio.current_time() - start == pytest.approx(3)


async def test_a_drip_of_bytes_does_not_extend_the_deadline(autojump_clock: MockClock) -> None:
    async def drip(stream: Stream) -> None:
        for byte in encode_frame(bytes(100)):
            await stream.write(bytes([byte]))
            await trio.sleep(0.5)

    async with stream_to(drip) as stream:
        channel = FrameChannel(stream)
        with pytest.raises(SilenceError):
            await channel.receive(3)
        assert await channel.receive(60) == bytes(100), "and nothing was lost"


async def test_an_end_inside_a_frame_is_their_fault(autojump_clock: MockClock) -> None:
    async def truncate(stream: Stream) -> None:
        await stream.write(encode_frame(b"whole") + encode_frame(b"broken")[:3])

    async with stream_to(truncate) as stream:
        channel = FrameChannel(stream)
        assert await channel.receive() == b"whole"
        with pytest.raises(FrameError):
            await channel.receive()


async def test_an_oversized_frame_is_refused_at_its_header(autojump_clock: MockClock) -> None:
    async def boast(stream: Stream) -> None:
        await stream.write(encode_frame(bytes(101))[:1])
        await trio.sleep_forever()

    async with stream_to(boast) as stream:
        channel = FrameChannel(stream, frame_bytes_max=100)
        with pytest.raises(FrameError):
            await channel.receive(10)


async def test_a_cut_write_tears_the_sending_side(autojump_clock: MockClock) -> None:
    async with stream_to(stay_silent) as stream:
        channel = FrameChannel(stream)
        with trio.move_on_after(1):
            await channel.send(bytes(STREAM_WINDOW_BYTES * 2))
        with pytest.raises(LinkError, match="cut short"):
            await channel.send(b"x")


async def test_frames_of_concurrent_senders_do_not_mix(autojump_clock: MockClock) -> None:
    got: list[bytes] = []

    async def collect(stream: Stream) -> None:
        channel = FrameChannel(stream)
        while (frame := await channel.receive()) is not None:
            got.append(frame)

    async with stream_to(collect) as stream:
        channel = FrameChannel(stream)
        payloads = [bytes([n]) * 100_000 for n in range(1, 9)]
        async with trio.open_nursery() as nursery:
            for payload in payloads:
                nursery.start_soon(channel.send, payload)
        await channel.finish()
        assert await channel.receive(10) is None
    assert sorted(got) == payloads


async def test_close_waits_for_the_other_side_but_not_for_ever(autojump_clock: MockClock) -> None:
    async with stream_to(stay_silent) as stream:
        start = trio.current_time()
        async with FrameChannel(stream):
            pass
        assert trio.current_time() - start == pytest.approx(CLOSE_LINGER_S, abs=0.1)
        with pytest.raises(LinkError):
            await stream.read(1)


async def test_an_error_inside_the_block_resets_at_once(autojump_clock: MockClock) -> None:
    async with stream_to(stay_silent) as stream:
        start = trio.current_time()
        with pytest.raises(ZeroDivisionError):
            async with FrameChannel(stream):
                raise ZeroDivisionError
        assert trio.current_time() == start
        with pytest.raises(LinkError):
            await stream.write(b"x")
