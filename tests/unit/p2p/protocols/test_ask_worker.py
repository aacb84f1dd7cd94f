"""The worker's machine: scenes, a small world, and mutants that the small world must catch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType
from typing import get_args

import pytest

from gossip_ledger.errors import SignatureError
from p2p.messages import (
    Accepted,
    Cancel,
    Done,
    Failed,
    Quoted,
    QuoteRequest,
    Refused,
    Settled,
    SignedBill,
    Tokens,
)
from p2p.protocols import ask_worker
from p2p.protocols.ask_worker import step
from p2p.protocols.ask_worker_state import (
    NEXT,
    Abort,
    Accept,
    Admit,
    Command,
    EngineDone,
    EngineFailed,
    Event,
    Finish,
    Phase,
    PrepareQuote,
    Produced,
    QuoteReady,
    ReceiptReady,
    Refuse,
    Settle,
    StartEngine,
    StopEngine,
    StoreBill,
    WorkerSession,
)
from p2p.protocols.codes import BAD_QUOTE, BAD_TERMS, BUSY, ENGINE, TOO_LONG, UNFUNDED
from p2p.protocols.limits import BILL_MS, CHUNK_TOKENS, FIRST_TOKEN_MS, TOKEN_MS
from p2p.protocols.session import Lost, Send, Timeout
from tests.unit.p2p.protocols.people import (
    EPOCHS,
    MODEL,
    NETWORK,
    PAYER,
    QUOTE,
    STRANGER,
    TOKEN,
    WORKER,
    bill_over,
    make_quote,
    make_request,
    receipt_over,
    signed,
    verify_bill_once,
)
from tests.unit.p2p.protocols.worlds import Moment, WorkerWatch, mutant, walk

REQUEST = make_request()
QUOTE_REQUEST = QuoteRequest(model=MODEL, tokens_in_max=64, tokens_out_max=64)
ACCEPT = Accept(quote=QUOTE.quote, epochs=EPOCHS)


def listening(now_ms: int = 0) -> WorkerSession:
    return WorkerSession.start(network=NETWORK, worker=WORKER.account, payer=PAYER.account, now_ms=now_ms)


def run(session: WorkerSession, *events: Event, now_ms: int = 0) -> tuple[WorkerSession, tuple[object, ...]]:
    """The session after `events`, and the effects of the last one."""
    effects: tuple[object, ...] = ()
    for event in events:
        session, effects = step(session, event, now_ms)
    return session, effects


def serving(produced: int = 0) -> WorkerSession:
    session, _ = run(listening(), REQUEST, ACCEPT)
    return run(session, Produced(ids=(TOKEN,) * produced))[0] if produced else session


def bill(count: int) -> SignedBill:
    return signed(bill_over(count, REQUEST))


def tokens(first: int, count: int) -> Send[Tokens]:
    return Send(message=Tokens(first=first, ids=(TOKEN,) * count))


def test_a_whole_ask() -> None:
    session, effects = run(listening(), QUOTE_REQUEST)
    assert effects == (PrepareQuote(request=QUOTE_REQUEST),)
    session, effects = run(session, QuoteReady(quote=QUOTE))
    assert effects == (Send(message=Quoted(quote=QUOTE)),)
    session, effects = run(session, REQUEST)
    assert effects == (Admit(request=REQUEST),)
    session, effects = run(session, ACCEPT)
    assert effects == (Send(message=Accepted(waiting=0)), StartEngine(request=REQUEST, tokens_max=24))
    session, effects = run(session, Produced(ids=(TOKEN,) * 20))
    assert effects == (tokens(0, 16),)
    session, effects = run(session, bill(9))
    first = bill(9)
    assert effects == (
        StoreBill(bill=first.bill, signature=first.signature, output=(TOKEN,) * 9),
        tokens(16, 4),
    )
    session, effects = run(session, EngineDone(reason="stop"))
    assert effects == (Send(message=Done(reason="stop", tokens_in=3, tokens_out=20)),)
    last = bill(20)
    session, effects = run(session, last)
    output = (TOKEN,) * 20
    assert effects == (
        StoreBill(bill=last.bill, signature=last.signature, output=output),
        Settle(bill=last.bill, signature=last.signature, output=output),
    )
    receipt = receipt_over(last.bill)
    session, effects = run(session, ReceiptReady(signed=receipt))
    assert isinstance(effects[0], Send)
    assert isinstance(effects[0].message, Settled)
    assert effects[1] == Finish(reason="stop", bill=last.bill, receipt=receipt)
    assert session.phase is Phase.DONE


def test_a_bill_is_stored_before_the_next_chunk_leaves() -> None:
    session = serving(20)
    _, effects = run(session, bill(16))
    assert [type(effect) for effect in effects] == [StoreBill, Send]


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"fee": 1}, "fee"),
        ({"tokens_in": 2}, "tokens_in"),
        ({"model": bytes(32)}, "model"),
        ({"open": bytes(32)}, "open"),
        ({"ask": 98}, "ask"),
        ({"quote": bytes(32)}, "quote"),
        ({"answers": 2}, "answers"),
        ({"epoch": 8}, "epoch"),
        ({"payer": STRANGER.account}, "payer"),
        ({"prompt_commit": bytes(32)}, "prompt_commit"),
        ({"output_commit": bytes(32)}, "output_commit"),
    ],
)
def test_a_wrong_bill_is_a_breach_and_settles_the_last_right_one(
    changes: dict[str, object], wrong: str
) -> None:
    session, _ = run(serving(16), bill(8))
    forged = SignedBill(bill=replace(bill_over(12, REQUEST), **changes), signature=bill(12).signature)
    after, effects = run(session, forged)
    assert after.phase is Phase.ABORTED
    assert isinstance(effects[0], StopEngine)
    assert isinstance(effects[1], Settle)
    assert effects[1].bill == bill(8).bill
    assert isinstance(effects[2], Abort)
    assert effects[2].is_breach
    assert wrong in effects[2].reason


def test_a_forged_signature_is_a_breach() -> None:
    _, effects = run(serving(16), signed(bill_over(8, REQUEST), STRANGER))
    assert isinstance(effects[-1], Abort)
    assert effects[-1].is_breach


@pytest.mark.parametrize("count", [4, 8, 17])
def test_bills_rise_and_cover_only_what_was_delivered(count: int) -> None:
    session, _ = run(serving(16), bill(8))
    after, effects = run(session, bill(count))
    assert after.phase is Phase.ABORTED
    assert isinstance(effects[-1], Abort)
    assert effects[-1].is_breach


def test_a_vanished_payer_costs_one_chunk() -> None:
    session = serving(24)
    assert len(session.output) == CHUNK_TOKENS
    assert session.deadline_ms == BILL_MS
    after, effects = step(session, Timeout(), BILL_MS)
    assert after.phase is Phase.ABORTED
    assert [type(effect) for effect in effects] == [StopEngine, Abort]


def test_a_payer_cannot_win_time_while_it_blocks() -> None:
    session, _ = step(serving(24), Produced(ids=(TOKEN,)), 5000)
    assert session.deadline_ms == BILL_MS


def test_each_bill_gives_a_blocked_payer_new_time() -> None:
    session, _ = run(listening(), make_request(max_fee=1000), ACCEPT)
    session, _ = run(session, Produced(ids=(TOKEN,) * 60))
    first = signed(bill_over(8, make_request(max_fee=1000)))
    session, _ = step(session, first, 5000)
    assert session.is_blocked
    assert session.deadline_ms == 5000 + BILL_MS


def test_while_nothing_blocks_the_engine_is_timed() -> None:
    session = serving()
    assert session.deadline_ms == FIRST_TOKEN_MS
    session, _ = step(session, Produced(ids=(TOKEN,)), 10)
    assert session.deadline_ms == 10 + TOKEN_MS
    session, _ = step(session, bill(1), 500)
    assert session.deadline_ms == 10 + TOKEN_MS
    session, effects = step(session, Timeout(), 10 + TOKEN_MS)
    failed = Failed(code=ENGINE, reason="the engine was silent too long", tokens_in=3, tokens_out=1)
    assert effects[:2] == (StopEngine(), Send(message=failed))
    assert session.phase is Phase.SETTLING


def test_a_failing_engine_is_reported_after_its_last_tokens() -> None:
    session, effects = run(serving(20), EngineFailed(code=ENGINE, reason="out of memory"))
    assert session.phase is Phase.DRAINING
    assert effects == ()
    session, effects = run(session, bill(16))
    assert effects[1:] == (
        tokens(16, 4),
        Send(message=Failed(code=ENGINE, reason="out of memory", tokens_in=3, tokens_out=20)),
    )


def test_an_engine_that_stops_by_itself_has_failed() -> None:
    """Only the payer cancels: it would refuse `cancelled` for an answer."""
    _, effects = run(serving(), EngineDone(reason="cancelled"))
    failed = Failed(code=ENGINE, reason="the engine gave up: cancelled", tokens_in=3, tokens_out=0)
    assert effects[0] == Send(message=failed)


def test_an_answer_without_tokens_is_free() -> None:
    session, effects = run(serving(), EngineDone(reason="stop"))
    assert session.phase is Phase.DONE
    assert effects == (
        Send(message=Done(reason="stop", tokens_in=3, tokens_out=0)),
        Finish(reason="stop"),
    )


def test_a_cancelled_ask_delivers_no_more_and_settles_what_was_delivered() -> None:
    session, effects = run(serving(20), Cancel())
    assert effects == (StopEngine(), Send(message=Done(reason="cancelled", tokens_in=3, tokens_out=16)))
    session, effects = run(session, Produced(ids=(TOKEN,)), EngineDone(reason="stop"), bill(16))
    assert session.phase is Phase.SETTLING


def test_an_engine_that_overshoots_is_cut() -> None:
    session, effects = run(serving(16), bill(16), Produced(ids=(TOKEN,) * 9))
    assert effects == (
        StopEngine(),
        tokens(16, 8),
        Send(message=Done(reason="length", tokens_in=3, tokens_out=24)),
    )
    assert session.phase is Phase.CLOSING


@pytest.mark.parametrize(
    ("request_", "quote", "code"),
    [
        (REQUEST, make_quote(nonce=2), BAD_QUOTE),
        (REQUEST, make_quote(payer=STRANGER.account), BAD_QUOTE),
        (make_request(model=bytes(32)), QUOTE.quote, BAD_QUOTE),
        (make_request(prompt=(1,) * 65), QUOTE.quote, TOO_LONG),
        (make_request(epoch=9), QUOTE.quote, BAD_TERMS),
        (make_request(epoch=5), QUOTE.quote, BAD_TERMS),
        (make_request(max_fee=2), QUOTE.quote, UNFUNDED),
    ],
)
def test_an_ask_that_contradicts_its_quote_is_refused(request_: object, quote: object, code: str) -> None:
    session, effects = run(listening(), request_, Accept(quote=quote, epochs=EPOCHS))  # type: ignore[arg-type]
    assert session.phase is Phase.DONE
    assert isinstance(effects[0], Send)
    assert isinstance(effects[0].message, Refused)
    assert effects[0].message.code == code
    assert not any(isinstance(effect, StartEngine) for effect in effects)


def test_the_maximum_fee_bounds_the_tokens() -> None:
    """3 prompt tokens at 300 and 5 output tokens at 2000 per thousand cost 10.9: 11 pays for them."""
    request = make_request(max_fee=11)
    session, effects = run(listening(), request, ACCEPT)
    assert effects[1] == StartEngine(request=request, tokens_max=5)
    session, _ = run(session, Produced(ids=(TOKEN,) * 9))
    assert len(session.output) == 5


def test_slow_books_refuse() -> None:
    session, effects = step(run(listening(), REQUEST)[0], Timeout(), 10**9)
    assert session.phase is Phase.DONE
    assert isinstance(effects[0], Send)
    assert isinstance(effects[0].message, Refused)
    assert effects[0].message.code == BUSY


def test_our_own_bugs_crash() -> None:
    with pytest.raises(AssertionError, match="has no place"):
        run(listening(), ACCEPT)
    session, _ = run(serving(1), bill(1), EngineDone(reason="stop"))
    with pytest.raises(AssertionError, match="last bill"):
        run(session, ReceiptReady(signed=receipt_over(bill(2).bill)))


# --- the small world ---

BILLS = (bill(1), bill(16), bill(17), bill(20), bill(24), bill(25))
CHEAP = signed(replace(bill_over(16, REQUEST), fee=1))
FORGED = signed(bill_over(1, REQUEST), STRANGER)
FROM_PAYER = (QUOTE_REQUEST, REQUEST, *BILLS, CHEAP, FORGED, Cancel())
FROM_HERE = (
    QuoteReady(quote=QUOTE),
    Refuse(code=BUSY, reason="full", retry_after_ms=1),
    ACCEPT,
    Produced(ids=(TOKEN,)),
    Produced(ids=(TOKEN,) * 16),
    Produced(ids=(TOKEN,) * 25),
    EngineDone(reason="stop"),
    EngineFailed(code=ENGINE, reason="broken"),
)


def events(session: WorkerSession) -> Iterator[Event]:
    """All that may happen; commands only where a caller may give them."""
    yield from FROM_PAYER
    yield Lost()
    yield Timeout()
    for command in FROM_HERE:
        if session.is_over or (session.phase, type(command)) in NEXT:
            yield command
    if session.phase is Phase.SETTLING:
        assert session.bill is not None
        yield ReceiptReady(signed=receipt_over(session.bill))


def is_waiting(phase: Phase) -> bool:
    return phase not in (Phase.DONE, Phase.ABORTED)


def explore(module: object, depth: int) -> set[Moment]:
    """From a fresh stream, and from a running engine, as the first steps have few branches."""
    fresh = Moment(listening(), WorkerWatch(), 0)
    running = Moment(serving(), WorkerWatch(starts=1, is_engine_on=True), 0)
    seen = walk(module.step, fresh, events, waits=is_waiting, depth=depth)  # type: ignore[attr-defined]
    return seen | walk(module.step, running, events, waits=is_waiting, depth=depth)  # type: ignore[attr-defined]


def test_every_sequence_of_six_events_keeps_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2p.protocols.billing.verify_bill", verify_bill_once)
    seen = explore(ask_worker, 6)
    assert {moment.session.phase for moment in seen} == set(Phase)
    ends = {(moment.watch.settled, moment.watch.sent) for moment in seen}
    assert ends >= {(0, 0), (0, 16), (1, 17), (16, 24), (24, 24)}


def billing(*edits: tuple[str, str]) -> ModuleType:
    """The money rules, with the planted bugs."""
    first = ("from dataclasses import fields", "from dataclasses import fields, replace")
    return mutant("p2p.protocols.billing", first, *edits, verify_bill=verify_bill_once)


ROOM = "room = session.billed + CHUNK_TOKENS - len(session.output)"
IN_BILLING = {
    "falling bill accepted": ("if bill.tokens_out <= billed:", "if False:"),
    "repeated bill accepted": ("if bill.tokens_out <= billed:", "if bill.tokens_out < billed:"),
    "fee not compared": ("bill != expected", "replace(bill, fee=0) != replace(expected, fee=0)"),
    "signature not checked": ("    verify_bill(bill, signed.signature, network)\n", ""),
    "undelivered tokens billed": ("if bill.tokens_out > len(delivered):", "if False:"),
}
IN_WORKER = {
    "chunk bound removed": (ROOM, "room = 10**9"),
    "chunk bound one too large": (ROOM, ROOM.replace("CHUNK_TOKENS", "17")),
    "chunk sent before the bill is stored": ("session, (store, *sent)", "session, (*sent, store)"),
    "last bill not stored": ("return after, (store, *effects)", "return after, effects"),
    "deadline never fires": ("now_ms < session.deadline_ms", "now_ms >= 0"),
    "deadline one late": ("now_ms < session.deadline_ms", "now_ms <= session.deadline_ms"),
    "deadline survives the end": ("return replace(after, deadline_ms=None)", "return after"),
    "settles nothing when lost": ("effects += _settlement(session)", "pass"),
    "settles twice": (
        "if session.phase is not Phase.SETTLING:\n        effects",
        "if True:\n        effects",
    ),
    "settles before the last bill": ("if session.billed < len(session.output):", "if False:"),
    "engine runs on after a cancel": ("(StopEngine(),) if session.phase is Phase.SERVING else ()", "()"),
    "tokens sent after a cancel": ("session, pending=(), ending=ending", "session, ending=ending"),
    "counts not filled in": ("tokens_out=len(session.output)", "tokens_out=0"),
    "maximum fee ignored": (
        "tokens_max = compute_tokens_max(session.request, accept.quote)",
        "tokens_max = session.request.max_tokens",
    ),
    "overshoot delivered": ("session.pending + ids[:room]", "session.pending + ids"),
}


@pytest.mark.parametrize("name", [*IN_BILLING, *IN_WORKER])
def test_the_small_world_catches(name: str) -> None:
    rules = billing(*((IN_BILLING[name],) if name in IN_BILLING else ()))
    edits = (IN_WORKER[name],) if name in IN_WORKER else ()
    module = mutant("p2p.protocols.ask_worker", *edits, check_bill=rules.check_bill)
    with pytest.raises((AssertionError, SignatureError)):
        explore(module, 5)


def test_commands_of_the_small_world_are_all_there_are() -> None:
    kinds = {type(command) for command in FROM_HERE} | {ReceiptReady}
    assert kinds == set(get_args(Command))
