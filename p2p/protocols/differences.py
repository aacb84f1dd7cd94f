"""Which records do two peers not share? Digests of ranges, then a sketch of what differs; bytes in and out.

The initiator cuts its ids, sorted by epoch and then by id, into ranges that grow towards the past, and sends
a count and a digest of each (`Opening`). The responder says which of them differ (`Overview`) and adds cells
of a sketch of its ids in those, or all of these as short ids where that is shorter. The initiator takes the
sketch apart, asks for as many more cells as it needs, and says what it `Found`: which of the responder's it
wants and which of its own it offers. That is one or two round trips, and 30 to 50 bytes per difference.

Where a sketch does not come apart (a wrong estimate, or a lying peer) the initiator goes on with the ranges
of `gossip_ledger/reconcile.py`, within their own bounds; after that message both sides speak only that.

A hostile responder can make us sketch our ids, hold `SYNC_CELLS_MAX` cells and remember `RECONCILE_WANT_MAX`
short ids that may not exist; a hostile initiator can make us pass over our ids `SYNC_ASKS_MAX` times.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, assert_never, final

from gossip_ledger import reconcile
from gossip_ledger.limits import RECONCILE_WANT_MAX
from gossip_ledger.reconcile import KEY_BYTES, SALT_BYTES, IdSet, Progress
from gossip_ledger.records import RecordId
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
from p2p.protocols.limits import (
    SYNC_ASKS_MAX,
    SYNC_CELLS_MAX,
    SYNC_LIST_MIN,
    SYNC_PAGE_CELLS,
    SYNC_PAGE_SHORTS,
)
from p2p.protocols.ranges import Range, cut, select
from p2p.protocols.session import ProtocolError
from p2p.protocols.sketch import (
    CELL_BYTES,
    SHORT_BYTES,
    Cells,
    Sketch,
    Words,
    estimate,
    packed,
    shorts_of,
)

_FIRST_CELLS: Final = 32
"""Cells of a first sketch where the counts tell nothing: enough for a few differences."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Listing:
    """Differences found so far, as short ids in rising order: what is offered, what is wanted."""

    offered: bytes = b""
    wanted: bytes = b""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One side, between two messages."""

    ids: IdSet
    is_initiator: bool
    salt: bytes
    """Empty until the responder heard it."""
    ranges: tuple[Range, ...] = ()
    """What the initiator sent."""
    sketch: Sketch | None = None
    """This side's ids in the ranges that differ, once these are known."""
    theirs: int = 0
    """Initiator: how many ids the responder has in them."""
    parity: bytes = b""
    """Initiator: the responder's."""
    cells: Cells | None = None
    """Initiator: the responder's first cells."""
    asked: MoreCells | MoreShorts | None = None
    """Initiator: the question under way."""
    given: int = 0
    """Cells that the responder gave; short ids that the initiator has seen."""
    asks: int = 0
    settled: int = 0
    """Initiator, where short ids are listed: how many of its own they have settled."""
    last: bytes = b""
    """The last short id that was listed."""
    found: Listing = Listing()
    """Initiator: all that was found. Responder: what it was told."""
    told: int = 0
    """Initiator: bytes of `found` that the responder knows."""
    fallback: Progress | None = None
    """From the moment at which ranges decide."""
    is_over: bool = False
    is_cut: bool = False
    """Whether a bound was reached: then the differences found are true but not all."""

    @property
    def want(self) -> tuple[bytes, ...]:
        """Short ids of what the peer holds and this side lacks, in the order in which the peer gives it."""
        data = self.found.wanted if self.is_initiator else self.found.offered
        return tuple(data[at : at + SHORT_BYTES] for at in range(0, len(data), SHORT_BYTES))

    def have(self) -> tuple[RecordId, ...]:
        """What this side holds and the peer lacks, in the order in which it is given."""
        if self.sketch is None:
            return ()
        data = self.found.offered if self.is_initiator else self.found.wanted
        return self.sketch.ids(shorts_of(data))


Turn = tuple[Exchange, bytes | None]


def begin(ids: IdSet, salt: bytes) -> tuple[Exchange, bytes]:
    """Opens an exchange: the state, and the first message. `salt` is 16 random bytes."""
    assert len(salt) == SALT_BYTES
    ranges = cut(ids, salt)
    exchange = Exchange(ids=ids, is_initiator=True, salt=salt, ranges=ranges)
    return exchange, TO_RESPONDER.encode(Opening(salt=salt, ranges=ranges))


def listen(ids: IdSet) -> Exchange:
    """The other side of `begin`."""
    return Exchange(ids=ids, is_initiator=False, salt=b"")


def respond(exchange: Exchange, data: bytes) -> Turn:
    """Takes the peer's message; returns the new state and our next message, or None if theirs was the last.

    Raises `RemoteError` and nothing else; the state is then unchanged and the exchange should end.
    """
    assert not exchange.is_over, "the exchange is over"
    if exchange.fallback is not None:
        return _fall_back(exchange, exchange.fallback, data)
    return _hear_responder(exchange, data) if exchange.is_initiator else _hear_initiator(exchange, data)


def _hear_responder(exchange: Exchange, data: bytes) -> Turn:
    message: Overview | Page | Noted = TO_INITIATOR.decode(data)
    match message:
        case Overview():
            return _take_overview(exchange, message)
        case Page(data=page):
            return _take_page(exchange, page)
        case Noted():
            return _take_noted(exchange)
        case _:
            assert_never(message)


def _hear_initiator(exchange: Exchange, data: bytes) -> Turn:
    message: Opening | MoreCells | MoreShorts | Found | Fallback = TO_RESPONDER.decode(data)
    match message:
        case Opening():
            return _take_opening(exchange, message)
        case MoreCells(stop=stop):
            return _give_cells(exchange, stop)
        case MoreShorts(start=start):
            return _give_shorts(exchange, start)
        case Found():
            return _take_found(exchange, message)
        case Fallback(data=first):
            if exchange.sketch is None or exchange.told:
                raise ProtocolError("a fallback at the wrong time")
            return _fall_back(exchange, reconcile.listen(exchange.ids), first)
        case _:
            assert_never(message)


# --- the responder ---


def _take_opening(exchange: Exchange, message: Opening) -> Turn:
    if exchange.salt:
        raise ProtocolError("a second opening")
    choice = select(exchange.ids, message.ranges, message.salt)
    after = replace(exchange, salt=message.salt)
    if not any(choice.dirty):
        nothing = Overview(dirty=choice.dirty, count=0, parity=b"", cells=b"", listed=b"")
        return replace(after, is_over=True), TO_INITIATOR.encode(nothing)
    sketch = Sketch.of(choice.keys, message.salt)
    cells = _needed(choice.surplus) if choice.surplus else _FIRST_CELLS
    if len(sketch) <= SYNC_LIST_MIN or _is_list_shorter(cells, len(sketch)):
        listed = packed(sketch.shorts[:SYNC_PAGE_SHORTS])
        parity, first = b"", b""
    else:
        listed, cells = b"", min(cells, SYNC_PAGE_CELLS)
        parity, first = sketch.parity(), sketch.cells(0, cells).encode()
        after = replace(after, given=cells)
    reply = Overview(dirty=choice.dirty, count=len(sketch), parity=parity, cells=first, listed=listed)
    return replace(after, sketch=sketch), TO_INITIATOR.encode(reply)


def _give_cells(exchange: Exchange, stop: int) -> Turn:
    sketch = _asked(exchange)
    if not exchange.given < stop <= exchange.given + SYNC_PAGE_CELLS:
        raise ProtocolError("asked for cells out of their order")
    data = sketch.cells(exchange.given, stop).encode()
    return replace(exchange, given=stop, asks=exchange.asks + 1), TO_INITIATOR.encode(Page(data=data))


def _give_shorts(exchange: Exchange, start: int) -> Turn:
    sketch = _asked(exchange)
    if start >= len(sketch):
        raise ProtocolError("asked for more short ids than there are")
    data = packed(sketch.shorts[start : start + SYNC_PAGE_SHORTS])
    return replace(exchange, asks=exchange.asks + 1), TO_INITIATOR.encode(Page(data=data))


def _asked(exchange: Exchange) -> Sketch:
    """The sketch to answer from, if another question is in order."""
    if exchange.sketch is None or exchange.told or exchange.asks >= SYNC_ASKS_MAX:
        raise ProtocolError("a question at the wrong time, or too many")
    return exchange.sketch


def _take_found(exchange: Exchange, message: Found) -> Turn:
    if exchange.sketch is None:
        raise ProtocolError("something found where nothing was sought")
    before = exchange.found
    for old, new in ((before.offered, message.offered), (before.wanted, message.wanted)):
        if len(new) % SHORT_BYTES or len(old) + len(new) > SHORT_BYTES * RECONCILE_WANT_MAX:
            raise ProtocolError("broken or too many short ids")
        _check_order(shorts_of(old[-SHORT_BYTES:] + new))
    if not message.is_last and not message.offered and not message.wanted:
        raise ProtocolError("a part that says nothing")
    if exchange.sketch.has(shorts_of(message.offered)).any():
        raise ProtocolError("offered what is held here")
    if not exchange.sketch.has(shorts_of(message.wanted)).all():
        raise ProtocolError("wanted what is not held here")
    found = Listing(before.offered + message.offered, before.wanted + message.wanted)
    after = replace(exchange, found=found, told=1)
    if message.is_last:
        return replace(after, is_over=True, is_cut=bool(message.is_cut)), None
    return after, TO_INITIATOR.encode(Noted())


# --- the initiator ---


def _take_overview(exchange: Exchange, message: Overview) -> Turn:
    if exchange.sketch is not None:
        raise ProtocolError("a second overview")
    width = len(exchange.ranges)
    bits = int.from_bytes(message.dirty, "little")
    if len(message.dirty) != (width + 7) // 8 or bits >> width:
        raise ProtocolError("an overview of other ranges")
    if not bits:
        return replace(exchange, is_over=True), None
    keys, lower = bytearray(), 0
    for place, part in enumerate(exchange.ranges):
        if bits >> place & 1:
            keys += memoryview(exchange.ids.dated)[KEY_BYTES * lower : KEY_BYTES * (lower + part.count)]
        lower += part.count
    sketch = Sketch.of(bytes(keys), exchange.salt)
    after = replace(exchange, sketch=sketch, theirs=message.count, parity=message.parity)
    if message.cells:
        if message.listed or not message.parity or len(message.cells) % CELL_BYTES:
            raise ProtocolError("broken cells")
        return _peel(replace(after, cells=Cells.decode(message.cells)))
    return _take_shorts(after, message.listed)


def _take_page(exchange: Exchange, data: bytes) -> Turn:
    match exchange.asked:
        case MoreCells(stop=stop):
            cells = exchange.cells
            assert cells is not None
            if len(data) != CELL_BYTES * (stop - len(cells)):
                raise ProtocolError("another number of cells than was asked for")
            return _peel(replace(exchange, asked=None, cells=cells.then(Cells.decode(data))))
        case MoreShorts():
            return _take_shorts(replace(exchange, asked=None), data)
        case None:
            raise ProtocolError("a page that nobody asked for")
        case _:
            assert_never(exchange.asked)


def _peel(exchange: Exchange) -> Turn:
    """Takes apart what there is; tells what was found, or asks for more."""
    sketch, cells = exchange.sketch, exchange.cells
    assert sketch is not None
    assert cells is not None
    found = sketch.peel(cells)
    if found is not None:
        return _tell(_with(exchange, found.mine, found.theirs))
    size = len(cells)
    stop = max(_needed(estimate(sketch.parity(), exchange.parity)), size + size // 2)
    if _is_list_shorter(stop - size, exchange.theirs):
        return _ask(exchange, MoreShorts(start=0))
    if stop > SYNC_CELLS_MAX or exchange.asks >= SYNC_ASKS_MAX:
        progress, data = reconcile.begin(exchange.ids, exchange.salt)
        after = replace(exchange, fallback=progress, cells=None)
        return after, TO_RESPONDER.encode(Fallback(data=data))
    return _ask(exchange, MoreCells(stop=min(stop, size + SYNC_PAGE_CELLS)))


def _take_shorts(exchange: Exchange, data: bytes) -> Turn:
    """One page of all the responder's short ids: they settle everything up to the last of them."""
    sketch, start = exchange.sketch, exchange.given
    assert sketch is not None
    expected = min(exchange.theirs - start, SYNC_PAGE_SHORTS)
    if len(data) != SHORT_BYTES * expected:
        raise ProtocolError("another number of short ids than was announced")
    shorts = shorts_of(data)
    _check_order(shorts_of(exchange.last + data))
    stop = start + expected
    is_last = stop == exchange.theirs
    settled = len(sketch) if is_last else sketch.count_to(shorts[-1:])
    mine = sketch.shorts[exchange.settled : settled]
    page = replace(sketch, shorts=shorts)
    after = replace(exchange, given=stop, settled=settled, last=data[-SHORT_BYTES:])
    after = _with(after, mine[~page.has(mine)], shorts[~sketch.has(shorts)])
    if is_last or after.is_cut:
        return _tell(after)
    if after.asks >= SYNC_ASKS_MAX:
        return _tell(replace(after, is_cut=True))
    return _ask(after, MoreShorts(start=stop))


def _ask(exchange: Exchange, question: MoreCells | MoreShorts) -> Turn:
    return replace(exchange, asked=question, asks=exchange.asks + 1), TO_RESPONDER.encode(question)


def _with(exchange: Exchange, offered: Words, wanted: Words) -> Exchange:
    """Adds to what was found, up to the bounds."""
    before = exchange.found
    after = Listing(before.offered + packed(offered), before.wanted + packed(wanted))
    most = SHORT_BYTES * RECONCILE_WANT_MAX
    is_cut = exchange.is_cut or len(after.offered) > most or len(after.wanted) > most
    return replace(exchange, found=Listing(after.offered[:most], after.wanted[:most]), is_cut=is_cut)


def _tell(exchange: Exchange) -> Turn:
    """The next part of what was found; with the last one the exchange is over."""
    offered, wanted = exchange.found.offered, exchange.found.wanted
    start, stop = exchange.told, exchange.told + SHORT_BYTES * SYNC_PAGE_SHORTS
    is_last = stop >= len(offered) + len(wanted)
    found = Found(
        offered=offered[start:stop],
        wanted=wanted[max(0, start - len(offered)) : max(0, stop - len(offered))],
        is_last=int(is_last),
        is_cut=int(exchange.is_cut),
    )
    return replace(exchange, told=stop, is_over=is_last, cells=None), TO_RESPONDER.encode(found)


def _take_noted(exchange: Exchange) -> Turn:
    if not exchange.told:
        raise ProtocolError("nothing was told yet")
    return _tell(exchange)


# --- both ---


def _fall_back(exchange: Exchange, progress: Progress, data: bytes) -> Turn:
    progress, reply = reconcile.respond(progress, data)
    after = replace(exchange, fallback=progress, is_over=progress.is_over, is_cut=progress.is_cut)
    return after, reply


def _needed(differences: int) -> int:
    """Cells that tell so many differences, with room for an estimate a fifth too low: 1.5 each are enough."""
    return 2 * differences + 16


def _is_list_shorter(cells: int, count: int) -> bool:
    return SHORT_BYTES * count <= CELL_BYTES * cells


def _check_order(shorts: Words) -> None:
    if (shorts[1:] <= shorts[:-1]).any():
        raise ProtocolError("short ids are not in order")
