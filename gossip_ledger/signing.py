"""Ids and signatures: what is hashed, what is signed, and which signatures count.

Every id and signature is bound to a **kind** and a **network**: `message` puts both before the canonical
bytes, so nothing signed for one purpose or network means anything elsewhere.

The rule for Ed25519 is stated here rather than left to a library, because libraries differ: the key and R are
canonical encodings and not of small order, S < L, and the cofactorless equation holds. Our own checks come
first, libsodium's after.

Left out: making keys and signatures (the shell's, behind `Signer`), and what records mean.
"""

from __future__ import annotations

import hashlib
from typing import Final, NewType, Protocol, cast

from nacl.bindings import crypto_core_ed25519_is_valid_point, crypto_sign_open
from nacl.exceptions import BadSignatureError

from gossip_ledger.errors import SignatureError
from gossip_ledger.records import (
    BILLS,
    MANIFESTS,
    RECORDS,
    SIGNED_RECORDS,
    AccountId,
    Ack,
    Bill,
    BlobId,
    Entry,
    Manifest,
    ModelId,
    NetworkId,
    Receipt,
    Record,
    RecordId,
    Release,
    Signature,
    Signed,
)

Digest = NewType("Digest", bytes)
"""SHA-256 over a domain-separated message, 32 bytes."""

PREFIX: Final = b"upkeep/1/"
BILL_KIND: Final = "bill"
_KINDS: Final[dict[type, str]] = {Entry: "entry", Receipt: "receipt", Release: "release", Ack: "ack"}

_FIELD_PRIME: Final = 2**255 - 19
_GROUP_ORDER: Final = 2**252 + 27742317777372353535851937790883648493
_SIGN_BIT: Final = 1 << 255
_ORDER_8: Final = int.from_bytes(
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"
)
_SMALL_ORDER: Final = frozenset({0, 1, _FIELD_PRIME - 1, _ORDER_8, _FIELD_PRIME - _ORDER_8})
"""The y coordinates of the eight points whose order divides 8."""

_SIGNED_HEAD: Final = 2
"""Encoded bytes of a signed record before the record: the array's head and its tag."""
_SIGNATURE_FIELD: Final = 66
"""Encoded bytes of one signature."""


class Signer(Protocol):
    """Whoever holds a private key."""

    @property
    def account(self) -> AccountId:
        """The public key that the signatures verify under."""
        ...

    def sign(self, message: bytes) -> Signature:
        """The Ed25519 signature over `message`."""
        ...


def message(kind: str, network: NetworkId, body: bytes) -> bytes:
    """What is signed, and hashed into an id: kind, network and canonical bytes, each unmistakable."""
    assert kind.isascii(), kind
    assert "\0" not in kind, kind
    assert len(network) in (0, 32), "a network id has 32 bytes; a genesis has no network yet"
    return b"%s%s\0%c%s%s" % (PREFIX, kind.encode(), len(network), network, body)


def digest(kind: str, network: NetworkId, body: bytes) -> Digest:
    """The id of a value: SHA-256 of its `message`."""
    return Digest(hashlib.sha256(message(kind, network, body)).digest())


def record_kind(record: Record) -> str:
    """`entry`, `receipt`, `release` or `ack`."""
    return _KINDS[type(record)]


def author_of(record: Record) -> AccountId:
    """Whose last signature makes the record: author, worker or witness."""
    match record:
        case Entry(author=account) | Release(author=account) | Receipt(worker=account) | Ack(witness=account):
            return account


def record_id(record: Record, network: NetworkId) -> RecordId:
    """The id of a record; its signatures, and a receipt's payer's, are no part of it."""
    return RecordId(digest(record_kind(record), network, RECORDS.encode(record)))


def blob_id(data: bytes) -> BlobId:
    """Plain SHA-256."""
    return BlobId(hashlib.sha256(data).digest())


def model_id(manifest: Manifest) -> ModelId:
    """The id of a manifest is the id of its blob, so it is fetched like any other."""
    return ModelId(blob_id(MANIFESTS.encode(manifest)))


def verify(account: AccountId, signature: Signature, message: bytes) -> None:
    """Raises `SignatureError` unless `signature` by `account` over `message` counts."""
    if len(account) != 32 or len(signature) != 64:
        raise SignatureError("a key has 32 bytes and a signature 64")
    _check_point(account, "key")
    _check_point(signature[:32], "signature")
    if int.from_bytes(signature[32:], "little") >= _GROUP_ORDER:
        raise SignatureError("the signature is not canonical")
    try:
        crypto_sign_open(signature + message, account)
    except BadSignatureError as error:
        raise SignatureError("the signature does not match") from error


def check_account(account: AccountId) -> None:
    """Raises `SignatureError` where nobody can hold the key of `account`: money sent there would be lost."""
    _check_point(account, "account")
    if not crypto_core_ed25519_is_valid_point(account):
        raise SignatureError("the account is no point of the curve")


def _check_point(encoded: bytes, what: str) -> None:
    y = int.from_bytes(encoded, "little") & ~_SIGN_BIT
    if y >= _FIELD_PRIME:
        raise SignatureError(f"the {what} is not canonical")
    if y in _SMALL_ORDER:
        raise SignatureError(f"the {what} is of small order")


def sign_record(record: Entry | Release | Ack, signer: Signer, network: NetworkId) -> Signed:
    """The record with its author's signature. Receipts need two: see `countersign`."""
    assert author_of(record) == signer.account, "only the author signs a record"
    body = message(record_kind(record), network, RECORDS.encode(record))
    return Signed(record=record, signatures=(signer.sign(body),))


def sign_bill(bill: Bill, signer: Signer, network: NetworkId) -> Signature:
    """The payer's signature over a bill."""
    assert bill.payer == signer.account, "only the payer signs a bill"
    return signer.sign(message(BILL_KIND, network, BILLS.encode(bill)))


def verify_bill(bill: Bill, signature: Signature, network: NetworkId) -> None:
    """Raises `SignatureError` unless the bill's payer signed it."""
    verify(bill.payer, signature, message(BILL_KIND, network, BILLS.encode(bill)))


def countersign(receipt: Receipt, bill_signature: Signature, signer: Signer, network: NetworkId) -> Signed:
    """The receipt with the payer's signature over its bill and the worker's over all of it."""
    assert receipt.worker == signer.account, "only the worker signs a receipt"
    body = message(record_kind(receipt), network, RECORDS.encode(receipt))
    return Signed(record=receipt, signatures=(bill_signature, signer.sign(body)))


def verify_signed(signed: Signed, network: NetworkId) -> RecordId:
    """The id of a record whose signatures all count. Raises `SignatureError`."""
    return _verify(signed, RECORDS.encode(signed.record), network)


def admit(data: bytes, network: NetworkId) -> tuple[RecordId, Signed]:
    """Foreign bytes as a record whose signatures all count: decoded and verified in one go.

    Raises `DecodeError` or `SignatureError`. Faster than decoding and `verify_signed`: an accepted encoding
    is canonical, so the record's own bytes stand in it and need not be made again.
    """
    signed = cast("Signed", SIGNED_RECORDS.decode(data))
    tail = 1 + _SIGNATURE_FIELD * len(signed.signatures)
    return _verify(signed, data[_SIGNED_HEAD:-tail], network), signed


def _verify(signed: Signed, body: bytes, network: NetworkId) -> RecordId:
    record = signed.record
    framed = message(record_kind(record), network, body)
    if isinstance(record, Receipt):
        verify_bill(record.bill, signed.signatures[0], network)
    verify(author_of(record), signed.signatures[-1], framed)
    return RecordId(hashlib.sha256(framed).digest())
