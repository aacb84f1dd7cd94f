"""Trusting nobody: a ledger recomputed from its signed records alone, out of a store or a file.

A file of records is text, one JSON object a line: a header with the genesis, then records and manifests.
Anything in it that is not exactly what it claims is an error that names its line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast, final

from gossip_ledger.errors import DecodeError, LocalError, RemoteError
from gossip_ledger.genesis import GENESES, Genesis, network_id
from gossip_ledger.ledger import Ledger
from gossip_ledger.records import MANIFESTS, BlobId, ModelId, NetworkId, RecordId, Signed
from gossip_ledger.signing import admit, blob_id
from peer.limits import EXPORT_LINE_CHARS_MAX
from peer.store import SqliteStore

FORMAT: Final = "upkeep-ledger/1"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Recheck:
    """What a set of records comes to."""

    network: str
    records: int
    final: int
    manifests_missing: int
    root: str
    supply: int
    is_conserved: bool
    alarms: tuple[str, ...]


def recheck_store(store: SqliteStore, genesis: Genesis) -> Recheck:
    """Verifies every signature in a store and computes the state anew. Raises `LocalError`."""
    return _result(_load(store, genesis)[0])


def recheck_file(path: Path) -> Recheck:
    """The same for a file of records. Raises `LocalError`."""
    lines = _lines(path)
    _, header = next(lines, (1, dict[str, Any]()))
    if header.get("format") != FORMAT:
        raise LocalError(f"{path} is not a file of records ({FORMAT}); make one with `upkeep ledger export`")
    try:
        ledger = Ledger(GENESES.decode(_octets(header.get("genesis"))))
    except (DecodeError, ValueError) as error:
        raise LocalError(f"{path}: line 1: the genesis is damaged: {error}") from error
    network, records = network_id(ledger.genesis), list[tuple[RecordId, Signed]]()
    for number, line in lines:
        where = f"{path}: line {number}"
        try:
            if set(line) == {"manifest"}:
                ledger.add_manifest(MANIFESTS.decode(_octets(line["manifest"])))
            elif set(line) == {"record"}:
                records.append(_admit(_octets(line["record"]), network, where))
            else:
                raise ValueError("neither a record nor a manifest")
        except (DecodeError, ValueError) as error:
            raise LocalError(f"{where}: {error}") from error
    ledger.add_all(records)
    return _result(ledger)


def export_lines(store: SqliteStore, genesis: Genesis) -> Iterator[str]:
    """The lines of a file of records."""
    network = network_id(genesis).hex()
    yield json.dumps({"format": FORMAT, "network": network, "genesis": GENESES.encode(genesis).hex()})
    _, records, manifests = _load(store, genesis)
    for data in records:
        yield json.dumps({"record": data.hex()})
    for data in manifests:
        yield json.dumps({"manifest": data.hex()})


def _load(store: SqliteStore, genesis: Genesis) -> tuple[Ledger, list[bytes], list[bytes]]:
    ledger, network = Ledger(genesis), network_id(genesis)
    records = [data for _, _, data in store.read_records()]
    ledger.add_all(
        [_admit(data, network, f"record {number} of the store") for number, data in enumerate(records, 1)]
    )
    return ledger, records, _add_manifests(ledger, store)


def _admit(data: bytes, network: NetworkId, where: str) -> tuple[RecordId, Signed]:
    try:
        return admit(data, network)
    except RemoteError as error:
        raise LocalError(f"{where} is not valid: {error}") from error


def _add_manifests(ledger: Ledger, store: SqliteStore) -> list[bytes]:
    found: list[bytes] = []
    for model in sorted(ledger.wanted_manifests()):
        data = store.read_blob(BlobId(model))
        if data is not None:
            assert ModelId(blob_id(data)) == model
            ledger.add_manifest(MANIFESTS.decode(data))
            found.append(data)
    return found


def _result(ledger: Ledger) -> Recheck:
    identities = list(ledger.ids())
    return Recheck(
        network=network_id(ledger.genesis).hex(),
        records=len(identities),
        final=sum(map(ledger.is_final, identities)),
        manifests_missing=len(ledger.wanted_manifests()),
        root=ledger.root().hex(),
        supply=ledger.genesis.supply,
        is_conserved=ledger.supply_conserved(),
        alarms=tuple(map(str, ledger.alarms())),
    )


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open(encoding="ascii") as file:
            for number, text in enumerate(_bounded(file.readline, path), 1):
                found = json.loads(text)
                if not isinstance(found, dict):
                    raise LocalError(f"{path}: line {number}: not an object")
                yield number, cast("dict[str, Any]", found)
    except OSError as error:
        raise LocalError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise LocalError(f"{path} is not a file of records; make one with `upkeep ledger export`") from error


def _bounded(readline: Any, path: Path) -> Iterable[str]:
    while text := readline(EXPORT_LINE_CHARS_MAX):
        if len(text) == EXPORT_LINE_CHARS_MAX:
            raise LocalError(f"{path}: a line is longer than {EXPORT_LINE_CHARS_MAX} characters")
        yield text


def _octets(value: object) -> bytes:
    if not isinstance(value, str):
        raise ValueError("not hex")
    return bytes.fromhex(value)
