"""The worker's end of an ask: quotes, admission, the engine's tokens, and the receipt.

One handler per stream. The rules of money are in `p2p/protocols/ask_worker.py`; here is what its effects do.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, final

import structlog
import trio

from gossip_ledger.amounts import fee
from gossip_ledger.errors import UpkeepError
from gossip_ledger.records import AccountId, Bill, ModelId, RecordId, Signature
from gossip_ledger.signing import Signer
from gpu_worker.protocol import BARE_BASE, BUSY, TOO_LONG, Failed, Finished, Generate, Generated
from p2p.channel import FrameChannel
from p2p.driver import drive
from p2p.messages import TO_PAYER, TO_WORKER, AskRequest, QuoteRequest, WorkerMessage
from p2p.protocols import ask_worker, codes
from p2p.protocols.ask_worker_state import (
    Abort,
    Accept,
    Admit,
    Effect,
    EngineDone,
    EngineFailed,
    Event,
    Finish,
    PrepareQuote,
    Produced,
    QuoteReady,
    ReceiptReady,
    Refuse,
    Settle,
    StartEngine,
    StopEngine,
    StoreBill,
    WorkerSession,
)
from p2p.protocols.limits import ASK_FRAME_BYTES_MAX, REASON_BYTES_MAX
from p2p.protocols.session import Send
from p2p.quotes import Quote, SignedQuote, quote_id, sign_quote
from p2p.transport import Stream
from peer.attempt import Hold
from peer.capabilities import Clock, Entropy
from peer.engine import Engine
from peer.ledger_service import LedgerService
from peer.rows import TabRow
from peer.stock import Stock
from peer.till import Till
from peer.trade import Trade

QUOTE_TTL_S: Final = 600
QUOTES_MAX: Final = 4096
"""Quotes remembered; the oldest are forgotten first, and asks under them are refused with a reason."""
STREAMS_PER_PAYER_MAX: Final = 16
"""Concurrent asks of one payer: what it can make this worker prefill for nothing."""
EPOCHS_BACK: Final = 2
EPOCHS_AHEAD: Final = 2
SETTLE_WAIT_S: Final = 20.0
"""How long a receipt waits for its open to become final before the payer is let go without it."""
OPEN_WAIT_S: Final = 5.0
"""How long an ask waits for its open to become final, where the exposure does not cover it."""


@final
class AskServer:
    """Serves `/upkeep/ask/1`. All streams share the engine, the books and the quotes."""

    def __init__(
        self,
        *,
        service: LedgerService,
        till: Till,
        stock: Stock,
        engine: Engine,
        signer: Signer,
        clock: Clock,
        entropy: Entropy,
        trade: Trade,
        hold: Hold,
    ) -> None:
        self.service = service
        self.till = till
        self.stock = stock
        self.engine = engine
        self.signer = signer
        self.clock = clock
        self.entropy = entropy
        self.trade = trade
        self._hold = hold
        self.streams: dict[AccountId, int] = {}
        self.asks = 0
        """Questions that were taken on and are not done with: generating, or waiting for their receipt."""
        self._quotes: OrderedDict[RecordId, SignedQuote] = OrderedDict()
        self.log = structlog.get_logger("serving")

    async def serve(self, stream: Stream) -> None:
        """Handles one stream to its end."""
        payer = stream.remote
        channel = FrameChannel(stream, frame_bytes_max=ASK_FRAME_BYTES_MAX)
        self.streams[payer] = self.streams.get(payer, 0) + 1
        try:
            with self._hold(payer):
                await _Conversation(self, channel, payer).run()
        finally:
            self.streams[payer] -= 1
            if not self.streams[payer]:
                del self.streams[payer]

    def quote(self, payer: AccountId, request: QuoteRequest) -> SignedQuote | Refuse:
        """A binding price for this payer, or why there is none."""
        if not self.trade.is_open:
            return self.closed()
        if request.model not in self.stock.resident:
            return Refuse(code=codes.NO_MODEL, reason="this worker does not serve that model")
        info = self.engine.info
        if request.tokens_in_max + request.tokens_out_max > info.max_context:
            return Refuse(
                code=codes.TOO_LONG,
                reason=f"{request.tokens_in_max} + {request.tokens_out_max} tokens exceed {info.max_context}",
            )
        prices = self.trade.prices
        terms = Quote(
            worker=self.signer.account,
            payer=payer,
            model=request.model,
            quantization=info.quantization,
            price_in=prices.tokens_in,
            price_out=prices.tokens_out,
            tokens_in_max=request.tokens_in_max,
            tokens_out_max=request.tokens_out_max,
            max_fee=fee(request.tokens_in_max, request.tokens_out_max, prices.tokens_in, prices.tokens_out),
            nonce=self.entropy.randbits(63),
            expiry_s=self.clock.now_s() + QUOTE_TTL_S,
        )
        signed = sign_quote(terms, self.signer, self.service.network)
        self._quotes[quote_id(terms, self.service.network)] = signed
        while len(self._quotes) > QUOTES_MAX:
            self._quotes.popitem(last=False)
        return signed

    def closed(self) -> Refuse:
        """What a newcomer is told while nothing is taken on."""
        return Refuse(code=codes.DRAINING, reason=f"this worker is {self.trade.standing}; ask another")

    def quoted(self, ident: RecordId, latest: SignedQuote | None) -> SignedQuote | None:
        """A quote of ours that still holds. `latest` is the last one given on the same stream."""
        signed = self._quotes.get(ident)
        if latest is not None and quote_id(latest.quote, self.service.network) == ident:
            signed = latest
        return signed if signed is not None and signed.quote.expiry_s > self.clock.now_s() else None

    def epochs(self) -> tuple[int, int]:
        now = self.service.epoch(self.clock.now_s())
        return max(0, now - EPOCHS_BACK), now + EPOCHS_AHEAD


@final
class _Conversation:
    """One stream: the performer of the session's effects."""

    def __init__(self, server: AskServer, channel: FrameChannel, payer: AccountId) -> None:
        self._server = server
        self._channel = channel
        self._payer = payer
        self._request: AskRequest | None = None
        self._row: TabRow | None = None
        self._quote: SignedQuote | None = None
        """The last quote given on this stream: an ask that follows at once finds it whoever else asks."""
        self._engine_scope = trio.CancelScope()
        self._is_aborted = False

    async def run(self) -> None:
        session = WorkerSession.start(
            network=self._server.service.network,
            worker=self._server.signer.account,
            payer=self._payer,
            now_ms=int(trio.current_time() * 1000),
        )
        try:
            await drive(self._channel, session, ask_worker.step, decode=TO_WORKER.decode, attach=self._attach)
        finally:
            if self._request is not None:
                self._server.asks -= 1
                key = self._request.open, self._request.ask
                if self._row is None:
                    self._server.till.dropped(key)
                else:
                    self._server.till.left(key)
            if self._is_aborted:
                await self._channel.reset()
        await self._channel.close()

    def _attach(self, nursery: trio.Nursery, events: trio.MemorySendChannel[Any]) -> Callable[[Any], Any]:
        async def perform(effect: Effect) -> Event | None:
            match effect:
                case StartEngine(request=request, tokens_max=tokens_max):
                    nursery.start_soon(self._generate, request, tokens_max, events)
                case PrepareQuote(request=request):
                    quoted = self._server.quote(self._payer, request)
                    if isinstance(quoted, Refuse):
                        return quoted
                    self._quote = quoted
                    return QuoteReady(quote=quoted)
                case Admit(request=request):
                    return await self._admit(request)
                case Settle():
                    return await self._settle()
                case _:
                    await self._perform(effect)
            return None

        return perform

    async def _perform(self, effect: Send[WorkerMessage] | StopEngine | StoreBill | Finish | Abort) -> None:
        match effect:
            case Send(message=message):
                await self._channel.send(TO_PAYER.encode(message))
            case StopEngine():
                self._engine_scope.cancel()
            case StoreBill(bill=bill, signature=signature, output=output):
                await self._keep(bill, signature, output)
            case Abort(reason=reason, is_breach=is_breach):
                self._is_aborted = True
                payer = self._payer.hex()[:8]
                self._server.log.info("ask_aborted", reason=reason, breach=is_breach, payer=payer)
            case Finish():
                pass

    async def _admit(self, request: AskRequest) -> Accept | Refuse:
        server = self._server
        if not server.trade.is_open:
            return server.closed()
        quote = server.quoted(request.quote, self._quote)
        if quote is None:
            return Refuse(
                code=codes.BAD_QUOTE, reason="that quote is unknown here or has expired; ask for another"
            )
        if request.model not in server.stock.resident:
            return Refuse(code=codes.NO_MODEL, reason="this worker does not serve that model")
        if server.streams[self._payer] > STREAMS_PER_PAYER_MAX:
            return Refuse(
                code=codes.BUSY,
                reason=f"at most {STREAMS_PER_PAYER_MAX} asks of one payer run here",
                retry_after_ms=1000,
            )
        await server.service.ingest(request.records, self._payer)
        refusal = self._claim(request)
        if refusal is not None and refusal.retry_after_ms:
            with trio.move_on_after(OPEN_WAIT_S):
                await server.service.wait_final(request.open)
            refusal = self._claim(request)
        if refusal is not None:
            return refusal
        self._request = request
        server.asks += 1
        return Accept(quote=quote.quote, epochs=server.epochs(), waiting=0)

    def _claim(self, request: AskRequest) -> Refuse | None:
        """Asks the till; time has passed, so the worker may have closed meanwhile."""
        server = self._server
        if not server.trade.is_open:
            return server.closed()
        return server.till.admit(
            payer=self._payer, opened=request.open, ask=request.ask, max_fee=request.max_fee
        )

    async def _generate(
        self, request: AskRequest, tokens_max: int, events: trio.MemorySendChannel[Any]
    ) -> None:
        ending: Any = EngineFailed(code=codes.ENGINE, reason="the engine said nothing")
        with self._engine_scope:
            try:
                job = await self._job(request, tokens_max)
                async with self._server.engine.generate(job) as stream:
                    async for event in stream:
                        match event:
                            case Generated(ids=ids):
                                await events.send(Produced(ids=ids))
                            case Finished(reason=reason):
                                ending = EngineDone(reason=reason)
                            case Failed(code=code, reason=reason):
                                ending = EngineFailed(
                                    code=_ENGINE_CODES.get(code, codes.ENGINE), reason=_short(reason)
                                )
            except UpkeepError as error:
                ending = EngineFailed(code=codes.ENGINE, reason=_short(str(error)))
            await events.send(ending)

    async def _job(self, request: AskRequest, tokens_max: int) -> Generate:
        stock = self._server.stock
        manifest = stock.resident[ModelId(request.model)]
        tokenizer = await stock.tokenizer(manifest)
        return Generate(
            request=0,
            model=BARE_BASE if manifest.kind == "base" else ModelId(request.model),
            prompt=request.prompt,
            max_tokens=tokens_max,
            temperature_milli=request.temperature_milli,
            top_p_milli=request.top_p_milli,
            seed=request.seed,
            stop_ids=tokenizer.stop_ids,
        )

    async def _keep(self, bill: Bill, signature: Signature, output: tuple[int, ...]) -> None:
        assert self._request is not None
        self._row = TabRow(bill=bill, signature=signature, prompt=self._request.prompt, output=output)
        await self._server.till.keep(self._row)

    async def _settle(self) -> ReceiptReady:
        assert self._row is not None, "a bill was stored before it is settled"
        with trio.move_on_after(SETTLE_WAIT_S):
            await self._server.service.wait_final(self._row.bill.open)
        return ReceiptReady(signed=await self._server.till.settle(self._row))


_ENGINE_CODES: Final = {BUSY: codes.BUSY, TOO_LONG: codes.TOO_LONG}


def _short(reason: str) -> str:
    """A reason in words that fits a message, whoever wrote it."""
    printable = "".join(c if c.isprintable() else " " for c in reason)
    return printable.encode("utf-8", "replace")[:REASON_BYTES_MAX].decode("utf-8", "ignore")
