"""Datanets: what contributors gave, as a folder a person can read and as the pieces of a manifest.

A folder holds `datanet.json` (owner, terms, and for each shard its contributor, source, size and hash) and
one file of documents per shard. Shards stand in the order of their admission. The same facts, encoded, are
the datanet blob, whose hash a manifest names. From the texts come the clusters that a model pays and the
tables that weights are computed from.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, cast, final

from attribution.clusters import Verdict, judge_shards
from attribution.tables import TABLES, build_tables
from gossip_ledger.codec import Schema, Table, many, nested, octets, text, uint
from gossip_ledger.errors import DecodeError, LocalError
from gossip_ledger.limits import BLOB_BYTES_MAX, CLUSTERS_MAX, MANIFEST_BYTES_MAX
from gossip_ledger.records import AccountId, BlobId, Cluster, ClusterId, File
from gossip_ledger.signing import blob_id
from gpu_worker.documents import Document, decode_documents, encode_documents
from peer.limits import DATANET_JSON_BYTES_MAX, SHARD_BYTES_MAX

DATANET_FILE: Final = "datanet.json"
HELD_OUT_FILE: Final = "held_out.jsonl"
TABLES_NAME: Final = "overlap-1.cbor"
"""The name of the overlap tables in a manifest; it says the version of their rules."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """What one contributor gave at one time."""

    contributor: AccountId
    label: str
    """For people."""
    sha256: bytes
    """Of the file of documents, 32 bytes."""
    documents: int
    size: int
    """Bytes of that file."""
    source: str
    """Where the text comes from, so that anybody finds the same."""
    author: str
    licence: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Datanet:
    """A set of shards under one owner, who admits them."""

    owner: AccountId
    name: str
    licence: str
    notice: str
    """What the licence asks every copy to carry."""
    about: str
    shards: tuple[Shard, ...]
    """In the order of admission: of two that hold the same, the first is paid."""


_SHARD: Final = Table(
    90,
    Shard,
    (
        ("contributor", octets(32)),
        ("label", text(96)),
        ("sha256", octets(32)),
        ("documents", uint(minimum=1)),
        ("size", uint(SHARD_BYTES_MAX)),
        ("source", text(256)),
        ("author", text(256)),
        ("licence", text(256)),
    ),
)
DATANETS: Final = Schema(
    Table(
        91,
        Datanet,
        (
            ("owner", octets(32)),
            ("name", text(64)),
            ("licence", text(256)),
            ("notice", text(8192)),
            ("about", text(1024)),
            ("shards", many(nested(_SHARD), CLUSTERS_MAX, minimum=1)),
        ),
    ),
    bytes_max=MANIFEST_BYTES_MAX,
)
"""Datanets as blobs."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """A datanet with its texts."""

    datanet: Datanet
    documents: tuple[tuple[Document, ...], ...]
    """Per shard."""
    held_out: tuple[Document, ...] = ()
    """Documents to measure with; no part of the datanet."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ModelParts:
    """What a datanet brings to the manifest of a model trained on it."""

    datanet: BlobId
    clusters: tuple[Cluster, ...]
    tables: tuple[File, ...]
    blobs: Mapping[BlobId, bytes]
    """The datanet blob and the tables' chunks, to be served."""
    verdicts: tuple[Verdict, ...]
    """Per shard: which cluster it is paid through, and which documents are copies."""


def make_shard(
    contributor: AccountId,
    documents: Sequence[Document],
    *,
    label: str,
    source: str,
    author: str,
    licence: str,
) -> Shard:
    """The description of a shard that holds `documents`."""
    data = encode_documents(tuple(documents))
    return Shard(
        contributor=contributor,
        label=label,
        sha256=hashlib.sha256(data).digest(),
        documents=len(documents),
        size=len(data),
        source=source,
        author=author,
        licence=licence,
    )


def cluster_id(shard: Shard) -> ClusterId:
    """The name of the cluster that a shard founds; the same in every version of the datanet."""
    return ClusterId(hashlib.sha256(b"upkeep/1/cluster\0" + shard.contributor + shard.sha256).digest())


def model_parts(contents: Contents) -> ModelParts:
    """Clusters, tables and blobs for a manifest. Pure, and the same for the same contents. Raises
    `LocalError`.
    """
    shards = contents.datanet.shards
    texts = [[document.text.encode("utf-8") for document in documents] for documents in contents.documents]
    verdicts = judge_shards(texts)
    paid = [place for place, verdict in enumerate(verdicts) if verdict.original == place]
    own = [
        [text for number, text in enumerate(texts[place]) if number not in verdicts[place].copied]
        for place in paid
    ]
    clusters = tuple(
        Cluster(
            name=cluster_id(shards[place]),
            owner=shards[place].contributor,
            prior=sum(map(len, kept)),
            label=shards[place].label,
        )
        for place, kept in zip(paid, own, strict=True)
    )
    if len({cluster.name for cluster in clusters}) != len(clusters):
        raise LocalError("the datanet lists a shard twice; remove one")
    blob = _encode(contents.datanet)
    tables, chunks = split_file(TABLES_NAME, TABLES.encode(build_tables(own)))
    return ModelParts(
        datanet=blob_id(blob),
        clusters=clusters,
        tables=(tables,),
        blobs={blob_id(blob): blob, **chunks},
        verdicts=verdicts,
    )


def split_file(name: str, data: bytes) -> tuple[File, dict[BlobId, bytes]]:
    """A file as a manifest names it, and its blobs."""
    parts = [data[start : start + BLOB_BYTES_MAX] for start in range(0, len(data), BLOB_BYTES_MAX)]
    ids = [blob_id(part) for part in parts]
    return File(name=name, size=len(data), chunks=tuple(ids)), dict(zip(ids, parts, strict=True))


def save_datanet(contents: Contents, folder: Path) -> None:
    """Writes the folder; `datanet.json` last, so that a folder with one is whole. Raises `LocalError`."""
    _encode(contents.datanet)
    try:
        (folder / "shards").mkdir(parents=True, exist_ok=True)
        for place, documents in enumerate(contents.documents):
            _write(folder / _shard_file(place), encode_documents(documents))
        if contents.held_out:
            _write(folder / HELD_OUT_FILE, encode_documents(contents.held_out))
        readable = _readable(contents.datanet)
        _write(
            folder / DATANET_FILE, (json.dumps(readable, indent=1, ensure_ascii=False) + "\n").encode("utf-8")
        )
    except OSError as error:
        raise LocalError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error


def load_datanet(folder: Path) -> Contents:
    """Reads a folder and checks every shard against its hash. Raises `LocalError`."""
    datanet = _parse(_read(folder / DATANET_FILE, DATANET_JSON_BYTES_MAX), folder / DATANET_FILE)
    documents: list[tuple[Document, ...]] = []
    for place, shard in enumerate(datanet.shards):
        path = folder / _shard_file(place)
        data = _read(path, SHARD_BYTES_MAX)
        if hashlib.sha256(data).digest() != shard.sha256 or len(data) != shard.size:
            raise LocalError(f"{path}: not the shard that {DATANET_FILE} names; restore the file")
        found = decode_documents(data, str(path))
        if len(found) != shard.documents:
            raise LocalError(f"{path}: {len(found)} documents, but {DATANET_FILE} says {shard.documents}")
        documents.append(found)
    held_out = folder / HELD_OUT_FILE
    return Contents(
        datanet=datanet,
        documents=tuple(documents),
        held_out=decode_documents(_read(held_out, SHARD_BYTES_MAX), str(held_out))
        if held_out.exists()
        else (),
    )


def _shard_file(place: int) -> str:
    return f"shards/{place:04d}.jsonl"


def _encode(datanet: Datanet) -> bytes:
    try:
        return DATANETS.encode(datanet)
    except DecodeError as error:
        raise LocalError(f"the datanet cannot be described: {error}") from error


def _readable(datanet: Datanet) -> dict[str, object]:
    return {
        "format": 1,
        "owner": datanet.owner.hex(),
        "name": datanet.name,
        "licence": datanet.licence,
        "notice": datanet.notice,
        "about": datanet.about,
        "shards": [
            {
                field.name: value.hex() if isinstance(value := getattr(shard, field.name), bytes) else value
                for field in fields(shard)
            }
            for shard in datanet.shards
        ],
    }


def _parse(data: bytes, path: Path) -> Datanet:
    try:
        value: dict[str, Any] = json.loads(data.decode("utf-8"))
        if value.pop("format") != 1:
            raise LocalError(f"{path}: of a newer format; update upkeep")
        listed: list[dict[str, Any]] = value.pop("shards")
        shards = tuple(_parse_shard(shard) for shard in listed)
        datanet = Datanet(owner=AccountId(_unhex(value.pop("owner"))), shards=shards, **value)
        return cast("Datanet", DATANETS.decode(DATANETS.encode(datanet)))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, DecodeError) as error:
        raise LocalError(f"{path}: not a datanet description ({type(error).__name__}: {error})") from error


def _parse_shard(value: dict[str, Any]) -> Shard:
    contributor, sha256 = _unhex(value.pop("contributor")), _unhex(value.pop("sha256"))
    return Shard(contributor=AccountId(contributor), sha256=sha256, **value)


def _unhex(value: object) -> bytes:
    if not isinstance(value, str):
        raise TypeError("an id is written in hexadecimal")
    return bytes.fromhex(value)


def _read(path: Path, bytes_max: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(bytes_max + 1)
    except OSError as error:
        raise LocalError(f"{path}: cannot be read ({error.strerror}); point at a datanet's folder") from error
    if len(data) > bytes_max:
        raise LocalError(f"{path}: larger than {bytes_max} bytes; split it")
    return data


def _write(path: Path, data: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    os.replace(part, path)
