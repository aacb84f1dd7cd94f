"""Opens nodes of either transport, so that one suite holds both to the seam's promises."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from random import Random

import pytest

from gossip_ledger.records import AccountId
from p2p.memory_transport import MemoryNetwork
from p2p.transport import Transport

TOPIC = "/upkeep/test/records/1"

Open = Callable[[int], AbstractAsyncContextManager[Transport]]


@pytest.fixture(params=["memory"])
def open_node(request: pytest.FixtureRequest) -> Open:
    """`open_node(n)` is the n-th node of one world."""
    network = MemoryNetwork(Random(7))
    return lambda number: network.transport(AccountId(bytes([number]) * 32))
