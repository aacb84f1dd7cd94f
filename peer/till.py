"""The worker's book: bills durable before the next chunk leaves, one receipt per ask, never two at one n.

A tab row holds the last bill that the payer signed and what was delivered for it. After a crash every row
that has a bill becomes a receipt; a row without one owed nothing and is dropped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Final, final

import structlog
import trio

from gossip_ledger.errors import UnsoundError
from gossip_ledger.records import AccountId, BlobId, Open, Receipt, RecordId, Signed, Weight
from gossip_ledger.signing import Signer, countersign
from p2p.protocols import codes
from p2p.protocols.ask_worker_state import Refuse
from peer.capabilities import Clock
from peer.ledger_service import LedgerService
from peer.rows import TAB_ROWS, AskKey, TabRow, ask_key_bytes
from peer.store import Store

NAMESPACE: Final = "tab"

Attribute = Callable[[TabRow], Awaitable[tuple[tuple[Weight, ...], BlobId, bytes]]]
"""From what was delivered to its evidence: the pairs, and the evidence blob with its id."""


@final
class Till:
    """Earns for one account."""

    def __init__(
        self,
        *,
        service: LedgerService,
        signer: Signer,
        store: Store,
        clock: Clock,
        attribute: Attribute,
        exposure: int,
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

    def admit(self, *, payer: AccountId, opened: RecordId, ask: int, max_fee: int) -> Refuse | None:
        """Takes on an ask, or says why not. What was admitted must be settled or `dropped`.

        A refusal with `retry_after_ms` may end by itself: the open is not known or not final yet.
        """
        ledger = self._service.ledger
        try:
            state = ledger.open_state(opened)
        except UnsoundError:
            return Refuse(code=codes.BAD_OPEN, reason="that open is not known here yet", retry_after_ms=1000)
        body = state.entry.body
        if not isinstance(body, Open) or body.worker != self._signer.account or state.entry.author != payer:
            return Refuse(code=codes.BAD_OPEN, reason="that open is not between you and me")
        if payer in ledger.equivocators():
            return Refuse(code=codes.BAD_OPEN, reason="the payer's account is frozen")
        if state.is_released or self._service.epoch(self._clock.now_s()) > body.expiry:
            return Refuse(code=codes.BAD_OPEN, reason="that open has expired; start another")
        tab, running = state.tip_tab, self._running[opened]
        if ask in tab.fees or ask in running:
            return Refuse(code=codes.USED_ASK, reason="that ask number was used before")
        most = tab.cumulative + sum(running.values()) + max_fee
        if most > state.limit:
            return Refuse(code=codes.UNFUNDED, reason="that open has no room for this ask; start another")
        if not state.is_sound:
            return Refuse(
                code=codes.BAD_OPEN, reason="that open can never become final: its account does not cover it"
            )
        if not state.is_final and most > self._exposure:
            reason = "that open is not final yet, and the ask is above what is risked before"
            return Refuse(code=codes.BAD_OPEN, reason=reason, retry_after_ms=1000)
        running[ask] = max_fee
        return None

    def dropped(self, key: AskKey) -> None:
        """An admitted ask ended without a bill: nothing is owed."""
        self._running[key[0]].pop(key[1], None)

    async def keep(self, row: TabRow) -> None:
        """Stores a bill and what was delivered. Durable on return; only then may the next chunk leave."""
        await self._store.transact([(NAMESPACE, ask_key_bytes(row.key), TAB_ROWS.encode(row))])

    async def settle(self, row: TabRow) -> Signed:
        """Countersigns the last bill and publishes the receipt, in turn with others under the same open."""
        bill = row.bill
        evidence, sketch, blob = await self._attribute(row)
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
                sketch=sketch,
            )
            signed = countersign(receipt, row.signature, self._signer, self._service.network)
            await self._service.append_own(signed)
        self.dropped(row.key)
        await self._forget(row.key)
        self._log.info("receipt", fee=bill.fee, tokens=bill.tokens_out, open=bill.open.hex()[:8])
        return signed

    async def _forget(self, key: AskKey) -> None:
        await self._store.transact([(NAMESPACE, ask_key_bytes(key), None)])
