"""Blob: bytes by their hash. One side asks for some ids, the other answers one by one, in order.

    session, effects = fetch(ids, now_ms)          # the client; effects `Send`, `Received`, `Absent`
    session, effects = serve(now_ms)               # the server; `Load(id)` wants the command `Loaded`

A blob is checked against its id before anyone sees it, so whom it came from does not matter. The client has
at most `BLOB_IDS_MAX` blobs on the way; the server reads one at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final, assert_never, final

from gossip_ledger.records import BlobId
from gossip_ledger.signing import blob_id
from p2p.messages import Blob, End, Get, Missing
from p2p.protocols.limits import BLOB_IDS_MAX, BLOB_STEP_MS, BLOBS_PER_STREAM_MAX
from p2p.protocols.session import Lost, Send, Timeout


class Phase(Enum):
    """Where a stream is."""

    FETCHING = auto()
    """Client: waits for the next blob."""
    LISTENING = auto()
    """Server: waits for a request."""
    LOADING = auto()
    """Server: waits for its own store."""
    DONE = auto()
    ABORTED = auto()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """Command: what the store holds; None for nothing."""

    id: BlobId
    data: bytes | None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Effect: read a blob from the store."""

    id: BlobId


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """Effect: a blob came, and it is the one that was asked for."""

    id: BlobId
    data: bytes


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Absent:
    """Effect: the peer does not hold this blob."""

    id: BlobId


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """Last effect: close the stream."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Abort:
    """Last effect: reset the stream."""

    reason: str
    is_breach: bool


Event = Get | Blob | Missing | End | Loaded | Lost | Timeout
Effect = Send[Get | Blob | Missing | End] | Load | Received | Absent | Finish | Abort
Step = tuple["BlobSession", tuple[Effect, ...]]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BlobSession:
    """One side of a blob stream."""

    phase: Phase
    deadline_ms: int | None
    expected: tuple[BlobId, ...] = ()
    """Asked for and not answered yet."""
    queued: tuple[BlobId, ...] = ()
    """Client: not asked for yet."""
    served: int = 0
    """Server: blobs asked for on this stream."""

    @property
    def is_over(self) -> bool:
        """Whether nothing can happen any more."""
        return self.phase in (Phase.DONE, Phase.ABORTED)


NEXT: Final[dict[tuple[Phase, type], tuple[Phase, ...]]] = {
    (Phase.FETCHING, Blob): (Phase.FETCHING, Phase.DONE),
    (Phase.FETCHING, Missing): (Phase.FETCHING, Phase.DONE),
    (Phase.FETCHING, Lost): (Phase.ABORTED,),
    (Phase.FETCHING, Timeout): (Phase.ABORTED,),
    (Phase.LISTENING, Get): (Phase.LOADING,),
    (Phase.LISTENING, End): (Phase.DONE,),
    (Phase.LISTENING, Lost): (Phase.DONE,),
    (Phase.LISTENING, Timeout): (Phase.ABORTED,),
    (Phase.LOADING, Loaded): (Phase.LOADING, Phase.LISTENING),
    (Phase.LOADING, Lost): (Phase.ABORTED,),
    (Phase.LOADING, Timeout): (Phase.ABORTED,),
}
"""Which phases may follow. In addition, any message that breaks a rule leads to ABORTED."""


def fetch(ids: tuple[BlobId, ...], now_ms: int) -> Step:
    """The client's side: asks for `ids`, without repeats, in this order."""
    queued = tuple(dict.fromkeys(ids))
    return _ask(BlobSession(phase=Phase.FETCHING, deadline_ms=now_ms + BLOB_STEP_MS, queued=queued))


def serve(now_ms: int) -> Step:
    """The server's side."""
    return BlobSession(phase=Phase.LISTENING, deadline_ms=now_ms + BLOB_STEP_MS), ()


def step(session: BlobSession, event: Event, now_ms: int) -> Step:
    """What follows from one event. Raises nothing; see `session.py`."""
    if session.is_over:
        return session, ()
    if isinstance(event, Timeout) and session.deadline_ms is not None and now_ms < session.deadline_ms:
        return session, ()
    allowed = NEXT.get((session.phase, type(event)))
    if allowed is None:
        assert not isinstance(event, Loaded), f"nothing to load in {session.phase}"
        return _abort(session, f"unexpected {type(event).__name__} in {session.phase.name}", is_breach=True)
    after, effects = _take(session, event)
    if not after.is_over:
        after = replace(after, deadline_ms=now_ms + BLOB_STEP_MS)
    return after, effects


def _take(session: BlobSession, event: Event) -> Step:
    match event:
        case Blob(id=ident, data=data):
            return _receive(session, ident, data)
        case Missing(id=ident):
            return _receive(session, ident, None)
        case Get(ids=ids):
            served = session.served + len(ids)
            if served > BLOBS_PER_STREAM_MAX:
                return _abort(session, "too many blobs on one stream", is_breach=True)
            after = replace(session, phase=Phase.LOADING, expected=ids, served=served)
            return after, (Load(id=ids[0]),)
        case Loaded():
            return _answer(session, event)
        case End():
            return _finish(session)
        case Lost(reason=reason):
            if session.phase is Phase.LISTENING:
                return _finish(session)
            return _abort(session, reason, is_breach=False)
        case Timeout():
            return _abort(session, "nothing came in time", is_breach=False)
        case _:
            assert_never(event)


def _receive(session: BlobSession, ident: BlobId, data: bytes | None) -> Step:
    if ident != session.expected[0]:
        return _abort(session, "another blob than the next one asked for", is_breach=True)
    if data is not None and blob_id(data) != ident:
        return _abort(session, "the bytes do not have the hash that they were asked for by", is_breach=True)
    arrived: Effect = Absent(id=ident) if data is None else Received(id=ident, data=data)
    after, effects = _ask(replace(session, expected=session.expected[1:]))
    return after, (arrived, *effects)


def _ask(session: BlobSession) -> Step:
    """Asks for the next batch once the last is answered; ends when nothing is left."""
    if session.expected:
        return session, ()
    batch = session.queued[:BLOB_IDS_MAX]
    if not batch:
        after, effects = _finish(session)
        return after, (Send(message=End()), *effects)
    after = replace(session, expected=batch, queued=session.queued[BLOB_IDS_MAX:])
    return after, (Send(message=Get(ids=batch)),)


def _answer(session: BlobSession, loaded: Loaded) -> Step:
    assert loaded.id == session.expected[0], "blobs are served in the order asked for"
    message = Missing(id=loaded.id) if loaded.data is None else Blob(id=loaded.id, data=loaded.data)
    rest = session.expected[1:]
    if rest:
        return replace(session, expected=rest), (Send(message=message), Load(id=rest[0]))
    return replace(session, phase=Phase.LISTENING, expected=()), (Send(message=message),)


def _finish(session: BlobSession) -> Step:
    return replace(session, phase=Phase.DONE, deadline_ms=None), (Finish(),)


def _abort(session: BlobSession, reason: str, *, is_breach: bool) -> Step:
    after = replace(session, phase=Phase.ABORTED, deadline_ms=None)
    return after, (Abort(reason=reason, is_breach=is_breach),)
