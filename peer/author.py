"""This node's own chain: one entry per seq, durable before anybody sees it, only sound ones."""

from __future__ import annotations

from typing import final

import trio

from gossip_ledger.errors import LocalError, UnsoundError
from gossip_ledger.limits import UNCERTIFIED_ENTRIES_MAX
from gossip_ledger.records import Body, Entry, RecordId, Release
from gossip_ledger.signing import Signer, record_id, sign_record
from gossip_ledger.soundness import extend_account
from peer.capabilities import Clock
from peer.ledger_service import LedgerService


@final
class Author:
    """Writes entries and releases for one account. One author per key: the key's lock file sees to that."""

    def __init__(self, *, service: LedgerService, signer: Signer, clock: Clock) -> None:
        self._service = service
        self._signer = signer
        self._clock = clock
        self._lock = trio.Lock()

    async def write(self, body: Body) -> RecordId:
        """Appends one entry and returns its id. Raises `LocalError` if this account cannot say that now."""
        async with self._lock:
            ledger = self._service.ledger
            tip = ledger.tip(self._signer.account)
            if self._signer.account in ledger.equivocators():
                raise LocalError(
                    "this account is frozen: two different entries were signed at one place of its chain"
                )
            if len(ledger.pending(self._signer.account)) >= UNCERTIFIED_ENTRIES_MAX:
                # The next one would be dropped by everybody, and its place signed twice.
                raise LocalError(
                    f"{UNCERTIFIED_ENTRIES_MAX} entries of this account wait for the witnesses; "
                    "try again once they answer"
                )
            entry = Entry(
                author=self._signer.account,
                seq=tip.seq + 1,
                prev=tip.head,
                epoch=max(tip.epoch, self._service.epoch(self._clock.now_s())),
                body=body,
            )
            signed = sign_record(entry, self._signer, self._service.network)
            try:
                extend_account(tip, entry, record_id(entry, self._service.network), self._service.genesis)
            except UnsoundError as error:
                raise LocalError(f"the ledger does not allow it: {error}") from error
            (written,) = await self._service.append_own(signed)
            return written

    async def release(self, hold: RecordId, spent: int) -> RecordId:
        """Lowers the limit of an expired hold to what was spent."""
        record = Release(author=self._signer.account, hold=hold, spent=spent)
        (written,) = await self._service.append_own(sign_record(record, self._signer, self._service.network))
        return written
