"""Publishing: everything that the entry names is durable before it is signed, and bad input costs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gossip_ledger.errors import LocalError
from gossip_ledger.records import BlobId
from gpu_worker.settings import ModelSettings
from peer.api import PublishRequest, RequestError
from peer.models import resolve
from peer.publishing import Publisher
from tests.support.tiny_base import write_tiny_adapter, write_tiny_base
from tests.unit.peer.desk import PAYER, Crash, Desk, FragileStore


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelSettings]:
    folder = tmp_path_factory.mktemp("base")
    return folder, write_tiny_base(folder)


def publisher(desk: Desk) -> Publisher:
    return Publisher(service=desk.service, store=desk.store, author=desk.author, account=PAYER.account)


def request(of: tuple[Path, ModelSettings], /, **changes: Any) -> PublishRequest:
    fields: dict[str, Any] = {
        "name": "tiny",
        "version": 1,
        "adapter": None,
        "base": str(of[0]),
        "datanet": None,
        "split": (6000, 2000, 0, 1000, 1000),
        "successor_of": None,
        "licence": "CC0-1.0",
        "about": "",
    }
    return PublishRequest(**(fields | changes))


async def test_a_base_is_published_with_all_that_a_light_peer_needs(base: tuple[Path, ModelSettings]) -> None:
    desk = await Desk().load()
    model, entry = await publisher(desk).publish(request(base))
    found, manifest = resolve(desk.service.ledger, "tiny")
    assert (found, manifest.kind) == (model, "base")
    assert [file.name for file in manifest.files] == ["chat_template.jinja", "config.json", "tokenizer.json"]
    needed = [BlobId(model), *(chunk for file in manifest.files for chunk in file.chunks)]
    assert await desk.store.missing_blobs(needed) == ()
    await desk.witness()
    assert desk.service.ledger.is_final(entry)


async def test_an_adapter_names_its_base_by_identity(
    base: tuple[Path, ModelSettings], tmp_path: Path
) -> None:
    desk = await Desk().load()
    write_tiny_adapter(tmp_path, base[1], seed=1)
    await publisher(desk).publish(request(base))
    await publisher(desk).publish(request(base, name="poet", adapter=str(tmp_path), successor_of="tiny"))
    tiny, poet = (resolve(desk.service.ledger, name)[1] for name in ("tiny", "poet"))
    assert poet.kind == "adapter"
    assert poet.base == tiny.base


async def test_blobs_and_manifest_are_on_disk_before_anybody_hears(base: tuple[Path, ModelSettings]) -> None:
    store = FragileStore()
    desk = await Desk(store=store).load()
    store.fail_at(0, is_after=False)
    with pytest.raises(Crash):
        await publisher(desk).publish(request(base))
    assert not desk.gossiped
    again = await Desk(store=store).load()
    model, _ = await publisher(again).publish(request(base))
    assert len(again.records()) == 1
    assert await store.get_blob(BlobId(model))


@pytest.mark.parametrize(
    "changes",
    [
        {"base": None},
        {"split": (6000, 2000, 0, 1000, 1001)},
        {"split": (6000, 2000, 1000, 1000, 0)},
        {"split": (1, 2)},
        {"split": (-1, 10001, 0, 0, 0)},
        {"name": "x" * 5000},
        {"name": "a\0b"},
        {"version": -1},
        {"base": "/nowhere"},
        {"adapter": "/nowhere"},
        {"datanet": "/nowhere"},
        {"successor_of": "unknown"},
    ],
)
async def test_what_is_no_model_is_refused_in_words_and_not_entered(
    base: tuple[Path, ModelSettings], changes: dict[str, Any]
) -> None:
    desk = await Desk().load()
    with pytest.raises((RequestError, LocalError)):
        await publisher(desk).publish(request(base, **changes))
    assert not desk.records()
    assert not desk.gossiped
