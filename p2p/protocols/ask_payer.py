"""The payer's side of one ask: counts what it gets, signs what it owes, and stops at its maximum.

    session = PayerSession.start(network=network, payer=me, worker=stream.remote)
    session, effects = step(session, Ask(request=request, quote=quote), now_ms)
    while not session.is_over:
        for effect in effects:                # in order, each completely before the next
            match effect:
                case Send(message=m):         await channel.send(TO_WORKER.encode(m))
                case SignBill(bill=b):        await channel.send(TO_WORKER.encode(SignedBill(bill=b, ...)))
                case QuoteArrived(quote=q):   ...   # `check_quote`, then the event `Ask` or `Stop`
                case Deliver(ids=ids):        ...   # to the person who asked
                case Ended():                 ...   # the answer is complete; only the receipt is outstanding
                case Finish() | Abort():      ...   # the last one; `effect.bill` is all that can be owed
        event = TO_PAYER.decode(await channel.receive(...)), or Lost, Timeout, Stop
        session, effects = step(session, event, now_ms)

Before `Ask` the caller has reserved `request.max_fee` durably under a fresh ask number. Afterwards `bill` of
`Finish` or `Abort` says what remains of it: nothing is owed without a bill, at most `bill.fee` with one, and
exactly that with a receipt. A bill is signed after the first token, then whenever `BILL_EVERY_TOKENS` are
unbilled, and at the end over all that was delivered.
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from gossip_ledger.errors import RemoteError
from gossip_ledger.records import Receipt
from gossip_ledger.signing import admit
from p2p.messages import (
    Accepted,
    Cancel,
    Done,
    Failed,
    Quoted,
    Refused,
    Settled,
    Tokens,
    WorkerMessage,
)
from p2p.protocols.ask_payer_state import (
    NEXT,
    WAITS_MS,
    Abort,
    Ask,
    Command,
    Deliver,
    Effect,
    Ended,
    Event,
    Finish,
    PayerSession,
    Phase,
    QuoteArrived,
    RequestQuote,
    SignBill,
    Step,
    Stop,
)
from p2p.protocols.billing import compute_bill, compute_tokens_max
from p2p.protocols.limits import (
    BILL_EVERY_TOKENS,
    CHUNK_TOKENS,
)
from p2p.protocols.session import Lost, ProtocolError, Send, Timeout
from p2p.quotes import quote_id


def step(session: PayerSession, event: Event, now_ms: int) -> Step:
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
        if isinstance(event, Command | Lost | Timeout):
            after, effects = _take_local(session, event)
        else:
            after, effects = _take_message(session, event)
    except RemoteError as error:
        return _abort(session, str(error), is_breach=True)
    assert after.phase in allowed, (session.phase, event, after.phase)
    return _with_deadline(session, after, event, now_ms), effects


def _with_deadline(before: PayerSession, after: PayerSession, event: Event, now_ms: int) -> PayerSession:
    """Progress renews the deadline; a cancellation is given its time once."""
    wait_ms = WAITS_MS.get(after.phase)
    if wait_ms is None:
        return replace(after, deadline_ms=None)
    is_same = before.phase is after.phase
    if is_same and (isinstance(event, Stop) or after.phase is Phase.CANCELLING):
        return after
    return replace(after, deadline_ms=now_ms + wait_ms)


def _take_local(session: PayerSession, event: Command | Lost | Timeout) -> Step:
    match event:
        case RequestQuote(request=request):
            return replace(session, phase=Phase.QUOTING), (Send(message=request),)
        case Ask():
            return _ask(session, event)
        case Stop():
            return _stop(session)
        case Lost(reason=reason):
            return _leave(session, reason)
        case Timeout():
            return _leave(session, f"the worker was silent too long while {session.phase.name.lower()}")
        case _:
            assert_never(event)


def _take_message(session: PayerSession, message: WorkerMessage) -> Step:
    match message:
        case Quoted(quote=quote):
            return replace(session, phase=Phase.QUOTED), (QuoteArrived(quote=quote),)
        case Refused(code=code, reason=reason, retry_after_ms=retry):
            if session.output:
                raise ProtocolError("a refusal after tokens")
            refusal = Finish(reason="refused", code=code, detail=reason, retry_after_ms=retry)
            return replace(session, phase=Phase.DONE), (refusal,)
        case Accepted():
            is_stopping = session.phase is Phase.CANCELLING
            return replace(session, phase=Phase.CANCELLING if is_stopping else Phase.WAITING), ()
        case Tokens():
            return _take_tokens(session, message)
        case Done(reason=reason):
            if reason == "cancelled" and session.phase is not Phase.CANCELLING:
                raise ProtocolError("the worker cancelled what we did not")
            return _end(session, message, Finish(reason=reason))
        case Failed(code=code, reason=reason):
            return _end(session, message, Finish(reason="failed", code=code, detail=reason))
        case Settled(receipt=data):
            return _settle(session, data)
        case _:
            assert_never(message)


def _ask(session: PayerSession, event: Ask) -> Step:
    request, quote = event.request, event.quote.quote
    assert (quote.payer, quote.worker, quote.model) == (session.payer, session.worker, request.model)
    assert request.quote == quote_id(quote, session.network), "the ask names another quote"
    after = replace(
        session,
        phase=Phase.ASKED,
        request=request,
        quote=quote,
        tokens_max=compute_tokens_max(request, quote),
    )
    return after, (Send(message=request),)


def _take_tokens(session: PayerSession, tokens: Tokens) -> Step:
    output = session.output + tokens.ids
    if tokens.first != len(session.output):
        raise ProtocolError(f"tokens from {tokens.first} on where {len(session.output)} was next")
    if max(tokens.ids) >= session.vocabulary:
        raise ProtocolError("a token that the model does not have")
    if len(output) > session.tokens_max:
        raise ProtocolError(f"more tokens than the {session.tokens_max} that were asked and paid for")
    if len(output) > session.billed + CHUNK_TOKENS:
        raise ProtocolError("more than one chunk beyond the last bill")
    is_stopping = session.phase is Phase.CANCELLING
    after = replace(session, phase=Phase.CANCELLING if is_stopping else Phase.STREAMING, output=output)
    deliver = Deliver(ids=tokens.ids)
    if session.bill is not None and len(output) - session.billed < BILL_EVERY_TOKENS:
        return after, (deliver,)
    after, sign = _sign(after)
    return after, (deliver, sign)


def _sign(session: PayerSession) -> tuple[PayerSession, SignBill]:
    assert session.request is not None
    assert session.quote is not None
    bill = compute_bill(session.payer, session.request, session.quote, session.output)
    assert bill.fee <= session.request.max_fee, "a payer never signs above its maximum"
    assert session.bill is None or bill.fee >= session.bill.fee, "bills only rise"
    return replace(session, bill=bill), SignBill(bill=bill)


def _end(session: PayerSession, message: Done | Failed, ending: Finish) -> Step:
    """The worker's last count; ours must agree, and the last bill covers all that came."""
    assert session.request is not None
    if (message.tokens_in, message.tokens_out) != (len(session.request.prompt), len(session.output)):
        raise ProtocolError(
            f"the worker counts {message.tokens_in} + {message.tokens_out} tokens, "
            f"we count {len(session.request.prompt)} + {len(session.output)}"
        )
    if not session.output:
        return replace(session, phase=Phase.DONE), (ending,)
    effects: tuple[Effect, ...] = ()
    if session.billed < len(session.output):
        session, sign = _sign(session)
        effects = (sign,)
    after = replace(session, phase=Phase.SETTLING, ending=replace(ending, bill=session.bill))
    return after, (*effects, Ended(reason=ending.reason))


def _settle(session: PayerSession, data: bytes) -> Step:
    """The receipt must be this worker's, over exactly our last bill, with both signatures."""
    _, signed = admit(data, session.network)
    receipt = signed.record
    if not isinstance(receipt, Receipt) or receipt.worker != session.worker:
        raise ProtocolError("what settles an ask is a receipt of its worker")
    if receipt.bill != session.bill:
        raise ProtocolError("the receipt is not over our last bill")
    assert session.ending is not None
    return replace(session, phase=Phase.DONE), (replace(session.ending, receipt=signed),)


def _stop(session: PayerSession) -> Step:
    match session.phase:
        case Phase.IDLE | Phase.QUOTING | Phase.QUOTED:
            return replace(session, phase=Phase.DONE), (Finish(reason="quoted"),)
        case Phase.CANCELLING | Phase.SETTLING:
            return session, ()
        case _:
            return replace(session, phase=Phase.CANCELLING), (Send(message=Cancel()),)


def _leave(session: PayerSession, reason: str) -> Step:
    """The worker is gone. After its last count the answer stands; the receipt may still come by gossip."""
    if session.phase is Phase.SETTLING:
        assert session.ending is not None
        return replace(session, phase=Phase.DONE), (replace(session.ending, detail=reason),)
    return _abort(session, reason, is_breach=False)


def _abort(session: PayerSession, reason: str, *, is_breach: bool) -> Step:
    after = replace(session, phase=Phase.ABORTED, deadline_ms=None)
    return after, (Abort(reason=reason, is_breach=is_breach, bill=session.bill),)
