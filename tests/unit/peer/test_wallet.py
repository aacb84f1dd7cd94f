"""The payer's book: reserved before it is sent, never above a limit, and right after any crash."""

from __future__ import annotations

import pytest
import trio

from gossip_ledger.errors import LocalError
from gossip_ledger.records import AccountId, Open, Release
from peer.rows import AskRow
from peer.wallet import NAMESPACE, OPEN_EPOCHS, OPEN_SHARE
from tests.unit.peer.desk import (
    FUNDS,
    GENESIS,
    GRACE_EPOCHS,
    MODEL,
    OTHER,
    PAYER,
    WORKER,
    Crash,
    Desk,
    FragileStore,
    person,
)
from tests.unit.peer.tabs import tab_of


async def reserve(desk: Desk, max_fee: int = 100, worker: AccountId = WORKER.account) -> AskRow:
    return await desk.wallet.reserve(worker=worker, model=MODEL, answer=bytes(16), max_fee=max_fee)


async def settle(desk: Desk, row: AskRow, fee: int) -> None:
    """The worker's receipt for `row` arrives."""
    refusal = desk.till.admit(payer=PAYER.account, opened=row.open, ask=row.ask, max_fee=row.max_fee)
    assert refusal is None, refusal
    await desk.till.settle(tab_of(row, fee))


async def test_an_open_is_sized_ahead_and_shared_by_the_asks_it_fits() -> None:
    desk = await Desk().load()
    first, second = await reserve(desk), await reserve(desk)
    assert first.open == second.open
    assert first.ask != second.ask
    state = desk.service.ledger.open_state(first.open)
    assert state.limit == 1600
    assert desk.wallet.committed(first.open) == 200
    assert desk.wallet.headroom(first.open) == 1400
    assert desk.wallet.spendable() == FUNDS - 1600


async def test_the_limit_is_a_share_of_the_funds_where_the_need_is_large() -> None:
    desk = await Desk().load()
    row = await reserve(desk, max_fee=1000)
    assert desk.service.ledger.open_state(row.open).limit == FUNDS // OPEN_SHARE


async def test_no_room_means_another_open() -> None:
    desk = await Desk().load()
    rows = [await reserve(desk, max_fee=1000) for _ in range(3)]
    assert len({row.open for row in rows}) == 2
    assert (await reserve(desk, worker=OTHER.account)).open not in {row.open for row in rows}


async def test_many_at_once_never_spend_one_coin_twice() -> None:
    desk = await Desk().load()
    async with trio.open_nursery() as nursery:
        for number in range(60):
            nursery.start_soon(reserve, desk, 90, person(f"worker {number % 6}").account)
    for state in desk.service.ledger.opens_of(PAYER.account):
        assert desk.wallet.committed(state.id) <= state.limit
    assert desk.wallet.spendable() >= 0


async def test_without_funds_nothing_is_written() -> None:
    desk = await Desk().load()
    with pytest.raises(LocalError, match=r"may cost 10001 micro-units and 10000 can be spent"):
        await reserve(desk, max_fee=FUNDS + 1)
    assert not desk.gossiped
    assert not await desk.store.scan(NAMESPACE)


async def test_an_unfinished_ask_counts_at_its_maximum_after_a_restart() -> None:
    desk = await Desk().load()
    running, done = await reserve(desk), await reserve(desk)
    await desk.wallet.close(done.key, 30)
    again = await Desk(store=desk.store, clock=desk.clock).load()
    assert again.wallet.committed(running.open) == 130


async def test_a_crash_before_the_reservation_is_durable_promises_nothing() -> None:
    store = FragileStore()
    desk = await Desk(store=store).load()
    await reserve(desk)
    store.fail_at(0, is_after=False)
    with pytest.raises(Crash):
        await reserve(desk)
    (state,) = desk.service.ledger.opens_of(PAYER.account)
    assert desk.wallet.committed(state.id) == 100
    again = await Desk(store=store, clock=desk.clock).load()
    assert again.wallet.committed(state.id) == 100


async def test_a_final_receipt_replaces_the_row_that_foresaw_it() -> None:
    desk = await Desk().load()
    row, other = await reserve(desk), await reserve(desk)
    await desk.witness()
    await settle(desk, row, 40)
    await desk.wallet.close(row.key, 40)
    await desk.wallet.keep_house()
    assert len(await desk.store.scan(NAMESPACE)) == 2, "not final: the row still counts"
    await desk.witness()
    await desk.wallet.keep_house()
    assert desk.wallet.committed(row.open) == 140
    ((_, left),) = await desk.store.scan(NAMESPACE)
    assert other.ask.to_bytes(8, "big").hex() in left.hex()


async def test_receipts_that_the_book_forgot_count_too() -> None:
    """A book restored from a backup is behind; what is final is known from the ledger."""
    desk = await Desk().load()
    row = await reserve(desk)
    await desk.witness()
    await settle(desk, row, 70)
    await desk.witness()
    for key, _ in await desk.store.scan(NAMESPACE):
        await desk.store.transact([(NAMESPACE, key, None)])
    again = await Desk(store=desk.store, clock=desk.clock).load()
    assert again.wallet.committed(row.open) == 70


async def test_a_release_says_all_that_was_signed_and_waits_for_what_still_runs() -> None:
    desk = await Desk().load()
    running, closed, settled = await reserve(desk), await reserve(desk), await reserve(desk)
    await desk.witness()
    await settle(desk, settled, 20)
    await desk.wallet.close(settled.key, 20)
    await desk.wallet.close(closed.key, 30)
    await desk.witness()
    desk.clock.pass_epochs(OPEN_EPOCHS + GRACE_EPOCHS)
    await desk.wallet.keep_house()
    assert not releases(desk), "grace has not passed"
    desk.clock.pass_epochs(1)
    await desk.wallet.keep_house()
    assert not releases(desk), "an ask may still be billed"
    await desk.wallet.close(running.key, 100)
    await desk.wallet.keep_house()
    await desk.wallet.keep_house()
    assert [release.spent for release in releases(desk)] == [150]
    await desk.witness()
    assert not await desk.store.scan(NAMESPACE), "a released open needs no rows"
    assert desk.service.ledger.supply_conserved()


def releases(desk: Desk) -> list[Release]:
    return [signed.record for signed in desk.records() if isinstance(signed.record, Release)]


async def test_an_open_near_its_expiry_or_released_takes_no_new_asks() -> None:
    desk = await Desk().load()
    row = await reserve(desk)
    desk.clock.pass_epochs(OPEN_EPOCHS - 2)
    assert (await reserve(desk)).open == row.open
    desk.clock.pass_epochs(1)
    assert (await reserve(desk)).open != row.open


async def test_earnings_are_collected_when_an_ask_needs_them() -> None:
    desk = await Desk().load()
    await desk.author.write(Open(worker=WORKER.account, limit=FUNDS - 10, expiry=1))
    await desk.witness()
    desk.clock.pass_epochs(2 + GRACE_EPOCHS)
    await desk.wallet.keep_house()
    await desk.witness()
    assert desk.wallet.spendable() == 10
    assert (await reserve(desk, max_fee=500)).max_fee == 500
    assert desk.service.ledger.tip(PAYER.account).spendable(GENESIS) >= 0


async def test_a_bill_above_the_maximum_is_a_bug_of_ours() -> None:
    desk = await Desk().load()
    row = await reserve(desk)
    with pytest.raises(AssertionError, match="above its maximum"):
        await desk.wallet.close(row.key, 101)
