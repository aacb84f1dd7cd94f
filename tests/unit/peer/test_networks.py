"""Making networks and homes: whole or not at all, never over something that is there."""

from __future__ import annotations

import random
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from libp2p.crypto.ed25519 import Ed25519PublicKey
from libp2p.peer.id import ID

from gossip_ledger.errors import LocalError
from gossip_ledger.genesis import GENESES, network_id
from gossip_ledger.records import AccountId
from p2p.invites import Invite, decode_invite, encode_invite
from peer.capabilities import SeededEntropy
from peer.config import Config, Home, PeerConfig, load_config
from peer.keys import NodeKey, SeedSigner, read_account
from peer.networks import (
    MICRO,
    NetworkPlan,
    Vesting,
    address,
    create_network,
    init_home,
    peer_id,
    read_api_token,
    read_genesis,
    read_invite,
)

PLAN = NetworkPlan(name="test", supply=1000 * MICRO, invites=2, grant=5 * MICRO, start_s=1_700_000_000)


def entropy(seed: int = 1) -> SeededEntropy:
    return SeededEntropy(random.Random(seed))


def test_a_network_of_one_witness(tmp_path: Path) -> None:
    created = create_network(tmp_path / "net", PLAN, entropy())
    genesis = read_genesis(created.witnesses[0])
    assert genesis == created.genesis == GENESES.decode((tmp_path / "net" / "genesis.cbor").read_bytes())
    assert genesis.supply == PLAN.supply
    assert genesis.witnesses == (read_account(created.witnesses[0]),)
    assert genesis.treasury == read_account(created.treasury)
    assert genesis.vested(genesis.treasury, 0) == 990 * MICRO
    assert network_id(genesis) == created.network
    assert [path.name for path in tmp_path.iterdir()] == ["net"]
    config = load_config(created.witnesses[0])
    assert config.peer.listen == ("/ip4/0.0.0.0/tcp/8470",)
    assert config.peer.bootstrap == (f"/ip4/127.0.0.1/tcp/8470/p2p/{peer_id(genesis.witnesses[0])}",)
    with NodeKey.load(created.treasury) as key:
        assert key.account == genesis.treasury


def test_each_invite_is_funded_once_with_a_key_of_its_own(tmp_path: Path) -> None:
    created = create_network(tmp_path / "net", PLAN, entropy())
    accounts: set[AccountId] = set()
    for path in created.invites:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        invite = decode_invite(path.read_text())
        assert invite.grant_amount == PLAN.grant
        account = SeedSigner(invite.grant_seed).account
        assert created.genesis.vested(account, 0) == PLAN.grant
        assert invite.network == created.network
        accounts.add(account)
    assert len(accounts) == PLAN.invites


def test_four_witnesses_and_vesting(tmp_path: Path) -> None:
    plan = replace(
        PLAN,
        witnesses=4,
        epoch_s=3600,
        vesting=(Vesting(purpose="team", amount=100 * MICRO, cliff_s=7200, duration_s=36_000),),
    )
    created = create_network(tmp_path / "net", plan, entropy())
    genesis = created.genesis
    assert (genesis.faulty, genesis.quorum, len(genesis.witnesses)) == (1, 3, 4)
    assert genesis.supply == plan.supply
    team = read_account(created.vesting[0])
    vested = [genesis.vested(team, epoch) // MICRO for epoch in (0, 1, 2, 5, 10, 99)]
    assert vested == [0, 0, 20, 50, 100, 100]
    ports = [load_config(home).peer.listen[0].rsplit("/", 1)[1] for home in created.witnesses]
    assert ports == ["8470", "8471", "8472", "8473"]


def test_nothing_is_overwritten_and_nothing_half_made(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    create_network(tmp_path / "empty", PLAN, entropy())
    before = (tmp_path / "empty" / "genesis.cbor").read_bytes()
    with pytest.raises(LocalError, match="choose another folder"):
        create_network(tmp_path / "empty", PLAN, entropy(2))
    assert (tmp_path / "empty" / "genesis.cbor").read_bytes() == before
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(LocalError):
            create_network(path, PLAN, entropy())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"witnesses": 0}, "witnesses"),
        ({"invites": -1}, "invites"),
        ({"invites": 201}, "invites"),
        ({"supply": 0}, "supply"),
        ({"supply": 2**63}, "supply"),
        ({"grant": 501 * MICRO}, "exceed the supply"),
        ({"grant": -1}, "negative"),
        ({"epoch_s": 0}, "epoch"),
        ({"vesting": (Vesting(purpose="witness", amount=1),)}, "another home"),
        ({"vesting": (Vesting(purpose="../x", amount=1),)}, "one word"),
        ({"vesting": (Vesting(purpose="a", amount=1), Vesting(purpose="a", amount=1))}, "same purpose"),
        ({"hosts": ()}, "host"),
        ({"port": 65536}, "ports"),
    ],
)
def test_plans_that_cannot_be(tmp_path: Path, change: dict[str, object], expected: str) -> None:
    with pytest.raises(LocalError, match=expected):
        create_network(tmp_path / "net", replace(PLAN, **change), entropy())
    assert list(tmp_path.iterdir()) == []


def test_as_many_invites_as_allowed_still_carry_the_genesis(tmp_path: Path) -> None:
    created = create_network(tmp_path / "net", replace(PLAN, invites=200, grant=1), entropy())
    assert decode_invite(created.invites[-1].read_text()).genesis


def test_a_home_from_an_invite(tmp_path: Path) -> None:
    created = create_network(tmp_path / "net", PLAN, entropy())
    text = created.invites[0].read_text()
    home = Home(tmp_path / "home")
    config = Config(peer=PeerConfig(listen=()))
    made = init_home(home, f"  {text[:40]}\n{text[40:]}  ", entropy(2), config=config)
    assert made.account == read_account(home)
    assert made.grant_amount == PLAN.grant
    assert read_genesis(home) == created.genesis
    assert load_config(home).peer.bootstrap == decode_invite(text).addresses
    assert load_config(home).peer.listen == ()
    assert read_invite(home) == decode_invite(text)
    assert stat.S_IMODE(home.invite.stat().st_mode) == 0o600
    token = read_api_token(home, entropy(3))
    assert len(token) == 64
    assert read_api_token(home, entropy(4)) == token
    with pytest.raises(LocalError, match="is a home already"):
        init_home(home, created.invites[1].read_text(), entropy(5))
    assert read_account(home) == made.account


def test_a_home_without_its_key_is_made_again(tmp_path: Path) -> None:
    created = create_network(tmp_path / "net", PLAN, entropy())
    home = Home(tmp_path / "home")
    init_home(home, created.invites[0].read_text(), entropy(2))
    home.key.unlink()
    made = init_home(home, created.invites[1].read_text(), entropy(3))
    assert read_account(home) == made.account
    assert read_invite(home) == decode_invite(created.invites[1].read_text())


@pytest.mark.parametrize("text", ["", "upkeep1:", "upkeep1:AAAA", "hello", "upkeep1:" + "A" * 100_000])
def test_strings_that_are_no_invite(tmp_path: Path, text: str) -> None:
    with pytest.raises(LocalError, match="cannot be used") as error:
        init_home(Home(tmp_path / "home"), text, entropy())
    assert "\n" not in str(error.value)
    assert not (tmp_path / "home").exists()


def test_an_invite_without_its_genesis_needs_the_file(tmp_path: Path) -> None:
    ours = create_network(tmp_path / "ours", PLAN, entropy(1))
    theirs = create_network(tmp_path / "theirs", PLAN, entropy(2))
    full = decode_invite(ours.invites[0].read_text())
    bare = encode_invite(
        Invite(network=full.network, genesis=b"", addresses=(), grant_seed=b"", grant_amount=0)
    )
    home = Home(tmp_path / "home")
    with pytest.raises(LocalError, match="--genesis"):
        init_home(home, bare, entropy())
    with pytest.raises(LocalError, match="another network"):
        init_home(home, bare, entropy(), genesis_file=(theirs.path / "genesis.cbor").read_bytes())
    init_home(home, bare, entropy(), genesis_file=(ours.path / "genesis.cbor").read_bytes())
    assert read_genesis(home) == ours.genesis


def test_homes_without_or_with_a_damaged_genesis(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with pytest.raises(LocalError, match="upkeep init"):
        read_genesis(home)
    home.genesis.write_bytes(b"\x00")
    with pytest.raises(LocalError, match="damaged"):
        read_genesis(home)
    assert read_invite(home) is None
    home.invite.touch(mode=0o600)
    with pytest.raises(LocalError, match="damaged"):
        read_invite(home)


@pytest.mark.parametrize("seed", range(5))
def test_peer_ids_are_those_of_libp2p(seed: int) -> None:
    account = SeedSigner(entropy(seed).token(32)).account
    assert peer_id(account) == str(ID.from_pubkey(Ed25519PublicKey.from_bytes(account)))


def test_addresses() -> None:
    assert address("10.0.0.7", 1) == "/ip4/10.0.0.7/tcp/1"
    assert address("fd00::1", 1) == "/ip6/fd00::1/tcp/1"
    assert address("peer.example", 1) == "/dns4/peer.example/tcp/1"
