"""Set reconciliation: exact differences for honest peers, and nothing but `RemoteError` for the others."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gossip_ledger import reconcile
from gossip_ledger.errors import RemoteError
from gossip_ledger.limits import (
    RECONCILE_BYTES_MAX,
    RECONCILE_LIST_MAX,
    RECONCILE_ROUNDS_MAX,
    RECONCILE_WANT_MAX,
)
from gossip_ledger.reconcile import (
    MESSAGES,
    Answer,
    Digest,
    Ids,
    IdSet,
    Message,
    Progress,
    ReconcileError,
    Settled,
    begin,
    listen,
    respond,
)
from gossip_ledger.records import RecordId

SALT = bytes(range(16))


def ident(name: object) -> RecordId:
    return RecordId(hashlib.sha256(str(name).encode()).digest())


def exchange(
    left: IdSet, right: IdSet, tamper: Callable[[bytes], bytes] | None = None
) -> tuple[Progress, Progress, list[bytes]]:
    """Both ends, and all messages. `tamper` rewrites what the responder sends."""
    one, data = begin(left, SALT)
    two = listen(right)
    sent: list[bytes] = []
    message: bytes | None = data
    while message is not None:
        sent.append(message)
        two, message = respond(two, message)
        if message is not None:
            sent.append(message)
            one, message = respond(one, tamper(message) if tamper else message)
        assert len(sent) <= 2 * RECONCILE_ROUNDS_MAX
    return one, two, sent


# Ids that share prefixes are what bounds and separators are about, so they are drawn from few bytes.
crowded = st.builds(
    lambda head, tail: RecordId(head + bytes(31 - len(head)) + bytes([tail])),
    st.binary(max_size=2),
    st.integers(0, 255),
)
spread = st.integers(0, 400).map(ident)
sets = st.sets(crowded | spread, max_size=120)


@given(common=sets, left=sets, right=sets)
@example(common=set(), left=set(), right=set())
@example(common=set(), left={ident(1)}, right=set())
@example(common=set(), left=set(), right={ident(i) for i in range(100)})
@example(common={ident(i) for i in range(100)}, left=set(), right=set())
def test_both_ends_learn_the_exact_differences(
    common: set[RecordId], left: set[RecordId], right: set[RecordId]
) -> None:
    mine, yours = common | left, common | right
    one, two, sent = exchange(IdSet.of(mine), IdSet.of(yours))
    assert one.is_over
    assert two.is_over
    assert not one.is_cut
    assert not two.is_cut
    assert one.have == two.want == mine - yours
    assert one.want == two.have == yours - mine
    assert all(len(message) <= RECONCILE_BYTES_MAX for message in sent)


def test_equal_sets_need_two_small_messages() -> None:
    same = IdSet.of(ident(i) for i in range(20_000))
    _, _, sent = exchange(same, same)
    assert len(sent) == 2
    assert sum(len(message) for message in sent) < 100


def test_few_differences_in_many_ids_cost_little() -> None:
    common = [ident(i) for i in range(20_000)]
    mine, yours = IdSet.of([*common, ident("mine")]), IdSet.of([*common, ident("yours")])
    one, two, sent = exchange(mine, yours)
    assert (one.have, one.want) == ({ident("mine")}, {ident("yours")})
    assert (two.have, two.want) == ({ident("yours")}, {ident("mine")})
    assert sum(len(message) for message in sent) < 3_000
    assert len(sent) <= 7


def test_a_newcomer_learns_everything_in_bounded_messages() -> None:
    held = IdSet.of(ident(i) for i in range(30_000))
    one, _, sent = exchange(IdSet.of(()), held)
    assert one.want == frozenset(held.ids)
    assert max(len(message) for message in sent) <= RECONCILE_BYTES_MAX
    assert sum(len(message) for message in sent) < 36 * 30_000


def test_what_finds_no_room_is_asked_again() -> None:
    """Nothing in common: thousands of ranges differ at once, and their lists do not fit one message."""
    mine, yours = IdSet.of(ident(i) for i in range(30_000)), IdSet.of(ident(-i - 1) for i in range(30_000))
    one, two, sent = exchange(mine, yours)
    assert one.have == two.want == frozenset(mine.ids)
    assert one.want == two.have == frozenset(yours.ids)
    assert not one.is_cut
    assert max(len(message) for message in sent) <= RECONCILE_BYTES_MAX


def test_the_rounds_are_bounded_and_both_sides_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "RECONCILE_ROUNDS_MAX", 2)
    mine, yours = IdSet.of(ident(i) for i in range(3_000)), IdSet.of(ident(-i) for i in range(3_000))
    one, two, sent = exchange(mine, yours)
    assert one.is_over
    assert two.is_over
    assert one.is_cut
    assert two.is_cut
    assert len(sent) <= 5
    assert one.want <= frozenset(yours.ids)
    assert one.have <= frozenset(mine.ids)


def test_what_is_wanted_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "RECONCILE_WANT_MAX", 10)
    one, _, _ = exchange(IdSet.of(()), IdSet.of(ident(i) for i in range(100)))
    assert len(one.want) == 10
    assert one.is_cut
    assert RECONCILE_WANT_MAX > 10


def message(*items: object, salt: bytes = SALT) -> bytes:
    return MESSAGES.encode(Message(salt=salt, is_cut=0, items=items))  # type: ignore[arg-type]


LOW, HIGH = sorted((ident("a"), ident("b")))
HELD = IdSet.of(ident(i) for i in range(100))


@pytest.mark.parametrize(
    "data",
    [
        message(Digest(upper=b"", digest=bytes(16)), Digest(upper=b"", digest=bytes(16))),
        message(Digest(upper=b"\x80", digest=bytes(16)), Digest(upper=b"\x80", digest=bytes(16))),
        message(Digest(upper=b"\x80", digest=bytes(16)), Digest(upper=b"\x7f", digest=bytes(16))),
        message(Settled(upper=b""), Settled(upper=b"\x01")),
        message(Ids(upper=b"", ids=(HIGH, LOW))),
        message(Ids(upper=b"", ids=(LOW, LOW))),
        message(Ids(upper=b"\x00", ids=(LOW,))),
        message(Settled(upper=b"\xff\xff"), Ids(upper=b"", ids=(LOW,))),
        message(Answer(upper=b"", extra=(), wanted=bytes(1))),
        message(Answer(upper=HELD.ids[3], extra=(), wanted=b"")),
        message(Answer(upper=HELD.ids[3], extra=(), wanted=b"\x08")),
        message(Answer(upper=HELD.ids[3], extra=(HELD.ids[1],), wanted=b"\x00")),
        message(Answer(upper=b"\x00", extra=(LOW,), wanted=b"")),
        message(Digest(upper=b"", digest=bytes(16)), salt=bytes(16)),
    ],
)
def test_what_an_honest_peer_cannot_have_sent(data: bytes) -> None:
    progress, _ = begin(HELD, SALT)
    with pytest.raises(ReconcileError):
        respond(progress, data)


@given(data=st.binary(max_size=200))
@settings(max_examples=200)
def test_arbitrary_bytes_raise_remote_error_only(data: bytes) -> None:
    with pytest.raises(RemoteError):
        respond(listen(HELD), data)


uppers = st.binary(max_size=3) | st.sampled_from(HELD.ids) | st.just(b"")
few_ids = st.lists(st.sampled_from(HELD.ids) | spread, max_size=5, unique=True).map(
    lambda x: tuple(sorted(x))
)
items = st.one_of(
    st.builds(Settled, upper=uppers),
    st.builds(Digest, upper=uppers, digest=st.binary(min_size=16, max_size=16)),
    st.builds(Ids, upper=uppers, ids=few_ids),
    st.builds(Answer, upper=uppers, extra=few_ids, wanted=st.binary(max_size=4)),
)


@given(turns=st.lists(st.lists(items, max_size=6), max_size=6), in_order=st.booleans())
@settings(max_examples=300)
def test_hostile_messages_never_crash_and_never_touch_our_own_set(
    turns: list[list[reconcile.Item]], in_order: bool
) -> None:
    """Well-formed nonsense is refused, or answered within the bounds; `have` only names what we hold."""
    progress = listen(HELD)
    for turn in turns:
        if in_order:
            last = [item for item in turn if not item.upper][:1]
            turn = sorted({i.upper: i for i in turn if i.upper}.values(), key=lambda i: i.upper) + last
        if progress.is_over:
            return
        try:
            progress, reply = respond(progress, message(*turn))
        except RemoteError:
            continue
        assert reply is None or len(reply) <= RECONCILE_BYTES_MAX
        assert progress.have <= frozenset(HELD.ids)
        assert progress.want.isdisjoint(HELD.ids)


def test_a_peer_that_asks_for_ever_is_answered_a_bounded_number_of_times() -> None:
    progress = listen(HELD)
    question = message(Digest(upper=b"", digest=bytes(16)))
    answers = 0
    while not progress.is_over:
        progress, _ = respond(progress, question)
        answers += 1
    assert answers == RECONCILE_ROUNDS_MAX
    assert progress.is_cut


def test_a_range_with_many_ids_against_a_short_list_is_answered_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The room of a message is made small, so that an answer stops midway and the rest is asked again."""
    monkeypatch.setattr(reconcile, "_RESERVE", RECONCILE_BYTES_MAX - 40 * 34)
    mine = IdSet.of(ident(i) for i in range(RECONCILE_LIST_MAX))
    yours = IdSet.of(ident(i) for i in range(20, 420))
    one, two, _ = exchange(mine, yours)
    assert one.want == frozenset(yours.ids) - frozenset(mine.ids)
    assert one.have == frozenset(mine.ids) - frozenset(yours.ids)
    assert (two.want, two.have) == (one.have, one.want)


def test_a_tampered_answer_cannot_invent_what_we_hold() -> None:
    held = IdSet.of(ident(i) for i in range(10))

    def lie(data: bytes) -> bytes:
        decoded: Message = MESSAGES.decode(data)
        lies = tuple(
            replace(item, wanted=b"\xff\x03") if isinstance(item, Answer) else item for item in decoded.items
        )
        return MESSAGES.encode(replace(decoded, items=lies))

    one, _, _ = exchange(held, IdSet.of(ident(i) for i in range(5, 15)), tamper=lie)
    assert one.have <= frozenset(held.ids)
