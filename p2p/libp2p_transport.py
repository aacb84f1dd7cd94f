# pyright: standard, reportPrivateUsage=false
"""The transport seam over libp2p: TCP, Noise, yamux and gossipsub. With its guards, all that imports libp2p.

The host lives in a scope of its own that is rebuilt, on the same port, after an error nobody expected; the
`Libp2pTransport` object, its served protocols and its subscriptions stay. While it is down, calls fail as for
an absent peer. Importing this module costs over half a second: import it where a node starts.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, cast, final

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.tools.anyio_service import background_trio_service
from libp2p.utils.address_validation import expand_wildcard_address
from multiaddr import Multiaddr

from gossip_ledger.errors import LocalError
from gossip_ledger.records import AccountId
from p2p import limits
from p2p.addresses import Address, AddressError, parse_address
from p2p.channel import close_stream
from p2p.eventlog import EventLog
from p2p.libp2p_guards import (
    BROKEN,
    GuardLimits,
    SafePubsub,
    account_of,
    build_host,
    close_connections,
    farewell,
    peer_of,
)
from p2p.listening import check_free, parse_announced, parse_listen
from p2p.subscriptions import Subscriptions
from p2p.transport import DialError, GossipFrame, Handler, Link, LinkError, Stream


@final
class Libp2pStream:
    """One stream. See `p2p.transport.Stream`."""

    def __init__(self, stream: Any, remote: AccountId) -> None:
        self._stream = stream
        self._remote = remote
        self._is_ended = False
        self._is_reset = False

    @property
    def remote(self) -> AccountId:
        return self._remote

    async def read(self, bytes_max: int) -> bytes:
        if self._is_reset:
            raise LinkError("we reset the stream")
        if self._is_ended:
            await trio.lowlevel.checkpoint()
            return b""
        try:
            return await self._stream.read(bytes_max)
        except StreamEOF as error:
            muxed = self._stream.muxed_stream
            if muxed.reset_received or muxed.conn.event_shutting_down.is_set():
                raise LinkError("the stream broke off") from error
            self._is_ended = True
            return b""
        except BROKEN as error:
            raise LinkError(_reason(error)) from error

    async def write(self, data: bytes) -> None:
        try:
            for start in range(0, len(data), limits.WRITE_PIECE_BYTES):
                await self._stream.write(data[start : start + limits.WRITE_PIECE_BYTES])
        except BROKEN as error:
            raise LinkError(_reason(error)) from error

    async def close_write(self) -> None:
        try:
            await self._stream.close_write()
        except BROKEN as error:
            raise LinkError(_reason(error)) from error

    async def reset(self) -> None:
        self._is_reset = True
        with trio.CancelScope(shield=True), trio.move_on_after(limits.CLOSE_LINGER_S), suppress(*BROKEN):
            await self._stream.reset()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    """One life of the libp2p scope."""

    host: BasicHost
    swarm: Any
    pubsub: SafePubsub


@final
class Libp2pTransport:
    """See `p2p.transport.Transport`. Made by `open_libp2p_transport`."""

    def __init__(
        self,
        *,
        seed: bytes,
        listen: tuple[str, ...],
        topics: tuple[str, ...],
        announce: tuple[str, ...],
        log: EventLog,
        guard_limits: GuardLimits,
    ) -> None:
        self.counts: Counter[str] = Counter()
        """Events by name: refused frames, failed handlers, dropped peers."""
        self.restarts = 0
        """How often an unknown error ended the libp2p scope."""
        self._key_pair = create_new_key_pair(seed)
        self._id = ID.from_pubkey(self._key_pair.public_key)
        account = account_of(self._id)
        assert account is not None, "our key is Ed25519"
        self._account = account
        self._listen = tuple(parse_listen(address) for address in listen)
        self._announced = tuple(parse_announced(address, account) for address in announce)
        self._topics = topics
        self._log = log
        self._guard_limits = guard_limits
        self._handlers: dict[str, Handler] = {}
        self._subscriptions = Subscriptions(frames_max=limits.SUBSCRIPTION_FRAMES_MAX)
        self._running: _Running | None = None
        self._stop = trio.Event()
        self._scope = trio.CancelScope(shield=True)
        self._addresses: tuple[str, ...] = ()
        self._dialled: dict[AccountId, str] = {}
        self._dials: defaultdict[AccountId, trio.Lock] = defaultdict(trio.Lock)
        self._faults: Counter[AccountId] = Counter()
        self._sequence = 0

    # The seam

    @property
    def account(self) -> AccountId:
        return self._account

    @property
    def addresses(self) -> tuple[str, ...]:
        return self._announced or self._addresses

    @property
    def dropped_frames(self) -> int:
        """Gossip frames that no subscriber took in time."""
        return self._subscriptions.dropped_frames

    async def dial(self, address: str) -> AccountId:
        try:
            account = parse_address(address).account
        except AddressError as error:
            raise DialError(str(error)) from error
        if account is None:
            raise DialError(f"{address}: says not who is expected there (no /p2p/ part)")
        if account == self._account:
            raise DialError(f"{address} is our own address")
        running = self._running
        if running is None:
            raise DialError(f"{address}: the network layer is restarting")
        try:
            async with self._dials[account]:
                await trio.lowlevel.checkpoint()
                if self._connection(running, peer_of(account)) is None:
                    with trio.fail_after(limits.DIAL_TIMEOUT_S):
                        await running.swarm.dial_addr(Multiaddr(address), peer_of(account))
                    self._dialled[account] = address
        except trio.TooSlowError as error:
            raise DialError(f"{address}: no answer within {limits.DIAL_TIMEOUT_S:g} s") from error
        except BROKEN as error:
            raise DialError(f"{address}: {_reason(error)}") from error
        finally:
            if account in self._dials and not self._dials[account].statistics().tasks_waiting:
                del self._dials[account]
        return account

    async def disconnect(self, peer: AccountId) -> None:
        await trio.lowlevel.checkpoint()
        if self._running is not None:
            await close_connections(self._running.swarm, peer_of(peer))

    async def open(self, peer: AccountId, protocol: str) -> Libp2pStream:
        running = self._running
        peer_id = peer_of(peer)
        if running is None or self._connection(running, peer_id) is None:
            await trio.lowlevel.checkpoint()
            raise LinkError(f"no link to {peer.hex()[:8]}")
        try:
            with trio.fail_after(limits.OPEN_TIMEOUT_S):
                return Libp2pStream(await self._negotiate(running, peer_id, TProtocol(protocol)), peer)
        except trio.TooSlowError as error:
            raise LinkError(f"{peer.hex()[:8]} did not answer within {limits.OPEN_TIMEOUT_S:g} s") from error
        except BROKEN as error:
            raise LinkError(f"{peer.hex()[:8]}: {protocol}: {_reason(error)}") from error

    def serve(self, protocol: str, handler: Handler) -> None:
        self._handlers[protocol] = handler
        if self._running is not None:
            self._register(self._running.host, protocol, handler)

    def links(self) -> tuple[Link, ...]:
        running = self._running
        if running is None:
            return ()
        links = []
        for peer in tuple(running.swarm.connections):
            connection, account = self._connection(running, peer), account_of(peer)
            if connection is not None and account is not None:
                links.append(self._describe(connection, account))
        return tuple(links)

    async def publish(self, topic: str, data: bytes) -> None:
        assert topic in self._topics, topic
        assert len(data) <= limits.GOSSIP_FRAME_BYTES_MAX, f"a gossip frame of {len(data)} bytes"
        running = self._running
        if running is None:
            await trio.lowlevel.checkpoint()
            self.counts["gossip.unsent"] += 1
            return
        await running.pubsub.publish(topic, data)

    def subscribe(self, topic: str) -> trio.MemoryReceiveChannel[GossipFrame]:
        assert topic in self._topics, topic
        return self._subscriptions.add(topic)

    # The scope

    async def run_to_end(self, task_status: trio.TaskStatus[LocalError | None]) -> None:
        """Keeps a host alive until `stop`, and tells once whether it could listen at the first start.

        Kept from cancellation: cancelled in the middle, the library leaves sockets open.
        """
        with self._scope:
            await self._run(task_status)
        self._subscriptions.close()

    async def _run(self, task_status: trio.TaskStatus[LocalError | None]) -> None:
        delay_s = limits.RESTART_DELAY_S_MIN
        is_first = True
        while not self._stop.is_set():
            started_s = trio.current_time()
            try:
                async with self._host():
                    if is_first:
                        is_first = False
                        task_status.started(None)
                    await self._stop.wait()
            except LocalError as error:
                if is_first:
                    task_status.started(error)
                    return
                self._report("p2p.cannot_listen", None, error)
            except Exception as error:  # noqa: BLE001 - the supervisor of a library that may raise anything
                if self._stop.is_set():
                    return  # it raises when its nurseries close while messages arrive
                if is_first:
                    task_status.started(LocalError(f"the network layer does not start: {_reason(error)}"))
                    return
                self.restarts += 1
                self._report("p2p.restart", None, error)
            if trio.current_time() - started_s > limits.RESTART_DELAY_S_MAX:
                delay_s = limits.RESTART_DELAY_S_MIN
            with trio.move_on_after(delay_s):
                await self._stop.wait()
            delay_s = min(2 * delay_s, limits.RESTART_DELAY_S_MAX)

    def stop(self) -> None:
        """Asks `run` to end in good order, and soon."""
        self._scope.deadline = trio.current_time() + 2 * limits.SHUTDOWN_TIMEOUT_S
        self._stop.set()

    @asynccontextmanager
    async def _host(self) -> AsyncGenerator[None]:
        for address in self._listen:
            check_free(address)
        host, router = build_host(self._key_pair, self._report, self._guard_limits)
        swarm = cast(Any, host.get_network())
        pubsub = SafePubsub(
            host, router, topics=frozenset(self._topics), deliver=self._deliver, report=self._report
        )
        pubsub.counter = max(pubsub.counter, self._sequence + 1)
        swarm.register_notifee(_Farewells(self, pubsub))
        for protocol, handler in self._handlers.items():
            self._register(host, protocol, handler)
        listen = [Multiaddr(str(address)) for address in self._listen]
        async with host.run(listen), farewell(swarm):
            if self._listen:
                self._note_addresses(swarm)
            async with background_trio_service(pubsub), background_trio_service(router):
                await pubsub.wait_until_ready()
                for topic in self._topics:
                    await pubsub.subscribe(topic)
                async with farewell(swarm):
                    self._running = _Running(host=host, swarm=swarm, pubsub=pubsub)
                    try:
                        yield
                    finally:
                        self._running = None
                        self._sequence = pubsub.counter

    def _note_addresses(self, swarm: Any) -> None:
        """Remembers where we listen, so that a rebuilt host listens there again."""
        bound = [address for listener in swarm.listeners.values() for address in listener.get_addrs()]
        if not bound:
            wanted = ", ".join(map(str, self._listen))
            raise LocalError(f"cannot listen on {wanted}; choose another listen address or port")
        self._listen = tuple(parse_address(str(address)) for address in bound)
        reachable: dict[Address, None] = {}
        for raw, address in zip(bound, self._listen, strict=True):
            is_wildcard = address.host in ("0.0.0.0", "::")
            for one in expand_wildcard_address(raw) if is_wildcard else [raw]:
                reachable[replace(parse_address(str(one)), account=self._account)] = None
        ordered = sorted(reachable, key=lambda a: (ipaddress.ip_address(a.host).is_loopback, str(a)))
        self._addresses = tuple(map(str, ordered))

    # Connections and streams

    async def _negotiate(self, running: _Running, peer: ID, protocol: TProtocol) -> Any:
        """A new stream that speaks `protocol`; on any failure, cancellation included, none is left open."""
        stream: Any = None
        with trio.CancelScope(shield=True):
            stream = await running.swarm.new_stream(peer)
        is_agreed = False
        try:
            await running.host.multiselect_client.select_one_of(
                [protocol], MultiselectCommunicator(stream), int(limits.OPEN_TIMEOUT_S) + 1
            )
            stream.set_protocol(protocol)
            is_agreed = True
        finally:
            if not is_agreed:
                with trio.CancelScope(shield=True), trio.move_on_after(limits.CLOSE_LINGER_S):
                    await stream.reset()
        return stream

    def _register(self, host: BasicHost, protocol: str, handler: Handler) -> None:
        async def handle(raw: Any) -> None:
            account = account_of(raw.muxed_conn.peer_id)
            assert account is not None, "the guard lets only accounts in"
            stream: Stream = Libp2pStream(raw, account)
            try:
                await handler(stream)
            except Exception as error:  # noqa: BLE001 - the seam's promise: no handler takes its node down
                self._report("stream.handler_failed", None, error)
                await stream.reset()
            else:
                await close_stream(stream)

        host.set_stream_handler(TProtocol(protocol), cast(Any, handle))

    def _connection(self, running: _Running, peer: ID) -> Any | None:
        return next((c for c in running.swarm.get_connections(peer) if not c.is_closed), None)

    def _describe(self, connection: Any, account: AccountId) -> Link:
        is_outbound = connection.direction.name == "OUTBOUND"
        round_trip_s = connection.muxed_conn.rtt()
        remote = connection.muxed_conn.get_remote_address()
        if is_outbound and account in self._dialled:
            address = self._dialled[account]
        else:
            address = f"{remote[0]} port {remote[1]}" if remote else "unknown"
        return Link(
            peer=account,
            address=address,
            is_outbound=is_outbound,
            round_trip_ms=round(round_trip_s * 1000) if round_trip_s > 0 else None,
        )

    def _deliver(self, topic: str, forwarder: ID, data: bytes) -> None:
        account = account_of(forwarder)
        if account is not None:
            self._subscriptions.deliver(topic, GossipFrame(forwarder=account, data=data))

    # What happened

    def _report(self, event: str, peer: ID | None, error: BaseException | None) -> None:
        """Counts and logs; drops a peer who breaks the protocols again and again."""
        self.counts[event] += 1
        account = None if peer is None else account_of(peer)
        name = None if account is None else account.hex()[:8]
        self._log.warning(event, peer=name, error=None if error is None else repr(error)[:200])
        running = self._running
        if account is not None and peer is not None and running is not None:
            self._faults[account] += 1
            if self._faults[account] >= self._guard_limits.faults_max:
                del self._faults[account]
                self.counts["peer.dropped"] += 1
                running.swarm.manager.run_task(close_connections, running.swarm, peer)

    def forget(self, peer: ID) -> None:
        """The last connection to `peer` ended."""
        account = account_of(peer)
        if account is not None:
            self._dialled.pop(account, None)
            self._faults.pop(account, None)


@final
class _Farewells:
    """Clears what is kept per peer once its last connection is gone."""

    def __init__(self, transport: Libp2pTransport, pubsub: SafePubsub) -> None:
        self._transport = transport
        self._pubsub = pubsub

    async def disconnected(self, network: Any, conn: Any) -> None:
        peer = conn.muxed_conn.peer_id
        if not network.get_connections(peer):
            self._transport.forget(peer)
            self._pubsub.forget(peer)

    def __getattr__(self, name: str) -> Any:
        async def ignore(*_args: Any) -> None:
            pass

        return ignore


@asynccontextmanager
async def open_libp2p_transport(
    *,
    seed: bytes,
    listen: tuple[str, ...],
    topics: tuple[str, ...],
    log: EventLog,
    announce: tuple[str, ...] = (),
    guard_limits: GuardLimits | None = None,
) -> AsyncGenerator[Libp2pTransport]:
    """A node on the network until the block ends.

    `seed` is the 32 bytes that the account's key is made of. `listen` and `announce` are multiaddresses like
    `/ip4/0.0.0.0/tcp/4001`; with `announce`, those are told to others instead of the local ones; with no
    `listen` at all the node only dials out. `topics` are all that will ever be published or subscribed.
    Raises `LocalError` if it cannot listen.
    """
    assert len(seed) == 32
    transport = Libp2pTransport(
        seed=seed,
        listen=listen,
        topics=topics,
        announce=announce,
        log=log,
        guard_limits=GuardLimits() if guard_limits is None else guard_limits,
    )
    async with trio.open_nursery() as nursery:
        refusal = await nursery.start(transport.run_to_end)
        if refusal is None:
            try:
                yield transport
            finally:
                transport.stop()
    if refusal is not None:
        raise refusal


def _reason(error: BaseException) -> str:
    """The cause in a few words: what the system says if it said something."""
    seen: set[int] = set()
    cause: BaseException | None = error
    last = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        last = cause
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.rsplit(": ", 1)[-1].lower()
        if "Peer ID mismatch" in str(cause):
            return "another key answers there"
        nested = getattr(cause, "exceptions", None) or getattr(cause, "errors", None)
        cause = nested[0] if nested else cause.__cause__ or cause.__context__
    return (str(last) or str(error) or type(error).__name__)[:200]
