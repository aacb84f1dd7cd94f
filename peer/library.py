"""What a model needs beside its manifest: files, tokenizers and attribution tables, by hash, from any peer.

A blob that is not in the store is fetched from the peers that are linked now, one after the other, and
checked while it arrives; so whoever serves it, it is the right one or none.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar, final

import structlog
import trio

from attribution.tables import Tables, decode_tables
from gossip_ledger.errors import LocalError, RemoteError
from gossip_ledger.records import AccountId, BlobId, File, Manifest, ModelId
from gpu_worker.tokenizer import Tokenizer
from peer.api import ErrorCode, RequestError
from peer.ledger_service import LedgerService, manifest_blob
from peer.models import base_manifest
from peer.store import Store

_K = TypeVar("_K")
_V = TypeVar("_V")

FetchBlobs = Callable[[AccountId, Sequence[BlobId]], Awaitable[dict[BlobId, bytes]]]
"""Asks one peer for blobs; returns those that it had, checked. Raises `RemoteError`."""

TOKENIZERS_MAX: Final = 4
TABLES_MAX: Final = 32
"""Decoded tables kept in memory: a few megabytes each."""
FETCH_BATCH: Final = 8
"""Blobs asked of one peer at once: at most 8 MiB."""
FETCH_RETRY_S: Final = 2.0
FILE_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
FILE_BYTES_MAX: Final = 256 << 20
"""Largest file put together in memory."""


@final
class Library:
    """Blobs and what is made of them. Safe to use from many tasks."""

    def __init__(
        self,
        *,
        service: LedgerService,
        store: Store,
        fetch: FetchBlobs,
        sources: Callable[[], Sequence[AccountId]],
    ) -> None:
        self._service = service
        self._store = store
        self._fetch = fetch
        self._sources = sources
        self._tokenizers: OrderedDict[bytes, Tokenizer] = OrderedDict()
        self._tables: OrderedDict[ModelId, Tables] = OrderedDict()
        self._lock = trio.Lock()
        self._log = structlog.get_logger("library")

    async def ensure(self, blobs: Sequence[BlobId], holder: AccountId | None = None) -> None:
        """Has all of `blobs` in the store on return. Raises `RemoteError` if nobody has one.

        Asks the peers that are linked now, then `holder`, wherever it is.
        """
        missing = list(await self._store.missing_blobs(blobs))
        linked = tuple(self._sources())
        for source in linked if holder is None or holder in linked else (*linked, holder):
            if not missing:
                return
            missing = await self._fetch_from(source, missing)
        if missing:
            raise RemoteError(f"{len(missing)} blobs are held by no peer that can be reached now")

    async def _fetch_from(self, source: AccountId, missing: list[BlobId]) -> list[BlobId]:
        left: list[BlobId] = []
        for start in range(0, len(missing), FETCH_BATCH):
            batch = missing[start : start + FETCH_BATCH]
            try:
                found = await self._fetch(source, batch)
            except RemoteError as error:
                self._log.info("fetch_failed", source=source.hex()[:8], reason=str(error))
                return left + missing[start:]
            await self._store.put_blobs(list(found.items()))
            left.extend(blob for blob in batch if blob not in found)
        return left

    async def blob(self, blob: BlobId, holder: AccountId | None = None) -> bytes:
        """One blob's bytes; see `ensure`. Raises `RemoteError`."""
        await self.ensure([blob], holder)
        data = await self._store.get_blob(blob)
        if data is None:
            raise RemoteError("a blob was damaged on disk just now; ask again")
        return data

    async def file(self, file: File) -> bytes:
        """The contents of a file, put together from its blobs. Raises `RemoteError`."""
        if file.size > FILE_BYTES_MAX:
            raise RemoteError(f"{file.name} is larger than {FILE_BYTES_MAX} bytes")
        await self.ensure(file.chunks)
        data = bytearray()
        for chunk in file.chunks:
            data += await self._store.get_blob(chunk) or b""
            if len(data) > file.size:
                break
        if len(data) != file.size:
            raise RemoteError(
                f"the blobs of {file.name} are not the {file.size} bytes that its manifest says"
            )
        return bytes(data)

    async def tokenizer(self, base: bytes) -> Tokenizer:
        """The tokenizer of a base, as its published manifest binds it. Raises `RequestError`."""
        found = self._tokenizers.get(base)
        if found is not None:
            return found
        async with self._lock:
            found = self._tokenizers.get(base)
            if found is None:
                found = await self._load_tokenizer(base)
                _remember(self._tokenizers, base, found, TOKENIZERS_MAX)
            return found

    async def _load_tokenizer(self, base: bytes) -> Tokenizer:
        manifest = base_manifest(self._service.ledger, base)
        if manifest is None:
            raise RequestError(
                ErrorCode.NOT_READY,
                "the base of that model is not published here yet; wait for the ledger to catch up",
            )
        try:
            contents = {file.name: await self.file(file) for file in manifest.files}
            return await trio.to_thread.run_sync(Tokenizer, contents)
        except RemoteError as error:
            raise RequestError(
                ErrorCode.NOT_READY, f"the tokenizer of that base cannot be had: {error}"
            ) from error

    async def tables(self, model: ModelId, manifest: Manifest) -> Tables | None:
        """The attribution tables of a model; None if it publishes none. Raises `RemoteError`."""
        if not manifest.tables:
            return None
        found = self._tables.get(model)
        if found is None:
            data = await self.file(manifest.tables[0])
            found = await trio.to_thread.run_sync(decode_tables, data)
            _remember(self._tables, model, found, TABLES_MAX)
        return found

    async def write_files(self, manifest: Manifest, folder: Path) -> None:
        """Puts a model's files into `folder`, each whole or not at all. Names are checked."""
        for file in manifest.files:
            if not FILE_NAME.fullmatch(file.name):
                raise RemoteError(f"a manifest names a file {file.name!r}")
            data = await self.file(file)
            await trio.to_thread.run_sync(_write_whole, folder / file.name, data)

    async def keep_manifests(self) -> None:
        """Fetches every manifest that the ledger names and does not hold, for as long as the node runs."""
        seen, useless = -1, set[ModelId]()
        while True:
            with trio.move_on_after(FETCH_RETRY_S):
                seen = await self._service.changed.wait(seen)
            wanted = self._service.ledger.wanted_manifests()
            useless &= wanted
            missing = sorted(wanted - useless)
            try:
                await self.ensure([manifest_blob(model) for model in missing])
            except RemoteError as error:
                self._log.debug("manifests_missing", reason=str(error))
            for model in missing:
                data = await self._store.get_blob(manifest_blob(model))
                try:
                    if data is not None:
                        await self._service.add_manifest(data)
                except RemoteError as error:
                    useless.add(model)
                    self._log.info("not_a_manifest", model=model.hex()[:8], reason=str(error))


def _remember(cache: OrderedDict[_K, _V], key: _K, value: _V, most: int) -> None:
    cache[key] = value
    while len(cache) > most:
        cache.popitem(last=False)


def _write_whole(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        raise LocalError(
            f"cannot write {path}: {error.strerror}; free some space or check its rights"
        ) from error
