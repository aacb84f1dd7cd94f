"""Who shaped an answer: what a worker puts into a receipt, and what any peer recomputes from the blobs."""

from __future__ import annotations

from typing import final

import trio

from attribution.evidence import EVIDENCE, collect, confirm, recompute
from gossip_ledger.errors import RemoteError
from gossip_ledger.records import BlobId, ModelId, Receipt, Weight
from gossip_ledger.signing import blob_id
from peer.ledger_service import LedgerService
from peer.library import Library
from peer.rows import TabRow


@final
class Attributor:
    """Computes and confirms the weights of receipts. Needs tokenizer and tables, never the model."""

    def __init__(self, *, service: LedgerService, library: Library) -> None:
        self._service = service
        self._library = library

    async def attribute(self, row: TabRow) -> tuple[tuple[Weight, ...], BlobId, bytes]:
        """The weights of an answer, and the evidence blob that they follow from. Raises `RemoteError`."""
        model = ModelId(row.bill.model)
        manifest = self._service.ledger.manifest(model)
        if manifest is None:
            raise RemoteError("the manifest of the model is not held")
        tables = await self._library.tables(model, manifest)
        tokenizer = await self._library.tokenizer(manifest.base)

        def compute() -> tuple[tuple[Weight, ...], bytes]:
            evidence = collect(
                model,
                row.bill.output_commit,
                tokenizer.decode(row.prompt).encode("utf-8"),
                tokenizer.decode(row.output).encode("utf-8"),
            )
            return recompute(manifest, tables, evidence), EVIDENCE.encode(evidence)

        weights, blob = await trio.to_thread.run_sync(compute)
        return weights, blob_id(blob), blob

    async def confirm(self, receipt: Receipt) -> None:
        """Recomputes a receipt's weights from its evidence blob, fetched by hash. Raises `RemoteError`."""
        model = ModelId(receipt.bill.model)
        manifest = self._service.ledger.manifest(model)
        if manifest is None:
            raise RemoteError("the manifest of the model is not held yet")
        if not receipt.sketch:
            raise RemoteError("the receipt names no evidence")
        tables = await self._library.tables(model, manifest)
        blob = await self._library.blob(BlobId(receipt.sketch), receipt.worker)
        await trio.to_thread.run_sync(confirm, receipt, manifest, tables, blob)
