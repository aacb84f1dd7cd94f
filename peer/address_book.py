"""Addresses of other peers, kept over restarts: the ones that answered first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, final

import structlog
import trio

from gossip_ledger.codec import Schema, Table, text, uint
from gossip_ledger.errors import DecodeError, LocalError
from p2p.protocols.limits import ADDRESS_BYTES_MAX
from peer.store import Put, Store

NAMESPACE: Final = "address"
ADDRESSES_MAX: Final = 256
"""Addresses kept; those that never answered go first."""
FAILURES_MAX: Final = 64
SAVE_S: Final = 5.0
"""Changes are written together, at most this often: losing the last few harms nobody."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AddressRow:
    """One address and how its dials went."""

    address: str
    answers: int
    failures: int
    """Since the last answer."""


_ROWS: Final = Schema(
    Table(
        1,
        AddressRow,
        (("address", text(ADDRESS_BYTES_MAX)), ("answers", uint()), ("failures", uint(FAILURES_MAX))),
    ),
    bytes_max=1024,
)


@final
class StoredAddressBook:
    """See `p2p.links.AddressBook`. `run` writes changes to the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rows: dict[str, AddressRow] = {}
        self._changed: set[str] = set()
        self._log = structlog.get_logger("addresses")

    def list(self) -> Sequence[str]:
        return [row.address for row in sorted(self._rows.values(), key=_rank)]

    def add(self, address: str) -> None:
        if address not in self._rows and len(address.encode()) <= ADDRESS_BYTES_MAX:
            self._keep(AddressRow(address=address, answers=0, failures=0))

    def mark(self, address: str, *, did_answer: bool) -> None:
        row = self._rows.get(address) or AddressRow(address=address, answers=0, failures=0)
        if did_answer:
            self._keep(replace(row, answers=row.answers + 1, failures=0))
        else:
            self._keep(replace(row, failures=min(FAILURES_MAX, row.failures + 1)))

    def _keep(self, row: AddressRow) -> None:
        self._rows[row.address] = row
        self._changed.add(row.address)
        while len(self._rows) > ADDRESSES_MAX:
            worst = max(self._rows.values(), key=_rank).address
            del self._rows[worst]
            self._changed.add(worst)

    async def load(self) -> None:
        """Reads the book; rows that cannot be read are forgotten."""
        for _key, data in await self._store.scan(NAMESPACE):
            try:
                row: AddressRow = _ROWS.decode(data)
            except DecodeError:
                continue
            self._rows[row.address] = row

    async def run(self) -> None:
        """Writes changes until cancelled."""
        while True:
            await trio.sleep(SAVE_S)
            changed, self._changed = self._changed, set()
            puts: list[Put] = []
            for address in changed:
                row = self._rows.get(address)
                puts.append((NAMESPACE, address.encode(), None if row is None else _ROWS.encode(row)))
            try:
                await self._store.transact(puts)
            except LocalError as error:
                self._changed |= changed
                self._log.warning("addresses_not_saved", reason=str(error))


def _rank(row: AddressRow) -> tuple[int, int, str]:
    return (row.failures if row.answers else FAILURES_MAX + row.failures, -row.answers, row.address)
