"""What a peer may send and be refused for, each with its reason: malformed, forged, replayed, unsound.

One table for each door that a record has to pass: its bytes, its signatures, its chain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from gossip_ledger.errors import DecodeError, RemoteError, SignatureError, UnsoundError
from gossip_ledger.ledger import Ledger
from gossip_ledger.records import (
    RECORDS,
    SIGNED_RECORDS,
    AccountId,
    Ack,
    Bond,
    Collect,
    Entry,
    ModelId,
    Publish,
    Receipt,
    Record,
    RecordId,
    Release,
    Signed,
    Transfer,
    Weight,
)
from gossip_ledger.signing import admit, countersign, record_id, sign_bill
from gossip_ledger.soundness import Account, Tab, check_manifest, check_release, extend_account, extend_tab
from tests.unit.gossip_ledger.build import (
    CREATOR,
    EXAMPLES,
    GENESIS,
    ID,
    MANIFEST,
    MODEL,
    NETWORK,
    OTHER_NETWORK,
    OWNER,
    PAYER,
    WITNESSES,
    WORKER,
    bill,
    cluster,
    entry,
    open_body,
    receipt,
    sign,
)

OPENED = entry(PAYER, open_body())
OPEN_ID = record_id(OPENED, NETWORK)
FIRST = receipt(OPEN_ID)
FIRST_ID = record_id(FIRST, NETWORK)


def encoded(record: Record) -> bytes:
    return SIGNED_RECORDS.encode(sign(record))


def resigned(signed: Signed, place: int, by: Record) -> bytes:
    """The record with one signature of another one."""
    signatures = list(signed.signatures)
    signatures[place] = sign(by).signatures[-1]
    return SIGNED_RECORDS.encode(replace(signed, signatures=tuple(signatures)))


def renamed(record: Entry | Release, author: AccountId) -> bytes:
    """A record in somebody else's name, signed by its real author."""
    return SIGNED_RECORDS.encode(replace(sign(record), record=replace(record, author=author)))


def stolen_receipt() -> bytes:
    """A worker countersigns another worker's bill as its own; then swaps the payer's signature in."""
    signed = sign(FIRST)
    mine = replace(FIRST, worker=OWNER.account)
    return SIGNED_RECORDS.encode(countersign(mine, signed.signatures[1], OWNER, NETWORK))


def raised_fee() -> bytes:
    """A worker raises the fee of a bill that the payer signed."""
    signature = sign_bill(FIRST.bill, PAYER, NETWORK)
    dearer = replace(FIRST, bill=replace(FIRST.bill, fee=71), cumulative=71)
    return SIGNED_RECORDS.encode(countersign(dearer, signature, WORKER, NETWORK))


def spliced(data: bytes, old: bytes, new: bytes) -> bytes:
    assert data.count(old) == 1
    return data.replace(old, new)


BYTES: dict[str, tuple[Callable[[], bytes], type[RemoteError], str]] = {
    "nothing": (lambda: b"", DecodeError, "not CBOR"),
    "not CBOR": (lambda: b"\xff" * 40, DecodeError, "not CBOR"),
    "a trailing byte": (lambda: encoded(OPENED) + b"\0", DecodeError, "not the canonical encoding"),
    "longer than a record": (lambda: encoded(OPENED) + bytes(4096), DecodeError, "exceed 4096"),
    "a record without signatures": (lambda: RECORDS.encode(OPENED), DecodeError, "expected one of Signed"),
    "an unknown kind": (
        lambda: b"\x83\x14\x82\x18\x63\x00\x81\x58\x40" + bytes(64),
        DecodeError,
        "expected one of Entry, Receipt, Release, Ack",
    ),
    "seq 0": (
        lambda: spliced(encoded(OPENED), PAYER.account + b"\x01", PAYER.account + b"\x00"),
        DecodeError,
        r"Entry\.seq: expected an integer in 1\.\.",
    ),
    "an account of 31 bytes": (
        lambda: spliced(encoded(OPENED), b"\x58\x20" + PAYER.account, b"\x58\x1f" + PAYER.account[:31]),
        DecodeError,
        r"Entry\.author: expected 32 bytes",
    ),
    "a negative amount": (
        lambda: spliced(encoded(Release(author=PAYER.account, hold=ID, spent=9)), ID + b"\x09", ID + b"\x28"),
        DecodeError,
        r"Release\.spent",
    ),
    "an amount of 2^63": (
        lambda: spliced(
            encoded(Release(author=PAYER.account, hold=ID, spent=2**63 - 1)),
            b"\x7f" + b"\xff" * 7,
            b"\x80" + bytes(7),
        ),
        DecodeError,
        r"Release\.spent",
    ),
    "an ack of nothing": (
        lambda: b"\x83\x14\x83\x0f\x58\x20" + bytes(32) + b"\x80\x81\x58\x40" + bytes(64),
        DecodeError,
        r"Ack\.ids: expected 1\.\.100 items",
    ),
    "evidence that names a cluster twice": (
        lambda: spliced(
            encoded(replace(FIRST, evidence=(weight("one"), weight("two")))),
            cluster("two").name,
            cluster("one").name,
        ),
        DecodeError,
        "evidence names a cluster twice",
    ),
    "a weight of 0": (
        lambda: spliced(encoded(FIRST), cluster("one").name + b"\x02", cluster("one").name + b"\x00"),
        DecodeError,
        r"Weight\.weight",
    ),
    "a signature too few": (
        lambda: SIGNED_RECORDS.encode(sign(FIRST))[:-133] + b"\x81\x58\x40" + bytes(64),
        DecodeError,
        "wrong number of signatures",
    ),
    "another network's record": (lambda: encoded(OPENED), SignatureError, "does not match"),
    "a forged entry": (lambda: renamed(OPENED, CREATOR.account), SignatureError, "does not match"),
    "a forged release": (
        lambda: renamed(Release(author=PAYER.account, hold=ID, spent=0), WORKER.account),
        SignatureError,
        "does not match",
    ),
    "a signature replayed from another entry": (
        lambda: resigned(sign(OPENED), 0, entry(PAYER, open_body(limit=999))),
        SignatureError,
        "does not match",
    ),
    "an ack signed by a witness for another": (
        lambda: resigned(sign(ack(0)), 0, ack(1)),
        SignatureError,
        "does not match",
    ),
    "a bill the payer did not sign": (
        lambda: resigned(sign(FIRST), 0, OPENED),
        SignatureError,
        "does not match",
    ),
    "a fee raised after the payer signed": (raised_fee, SignatureError, "does not match"),
    "another worker's bill": (stolen_receipt, SignatureError, "does not match"),
    "a key of small order": (
        lambda: SIGNED_RECORDS.encode(
            Signed(record=replace(OPENED, author=AccountId(bytes(32))), signatures=sign(OPENED).signatures)
        ),
        SignatureError,
        "the key is of small order",
    ),
}


def weight(name: str) -> Weight:
    return Weight(cluster=cluster(name).name, weight=1)


def ack(place: int) -> Ack:
    return Ack(witness=WITNESSES[place].account, ids=(ID,))


@pytest.mark.parametrize("name", BYTES)
def test_bytes_are_refused(name: str) -> None:
    make, error, reason = BYTES[name]
    network = OTHER_NETWORK if name == "another network's record" else NETWORK
    with pytest.raises(error, match=reason):
        admit(make(), network)


START = Account(PAYER.account)
AFTER = extend_account(START, OPENED, OPEN_ID, GENESIS)


ENTRIES: dict[str, tuple[Account, Entry, str]] = {
    "a replayed entry": (AFTER, OPENED, "does not continue"),
    "a gap": (AFTER, entry(PAYER, open_body(), seq=3, prev=OPEN_ID), "does not continue"),
    "a false parent": (AFTER, entry(PAYER, open_body(), seq=2, prev=ID), "does not continue"),
    "somebody else's chain": (AFTER, entry(WORKER, open_body(), seq=2, prev=OPEN_ID), "does not continue"),
    "an epoch that falls": (
        replace(AFTER, epoch=4),
        entry(PAYER, open_body(), seq=2, prev=OPEN_ID, epoch=3),
        "the epoch falls",
    ),
    "an overdraft by one": (START, entry(PAYER, open_body(limit=10_001)), "spends more than the account has"),
    "a transfer of what is reserved": (
        AFTER,
        entry(PAYER, Transfer(to=OWNER.account, amount=9_001), seq=2, prev=OPEN_ID),
        "spends more",
    ),
    "a bond without money": (Account(OWNER.account), entry(OWNER, Bond(limit=1, expiry=0)), "spends more"),
    "a publish below the fee": (
        Account(CREATOR.account),
        entry(CREATOR, Publish(manifest=MODEL, successor_of=ModelId(b""), fee=4)),
        "the publish fee is too low",
    ),
    "a collect that does not rise": (
        replace(START, collected=7),
        entry(PAYER, Collect(cumulative=7)),
        "the collect does not rise",
    ),
    "a collect of nothing": (START, entry(PAYER, Collect(cumulative=0)), "the collect does not rise"),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_entries_are_refused(name: str) -> None:
    account, record, reason = ENTRIES[name]
    with pytest.raises(UnsoundError, match=reason):
        extend_account(account, record, record_id(record, NETWORK), GENESIS)


TAB = Tab.of(OPEN_ID, OPENED)
SECOND_TAB = extend_tab(TAB, FIRST, FIRST_ID, MANIFEST)
SECOND = receipt(OPEN_ID, ask=10, n=2, prev=FIRST_ID, cumulative=140)

RECEIPTS: dict[str, tuple[Tab, Receipt, str]] = {
    "a replayed receipt": (SECOND_TAB, FIRST, "does not continue"),
    "a gap": (TAB, SECOND, "does not continue"),
    "another open's": (TAB, receipt(ID, prev=OPEN_ID), "does not continue"),
    "another worker's": (TAB, replace(FIRST, worker=OWNER.account), "not between the payer and the worker"),
    "another payer's": (
        TAB,
        replace(FIRST, bill=replace(FIRST.bill, payer=OWNER.account)),
        "not between the payer and the worker",
    ),
    "a false sum": (SECOND_TAB, replace(SECOND, cumulative=141), "not the sum"),
    "a replayed ask": (SECOND_TAB, replace(SECOND, bill=bill(OPEN_ID, ask=9)), "the ask number was used"),
    "more than the limit": (TAB, receipt(OPEN_ID, fee=1001), "exceed the limit"),
    "a cluster that the model lacks": (TAB, replace(FIRST, evidence=(weight("three"),)), "the model lacks"),
}


@pytest.mark.parametrize("name", RECEIPTS)
def test_receipts_are_refused(name: str) -> None:
    tab, record, reason = RECEIPTS[name]
    with pytest.raises(UnsoundError, match=reason):
        extend_tab(tab, record, record_id(record, NETWORK), MANIFEST)


def test_what_is_right_is_sound() -> None:
    assert extend_tab(SECOND_TAB, SECOND, ID, MANIFEST).cumulative == 140
    assert AFTER.spendable(GENESIS) == 9_000
    exact = entry(PAYER, Transfer(to=OWNER.account, amount=9_000), seq=2, prev=OPEN_ID)
    assert extend_account(AFTER, exact, ID, GENESIS).spendable(GENESIS) == 0


RELEASES: dict[str, tuple[Release, Entry, str]] = {
    "somebody else's": (Release(author=WORKER.account, hold=OPEN_ID, spent=0), OPENED, "only the author"),
    "above the limit": (
        Release(author=PAYER.account, hold=OPEN_ID, spent=1001),
        OPENED,
        "more than the hold",
    ),
    "of a bond, spent": (
        Release(author=PAYER.account, hold=ID, spent=1),
        entry(PAYER, Bond(limit=5, expiry=0)),
        "more than the hold",
    ),
    "of a transfer": (
        Release(author=PAYER.account, hold=ID, spent=0),
        entry(PAYER, Transfer(to=OWNER.account, amount=5)),
        "only an open or a bond",
    ),
}


@pytest.mark.parametrize("name", RELEASES)
def test_releases_are_refused(name: str) -> None:
    release, hold, reason = RELEASES[name]
    with pytest.raises(UnsoundError, match=reason):
        check_release(release, hold)


def test_an_ack_by_a_stranger_has_no_place() -> None:
    ledger, stranger = Ledger(GENESIS), Ack(witness=PAYER.account, ids=(ID,))
    signed = sign(stranger)
    assert "no witness of this network" in ledger.may_add(signed)
    assert not ledger.add(signed, record_id(stranger, NETWORK))
    assert ledger.ack_count(ID) == 0
    assert list(ledger.ids()) == []


def test_a_manifest_outside_the_bounds_does_not_exist_here() -> None:
    strict = replace(GENESIS, split_min=replace(GENESIS.split_min, upkeep=1001))
    with pytest.raises(UnsoundError, match="bounds"):
        check_manifest(MANIFEST, strict)
    ledger = Ledger(strict)
    publish = entry(CREATOR, Publish(manifest=MODEL, successor_of=ModelId(b""), fee=5))
    ledger.add(sign(publish), RecordId(ID))
    assert ledger.wanted_manifests() == {MODEL}
    assert ledger.add_manifest(MANIFEST) == MODEL
    assert ledger.manifest(MODEL) is None
    assert ledger.wanted_manifests() == frozenset()


@pytest.mark.parametrize(
    "record",
    [
        replace(EXAMPLES[0], epoch=-1),
        replace(EXAMPLES[0], epoch=2**63),
        replace(EXAMPLES[0], author=b"short"),
        replace(EXAMPLES[0], body=Transfer(to=OWNER.account, amount=2**63)),
        replace(EXAMPLES[0], epoch=True),
        replace(FIRST, evidence=tuple(weight(f"cluster {i}") for i in range(65))),
        replace(ack(0), ids=()),
        replace(ack(0), ids=(ID,) * 101),
    ],
)
def test_what_may_not_be_read_cannot_be_written(record: Record) -> None:
    with pytest.raises(DecodeError):
        RECORDS.encode(record)
