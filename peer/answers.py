"""The answers asked from here, kept so that receipts which come later can be shown with them."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, final

from gossip_ledger.ledger import Ledger
from gossip_ledger.records import Receipt, RecordId
from peer.api import Answer, ErrorCode, RequestError, Split
from peer.ledger_service import LedgerService
from peer.models import published
from peer.rows import ANSWER_ROWS, AnswerRow, AskRef
from peer.store import Store
from peer.views import Names, receipt_shares, split_view

NAMESPACE: Final = "answer"
ANSWERS_MAX: Final = 1000
"""Answers kept; the oldest are forgotten first. Their receipts stay in the ledger."""


@final
class AnswerBook:
    """Answers by id, the newest last."""

    def __init__(self, *, service: LedgerService, store: Store) -> None:
        self._service = service
        self._store = store
        self._rows: OrderedDict[bytes, AnswerRow] = OrderedDict()
        self._next = 0

    async def load(self) -> None:
        for key, data in await self._store.scan(NAMESPACE):
            row: AnswerRow = ANSWER_ROWS.decode(data)
            self._rows[row.id] = row
            self._next = int.from_bytes(key, "big") + 1

    async def keep(self, row: AnswerRow) -> None:
        """Remembers an answer. Durable on return."""
        puts: list[tuple[str, bytes, bytes | None]] = [(NAMESPACE, _key(self._next), ANSWER_ROWS.encode(row))]
        if len(self._rows) >= ANSWERS_MAX:
            self._rows.popitem(last=False)
            puts.append((NAMESPACE, _key(self._next - ANSWERS_MAX), None))
        self._rows[row.id] = row
        self._next += 1
        await self._store.transact(puts)

    def find(self, answer_id: str) -> Answer:
        """An answer with every receipt that is known by now. Raises `RequestError`."""
        try:
            row = self._rows[bytes.fromhex(answer_id)]
        except (KeyError, ValueError):
            raise RequestError(ErrorCode.NOT_FOUND, f"no answer {answer_id} was asked from here") from None
        return self.view(row)

    def view(self, row: AnswerRow) -> Answer:
        """The answer as the outside sees it."""
        ledger = self._service.ledger
        names = Names(ledger, published(ledger))
        found = [receipt_of(ledger, ask) for ask in row.asks]
        shares: list[Split] = []
        if None not in found:
            for ident, receipt in (pair for pair in found if pair is not None):
                manifest = ledger.manifest(receipt.bill.model)
                if manifest is not None:
                    shares += [
                        split_view(part, manifest, names) for part in receipt_shares(ledger, ident, receipt)
                    ]
        seconds = max(1, row.duration_ms - row.ttft_ms) / 1000
        return {
            "id": row.id.hex(),
            "model": row.name,
            "model_id": row.model.hex(),
            "text": row.text.decode("utf-8", "ignore"),
            "finish": row.finish,
            "tokens_in": row.tokens_in,
            "tokens_out": row.tokens_out,
            "fee": sum(
                ask.fee if pair is None else pair[1].bill.fee
                for ask, pair in zip(row.asks, found, strict=True)
            ),
            "receipt": [pair[0].hex() for pair in found if pair is not None],
            "worker": row.workers[-1].hex() if row.workers else "",
            "workers": [worker.hex() for worker in row.workers],
            "quantization": row.quantization,
            "ttft_ms": row.ttft_ms,
            "duration_ms": row.duration_ms,
            "tokens_per_s": round(max(0, row.tokens_out - 1) / seconds, 1),
            "failovers": row.failovers,
            "shares": shares,
        }


def receipt_of(ledger: Ledger, ask: AskRef) -> tuple[RecordId, Receipt] | None:
    """The receipt that closed an ask, once it is known."""
    for ident, receipt in ledger.receipts_under(ask.open):
        if receipt.bill.ask == ask.ask:
            return ident, receipt
    return None


def _key(number: int) -> bytes:
    return number.to_bytes(8, "big")
