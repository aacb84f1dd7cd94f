"""Which ids do I hold that you lack, and the reverse: range-based set reconciliation, bytes in and bytes out.

Both sides sort their ids and exchange messages in turn. A message covers the space of ids from its start,
range by range; a range that it does not mention is settled. About a range one may say:

- `Digest`: a hash over all my ids in it. Equal: settled. Else the other side splits it into 16, or lists it.
- `Ids`: all my ids in it, at most 32. The other side now knows both differences and answers.
- `Answer`: the ids in it that you lack, and which of yours I lack. Settled.

`Digest` and `Ids` are questions; a message without one is the last, and both sides know it. The digest is a
salted SHA-256 over the sorted ids rather than a sum of them, which an author of many records could steer. The
set is frozen when a side begins, so its own ids are the context and no range has to be remembered.

A hostile peer can make us answer `RECONCILE_ROUNDS_MAX` messages of `RECONCILE_BYTES_MAX`, each with one pass
over our ids, and remember `RECONCILE_WANT_MAX` ids that may not exist. It can hide its own records,
never ours.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, final

from gossip_ledger.codec import Schema, Table, many, octets, octets_up_to, one_of, uint
from gossip_ledger.errors import RemoteError
from gossip_ledger.limits import (
    RECONCILE_BYTES_MAX,
    RECONCILE_ITEMS_MAX,
    RECONCILE_LIST_MAX,
    RECONCILE_ROUNDS_MAX,
    RECONCILE_SPLIT,
    RECONCILE_WANT_MAX,
)
from gossip_ledger.records import RecordId

SALT_BYTES: Final = 16
DIGEST_BYTES: Final = 16
ID_BYTES: Final = 32
KEY_BYTES: Final = 40

_ID_COST: Final = 34
"""Encoded bytes of one id in a list."""
_ITEM_COST: Final = 48
"""Encoded bytes of one item without its lists, at most."""
_ANSWER_IDS_MAX: Final = RECONCILE_BYTES_MAX // _ID_COST
_QUESTION_COST: Final = max(
    RECONCILE_SPLIT * (_ITEM_COST + DIGEST_BYTES + 2),
    _ITEM_COST + RECONCILE_LIST_MAX * (_ID_COST + 1),
)
"""Encoded bytes of the longest reply to one digest."""
_RESERVE: Final = 2 * _QUESTION_COST
"""Kept free for the head, one more reply, and a digest over all that did not fit."""


class ReconcileError(RemoteError):
    """A message that an honest peer cannot have sent."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """Nothing to say about the range below `upper`."""

    upper: bytes
    """First id beyond the range, or a prefix of it; empty for the end of the space."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """A hash over the sender's ids in the range."""

    upper: bytes
    digest: bytes


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Ids:
    """All of the sender's ids in the range."""

    upper: bytes
    ids: tuple[RecordId, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Both differences in a range that the receiver listed."""

    upper: bytes
    extra: tuple[RecordId, ...]
    """Ids that the receiver lacks."""
    wanted: bytes
    """One bit per id of the receiver's in the range, lowest first: set where the sender lacks it."""


Item = Settled | Digest | Ids | Answer


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn."""

    salt: bytes
    """Chosen by the initiator, the same in the whole exchange."""
    is_cut: int
    """1 if the sender stopped at one of its bounds, so differences may remain."""
    items: tuple[Item, ...]


_upper = octets_up_to(32)
_id = octets(32)
_SETTLED = Table(1, Settled, (("upper", _upper),))
_DIGEST = Table(2, Digest, (("upper", _upper), ("digest", octets(DIGEST_BYTES))))
_IDS = Table(3, Ids, (("upper", _upper), ("ids", many(_id, RECONCILE_LIST_MAX))))
_ANSWER = Table(
    4,
    Answer,
    (
        ("upper", _upper),
        ("extra", many(_id, _ANSWER_IDS_MAX)),
        ("wanted", octets_up_to((RECONCILE_LIST_MAX + 7) // 8)),
    ),
)
_MESSAGE = Table(
    5,
    Message,
    (
        ("salt", octets(SALT_BYTES)),
        ("is_cut", uint(1)),
        ("items", many(one_of(_SETTLED, _DIGEST, _IDS, _ANSWER), RECONCILE_ITEMS_MAX)),
    ),
)
MESSAGES = Schema(_MESSAGE, bytes_max=RECONCILE_BYTES_MAX)
"""What `respond` takes and gives."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class IdSet:
    """A frozen set of ids, sorted. Compared by identity: build it once and use it for many exchanges."""

    ids: tuple[RecordId, ...]
    packed: bytes
    """The same ids, one after the other."""
    dated: bytes
    """The same ids once more, each behind its epoch as `KEY_BYTES` in all, sorted so: the newest are last."""

    @staticmethod
    def of(ids: Iterable[RecordId], epochs: Callable[[RecordId], int] | None = None) -> IdSet:
        """Sorts `ids`, dropping repeats. `epochs` dates them; without it all have epoch 0."""
        return IdSet((), b"", b"").plus(set(ids), epochs)

    def plus(self, ids: Collection[RecordId], epochs: Callable[[RecordId], int] | None = None) -> IdSet:
        """This set and `ids`, none of which it has: quick where they are few."""
        fresh = sorted(ids)
        keys = sorted(dated(ident, epochs(ident) if epochs else 0) for ident in fresh)
        return IdSet(
            tuple(sorted([*self.ids, *fresh])),
            _merged(self.packed, ID_BYTES, fresh),
            _merged(self.dated, KEY_BYTES, keys),
        )

    def find(self, bound: bytes) -> int:
        """How many ids lie below `bound`."""
        return bisect_left(self.ids, bound)

    def find_dated(self, bound: bytes) -> int:
        """How many ids, each behind its epoch, lie below `bound`."""
        return _find(self.dated, KEY_BYTES, bound)

    def digest(self, start: int, stop: int, salt: bytes) -> bytes:
        """The salted hash over the ids in `start .. stop`."""
        hasher = hashlib.sha256(salt)
        hasher.update(memoryview(self.packed)[ID_BYTES * start : ID_BYTES * stop])
        return hasher.digest()[:DIGEST_BYTES]

    def digest_dated(self, start: int, stop: int, salt: bytes) -> bytes:
        """The same over `dated`."""
        hasher = hashlib.sha256(salt)
        hasher.update(memoryview(self.dated)[KEY_BYTES * start : KEY_BYTES * stop])
        return hasher.digest()[:DIGEST_BYTES]


def dated(ident: RecordId, epoch: int) -> bytes:
    """An id behind its epoch, big-endian, so that keys sort by time."""
    return epoch.to_bytes(KEY_BYTES - ID_BYTES, "big") + ident


def _find(packed: bytes, width: int, bound: bytes) -> int:
    """How many of the sorted strings of `width` bytes in `packed` lie below `bound`."""
    low, high = 0, len(packed) // width
    while low < high:
        middle = (low + high) // 2
        if packed[width * middle : width * (middle + 1)] < bound:
            low = middle + 1
        else:
            high = middle
    return low


def _merged(packed: bytes, width: int, fresh: list[RecordId] | list[bytes]) -> bytes:
    """Sorted strings of `width` bytes with others put in, sorted as well."""
    if not packed:
        return b"".join(fresh)
    pieces: list[bytes | memoryview] = []
    view, start = memoryview(packed), 0
    for item in fresh:
        stop = width * _find(packed, width, item)
        pieces += (view[start:stop], item)
        start = stop
    return b"".join([*pieces, view[start:]])


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One side of an exchange, between two messages."""

    ids: IdSet
    salt: bytes
    """Empty until the responder heard it."""
    rounds: int = 0
    """Messages answered."""
    have: frozenset[RecordId] = frozenset()
    """Held here and lacking there, as far as is known."""
    want: frozenset[RecordId] = frozenset()
    """Held there and lacking here, as far as is known and if the peer is honest."""
    is_over: bool = False
    is_cut: bool = False
    """Whether a bound of either side was reached: then the differences found are true but not all."""


def begin(ids: IdSet, salt: bytes) -> tuple[Progress, bytes]:
    """Opens an exchange: the state, and the first message. `salt` is 16 random bytes."""
    assert len(salt) == SALT_BYTES
    whole = Digest(upper=b"", digest=ids.digest(0, len(ids.ids), salt))
    return Progress(ids=ids, salt=salt), MESSAGES.encode(Message(salt=salt, is_cut=0, items=(whole,)))


def listen(ids: IdSet) -> Progress:
    """The other side of `begin`."""
    return Progress(ids=ids, salt=b"")


def respond(progress: Progress, data: bytes) -> tuple[Progress, bytes | None]:
    """Takes the peer's message; returns the new state and our next message, or None if theirs was the last.

    Raises `DecodeError` or `ReconcileError`; the state is then unchanged and the exchange should end.
    """
    assert not progress.is_over, "the exchange is over"
    message: Message = MESSAGES.decode(data)
    if progress.salt not in (b"", message.salt):
        raise ReconcileError("the salt changed")
    turn = _Turn(progress, message.salt)
    asked = turn.take(message.items)
    is_cut = progress.is_cut or bool(message.is_cut) or turn.is_cut
    after = replace(
        progress,
        salt=message.salt,
        rounds=progress.rounds + 1,
        have=frozenset(turn.have),
        want=frozenset(turn.want),
        is_cut=is_cut,
    )
    if not asked:
        return replace(after, is_over=True), None
    reply = Message(salt=message.salt, is_cut=int(is_cut), items=tuple(turn.items))
    return replace(after, is_over=not turn.has_question), MESSAGES.encode(reply)


@final
class _Turn:
    """Builds one reply. Lives for one call of `respond`."""

    def __init__(self, progress: Progress, salt: bytes) -> None:
        self._ids = progress.ids
        self._salt = salt
        self._may_ask = progress.rounds + 1 < RECONCILE_ROUNDS_MAX
        self._room = RECONCILE_BYTES_MAX - _RESERVE
        self._said = b""
        """Upper bound of the last item written."""
        self.items: list[Item] = []
        self.have = set(progress.have)
        self.want = set(progress.want)
        self.has_question = False
        self.is_cut = False

    def take(self, items: tuple[Item, ...]) -> bool:
        """Goes through the peer's items; True if there was a question among them."""
        lower, asked = b"", False
        left: bytes | None = None
        """Where the part begins that finds no room in this message."""
        for index, item in enumerate(items):
            upper = item.upper
            if not upper and index != len(items) - 1:
                raise ReconcileError("a range follows the end of the space")
            if upper and upper <= lower:
                raise ReconcileError("the ranges are not in order")
            start = self._ids.find(lower)
            stop = self._ids.find(upper) if upper else len(self._ids.ids)
            if isinstance(item, Answer):
                self._take_answer(item, lower, start, stop)
            elif isinstance(item, Digest | Ids):
                asked = True
                if left is None and not self._has_room():
                    left = lower
                elif left is None:
                    left = self._reply(item, lower, start, stop)
            lower = upper
        if left is not None:
            self._ask_rest(left)
        return asked

    def _reply(self, item: Digest | Ids, lower: bytes, start: int, stop: int) -> bytes | None:
        if isinstance(item, Ids):
            return self._take_ids(item, lower, start, stop)
        self._take_digest(item, lower, start, stop)
        return None

    def _take_digest(self, item: Digest, lower: bytes, start: int, stop: int) -> None:
        if self._ids.digest(start, stop, self._salt) == item.digest:
            return
        count = stop - start
        if count <= RECONCILE_LIST_MAX:
            self._ask(lower, Ids(upper=item.upper, ids=self._ids.ids[start:stop]))
            return
        cuts = [start + count * part // RECONCILE_SPLIT for part in range(RECONCILE_SPLIT + 1)]
        for first, end in pairwise(cuts):
            upper = item.upper if end == stop else separator(self._ids.ids[end - 1], self._ids.ids[end])
            self._ask(lower, Digest(upper=upper, digest=self._ids.digest(first, end, self._salt)))
            lower = upper

    def _take_ids(self, item: Ids, lower: bytes, start: int, stop: int) -> bytes | None:
        """Answers a list; where the answer does not fit, returns the bound from which to ask again."""
        _check_list(item.ids, lower, item.upper)
        theirs = frozenset(item.ids)
        upper, left = item.upper, None
        lacking: list[RecordId] = []
        for ident in self._ids.ids[start:stop]:
            if ident in theirs:
                continue
            if len(lacking) == self._room // _ID_COST:
                upper = left = separator(lacking[-1], ident)
                break
            lacking.append(ident)
        mine = frozenset(self._ids.ids[start:stop])
        covered = [ident for ident in item.ids if left is None or ident < left]
        self._add_want(ident for ident in covered if ident not in mine)
        self.have.update(lacking)
        wanted = _bits(ident not in mine for ident in covered)
        if lacking or any(wanted):
            self._say(lower, Answer(upper=upper, extra=tuple(lacking), wanted=wanted))
        return left

    def _take_answer(self, item: Answer, lower: bytes, start: int, stop: int) -> None:
        _check_list(item.extra, lower, item.upper)
        mine = self._ids.ids[start:stop]
        if len(mine) > RECONCILE_LIST_MAX or len(item.wanted) != (len(mine) + 7) // 8:
            raise ReconcileError("an answer to a list that was not sent")
        if item.wanted and int.from_bytes(item.wanted, "little") >> len(mine):
            raise ReconcileError("an answer wants ids that were not listed")
        if not frozenset(mine).isdisjoint(item.extra):
            raise ReconcileError("an answer offers ids that were listed")
        self._add_want(item.extra)
        self.have.update(
            ident for place, ident in enumerate(mine) if item.wanted[place // 8] >> place % 8 & 1
        )

    def _ask_rest(self, lower: bytes) -> None:
        start, stop = self._ids.find(lower), len(self._ids.ids)
        self._ask(lower, Digest(upper=b"", digest=self._ids.digest(start, stop, self._salt)))

    def _ask(self, lower: bytes, item: Digest | Ids) -> None:
        if not self._may_ask:
            self.is_cut = True
            return
        self.has_question = True
        self._say(lower, item)

    def _say(self, lower: bytes, item: Item) -> None:
        if lower != self._said:
            self.items.append(Settled(upper=lower))
            self._room -= _ITEM_COST
        self.items.append(item)
        self._said = item.upper
        self._room -= _ITEM_COST + DIGEST_BYTES
        if isinstance(item, Ids):
            self._room -= _ID_COST * len(item.ids)
        elif isinstance(item, Answer):
            self._room -= _ID_COST * len(item.extra)

    def _has_room(self) -> bool:
        return self._room >= _ID_COST and len(self.items) + 2 * RECONCILE_SPLIT + 4 <= RECONCILE_ITEMS_MAX

    def _add_want(self, idents: Iterable[RecordId]) -> None:
        for ident in idents:
            if len(self.want) >= RECONCILE_WANT_MAX:
                self.is_cut = True
                return
            self.want.add(ident)


def _check_list(ids: tuple[RecordId, ...], lower: bytes, upper: bytes) -> None:
    """Raises `ReconcileError` unless `ids` rise strictly and lie in the range."""
    if any(a >= b for a, b in pairwise(ids)):
        raise ReconcileError("ids are not in order")
    if ids and (ids[0] < lower or (upper and ids[-1] >= upper)):
        raise ReconcileError("an id lies outside its range")


def separator(low: bytes, high: bytes) -> bytes:
    """The shortest prefix of `high` that is greater than `low`."""
    length = next(place for place, (a, b) in enumerate(zip(low, high, strict=True), 1) if a != b)
    return high[:length]


def _bits(flags: Iterable[bool]) -> bytes:
    """Flags as bits, lowest first."""
    packed, count = 0, 0
    for count, flag in enumerate(flags, 1):
        packed |= flag << count - 1
    return packed.to_bytes((count + 7) // 8, "little")
