"""What every transport promises, whatever carries it. Deadlines here are only against hanging."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import trio

from p2p.channel import FrameChannel
from p2p.limits import STREAM_WINDOW_BYTES_MAX, WRITE_PIECE_BYTES
from p2p.transport import DialError, LinkError, Stream, Transport

Open = Callable[[int], AbstractAsyncContextManager[Transport]]

ECHO = "/upkeep/test/echo/1"
TOPIC = "/upkeep/test/records/1"


async def echo(stream: Stream) -> None:
    while data := await stream.read(WRITE_PIECE_BYTES):
        await stream.write(data)


@asynccontextmanager
async def pair(open_node: Open) -> AsyncGenerator[tuple[Transport, Transport]]:
    """Two linked nodes, the first of which dialled; both serve `ECHO`."""
    async with open_node(1) as near, open_node(2) as far:
        near.serve(ECHO, echo)
        far.serve(ECHO, echo)
        assert await near.dial(far.addresses[0]) == far.account
        await until(lambda: bool(far.links()))
        try:
            yield near, far
        finally:
            await near.disconnect(far.account)


async def until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    with trio.fail_after(timeout_s):
        while not condition():
            await trio.sleep(0.01)


async def read_all(stream: Stream) -> bytes:
    data = bytearray()
    while piece := await stream.read(WRITE_PIECE_BYTES):
        data += piece
    return bytes(data)


async def test_links_are_seen_from_both_sides(open_node: Open) -> None:
    async with pair(open_node) as (near, far):
        (out,), (back,) = near.links(), far.links()
        assert (out.peer, out.is_outbound) == (far.account, True)
        assert (back.peer, back.is_outbound) == (near.account, False)
        assert out.address == far.addresses[0]


async def test_a_second_dial_is_the_same_link(open_node: Open) -> None:
    async with pair(open_node) as (near, far):
        assert await near.dial(far.addresses[0]) == far.account
        assert len(near.links()) == len(far.links()) == 1


async def test_streams_run_both_ways_over_one_link(open_node: Open) -> None:
    async with pair(open_node) as (near, far):
        for opener, other in ((near, far), (far, near)):
            stream = await opener.open(other.account, ECHO)
            assert stream.remote == other.account
            await stream.write(b"hello")
            await stream.close_write()
            assert await read_all(stream) == b"hello"
            await stream.reset()


async def test_a_read_returns_at_most_what_was_asked(open_node: Open) -> None:
    async with pair(open_node) as (near, far):
        stream = await near.open(far.account, ECHO)
        await stream.write(b"abcdef")
        await stream.close_write()
        pieces = []
        while piece := await stream.read(4):
            assert len(piece) <= 4
            pieces.append(piece)
        assert b"".join(pieces) == b"abcdef"
        assert await stream.read(4) == b"", "the end stays the end"


async def test_many_bytes_arrive_in_order(open_node: Open) -> None:
    data = bytes(range(256)) * 4 * 1024 * 3
    async with pair(open_node) as (near, far), trio.open_nursery() as nursery:
        stream = await near.open(far.account, ECHO)

        async def send() -> None:
            await stream.write(data)
            await stream.close_write()

        nursery.start_soon(send)
        with trio.fail_after(30):
            assert await read_all(stream) == data


async def test_a_cancelled_read_loses_nothing(open_node: Open) -> None:
    data = bytes(range(256)) * 64
    async with pair(open_node) as (near, far), trio.open_nursery() as nursery:
        stream = await near.open(far.account, ECHO)

        async def send() -> None:
            for start in range(0, len(data), 64):
                await stream.write(data[start : start + 64])
            await stream.close_write()

        nursery.start_soon(send)
        got = bytearray()
        is_ended = False
        with trio.fail_after(30):
            for attempt in range(100_000):
                with trio.move_on_after(0.0002 * (attempt % 7)):
                    piece = await stream.read(256)
                    got += piece
                    is_ended = not piece
                if is_ended:
                    break
        assert bytes(got) == data


async def test_reset_reaches_the_other_side(open_node: Open) -> None:
    outcomes: list[str] = []

    async def listen(stream: Stream) -> None:
        try:
            while await stream.read(100):
                pass
            outcomes.append("end")
        except LinkError:
            outcomes.append("broken")

    async with pair(open_node) as (near, far):
        far.serve("/upkeep/test/listen/1", listen)
        stream = await near.open(far.account, "/upkeep/test/listen/1")
        await stream.write(b"x")
        await trio.sleep(0.1)
        await stream.reset()
        await until(lambda: bool(outcomes))
        assert outcomes == ["broken"]
        with pytest.raises(LinkError):
            await stream.write(b"y")
        with pytest.raises(LinkError):
            await stream.read(1)


async def test_a_failing_handler_resets_its_stream_alone(open_node: Open) -> None:
    async def fail(stream: Stream) -> None:
        await stream.read(1)
        raise ZeroDivisionError("a bug in a handler")

    async with pair(open_node) as (near, far):
        far.serve("/upkeep/test/fail/1", fail)
        kept = await near.open(far.account, ECHO)
        stream = await near.open(far.account, "/upkeep/test/fail/1")
        await stream.write(b"x")
        with trio.fail_after(5), pytest.raises(LinkError):
            await stream.read(1)
        await kept.write(b"still here")
        await kept.close_write()
        assert await read_all(kept) == b"still here"
        assert near.links()


async def test_a_finished_handler_ends_its_stream(open_node: Open) -> None:
    async def reply(stream: Stream) -> None:
        await stream.write(await stream.read(10))

    async with pair(open_node) as (near, far):
        far.serve("/upkeep/test/reply/1", reply)
        stream = await near.open(far.account, "/upkeep/test/reply/1")
        await stream.write(b"once")
        with trio.fail_after(5):
            assert await read_all(stream) == b"once"
        await stream.reset()


async def test_an_unserved_protocol_is_a_link_error(open_node: Open) -> None:
    async with pair(open_node) as (near, far):
        with trio.fail_after(10), pytest.raises(LinkError):
            await near.open(far.account, "/upkeep/test/nothing/1")
        assert near.links(), "the link survives"


async def test_without_a_link_nothing_opens(open_node: Open) -> None:
    async with open_node(1) as near, open_node(2) as far:
        with pytest.raises(LinkError):
            await near.open(far.account, ECHO)


async def test_disconnect_ends_streams_and_links_on_both_sides(open_node: Open) -> None:
    async with pair(open_node) as (near, far):
        stream = await far.open(near.account, ECHO)
        await near.disconnect(far.account)
        await until(lambda: not near.links() and not far.links())
        with trio.fail_after(5), pytest.raises(LinkError):
            await stream.read(1)
        await near.disconnect(far.account)
        assert await near.dial(far.addresses[0]) == far.account, "and may come again"


async def test_a_stopped_node_is_noticed_and_may_return(open_node: Open) -> None:
    async with open_node(1) as near:
        async with open_node(2) as far:
            await near.dial(far.addresses[0])
            address = far.addresses[0]
        await until(lambda: not near.links())
        with trio.fail_after(10), pytest.raises(DialError):
            await near.dial(address)
        async with open_node(2) as far:
            assert await near.dial(far.addresses[0]) == far.account


async def test_dialling_nonsense_or_ourselves_is_a_dial_error(open_node: Open) -> None:
    async with open_node(1) as near, open_node(2) as far:
        wrong = far.addresses[0].rsplit("/", 1)[0]
        for address in ("", "nonsense", "/ip4/127.0.0.1/tcp/1", near.addresses[0], wrong + "/zzz", "/p2p/"):
            with pytest.raises(DialError):
                await near.dial(address)


async def test_another_key_behind_an_address_is_a_dial_error(open_node: Open) -> None:
    async with open_node(1) as near, open_node(2) as far:
        async with open_node(3) as third:
            its_id = third.addresses[0].rsplit("/", 1)[1]
        address = far.addresses[0].rsplit("/", 1)[0] + "/" + its_id
        with trio.fail_after(10), pytest.raises(DialError):
            await near.dial(address)
        assert not near.links()
        assert await near.dial(far.addresses[0]) == far.account


async def test_a_reader_that_stalls_makes_the_writer_fail(open_node: Open) -> None:
    async def stall(_stream: Stream) -> None:
        await trio.sleep_forever()

    async with pair(open_node) as (near, far):
        far.serve("/upkeep/test/stall/1", stall)
        stream = await near.open(far.account, "/upkeep/test/stall/1")
        with trio.fail_after(20), pytest.raises(LinkError):
            await stream.write(bytes(2 * STREAM_WINDOW_BYTES_MAX))
        assert near.links(), "only the stream is lost"


async def test_gossip_reaches_subscribers_through_a_middle_node(open_node: Open) -> None:
    async with open_node(1) as a, open_node(2) as b, open_node(3) as c:
        at_a, at_b, at_c = (node.subscribe(TOPIC) for node in (a, b, c))
        await a.dial(b.addresses[0])
        await b.dial(c.addresses[0])
        await trio.sleep(2.5)
        await a.publish(TOPIC, b"news")
        with trio.fail_after(10):
            frame = await at_b.receive()
            assert (frame.forwarder, frame.data) == (a.account, b"news")
            frame = await at_c.receive()
            assert (frame.forwarder, frame.data) == (b.account, b"news")
        await trio.sleep(0.2)
        for channel in (at_a, at_b, at_c):
            with pytest.raises(trio.WouldBlock):
                channel.receive_nowait()
        await b.disconnect(a.account)
        await b.disconnect(c.account)


async def test_a_burst_of_gossip_arrives_whole(open_node: Open) -> None:
    async with pair(open_node) as (near, far):
        frames = far.subscribe(TOPIC)
        near.subscribe(TOPIC)
        await trio.sleep(2.5)
        for number in range(200):
            await near.publish(TOPIC, number.to_bytes(4, "big"))
        with trio.fail_after(20):
            got = {int.from_bytes((await frames.receive()).data, "big") for _ in range(200)}
        assert got == set(range(200))


async def test_framed_talk(open_node: Open) -> None:
    async def answer(stream: Stream) -> None:
        channel = FrameChannel(stream)
        while (frame := await channel.receive()) is not None:
            await channel.send(frame[::-1])

    async with pair(open_node) as (near, far):
        far.serve("/upkeep/test/frames/1", answer)
        async with FrameChannel(await near.open(far.account, "/upkeep/test/frames/1")) as channel:
            for payload in (b"a", b"hello", bytes(200_000), b"bye"):
                await channel.send(payload)
                assert await channel.receive(10) == payload[::-1]
            await channel.finish()
            assert await channel.receive(10) is None
