"""Differences by sketch: exact for honest peers, bounded and nothing but `RemoteError` for the others."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gossip_ledger import reconcile
from gossip_ledger.errors import RemoteError
from gossip_ledger.limits import RECONCILE_BYTES_MAX, RECONCILE_ROUNDS_MAX
from gossip_ledger.reconcile import MESSAGES, IdSet, dated
from gossip_ledger.records import RecordId
from p2p.protocols import differences
from p2p.protocols.difference_messages import (
    TO_INITIATOR,
    TO_RESPONDER,
    Fallback,
    Found,
    MoreCells,
    MoreShorts,
    Noted,
    Opening,
    Overview,
    Page,
)
from p2p.protocols.differences import Exchange, begin, listen, respond
from p2p.protocols.limits import SYNC_ASKS_MAX, SYNC_CELLS_MAX
from p2p.protocols.sketch import CELL_BYTES, PARITY_BYTES, Cells, Sketch, estimate, packed

SALT = bytes(range(16))
TURNS_MAX = 2 * (RECONCILE_ROUNDS_MAX + SYNC_ASKS_MAX) + 16


def ident(name: object) -> RecordId:
    return RecordId(hashlib.sha256(str(name).encode()).digest())


def epoch_of(name: RecordId) -> int:
    """Some have none, the others one of a few hundred."""
    return 0 if name[0] < 32 else name[1]


def dated_set(ids: set[RecordId]) -> IdSet:
    return IdSet.of(ids, epoch_of)


def exchange(
    left: IdSet, right: IdSet, tamper: Callable[[bytes], bytes] | None = None, salt: bytes = SALT
) -> tuple[Exchange, Exchange, list[bytes]]:
    """Both ends, and all messages. `tamper` rewrites what the responder sends."""
    one, data = begin(left, salt)
    two = listen(right)
    sent: list[bytes] = []
    message: bytes | None = data
    while message is not None:
        sent.append(message)
        two, message = respond(two, message)
        if message is not None:
            sent.append(message)
            one, message = respond(one, tamper(message) if tamper else message)
        assert len(sent) <= TURNS_MAX
    return one, two, sent


def check(mine: set[RecordId], yours: set[RecordId]) -> tuple[Exchange, Exchange, list[bytes]]:
    """Runs an exchange and compares with what the sets say."""
    one, two, sent = exchange(dated_set(mine), dated_set(yours))
    assert one.is_over
    assert two.is_over
    assert not one.is_cut
    assert not two.is_cut
    assert all(len(message) <= RECONCILE_BYTES_MAX for message in sent)
    if one.fallback is not None:
        assert two.fallback is not None
        assert one.fallback.have == two.fallback.want == mine - yours
        assert one.fallback.want == two.fallback.have == yours - mine
        return one, two, sent
    assert set(one.have()) == mine - yours
    assert set(two.have()) == yours - mine
    for taker, giver in ((one, two), (two, one)):
        wanted = Sketch.of(b"".join(dated(i, 0) for i in giver.have()), SALT)
        assert packed(wanted.shorts) == b"".join(taker.want)
    return one, two, sent


crowded = st.builds(
    lambda head, tail: RecordId(head + bytes(31 - len(head)) + bytes([tail])),
    st.binary(max_size=2),
    st.integers(0, 255),
)
sets = st.sets(crowded | st.integers(0, 400).map(ident), max_size=120)


@given(common=sets, left=sets, right=sets)
@example(common=set(), left=set(), right=set())
@example(common=set(), left={ident(1)}, right=set())
@example(common=set(), left=set(), right={ident(i) for i in range(100)})
@example(common={ident(i) for i in range(100)}, left=set(), right=set())
def test_both_ends_learn_the_exact_differences(
    common: set[RecordId], left: set[RecordId], right: set[RecordId]
) -> None:
    check(common | left, common | right)


@given(
    common=st.integers(0, 3000), left=st.integers(0, 700), right=st.integers(0, 700), seed=st.integers(0, 99)
)
@settings(max_examples=40, deadline=None)
def test_and_so_do_the_ends_of_larger_sets(common: int, left: int, right: int, seed: int) -> None:
    shared = {ident((seed, n)) for n in range(common)}
    mine = shared | {ident((seed, "left", n)) for n in range(left)}
    yours = shared | {ident((seed, "right", n)) for n in range(right)}
    one, _, _ = check(mine, yours)
    assert one.fallback is None


@given(common=sets, left=sets, right=sets)
@settings(max_examples=40, deadline=None)
def test_ranges_and_sketches_agree(common: set[RecordId], left: set[RecordId], right: set[RecordId]) -> None:
    """The ranges are the oracle, and what an exchange falls back to."""
    mine, yours = dated_set(common | left), dated_set(common | right)
    one, _, _ = exchange(mine, yours)
    oracle, message = reconcile.begin(mine, SALT)
    other = reconcile.listen(yours)
    while message is not None:
        other, reply = reconcile.respond(other, message)
        if reply is None:
            break
        oracle, message = reconcile.respond(oracle, reply)
    assert set(one.have()) == oracle.have
    assert len(one.want) == len(oracle.want)


def test_equal_sets_need_two_messages_and_few_bytes() -> None:
    same = dated_set({ident(i) for i in range(20_000)})
    one, two, sent = exchange(same, same)
    assert len(sent) == 2
    assert sum(map(len, sent)) < 600
    assert (one.have(), one.want, two.have(), two.want) == ((), (), (), ())


def test_few_differences_in_many_ids_cost_little() -> None:
    common = {ident(i) for i in range(20_000)}
    _, _, sent = check(common | {ident("mine")}, common | {ident("yours")})
    assert len(sent) == 3
    assert sum(map(len, sent)) < 2000


@pytest.mark.parametrize(("left", "right"), [(0, 70_000), (70_000, 0), (40_000, 40_000)])
def test_newcomers_and_strangers_learn_as_much_as_fits(left: int, right: int) -> None:
    mine, yours = {ident(i) for i in range(left)}, {ident(-i - 1) for i in range(right)}
    one, two, sent = exchange(dated_set(mine), dated_set(yours))
    assert one.is_over
    assert two.is_over
    assert one.is_cut == two.is_cut == (left + right == 70_000)
    assert len(one.want) == len(two.have()) == min(right, 1 << 16)
    assert len(two.want) == len(one.have()) == min(left, 1 << 16)
    assert set(one.have()) <= mine
    assert set(two.have()) <= yours
    assert max(map(len, sent)) <= RECONCILE_BYTES_MAX
    assert sum(map(len, sent)) < 25 * (left + right)


@pytest.mark.parametrize(("differing", "trips"), [(5, 1), (100, 2), (2000, 2)])
def test_two_round_trips_are_enough_mostly(differing: int, trips: int) -> None:
    rng = Random(differing)
    common = {ident(i) for i in range(4000)}
    mine = dated_set(common | {ident((i, "mine")) for i in range(differing // 2)})
    yours = dated_set(common | {ident((i, "yours")) for i in range(differing // 2)})
    used = sorted((len(exchange(mine, yours, salt=rng.randbytes(16))[2]) - 1) // 2 for _ in range(40))
    assert used[37] <= trips


def test_the_estimate_is_about_right() -> None:
    for count in (1, 10, 100, 1000, 30_000):
        keys = b"".join(dated(ident(i), 0) for i in range(count))
        one, none = Sketch.of(keys, SALT).parity(), Sketch.of(b"", SALT).parity()
        assert len(one) == PARITY_BYTES
        assert 0.75 * count <= estimate(one, none) <= 1.3 * count
    assert estimate(one, one) == 0


def test_more_cells_are_the_same_as_all_at_once() -> None:
    sketch = Sketch.of(b"".join(dated(ident(i), i) for i in range(500)), SALT)
    whole = sketch.cells(0, 700)
    parts = [sketch.cells(a, b) for a, b in ((0, 1), (1, 2), (2, 31), (31, 500), (500, 700))]
    joined = parts[0]
    for part in parts[1:]:
        joined = joined.then(part)
    assert joined.encode() == whole.encode() == Cells.decode(whole.encode()).encode()


WORD = 2**64 - 1


def mixed(word: int) -> int:
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & WORD
    word = (word ^ word >> 27) * 0x94D049BB133111EB & WORD
    return word ^ word >> 31


def plain_short(name: RecordId) -> int:
    """A short id, as docs/protocol/sync.md has it."""
    seed = hashlib.sha512(b"upkeep/sync/short" + SALT).digest()
    key = [int.from_bytes(seed[at : at + 8], "little") for at in range(0, 40, 8)]
    words = [int.from_bytes(name[at : at + 8], "little") for at in range(0, 32, 8)]
    return mixed(key[0] + sum(w * (k | 1) for w, k in zip(words, key[1:], strict=True)) & WORD)


def plain_cells(names: list[RecordId], count: int) -> bytes:
    """Cells, one short id and one octave at a time."""
    sums, checks = [0] * count, [0] * count
    for short in map(plain_short, names):
        for octave in range(count.bit_length()):
            hashed = mixed(short + (octave + 1) * 0x9E3779B97F4A7C15 & WORD)
            first = (1 << octave) - 1
            places = {hashed & first} | ({hashed >> 24 & first} if hashed >> 56 < 98 else set())
            for cell in (first + place for place in places if first + place < count):
                sums[cell] = sums[cell] + short & WORD
                checks[cell] = checks[cell] + mixed(short ^ 0x6A09E667F3BCC909) & 0xFFFFFFFF
    return b"".join(x.to_bytes(8, "little") for x in sums) + b"".join(x.to_bytes(4, "little") for x in checks)


def test_cells_are_what_the_page_says() -> None:
    names = [ident(i) for i in range(200)]
    sketch = Sketch.of(b"".join(dated(name, 7) for name in names), SALT)
    assert sketch.shorts.tolist() == sorted(map(plain_short, names))
    assert sketch.cells(0, 300).encode() == plain_cells(names, 300)


def test_ranges_take_over_where_a_sketch_does_not_come_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sketch, "peel", lambda _sketch, _cells: None)
    monkeypatch.setattr(differences, "_is_list_shorter", lambda _cells, _count: False)
    common = {ident(i) for i in range(500)}
    one, two, _ = check(common | {ident("mine")}, common | {ident("yours"), ident("too")})
    assert one.fallback is not None
    assert two.fallback is not None


@given(cells=st.lists(st.integers(0, 2**96 - 1), min_size=1, max_size=80), seed=st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_cells_of_a_liar_end_or_tell_what_is_not_held_here(cells: list[int], seed: int) -> None:
    sketch = Sketch.of(b"".join(dated(ident((seed, i)), 0) for i in range(50)), SALT)
    lies = Cells.decode(b"".join(cell.to_bytes(CELL_BYTES, "little") for cell in cells))
    found = sketch.peel(lies)
    if found is not None:
        assert len(found.mine) + len(found.theirs) <= len(cells)
        assert sketch.has(found.mine).all()
        assert not sketch.has(found.theirs).any()


def test_cells_that_contradict_what_is_held_here_tell_nothing() -> None:
    mine = Sketch.of(b"".join(dated(ident(i), 0) for i in range(50)), SALT)
    held, strange = (Sketch.of(dated(ident(name), 0), SALT).cells(0, 64) for name in (7, "strange"))
    cells = mine.cells(0, 64)
    too_much = Cells(cells.sums + held.sums, cells.checks + held.checks)
    too_little = Cells(cells.sums - strange.sums, cells.checks - strange.checks)
    assert mine.peel(too_much) is None
    assert mine.peel(too_little) is None


def test_a_sketch_that_undoes_itself_ends() -> None:
    """One short id in a single one of its cells: taking it out puts it into the others, and back again."""
    other = Sketch.of(dated(ident("other"), 0), SALT)
    whole = other.cells(0, 64)
    sums, checks = np.zeros(64, np.uint64), np.zeros(64, np.uint32)
    sums[0], checks[0] = whole.sums[0], whole.checks[0]
    assert Sketch.of(b"", SALT).peel(Cells(sums, checks)) is None


def test_a_liar_about_cells_is_asked_a_bounded_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every page is noise; the initiator asks a few times for more, then compares ranges."""
    monkeypatch.setattr(differences, "_is_list_shorter", lambda _cells, _count: False)
    rng = Random(5)
    common = {ident(i) for i in range(3000)}

    def lie(data: bytes) -> bytes:
        try:
            message = TO_INITIATOR.decode(data)
        except RemoteError:
            return data
        if isinstance(message, Overview):
            return TO_INITIATOR.encode(replace(message, cells=rng.randbytes(len(message.cells))))
        if isinstance(message, Page):
            return TO_INITIATOR.encode(Page(data=rng.randbytes(len(message.data))))
        return data

    mine, yours = common | {ident((i, "mine")) for i in range(90)}, common
    one, two, sent = exchange(dated_set(mine), dated_set(yours), lie)
    assert one.fallback is not None
    assert one.fallback.have == two.fallback.want == mine - yours  # type: ignore[union-attr]
    assert sum(map(len, sent)) < CELL_BYTES * SYNC_CELLS_MAX


HELD = dated_set({ident(i) for i in range(300)})
OTHER = dated_set({ident(i) for i in range(100, 420)})
SAME = Overview(dirty=b"\0", count=0, parity=b"", cells=b"", listed=b"")


@given(data=st.binary(max_size=200))
@settings(max_examples=200)
def test_arbitrary_bytes_raise_remote_error_only(data: bytes) -> None:
    for side in (listen(HELD), begin(HELD, SALT)[0]):
        with pytest.raises(RemoteError):
            respond(side, data)


shorts = st.lists(st.binary(min_size=8, max_size=8), max_size=3, unique=True).map(
    lambda many: b"".join(sorted(many, key=lambda x: int.from_bytes(x, "little")))
)
blobs = st.binary(max_size=40) | shorts | st.integers(0, 40).map(lambda n: bytes(CELL_BYTES * n))
numbers = st.integers(0, 400) | st.integers(0, SYNC_CELLS_MAX)
flags = st.integers(0, 1)
held_shorts = st.sets(st.integers(0, 319), max_size=5).map(
    lambda some: packed(Sketch.of(OTHER.dated, SALT).shorts[sorted(some)])
)
to_initiator = st.one_of(
    st.builds(
        Overview,
        dirty=st.sampled_from((b"\0", b"\1", b"\xff", b"", b"\1\0")),
        count=numbers,
        parity=st.sampled_from((b"", bytes(PARITY_BYTES), b"\xaa" * PARITY_BYTES)),
        cells=blobs,
        listed=blobs,
    ),
    st.builds(Page, data=blobs),
    st.just(Noted()),
)
opening = st.sampled_from((begin(HELD, SALT)[1], begin(OTHER, SALT)[1])).map(TO_RESPONDER.decode)
to_responder = st.one_of(
    opening,
    st.builds(MoreCells, stop=numbers),
    st.builds(MoreShorts, start=numbers),
    st.builds(Found, offered=blobs, wanted=held_shorts | blobs, is_last=flags, is_cut=flags),
    st.builds(
        Fallback, data=st.sampled_from((reconcile.begin(HELD, SALT)[1], b"", b"x")) | st.binary(max_size=9)
    ),
)


def play(side: Exchange, turns: list[bytes]) -> None:
    """Says all of `turns`, refused or not; what is answered stays within the bounds."""
    for data in turns:
        if side.is_over:
            break
        try:
            side, reply = respond(side, data)
        except RemoteError:
            continue
        assert reply is None or len(reply) <= RECONCILE_BYTES_MAX
        assert side.asks <= SYNC_ASKS_MAX
        assert set(side.have()) <= set(side.ids.ids)


@given(turns=st.lists(to_initiator, max_size=6))
@settings(max_examples=200, deadline=None)
def test_a_hostile_responder_is_refused_or_bounded(turns: list[object]) -> None:
    play(begin(HELD, SALT)[0], [TO_INITIATOR.encode(turn) for turn in turns])


@given(first=opening, turns=st.lists(to_responder, max_size=8))
@settings(max_examples=200, deadline=None)
def test_a_hostile_initiator_is_refused_or_bounded(first: Opening, turns: list[object]) -> None:
    play(listen(OTHER), [TO_RESPONDER.encode(turn) for turn in (first, *turns)])


def answered(side: Exchange, *messages: object) -> Exchange:
    schema = TO_INITIATOR if side.is_initiator else TO_RESPONDER
    for message in messages:
        side, _ = respond(side, schema.encode(message))
    return side


RANGES = TO_RESPONDER.decode(begin(OTHER, SALT)[1]).ranges
FIRST = Opening(salt=SALT, ranges=RANGES)
MINE = Sketch.of(HELD.dated, SALT).shorts
PAGE = replace(SAME, dirty=b"\1", count=2, listed=bytes(15) + b"\1")
CELLS = replace(SAME, dirty=b"\1", count=9, parity=bytes(PARITY_BYTES), cells=bytes(CELL_BYTES * 32))


@pytest.mark.parametrize(
    "messages",
    [
        (FIRST, FIRST),
        (MoreCells(stop=1),),
        (FIRST, MoreCells(stop=1)),
        (FIRST, MoreCells(stop=50_000)),
        (FIRST, MoreShorts(start=300)),
        (FIRST, Found(offered=packed(MINE[:1]), wanted=b"", is_last=1, is_cut=0)),
        (FIRST, Found(offered=b"", wanted=bytes(8), is_last=1, is_cut=0)),
        (FIRST, Found(offered=b"", wanted=packed(MINE[[1, 0]]), is_last=1, is_cut=0)),
        (FIRST, Found(offered=b"", wanted=packed(MINE[[1, 1]]), is_last=1, is_cut=0)),
        (FIRST, Found(offered=bytes(7), wanted=b"", is_last=1, is_cut=0)),
        (FIRST, Found(offered=b"", wanted=b"", is_last=0, is_cut=0)),
        (FIRST, *(Found(offered=bytes(8), wanted=b"", is_last=0, is_cut=0),) * 2),
        (FIRST, Found(offered=bytes(8), wanted=b"", is_last=0, is_cut=0), MoreShorts(start=0)),
        (FIRST, *(MoreShorts(start=0),) * (SYNC_ASKS_MAX + 1)),
        (Fallback(data=reconcile.begin(HELD, SALT)[1]),),
        (replace(FIRST, ranges=(*RANGES, *RANGES)),),
        (replace(FIRST, ranges=(replace(RANGES[-1], epoch=1),)),),
        (replace(FIRST, ranges=(*(replace(RANGES[-1], epoch=n) for n in (5, 4)), RANGES[-1])),),
        (replace(FIRST, ranges=(*(replace(RANGES[-1], epoch=n) for n in (5, 5)), RANGES[-1])),),
        (Found(offered=b"", wanted=b"", is_last=1, is_cut=0),),
    ],
)
def test_what_an_honest_initiator_cannot_have_sent(messages: tuple[object, ...]) -> None:
    side = answered(listen(HELD), *messages[:-1])
    with pytest.raises(RemoteError):
        answered(side, messages[-1])


@pytest.mark.parametrize(
    "messages",
    [
        (Page(data=b""),),
        (Noted(),),
        (replace(SAME, dirty=b"\4"),),
        (replace(SAME, dirty=b""),),
        (replace(PAGE, count=3),),
        (replace(PAGE, listed=bytes(16)),),
        (replace(CELLS, listed=bytes(8)),),
        (replace(CELLS, parity=b""),),
        (replace(CELLS, cells=bytes(13)),),
    ],
)
def test_what_an_honest_responder_cannot_have_sent(messages: tuple[object, ...]) -> None:
    side = answered(begin(HELD, SALT)[0], *messages[:-1])
    with pytest.raises(RemoteError):
        answered(side, messages[-1])


def test_a_page_has_the_length_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(differences, "_is_list_shorter", lambda _cells, _count: False)
    side = answered(begin(HELD, SALT)[0], CELLS)
    assert isinstance(side.asked, MoreCells)
    for wrong in (0, side.asked.stop - 31, side.asked.stop):
        with pytest.raises(RemoteError):
            answered(side, Page(data=bytes(CELL_BYTES * wrong)))


def test_a_set_grows_as_if_built_at_once() -> None:
    many = [ident(i) for i in range(500)]
    grown = IdSet.of(many[:300], epoch_of).plus(many[300:], epoch_of)
    whole = IdSet.of(many, epoch_of)
    assert (grown.ids, grown.packed, grown.dated) == (whole.ids, whole.packed, whole.dated)
    assert MESSAGES.bytes_max == RECONCILE_BYTES_MAX
