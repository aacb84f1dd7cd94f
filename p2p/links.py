"""Keeps a node linked: dials until it has enough outbound links, greets, checks for life, bounds inbound.

Addresses come from the operator (bootstrap, invites), from the address book and from greetings. The graph
is bounded by how many links each node makes and takes, never by gossip pruning. One outbound link is replaced
now and then by a random other one, which is what joins islands again after a partition.

Works alike over every transport: it knows only the seam, trio's clock and the `random.Random` it is given.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Protocol, final

import trio

from gossip_ledger.errors import RemoteError
from gossip_ledger.records import AccountId
from p2p import limits
from p2p.eventlog import EventLog
from p2p.liveness import PING_PROTOCOL, Pulse, answer_pings
from p2p.transport import DialError, Link, LinkError, Transport


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """What a peer said of the network when greeted."""

    addresses: tuple[str, ...]
    """Where it, and others that it knows, may be dialled."""


Greet = Callable[[AccountId], Awaitable[Greeting | None]]
"""Exchanges hellos with a linked peer. None if it did not answer; a `RemoteError` says in words why it or we
refused: then the link is dropped and the peer avoided for a while."""


class AddressBook(Protocol):
    """Addresses that survive a restart. Bounds itself."""

    def list(self) -> Sequence[str]:
        """Known addresses, the best first."""
        ...

    def add(self, address: str) -> None:
        """An address somebody told us; nothing is known of it yet."""
        ...

    def mark(self, address: str, *, did_answer: bool) -> None:
        """How a dial went."""
        ...


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LinkUp:
    """A peer is linked and greeted."""

    peer: AccountId


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LinkDown:
    """A peer that was up is gone."""

    peer: AccountId
    reason: str


LinkEvent = LinkUp | LinkDown


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a peer is not kept, or an address not reached, in words for `peers` and `doctor`."""

    who: str
    """An account in hex, or an address."""
    reason: str
    at_s: float
    """By trio's clock."""


@final
@dataclass(slots=True, kw_only=True)
class _Attempt:
    """How dialling one address goes."""

    failures: int = 0
    last_s: float = 0.0
    wait_s: float = 0.0
    """From `last_s` to the next dial."""
    is_under_way: bool = False
    account: AccountId | None = None
    """Who answered last."""


@final
@dataclass(slots=True, kw_only=True)
class _Kept:
    """One link that is looked after."""

    link: Link
    scope: trio.CancelScope
    since_s: float
    is_up: bool = False
    pulse: Pulse


@final
class Links:
    """The links of one node. `run` must be running."""

    def __init__(
        self,
        transport: Transport,
        book: AddressBook,
        greet: Greet,
        *,
        bootstrap: tuple[str, ...],
        rng: Random,
        log: EventLog,
    ) -> None:
        self._transport = transport
        self._book = book
        self._greet = greet
        self._bootstrap = list(bootstrap)
        self._rng = rng
        self._log = log
        self._kept: dict[AccountId, _Kept] = {}
        self._holds: dict[AccountId, int] = {}
        self._attempts: OrderedDict[str, _Attempt] = OrderedDict()
        self._avoided_until_s: OrderedDict[AccountId, float] = OrderedDict()
        self._refusals: OrderedDict[str, Refusal] = OrderedDict()
        self._send, self._events = trio.open_memory_channel[LinkEvent](limits.LINK_EVENTS_MAX)
        self._oldest = self._events.clone()
        self._rotate_at_s = 0.0
        self._exchange_at_s = 0.0
        self._exchange_wait_s = limits.EXCHANGE_S_MIN
        transport.serve(PING_PROTOCOL, answer_pings)

    # For the node

    def events(self) -> trio.MemoryReceiveChannel[LinkEvent]:
        """Links going up and down, as hints: if nobody reads, the oldest are lost. One reader."""
        return self._events

    def peers(self) -> tuple[Link, ...]:
        """Links that are greeted and alive, with the round trip of their last echo."""
        return tuple(
            Link(
                peer=kept.link.peer,
                address=kept.link.address,
                is_outbound=kept.link.is_outbound,
                round_trip_ms=_to_ms(kept.pulse.round_trip_s),
            )
            for kept in self._kept.values()
            if kept.is_up
        )

    def refusals(self) -> tuple[Refusal, ...]:
        """Why peers and addresses failed lately, the newest last."""
        return tuple(self._refusals.values())

    def add_bootstrap(self, address: str) -> None:
        """An address from the operator: tried before all others while alone."""
        if address not in self._bootstrap:
            self._bootstrap.append(address)

    async def avoid(self, peer: AccountId, reason: str) -> None:
        """Drops `peer` and neither dials nor takes it for `AVOID_S`."""
        self._note_refusal(peer.hex(), reason)
        self._avoided_until_s[peer] = trio.current_time() + limits.AVOID_S
        self._avoided_until_s.move_to_end(peer)
        if len(self._avoided_until_s) > limits.ADDRESSES_MAX:
            self._avoided_until_s.popitem(last=False)
        self._log.info("link.avoided", peer=peer.hex()[:8], reason=reason)
        await self._transport.disconnect(peer)

    @contextmanager
    def hold(self, peer: AccountId) -> Generator[None]:
        """Keeps the link to `peer` from being rotated away while it is in use."""
        self._holds[peer] = self._holds.get(peer, 0) + 1
        try:
            yield
        finally:
            self._holds[peer] -= 1
            if not self._holds[peer]:
                del self._holds[peer]

    async def run(self) -> None:
        """Looks after the links until cancelled."""
        self._rotate_at_s = trio.current_time() + self._jitter(limits.ROTATE_S)
        async with trio.open_nursery() as nursery:
            while True:
                self._look(nursery)
                self._dial_more(nursery)
                await self._rotate(nursery)
                self._ask_around(nursery)
                await trio.sleep(limits.LINK_TICK_S)

    # Looking after links

    def _look(self, nursery: trio.Nursery) -> None:
        """Starts attending new links and stops attending lost ones."""
        live = {link.peer: link for link in self._transport.links()}
        for peer, kept in tuple(self._kept.items()):
            link = live.get(peer)
            if link is None or (link.address, link.is_outbound) != (kept.link.address, kept.link.is_outbound):
                self._lose(kept, "the link ended")
        for peer, link in live.items():
            if peer not in self._kept:
                kept = _Kept(
                    link=link,
                    scope=trio.CancelScope(),
                    since_s=trio.current_time(),
                    pulse=Pulse(self._transport, peer),
                )
                self._kept[peer] = kept
                nursery.start_soon(self._attend, kept)

    async def _attend(self, kept: _Kept) -> None:
        """One link from greeting to end."""
        peer = kept.link.peer
        reason = ""
        with kept.scope:
            reason = await self._welcome(kept)
            if not reason:
                kept.is_up = True
                self._tell(LinkUp(peer=peer))
                self._log.info("link.up", peer=peer.hex()[:8], outbound=kept.link.is_outbound)
                reason = await self._watch(kept)
        self._judge(peer, is_good=trio.current_time() - kept.since_s >= limits.STABLE_S)
        with trio.CancelScope(shield=True):
            if not kept.scope.cancelled_caught:
                self._lose(kept, reason)
                await self._transport.disconnect(peer)
            await kept.pulse.close()

    async def _welcome(self, kept: _Kept) -> str:
        """Why the link is not kept, or nothing."""
        peer = kept.link.peer
        if self._is_avoided(peer):
            return "it refused us or was refused a while ago"
        inbound = sum(not other.link.is_outbound for other in self._kept.values())
        if not kept.link.is_outbound and inbound > limits.INBOUND_LINKS_MAX:
            return "too many inbound links"
        try:
            with trio.fail_after(limits.GREET_TIMEOUT_S):
                greeting = await self._greet(peer)
        except trio.TooSlowError:
            greeting = None
        except LinkError as error:
            return str(error)
        except RemoteError as error:
            await self.avoid(peer, str(error))
            return str(error)
        if greeting is None:
            return "it did not greet"
        self._learn(greeting)
        return ""

    def _learn(self, greeting: Greeting) -> None:
        for address in greeting.addresses[: limits.ADDRESSES_PER_GREETING_MAX]:
            if address not in self._transport.addresses:
                self._book.add(address)

    async def _watch(self, kept: _Kept) -> str:
        """Returns once the peer is gone, with the reason."""
        while True:
            await trio.sleep(self._jitter(limits.LIVENESS_INTERVAL_S))
            try:
                if not await kept.pulse.check():
                    return f"no sign of life for {limits.LIVENESS_TIMEOUT_S:g} s"
            except LinkError as error:
                return str(error)

    def _lose(self, kept: _Kept, reason: str) -> None:
        peer = kept.link.peer
        if self._kept.get(peer) is not kept:
            return
        del self._kept[peer]
        kept.scope.cancel()
        if kept.is_up:
            self._tell(LinkDown(peer=peer, reason=reason))
        self._log.info("link.down", peer=peer.hex()[:8], reason=reason)

    # Dialling

    def _dial_more(self, nursery: trio.Nursery) -> None:
        """Starts dials where outbound links are missing."""
        missing = limits.OUTBOUND_LINKS_MIN - self._count_outbound() - self._count_dials()
        if missing > 0:
            for address in self._candidates()[: min(missing, limits.DIALS_MAX)]:
                self._start_dial(nursery, address)

    async def _rotate(self, nursery: trio.Nursery) -> None:
        """By turns dials a random other peer and drops a random idle outbound link, once in `ROTATE_S`."""
        now_s = trio.current_time()
        if now_s < self._rotate_at_s:
            return
        self._rotate_at_s = now_s + self._jitter(limits.ROTATE_S)
        outbound = [kept for kept in self._kept.values() if kept.link.is_outbound]
        if len(outbound) >= limits.OUTBOUND_LINKS_MAX:
            idle = [kept for kept in outbound if kept.link.peer not in self._holds]
            old = [kept for kept in idle if now_s - kept.since_s > limits.ROTATE_S / 2]
            if old:
                kept = self._rng.choice(old)
                self._lose(kept, "room for another link")
                await self._transport.disconnect(kept.link.peer)
        elif len(outbound) == limits.OUTBOUND_LINKS_MIN:
            for address in self._candidates()[:1]:
                self._start_dial(nursery, address)

    def _ask_around(self, nursery: trio.Nursery) -> None:
        """Greets a random peer again where outbound links are missing: it may know others by now."""
        now_s = trio.current_time()
        if self._count_outbound() >= limits.OUTBOUND_LINKS_MIN:
            self._exchange_wait_s = limits.EXCHANGE_S_MIN
            return
        up = [kept for kept in self._kept.values() if kept.is_up]
        if not up or now_s < self._exchange_at_s:
            return
        self._exchange_at_s = now_s + self._jitter(self._exchange_wait_s)
        self._exchange_wait_s = min(2 * self._exchange_wait_s, limits.EXCHANGE_S_MAX)
        nursery.start_soon(self._ask, self._rng.choice(up))

    async def _ask(self, kept: _Kept) -> None:
        with trio.move_on_after(limits.GREET_TIMEOUT_S):
            try:
                greeting = await self._greet(kept.link.peer)
            except RemoteError as error:
                self._note_refusal(kept.link.peer.hex(), str(error))
            else:
                if greeting is not None:
                    self._learn(greeting)

    def _candidates(self) -> list[str]:
        """Addresses that may be dialled now, in the order to try them."""
        now_s = trio.current_time()
        known = [*self._bootstrap, *self._book.list()][: limits.ADDRESSES_MAX]
        ours = set(self._transport.addresses)
        good: list[str] = []
        for address in dict.fromkeys(known):
            attempt = self._attempts.get(address)
            if address in ours:
                continue
            if attempt is None or self._is_due(attempt, now_s):
                good.append(address)
        self._rng.shuffle(good)
        if not self._kept:
            good.sort(key=lambda address: address not in self._bootstrap)
        return good

    def _is_due(self, attempt: _Attempt, now_s: float) -> bool:
        if attempt.is_under_way:
            return False
        if attempt.account is not None and (
            attempt.account in self._kept or self._is_avoided(attempt.account)
        ):
            return False
        wait_s = attempt.wait_s if self._kept else min(attempt.wait_s, limits.REDIAL_ALONE_S_MAX)
        return now_s >= attempt.last_s + wait_s

    def _start_dial(self, nursery: trio.Nursery, address: str) -> None:
        attempt = self._attempts.setdefault(address, _Attempt())
        self._attempts.move_to_end(address)
        if len(self._attempts) > limits.ADDRESSES_MAX:
            self._attempts.popitem(last=False)
        attempt.is_under_way = True
        nursery.start_soon(self._dial, address, attempt)

    async def _dial(self, address: str, attempt: _Attempt) -> None:
        try:
            attempt.account = await self._transport.dial(address)
            self._refusals.pop(address, None)
            self._book.mark(address, did_answer=True)
        except DialError as error:
            attempt.failures += 1
            self._note_refusal(address, str(error))
            self._book.mark(address, did_answer=False)
        finally:
            attempt.is_under_way = False
            self._schedule(attempt)

    def _schedule(self, attempt: _Attempt) -> None:
        attempt.last_s = trio.current_time()
        wait_s = limits.REDIAL_S_MIN * 2 ** min(attempt.failures, 16)
        attempt.wait_s = self._jitter(min(wait_s, limits.REDIAL_S_MAX))

    def _judge(self, peer: AccountId, *, is_good: bool) -> None:
        """An address that answers is no better than a dead one if its links never last."""
        for attempt in self._attempts.values():
            if attempt.account == peer:
                attempt.failures = 0 if is_good else attempt.failures + 1
                self._schedule(attempt)

    # Small things

    def _count_outbound(self) -> int:
        return sum(link.is_outbound for link in self._transport.links())

    def _count_dials(self) -> int:
        return sum(attempt.is_under_way for attempt in self._attempts.values())

    def _is_avoided(self, peer: AccountId) -> bool:
        return trio.current_time() < self._avoided_until_s.get(peer, 0.0)

    def _jitter(self, wait_s: float) -> float:
        """Between half of `wait_s` and all of it."""
        return wait_s * self._rng.uniform(0.5, 1.0)

    def _note_refusal(self, who: str, reason: str) -> None:
        self._refusals[who] = Refusal(who=who, reason=reason, at_s=trio.current_time())
        self._refusals.move_to_end(who)
        if len(self._refusals) > limits.REFUSALS_MAX:
            self._refusals.popitem(last=False)

    def _tell(self, event: LinkEvent) -> None:
        if self._send.statistics().current_buffer_used >= limits.LINK_EVENTS_MAX:
            self._oldest.receive_nowait()
        self._send.send_nowait(event)


def _to_ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)
