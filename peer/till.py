"""The worker's book: bills durable before the next chunk leaves, one receipt per ask, never two at one n.

A tab row holds the last bill that the payer signed and what was delivered for it. A row whose stream has
ended without a receipt, also by a crash, becomes one in `run`, as often as it takes; until then it counts
against its open like an ask that is served. Without a row nothing is owed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, final
from weakref import WeakValueDictionary

import structlog
import trio

from gossip_ledger.errors import RemoteError, UnsoundError, UpkeepError
from gossip_ledger.records import AccountId, BlobId, Open, Receipt, RecordId, Signed, Weight
from gossip_ledger.signing import Signer, countersign, record_id
from gossip_ledger.soundness import extend_tab
from gossip_ledger.state import OpenState
from p2p.protocols import codes
from p2p.protocols.ask_worker_state import Refuse
from peer.capabilities import Clock
from peer.ledger_service import LedgerService
from peer.rows import TAB_ROWS, AskKey, TabRow, ask_key_bytes
from peer.store import Put, Store

NAMESPACE: Final = "tab"
RETRY_S: Final = 2.0
"""Pause before a receipt that could not be made is tried again."""
ASKS_AT_RISK_MAX: Final = 16
"""Asks of one payer that may be unpaid under opens that are not final."""
RECEIPTS_WAITING_MAX: Final = 512
"""Receipts of this worker that no quorum has acked; beyond it no ask is taken on. Half of what peers keep."""

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
        self.exposure = exposure
        """Most that one payer may owe under opens that are not final, micro-units."""
        self._claims: dict[RecordId, dict[int, int]] = {}
        """open -> ask -> the most it may still cost, until its receipt is written."""
        self._left: dict[AskKey, str] = {}
        """Asks that nobody serves any more, with why there is no receipt yet."""
        self._waiting: set[RecordId] = set()
        """Receipts written and not seen final."""
        self._woken = trio.Event()
        self._locks: WeakValueDictionary[RecordId, trio.Lock] = WeakValueDictionary()
        """By open, while somebody holds or awaits one."""
        self._log = structlog.get_logger("till")

    async def load(self) -> None:
        """Takes up what an earlier life left. Before anything is admitted; `run` settles it."""
        for _key, data in await self._store.scan(NAMESPACE):
            row: TabRow = TAB_ROWS.decode(data)
            self._claims.setdefault(row.bill.open, {})[row.bill.ask] = row.bill.fee
            self._left[row.key] = ""
        ledger = self._service.ledger
        for key in ledger.unfinished():
            signed = ledger.get(key)
            if signed is not None and self._is_ours(signed.record):
                self._waiting.add(key)

    async def run(self) -> None:
        """Makes receipts of what was left behind, for as long as the worker runs."""
        while True:
            self._woken = trio.Event()
            await self.settle_left()
            with trio.move_on_after(RETRY_S if self._left else float("inf")):
                await self._woken.wait()

    async def settle_left(self) -> None:
        """One try for each ask that was left."""
        for key in sorted(self._left):
            try:
                await self._settle_one(key)
            except UpkeepError as error:
                self._note(key, str(error))

    async def _settle_one(self, key: AskKey) -> None:
        data = await self._store.get(NAMESPACE, ask_key_bytes(key))
        if data is None:
            self.dropped(key)
        elif self._is_lost(key):
            await self._store.transact([_deletion(key)])
            self.dropped(key)
        else:
            await self.settle(TAB_ROWS.decode(data))

    def _is_lost(self, key: AskKey) -> bool:
        """Whether no receipt can come of a bill: there is one, or its open expired without becoming final."""
        state = self._service.ledger.open_state(key[0])
        assert isinstance(state.entry.body, Open)
        last = state.entry.body.expiry + self._service.genesis.grace_epochs
        is_late = self._service.epoch(self._clock.now_s()) > last
        return key[1] in state.tip_tab.fees or (is_late and not state.is_final)

    def _note(self, key: AskKey, reason: str) -> None:
        if self._left.get(key) != reason:
            self._left[key] = reason
            self._log.info("receipt_waits", open=key[0].hex()[:8], reason=reason)

    def admit(self, *, payer: AccountId, opened: RecordId, ask: int, max_fee: int) -> Refuse | None:
        """Takes on an ask, or says why not. What was admitted must be settled, `dropped` or `left`.

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
        if ask in state.tip_tab.fees or ask in self._claims.get(opened, {}):
            return Refuse(code=codes.USED_ASK, reason="that ask number was used before")
        if self._owed(state) + max_fee > state.limit:
            return Refuse(code=codes.UNFUNDED, reason="that open has no room for this ask; start another")
        if not state.is_sound:
            return Refuse(
                code=codes.BAD_OPEN, reason="that open can never become final: its account does not cover it"
            )
        if not state.is_final and not self._is_worth_risking(payer, max_fee):
            reason = "that open is not final yet, and the ask is above what is risked before"
            return Refuse(code=codes.BAD_OPEN, reason=reason, retry_after_ms=1000)
        self._waiting = set(filter(self._is_waiting, self._waiting))
        if len(self._waiting) >= RECEIPTS_WAITING_MAX:
            return Refuse(
                code=codes.BUSY, reason="too many receipts wait for the witnesses", retry_after_ms=1000
            )
        self._claims.setdefault(opened, {})[ask] = max_fee
        return None

    def _owed(self, state: OpenState) -> int:
        """What was or may yet be earned under an open, micro-units."""
        return state.tip_tab.cumulative + sum(self._claims.get(state.id, {}).values())

    def _is_worth_risking(self, payer: AccountId, max_fee: int) -> bool:
        """Whether one more ask may run while it is open if it is ever paid.

        All opens of the payer that are not final count together: if it signed rivals, none may ever be.
        """
        mine = self._signer.account
        pending = [
            state
            for state in self._service.ledger.opens_of(payer)
            if isinstance(state.entry.body, Open) and state.entry.body.worker == mine and not state.is_final
        ]
        asks = sum(len(self._claims.get(state.id, {})) for state in pending)
        return asks < ASKS_AT_RISK_MAX and sum(map(self._owed, pending)) + max_fee <= self.exposure

    @property
    def unwritten(self) -> int:
        """Asks with a bill, or being served, whose receipt is not written yet. They survive a restart."""
        return sum(len(asks) for asks in self._claims.values())

    def dropped(self, key: AskKey) -> None:
        """Nothing is owed for this ask any more: it ended without a bill, or its receipt is written."""
        self._left.pop(key, None)
        asks = self._claims.get(key[0], {})
        asks.pop(key[1], None)
        if not asks:
            self._claims.pop(key[0], None)

    def left(self, key: AskKey) -> None:
        """The stream of this ask has ended. If its last bill is not settled, `run` does it."""
        if key[1] in self._claims.get(key[0], {}):
            self._left[key] = ""
            self._woken.set()

    async def keep(self, row: TabRow) -> None:
        """Stores a bill and what was delivered. Durable on return; only then may the next chunk leave."""
        await self._store.transact([(NAMESPACE, ask_key_bytes(row.key), TAB_ROWS.encode(row))])

    async def settle(self, row: TabRow) -> Signed:
        """Countersigns the last bill and publishes the receipt, in turn with others under the same open.

        Raises `RemoteError` where it cannot count, or not yet: the row stays, and nothing was signed. Under
        an open that never becomes final nothing ever is: such a receipt would take a place for good.
        """
        evidence, sketch, blob = await self._attribute(row)
        await self._store.put_blobs([(sketch, blob)])
        lock = self._locks.setdefault(row.bill.open, trio.Lock())
        async with lock:
            receipt = self._next_receipt(row, evidence, sketch)
            signed = countersign(receipt, row.signature, self._signer, self._service.network)
            (written,) = await self._service.append_own(signed, puts=[_deletion(row.key)])
        self._waiting.add(written)
        self.dropped(row.key)
        self._log.info("receipt", fee=row.bill.fee, tokens=row.bill.tokens_out, open=row.bill.open.hex()[:8])
        return signed

    def _next_receipt(self, row: TabRow, evidence: tuple[Weight, ...], sketch: BlobId) -> Receipt:
        """What continues the tab. Raises `RemoteError` if that is unsound, or its place is taken."""
        bill, ledger = row.bill, self._service.ledger
        manifest = ledger.manifest(bill.model)
        if manifest is None:
            raise RemoteError("the manifest of the model is not held")
        state = ledger.open_state(bill.open)
        if not state.is_final:
            raise UnsoundError("its open is not final yet")
        tab = state.tip_tab
        if any(self._is_ours(other) for _, other in ledger.receipts_at(bill.open, tab.n + 1)):
            raise UnsoundError(f"receipt {tab.n + 1} was signed before and does not count here yet")
        receipt = Receipt(
            worker=self._signer.account,
            n=tab.n + 1,
            prev=tab.head,
            cumulative=tab.cumulative + bill.fee,
            bill=bill,
            evidence=evidence,
            sketch=sketch,
        )
        extend_tab(tab, receipt, record_id(receipt, self._service.network), manifest)
        return receipt

    def _is_waiting(self, key: RecordId) -> bool:
        """Whether a receipt of ours may still become final, and is not."""
        ledger = self._service.ledger
        signed = ledger.get(key)
        if signed is None or ledger.is_final(key) or not isinstance(signed.record, Receipt):
            return False
        return not ledger.open_state(signed.record.bill.open).is_released

    def _is_ours(self, record: object) -> bool:
        return isinstance(record, Receipt) and record.worker == self._signer.account


def _deletion(key: AskKey) -> Put:
    return NAMESPACE, ask_key_bytes(key), None
