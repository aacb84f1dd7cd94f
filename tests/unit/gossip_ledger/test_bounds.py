"""What nobody certified is kept within bounds, whoever floods, and without a say in what is final."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from gossip_ledger.ledger import Ledger
from gossip_ledger.limits import (
    UNCERTIFIED_ENTRIES_MAX,
    UNCERTIFIED_RECEIPTS_MAX,
    UNCERTIFIED_RELEASES_MAX,
)
from gossip_ledger.records import (
    NO_RECORD,
    Ack,
    Entry,
    ModelId,
    Publish,
    Record,
    RecordId,
    Release,
    Signature,
    Signed,
    Transfer,
)
from gossip_ledger.signing import record_id
from tests.unit.gossip_ledger.build import (
    GENESIS,
    NETWORK,
    OWNER,
    PAYER,
    WITNESSES,
    entry,
    open_body,
    receipt,
)


def unsigned(record: Record) -> tuple[RecordId, Signed]:
    count = 2 if hasattr(record, "bill") else 1
    signatures = (Signature(bytes(64)),) * count
    return record_id(record, NETWORK), Signed(record=record, signatures=signatures)


def chain(length: int) -> list[tuple[RecordId, Signed]]:
    found: list[tuple[RecordId, Signed]] = []
    for seq in range(1, length + 1):
        prev = found[-1][0] if found else NO_RECORD
        found.append(unsigned(entry(PAYER, Transfer(to=OWNER.account, amount=1), seq=seq, prev=prev)))
    return found


def quorum(keys: list[RecordId]) -> list[tuple[RecordId, Signed]]:
    batches = [tuple(keys[start : start + 100]) for start in range(0, len(keys), 100)]
    return [unsigned(Ack(witness=w.account, ids=ids)) for w in WITNESSES[:3] for ids in batches]


def held_entries(ledger: Ledger) -> set[RecordId]:
    return {key for key in ledger.ids() if isinstance(ledger.get(key).record, Entry)}


def test_the_nearest_entries_beyond_the_head_are_kept() -> None:
    ledger, entries = Ledger(GENESIS), chain(100)
    for key, signed in reversed(entries):
        ledger.add(signed, key)
    nearest = [key for key, _ in entries[:UNCERTIFIED_ENTRIES_MAX]]
    assert held_entries(ledger) == set(nearest)
    assert ledger.unfinished() == set(nearest)
    assert not ledger.add(*reversed(entries[-1]))
    for key, signed in quorum(nearest[:10]):
        ledger.add(signed, key)
    added = [key for key, signed in entries if ledger.add(signed, key)]
    assert added == [key for key, _ in entries[64:74]], "as the head moves on, so does the room"


def test_what_a_quorum_acked_is_kept_at_any_distance() -> None:
    ledger, entries = Ledger(GENESIS), chain(300)
    batch = [*entries[::-1], *quorum([key for key, _ in entries])]
    Random(1).shuffle(batch)
    assert len(ledger.add_all(batch)) == len(batch)
    assert ledger.account(PAYER.account).seq == 300
    assert ledger.account(OWNER.account).entitled == 300


@given(st.integers(0, 2**32), st.integers(2, 200))
@settings(max_examples=25)
def test_a_flood_of_rivals_leaves_the_same_proof_everywhere(seed: int, rivals: int) -> None:
    """Whatever the order, two ledgers keep the same records of an equivocator, few of them, and freeze it."""
    rng, entries = Random(seed), chain(70)
    for _ in range(rivals):
        parent = rng.randrange(60)
        body = Transfer(to=OWNER.account, amount=rng.randrange(2**40))
        prev = entries[parent - 1][0] if parent else NO_RECORD
        entries.append(unsigned(entry(PAYER, body, seq=parent + 1, prev=prev)))
    one, two = Ledger(GENESIS), Ledger(GENESIS)
    for ledger in (one, two):
        rng.shuffle(entries)
        for key, signed in entries:
            ledger.add(signed, key)
    assert held_entries(one) == held_entries(two)
    assert len(held_entries(one)) <= UNCERTIFIED_ENTRIES_MAX
    assert one.forks() == two.forks()
    assert one.root() == two.root()
    assert one.tip(PAYER.account) == two.tip(PAYER.account)
    for ledger in (one, two):
        for key, signed in quorum([key for key, _ in chain(70)]):
            ledger.add(signed, key)
        while any([ledger.add(signed, key) for key, signed in entries]):
            pass
    assert one.state() == two.state()
    assert one.account(PAYER.account).seq == 70, "a flood keeps nothing from becoming final"
    assert one.is_frozen(PAYER.account)
    assert len(held_entries(one)) <= UNCERTIFIED_ENTRIES_MAX + 70


def test_receipts_and_releases_are_bounded_per_signer() -> None:
    ledger = Ledger(GENESIS)
    opened = RecordId(b"an open".ljust(32, b"."))
    for n in range(UNCERTIFIED_RECEIPTS_MAX + 5, 0, -1):
        key, signed = unsigned(receipt(opened, n=n))
        ledger.add(signed, key)
    kept = ledger.receipts_under(opened)
    assert [one.n for _, one in kept] == list(range(1, UNCERTIFIED_RECEIPTS_MAX + 1))
    for spent in range(UNCERTIFIED_RELEASES_MAX + 5):
        key, signed = unsigned(Release(author=PAYER.account, hold=opened, spent=spent))
        ledger.add(signed, key)
    assert len(ledger.unfinished()) == UNCERTIFIED_RECEIPTS_MAX + UNCERTIFIED_RELEASES_MAX


def test_what_is_dropped_is_forgotten_everywhere() -> None:
    ledger = Ledger(GENESIS)
    opens = [unsigned(entry(PAYER, open_body(limit=place), seq=place)) for place in range(1, 100)]
    for key, signed in reversed(opens):
        ledger.add(signed, key)
    assert len(ledger.opens_of(PAYER.account)) == UNCERTIFIED_ENTRIES_MAX
    assert len(ledger.pending(PAYER.account)) == UNCERTIFIED_ENTRIES_MAX
    assert ledger.wanted_manifests() == frozenset()


def test_an_open_that_is_pushed_out_at_once_was_never_listed() -> None:
    ledger = Ledger(GENESIS)
    for key, signed in chain(UNCERTIFIED_ENTRIES_MAX):
        ledger.add(signed, key)
    key, signed = unsigned(entry(PAYER, open_body(), seq=UNCERTIFIED_ENTRIES_MAX + 1))
    assert not ledger.add(signed, key)
    assert ledger.opens_of(PAYER.account) == ()


def test_a_dropped_publish_wants_no_manifest_and_a_dropped_rival_is_no_fork() -> None:
    ledger, model = Ledger(GENESIS), ModelId(b"far".ljust(32, b"."))
    far = UNCERTIFIED_ENTRIES_MAX + 1
    publish = Publish(manifest=model, successor_of=ModelId(b""), fee=5)
    for fee in (5, 6):
        key, signed = unsigned(entry(PAYER, replace(publish, fee=fee), seq=far))
        ledger.add(signed, key)
    assert ledger.wanted_manifests() == {model}
    assert ledger.is_frozen(PAYER.account)
    for key, signed in chain(UNCERTIFIED_ENTRIES_MAX):
        ledger.add(signed, key)
    assert ledger.wanted_manifests() == frozenset()
    assert not ledger.is_frozen(PAYER.account), "the proof lies beyond what is kept, for all alike"
