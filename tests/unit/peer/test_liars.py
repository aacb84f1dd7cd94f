"""One end of an ask lies, message by message; the other is a whole node, and loses no more than it risks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from gossip_ledger.errors import RemoteError
from gossip_ledger.records import BILLS, SIGNED_RECORDS, NetworkId, Open, Receipt, RecordId
from gossip_ledger.signing import BILL_KIND, countersign, message
from p2p.adverts import SIGNED_ADVERTS, Advert, sign_advert
from p2p.channel import FrameChannel
from p2p.messages import (
    TO_PAYER,
    TO_WORKER,
    Accepted,
    AskRequest,
    Done,
    Failed,
    Quoted,
    QuoteRequest,
    Refused,
    Settled,
    SignedBill,
    Tokens,
)
from p2p.protocols import codes
from p2p.protocols.billing import compute_bill
from p2p.protocols.limits import ASK_FRAME_BYTES_MAX, CHUNK_TOKENS
from p2p.quotes import Quote, SignedQuote, quote_id, sign_quote
from p2p.transport import Stream
from peer.api import ErrorCode
from peer.attempt import ASK_PROTOCOL
from peer.till import NAMESPACE as TABS
from peer.topics import adverts_topic
from tests.unit.peer.desk import person
from tests.unit.peer.town import (
    BASE,
    FUNDS,
    MODEL,
    START_S,
    Peer,
    Town,
    ask,
    inline_threads,  # noqa: F401 - a fixture
    open_town,
    price,
    question,
    refused,
)

pytestmark = pytest.mark.usefixtures("inline_threads")

# A lying payer


class Payer:
    """The payer's end of one stream, by hand."""

    def __init__(self, peer: Peer, channel: FrameChannel, opened: RecordId) -> None:
        self.peer = peer
        self.network: NetworkId = peer.town.network_id
        self.channel = channel
        self.opened = opened
        self.quote: Quote = None  # pyright: ignore[reportAttributeAccessIssue] - there once it is asked for
        self.request: AskRequest = None  # pyright: ignore[reportAttributeAccessIssue]
        self.output: tuple[int, ...] = ()

    async def say(self, message: Any) -> None:
        await self.channel.send(TO_WORKER.encode(message))

    async def hear(self) -> Any:
        """The next message; None once the worker ended or dropped the stream."""
        try:
            frame = await self.channel.receive(60)
        except RemoteError:
            return None
        return None if frame is None else TO_PAYER.decode(frame)

    async def get_quote(self, tokens_in: int = 5, tokens_out: int = 60) -> Any:
        await self.say(QuoteRequest(model=MODEL, tokens_in_max=tokens_in, tokens_out_max=tokens_out))
        answer = await self.hear()
        if isinstance(answer, Quoted):
            self.quote = answer.quote.quote
        return answer

    async def ask(self, **changes: Any) -> Any:
        fields: dict[str, Any] = {
            "open": self.opened,
            "ask": 1,
            "model": MODEL,
            "quote": quote_id(self.quote, self.network),
            "epoch": 0,
            "prompt": (1, 2, 3, 4, 5),
            "max_tokens": 60,
            "temperature_milli": 0,
            "top_p_milli": 1000,
            "seed": 0,
            "max_fee": price(5, 60),
            "salt": bytes(32),
            "records": (),
        }
        self.request = AskRequest(**(fields | changes))
        await self.say(self.request)
        return await self.hear()

    async def hear_tokens(self, count: int) -> None:
        while len(self.output) < count:
            message = await self.hear()
            assert isinstance(message, Tokens), message
            self.output += message.ids

    async def pay(self, tokens: int, **changes: Any) -> None:
        bill = compute_bill(self.peer.account, self.request, self.quote, self.output[:tokens])
        body = BILLS.encode(replace(bill, **changes))
        signature = self.peer.signer.sign(message(BILL_KIND, self.network, body))
        await self.say(SignedBill(bill=replace(bill, **changes), signature=signature))


async def lying_payer(town: Town, *, limit: int = 10_000) -> Payer:
    """A funded payer with a final open to the worker, on a fresh stream."""
    worker = town.peers["worker"]
    peer = town.peers.get("liar") or await town.join("liar")
    opens = peer.ledger.opens_of(peer.account)
    opened = (
        opens[0].id
        if opens
        else await peer.node.author.write(Open(worker=worker.account, limit=limit, expiry=50))
    )
    await town.until(lambda: worker.ledger.is_final(opened), "the open")
    await town.advertised(peer, worker)
    await town.until(lambda: worker.account in {link.peer for link in peer.transport.links()}, "a link")
    stream = await peer.transport.open(worker.account, ASK_PROTOCOL)
    return Payer(peer, FrameChannel(stream, frame_bytes_max=ASK_FRAME_BYTES_MAX), opened)


async def settled(town: Town) -> list[Receipt]:
    """The receipts that everybody knows in the end."""
    await trio.sleep(30)
    await town.settle()
    worker = town.peers["worker"]
    assert not await worker.store.scan(TABS)
    assert worker.node.till is not None
    assert not worker.node.till._claims, "nothing is left in the book"  # pyright: ignore[reportPrivateUsage]
    return worker.receipts()


async def test_a_payer_that_never_pays_gets_one_chunk(autojump_clock: MockClock) -> None:
    async with open_town("worker") as town:
        payer = await lying_payer(town)
        await payer.get_quote()
        assert isinstance(await payer.ask(), Accepted)
        await payer.hear_tokens(CHUNK_TOKENS)
        assert await payer.hear() is None
        assert len(payer.output) == CHUNK_TOKENS
        assert not await settled(town)


@pytest.mark.parametrize(
    ("tokens", "changes"),
    [
        (16, {}),
        (8, {}),
        (24, {"fee": price(5, 24) - 1}),
        (24, {"fee": 10**6}),
        (24, {"ask": 2}),
        (24, {"open": RecordId(bytes(32))}),
        (24, {"payer": person("payer").account}),
        (24, {"epoch": 1}),
        (24, {"output_commit": bytes(32)}),
    ],
    ids=["again", "falling", "too little", "above the maximum", "ask", "open", "payer", "epoch", "output"],
)
async def test_a_wrong_bill_ends_it_and_the_last_right_one_is_settled(
    tokens: int, changes: dict[str, Any], autojump_clock: MockClock
) -> None:
    async with open_town("worker") as town:
        payer = await lying_payer(town)
        await payer.get_quote()
        await payer.ask()
        await payer.hear_tokens(16)
        await payer.pay(16)
        await payer.hear_tokens(24)
        await payer.pay(tokens, **changes)
        while await payer.hear() is not None:
            pass
        (receipt,) = await settled(town)
        assert receipt.bill.fee == price(5, 16)


async def test_a_forged_signature_under_a_bill_is_worth_nothing(autojump_clock: MockClock) -> None:
    async with open_town("worker") as town:
        payer = await lying_payer(town)
        await payer.get_quote()
        await payer.ask()
        await payer.hear_tokens(16)
        bill = compute_bill(payer.peer.account, payer.request, payer.quote, payer.output)
        forged = payer.peer.signer.sign(b"not this bill")
        await payer.say(SignedBill(bill=bill, signature=forged))
        assert await payer.hear() is None
        assert not await settled(town)


async def test_a_payer_that_vanishes_before_the_end_pays_its_last_bill(autojump_clock: MockClock) -> None:
    async with open_town("worker") as town:
        payer = await lying_payer(town)
        await payer.get_quote()
        await payer.ask()
        await payer.hear_tokens(16)
        await payer.pay(16)
        await payer.hear_tokens(32)
        await payer.channel.reset()
        (receipt,) = await settled(town)
        assert (receipt.bill.tokens_out, receipt.bill.fee) == (16, price(5, 16))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"quote": RecordId(bytes(32))}, codes.BAD_QUOTE),
        ({"open": RecordId(bytes(32))}, codes.BAD_OPEN),
        ({"model": RecordId(b"m" * 32)}, codes.NO_MODEL),
        ({"prompt": (1,) * 6}, codes.TOO_LONG),
        ({"max_fee": 10_001}, codes.UNFUNDED),
        ({"max_fee": 6}, codes.UNFUNDED),
        ({"epoch": 9}, codes.BAD_TERMS),
    ],
)
async def test_an_ask_that_cannot_be_paid_is_refused_and_leaves_no_trace(
    changes: dict[str, Any], code: str, autojump_clock: MockClock
) -> None:
    async with open_town("worker") as town:
        payer = await lying_payer(town)
        await payer.get_quote()
        answer = await payer.ask(**changes)
        assert isinstance(answer, Refused)
        assert answer.code == code
        assert not await settled(town)


async def test_an_ask_number_serves_once_also_after_a_restart(autojump_clock: MockClock) -> None:
    async with open_town("worker") as town:
        for expected in (Accepted, Refused):
            payer = await lying_payer(town)
            await payer.get_quote()
            answer = await payer.ask()
            assert isinstance(answer, expected)
            if isinstance(answer, Refused):
                assert answer.code == codes.USED_ASK
                break
            await payer.hear_tokens(16)
            await payer.pay(16)
            await payer.hear_tokens(17)
            town.peers["worker"].crash()
            await town.start(town.peers["worker"])
        (receipt,) = await settled(town)
        assert receipt.bill.fee == price(5, 16)


async def test_the_open_of_another_payer_is_no_use(autojump_clock: MockClock) -> None:
    async with open_town("worker") as town:
        victim = await town.join("payer")
        opened = await victim.node.author.write(
            Open(worker=town.peers["worker"].account, limit=1000, expiry=50)
        )
        payer = await lying_payer(town)
        await town.until(lambda: town.peers["worker"].ledger.is_final(opened), "the victim's open")
        await payer.get_quote()
        answer = await payer.ask(open=opened)
        assert isinstance(answer, Refused)
        assert answer.code == codes.BAD_OPEN
        assert not await settled(town)


async def test_rubbish_on_the_stream_ends_it_and_nothing_else(autojump_clock: MockClock) -> None:
    async with open_town("worker") as town:
        for frame in (b"\x00", b"\xff" * 1000, TO_PAYER.encode(Accepted(waiting=0))):
            payer = await lying_payer(town)
            await payer.channel.send(frame)
            assert await payer.hear() is None
        honest = await town.join("payer")
        await town.advertised(honest, town.peers["worker"])
        answer, _ = await ask(honest, question())
        assert answer["tokens_out"] == 40


async def test_a_double_spent_open_costs_the_worker_at_most_its_exposure(autojump_clock: MockClock) -> None:
    """The open is shown to the worker alone, and a rival of it to everybody else."""
    async with open_town("worker") as town:
        worker, liar = town.peers["worker"], await town.join("liar")
        await town.settle()
        town.network.partition({worker.account, liar.account}, {town.peers["witness"].account})
        opened = await liar.node.author.write(Open(worker=worker.account, limit=FUNDS, expiry=50))
        await trio.sleep(1)
        stream = await liar.transport.open(worker.account, ASK_PROTOCOL)
        payer = Payer(liar, FrameChannel(stream, frame_bytes_max=ASK_FRAME_BYTES_MAX), opened)
        await payer.get_quote()
        refusal = await payer.ask(max_fee=FUNDS)
        assert isinstance(refusal, Refused)
        assert "above what is risked" in refusal.reason
        stream = await liar.transport.open(worker.account, ASK_PROTOCOL)
        payer = Payer(liar, FrameChannel(stream, frame_bytes_max=ASK_FRAME_BYTES_MAX), opened)
        await payer.get_quote()
        assert isinstance(await payer.ask(), Accepted)
        await payer.hear_tokens(16)
        await payer.pay(16)
        await payer.hear_tokens(32)
        await payer.channel.reset()
        await trio.sleep(60)
        assert not worker.receipts(), "a receipt under an open that may never be final is not signed"
        assert await worker.store.scan(TABS)
        town.network.heal()
        (receipt,) = await settled(town)
        assert receipt.bill.fee == price(5, 16)


# A lying worker

Lie = Callable[["Seller"], Awaitable[None]]


class Seller:
    """The worker's end of one stream, by hand."""

    def __init__(self, peer: Peer, stream: Stream, price_out: int) -> None:
        self.peer = peer
        self.network = peer.town.network_id
        self.payer = stream.remote
        self.channel = FrameChannel(stream, frame_bytes_max=ASK_FRAME_BYTES_MAX)
        self.price_out = price_out
        self.request: AskRequest = None  # pyright: ignore[reportAttributeAccessIssue]
        self.bill: SignedBill = None  # pyright: ignore[reportAttributeAccessIssue]

    async def say(self, message: Any) -> None:
        await self.channel.send(TO_PAYER.encode(message))

    async def hear(self) -> Any:
        frame = await self.channel.receive(60)
        return None if frame is None else TO_WORKER.decode(frame)

    async def quote(self, **changes: Any) -> None:
        request = await self.hear()
        fields: dict[str, Any] = {
            "worker": self.peer.account,
            "payer": self.payer,
            "model": request.model,
            "quantization": "q" * 32,
            "price_in": 1000,
            "price_out": self.price_out,
            "tokens_in_max": request.tokens_in_max,
            "tokens_out_max": request.tokens_out_max,
            "max_fee": 10**6,
            "nonce": 1,
            "expiry_s": START_S + int(trio.current_time()) + 600,
        }
        signed: SignedQuote = sign_quote(Quote(**(fields | changes)), self.peer.signer, self.network)
        await self.say(Quoted(quote=signed))

    async def accept(self, **changes: Any) -> None:
        await self.quote(**changes)
        self.request = await self.hear()
        await self.say(Accepted(waiting=0))

    async def deliver(self, first: int, count: int, token: int = 7) -> None:
        await self.say(Tokens(first=first, ids=(token,) * count))

    async def take_bill(self) -> None:
        self.bill = await self.hear()
        assert isinstance(self.bill, SignedBill)

    def receipt(self, by: Peer | None = None, **changes: Any) -> bytes:
        signer = (self.peer if by is None else by).signer
        bill = replace(self.bill.bill, **changes)
        receipt = Receipt(
            worker=signer.account,
            n=1,
            prev=bill.open,
            cumulative=bill.fee,
            bill=bill,
            evidence=(),
            sketch=b"",
        )
        return SIGNED_RECORDS.encode(countersign(receipt, self.bill.signature, signer, self.network))


async def _dearer(seller: Seller) -> None:
    """Chosen for its advert, it would be paid by its quote."""
    await seller.accept(price_out=seller.price_out + 1)
    await seller.deliver(0, 8)
    await trio.sleep(60)


async def _quote_for_another(seller: Seller) -> None:
    await seller.quote(payer=person("other").account)
    await seller.hear()


async def _more_than_a_chunk(seller: Seller) -> None:
    await seller.accept()
    await seller.deliver(0, 7)
    await seller.deliver(7, 7)
    await seller.deliver(14, 16)
    await trio.sleep(60)


async def _a_gap(seller: Seller) -> None:
    await seller.accept()
    await seller.deliver(0, 8)
    await seller.deliver(9, 1)
    await trio.sleep(60)


async def _wrong_counts(seller: Seller) -> None:
    await seller.accept()
    await seller.deliver(0, 8)
    await seller.take_bill()
    await seller.say(Done(reason="stop", tokens_in=500, tokens_out=8))
    await trio.sleep(60)


async def _cancelled_by_itself(seller: Seller) -> None:
    await seller.accept()
    await seller.deliver(0, 8)
    await seller.take_bill()
    await seller.say(Done(reason="cancelled", tokens_in=5, tokens_out=8))
    await trio.sleep(60)


async def _words_that_harm(seller: Seller) -> None:
    """Control characters, and the longest words that a message takes."""
    await seller.accept()
    await seller.deliver(0, 4, token=0)
    await seller.take_bill()
    await seller.say(Failed(code="x" * 32, reason="r" * 256, tokens_in=5, tokens_out=4))
    await trio.sleep(60)


async def _ids_that_do_not_exist(seller: Seller) -> None:
    """No other worker could go on from them."""
    await seller.accept()
    await seller.deliver(0, 4)
    await seller.deliver(4, 4, token=2**31 - 1)
    await trio.sleep(60)


async def _rubbish(seller: Seller) -> None:
    await seller.accept()
    await seller.channel.send(b"\xff" * 100)
    await trio.sleep(60)


async def _silence(seller: Seller) -> None:
    await seller.quote()
    await trio.sleep(600)


async def selling(town: Town, lie: Lie, *, price_out: int = 1000) -> Peer:
    """A node that answers asks as `lie` does, at a price that nobody beats: one for each token."""
    liar = await town.join("liar")

    async def serve(stream: Stream) -> None:
        await lie(Seller(liar, stream, price_out))

    liar.transport.serve(ASK_PROTOCOL, serve)

    async def advertise() -> None:
        while True:
            now_s = START_S + int(trio.current_time())
            advert = Advert(
                worker=liar.account,
                base=BASE,
                quantization="bf16",
                kernels="",
                max_context=512,
                resident=(MODEL,),
                loadable=(),
                running=0,
                waiting=0,
                slots=64,
                tokens_per_s=10**6,
                price_in=1000,
                price_out=price_out,
                addresses=(liar.address,),
                sequence=now_s * 1000,
                expiry_s=now_s + 60,
                software="liar",
            )
            signed = sign_advert(advert, liar.signer, town.network_id)
            await liar.transport.publish(adverts_topic(town.network_id), SIGNED_ADVERTS.encode(signed))
            await trio.sleep(5)

    town.nursery.start_soon(advertise)
    return liar


@pytest.mark.parametrize(
    ("lie", "owed"),
    [
        (_dearer, 0),
        (_quote_for_another, 0),
        (_rubbish, 0),
        (_more_than_a_chunk, 12),
        (_a_gap, 13),
        (_wrong_counts, 13),
        (_cancelled_by_itself, 13),
        (_words_that_harm, 9),
        (_ids_that_do_not_exist, 9),
    ],
)
async def test_a_lying_worker_is_left_for_an_honest_one_and_owed_what_it_delivered(
    lie: Lie, owed: int, autojump_clock: MockClock
) -> None:
    async with open_town("worker") as town:
        liar = await selling(town, lie)
        payer = await town.join("payer")
        await town.advertised(payer, town.peers["worker"], liar)
        answer, _ = await ask(payer, question(policy="cheapest"))
        assert answer["tokens_out"] == 40
        assert answer["workers"][-1] == town.peers["worker"].account.hex()
        committed = [
            payer.node.wallet.committed(state.id)
            for state in payer.ledger.opens_of(payer.account)
            if isinstance(state.entry.body, Open) and state.entry.body.worker == liar.account
        ]
        assert sum(committed) == owed
        assert payer.node.observations.get(liar.account).failures == 1
        await town.settle()


async def test_a_silent_worker_costs_time_and_nothing_else(autojump_clock: MockClock) -> None:
    async with open_town() as town:
        liar = await selling(town, _silence)
        payer = await town.join("payer")
        await town.advertised(payer, liar)
        error = await refused(payer, question())
        assert error.code is ErrorCode.WORKER_LOST
        (state,) = payer.ledger.opens_of(payer.account)
        assert payer.node.wallet.committed(state.id) == 0


@pytest.mark.parametrize("wrong", ["another fee", "an earlier bill", "another worker", "no receipt"])
async def test_a_forged_receipt_is_not_kept_and_the_answer_stands(
    wrong: str, autojump_clock: MockClock
) -> None:
    async def lie(seller: Seller) -> None:
        await seller.accept()
        await seller.deliver(0, 8)
        await seller.take_bill()
        earlier = seller.bill
        await seller.deliver(8, 8)
        await seller.take_bill()
        await seller.say(Done(reason="stop", tokens_in=5, tokens_out=16))
        match wrong:
            case "another fee":
                data = seller.receipt(fee=10**5)
            case "an earlier bill":
                seller.bill = earlier
                data = seller.receipt()
            case "another worker":
                data = seller.receipt(by=seller.peer.town.peers["witness"])
            case _:
                ledger = seller.peer.ledger
                found = next(ledger.get(key) for key in ledger.ids())
                data = SIGNED_RECORDS.encode(found)
        await seller.say(Settled(receipt=data))
        await trio.sleep(30)

    async with open_town() as town:
        liar = await selling(town, lie)
        payer = await town.join("payer")
        await town.advertised(payer, liar)
        answer, _ = await ask(payer, question(max_tokens=30))
        assert (answer["finish"], answer["tokens_out"], answer["failovers"]) == ("stop", 16, 0)
        assert not answer["receipt"]
        assert payer.node.observations.get(liar.account).failures == 1
        await trio.sleep(5)
        assert not payer.receipts()
        (state,) = payer.ledger.opens_of(payer.account)
        assert payer.node.wallet.committed(state.id) == 5 + 16, "its last bill may still be settled"
