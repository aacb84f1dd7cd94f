"""The one door for records: refused with a reason, durable before they count, and never stuck half-way."""

from __future__ import annotations

from dataclasses import replace

import trio

from gossip_ledger.limits import UNCERTIFIED_ENTRIES_MAX
from gossip_ledger.records import NO_RECORD, SIGNED_RECORDS, Ack, Entry, Open, RecordId, Signature, Transfer
from gossip_ledger.signing import record_id, sign_record
from peer.ledger_service import VERIFY_BATCH
from tests.unit.peer.desk import NETWORK, OTHER, PAYER, WITNESS, Desk, FragileStore, person


def chain(length: int, *, last: Open | None = None) -> list[bytes]:
    """Entries of an account that has nothing: well-formed and worth nothing."""
    author, prev, found = person("nobody"), NO_RECORD, list[bytes]()
    for seq in range(1, length + 1):
        body = last if last is not None and seq == length else Transfer(to=OTHER.account, amount=1)
        entry = Entry(author=author.account, seq=seq, prev=prev, epoch=0, body=body)
        prev = record_id(entry, NETWORK)
        found.append(SIGNED_RECORDS.encode(sign_record(entry, author, NETWORK)))
    return found


async def test_what_breaks_a_rule_is_refused_and_the_rest_is_kept() -> None:
    desk = await Desk().load()
    good, forged = chain(2)
    signed = SIGNED_RECORDS.decode(forged)
    forged = SIGNED_RECORDS.encode(replace(signed, signatures=(Signature(bytes(64)),)))
    found = await desk.service.ingest([b"", good, forged, good, b"\x00" * 5000], OTHER.account)
    assert (len(found.new), found.known, len(found.refused)) == (1, 1, 3)
    assert len(desk.records()) == 1


async def test_an_ack_of_a_stranger_takes_no_place_on_disk() -> None:
    desk = await Desk().load()
    ack = Ack(witness=OTHER.account, ids=(RecordId(bytes(32)),))
    found = await desk.service.ingest(
        [SIGNED_RECORDS.encode(sign_record(ack, OTHER, NETWORK))], OTHER.account
    )
    assert found.refused
    assert not desk.records()


async def test_an_open_beyond_the_bounds_is_dropped_in_peace() -> None:
    """Anybody can send it: the author needs no money."""
    desk = await Desk().load()
    items = chain(UNCERTIFIED_ENTRIES_MAX + 1, last=Open(worker=OTHER.account, limit=1, expiry=9))
    found = await desk.service.ingest(items, OTHER.account)
    assert len(found.new) == UNCERTIFIED_ENTRIES_MAX
    assert not desk.service.ledger.opens_for(OTHER.account)


async def test_cancelled_half_way_the_same_records_can_come_again() -> None:
    desk = await Desk().load()
    items = chain(VERIFY_BATCH + 1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await desk.service.ingest(items, OTHER.account)
    found = await desk.service.ingest(items, OTHER.account)
    assert len(found.new) == len(items)


async def test_cancelled_in_the_write_what_is_on_disk_is_known() -> None:
    store = FragileStore()
    desk = await Desk(store=store).load()
    with trio.CancelScope() as scope:
        store.fail_at(0, is_after=True, scope=scope)
        await desk.service.ingest(chain(3), OTHER.account)
    assert all(desk.service.ledger.has(key) for key, _, _ in store.read_records())


async def test_one_record_from_two_peers_at_once_is_stored_once() -> None:
    desk = await Desk().load()
    items, found = chain(3), list[int]()

    async def take() -> None:
        found.append(len((await desk.service.ingest(items, OTHER.account)).new))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        nursery.start_soon(take)
    assert sorted(found) == [0, 3]


async def test_after_a_restart_nothing_final_is_missing_whatever_came_first() -> None:
    """A record that the bounds dropped at first, and that was certified later, lies before its acks."""
    desk = await Desk().load()
    items = chain(UNCERTIFIED_ENTRIES_MAX + 1)
    await desk.service.ingest(items, OTHER.account)
    ids = tuple(record_id(SIGNED_RECORDS.decode(item).record, NETWORK) for item in items)
    await desk.take(Ack(witness=WITNESS.account, ids=ids), by=WITNESS)
    await desk.service.ingest(items, OTHER.account)
    assert all(map(desk.service.ledger.has, ids))
    again = await Desk(store=desk.store).load()
    assert all(map(again.service.ledger.has, ids))
    assert again.service.ledger.root() == desk.service.ledger.root()


async def test_whoever_waits_for_finality_is_woken() -> None:
    desk = await Desk().load()
    entry = await desk.author.write(Transfer(to=OTHER.account, amount=1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.service.wait_final, entry)
        await trio.testing.wait_all_tasks_blocked()
        await desk.witness()
    assert desk.service.ledger.is_final(entry)
    assert desk.service.record_bytes(entry) is not None
    assert desk.service.ledger.account(PAYER.account).seq == 1
