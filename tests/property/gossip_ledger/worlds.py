"""Small random worlds: honest accounts and witnesses with partial views, and liars who collude and see all.

A world is a function of its seed. It yields records in the order in which they came about; what must hold of
any part of them, in any order, is in `claims.py`. Signatures are not made here: a liar in these worlds says
what it likes under its own name, never under another's.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from random import Random

from gossip_ledger.errors import UnsoundError
from gossip_ledger.genesis import Allocation, Genesis, network_id
from gossip_ledger.ledger import Ledger
from gossip_ledger.records import (
    NO_RECORD,
    AccountId,
    Ack,
    Bill,
    Body,
    Bond,
    Cluster,
    ClusterId,
    Collect,
    Entry,
    Manifest,
    ModelId,
    Open,
    Publish,
    Receipt,
    Record,
    RecordId,
    Release,
    Signature,
    Signed,
    Split,
    Transfer,
    Weight,
)
from gossip_ledger.signing import model_id, record_id
from gossip_ledger.soundness import Tab, extend_account, extend_tab
from gossip_ledger.witness import WitnessMemory, WitnessPolicy, acks

SIZES = ((4, 1), (4, 1), (1, 0), (7, 2))
GRACE = 2


def account(name: str) -> AccountId:
    return AccountId(hashlib.sha256(name.encode()).digest())


PAYER, WORKER, CREATOR = HONEST = tuple(map(account, ("ann", "wes", "cyd")))
LIARS = tuple(map(account, ("mal", "eve")))
EVERYONE = (*HONEST, *LIARS)
TREASURY = account("treasury")


def signed(record: Record) -> Signed:
    return Signed(
        record=record, signatures=(Signature(bytes(64)),) * (2 if isinstance(record, Receipt) else 1)
    )


def make_genesis(n: int, f: int) -> Genesis:
    grants = (
        (PAYER, 90, 0, 0),
        (WORKER, 9, 0, 0),
        (CREATOR, 12, 0, 4),
        (LIARS[0], 60, 0, 0),
        (LIARS[1], 30, 1, 6),
    )
    return Genesis(
        name="world",
        unit="OPEN",
        start_s=0,
        epoch_s=600,
        grace_epochs=GRACE,
        allocations=tuple(
            Allocation(account=who, amount=amount, start=0, cliff=cliff, duration=duration, purpose="")
            for who, amount, cliff, duration in grants
        ),
        witnesses=tuple(account(f"witness {i}") for i in range(n)),
        faulty=f,
        treasury=TREASURY,
        publish_fee=1,
    )


@dataclass
class HonestWitness:
    account: AccountId
    ledger: Ledger
    skew: int
    memory: WitnessMemory = field(default_factory=WitnessMemory)


class World:
    """Everything that happened, and who knows what of it."""

    def __init__(self, seed: int, *, too_many_liars: bool = False) -> None:
        self.rng = rng = Random(seed)
        n, f = (4, 1) if too_many_liars else rng.choice(SIZES)
        self.genesis = make_genesis(n, f)
        self.network = network_id(self.genesis)
        self.policy = WitnessPolicy(self.genesis)
        names = self.genesis.witnesses
        self.lying = names[: f + 1 if too_many_liars else rng.randint(0, f)]
        self.witnesses = [
            HonestWitness(name, Ledger(self.genesis), rng.randint(-1, 1)) for name in names[len(self.lying) :]
        ]
        self.now = 0
        self.forking = rng.choice((0.0, 0.05, 0.3))
        self.records: dict[RecordId, Signed] = {}
        self.all = Ledger(self.genesis)
        self.manifests = self.draw_manifests()
        for manifest in self.manifests:
            for ledger in (self.all, *(witness.ledger for witness in self.witnesses)):
                if ledger is self.all or rng.random() < 0.8:
                    ledger.add_manifest(manifest)
        self.mine: list[RecordId] = []
        """What honest accounts wrote."""
        self.tabs: dict[RecordId, Tab] = {}
        """The honest worker's own tabs."""
        self.billed: dict[tuple[RecordId, int], Bill] = {}
        """The honest payer's last bills."""
        self.old_bills: list[Bill] = []

    # ------------------------------------------------------------ drawing

    def draw_manifests(self) -> list[Manifest]:
        """Two families of three: a model, its successor, and one that follows either."""
        rng, found = self.rng, list[Manifest]()
        for creator in (CREATOR, LIARS[0]):
            clusters: tuple[Cluster, ...] = ()
            for version in range(3):
                fresh = tuple(
                    self.cluster(f"{creator[0]}.{version}.{i}", i == version == 0)
                    for i in range(rng.choice((0, 1, 3)) if version else 2)
                )
                clusters = (*(old for old in clusters if rng.random() < 0.9), *fresh)
                if not sum(cluster.prior for cluster in clusters):
                    clusters = (*clusters, self.cluster(f"{creator[0]}.{version}.x", True))
                found.append(
                    Manifest(
                        creator=creator,
                        name=f"model {len(found)}",
                        version=version,
                        kind="adapter",
                        base=bytes(32),
                        split=self.draw_split(),
                        clusters=clusters,
                        files=(),
                        tables=(),
                        datanet=b"",
                        licence="",
                        about="",
                    )
                )
        return found

    def cluster(self, name: str, weighty: bool) -> Cluster:
        return Cluster(
            name=ClusterId(hashlib.sha256(name.encode()).digest()),
            owner=self.rng.choice(EVERYONE),
            prior=self.rng.choice((1, 2, 6) if weighty else (0, 1, 2, 6)),
            label="",
        )

    def draw_split(self) -> Split:
        rng = self.rng
        upkeep, network = rng.choice((500, 3000, 5000)), rng.choice((0, 500, 2000))
        data = rng.randint(0, 10_000 - upkeep - network)
        creator = rng.randint(0, 10_000 - upkeep - network - data)
        worker = 10_000 - upkeep - network - data - creator
        return Split(worker=worker, creator=creator, data=data, upkeep=upkeep, network=network)

    def draw_evidence(self, manifest: Manifest, *, lie: bool = False) -> tuple[Weight, ...]:
        names = [cluster.name for cluster in manifest.clusters]
        if lie:
            names.append(ClusterId(account("nobody's cluster")))
        some = self.rng.sample(names, self.rng.randint(0, len(names)))
        return tuple(Weight(cluster=name, weight=self.rng.randint(1, 9)) for name in some)

    # ------------------------------------------------------------ the network

    def publish(self, record: Record, *, honest: bool = False) -> RecordId:
        key = record_id(record, self.network)
        self.records[key] = signed(record)
        self.all.add(self.records[key], key)
        if honest:
            self.mine.append(key)
        for witness in self.witnesses:
            if self.rng.random() < 0.5:
                witness.ledger.add(self.records[key], key)
        return key

    def gossip(self) -> None:
        witness, chance = self.rng.choice(self.witnesses), self.rng.choice((0.4, 1.0))
        for key, record in self.records.items():
            if self.rng.random() < chance:
                witness.ledger.add(record, key)
        for manifest in self.manifests:
            if self.rng.random() < chance:
                witness.ledger.add_manifest(manifest)

    def witness_step(self, witness: HonestWitness) -> bool:
        clock = max(0, self.now + witness.skew)
        step = self.policy.step(witness.ledger, witness.memory, clock, witness.ledger.unfinished())
        witness.memory.keep(step.promises)
        for ack in acks(witness.account, step.batch):
            key = self.publish(ack)
            witness.ledger.add(self.records[key], key)
        return bool(step.batch)

    def any_witness_step(self) -> None:
        self.witness_step(self.rng.choice(self.witnesses))

    def settle_down(self) -> None:
        """Everything reaches every honest witness, until none has more to say."""
        busy = True
        while busy:
            for witness in self.witnesses:
                for manifest in self.manifests:
                    witness.ledger.add_manifest(manifest)
                for key, record in self.records.items():
                    witness.ledger.add(record, key)
            busy = any([self.witness_step(witness) for witness in self.witnesses])

    # ------------------------------------------------------------ honest accounts

    def write(self, author: AccountId, body: Body) -> None:
        tip = self.all.tip(author)
        entry = Entry(
            author=author, seq=tip.seq + 1, prev=tip.head, epoch=max(tip.epoch, self.now), body=body
        )
        try:
            extend_account(tip, entry, record_id(entry, self.network), self.genesis)
        except UnsoundError:
            return
        self.publish(entry, honest=True)

    def honest_entry(self) -> None:
        rng = self.rng
        author = rng.choice((PAYER, PAYER, WORKER, CREATOR, CREATOR))
        match rng.choice(("open", "open", "transfer", "collect", "collect", "bond", "publish", "publish")):
            case "open" if author == PAYER:
                worker = rng.choice((WORKER, WORKER, *LIARS))
                body = Open(worker=worker, limit=rng.randint(5, 25), expiry=self.now + rng.randint(1, 4))
            case "transfer":
                body = Transfer(to=rng.choice(EVERYONE), amount=rng.randint(0, 3))
            case "collect":
                body = Collect(cumulative=self.all.account(author).entitled)
            case "bond":
                body = Bond(limit=rng.randint(1, 2), expiry=self.now + rng.randint(0, 2))
            case _ if author == CREATOR:
                models = [model_id(manifest) for manifest in self.manifests]
                followed = rng.choice((ModelId(b""), models[0], models[0], models[1], models[3]))
                body = Publish(manifest=rng.choice(models[:3]), successor_of=followed, fee=1)
            case _:
                return
        self.write(author, body)

    def honest_release(self) -> None:
        for view in self.all.holds():
            body = view.entry.body
            assert isinstance(body, Open | Bond)
            if view.entry.author in HONEST and self.now > body.expiry + GRACE + 1 and self.rng.random() < 0.5:
                spent = sum(bill.fee for (key, _), bill in self.billed.items() if key == view.id)
                self.publish(Release(author=view.entry.author, hold=view.id, spent=spent), honest=True)

    def bill(self, open_id: RecordId, payer: AccountId, ask: int, model: ModelId, fee: int) -> Bill:
        return Bill(
            payer=payer,
            open=open_id,
            ask=ask,
            model=model,
            quote=RecordId(bytes(32)),
            answers=1,
            tokens_in=0,
            tokens_out=0,
            fee=fee,
            epoch=self.now,
            prompt_commit=bytes(32),
            output_commit=bytes(32),
        )

    def honest_ask(self) -> None:
        """The honest payer asks somebody: a rising bill, within the limit, none after a release."""
        rng = self.rng
        opens = [state for state in self.all.opens_of(PAYER) if state.is_final and not state.is_released]
        if not opens:
            return
        state = rng.choice(opens)
        body = state.entry.body
        assert isinstance(body, Open)
        if self.now > body.expiry:
            return
        billed = sum(bill.fee for (key, _), bill in self.billed.items() if key == state.id)
        ask, room = len(self.billed), body.limit - billed
        model = rng.choice(self.manifests)
        for fee in range(2, min(room, rng.randint(2, 9)) + 1, 2):
            self.billed[state.id, ask] = self.bill(state.id, PAYER, ask, model_id(model), fee)
            self.old_bills.append(self.billed[state.id, ask])
        if body.worker == WORKER and (state.id, ask) in self.billed:
            self.settle_ask(state.id, state.entry, self.billed[state.id, ask], model)

    def settle_ask(self, open_id: RecordId, opened: Entry, bill: Bill, manifest: Manifest) -> None:
        tab = self.tabs.get(open_id) or Tab.of(open_id, opened)
        receipt = Receipt(
            worker=WORKER,
            n=tab.n + 1,
            prev=tab.head,
            cumulative=tab.cumulative + bill.fee,
            bill=bill,
            evidence=self.draw_evidence(manifest),
            sketch=b"",
        )
        key = self.publish(receipt, honest=True)
        self.tabs[open_id] = extend_tab(tab, receipt, key, manifest)

    # ------------------------------------------------------------ liars

    def lie_entry(self) -> None:
        rng, author = self.rng, self.rng.choice(LIARS)
        own = [(key, s.record) for key, s in self.records.items() if isinstance(s.record, Entry)]
        own = [(key, entry) for key, entry in own if entry.author == author]
        last = max(own, key=lambda pair: pair[1].seq, default=None)
        parent = rng.choice(own) if own and rng.random() < self.forking else last
        amount = rng.randint(0, 12) if rng.random() < 0.9 else rng.choice((70, 2**62))
        models = [model_id(manifest) for manifest in self.manifests]
        match rng.choice(("open", "open", "open", "transfer", "collect", "publish", "bond")):
            case "open":
                body: Body = Open(
                    worker=rng.choice((WORKER, *LIARS)), limit=amount, expiry=rng.randint(0, self.now + 4)
                )
            case "transfer":
                body = Transfer(to=rng.choice(EVERYONE), amount=amount)
            case "collect":
                body = Collect(cumulative=self.all.account(author).entitled + rng.choice((0, 0, 0, 1, 5)))
            case "publish":
                body = Publish(
                    manifest=rng.choice(models),
                    successor_of=rng.choice((models[0], models[3], models[4])),
                    fee=1,
                )
            case _:
                body = Bond(limit=amount, expiry=rng.randint(0, self.now + 2))
        epoch = max(0, parent[1].epoch if parent else 0, self.now + rng.randint(-3, 4))
        seq, prev = (parent[1].seq + 1, parent[0]) if parent else (1, NO_RECORD)
        self.publish(Entry(author=author, seq=seq, prev=prev, epoch=epoch, body=body))

    def lie_receipt(self) -> None:
        """Early, repeated, rival and overdrawn bills; now and then a false sum or somebody's cluster."""
        rng = self.rng
        opens = [state for who in LIARS for state in self.all.opens_for(who)]
        opens = [state for state in opens if state.entry.author in (*LIARS, PAYER)]
        if not opens:
            return
        state = rng.choice(opens)
        payer, body = state.entry.author, state.entry.body
        assert isinstance(body, Open)
        bills = [bill for bill in self.old_bills if bill.open == state.id]
        if payer in LIARS:
            model = model_id(rng.choice(self.manifests))
            bills = [
                self.bill(state.id, payer, rng.randint(0, 5), model, rng.randint(0, min(20, body.limit + 1)))
            ]
        if not bills:
            return
        bill = rng.choice(bills)
        manifest = self.all.manifest(bill.model)
        assert manifest is not None
        tab = rng.choice((state.tip_tab, state.tip_tab, state.tab, Tab.of(state.id, state.entry)))
        receipt = Receipt(
            worker=body.worker,
            n=tab.n + 1,
            prev=tab.head,
            cumulative=tab.cumulative + bill.fee + (rng.random() < 0.05),
            bill=bill,
            evidence=self.draw_evidence(manifest, lie=rng.random() < 0.1),
            sketch=b"",
        )
        self.publish(receipt)

    def lie_release(self) -> None:
        holds = [view for view in self.all.holds() if view.entry.author in LIARS]
        if holds:
            view = self.rng.choice(holds)
            spent = self.rng.randint(0, view.limit) if isinstance(view.entry.body, Open) else 0
            self.publish(Release(author=view.entry.author, hold=view.id, spent=spent))

    def lie_ack(self) -> None:
        if self.lying:
            chosen = tuple(
                key
                for key, s in self.records.items()
                if not isinstance(s.record, Ack) and self.rng.random() < 0.7
            )
            for ack in acks(self.rng.choice(self.lying), chosen):
                self.publish(ack)

    # ------------------------------------------------------------ time

    def tick(self) -> None:
        self.now += 1

    def run(self, steps: int = 240) -> None:
        """`steps` things happen, each more or less often."""
        often = {
            self.honest_entry: 15,
            self.honest_ask: 10,
            self.honest_release: 3,
            self.lie_entry: 10,
            self.lie_receipt: 15,
            self.lie_release: 4,
            self.lie_ack: 3,
            self.gossip: 12,
            self.any_witness_step: 24,
            self.tick: 4,
        }
        for act in self.rng.choices(list(often), list(often.values()), k=steps):
            act()
