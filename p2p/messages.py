"""The messages of every wire protocol, as frozen values, and their field tables.

One `Schema` per protocol and direction, so a message that the other side may not send does not even
decode. Records, quotes and receipts travel as opaque bytes with schemas of their own. Frames, lengths and
streams are elsewhere; so is the order in which messages may come (`p2p/protocols/`).

Tags: 40.. hello, 50.. ask, 70.. sync, 80.. blob.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from gossip_ledger.codec import Schema, Table, many, nested, octets, octets_up_to, text, uint
from gossip_ledger.limits import BLOB_BYTES_MAX, RECONCILE_BYTES_MAX, RECORD_BYTES_MAX
from gossip_ledger.records import (
    BILL,
    Bill,
    BlobId,
    MicroUnits,
    ModelId,
    NetworkId,
    RecordId,
    Signature,
)
from p2p.protocols.limits import (
    ADDRESS_BYTES_MAX,
    ASK_FRAME_BYTES_MAX,
    ASK_RECORDS_MAX,
    BLOB_FRAME_BYTES_MAX,
    BLOB_IDS_MAX,
    CHUNK_TOKENS,
    CODE_BYTES_MAX,
    HELLO_ADDRESSES_MAX,
    HELLO_FRAME_BYTES_MAX,
    OUTPUT_TOKENS_MAX,
    PROMPT_TOKENS_MAX,
    REASON_BYTES_MAX,
    RETRY_AFTER_MS_MAX,
    SALT_BYTES,
    SOFTWARE_BYTES_MAX,
    SYNC_FRAME_BYTES_MAX,
    TEMPERATURE_MILLI_MAX,
    TOKEN_ID_MAX,
    TOP_P_MILLI_MAX,
    WANT_IDS_MAX,
)
from p2p.quotes import SIGNED_QUOTE, SignedQuote

TokenId = int
"""A token of the model's own tokenizer, 0 .. 2^31-1."""

# --- hello ---


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """The first message of either side of a link."""

    network: NetworkId
    rules: int
    """Version of the ledger's rules."""
    software: str
    """Name and version, for people."""
    clock_s: int
    """The sender's wall clock, Unix seconds."""
    listening: tuple[str, ...]
    """Addresses at which the sender may be dialled."""
    known: tuple[str, ...]
    """Addresses of others that the sender has met."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A polite no; nothing was done and nothing is owed."""

    code: str
    """For programs: see `p2p/protocols/codes.py`."""
    reason: str
    """For people."""
    retry_after_ms: int
    """When it may be worth trying again; 0 for never."""


# --- ask: payer to worker ---


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteRequest:
    """Asks for a signed price."""

    model: ModelId
    tokens_in_max: int
    tokens_out_max: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AskRequest:
    """Asks for an answer, under an open and a quote."""

    open: RecordId
    ask: int
    """Random 63-bit number, used once under its open."""
    model: ModelId
    quote: RecordId
    epoch: int
    """The epoch that the payer's bills will declare."""
    prompt: tuple[TokenId, ...]
    max_tokens: int
    """Most output tokens wanted."""
    temperature_milli: int
    top_p_milli: int
    seed: int
    max_fee: MicroUnits
    """Most that the payer will sign for this ask."""
    salt: bytes
    """Random, under both commitments of the bill."""
    records: tuple[bytes, ...]
    """The payer's own signed entries that may not be final yet, the open among them, in chain order."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SignedBill:
    """The payer's running bill. Each one replaces the one before."""

    bill: Bill
    signature: Signature


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """The payer wants no more tokens. What was delivered is still billed."""


# --- ask: worker to payer ---


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Quoted:
    """Answers a quote request."""

    quote: SignedQuote


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The ask is admitted; tokens follow."""

    waiting: int
    """Asks ahead of this one."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The next tokens of the answer."""

    first: int
    """Position of the first of them in the answer, from 0."""
    ids: tuple[TokenId, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """No more tokens will come, and these are the counts to bill."""

    reason: str
    """`stop`, `length` or `cancelled`."""
    tokens_in: int
    tokens_out: int

    def __post_init__(self) -> None:
        if self.reason not in ("stop", "length", "cancelled"):
            raise ValueError("reason must be stop, length or cancelled")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The worker cannot go on. What it delivered is billed, as after `Done`."""

    code: str
    reason: str
    tokens_in: int
    tokens_out: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """The receipt that closes the ask."""

    receipt: bytes
    """A signed receipt, as the ledger encodes it."""


# --- sync ---


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One message of the set reconciliation."""

    data: bytes


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """Asks for records by id."""

    ids: tuple[RecordId, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Next:
    """Asks for the next `WANT_IDS_MAX` records of those that both sides know to be wanted."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """Answers one `Want` or `Next`: as many of the records as the sender holds."""

    records: tuple[bytes, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """The initiator pulled what it wanted: now the responder may."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The sender is done with this stream."""


# --- blob ---


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Get:
    """Asks for blobs by id; they are answered one by one, in this order."""

    ids: tuple[BlobId, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """One blob."""

    id: BlobId
    data: bytes


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """The sender does not hold this blob."""

    id: BlobId


_id = octets(32)
_token = uint(TOKEN_ID_MAX)
_address = text(ADDRESS_BYTES_MAX)
_code = text(CODE_BYTES_MAX)
_reason = text(REASON_BYTES_MAX)
_tokens_in = uint(PROMPT_TOKENS_MAX)
_tokens_out = uint(OUTPUT_TOKENS_MAX)

HELLO = Table(
    40,
    Hello,
    (
        ("network", _id),
        ("rules", uint()),
        ("software", text(SOFTWARE_BYTES_MAX)),
        ("clock_s", uint()),
        ("listening", many(_address, HELLO_ADDRESSES_MAX)),
        ("known", many(_address, HELLO_ADDRESSES_MAX)),
    ),
)
REFUSED = Table(
    41,
    Refused,
    (("code", _code), ("reason", _reason), ("retry_after_ms", uint(RETRY_AFTER_MS_MAX))),
)
QUOTE_REQUEST = Table(
    50,
    QuoteRequest,
    (("model", _id), ("tokens_in_max", _tokens_in), ("tokens_out_max", _tokens_out)),
)
ASK_REQUEST = Table(
    51,
    AskRequest,
    (
        ("open", _id),
        ("ask", uint()),
        ("model", _id),
        ("quote", _id),
        ("epoch", uint()),
        ("prompt", many(_token, PROMPT_TOKENS_MAX, minimum=1)),
        ("max_tokens", uint(OUTPUT_TOKENS_MAX, minimum=1)),
        ("temperature_milli", uint(TEMPERATURE_MILLI_MAX)),
        ("top_p_milli", uint(TOP_P_MILLI_MAX)),
        ("seed", uint()),
        ("max_fee", uint()),
        ("salt", octets(SALT_BYTES)),
        ("records", many(octets_up_to(RECORD_BYTES_MAX), ASK_RECORDS_MAX)),
    ),
)
SIGNED_BILL = Table(52, SignedBill, (("bill", nested(BILL)), ("signature", octets(64))))
CANCEL = Table(53, Cancel, ())
QUOTED = Table(60, Quoted, (("quote", nested(SIGNED_QUOTE)),))
ACCEPTED = Table(61, Accepted, (("waiting", uint()),))
TOKENS = Table(
    62,
    Tokens,
    (("first", _tokens_out), ("ids", many(_token, CHUNK_TOKENS, minimum=1))),
)
DONE = Table(63, Done, (("reason", _code), ("tokens_in", _tokens_in), ("tokens_out", _tokens_out)))
FAILED = Table(
    64,
    Failed,
    (("code", _code), ("reason", _reason), ("tokens_in", _tokens_in), ("tokens_out", _tokens_out)),
)
SETTLED = Table(65, Settled, (("receipt", octets_up_to(RECORD_BYTES_MAX)),))
ROUND = Table(70, Round, (("data", octets_up_to(RECONCILE_BYTES_MAX)),))
WANT = Table(71, Want, (("ids", many(_id, WANT_IDS_MAX, minimum=1)),))
RECORD_BATCH = Table(72, Records, (("records", many(octets_up_to(RECORD_BYTES_MAX), WANT_IDS_MAX)),))
TURN = Table(73, Turn, ())
END = Table(74, End, ())
NEXT_BATCH = Table(75, Next, ())
GET = Table(80, Get, (("ids", many(_id, BLOB_IDS_MAX, minimum=1)),))
BLOB = Table(81, Blob, (("id", _id), ("data", octets_up_to(BLOB_BYTES_MAX))))
MISSING = Table(82, Missing, (("id", _id),))

HELLO_MESSAGES = Schema(HELLO, REFUSED, bytes_max=HELLO_FRAME_BYTES_MAX)
"""Hello, both ways."""
TO_WORKER = Schema(QUOTE_REQUEST, ASK_REQUEST, SIGNED_BILL, CANCEL, bytes_max=ASK_FRAME_BYTES_MAX)
"""Ask, from the payer to the worker."""
TO_PAYER = Schema(QUOTED, REFUSED, ACCEPTED, TOKENS, DONE, FAILED, SETTLED, bytes_max=ASK_FRAME_BYTES_MAX)
"""Ask, from the worker to the payer."""
SYNC_MESSAGES = Schema(ROUND, WANT, NEXT_BATCH, RECORD_BATCH, TURN, END, bytes_max=SYNC_FRAME_BYTES_MAX)
"""Sync, both ways."""
TO_BLOB_SERVER = Schema(GET, END, bytes_max=BLOB_FRAME_BYTES_MAX)
"""Blob, from the one who fetches."""
TO_BLOB_CLIENT = Schema(BLOB, MISSING, bytes_max=BLOB_FRAME_BYTES_MAX)
"""Blob, from the one who serves."""

PayerMessage = QuoteRequest | AskRequest | SignedBill | Cancel
WorkerMessage = Quoted | Refused | Accepted | Tokens | Done | Failed | Settled
