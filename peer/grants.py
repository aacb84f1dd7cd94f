"""First money: sweeping the funded key of an invite into this node's account, once."""

from __future__ import annotations

from typing import Final, final

import structlog
import trio

from gossip_ledger.errors import LocalError
from gossip_ledger.records import AccountId, Transfer
from gossip_ledger.signing import Signer
from peer.author import Author
from peer.capabilities import Clock
from peer.ledger_service import LedgerService

SYNC_GRACE_S: Final = 2.0
"""Pause before the first look, so that a grant which was swept before is known from others."""
RETRY_S: Final = 30.0


@final
class GrantSweep:
    """Moves what the invite's key owns to `account`."""

    def __init__(self, *, service: LedgerService, grant: Signer, account: AccountId, clock: Clock) -> None:
        self._service = service
        self._grant = grant
        self._account = account
        self._author = Author(service=service, signer=grant, clock=clock)
        self._clock = clock
        self._log = structlog.get_logger("grant")

    async def run(self, synced: trio.Event) -> None:
        """Once others told what they know, transfers everything that the key can spend, and returns."""
        await synced.wait()
        while True:
            tip = self._service.ledger.tip(self._grant.account)
            if tip.seq:
                return
            amount = tip.spendable(self._service.genesis, self._service.epoch(self._clock.now_s()))
            if not amount:
                self._log.warning("grant_empty", account=self._grant.account.hex()[:8])
                return
            try:
                await self._author.write(Transfer(to=self._account, amount=amount))
            except LocalError as error:
                self._log.warning("grant_failed", reason=str(error))
                await trio.sleep(RETRY_S)
            else:
                self._log.info("grant_swept", amount=amount)
                return
