"""A peer in a process of its own, for tests that stop, kill or time it. Prints its address, then serves."""

from __future__ import annotations

import sys
from random import Random

import trio

from gossip_ledger.records import AccountId
from p2p.eventlog import NoLog
from p2p.gossip import RecordGossip
from p2p.libp2p_transport import open_libp2p_transport
from p2p.links import Greeting, Links
from p2p.transport import Stream

TOPIC = "/upkeep/test/records/1"
ECHO = "/upkeep/test/echo/1"


async def echo(stream: Stream) -> None:
    while data := await stream.read(1 << 16):
        await stream.write(data)


class Book:
    def list(self) -> list[str]:
        return []

    def add(self, address: str) -> None:
        pass

    def mark(self, address: str, *, did_answer: bool) -> None:
        pass


async def greet(_peer: AccountId) -> Greeting | None:
    return Greeting(addresses=())


async def main(number: int, bootstrap: tuple[str, ...]) -> None:
    """Echoes streams, and answers every gossiped record `x` with `re:x` at once."""
    async with open_libp2p_transport(
        seed=bytes([number]) * 32, listen=("/ip4/127.0.0.1/tcp/0",), topics=(TOPIC,), log=NoLog()
    ) as transport:
        transport.serve(ECHO, echo)
        gossip = RecordGossip(transport, TOPIC)
        links = Links(transport, Book(), greet, bootstrap=bootstrap, rng=Random(number), log=NoLog())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gossip.run)
            nursery.start_soon(links.run)
            print(transport.addresses[0], flush=True)
            async for _, records in gossip.frames():
                for record in records:
                    gossip.queue(b"re:" + record)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), tuple(sys.argv[2:]))
