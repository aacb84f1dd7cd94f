"""Small worlds: every sequence of events, breadth first, against a watcher that keeps its own account.

The watchers believe nothing that a session says about itself: they add up its effects, in their order, and
complain with an `AssertionError` whose message is the rule that was broken. Mutants of a module are made from
its source, so a planted bug is exactly one edit.
"""

from __future__ import annotations

import importlib
import inspect
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from p2p.messages import Done, Failed, Tokens
from p2p.protocols import ask_payer_state as payer
from p2p.protocols import ask_worker_state as worker
from p2p.protocols.limits import BILL_EVERY_TOKENS, CHUNK_TOKENS
from p2p.protocols.session import Lost, Send, Timeout
from p2p.quotes import quoted_fee
from tests.unit.p2p.protocols.people import MAX_FEE, NETWORK, QUOTE, verify_bill_once

WAIT_MS_MAX = 180_000
"""No phase waits longer."""

Step = Callable[[Any, Any, int], tuple[Any, tuple[Any, ...]]]


def mutant(name: str, *edits: tuple[str, str], **names: object) -> types.ModuleType:
    """Module `name` with one edit to its source, or with some of its names bound to other things."""
    original = importlib.import_module(name)
    source = inspect.getsource(original)
    for old, new in edits:
        assert source.count(old) == 1, f"{name} has {source.count(old)} of {old!r}"
        source = source.replace(old, new)
    module = types.ModuleType(name)
    module.__dict__["__file__"] = original.__file__
    exec(compile(source, f"<mutant of {name}>", "exec"), module.__dict__)
    module.__dict__.update(names)
    return module


@dataclass(frozen=True)
class WorkerWatch:
    """What a worker has done to the world."""

    sent: int = 0
    stored: int = 0
    """Tokens of the last bill stored."""
    settled: int = 0
    starts: int = 0
    is_engine_on: bool = False
    is_ended: bool = False
    is_counted: bool = False
    """Whether the payer was told the counts."""

    def after(self, event: object, effects: Iterable[object]) -> WorkerWatch:
        """The account after one step."""
        watch = self
        if isinstance(event, worker.EngineDone | worker.EngineFailed):
            watch = replace(watch, is_engine_on=False)
        for effect in effects:
            assert not watch.is_ended, "nothing comes after the last effect"
            watch = watch._take(effect)
        return watch

    def _take(self, effect: object) -> WorkerWatch:
        match effect:
            case Send(message=Tokens() as tokens):
                assert tokens.first == self.sent, "tokens come in order"
                assert not self.is_counted, "no tokens after the counts"
                sent = self.sent + len(tokens.ids)
                assert sent <= self.stored + CHUNK_TOKENS, "at most one chunk beyond the last stored bill"
                assert quoted_fee(QUOTE.quote, 3, sent) <= MAX_FEE, "no token beyond the maximum fee"
                return replace(self, sent=sent)
            case Send(message=Done() | Failed() as message):
                assert (message.tokens_in, message.tokens_out) == (3, self.sent), "counts are true"
                return replace(self, is_counted=True)
            case worker.StoreBill(bill=bill, output=output):
                assert self.stored < bill.tokens_out <= self.sent, (
                    "bills rise, and cover delivered tokens only"
                )
                verify_bill_once(bill, effect.signature, NETWORK)
                assert bill.fee == quoted_fee(QUOTE.quote, 3, bill.tokens_out) <= MAX_FEE, (
                    "the fee is the quote's"
                )
                assert len(output) == bill.tokens_out, "a bill is stored with what it covers"
                assert not self.settled, "no bill after the settlement"
                return replace(self, stored=bill.tokens_out)
            case worker.Settle(bill=bill, output=output):
                assert not self.settled, "an ask is settled once"
                assert bill.tokens_out == self.stored == len(output), "the last stored bill is settled"
                return replace(self, settled=bill.tokens_out)
            case worker.StartEngine():
                return replace(self, is_engine_on=True, starts=self.starts + 1)
            case worker.StopEngine():
                return replace(self, is_engine_on=False)
            case worker.Finish() | worker.Abort():
                assert self.settled == self.stored, "what was signed is settled, in every end"
                earned = effect.bill.tokens_out if effect.bill else 0
                assert earned == self.settled, "the end says what was earned"
                return replace(self, is_ended=True)
            case _:
                return self

    def check(self, session: worker.WorkerSession) -> None:
        """What must hold between two steps."""
        assert self.is_ended == session.is_over, "the last effect ends the session"
        assert self.starts <= 1, "the engine is started once"
        if session.phase is not worker.Phase.SERVING:
            assert not self.is_engine_on, "an engine that nobody waits for is stopped"
        if session.phase is worker.Phase.SETTLING:
            assert self.settled == self.sent, "all that was delivered is billed before the receipt"


@dataclass(frozen=True)
class PayerWatch:
    """What a payer has done to the world."""

    received: int = 0
    signed: int = 0
    """Tokens of the last bill signed."""
    is_ended: bool = False

    def after(self, event: object, effects: Iterable[object]) -> PayerWatch:
        """The account after one step."""
        watch = self
        for effect in effects:
            assert not watch.is_ended, "nothing comes after the last effect"
            watch = watch._take(effect, event)
        return watch

    def _take(self, effect: object, event: object) -> PayerWatch:
        match effect:
            case payer.Deliver(ids=ids):
                assert isinstance(event, Tokens)
                assert event.first == self.received, "tokens come in order"
                received = self.received + len(ids)
                assert received <= self.signed + CHUNK_TOKENS, "at most one chunk beyond the last bill"
                assert quoted_fee(QUOTE.quote, 3, received) <= MAX_FEE, "no token beyond the maximum fee"
                return replace(self, received=received)
            case payer.SignBill(bill=bill):
                assert self.signed < bill.tokens_out <= self.received, "bills rise, and cover what came"
                assert bill.fee == quoted_fee(QUOTE.quote, 3, bill.tokens_out) <= MAX_FEE, (
                    "the fee is the quote's"
                )
                return replace(self, signed=bill.tokens_out)
            case payer.Finish() | payer.Abort():
                owed = effect.bill.tokens_out if effect.bill else 0
                assert owed == self.signed, "the end says what is owed"
                if isinstance(effect, payer.Finish) and effect.receipt is not None:
                    receipt: Any = effect.receipt.record
                    assert receipt.bill == effect.bill, "the receipt is over the last bill"
                    assert self.signed == self.received, "the last bill covers what came"
                if isinstance(event, Done | Failed) and isinstance(effect, payer.Finish):
                    assert event.tokens_out == self.received, "a wrong count is refused"
                return replace(self, is_ended=True)
            case payer.Ended():
                assert self.signed == self.received, "the last bill covers what came"
                assert isinstance(event, Done | Failed)
                assert (event.tokens_in, event.tokens_out) == (3, self.received), "a wrong count is refused"
                return self
            case _:
                return self

    def check(self, session: payer.PayerSession) -> None:
        """What must hold between two steps."""
        assert self.is_ended == session.is_over, "the last effect ends the session"
        assert self.received == len(session.output)
        if session.phase is payer.Phase.STREAMING:
            assert self.signed > 0, "the prompt is due with the first token"
            assert self.received - self.signed < BILL_EVERY_TOKENS, "a payer bills in time"


@dataclass(frozen=True)
class SessionWatch:
    """What every session owes its caller: one last effect, and it is the last."""

    ends: tuple[type, ...]
    is_ended: bool = False

    def after(self, event: object, effects: Iterable[object]) -> SessionWatch:
        """The account after one step."""
        watch = self
        for effect in effects:
            assert not watch.is_ended, "nothing comes after the last effect"
            watch = replace(watch, is_ended=isinstance(effect, self.ends))
        return watch

    def check(self, session: Any) -> None:
        """What must hold between two steps."""
        assert self.is_ended == session.is_over, "the last effect ends the session"


@dataclass(frozen=True)
class Moment:
    """A session, the time, and what its watcher has seen."""

    session: Any
    watch: Any
    now_ms: int


def walk(
    step: Step,
    start: Moment,
    events: Callable[[Any], Iterator[object]],
    *,
    waits: Callable[[Any], bool],
    depth: int,
) -> set[Moment]:
    """Every moment that `depth` events lead to, each checked. `waits`: phases that need a deadline."""
    seen = {start}
    front = [start]
    for _ in range(depth):
        found: list[Moment] = []
        for moment in front:
            for event in events(moment.session):
                for now_ms in _times(moment, event):
                    after = _one(step, moment, event, now_ms, waits)
                    if after not in seen:
                        seen.add(after)
                        found.append(after)
        front = found
    return seen


def _times(moment: Moment, event: object) -> tuple[int, ...]:
    """At once, or when the deadline has come but nobody said so; a timeout also just before."""
    deadline_ms: int | None = moment.session.deadline_ms
    if deadline_ms is None:
        return (moment.now_ms,)
    first = max(moment.now_ms, deadline_ms - 1) if isinstance(event, Timeout) else moment.now_ms
    return tuple({first, max(moment.now_ms, deadline_ms)})


def _one(step: Step, moment: Moment, event: object, now_ms: int, waits: Callable[[Any], bool]) -> Moment:
    before = moment.session
    session, effects = step(before, event, now_ms)
    if before.is_over:
        assert session == before, "what is over stays over"
        assert effects == (), "what is over has no effects"
    if isinstance(event, Timeout) and before.deadline_ms is not None:
        if now_ms >= before.deadline_ms:
            assert session.phase is not before.phase, "a deadline fires"
        else:
            assert (session, effects) == (before, ()), "an early timeout changes nothing"
    if isinstance(event, Lost) and not before.is_over:
        assert session.is_over, "a lost stream ends the session"
    if waits(session.phase):
        assert session.deadline_ms is not None, "a phase that waits has a deadline"
        assert session.deadline_ms <= now_ms + WAIT_MS_MAX, "a deadline is near"
    else:
        assert session.deadline_ms is None, "nobody waits where there is nobody to wait for"
    watch = moment.watch.after(event, effects)
    watch.check(session)
    return Moment(session, watch, now_ms)
