"""The sorted ids of a ledger follow it through growth and through records that it drops."""

from __future__ import annotations

from gossip_ledger.ledger import Ledger
from gossip_ledger.limits import UNCERTIFIED_ENTRIES_MAX
from gossip_ledger.reconcile import IdSet, dated
from gossip_ledger.records import NO_RECORD, Ack, RecordId
from peer.holdings import Holdings
from tests.unit.gossip_ledger.build import GENESIS, PAYER, WITNESSES, entry, open_body, put, receipt


def same(one: IdSet, two: IdSet) -> bool:
    return (one.ids, one.packed, one.dated) == (two.ids, two.packed, two.dated)


def test_records_are_dated_by_what_they_declare() -> None:
    ledger = Ledger(GENESIS)
    holdings = Holdings(ledger)
    opened = put(ledger, entry(PAYER, open_body(), epoch=3))
    before = holdings.ids()
    assert before.dated == dated(opened, 3)
    paid = receipt(opened)
    paid_id = put(ledger, paid)
    ack = put(ledger, Ack(witness=WITNESSES[0].account, ids=(opened,)))
    after = holdings.ids()
    assert after.dated == b"".join(sorted((dated(opened, 3), dated(paid_id, paid.bill.epoch), dated(ack, 0))))
    assert before.ids == (opened,)


def test_nothing_is_sorted_again_where_nothing_changed() -> None:
    ledger = Ledger(GENESIS)
    holdings = Holdings(ledger)
    put(ledger, entry(PAYER, open_body()))
    assert holdings.ids() is holdings.ids()


def test_what_the_ledger_drops_is_gone() -> None:
    ledger = Ledger(GENESIS)
    holdings = Holdings(ledger)
    epochs: dict[RecordId, int] = {}
    for seq in (*range(2, UNCERTIFIED_ENTRIES_MAX + 2), 1):
        prev = RecordId(bytes(32)) if seq > 1 else NO_RECORD
        epochs[put(ledger, entry(PAYER, open_body(), seq=seq, prev=prev, epoch=seq))] = seq
        assert same(holdings.ids(), IdSet.of(ledger.ids(), epochs.__getitem__))
    assert len(holdings.ids().ids) == UNCERTIFIED_ENTRIES_MAX == len(epochs) - 1
