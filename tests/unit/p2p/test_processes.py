"""Two real processes: one is stopped, killed, started again, while the other must notice and go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
import trio

from gossip_ledger.records import AccountId
from p2p.eventlog import NoLog
from p2p.gossip import RecordGossip
from p2p.libp2p_transport import Libp2pTransport, open_libp2p_transport
from p2p.links import Greeting, Links
from p2p.transport import LinkError

pytestmark = pytest.mark.slow

TOPIC = "/upkeep/test/records/1"
ECHO = "/upkeep/test/echo/1"
SCRIPT = Path(__file__).with_name("peer_process.py")
ROOT = Path(__file__).parents[3]


class Book:
    def list(self) -> list[str]:
        return []

    def add(self, address: str) -> None:
        pass

    def mark(self, address: str, *, did_answer: bool) -> None:
        pass


async def greet(_peer: AccountId) -> Greeting | None:
    return Greeting(addresses=())


@asynccontextmanager
async def child(number: int, *bootstrap: str) -> AsyncGenerator[tuple[trio.Process, str]]:
    """A peer process and its address; killed at the end."""
    process = await trio.lowlevel.open_process(
        [sys.executable, str(SCRIPT), str(number), *bootstrap],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    try:
        with trio.fail_after(30):
            line = b""
            while not line.endswith(b"\n"):
                line += await process.stdout.receive_some(1000)
        yield process, line.decode().strip()
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()
            await process.stdout.aclose()


@asynccontextmanager
async def open_node() -> AsyncGenerator[Libp2pTransport]:
    async with open_libp2p_transport(
        seed=bytes([1]) * 32, listen=("/ip4/127.0.0.1/tcp/0",), topics=(TOPIC,), log=NoLog()
    ) as node:
        yield node


async def until(condition: Callable[[], bool], timeout_s: float) -> float:
    """Seconds until the condition held."""
    start = trio.current_time()
    with trio.fail_after(timeout_s):
        while not condition():
            await trio.sleep(0.02)
    return trio.current_time() - start


async def test_a_stopped_process_is_dropped_and_gossip_resumes_when_it_goes_on() -> None:
    async with open_node() as node, child(2) as (process, address), trio.open_nursery() as nursery:
        gossip = RecordGossip(node, TOPIC)
        links = Links(node, Book(), greet, bootstrap=(address,), rng=Random(1), log=NoLog())
        nursery.start_soon(gossip.run)
        nursery.start_soon(links.run)
        await until(lambda: bool(links.peers()), 10)
        process.send_signal(signal.SIGSTOP)
        try:
            assert await until(lambda: not node.links(), 20) < 15
            assert not links.peers()
        finally:
            process.send_signal(signal.SIGCONT)
        await until(lambda: bool(links.peers()), 30)
        with trio.fail_after(20):
            got: tuple[bytes, ...] = ()
            number = 0
            while not got:
                number += 1
                gossip.queue(b"%d" % number)
                with trio.move_on_after(1):
                    _, got = await gossip.frames().receive()
        assert got[0].startswith(b"re:")
        nursery.cancel_scope.cancel()


async def test_a_killed_process_breaks_streams_at_once_and_comes_back_under_the_same_key() -> None:
    async with open_node() as node:
        async with child(2) as (process, address):
            peer = await node.dial(address)
            stream = await node.open(peer, ECHO)
            await stream.write(b"x")
            assert await stream.read(1) == b"x"
            process.kill()
            with trio.fail_after(2), pytest.raises(LinkError):
                await stream.read(1)
            await until(lambda: not node.links(), 2)
        async with child(2) as (_, address):
            assert await node.dial(address) == peer
            stream = await node.open(peer, ECHO)
            await stream.write(b"again")
            assert await stream.read(5) == b"again"
            await stream.reset()
