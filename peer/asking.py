"""The payer's end: one answer, from as many workers as it takes, each delivered token paid once.

An answer is a job of its own, so that a reader who hangs up still lets the worker's last bill be settled. The
job tries the workers that `routing` ranks; one that is lost hands over to the next with the text so far as
prefix. One stream to one worker is an `Attempt`.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final, final

import structlog
import trio

from gossip_ledger.errors import UpkeepError
from gossip_ledger.records import AccountId, ModelId
from gpu_worker.tokenizer import Message as ChatTurn
from gpu_worker.tokenizer import Tokenizer, TokenizerError
from p2p.adverts import Advert, AdvertBook
from p2p.protocols import codes
from p2p.protocols.ask_payer_state import Finish
from p2p.protocols.limits import OUTPUT_TOKENS_MAX, PROMPT_TOKENS_MAX
from p2p.quotes import SignedQuote, quoted_fee
from peer.answer_text import AnswerText
from peer.answers import AnswerBook
from peer.api import (
    AskEvent,
    AskOptions,
    ErrorCode,
    FailedOver,
    Finished,
    RequestError,
)
from peer.attempt import COMPLETE, Attempt, Job, Payer
from peer.library import Library
from peer.models import resolve
from peer.routing import POLICIES, Need, choose
from peer.rows import ANSWER_BYTES_MAX, AnswerRow

ATTEMPTS_MAX: Final = 4
"""Workers tried for one answer."""
ANSWER_ID_BYTES: Final = 16
EVENTS_MAX: Final = OUTPUT_TOKENS_MAX + 64
"""Events of one answer that may wait for a slow reader: all of them."""


@final
class Asker:
    """Asks for answers and pays for them. All jobs share the wallet and what was observed of workers."""

    def __init__(
        self,
        *,
        payer: Payer,
        library: Library,
        answers: AnswerBook,
        adverts: AdvertBook,
        nursery: trio.Nursery,
    ) -> None:
        self._payer = payer
        self._library = library
        self._answers = answers
        self._adverts = adverts
        self._nursery = nursery
        self._rng: random.Random = payer.entropy.generator()
        self._log = structlog.get_logger("asking")

    @asynccontextmanager
    async def ask(self, options: AskOptions) -> AsyncGenerator[AsyncIterator[AskEvent]]:
        """Streams one answer. Leaving early stops the work; what was delivered is still settled."""
        send, receive = trio.open_memory_channel[AskEvent | RequestError](EVENTS_MAX)
        job = await self._prepare(options, send)
        self._nursery.start_soon(self._run, job)
        try:
            async with aclosing(_events(receive)) as events:
                yield events
        finally:
            job.stop.set()

    async def _prepare(self, options: AskOptions, events: trio.MemorySendChannel[Any]) -> Job:
        _check(options)
        model, manifest = resolve(self._payer.service.ledger, options.model)
        tokenizer = await self._library.tokenizer(manifest.base)
        return Job(
            id=self._payer.entropy.token(ANSWER_ID_BYTES),
            options=options,
            model=model,
            manifest=manifest,
            tokenizer=tokenizer,
            prompt=encode_prompt(tokenizer, options),
            text=AnswerText(tokenizer.decoder(), options.stop),
            events=events,
            seed=self._payer.entropy.randbits(62) if options.seed is None else options.seed,
            began_s=self._payer.clock.monotonic(),
        )

    def candidates(self, model: ModelId, prompt: int, max_tokens: int, options: AskOptions) -> list[Advert]:
        """The workers to try, best first. Raises `RequestError` if there is none, with the reason."""
        need = Need(model=model, prompt_tokens=prompt, max_tokens=max_tokens, policy=options.policy)
        serving = list(self._adverts.serving(model, self._payer.clock.now_s()))
        if options.worker is not None:
            serving = [advert for advert in serving if advert.worker.hex().startswith(options.worker.lower())]
        if not serving:
            raise RequestError(
                ErrorCode.NO_WORKERS,
                f"nobody reachable serves {options.model} now; see `upkeep workers`",
            )
        context = max(advert.max_context for advert in serving)
        if prompt + max_tokens > context:
            raise RequestError(
                ErrorCode.PROMPT_TOO_LONG,
                f"prompt and answer take {prompt} + {max_tokens} tokens and {context} fit; shorten one",
            )
        now = self._payer.observations.now_ms()
        ranked = choose(
            serving, need, self._payer.observations.snapshot(self._payer.transport.links()), now, self._rng
        )
        if not ranked:
            wait = self._payer.observations.soonest_ms([advert.worker for advert in serving])
            raise RequestError(
                ErrorCode.BUSY, "every worker of that model is busy; try again", retry_after_ms=wait
            )
        return list(ranked)

    async def _run(self, job: Job) -> None:
        async with job.events:
            try:
                finish = await self._answer(job)
                row = self._row(job, finish)
                await self._answers.keep(row)
                await job.events.send(Finished(answer=self._answers.view(row)))
            except RequestError as error:
                await self._keep_partial(job)
                await job.events.send(error)
            except UpkeepError as error:
                await self._keep_partial(job)
                await job.events.send(RequestError(ErrorCode.NOT_READY, str(error)))

    async def _keep_partial(self, job: Job) -> None:
        """Best effort: what was charged stands in the wallet and the ledger."""
        if job.asks:
            try:
                await self._answers.keep(self._row(job, "lost"))
            except UpkeepError as error:
                self._log.warning("answer_not_kept", reason=str(error))

    async def _answer(self, job: Job) -> str:
        """Tries workers until one finishes the answer. Returns the finish reason."""
        tried: set[AccountId] = set()
        refusal: Finish | None = None
        for _ in range(ATTEMPTS_MAX):
            advert = self._next_worker(job, tried, refusal)
            tried.add(advert.worker)
            with self._payer.observations.in_flight(advert.worker), self._payer.hold(advert.worker):
                ended = await Attempt(self._payer, job, advert).run()
            finish = ended.finish
            if finish is not None and finish.reason in COMPLETE:
                return self._finish_reason(job, finish.reason)
            if job.stop.is_set() or job.text.is_stopped:
                return self._finish_reason(job, "cancelled")
            if finish is not None and finish.reason == "refused":
                refusal = finish
                self._payer.observations.refused(advert.worker, finish.retry_after_ms)
                self._log.info(
                    "refused", worker=advert.worker.hex()[:8], code=finish.code, reason=finish.detail
                )
                continue
            reason = ended.lost if finish is None else finish.detail
            self._payer.observations.failed(advert.worker)
            self._log.warning(
                "worker_lost", worker=advert.worker.hex()[:8], reason=reason, breach=ended.is_breach
            )
            if job.tokens_left <= 0:
                return "length"
            job.failovers += 1
            await job.events.send(
                FailedOver(lost=advert.worker.hex(), reason=reason, tokens_delivered=len(job.output))
            )
        raise RequestError(
            ErrorCode.WORKER_LOST, f"{ATTEMPTS_MAX} workers were tried and none finished the answer"
        )

    def _next_worker(self, job: Job, tried: set[AccountId], refusal: Finish | None) -> Advert:
        try:
            ranked = self.candidates(
                job.model, len(job.prompt) + len(job.output), job.tokens_left, job.options
            )
        except RequestError as error:
            if not tried or error.code is not ErrorCode.NO_WORKERS:
                raise
            ranked = []
        for advert in ranked:
            if advert.worker not in tried:
                return advert
        if refusal is not None:
            raise _refused(refusal)
        raise RequestError(
            ErrorCode.WORKER_LOST,
            "the worker was lost and no other serves that model; what was delivered is charged, no more",
        )

    def _finish_reason(self, job: Job, reason: str) -> str:
        if job.text.is_stopped:
            return "stop"
        if reason == "length" and job.tokens_left > 0:
            return "fee"
        return reason

    def _row(self, job: Job, finish: str) -> AnswerRow:
        now = self._payer.clock.monotonic()
        first = now if job.first_token_s is None else job.first_token_s
        return AnswerRow(
            id=job.id,
            name=job.options.model,
            model=job.model,
            text=job.text.shown.encode("utf-8", "replace")[:ANSWER_BYTES_MAX],
            finish=finish,
            tokens_in=job.tokens_in,
            tokens_out=len(job.output),
            quantization=job.quantization,
            ttft_ms=int((first - job.began_s) * 1000),
            duration_ms=int((now - job.began_s) * 1000),
            failovers=job.failovers,
            workers=tuple(dict.fromkeys(job.workers)),
            asks=tuple(job.asks),
        )

    async def quote(self, options: AskOptions) -> tuple[SignedQuote, int]:
        """A binding price for `options` from the worker that would serve it, and what it costs at most."""
        send, _ = trio.open_memory_channel[Any](1)
        job = await self._prepare(options, send)
        refusal: Finish | None = None
        for advert in self.candidates(job.model, len(job.prompt), options.max_tokens, options)[:ATTEMPTS_MAX]:
            attempt = Attempt(self._payer, job, advert, is_quote_only=True)
            ended = await attempt.run()
            if attempt.quote is not None:
                most = quoted_fee(attempt.quote.quote, len(job.prompt), options.max_tokens)
                return attempt.quote, most
            refusal = ended.finish or refusal
        if refusal is not None:
            raise _refused(refusal)
        raise RequestError(ErrorCode.NO_WORKERS, "no worker of that model could be reached")


async def _events(receive: trio.MemoryReceiveChannel[AskEvent | RequestError]) -> AsyncGenerator[AskEvent]:
    async for event in receive:
        if isinstance(event, RequestError):
            raise event
        yield event


def encode_prompt(tokenizer: Tokenizer, options: AskOptions) -> tuple[int, ...]:
    """The prompt's tokens, by the base's chat template or as raw text. Raises `RequestError`."""
    try:
        if options.prompt is not None:
            ids = tokenizer.encode(options.prompt)
        else:
            ids = tokenizer.render_chat([ChatTurn(role=m.role, content=m.content) for m in options.messages])
    except TokenizerError as error:
        raise RequestError(ErrorCode.BAD_REQUEST, str(error)) from error
    if not ids:
        raise RequestError(ErrorCode.BAD_REQUEST, "the prompt is empty")
    if len(ids) > PROMPT_TOKENS_MAX:
        raise RequestError(
            ErrorCode.PROMPT_TOO_LONG,
            f"the prompt has {len(ids)} tokens and at most {PROMPT_TOKENS_MAX} are taken",
        )
    return ids


def _check(options: AskOptions) -> None:
    if (options.prompt is None) == (not options.messages):
        raise RequestError(ErrorCode.BAD_REQUEST, "give either messages or a prompt")
    if not 1 <= options.max_tokens <= OUTPUT_TOKENS_MAX:
        raise RequestError(ErrorCode.BAD_REQUEST, f"max_tokens must be from 1 to {OUTPUT_TOKENS_MAX}")
    if options.policy not in POLICIES:
        raise RequestError(ErrorCode.BAD_REQUEST, f"policy must be one of {', '.join(POLICIES)}")


def _refused(refusal: Finish) -> RequestError:
    code = {
        codes.BUSY: ErrorCode.BUSY,
        codes.DRAINING: ErrorCode.BUSY,
        codes.TOO_LONG: ErrorCode.PROMPT_TOO_LONG,
        codes.UNFUNDED: ErrorCode.NO_FUNDS,
    }.get(refusal.code, ErrorCode.NO_WORKERS)
    return RequestError(
        code, f"the workers refused: {refusal.detail}", retry_after_ms=refusal.retry_after_ms or None
    )
