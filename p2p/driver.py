"""The pump between a stream and a session machine: frames in, effects out, deadlines kept.

A session's `step` is pure; here its effects are carried out in order, each completely before the next, and
whatever happens meanwhile (a frame, a local event, a deadline) waits its turn in one bounded queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, TypeVar

import trio

from gossip_ledger.errors import RemoteError
from p2p.channel import FrameChannel
from p2p.protocols.session import Lost, Send, Timeout

SEND_S: Final = 15.0
"""Longest that one message may take to leave."""
EVENTS_MAX: Final = 64
"""Events that may wait; whoever brings more waits too."""


class Session(Protocol):
    """What every session machine offers."""

    @property
    def is_over(self) -> bool: ...

    @property
    def deadline_ms(self) -> int | None: ...


S = TypeVar("S", bound=Session)

Perform = Callable[[Any], Awaitable[Any]]
"""Carries out one effect; may return the event that follows from it."""
Attach = Callable[[trio.Nursery, trio.MemorySendChannel[Any]], Perform]
"""Given a nursery for what runs beside the session, and a way to send it events: how to perform effects."""


async def drive(
    channel: FrameChannel,
    session: S,
    step: Callable[[S, Any, int], tuple[S, tuple[Any, ...]]],
    *,
    decode: Callable[[bytes], Any],
    attach: Attach,
    first: Any = None,
) -> S:
    """Runs a session to its end and returns it. `first` is an event to begin with.

    Everything started through the nursery is cancelled at the end. The caller closes or resets the channel.
    Raises what `perform` raises.
    """
    send, receive = trio.open_memory_channel[Any](EVENTS_MAX)
    async with trio.open_nursery() as nursery:
        perform = attach(nursery, send)
        if first is not None:
            session = await _take(session, step, perform, first)
        nursery.start_soon(_read, channel, decode, send)
        while not session.is_over:
            event = await _next_event(receive, session.deadline_ms)
            session = await _take(session, step, perform, event)
        nursery.cancel_scope.cancel()
    return session


async def _take(
    session: S, step: Callable[[S, Any, int], tuple[S, tuple[Any, ...]]], perform: Perform, event: Any
) -> S:
    waiting = deque([event])
    while waiting:
        session, effects = step(session, waiting.popleft(), now_ms())
        for effect in effects:
            following = await _perform(perform, effect)
            if following is not None:
                waiting.append(following)
    return session


async def _perform(perform: Perform, effect: Any) -> Any:
    """One effect; a message that the peer does not take in time counts as its loss."""
    wait_s = SEND_S if isinstance(effect, Send) else float("inf")
    try:
        with trio.move_on_after(wait_s):
            return await perform(effect)
    except RemoteError as error:
        return Lost(reason=str(error))
    return Lost(reason="the peer did not read in time")


async def _next_event(receive: trio.MemoryReceiveChannel[Any], deadline_ms: int | None) -> Any:
    wait_s = float("inf") if deadline_ms is None else max(0.0, (deadline_ms - now_ms()) / 1000)
    with trio.move_on_after(wait_s):
        return await receive.receive()
    return Timeout()


async def _read(
    channel: FrameChannel, decode: Callable[[bytes], Any], send: trio.MemorySendChannel[Any]
) -> None:
    while True:
        try:
            frame = await channel.receive()
            event = Lost() if frame is None else decode(frame)
        except RemoteError as error:
            event = Lost(reason=str(error))
        await send.send(event)
        if isinstance(event, Lost):
            return


def now_ms() -> int:
    """trio's monotonic clock, milliseconds."""
    return int(trio.current_time() * 1000)
