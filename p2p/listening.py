"""Where a node listens and what it announces, as the operator writes it. Errors say what to write instead."""

from __future__ import annotations

import socket
from dataclasses import replace

from gossip_ledger.errors import LocalError
from gossip_ledger.records import AccountId
from p2p.addresses import Address, AddressError, parse_address


def parse_listen(text: str) -> Address:
    """An address to listen on. Raises `LocalError`."""
    try:
        address = parse_address(text)
    except AddressError as error:
        raise LocalError(f"cannot listen: {error}; write it like /ip4/0.0.0.0/tcp/4001") from error
    if address.kind not in ("ip4", "ip6") or address.account is not None:
        raise LocalError(f"cannot listen on {text}: write it like /ip4/0.0.0.0/tcp/4001")
    return address


def parse_announced(text: str, account: AccountId) -> str:
    """An address to tell others, with our peer id at its end. Raises `LocalError`."""
    try:
        address = parse_address(text)
    except AddressError as error:
        raise LocalError(f"cannot announce: {error}; write it like /dns4/example.org/tcp/4001") from error
    if address.account not in (None, account):
        raise LocalError(f"cannot announce {text}: it names another peer; leave out the /p2p/ part")
    return str(replace(address, account=account))


def check_free(address: Address) -> None:
    """Raises `LocalError` if nobody can listen there now.

    The library binds with SO_REUSEPORT: two nodes on one port would share its connections, unnoticed.
    """
    family = socket.AF_INET6 if address.kind == "ip6" else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address.host, address.port))
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise LocalError(f"cannot listen on {address}: {why}; choose another address or port") from error
