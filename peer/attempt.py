"""One stream to one worker, for one answer or what is left of it: quote, open, ask, bills, receipt.

The rules of money are in `p2p/protocols/ask_payer.py`; here is what its effects do. An ask is reserved in the
wallet before it is sent and closed with its last bill, whatever happens in between.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final, final

import structlog
import trio

from gossip_ledger.errors import LocalError, RemoteError
from gossip_ledger.records import SIGNED_RECORDS, AccountId, Bill, Manifest, ModelId, Signed
from gossip_ledger.signing import Signer, sign_bill
from gpu_worker.tokenizer import Tokenizer
from p2p.adverts import Advert
from p2p.channel import FrameChannel
from p2p.driver import drive
from p2p.messages import TO_PAYER, TO_WORKER, AskRequest, QuoteRequest, SignedBill
from p2p.protocols import ask_payer
from p2p.protocols.ask_payer_state import (
    Abort,
    Ask,
    Deliver,
    Effect,
    Ended,
    Event,
    Finish,
    PayerSession,
    QuoteArrived,
    RequestQuote,
    SignBill,
    Stop,
)
from p2p.protocols.limits import ASK_FRAME_BYTES_MAX, ASK_RECORDS_MAX, SALT_BYTES
from p2p.protocols.session import Send
from p2p.quotes import QuoteError, SignedQuote, check_quote, quoted_fee
from p2p.transport import LinkError, Transport
from peer.answer_text import AnswerText
from peer.api import AskEvent, AskOptions, ErrorCode, RequestError, Routed, Text
from peer.capabilities import Clock, Entropy
from peer.ledger_service import LedgerService
from peer.observations import Observations
from peer.reaching import reach
from peer.rows import AskRef, AskRow
from peer.wallet import Wallet

ASK_PROTOCOL: Final = "/upkeep/ask/1"
Hold = Callable[[AccountId], AbstractContextManager[None]]

OPEN_STREAM_S: Final = 5.0
COMPLETE: Final = ("stop", "length", "cancelled")
"""Ways in which a worker ends an answer; after any other it may go on elsewhere."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Payer:
    """What every attempt of this node shares."""

    service: LedgerService
    wallet: Wallet
    observations: Observations
    transport: Transport
    signer: Signer
    clock: Clock
    entropy: Entropy
    hold: Hold
    """Keeps the link to a worker while an answer streams over it."""


@final
@dataclass(slots=True, kw_only=True)
class Job:
    """One answer on its way, over all its attempts."""

    id: bytes
    options: AskOptions
    model: ModelId
    manifest: Manifest
    tokenizer: Tokenizer
    prompt: tuple[int, ...]
    text: AnswerText
    events: trio.MemorySendChannel[AskEvent | RequestError]
    seed: int
    began_s: float
    stop: trio.Event = field(default_factory=trio.Event)
    """Set once nobody wants more of it."""
    output: list[int] = field(default_factory=list)
    asks: list[AskRef] = field(default_factory=list)
    workers: list[AccountId] = field(default_factory=list)
    quantization: str = ""
    first_token_s: float | None = None
    tokens_in: int = 0
    failovers: int = 0

    @property
    def tokens_left(self) -> int:
        return self.options.max_tokens - len(self.output)

    @property
    def budget_left(self) -> int | None:
        """What all further workers may cost, micro-units; None: no limit but the quotes'."""
        if self.options.max_fee is None:
            return None
        return self.options.max_fee - sum(ask.fee for ask in self.asks)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one attempt ended: with the session's `finish`, or lost."""

    finish: Finish | None
    lost: str = ""
    is_breach: bool = False


@final
class Attempt:
    """Asks one worker."""

    def __init__(self, payer: Payer, job: Job, advert: Advert, *, is_quote_only: bool = False) -> None:
        self._payer = payer
        self._job = job
        self._advert = advert
        self._is_quote_only = is_quote_only
        self._prompt = job.prompt + tuple(job.output)
        self._row: AskRow | None = None
        self._ended = Outcome(finish=None, lost="the worker could not be reached")
        self._error: RequestError | None = None
        self._first_s: float | None = None
        self._delivered = 0
        self._complete = ""
        """How the answer ended, once its worker said that it is whole."""
        self._log = structlog.get_logger("attempt")
        self.quote: SignedQuote | None = None

    async def run(self) -> Outcome:
        """Asks this worker. Raises `RequestError` where no other worker could help."""
        try:
            self._channel = await self._open()
        except RemoteError as error:
            return Outcome(finish=None, lost=str(error))
        session = PayerSession.start(
            network=self._payer.service.network,
            payer=self._payer.signer.account,
            worker=self._advert.worker,
            vocabulary=self._job.tokenizer.vocabulary_size,
        )
        request = QuoteRequest(
            model=self._job.model, tokens_in_max=len(self._prompt), tokens_out_max=self._job.tokens_left
        )
        first = RequestQuote(request=request)
        session = await drive(
            self._channel, session, ask_payer.step, decode=TO_PAYER.decode, attach=self._attach, first=first
        )
        await self._conclude(session.bill)
        if self._error is not None:
            raise self._error
        return self._ended

    async def _open(self) -> FrameChannel:
        worker, transport = self._advert.worker, self._payer.transport
        await reach(transport, worker, self._advert.addresses)
        with trio.move_on_after(OPEN_STREAM_S):
            stream = await transport.open(worker, ASK_PROTOCOL)
            return FrameChannel(stream, frame_bytes_max=ASK_FRAME_BYTES_MAX)
        raise LinkError("the worker did not answer in time")

    def _attach(self, nursery: trio.Nursery, events: trio.MemorySendChannel[Any]) -> Any:
        async def watch_stop() -> None:
            await self._job.stop.wait()
            await events.send(Stop())

        if not self._is_quote_only:
            nursery.start_soon(watch_stop)
        return self._perform

    async def _perform(self, effect: Effect) -> Event | None:
        match effect:
            case Send(message=message):
                await self._send(message)
            case QuoteArrived(quote=quote):
                return await self._take_quote(quote)
            case SignBill(bill=bill):
                signature = sign_bill(bill, self._payer.signer, self._payer.service.network)
                await self._send(SignedBill(bill=bill, signature=signature))
            case Deliver(ids=ids):
                return await self._deliver(ids)
            case Ended(reason=reason):
                self._complete = reason if reason in COMPLETE else ""
                await self._end_text(reason)
            case Finish():
                self._ended = Outcome(finish=effect)
            case Abort(reason=reason, is_breach=is_breach, bill=bill):
                # An answer that is complete stands, whatever its worker does instead of settling it.
                stands = Finish(reason=self._complete, detail=reason, bill=bill) if self._complete else None
                self._ended = Outcome(finish=stands, lost=reason, is_breach=is_breach)
        return None

    async def _send(self, message: Any) -> None:
        await self._channel.send(TO_WORKER.encode(message))

    async def _take_quote(self, quote: SignedQuote) -> Ask | Stop:
        """Checks the quote, reserves the most that the ask may cost, and asks."""
        check_quote(
            quote,
            network=self._payer.service.network,
            worker=self._advert.worker,
            payer=self._payer.signer.account,
            model=self._job.model,
            now_s=self._payer.clock.now_s(),
        )
        self._check_price(quote)
        self.quote = quote
        if self._is_quote_only or self._job.stop.is_set():
            return Stop()
        try:
            request = await self._reserve(quote)
        except LocalError as error:
            self._error = RequestError(ErrorCode.NO_FUNDS, str(error))
            return Stop()
        await self._job.events.send(
            Routed(
                worker=self._advert.worker.hex(),
                quantization=quote.quote.quantization,
                price_in=quote.quote.price_in,
                price_out=quote.quote.price_out,
                max_fee=request.max_fee,
            )
        )
        return Ask(request=request, quote=quote)

    def _check_price(self, signed: SignedQuote) -> None:
        """A worker is chosen by its advert, so it is held to it. Raises `QuoteError`."""
        quote, advert = signed.quote, self._advert
        if quote.price_in > advert.price_in or quote.price_out > advert.price_out:
            raise QuoteError("the quote is dearer than the advert")

    async def _reserve(self, signed: SignedQuote) -> AskRequest:
        job, quote, payer = self._job, signed.quote, self._payer
        most = quoted_fee(quote, len(self._prompt), job.tokens_left)
        least = quoted_fee(quote, len(self._prompt), 1)
        budget = job.budget_left
        if budget is not None:
            most = min(most, budget)
        if most < least:
            raise LocalError(f"max_fee leaves {most} micro-units and the first token costs {least}; raise it")
        self._row = await payer.wallet.reserve(
            worker=self._advert.worker, model=job.model, answer=job.id, max_fee=most
        )
        ledger = payer.service.ledger
        pending = ledger.pending(payer.signer.account)[-ASK_RECORDS_MAX:]
        return AskRequest(
            open=self._row.open,
            ask=self._row.ask,
            model=job.model,
            quote=ask_payer.quote_id(quote, payer.service.network),
            epoch=payer.service.epoch(payer.clock.now_s()),
            prompt=self._prompt,
            max_tokens=job.tokens_left,
            temperature_milli=job.options.temperature_milli,
            top_p_milli=job.options.top_p_milli,
            seed=job.seed,
            max_fee=most,
            salt=payer.entropy.token(SALT_BYTES),
            records=tuple(SIGNED_RECORDS.encode(record) for record in pending),
        )

    async def _deliver(self, ids: tuple[int, ...]) -> Stop | None:
        job, now = self._job, self._payer.clock.monotonic()
        if self._first_s is None:
            self._first_s = now
            job.first_token_s = job.first_token_s or now
            job.tokens_in += len(self._prompt)
            job.workers.append(self._advert.worker)
            if self.quote is not None:
                job.quantization = self.quote.quote.quantization
        self._delivered += len(ids)
        job.output.extend(ids)
        delta = job.text.feed(ids)
        if delta:
            await job.events.send(Text(delta=delta))
        if job.text.is_stopped and not job.stop.is_set():
            job.stop.set()
        return None

    async def _conclude(self, bill: Bill | None) -> None:
        """Closes the ask in the book, keeps the receipt, and ends the stream."""
        finish = self._ended.finish
        if self._row is not None:
            fee = bill.fee if bill is not None else 0
            await self._payer.wallet.close(self._row.key, fee)
            if bill is not None:
                self._job.asks.append(AskRef(open=self._row.open, ask=self._row.ask, fee=fee))
        if finish is not None and finish.reason in COMPLETE:
            await self._end_text(finish.reason)
            if self._ended.is_breach:
                self._payer.observations.failed(self._advert.worker)
            else:
                self._observe()
        if finish is not None and finish.receipt is not None:
            await self._keep_receipt(finish.receipt)
        if finish is None:
            await self._channel.reset()
        else:
            await self._channel.close()

    async def _end_text(self, reason: str) -> None:
        """Shows what was held back, once no more will come from anybody."""
        if reason in COMPLETE:
            delta = self._job.text.finish()
            if delta:
                await self._job.events.send(Text(delta=delta))

    def _observe(self) -> None:
        if self._first_s is not None and self._delivered > 1:
            spent_s = max(0.001, self._payer.clock.monotonic() - self._first_s)
            self._payer.observations.served(self._advert.worker, int((self._delivered - 1) / spent_s))

    async def _keep_receipt(self, receipt: Signed) -> None:
        await self._payer.service.ingest([SIGNED_RECORDS.encode(receipt)], self._advert.worker)
