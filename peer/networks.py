"""Making networks and homes: the files that exist before any daemon runs.

`create_network` makes a folder with the genesis, one home for each witness, the treasury's home, a home for
each vesting allocation, and invites that carry a funded key. It appears whole or not at all. `init_home`
makes a home out of an invite. Neither ever overwrites anything.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, final

from gossip_ledger.errors import DecodeError, LocalError
from gossip_ledger.genesis import GENESES, Allocation, Genesis, network_id
from gossip_ledger.limits import MAX_AMOUNT, WITNESSES_MAX
from gossip_ledger.records import AccountId, NetworkId
from p2p.invites import Invite, decode_invite, encode_invite
from p2p.protocols.limits import ADVERT_ADDRESSES_MAX, INVITE_GENESIS_BYTES_MAX
from peer.capabilities import Entropy
from peer.config import Config, GatewayConfig, Home, PeerConfig, render_config
from peer.keys import SEED_BYTES, NodeKey, SeedSigner, make_folder, read_secret, sync_folder, write_secret
from peer.limits import INVITE_FILE_BYTES_MAX, INVITES_MAX, TOKEN_BYTES

MICRO: Final = 1_000_000
"""Micro-units in one unit."""
YEAR_S: Final = 365 * 86_400


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Vesting:
    """Part of the supply for one purpose, with a home of its own."""

    purpose: str
    """Also the name of its home: `team`, `investors`, ..."""
    amount: int
    cliff_s: int = YEAR_S
    duration_s: int = 4 * YEAR_S


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPlan:
    """What a new network shall be. Amounts are micro-units."""

    name: str = "home"
    unit: str = "OPEN"
    supply: int = 1_000_000 * MICRO
    witnesses: int = 1
    invites: int = 8
    grant: int = 100 * MICRO
    """What each invite is worth."""
    vesting: tuple[Vesting, ...] = ()
    """The rest of the supply is the treasury's at once."""
    epoch_s: int = 60
    grace_epochs: int = 3
    publish_fee: int = MICRO
    hosts: tuple[str, ...] = ("127.0.0.1",)
    """IP addresses or names under which the witnesses can be reached."""
    port: int = 8470
    """Of the first witness; the others follow."""
    start_s: int
    """Unix seconds at which the network begins."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CreatedNetwork:
    """Where everything of a new network is."""

    path: Path
    network: NetworkId
    genesis: Genesis
    witnesses: tuple[Home, ...]
    treasury: Home
    vesting: tuple[Home, ...]
    invites: tuple[Path, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CreatedHome:
    """A new home and what it brings along."""

    home: Home
    account: AccountId
    network: NetworkId
    genesis: Genesis
    grant_amount: int
    """What the invite says that its key is worth; swept by the daemon."""


def create_network(path: Path, plan: NetworkPlan, entropy: Entropy) -> CreatedNetwork:
    """Makes the folder `path`, which must not exist or be empty. Raises `LocalError`, having made nothing."""
    _check_plan(plan)
    _check_free(path)
    make_folder(path.parent)
    building = path.with_name(f".{path.name}.{os.getpid()}.new")
    shutil.rmtree(building, ignore_errors=True)
    make_folder(building)
    try:
        created = _build(building, plan, entropy)
        os.rename(building, path)
        sync_folder(path.parent)
    except OSError as error:
        raise LocalError(f"cannot create {path}: {error.strerror}; choose another folder") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)

    def moved(home: Home) -> Home:
        return Home(path / home.path.relative_to(building))

    return replace(
        created,
        path=path,
        witnesses=tuple(map(moved, created.witnesses)),
        treasury=moved(created.treasury),
        vesting=tuple(map(moved, created.vesting)),
        invites=tuple(path / invite.relative_to(building) for invite in created.invites),
    )


def init_home(
    home: Home,
    invite: str,
    entropy: Entropy,
    *,
    config: Config | None = None,
    genesis_file: bytes = b"",
) -> CreatedHome:
    """Makes a home for a new account in the invite's network. Raises `LocalError`; overwrites nothing.

    `genesis_file` serves where the invite has only the genesis' id. The key comes last: a home that has one
    is whole, one that has none may be made again.
    """
    try:
        found = decode_invite(invite)
        encoded = found.genesis or genesis_file
        genesis: Genesis | None = GENESES.decode(encoded) if encoded else None
    except DecodeError as error:
        raise LocalError(f"this invite cannot be used: {error}") from error
    if genesis is None:
        raise LocalError("this invite does not hold the genesis; ask for its file and pass --genesis")
    if network_id(genesis) != found.network:
        raise LocalError("this genesis is of another network than the invite; ask for the right file")
    if home.key.exists():
        raise LocalError(
            f"{home.path} is a home already and is kept; run `upkeep up`, or choose another with --home"
        )
    make_folder(home.path)
    settings = config or Config()
    bootstrap = tuple(dict.fromkeys((*settings.peer.bootstrap, *found.addresses)))
    settings = replace(settings, peer=replace(settings.peer, bootstrap=bootstrap))
    _write(home.invite, encode_invite(found).encode() + b"\n", mode=0o600)
    account = _fill_home(home, encoded, settings, entropy.token(SEED_BYTES), entropy.token(TOKEN_BYTES))
    return CreatedHome(
        home=home,
        account=account,
        network=found.network,
        genesis=genesis,
        grant_amount=found.grant_amount,
    )


def read_genesis(home: Home) -> Genesis:
    """The genesis of a home. Raises `LocalError`."""
    try:
        return GENESES.decode(home.genesis.read_bytes())
    except FileNotFoundError as error:
        raise LocalError(
            f"no genesis in {home.path}; run `upkeep init INVITE`, or name another --home"
        ) from error
    except OSError as error:
        raise LocalError(f"cannot read {home.genesis}: {error.strerror}") from error
    except DecodeError as error:
        raise LocalError(f"{home.genesis} is damaged: {error}; copy it again from another peer") from error


def read_invite(home: Home) -> Invite | None:
    """The invite that a home was made from, where there was one. Raises `LocalError`."""
    if not home.invite.exists():
        return None
    try:
        return decode_invite(read_secret(home.invite, bytes_max=INVITE_FILE_BYTES_MAX))
    except DecodeError as error:
        raise LocalError(f"{home.invite} is damaged: {error}; move it away") from error


def read_api_token(home: Home, entropy: Entropy) -> str:
    """The gateway's local key, made where it is missing. Raises `LocalError`."""
    if not home.api_token.exists():
        write_secret(home.api_token, entropy.token(TOKEN_BYTES).hex() + "\n")
    return read_secret(home.api_token, bytes_max=4096).strip()


def peer_id(account: AccountId) -> str:
    """The text form of a libp2p peer id: base58 over the identity hash of the public key's protobuf."""
    alphabet = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
    number, digits = int.from_bytes(b"\x00\x24\x08\x01\x12\x20" + account, "big"), ""
    while number:
        number, rest = divmod(number, 58)
        digits = alphabet[rest] + digits
    return "1" + digits


def address(host: str, port: int, account: AccountId | None = None) -> str:
    """The multiaddress of a TCP listener, with its owner's peer id where given."""
    kind = "ip6" if ":" in host else "ip4" if host.replace(".", "").isdigit() else "dns4"
    return f"/{kind}/{host}/tcp/{port}" + (f"/p2p/{peer_id(account)}" if account is not None else "")


def _build(path: Path, plan: NetworkPlan, entropy: Entropy) -> CreatedNetwork:
    names = ["witness"] if plan.witnesses == 1 else [f"witness-{n}" for n in range(1, plan.witnesses + 1)]
    homes = [Home(path / name) for name in (*names, "treasury", *(part.purpose for part in plan.vesting))]
    seeds = [entropy.token(SEED_BYTES) for _ in homes]
    accounts = [SeedSigner(seed).account for seed in seeds]
    witnesses, treasury = accounts[: plan.witnesses], accounts[plan.witnesses]
    grants = [entropy.token(SEED_BYTES) for _ in range(plan.invites)]
    genesis = _make_genesis(plan, witnesses, treasury, accounts[plan.witnesses + 1 :], grants)
    encoded = GENESES.encode(genesis)
    addresses = tuple(
        address(host, plan.port + number, account)
        for host in plan.hosts
        for number, account in enumerate(witnesses)
    )[:ADVERT_ADDRESSES_MAX]
    tokens = [entropy.token(TOKEN_BYTES) for _ in homes]
    for number, (home, seed) in enumerate(zip(homes, seeds, strict=True)):
        is_witness = number < plan.witnesses
        listen = (address("0.0.0.0", plan.port + number),) if is_witness else ()
        config = Config(
            peer=PeerConfig(listen=listen, bootstrap=addresses), gateway=GatewayConfig(bind="127.0.0.1:0")
        )
        make_folder(home.path)
        _fill_home(home, encoded, config, seed, tokens[number])
    _write(path / "genesis.cbor", encoded, mode=0o644)
    invites = tuple(
        _write_invite(path, n, encoded, addresses, seed, plan.grant) for n, seed in enumerate(grants, 1)
    )
    split = plan.witnesses
    return CreatedNetwork(
        path=path,
        network=network_id(genesis),
        genesis=genesis,
        witnesses=tuple(homes[:split]),
        treasury=homes[split],
        vesting=tuple(homes[split + 1 :]),
        invites=invites,
    )


def _make_genesis(
    plan: NetworkPlan,
    witnesses: Sequence[AccountId],
    treasury: AccountId,
    vesting: Sequence[AccountId],
    grants: Sequence[bytes],
) -> Genesis:
    allocations = [_at_once(SeedSigner(seed).account, plan.grant, "ecosystem grant") for seed in grants]
    for account, part in zip(vesting, plan.vesting, strict=True):
        cliff, duration = part.cliff_s // plan.epoch_s, part.duration_s // plan.epoch_s
        allocations.append(
            Allocation(
                account=account,
                amount=part.amount,
                start=0,
                cliff=cliff,
                duration=duration,
                purpose=part.purpose,
            )
        )
    rest = plan.supply - sum(allocation.amount for allocation in allocations)
    allocations.append(_at_once(treasury, rest, "community"))
    return Genesis(
        name=plan.name,
        unit=plan.unit,
        start_s=plan.start_s,
        epoch_s=plan.epoch_s,
        grace_epochs=plan.grace_epochs,
        allocations=tuple(allocations),
        witnesses=tuple(witnesses),
        faulty=(plan.witnesses - 1) // 3,
        treasury=treasury,
        publish_fee=plan.publish_fee,
    )


def _at_once(account: AccountId, amount: int, purpose: str) -> Allocation:
    return Allocation(account=account, amount=amount, start=0, cliff=0, duration=0, purpose=purpose)


def _write_invite(
    path: Path, number: int, genesis: bytes, addresses: tuple[str, ...], seed: bytes, amount: int
) -> Path:
    inline = genesis if len(genesis) <= INVITE_GENESIS_BYTES_MAX else b""
    network = network_id(GENESES.decode(genesis))
    invite = Invite(
        network=network, genesis=inline, addresses=addresses, grant_seed=seed, grant_amount=amount
    )
    make_folder(path / "invites")
    file = path / "invites" / f"invite-{number:03}.txt"
    _write(file, encode_invite(invite).encode() + b"\n", mode=0o600)
    return file


def _fill_home(home: Home, genesis: bytes, config: Config, seed: bytes, token: bytes) -> AccountId:
    _write(home.genesis, genesis, mode=0o644)
    _write(home.config, render_config(config).encode(), mode=0o644)
    home.api_token.unlink(missing_ok=True)
    write_secret(home.api_token, token.hex() + "\n")
    with NodeKey.install(home, seed) as key:
        return key.account


def _write(path: Path, data: bytes, *, mode: int) -> None:
    """Writes a file whole and durably, in place of one from an attempt that did not end."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise LocalError(f"cannot write {path}: {error.strerror}; choose another folder") from error


def _check_free(path: Path) -> None:
    try:
        is_taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
    except OSError as error:
        raise LocalError(f"cannot read {path}: {error.strerror}; choose another folder") from error
    if is_taken:
        raise LocalError(f"{path} exists and is kept; choose another folder for a new network")


def _check_plan(plan: NetworkPlan) -> None:
    """Raises `LocalError` where a network like that cannot be."""
    purposes = [part.purpose for part in plan.vesting]
    names_taken = {"invites", "treasury", "witness", *(f"witness-{n}" for n in range(1, plan.witnesses + 1))}
    given = plan.grant * plan.invites + sum(part.amount for part in plan.vesting)
    problems = (
        (not 1 <= plan.witnesses <= WITNESSES_MAX, f"a network has 1 to {WITNESSES_MAX} witnesses"),
        (not 0 <= plan.invites <= INVITES_MAX, f"at most {INVITES_MAX} invites are made at once"),
        (not 0 < plan.supply <= MAX_AMOUNT, f"the supply must be 1 to {MAX_AMOUNT} micro-units"),
        (given > plan.supply, f"grants and allocations of {given} exceed the supply of {plan.supply}"),
        (min((plan.grant, *(part.amount for part in plan.vesting))) < 0, "an amount is negative"),
        (not 1 <= plan.epoch_s <= YEAR_S, "an epoch lasts from a second to a year"),
        (len(set(purposes)) != len(purposes), "two allocations have the same purpose"),
        (not names_taken.isdisjoint(purposes), "a purpose must not be named like another home"),
        (not all(p.isascii() and p.isidentifier() for p in purposes), "a purpose is one word of letters"),
        (not plan.hosts, "name a host under which the witnesses can be reached"),
        (not 0 < plan.port <= 65536 - plan.witnesses, "the ports must lie between 1 and 65535"),
    )
    for is_wrong, what in problems:
        if is_wrong:
            raise LocalError(what)
