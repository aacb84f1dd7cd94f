"""The worker's book: bills kept durably before the next chunk leaves, one receipt per ask, never two at one n.

A tab row holds the last bill that the payer signed and what was delivered for it. After a crash every row
that has a bill becomes a receipt; a row without one owed nothing and is dropped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Final, final

import structlog
import trio

from gossip_ledger.records import AccountId, BlobId, Open, Receipt, RecordId, Signed, Weight
from gossip_ledger.signing import Signer, countersign
from peer.capabilities import Clock
from peer.ledger_service import LedgerService
from peer.rows import TAB_ROWS, AskKey, TabRow, ask_key_bytes
from peer.store import Store

NAMESPACE: Final = "tab"

Attribute = Callable[[TabRow], tuple[tuple[Weight, ...], BlobId | None, bytes]]
"""From what was delivered to evidence: the pairs, and the evidence blob with its id (or none)."""


@final
class Till:
    """Earns for one account."""

    def __init__(
        self, *, service: LedgerService, signer: Signer, store: Store, clock: Clock, attribute: Attribute, exposure: int
    ) -> None:
        self._service = service
        self._signer = signer
        self._store = store
        self._clock = clock
        self._attribute = attribute
        self._exposure = exposure
        self._running: dict[RecordId, dict[int, int]] = defaultdict(dict)
        """open -> ask -> the most it may still cost."""
        self._locks: dict[RecordId, trio.Lock] = defaultdict(trio.Lock)
        self._log = structlog.get_logger("till")

    async def settle_leftovers(self) -> int:
        """Turns bills that were signed before a crash into receipts. Returns how many."""
        settled = 0
        for _key, data in await self._store.scan(NAMESPACE):
            row: TabRow = TAB_ROWS.decode(data)
            if row.bill.ask in self._service.ledger.open_state(row.bill.open).tip_tab.fees:
                await self._forget(row.key)
                continue
            await self.settle(row)
            settled += 1
        return settled

    def admit(self, *, payer: AccountId, opened: RecordId, ask: int, max_fee: int) -> str | None:
        """Takes on an ask, or says in words why not. What was admitted must be settled or `dropped`."""
        ledger = self._service.ledger
        state = ledger.open_state(opened) if ledger.has(opened) else None
        if state is None:
            return "that open is not known here yet; send it along or wait for gossip"
        body = state.entry.body
        if not isinstance(body, Open) or body.worker != self._signer.account or state.entry.author != payer:
            return "that open is not between you and me"
        if payer in ledger.equivocators():
            return "the payer's account is frozen"
        if state.is_released or self._service.epoch(self._clock.now_s()) > body.expiry:
            return "that open has expired; start another"
        if ask in state.tip_tab.fees or ask in self._running[opened]:
            return "that ask number was used before"
        promised = sum(self._running[opened].values())
        if state.tip_tab.cumulative + promised + max_fee > state.limit:
            return "that open has no room for this ask; start another"
        if not state.is_final:
            if not state.is_sound:
                return "that open is not sound: its chain does not cover it"
            if state.tip_tab.cumulative + promised + max_fee > self._exposure:
                return "that open is not final yet and the ask is above what I risk before; wait a moment"
        self._running[opened][ask] = max_fee
        return None

    def dropped(self, key: AskKey) -> None:
        """An admitted ask ended without a bill: nothing is owed."""
        self._running[key[0]].pop(key[1], None)

    async def keep(self, row: TabRow) -> None:
        """Stores a bill and what was delivered. Durable on return; only then may the next chunk leave."""
        await self._store.transact([(NAMESPACE, ask_key_bytes(row.key), TAB_ROWS.encode(row))])

    async def settle(self, row: TabRow) -> Signed:
        """Countersigns the last bill, publishes the receipt and closes the tab. Waits for its turn under the open."""
        bill = row.bill
        evidence, sketch, blob = self._attribute(row)
        if sketch is not None:
            await self._store.put_blobs([(sketch, blob)])
        async with self._locks[bill.open]:
            tab = self._service.ledger.open_state(bill.open).tip_tab
            receipt = Receipt(
                worker=self._signer.account,
                n=tab.n + 1,
                prev=tab.head,
                cumulative=tab.cumulative + bill.fee,
                bill=bill,
                evidence=evidence,
                sketch=sketch or b"",
            )
            signed = countersign(receipt, row.signature, self._signer, self._service.network)
            await self._service.append_own(signed)
        self.dropped(row.key)
        await self._forget(row.key)
        self._log.info("receipt", fee=bill.fee, tokens=bill.tokens_out, open=bill.open.hex()[:8])
        return signed

    async def _forget(self, key: AskKey) -> None:
        await self._store.transact([(NAMESPACE, ask_key_bytes(key), None)])
