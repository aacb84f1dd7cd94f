"""The transport seam: everything above it knows peers by account, streams and topics, and never libp2p.

Two implementations are held to one contract suite: `libp2p_transport` (real sockets) and
`memory_transport` (virtual time, seeded faults). Errors that may leave a transport:

- `DialError`: the address did not lead to the expected peer. Says why in words.
- `LinkError`: the peer is gone or the stream broke. The end of a stream is `b""`, not an error.

Every call takes bounded time by itself; callers add their own deadlines on top.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, final

import trio

from gossip_ledger.errors import RemoteError
from gossip_ledger.records import AccountId


class DialError(RemoteError):
    """An address that could not be reached, or that answered with another key."""


class LinkError(RemoteError):
    """A link or stream that broke, or a peer to whom there is none."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One live connection to a peer."""

    peer: AccountId
    address: str
    is_outbound: bool
    round_trip_ms: int | None
    """None until measured."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GossipFrame:
    """One frame published on a topic. `forwarder` handed it on; its contents carry their own signatures."""

    forwarder: AccountId
    data: bytes


class Stream(Protocol):
    """A two-way byte stream to one peer."""

    @property
    def remote(self) -> AccountId: ...

    async def read(self, bytes_max: int) -> bytes:
        """1 .. bytes_max bytes; `b""` once the peer closed its side. Raises `LinkError`."""
        ...

    async def write(self, data: bytes) -> None:
        """Writes all of `data`. Cancelling between calls leaves the stream usable. Raises `LinkError`."""
        ...

    async def close_write(self) -> None:
        """Ends our side; reading goes on."""
        ...

    async def reset(self) -> None:
        """Drops the stream in both directions, now. Never raises."""
        ...


Handler = Callable[[Stream], Awaitable[None]]


class Transport(Protocol):
    """One node's view of the network."""

    @property
    def account(self) -> AccountId: ...

    @property
    def addresses(self) -> tuple[str, ...]:
        """Addresses others may dial, each ending in our peer id."""
        ...

    async def dial(self, address: str) -> AccountId:
        """Connects to one address and returns who answered. Raises `DialError`."""
        ...

    async def disconnect(self, peer: AccountId) -> None:
        """Drops every link to `peer`. Never raises."""
        ...

    async def open(self, peer: AccountId, protocol: str) -> Stream:
        """A new stream over an existing link. Raises `LinkError`."""
        ...

    def serve(self, protocol: str, handler: Handler) -> None:
        """Handles inbound streams of `protocol`; a handler's exception resets its stream and is counted."""
        ...

    def links(self) -> tuple[Link, ...]:
        """The live links, one per peer."""
        ...

    async def publish(self, topic: str, data: bytes) -> None:
        """Hands a frame to the mesh. Delivery is likely, never promised."""
        ...

    def subscribe(self, topic: str) -> trio.MemoryReceiveChannel[GossipFrame]:
        """Frames from others; bounded, the oldest are dropped and counted when nobody reads."""
        ...
