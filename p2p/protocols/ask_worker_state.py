"""The worker's side of an ask as values: phases, commands, effects, and the one transition table.

What follows from what is in `ask_worker.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, final

from gossip_ledger.records import AccountId, Bill, NetworkId, Signature, Signed
from p2p.messages import (
    AskRequest,
    Cancel,
    Done,
    Failed,
    PayerMessage,
    QuoteRequest,
    SignedBill,
    TokenId,
    WorkerMessage,
)
from p2p.protocols.limits import (
    ADMIT_MS,
    BILL_MS,
    CHUNK_TOKENS,
    QUOTE_MS,
    QUOTED_MS,
    REQUEST_MS,
    SETTLE_MS,
)
from p2p.protocols.session import Lost, Send, Timeout
from p2p.quotes import Quote, SignedQuote


class Phase(Enum):
    """Where the worker is."""

    LISTENING = auto()
    """A fresh stream."""
    QUOTING = auto()
    """Makes up its price."""
    QUOTED = auto()
    """Waits for the ask."""
    ADMITTING = auto()
    """Looks into ledger, books and queue."""
    SERVING = auto()
    """The engine runs."""
    DRAINING = auto()
    """The engine has ended; tokens wait for a bill."""
    CLOSING = auto()
    """All is delivered and counted; waits for the last bill."""
    SETTLING = auto()
    """The last bill is in; makes the receipt."""
    DONE = auto()
    """Over in good order."""
    ABORTED = auto()
    """Over: lost, late, or a breach of the protocol."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteReady:
    """Command: our signed quote."""

    quote: SignedQuote


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """Command: no quote, or no answer."""

    code: str
    reason: str
    retry_after_ms: int = 0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Accept:
    """Command: ledger, books and queue allow it. The session still checks the ask against the quote."""

    quote: Quote
    """Our own quote, looked up by the id in the ask, signed by us and not expired."""
    epochs: tuple[int, int]
    """Earliest and latest epoch that the bills may declare."""
    waiting: int = 0
    """Asks ahead of this one, for the payer to know."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Produced:
    """From the engine: more tokens."""

    ids: tuple[TokenId, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDone:
    """From the engine: no more tokens."""

    reason: str
    """`stop` or `length`; anything else is told to the payer as a failure."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFailed:
    """From the engine, or the operator: it cannot go on."""

    code: str
    reason: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptReady:
    """From the books: the receipt that `Settle` asked for, durable and published."""

    signed: Signed


Command = QuoteReady | Refuse | Accept | Produced | EngineDone | EngineFailed | ReceiptReady
Event = PayerMessage | Command | Lost | Timeout


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareQuote:
    """Effect: make and sign a quote, or refuse."""

    request: QuoteRequest


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Admit:
    """Effect: judge the open, the ask number, the quote, the model and the queue; accept or refuse."""

    request: AskRequest


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StartEngine:
    """Effect: generate at most `tokens_max` tokens."""

    request: AskRequest
    tokens_max: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StopEngine:
    """Effect: what is still generated is not wanted."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StoreBill:
    """Effect: keep the accepted bill durably, before anything after it is done."""

    bill: Bill
    signature: Signature
    output: tuple[TokenId, ...]
    """The tokens that the bill covers, all of them."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Settle:
    """Effect: turn the last accepted bill into a receipt and publish it."""

    bill: Bill
    signature: Signature
    output: tuple[TokenId, ...]
    """The tokens that the bill covers, all of them."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """Last effect: over in good order; close the stream."""

    reason: str
    """`stop`, `length`, `cancelled`, `failed`, `refused`, or `quoted` where no ask came."""
    detail: str = ""
    bill: Bill | None = None
    """What was earned. None: nothing."""
    receipt: Signed | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Abort:
    """Last effect: reset the stream."""

    reason: str
    is_breach: bool
    """Whether the payer broke the protocol, rather than being lost or late."""
    bill: Bill | None
    """What `Settle` was asked for. None: nothing was earned."""


Effect = (
    Send[WorkerMessage]
    | PrepareQuote
    | Admit
    | StartEngine
    | StopEngine
    | StoreBill
    | Settle
    | Finish
    | Abort
)
Step = tuple["WorkerSession", tuple[Effect, ...]]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSession:
    """One stream from one payer, carrying at most one ask."""

    network: NetworkId
    worker: AccountId
    payer: AccountId
    phase: Phase
    deadline_ms: int | None
    """When `Timeout` is due."""
    request: AskRequest | None = None
    quote: Quote | None = None
    tokens_max: int = 0
    """Most output tokens that the ask and its maximum fee allow."""
    output: tuple[TokenId, ...] = ()
    """Delivered so far."""
    pending: tuple[TokenId, ...] = ()
    """Produced, but not to be delivered before the next bill."""
    bill: Bill | None = None
    """The last bill accepted."""
    signature: Signature | None = None
    """The payer's, over `bill`."""
    ending: Done | Failed | None = None
    """What ends the answer once all is delivered; its counts are filled in then."""

    @staticmethod
    def start(*, network: NetworkId, worker: AccountId, payer: AccountId, now_ms: int) -> WorkerSession:
        """A session on a fresh stream from `payer`."""
        return WorkerSession(
            network=network,
            worker=worker,
            payer=payer,
            phase=Phase.LISTENING,
            deadline_ms=now_ms + REQUEST_MS,
        )

    @property
    def is_over(self) -> bool:
        """Whether nothing can happen any more."""
        return self.phase in (Phase.DONE, Phase.ABORTED)

    @property
    def billed(self) -> int:
        """Output tokens that the last accepted bill covers."""
        return self.bill.tokens_out if self.bill else 0

    @property
    def is_blocked(self) -> bool:
        """Whether a whole chunk is unbilled: nothing more is delivered, and the payer is awaited."""
        return len(self.output) >= self.billed + CHUNK_TOKENS


_AFTER_ENGINE: Final = (Phase.DRAINING, Phase.CLOSING, Phase.SETTLING, Phase.DONE)
_ENGINE_EVENTS: Final = (Produced, EngineDone, EngineFailed)
NEXT: Final[dict[tuple[Phase, type], tuple[Phase, ...]]] = {
    (Phase.LISTENING, QuoteRequest): (Phase.QUOTING,),
    (Phase.LISTENING, AskRequest): (Phase.ADMITTING,),
    (Phase.LISTENING, Cancel): (Phase.DONE,),
    (Phase.LISTENING, Lost): (Phase.DONE,),
    (Phase.LISTENING, Timeout): (Phase.ABORTED,),
    (Phase.QUOTING, QuoteReady): (Phase.QUOTED,),
    (Phase.QUOTING, Refuse): (Phase.DONE,),
    (Phase.QUOTING, Cancel): (Phase.DONE,),
    (Phase.QUOTING, Lost): (Phase.DONE,),
    (Phase.QUOTING, Timeout): (Phase.DONE,),
    (Phase.QUOTED, AskRequest): (Phase.ADMITTING,),
    (Phase.QUOTED, Cancel): (Phase.DONE,),
    (Phase.QUOTED, Lost): (Phase.DONE,),
    (Phase.QUOTED, Timeout): (Phase.ABORTED,),
    (Phase.ADMITTING, Accept): (Phase.SERVING, Phase.DONE),
    (Phase.ADMITTING, Refuse): (Phase.DONE,),
    (Phase.ADMITTING, Cancel): (Phase.DONE,),
    (Phase.ADMITTING, Lost): (Phase.ABORTED,),
    (Phase.ADMITTING, Timeout): (Phase.DONE,),
    (Phase.SERVING, Produced): (Phase.SERVING, *_AFTER_ENGINE[:3]),
    (Phase.SERVING, EngineDone): _AFTER_ENGINE,
    (Phase.SERVING, EngineFailed): _AFTER_ENGINE,
    (Phase.SERVING, SignedBill): (Phase.SERVING,),
    (Phase.SERVING, Cancel): _AFTER_ENGINE[1:],
    (Phase.SERVING, Lost): (Phase.ABORTED,),
    (Phase.SERVING, Timeout): (*_AFTER_ENGINE[1:], Phase.ABORTED),
    (Phase.DRAINING, SignedBill): (Phase.DRAINING, Phase.CLOSING),
    (Phase.DRAINING, Cancel): (Phase.CLOSING,),
    (Phase.DRAINING, Lost): (Phase.ABORTED,),
    (Phase.DRAINING, Timeout): (Phase.ABORTED,),
    (Phase.CLOSING, SignedBill): (Phase.CLOSING, Phase.SETTLING),
    (Phase.CLOSING, Cancel): (Phase.CLOSING,),
    (Phase.CLOSING, Lost): (Phase.ABORTED,),
    (Phase.CLOSING, Timeout): (Phase.ABORTED,),
    (Phase.SETTLING, ReceiptReady): (Phase.DONE,),
    (Phase.SETTLING, Cancel): (Phase.SETTLING,),
    (Phase.SETTLING, Lost): (Phase.ABORTED,),
    (Phase.SETTLING, Timeout): (Phase.ABORTED,),
    **{
        (phase, event): (phase,)
        for phase in (Phase.DRAINING, Phase.CLOSING, Phase.SETTLING)
        for event in _ENGINE_EVENTS
    },
}
"""Which phases may follow. In addition, any message that breaks a rule leads to ABORTED."""

WAITS_MS: Final = {
    Phase.QUOTING: QUOTE_MS,
    Phase.QUOTED: QUOTED_MS,
    Phase.ADMITTING: ADMIT_MS,
    Phase.CLOSING: BILL_MS,
    Phase.SETTLING: SETTLE_MS,
}
"""How long each phase waits, milliseconds. SERVING and DRAINING wait for payer or engine."""
