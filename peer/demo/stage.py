"""Setting the demo's stage: a network, five homes, datanets with contributors' keys, published models."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, final

import trio

from gossip_ledger.records import AccountId
from gpu_worker.base import cache_folder, default_base
from peer.capabilities import Clock, Entropy
from peer.config import Config, GatewayConfig, Home, PeerConfig, WorkerConfig
from peer.datanets import save_datanet
from peer.demo import plan
from peer.demo.corpora import load_corpus
from peer.demo.daemons import Daemon
from peer.demo.drafts import to_contents
from peer.keys import SEED_BYTES, SeedSigner, make_folder, read_account, write_secret
from peer.networks import MICRO, NetworkPlan, create_network, init_home

ADAPTERS: Final = Path(__file__).with_name("adapters")
LOOPBACK: Final = ("/ip4/127.0.0.1/tcp/0",)
ANY_GATEWAY: Final = GatewayConfig(bind="127.0.0.1:0")
POLL_S: Final = 0.2
WORKERS_S_MAX: Final = 150
PUBLISH_S_MAX: Final = 60


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The demo's peers, by name, and where everything lies."""

    folder: Path
    daemons: dict[str, Daemon]

    def __getitem__(self, name: str) -> Daemon:
        return self.daemons[name]

    def names(self) -> dict[str, str]:
        """Account in hex -> the peer's name."""
        return {read_account(daemon.home).hex(): name for name, daemon in self.daemons.items()}


def set_stage(folder: Path, clock: Clock, entropy: Entropy) -> Stage:
    """Makes the network and the homes; nothing runs yet. Raises `LocalError`."""
    network = create_network(
        folder / "network",
        NetworkPlan(
            name="demo",
            start_s=clock.now_s(),
            invites=4,
            grant=plan.GRANT,
            port=free_port(),
            publish_fee=MICRO // 10,
        ),
        entropy,
    )
    witness = network.witnesses[0]
    configs = {
        plan.STUDIO: Config(peer=PeerConfig(listen=LOOPBACK), gateway=ANY_GATEWAY),
        plan.BRISK: _worker_config("bf16"),
        plan.THRIFTY: _worker_config("nf4"),
        plan.READER: Config(peer=PeerConfig(listen=LOOPBACK), gateway=ANY_GATEWAY),
    }
    daemons = {plan.WITNESS: Daemon(plan.WITNESS, witness, "--bind", ANY_GATEWAY.bind)}
    for (name, config), invite in zip(configs.items(), network.invites, strict=True):
        home = Home(folder / name)
        init_home(home, invite.read_text(encoding="utf-8"), entropy, config=config)
        daemons[name] = Daemon(name, home)
    return Stage(folder=folder, daemons=daemons)


def _worker_config(quantization: str) -> Config:
    worker = replace(
        WorkerConfig(),
        enabled=True,
        quantization=quantization,
        price_in=plan.PRICE_IN,
        price_out=plan.PRICE_OUT,
        threads=1,
    )
    return Config(peer=PeerConfig(listen=LOOPBACK), gateway=ANY_GATEWAY, worker=worker)


def free_port() -> int:
    """A TCP port of loopback that nobody uses right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_datanets(stage: Stage, entropy: Entropy) -> dict[str, str]:
    """Writes the datanets with a key for each contributor. Returns names for accounts, for people."""
    owner = read_account(stage[plan.STUDIO].home)
    names: dict[str, str] = {}
    for corpus_name in sorted({question.model for question in plan.QUESTIONS} - {plan.BASE_NAME}):
        corpus = load_corpus(corpus_name, cache_folder() / "packages")
        accounts: dict[str, AccountId] = {}
        keys = stage.folder / "contributors" / corpus_name
        make_folder(keys)
        for place, part in enumerate(corpus.contributions):
            seed = entropy.token(SEED_BYTES)
            write_secret(keys / f"{place:02d}.key", seed.hex() + "\n")
            accounts[part.contributor] = SeedSigner(seed).account
            names[accounts[part.contributor].hex()] = part.contributor
        save_datanet(to_contents(corpus, owner, accounts), stage.folder / "datanets" / corpus_name)
    return names


async def publish_models(stage: Stage) -> list[str]:
    """Publishes the base and the adapters from the studio. Returns the model ids."""
    studio = stage[plan.STUDIO]
    base = str(default_base(cache_folder()))
    with trio.fail_after(PUBLISH_S_MAX):
        while True:
            if (await studio.get("/api/status"))["spendable"] >= plan.GRANT // 2:
                break
            await trio.sleep(POLL_S)
    bare = {
        "name": plan.BASE_NAME,
        "version": 1,
        "adapter": None,
        "base": base,
        "datanet": None,
        "split": list(plan.BASE_SPLIT),
        "successor_of": None,
        "licence": plan.BASE_LICENCE,
        "about": plan.BASE_ABOUT,
    }
    models = [(await studio.post("/api/publish", bare))["model_id"]]
    for folder in sorted(ADAPTERS.iterdir()):
        if not folder.is_dir():
            continue
        datanet = stage.folder / "datanets" / folder.name
        described = json.loads((datanet / "datanet.json").read_text(encoding="utf-8"))
        adapter = {
            **bare,
            "name": folder.name,
            "adapter": str(folder),
            "datanet": str(datanet),
            "split": list(plan.ADAPTER_SPLIT),
            "licence": str(described["licence"])[:256],
            "about": str(described["about"]),
        }
        models.append((await studio.post("/api/publish", adapter))["model_id"])
    return models


async def workers_ready(stage: Stage, models: list[str], count: int) -> None:
    """Returns once the reader sees `count` workers that answer for all `models`, and has money to ask."""
    reader = stage[plan.READER]
    with trio.fail_after(WORKERS_S_MAX):
        while True:
            workers = (await reader.get("/api/workers"))["workers"]
            holders = [w for w in workers if set(models) <= set(w["model_ids"])]
            if len(holders) >= count and (await reader.get("/api/status"))["spendable"] > 0:
                return
            await trio.sleep(POLL_S)
