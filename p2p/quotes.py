"""Signed prices: what binds payer, worker and model before an ask.

A quote's id is in every bill under it, so both sides and every auditor compute the same fee. Everything
here is a pure function of the quote; whether a worker *wants* to quote is its own affair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

from gossip_ledger.amounts import fee
from gossip_ledger.codec import Schema, Table, nested, octets, text, uint
from gossip_ledger.errors import RemoteError
from gossip_ledger.records import AccountId, MicroUnits, ModelId, NetworkId, RecordId, Signature
from gossip_ledger.signing import Signer, digest, message, verify
from p2p.protocols.limits import CODE_BYTES_MAX, OUTPUT_TOKENS_MAX, PROMPT_TOKENS_MAX, QUOTE_TTL_S_MAX

KIND: Final = "quote"
QUOTE_BYTES_MAX: Final = 1024
"""Largest encoded quote, signature included."""


class QuoteError(RemoteError):
    """A quote that does not hold for this ask. The message says why."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """What one worker asks of one payer for one model, until it expires."""

    worker: AccountId
    payer: AccountId
    model: ModelId
    quantization: str
    """`bf16`, `nf4`, `int8` or `fp32`: how the base is held."""
    price_in: MicroUnits
    """Per 1,000 prompt tokens."""
    price_out: MicroUnits
    """Per 1,000 output tokens."""
    tokens_in_max: int
    tokens_out_max: int
    max_fee: MicroUnits
    """Most that one ask under this quote may cost."""
    nonce: int
    """Random, so that equal terms at different times are different quotes."""
    expiry_s: int
    """Unix seconds after which no new ask may name it."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SignedQuote:
    """A quote with the worker's signature."""

    quote: Quote
    signature: Signature


_id = octets(32)
_price = uint()

QUOTE = Table(
    1,
    Quote,
    (
        ("worker", _id),
        ("payer", _id),
        ("model", _id),
        ("quantization", text(CODE_BYTES_MAX)),
        ("price_in", _price),
        ("price_out", _price),
        ("tokens_in_max", uint(PROMPT_TOKENS_MAX)),
        ("tokens_out_max", uint(OUTPUT_TOKENS_MAX)),
        ("max_fee", uint()),
        ("nonce", uint()),
        ("expiry_s", uint()),
    ),
)
SIGNED_QUOTE = Table(2, SignedQuote, (("quote", nested(QUOTE)), ("signature", octets(64))))

QUOTES = Schema(QUOTE, bytes_max=QUOTE_BYTES_MAX)
"""Quotes without signatures: what ids and signatures are taken over."""
SIGNED_QUOTES = Schema(SIGNED_QUOTE, bytes_max=QUOTE_BYTES_MAX)
"""Signed quotes on their own, for storing them."""


def quote_id(quote: Quote, network: NetworkId) -> RecordId:
    """The id that bills and asks name a quote by."""
    return RecordId(digest(KIND, network, QUOTES.encode(quote)))


def sign_quote(quote: Quote, signer: Signer, network: NetworkId) -> SignedQuote:
    """`quote` with the signature of its worker, who must be `signer`."""
    assert quote.worker == signer.account, "a worker signs its own quotes only"
    return SignedQuote(quote=quote, signature=signer.sign(message(KIND, network, QUOTES.encode(quote))))


def verify_quote(signed: SignedQuote, network: NetworkId) -> RecordId:
    """The id of a quote whose signature holds. Raises `SignatureError`."""
    verify(signed.quote.worker, signed.signature, message(KIND, network, QUOTES.encode(signed.quote)))
    return quote_id(signed.quote, network)


def check_quote(
    signed: SignedQuote,
    *,
    network: NetworkId,
    worker: AccountId,
    payer: AccountId,
    model: ModelId,
    now_s: int,
) -> RecordId:
    """The id of a quote that these two may use now. Raises `QuoteError` or `SignatureError`."""
    quote = signed.quote
    if quote.worker != worker:
        raise QuoteError("the quote names another worker")
    if quote.payer != payer:
        raise QuoteError("the quote names another payer")
    if quote.model != model:
        raise QuoteError("the quote is for another model")
    if quote.expiry_s <= now_s:
        raise QuoteError("the quote has expired")
    if quote.expiry_s > now_s + QUOTE_TTL_S_MAX:
        raise QuoteError(f"the quote lives longer than {QUOTE_TTL_S_MAX} s: a clock is wrong")
    return verify_quote(signed, network)


def quoted_fee(quote: Quote, tokens_in: int, tokens_out: int) -> MicroUnits:
    """What these counts cost under `quote`. Nothing is due before the first output token."""
    if tokens_out == 0:
        return 0
    return fee(tokens_in, tokens_out, quote.price_in, quote.price_out)


def tokens_affordable(quote: Quote, *, tokens_in: int, max_tokens: int, max_fee: MicroUnits) -> int:
    """Most output tokens, up to `max_tokens`, that `quote` and `max_fee` allow; 0 for none."""
    most = min(max_tokens, quote.tokens_out_max)
    budget = 1000 * min(max_fee, quote.max_fee) - tokens_in * quote.price_in
    if budget < quote.price_out:
        return 0
    return min(most, budget // quote.price_out) if quote.price_out else most
