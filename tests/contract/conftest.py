"""Opens nodes of either transport, so that one suite holds both to the seam's promises."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from random import Random

import pytest

from gossip_ledger.records import AccountId
from p2p.eventlog import NoLog
from p2p.memory_transport import MemoryNetwork
from p2p.transport import Transport

TOPIC = "/upkeep/test/records/1"

Open = Callable[[int], AbstractAsyncContextManager[Transport]]


@pytest.fixture(params=["memory", "libp2p"])
def open_node(request: pytest.FixtureRequest) -> Open:
    """`open_node(n)` is the n-th node of one world."""
    if request.param == "memory":
        network = MemoryNetwork(Random(7))
        return lambda number: network.transport(AccountId(bytes([number]) * 32))

    from p2p.libp2p_transport import open_libp2p_transport

    return lambda number: open_libp2p_transport(
        seed=bytes([number]) * 32, listen=("/ip4/127.0.0.1/tcp/0",), topics=(TOPIC,), log=NoLog()
    )
