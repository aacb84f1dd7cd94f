"""The gossip topics of a network."""

from __future__ import annotations

from gossip_ledger.records import NetworkId


def records_topic(network: NetworkId) -> str:
    """Coalesced frames of signed records."""
    return f"/upkeep/{network.hex()}/records/1"


def adverts_topic(network: NetworkId) -> str:
    """Adverts of workers, one in each frame."""
    return f"/upkeep/{network.hex()}/adverts/1"
