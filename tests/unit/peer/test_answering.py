"""Answers between whole nodes: paid once whatever breaks, and not at all where nothing was delivered."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from gossip_ledger.records import Open, Transfer
from peer.api import AskEvent, ErrorCode, FailedOver, Text
from peer.till import NAMESPACE as TABS
from peer.wallet import NAMESPACE as ASKS
from tests.unit.peer.town import (
    FUNDS,
    PRICES,
    Peer,
    Town,
    ask,
    ids,
    inline_threads,  # noqa: F401 - a fixture
    open_town,
    price,
    question,
    refused,
)

pytestmark = pytest.mark.usefixtures("inline_threads")


async def payer_of(town: Town, name: str = "payer") -> Peer:
    payer = await town.join(name)
    await town.advertised(payer, *(peer for peer in town.peers.values() if peer.name.startswith("worker")))
    return payer


async def test_an_answer_is_billed_settled_final_and_known_to_all(autojump_clock: MockClock) -> None:
    async with open_town("worker") as town:
        payer = await payer_of(town)
        answer, events = await ask(payer, question())
        assert (answer["tokens_in"], answer["tokens_out"], answer["finish"]) == (5, 40, "length")
        assert "".join(event.delta for event in events if isinstance(event, Text)) == answer["text"]
        assert answer["fee"] == price(5, 40) == 85
        assert sum(split["amount"] for split in answer["shares"]) == 85
        await town.settle()
        (receipt,) = payer.receipts()
        assert receipt.bill.fee == 85
        for peer in town.peers.values():
            assert [peer.ledger.is_final(key) for key in ids(answer)] == [True]
        worker = town.peers["worker"]
        assert town.peers["witness"].ledger.account(worker.account).entitled == 85 * 6 // 10
        assert not await worker.store.scan(TABS), "what is settled is forgotten"
        await trio.sleep(5)
        assert not await payer.store.scan(ASKS)


async def test_many_answers_at_once_share_an_open_and_add_up(autojump_clock: MockClock) -> None:
    async with open_town("worker") as town:
        payer = await payer_of(town)
        fees: list[int] = []

        async def one(number: int) -> None:
            answer, _ = await ask(payer, question(prompt=f"hello {number}", max_tokens=8 + number))
            fees.append(answer["fee"])

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(one, number)
        await town.settle()
        assert sorted(fees) == [price(7, 8 + number) for number in range(8)]
        opens = payer.ledger.opens_of(payer.account)
        assert sum(state.tab.cumulative for state in opens) == sum(fees)


async def test_a_worker_that_dies_hands_over_and_is_paid_once(
    autojump_clock: MockClock,
) -> None:
    async with open_town("worker-1", "worker-2") as town:
        payer = await payer_of(town)
        killed: list[Peer] = []

        async def kill(event: AskEvent) -> None:
            if isinstance(event, Text) and not killed:
                await trio.sleep(1)
                attempt = next(iter(payer.node.observations.snapshot(()).items()))
                victim = next(p for p in town.peers.values() if p.account == attempt[0])
                victim.crash()
                killed.append(victim)

        answer, events = await ask(payer, question(max_tokens=60), kill)
        (lost,) = [event for event in events if isinstance(event, FailedOver)]
        assert lost.lost == killed[0].account.hex() == answer["workers"][0]
        assert (answer["tokens_out"], answer["failovers"], len(answer["workers"])) == (60, 1, 2)
        await town.start(killed[0])
        await town.until(lambda: len(payer.receipts()) == 2, "the dead worker's receipt")
        await town.settle()
        await trio.sleep(30)
        settled = {receipt.worker: receipt.bill for receipt in payer.receipts()}
        first, second = (
            settled[killed[0].account],
            settled[next(w for w in settled if w != killed[0].account)],
        )
        assert 0 < first.tokens_out <= lost.tokens_delivered
        assert second.tokens_out == 60 - lost.tokens_delivered
        assert second.tokens_in == 5 + lost.tokens_delivered, "what was delivered is the prefix, bought once"
        shown = payer.node.answers.find(answer["id"])
        assert shown["fee"] == first.fee + second.fee
        assert len(shown["receipt"]) == 2


async def test_an_engine_that_dies_is_told_and_paid_for_what_it_said(
    autojump_clock: MockClock,
) -> None:
    async with open_town("worker-1", "worker-2") as town:
        payer = await payer_of(town)

        async def kill(event: AskEvent) -> None:
            engines = [peer.engine for peer in town.peers.values() if peer.engine is not None]
            if isinstance(event, Text) and not any(engine.is_down for engine in engines):
                for engine in engines:
                    if (await engine.stats()).running:
                        engine.die()

        answer, events = await ask(payer, question(), kill)
        assert any(isinstance(event, FailedOver) for event in events)
        assert answer["tokens_out"] == 40
        await town.settle()
        assert len(answer["receipt"]) == 2, "the worker lives, so its receipt comes at once"


async def test_who_hangs_up_stops_the_work_and_pays_for_what_came(autojump_clock: MockClock) -> None:
    async with open_town("worker") as town:
        payer = await payer_of(town)
        assert payer.node.asker is not None
        async with payer.node.asker.ask(question(max_tokens=200)) as stream:
            async for event in stream:
                if isinstance(event, Text):
                    break
        await town.until(lambda: bool(payer.receipts()), "the receipt")
        await town.settle()
        (receipt,) = payer.receipts()
        assert 0 < receipt.bill.tokens_out < 60
        engine = town.peers["worker"].engine
        assert engine is not None
        assert (await engine.stats()).running == 0
        (state,) = payer.ledger.opens_of(payer.account)
        await trio.sleep(5)
        assert payer.node.wallet.committed(state.id) == receipt.bill.fee


async def test_a_payer_that_dies_pays_for_what_came_and_no_more(
    autojump_clock: MockClock,
) -> None:
    async with open_town("worker") as town:
        payer = await payer_of(town)
        assert payer.node.asker is not None
        async with payer.node.asker.ask(question(max_tokens=200)) as stream:
            async for event in stream:
                if isinstance(event, Text):
                    await trio.sleep(1)
                    payer.crash()
                    break
        await town.start(payer)
        (state,) = payer.ledger.opens_of(payer.account)
        assert payer.node.wallet.committed(state.id) == price(5, 200), "it counts at its maximum at first"
        await town.until(lambda: bool(payer.receipts()), "the receipt", seconds=120)
        await town.settle()
        await trio.sleep(5)
        (receipt,) = payer.receipts()
        assert 0 < receipt.bill.fee < price(5, 200)
        assert payer.node.wallet.committed(state.id) == receipt.bill.fee


async def test_a_maximum_fee_ends_an_answer_in_good_order(autojump_clock: MockClock) -> None:
    async with open_town("worker") as town:
        payer = await payer_of(town)
        answer, _ = await ask(payer, question(max_fee=45))
        assert (answer["finish"], answer["tokens_out"], answer["fee"]) == ("fee", 20, 45)


async def test_a_stop_string_ends_it_too_and_is_not_shown(autojump_clock: MockClock) -> None:
    async with open_town("worker") as town:
        payer = await payer_of(town)
        whole, _ = await ask(payer, question())
        stop = whole["text"][10:12]
        answer, _ = await ask(payer, question(stop=(stop,)))
        assert answer["finish"] == "stop"
        assert answer["text"] == whole["text"][: whole["text"].index(stop)]
        await town.settle()
        assert all(receipt.bill.fee <= price(5, 40) for receipt in payer.receipts())


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"model": "nobody's"}, ErrorCode.UNKNOWN_MODEL, "known here: tiny"),
        ({"max_tokens": 600}, ErrorCode.PROMPT_TOO_LONG, "512 fit"),
        ({"prompt": "x" * 500}, ErrorCode.PROMPT_TOO_LONG, "512 fit"),
        ({"prompt": ""}, ErrorCode.BAD_REQUEST, "empty"),
        ({"max_tokens": 0}, ErrorCode.BAD_REQUEST, "max_tokens"),
        ({"worker": "ff" * 32}, ErrorCode.NO_WORKERS, "nobody"),
        ({"max_fee": 6}, ErrorCode.NO_FUNDS, "the first token costs 7"),
        ({"policy": "luckiest"}, ErrorCode.BAD_REQUEST, "policy"),
    ],
)
async def test_what_cannot_be_asked_costs_nothing(
    changes: dict[str, object], code: ErrorCode, words: str, autojump_clock: MockClock
) -> None:
    async with open_town("worker") as town:
        payer = await payer_of(town)
        error = await refused(payer, question(**changes))
        assert error.code is code
        assert words in str(error)
        assert payer.node.wallet.spendable() == FUNDS
        assert not await payer.store.scan(ASKS)


async def test_without_funds_nothing_is_opened(autojump_clock: MockClock) -> None:
    async with open_town("worker") as town:
        poor = await payer_of(town, "poor")
        error = await refused(poor, question())
        assert error.code is ErrorCode.NO_FUNDS
        assert "may cost 85 micro-units and 30 can be spent" in str(error)
        assert not poor.ledger.opens_of(poor.account)
        answer, _ = await ask(poor, question(max_fee=30))
        assert answer["fee"] == 29, "five tokens read and twelve written"


async def test_a_busy_worker_says_when_to_come_back(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr("peer.serving.STREAMS_PER_PAYER_MAX", 0)
    async with open_town("worker") as town:
        payer = await payer_of(town)
        error = await refused(payer, question())
        assert error.code is ErrorCode.BUSY
        assert error.retry_after_ms
        (state,) = payer.ledger.opens_of(payer.account)
        assert payer.node.wallet.committed(state.id) == 0, "a refused ask is free"


async def test_a_quote_costs_nothing_and_binds(autojump_clock: MockClock) -> None:
    async with open_town("worker") as town:
        payer = await payer_of(town)
        assert payer.node.asker is not None
        signed, most = await payer.node.asker.quote(question())
        assert (signed.quote.price_in, signed.quote.price_out) == (PRICES.tokens_in, PRICES.tokens_out)
        assert most == price(5, 40)
        assert not await payer.store.scan(ASKS)
        assert payer.node.wallet.spendable() == FUNDS


async def test_witnesses_away_means_pending_and_then_final(autojump_clock: MockClock) -> None:
    """A worker serves under its exposure meanwhile, and nothing is signed that could come to nothing."""
    async with open_town("worker") as town:
        payer = await payer_of(town)
        await town.settle()
        town.peers["witness"].crash()
        answer, _ = await ask(payer, question())
        assert answer["tokens_out"] == 40
        assert not answer["receipt"]
        assert answer["fee"] == 85
        (state,) = payer.ledger.opens_of(payer.account)
        assert isinstance(state.entry.body, Open)
        assert not state.is_final
        await town.start(town.peers["witness"])
        await town.until(lambda: bool(payer.receipts()), "the receipt")
        await town.settle()
        assert payer.node.answers.find(answer["id"])["receipt"]


async def test_money_that_was_spent_elsewhere_meanwhile_is_not_lent(autojump_clock: MockClock) -> None:
    async with open_town("worker") as town:
        payer = await payer_of(town)
        await payer.node.author.write(Transfer(to=town.peers["witness"].account, amount=FUNDS - 84))
        assert (await refused(payer, question())).code is ErrorCode.NO_FUNDS
