"""The committed vectors, read as a stranger would: only files and the public functions."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from gossip_ledger import errors
from gossip_ledger.amounts import apportion, fee
from gossip_ledger.genesis import GENESES, network_id
from gossip_ledger.ledger import Ledger
from gossip_ledger.records import (
    MANIFESTS,
    SIGNED_RECORDS,
    AccountId,
    Manifest,
    NetworkId,
    RecordId,
    Signature,
    Signed,
)
from gossip_ledger.reference import settle
from gossip_ledger.root import state_root
from gossip_ledger.signing import admit, message, model_id, record_id, record_kind, verify

FOLDER = Path(__file__).resolve().parents[2] / "vectors"


def read(name: str) -> Any:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def raw(text: str) -> bytes:
    return bytes.fromhex(text)


def test_records() -> None:
    vectors = read("valid/records.json")
    kinds = set()
    for vector in vectors["records"]:
        key, signed = admit(raw(vector["bytes"]), NetworkId(raw(vectors["network"])))
        assert key == raw(vector["id"])
        assert record_kind(signed.record) == vector["kind"]
        assert SIGNED_RECORDS.encode(signed) == raw(vector["bytes"])
        kinds.add(vector["kind"])
    assert kinds == {"entry", "receipt", "release", "ack"}


def test_contents() -> None:
    vectors = read("valid/contents.json")
    genesis = GENESES.decode(raw(vectors["genesis"]["bytes"]))
    assert network_id(genesis) == raw(vectors["genesis"]["id"])
    manifest = MANIFESTS.decode(raw(vectors["manifest"]["bytes"]))
    assert model_id(manifest) == raw(vectors["manifest"]["id"])
    framed = vectors["message"]
    assert message(framed["kind"], NetworkId(raw(framed["network"])), raw(framed["body"])) == raw(
        framed["bytes"]
    )


def test_amounts() -> None:
    vectors = read("valid/amounts.json")
    for vector in vectors["apportion"]:
        weights = {raw(key): weight for key, weight in vector["weights"].items()}
        shares = apportion(vector["amount"], weights, raw(vector["salt"]))
        assert {key.hex(): share for key, share in shares.items()} == vector["shares"]
    for vector in vectors["fee"]:
        assert fee(*vector["in"]) == vector["fee"]
    for vector in vectors["payouts"]["receipts"]:
        signed = SIGNED_RECORDS.decode(raw(vector["receipt"]))
        assert sum(share["amount"] for share in vector["shares"]) == signed.record.bill.fee


@pytest.mark.parametrize("place", range(len(read("valid/states.json"))))
def test_states(place: int) -> None:
    vector = read("valid/states.json")[place]
    genesis = GENESES.decode(raw(vector["genesis"]))
    network, ledger = network_id(genesis), Ledger(genesis)
    manifests: list[Manifest] = [MANIFESTS.decode(raw(data)) for data in vector["manifests"]]
    records: dict[RecordId, Signed] = {}
    for data in vector["records"]:
        signed = SIGNED_RECORDS.decode(raw(data))
        records[record_id(signed.record, network)] = signed
    order = list(records)
    Random(place).shuffle(order)
    for key in order:
        ledger.add(records[key], key)
    for manifest in manifests:
        ledger.add_manifest(manifest)
    assert ledger.root() == raw(vector["root"])
    state = settle(records, {model_id(manifest): manifest for manifest in manifests}, genesis)
    assert state_root(state, network) == raw(vector["root"])
    assert state.final == {raw(key) for key in vector["final"]}
    assert {key.hex(): left for key, left in state.funds.items()} == vector["funds"]
    spendable = {account.hex(): one.spendable for account, one in state.accounts.items()}
    assert spendable == {account["account"]: account["spendable"] for account in vector["accounts"]}


@pytest.mark.parametrize("vector", read("invalid/records.json"), ids=lambda vector: vector["what"])
def test_refused_records(vector: dict[str, str]) -> None:
    with pytest.raises(getattr(errors, vector["error"])) as caught:
        admit(raw(vector["bytes"]), NetworkId(raw(vector["network"])))
    assert str(caught.value) == vector["reason"]


def test_signatures() -> None:
    vectors = read("invalid/signatures.json")
    said, right = raw(vectors["message"]), vectors["accepted"]
    verify(AccountId(raw(right["key"])), Signature(raw(right["signature"])), said)
    for vector in vectors["refused"]:
        with pytest.raises(errors.SignatureError):
            verify(AccountId(raw(vector["key"])), Signature(raw(vector["signature"])), said)
