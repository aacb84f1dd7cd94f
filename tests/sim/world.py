"""A whole network in one process: real nodes over memory transports and stores, virtual time, seeded faults.

Only the network, the disk, the clock and chance are replaced; everything from `peer/node.py` down is what
runs in a daemon. A world has two parts. While it is **turbulent**, peers pay each other, wires lose gossip,
the network splits, peers freeze, crash and come back with what was durable, and perhaps somebody spends
twice. Safety is looked at once a second. Then it is **calm**: nothing fails any more, and within a bounded
time every peer must agree, and everything that an honest peer was told is written must be final.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final, final

import trio

from gossip_ledger.errors import LocalError
from gossip_ledger.genesis import Allocation, Genesis, network_id
from gossip_ledger.records import (
    NO_RECORD,
    SIGNED_RECORDS,
    AccountId,
    Entry,
    RecordId,
    Transfer,
)
from gossip_ledger.signing import record_id, sign_record
from p2p.memory_transport import MemoryNetwork
from peer.capabilities import SeededEntropy, VirtualClock
from peer.keys import SeedSigner
from peer.node import Capabilities, Node
from peer.store import MemoryStore
from tests.sim.checkers import Broken, Safety
from tests.sim.deterministic import run_world

START_S: Final = 1_700_000_000
"""Unix seconds when a world begins."""
GRANT: Final = 1_000_000
TURBULENT_S: Final = 30.0
CALM_S_MAX: Final = 240.0
"""Virtual seconds within which a calm world must agree."""
SKEW_S_MAX: Final = 20


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What kind of world a seed makes."""

    witnesses: int
    faulty: int
    """How many of them may lie, by the genesis. Here they only vanish for a while."""
    others: int
    latency_s: tuple[float, float]
    gossip_loss: float
    has_liar: bool

    @staticmethod
    def draw(rng: Random) -> Plan:
        witnesses, faulty = rng.choice(((1, 0), (4, 1), (4, 1)))
        low = rng.choice((0.001, 0.02, 0.1))
        return Plan(
            witnesses=witnesses,
            faulty=faulty,
            others=rng.randint(1, 3),
            latency_s=(low, low * rng.uniform(1, 5)),
            gossip_loss=rng.choice((0.0, 0.05, 0.3)),
            has_liar=rng.random() < 0.5,
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a world came to."""

    seed: int
    plan: Plan
    peers: int
    entries: int
    """Written by honest peers; all of them final on every peer."""
    records: int
    crashes: int
    calm_s: float
    """Virtual seconds until everybody agreed, once it was calm."""
    root: str
    trace: str
    """A hash over everything that was observed, with its time: two runs of one seed have the same."""


@final
class Peer:
    """One node, its durable memory and its user. The node dies in a crash, the rest does not."""

    def __init__(self, name: str, rng: Random) -> None:
        self.name = name
        self.rng = rng
        self.signer = SeedSigner(rng.randbytes(32))
        self.store = MemoryStore()
        self.skew_s = rng.randint(-SKEW_S_MAX, SKEW_S_MAX)
        self.written: list[RecordId] = []
        """What this peer's user was told is written."""
        self.node: Node | None = None
        self.crashes = 0
        self._scope = trio.CancelScope()

    @property
    def account(self) -> AccountId:
        return self.signer.account

    @property
    def address(self) -> str:
        return f"/memory/{self.name}/p2p/{self.account.hex()}"

    async def live(self, world: World) -> None:
        """Runs the node, again after each crash."""
        clock = VirtualClock(start_s=START_S, skew_s=self.skew_s)
        while True:
            with trio.CancelScope() as self._scope:
                await self._run(world, clock)
            self.node = None
            await trio.sleep(self.rng.uniform(0.2, 4))

    def crash(self) -> None:
        """Ends the node in the middle of whatever it does."""
        self.crashes += 1
        self._scope.cancel()

    async def _run(self, world: World, clock: VirtualClock) -> None:
        async with (
            world.network.transport(self.account, place=self.name) as transport,
            trio.open_nursery() as nursery,
        ):
            node = Node(
                Capabilities(
                    genesis=world.genesis,
                    signer=self.signer,
                    store=self.store,
                    transport=transport,
                    clock=clock,
                    entropy=SeededEntropy(self.rng),
                    bootstrap=tuple(peer.address for peer in world.peers[:2] if peer is not self),
                )
            )
            await node.start(nursery)
            self.node = node
            await self._spend(node, world)

    async def _spend(self, node: Node, world: World) -> None:
        """Pays others, until the world calms down."""
        while not world.is_calm:
            await trio.sleep(self.rng.uniform(0.2, 3))
            to = self.rng.choice(world.peers).account
            try:
                written = await node.author.write(Transfer(to=to, amount=self.rng.randint(1, GRANT // 4)))
            except LocalError:
                continue  # not enough money just now
            self.written.append(written)
        await trio.sleep_forever()


@final
class World:
    """One network and its fate."""

    def __init__(self, seed: int, rng: Random) -> None:
        self.seed = seed
        self.rng = rng
        self.plan = Plan.draw(rng)
        names = [f"witness-{n}" for n in range(self.plan.witnesses)]
        names += [f"peer-{n}" for n in range(self.plan.others)]
        self.peers = [Peer(name, Random(rng.getrandbits(64))) for name in names]
        self.liar = SeedSigner(rng.randbytes(32))
        self.network = MemoryNetwork(
            Random(rng.getrandbits(64)), latency_s=self.plan.latency_s, gossip_loss=self.plan.gossip_loss
        )
        self.genesis = self._make_genesis()
        self.is_calm = False
        self._safety = Safety()
        self._trace = hashlib.sha256()

    def _make_genesis(self) -> Genesis:
        holders = [peer.account for peer in self.peers] + [self.liar.account]
        return Genesis(
            name="world",
            unit="OPEN",
            start_s=START_S,
            epoch_s=10,
            grace_epochs=6,
            allocations=tuple(
                Allocation(account=holder, amount=GRANT, start=0, cliff=0, duration=0, purpose="world")
                for holder in holders
            ),
            witnesses=tuple(peer.account for peer in self.peers[: self.plan.witnesses]),
            faulty=self.plan.faulty,
            treasury=self.peers[0].account,
            publish_fee=0,
        )

    async def run(self) -> Outcome:
        """The whole story. Raises `Broken`."""
        async with trio.open_nursery() as nursery:
            for peer in self.peers:
                nursery.start_soon(peer.live, self)
            with trio.move_on_after(TURBULENT_S):
                async with trio.open_nursery() as turbulence:
                    turbulence.start_soon(self._trouble)
                    turbulence.start_soon(self._watch)
                    if self.plan.has_liar:
                        turbulence.start_soon(self._spend_twice)
            self._calm_down()
            began = trio.current_time()
            await self._agree()
            outcome = self._outcome(trio.current_time() - began)
            nursery.cancel_scope.cancel()
        return outcome

    # Turbulence

    async def _trouble(self) -> None:
        """One fault after the other."""
        troubles: tuple[Callable[[], None], ...] = (self._split, self.network.heal, self._crash, self._freeze)
        while True:
            await trio.sleep(self.rng.uniform(0.5, 4))
            trouble = self.rng.choice(troubles)
            self._note(trouble.__name__)
            trouble()

    def _split(self) -> None:
        side = {peer.account for peer in self.peers if self.rng.random() < 0.5}
        self.network.partition(side, {peer.account for peer in self.peers} - side)

    def _crash(self) -> None:
        self.rng.choice(self.peers).crash()

    def _freeze(self) -> None:
        frozen = self.rng.choice(self.peers)
        for peer in self.peers:
            self.network.thaw(peer.account)
        self.network.freeze(frozen.account)

    async def _spend_twice(self) -> None:
        """Two transfers at one place of a chain, each shown to a peer on another side of a split."""
        network = network_id(self.genesis)
        victims = self.rng.sample(self.peers, k=2)
        side = {peer.account for peer in self.peers if peer not in victims and self.rng.random() < 0.5}
        side.add(victims[0].account)
        self.network.partition(side, {peer.account for peer in self.peers} - side)
        for peer in victims:
            body = Transfer(to=peer.account, amount=GRANT)
            entry = Entry(author=self.liar.account, seq=1, prev=NO_RECORD, epoch=0, body=body)
            self._note(f"liar {record_id(entry, network).hex()}")
            data = SIGNED_RECORDS.encode(sign_record(entry, self.liar, network))
            while peer.node is None:
                await trio.sleep(0.1)
            await peer.node.service.ingest([data], None)

    async def _watch(self) -> None:
        while True:
            await trio.sleep(1)
            self._look()

    def _look(self) -> None:
        for peer in self.peers:
            if peer.node is not None:
                final = self._safety.look(peer.name, peer.node.service.ledger)
                self._note(f"{peer.name} {len(final)} final")

    # Calm

    def _calm_down(self) -> None:
        self.is_calm = True
        self.network.heal()
        for peer in self.peers:
            self.network.thaw(peer.account)

    async def _agree(self) -> None:
        """Waits until nothing is left to do. Raises `Broken` where that takes too long."""
        with trio.move_on_after(CALM_S_MAX):
            while self._differences():
                await trio.sleep(1)
                self._look()
            return
        raise Broken(f"no agreement after {CALM_S_MAX} s of calm: {'; '.join(self._differences())}")

    def _differences(self) -> list[str]:
        """Why the peers are not of one mind, in words; empty if they are."""
        nodes = {peer.name: peer.node for peer in self.peers}
        if None in nodes.values():
            return ["a peer is still starting"]
        ledgers = {name: node.service.ledger for name, node in nodes.items() if node is not None}
        lacking = {
            name: sum(not ledger.is_final(key) for key in self._written()) for name, ledger in ledgers.items()
        }
        if any(lacking.values()):
            return [f"{name} has {count} entries not final" for name, count in lacking.items() if count]
        roots = {ledger.root() for ledger in ledgers.values()}
        return [f"{len(roots)} different roots"] if len(roots) > 1 else []

    def _written(self) -> list[RecordId]:
        return [key for peer in self.peers for key in peer.written]

    # What came of it

    def _note(self, event: str) -> None:
        self._trace.update(f"{trio.current_time():.6f} {event}\n".encode())

    def _outcome(self, calm_s: float) -> Outcome:
        node = self.peers[0].node
        assert node is not None
        return Outcome(
            seed=self.seed,
            plan=self.plan,
            peers=len(self.peers),
            entries=len(self._written()),
            records=sum(1 for _ in node.service.ledger.ids()),
            crashes=sum(peer.crashes for peer in self.peers),
            calm_s=round(calm_s, 3),
            root=node.service.ledger.root().hex(),
            trace=self._trace.hexdigest(),
        )


def simulate(seed: int) -> Outcome:
    """The world of `seed`. Raises `Broken`, or whatever a node crashes with."""

    async def main(rng: Random) -> Outcome:
        return await World(seed, rng).run()

    try:
        return run_world(seed, main)
    except BaseExceptionGroup as group:
        broken = group.subgroup(Broken)
        while isinstance(broken, BaseExceptionGroup):
            broken = broken.exceptions[0]
        if broken is not None:
            raise broken from None
        raise
