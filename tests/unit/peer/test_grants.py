"""First money: swept once, whatever is known by then."""

from __future__ import annotations

import pytest
import trio

from gossip_ledger.records import NO_RECORD, Entry, Transfer
from peer.grants import GrantSweep
from tests.unit.peer.desk import CREATOR, FUNDS, OTHER, WORKER, Desk, FragileStore, person


def sweep_of(desk: Desk, key: str = "creator") -> GrantSweep:
    return GrantSweep(service=desk.service, grant=person(key), account=WORKER.account, clock=desk.clock)


def synced() -> trio.Event:
    event = trio.Event()
    event.set()
    return event


async def test_all_of_it_moves_and_only_once() -> None:
    desk = await Desk().load()
    await sweep_of(desk).run(synced())
    await sweep_of(desk).run(synced())
    await desk.witness()
    assert desk.service.ledger.account(WORKER.account).entitled == FUNDS
    assert desk.service.ledger.tip(CREATOR.account).seq == 1


async def test_it_waits_until_others_told_what_they_know(autojump_clock: object) -> None:
    """A grant that was used from another home must not be signed away again."""
    desk, told = await Desk().load(), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sweep_of(desk).run, told)
        await trio.sleep(60)
        used = Entry(
            author=CREATOR.account,
            seq=1,
            prev=NO_RECORD,
            epoch=0,
            body=Transfer(to=OTHER.account, amount=FUNDS),
        )
        await desk.take(used, by=CREATOR)
        told.set()
    assert not desk.gossiped
    assert not desk.service.ledger.equivocators()


async def test_an_empty_grant_is_no_error() -> None:
    desk = await Desk().load()
    await sweep_of(desk, "nobody").run(synced())
    assert not desk.gossiped


@pytest.mark.parametrize("is_after", [False, True])
async def test_cancelled_or_not_it_is_signed_once(is_after: bool) -> None:
    store = FragileStore()
    desk = await Desk(store=store).load()
    with trio.CancelScope() as scope:
        store.fail_at(0, is_after=is_after, scope=scope)
        await sweep_of(desk).run(synced())
    again = await Desk(store=store).load()
    await sweep_of(again).run(synced())
    assert len(again.records()) == 1
