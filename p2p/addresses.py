"""Addresses and peer ids as text, without libp2p: `/ip4/192.0.2.7/tcp/4001/p2p/12D3Koo...`.

A peer id is the base58 text of an Ed25519 public key in libp2p's clothes, so it and an account name the same
thing. Parsing is strict: one spelling per address, nothing but TCP.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final, final

from gossip_ledger.errors import RemoteError
from gossip_ledger.records import AccountId

ADDRESS_CHARS_MAX: Final = 512
"""Longest address that is looked at."""

_ALPHABET: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_PREFIX: Final = bytes.fromhex("002408011220")
"""Identity multihash of 36 bytes, then a protobuf: key type Ed25519, 32 bytes of key."""

_ID_CHARS_MAX: Final = 64
_NAME: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_NAME_CHARS_MAX: Final = 253


class AddressError(RemoteError):
    """Text that is not an address or a peer id. Says why."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A place on the network, and who is expected there."""

    kind: str
    """`ip4`, `ip6`, `dns`, `dns4` or `dns6`."""
    host: str
    port: int
    account: AccountId | None
    """None in an address to listen on."""

    def __str__(self) -> str:
        suffix = "" if self.account is None else f"/p2p/{format_peer_id(self.account)}"
        return f"/{self.kind}/{self.host}/tcp/{self.port}{suffix}"


def peer_id_bytes(account: AccountId) -> bytes:
    """The peer id of an account as libp2p's bytes."""
    return _PREFIX + account


def account_in(data: bytes) -> AccountId | None:
    """The account in a peer id's bytes; None for keys of other types."""
    if len(data) != len(_PREFIX) + 32 or not data.startswith(_PREFIX):
        return None
    return AccountId(data[len(_PREFIX) :])


def format_peer_id(account: AccountId) -> str:
    """The peer id of an account as text: `12D3KooW...`."""
    data = peer_id_bytes(account)
    number = int.from_bytes(data, "big")
    text = ""
    while number:
        number, digit = divmod(number, 58)
        text = _ALPHABET[digit] + text
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + text


def parse_peer_id(text: str) -> AccountId:
    """The account of a peer id. Raises `AddressError`."""
    if not text or len(text) > _ID_CHARS_MAX or any(c not in _ALPHABET for c in text):
        raise AddressError("not a peer id")
    number = 0
    for c in text:
        number = number * 58 + _ALPHABET.index(c)
    length = len(_PREFIX) + 32
    if number >> (8 * length):
        raise AddressError("not a peer id")
    data = number.to_bytes(length, "big")
    account = account_in(data)
    if account is None or format_peer_id(account) != text:
        raise AddressError("not the peer id of an Ed25519 key")
    return account


def parse_address(text: str) -> Address:
    """An address with or without a peer id. Raises `AddressError`."""
    if len(text) > ADDRESS_CHARS_MAX:
        raise AddressError("the address is too long")
    match text.split("/"):
        case ["", kind, host, "tcp", port]:
            account = None
        case ["", kind, host, "tcp", port, "p2p", peer]:
            account = parse_peer_id(peer)
        case _:
            raise AddressError(f"{text!r} is not like /ip4/192.0.2.7/tcp/4001/p2p/12D3Koo...")
    _check_host(kind, host)
    if not re.fullmatch(r"0|[1-9][0-9]{0,4}", port) or int(port) > 0xFFFF:
        raise AddressError(f"{port!r} is not a TCP port")
    return Address(kind=kind, host=host, port=int(port), account=account)


def _check_host(kind: str, host: str) -> None:
    try:
        match kind:
            case "ip4":
                is_good = str(ipaddress.IPv4Address(host)) == host
            case "ip6":
                is_good = str(ipaddress.IPv6Address(host)) == host
            case "dns" | "dns4" | "dns6":
                labels = host.split(".")
                is_good = len(host) <= _NAME_CHARS_MAX and all(_NAME.fullmatch(label) for label in labels)
            case _:
                raise AddressError(f"{kind!r} is none of ip4, ip6, dns, dns4, dns6")
    except ValueError:
        is_good = False
    if not is_good:
        raise AddressError(f"{host!r} is not a host for {kind}")
