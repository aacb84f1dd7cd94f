"""Bills and tab rows over an ask, for the tests of the books."""

from __future__ import annotations

from gossip_ledger.records import Bill, RecordId
from gossip_ledger.signing import sign_bill
from peer.rows import AskRow, TabRow
from tests.unit.peer.desk import MODEL, NETWORK, PAYER


def bill_of(row: AskRow, fee: int, *, ask: int | None = None) -> Bill:
    """A bill of the payer over `row`."""
    return Bill(
        payer=PAYER.account,
        open=row.open,
        ask=row.ask if ask is None else ask,
        model=MODEL,
        quote=RecordId(b"q" * 32),
        answers=1,
        tokens_in=1,
        tokens_out=1,
        fee=fee,
        epoch=0,
        prompt_commit=b"p" * 32,
        output_commit=b"o" * 32,
    )


def tab_of(row: AskRow, fee: int) -> TabRow:
    """The same as the worker keeps it, signed."""
    bill = bill_of(row, fee)
    return TabRow(bill=bill, signature=sign_bill(bill, PAYER, NETWORK), prompt=(1,), output=(2,))
