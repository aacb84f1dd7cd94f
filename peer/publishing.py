"""Making a model's manifest out of folders, storing what it names, and entering it in the creator's chain.

The manifest and its blobs are durable before the entry is signed, so whoever learns of the entry can have
them from this node.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, final

import trio

from gossip_ledger.errors import DecodeError, LocalError
from gossip_ledger.records import (
    MANIFESTS,
    AccountId,
    BlobId,
    File,
    Manifest,
    ModelId,
    Publish,
    RecordId,
    Split,
)
from gossip_ledger.signing import blob_id
from gpu_worker.base import cache_folder
from gpu_worker.identity import base_id, identify, light_files
from peer.api import ErrorCode, PublishRequest, RequestError
from peer.author import Author
from peer.datanets import ModelParts, load_datanet, model_parts, split_file
from peer.ledger_service import LedgerService
from peer.models import resolve
from peer.store import Store

ADAPTER_FILES: Final = ("adapter_config.json", "adapter_model.safetensors")
ADAPTER_FILE_BYTES_MAX: Final = 1 << 30


@final
class Publisher:
    """Publishes from one account."""

    def __init__(self, *, service: LedgerService, store: Store, author: Author, account: AccountId) -> None:
        self._service = service
        self._store = store
        self._author = author
        self._account = account

    async def publish(self, request: PublishRequest) -> tuple[ModelId, RecordId]:
        """Registers a model and returns its id and the entry's. Raises `RequestError` or `LocalError`."""
        successor = ModelId(b"")
        if request.successor_of is not None:
            successor, _ = resolve(self._service.ledger, request.successor_of)
        manifest, blobs = await trio.to_thread.run_sync(self._build, request)
        data = MANIFESTS.encode(manifest)
        await self._store.put_blobs(list(blobs.items()))
        await self._service.add_manifest(data)
        model = ModelId(blob_id(data))
        fee = self._service.genesis.publish_fee
        entry = await self._author.write(Publish(manifest=model, successor_of=successor, fee=fee))
        return model, entry

    def _build(self, request: PublishRequest) -> tuple[Manifest, dict[BlobId, bytes]]:
        if request.base is None:
            raise RequestError(ErrorCode.BAD_REQUEST, "name the base: the folder of the base model")
        base_folder = Path(request.base)
        identity = identify(base_folder, cache_folder())
        if request.adapter is None:
            kind, contents = "base", light_files(base_folder)
        else:
            kind, contents = "adapter", _read_adapter(Path(request.adapter))
        files, blobs = _split_all(contents)
        parts: ModelParts | None = None
        if request.datanet is not None:
            parts = model_parts(load_datanet(Path(request.datanet)))
            blobs |= dict(parts.blobs)
        try:
            manifest = Manifest(
                creator=self._account,
                name=request.name,
                version=request.version,
                kind=kind,
                base=base_id(identity),
                split=Split(
                    **dict(
                        zip(("worker", "creator", "data", "upkeep", "network"), request.split, strict=True)
                    )
                ),
                clusters=parts.clusters if parts else (),
                files=files,
                tables=parts.tables if parts else (),
                datanet=parts.datanet if parts else b"",
                licence=request.licence,
                about=request.about,
            )
            MANIFESTS.encode(manifest)
        except (ValueError, DecodeError) as error:
            raise RequestError(ErrorCode.BAD_REQUEST, f"that cannot be a manifest: {error}") from error
        if not self._service.genesis.allows(manifest.split):
            raise RequestError(
                ErrorCode.BAD_REQUEST, "the split is outside the bounds that this network's genesis sets"
            )
        return manifest, blobs


def _split_all(contents: dict[str, bytes]) -> tuple[tuple[File, ...], dict[BlobId, bytes]]:
    files: list[File] = []
    blobs: dict[BlobId, bytes] = {}
    for name, data in sorted(contents.items()):
        file, chunks = split_file(name, data)
        files.append(file)
        blobs |= chunks
    return tuple(files), blobs


def _read_adapter(folder: Path) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    for name in ADAPTER_FILES:
        path = folder / name
        try:
            if path.stat().st_size > ADAPTER_FILE_BYTES_MAX:
                raise LocalError(f"{path} is larger than {ADAPTER_FILE_BYTES_MAX} bytes")
            contents[name] = path.read_bytes()
        except OSError as error:
            raise LocalError(
                f"cannot read {path}: {error.strerror}; name the folder of a trained adapter"
            ) from error
    return contents
