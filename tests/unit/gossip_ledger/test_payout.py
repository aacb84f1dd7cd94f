"""Who gets what of a fee, and what an upkeep fund pays: worked examples."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from gossip_ledger.ledger import Ledger
from gossip_ledger.limits import MAX_AMOUNT
from gossip_ledger.payout import divide, shares, tolls
from gossip_ledger.records import Cluster, Manifest, ModelId, Publish, RecordId, Split, Weight
from gossip_ledger.signing import model_id
from tests.unit.gossip_ledger.build import (
    CREATOR,
    GENESIS,
    ID,
    MANIFEST,
    OWNER,
    PAYER,
    TREASURY,
    WORKER,
    bill,
    cluster,
    entry,
    open_body,
    put_final,
    receipt,
)

HALF = Split(worker=0, creator=0, data=0, upkeep=8000, network=2000)


def test_a_fee_of_a_hundred() -> None:
    paid = {(s.role, s.account): s.amount for s in shares(receipt(ID, fee=100), ID, MANIFEST, GENESIS)}
    assert paid == {
        ("worker", WORKER.account): 60,
        ("creator", CREATOR.account): 10,
        ("data", OWNER.account): 15,
        ("upkeep", receipt(ID).bill.model): 10,
        ("network", TREASURY.account): 5,
    }


def test_without_evidence_the_priors_decide() -> None:
    paid = Counter(
        {
            s.account: s.amount
            for s in shares(receipt(ID, fee=1000, evidence=()), ID, MANIFEST, GENESIS)
            if s.cluster
        }
    )
    assert paid == {PAYER.account: 112, OWNER.account: 38} or paid == {PAYER.account: 113, OWNER.account: 37}


@given(
    st.integers(0, MAX_AMOUNT),
    st.lists(st.integers(0, 10_000), min_size=4, max_size=4).map(sorted),
    st.lists(st.integers(1, MAX_AMOUNT), max_size=2),
)
def test_shares_add_up_to_the_fee(fee: int, cuts: list[int], weights: list[int]) -> None:
    parts = [b - a for a, b in zip([0, *cuts], [*cuts, 10_000], strict=True)]
    split = Split(worker=parts[0], creator=parts[1], data=parts[2], upkeep=parts[3], network=parts[4])
    manifest = replace(MANIFEST, split=split)
    names = [one.name for one in MANIFEST.clusters]
    evidence = tuple(Weight(cluster=n, weight=w) for n, w in zip(names, weights, strict=False))
    one = receipt(ID, fee=fee, evidence=evidence)
    found = shares(one, ID, manifest, GENESIS)
    assert sum(share.amount for share in found) == fee
    assert all(share.amount >= 0 for share in found)
    got = divide(fee, split, ID)
    assert sum(tolls(one, got.upkeep, got.network).values()) <= got.upkeep + got.network


def test_a_toll_is_the_weights_part_rounded_down() -> None:
    pairs = (Weight(cluster=cluster("one").name, weight=1), Weight(cluster=cluster("two").name, weight=2))
    assert list(tolls(receipt(ID, evidence=pairs), 6, 4).values()) == [3, 6]
    assert tolls(receipt(ID, evidence=()), 6, 4) == {}


# ---------------------------------------------------------------- funds


class Shop:
    """One payer, one worker, and a creator who publishes."""

    def __init__(self) -> None:
        self.ledger = Ledger(GENESIS)
        self.seq, self.head = 0, RecordId(b"")
        self.open = put_final(self.ledger, entry(PAYER, open_body(limit=5000)))
        self.n, self.last, self.sum = 0, self.open, 0

    def publish(self, manifest: Manifest, successor_of: bytes = b"") -> ModelId:
        model = self.ledger.add_manifest(manifest)
        body = Publish(manifest=model, successor_of=ModelId(successor_of), fee=5)
        self.seq += 1
        self.head = put_final(self.ledger, entry(CREATOR, body, seq=self.seq, prev=self.head))
        return model

    def answer(self, model: ModelId, fee: int, *clusters: Cluster) -> None:
        self.n += 1
        self.sum += fee
        pairs = tuple(Weight(cluster=one.name, weight=1) for one in clusters)
        one = receipt(
            self.open,
            n=self.n,
            prev=self.last,
            cumulative=self.sum,
            bill=bill(self.open, fee=fee, ask=self.n, model=model),
            evidence=pairs,
        )
        self.last = put_final(self.ledger, one)

    def fund(self, model: ModelId) -> int:
        assert self.ledger.supply_conserved()
        return self.ledger.state().funds[model]

    def earned(self) -> int:
        return self.ledger.account(OWNER.account).entitled


OLD = replace(MANIFEST, split=HALF, clusters=(cluster("old", WORKER.account),))
NEWS = cluster("news", OWNER.account, 3)
NEW = replace(OLD, version=2, clusters=(*OLD.clusters, NEWS, cluster("more", OWNER.account, 1)))
TOKEN = replace(OLD, version=3, clusters=(*OLD.clusters, cluster("empty", OWNER.account, 0)))


def test_a_fund_waits_for_a_successor_and_for_use_of_its_news() -> None:
    shop = Shop()
    old = shop.publish(OLD)
    shop.answer(old, 100)
    assert (shop.fund(old), shop.earned()) == (80, 0)
    new = shop.publish(NEW, successor_of=old)
    assert (shop.fund(old), shop.earned()) == (80, 0)
    shop.answer(new, 10)
    assert shop.earned() == 0, "an answer without evidence releases nothing"
    shop.answer(new, 10, NEWS)
    assert (shop.fund(old), shop.earned()) == (70, 10), "the toll: upkeep and network parts of ten"
    shop.answer(new, 100, NEWS)
    assert (shop.fund(old), shop.earned()) == (20, 60), (
        "its part by prior, three of four, is the most it gets"
    )
    shop.answer(old, 100)
    assert (shop.fund(old), shop.earned()) == (50, 110), "the fund's future too, up to the toll"
    assert shop.fund(new) == 96, "the successor's own fund is separate"


def test_order_does_not_matter() -> None:
    shop = Shop()
    new, old = shop.ledger.add_manifest(NEW), shop.ledger.add_manifest(OLD)
    shop.answer(new, 120, NEWS)
    shop.answer(old, 100)
    shop.publish(NEW, successor_of=old)
    assert (shop.fund(old), shop.earned()) == (20, 60)


def test_a_successor_without_news_takes_nothing_and_stands_in_nobodys_way() -> None:
    shop = Shop()
    old = shop.publish(OLD)
    token = shop.publish(TOKEN, successor_of=old)
    shop.answer(old, 100)
    shop.answer(token, 100, *TOKEN.clusters)
    assert shop.earned() == 0
    new = shop.publish(NEW, successor_of=old)
    shop.answer(new, 10, NEWS)
    assert shop.earned() == 10


def test_use_in_a_later_version_counts() -> None:
    shop = Shop()
    old, new = shop.publish(OLD), model_id(NEW)
    shop.publish(NEW, successor_of=old)
    later = shop.publish(replace(NEW, version=4), successor_of=new)
    shop.answer(old, 100)
    shop.answer(later, 10, NEWS)
    assert shop.earned() == 10


def test_only_the_models_own_creator_names_its_successor() -> None:
    shop = Shop()
    foreign = replace(OLD, creator=PAYER.account)
    old, new = shop.ledger.add_manifest(foreign), shop.ledger.add_manifest(NEW)
    shop.publish(NEW, successor_of=old)
    shop.answer(old, 100)
    shop.answer(new, 100, NEWS)
    assert shop.earned() == 0


def test_one_successor_of_two_models_draws_on_both() -> None:
    shop = Shop()
    old = shop.publish(OLD)
    older = shop.publish(replace(OLD, version=0))
    shop.publish(NEW, successor_of=old)
    new = shop.publish(NEW, successor_of=older)
    shop.answer(old, 100)
    shop.answer(older, 100)
    shop.answer(new, 10, NEWS)
    assert shop.earned() == 20
