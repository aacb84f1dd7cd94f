"""The money rules of an ask: both sides compute the same bill from the same facts.

A bill is a function of the ask, the quote and the tokens delivered so far, so a worker does not judge a bill
field by field: it makes its own and compares. Counts are the receiver's own; nobody's word is taken.
"""

from __future__ import annotations

from dataclasses import fields

from gossip_ledger.records import AccountId, Bill, NetworkId, RecordId, Signature
from gossip_ledger.signing import verify_bill
from p2p.messages import AskRequest, Refused, SignedBill, TokenId
from p2p.protocols.codes import BAD_QUOTE, BAD_TERMS, TOO_LONG, UNFUNDED
from p2p.protocols.commitments import output_commitment, prompt_commitment
from p2p.protocols.session import ProtocolError
from p2p.quotes import Quote, quote_id, quoted_fee, tokens_affordable


def compute_bill(payer: AccountId, request: AskRequest, quote: Quote, output: tuple[TokenId, ...]) -> Bill:
    """What the payer owes once `output` is delivered, in full. There is no bill before the first token."""
    assert output, "nothing is due before the first token"
    return Bill(
        payer=payer,
        open=request.open,
        ask=request.ask,
        model=request.model,
        quote=request.quote,
        answers=1,
        tokens_in=len(request.prompt),
        tokens_out=len(output),
        fee=quoted_fee(quote, len(request.prompt), len(output)),
        epoch=request.epoch,
        prompt_commit=prompt_commitment(request.salt, request.prompt),
        output_commit=output_commitment(request.salt, output),
    )


def compute_tokens_max(request: AskRequest, quote: Quote) -> int:
    """Most output tokens that may be delivered: the ask, the quote and both fee limits allow no more."""
    return tokens_affordable(
        quote, tokens_in=len(request.prompt), max_tokens=request.max_tokens, max_fee=request.max_fee
    )


def check_bill(
    signed: SignedBill,
    *,
    network: NetworkId,
    payer: AccountId,
    request: AskRequest,
    quote: Quote,
    delivered: tuple[TokenId, ...],
    billed: int,
) -> tuple[Bill, Signature]:
    """A bill that the worker may accept after `billed` tokens. Raises `ProtocolError` or `SignatureError`."""
    bill = signed.bill
    if bill.tokens_out <= billed:
        raise ProtocolError(f"a bill over {bill.tokens_out} tokens after one over {billed}: bills only rise")
    if bill.tokens_out > len(delivered):
        raise ProtocolError(f"a bill over {bill.tokens_out} tokens where {len(delivered)} were delivered")
    expected = compute_bill(payer, request, quote, delivered[: bill.tokens_out])
    if bill != expected:
        wrong = [f.name for f in fields(Bill) if getattr(bill, f.name) != getattr(expected, f.name)]
        raise ProtocolError(f"the bill is wrong in {', '.join(wrong)}")
    if bill.fee > request.max_fee:
        raise ProtocolError(f"the bill of {bill.fee} exceeds the maximum fee of {request.max_fee}")
    verify_bill(bill, signed.signature, network)
    return bill, signed.signature


def find_refusal(
    request: AskRequest,
    quote: Quote,
    *,
    network: NetworkId,
    payer: AccountId,
    worker: AccountId,
    epochs: tuple[int, int],
) -> Refused | None:
    """Why this ask cannot be served under this quote; None if it can. `epochs`: earliest and latest."""
    if (quote.worker, quote.payer, quote.model) != (worker, payer, request.model):
        return _refuse(BAD_QUOTE, "the quote is for another worker, payer or model")
    if quote_id(quote, network) != RecordId(request.quote):
        return _refuse(BAD_QUOTE, "the ask names another quote")
    if len(request.prompt) > quote.tokens_in_max:
        return _refuse(TOO_LONG, f"the prompt has {len(request.prompt)} tokens, {quote.tokens_in_max} quoted")
    if not epochs[0] <= request.epoch <= epochs[1]:
        return _refuse(BAD_TERMS, f"epoch {request.epoch} is not in {epochs[0]}..{epochs[1]}")
    if compute_tokens_max(request, quote) == 0:
        return _refuse(UNFUNDED, f"a maximum fee of {request.max_fee} does not pay for one token")
    return None


def _refuse(code: str, reason: str) -> Refused:
    return Refused(code=code, reason=reason, retry_after_ms=0)
