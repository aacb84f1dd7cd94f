"""One's own chain: one entry per place whatever is cancelled or crashes, and nothing unsound."""

from __future__ import annotations

import pytest
import trio

from gossip_ledger.errors import LocalError
from gossip_ledger.limits import UNCERTIFIED_ENTRIES_MAX
from gossip_ledger.records import NO_RECORD, Entry, Open, Transfer
from tests.unit.peer.desk import FUNDS, OTHER, PAYER, WORKER, Crash, Desk, FragileStore


def places(desk: Desk) -> list[int]:
    return [signed.record.seq for signed in desk.records() if isinstance(signed.record, Entry)]


async def send(desk: Desk, amount: int = 1) -> None:
    await desk.author.write(Transfer(to=OTHER.account, amount=amount))


async def test_entries_follow_one_another_also_when_written_at_once() -> None:
    desk = await Desk().load()
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(send, desk)
    assert places(desk) == list(range(1, 11))
    assert len(desk.gossiped) == 10
    assert await desk.witness() == 10


@pytest.mark.parametrize("is_after", [False, True])
async def test_cancelled_in_the_write_it_never_signs_a_place_twice(is_after: bool) -> None:
    store = FragileStore()
    desk = await Desk(store=store).load()
    with trio.CancelScope() as scope:
        store.fail_at(0, is_after=is_after, scope=scope)
        await send(desk)
    await send(desk)
    again = await Desk(store=store).load()
    await send(again)
    assert places(again) == sorted(set(places(again)))
    assert not again.service.ledger.equivocators()


@pytest.mark.parametrize("is_after", [False, True])
async def test_nobody_hears_of_what_a_crash_kept_from_the_disk(is_after: bool) -> None:
    store = FragileStore()
    desk = await Desk(store=store).load()
    store.fail_at(0, is_after=is_after)
    with pytest.raises(Crash):
        await send(desk)
    assert not desk.gossiped
    again = await Desk(store=store).load()
    await send(again)
    assert places(again) == ([1, 2] if is_after else [1])


async def test_what_cannot_be_paid_is_not_written() -> None:
    desk = await Desk().load()
    with pytest.raises(LocalError, match="spends more than the account has"):
        await send(desk, FUNDS + 1)
    assert not places(desk)
    assert not desk.gossiped


async def test_it_waits_for_witnesses_before_others_would_drop_its_entries() -> None:
    """Dropped by this ledger too, the place would be signed again."""
    desk = await Desk().load()
    for _ in range(UNCERTIFIED_ENTRIES_MAX):
        await send(desk)
    with pytest.raises(LocalError, match="wait for the witnesses"):
        await send(desk)
    with pytest.raises(LocalError, match="wait for the witnesses"):
        await desk.author.write(Open(worker=WORKER.account, limit=1, expiry=9))
    await desk.witness()
    await send(desk)
    assert places(desk) == list(range(1, UNCERTIFIED_ENTRIES_MAX + 2))


async def test_a_frozen_account_writes_nothing() -> None:
    desk = await Desk().load()
    await send(desk)
    rival = Entry(
        author=PAYER.account, seq=1, prev=NO_RECORD, epoch=0, body=Transfer(to=WORKER.account, amount=2)
    )
    await desk.take(rival, by=PAYER)
    with pytest.raises(LocalError, match="frozen"):
        await send(desk)


async def test_a_clock_that_jumps_back_does_not_turn_epochs_back() -> None:
    desk = await Desk().load()
    desk.clock.pass_epochs(3)
    await send(desk)
    desk.clock.pass_epochs(-2)
    await send(desk)
    epochs = [signed.record.epoch for signed in desk.records() if isinstance(signed.record, Entry)]
    assert epochs == [3, 3]
