"""The worker's book: admits what it can be paid for, settles each ask once, signs no place twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from gossip_ledger.errors import RemoteError, UnsoundError
from gossip_ledger.records import (
    MANIFESTS,
    NO_RECORD,
    AccountId,
    Entry,
    ModelId,
    Open,
    Receipt,
    RecordId,
    Transfer,
)
from gossip_ledger.signing import blob_id
from p2p.protocols import codes
from p2p.protocols.ask_worker_state import Refuse
from peer.rows import AskRow, TabRow
from peer.till import ASKS_AT_RISK_MAX, NAMESPACE
from tests.unit.peer.desk import (
    EXPOSURE,
    GRACE_EPOCHS,
    MANIFEST,
    MODEL,
    OTHER,
    PAYER,
    WORKER,
    Crash,
    Desk,
    FragileStore,
)
from tests.unit.peer.tabs import bill_of, tab_of


async def open_desk(
    store: object = None, *, limit: int = 1000, is_final: bool = True
) -> tuple[Desk, RecordId]:
    desk = await Desk(store=store).load()
    opened = await desk.author.write(Open(worker=WORKER.account, limit=limit, expiry=10))
    if is_final:
        await desk.witness()
    return desk, opened


def ask_of(opened: RecordId, number: int, max_fee: int = 100) -> AskRow:
    return AskRow(
        open=opened,
        ask=number,
        worker=WORKER.account,
        model=MODEL,
        answer=bytes(16),
        max_fee=max_fee,
        fee=0,
        is_closed=0,
    )


OTHER_MANIFEST = replace(MANIFEST, name="other")
OTHER_MODEL = ModelId(blob_id(MANIFESTS.encode(OTHER_MANIFEST)))


def admit(
    desk: Desk, opened: RecordId, ask: int, max_fee: int = 100, payer: AccountId = PAYER.account
) -> Refuse | None:
    return desk.till.admit(payer=payer, opened=opened, ask=ask, max_fee=max_fee)


def receipts(desk: Desk) -> list[Receipt]:
    """Every receipt that was ever signed and stored, also those that came to nothing."""
    return [signed.record for signed in desk.records() if isinstance(signed.record, Receipt)]


async def test_what_runs_counts_against_the_limit() -> None:
    desk, opened = await open_desk()
    assert admit(desk, opened, 1, 600) is None
    refusal = admit(desk, opened, 2, 401)
    assert refusal is not None
    assert refusal.code == codes.UNFUNDED
    assert admit(desk, opened, 2, 400) is None
    desk.till.dropped((opened, 1))
    assert admit(desk, opened, 3, 600) is None


async def test_an_ask_number_is_good_once() -> None:
    desk, opened = await open_desk()
    assert admit(desk, opened, 1) is None
    running = admit(desk, opened, 1)
    await desk.till.settle(tab_of(ask_of(opened, 1), 10))
    settled = admit(desk, opened, 1)
    assert [refusal and refusal.code for refusal in (running, settled)] == [codes.USED_ASK] * 2


@pytest.mark.parametrize("wrong", ["unknown", "another payer", "another worker", "no open", "expired"])
async def test_an_open_that_does_not_pay_this_worker_is_refused(wrong: str) -> None:
    desk, opened = await open_desk()
    payer = PAYER.account
    match wrong:
        case "unknown":
            opened = RecordId(bytes(32))
        case "another payer":
            payer = OTHER.account
        case "another worker":
            opened = await desk.author.write(Open(worker=OTHER.account, limit=1000, expiry=10))
        case "no open":
            opened = await desk.author.write(Transfer(to=WORKER.account, amount=1))
        case _:
            desk.clock.pass_epochs(11)
    refusal = admit(desk, opened, 1, payer=payer)
    assert refusal is not None
    assert refusal.code == codes.BAD_OPEN
    assert bool(refusal.retry_after_ms) == (wrong in ("unknown", "no open"))


async def test_a_frozen_payer_is_refused() -> None:
    desk, opened = await open_desk()
    rival = Entry(
        author=PAYER.account,
        seq=1,
        prev=NO_RECORD,
        epoch=0,
        body=Transfer(to=OTHER.account, amount=5),
    )
    await desk.take(rival, by=PAYER)
    refusal = admit(desk, opened, 1)
    assert refusal is not None
    assert "frozen" in refusal.reason


async def test_what_is_not_final_is_risked_up_to_the_exposure_over_all_opens_of_the_payer() -> None:
    desk, first = await open_desk(is_final=False)
    second = await desk.author.write(Open(worker=WORKER.account, limit=1000, expiry=10))
    assert admit(desk, first, 1, EXPOSURE - 100) is None
    refusal = admit(desk, second, 2, 101)
    assert refusal is not None
    assert refusal.retry_after_ms, "it may be taken later"
    assert admit(desk, second, 2, 100) is None
    await desk.witness()
    assert admit(desk, second, 3, 900) is None


async def test_free_asks_are_risked_too_but_not_without_end() -> None:
    desk, opened = await open_desk(is_final=False)
    for number in range(ASKS_AT_RISK_MAX):
        assert admit(desk, opened, number, 0) is None
    assert admit(desk, opened, 99, 0) is not None


async def test_receipts_continue_one_tab_also_when_many_are_made_at_once() -> None:
    desk, opened = await open_desk()
    async with trio.open_nursery() as nursery:
        for number in range(8):
            assert admit(desk, opened, number) is None
            nursery.start_soon(desk.till.settle, tab_of(ask_of(opened, number), 10 + number))
    await desk.witness()
    found = sorted(receipts(desk), key=lambda receipt: receipt.n)
    assert [receipt.n for receipt in found] == list(range(1, 9))
    assert all(desk.service.ledger.is_final(key) for key, _ in desk.service.ledger.receipts_under(opened))
    assert found[-1].cumulative == sum(receipt.bill.fee for receipt in found) == 108
    assert not await desk.store.scan(NAMESPACE)


async def test_nothing_is_signed_under_an_open_that_is_not_final() -> None:
    desk, opened = await open_desk(is_final=False)
    assert admit(desk, opened, 1) is None
    row = tab_of(ask_of(opened, 1), 10)
    await desk.till.keep(row)
    with pytest.raises(RemoteError, match="not final"):
        await desk.till.settle(row)
    desk.till.left(row.key)
    await desk.till.settle_left()
    assert not receipts(desk)
    await desk.witness()
    await desk.till.settle_left()
    assert [receipt.bill.fee for receipt in receipts(desk)] == [10]


async def test_a_bill_under_an_open_that_expired_without_becoming_final_is_given_up() -> None:
    desk, opened = await open_desk(is_final=False)
    assert admit(desk, opened, 1) is None
    row = tab_of(ask_of(opened, 1), 10)
    await desk.till.keep(row)
    desk.till.left(row.key)
    desk.clock.pass_epochs(11 + GRACE_EPOCHS)
    await desk.till.settle_left()
    assert not await desk.store.scan(NAMESPACE)
    assert not receipts(desk)


@pytest.mark.parametrize("wrong", ["above the limit", "used ask", "unknown model"])
async def test_an_unsound_receipt_is_never_signed(wrong: str) -> None:
    """Whoever asks for it: it would end the tab, and all that was to be earned under it."""
    desk, opened = await open_desk(limit=100)
    await desk.till.settle(tab_of(ask_of(opened, 1), 60))
    row = tab_of(ask_of(opened, 2), 41)
    match wrong:
        case "used ask":
            row = tab_of(ask_of(opened, 1), 10)
        case "unknown model":
            row = replace(row, bill=replace(bill_of(ask_of(opened, 2), 10), model=bytes(32)))
        case _:
            pass
    with pytest.raises(RemoteError):
        await desk.till.settle(row)
    assert len(receipts(desk)) == 1


async def test_no_second_receipt_at_a_place_that_is_signed_and_cannot_be_continued_yet() -> None:
    """After a restart the manifest of an earlier receipt may still be missing."""
    desk, opened = await open_desk()
    await desk.till.settle(tab_of(ask_of(opened, 1), 10))
    del desk.store._blobs[MODEL]  # damaged on disk, and dropped
    again = Desk(store=desk.store, clock=desk.clock)
    await again.service.load()
    await again.service.add_manifest(MANIFESTS.encode(OTHER_MANIFEST))
    assert again.service.ledger.open_state(opened).tip_tab.n == 0
    row = tab_of(ask_of(opened, 2), 10)
    with pytest.raises(UnsoundError, match="was signed before"):
        await again.till.settle(replace(row, bill=replace(row.bill, model=OTHER_MODEL)))
    assert len(receipts(again)) == 1


async def test_after_a_crash_every_stored_bill_is_settled_once_and_counts_until_then() -> None:
    desk, opened = await open_desk()
    for number, fee in ((1, 30), (2, 40)):
        assert admit(desk, opened, number) is None
        await desk.till.keep(tab_of(ask_of(opened, number), fee))
    assert admit(desk, opened, 3) is None, "no bill came: nothing is owed"
    again = await Desk(store=desk.store, clock=desk.clock).load()
    refusal = admit(again, opened, 9, 931)
    assert refusal is not None, "what is owed from before the crash has its room"
    assert refusal.code == codes.UNFUNDED
    again_used = admit(again, opened, 1)
    assert again_used is not None
    assert again_used.code == codes.USED_ASK
    await again.till.settle_left()
    await again.till.settle_left()
    assert sorted(receipt.bill.fee for receipt in receipts(again)) == [30, 40]
    assert admit(again, opened, 9, 930) is None


async def test_what_is_served_is_not_settled_behind_its_back() -> None:
    desk, opened = await open_desk()
    assert admit(desk, opened, 1) is None
    await desk.till.keep(tab_of(ask_of(opened, 1), 30))
    await desk.till.settle_left()
    assert not receipts(desk)
    await desk.till.keep(tab_of(ask_of(opened, 1), 60))
    await desk.till.settle(tab_of(ask_of(opened, 1), 60))
    desk.till.left((opened, 1))
    await desk.till.settle_left()
    assert [receipt.bill.fee for receipt in receipts(desk)] == [60]


async def test_one_bill_that_cannot_be_settled_holds_up_no_other() -> None:
    desk, opened = await open_desk()
    stranger = tab_of(ask_of(RecordId(bytes(32)), 1), 30)
    await desk.till.keep(stranger)
    await desk.till.keep(tab_of(ask_of(opened, 2), 40))
    again = await Desk(store=desk.store, clock=desk.clock).load()
    await again.till.settle_left()
    assert [receipt.bill.fee for receipt in receipts(again)] == [40]
    assert len(await again.store.scan(NAMESPACE)) == 1


@pytest.mark.parametrize("is_after", [False, True])
async def test_receipt_and_row_change_together(is_after: bool) -> None:
    store = FragileStore()
    desk, opened = await open_desk(store)
    row = tab_of(ask_of(opened, 1), 30)
    await desk.till.keep(row)
    store.fail_at(0, is_after=is_after)
    with pytest.raises(Crash):
        await desk.till.settle(row)
    assert bool(await store.scan(NAMESPACE)) is not is_after
    again = await Desk(store=store, clock=desk.clock).load()
    await again.till.settle_left()
    await again.till.settle_left()
    assert [receipt.bill.fee for receipt in receipts(again)] == [30]


async def test_cancelled_in_the_write_the_receipt_is_still_known() -> None:
    store = FragileStore()
    desk, opened = await open_desk(store)
    with trio.CancelScope() as scope:
        store.fail_at(0, is_after=True, scope=scope)
        await desk.till.settle(tab_of(ask_of(opened, 1), 30))
    await desk.till.settle(tab_of(ask_of(opened, 2), 40))
    assert sorted(receipt.n for receipt in receipts(desk)) == [1, 2]


async def test_receipts_that_wait_for_witnesses_bound_what_is_taken_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("peer.till.RECEIPTS_WAITING_MAX", 3)
    desk, opened = await open_desk()
    for number in range(3):
        assert admit(desk, opened, number) is None
        await desk.till.settle(tab_of(ask_of(opened, number), 1))
    refusal = admit(desk, opened, 9)
    assert refusal is not None
    assert refusal.code == codes.BUSY
    again = await Desk(store=desk.store, clock=desk.clock).load()
    assert admit(again, opened, 9) is not None, "also after a restart"
    await again.witness()
    assert admit(again, opened, 9) is None


async def test_run_settles_what_is_left_as_soon_as_it_can(autojump_clock: object) -> None:
    desk, opened = await open_desk(is_final=False)
    row: TabRow = tab_of(ask_of(opened, 1), 30)
    assert admit(desk, opened, 1) is None
    await desk.till.keep(row)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.till.run)
        await trio.sleep(1)
        desk.till.left(row.key)
        await trio.sleep(10)
        assert not receipts(desk)
        await desk.witness()
        await trio.sleep(3)
        assert [receipt.bill.fee for receipt in receipts(desk)] == [30]
        nursery.cancel_scope.cancel()
