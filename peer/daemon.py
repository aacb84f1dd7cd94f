"""The daemon: a node over real capabilities, its gateway, and the engine's process, until told to stop.

The p2p scope, the gateway and the engine fail apart from each other: libp2p restarts inside its transport,
the engine in its supervisor, and neither takes the gateway or the store down.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import structlog
import trio

from gossip_ledger.genesis import network_id
from gpu_worker.base import cache_folder, find_base
from p2p.libp2p_transport import open_libp2p_transport
from peer.capabilities import SystemClock, SystemEntropy
from peer.config import Config, Home, store_config
from peer.engine import Engine
from peer.facade import Facade
from peer.gateway.app import make_app, page_path
from peer.gateway.server import allowed_hosts, open_socket, serve_gateway
from peer.keys import NodeKey, SeedSigner
from peer.networks import read_api_token, read_genesis, read_invite
from peer.node import Capabilities, Node, Worker
from peer.run_file import RunFile, remove_run_file, write_run_file
from peer.store import open_store
from peer.supervisor import open_engine
from peer.topics import adverts_topic, records_topic
from peer.trade import Prices, Trade
from peer.version import VERSION

MODELS_FOLDER: Final = "models"
STOP_GRACE_S: Final = 3.0

Announce = Callable[[str, str], None]
"""Called once the gateway answers: its URL, and the path that opens the page once."""


async def run_daemon(home: Home, config: Config, *, announce: Announce) -> None:
    """Runs until SIGTERM, SIGINT or a stop through the gateway. Raises `LocalError`."""
    clock, entropy = SystemClock(), SystemEntropy()
    genesis, invite = read_genesis(home), read_invite(home)
    log = structlog.get_logger("daemon")
    stopped = trio.Event()
    async with AsyncExitStack() as stack:
        key = stack.enter_context(NodeKey.load(home))
        listener = stack.enter_context(open_socket(config.gateway.bind))
        store = open_store(home.store)
        stack.callback(store.close)
        network = network_id(genesis)
        worker = None
        if config.worker.enabled:
            engine = await stack.enter_async_context(_engine(config))
            worker = _worker(home, config, engine)
        transport = await stack.enter_async_context(
            open_libp2p_transport(
                seed=key.seed,
                listen=config.peer.listen,
                topics=(records_topic(network), adverts_topic(network)),
                log=structlog.get_logger("p2p"),
            )
        )
        node = Node(
            Capabilities(
                genesis=genesis,
                signer=key.signer,
                store=store,
                transport=transport,
                clock=clock,
                entropy=entropy,
                bootstrap=config.peer.bootstrap,
                grant=SeedSigner(invite.grant_seed) if invite is not None and invite.grant_seed else None,
                worker=worker,
                is_witness=config.witness.enabled,
            )
        )
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        await node.start(nursery)
        app = make_app(
            Facade(node),
            token=read_api_token(home, entropy),
            allowed_hosts=allowed_hosts(config.gateway.bind),
            version=VERSION,
            clock=clock,
            entropy=entropy,
            stop=stopped.set,
        )
        url = await nursery.start(serve_gateway, app, listener)
        write_run_file(home, RunFile(pid=os.getpid(), gateway=url))
        stack.callback(remove_run_file, home, os.getpid())
        log.info("ready", gateway=url, account=node.account.hex()[:8])
        announce(url, page_path(app))
        nursery.start_soon(_wait_for_signal, stopped)
        await stopped.wait()
        log.info("stopping")


@asynccontextmanager
async def _engine(config: Config) -> AsyncGenerator[Engine]:
    folder = await trio.to_thread.run_sync(find_base, config.worker.base, cache_folder())
    async with open_engine(
        base=folder,
        quantization=config.worker.quantization,
        threads=config.worker.threads,
        slots=config.worker.max_slots,
        cache=cache_folder(),
        report=lambda line: structlog.get_logger("engine").warning("engine", line=line),
    ) as engine:
        yield engine


def _worker(home: Home, config: Config, engine: Engine) -> Worker:
    async def keep(prices: Prices) -> None:
        changes = {"worker.price_in": prices.tokens_in, "worker.price_out": prices.tokens_out}
        await trio.to_thread.run_sync(store_config, home, changes)

    prices = Prices(tokens_in=config.worker.price_in, tokens_out=config.worker.price_out)
    return Worker(engine=engine, trade=Trade(prices, keep), folder=home.path / MODELS_FOLDER)


async def _wait_for_signal(stopped: trio.Event) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            stopped.set()
