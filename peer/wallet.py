"""The payer's book: opens sized ahead of need, asks reserved before they are sent, nothing charged twice.

For each open, `committed` is what final receipts say and, for asks without one, the last bill signed, or the
ask's `max_fee` while it runs (also after a crash). It never exceeds the open's limit, and no release says
less. A row is kept until its receipt is final or its open released.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, final

import structlog
import trio

from gossip_ledger.errors import LocalError
from gossip_ledger.records import AccountId, Collect, ModelId, Open, RecordId
from peer.author import Author
from peer.capabilities import Clock, Entropy
from peer.ledger_service import LedgerService
from peer.rows import ASK_ROWS, AskKey, AskRow, ask_key_bytes
from peer.store import Store

NAMESPACE: Final = "ask"
OPEN_EPOCHS: Final = 144
"""How long a new open lasts: a day of ten-minute epochs."""
OPEN_ASKS: Final = 16
"""A new open is sized for about this many asks like the one that needs it."""
OPEN_SHARE: Final = 4
"""...but for at most 1/4 of what can be spent, if that covers the ask."""
RENEW_BEFORE_EPOCHS: Final = 2
"""An open this close to its expiry takes no new asks."""
HOUSEKEEPING_S: Final = 1.0


@final
class Wallet:
    """Spends from one account. Books are durable before anything leaves this node."""

    def __init__(
        self,
        *,
        service: LedgerService,
        author: Author,
        account: AccountId,
        store: Store,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self.account = account
        self._service = service
        self._author = author
        self._store = store
        self._clock = clock
        self._entropy = entropy
        self._asks: dict[RecordId, dict[int, AskRow]] = {}
        self._live: set[AskKey] = set()
        """Asks that may still be billed: they run here and now."""
        self._opening = trio.Lock()
        """One at a time finds room or makes it, so that no two spend the same money."""
        self._collecting = trio.Lock()
        self._log = structlog.get_logger("wallet")

    async def load(self) -> None:
        """Reads the book. An ask that was running when this node stopped keeps counting at its `max_fee`."""
        for _key, data in await self._store.scan(NAMESPACE):
            row: AskRow = ASK_ROWS.decode(data)
            self._asks.setdefault(row.open, {})[row.ask] = row

    def committed(self, opened: RecordId) -> int:
        """What was or may yet be billed under an open, micro-units."""
        tab = self._service.ledger.open_state(opened).tab
        rows = self._asks.get(opened, {}).values()
        return tab.cumulative + sum(row.committed for row in rows if row.ask not in tab.fees)

    def headroom(self, opened: RecordId) -> int:
        """What a new ask under this open may cost at most."""
        return self._service.ledger.open_state(opened).limit - self.committed(opened)

    def spendable(self) -> int:
        """What the next entry of this account's chain may debit, micro-units."""
        tip = self._service.ledger.tip(self.account)
        epoch = max(tip.epoch, self._epoch())
        return tip.spendable(self._service.genesis, epoch)

    def usable_open(self, worker: AccountId, need: int) -> RecordId | None:
        """An open to `worker` with room for `need`, if there is one."""
        epoch = self._epoch()
        for state in self._service.ledger.opens_of(self.account):
            body = state.entry.body
            if (
                isinstance(body, Open)
                and body.worker == worker
                and state.is_sound
                and not state.is_released
                and epoch + RENEW_BEFORE_EPOCHS <= body.expiry
                and self.headroom(state.id) >= need
            ):
                return state.id
        return None

    async def reserve(self, *, worker: AccountId, model: ModelId, answer: bytes, max_fee: int) -> AskRow:
        """Reserves `max_fee` under a fresh ask number of an open to `worker`, a new one if need be.

        Durable on return, before anything is sent. What was reserved must be `close`d. Raises `LocalError`
        without funds.
        """
        async with self._opening:
            opened = self.usable_open(worker, max_fee) or await self._open(worker, max_fee)
            row = AskRow(
                open=opened,
                ask=self._fresh_number(opened),
                worker=worker,
                model=model,
                answer=answer,
                max_fee=max_fee,
                fee=0,
                is_closed=0,
            )
            self._asks.setdefault(opened, {})[row.ask] = row
            self._live.add(row.key)
        try:
            await self._write(row)
        except BaseException:
            self._live.discard(row.key)
            self._drop(row)
            raise
        return row

    def _fresh_number(self, opened: RecordId) -> int:
        taken, settled = self._asks.get(opened, {}), self._service.ledger.open_state(opened).tip_tab.fees
        while True:
            ask = self._entropy.randbits(63)
            if ask not in taken and ask not in settled:
                return ask

    async def _open(self, worker: AccountId, need: int) -> RecordId:
        available = await self.raise_funds(need)
        if available < need:
            raise LocalError(
                f"this answer may cost {need} micro-units and {max(0, available)} can be spent; "
                "lower max_tokens or max_fee, or add money to the account"
            )
        limit = max(need, min(OPEN_ASKS * need, available // OPEN_SHARE))
        return await self._author.write(Open(worker=worker, limit=limit, expiry=self._epoch() + OPEN_EPOCHS))

    async def raise_funds(self, need: int) -> int:
        """What can be spent, after collecting what was earned if that is what it takes. Micro-units."""
        if self.spendable() < need:
            await self._collect()
        return self.spendable()

    async def close(self, key: AskKey, fee: int) -> None:
        """No further bill will be signed for this ask; `fee` is what the last one said."""
        row = replace(self._asks[key[0]][key[1]], fee=fee, is_closed=1)
        assert row.fee <= row.max_fee, "a bill above its maximum was signed"
        try:
            await self._write(row)
            self._asks[row.open][row.ask] = row
        finally:
            self._live.discard(key)

    def _drop(self, row: AskRow) -> None:
        rows = self._asks[row.open]
        del rows[row.ask]
        if not rows:
            del self._asks[row.open]

    async def _write(self, row: AskRow) -> None:
        await self._store.transact([(NAMESPACE, ask_key_bytes(row.key), ASK_ROWS.encode(row))])

    async def run(self) -> None:
        """Keeps house after changes, for as long as the node runs."""
        seen = -1
        while True:
            with trio.move_on_after(60):
                seen = await self._service.changed.wait(seen)
            await self.keep_house()
            await trio.sleep(HOUSEKEEPING_S)

    async def keep_house(self) -> None:
        """Collects earnings once they exceed what can be spent, releases what expired, forgets what is over.

        Smaller earnings wait until they are needed: each collect is an entry that everybody keeps.
        """
        try:
            if self._uncollected() > max(0, self.spendable()):
                await self._collect()
            await self._release()
            await self._forget()
        except LocalError as error:
            self._log.warning("housekeeping_failed", reason=str(error))

    def _uncollected(self) -> int:
        ledger = self._service.ledger
        state = ledger.account(self.account)
        return 0 if state.is_frozen else state.entitled - ledger.tip(self.account).collected

    async def _collect(self) -> None:
        async with self._collecting:
            amount = self._uncollected()
            if amount > 0:
                entitled = self._service.ledger.account(self.account).entitled
                await self._author.write(Collect(cumulative=entitled))
                self._log.info("collected", amount=amount)

    async def _release(self) -> None:
        epoch = self._epoch()
        for state in self._service.ledger.opens_of(self.account):
            body = state.entry.body
            if (
                isinstance(body, Open)
                and state.is_final
                and not state.is_released
                and epoch > body.expiry + self._service.genesis.grace_epochs
                and all(opened != state.id for opened, _ in self._live)
            ):
                await self._author.release(state.id, self.committed(state.id))

    async def _forget(self) -> None:
        """Drops the rows that say nothing that the ledger does not, and those of released opens."""
        ledger = self._service.ledger
        done: list[AskRow] = []
        for opened, rows in self._asks.items():
            if ledger.has(opened):
                state = ledger.open_state(opened)
                done += [row for row in rows.values() if state.is_released or row.ask in state.tab.fees]
        done = [row for row in done if row.key not in self._live]
        await self._store.transact([(NAMESPACE, ask_key_bytes(row.key), None) for row in done])
        for row in done:
            self._drop(row)

    def _epoch(self) -> int:
        return self._service.epoch(self._clock.now_s())
