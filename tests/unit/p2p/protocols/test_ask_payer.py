"""The payer's machine: scenes, a small world, and mutants that the small world must catch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import get_args

import pytest

from gossip_ledger.errors import RemoteError
from gossip_ledger.records import SIGNED_RECORDS, AccountId, Entry, NetworkId, RecordId, Signed, Transfer
from gossip_ledger.signing import admit, sign_record
from p2p.messages import (
    Accepted,
    Cancel,
    Done,
    Failed,
    Quoted,
    QuoteRequest,
    Refused,
    Settled,
    Tokens,
    WorkerMessage,
)
from p2p.protocols import ask_payer
from p2p.protocols.ask_payer import step
from p2p.protocols.ask_payer_state import (
    NEXT,
    Abort,
    Ask,
    Command,
    Deliver,
    Ended,
    Event,
    Finish,
    PayerSession,
    Phase,
    QuoteArrived,
    RequestQuote,
    SignBill,
    Stop,
)
from p2p.protocols.codes import BUSY, ENGINE
from p2p.protocols.limits import CANCEL_MS, FIRST_TOKEN_MS, SETTLE_MS, TOKEN_MS
from p2p.protocols.session import Lost, Send, Timeout
from tests.unit.p2p.protocols.people import (
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
    receipt_bytes,
    receipt_over,
)
from tests.unit.p2p.protocols.worlds import Moment, PayerWatch, mutant, walk

REQUEST = make_request()
QUOTE_REQUEST = QuoteRequest(model=MODEL, tokens_in_max=64, tokens_out_max=64)
ASK = Ask(request=REQUEST, quote=QUOTE)
ACCEPTED = Accepted(waiting=0)
REFUSED = Refused(code=BUSY, reason="full", retry_after_ms=500)
STOPPED = Done(reason="stop", tokens_in=3, tokens_out=1)


def idle() -> PayerSession:
    return PayerSession.start(network=NETWORK, payer=PAYER.account, worker=WORKER.account)


def run(session: PayerSession, *events: Event, now_ms: int = 0) -> tuple[PayerSession, tuple[object, ...]]:
    """The session after `events`, and the effects of the last one."""
    effects: tuple[object, ...] = ()
    for event in events:
        session, effects = step(session, event, now_ms)
    return session, effects


def tokens(first: int, count: int) -> Tokens:
    return Tokens(first=first, ids=(TOKEN,) * count)


def streaming(count: int) -> PayerSession:
    return run(idle(), ASK, ACCEPTED, tokens(0, count))[0]


def done(count: int, reason: str = "stop") -> Done:
    return Done(reason=reason, tokens_in=3, tokens_out=count)


def breach(effects: tuple[object, ...]) -> Abort:
    assert isinstance(effects[-1], Abort)
    assert effects[-1].is_breach
    return effects[-1]


def test_a_whole_ask() -> None:
    session, effects = run(idle(), RequestQuote(request=QUOTE_REQUEST))
    assert effects == (Send(message=QUOTE_REQUEST),)
    session, effects = run(session, Quoted(quote=QUOTE))
    assert effects == (QuoteArrived(quote=QUOTE),)
    session, effects = run(session, ASK)
    assert effects == (Send(message=REQUEST),)
    session, effects = run(session, ACCEPTED, tokens(0, 1))
    assert effects == (Deliver(ids=(TOKEN,)), SignBill(bill=bill_over(1, REQUEST)))
    session, effects = run(session, tokens(1, 7))
    assert effects == (Deliver(ids=(TOKEN,) * 7),)
    session, effects = run(session, tokens(8, 1))
    assert effects == (Deliver(ids=(TOKEN,)), SignBill(bill=bill_over(9, REQUEST)))
    session, effects = run(session, tokens(9, 2), done(11))
    last = bill_over(11, REQUEST)
    assert effects == (SignBill(bill=last), Ended(reason="stop"))
    session, effects = run(session, Settled(receipt=receipt_bytes(last)))
    assert effects == (Finish(reason="stop", bill=last, receipt=receipt_over(last)),)
    assert session.phase is Phase.DONE


@pytest.mark.parametrize(
    "message",
    [
        tokens(3, 1),
        tokens(5, 1),
        done(3),
        done(5),
        Done(reason="stop", tokens_in=4, tokens_out=4),
        Done(reason="cancelled", tokens_in=3, tokens_out=4),
        Failed(code=ENGINE, reason="broken", tokens_in=3, tokens_out=9),
        ACCEPTED,
        REFUSED,
        Quoted(quote=QUOTE),
        Settled(receipt=receipt_bytes(bill_over(4, REQUEST))),
    ],
)
def test_what_a_worker_may_not_say_while_streaming(message: WorkerMessage) -> None:
    """After 4 tokens, all billed: positions, chunks and counts are checked, and so is the turn."""
    session, effects = run(streaming(4), message)
    assert session.phase is Phase.ABORTED
    assert breach(effects).bill == bill_over(4, REQUEST)


def test_no_more_tokens_than_the_fee_pays_for() -> None:
    request = make_request(max_fee=11)
    session, effects = run(idle(), Ask(request=request, quote=QUOTE), ACCEPTED, tokens(0, 5))
    assert session.tokens_max == 5
    session, effects = run(session, tokens(5, 1))
    assert breach(effects).bill == bill_over(5, request)


def _foreign() -> list[bytes]:
    last = bill_over(4, REQUEST)
    good = receipt_over(last)
    transfer = Entry(
        author=WORKER.account,
        seq=1,
        prev=RecordId(b""),
        epoch=1,
        body=Transfer(to=AccountId(bytes(32)), amount=1),
    )
    foreign = sign_record(transfer, WORKER, NETWORK)
    return [
        b"",
        receipt_bytes(last)[:-1],
        receipt_bytes(bill_over(3, REQUEST)),
        receipt_bytes(bill_over(5, REQUEST)),
        receipt_bytes(replace(last, fee=last.fee + 1)),
        receipt_bytes(last, STRANGER),
        SIGNED_RECORDS.encode(Signed(record=good.record, signatures=(good.signatures[0],) * 2)),
        SIGNED_RECORDS.encode(Signed(record=good.record, signatures=(good.signatures[1],) * 2)),
        SIGNED_RECORDS.encode(foreign),
        SIGNED_RECORDS.encode(replace(good, signatures=(foreign.signatures[0], good.signatures[1]))),
    ]


@pytest.mark.parametrize("data", _foreign())
def test_only_the_worker_s_receipt_over_the_last_bill_settles(data: bytes) -> None:
    session, effects = run(streaming(4), done(4), Settled(receipt=data))
    assert session.phase is Phase.ABORTED
    assert breach(effects).bill == bill_over(4, REQUEST)


def test_a_receipt_of_another_network_does_not_settle() -> None:
    other = PayerSession.start(network=NetworkId(bytes(32)), payer=PAYER.account, worker=WORKER.account)
    session = replace(streaming(4), network=other.network)
    _, effects = run(session, done(4), Settled(receipt=receipt_bytes(bill_over(4, REQUEST))))
    breach(effects)


def test_a_lost_worker_is_owed_what_was_signed_and_no_more() -> None:
    session, _ = run(streaming(1), tokens(1, 3))
    session, effects = run(session, Lost(reason="gone"))
    assert effects == (Abort(reason="gone", is_breach=False, bill=bill_over(1, REQUEST)),)


def test_a_worker_lost_before_its_first_token_is_owed_nothing() -> None:
    _, effects = run(idle(), ASK, ACCEPTED, Lost(reason="gone"))
    assert effects == (Abort(reason="gone", is_breach=False, bill=None),)


def test_an_answer_stands_without_its_receipt() -> None:
    session, _ = run(streaming(4), done(4))
    for event in (Lost(reason="gone"), Timeout()):
        after, effects = step(session, event, SETTLE_MS)
        assert after.phase is Phase.DONE
        assert isinstance(effects[0], Finish)
        assert (effects[0].reason, effects[0].receipt) == ("stop", None)
        assert effects[0].bill == bill_over(4, REQUEST)


def test_a_failed_answer_is_settled_as_far_as_it_went() -> None:
    session, effects = run(streaming(4), Failed(code=ENGINE, reason="broken", tokens_in=3, tokens_out=4))
    assert effects == (Ended(reason="failed"),)
    _, effects = run(session, Settled(receipt=receipt_bytes(bill_over(4, REQUEST))))
    assert isinstance(effects[0], Finish)
    assert (effects[0].reason, effects[0].code, effects[0].detail) == ("failed", ENGINE, "broken")


def test_a_cancelled_ask_is_billed_to_its_end() -> None:
    session, effects = run(streaming(1), Stop())
    assert effects == (Send(message=Cancel()),)
    assert session.deadline_ms == CANCEL_MS
    session, effects = step(session, tokens(1, 3), 100)
    assert effects == (Deliver(ids=(TOKEN,) * 3),)
    assert session.deadline_ms == CANCEL_MS
    session, effects = run(session, done(4, "cancelled"))
    assert effects == (SignBill(bill=bill_over(4, REQUEST)), Ended(reason="cancelled"))


def test_cancelling_before_a_token_is_free() -> None:
    session, effects = run(idle(), ASK, Stop(), ACCEPTED, done(0, "cancelled"))
    assert session.phase is Phase.DONE
    assert effects == (Finish(reason="cancelled"),)


def test_a_refusal_says_when_to_come_back() -> None:
    _, effects = run(idle(), ASK, REFUSED)
    assert effects == (Finish(reason="refused", code=BUSY, detail="full", retry_after_ms=500),)


def test_deadlines_follow_the_stream() -> None:
    session, _ = run(idle(), ASK, ACCEPTED)
    assert session.deadline_ms == FIRST_TOKEN_MS
    session, _ = step(session, tokens(0, 1), 1000)
    assert session.deadline_ms == 1000 + TOKEN_MS
    session, _ = step(session, tokens(1, 1), 2000)
    assert session.deadline_ms == 2000 + TOKEN_MS


def test_our_own_bugs_crash() -> None:
    with pytest.raises(AssertionError, match="has no place"):
        run(idle(), ASK, ASK)
    with pytest.raises(AssertionError, match="another quote"):
        run(idle(), Ask(request=make_request(make_quote(nonce=2)), quote=QUOTE))


# --- the small world ---

FROM_WORKER = (
    Quoted(quote=QUOTE),
    REFUSED,
    ACCEPTED,
    tokens(0, 1),
    tokens(0, 16),
    tokens(1, 7),
    tokens(1, 16),
    tokens(8, 10),
    tokens(8, 16),
    tokens(16, 8),
    tokens(16, 9),
    tokens(1, 1),
    done(0),
    done(1),
    done(2, "cancelled"),
    done(16, "length"),
    Done(reason="stop", tokens_in=4, tokens_out=1),
    Failed(code=ENGINE, reason="broken", tokens_in=3, tokens_out=1),
    Settled(receipt=receipt_bytes(bill_over(1, REQUEST))),
    Settled(receipt=receipt_bytes(bill_over(2, REQUEST))),
    Settled(receipt=receipt_bytes(bill_over(16, REQUEST))),
    Settled(receipt=receipt_bytes(bill_over(1, REQUEST), STRANGER)),
)
COMMANDS = (RequestQuote(request=QUOTE_REQUEST), ASK, Stop())


def events(session: PayerSession) -> Iterator[Event]:
    """All that may happen; commands only where a caller may give them."""
    yield from FROM_WORKER
    yield Lost()
    yield Timeout()
    for command in COMMANDS:
        if session.is_over or (session.phase, type(command)) in NEXT:
            yield command


def is_waiting(phase: Phase) -> bool:
    return phase not in (Phase.IDLE, Phase.DONE, Phase.ABORTED)


def explore(module: object, depth: int) -> set[Moment]:
    """From a fresh stream, and from an admitted ask, as the first steps have few branches."""
    fresh = Moment(idle(), PayerWatch(), 0)
    admitted = Moment(run(idle(), ASK, ACCEPTED)[0], PayerWatch(), 0)
    seen = walk(module.step, fresh, events, waits=is_waiting, depth=depth)  # type: ignore[attr-defined]
    return seen | walk(module.step, admitted, events, waits=is_waiting, depth=depth)  # type: ignore[attr-defined]


VERDICTS: dict[bytes, object] = {}


def admit_once(data: bytes, network: NetworkId) -> object:
    """`admit`, remembering its verdicts."""
    if data not in VERDICTS:
        try:
            VERDICTS[data] = admit(data, network)
        except RemoteError as error:
            VERDICTS[data] = error
    verdict = VERDICTS[data]
    if isinstance(verdict, RemoteError):
        raise verdict
    return verdict


def test_every_sequence_of_six_events_keeps_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask_payer, "admit", admit_once)
    seen = explore(ask_payer, 6)
    assert {moment.session.phase for moment in seen} == set(Phase)
    assert {moment.watch.signed for moment in seen} >= {0, 1, 16, 17, 24}


MUTANTS = {
    "refused after tokens, owing nothing": ("if session.output:\n", "if False:\n"),
    "chunk bound removed": ("if len(output) > session.billed + CHUNK_TOKENS:", "if False:"),
    "chunk bound one too large": ("session.billed + CHUNK_TOKENS", "session.billed + 17"),
    "more tokens than asked for": ("if len(output) > session.tokens_max:", "if False:"),
    "maximum fee ignored": ("tokens_max=compute_tokens_max(request, quote)", "tokens_max=request.max_tokens"),
    "gaps accepted": ("if tokens.first != len(session.output):", "if tokens.first < 0:"),
    "the worker's counts are believed": (
        "(message.tokens_in, message.tokens_out) != (len(session.request.prompt), len(session.output))",
        "False",
    ),
    "input not counted": (
        "(message.tokens_in, message.tokens_out) != (len(session.request.prompt), len(session.output))",
        "message.tokens_out != len(session.output)",
    ),
    "first bill forgotten": ("if session.bill is not None and len(output)", "if len(output)"),
    "bills late": ("len(output) - session.billed < BILL_EVERY_TOKENS", "len(output) - session.billed <= 8"),
    "last bill forgotten": ("if session.billed < len(session.output):", "if False:"),
    "receipt over another bill": ("if receipt.bill != session.bill:", "if False:"),
    "bill unknown at the end": ("is_breach=is_breach, bill=session.bill", "is_breach=is_breach, bill=None"),
    "deadline never fires": ("now_ms < session.deadline_ms", "now_ms >= 0"),
    "deadline survives the end": ("return replace(after, deadline_ms=None)", "return after"),
    "billed before delivered": ("return after, (deliver, sign)", "return after, (sign, deliver)"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_small_world_catches(name: str) -> None:
    module = mutant("p2p.protocols.ask_payer", MUTANTS[name], admit=admit_once)
    with pytest.raises(AssertionError):
        explore(module, 5)


def test_the_small_world_says_everything() -> None:
    assert {type(message) for message in FROM_WORKER} == set(get_args(WorkerMessage))
    assert {type(command) for command in COMMANDS} == set(get_args(Command))
