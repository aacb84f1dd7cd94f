"""Keeping links, in virtual time over the memory transport: whole small networks with their faults."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from random import Random

import pytest
import trio
from trio.testing import MockClock

from gossip_ledger.errors import RemoteError
from gossip_ledger.records import AccountId
from p2p import limits
from p2p.eventlog import NoLog
from p2p.links import Greeting, LinkDown, Links, LinkUp
from p2p.memory_transport import MemoryNetwork, MemoryTransport

Greet = Callable[[AccountId], Awaitable[Greeting | None]]


class Book:
    """An address book in memory."""

    def __init__(self) -> None:
        self.addresses: dict[str, bool | None] = {}

    def list(self) -> list[str]:
        return list(self.addresses)

    def add(self, address: str) -> None:
        self.addresses.setdefault(address, None)

    def mark(self, address: str, *, did_answer: bool) -> None:
        self.addresses[address] = did_answer


class Node:
    def __init__(self, world: World, transport: MemoryTransport, bootstrap: tuple[str, ...]) -> None:
        self.world = world
        self.transport = transport
        self.book = Book()
        self.greeted: list[AccountId] = []
        self.greet: Greet = self.exchange
        self.links = Links(
            transport,
            self.book,
            lambda peer: self.greet(peer),
            bootstrap=bootstrap,
            rng=Random(transport.account),
            log=NoLog(),
        )

    @property
    def account(self) -> AccountId:
        return self.transport.account

    async def exchange(self, peer: AccountId) -> Greeting | None:
        """A hello without a wire: the other tells its own address and up to 16 that it knows."""
        self.greeted.append(peer)
        await trio.sleep(0.01)
        other = self.world.nodes.get(peer)
        if other is None:
            return None
        return Greeting(addresses=(*other.transport.addresses, *other.book.list()[:16]))

    def peers(self) -> set[AccountId]:
        return {link.peer for link in self.links.peers()}

    def outbound(self) -> int:
        return sum(link.is_outbound for link in self.links.peers())


class World:
    def __init__(self, seed: int = 1) -> None:
        self.network = MemoryNetwork(Random(seed))
        self.nodes: dict[AccountId, Node] = {}

    @asynccontextmanager
    async def node(self, number: int, *bootstrap: Node) -> AsyncGenerator[Node]:
        account = AccountId(bytes([number]) * 32)
        addresses = tuple(node.transport.addresses[0] for node in bootstrap)
        async with self.network.transport(account) as transport, trio.open_nursery() as nursery:
            node = Node(self, transport, addresses)
            self.nodes[account] = node
            nursery.start_soon(node.links.run)
            try:
                yield node
            finally:
                del self.nodes[account]
                nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def crowd(self, size: int) -> AsyncGenerator[list[Node]]:
        """`size` nodes that all know only the first."""
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(self.node(1))
            rest = [await stack.enter_async_context(self.node(n, first)) for n in range(2, size + 1)]
            yield [first, *rest]


def islands(nodes: list[Node]) -> int:
    """How many parts the graph of links has."""
    by_account = {node.account: node for node in nodes}
    parts = 0
    unseen = set(by_account)
    while unseen:
        parts += 1
        front = [unseen.pop()]
        while front:
            fresh = by_account[front.pop()].peers() & unseen
            unseen -= fresh
            front += fresh
    return parts


async def test_two_nodes_greet_each_other(autojump_clock: MockClock) -> None:
    async with World().crowd(2) as (a, b):
        await trio.sleep(5)
        assert a.peers() == {b.account}
        assert b.peers() == {a.account}
        assert set(a.greeted) == {b.account}
        assert await a.links.events().receive() == LinkUp(peer=b.account)
        await trio.sleep(20)
        (link,) = a.links.peers()
        assert link.round_trip_ms is not None
        assert link.round_trip_ms < 50


async def test_a_crowd_that_knows_one_address_becomes_one_mesh(autojump_clock: MockClock) -> None:
    async with World().crowd(16) as nodes:
        await trio.sleep(60)
        assert islands(nodes) == 1
        for node in nodes[1:]:
            assert limits.OUTBOUND_LINKS_MIN <= node.outbound() <= limits.OUTBOUND_LINKS_MAX
        await trio.sleep(150)
        assert islands(nodes) == 1
        for node in nodes:
            assert node.outbound() <= limits.OUTBOUND_LINKS_MAX


async def test_a_frozen_peer_is_dropped_within_15_seconds(autojump_clock: MockClock) -> None:
    world = World()
    async with world.crowd(3) as (a, b, c):
        await trio.sleep(30)
        world.network.freeze(b.account)
        start = trio.current_time()
        while b.account in a.peers() or b.account in c.peers():
            await trio.sleep(0.1)
            assert trio.current_time() - start < 15
        assert c.account in a.peers()
        world.network.thaw(b.account)
        await trio.sleep(limits.REDIAL_ALONE_S_MAX + 5)
        assert {a.account, c.account} == b.peers(), "and it is welcome again"


async def test_a_stopped_peer_is_told_of_at_once_and_redialled_with_growing_waits(
    autojump_clock: MockClock,
) -> None:
    world = World()
    async with world.node(1) as a:
        async with world.node(2) as b:
            a.links.add_bootstrap(b.transport.addresses[0])
            await trio.sleep(5)
            assert a.peers() == {b.account}
        await trio.sleep(1)
        assert not a.peers()
        events = a.links.events()
        assert isinstance(events.receive_nowait(), LinkUp)
        assert isinstance(events.receive_nowait(), LinkDown)
        await trio.sleep(600)
        assert any("nothing listens" in refusal.reason for refusal in a.links.refusals())
        async with world.node(2) as b:
            await trio.sleep(limits.REDIAL_ALONE_S_MAX + 2)
            assert a.peers() == {b.account}, "while alone nobody waits long"


async def test_a_dead_address_is_not_hammered(autojump_clock: MockClock) -> None:
    async with World().crowd(3) as (a, b, c):
        dead = "/memory/nowhere/p2p/" + "ee" * 32
        a.links.add_bootstrap(dead)
        calls: list[float] = []
        dial = a.transport.dial

        async def counted(address: str) -> AccountId:
            if address == dead:
                calls.append(trio.current_time())
            return await dial(address)

        a.transport.dial = counted  # type: ignore[method-assign]
        await trio.sleep(1800)
        assert {b.account, c.account} == a.peers()
        assert 8 < len(calls) < 25
        waits = [later - earlier for earlier, later in zip(calls[-5:], calls[-4:], strict=False)]
        assert all(limits.REDIAL_S_MAX / 2 <= wait <= limits.REDIAL_S_MAX + 1 for wait in waits)


async def test_a_refusal_is_recorded_and_the_peer_avoided(autojump_clock: MockClock) -> None:
    async with World().crowd(2) as (a, b):

        async def refuse(peer: AccountId) -> Greeting | None:
            raise RemoteError("another network: foo, not bar")

        b.greet = refuse
        await trio.sleep(30)
        assert not a.peers()
        assert not b.peers()
        assert ("another network: foo, not bar") in {refusal.reason for refusal in b.links.refusals()}
        dials = len(a.greeted)
        await trio.sleep(300)
        assert len(a.greeted) - dials < 20, "the refused side backs off too"


async def test_a_peer_that_does_not_greet_is_let_go(autojump_clock: MockClock) -> None:
    async with World().crowd(2) as (_a, b):

        async def hang(peer: AccountId) -> Greeting | None:
            await trio.sleep_forever()

        b.greet = hang
        await trio.sleep(60)
        assert not b.peers()


async def test_inbound_links_are_bounded(autojump_clock: MockClock) -> None:
    world = World()
    async with world.node(1) as a, AsyncExitStack() as stack:
        for number in range(2, limits.INBOUND_LINKS_MAX + 8):
            await stack.enter_async_context(world.node(number, a))
        await trio.sleep(40)
        inbound = [link for link in a.links.peers() if not link.is_outbound]
        assert len(inbound) <= limits.INBOUND_LINKS_MAX
        assert islands(list(world.nodes.values())) == 1


async def test_islands_join_after_a_long_partition(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LIVENESS_INTERVAL_S", 20.0)
    monkeypatch.setattr(limits, "LINK_TICK_S", 2.0)
    world = World()
    async with world.crowd(16) as nodes:
        await trio.sleep(120)
        world.network.partition({n.account for n in nodes[:8]}, {n.account for n in nodes[8:]})
        await trio.sleep(120)
        assert islands(nodes) == 2
        world.network.heal()
        with trio.fail_after(limits.REDIAL_S_MAX + 2 * limits.ROTATE_S):
            while islands(nodes) > 1:
                await trio.sleep(5)


async def test_a_node_that_is_content_still_meets_others(autojump_clock: MockClock) -> None:
    """What joins islands whose nodes all have the links they want."""
    world = World()
    async with AsyncExitStack() as stack:
        others = [await stack.enter_async_context(world.node(number)) for number in range(2, 6)]
        node = await stack.enter_async_context(world.node(1, *others[:3]))
        await trio.sleep(5)
        assert node.outbound() == limits.OUTBOUND_LINKS_MIN
        node.links.add_bootstrap(others[3].transport.addresses[0])
        await trio.sleep(5)
        assert others[3].account not in node.peers(), "in no hurry"
        await trio.sleep(limits.ROTATE_S)
        assert others[3].account in node.peers()


async def test_held_links_are_not_rotated_away(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LIVENESS_INTERVAL_S", 20.0)
    monkeypatch.setattr(limits, "LINK_TICK_S", 2.0)
    async with World().crowd(16) as nodes:
        await trio.sleep(30)
        node = nodes[5]
        assert node.outbound() >= limits.OUTBOUND_LINKS_MIN
        before = {link.peer for link in node.links.peers() if link.is_outbound}
        with ExitStack() as holds:
            for peer in before:
                holds.enter_context(node.links.hold(peer))
            await trio.sleep(10 * limits.ROTATE_S)
            assert before <= {link.peer for link in node.links.peers() if link.is_outbound}
        assert node.outbound() >= limits.OUTBOUND_LINKS_MIN


async def test_garbage_addresses_do_no_harm(autojump_clock: MockClock) -> None:
    async with World().crowd(2) as (a, b):

        async def lie(peer: AccountId) -> Greeting | None:
            return Greeting(addresses=tuple(f"garbage {n}" for n in range(1000)))

        a.greet = lie
        await trio.sleep(200)
        assert a.peers() == {b.account}
        assert len(a.book.addresses) == limits.ADDRESSES_PER_GREETING_MAX


@pytest.mark.parametrize("seed", range(3))
async def test_churn_does_not_leak(autojump_clock: MockClock, seed: int) -> None:
    world = World(seed)
    rng = Random(seed)
    async with world.crowd(6) as nodes:
        for _ in range(15):
            victim = rng.choice(nodes[1:])
            world.network.freeze(victim.account)
            await trio.sleep(rng.uniform(1, 30))
            world.network.thaw(victim.account)
            await trio.sleep(rng.uniform(1, 30))
        await trio.sleep(60)
        assert islands(nodes) == 1
        for node in nodes:
            assert len(node.links.peers()) == len(node.transport.links())
