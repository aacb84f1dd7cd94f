"""The ledger from outside: what becomes final when, and what it then says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gossip_ledger.errors import UnsoundError
from gossip_ledger.ledger import Ledger
from gossip_ledger.records import (
    Ack,
    Bond,
    Collect,
    ModelId,
    Publish,
    RecordId,
    Release,
    Transfer,
)
from gossip_ledger.reference import settle
from gossip_ledger.signing import record_id
from tests.unit.gossip_ledger.build import (
    CREATOR,
    GENESIS,
    ID,
    MANIFEST,
    MODEL,
    NETWORK,
    OWNER,
    PAYER,
    TREASURY,
    WITNESSES,
    WORKER,
    bill,
    certify,
    entry,
    grant,
    open_body,
    put,
    put_final,
    receipt,
    sign,
)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(GENESIS)


def test_an_empty_ledger_is_the_genesis(ledger: Ledger) -> None:
    state = ledger.account(PAYER.account)
    assert (state.spendable, state.entitled, state.seq, state.is_frozen) == (10_000, 0, 0, False)
    assert ledger.supply_conserved()
    assert ledger.account(OWNER.account).is_blank
    assert ledger.root() == Ledger(GENESIS).root()


def test_a_quorum_makes_final_and_nothing_less(ledger: Ledger) -> None:
    key = put(ledger, entry(PAYER, Transfer(to=OWNER.account, amount=40)))
    certify(ledger, key, witnesses=2)
    assert (ledger.ack_count(key), ledger.is_certified(key), ledger.is_final(key)) == (2, False, False)
    assert ledger.account(OWNER.account).entitled == 0
    again = Ack(witness=WITNESSES[1].account, ids=(key, ID))
    put(ledger, again)
    assert not ledger.is_certified(key), "one witness counts once"
    certify(ledger, key, witnesses=3)
    assert ledger.is_final(key)
    assert ledger.take_finalized() == (key,)
    assert ledger.take_finalized() == ()
    owner = ledger.account(OWNER.account)
    assert (owner.entitled, owner.uncollected, owner.spendable) == (40, 40, 0)
    assert ledger.account(PAYER.account).spendable == 9_960
    assert ledger.unfinished() == frozenset()


def test_acks_may_come_first(ledger: Ledger) -> None:
    one = entry(PAYER, Transfer(to=OWNER.account, amount=40))
    certify(ledger, record_id(one, NETWORK))
    assert ledger.is_final(put(ledger, one))


def test_a_parent_that_comes_late_finishes_its_children(ledger: Ledger) -> None:
    first = entry(PAYER, Transfer(to=OWNER.account, amount=1))
    second = put_final(
        ledger, entry(PAYER, Transfer(to=OWNER.account, amount=2), seq=2, prev=record_id(first, NETWORK))
    )
    assert ledger.is_certified(second)
    assert not ledger.is_final(second)
    key = put_final(ledger, first)
    assert ledger.take_finalized() == (key, second)


def test_a_collect_makes_money_spendable(ledger: Ledger) -> None:
    put_final(ledger, entry(PAYER, Transfer(to=OWNER.account, amount=40)))
    put_final(ledger, entry(OWNER, Collect(cumulative=40)))
    owner = ledger.account(OWNER.account)
    assert (owner.entitled, owner.collected, owner.uncollected, owner.spendable) == (40, 40, 0, 40)
    assert ledger.supply_conserved()


def test_tips_and_pending_run_ahead_of_what_is_final(ledger: Ledger) -> None:
    first = put(ledger, entry(PAYER, open_body(limit=100)))
    second = put(ledger, entry(PAYER, open_body(limit=200), seq=2, prev=first))
    put(ledger, entry(PAYER, open_body(limit=10_000), seq=3, prev=second))  # unsound: an overdraft
    tip = ledger.tip(PAYER.account)
    assert (tip.seq, tip.head, tip.spendable(GENESIS)) == (2, second, 9_700)
    assert [signed.record.seq for signed in ledger.pending(PAYER.account)] == [1, 2, 3]
    certify(ledger, first)
    assert ledger.tip(PAYER.account) == tip
    assert len(ledger.pending(PAYER.account)) == 2
    assert ledger.account(PAYER.account).seq == 1
    opens = ledger.opens_of(PAYER.account)
    assert [(state.is_final, state.is_sound) for state in opens] == [
        (True, True),
        (False, True),
        (False, False),
    ]
    assert ledger.opens_for(WORKER.account) == opens
    assert ledger.opens_of(WORKER.account) == ()


def test_an_open_from_pending_to_released(ledger: Ledger) -> None:
    opened = put(ledger, entry(PAYER, open_body(limit=100)))
    first = put(ledger, receipt(opened, fee=60))
    state = ledger.open_state(opened)
    assert (state.limit, state.reserve, state.tip_tab.n, state.is_final) == (100, 0, 0, False)
    assert ledger.wanted_manifests() == {MODEL}
    ledger.add_manifest(MANIFEST)
    assert ledger.wanted_manifests() == frozenset()
    state = ledger.open_state(opened)
    assert (state.tip_tab.n, state.tip_tab.fees[9], state.tab.n) == (1, 60, 0)
    certify(ledger, opened)
    assert ledger.open_state(opened).reserve == 100
    certify(ledger, first)
    state = ledger.open_state(opened)
    assert (state.tab.n, state.final_fees, state.reserve, 9 in state.tab.fees) == (1, 60, 40, True)
    put(ledger, Release(author=WORKER.account, hold=opened, spent=0))
    assert not ledger.open_state(opened).is_released, "that was not its author"
    release = put(ledger, Release(author=PAYER.account, hold=opened, spent=70))
    assert ledger.open_state(opened).is_released
    certify(ledger, release)
    state = ledger.open_state(opened)
    assert (state.limit, state.reserve) == (70, 10)
    assert ledger.account(PAYER.account).entitled == 30
    certify(ledger, put(ledger, Release(author=PAYER.account, hold=opened, spent=60)))
    assert (ledger.open_state(opened).limit, ledger.account(PAYER.account).entitled) == (60, 40)
    assert ledger.supply_conserved()
    assert [view.limit for view in ledger.holds()] == [60]


def test_receipts_wait_for_open_and_manifest(ledger: Ledger) -> None:
    opening = entry(PAYER, open_body())
    opened = record_id(opening, NETWORK)
    first = put_final(ledger, receipt(opened))
    put_final(ledger, opening)
    assert not ledger.is_final(first)
    ledger.add_manifest(MANIFEST)
    assert ledger.is_final(first)
    assert ledger.account(WORKER.account).entitled == 42


def test_receipts_by_account(ledger: Ledger) -> None:
    ledger.add_manifest(MANIFEST)
    opened = put_final(ledger, entry(PAYER, open_body()))
    first = put_final(ledger, receipt(opened))
    second = put(
        ledger, receipt(opened, n=2, prev=first, cumulative=140, bill=bill(opened, ask=10), evidence=())
    )
    assert [key for key, _ in ledger.receipts()] == [first, second]
    for key in (PAYER, WORKER, CREATOR, OWNER):
        assert [found for found, _ in ledger.receipts_of(key.account)] == [first, second]
    assert ledger.receipts_of(TREASURY.account) == ()
    assert [found for found, _ in ledger.receipts_under(opened)] == [first, second]


def test_publishes_in_chain_order(ledger: Ledger) -> None:
    first = put(ledger, entry(CREATOR, Publish(manifest=MODEL, successor_of=ModelId(b""), fee=5)))
    other = ModelId(b"other".ljust(32, b"."))
    second = put(
        ledger, entry(CREATOR, Publish(manifest=other, successor_of=MODEL, fee=5), seq=2, prev=first)
    )
    put(ledger, entry(CREATOR, Publish(manifest=ModelId(ID), successor_of=MODEL, fee=5), seq=7, prev=second))
    certify(ledger, first)
    assert not ledger.is_final(first), "a publish waits for its manifest"
    ledger.add_manifest(MANIFEST)
    found = [(p.seq, p.model, p.successor_of, p.is_final) for p in ledger.publishes()]
    assert found == [(1, MODEL, b"", True), (2, other, MODEL, False)]
    assert ledger.account(TREASURY.account).entitled == 5
    assert ledger.wanted_manifests() == {other, ID}


def test_an_equivocator_is_frozen_and_its_bond_burned(ledger: Ledger) -> None:
    bond = put_final(ledger, entry(PAYER, Bond(limit=100, expiry=3)))
    one = put_final(ledger, entry(PAYER, Transfer(to=OWNER.account, amount=1), seq=2, prev=bond))
    assert not ledger.is_frozen(PAYER.account)
    two = put(ledger, entry(PAYER, Transfer(to=OWNER.account, amount=2), seq=2, prev=bond))
    assert ledger.equivocators() == {PAYER.account}
    (fork,) = ledger.forks()
    assert (fork.author, fork.seq, fork.ids) == (PAYER.account, 2, tuple(sorted((one, two))))
    state = ledger.account(PAYER.account)
    assert (state.spendable, state.locked, state.is_frozen) == (0, 9_899, True)
    hold = ledger.state().holds[bond]
    assert (hold.bond, hold.burned) == (0, 100)
    assert ledger.account(OWNER.account).entitled == 1, "what is final stands"
    assert ledger.supply_conserved()
    assert ledger.alarms() == ()


def test_two_final_rivals_raise_an_alarm_and_end_the_chain(ledger: Ledger) -> None:
    first = put_final(ledger, entry(PAYER, Transfer(to=OWNER.account, amount=1)))
    second = put_final(ledger, entry(PAYER, Transfer(to=OWNER.account, amount=9), seq=2, prev=first))
    assert ledger.account(OWNER.account).entitled == 10
    rival = put_final(ledger, entry(PAYER, Transfer(to=OWNER.account, amount=2)))
    assert len(ledger.alarms()) == 1
    assert "more than f faulty witnesses" in ledger.alarms()[0]
    assert not any(map(ledger.is_final, (first, second, rival)))
    assert ledger.account(OWNER.account).entitled == 0
    assert ledger.supply_conserved()
    assert ledger.unfinished() == {first, second, rival}


def test_an_unsound_entry_with_a_quorum_raises_an_alarm(ledger: Ledger) -> None:
    put_final(ledger, entry(PAYER, open_body(limit=10_001)))
    assert len(ledger.alarms()) == 1
    assert ledger.account(PAYER.account).seq == 0


def test_a_release_below_final_receipts_raises_an_alarm(ledger: Ledger) -> None:
    ledger.add_manifest(MANIFEST)
    opened = put_final(ledger, entry(PAYER, open_body(limit=100)))
    put_final(ledger, receipt(opened, fee=60))
    put_final(ledger, Release(author=PAYER.account, hold=opened, spent=59))
    assert ledger.open_state(opened).reserve == -1
    assert len(ledger.alarms()) == 1
    assert ledger.supply_conserved()


def test_vesting_is_read_at_the_accounts_own_epoch_unless_asked() -> None:
    ledger = Ledger(replace(GENESIS, allocations=(grant(OWNER.account, 100, duration=10),)))
    assert (ledger.account(OWNER.account).spendable, ledger.account(OWNER.account).unvested) == (0, 100)
    assert ledger.account(OWNER.account, 4).spendable == 40
    assert ledger.tip(OWNER.account).spendable(ledger.genesis, 7) == 70


def test_there_is_no_open_state_of_anything_else(ledger: Ledger) -> None:
    for key in (ID, put(ledger, entry(PAYER, Bond(limit=1, expiry=1)))):
        with pytest.raises(UnsoundError, match="no open"):
            ledger.open_state(RecordId(key))


def test_what_is_held_can_be_read_back(ledger: Ledger) -> None:
    one = entry(PAYER, open_body())
    key = put(ledger, one)
    assert ledger.has(key)
    assert ledger.get(key) == sign(one)
    assert list(ledger.ids()) == [key]
    assert not ledger.has(ID)
    assert ledger.get(ID) is None
    assert not ledger.add(sign(one), key)


def test_an_unsound_receipt_with_a_quorum_raises_an_alarm(ledger: Ledger) -> None:
    ledger.add_manifest(MANIFEST)
    opened = put_final(ledger, entry(PAYER, open_body(limit=69)))
    put_final(ledger, receipt(opened, fee=70))
    assert len(ledger.alarms()) == 1
    assert ledger.open_state(opened).reserve == 69
    held = {key: ledger.get(key) for key in ledger.ids()}
    records = {key: signed for key, signed in held.items() if signed}
    assert settle(records, {MODEL: MANIFEST}, GENESIS) == ledger.state()


def test_an_unsound_release_with_a_quorum_does_nothing(ledger: Ledger) -> None:
    opened = put_final(ledger, entry(PAYER, open_body(limit=100)))
    key = put_final(ledger, Release(author=WORKER.account, hold=opened, spent=0))
    assert not ledger.is_final(key)
    assert ledger.open_state(opened).limit == 100
    held = {key: ledger.get(key) for key in ledger.ids()}
    records = {key: signed for key, signed in held.items() if signed}
    assert settle(records, {}, GENESIS) == ledger.state()


def test_a_second_receipt_with_a_quorum_at_a_passed_place_is_an_alarm(ledger: Ledger) -> None:
    ledger.add_manifest(MANIFEST)
    opened = put_final(ledger, entry(PAYER, open_body()))
    first = put_final(ledger, receipt(opened))
    assert ledger.is_final(first)
    put_final(ledger, receipt(opened, evidence=()))
    assert len(ledger.alarms()) == 1
    assert not ledger.is_final(first)
    assert ledger.is_final(opened)
    assert ledger.supply_conserved()


def test_a_batch_in_any_order(ledger: Ledger) -> None:
    opening = entry(PAYER, open_body())
    opened = record_id(opening, NETWORK)
    first = receipt(opened)
    second = receipt(opened, n=2, prev=record_id(first, NETWORK), cumulative=140, bill=bill(opened, ask=10))
    release = Release(author=PAYER.account, hold=opened, spent=200)
    records = [release, second, first, opening]
    keys = tuple(record_id(record, NETWORK) for record in records)
    batch = [*zip(keys, map(sign, records), strict=True)]
    for witness in WITNESSES[:3]:
        ack = Ack(witness=witness.account, ids=keys)
        batch.append((record_id(ack, NETWORK), sign(ack)))
    ledger.add_manifest(MANIFEST)
    assert ledger.add_all(batch)[3:] == (opened, keys[2], keys[1], keys[0])
    assert ledger.add_all(batch) == ()
    assert all(map(ledger.is_final, keys))
    assert ledger.open_state(opened).tab.fees[10] == 70
    assert len(ledger.open_state(opened).tab.fees) == 2
    with pytest.raises(KeyError):
        ledger.open_state(opened).tab.fees[11]
