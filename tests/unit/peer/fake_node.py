"""A node that answers from a script, for tests of everything in front of a node."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from peer.api import (
    Answer,
    AskEvent,
    AskOptions,
    ErrorCode,
    FailedOver,
    Finished,
    Json,
    PublishRequest,
    RequestError,
    Routed,
    Text,
)
from peer.trade import Standing

WORKER, OTHER, PAYER, CREATOR = "aa" * 32, "bb" * 32, "cc" * 32, "dd" * 32
MODEL: Json = {
    "name": "tiny",
    "id": "11" * 32,
    "kind": "base",
    "creator": CREATOR,
    "standing": "final",
    "holders": [WORKER, OTHER],
    "version": 1,
}
ADAPTER: Json = {
    **MODEL,
    "name": "poet",
    "id": "22" * 32,
    "kind": "adapter",
    "split": {"worker": 6000, "creator": 1000, "data": 2000, "upkeep": 500, "network": 500},
    "clusters": [{"id": "55" * 32, "owner": CREATOR, "prior": 3, "label": "Walt"}],
    "licence": "CC0-1.0",
}
AMOUNTS = [
    {"what": "spendable", "amount": 5_000_000, "standing": "final"},
    {"what": "held under opens", "amount": 7, "standing": "reserved"},
]
RECEIPT: Json = {
    "id": "ff" * 32,
    "standing": "final",
    "acks": 1,
    "quorum": 1,
    "fee": 100,
    "model": "tiny",
    "payer": PAYER,
    "worker": WORKER,
    "tokens_in": 5,
    "tokens_out": 3,
    "answers": 1,
    "evidence": [],
    "shares": [{"account": WORKER, "name": "worker", "role": "worker", "cluster": None, "amount": 100}],
}


def answer_of(text: str, model: str = "tiny", **changes: Any) -> Answer:
    """A plausible finished answer."""
    answer: Answer = {
        "id": "ee" * 16,
        "model": model,
        "model_id": "11" * 32,
        "text": text,
        "finish": "stop",
        "tokens_in": 5,
        "tokens_out": 3,
        "fee": 100,
        "receipt": ["ff" * 32],
        "worker": WORKER,
        "workers": [WORKER],
        "quantization": "bf16",
        "ttft_ms": 12,
        "duration_ms": 34,
        "tokens_per_s": 88.0,
        "failovers": 0,
        "shares": [
            {"account": WORKER, "name": "worker", "role": "worker", "cluster": None, "amount": 60},
            {"account": CREATOR, "name": "creator of tiny", "role": "creator", "cluster": None, "amount": 40},
        ],
    }
    answer.update(changes)  # type: ignore[typeddict-item]
    return answer


@dataclass
class FakeNode:
    """Implements `NodeApi`. What it was asked is in `asked`; what it says is in its fields."""

    texts: tuple[str, ...] = ("Hello", ", ", "wörld")
    pause_s: float = 0.0
    fails: RequestError | None = None
    """Raised by every method that can."""
    fails_after: int | None = None
    """Texts after which an answer fails with WORKER_LOST."""
    fails_over_after: int | None = None
    asked: list[AskOptions] = field(default_factory=list)
    cancelled: int = 0
    sent: list[tuple[str, int]] = field(default_factory=list)
    published: list[PublishRequest] = field(default_factory=list)
    explained: list[str] = field(default_factory=list)
    standing: Standing = Standing.OPEN
    prices: tuple[int, int] = (1000, 4000)
    running: int = 1
    """Questions that the worker runs; one ends when it is told to stand somewhere else."""
    waits: trio.Event | None = None
    """When set, answers wait for it after the first text."""

    def check(self) -> None:
        if self.fails is not None:
            raise self.fails

    def status(self) -> Json:
        self.check()
        return {
            "account": PAYER,
            "network": "99" * 32,
            "name": "test",
            "unit": "OPEN",
            "epoch": 7,
            "links": 1,
            "root": "77" * 32,
        }

    def peers(self) -> list[Json]:
        self.check()
        return [
            {"account": WORKER, "address": "/ip4/10.0.0.7/tcp/1", "direction": "outbound", "round_trip_ms": 3}
        ]

    def workers(self) -> list[Json]:
        return [
            {
                "account": WORKER,
                "quantization": "bf16",
                "price_in": 1000,
                "price_out": 4000,
                "running": 0,
                "waiting": 0,
                "slots": 8,
                "tokens_per_s": 20,
                "models": ["tiny", "poet"],
            }
        ]

    def models(self) -> list[Json]:
        return [ADAPTER, MODEL]

    async def quote(self, options: AskOptions) -> Json:
        await trio.lowlevel.checkpoint()
        self.check()
        self.asked.append(options)
        return {"worker": WORKER, "max_fee": 700, "price_in": 1000, "price_out": 4000}

    @asynccontextmanager
    async def ask(self, options: AskOptions) -> AsyncIterator[AsyncIterator[AskEvent]]:
        self.asked.append(options)
        await trio.lowlevel.checkpoint()
        self.check()
        try:
            async with aclosing(self._events(options)) as events:
                yield events
        except trio.Cancelled:
            self.cancelled += 1
            raise

    async def _events(self, options: AskOptions) -> AsyncGenerator[AskEvent, None]:
        yield Routed(worker=WORKER, quantization="bf16", price_in=1000, price_out=4000, max_fee=700)
        for index, text in enumerate(self.texts):
            if index == self.fails_after:
                raise RequestError(ErrorCode.WORKER_LOST, "the last worker was lost; ask again")
            if index == self.fails_over_after:
                yield FailedOver(lost=WORKER, reason="the stream broke", tokens_delivered=index)
                yield Routed(worker=OTHER, quantization="nf4", price_in=1000, price_out=4000, max_fee=700)
            await trio.sleep(self.pause_s)
            yield Text(delta=text)
            if self.waits is not None:
                await self.waits.wait()
        yield Finished(answer=answer_of("".join(self.texts), options.model))

    def answer(self, answer_id: str) -> Answer:
        self.check()
        return answer_of("Hello", id=answer_id)

    async def confirm(self, receipt_id: str) -> Json:
        await trio.lowlevel.checkpoint()
        self.check()
        return {"receipt": receipt_id, "is_confirmed": True, "reason": "the weights follow from the evidence"}

    def balance(self, account: str | None) -> Json:
        self.check()
        return {"account": account or PAYER, "name": "me", "unit": "OPEN", "amounts": AMOUNTS}

    def receipts(self, account: str | None, limit: int) -> list[Json]:
        self.check()
        return [{**RECEIPT, "limit": limit}]

    def payouts(self) -> Json:
        return {"accounts": {WORKER: 60, CREATOR: 40}, "funds": {}, "fees": 100}

    def root(self) -> Json:
        return {"root": "77" * 32, "records": 12}

    def explain(self, subject: str) -> Json:
        self.check()
        self.explained.append(subject)
        match subject:
            case "tiny":
                fees: Json = {"fees": 100, "fund": 5, "why": "paid by receipts", "split": ADAPTER["split"]}
                return {**ADAPTER, **fees, "kind": "model", "subject": subject}
            case s if s == "ff" * 32:
                return {**RECEIPT, "kind": "receipt", "subject": subject}
            case _:
                more: Json = {"earned_from": [], "receipts": [RECEIPT], "why": "nothing earned"}
                return {**self.balance(None), **more, "kind": "account", "subject": subject}

    async def publish(self, request: PublishRequest) -> Json:
        await trio.lowlevel.checkpoint()
        self.check()
        self.published.append(request)
        return {"model": "33" * 32, "name": request.name}

    async def send(self, to: str, amount: int) -> Json:
        await trio.lowlevel.checkpoint()
        self.check()
        self.sent.append((to, amount))
        return {"id": "44" * 32}

    def worker(self) -> Json:
        self.check()
        return {
            "standing": self.standing.value,
            "price_in": self.prices[0],
            "price_out": self.prices[1],
            "unit": "OPEN",
            "asks": max(self.running, 0),
            "receipts_to_write": 0,
            "is_safe_to_stop": self.running <= 0 and self.standing is not Standing.OPEN,
        }

    async def set_prices(self, price_in: int | None, price_out: int | None) -> Json:
        await trio.lowlevel.checkpoint()
        self.check()
        old_in, old_out = self.prices
        self.prices = old_in if price_in is None else price_in, old_out if price_out is None else price_out
        return self.worker()

    def set_standing(self, standing: Standing) -> Json:
        self.check()
        self.standing = standing
        found = self.worker()
        self.running -= 1  # whoever looks again finds one fewer
        return found

    def earnings(self) -> Json:
        self.check()
        row: Json = {
            "final": 60,
            "pending": 6,
            "receipts": 2,
            "answers": 2,
            "tokens_in": 5,
            "tokens_out": 3,
            "fees": 110,
        }
        return {
            "account": WORKER,
            "unit": "OPEN",
            "models": [{"model": "tiny", "model_id": "11" * 32, **row}],
            "total": row,
            "collected": 0,
            "uncollected": 60,
        }

    def metrics(self) -> dict[str, int | float]:
        return {"upkeep_links": 2, "upkeep_records_total": 12, "upkeep_load": 0.5}
