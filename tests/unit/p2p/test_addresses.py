"""Addresses and peer ids: one spelling each, equal to the library's, and nothing else accepted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip_ledger.records import AccountId
from p2p.addresses import Address, AddressError, format_peer_id, parse_address, parse_peer_id

ACCOUNT = AccountId(bytes.fromhex("8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c"))
PEER = "12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5"


def test_a_known_peer_id() -> None:
    assert format_peer_id(ACCOUNT) == PEER
    assert parse_peer_id(PEER) == ACCOUNT


@given(st.binary(min_size=32, max_size=32))
def test_peer_ids_round_trip(data: bytes) -> None:
    account = AccountId(data)
    assert parse_peer_id(format_peer_id(account)) == account


def test_peer_ids_are_the_librarys() -> None:
    from p2p.libp2p_guards import account_of, peer_of

    peer = peer_of(ACCOUNT)
    assert str(peer) == PEER
    assert account_of(peer) == ACCOUNT


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0OIl",
        "1" + PEER,
        PEER[:-1],
        PEER + "1",
        "Qm" + "a" * 44,
        "z" * 64,
        "z" * 65,
        PEER.lower(),
        PEER + "\n",
    ],
)
def test_other_text_is_no_peer_id(text: str) -> None:
    with pytest.raises(AddressError):
        parse_peer_id(text)


@pytest.mark.parametrize(
    "text",
    [
        "/ip4/127.0.0.1/tcp/0",
        f"/ip4/192.0.2.7/tcp/4001/p2p/{PEER}",
        f"/ip6/2001:db8::1/tcp/65535/p2p/{PEER}",
        f"/dns/one.example.org/tcp/1/p2p/{PEER}",
        "/dns4/localhost/tcp/4001",
    ],
)
def test_an_address_is_its_own_spelling(text: str) -> None:
    assert str(parse_address(text)) == text


def test_the_parts_of_an_address() -> None:
    assert parse_address(f"/ip4/192.0.2.7/tcp/4001/p2p/{PEER}") == Address(
        kind="ip4", host="192.0.2.7", port=4001, account=ACCOUNT
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "/",
        "/ip4/127.0.0.1",
        "/ip4/127.0.0.1/udp/1/quic-v1",
        "/ip4/127.0.0.1/tcp/65536",
        "/ip4/127.0.0.1/tcp/01",
        "/ip4/127.0.0.1/tcp/-1",
        "/ip4/127.0.0.1/tcp/1/",
        "/ip4/127.0.0.1/tcp/1/ws",
        "/ip4/127.1/tcp/1",
        "/ip4/256.0.0.1/tcp/1",
        "/ip6/::0001/tcp/1",
        "/ip6/127.0.0.1/tcp/1",
        "/dns//tcp/1",
        "/dns/a..b/tcp/1",
        "/dns/-a/tcp/1",
        "/dns/" + "a." * 150 + "a/tcp/1",
        "/unix/x/tcp/1",
        "/ip4/127.0.0.1/tcp/1/p2p/",
        "/ip4/127.0.0.1/tcp/1/p2p/zzz",
        f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}/p2p-circuit",
        "/ip4/127.0.0.1/tcp/1 ",
        "/ip4/127.0.0.1/tcp/1\n",
        "/dns/" + "a" * 600 + "/tcp/1",
    ],
)
def test_other_text_is_no_address(text: str) -> None:
    with pytest.raises(AddressError):
        parse_address(text)
