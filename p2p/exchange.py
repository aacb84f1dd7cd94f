"""Hello, sync and blob over a stream: the pure machines of `p2p/protocols/`, with a channel and a store.

Every function runs one exchange to its end and leaves closing the channel to its caller. All of them raise
`ExchangeError` where the peer was lost, late or broke the protocol, and pass on what a source or sink raises.
Every wait for the peer has a deadline, writing included. Cancelling is safe: what was delivered stays.

    stream = await transport.open(peer, SYNC_PROTOCOL)
    async with FrameChannel(stream, frame_bytes_max=SYNC_FRAME_BYTES_MAX) as channel:
        result = await sync_with(channel, records, salt)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol, TypeVar, cast

import trio

from gossip_ledger.errors import RemoteError
from gossip_ledger.reconcile import IdSet
from gossip_ledger.records import BlobId, RecordId
from p2p.messages import HELLO_MESSAGES, SYNC_MESSAGES, TO_BLOB_CLIENT, TO_BLOB_SERVER, Hello
from p2p.protocols import blob, hello, sync
from p2p.protocols.limits import FAREWELL_MS
from p2p.protocols.session import Lost, Send, Timeout

HELLO_PROTOCOL: Final = "/upkeep/hello/1"
SYNC_PROTOCOL: Final = "/upkeep/sync/1"
BLOB_PROTOCOL: Final = "/upkeep/blob/1"


class ExchangeError(RemoteError):
    """An exchange that did not come to its end. `is_breach`: the peer broke the protocol."""

    def __init__(self, reason: str, *, is_breach: bool) -> None:
        super().__init__(reason)
        self.is_breach = is_breach


class DeniedError(RemoteError):
    """The peer does not fit: another network, or other rules. The message is for the operator."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Channel(Protocol):
    """What an exchange needs of a `FrameChannel`."""

    async def send(self, payload: bytes) -> None: ...

    async def receive(self, timeout_s: float | None = None) -> bytes | None: ...


class RecordSource(Protocol):
    """The records of this peer."""

    def ids(self) -> IdSet:
        """The ids held now; a frozen set."""
        ...

    async def get(self, ids: Sequence[RecordId]) -> tuple[bytes, ...]:
        """The signed records among `ids` that are held, in any order."""
        ...

    async def deliver(self, records: tuple[bytes, ...]) -> None:
        """Takes records from a peer, none of them verified yet."""
        ...


class BlobSource(Protocol):
    """The blobs of this peer."""

    async def get(self, ident: BlobId) -> bytes | None:
        """A blob's bytes, or None."""
        ...


BlobSink = Callable[[BlobId, bytes], Awaitable[None]]
"""Takes a blob whose hash was checked."""


async def greet(channel: Channel, ours: Hello) -> Hello:
    """Greets first; returns the peer's greeting. Raises `DeniedError` if the two do not fit."""
    return await _hello(channel, *hello.greet(ours, _now_ms()))


async def serve_hello(channel: Channel, ours: Hello) -> Hello:
    """Answers a greeting and returns it. Raises `DeniedError` if the two do not fit; the peer was told."""
    return await _hello(channel, *hello.await_greeting(ours, _now_ms()))


async def sync_with(channel: Channel, source: RecordSource, salt: bytes) -> sync.Finish:
    """Begins a sync; both sides end with what either held. `salt` is 16 random bytes."""
    return await _sync(channel, source, *sync.begin(source.ids(), salt, _now_ms()))


async def serve_sync(channel: Channel, source: RecordSource) -> sync.Finish:
    """The other side of `sync_with`."""
    return await _sync(channel, source, *sync.serve(source.ids(), _now_ms()))


async def fetch_blobs(channel: Channel, ids: Sequence[BlobId], sink: BlobSink) -> tuple[BlobId, ...]:
    """Fetches blobs in order, each handed to `sink` before the next is read; returns those not held there."""
    absent: list[BlobId] = []

    async def perform(effect: blob.Effect) -> None:
        match effect:
            case blob.Received(id=ident, data=data):
                await sink(ident, data)
            case blob.Absent(id=ident):
                absent.append(ident)
            case _:
                pass

    session, effects = blob.fetch(tuple(ids), _now_ms())
    await _converse(
        channel, session, effects, blob.step, TO_BLOB_SERVER.encode, TO_BLOB_CLIENT.decode, perform
    )
    return tuple(absent)


async def serve_blobs(channel: Channel, source: BlobSource) -> None:
    """Serves blobs until the peer is done."""

    async def perform(effect: blob.Effect) -> blob.Loaded | None:
        if isinstance(effect, blob.Load):
            return blob.Loaded(id=effect.id, data=await source.get(effect.id))
        return None

    session, effects = blob.serve(_now_ms())
    await _converse(
        channel, session, effects, blob.step, TO_BLOB_CLIENT.encode, TO_BLOB_SERVER.decode, perform
    )


async def _hello(channel: Channel, session: hello.HelloSession, effects: tuple[hello.Effect, ...]) -> Hello:
    end = await _converse(
        channel, session, effects, hello.step, HELLO_MESSAGES.encode, HELLO_MESSAGES.decode, _nothing
    )
    if isinstance(end, hello.Denied):
        raise DeniedError(end.code, end.reason)
    assert isinstance(end, hello.Greeted)
    return end.hello


async def _sync(
    channel: Channel, source: RecordSource, session: sync.SyncSession, effects: tuple[sync.Effect, ...]
) -> sync.Finish:
    async def perform(effect: sync.Effect) -> sync.Loaded | None:
        match effect:
            case sync.Load(ids=ids):
                return sync.Loaded(records=await source.get(ids))
            case sync.Deliver(records=records):
                await source.deliver(records)
            case _:
                pass
        return None

    end = await _converse(
        channel, session, effects, sync.step, SYNC_MESSAGES.encode, SYNC_MESSAGES.decode, perform
    )
    assert isinstance(end, sync.Finish)
    return end


class _Session(Protocol):
    @property
    def is_over(self) -> bool: ...

    @property
    def deadline_ms(self) -> int | None: ...


S = TypeVar("S", bound=_Session)
_Step = Callable[[S, Any, int], tuple[S, tuple[Any, ...]]]


async def _converse(
    channel: Channel,
    session: S,
    effects: tuple[Any, ...],
    step: _Step[S],
    encode: Callable[[Any], bytes],
    decode: Callable[[bytes], Any],
    perform: Callable[[Any], Awaitable[Any]],
) -> Any:
    """Runs a session to its end in this task; returns its last effect. Raises `ExchangeError`."""
    last: Any = None
    while True:
        todo = deque(effects)
        while todo:
            last = todo.popleft()
            event = await _perform(channel, last, session.deadline_ms, encode, perform)
            if event is not None:
                session, more = step(session, event, _now_ms())
                todo.extend(more)
        if session.is_over:
            break
        event = await _receive(channel, session.deadline_ms, decode)
        session, effects = step(session, event, _now_ms())
    if isinstance(last, hello.Abort | blob.Abort | sync.Abort):
        raise ExchangeError(last.reason, is_breach=last.is_breach)
    return last


async def _perform(
    channel: Channel,
    effect: Any,
    deadline_ms: int | None,
    encode: Callable[[Any], bytes],
    perform: Callable[[Any], Awaitable[Any]],
) -> Any:
    """Carries out one effect; returns the event that follows from it, if any."""
    if not isinstance(effect, Send):
        return await perform(effect)
    data = encode(cast("Send[Any]", effect).message)
    try:
        with trio.move_on_after(_left_s(deadline_ms)) as scope:
            await channel.send(data)
    except RemoteError as error:
        return Lost(reason=str(error))
    return Lost(reason="the peer did not read in time") if scope.cancelled_caught else None


async def _receive(channel: Channel, deadline_ms: int | None, decode: Callable[[bytes], Any]) -> Any:
    """The next event: a message, `Lost` or `Timeout`. Bytes that do not decode raise `ExchangeError`."""
    with trio.move_on_after(_left_s(deadline_ms)):
        try:
            frame = await channel.receive()
        except RemoteError as error:
            return Lost(reason=str(error))
        if frame is None:
            return Lost()
        try:
            return decode(frame)
        except RemoteError as error:
            raise ExchangeError(str(error), is_breach=True) from error
    return Timeout()


async def _nothing(_effect: object) -> None:
    """For machines whose effects are all messages."""


def _left_s(deadline_ms: int | None) -> float:
    """Until the deadline; what a session that is over still has to say gets `FAREWELL_MS`."""
    if deadline_ms is None:
        return FAREWELL_MS / 1000
    return max(0.0, deadline_ms / 1000 - trio.current_time())


def _now_ms() -> int:
    return int(trio.current_time() * 1000)
