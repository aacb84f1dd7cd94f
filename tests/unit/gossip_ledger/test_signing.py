"""Ids and signatures: bound to kind and network, and one rule for which count."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from nacl.bindings import (
    crypto_core_ed25519_add,
    crypto_scalarmult_ed25519_base_noclamp,
    crypto_sign_seed_keypair,
)

from gossip_ledger.errors import DecodeError, SignatureError
from gossip_ledger.records import (
    BILLS,
    MANIFESTS,
    RECORDS,
    SIGNED_RECORDS,
    AccountId,
    NetworkId,
    Receipt,
    Signature,
)
from gossip_ledger.signing import (
    admit,
    check_account,
    digest,
    message,
    model_id,
    record_id,
    record_kind,
    sign_bill,
    verify,
    verify_bill,
    verify_signed,
)
from tests.unit.gossip_ledger.build import (
    EXAMPLES,
    ID,
    MANIFEST,
    NETWORK,
    OTHER_NETWORK,
    PAYER,
    bill,
    receipt,
    sign,
)

ORDER = 2**252 + 27742317777372353535851937790883648493
PRIME = 2**255 - 19
ORDER_8 = bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")
MESSAGE = b"what is signed"


@pytest.mark.parametrize("record", EXAMPLES, ids=record_kind)
def test_what_is_signed_is_admitted(record: object) -> None:
    signed = sign(record)  # pyright: ignore[reportArgumentType]
    data = SIGNED_RECORDS.encode(signed)
    assert admit(data, NETWORK) == (record_id(signed.record, NETWORK), signed)
    assert verify_signed(signed, NETWORK) == record_id(signed.record, NETWORK)


@pytest.mark.parametrize("record", EXAMPLES, ids=record_kind)
def test_nothing_counts_on_another_network(record: object) -> None:
    signed = sign(record)  # pyright: ignore[reportArgumentType]
    assert record_id(signed.record, NETWORK) != record_id(signed.record, OTHER_NETWORK)
    with pytest.raises(SignatureError, match="does not match"):
        admit(SIGNED_RECORDS.encode(signed), OTHER_NETWORK)


@pytest.mark.parametrize("record", EXAMPLES, ids=record_kind)
def test_one_flipped_bit_in_any_signature_is_noticed(record: object) -> None:
    signed = sign(record)  # pyright: ignore[reportArgumentType]
    for place in range(len(signed.signatures)):
        for bit in (0, 200, 300, 504):
            flipped = bytearray(signed.signatures[place])
            flipped[bit // 8] ^= 1 << bit % 8
            signatures = list(signed.signatures)
            signatures[place] = Signature(bytes(flipped))
            with pytest.raises(SignatureError):
                verify_signed(replace(signed, signatures=tuple(signatures)), NETWORK)


def test_ids_ignore_signatures_and_the_message_names_kind_and_network() -> None:
    signed = sign(EXAMPLES[0])
    body = RECORDS.encode(signed.record)
    framed = b"upkeep/1/entry\0" + b"\x20" + NETWORK + body
    assert message("entry", NETWORK, body) == framed
    assert (
        record_id(signed.record, NETWORK) == digest("entry", NETWORK, body) == hashlib.sha256(framed).digest()
    )
    assert (
        len({message(kind, network, b"") for kind in ("a", "ab") for network in (NETWORK, OTHER_NETWORK)})
        == 4
    )


def test_a_kind_cannot_run_into_the_network() -> None:
    with pytest.raises(AssertionError):
        message("entry\0", NETWORK, b"")
    with pytest.raises(AssertionError):
        message("entry", NetworkId(b"short"), b"")


def test_a_bill_is_no_receipt_and_a_receipt_no_bill() -> None:
    one = bill(ID)
    signature = sign_bill(one, PAYER, NETWORK)
    verify_bill(one, signature, NETWORK)
    with pytest.raises(SignatureError):
        verify(PAYER.account, signature, message("quote", NETWORK, BILLS.encode(one)))
    with pytest.raises(SignatureError):
        verify_bill(replace(one, fee=one.fee + 1), signature, NETWORK)


def test_a_receipt_needs_the_payer_too() -> None:
    signed = sign(receipt(ID))
    assert isinstance(signed.record, Receipt)
    payer, worker = signed.signatures
    with pytest.raises(SignatureError):
        verify_signed(replace(signed, signatures=(worker, worker)), NETWORK)
    with pytest.raises(SignatureError):
        verify_signed(replace(signed, signatures=(worker, payer)), NETWORK)
    with pytest.raises(ValueError, match="number of signatures"):
        replace(signed, signatures=(worker,))
    one = sign(EXAMPLES[0])
    encoded = bytearray(SIGNED_RECORDS.encode(one))
    with pytest.raises(DecodeError):
        admit(bytes(encoded[:-67] + b"\x82" + 2 * encoded[-66:]), NETWORK)


def test_model_ids_are_blob_ids() -> None:
    assert model_id(MANIFEST) == hashlib.sha256(MANIFESTS.encode(MANIFEST)).digest()


# ---------------------------------------------------------------- which signatures count


def scalar(value: int) -> bytes:
    return (value % ORDER).to_bytes(32, "little")


def forge(key: bytes, nonce_point: bytes, secret: int, nonce: int) -> Signature:
    """S so that the equation holds up to a point of small order."""
    hashed = int.from_bytes(hashlib.sha512(nonce_point + key + MESSAGE).digest(), "little") % ORDER
    return Signature(nonce_point + scalar(nonce + hashed * secret))


SECRET, NONCE = 0x1234567890ABCDEF << 130, 0xFEDCBA987654321 << 120
KEY = crypto_scalarmult_ed25519_base_noclamp(scalar(SECRET))
POINT = crypto_scalarmult_ed25519_base_noclamp(scalar(NONCE))


def refusal(key: bytes, signature: bytes) -> str:
    with pytest.raises(SignatureError) as caught:
        verify(AccountId(key), Signature(signature), MESSAGE)
    return str(caught.value)


def test_the_equation_holds_for_a_plain_one() -> None:
    verify(AccountId(KEY), forge(KEY, POINT, SECRET, NONCE), MESSAGE)


def test_no_cofactor() -> None:
    """R and R plus a point of order 8 are told apart."""
    mixed = crypto_core_ed25519_add(POINT, ORDER_8)
    assert refusal(KEY, forge(KEY, mixed, SECRET, NONCE)) == "the signature does not match"


def test_s_is_reduced() -> None:
    signature = forge(KEY, POINT, SECRET, NONCE)
    larger = int.from_bytes(signature[32:], "little") + ORDER
    assert refusal(KEY, signature[:32] + larger.to_bytes(32, "little")) == "the signature is not canonical"


def y_bytes(y: int, sign: int = 0) -> bytes:
    return (y | sign << 255).to_bytes(32, "little")


ORDER_8_Y = int.from_bytes(ORDER_8, "little")
SMALL = (0, 1, PRIME - 1, ORDER_8_Y, PRIME - ORDER_8_Y)


@pytest.mark.parametrize("y", SMALL)
@pytest.mark.parametrize("sign", [0, 1])
def test_keys_and_points_of_small_order_are_refused(y: int, sign: int) -> None:
    small = y_bytes(y, sign)
    assert refusal(small, forge(KEY, POINT, SECRET, NONCE)) == "the key is of small order"
    assert refusal(KEY, small + scalar(1)) == "the signature is of small order"
    # The forgery that lenient libraries accept for any message: S = 0 under a key of small order.
    assert "small order" in refusal(small, small + bytes(32))


@pytest.mark.parametrize("y", [PRIME, PRIME + 1, 2**255 - 1])
@pytest.mark.parametrize("sign", [0, 1])
def test_points_have_one_spelling(y: int, sign: int) -> None:
    assert refusal(y_bytes(y, sign), forge(KEY, POINT, SECRET, NONCE)) == "the key is not canonical"
    assert refusal(KEY, y_bytes(y, sign) + scalar(1)) == "the signature is not canonical"


def on_curve_order(y: int) -> int:
    """The order of the point with this y, by plain arithmetic; 0 if it exceeds 8."""
    d = -121665 * pow(121666, -1, PRIME) % PRIME
    square = (y * y - 1) * pow(d * y * y + 1, -1, PRIME) % PRIME
    x = pow(square, (PRIME + 3) // 8, PRIME)
    if x * x % PRIME != square:
        x = x * pow(2, (PRIME - 1) // 4, PRIME) % PRIME
    assert x * x % PRIME == square, "not on the curve"
    point, order = (x, y), 1
    while point != (0, 1) and order <= 8:
        (a, b), (p, q) = point, (x, y)
        t = d * a * b * p * q % PRIME
        point = (
            (a * q + b * p) * pow(1 + t, -1, PRIME) % PRIME,
            (b * q + a * p) * pow(1 - t, -1, PRIME) % PRIME,
        )
        order += 1
    return order if order <= 8 else 0


def test_the_list_of_small_points_is_right_and_complete() -> None:
    assert sorted(on_curve_order(y) for y in SMALL) == [1, 2, 4, 8, 8]
    public, _ = crypto_sign_seed_keypair(bytes(32))
    assert on_curve_order(int.from_bytes(public, "little") & ~(1 << 255)) == 0


def test_lengths_are_checked() -> None:
    assert "32 bytes" in refusal(KEY[:31], bytes(64))
    assert "32 bytes" in refusal(KEY, bytes(63))


def test_only_keys_that_somebody_can_hold_are_accounts() -> None:
    check_account(PAYER.account)
    check_account(AccountId(KEY))
    off_curve = next(y_bytes(y) for y in range(2, 100) if not is_on_curve(y))
    for key, reason in (
        (off_curve, "no point of the curve"),
        (crypto_core_ed25519_add(KEY, ORDER_8), "no point of the curve"),
        (y_bytes(1), "small order"),
        (y_bytes(PRIME + 1), "not canonical"),
    ):
        with pytest.raises(SignatureError, match=reason):
            check_account(AccountId(key))


def is_on_curve(y: int) -> bool:
    try:
        on_curve_order(y)
    except AssertionError:
        return False
    return True
