"""What an honest witness acks, what it waits for, and that it never forgets a promise."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from gossip_ledger.ledger import Ledger
from gossip_ledger.limits import ACK_IDS_MAX
from gossip_ledger.records import Collect, ModelId, Publish, Record, RecordId, Release, Transfer
from gossip_ledger.signing import record_id
from gossip_ledger.witness import PROMISES, WitnessMemory, WitnessPolicy, WitnessStep, acks
from tests.unit.gossip_ledger.build import (
    CREATOR,
    GENESIS,
    ID,
    MANIFEST,
    MODEL,
    NETWORK,
    OWNER,
    PAYER,
    WITNESSES,
    bill,
    certify,
    entry,
    open_body,
    put,
    put_final,
    receipt,
)

POLICY = WitnessPolicy(GENESIS)


class Witness:
    """A ledger, a memory, and a clock that a test sets."""

    def __init__(self) -> None:
        self.ledger, self.memory, self.clock = Ledger(GENESIS), WitnessMemory(), 1
        self.ledger.add_manifest(MANIFEST)

    def look(self) -> WitnessStep:
        return POLICY.step(self.ledger, self.memory, self.clock, self.ledger.unfinished())

    def step(self) -> tuple[RecordId, ...]:
        step = self.look()
        self.memory.keep(step.promises)
        return step.batch

    def hears(self, record: Record) -> RecordId:
        return put(self.ledger, record)

    def reason(self, key: RecordId) -> str:
        assert key not in self.step()
        return self.look().waiting[key]


def spend(seq: int = 1, prev: bytes = b"", amount: int = 1, epoch: int = 0) -> Record:
    return entry(PAYER, Transfer(to=OWNER.account, amount=amount), seq=seq, prev=RecordId(prev), epoch=epoch)


def test_a_chain_is_acked_in_one_step_parents_first_and_once() -> None:
    witness = Witness()
    first = record_id(spend(), NETWORK)
    second = witness.hears(spend(seq=2, prev=first))
    assert "its predecessor" in witness.reason(second)
    witness.hears(spend())
    assert witness.step() == (first, second)
    assert witness.step() == ()
    assert witness.look().waiting == {}


def test_one_id_per_slot_for_ever() -> None:
    witness = Witness()
    witness.hears(spend())
    assert len(witness.step()) == 1
    rival = witness.hears(spend(amount=2))
    assert rival not in witness.step()
    assert witness.look().waiting.keys() == {rival}


def test_no_ack_for_who_was_seen_equivocating() -> None:
    witness = Witness()
    one, two = witness.hears(spend()), witness.hears(spend(amount=2))
    assert "two entries at one place" in witness.reason(one)
    assert "two entries at one place" in witness.reason(two)


def test_entries_from_the_future_wait_and_old_ones_do_not() -> None:
    witness = Witness()
    key = witness.hears(spend(epoch=4))
    assert "in the future" in witness.reason(key)
    witness.clock = 2
    assert witness.step() == (key,)
    witness.clock = 10**6
    late = witness.hears(spend(seq=2, prev=key, epoch=5))
    assert witness.step() == (late,)


def test_unsound_entries_are_named() -> None:
    witness = Witness()
    key = witness.hears(spend(amount=10_001))
    assert "more than the account has" in witness.reason(key)


def test_a_collect_waits_until_it_is_seen_earned() -> None:
    witness = Witness()
    key = witness.hears(entry(OWNER, Collect(cumulative=40)))
    assert "more than what is seen final" in witness.reason(key)
    put_final(witness.ledger, spend(amount=39))
    assert "more than what is seen final" in witness.reason(key)
    second = put_final(witness.ledger, spend(seq=2, prev=record_id(spend(amount=39), NETWORK)))
    assert witness.ledger.is_final(second)
    assert key in witness.step()


def test_a_publish_waits_for_its_manifest() -> None:
    witness = Witness()
    other = ModelId(b"another model".ljust(32, b"."))
    key = witness.hears(entry(CREATOR, Publish(manifest=other, successor_of=MODEL, fee=5)))
    assert "manifest is not here" in witness.reason(key)


def test_receipts_wait_for_a_final_open() -> None:
    witness = Witness()
    opening = entry(PAYER, open_body())
    opened = record_id(opening, NETWORK)
    first = witness.hears(receipt(opened))
    assert first in witness.look().waiting
    witness.hears(opening)
    assert witness.step() == (opened,)
    assert "open is not final" in witness.reason(first)
    certify(witness.ledger, opened)
    assert witness.step() == (first,)
    again = witness.hears(receipt(opened, n=2, prev=first, cumulative=140))
    assert "ask number was used" in witness.reason(again)


def test_receipts_of_an_unknown_model_wait() -> None:
    witness = Witness()
    opened = put_final(witness.ledger, entry(PAYER, open_body()))
    key = witness.hears(receipt(opened, bill=bill(opened, model=ModelId(ID))))
    assert "manifest is not here" in witness.reason(key)


def test_a_release_waits_for_expiry_and_grace() -> None:
    witness = Witness()
    release = witness.hears(
        Release(author=PAYER.account, hold=record_id(entry(PAYER, open_body()), NETWORK), spent=0)
    )
    assert "not final here yet" in witness.reason(release)
    put_final(witness.ledger, entry(PAYER, open_body(expiry=5)))
    witness.clock = 7
    assert "has not expired" in witness.reason(release)
    witness.clock = 8
    assert release in witness.step()


def test_a_release_covers_every_receipt_that_was_acked() -> None:
    witness = Witness()
    opened = put_final(witness.ledger, entry(PAYER, open_body(expiry=0)))
    witness.clock = 9
    witness.hears(receipt(opened, fee=70))
    low = witness.hears(Release(author=PAYER.account, hold=opened, spent=69))
    assert len(witness.look().batch) == 1, "the receipt, seen together with the release"
    assert "less than the receipts" in witness.reason(low)
    enough = witness.hears(Release(author=PAYER.account, hold=opened, spent=70))
    assert witness.step() == (enough,)


def test_a_receipt_stays_below_every_release_that_was_acked() -> None:
    witness = Witness()
    opened = put_final(witness.ledger, entry(PAYER, open_body(expiry=0)))
    witness.clock = 9
    release = witness.hears(Release(author=PAYER.account, hold=opened, spent=69))
    assert release in witness.step()
    late = witness.hears(receipt(opened, fee=70))
    assert "released below that" in witness.reason(late)
    cheap = witness.hears(receipt(opened, fee=69, ask=10))
    assert witness.step() == (cheap,)


def test_a_witness_that_missed_the_past_catches_up() -> None:
    witness = Witness()
    first = put_final(witness.ledger, spend())
    second = put_final(witness.ledger, spend(seq=2, prev=first))
    assert witness.step() == ()
    third = witness.hears(spend(seq=3, prev=second))
    assert witness.step() == (first, second, third)


def test_step_changes_nothing_by_itself() -> None:
    witness = Witness()
    witness.hears(spend())
    assert witness.look() == witness.look()
    assert witness.look().batch


def stored(promises: Iterable[object]) -> list[bytes]:
    return [PROMISES.encode(promise) for promise in promises]


def test_memory_survives_a_restart_in_any_order() -> None:
    witness, kept = Witness(), list[bytes]()
    opened = put_final(witness.ledger, entry(PAYER, open_body(expiry=0)))
    witness.clock = 9
    last, total = opened, 0
    for ask in range(3):
        total += 70
        last = witness.hears(
            receipt(opened, n=ask + 1, prev=last, cumulative=total, bill=bill(opened, ask=ask))
        )
    witness.hears(Release(author=PAYER.account, hold=opened, spent=500))
    second = witness.hears(spend(seq=2, prev=opened))
    step = witness.look()
    kept = stored(step.promises)
    assert len(kept) == 6
    for order in itertools.permutations(kept):
        memory = WitnessMemory(map(PROMISES.decode, order))
        again = POLICY.step(witness.ledger, memory, 9, witness.ledger.unfinished())
        assert again.batch == ()
        assert memory.served(opened) == 210
        assert memory.ceiling(opened) == 500
        assert memory.account(PAYER.account).head == second


def test_a_batch_becomes_acks_that_fit_a_record() -> None:
    batch = tuple(RecordId(bytes([n]) * 32) for n in range(2 * ACK_IDS_MAX + 1))
    made = acks(WITNESSES[0].account, batch)
    assert [len(ack.ids) for ack in made] == [ACK_IDS_MAX, ACK_IDS_MAX, 1]
    assert sum((ack.ids for ack in made), ()) == batch
    ledger = Ledger(GENESIS)
    for ack in made:
        put(ledger, ack)
    assert ledger.ack_count(batch[-1]) == 1
    assert acks(WITNESSES[0].account, ()) == ()
