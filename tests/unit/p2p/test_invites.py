"""Invites survive mail and chat, refuse typing errors in words, and never print their money."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip_ledger.errors import DecodeError
from gossip_ledger.genesis import GENESES, network_id
from gossip_ledger.records import NetworkId
from p2p.invites import PREFIX, Invite, decode_invite, encode_invite
from p2p.protocols.limits import INVITE_GENESIS_BYTES_MAX
from tests.unit.gossip_ledger.build import GENESIS

SEED = bytes(range(100, 132))
FULL = Invite(
    network=network_id(GENESIS),
    genesis=GENESES.encode(GENESIS),
    addresses=("/ip4/192.0.2.1/tcp/4001/p2p/peer",),
    grant_seed=SEED,
    grant_amount=5_000_000,
)
SHORT = replace(FULL, genesis=b"", grant_seed=b"", grant_amount=0)
LINE = encode_invite(FULL)


def test_round_trip() -> None:
    assert LINE.startswith(PREFIX)
    assert decode_invite(LINE) == FULL
    assert "=" not in LINE


def test_a_short_invite_names_its_genesis_by_hash() -> None:
    assert decode_invite(encode_invite(SHORT)) == SHORT
    assert len(encode_invite(SHORT)) < 150


def test_white_space_does_no_harm() -> None:
    broken = "\n ".join(LINE[i : i + 40] for i in range(0, len(LINE), 40))
    assert decode_invite(f"  {broken}\r\n") == FULL


@given(line=st.sampled_from([LINE, encode_invite(SHORT)]), data=st.data())
def test_one_wrong_character_is_noticed(line: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(line) - 1))
    other = data.draw(st.sampled_from("ABCxyz019-_:=é/+"))
    if line[place] == other:
        return
    with pytest.raises(DecodeError):
        decode_invite(line[:place] + other + line[place + 1 :])


def test_a_typing_error_is_called_one() -> None:
    line = encode_invite(SHORT)
    with pytest.raises(DecodeError, match="copy it again"):
        decode_invite(line[:30] + ("A" if line[30] != "A" else "B") + line[31:])


@given(length=st.integers(0, len(LINE) - 1))
def test_a_piece_is_noticed(length: int) -> None:
    with pytest.raises(DecodeError):
        decode_invite(LINE[:length])


@given(st.text(max_size=80))
def test_anything_else_is_refused_in_words(text: str) -> None:
    for line in (text, PREFIX + text):
        with pytest.raises(DecodeError):
            decode_invite(line)


def test_padding_and_loose_bits_are_refused() -> None:
    with pytest.raises(DecodeError):
        decode_invite(LINE + "=")
    body = base64.urlsafe_b64decode(LINE.removeprefix(PREFIX) + "=" * (-len(LINE.removeprefix(PREFIX)) % 4))
    spellings = {
        line
        for last in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        if base64.urlsafe_b64decode(
            (line := LINE[:-1] + last).removeprefix(PREFIX) + "=" * (-len(LINE.removeprefix(PREFIX)) % 4)
        )
        == body
    }
    for line in spellings - {LINE}:
        with pytest.raises(DecodeError, match="one form"):
            decode_invite(line)


def test_a_genesis_of_another_network_is_refused() -> None:
    liar = Invite(
        network=NetworkId(bytes(32)), genesis=FULL.genesis, addresses=(), grant_seed=b"", grant_amount=0
    )
    with pytest.raises(DecodeError, match="another network"):
        decode_invite(encode_invite(liar))


def test_a_grant_needs_its_key() -> None:
    with pytest.raises(ValueError, match="needs its key"):
        Invite(network=FULL.network, genesis=b"", addresses=(), grant_seed=b"", grant_amount=1)


def test_too_much_is_refused_before_it_is_looked_at() -> None:
    with pytest.raises(DecodeError, match="too long"):
        decode_invite(PREFIX + "A" * 10**6)
    with pytest.raises(DecodeError):
        encode_invite(
            Invite(
                network=FULL.network,
                genesis=bytes(INVITE_GENESIS_BYTES_MAX + 1),
                addresses=(),
                grant_seed=b"",
                grant_amount=0,
            )
        )


def test_the_seed_is_never_printed() -> None:
    assert SEED.hex() not in repr(FULL)
    assert repr(SEED) not in repr(FULL)
    assert "5000000" in repr(FULL)
