"""What must hold in every world at every moment, seen from outside. `Broken` names the claim that fails."""

from __future__ import annotations

from typing import final

from gossip_ledger.ledger import Ledger
from gossip_ledger.records import Entry, Receipt, RecordId


class Broken(AssertionError):
    """A claim does not hold."""


@final
class Safety:
    """Looks at the ledgers of a world again and again and remembers what it saw."""

    def __init__(self) -> None:
        self._final_at: dict[tuple[bytes, int], RecordId] = {}
        self._final_of: dict[str, frozenset[RecordId]] = {}

    def look(self, name: str, ledger: Ledger) -> frozenset[RecordId]:
        """Checks one peer's ledger and returns what it holds final."""
        state = ledger.state()
        if state.total() != ledger.genesis.supply:
            raise Broken(f"{name}: the buckets sum to {state.total()}, the supply is {ledger.genesis.supply}")
        if state.alarms:
            raise Broken(f"{name}: alarm though at most f witnesses lie: {state.alarms[0]}")
        if not self._final_of.get(name, frozenset()) <= state.final:
            raise Broken(f"{name}: something final is not final any more")
        for key in state.final - self._final_of.get(name, frozenset()):
            self._check_slot(name, ledger, key)
        self._final_of[name] = state.final
        return state.final

    def _check_slot(self, name: str, ledger: Ledger, key: RecordId) -> None:
        """At most one record of a slot is final, wherever one looks."""
        signed = ledger.get(key)
        match signed.record if signed else None:
            case Entry(author=author, seq=seq):
                slot = (author, seq)
            case Receipt(bill=bill, n=n):
                slot = (bill.open, n)
            case _:
                return
        if self._final_at.setdefault(slot, key) != key:
            raise Broken(f"{name}: two records are final at one slot")
