"""A witness keeps its promises over crashes: one id per place, and no promise without its ack."""

from __future__ import annotations

import pytest
import trio

from gossip_ledger.records import NO_RECORD, Ack, Entry, Transfer
from gossip_ledger.signing import record_id
from peer.witnessing import NAMESPACE, WitnessService
from tests.unit.peer.desk import NETWORK, OTHER, PAYER, WITNESS, WORKER, Crash, Desk, FragileStore


def witness_of(desk: Desk) -> WitnessService:
    return WitnessService(service=desk.service, signer=WITNESS, store=desk.store, clock=desk.clock)


async def look(desk: Desk, witness: WitnessService) -> None:
    """Runs the witness until it has nothing more to say."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(witness.run)
        await trio.sleep(5)
        nursery.cancel_scope.cancel()


def acked(desk: Desk) -> list[bytes]:
    return [
        ident for signed in desk.records() if isinstance(signed.record, Ack) for ident in signed.record.ids
    ]


def entry(amount: int, seq: int = 1, prev: bytes = NO_RECORD) -> Entry:
    body = Transfer(to=OTHER.account, amount=amount)
    return Entry(author=PAYER.account, seq=seq, prev=prev, epoch=0, body=body)  # pyright: ignore[reportArgumentType]


async def test_it_acks_what_is_sound_once(autojump_clock: object) -> None:
    desk = await Desk().load()
    first = await desk.author.write(Transfer(to=OTHER.account, amount=1))
    witness = witness_of(desk)
    await look(desk, witness)
    assert acked(desk) == [first]
    assert desk.service.ledger.is_final(first)
    await look(desk, witness)
    assert acked(desk) == [first]


@pytest.mark.parametrize("is_after", [False, True])
async def test_a_crash_leaves_promise_and_ack_or_neither(is_after: bool, autojump_clock: object) -> None:
    """A promise alone would never be acked again, and end its chain for ever."""
    store = FragileStore()
    desk = await Desk(store=store).load()
    first = await desk.author.write(Transfer(to=OTHER.account, amount=1))
    told = len(desk.gossiped)
    store.fail_at(0, is_after=is_after)
    with pytest.RaisesGroup(Crash):
        await look(desk, witness_of(desk))
    assert len(desk.gossiped) == told
    assert (len(await store.scan(NAMESPACE)), len(acked(desk))) == ((1, 1) if is_after else (0, 0))
    again = await Desk(store=store).load()
    second = await again.author.write(Transfer(to=OTHER.account, amount=2))
    await look(again, witness_of(again))
    assert sorted(acked(again)) == sorted([first, second])
    assert again.service.ledger.is_final(second)


async def test_a_restart_keeps_one_id_per_place(autojump_clock: object) -> None:
    desk = await Desk().load()
    first, rival = entry(1), entry(2)
    await desk.take(first, by=PAYER)
    await look(desk, witness_of(desk))
    bare = await Desk().load()  # its records are lost, its promises are not
    for key, value in await desk.store.scan(NAMESPACE):
        await bare.store.transact([(NAMESPACE, key, value)])
    await bare.take(rival, by=PAYER)
    await look(bare, witness_of(bare))
    assert not acked(bare)
    await bare.take(first, by=PAYER)
    witness = witness_of(bare)
    await look(bare, witness)
    assert not acked(bare), "promised before, and frozen now"
    assert record_id(rival, NETWORK) in witness.waiting


async def test_what_it_does_not_ack_it_can_explain(autojump_clock: object) -> None:
    desk = await Desk().load()
    await desk.take(entry(10**9), by=PAYER)
    witness = witness_of(desk)
    await look(desk, witness)
    assert ["more than the account has" in reason for reason in witness.waiting.values()] == [True]


async def test_only_a_key_that_the_genesis_names_is_a_witness() -> None:
    desk = await Desk().load()
    assert witness_of(desk).is_named
    other = WitnessService(service=desk.service, signer=WORKER, store=desk.store, clock=desk.clock)
    assert not other.is_named
