"""The payer's side of an ask as values: phases, commands, effects, and the one transition table.

What follows from what is in `ask_payer.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, final

from gossip_ledger.records import AccountId, Bill, NetworkId, Signed
from p2p.messages import (
    Accepted,
    AskRequest,
    Done,
    Failed,
    PayerMessage,
    Quoted,
    QuoteRequest,
    Refused,
    Settled,
    TokenId,
    Tokens,
    WorkerMessage,
)
from p2p.protocols.limits import (
    ADMIT_MS,
    CANCEL_MS,
    FIRST_TOKEN_MS,
    QUOTE_MS,
    QUOTED_MS,
    SETTLE_MS,
    TOKEN_ID_MAX,
    TOKEN_MS,
)
from p2p.protocols.session import Lost, Send, Timeout
from p2p.quotes import Quote, SignedQuote


class Phase(Enum):
    """Where the payer is."""

    IDLE = auto()
    """A fresh stream."""
    QUOTING = auto()
    """Waits for the quote."""
    QUOTED = auto()
    """Has a quote; our own move."""
    ASKED = auto()
    """Waits to be admitted."""
    WAITING = auto()
    """Admitted; waits for the first token."""
    STREAMING = auto()
    """Tokens arrive."""
    CANCELLING = auto()
    """Wants no more; waits for the last count."""
    SETTLING = auto()
    """All is delivered and signed; waits for the receipt."""
    DONE = auto()
    """Over in good order."""
    ABORTED = auto()
    """Over: lost, late, or a breach of the protocol."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RequestQuote:
    """Command: ask for a price."""

    request: QuoteRequest


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Command: ask for an answer under a quote that `check_quote` accepted."""

    request: AskRequest
    quote: SignedQuote


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Command: the person wants no more. What was delivered is still billed and settled."""


Command = RequestQuote | Ask | Stop
Event = WorkerMessage | Command | Lost | Timeout


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteArrived:
    """Effect: a quote came, its signature not yet checked."""

    quote: SignedQuote


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Deliver:
    """Effect: the next tokens of the answer."""

    ids: tuple[TokenId, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SignBill:
    """Effect: sign this bill and send it as `SignedBill`. It replaces the one before."""

    bill: Bill


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """Effect: no more tokens will come and the counts agree; only the receipt is outstanding."""

    reason: str
    """`stop`, `length`, `cancelled` or `failed`: after a failure the answer may go on elsewhere at once."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """Last effect: over in good order; close the stream."""

    reason: str
    """`stop`, `length`, `cancelled`, `failed`, `refused`, or `quoted` where no ask was made."""
    code: str = ""
    """Of a refusal or failure."""
    detail: str = ""
    """In words."""
    retry_after_ms: int = 0
    bill: Bill | None = None
    """The last bill signed: what is owed. None: nothing is."""
    receipt: Signed | None = None
    """The verified receipt over exactly `bill`; None with a bill where it did not come in time."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Abort:
    """Last effect: reset the stream. The ask may go on elsewhere, from the tokens delivered."""

    reason: str
    is_breach: bool
    """Whether the worker broke the protocol, rather than being lost or late."""
    bill: Bill | None
    """The last bill signed: the most that is owed. None: nothing is."""


Effect = Send[PayerMessage] | QuoteArrived | Deliver | SignBill | Ended | Finish | Abort
Step = tuple["PayerSession", tuple[Effect, ...]]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PayerSession:
    """One stream to one worker, carrying at most one ask."""

    network: NetworkId
    payer: AccountId
    worker: AccountId
    phase: Phase = Phase.IDLE
    deadline_ms: int | None = None
    """When `Timeout` is due; None where we wait for nobody."""
    request: AskRequest | None = None
    quote: Quote | None = None
    tokens_max: int = 0
    """Most output tokens that the ask and its maximum fee allow."""
    output: tuple[TokenId, ...] = ()
    """Delivered so far."""
    bill: Bill | None = None
    """The last bill signed."""
    ending: Finish | None = None
    """What the worker said at the end, until the receipt comes."""
    vocabulary: int = TOKEN_ID_MAX + 1
    """Token ids that the model has: from 0 up to this. Others are neither delivered nor paid."""

    @staticmethod
    def start(
        *, network: NetworkId, payer: AccountId, worker: AccountId, vocabulary: int = TOKEN_ID_MAX + 1
    ) -> PayerSession:
        """A session on a fresh stream to `worker`."""
        return PayerSession(network=network, payer=payer, worker=worker, vocabulary=vocabulary)

    @property
    def is_over(self) -> bool:
        """Whether nothing can happen any more."""
        return self.phase in (Phase.DONE, Phase.ABORTED)

    @property
    def billed(self) -> int:
        """Output tokens that the last bill covers."""
        return self.bill.tokens_out if self.bill else 0


NEXT: Final[dict[tuple[Phase, type], tuple[Phase, ...]]] = {
    (Phase.IDLE, RequestQuote): (Phase.QUOTING,),
    (Phase.IDLE, Ask): (Phase.ASKED,),
    (Phase.IDLE, Stop): (Phase.DONE,),
    (Phase.IDLE, Lost): (Phase.ABORTED,),
    (Phase.QUOTING, Quoted): (Phase.QUOTED,),
    (Phase.QUOTING, Refused): (Phase.DONE,),
    (Phase.QUOTING, Stop): (Phase.DONE,),
    (Phase.QUOTING, Lost): (Phase.ABORTED,),
    (Phase.QUOTING, Timeout): (Phase.ABORTED,),
    (Phase.QUOTED, Ask): (Phase.ASKED,),
    (Phase.QUOTED, Stop): (Phase.DONE,),
    (Phase.QUOTED, Lost): (Phase.ABORTED,),
    (Phase.QUOTED, Timeout): (Phase.ABORTED,),
    (Phase.ASKED, Accepted): (Phase.WAITING,),
    (Phase.ASKED, Refused): (Phase.DONE,),
    (Phase.ASKED, Stop): (Phase.CANCELLING,),
    (Phase.ASKED, Lost): (Phase.ABORTED,),
    (Phase.ASKED, Timeout): (Phase.ABORTED,),
    (Phase.WAITING, Tokens): (Phase.STREAMING,),
    (Phase.WAITING, Done): (Phase.DONE,),
    (Phase.WAITING, Failed): (Phase.DONE,),
    (Phase.WAITING, Stop): (Phase.CANCELLING,),
    (Phase.WAITING, Lost): (Phase.ABORTED,),
    (Phase.WAITING, Timeout): (Phase.ABORTED,),
    (Phase.STREAMING, Tokens): (Phase.STREAMING,),
    (Phase.STREAMING, Done): (Phase.SETTLING,),
    (Phase.STREAMING, Failed): (Phase.SETTLING,),
    (Phase.STREAMING, Stop): (Phase.CANCELLING,),
    (Phase.STREAMING, Lost): (Phase.ABORTED,),
    (Phase.STREAMING, Timeout): (Phase.ABORTED,),
    (Phase.CANCELLING, Accepted): (Phase.CANCELLING,),
    (Phase.CANCELLING, Refused): (Phase.DONE,),
    (Phase.CANCELLING, Tokens): (Phase.CANCELLING,),
    (Phase.CANCELLING, Done): (Phase.SETTLING, Phase.DONE),
    (Phase.CANCELLING, Failed): (Phase.SETTLING, Phase.DONE),
    (Phase.CANCELLING, Stop): (Phase.CANCELLING,),
    (Phase.CANCELLING, Lost): (Phase.ABORTED,),
    (Phase.CANCELLING, Timeout): (Phase.ABORTED,),
    (Phase.SETTLING, Settled): (Phase.DONE,),
    (Phase.SETTLING, Stop): (Phase.SETTLING,),
    (Phase.SETTLING, Lost): (Phase.DONE,),
    (Phase.SETTLING, Timeout): (Phase.DONE,),
}
"""Which phases may follow. In addition, any message that breaks a rule leads to ABORTED."""

WAITS_MS: Final = {
    Phase.QUOTING: QUOTE_MS,
    Phase.QUOTED: QUOTED_MS,
    Phase.ASKED: ADMIT_MS,
    Phase.WAITING: FIRST_TOKEN_MS,
    Phase.STREAMING: TOKEN_MS,
    Phase.CANCELLING: CANCEL_MS,
    Phase.SETTLING: SETTLE_MS,
}
"""How long each phase waits, milliseconds."""
