"""Names of models: the newest of a creator, ambiguous ones said so, and nobody names another's model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gossip_ledger.records import MANIFESTS, AccountId, Manifest, ModelId, Publish
from gossip_ledger.signing import blob_id
from peer.api import ErrorCode, RequestError
from peer.author import Author
from peer.keys import SeedSigner
from peer.models import base_manifest, matching_account, newest, published, resolve
from tests.unit.peer.desk import CREATOR, MANIFEST, PAYER, Desk


async def publish(desk: Desk, manifest: Manifest, by: SeedSigner) -> ModelId:
    data = MANIFESTS.encode(manifest)
    await desk.service.add_manifest(data)
    model = ModelId(blob_id(data))
    author = Author(service=desk.service, signer=by, clock=desk.clock)
    await author.write(Publish(manifest=model, successor_of=ModelId(b""), fee=0))
    return model


def of(creator: SeedSigner, name: str = "speeches", version: int = 1, kind: str = "adapter") -> Manifest:
    return replace(MANIFEST, creator=creator.account, name=name, version=version, kind=kind)


async def test_a_name_is_the_newest_version_and_every_version_has_an_address() -> None:
    desk = await Desk().load()
    first = await publish(desk, of(CREATOR, version=1), CREATOR)
    second = await publish(desk, of(CREATOR, version=2), CREATOR)
    ledger = desk.service.ledger
    assert resolve(ledger, "speeches")[0] == second
    assert resolve(ledger, "speeches@1")[0] == first
    assert resolve(ledger, first.hex()[:8].upper())[0] == first
    assert resolve(ledger, f"{CREATOR.account.hex()[:8]}/speeches")[0] == second
    assert [entry.model for entry in newest(published(ledger)).values()] == [second]


async def test_one_name_of_two_creators_has_to_be_said_in_full() -> None:
    desk = await Desk().load()
    mine = await publish(desk, of(CREATOR), CREATOR)
    await publish(desk, of(PAYER), PAYER)
    with pytest.raises(RequestError, match="say which") as caught:
        resolve(desk.service.ledger, "speeches")
    assert caught.value.code is ErrorCode.UNKNOWN_MODEL
    for creator in (CREATOR, PAYER):
        assert f"{creator.account.hex()[:8]}/speeches" in str(caught.value)
    assert resolve(desk.service.ledger, f"{CREATOR.account.hex()}/speeches")[0] == mine


async def test_who_publishes_the_manifest_of_another_publishes_nothing() -> None:
    desk = await Desk().load()
    await publish(desk, of(CREATOR), PAYER)
    assert not published(desk.service.ledger)


@pytest.mark.parametrize("name", ["", "unknown", "speeches@9", "ffff", "/", "@", "a/b/c@d", "x" * 1000, "\0"])
async def test_an_unknown_name_says_what_is_known(name: str) -> None:
    desk = await Desk().load()
    await publish(desk, of(CREATOR), CREATOR)
    with pytest.raises(RequestError, match="known here: speeches"):
        resolve(desk.service.ledger, name)


async def test_the_bare_base_is_told_from_its_adapters() -> None:
    desk = await Desk().load()
    await publish(desk, of(CREATOR), CREATOR)
    assert base_manifest(desk.service.ledger, MANIFEST.base) is None
    await publish(desk, of(CREATOR, name="tiny", kind="base"), CREATOR)
    found = base_manifest(desk.service.ledger, MANIFEST.base)
    assert found is not None
    assert found.name == "tiny"
    assert base_manifest(desk.service.ledger, bytes(32)) is None


def test_accounts_by_prefix() -> None:
    accounts = [AccountId(b"\xab\x01" + bytes(30)), AccountId(b"\xab\x02" + bytes(30))]
    assert matching_account(accounts, "AB01") == accounts[0]
    for prefix in ("ab", "cd", "zz"):
        with pytest.raises(RequestError, match="give more of it"):
            matching_account(accounts, prefix)
