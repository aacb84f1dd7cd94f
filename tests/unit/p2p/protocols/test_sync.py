"""Sync: both sides end with the union, whatever they held; nonsense ends the session and nothing else."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gossip_ledger import reconcile
from gossip_ledger.reconcile import MESSAGES, IdSet, Message, dated
from gossip_ledger.records import RecordId
from p2p.messages import End, Next, Records, Round, Turn, Want
from p2p.protocols import differences, sync
from p2p.protocols.difference_messages import (
    TO_INITIATOR,
    TO_RESPONDER,
    Fallback,
    Found,
    MoreShorts,
    Noted,
    Overview,
)
from p2p.protocols.differences import begin as begin_exchange
from p2p.protocols.limits import SYNC_STEP_MS, WANT_IDS_MAX
from p2p.protocols.session import Lost, Send, Timeout
from p2p.protocols.sketch import Sketch, packed
from p2p.protocols.sync import (
    Abort,
    Deliver,
    Event,
    Finish,
    Load,
    Loaded,
    Phase,
    SyncSession,
    begin,
    serve,
    step,
)
from tests.unit.p2p.protocols.worlds import Moment, SessionWatch, walk

SALT = bytes(16)
SAME = Overview(dirty=b"\0", count=0, parity=b"", cells=b"", listed=b"")


def record(number: int) -> bytes:
    return b"record %d" % number


def ident(data: bytes) -> RecordId:
    return RecordId(hashlib.sha256(data).digest())


def short(data: bytes) -> bytes:
    return packed(Sketch.of(dated(ident(data), 0), SALT).shorts)


def opening(*data: bytes) -> Round:
    return Round(data=begin_exchange(IdSet.of(map(ident, data)), SALT)[1])


ROUNDS = (
    opening(),
    opening(b"x"),
    *(
        Round(data=TO_INITIATOR.encode(message))
        for message in (SAME, replace(SAME, dirty=b"\1", count=1, listed=short(b"x")), Noted())
    ),
    *(
        Round(data=TO_RESPONDER.encode(message))
        for message in (
            MoreShorts(start=0),
            Found(offered=short(b"x"), wanted=short(b"y"), is_last=1, is_cut=0),
            Fallback(data=reconcile.begin(IdSet.of(()), SALT)[1]),
        )
    ),
    Round(data=MESSAGES.encode(Message(salt=SALT, is_cut=0, items=()))),
)
"""What peers may say about `x` while `y` is held here."""


class Side:
    """A peer with a store."""

    def __init__(self, numbers: set[int]) -> None:
        self.store = {ident(record(n)): record(n) for n in numbers}
        self.session: SyncSession
        self.deliveries: list[int] = []
        self.end: Finish | Abort | None = None

    def perform(self, effects: tuple[sync.Effect, ...], peer: deque[object]) -> None:
        todo = deque(effects)
        while todo:
            match todo.popleft():
                case Send(message=message):
                    peer.append(message)
                case Load(ids=ids):
                    held = tuple(self.store[i] for i in ids if i in self.store)
                    self.session, more = step(self.session, Loaded(records=held), 0)
                    todo.extend(more)
                case Deliver(records=records):
                    self.deliveries.append(len(records))
                    self.store |= {ident(data): data for data in records}
                case Finish() | Abort() as end:
                    self.end = end


def run(left: Side, right: Side) -> None:
    """Lets both talk until nobody has anything to say."""
    to_left: deque[object] = deque()
    to_right: deque[object] = deque()
    left.session, effects = begin(IdSet.of(left.store), SALT, 0)
    right.session, _ = serve(IdSet.of(right.store), 0)
    left.perform(effects, to_right)
    while to_left or to_right:
        side, inbox, outbox = (right, to_right, to_left) if to_right else (left, to_left, to_right)
        side.session, effects = step(side.session, inbox.popleft(), 0)  # type: ignore[arg-type]
        side.perform(effects, outbox)


numbers = st.sets(st.integers(0, 2000), max_size=300)


@given(common=numbers, left=numbers, right=numbers)
@settings(max_examples=60)
@example(common=set(), left=set(), right=set())
@example(common=set(), left=set(range(600)), right=set())
@example(common=set(), left=set(), right=set(range(600)))
@example(common=set(range(600)), left=set(), right=set())
def test_both_end_with_the_union(common: set[int], left: set[int], right: set[int]) -> None:
    one, two = Side(common | left), Side(common | right)
    run(one, two)
    union = {ident(record(n)) for n in common | left | right}
    assert set(one.store) == set(two.store) == union
    missing_left, missing_right = len(right - left - common), len(left - right - common)
    assert one.end == Finish(received=missing_left, sent=missing_right, unanswered=0, is_complete=True)
    assert two.end == Finish(received=missing_right, sent=missing_left, unanswered=0, is_complete=True)
    assert all(count <= WANT_IDS_MAX for count in one.deliveries + two.deliveries)


def test_claims_without_records_are_counted() -> None:
    liar = Side(set(range(40)))
    honest = Side(set())
    claimed = IdSet.of(liar.store)
    liar.store = {}
    to_liar: deque[object] = deque()
    to_honest: deque[object] = deque()
    honest.session, effects = begin(IdSet.of(()), SALT, 0)
    liar.session, _ = serve(claimed, 0)
    honest.perform(effects, to_liar)
    while to_liar or to_honest:
        side, inbox, outbox = (liar, to_liar, to_honest) if to_liar else (honest, to_honest, to_liar)
        side.session, effects = step(side.session, inbox.popleft(), 0)  # type: ignore[arg-type]
        side.perform(effects, outbox)
    assert honest.end == Finish(received=0, sent=0, unanswered=40, is_complete=True)


def pulling(count: int) -> SyncSession:
    """An initiator that asked for `count` records."""
    one, two = Side(set()), Side(set(range(count)))
    one.session, effects = begin(IdSet.of(()), SALT, 0)
    two.session, _ = serve(IdSet.of(two.store), 0)
    wire: deque[object] = deque()
    one.perform(effects, wire)
    while one.session.phase is Phase.RECONCILING:
        two.session, effects = step(two.session, wire.popleft(), 0)  # type: ignore[arg-type]
        two.perform(effects, wire)
        one.session, effects = step(one.session, wire.popleft(), 0)  # type: ignore[arg-type]
        one.perform(effects, wire)
    return one.session


@pytest.mark.parametrize(
    "message",
    [
        Records(records=(b"x",) * 6),
        End(),
        Turn(),
        Want(ids=(ident(b""),)),
        Next(),
        Round(data=b"\x00"),
    ],
)
def test_what_a_peer_may_not_say_while_we_pull(message: Event) -> None:
    session, effects = step(pulling(5), message, 0)
    assert session.phase is Phase.ABORTED
    assert isinstance(effects[-1], Abort)
    assert effects[-1].is_breach


@pytest.mark.parametrize(("is_initiator", "message"), [(True, Turn()), (False, End())])
def test_each_side_says_its_own_last_word(is_initiator: bool, message: Event) -> None:
    held = IdSet.of(())
    session, _ = begin(held, SALT, 0) if is_initiator else serve(held, 0)
    session, _ = step(session, Round(data=TO_INITIATOR.encode(SAME)) if is_initiator else opening(), 0)
    assert session.phase is Phase.SERVING
    session, effects = step(session, message, 0)
    assert session.phase is Phase.ABORTED
    assert isinstance(effects[0], Abort)
    assert effects[0].is_breach


def test_no_side_serves_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "PULL_IDS_MAX", 3)
    session, _ = serve(IdSet.of(()), 0)
    _, first = begin(IdSet.of(()), SALT, 0)
    assert isinstance(first[0], Send)
    session, _ = step(session, first[0].message, 0)
    want = Want(ids=(RecordId(bytes(32)),) * 2)
    session, effects = step(session, want, 0)
    assert effects == (Load(ids=want.ids),)
    session, _ = step(session, Loaded(records=()), 0)
    session, effects = step(session, want, 0)
    assert isinstance(effects[0], Abort)
    assert effects[0].is_breach


def test_a_side_gives_no_more_than_is_wanted() -> None:
    session, _ = serve(IdSet.of((ident(b"y"),)), 0)
    found = Found(offered=b"", wanted=short(b"y"), is_last=1, is_cut=0)
    for message in (opening(b"x"), Round(data=TO_RESPONDER.encode(found))):
        session, _ = step(session, message, 0)
    session, effects = step(session, Next(), 0)
    assert effects == (Load(ids=(ident(b"y"),)),)
    session, _ = step(session, Loaded(records=()), 0)
    session, effects = step(session, Next(), 0)
    assert isinstance(effects[0], Abort)
    assert effects[0].is_breach


def test_ranges_go_on_where_a_sketch_does_not_come_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sketch, "peel", lambda _sketch, _cells: None)
    monkeypatch.setattr(differences, "_is_list_shorter", lambda _cells, _count: False)
    one, two = Side(set(range(600))), Side(set(range(100, 900)))
    run(one, two)
    assert one.store == two.store
    assert one.end == Finish(received=300, sent=100, unanswered=0, is_complete=True)
    assert two.end == Finish(received=100, sent=300, unanswered=0, is_complete=True)
    assert one.session.exchange.fallback is not None


def test_silence_ends_it() -> None:
    session, effects = step(pulling(5), Timeout(), SYNC_STEP_MS)
    assert session.phase is Phase.ABORTED
    assert effects == (Abort(reason="nothing came in time", is_breach=False),)


def events(session: SyncSession) -> Iterator[Event]:
    """All that may happen."""
    yield from ROUNDS
    yield from (Round(data=b""), Want(ids=(ident(b"x"),)), Records(records=()), Records(records=(b"x",)))
    yield from (Next(), Turn(), End(), Lost(), Timeout())
    if session.phase is Phase.LOADING:
        yield Loaded(records=(b"x",))


@pytest.mark.parametrize("is_initiator", [True, False])
def test_every_sequence_of_five_events_keeps_the_rules(is_initiator: bool) -> None:
    held = IdSet.of((ident(b"y"),))
    session, _ = begin(held, SALT, 0) if is_initiator else serve(held, 0)
    seen = walk(
        step,
        Moment(session, SessionWatch(ends=(Finish, Abort)), 0),
        events,
        waits=lambda phase: phase not in (Phase.DONE, Phase.ABORTED),
        depth=5,
    )
    assert {moment.session.phase for moment in seen} == set(Phase)
