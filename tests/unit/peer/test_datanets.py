"""Datanets: the folder, the blob, and the pieces of a manifest."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attribution.evidence import collect, recompute
from attribution.tables import decode_tables
from gossip_ledger.errors import DecodeError, LocalError
from gossip_ledger.limits import BLOB_BYTES_MAX
from gossip_ledger.records import MANIFESTS, AccountId, Manifest, ModelId, Split
from gossip_ledger.signing import blob_id
from gpu_worker.documents import Document
from peer.datanets import (
    DATANETS,
    Contents,
    Datanet,
    ModelParts,
    load_datanet,
    make_shard,
    model_parts,
    save_datanet,
    split_file,
)

ANNA, BERT, CARL = (AccountId(bytes([number]) * 32) for number in (1, 2, 3))


def documents(seed: int, count: int = 6) -> tuple[Document, ...]:
    rng = random.Random(seed)
    return tuple(
        Document(
            title=f"{seed}/{number}",
            prompt=f"Tell me of {number}.",
            text=" ".join(f"w{rng.randrange(5000)}" for _ in range(60)),
        )
        for number in range(count)
    )


def contents(*given: tuple[AccountId, tuple[Document, ...]], held_out: tuple[Document, ...] = ()) -> Contents:
    shards = tuple(
        make_shard(who, what, label=f"shard {n}", source="made up", author="nobody", licence="CC0-1.0")
        for n, (who, what) in enumerate(given)
    )
    datanet = Datanet(
        owner=ANNA,
        name="sample",
        licence="CC0-1.0",
        notice="Carry\nthis.",
        about="For tests: é.",
        shards=shards,
    )
    return Contents(datanet=datanet, documents=tuple(what for _, what in given), held_out=held_out)


def manifest(parts: ModelParts) -> Manifest:
    return Manifest(
        creator=ANNA,
        name="sample",
        version=1,
        kind="adapter",
        base=b"b" * 32,
        split=Split(worker=5000, creator=1500, data=2500, upkeep=500, network=500),
        clusters=parts.clusters,
        files=(),
        tables=parts.tables,
        datanet=parts.datanet,
        licence="CC0-1.0",
        about="{}",
    )


def paid(parts: ModelParts, answer: str) -> dict[AccountId, int]:
    """Who earns how much of an answer, through blobs and manifest as a stranger would have them."""
    tables = decode_tables(b"".join(parts.blobs[chunk] for chunk in parts.tables[0].chunks))
    evidence = collect(ModelId(b"m" * 32), b"c" * 32, b"", answer.encode())
    owners = {cluster.name: cluster.owner for cluster in parts.clusters}
    earned: dict[AccountId, int] = {}
    for weight in recompute(manifest(parts), tables, evidence):
        owner = owners[weight.cluster]
        earned[owner] = earned.get(owner, 0) + weight.weight
    return earned


def test_a_folder_comes_back_as_it_went(tmp_path: Path) -> None:
    given = contents((ANNA, documents(1)), (BERT, documents(2)), held_out=documents(3, 2))
    save_datanet(given, tmp_path / "net")
    assert load_datanet(tmp_path / "net") == given
    assert model_parts(load_datanet(tmp_path / "net")) == model_parts(given)


def test_saving_again_changes_no_byte(tmp_path: Path) -> None:
    given = contents((ANNA, documents(1)), (BERT, documents(2)))
    for name in ("one", "two", "two"):
        save_datanet(given, tmp_path / name)
    for path in (tmp_path / "one").rglob("*.json*"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


def test_the_pieces_fit_a_manifest() -> None:
    parts = model_parts(contents((ANNA, documents(1)), (BERT, documents(2))))
    data = MANIFESTS.encode(manifest(parts))
    assert MANIFESTS.decode(data) == manifest(parts)
    assert [cluster.owner for cluster in parts.clusters] == [ANNA, BERT]
    assert all(blob_id(blob) == name for name, blob in parts.blobs.items())
    assert set(parts.blobs) == {parts.datanet, *parts.tables[0].chunks}
    assert DATANETS.decode(parts.blobs[parts.datanet]).name == "sample"
    assert all(cluster.prior > 0 for cluster in parts.clusters)


def test_whose_words_are_used_is_paid() -> None:
    parts = model_parts(contents((ANNA, documents(1)), (BERT, documents(2)), (CARL, documents(3))))
    assert paid(parts, documents(2)[4].text) == {BERT: 1_000_000}


def test_the_same_text_published_twice_pays_the_first_only() -> None:
    honest = model_parts(contents((ANNA, documents(1)), (BERT, documents(2))))
    copied = model_parts(contents((ANNA, documents(1)), (BERT, documents(2)), (CARL, documents(1))))
    answer = documents(1)[0].text
    assert paid(copied, answer) == paid(honest, answer) == {ANNA: 1_000_000}
    assert [cluster.owner for cluster in copied.clusters] == [ANNA, BERT]
    assert copied.tables == honest.tables, "the copy must not even dilute"
    assert [verdict.original for verdict in copied.verdicts] == [0, 1, 0]


def test_who_admits_first_is_paid_whoever_wrote_it() -> None:
    parts = model_parts(contents((CARL, documents(1)), (BERT, documents(2)), (ANNA, documents(1))))
    assert paid(parts, documents(1)[0].text) == {CARL: 1_000_000}


def test_a_padded_copy_earns_for_its_own_part_alone() -> None:
    parts = model_parts(
        contents((ANNA, documents(1)), (BERT, documents(2)), (CARL, (*documents(1), *documents(3, 20))))
    )
    assert paid(parts, documents(1)[0].text) == {ANNA: 1_000_000}
    assert paid(parts, documents(3)[0].text) == {CARL: 1_000_000}
    assert parts.clusters[2].prior == sum(len(document.text) for document in documents(3, 20))


def test_one_contributor_may_give_twice() -> None:
    parts = model_parts(contents((ANNA, documents(1)), (ANNA, documents(2)), (BERT, documents(3))))
    assert len({cluster.name for cluster in parts.clusters}) == 3
    assert paid(parts, f"{documents(1)[0].text} | {documents(2)[0].text}") == {ANNA: 1_000_000}


def test_a_clusters_name_stays_when_the_datanet_grows() -> None:
    before = model_parts(contents((ANNA, documents(1)), (BERT, documents(2))))
    after = model_parts(contents((ANNA, documents(1)), (BERT, documents(2)), (CARL, documents(3))))
    assert after.clusters[:2] == before.clusters
    assert after.datanet != before.datanet


def test_equal_text_of_two_contributors_has_two_names() -> None:
    one, other = (model_parts(contents((who, documents(1)))).clusters[0].name for who in (ANNA, BERT))
    assert one != other


def test_long_files_are_cut_into_blobs() -> None:
    data = bytes(range(256)) * 10_000
    file, blobs = split_file("x", data)
    assert b"".join(blobs[chunk] for chunk in file.chunks) == data
    assert max(map(len, blobs.values())) == BLOB_BYTES_MAX
    assert split_file("empty", b"")[0].chunks == ()


def test_a_datanet_of_the_demos_size_takes_seconds() -> None:
    given = contents(*((AccountId(bytes([n]) * 32), documents(n, 130)) for n in range(8)))
    started = time.process_time()
    parts = model_parts(given)
    assert time.process_time() - started < 10
    assert sum(map(len, parts.blobs.values())) < 2 << 20


def _edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        path = folder / "datanet.json"
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))

    return apply


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no folder": lambda folder: folder.rename(folder.with_name("elsewhere")),
    "no description": lambda folder: (folder / "datanet.json").unlink(),
    "no shard": lambda folder: (folder / "shards/0001.jsonl").unlink(),
    "a shard changed": lambda folder: (folder / "shards/0001.jsonl").write_text(
        (folder / "shards/0001.jsonl").read_text().replace("Tell", "Sell")
    ),
    "not JSON": lambda folder: (folder / "datanet.json").write_text("{"),
    "not an object": lambda folder: (folder / "datanet.json").write_text("[1]"),
    "nested too deep": lambda folder: (folder / "datanet.json").write_text("[" * 100_000),
    "not UTF-8": lambda folder: (folder / "datanet.json").write_bytes(b'{"format": "\xff"}'),
    "another format": _edit(lambda value: value.update(format=2)),
    "an unknown field": _edit(lambda value: value.update(colour="red")),
    "an unknown field of a shard": _edit(lambda value: value["shards"][0].update(colour="red")),
    "a missing field": _edit(lambda value: value.pop("notice")),
    "a wrong count": _edit(lambda value: value["shards"][0].update(documents=5)),
    "a fraction": _edit(lambda value: value["shards"][0].update(documents=6.0)),
    "a truth": _edit(lambda value: value["shards"][0].update(documents=True)),
    "a wrong size": _edit(lambda value: value["shards"][0].update(size=5)),
    "a short account": _edit(lambda value: value["shards"][0].update(contributor="00")),
    "an account that is no text": _edit(lambda value: value["shards"][0].update(contributor=5)),
    "no hexadecimal": _edit(lambda value: value.update(owner="zz" * 32)),
    "no shards": _edit(lambda value: value.update(shards=[])),
    "a name too long": _edit(lambda value: value.update(name="x" * 65)),
    "control characters": _edit(lambda value: value.update(notice="\x1b[2J")),
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_damaged_folder_is_one_line_of_error(damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "net"
    save_datanet(contents((ANNA, documents(1)), (BERT, documents(2))), folder)
    DAMAGES[damage](folder)
    with pytest.raises(LocalError) as caught:
        load_datanet(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_shard_listed_twice_is_refused() -> None:
    """Two shards of one contributor with the same bytes, but without words to tell copies by."""
    silent = (Document(title="t", prompt="p", text="..."),)
    with pytest.raises(LocalError, match="twice"):
        model_parts(contents((ANNA, silent), (ANNA, silent)))


def test_what_cannot_be_described_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    given = contents((ANNA, documents(1)))
    wrong = replace(given, datanet=replace(given.datanet, name="x" * 100))
    with pytest.raises(LocalError):
        save_datanet(wrong, tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_blobs_from_elsewhere_are_parsed_strictly() -> None:
    data = DATANETS.encode(contents((ANNA, documents(1))).datanet)
    for bad in (data[:-1], data + b"\0", b""):
        with pytest.raises(DecodeError):
            DATANETS.decode(bad)
