"""The transport seam in memory: seeded latency, loss, partitions and frozen peers, under trio's clock.

It keeps every promise of `p2p.transport` that the real one keeps, and is held to the same contract suite.
Faults look as they do on a real network: a cut or frozen peer is silent and nothing tells; a stopped peer is
gone at once; a link that one side dropped while cut ends on the other side when the cut heals.

Everything that passes between two nodes goes through `MemoryNetwork.send`, in order per pair.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Final, final

import trio

from gossip_ledger.records import AccountId
from p2p.channel import close_stream
from p2p.limits import (
    DIAL_TIMEOUT_S,
    GOSSIP_FRAME_BYTES_MAX,
    INBOUND_STREAMS_MAX,
    LINKS_MAX,
    OPEN_TIMEOUT_S,
    SEEN_FRAMES_MAX,
    STREAM_WINDOW_BYTES,
    SUBSCRIPTION_FRAMES_MAX,
    WINDOW_STALL_S,
)
from p2p.subscriptions import Subscriptions
from p2p.transport import DialError, GossipFrame, Handler, Link, LinkError

_Delivery = Callable[[], None]
_DIAL_TRIPS: Final = 3
"""Round trips of a real dial: TCP, Noise, muxer."""


@final
class MemoryNetwork:
    """The wires between nodes. One instance is one world."""

    def __init__(
        self,
        rng: Random,
        *,
        latency_s: tuple[float, float] = (0.001, 0.005),
        gossip_loss: float = 0.0,
    ) -> None:
        self._rng = rng
        self._latency_s = latency_s
        self._gossip_loss = gossip_loss
        self._nodes: dict[str, MemoryTransport] = {}
        self._groups: tuple[frozenset[AccountId], ...] = ()
        self._frozen: set[AccountId] = set()
        self._last_arrival_s: dict[tuple[AccountId, AccountId], float] = {}
        self._held: deque[tuple[MemoryTransport, MemoryTransport, _Delivery]] = deque()
        self._sequence = 0

    @asynccontextmanager
    async def transport(
        self, account: AccountId, *, place: str | None = None
    ) -> AsyncGenerator[MemoryTransport]:
        """A node until the block ends; then its links are gone and its handlers cancelled.

        `place` is where it listens: two nodes that use one place in turn model an address that changed hands.
        """
        where = account.hex()[:16] if place is None else place
        assert where not in self._nodes, f"{where} is taken"
        async with trio.open_nursery() as nursery:
            node = MemoryTransport(self, account, where, nursery)
            self._nodes[where] = node
            nursery.start_soon(node.run)
            try:
                yield node
            finally:
                del self._nodes[where]
                node.stop()
                nursery.cancel_scope.cancel()

    def partition(self, *groups: set[AccountId]) -> None:
        """Cuts every wire between accounts of different groups. Accounts in no group form their own."""
        self._groups = tuple(frozenset(group) for group in groups)
        self._release_held()

    def heal(self) -> None:
        """Ends every partition; what was under way arrives."""
        self.partition()

    def freeze(self, account: AccountId) -> None:
        """Nothing reaches `account` nor leaves it, as when its process is stopped."""
        self._frozen.add(account)

    def thaw(self, account: AccountId) -> None:
        self._frozen.discard(account)
        self._release_held()

    def is_cut(self, a: AccountId, b: AccountId) -> bool:
        if a in self._frozen or b in self._frozen:
            return True
        return self._group(a) != self._group(b)

    def find(self, place: str) -> MemoryTransport | None:
        """Who listens at `place`."""
        return self._nodes.get(place)

    def draw_latency_s(self) -> float:
        """One way, once."""
        return self._rng.uniform(*self._latency_s)

    def draw_loss(self) -> bool:
        """Whether this gossip frame is lost on this hop."""
        return self._rng.random() < self._gossip_loss

    def send(self, source: MemoryTransport, target: MemoryTransport, delivery: _Delivery) -> None:
        """Runs `delivery` at `target` after the latency, after everything sent earlier on the same wire."""
        pair = (source.account, target.account)
        arrival_s = trio.current_time() + self.draw_latency_s()
        arrival_s = max(arrival_s, self._last_arrival_s.get(pair, 0.0))
        self._last_arrival_s[pair] = arrival_s
        self._sequence += 1
        target.enqueue(arrival_s, self._sequence, source, delivery)

    def hold(self, source: MemoryTransport, target: MemoryTransport, delivery: _Delivery) -> None:
        """Keeps what cannot pass until the cut heals."""
        self._held.append((source, target, delivery))

    def _release_held(self) -> None:
        held, self._held = self._held, deque()
        for source, target, delivery in held:
            self.send(source, target, delivery)

    def _group(self, account: AccountId) -> int:
        return next((i for i, group in enumerate(self._groups) if account in group), -1)


@final
class _Side:
    """One direction of a stream, as its reader sees it."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.unread_bytes = 0
        """Written and not yet read, on the wire included: what the writer's window counts."""
        self.is_ended = False
        self.changed = trio.Event()

    def wake(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


@final
class MemoryStream:
    """One end of a stream. See `p2p.transport.Stream`."""

    def __init__(self, node: MemoryTransport, peer: MemoryTransport, link: _LinkEnd) -> None:
        self._node = node
        self._peer = peer
        self._link = link
        self._incoming = _Side()
        self._outgoing = self._incoming
        self._other: MemoryStream | None = None
        self._broken: str | None = None
        self._is_write_closed = False
        self.is_inbound = False
        link.streams.add(self)

    def join(self, other: MemoryStream) -> None:
        """Makes `other` the far end."""
        self._other, other._other = other, self
        self._outgoing, other._outgoing = other._incoming, self._incoming
        other.is_inbound = True

    @property
    def remote(self) -> AccountId:
        return self._peer.account

    async def read(self, bytes_max: int) -> bytes:
        await trio.lowlevel.checkpoint()
        side = self._incoming
        while True:
            if self._broken is not None:
                raise LinkError(self._broken)
            if side.buffer:
                data = bytes(side.buffer[:bytes_max])
                del side.buffer[:bytes_max]
                side.unread_bytes -= len(data)
                side.wake()
                return data
            if side.is_ended:
                return b""
            await side.changed.wait()

    async def write(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        rest = memoryview(data)
        while rest:
            await self._wait_for_window()
            piece = bytes(rest[: STREAM_WINDOW_BYTES - self._outgoing.unread_bytes])
            rest = rest[len(piece) :]
            self._outgoing.unread_bytes += len(piece)
            self._pass(lambda far, piece=piece: far.arrive(piece))

    async def close_write(self) -> None:
        await trio.lowlevel.checkpoint()
        if self._broken is not None:
            raise LinkError(self._broken)
        if not self._is_write_closed:
            self._is_write_closed = True
            self._pass(lambda far: far.arrive(b""))

    async def reset(self) -> None:
        await trio.lowlevel.checkpoint()
        if self._broken is None and not (self._is_write_closed and self._incoming.is_ended):
            self._pass(lambda far: far.break_off(f"{self._node.name} reset the stream"))
        self.break_off("we reset the stream")

    def arrive(self, data: bytes) -> None:
        """Bytes from the far end; none at all are its end."""
        if self._broken is None:
            self._incoming.buffer += data
            self._incoming.is_ended |= not data
            self._incoming.wake()

    def break_off(self, reason: str) -> None:
        """Nothing passes any more in either direction; what was not read is gone."""
        if self._broken is None:
            self._broken = reason
            self._incoming.buffer.clear()
            self._incoming.wake()
            self._outgoing.wake()
        self._link.streams.discard(self)

    async def _wait_for_window(self) -> None:
        with trio.move_on_after(WINDOW_STALL_S):
            while True:
                if self._broken is not None:
                    raise LinkError(self._broken)
                if self._is_write_closed:
                    raise LinkError("our side of the stream is closed")
                if self._outgoing.unread_bytes < STREAM_WINDOW_BYTES:
                    return
                await self._outgoing.changed.wait()
        await self.reset()
        raise LinkError(f"{self._peer.name} read nothing for {WINDOW_STALL_S} s")

    def _pass(self, action: Callable[[MemoryStream], None]) -> None:
        other = self._other
        assert other is not None, "a stream has two ends"
        self._node.network.send(self._node, self._peer, lambda: action(other))


@final
class _LinkEnd:
    """One end of a link. Each end learns of the other's end through the wire."""

    def __init__(self, peer: MemoryTransport, address: str, *, is_outbound: bool) -> None:
        self.peer = peer
        self.address = address
        self.is_outbound = is_outbound
        self.streams: set[MemoryStream] = set()
        self.far: _LinkEnd | None = None
        self.is_up = True

    def count_inbound(self) -> int:
        return sum(stream.is_inbound for stream in self.streams)


@final
class MemoryTransport:
    """One node of a `MemoryNetwork`. See `p2p.transport.Transport`."""

    def __init__(self, network: MemoryNetwork, account: AccountId, place: str, nursery: trio.Nursery) -> None:
        self.network = network
        self.place = place
        self.name = account.hex()[:8]
        self.handler_errors = 0
        """Exceptions that left a handler."""
        self._account = account
        self._nursery = nursery
        self._links: dict[AccountId, _LinkEnd] = {}
        self._handlers: dict[str, Handler] = {}
        self._subscriptions = Subscriptions(frames_max=SUBSCRIPTION_FRAMES_MAX)
        self._inbox: list[tuple[float, int, MemoryTransport, _Delivery]] = []
        self._inbox_changed = trio.Event()
        self._seen: dict[tuple[AccountId, int], None] = {}
        self._published = 0
        self._is_stopped = False

    @property
    def account(self) -> AccountId:
        return self._account

    @property
    def addresses(self) -> tuple[str, ...]:
        return (f"/memory/{self.place}/p2p/{self._account.hex()}",)

    @property
    def dropped_frames(self) -> int:
        """Gossip frames that no subscriber took in time."""
        return self._subscriptions.dropped_frames

    async def dial(self, address: str) -> AccountId:
        place, account = _parse_address(address)
        if account == self._account:
            raise DialError(f"{address} is our own address")
        if account in self._links:
            await trio.lowlevel.checkpoint()
            return account
        target = self.network.find(place)
        await self._travel(DIAL_TIMEOUT_S, target, _DIAL_TRIPS, DialError(f"{address}: no answer in time"))
        target = self.network.find(place)
        if target is None:
            raise DialError(f"{address}: nothing listens there")
        if target.account != account:
            raise DialError(f"{address}: answered as {target.name}")
        if len(target._links) >= LINKS_MAX or len(self._links) >= LINKS_MAX:
            raise DialError(f"{address}: too many links")
        self._join(target, address)
        return account

    async def disconnect(self, peer: AccountId) -> None:
        await trio.lowlevel.checkpoint()
        end = self._links.get(peer)
        if end is not None:
            self._end_link(end, "we closed the link")

    async def open(self, peer: AccountId, protocol: str) -> MemoryStream:
        end = self._links.get(peer)
        if end is None:
            raise LinkError(f"no link to {peer.hex()[:8]}")
        silence = LinkError(f"{end.peer.name} did not answer within {OPEN_TIMEOUT_S} s")
        await self._travel(OPEN_TIMEOUT_S, end.peer, 1, silence)
        if not end.is_up or end.far is None or not end.far.is_up:
            raise LinkError(f"the link to {end.peer.name} ended")
        handler = end.peer._handlers.get(protocol)
        if handler is None:
            raise LinkError(f"{end.peer.name} does not speak {protocol}")
        if end.far.count_inbound() >= INBOUND_STREAMS_MAX:
            raise LinkError(f"{end.peer.name} takes no more streams")
        near, far = MemoryStream(self, end.peer, end), MemoryStream(end.peer, self, end.far)
        near.join(far)
        end.peer._nursery.start_soon(end.peer._handle, handler, far)
        return near

    def serve(self, protocol: str, handler: Handler) -> None:
        self._handlers[protocol] = handler

    def links(self) -> tuple[Link, ...]:
        return tuple(
            Link(peer=peer, address=end.address, is_outbound=end.is_outbound, round_trip_ms=None)
            for peer, end in self._links.items()
        )

    async def publish(self, topic: str, data: bytes) -> None:
        assert len(data) <= GOSSIP_FRAME_BYTES_MAX, f"a gossip frame of {len(data)} bytes"
        await trio.lowlevel.checkpoint()
        self._published += 1
        self._forward(topic, (self._account, self._published), data, exclude=self._account)

    def subscribe(self, topic: str) -> trio.MemoryReceiveChannel[GossipFrame]:
        return self._subscriptions.add(topic)

    # For the network

    def enqueue(self, arrival_s: float, sequence: int, source: MemoryTransport, delivery: _Delivery) -> None:
        if not self._is_stopped:
            heapq.heappush(self._inbox, (arrival_s, sequence, source, delivery))
            self._inbox_changed.set()

    async def run(self) -> None:
        """Runs what arrives, in order of arrival."""
        while True:
            with trio.move_on_at(self._inbox[0][0] if self._inbox else float("inf")):
                await self._inbox_changed.wait()
            self._inbox_changed = trio.Event()
            while self._inbox and self._inbox[0][0] <= trio.current_time():
                _, _, source, delivery = heapq.heappop(self._inbox)
                if self.network.is_cut(source.account, self._account):
                    self.network.hold(source, self, delivery)
                else:
                    delivery()

    def stop(self) -> None:
        for end in tuple(self._links.values()):
            self._end_link(end, f"{self.name} stopped")
        self._is_stopped = True
        self._subscriptions.close()

    # Links and streams

    async def _travel(
        self, timeout_s: float, target: MemoryTransport | None, trips: int, silence: DialError | LinkError
    ) -> None:
        """Round trips to `target`; raises `silence` if the way is cut now or once they are made."""
        await trio.sleep(sum(self.network.draw_latency_s() for _ in range(2 * trips)))
        if self.network.is_cut(self._account, self._account if target is None else target.account):
            await trio.sleep(timeout_s)
            raise silence

    def _join(self, target: MemoryTransport, address: str) -> None:
        if target.account in self._links:
            return
        near = _LinkEnd(target, address, is_outbound=True)
        far = _LinkEnd(self, f"/memory/{self.place}", is_outbound=False)
        near.far, far.far = far, near
        stale = target._links.get(self._account)
        if stale is not None:
            target._drop(stale, f"{self.name} came again")
        self._links[target.account], target._links[self._account] = near, far

    def _end_link(self, end: _LinkEnd, reason: str) -> None:
        self._drop(end, reason)
        far, peer = end.far, end.peer
        if far is not None:
            self.network.send(self, peer, lambda: peer._drop(far, f"{self.name} closed the link"))

    def _drop(self, end: _LinkEnd, reason: str) -> None:
        end.is_up = False
        for stream in tuple(end.streams):
            stream.break_off(reason)
        if self._links.get(end.peer.account) is end:
            del self._links[end.peer.account]

    async def _handle(self, handler: Handler, stream: MemoryStream) -> None:
        try:
            await handler(stream)
        except Exception:  # noqa: BLE001 - the seam's promise: no handler takes its node down
            self.handler_errors += 1
            await stream.reset()
        else:
            await close_stream(stream)

    # Gossip: a flood over the links, told apart by origin and number

    def _forward(self, topic: str, frame_id: tuple[AccountId, int], data: bytes, exclude: AccountId) -> None:
        self._remember(frame_id)
        for end in tuple(self._links.values()):
            if end.peer.account != exclude and not self.network.draw_loss():
                peer = end.peer
                self.network.send(
                    self, peer, lambda peer=peer: peer._arrive(topic, frame_id, data, self._account)
                )

    def _arrive(self, topic: str, frame_id: tuple[AccountId, int], data: bytes, forwarder: AccountId) -> None:
        if frame_id in self._seen or topic not in self._subscriptions.topics():
            return
        self._subscriptions.deliver(topic, GossipFrame(forwarder=forwarder, data=data))
        self._forward(topic, frame_id, data, exclude=forwarder)

    def _remember(self, frame_id: tuple[AccountId, int]) -> None:
        self._seen[frame_id] = None
        if len(self._seen) > SEEN_FRAMES_MAX:
            del self._seen[next(iter(self._seen))]


def _parse_address(address: str) -> tuple[str, AccountId]:
    match address.split("/"):
        case ["", "memory", place, "p2p", account] if len(account) == 64:
            try:
                return place, AccountId(bytes.fromhex(account))
            except ValueError:
                pass
        case _:
            pass
    raise DialError(f"{address}: not an address of this network")
