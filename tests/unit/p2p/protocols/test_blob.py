"""Blobs: what arrives has the hash it was asked for by, in order, and nobody serves for ever."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip_ledger.records import BlobId
from p2p.messages import Blob, End, Get, Missing
from p2p.protocols import blob
from p2p.protocols.blob import (
    Abort,
    Absent,
    BlobSession,
    Event,
    Finish,
    Load,
    Loaded,
    Phase,
    Received,
    fetch,
    serve,
    step,
)
from p2p.protocols.limits import BLOB_IDS_MAX, BLOB_STEP_MS
from p2p.protocols.session import Lost, Send, Timeout
from tests.unit.p2p.protocols.worlds import Moment, SessionWatch, walk


def data_of(number: int) -> bytes:
    return b"blob %d" % number


def ident(number: int) -> BlobId:
    return BlobId(hashlib.sha256(data_of(number)).digest())


def run(wanted: tuple[BlobId, ...], store: dict[BlobId, bytes]) -> tuple[list[object], list[Get]]:
    """What the client got, in order, and what it asked for."""
    got: list[object] = []
    gets: list[Get] = []
    client, out = fetch(wanted, 0)
    server, _ = serve(0)
    to_server: deque[object] = deque(e.message for e in out if isinstance(e, Send))
    got += [effect for effect in out if isinstance(effect, Finish)]
    while to_server:
        message = to_server.popleft()
        if isinstance(message, Get):
            gets.append(message)
        server, effects = step(server, message, 0)  # type: ignore[arg-type]
        todo = deque(effects)
        while todo:
            match todo.popleft():
                case Load(id=name):
                    server, more = step(server, Loaded(id=name, data=store.get(name)), 0)
                    todo.extend(more)
                case Send(message=reply):
                    client, out = step(client, reply, 0)
                    to_server.extend(e.message for e in out if isinstance(e, Send))
                    got += [effect for effect in out if not isinstance(effect, Send)]
                case _:
                    pass
    assert client.is_over
    assert server.is_over
    return got, gets


@given(wanted=st.lists(st.integers(0, 60), max_size=60), held=st.sets(st.integers(0, 60)))
def test_what_is_held_arrives_and_the_rest_is_said_to_be_missing(wanted: list[int], held: set[int]) -> None:
    got, gets = run(tuple(ident(n) for n in wanted), {ident(n): data_of(n) for n in held})
    expected: list[object] = [
        Received(id=ident(n), data=data_of(n)) if n in held else Absent(id=ident(n))
        for n in dict.fromkeys(wanted)
    ]
    assert got == [*expected, Finish()]
    assert all(len(get.ids) <= BLOB_IDS_MAX for get in gets)


@pytest.mark.parametrize(
    "message",
    [
        Blob(id=ident(1), data=data_of(2)),
        Blob(id=ident(2), data=data_of(2)),
        Missing(id=ident(2)),
        Blob(id=ident(1), data=data_of(1) + b"\x00"),
    ],
)
def test_other_bytes_are_a_breach(message: Event) -> None:
    session, effects = step(fetch((ident(1), ident(2)), 0)[0], message, 0)
    assert session.phase is Phase.ABORTED
    assert isinstance(effects[0], Abort)
    assert effects[0].is_breach


def test_one_stream_serves_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blob, "BLOBS_PER_STREAM_MAX", 2)
    session, _ = serve(0)
    session, effects = step(session, Get(ids=(ident(1), ident(2), ident(3))), 0)
    assert isinstance(effects[0], Abort)


def test_silence_ends_it() -> None:
    session, effects = step(fetch((ident(1),), 0)[0], Timeout(), BLOB_STEP_MS)
    assert session.is_over
    assert effects == (Abort(reason="nothing came in time", is_breach=False),)


def events(session: BlobSession) -> Iterator[Event]:
    """All that may happen."""
    yield from (Get(ids=(ident(1), ident(2))), Get(ids=(ident(1),)), End(), Lost(), Timeout())
    yield from (Blob(id=ident(1), data=data_of(1)), Blob(id=ident(2), data=data_of(2)), Missing(id=ident(1)))
    yield Blob(id=ident(1), data=b"other")
    if session.phase is Phase.LOADING:
        yield Loaded(id=session.expected[0], data=None)
        yield Loaded(id=session.expected[0], data=b"x")


@pytest.mark.parametrize("is_client", [True, False])
def test_every_sequence_of_six_events_keeps_the_rules(is_client: bool) -> None:
    session, _ = fetch((ident(1), ident(2)), 0) if is_client else serve(0)
    seen = walk(
        step,
        Moment(session, SessionWatch(ends=(Finish, Abort)), 0),
        events,
        waits=lambda phase: phase not in (Phase.DONE, Phase.ABORTED),
        depth=6,
    )
    reached = {moment.session.phase for moment in seen}
    assert reached == ({Phase.FETCHING} if is_client else {Phase.LISTENING, Phase.LOADING}) | {
        Phase.DONE,
        Phase.ABORTED,
    }
