"""Files by hash from anybody: whole and right or not at all, and never outside their folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from gossip_ledger.errors import RemoteError
from gossip_ledger.records import AccountId, BlobId, File, ModelId, Publish
from gossip_ledger.signing import blob_id
from peer.author import Author
from peer.library import FILE_BYTES_MAX, Library
from tests.unit.peer.desk import CREATOR, MANIFEST, MANIFEST_BYTES, OTHER, WORKER, Desk


class Peers:
    """Who may be asked for blobs, and what each of them says."""

    def __init__(self, **held: dict[BlobId, bytes]) -> None:
        self.held = {name.account: held.get(key, {}) for key, name in (("one", WORKER), ("two", OTHER))}
        self.asked: list[AccountId] = []

    async def fetch(self, peer: AccountId, ids: Sequence[BlobId]) -> dict[BlobId, bytes]:
        await trio.lowlevel.checkpoint()
        self.asked.append(peer)
        if not self.held[peer]:
            raise RemoteError("it hung up")
        return {ident: data for ident, data in self.held[peer].items() if ident in ids}

    def sources(self) -> list[AccountId]:
        return list(self.held)


def library(desk: Desk, peers: Peers) -> Library:
    return Library(service=desk.service, store=desk.store, fetch=peers.fetch, sources=peers.sources)


def blobs(*contents: bytes) -> dict[BlobId, bytes]:
    return {blob_id(data): data for data in contents}


def file(name: str, *contents: bytes, size: int | None = None) -> File:
    real = sum(map(len, contents))
    return File(name=name, size=real if size is None else size, chunks=tuple(map(blob_id, contents)))


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def test_blobs_come_from_whoever_has_them_and_are_kept() -> None:
    desk = await Desk().load()
    peers = Peers(two=blobs(b"a", b"b"))
    books = library(desk, peers)
    assert await books.file(file("x", b"a", b"b", b"a")) == b"aba"
    asked = len(peers.asked)
    assert await books.file(file("x", b"a", b"b", b"a")) == b"aba"
    assert len(peers.asked) == asked
    with pytest.raises(RemoteError, match="held by no peer"):
        await books.file(file("y", b"c"))


@pytest.mark.parametrize("size", [2, 4, FILE_BYTES_MAX + 1])
async def test_a_file_has_the_size_that_its_manifest_says(size: int) -> None:
    desk = await Desk().load()
    with pytest.raises(RemoteError):
        await library(desk, Peers(one=blobs(b"abc"))).file(file("x", b"abc", size=size))


async def test_one_blob_named_often_is_not_put_together_beyond_the_size() -> None:
    desk = await Desk().load()
    books, big = library(desk, Peers(one=blobs(bytes(1 << 20)))), bytes(1 << 20)
    with pytest.raises(RemoteError, match="not the 1 bytes"):
        await books.file(replace(file("x", size=1), chunks=(blob_id(big),) * 4096))


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "/x", "a/b", ".hidden", "a\nb", "a b", "a\\b", "é"])
async def test_a_name_that_could_lead_astray_is_refused(name: str, tmp_path: Path) -> None:
    desk = await Desk().load()
    manifest = replace(MANIFEST, files=(file(name, b"a"),))
    with pytest.raises(RemoteError, match="names a file"):
        await library(desk, Peers(one=blobs(b"a"))).write_files(manifest, tmp_path / "model")
    assert not files_in(tmp_path)


async def test_files_are_written_whole(tmp_path: Path) -> None:
    desk = await Desk().load()
    manifest = replace(MANIFEST, files=(file("adapter_config.json", b"a", b"b"),))
    await library(desk, Peers(one=blobs(b"a", b"b"))).write_files(manifest, tmp_path / "model")
    assert files_in(tmp_path) == {"model/adapter_config.json": b"ab"}


async def test_manifests_are_fetched_and_rubbish_holds_up_nobody(
    autojump_clock: object,
) -> None:
    desk = Desk()
    await desk.service.load()
    rubbish = b"no manifest"
    await desk.author.write(Publish(manifest=ModelId(blob_id(rubbish)), successor_of=ModelId(b""), fee=0))
    creator = Author(service=desk.service, signer=CREATOR, clock=desk.clock)
    model = ModelId(blob_id(MANIFEST_BYTES))
    await creator.write(Publish(manifest=model, successor_of=ModelId(b""), fee=0))
    peers = Peers(one=blobs(rubbish), two=blobs(MANIFEST_BYTES))
    with trio.move_on_after(5):
        await library(desk, peers).keep_manifests()
    assert desk.service.ledger.manifest(model) == MANIFEST
    asked = len(peers.asked)
    with trio.move_on_after(5):
        await library(desk, peers).keep_manifests()
    assert len(peers.asked) == asked, "what is on disk and useless is not fetched again"
