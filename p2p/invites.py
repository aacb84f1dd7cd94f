"""Invites: one string that brings a newcomer into a network, perhaps with its first money.

`upkeep1:` followed by unpadded base64url of a 4-byte check and the canonical encoding. White space is
ignored, so an invite survives mail and chat. An invite with a grant carries a **key**: whoever holds the
string may spend the grant. The genesis is inside, or only its id for a large one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import Final, final

from gossip_ledger.codec import Schema, Table, many, octets, octets_up_to, text, uint
from gossip_ledger.errors import DecodeError
from gossip_ledger.genesis import GENESES, network_id
from gossip_ledger.records import MicroUnits, NetworkId
from p2p.protocols.limits import (
    ADDRESS_BYTES_MAX,
    ADVERT_ADDRESSES_MAX,
    INVITE_BYTES_MAX,
    INVITE_GENESIS_BYTES_MAX,
)

PREFIX: Final = "upkeep1:"
_CHECK_BYTES: Final = 4
_TEXT_MAX: Final = 2 * INVITE_BYTES_MAX


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Invite:
    """What a newcomer needs."""

    network: NetworkId
    genesis: bytes
    """The encoded genesis, or empty: then it is fetched from a peer and checked against `network`."""
    addresses: tuple[str, ...]
    """Peers to dial first."""
    grant_seed: bytes
    """Seed of a funded key, 32 bytes, or empty. Secret: it *is* the money."""
    grant_amount: MicroUnits
    """What that key was funded with, for people; the ledger decides."""

    def __post_init__(self) -> None:
        if self.grant_amount and not self.grant_seed:
            raise ValueError("a grant needs its key")

    def __repr__(self) -> str:
        """Never shows the seed."""
        grant = f", grant of {self.grant_amount}" if self.grant_seed else ""
        return f"Invite(network={self.network[:6].hex()}, addresses={self.addresses}{grant})"


INVITE = Table(
    1,
    Invite,
    (
        ("network", octets(32)),
        ("genesis", octets_up_to(INVITE_GENESIS_BYTES_MAX)),
        ("addresses", many(text(ADDRESS_BYTES_MAX), ADVERT_ADDRESSES_MAX)),
        ("grant_seed", octets(32, or_empty=True)),
        ("grant_amount", uint()),
    ),
)
INVITES = Schema(INVITE, bytes_max=INVITE_BYTES_MAX)


def encode_invite(invite: Invite) -> str:
    """One line of text. Raises `DecodeError` where a field is out of its range."""
    body = INVITES.encode(invite)
    return PREFIX + base64.urlsafe_b64encode(_check(body) + body).rstrip(b"=").decode("ascii")


def decode_invite(line: str) -> Invite:
    """The invite in `line`. Raises `DecodeError`, in words for the person who pasted it."""
    if len(line) > _TEXT_MAX:
        raise DecodeError("this is too long for an invite")
    packed = "".join(line.split())
    if not packed.startswith(PREFIX):
        raise DecodeError(f"an invite starts with {PREFIX}")
    payload = packed.removeprefix(PREFIX)
    if not re.fullmatch(r"[A-Za-z0-9_-]+", payload):
        raise DecodeError("the invite contains a character that cannot be part of it")
    try:
        data = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
    except binascii.Error as error:
        raise DecodeError("the invite is cut off") from error
    check, body = data[:_CHECK_BYTES], data[_CHECK_BYTES:]
    if check != _check(body):
        raise DecodeError("the invite is damaged or incomplete: copy it again as a whole")
    invite: Invite = INVITES.decode(body)
    if invite.genesis and network_id(GENESES.decode(invite.genesis)) != invite.network:
        raise DecodeError("the invite names another network than its genesis")
    if encode_invite(invite) != packed:
        raise DecodeError("the invite is not written in its one form")
    return invite


def _check(body: bytes) -> bytes:
    return hashlib.sha256(b"upkeep/1/invite" + body).digest()[:_CHECK_BYTES]
