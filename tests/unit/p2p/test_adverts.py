"""The book of adverts: newest of each worker, signed, live, bounded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gossip_ledger.errors import DecodeError, SignatureError
from gossip_ledger.records import ModelId, NetworkId
from p2p.adverts import (
    SIGNED_ADVERTS,
    Advert,
    AdvertBook,
    AdvertError,
    SignedAdvert,
    sign_advert,
    verify_advert,
)
from p2p.protocols.limits import ADVERT_TTL_S_MAX
from tests.unit.p2p.protocols.people import NETWORK, STRANGER, WORKER, Person

NOW_S = 1000
WARM, COLD, NONE = (ModelId(bytes([n]) * 32) for n in (1, 2, 3))
ADVERT = Advert(
    worker=WORKER.account,
    base=bytes(32),
    quantization="nf4",
    kernels="cpu/eager",
    max_context=2048,
    resident=(WARM,),
    loadable=(COLD,),
    running=1,
    waiting=0,
    slots=4,
    tokens_per_s=30,
    price_in=200,
    price_out=600,
    addresses=("/ip4/192.0.2.1/tcp/4001",),
    sequence=5,
    expiry_s=NOW_S + 30,
    software="upkeep/1",
)


def signed(by: Person = WORKER, **changes: object) -> SignedAdvert:
    return sign_advert(replace(ADVERT, worker=by.account, **changes), by, NETWORK)  # type: ignore[arg-type]


SIGNED = signed()


def book() -> AdvertBook:
    return AdvertBook(NETWORK)


def test_news_is_taken_once() -> None:
    adverts = book()
    assert adverts.offer(SIGNED, NOW_S)
    assert not adverts.offer(SIGNED, NOW_S)
    assert adverts.live(NOW_S) == (ADVERT,)
    assert adverts.get(WORKER.account, NOW_S) == ADVERT


def test_the_newest_counts_whatever_the_order() -> None:
    adverts = book()
    newer = signed(sequence=6, running=4)
    assert adverts.offer(newer, NOW_S)
    assert not adverts.offer(SIGNED, NOW_S)
    assert not adverts.offer(signed(sequence=6, running=0), NOW_S)
    assert adverts.live(NOW_S) == (newer.advert,)


def test_what_expired_is_not_shown_nor_taken() -> None:
    adverts = book()
    adverts.offer(SIGNED, NOW_S)
    assert adverts.live(NOW_S + 29)
    assert not adverts.live(NOW_S + 30)
    assert adverts.get(WORKER.account, NOW_S + 30) is None
    with pytest.raises(AdvertError):
        book().offer(SIGNED, NOW_S + 30)


def test_nobody_advertises_for_ever() -> None:
    book().offer(signed(expiry_s=NOW_S + ADVERT_TTL_S_MAX), NOW_S)
    with pytest.raises(AdvertError):
        book().offer(signed(expiry_s=NOW_S + ADVERT_TTL_S_MAX + 1), NOW_S)


@pytest.mark.parametrize(
    "forged",
    [
        replace(SIGNED, advert=replace(ADVERT, price_out=1)),
        replace(SIGNED, advert=replace(ADVERT, worker=STRANGER.account)),
        sign_advert(ADVERT, WORKER, NetworkId(bytes(32))),
    ],
)
def test_a_forged_advert_changes_nothing(forged: SignedAdvert) -> None:
    adverts = book()
    with pytest.raises(SignatureError):
        adverts.offer(forged, NOW_S)
    assert not adverts.live(NOW_S)
    with pytest.raises(SignatureError):
        verify_advert(forged, NETWORK)


def test_the_book_is_bounded_and_makes_room_for_the_living() -> None:
    adverts = AdvertBook(NETWORK, adverts_max=2)
    people = [Person(f"worker {n}") for n in range(3)]
    adverts.offer(signed(people[0]), NOW_S)
    adverts.offer(signed(people[1], expiry_s=NOW_S + 60), NOW_S)
    with pytest.raises(AdvertError, match="full"):
        adverts.offer(signed(people[2], expiry_s=NOW_S + 60), NOW_S)
    assert adverts.offer(signed(people[1], sequence=6, expiry_s=NOW_S + 60), NOW_S)
    assert adverts.offer(signed(people[2], expiry_s=NOW_S + 60), NOW_S + 30)
    assert {advert.worker for advert in adverts.live(NOW_S + 30)} == {p.account for p in people[1:]}


def test_who_serves_a_model() -> None:
    adverts = book()
    adverts.offer(SIGNED, NOW_S)
    assert adverts.serving(WARM, NOW_S) == adverts.serving(COLD, NOW_S) == (ADVERT,)
    assert adverts.serving(NONE, NOW_S) == ()


def test_a_forgotten_worker_comes_back_with_its_next_advert() -> None:
    adverts = book()
    adverts.offer(SIGNED, NOW_S)
    adverts.forget(WORKER.account)
    assert not adverts.live(NOW_S)
    assert adverts.offer(SIGNED, NOW_S)


def test_gossip_bytes() -> None:
    adverts = book()
    assert adverts.offer_bytes(SIGNED_ADVERTS.encode(SIGNED), NOW_S)
    with pytest.raises(DecodeError):
        adverts.offer_bytes(b"\x00", NOW_S)
