"""Payer and worker against each other, over wires that deliver late, in bursts, or break.

Whatever happens and in whichever order: the payer owes at most one chunk less than it got, the worker settles
what was signed and nothing else, and two honest peers on a whole wire always end with the same receipt.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gossip_ledger.records import Bill
from gossip_ledger.signing import sign_bill
from p2p.messages import TO_PAYER, TO_WORKER, SignedBill
from p2p.protocols import ask_payer, ask_worker
from p2p.protocols import ask_payer_state as payer
from p2p.protocols import ask_worker_state as worker
from p2p.protocols.limits import CHUNK_TOKENS
from p2p.protocols.session import Lost, Send, Timeout
from tests.unit.p2p.protocols.people import (
    EPOCHS,
    NETWORK,
    PAYER,
    QUOTE,
    TOKEN,
    WORKER,
    make_request,
    receipt_over,
)

ACTIONS = (
    *(("to worker", "to payer", "produce 1", "produce 7") * 6),
    *("produce 40", "engine done"),
)
BREAKS = ("engine fails", "stop", "cut", "payer late", "worker late")


@dataclass
class Pair:
    """Both sessions, the bytes under way, and what the outside world saw."""

    request: Any
    payer: payer.PayerSession
    worker: worker.WorkerSession
    to_worker: deque[bytes] = field(default_factory=deque)
    to_payer: deque[bytes] = field(default_factory=deque)
    is_cut: bool = False
    is_engine_on: bool = False
    delivered: int = 0
    signed: Bill | None = None
    settled: list[Bill] = field(default_factory=list)
    finish: payer.Finish | payer.Abort | None = None
    now_ms: int = 0

    @staticmethod
    def start(max_fee: int) -> Pair:
        pair = Pair(
            request=make_request(max_fee=max_fee),
            payer=payer.PayerSession.start(network=NETWORK, payer=PAYER.account, worker=WORKER.account),
            worker=worker.WorkerSession.start(
                network=NETWORK, worker=WORKER.account, payer=PAYER.account, now_ms=0
            ),
        )
        pair.tell_payer(payer.Ask(request=pair.request, quote=QUOTE))
        return pair

    def tell_payer(self, event: Any) -> None:
        self.payer, effects = ask_payer.step(self.payer, event, self.now_ms)
        for effect in effects:
            match effect:
                case Send(message=message):
                    self.to_worker.append(TO_WORKER.encode(message))
                case payer.SignBill(bill=bill):
                    self.signed = bill
                    signed = SignedBill(bill=bill, signature=sign_bill(bill, PAYER, NETWORK))
                    self.to_worker.append(TO_WORKER.encode(signed))
                case payer.Deliver(ids=ids):
                    self.delivered += len(ids)
                case payer.Finish() | payer.Abort():
                    self.finish = effect
                case _:
                    pass

    def tell_worker(self, event: Any) -> None:
        events = deque([event])
        while events:
            self.worker, effects = ask_worker.step(self.worker, events.popleft(), self.now_ms)
            for effect in effects:
                match effect:
                    case Send(message=message):
                        self.to_payer.append(TO_PAYER.encode(message))
                    case worker.Admit():
                        events.append(worker.Accept(quote=QUOTE.quote, epochs=EPOCHS))
                    case worker.StartEngine():
                        self.is_engine_on = True
                    case worker.StopEngine():
                        self.is_engine_on = False
                    case worker.Settle(bill=bill):
                        self.settled.append(bill)
                        events.append(worker.ReceiptReady(signed=receipt_over(bill)))
                    case _:
                        pass

    def act(self, action: str) -> None:
        match action.split():
            case ["to", "worker"] if self.to_worker and not self.is_cut:
                self.tell_worker(TO_WORKER.decode(self.to_worker.popleft()))
            case ["to", "payer"] if self.to_payer and not self.is_cut:
                self.tell_payer(TO_PAYER.decode(self.to_payer.popleft()))
            case ["produce", count] if self.is_engine_on:
                self.tell_worker(worker.Produced(ids=(TOKEN,) * int(count)))
            case ["engine", how] if self.is_engine_on:
                self.is_engine_on = False
                failed = worker.EngineFailed(code="engine", reason="broken")
                self.tell_worker(worker.EngineDone(reason="stop") if how == "done" else failed)
            case ["stop"]:
                self.tell_payer(payer.Stop())
            case ["cut"] if not self.is_cut:
                self.is_cut = True
                self.tell_payer(Lost())
                self.tell_worker(Lost())
            case [who, "late"]:
                session: Any = self.payer if who == "payer" else self.worker
                if session.deadline_ms is not None:
                    self.now_ms = max(self.now_ms, session.deadline_ms)
                    (self.tell_payer if who == "payer" else self.tell_worker)(Timeout())
            case _:
                pass
        self.check()

    def check(self) -> None:
        signed = self.signed.tokens_out if self.signed else 0
        assert self.delivered <= signed + CHUNK_TOKENS
        assert self.signed is None or self.signed.fee <= self.request.max_fee
        accepted = self.worker.billed
        assert len(self.worker.output) <= accepted + CHUNK_TOKENS
        assert accepted <= signed <= self.delivered <= len(self.worker.output)
        assert len(self.settled) <= 1
        for bill in self.settled:
            assert self.signed is not None
            assert bill.fee <= self.signed.fee
            assert bill == self.worker.bill

    def finish_up(self) -> None:
        """Lets everything under way arrive; the engine ends by itself."""
        for _ in range(400):
            for action in ("to worker", "to payer", "engine done"):
                self.act(action)
            if self.payer.is_over and self.worker.is_over:
                return
            if not (self.to_worker or self.to_payer or self.is_engine_on):
                self.act("cut")
        raise AssertionError("the two never end")


schedules = st.lists(st.sampled_from(ACTIONS), max_size=120)


@given(schedule=schedules, max_fee=st.sampled_from([2, 3, 11, 49, 1000]))
@settings(max_examples=150)
def test_honest_peers_on_a_whole_wire_end_with_one_receipt_for_all(schedule: list[str], max_fee: int) -> None:
    pair = Pair.start(max_fee)
    for action in schedule:
        pair.act(action)
    pair.finish_up()
    assert not pair.is_cut
    assert isinstance(pair.finish, payer.Finish)
    if pair.delivered:
        assert pair.finish.receipt is not None
        assert pair.settled == [pair.signed]
        assert pair.signed is not None
        assert pair.signed.tokens_out == pair.delivered == len(pair.worker.output)
    else:
        assert pair.signed is None
        assert pair.settled == []


@given(
    schedule=st.lists(st.sampled_from(ACTIONS + BREAKS), max_size=120),
    max_fee=st.sampled_from([11, 49, 1000]),
)
@settings(max_examples=300)
def test_nobody_loses_more_than_a_chunk_whatever_breaks(schedule: list[str], max_fee: int) -> None:
    pair = Pair.start(max_fee)
    for action in schedule:
        pair.act(action)
    pair.finish_up()
    assert pair.finish is not None
    assert not isinstance(pair.finish, payer.Abort) or not pair.finish.is_breach, pair.finish.reason
    assert pair.finish.bill == pair.signed
    accepted = pair.worker.bill
    assert pair.settled == ([] if accepted is None else [accepted])
    lost = len(pair.worker.output) - pair.worker.billed
    assert lost <= CHUNK_TOKENS
