"""Hostile and careless peers against a node over real sockets: a test for each way to kill a stock host.

The attacker is a stock libp2p host as far as possible, with its own raw frames where it must break the rules.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.rsa import create_new_key_pair as create_rsa_pair
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.config import RetryConfig
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.validators import PUBSUB_SIGNING_PREFIX
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from libp2p.stream_muxer.mplex.mplex import MPLEX_PROTOCOL_ID, Mplex
from libp2p.utils import encode_varint_prefixed
from multiaddr import Multiaddr

from p2p import limits
from p2p.eventlog import NoLog
from p2p.libp2p_guards import GuardLimits, peer_of
from p2p.libp2p_transport import Libp2pTransport, open_libp2p_transport
from p2p.transport import LinkError, Stream

TOPIC = "/upkeep/test/records/1"
MESHSUB = "/meshsub/1.1.0"
ECHO = "/upkeep/test/echo/1"
LOCAL = "/ip4/127.0.0.1/tcp/0"


async def echo(stream: Stream) -> None:
    while data := await stream.read(1000):
        await stream.write(data)


@asynccontextmanager
async def open_node(number: int = 1, **bounds: Any) -> AsyncGenerator[Libp2pTransport]:
    async with open_libp2p_transport(
        seed=bytes([number]) * 32,
        listen=(LOCAL,),
        topics=(TOPIC,),
        log=NoLog(),
        guard_limits=GuardLimits(**bounds),
    ) as node:
        node.serve(ECHO, echo)
        yield node


@asynccontextmanager
async def open_attacker(number: int = 66, **options: Any) -> AsyncGenerator[Any]:
    """A libp2p host of its own that dials at once and once."""
    host = new_host(key_pair=create_new_key_pair(bytes([number]) * 32), **options)
    host.get_network().retry_config = RetryConfig(max_retries=0)
    async with host.run([]):
        try:
            yield host
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(2):
                for peer in list(host.get_network().connections):
                    await host.disconnect(peer)


async def dial(host: Any, node: Libp2pTransport) -> Any:
    """A connection from the attacker to the node."""
    info = info_from_p2p_addr(Multiaddr(node.addresses[0]))
    return await host.get_network().dial_addr(info.addrs[0], info.peer_id)


async def until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    with trio.fail_after(timeout_s):
        while not condition():
            await trio.sleep(0.01)


async def works(node: Libp2pTransport, number: int = 99) -> None:
    """The node still links, talks and gossips."""
    assert node.restarts == 0
    async with open_node(number) as friend:
        with trio.fail_after(10):
            await friend.dial(node.addresses[0])
            stream = await friend.open(node.account, ECHO)
            await stream.write(b"well?")
            assert await stream.read(10) == b"well?"
            frames = node.subscribe(TOPIC)
            await until(lambda: is_meshed(friend, node))
            await friend.publish(TOPIC, b"news from %d" % number)
            assert (await frames.receive()).data == b"news from %d" % number
    assert node.restarts == 0


def is_meshed(node: Libp2pTransport, other: Libp2pTransport) -> bool:
    running = node._running
    assert running is not None
    return peer_of(other.account) in running.pubsub.peer_topics.get(TOPIC, set())


def signed_message(host: Any, data: bytes, sequence: int, topics: list[str] | None = None) -> Any:
    message = rpc_pb2.Message(
        data=data,
        topicIDs=[TOPIC] if topics is None else topics,
        from_id=host.get_id().to_bytes(),
        seqno=sequence.to_bytes(8, "big"),
    )
    message.signature = host.get_private_key().sign(
        PUBSUB_SIGNING_PREFIX.encode() + message.SerializeToString()
    )
    message.key = host.get_public_key().serialize()
    return message


async def gossip(host: Any, node: Libp2pTransport, *payloads: bytes) -> Any:
    """A gossip stream from the attacker, with raw frames on it."""
    if not host.get_network().connections:
        await dial(host, node)
    stream = await host.new_stream(peer_of(node.account), [MESHSUB])
    for payload in payloads:
        await stream.write(payload)
    return stream


# Handlers and streams


async def test_an_exception_in_a_handler(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(stream: Stream) -> None:
        raise ZeroDivisionError

    async with open_node() as node, open_node(2) as other:
        node.serve("/upkeep/test/fail/1", fail)
        await other.dial(node.addresses[0])
        for _ in range(limits.FAULTS_MAX * 2):
            with trio.fail_after(5), pytest.raises(LinkError):
                await (await other.open(node.account, "/upkeep/test/fail/1")).read(1)
        assert node.counts["stream.handler_failed"] == limits.FAULTS_MAX * 2
        assert other.links(), "a bug of ours is no fault of the peer's"
        await works(node)
    assert not caplog.records, "the library does not log"


async def test_garbage_instead_of_a_protocol_name() -> None:
    async with open_node() as node, open_attacker() as attacker:
        connection = await dial(attacker, node)
        for garbage in (
            b"\xff" * 50,
            b"\x13/multistream/1.0.0\n\x03\xff\xfe\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"\x00",
        ):
            muxed = await connection.muxed_conn.open_stream()
            await muxed.write(garbage)
            await muxed.close()
        await works(node)


async def test_streams_beyond_the_limit_are_reset() -> None:
    async with open_node(inbound_streams_max=8) as node, open_node(2) as other:
        await other.dial(node.addresses[0])
        kept: list[Any] = []
        with pytest.raises(LinkError):
            for _ in range(9):
                kept.append(await other.open(node.account, ECHO))
        assert node.counts["stream.refused"] >= 1
        assert len(kept) >= 6, "gossip has its own"
        for stream in kept:
            await stream.reset()
        await trio.sleep(0.2)
        await (await other.open(node.account, ECHO)).reset()


async def test_opening_more_streams_than_the_muxer_has_fails_at_once() -> None:
    async with open_node(inbound_streams_max=1000) as node, open_node(2) as other:
        await other.dial(node.addresses[0])
        with trio.fail_after(30), pytest.raises(LinkError, match=r"too many open streams|Failed to create"):
            for _ in range(300):
                await other.open(node.account, ECHO)
        assert other.links()


async def test_many_short_streams_leave_nothing_behind() -> None:
    async with open_node() as node, open_node(2) as other:
        await other.dial(node.addresses[0])
        for turn in range(300):
            stream = await other.open(node.account, ECHO)
            await stream.write(b"x")
            assert await stream.read(1) == b"x"
            if turn % 2:
                await stream.close_write()
                assert await stream.read(1) == b""
            await stream.reset()
        for _ in range(50):
            stream = await other.open(node.account, MESHSUB)  # the library's own reader, which waits for more
            await trio.sleep(0.005)
            await stream.reset()
        await trio.sleep(0.5)
        for side, peer in ((node, other), (other, node)):
            running = side._running
            assert running is not None
            (connection,) = running.swarm.get_connections(peer_of(peer.account))
            muxer = connection.muxed_conn
            assert len(muxer.streams) <= 4, "gossip's own"
            assert len(muxer.stream_events) <= 4
            assert muxer.stream_backlog_semaphore.value >= 250


async def test_opening_that_is_cancelled_leaves_nothing_behind() -> None:
    async with open_node() as node, open_node(2) as other:
        await other.dial(node.addresses[0])
        for turn in range(100):
            with trio.move_on_after(0.0001 * (turn % 40)):
                await (await other.open(node.account, ECHO)).reset()
        await trio.sleep(0.5)
        running = other._running
        assert running is not None
        (connection,) = running.swarm.get_connections(peer_of(node.account))
        assert len(connection.muxed_conn.streams) <= 4
        assert connection.muxed_conn.stream_backlog_semaphore.value >= 250
        await works(node)


# Gossip


@pytest.mark.parametrize(
    "payload",
    [
        encode_varint_prefixed(b"\xff\xff\xff\xff not protobuf"),
        encode_varint_prefixed(b"\x0a\x80"),
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
        struct.pack("B", 5) + b"ab",
        encode_varint_prefixed(bytes(limits.GOSSIP_FRAME_BYTES_MAX * 2)),
    ],
    ids=["garbage", "truncated", "length", "cut", "oversized"],
)
async def test_a_malformed_gossip_frame(payload: bytes) -> None:
    async with open_node() as node, open_attacker() as attacker:
        stream = await gossip(attacker, node, payload)
        await stream.close()
        await trio.sleep(0.2)
        await works(node)


async def test_a_message_with_a_garbage_key() -> None:
    async with open_node() as node, open_attacker() as attacker:
        frames = node.subscribe(TOPIC)
        for key in (b"\xff\xff garbage", b"\x08\x01", b"\x08\x01\x12\x20" + bytes(31)):
            message = signed_message(attacker, b"hello", 1)
            message.from_id = b"\x12\x20" + bytes(32)  # an id that does not hold the key itself
            message.key = key
            rpc = rpc_pb2.RPC(publish=[message])
            await gossip(attacker, node, encode_varint_prefixed(rpc.SerializeToString()))
        message = signed_message(attacker, b"hello", 2)
        message.from_id = b"nobody"
        rpc = rpc_pb2.RPC(publish=[message])
        await gossip(attacker, node, encode_varint_prefixed(rpc.SerializeToString()))
        await trio.sleep(0.2)
        with pytest.raises(trio.WouldBlock):
            frames.receive_nowait()
        assert node.counts["gossip.frame_refused"] == 4
        await works(node)


async def test_a_message_with_a_wrong_signature() -> None:
    async with open_node() as node, open_attacker() as attacker:
        frames = node.subscribe(TOPIC)
        message = signed_message(attacker, b"hello", 1)
        message.data = b"forged"
        rpc = rpc_pb2.RPC(publish=[message, signed_message(attacker, b"real", 2)])
        await gossip(attacker, node, encode_varint_prefixed(rpc.SerializeToString()))
        with trio.fail_after(5):
            assert (await frames.receive()).data == b"real"


async def test_messages_of_wrong_size_or_topic_are_refused_before_verifying() -> None:
    async with open_node() as node, open_attacker() as attacker:
        frames = node.subscribe(TOPIC)
        odd = [
            signed_message(attacker, bytes(limits.GOSSIP_FRAME_BYTES_MAX + 1), 1),
            signed_message(attacker, b"x", 2, [TOPIC, "other"]),
            signed_message(attacker, b"x", 3, [TOPIC] * 50),
        ]
        stream = await gossip(attacker, node)
        for message in odd:
            rpc = rpc_pb2.RPC(publish=[message])
            await stream.write(encode_varint_prefixed(rpc.SerializeToString()))
        rpc = rpc_pb2.RPC(publish=[signed_message(attacker, b"real", 4)])
        await stream.write(encode_varint_prefixed(rpc.SerializeToString()))
        with trio.fail_after(5):
            assert (await frames.receive()).data == b"real"
        assert node.counts["gossip.frame_refused"] == 3
        await works(node)


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_validator_that_raises(is_async: bool) -> None:
    def refuse(_peer: ID, _message: Any) -> bool:
        raise ZeroDivisionError

    async def refuse_later(_peer: ID, _message: Any) -> bool:
        raise ZeroDivisionError

    async with open_node() as node, open_attacker() as attacker:
        running = node._running
        assert running is not None
        running.pubsub.set_topic_validator(TOPIC, refuse_later if is_async else refuse, is_async)
        rpc = rpc_pb2.RPC(publish=[signed_message(attacker, b"x", 1)])
        await gossip(attacker, node, encode_varint_prefixed(rpc.SerializeToString()))
        await trio.sleep(0.2)
        running.pubsub.remove_topic_validator(TOPIC)
        await works(node)


async def test_a_gossip_flood_is_cut_before_verifying() -> None:
    async with open_node() as node, open_attacker() as attacker:
        frames = node.subscribe(TOPIC)
        stream = await gossip(attacker, node)
        total = limits.FORWARDER_FRAMES_BURST + 1500
        for start in range(0, total, 100):
            rpc = rpc_pb2.RPC(publish=[signed_message(attacker, b"x", start + n + 1) for n in range(100)])
            await stream.write(encode_varint_prefixed(rpc.SerializeToString()))
        await trio.sleep(3)
        passed = frames.statistics().current_buffer_used + node.dropped_frames
        assert passed < limits.FORWARDER_FRAMES_BURST + 6 * limits.FORWARDER_FRAMES_PER_S
        await works(node)


async def test_control_garbage_and_odd_topics() -> None:
    async with open_node() as node, open_attacker() as attacker:
        rpc = rpc_pb2.RPC()
        rpc.control.ihave.add(topicID=TOPIC, messageIDs=[b"\xff\xfe", b"", b"abc" * 100])
        rpc.control.iwant.add(messageIDs=[b"\xff\xfe", b""])
        rpc.control.graft.add(topicID="never heard of")
        rpc.control.prune.add(topicID=TOPIC, backoff=2**60)
        rpc.senderRecord = b"garbage"
        stream = await gossip(attacker, node, encode_varint_prefixed(rpc.SerializeToString()))
        rpc.ClearField("senderRecord")
        await stream.write(encode_varint_prefixed(rpc.SerializeToString()))
        for number in range(200):
            rpc = rpc_pb2.RPC()
            rpc.subscriptions.add(subscribe=True, topicid=f"topic {number}" * 20)
            await stream.write(encode_varint_prefixed(rpc.SerializeToString()))
        await trio.sleep(0.3)
        running = node._running
        assert running is not None
        assert set(running.pubsub.peer_topics) <= {TOPIC}
        await works(node)


async def test_a_peer_that_breaks_rules_again_and_again_is_dropped() -> None:
    async with open_node(faults_max=5) as node, open_attacker() as attacker:
        await dial(attacker, node)
        await until(lambda: bool(node.links()))
        with trio.move_on_after(10):
            for _ in range(20):
                if not attacker.get_network().connections:
                    break
                with suppress(BaseLibp2pError, OSError):
                    stream = await attacker.new_stream(peer_of(node.account), [MESHSUB])
                    await stream.write(encode_varint_prefixed(b"\xff\xff\xff\xff"))
                await trio.sleep(0.05)
        await until(lambda: not node.links())
        assert node.counts["peer.dropped"] >= 1
        await works(node)


# Connections


async def test_flow_control_is_enforced() -> None:
    async def stall(_stream: Stream) -> None:
        await trio.sleep_forever()

    async with open_node() as node, open_attacker() as attacker:
        node.serve("/upkeep/test/stall/1", stall)
        connection = await dial(attacker, node)
        stream = await attacker.new_stream(peer_of(node.account), ["/upkeep/test/stall/1"])
        running = node._running
        assert running is not None
        (inbound,) = running.swarm.get_connections(attacker.get_id())
        muxer = inbound.muxed_conn
        peak = sent = 0
        chunk = bytes(64 << 10)
        header = struct.pack("!BBHII", 0, 0, 0, stream.muxed_stream.stream_id, len(chunk))
        with trio.fail_after(30):
            with suppress(BaseLibp2pError, OSError):
                for _ in range(1000):
                    await connection.muxed_conn.secured_conn.write(header + chunk)
                    sent += len(chunk)
                    peak = max(peak, sum(map(len, muxer.stream_buffers.values())))
                    if muxer.is_closed:
                        break
        await until(lambda: not node.links())
        assert sent < 1000 * len(chunk)
        assert peak <= limits.LINK_BUFFER_BYTES_MAX
        await works(node)


async def test_both_pipes_full_at_once_do_not_block_each_other() -> None:
    size = 6 << 20

    async def pour(stream: Stream) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.write, bytes(size))
            got = 0
            while got < size:
                got += len(await stream.read(1 << 16))
        await stream.close_write()

    async with open_node() as node, open_node(2) as other:
        node.serve("/upkeep/test/pour/1", pour)
        await other.dial(node.addresses[0])
        with trio.fail_after(40):
            async with trio.open_nursery() as nursery:
                for _ in range(12):
                    nursery.start_soon(pour, await other.open(node.account, "/upkeep/test/pour/1"))
        assert other.links()
        assert node.links()


async def test_inbound_slots_are_freed() -> None:
    async with open_node(links_max=6, inbound_connections_max=4) as node:
        for turn in range(12):
            async with open_attacker(100 + turn) as attacker:
                await dial(attacker, node)
                await until(lambda: bool(node.links()))
            await until(lambda: not node.links())
        await works(node)


async def test_newcomers_beyond_the_inbound_limit_are_refused_until_one_leaves() -> None:
    async with (
        open_node(links_max=6, inbound_connections_max=2) as node,
        open_attacker(101) as one,
        open_attacker(102) as two,
        open_attacker(103) as three,
    ):
        await dial(one, node)
        await dial(two, node)
        with pytest.raises(SwarmException):
            await dial(three, node)
        await one.disconnect(peer_of(node.account))
        await until(lambda: len(node.links()) == 1)
        await dial(three, node)


async def test_idle_sockets_do_not_lock_others_out() -> None:
    async with open_node(connections_per_address_max=5, is_loopback_limited=True) as node:
        port = int(node.addresses[0].split("/")[4])
        idle = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(30)]
        await trio.sleep(0.3)
        assert node.counts["connection.refused_by_address"] == 25
        with trio.fail_after(limits.HANDSHAKE_TIMEOUT_S + 5):
            while await idle[0].receive_some(100):
                pass
        for socket in idle:
            await socket.aclose()
        await trio.sleep(0.2)
        await works(node)


async def test_one_peer_cannot_take_all_links() -> None:
    async with open_node() as node, open_attacker() as attacker:
        for _ in range(limits.CONNECTIONS_PER_PEER_MAX):
            await dial(attacker, node)
        for _ in range(5):
            with pytest.raises(SwarmException):
                await dial(attacker, node)
                await trio.sleep(0.2)
                await attacker.get_network().new_stream(peer_of(node.account))
                raise SwarmException("as refused as it gets")
        running = node._running
        assert running is not None
        await until(
            lambda: len(running.swarm.get_connections(attacker.get_id())) <= limits.CONNECTIONS_PER_PEER_MAX
        )
        await works(node)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        bytes(range(256)) * 10,
        b"\x13/multistream/1.0.0\n",
        b"\x13/multistream/1.0.0\n\x07/noise\n\x00\x20" + bytes(16),
        b"\x13/multistream/1.0.0\n\x07/noise\n\x00\x04abcd",
        b"",
    ],
    ids=["http", "random", "greeting", "half noise", "bad noise", "nothing"],
)
async def test_noise_on_the_raw_port(data: bytes) -> None:
    async with open_node() as node:
        port = int(node.addresses[0].split("/")[4])
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(data)
        await trio.sleep(0.1)
        await works(node)
        await stream.aclose()


async def test_plaintext_and_mplex_are_refused() -> None:
    pair = create_new_key_pair(bytes([70]) * 32)
    plain = {PLAINTEXT_PROTOCOL_ID: InsecureTransport(pair)}
    async with open_node() as node:
        async with open_attacker(70, sec_opt=plain) as attacker:
            with trio.fail_after(10), pytest.raises(SwarmException):
                await dial(attacker, node)
        async with open_attacker(71, muxer_opt={MPLEX_PROTOCOL_ID: Mplex}) as attacker:
            with trio.fail_after(10), pytest.raises(SwarmException):
                await dial(attacker, node)
        assert not node.links()
        await works(node)


async def test_only_ed25519_peers_are_let_in() -> None:
    host = new_host(key_pair=create_rsa_pair(2048))
    host.get_network().retry_config = RetryConfig(max_retries=0)
    async with open_node() as node, host.run([]):
        with trio.move_on_after(2), pytest.raises(SwarmException):
            await dial(host, node)
            await trio.sleep(0.3)
            raise SwarmException("as refused as it gets")
        assert node.counts["connection.refused"] == 1
        await until(lambda: not node.links())
        await host.disconnect(peer_of(node.account))
        await works(node)


async def test_garbage_inside_an_encrypted_connection() -> None:
    frames = [
        struct.pack("!BBHII", 9, 9, 0xFFFF, 7, 5),
        struct.pack("!BBHII", 0, 0, 0, 12345, 4) + b"abcd",
        struct.pack("!BBHII", 0, 0, 1, 2**31, 2**31),
        struct.pack("!BBHII", 0, 1, 0xF, 1, 2**32 - 1),
        struct.pack("!BBHII", 0, 2, 1, 0, 1) * 1000,
        struct.pack("!BBHII", 0, 3, 0, 0, 77),
    ]
    async with open_node() as node:
        for number, frame in enumerate(frames):
            async with open_attacker(110 + number) as attacker:
                connection = await dial(attacker, node)
                await connection.muxed_conn.secured_conn.write(frame)
                await trio.sleep(0.1)
        await works(node)


async def test_a_silent_connection_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PING_INTERVAL_S", 0.1)
    monkeypatch.setattr(limits, "SILENCE_MAX_S", 0.8)
    async with open_node() as node, open_attacker() as attacker:
        connection = await dial(attacker, node)
        await trio.sleep(1.5)
        assert node.links(), "an idle peer that answers stays"
        lock = connection.muxed_conn._write_lock
        async with lock:  # the attacker says nothing more
            await until(lambda: not node.links(), 5)
        await works(node)


async def test_a_peer_that_takes_no_bytes_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WRITE_STALL_S", 0.5)
    monkeypatch.setattr(limits, "SILENCE_MAX_S", 60.0)
    async with open_node() as node, open_attacker() as attacker:
        connection = await dial(attacker, node)
        await until(lambda: bool(node.links()))
        reading = connection.muxed_conn.secured_conn

        async def sleep(_count: int | None = None) -> bytes:
            await trio.sleep_forever()
            raise AssertionError

        reading.read = sleep
        ping = struct.pack("!BBHII", 0, 2, 1, 0, 1) * 1000
        with trio.move_on_after(20), suppress(BaseLibp2pError, OSError):
            while node.links():
                await reading.write(ping)
        await until(lambda: not node.links())
        await works(node)


async def test_nobody_is_dialled_behind_our_back() -> None:
    async with open_node() as node, open_node(2) as other:
        await other.dial(node.addresses[0])
        await until(lambda: is_meshed(node, other) and is_meshed(other, node))
        await node.disconnect(other.account)
        await until(lambda: not other.links())
        with pytest.raises(LinkError):
            await node.open(other.account, ECHO)
        running = node._running
        assert running is not None
        peer = peer_of(other.account)
        running.swarm.peerstore.add_addrs(peer, [Multiaddr(other.addresses[0])], 100)
        with pytest.raises(SwarmException):
            await running.swarm.new_stream(peer)
        await trio.sleep(1.5)
        assert not node.links()
        assert not other.links()
