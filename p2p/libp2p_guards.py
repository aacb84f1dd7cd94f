# pyright: basic, reportPrivateUsage=false
"""What keeps libp2p 0.8.1 alive among hostile and careless peers, in one place.

The stock library ends the whole host on one malformed frame, never frees an inbound slot, lets a peer ignore
flow control, notices neither a frozen peer nor a full pipe, and dials behind our back. Every guard here has a
test over real sockets; they also tell when an upgrade changes the private names that this module rests on
(which is why the version is pinned exactly and types are checked loosely here).
"""

from __future__ import annotations

import ipaddress
import logging
import struct
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, final

import trio
from libp2p import new_host
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.host.basic_host import BasicHost
from libp2p.identity.identify_push.identify_push import ID_PUSH
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.connection import swarm_connection
from libp2p.network.connection.exceptions import RawConnError
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.pubsub import pubsub as pubsub_module
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.rpc_queue import RpcQueue
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer import muxer_multistream
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.stream_muxer.yamux import yamux
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_ID
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream
from libp2p.transport.exceptions import SecurityUpgradeFailure

from gossip_ledger.records import AccountId
from p2p import limits
from p2p.addresses import account_in, peer_id_bytes
from p2p.buckets import TokenBucket

BROKEN: Final = (BaseLibp2pError, OSError, ValueError, trio.BrokenResourceError, trio.ClosedResourceError)
"""What a connection or stream raises when it ends under our hands."""

Report = Callable[[str, ID | None, BaseException | None], None]
"""What happened, with whom, and the error if there was one."""


def account_of(peer: ID) -> AccountId | None:
    """The account behind a peer id; None for ids of other key types."""
    return account_in(peer.to_bytes())


def peer_of(account: AccountId) -> ID:
    """The peer id of an account."""
    return ID(peer_id_bytes(account))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GuardLimits:
    """Bounds that tests lower. See `p2p.limits` for what each means."""

    links_max: int = limits.LINKS_MAX
    inbound_connections_max: int = limits.INBOUND_CONNECTIONS_MAX
    connections_per_peer_max: int = limits.CONNECTIONS_PER_PEER_MAX
    connections_per_address_max: int = limits.CONNECTIONS_PER_ADDRESS_MAX
    is_loopback_limited: bool = False
    inbound_streams_max: int = limits.INBOUND_STREAMS_MAX
    faults_max: int = limits.FAULTS_MAX


# The muxer


class CarefulStream(YamuxStream):
    """A stream whose reads can be cancelled, and which leaves nothing behind when it is reset."""

    async def reset(self) -> None:
        await super().reset()
        # The library keeps a reset stream for as long as it has unread bytes.
        buffer = self.conn.stream_buffers.get(self.stream_id)
        if buffer:
            buffer.clear()
        await self.conn._finalize_stream(self, fully_closed=True)

    async def _auto_tune_and_send_window_update(self, *, bytes_read: int = 0) -> None:
        """Runs when bytes have left the buffer: cancelled here, they would reach nobody."""
        with trio.CancelScope(shield=True):
            await super()._auto_tune_and_send_window_update(bytes_read=bytes_read)


class BoundedYamux(Yamux):
    """Bounds what a peer can make us hold, and drops a peer that is silent or takes nothing."""

    def __init__(self, secured_conn: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(secured_conn, *args, **kwargs)
        self._heard_at_s = trio.current_time()
        self._answers = 0
        read = secured_conn.read

        async def heard(n: int | None = None) -> bytes:
            data = await read(n)
            self._heard_at_s = trio.current_time()
            return data

        secured_conn.read = heard

    async def _read_data_body(self, length: int) -> bytes:
        """Refuses what flow control forbids before reading it. A timeout is what the caller closes on."""
        unread = sum(map(len, self.stream_buffers.values()))
        if length > limits.STREAM_WINDOW_BYTES_MAX or unread + length > limits.LINK_BUFFER_BYTES_MAX:
            raise trio.TooSlowError
        return await super()._read_data_body(length)

    async def read_stream(self, stream_id: int, n: int = -1) -> bytes:
        try:
            return await super().read_stream(stream_id, n)
        finally:
            # The library leaves an event behind for a stream that was reset while we waited.
            if stream_id not in self.streams:
                self.stream_events.pop(stream_id, None)

    async def open_stream(self) -> YamuxStream:
        """Fails at once where the library waits for ever; cancelled, it leaves no half-opened stream."""
        if self.stream_backlog_semaphore.value == 0:
            raise MuxedStreamError("too many open streams")
        with trio.CancelScope(shield=True):
            return await super().open_stream()
        raise AssertionError("a shield swallows nothing")

    async def _write_frame(self, data: bytes) -> None:
        """Answers go out beside the reading: two peers whose pipes are full would else both stop reading."""
        is_answer = len(data) == yamux.HEADER_SIZE and data[3] & yamux.FLAG_ACK
        if is_answer and self._nursery is not None and self._answers < limits.PENDING_ANSWERS_MAX:
            self._answers += 1
            self._nursery.start_soon(self._write_answer, data)
        else:
            await self._write_whole(data)

    async def _write_answer(self, data: bytes) -> None:
        try:
            await self._write_whole(data)
        except BROKEN:
            pass  # the reading side notices by itself
        finally:
            self._answers -= 1

    async def _write_whole(self, data: bytes) -> None:
        """Writes a whole frame or drops the connection: half a frame would garble everything after it."""
        async with self._write_lock:
            with trio.CancelScope(shield=True) as scope:
                scope.deadline = trio.current_time() + limits.WRITE_STALL_S
                await self.secured_conn.write(data)
            if scope.cancelled_caught:
                with trio.CancelScope(shield=True):
                    await self.secured_conn.close()
                raise RawConnError("the peer takes no bytes")
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def _measure_rtt_loop(self) -> None:
        """Asks for a sign of life, drops a silent connection. The library only measures, twice a minute."""
        while not self.event_shutting_down.is_set():
            if trio.current_time() - self._heard_at_s > limits.SILENCE_MAX_S:
                break
            self._ping_id = (self._ping_id + 1) & 0xFFFFFFFF
            self._ping_event = trio.Event()
            self._ping_sent_time = trio.current_time()
            ping = struct.pack(
                yamux.YAMUX_HEADER_FORMAT, 0, yamux.TYPE_PING, yamux.FLAG_SYN, 0, self._ping_id
            )
            try:
                await self._write_frame(ping)
            except BROKEN:
                break
            with trio.move_on_after(limits.PING_INTERVAL_S):
                await self.event_shutting_down.wait()
                return
        await self._cleanup_on_error()


class WideRpcQueue(RpcQueue):
    """Holds a burst, and splits what a neighbour would refuse as too large."""

    def __init__(self) -> None:
        super().__init__(limits.OUTBOUND_FRAMES_MAX, RPC_BYTES_MAX)


RPC_BYTES_MAX: Final = limits.GOSSIP_FRAME_BYTES_MAX + limits.GOSSIP_ENVELOPE_BYTES_MAX


def install_guards() -> None:
    """Puts our muxer and queues in place of the library's, for the whole process. Safe to call again."""
    muxer_multistream.Yamux = BoundedYamux  # pyright: ignore[reportPrivateImportUsage]
    yamux.YamuxStream = CarefulStream
    yamux.MAX_WINDOW_SIZE = limits.STREAM_WINDOW_BYTES_MAX
    pubsub_module.RpcQueue = WideRpcQueue  # pyright: ignore[reportPrivateImportUsage]
    # It logs every hang-up as an error, some of them through the root logger, which then prints to stderr.
    library_log = logging.getLogger("libp2p")
    library_log.setLevel(logging.CRITICAL + 1)
    library_log.propagate = False
    swarm_connection.logging = library_log  # pyright: ignore[reportPrivateImportUsage]


# Gossip


class SafePubsub(Pubsub):
    """Publish and subscribe that outlives any message, and hands frames straight to `deliver`.

    Frames are judged by size, topic and their forwarder's rate before a signature is verified.
    """

    def __init__(
        self,
        host: BasicHost,
        router: Any,
        *,
        topics: frozenset[str],
        deliver: Callable[[str, ID, bytes], None],
        report: Report,
    ) -> None:
        super().__init__(
            host,
            router,
            strict_signing=True,
            seen_ttl=300,
            max_subscriptions_per_rpc=len(topics) + 8,
            max_subscriptions_per_peer=len(topics) + 8,
            max_inbound_rpc_size=RPC_BYTES_MAX,
            allowed_topics=topics,
        )
        # The library starts at the second and adds one per message: a restarted node would repeat numbers,
        # and its neighbours drop what they have seen. The noise is as good as any to start at.
        noise = create_noise_key_pair().public_key.to_bytes()
        self.counter = self.counter * 10**9 + int.from_bytes(noise[:4], "big") % 10**9
        self._topics = topics
        self._deliver = deliver
        self._report = report
        self._forwarders: dict[int, ID] = {}
        self._buckets: dict[ID, TokenBucket] = {}

    async def push_msg(self, msg_forwarder: ID, msg: Any) -> None:
        if msg_forwarder != self.my_id and not self._admit(msg_forwarder, msg):
            return
        self._forwarders[id(msg)] = msg_forwarder
        try:
            await super().push_msg(msg_forwarder, msg)
        except Exception as error:  # noqa: BLE001 - whatever a peer's message sets off, gossip goes on
            self._report("gossip.message_failed", msg_forwarder, error)
        finally:
            del self._forwarders[id(msg)]

    def notify_subscriptions(self, publish_message: Any) -> None:
        forwarder = self._forwarders.get(id(publish_message), self.my_id)
        if forwarder != self.my_id:
            self._deliver(publish_message.topicIDs[0], forwarder, publish_message.data)

    def forget(self, peer: ID) -> None:
        """A peer is gone."""
        self._buckets.pop(peer, None)

    def _admit(self, forwarder: ID, msg: Any) -> bool:
        if (
            len(msg.topicIDs) != 1
            or msg.topicIDs[0] not in self._topics
            or len(msg.data) > limits.GOSSIP_FRAME_BYTES_MAX
            or account_of(ID(msg.from_id)) is None
        ):
            self._report("gossip.frame_refused", forwarder, None)
            return False
        now_s = trio.current_time()
        if forwarder not in self._buckets:
            self._buckets[forwarder] = TokenBucket(
                per_s=limits.FORWARDER_FRAMES_PER_S, burst=limits.FORWARDER_FRAMES_BURST, now_s=now_s
            )
        return self._buckets[forwarder].take(now_s)


# The host


@final
class HostGuard:
    """Stands before every inbound connection and stream of a host; stops the library's own initiatives."""

    def __init__(self, host: BasicHost, report: Report, guard_limits: GuardLimits) -> None:
        self._host = host
        self._swarm: Any = host.get_network()
        self._report = report
        self._limits = guard_limits
        self._by_address: Counter[str] = Counter()
        self._streams: defaultdict[ID, int] = defaultdict(int)
        self._handle_stream = host._swarm_stream_handler
        self._upgrade = self._swarm.upgrade_inbound_raw_conn
        self._secure = self._swarm.upgrader.upgrade_security
        self._swarm.set_stream_handler(self._guarded_stream)
        self._swarm.upgrade_inbound_raw_conn = self._guarded_upgrade
        self._swarm.upgrader.upgrade_security = self._guarded_security
        self._swarm._inbound_limiter = trio.CapacityLimiter(guard_limits.inbound_connections_max)
        self._swarm.dial_peer = self._refuse_to_dial
        self._swarm.auto_connector.maybe_connect = _do_nothing
        self._silence_identify()

    async def _guarded_stream(self, stream: Any) -> None:
        """One choke point for every inbound stream: ours, gossip's, identify's."""
        peer = stream.muxed_conn.peer_id
        if self._streams[peer] >= self._limits.inbound_streams_max:
            self._report("stream.refused", peer, None)
            await _reset(stream)
            return
        self._streams[peer] += 1
        try:
            await self._handle_stream(stream)
        except Exception as error:  # noqa: BLE001 - no stream takes the host down
            self._report("stream.failed", peer, error)
            await _reset(stream)
        finally:
            self._streams[peer] -= 1
            if not self._streams[peer]:
                del self._streams[peer]

    async def _guarded_upgrade(self, raw_conn: Any, maddr: Any) -> Any:
        """Frees the inbound slot when the connection ends. The library's caller waits for the host to end."""
        remote = raw_conn.get_remote_address()
        address = remote[0] if remote else ""
        is_limited = self._limits.is_loopback_limited or not _is_loopback(address)
        if is_limited and self._by_address[address] >= self._limits.connections_per_address_max:
            self._report("connection.refused_by_address", None, None)
            raise ConnectionError("too many connections from one address")
        self._by_address[address] += 1
        try:
            muxed = await self._upgrade(raw_conn, maddr)
            await muxed.event_closed.wait()
        finally:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]
        raise ConnectionError("the inbound connection ended")

    async def _guarded_security(self, raw_conn: Any, is_initiator: bool, peer_id: ID | None = None) -> Any:
        """Only Ed25519 peers, only so many connections each, and not ourselves."""
        secured = await self._secure(raw_conn, is_initiator, peer_id)
        peer = secured.get_remote_peer()
        refusal = ""
        if account_of(peer) is None:
            refusal = "its key is not Ed25519"
        elif peer == self._host.get_id():
            refusal = "it is ourselves"
        elif len(self._swarm.get_connections(peer)) >= self._limits.connections_per_peer_max:
            refusal = "it has too many connections"
        if refusal:
            self._report("connection.refused", None, None)
            await secured.close()
            raise SecurityUpgradeFailure(refusal)
        return secured

    async def _refuse_to_dial(self, peer_id: ID) -> Any:
        """Streams and gossip may only use live connections; who is dialled is not the library's choice."""
        raise SwarmException(f"no connection to {peer_id}")

    def _silence_identify(self) -> None:
        """We answer identify (others need it), but neither ask nor take pushes: nobody reads the answers."""
        self._swarm.notifees = [
            notifee for notifee in self._swarm.notifees if type(notifee).__name__ != "_IdentifyNotifee"
        ]
        self._host._schedule_identify = lambda *_args, **_kwargs: None
        self._host.remove_stream_handler(ID_PUSH)


def build_host(key_pair: KeyPair, report: Report, guard_limits: GuardLimits) -> tuple[BasicHost, GossipSub]:
    """A guarded host that only speaks Noise and yamux, and the gossip router with parameters that deliver."""
    install_guards()
    noise = Noise(key_pair, noise_privkey=create_noise_key_pair().private_key)
    links_max = guard_limits.links_max
    host = new_host(
        key_pair=key_pair,
        sec_opt={NOISE_ID: noise},
        muxer_opt={TProtocol(YAMUX_ID): BoundedYamux},
        connection_config=ConnectionConfig(
            min_connections=0,
            low_watermark=0,
            high_watermark=links_max,
            max_connections=links_max,
            inbound_upgrade_timeout=limits.HANDSHAKE_TIMEOUT_S,
            outbound_upgrade_timeout=limits.DIAL_TIMEOUT_S,
            inbound_stream_protocol_negotiation_timeout=limits.OPEN_TIMEOUT_S,
            outbound_stream_protocol_negotiation_timeout=limits.OPEN_TIMEOUT_S,
        ),
        disable_identify_address_discovery=True,
    )
    assert isinstance(host, BasicHost)
    swarm: Any = host.get_network()
    swarm.retry_config = RetryConfig(max_retries=0)
    HostGuard(host, report, guard_limits)
    router = GossipSub(
        protocols=[TProtocol("/meshsub/1.1.0")],
        degree=6,
        degree_low=4,
        degree_high=links_max,  # never prune: pruned peers are cut off from gossip for a minute
        heartbeat_interval=1,
        gossip_window=3,
        gossip_history=5,
        adaptive_gossip_enabled=False,
        spam_protection_enabled=False,
        eclipse_protection_enabled=False,
    )
    return host, router


@asynccontextmanager
async def farewell(swarm: Any) -> AsyncGenerator[None]:
    """Closes listeners and connections in good order at the end: cancelled, the library leaves both open."""
    try:
        yield
    finally:
        with trio.CancelScope(shield=True), trio.move_on_after(limits.SHUTDOWN_TIMEOUT_S):
            for listener in tuple(swarm.listeners.values()):
                await listener.close()
            async with trio.open_nursery() as nursery:
                for peer in tuple(swarm.connections):
                    nursery.start_soon(close_connections, swarm, peer)


async def close_connections(swarm: Any, peer: ID) -> None:
    for connection in swarm.get_connections(peer):
        with suppress(*BROKEN):
            await connection.close()


async def _do_nothing() -> None:
    """In place of an auto-dialler that no watermark switches off."""


async def _reset(stream: Any) -> None:
    with trio.CancelScope(shield=True), trio.move_on_after(limits.CLOSE_LINGER_S), suppress(*BROKEN):
        await stream.reset()


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
