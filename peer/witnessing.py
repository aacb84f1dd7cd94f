"""The witness' duty: acknowledge what is sound, in batches, each promise on disk before anybody sees its ack.

The policy is `gossip_ledger/witness.py`; here are its clock, its memory on disk and its signature. Promises
and acks are written in one transaction: a promise without its ack would never be acknowledged again, and
would end its chain for ever.
"""

from __future__ import annotations

from typing import Final, final

import structlog
import trio

from gossip_ledger.records import RecordId
from gossip_ledger.signing import Signer, sign_record
from gossip_ledger.witness import PROMISES, WitnessMemory, WitnessPolicy, acks
from peer.capabilities import Clock
from peer.ledger_service import LedgerService
from peer.store import Store

NAMESPACE: Final = "promise"
BATCH_S: Final = 1.0
"""Time between two batches while there is something to acknowledge."""
IDLE_S: Final = 10.0
"""Longest time between two looks, for what only the clock allows, such as a release."""


@final
class WitnessService:
    """Acknowledges records with this node's key, if the genesis names it."""

    def __init__(self, *, service: LedgerService, signer: Signer, store: Store, clock: Clock) -> None:
        self._service = service
        self._signer = signer
        self._store = store
        self._clock = clock
        self._policy = WitnessPolicy(service.genesis)
        self._memory = WitnessMemory()
        self.waiting: dict[RecordId, str] = {}
        """What was not acknowledged in the last look, and why."""
        self._log = structlog.get_logger("witness")

    @property
    def is_named(self) -> bool:
        return self._signer.account in self._service.genesis.witnesses

    async def run(self) -> None:
        """Looks after every change, at most once per `BATCH_S`."""
        await self._load()
        seen = -1
        while True:
            with trio.move_on_after(IDLE_S):
                seen = await self._service.changed.wait(seen)
            await self._look()
            await trio.sleep(BATCH_S)

    async def _load(self) -> None:
        """Reads every promise; whatever was written there may have been signed."""
        self._memory = WitnessMemory(PROMISES.decode(data) for _, data in await self._store.scan(NAMESPACE))

    async def _look(self) -> None:
        ledger = self._service.ledger
        epoch = self._service.epoch(self._clock.now_s())
        step = self._policy.step(ledger, self._memory, epoch, ledger.unfinished())
        self.waiting = dict(step.waiting)
        if not step.batch:
            return
        signed = [
            sign_record(ack, self._signer, self._service.network)
            for ack in acks(self._signer.account, step.batch)
        ]
        promises = [(NAMESPACE, promise.id, PROMISES.encode(promise)) for promise in step.promises]
        await self._service.append_own(*signed, puts=promises)
        self._memory.keep(step.promises)
        self._log.info("acknowledged", count=len(step.batch), waiting=len(step.waiting))
