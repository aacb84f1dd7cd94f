"""Linking to one peer on purpose: over the link there is, else by the addresses that it advertises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import structlog
import trio

from gossip_ledger.errors import RemoteError
from gossip_ledger.records import AccountId
from p2p.transport import LinkError, Transport

REACH_S: Final = 5.0


async def reach(transport: Transport, peer: AccountId, addresses: Sequence[str]) -> None:
    """Returns once there is a link to `peer`. Raises `LinkError` in the end, with the reason."""
    log = structlog.get_logger("reaching")
    with trio.move_on_after(REACH_S):
        if any(link.peer == peer for link in transport.links()):
            return
        for address in addresses:
            try:
                await transport.dial(address)
            except RemoteError as error:
                log.debug("dial_failed", address=address, reason=str(error))
            else:
                return
        raise LinkError("none of its addresses could be reached")
    raise LinkError("it did not answer in time")
