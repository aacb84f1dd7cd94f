"""`upkeep network create` and `upkeep init`: homes before any daemon runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gossip_ledger.errors import LocalError
from peer.cli.shell import HomeOption, JsonOption, home_of, money, parse_money, print_fields, print_json
from peer.cli.usage import UsageError

FILE_BYTES_MAX = 1 << 20


def create(
    folder: Annotated[Path, typer.Argument(help="The folder to make; it must not exist or be empty.")],
    name: Annotated[str, typer.Option(help="What the network is called.")] = "home",
    unit: Annotated[str, typer.Option(help="What its money is called.")] = "OPEN",
    supply: Annotated[str, typer.Option(help="All the money there will ever be.")] = "1000000",
    witnesses: Annotated[int, typer.Option(help="Witnesses; 4 tolerate one liar, 7 two.")] = 1,
    invites: Annotated[int, typer.Option(help="Invites to make.")] = 8,
    grant: Annotated[str, typer.Option(help="What each invite is worth.")] = "100",
    team: Annotated[str, typer.Option(help="For the team: a year's cliff, vested over four.")] = "0",
    investors: Annotated[str, typer.Option(help="For investors: a year's cliff, vested over four.")] = "0",
    publish_fee: Annotated[str, typer.Option(help="Fee for publishing a model.")] = "1",
    epoch_seconds: Annotated[int, typer.Option(help="Length of an epoch.")] = 60,
    host: Annotated[
        list[str] | None, typer.Option(help="Where the witnesses can be reached; may be given again.")
    ] = None,
    port: Annotated[int, typer.Option(help="Port of the first witness; the others follow.")] = 8470,
    as_json: JsonOption = False,
) -> None:
    """Make a network: its genesis, its witnesses' and treasury's homes, and invites that carry money."""
    from peer.capabilities import SystemClock, SystemEntropy
    from peer.networks import NetworkPlan, Vesting, create_network

    parts = (("team", parse_money(team, "--team")), ("investors", parse_money(investors, "--investors")))
    plan = NetworkPlan(
        name=name,
        unit=unit,
        supply=parse_money(supply, "--supply"),
        witnesses=witnesses,
        invites=invites,
        grant=parse_money(grant, "--grant"),
        vesting=tuple(Vesting(purpose=purpose, amount=amount) for purpose, amount in parts if amount),
        epoch_s=epoch_seconds,
        publish_fee=parse_money(publish_fee, "--publish-fee"),
        hosts=tuple(host) if host else ("127.0.0.1",),
        port=port,
        start_s=SystemClock().now_s(),
    )
    created = create_network(folder.expanduser().absolute(), plan, SystemEntropy())
    document: dict[str, object] = {
        "folder": str(created.path),
        "network": created.network.hex(),
        "name": plan.name,
        "unit": plan.unit,
        "supply": created.genesis.supply,
        "quorum": created.genesis.quorum,
        "witnesses": [str(home.path) for home in created.witnesses],
        "treasury": str(created.treasury.path),
        "vesting": [str(home.path) for home in created.vesting],
        "invites": [str(path) for path in created.invites],
    }
    if as_json:
        print_json(document)
        return
    invite_line = (
        f"{len(created.invites)} worth {money(plan.grant, unit)} each, in {created.path / 'invites'}"
    )
    print_fields(
        {
            "network": f"{plan.name} {created.network.hex()[:12]}",
            "supply": money(created.genesis.supply, unit),
            "witnesses": f"{witnesses}, of which {created.genesis.quorum} make a record final",
            "invites": invite_line if created.invites else "none",
            "next": f"upkeep up --home {created.witnesses[0].path}",
            "then": "give an invite to each peer: upkeep init FILE; upkeep up",
        }
    )


def init(
    invite: Annotated[str, typer.Argument(help="The invite, a file that holds it, or - for standard input.")],
    listen: Annotated[
        list[str] | None, typer.Option(help="Multiaddress to listen on; may be given again.")
    ] = None,
    worker: Annotated[bool, typer.Option("--worker", help="Serve models for money.")] = False,
    genesis: Annotated[Path | None, typer.Option(help="The genesis file, where the invite has none.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a home out of an invite: key, configuration, genesis, and the invite's first money."""
    from peer.capabilities import SystemEntropy
    from peer.config import Config, PeerConfig, WorkerConfig
    from peer.networks import init_home

    addresses = PeerConfig() if not listen else PeerConfig(listen=tuple(listen))
    config = Config(peer=addresses, worker=WorkerConfig(enabled=worker))
    made = init_home(
        home_of(home),
        _read_invite(invite),
        SystemEntropy(),
        config=config,
        genesis_file=b"" if genesis is None else _read(genesis),
    )
    if as_json:
        print_json(
            {
                "home": str(made.home.path),
                "account": made.account.hex(),
                "network": made.network.hex(),
                "name": made.genesis.name,
                "grant": made.grant_amount,
            }
        )
        return
    print_fields(
        {
            "home": made.home.path,
            "account": made.account.hex(),
            "network": f"{made.genesis.name} {made.network.hex()[:12]}",
            "grant": money(made.grant_amount, made.genesis.unit),
            "next": "upkeep up" if home is None else f"upkeep up --home {made.home.path}",
        }
    )


def _read_invite(given: str) -> str:
    from p2p.invites import PREFIX

    if given == "-":
        return sys.stdin.read(FILE_BYTES_MAX)
    if "".join(given.split()).startswith(PREFIX):
        return given
    path = Path(given).expanduser()
    try:
        is_file = path.is_file()
    except OSError:
        is_file = False
    if not is_file:
        raise UsageError(f"{given[:60]!r} is neither an invite ({PREFIX}...) nor a file with one")
    return _read(path).decode("utf-8", "replace")


def _read(path: Path) -> bytes:
    try:
        with path.expanduser().open("rb") as file:
            return file.read(FILE_BYTES_MAX)
    except OSError as error:
        raise LocalError(f"cannot read {path}: {error.strerror}") from error
