"""Sync: two peers find out which records the other lacks, and fetch them, one direction after the other.

    session, effects = begin(ids, salt, now_ms)    # the initiator
    session, effects = serve(ids, now_ms)          # the responder
    effects: `Send`, `Load(ids)` (answer with the command `Loaded`), `Deliver(records)`, `Finish` or `Abort`

First they find out what differs (`differences.py`), then the initiator pulls in batches until it says `Turn`,
then the responder until it says `End`. What is wanted is known by then to both, and `Next` asks for a batch;
full ids (`Want`) are needed only where ranges found the differences. A batch is delivered before the next is
asked for, so a slow store slows the peer down instead of filling memory. Records are opaque here: whoever
takes them verifies them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final, assert_never, final

from gossip_ledger.errors import RemoteError
from gossip_ledger.reconcile import IdSet
from gossip_ledger.records import RecordId
from p2p.messages import End, Next, Records, Round, Turn, Want
from p2p.protocols.differences import Exchange, listen, respond
from p2p.protocols.differences import begin as begin_exchange
from p2p.protocols.limits import PULL_IDS_MAX, SYNC_STEP_MS, WANT_IDS_MAX
from p2p.protocols.session import Lost, ProtocolError, Send, Timeout


class Phase(Enum):
    """Where a session is."""

    RECONCILING = auto()
    """Finds out what differs."""
    PULLING = auto()
    """Waits for records."""
    SERVING = auto()
    """Waits for what the peer wants."""
    LOADING = auto()
    """Waits for its own store."""
    DONE = auto()
    ABORTED = auto()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """Command: what the store holds of what `Load` asked for; what it lacks is left out."""

    records: tuple[bytes, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Effect: read records from the store."""

    ids: tuple[RecordId, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Deliver:
    """Effect: verify and take these records, before anything else is done."""

    records: tuple[bytes, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """Last effect: close the stream."""

    received: int
    sent: int
    unanswered: int
    """Records that the peer claimed to hold and did not give; many of them make it a liar."""
    is_complete: bool
    """Whether no bound was reached: otherwise there is more to sync."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Abort:
    """Last effect: reset the stream. What was delivered stands."""

    reason: str
    is_breach: bool


Event = Round | Want | Next | Records | Turn | End | Loaded | Lost | Timeout
Effect = Send[Round | Want | Next | Records | Turn | End] | Load | Deliver | Finish | Abort
Step = tuple["SyncSession", tuple[Effect, ...]]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SyncSession:
    """One side of a sync."""

    is_initiator: bool
    phase: Phase
    deadline_ms: int | None
    exchange: Exchange
    wanted: tuple[RecordId, ...] = ()
    """Not asked for yet, where only this side knows them."""
    waiting: int = 0
    """Records not asked for yet, where the peer knows which."""
    claimed: int = 0
    """Records that the peer said it holds."""
    offered: tuple[RecordId, ...] = ()
    """What the peer wants and was not given yet, where both know it."""
    expected: int = 0
    """Records asked for in the last `Want`."""
    received: int = 0
    sent: int = 0
    asked: int = 0
    """Records that the peer asked for."""

    @property
    def is_over(self) -> bool:
        """Whether nothing can happen any more."""
        return self.phase in (Phase.DONE, Phase.ABORTED)


NEXT: Final[dict[tuple[Phase, type], tuple[Phase, ...]]] = {
    (Phase.RECONCILING, Round): (Phase.RECONCILING, Phase.PULLING, Phase.SERVING),
    (Phase.RECONCILING, Lost): (Phase.ABORTED,),
    (Phase.RECONCILING, Timeout): (Phase.ABORTED,),
    (Phase.PULLING, Records): (Phase.PULLING, Phase.SERVING, Phase.DONE),
    (Phase.PULLING, Lost): (Phase.ABORTED,),
    (Phase.PULLING, Timeout): (Phase.ABORTED,),
    (Phase.SERVING, Want): (Phase.LOADING,),
    (Phase.SERVING, Next): (Phase.LOADING,),
    (Phase.SERVING, Turn): (Phase.PULLING, Phase.DONE),
    (Phase.SERVING, End): (Phase.DONE,),
    (Phase.SERVING, Lost): (Phase.ABORTED,),
    (Phase.SERVING, Timeout): (Phase.ABORTED,),
    (Phase.LOADING, Loaded): (Phase.SERVING,),
    (Phase.LOADING, Lost): (Phase.ABORTED,),
    (Phase.LOADING, Timeout): (Phase.ABORTED,),
}
"""Which phases may follow. In addition, any message that breaks a rule leads to ABORTED."""


def begin(ids: IdSet, salt: bytes, now_ms: int) -> Step:
    """The initiator's side. `salt` is 16 random bytes."""
    exchange, data = begin_exchange(ids, salt)
    return _start(exchange, now_ms, is_initiator=True), (Send(message=Round(data=data)),)


def serve(ids: IdSet, now_ms: int) -> Step:
    """The responder's side."""
    return _start(listen(ids), now_ms, is_initiator=False), ()


def _start(exchange: Exchange, now_ms: int, *, is_initiator: bool) -> SyncSession:
    return SyncSession(
        is_initiator=is_initiator,
        phase=Phase.RECONCILING,
        deadline_ms=now_ms + SYNC_STEP_MS,
        exchange=exchange,
    )


def step(session: SyncSession, event: Event, now_ms: int) -> Step:
    """What follows from one event. Raises nothing; see `session.py`."""
    if session.is_over:
        return session, ()
    if isinstance(event, Timeout) and session.deadline_ms is not None and now_ms < session.deadline_ms:
        return session, ()
    if (session.phase, type(event)) not in NEXT:
        assert not isinstance(event, Loaded), f"nothing to load in {session.phase}"
        return _abort(session, f"unexpected {type(event).__name__} in {session.phase.name}", is_breach=True)
    if isinstance(event, Lost):
        return _abort(session, event.reason, is_breach=False)
    if isinstance(event, Timeout):
        return _abort(session, "nothing came in time", is_breach=False)
    try:
        after, effects = _take(session, event)
    except RemoteError as error:
        return _abort(session, str(error), is_breach=True)
    if not after.is_over:
        after = replace(after, deadline_ms=now_ms + SYNC_STEP_MS)
    return after, effects


def _take(session: SyncSession, event: Round | Want | Next | Records | Turn | End | Loaded) -> Step:
    match event:
        case Round(data=data):
            return _reconcile(session, data)
        case Records(records=records):
            return _receive(session, records)
        case Want() | Next():
            return _load(session, event)
        case Loaded(records=records):
            assert len(records) <= WANT_IDS_MAX
            after = replace(session, phase=Phase.SERVING, sent=session.sent + len(records))
            return after, (Send(message=Records(records=records)),)
        case Turn():
            if session.is_initiator:
                raise ProtocolError("it is not the responder who gives the turn")
            return _pull(session)
        case End():
            if not session.is_initiator:
                raise ProtocolError("it is not the initiator who ends")
            return _finish(session, ())
        case _:
            assert_never(event)


def _reconcile(session: SyncSession, data: bytes) -> Step:
    exchange, reply = respond(session.exchange, data)
    session = replace(session, exchange=exchange)
    effects: tuple[Effect, ...] = () if reply is None else (Send(message=Round(data=reply)),)
    if not exchange.is_over:
        return session, effects
    if exchange.fallback is not None:
        wanted = tuple(sorted(exchange.fallback.want))
        session = replace(session, wanted=wanted, claimed=len(wanted))
    else:
        waiting = len(exchange.want)
        session = replace(session, waiting=waiting, claimed=waiting, offered=exchange.have())
    if not session.is_initiator:
        return replace(session, phase=Phase.SERVING), effects
    after, asked = _pull(session)
    return after, (*effects, *asked)


def _pull(session: SyncSession) -> Step:
    """Asks for the next batch, or passes on once there is none."""
    if session.waiting:
        expected = min(session.waiting, WANT_IDS_MAX)
        after = replace(session, phase=Phase.PULLING, waiting=session.waiting - expected, expected=expected)
        return after, (Send(message=Next()),)
    batch = session.wanted[:WANT_IDS_MAX]
    if batch:
        after = replace(
            session, phase=Phase.PULLING, wanted=session.wanted[WANT_IDS_MAX:], expected=len(batch)
        )
        return after, (Send(message=Want(ids=batch)),)
    if session.is_initiator:
        return replace(session, phase=Phase.SERVING, expected=0), (Send(message=Turn()),)
    return _finish(session, (Send(message=End()),))


def _receive(session: SyncSession, records: tuple[bytes, ...]) -> Step:
    if len(records) > session.expected:
        raise ProtocolError(f"{len(records)} records where {session.expected} were asked for")
    after, effects = _pull(replace(session, received=session.received + len(records)))
    return after, (Deliver(records=records), *effects) if records else effects


def _load(session: SyncSession, event: Want | Next) -> Step:
    if isinstance(event, Want):
        ids = event.ids
    else:
        ids = session.offered[:WANT_IDS_MAX]
        session = replace(session, offered=session.offered[WANT_IDS_MAX:])
        if not ids:
            raise ProtocolError("nothing more was wanted")
    asked = session.asked + len(ids)
    if asked > PULL_IDS_MAX:
        raise ProtocolError(f"more than {PULL_IDS_MAX} records in one session")
    return replace(session, phase=Phase.LOADING, asked=asked), (Load(ids=ids),)


def _finish(session: SyncSession, effects: tuple[Effect, ...]) -> Step:
    finish = Finish(
        received=session.received,
        sent=session.sent,
        unanswered=session.claimed - session.received,
        is_complete=not session.exchange.is_cut,
    )
    return replace(session, phase=Phase.DONE, deadline_ms=None), (*effects, finish)


def _abort(session: SyncSession, reason: str, *, is_breach: bool) -> Step:
    after = replace(session, phase=Phase.ABORTED, deadline_ms=None)
    return after, (Abort(reason=reason, is_breach=is_breach),)
