"""Whole nodes in one process: real from `peer/node.py` down, over memory transports, stores and fake engines.

Everything runs under trio's virtual clock. A peer that crashes keeps its store and can live again.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Final, TypeVar, final

import pytest
import trio

from gossip_ledger.genesis import Allocation, Genesis, network_id
from gossip_ledger.ledger import Ledger
from gossip_ledger.records import (
    MANIFESTS,
    AccountId,
    BlobId,
    File,
    Manifest,
    ModelId,
    Publish,
    Receipt,
    RecordId,
    Split,
)
from gossip_ledger.signing import blob_id
from p2p.memory_transport import MemoryNetwork, MemoryTransport
from peer.api import Answer, AskEvent, AskOptions, Finished, RequestError
from peer.capabilities import SeededEntropy, VirtualClock
from peer.datanets import split_file
from peer.node import Capabilities, Node, Worker
from peer.store import MemoryStore
from peer.trade import Prices, Trade
from tests.support.fake_engine import FakeEngine, open_fake_engine
from tests.support.tiny_base import write_tiny_base
from tests.unit.peer.desk import person

START_S: Final = 1_700_000_000
FUNDS: Final = 1_000_000
PRICES: Final = Prices(tokens_in=1000, tokens_out=2000)
"""One micro-unit for each token read, two for each written."""
VOCABULARY: Final = 250
"""Below every special token, so that only the length ends an answer."""
BASE: Final = b"b" * 32
MODEL_NAME: Final = "tiny"
SPLIT: Final = Split(worker=6000, creator=1000, data=0, upkeep=2000, network=1000)
WITNESS: Final = "witness"

T = TypeVar("T")


@pytest.fixture
def inline_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work for threads is done at once: a virtual clock would run on while a thread works."""

    async def run_sync(function: Callable[..., T], *args: Any, **_: Any) -> T:
        await trio.lowlevel.checkpoint()
        return function(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)


@cache
def base_files() -> dict[str, bytes]:
    """Tokenizer, settings and template of the tiny base."""
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_base(Path(folder))
        names = ("chat_template.jinja", "config.json", "tokenizer.json")
        return {name: (Path(folder) / name).read_bytes() for name in names}


def base_manifest() -> tuple[bytes, dict[BlobId, bytes]]:
    """The bare base as the witness publishes it: the manifest, and all blobs with it."""
    files: list[File] = []
    blobs: dict[BlobId, bytes] = {}
    for name, contents in base_files().items():
        file, chunks = split_file(name, contents)
        files.append(file)
        blobs |= chunks
    manifest = Manifest(
        creator=person(WITNESS).account,
        name=MODEL_NAME,
        version=1,
        kind="base",
        base=BASE,
        split=SPLIT,
        clusters=(),
        files=tuple(files),
        tables=(),
        datanet=b"",
        licence="CC0-1.0",
        about="",
    )
    data = MANIFESTS.encode(manifest)
    return data, blobs | {blob_id(data): data}


MODEL: Final = ModelId(blob_id(base_manifest()[0]))


@final
class Peer:
    """One node, its durable memory and its engine."""

    def __init__(self, town: Town, name: str, *, is_worker: bool, max_context: int, step_s: float) -> None:
        self.town = town
        self.name = name
        self.signer = person(name)
        self.store = MemoryStore()
        self._is_worker = is_worker
        self._max_context = max_context
        self._step_s = step_s
        self._scope = trio.CancelScope()
        self.node: Node = None  # pyright: ignore[reportAttributeAccessIssue] - there once it lives
        self.transport: MemoryTransport = None  # pyright: ignore[reportAttributeAccessIssue]
        self.engine: FakeEngine | None = None

    @property
    def account(self) -> AccountId:
        return self.signer.account

    @property
    def address(self) -> str:
        return f"/memory/{self.name}/p2p/{self.account.hex()}"

    @property
    def ledger(self) -> Ledger:
        return self.node.service.ledger

    async def live(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Runs the node until it crashes."""
        with trio.CancelScope() as self._scope:
            async with (
                self.town.network.transport(self.account, place=self.name) as self.transport,
                open_fake_engine(
                    base=BASE, vocabulary=VOCABULARY, max_context=self._max_context, step_s=self._step_s
                ) as engine,
                trio.open_nursery() as nursery,
            ):
                self.engine = engine
                self.node = self._make_node(engine)
                await self.node.start(nursery)
                task_status.started()
                await trio.sleep_forever()

    def _make_node(self, engine: FakeEngine) -> Node:
        worker = Worker(engine=engine, trade=Trade(PRICES), folder=Path("/nowhere"))
        return Node(
            Capabilities(
                genesis=self.town.genesis,
                signer=self.signer,
                store=self.store,
                transport=self.transport,
                clock=VirtualClock(start_s=START_S + int(trio.current_time())),
                entropy=SeededEntropy(Random(f"{self.name} {trio.current_time()}")),
                bootstrap=tuple(peer.address for peer in self.town.peers.values() if peer is not self),
                worker=worker if self._is_worker else None,
            )
        )

    def crash(self) -> None:
        """Ends the node in the middle of whatever it does."""
        self._scope.cancel()

    def receipts(self) -> list[Receipt]:
        return [receipt for _, receipt in self.ledger.receipts()]


@final
class Town:
    """A witness, and whoever joins."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.peers: dict[str, Peer] = {}
        self.network = MemoryNetwork(Random(1))
        self.genesis = Genesis(
            name="town",
            unit="OPEN",
            start_s=START_S,
            epoch_s=600,
            grace_epochs=2,
            allocations=tuple(
                Allocation(
                    account=person(name).account, amount=amount, start=0, cliff=0, duration=0, purpose="test"
                )
                for name, amount in (("payer", FUNDS), ("liar", FUNDS), ("poor", 30))
            ),
            witnesses=(person(WITNESS).account,),
            faulty=0,
            treasury=person("treasury").account,
            publish_fee=0,
        )
        self.network_id = network_id(self.genesis)

    async def join(
        self, name: str, *, is_worker: bool = False, max_context: int = 512, step_s: float = 0.05
    ) -> Peer:
        """A new peer, started."""
        peer = Peer(self, name, is_worker=is_worker, max_context=max_context, step_s=step_s)
        await peer.store.put_blobs(list(base_manifest()[1].items()))
        self.peers[name] = peer
        await self.start(peer)
        return peer

    async def start(self, peer: Peer) -> None:
        """Starts a peer, again after a crash."""
        while self.network.find(peer.name) is not None:
            await trio.sleep(0.1)
        await self.nursery.start(peer.live)

    async def until(self, condition: Callable[[], bool], what: str = "it", seconds: float = 60) -> None:
        """Waits in virtual time."""
        with trio.move_on_after(seconds):
            while not condition():
                await trio.sleep(0.1)
            return
        pytest.fail(f"{what} did not happen within {seconds} s")

    async def settle(self) -> None:
        """Waits until all is final, and everybody agrees."""
        ledgers = [peer.ledger for peer in self.peers.values()]
        await self.until(
            lambda: (
                not any(ledger.unfinished() for ledger in ledgers)
                and len({ledger.root() for ledger in ledgers}) == 1
            ),
            "agreement",
        )
        assert all(ledger.supply_conserved() and not ledger.alarms() for ledger in ledgers)

    async def advertised(self, payer: Peer, *workers: Peer) -> None:
        """Waits until `payer` can ask `workers`."""

        def known() -> set[AccountId]:
            book, clock = payer.node.spreader.adverts, payer.node.given.clock
            return {advert.worker for advert in book.serving(MODEL, clock.now_s())}

        await self.until(lambda: {worker.account for worker in workers} <= known(), "adverts")


@asynccontextmanager
async def open_town(*workers: str, **options: Any) -> AsyncGenerator[Town]:
    """A town with a witness, who published the base, and `workers` that serve it."""
    async with trio.open_nursery() as nursery:
        town = Town(nursery)
        witness = await town.join(WITNESS)
        await witness.node.author.write(Publish(manifest=MODEL, successor_of=ModelId(b""), fee=0))
        for name in workers:
            await town.join(name, is_worker=True, **options)
        yield town
        nursery.cancel_scope.cancel()


def question(**changes: Any) -> AskOptions:
    """A question with a prompt of five tokens."""
    fields: dict[str, Any] = {"model": MODEL_NAME, "prompt": "hello", "max_tokens": 40}
    return AskOptions(**(fields | changes))


async def ask(
    peer: Peer, options: AskOptions, on_event: Callable[[AskEvent], Awaitable[None]] | None = None
) -> tuple[Answer, list[AskEvent]]:
    """Asks to the end. Raises `RequestError`."""
    assert peer.node.asker is not None
    events: list[AskEvent] = []
    async with peer.node.asker.ask(options) as stream:
        async for event in stream:
            events.append(event)
            if on_event is not None:
                await on_event(event)
    last = events[-1]
    assert isinstance(last, Finished), last
    return last.answer, events


async def refused(peer: Peer, options: AskOptions) -> RequestError:
    """Asks for what cannot be had, and returns the refusal."""
    with pytest.raises(RequestError) as caught:
        await ask(peer, options)
    return caught.value


def price(tokens_in: int, tokens_out: int) -> int:
    """What an answer costs at `PRICES`."""
    return tokens_in + 2 * tokens_out


def ids(answer: Answer) -> list[RecordId]:
    return [RecordId(bytes.fromhex(text)) for text in answer["receipt"]]
