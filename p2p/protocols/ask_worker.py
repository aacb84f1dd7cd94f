"""The worker's side of one ask: delivers no more than it may lose, and settles what was signed.

    session = WorkerSession.start(network=network, worker=me, payer=stream.remote, now_ms=now_ms)
    while not session.is_over:
        event = TO_WORKER.decode(await channel.receive(...)), or what the engine, the books or the clock say
        session, effects = step(session, event, now_ms)
        for effect in effects:                # in order, each completely before the next
            match effect:
                case Send(message=m):         await channel.send(TO_PAYER.encode(m))
                case PrepareQuote():          ...   # then the event `QuoteReady` or `Refuse`
                case Admit(request=r):        ...   # ledger, books, queue; then `Accept` or `Refuse`
                case StartEngine(...):        ...   # then `Produced`, and `EngineDone` or `EngineFailed`
                case StopEngine():            ...   # the engine may stop generating
                case StoreBill(...):          ...   # durable on return: the next chunk leaves only after it
                case Settle(...):             ...   # countersign and publish; then `ReceiptReady`
                case Finish() | Abort():      ...   # the last one; without `bill` nothing is owed

A worker delivers at most `CHUNK_TOKENS` beyond the last bill that it accepted, so a payer that vanishes costs
one prefill and one chunk. `Settle` comes at most once, for the last accepted bill, also when the payer is
lost or breaks the protocol: then `Abort` follows it and nobody waits for `ReceiptReady`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, assert_never

from gossip_ledger.errors import RemoteError
from gossip_ledger.records import SIGNED_RECORDS, Receipt, Signed
from p2p.messages import (
    Accepted,
    AskRequest,
    Cancel,
    Done,
    Failed,
    PayerMessage,
    Quoted,
    QuoteRequest,
    Refused,
    Settled,
    SignedBill,
    TokenId,
    Tokens,
    WorkerMessage,
)
from p2p.protocols.ask_worker_state import (
    NEXT,
    WAITS_MS,
    Abort,
    Accept,
    Admit,
    Command,
    Effect,
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
    Step,
    StopEngine,
    StoreBill,
    WorkerSession,
)
from p2p.protocols.billing import check_bill, compute_tokens_max, find_refusal
from p2p.protocols.codes import BUSY, ENGINE
from p2p.protocols.limits import (
    BILL_MS,
    CHUNK_TOKENS,
    FIRST_TOKEN_MS,
    QUOTE_MS,
    RETRY_AFTER_MS_MAX,
    TOKEN_MS,
)
from p2p.protocols.session import Lost, Send, Timeout

_DELIVERING: Final = (Phase.SERVING, Phase.DRAINING)


def step(session: WorkerSession, event: Event, now_ms: int) -> Step:
    """What follows from one event at the monotonic time `now_ms`. Raises nothing; see `session.py`."""
    if session.is_over:
        return session, ()
    if isinstance(event, Timeout) and (session.deadline_ms is None or now_ms < session.deadline_ms):
        return session, ()
    allowed = NEXT.get((session.phase, type(event)))
    if allowed is None:
        assert not isinstance(event, Command), f"{event!r} has no place in {session.phase}"
        return _abort(session, f"unexpected {type(event).__name__} in {session.phase.name}", is_breach=True)
    try:
        if isinstance(event, Command):
            after, effects = _take_command(session, event)
        elif isinstance(event, Lost):
            after, effects = _take_loss(session, event.reason)
        elif isinstance(event, Timeout):
            after, effects = _take_timeout(session)
        else:
            after, effects = _take_message(session, event)
    except RemoteError as error:
        return _abort(session, str(error), is_breach=True)
    assert after.phase in allowed, (session.phase, event, after.phase)
    return _with_deadline(session, after, event, now_ms), effects


def _with_deadline(before: WorkerSession, after: WorkerSession, event: Event, now_ms: int) -> WorkerSession:
    """While blocked the time runs against the payer, and only a bill renews it; else against the engine."""
    if after.is_over:
        return replace(after, deadline_ms=None)
    is_same = before.phase is after.phase
    was_blocked = before.phase in _DELIVERING and before.is_blocked
    if after.phase in _DELIVERING and after.is_blocked:
        is_late_already = was_blocked and after.billed == before.billed
        return after if is_late_already else replace(after, deadline_ms=now_ms + BILL_MS)
    if after.phase is Phase.SERVING:
        if is_same and not was_blocked and not isinstance(event, Produced):
            return after
        return replace(after, deadline_ms=now_ms + (TOKEN_MS if after.output else FIRST_TOKEN_MS))
    return after if is_same else replace(after, deadline_ms=now_ms + WAITS_MS[after.phase])


def _take_message(session: WorkerSession, message: PayerMessage) -> Step:
    match message:
        case QuoteRequest():
            return replace(session, phase=Phase.QUOTING), (PrepareQuote(request=message),)
        case AskRequest():
            after = replace(session, phase=Phase.ADMITTING, request=message)
            return after, (Admit(request=message),)
        case SignedBill():
            return _take_bill(session, message)
        case Cancel():
            return _take_cancel(session)
        case _:
            assert_never(message)


def _take_command(session: WorkerSession, command: Command) -> Step:
    match command:
        case QuoteReady(quote=quote):
            return replace(session, phase=Phase.QUOTED), (Send(message=Quoted(quote=quote)),)
        case Refuse():
            retry_after_ms = min(command.retry_after_ms, RETRY_AFTER_MS_MAX)
            return _refuse(
                session,
                Refused(code=command.code, reason=command.reason, retry_after_ms=retry_after_ms),
            )
        case Accept():
            return _accept(session, command)
        case Produced(ids=ids):
            return _take_produced(session, ids)
        case EngineDone(reason="stop" | "length" as reason):
            return _take_ending(session, Done(reason=reason, tokens_in=0, tokens_out=0))
        case EngineDone(reason=reason):
            failed = Failed(code=ENGINE, reason=f"the engine gave up: {reason}", tokens_in=0, tokens_out=0)
            return _take_ending(session, failed)
        case EngineFailed(code=code, reason=reason):
            return _take_ending(session, Failed(code=code, reason=reason, tokens_in=0, tokens_out=0))
        case ReceiptReady(signed=signed):
            return _finish_settled(session, signed)
        case _:
            assert_never(command)


def _accept(session: WorkerSession, accept: Accept) -> Step:
    assert session.request is not None
    refusal = find_refusal(
        session.request,
        accept.quote,
        network=session.network,
        payer=session.payer,
        worker=session.worker,
        epochs=accept.epochs,
    )
    if refusal is not None:
        return _refuse(session, refusal)
    tokens_max = compute_tokens_max(session.request, accept.quote)
    after = replace(session, phase=Phase.SERVING, quote=accept.quote, tokens_max=tokens_max)
    return after, (
        Send(message=Accepted(waiting=accept.waiting)),
        StartEngine(request=session.request, tokens_max=tokens_max),
    )


def _refuse(session: WorkerSession, refused: Refused) -> Step:
    finish = Finish(reason="refused", detail=refused.reason)
    return replace(session, phase=Phase.DONE), (Send(message=refused), finish)


def _take_produced(session: WorkerSession, ids: tuple[TokenId, ...]) -> Step:
    if session.phase is not Phase.SERVING:
        return session, ()
    room = session.tokens_max - len(session.output) - len(session.pending)
    session, sent = _deliver(replace(session, pending=session.pending + ids[:room]))
    if len(ids) <= room:
        return session, sent
    after, effects = _take_ending(session, Done(reason="length", tokens_in=0, tokens_out=0))
    return after, (StopEngine(), *sent, *effects)


def _deliver(session: WorkerSession) -> tuple[WorkerSession, tuple[Effect, ...]]:
    """Sends what the last accepted bill allows."""
    room = session.billed + CHUNK_TOKENS - len(session.output)
    ids = session.pending[:room]
    if not ids:
        return session, ()
    tokens = Tokens(first=len(session.output), ids=ids)
    after = replace(session, output=session.output + ids, pending=session.pending[room:])
    return after, (Send(message=tokens),)


def _take_ending(session: WorkerSession, ending: Done | Failed) -> Step:
    if session.phase is not Phase.SERVING:
        return session, ()
    return _drain(replace(session, phase=Phase.DRAINING, ending=ending))


def _drain(session: WorkerSession) -> Step:
    """Once nothing is pending, says the counts and moves on to the last bill."""
    if session.pending:
        return session, ()
    assert session.request is not None
    assert session.ending is not None
    ending = replace(session.ending, tokens_in=len(session.request.prompt), tokens_out=len(session.output))
    send: Send[WorkerMessage] = Send(message=ending)
    if not session.output:
        after = replace(session, phase=Phase.DONE, ending=ending)
        return after, (send, Finish(reason=_reason(ending), detail=_detail(ending)))
    after, effects = _close(replace(session, phase=Phase.CLOSING, ending=ending))
    return after, (send, *effects)


def _close(session: WorkerSession) -> Step:
    """Settles once the accepted bill covers all that was delivered."""
    if session.billed < len(session.output):
        return session, ()
    return replace(session, phase=Phase.SETTLING), _settlement(session)


def _settlement(session: WorkerSession) -> tuple[Effect, ...]:
    if session.bill is None or session.signature is None:
        return ()
    covered = session.output[: session.billed]
    return (Settle(bill=session.bill, signature=session.signature, output=covered),)


def _take_bill(session: WorkerSession, signed: SignedBill) -> Step:
    """Accepts a bill, which makes room for the next chunk or completes the answer."""
    assert session.request is not None
    assert session.quote is not None
    bill, signature = check_bill(
        signed,
        network=session.network,
        payer=session.payer,
        request=session.request,
        quote=session.quote,
        delivered=session.output,
        billed=session.billed,
    )
    store = StoreBill(bill=bill, signature=signature, output=session.output[: bill.tokens_out])
    session = replace(session, bill=bill, signature=signature)
    if session.phase is Phase.CLOSING:
        after, effects = _close(session)
        return after, (store, *effects)
    session, sent = _deliver(session)
    if session.phase is Phase.SERVING:
        return session, (store, *sent)
    after, effects = _drain(session)
    return after, (store, *sent, *effects)


def _take_cancel(session: WorkerSession) -> Step:
    """The payer wants no more. What was delivered is still to be billed."""
    match session.phase:
        case Phase.CLOSING | Phase.SETTLING:
            return session, ()
        case Phase.LISTENING | Phase.QUOTING | Phase.QUOTED:
            return replace(session, phase=Phase.DONE), (Finish(reason="quoted"),)
        case _:
            ending = Done(reason="cancelled", tokens_in=0, tokens_out=0)
            after, effects = _drain(replace(session, pending=(), ending=ending))
            stop = (StopEngine(),) if session.phase is Phase.SERVING else ()
            return after, (*stop, *effects)


def _finish_settled(session: WorkerSession, signed: Signed) -> Step:
    receipt = signed.record
    assert isinstance(receipt, Receipt)
    assert receipt.bill == session.bill, "the receipt must be over the last bill"
    assert session.ending is not None
    finish = Finish(
        reason=_reason(session.ending), detail=_detail(session.ending), bill=session.bill, receipt=signed
    )
    settled = Settled(receipt=SIGNED_RECORDS.encode(signed))
    return replace(session, phase=Phase.DONE), (Send(message=settled), finish)


def _take_loss(session: WorkerSession, reason: str) -> Step:
    if session.phase in (Phase.LISTENING, Phase.QUOTING, Phase.QUOTED):
        return replace(session, phase=Phase.DONE), (Finish(reason="quoted", detail=reason),)
    return _abort(session, reason, is_breach=False)


def _take_timeout(session: WorkerSession) -> Step:
    match session.phase:
        case Phase.QUOTING | Phase.ADMITTING:
            return _refuse(
                session, Refused(code=BUSY, reason="no answer in time; try later", retry_after_ms=QUOTE_MS)
            )
        case Phase.SERVING if not session.is_blocked:
            failed = Failed(code=ENGINE, reason="the engine was silent too long", tokens_in=0, tokens_out=0)
            after, effects = _take_ending(session, failed)
            return after, (StopEngine(), *effects)
        case Phase.SETTLING:
            return _abort(session, "the receipt was not ready in time", is_breach=False)
        case _:
            late = session.phase.name.lower()
            return _abort(session, f"the payer was silent too long while {late}", is_breach=False)


def _abort(session: WorkerSession, reason: str, *, is_breach: bool) -> Step:
    """Gives up on the payer, but not on what it signed."""
    after = replace(session, phase=Phase.ABORTED, deadline_ms=None, pending=())
    effects: tuple[Effect, ...] = ()
    if session.phase is Phase.SERVING:
        effects = (StopEngine(),)
    if session.phase is not Phase.SETTLING:
        effects += _settlement(session)
    return after, (*effects, Abort(reason=reason, is_breach=is_breach, bill=session.bill))


def _reason(ending: Done | Failed) -> str:
    return ending.reason if isinstance(ending, Done) else "failed"


def _detail(ending: Done | Failed) -> str:
    return ending.reason if isinstance(ending, Failed) else ""
