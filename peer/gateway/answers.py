"""Answering questions over HTTP: one task per request that drives the question and watches the client.

When the client hangs up, or does not read for `SEND_S_MAX`, the question's context is left, which cancels the
work and the charge. Nothing is sent before the first text or the end, so an error until then has its own
HTTP status; a later one is an `error` object in the stream, which then ends without `[DONE]`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final, Protocol, final

import trio
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from gossip_ledger.errors import UpkeepError
from peer.api import Answer, AskEvent, AskOptions, FailedOver, Finished, NodeApi, Routed, Text
from peer.gateway.replies import describe, failure_response
from peer.limits import SEND_S_MAX

Chunk = dict[str, object]

FINISH_REASONS: Final = {"stop": "stop", "length": "length", "fee": "length", "cancelled": "stop"}
"""Ours to OpenAI's; the `upkeep` object has ours."""


class Shape(Protocol):
    """How one kind of completion looks."""

    prefix: str
    whole: str
    """The `object` of a whole answer."""
    piece: str
    """The `object` of a chunk."""

    def full(self, text: str) -> Chunk:
        """The choice of a whole answer, without index and finish reason."""
        ...

    def delta(self, text: str | None, *, is_first: bool) -> Chunk:
        """The choice of a chunk; None for one without text."""
        ...


@final
class ChatShape:
    """`/v1/chat/completions`."""

    prefix = "chatcmpl-"
    whole = "chat.completion"
    piece = "chat.completion.chunk"

    def full(self, text: str) -> Chunk:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def delta(self, text: str | None, *, is_first: bool) -> Chunk:
        delta: Chunk = {"role": "assistant"} if is_first else {}
        if text is not None:
            delta["content"] = text
        return {"delta": delta}


@final
class TextShape:
    """`/v1/completions`."""

    prefix = "cmpl-"
    whole = "text_completion"
    piece = "text_completion"

    def full(self, text: str) -> Chunk:
        return {"text": text}

    def delta(self, text: str | None, *, is_first: bool) -> Chunk:
        del is_first
        return {"text": text or ""}


@final
class AskResponse:
    """An ASGI response that asks the question when it is awaited."""

    def __init__(
        self,
        node: NodeApi,
        options: AskOptions,
        shape: Shape,
        *,
        is_stream: bool,
        has_usage: bool,
        created_s: int,
        number: str,
        on_end: Callable[[], None],
    ) -> None:
        self._node = node
        self._options = options
        self._shape = shape
        self._is_stream = is_stream
        self._has_usage = has_usage
        self._on_end = on_end
        self._head: Chunk = {"id": shape.prefix + number, "created": created_s, "model": options.model}
        self._is_started = False
        self._is_first = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        failure: UpkeepError | None = None
        try:
            # The one nursery below the edge: an ASGI application can only learn of a hang-up by receiving.
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_on_disconnect, receive, nursery.cancel_scope)
                try:
                    await (self._stream(send) if self._is_stream else self._reply(scope, receive, send))
                except UpkeepError as error:
                    failure = error
                except trio.TooSlowError:
                    pass  # the client does not read: it counts as gone
                nursery.cancel_scope.cancel()
            if failure is not None:
                await self._fail(failure, scope, receive, send)
        finally:
            self._on_end()

    async def _reply(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._node.ask(self._options) as events:
            async for event in events:
                if isinstance(event, Finished):
                    await JSONResponse(self._whole(event.answer))(scope, receive, send)

    async def _stream(self, send: Send) -> None:
        held: list[AskEvent] = []
        async with self._node.ask(self._options) as events:
            async for event in events:
                held.append(event)
                if self._is_started or isinstance(event, Text | Finished):
                    await self._start(send)
                    for chunk in [chunk for item in held for chunk in self._chunks(item)]:
                        await _send_piece(send, _event_bytes(chunk))
                    held.clear()
        if self._is_started:
            await _send_piece(send, b"data: [DONE]\n\n")
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _start(self, send: Send) -> None:
        if not self._is_started:
            self._is_started = True
            headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _fail(self, failure: UpkeepError, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._is_started:
            await failure_response(failure)(scope, receive, send)
            return
        with trio.move_on_after(SEND_S_MAX):
            body = _event_bytes(describe(failure)[1])
            await send({"type": "http.response.body", "body": body, "more_body": False})

    def _chunks(self, event: AskEvent) -> list[Chunk]:
        match event:
            case Text(delta=text):
                return [self._chunk(text)]
            case Routed():
                routed: Chunk = {
                    "worker": event.worker,
                    "quantization": event.quantization,
                    "price_in": event.price_in,
                    "price_out": event.price_out,
                    "max_fee": event.max_fee,
                }
                return [self._chunk(None, {"upkeep_event": {"routed": routed}})]
            case FailedOver():
                lost: Chunk = {
                    "worker": event.lost,
                    "reason": event.reason,
                    "tokens_delivered": event.tokens_delivered,
                }
                return [self._chunk(None, {"upkeep_event": {"failed_over": lost}})]
            case Finished(answer=answer):
                return self._last_chunks(answer)

    def _last_chunks(self, answer: Answer) -> list[Chunk]:
        finish = FINISH_REASONS[answer["finish"]]
        accounts: Chunk = {"usage": _usage(answer), "upkeep": answer}
        if not self._has_usage:
            return [self._chunk(None, accounts, finish=finish)]
        last: Chunk = {**self._head, "object": self._shape.piece, "choices": list[Chunk](), **accounts}
        return [self._chunk(None, finish=finish), last]

    def _chunk(self, text: str | None, more: Chunk | None = None, *, finish: str | None = None) -> Chunk:
        choice = {"index": 0, **self._shape.delta(text, is_first=self._is_first), "finish_reason": finish}
        self._is_first = False
        head = self._head | {"object": self._shape.piece, "choices": [choice]}
        return head | (more or ({"usage": None} if self._has_usage else {}))

    def _whole(self, answer: Answer) -> Chunk:
        finish = FINISH_REASONS[answer["finish"]]
        choice = {"index": 0, **self._shape.full(answer["text"]), "logprobs": None, "finish_reason": finish}
        head = self._head | {"object": self._shape.whole, "choices": [choice]}
        return head | {"usage": _usage(answer), "upkeep": answer}


async def _cancel_on_disconnect(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def _send_piece(send: Send, body: bytes) -> None:
    with trio.fail_after(SEND_S_MAX):
        await send({"type": "http.response.body", "body": body, "more_body": True})


def _event_bytes(chunk: Chunk) -> bytes:
    return b"data: " + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _usage(answer: Answer) -> Chunk:
    tokens_in, tokens_out = answer["tokens_in"], answer["tokens_out"]
    return {
        "prompt_tokens": tokens_in,
        "completion_tokens": tokens_out,
        "total_tokens": tokens_in + tokens_out,
    }
