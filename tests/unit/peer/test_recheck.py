"""A ledger out of its records alone: from a store, from a file, and never from anything damaged."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import trio

from gossip_ledger.errors import LocalError
from gossip_ledger.genesis import Genesis
from gossip_ledger.ledger import Ledger
from gossip_ledger.records import NO_RECORD, SIGNED_RECORDS, Ack, Entry, RecordId, Transfer
from gossip_ledger.signing import record_id, record_kind, sign_record
from peer.capabilities import SeededEntropy
from peer.keys import NodeKey
from peer.networks import MICRO, NetworkPlan, create_network
from peer.recheck import export_lines, recheck_file, recheck_store
from peer.store import open_store, open_store_to_read


@pytest.fixture
def genesis_and_store(tmp_path: Path) -> tuple[Genesis, Path]:
    """A store with three final transfers of the treasury."""
    plan = NetworkPlan(supply=1000 * MICRO, invites=1, grant=MICRO, start_s=0)
    made = create_network(tmp_path / "net", plan, SeededEntropy(random.Random(1)))
    path = tmp_path / "upkeep.sqlite"
    rows: list[tuple[RecordId, str, bytes]] = []
    with NodeKey.load(made.treasury) as key, NodeKey.load(made.witnesses[0]) as witness:
        prev = NO_RECORD
        for seq in (1, 2, 3):
            body = Transfer(to=witness.account, amount=seq)
            entry = Entry(author=key.account, seq=seq, prev=prev, epoch=0, body=body)
            prev = record_id(entry, made.network)
            ack = Ack(witness=witness.account, ids=(prev,))
            for record, signer in ((entry, key.signer), (ack, witness.signer)):
                data = SIGNED_RECORDS.encode(sign_record(record, signer, made.network))
                rows.append((record_id(record, made.network), record_kind(record), data))
    store = open_store(path)
    trio.run(store.append_records, rows)
    store.close()
    return made.genesis, path


def test_a_store_and_its_export_come_to_the_same(
    genesis_and_store: tuple[Genesis, Path], tmp_path: Path
) -> None:
    genesis, path = genesis_and_store
    store = open_store_to_read(path)
    result = recheck_store(store, genesis)
    assert (result.records, result.final, result.is_conserved, result.alarms) == (6, 3, True, ())
    assert result.root != Ledger(genesis).root().hex()
    file = tmp_path / "export.jsonl"
    file.write_text("\n".join(export_lines(store, genesis)) + "\n")
    store.close()
    assert recheck_file(file) == result


def test_the_order_of_records_does_not_matter(
    genesis_and_store: tuple[Genesis, Path], tmp_path: Path
) -> None:
    genesis, path = genesis_and_store
    store = open_store_to_read(path)
    head, *records = export_lines(store, genesis)
    expected = recheck_store(store, genesis)
    store.close()
    file = tmp_path / "export.jsonl"
    for seed in range(5):
        random.Random(seed).shuffle(records)
        file.write_text("\n".join([head, *records, records[0]]))
        assert recheck_file(file) == expected


def test_files_that_are_not_what_they_claim(genesis_and_store: tuple[Genesis, Path], tmp_path: Path) -> None:
    genesis, path = genesis_and_store
    store = open_store_to_read(path)
    lines = list(export_lines(store, genesis))
    store.close()
    file = tmp_path / "export.jsonl"
    record = json.loads(lines[2])["record"]
    forged = json.dumps({"record": record[:-2] + ("00" if record[-2:] != "00" else "01")})
    for damaged, expected in (
        ([*lines[:2], forged, *lines[3:]], "line 3 is not valid"),
        ([*lines[:2], lines[2][:-9], *lines[3:]], "not a file of records"),
        ([*lines[:2], "[]"], "line 3: not an object"),
        ([*lines[:2], '{"other": "00"}'], "line 3: neither"),
        ([*lines[:2], '{"record": "zz"}'], "line 3: "),
        ([*lines[:2], '{"record": 3}'], "line 3: not hex"),
        (lines[1:], "not a file of records"),
        ([lines[0].replace('"genesis": "', '"genesis": "00')], "the genesis is damaged"),
        ([], "not a file of records"),
        (["\u00e9"], "not a file of records"),
    ):
        file.write_text("\n".join(damaged), encoding="utf-8")
        with pytest.raises(LocalError) as error:
            recheck_file(file)
        assert expected in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(LocalError, match="cannot read"):
        recheck_file(tmp_path / "absent")


def test_a_store_with_a_forged_record(genesis_and_store: tuple[Genesis, Path]) -> None:
    genesis, path = genesis_and_store
    store = open_store(path)
    data = next(store.read_records())[2]
    trio.run(store.append_records, [(RecordId(b"\1" * 32), "entry", data[:-1] + bytes([data[-1] ^ 1]))])
    with pytest.raises(LocalError, match="record 7 of the store is not valid"):
        recheck_store(store, genesis)
    store.close()
