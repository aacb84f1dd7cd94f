"""Payer's and worker's books side by side, with the power failing at any write of any step.

The machine plays both ends of many asks and remembers what each side was told: what the payer signed, and
which bills the worker's book acknowledged. Whatever happens, the books must never contradict that memory.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import structlog
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gossip_ledger.errors import LocalError, RemoteError
from gossip_ledger.records import Entry, Open, Receipt, RecordId, Release
from peer.rows import AskKey, AskRow
from peer.wallet import OPEN_EPOCHS
from tests.unit.peer.desk import GRACE_EPOCHS, MODEL, PAYER, WORKER, Crash, Desk, FragileStore
from tests.unit.peer.tabs import tab_of


@pytest.fixture(autouse=True)
def _quiet_logs() -> Iterator[None]:
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)


@dataclass
class Ask:
    """One ask as both of its ends remember it."""

    row: AskRow
    signed: int = 0
    """The highest bill that the payer signed."""
    kept: int = 0
    """The highest bill that the worker's book acknowledged."""
    is_admitted: bool = False


class Books(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.store = FragileStore()
        self.desk = Desk(store=self.store)
        self.asks: dict[AskKey, Ask] = {}
        self.live: list[AskKey] = []
        """Asks that run; a crash ends them all."""

    def teardown(self) -> None:
        self.check_the_end()

    def play(self, step: Callable[[], Awaitable[Any]]) -> Any:
        """Carries out one step. A crash in it is followed by a restart from what was durable."""

        async def main() -> Any:
            try:
                return await step()
            except Crash:
                await self.restart()
            except (LocalError, RemoteError):
                pass  # said no; what it left behind is checked like everything else
            return None

        return trio.run(main)

    async def restart(self) -> None:
        self.store.writes_left = None
        self.live.clear()
        self.desk = await Desk(store=self.store, clock=self.desk.clock, seed=len(self.asks) + 2).load()

    @initialize()
    def start(self) -> None:
        self.play(self.desk.load)

    # What happens

    @rule(write=st.integers(0, 3), is_after=st.booleans())
    def the_power_will_fail(self, write: int, is_after: bool) -> None:
        self.store.fail_at(write, is_after=is_after)

    @rule(max_fee=st.integers(0, 400))
    def ask(self, max_fee: int) -> None:
        async def step() -> None:
            wallet = self.desk.wallet
            row = await wallet.reserve(worker=WORKER.account, model=MODEL, answer=bytes(16), max_fee=max_fee)
            assert row.key not in self.asks, "an ask number is fresh"
            self.asks[row.key] = Ask(row)
            self.live.append(row.key)
            refusal = self.desk.till.admit(payer=PAYER.account, opened=row.open, ask=row.ask, max_fee=max_fee)
            self.asks[row.key].is_admitted = refusal is None

        self.play(step)

    def pick(self, data: st.DataObject) -> Ask:
        return self.asks[data.draw(st.sampled_from(self.live))]

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def bill(self, data: st.DataObject) -> None:
        ask = self.pick(data)
        fee = data.draw(st.integers(ask.signed, ask.row.max_fee))
        if ask.is_admitted:
            ask.signed = fee
            self.play(lambda: self.keep(ask, fee))

    async def keep(self, ask: Ask, fee: int) -> None:
        await self.desk.till.keep(tab_of(ask.row, fee))
        ask.kept = fee

    @precondition(lambda self: self.live)
    @rule(data=st.data(), does_worker_settle=st.booleans(), does_payer_close=st.booleans())
    def end(self, data: st.DataObject, does_worker_settle: bool, does_payer_close: bool) -> None:
        """Both go their way: in good order, or the other one is lost."""
        ask = self.pick(data)
        self.live.remove(ask.row.key)

        async def step() -> None:
            if does_payer_close:
                await self.desk.wallet.close(ask.row.key, ask.signed)
            if ask.is_admitted and ask.kept and does_worker_settle:
                try:
                    await self.desk.till.settle(tab_of(ask.row, ask.kept))
                finally:
                    self.desk.till.left(ask.row.key)
            elif ask.is_admitted:
                self.desk.till.left(ask.row.key)

        self.play(step)

    @rule()
    def the_witness_looks(self) -> None:
        self.play(self.desk.witness)

    @rule()
    def the_worker_settles_what_was_left(self) -> None:
        self.play(self.desk.till.settle_left)

    @rule()
    def the_payer_keeps_house(self) -> None:
        self.play(self.desk.wallet.keep_house)

    @rule(epochs=st.sampled_from((1, OPEN_EPOCHS, GRACE_EPOCHS + 2)))
    def time_passes(self, epochs: int) -> None:
        self.desk.clock.pass_epochs(epochs)

    @rule()
    def crash(self) -> None:
        self.play(self.restart)

    # What must hold

    @invariant()
    def the_payer_never_promises_more_than_it_locked(self) -> None:
        signed: Counter[RecordId] = Counter()
        for ask in self.asks.values():
            signed[ask.row.open] += ask.signed
        for state in self.desk.service.ledger.opens_of(PAYER.account):
            if not state.is_released:
                committed = self.desk.wallet.committed(state.id)
                settled_lower = self.settled_below_signed(state.id)
                assert signed[state.id] - settled_lower <= committed <= state.limit

    def settled_below_signed(self, opened: RecordId) -> int:
        """What final receipts say less than the payer signed: it is free again."""
        fees = self.desk.service.ledger.open_state(opened).tab.fees
        asks = [ask for ask in self.asks.values() if ask.row.open == opened and ask.row.ask in fees]
        return sum(ask.signed - fees[ask.row.ask] for ask in asks)

    @invariant()
    def nobody_signs_two_records_at_one_place(self) -> None:
        places: Counter[tuple[bytes, int]] = Counter()
        for signed in self.desk.records():
            match signed.record:
                case Entry(author=author, seq=seq):
                    places[author, seq] += 1
                case Receipt(bill=bill, n=n):
                    places[bill.open, n] += 1
                case _:
                    pass
        assert max(places.values(), default=0) <= 1

    @invariant()
    def every_ask_is_charged_once_and_at_most_as_signed(self) -> None:
        charged: dict[AskKey, list[int]] = defaultdict(list)
        for signed in self.desk.records():
            if isinstance(signed.record, Receipt):
                bill = signed.record.bill
                charged[bill.open, bill.ask].append(bill.fee)
        for key, fees in charged.items():
            assert len(fees) == 1
            assert fees[0] <= self.asks[key].signed

    @invariant()
    def a_release_covers_what_was_signed(self) -> None:
        ledger = self.desk.service.ledger
        for signed in self.desk.records():
            if isinstance(signed.record, Release):
                hold = signed.record.hold
                owed = sum(ask.signed for ask in self.asks.values() if ask.row.open == hold)
                assert signed.record.spent >= owed - self.settled_below_signed(hold)
                assert signed.record.spent <= ledger.open_state(hold).tab.limit

    @invariant()
    def what_is_on_disk_is_in_the_ledger_and_money_is_conserved(self) -> None:
        ledger = self.desk.service.ledger
        assert all(ledger.has(key) for key, _, _ in self.store.read_records())
        assert ledger.supply_conserved()
        assert not ledger.alarms()
        assert not ledger.equivocators()

    def check_the_end(self) -> None:
        """In the end every bill that the worker's book acknowledged is paid, if its open was good for it."""

        async def step() -> None:
            await self.restart()
            for _ in range(3):
                await self.desk.witness()
                await self.desk.till.settle_left()

        self.play(step)
        ledger, now = self.desk.service.ledger, self.desk.service.epoch(self.desk.clock.now_s())
        for ask in self.asks.values():
            state = ledger.open_state(ask.row.open)
            assert isinstance(state.entry.body, Open)
            is_late = now > state.entry.body.expiry + GRACE_EPOCHS
            if ask.kept and not is_late:
                assert ask.row.ask in state.tip_tab.fees, "an acknowledged bill was lost"
                assert state.tip_tab.fees[ask.row.ask] >= ask.kept


Books.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestBooks = Books.TestCase
