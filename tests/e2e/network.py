"""Real networks of daemon processes: real sockets, real files, the real model where one is served."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import trio

from gossip_ledger.genesis import Genesis
from gpu_worker.base import cache_folder, default_base
from peer.capabilities import SystemClock, SystemEntropy
from peer.config import Config, GatewayConfig, Home, PeerConfig, WorkerConfig
from peer.demo import plan
from peer.demo.daemons import Daemon
from peer.demo.stage import free_port
from peer.networks import CreatedNetwork, NetworkPlan, create_network, init_home

POLL_S = 0.1
GRANT = 10_000_000
CONFIG = Config(peer=PeerConfig(listen=("/ip4/127.0.0.1/tcp/0",)), gateway=GatewayConfig(bind="127.0.0.1:0"))


@dataclass
class Net:
    """A running network: the first witness, and whoever joined."""

    folder: Path
    created: CreatedNetwork
    daemons: dict[str, Daemon] = field(default_factory=dict)
    _used: int = 0

    @property
    def genesis(self) -> Genesis:
        return self.created.genesis

    def __getitem__(self, name: str) -> Daemon:
        return self.daemons[name]

    def invite(self) -> str:
        """The next unused invite."""
        self._used += 1
        return self.created.invites[self._used - 1].read_text(encoding="utf-8")

    def add(self, name: str, config: Config = CONFIG) -> Daemon:
        """A new home from a fresh invite; not started yet."""
        home = Home(self.folder / name)
        init_home(home, self.invite(), SystemEntropy(), config=config)
        self.daemons[name] = Daemon(name, home)
        return self.daemons[name]

    async def join(self, name: str, config: Config = CONFIG) -> Daemon:
        """A new peer, running."""
        daemon = self.add(name, config)
        daemon.start()
        await daemon.ready()
        return daemon

    async def funded(self, name: str) -> None:
        """Returns once the peer can spend its grant."""
        await until(lambda: self._spendable(name), "the grant never came")

    async def _spendable(self, name: str) -> bool:
        return (await self[name].get("/api/status"))["spendable"] > 0

    async def agree(self, names: Sequence[str] = ()) -> str:
        """Returns the root once all (or the named) peers hold the same one and nothing is unfinished."""
        found: list[dict[str, Any]] = []

        async def equal() -> bool:
            found[:] = [await self[name].get("/api/ledger/root") for name in names or self.daemons]
            is_equal = len({root["root"] for root in found}) == 1
            return is_equal and not any(root["unfinished"] for root in found)

        await until(equal, "the peers never agreed")
        assert all(root["supply_conserved"] for root in found)
        return str(found[0]["root"])

    async def publish_base(self, by: str) -> str:
        """Publishes the default base from a funded peer; returns the model id."""
        await self.funded(by)
        body: dict[str, object] = {
            "name": plan.BASE_NAME,
            "version": 1,
            "adapter": None,
            "base": str(default_base(cache_folder())),
            "datanet": None,
            "split": list(plan.BASE_SPLIT),
            "successor_of": None,
            "licence": plan.BASE_LICENCE,
            "about": plan.BASE_ABOUT,
        }
        return str((await self[by].post("/api/publish", body))["model_id"])

    async def served(self, model: str, workers: int, seen_by: str) -> None:
        """Returns once `workers` adverts for the model are seen."""

        async def enough() -> bool:
            rows = (await self[seen_by].get("/api/workers"))["workers"]
            return sum(model in row["model_ids"] for row in rows) >= workers

        await until(enough, "the workers never offered the model", seconds=120)


def worker_config(quantization: str = "nf4") -> Config:
    """A worker on one thread, with prices that make small answers worth something."""
    worker = replace(
        WorkerConfig(),
        enabled=True,
        quantization=quantization,
        price_in=plan.PRICE_IN,
        price_out=plan.PRICE_OUT,
        threads=1,
    )
    return replace(CONFIG, worker=worker)


async def until(condition: Any, otherwise: str, seconds: float = 60) -> None:
    """Waits for an async condition; fails with `otherwise`."""
    with trio.move_on_after(seconds):
        while True:
            if await condition():
                return
            await trio.sleep(POLL_S)
    raise AssertionError(otherwise)


@asynccontextmanager
async def running_network(folder: Path) -> AsyncGenerator[Net]:
    """A witness on loopback, and invites for more; everything is stopped at the end."""
    created = create_network(
        folder / "network",
        NetworkPlan(name="test", start_s=SystemClock().now_s(), invites=6, grant=GRANT, port=free_port()),
        SystemEntropy(),
    )
    net = Net(folder=folder, created=created)
    net.daemons["witness"] = Daemon("witness", created.witnesses[0], "--bind", "127.0.0.1:0")
    try:
        net["witness"].start()
        await net["witness"].ready()
        yield net
    finally:
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for daemon in net.daemons.values():
                    nursery.start_soon(daemon.stop)
