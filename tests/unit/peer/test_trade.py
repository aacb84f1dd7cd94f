"""What an operator decides holds at once: for quotes, admission and adverts."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from gossip_ledger.errors import LocalError
from gossip_ledger.records import ModelId, NetworkId
from p2p.adverts import AdvertBook
from p2p.messages import QuoteRequest
from p2p.protocols import codes
from p2p.protocols.ask_worker_state import Refuse
from p2p.quotes import SignedQuote, quote_id
from peer.advertising import INTERVAL_S, LOOK_S, Advertiser
from peer.capabilities import SeededEntropy
from peer.serving import AskServer, _Conversation  # pyright: ignore[reportPrivateUsage]
from peer.trade import Prices, Standing, Trade
from tests.support.fake_engine import open_fake_engine
from tests.unit.peer.desk import OTHER, PAYER, WORKER

NETWORK = NetworkId(b"n" * 32)
MODEL = ModelId(b"m" * 32)
PRICES = Prices(tokens_in=1000, tokens_out=4000)
CHEAP = Prices(tokens_in=10, tokens_out=40)
REQUEST = QuoteRequest(model=MODEL, tokens_in_max=100, tokens_out_max=50)


class Clock:
    """Wall time that follows the virtual one."""

    def monotonic(self) -> float:
        return trio.current_time()

    def now_s(self) -> int:
        return 1_700_000_000 + int(trio.current_time() * 10)


def server(trade: Trade) -> AskServer:
    parts: dict[str, Any] = {
        "service": SimpleNamespace(network=NETWORK),
        "till": None,
        "stock": SimpleNamespace(resident={MODEL: None}),
        "engine": SimpleNamespace(info=SimpleNamespace(max_context=512, quantization="bf16")),
    }
    return AskServer(
        **parts,
        signer=WORKER,
        clock=Clock(),
        entropy=SeededEntropy(random.Random(1)),
        trade=trade,
        hold=lambda _: trio.CancelScope(),  # type: ignore[arg-type]
    )


async def test_prices_hold_for_the_next_quote() -> None:
    trade = Trade(PRICES)
    serving = server(trade)
    before = serving.quote(PAYER.account, REQUEST)
    await trade.charge(CHEAP)
    after = serving.quote(OTHER.account, REQUEST)
    assert isinstance(before, SignedQuote)
    assert isinstance(after, SignedQuote)
    assert (before.quote.price_in, before.quote.price_out, before.quote.max_fee) == (1000, 4000, 300)
    assert (after.quote.price_in, after.quote.price_out, after.quote.max_fee) == (10, 40, 3)


async def test_prices_that_cannot_be_kept_do_not_hold() -> None:
    kept: list[Prices] = []

    async def keep(prices: Prices) -> None:
        await trio.lowlevel.checkpoint()
        if kept:
            raise LocalError("the disk is full")
        kept.append(prices)

    trade = Trade(PRICES, keep)
    await trade.charge(CHEAP)
    assert (trade.prices, kept) == (CHEAP, [CHEAP])
    with pytest.raises(LocalError, match="full"):
        await trade.charge(PRICES)
    assert trade.prices == CHEAP


async def test_nothing_is_quoted_while_closed() -> None:
    trade = Trade(PRICES)
    serving = server(trade)
    for standing in (Standing.PAUSED, Standing.DRAINING):
        trade.standing = standing
        refusal = serving.quote(PAYER.account, REQUEST)
        assert isinstance(refusal, Refuse)
        assert refusal.code == codes.DRAINING
        assert standing in refusal.reason
    trade.standing = Standing.OPEN
    assert isinstance(serving.quote(PAYER.account, REQUEST), SignedQuote)


@pytest.mark.parametrize("is_closed_meanwhile", [False, True])
async def test_nothing_is_taken_on_while_closed_even_under_a_quote(
    is_closed_meanwhile: bool,
) -> None:
    """Also where the worker closed while the ask waited for its open."""
    trade = Trade(PRICES)
    serving = server(trade)
    quoted = serving.quote(PAYER.account, REQUEST)
    assert isinstance(quoted, SignedQuote)
    tried: list[dict[str, Any]] = []
    ingested: list[Any] = []

    def admit(**claim: Any) -> Refuse:
        tried.append(claim)
        return Refuse(code=codes.BAD_OPEN, reason="not final yet", retry_after_ms=1000)

    async def ingest(*records: Any) -> None:
        await trio.lowlevel.checkpoint()
        ingested.append(records)

    async def close(*_: Any) -> None:
        await trio.lowlevel.checkpoint()
        trade.standing = Standing.DRAINING

    parts: Any = serving
    parts.till = SimpleNamespace(admit=admit)
    parts.service = SimpleNamespace(network=NETWORK, wait_final=close, ingest=ingest)
    serving.streams[PAYER.account] = 1
    if not is_closed_meanwhile:
        trade.standing = Standing.PAUSED
    request: Any = SimpleNamespace(
        quote=quote_id(quoted.quote, NETWORK), model=MODEL, records=(), open=b"o" * 32, ask=1, max_fee=1
    )
    conversation: Any = _Conversation(serving, None, PAYER.account)  # type: ignore[arg-type]
    refusal = await conversation._admit(request)
    assert isinstance(refusal, Refuse)
    assert refusal.code == codes.DRAINING
    assert len(tried) == len(ingested) == int(is_closed_meanwhile)
    assert serving.asks == 0


def test_exposure_follows_the_prices() -> None:
    assert PRICES.exposure == 8 * (512 * 5000 // 1000)
    assert Prices(tokens_in=0, tokens_out=0).exposure == 8


async def test_adverts_follow_at_once_and_end_with_one_that_offers_nothing(autojump_clock: Any) -> None:
    del autojump_clock
    trade, clock = Trade(PRICES), Clock()
    book = AdvertBook(NETWORK)
    stock: Any = SimpleNamespace(resident={MODEL: None})
    published: list[bytes] = []

    async def publish(topic: str, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        published.append(data)

    transport: Any = SimpleNamespace(addresses=(), publish=publish)
    async with open_fake_engine() as engine, trio.open_nursery() as nursery:
        advertiser = Advertiser(
            engine=engine,
            stock=stock,
            signer=WORKER,
            transport=transport,
            clock=clock,
            network=NETWORK,
            trade=trade,
            entropy=SeededEntropy(random.Random(1)),
            book=book,
        )
        nursery.start_soon(advertiser.run)
        await trio.sleep(LOOK_S / 2)
        (advert,) = book.serving(MODEL, clock.now_s())
        assert (advert.price_in, advert.price_out, len(published)) == (1000, 4000, 1)

        await trade.charge(CHEAP)
        await trio.sleep(LOOK_S)
        (advert,) = book.serving(MODEL, clock.now_s())
        assert (advert.price_in, advert.price_out, len(published)) == (10, 40, 2)

        trade.standing = Standing.PAUSED
        await trio.sleep(LOOK_S)
        assert book.serving(MODEL, clock.now_s()) == ()
        assert len(published) == 3
        await trio.sleep(5 * INTERVAL_S)
        assert len(published) == 3, "a closed worker is silent"

        trade.standing = Standing.OPEN
        await trio.sleep(LOOK_S)
        assert [advert.price_in for advert in book.serving(MODEL, clock.now_s())] == [10]
        nursery.cancel_scope.cancel()
