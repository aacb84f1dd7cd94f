"""The models that a worker answers for: every published model of its base, fetched, checked and loaded.

A model whose files cannot be had, or that the load policy refuses, is left out and said so once; the others
are not held up by it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, final

import structlog
import trio

from gossip_ledger.errors import UpkeepError
from gossip_ledger.records import Manifest, ModelId
from gpu_worker.tokenizer import Tokenizer
from peer.engine import AdapterRefusedError, Engine
from peer.ledger_service import LedgerService
from peer.library import Library
from peer.models import published

RETRY_S: Final = 2.0
"""Pause before a model that could not be had is tried again; the others do not wait for it."""


@final
class Stock:
    """What is resident in the engine. `resident` holds model ids and manifests; it only grows."""

    def __init__(self, *, service: LedgerService, library: Library, engine: Engine, folder: Path) -> None:
        self._service = service
        self._library = library
        self._engine = engine
        self._folder = folder
        self._refused: set[ModelId] = set()
        self._later: dict[ModelId, float] = {}
        """When a model that could not be had is tried again."""
        self.resident: dict[ModelId, Manifest] = {}
        self._log = structlog.get_logger("stock")

    async def tokenizer(self, manifest: Manifest) -> Tokenizer:
        """The tokenizer of a resident model."""
        return await self._library.tokenizer(manifest.base)

    async def run(self) -> None:
        """Follows the ledger: loads what is new, for as long as the worker runs."""
        seen = -1
        while True:
            with trio.move_on_after(RETRY_S):
                seen = await self._service.changed.wait(seen)
            for entry in published(self._service.ledger):
                if entry.model in self.resident or entry.model in self._refused:
                    continue
                if self._later.get(entry.model, 0.0) <= trio.current_time():
                    await self._take(entry.model, entry.manifest)

    async def _take(self, model: ModelId, manifest: Manifest) -> None:
        if manifest.base != self._engine.info.base:
            self._refused.add(model)
            return
        try:
            if manifest.kind == "adapter":
                folder = self._folder / model.hex()
                await self._library.write_files(manifest, folder)
                await self._engine.load_adapter(model, folder)
            await self._library.tables(model, manifest)
            await self._library.tokenizer(manifest.base)
        except AdapterRefusedError as error:
            self._refused.add(model)
            self._log.warning("model_refused", model=manifest.name, reason=str(error))
        except UpkeepError as error:
            self._log.info("model_not_had_yet", model=manifest.name, reason=str(error))
            self._later[model] = trio.current_time() + RETRY_S
        else:
            self.resident[model] = manifest
            self._later.pop(model, None)
            self._log.info("model_loaded", model=manifest.name, id=model.hex()[:8])
