"""A payer, a worker and one small ask between them, for the tests of the protocols."""

from __future__ import annotations

import hashlib
from functools import cache

from nacl.signing import SigningKey

from gossip_ledger.errors import SignatureError
from gossip_ledger.records import (
    SIGNED_RECORDS,
    AccountId,
    Bill,
    ModelId,
    NetworkId,
    Receipt,
    RecordId,
    Signature,
    Signed,
)
from gossip_ledger.signing import countersign, sign_bill, verify_bill
from p2p.messages import AskRequest, SignedBill
from p2p.protocols.billing import compute_bill
from p2p.quotes import Quote, SignedQuote, quote_id, sign_quote


class Person:
    """A signer made from a name."""

    def __init__(self, name: str) -> None:
        self._key = SigningKey(hashlib.sha256(name.encode()).digest())
        self.account = AccountId(bytes(self._key.verify_key))

    def sign(self, message: bytes) -> Signature:
        return Signature(self._key.sign(message).signature)


NETWORK = NetworkId(bytes(range(32)))
PAYER = Person("payer")
WORKER = Person("worker")
STRANGER = Person("stranger")
MODEL = ModelId(hashlib.sha256(b"model").digest())
OPEN = RecordId(hashlib.sha256(b"open").digest())
EPOCH = 7
EPOCHS = (6, 8)
MAX_FEE = 49
"""Pays for 3 prompt tokens at 300 and 24 output tokens at 2000 per thousand (48.9), and for no more."""
TOKEN = 5
"""Every token of the engine in these tests, so that an output is known by its length."""


def make_quote(**changes: object) -> Quote:
    terms: dict[str, object] = {
        "worker": WORKER.account,
        "payer": PAYER.account,
        "model": MODEL,
        "quantization": "bf16",
        "price_in": 300,
        "price_out": 2000,
        "tokens_in_max": 64,
        "tokens_out_max": 64,
        "max_fee": 10_000,
        "nonce": 1,
        "expiry_s": 1000,
    }
    return Quote(**(terms | changes))  # pyright: ignore[reportArgumentType]


QUOTE: SignedQuote = sign_quote(make_quote(), WORKER, NETWORK)


def make_request(quote: Quote = QUOTE.quote, **changes: object) -> AskRequest:
    fields: dict[str, object] = {
        "open": OPEN,
        "ask": 99,
        "model": MODEL,
        "quote": quote_id(quote, NETWORK),
        "epoch": EPOCH,
        "prompt": (1, 2, 3),
        "max_tokens": 60,
        "temperature_milli": 0,
        "top_p_milli": 1000,
        "seed": 1,
        "max_fee": MAX_FEE,
        "salt": bytes(32),
        "records": (),
    }
    return AskRequest(**(fields | changes))  # pyright: ignore[reportArgumentType]


def bill_over(count: int, request: AskRequest, quote: Quote = QUOTE.quote) -> Bill:
    """The honest bill over `count` tokens."""
    return compute_bill(PAYER.account, request, quote, (TOKEN,) * count)


@cache
def signed(bill: Bill, by: Person = PAYER) -> SignedBill:
    """A bill with a signature, which may be a stranger's."""
    if by is PAYER:
        return SignedBill(bill=bill, signature=sign_bill(bill, PAYER, NETWORK))
    return SignedBill(bill=bill, signature=by.sign(b"not the bill"))


@cache
def _verdict(bill: Bill, signature: Signature, network: NetworkId) -> str | None:
    try:
        verify_bill(bill, signature, network)
    except SignatureError as error:
        return str(error)
    return None


def verify_bill_once(bill: Bill, signature: Signature, network: NetworkId) -> None:
    """`verify_bill`, remembering its verdicts: a small world meets the same few bills all the time."""
    verdict = _verdict(bill, signature, network)
    if verdict is not None:
        raise SignatureError(verdict)


@cache
def receipt_over(bill: Bill, worker: Person = WORKER) -> Signed:
    """The first receipt of the open, over `bill`."""
    receipt = Receipt(
        worker=worker.account, n=1, prev=bill.open, cumulative=bill.fee, bill=bill, evidence=(), sketch=b""
    )
    return countersign(receipt, sign_bill(bill, PAYER, NETWORK), worker, NETWORK)


def receipt_bytes(bill: Bill, worker: Person = WORKER) -> bytes:
    return SIGNED_RECORDS.encode(receipt_over(bill, worker))
