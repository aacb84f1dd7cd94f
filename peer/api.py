"""The facade of a running node: all that the gateway, the command line and the page may ask of it.

Results are JSON-ready mappings, so what a person reads and what a program reads is the same. Ids and
accounts are lowercase hex; money is an integer number of micro-units; times are milliseconds.

Errors that may leave any method: `RequestError` with a stable code. Anything else is a bug.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypedDict, final

from gossip_ledger.errors import UpkeepError
from peer.trade import Standing


class ErrorCode(StrEnum):
    """Why a request was refused, and what it maps to outside."""

    BAD_REQUEST = "bad_request"
    """The request itself is wrong (HTTP 400)."""
    UNKNOWN_MODEL = "unknown_model"
    """No model of that name or id is known here (404)."""
    NOT_FOUND = "not_found"
    """No such receipt, account or other thing (404)."""
    PROMPT_TOO_LONG = "prompt_too_long"
    """Prompt and answer do not fit the model's context (400)."""
    NO_FUNDS = "no_funds"
    """The spendable balance does not cover the most that this may cost (402)."""
    NO_WORKERS = "no_workers"
    """The model is known, but nobody reachable serves it (503)."""
    BUSY = "busy"
    """Every worker refused for now; `retry_after_ms` says when to come back (429)."""
    WORKER_LOST = "worker_lost"
    """The last worker was lost and no other could go on (502). What was delivered is charged, no more."""
    NOT_READY = "not_ready"
    """This node has not finished starting, for example its base is still loading (503)."""


@final
class RequestError(UpkeepError):
    """A request that this node cannot serve. One line: what, why, what to do."""

    def __init__(self, code: ErrorCode, message: str, *, retry_after_ms: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_ms = retry_after_ms


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a chat."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AskOptions:
    """One question. Exactly one of `messages` and `prompt` is given."""

    model: str
    """A name (`name`, `creator/name`, `name@version`) or a model id in hex."""
    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    """Raw text to continue, without the chat template."""
    max_tokens: int = 128
    temperature_milli: int = 0
    """Thousandths; 0 is greedy."""
    top_p_milli: int = 1000
    seed: int | None = None
    stop: tuple[str, ...] = ()
    max_fee: int | None = None
    """Micro-units for all workers tried; None: what the quote says this may cost at most."""
    worker: str | None = None
    """Pin one worker by account (a unique hex prefix will do)."""
    policy: str = "balanced"
    """`balanced`, `fastest` or `cheapest`."""


class Split(TypedDict):
    """One part of one fee."""

    account: str
    """Hex; for role `upkeep` the fund's model id."""
    name: str
    """For people: an alias of the account, or the cluster's label."""
    role: str
    """`worker`, `creator`, `data`, `upkeep` or `network`."""
    cluster: str | None
    amount: int


class Answer(TypedDict):
    """A finished answer and what it cost."""

    id: str
    model: str
    """The name that was asked for."""
    model_id: str
    text: str
    finish: str
    """`stop`, `length`, `cancelled`, `fee` (the fee limit was reached)."""
    tokens_in: int
    tokens_out: int
    fee: int
    """The sum over `receipt`, micro-units."""
    receipt: list[str]
    """Receipt ids, one for each worker that delivered something."""
    worker: str
    """The account of the worker that finished it."""
    workers: list[str]
    """All that delivered tokens, in order."""
    quantization: str
    ttft_ms: int
    duration_ms: int
    tokens_per_s: float
    failovers: int
    shares: list[Split]
    """Sums to `fee`. Empty only while a lost worker's receipt is outstanding."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """A worker was chosen (again, after a failover)."""

    worker: str
    quantization: str
    price_in: int
    """Micro-units per 1,000 tokens."""
    price_out: int
    max_fee: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """More of the answer. Concatenated, the deltas are `Answer.text`."""

    delta: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FailedOver:
    """The worker was lost; the answer goes on elsewhere from where it stopped."""

    lost: str
    reason: str
    tokens_delivered: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The last event."""

    answer: Answer


AskEvent = Routed | Text | FailedOver | Finished

Json = dict[str, object]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PublishRequest:
    """A model to register: a folder prepared by `upkeep adapter publish`, on the daemon's own disk."""

    name: str
    version: int
    adapter: str | None
    """Folder with adapter_model.safetensors and adapter_config.json; None publishes the bare base."""
    base: str | None
    """Local base folder; needed where `adapter` is None."""
    datanet: str | None
    """Folder with datanet.json; None: no data share."""
    split: tuple[int, int, int, int, int]
    """Basis points: worker, creator, data, upkeep, network."""
    successor_of: str | None
    licence: str
    about: str


class NodeApi(Protocol):
    """What a running node can be asked."""

    def status(self) -> Json:
        """Account, network, epoch, links, ledger counts and root, worker state, version."""
        ...

    def peers(self) -> list[Json]:
        """The live links."""
        ...

    def workers(self) -> list[Json]:
        """The adverts that are valid now."""
        ...

    def models(self) -> list[Json]:
        """The published models: name, id, kind, creator, split, clusters, holders, final or pending."""
        ...

    async def quote(self, options: AskOptions) -> Json:
        """A signed, binding price from the worker that would serve `options`."""
        ...

    def ask(self, options: AskOptions) -> AbstractAsyncContextManager[AsyncIterator[AskEvent]]:
        """Streams one answer; leaving the context early cancels the work and the charge within a step."""
        ...

    def answer(self, answer_id: str) -> Answer:
        """An answer asked from here, with every receipt that is known by now (GET /api/answers/{id})."""
        ...

    def balance(self, account: str | None) -> Json:
        """Each amount of an account with its standing: final, pending, reserved or unvested."""
        ...

    def receipts(self, account: str | None, limit: int) -> list[Json]:
        """The newest receipts in which the account has a part."""
        ...

    async def confirm(self, receipt_id: str) -> Json:
        """Recomputes a receipt's weights from its evidence, here and now, fetching it where needed."""
        ...

    def payouts(self) -> Json:
        """What every account earned from final receipts, and the funds; sums to the fees."""
        ...

    def root(self) -> Json:
        """The state root and the counts it rests on."""
        ...

    def explain(self, subject: str) -> Json:
        """An account, receipt or model walked down to receipts and integers, also for a zero."""
        ...

    async def publish(self, request: PublishRequest) -> Json:
        """Registers a model from this node's account: builds the manifest, keeps its blobs, signs."""
        ...

    async def send(self, to: str, amount: int) -> Json:
        """Transfers money from this node's account."""
        ...

    def worker(self) -> Json:
        """This node's worker: `standing`, prices, what it runs; `is_safe_to_stop` once nobody is served."""
        ...

    async def set_prices(self, price_in: int | None, price_out: int | None) -> Json:
        """New prices (micro-units per 1,000 tokens), now and after a restart. Says what `worker` says."""
        ...

    def set_standing(self, standing: Standing) -> Json:
        """Opens the worker, pauses it or lets it drain. Says what `worker` says."""
        ...

    def earnings(self) -> Json:
        """What this account earned as a worker, by model, final and pending."""
        ...

    def metrics(self) -> dict[str, int | float]:
        """Counters and gauges for /metrics, by Prometheus name."""
        ...
