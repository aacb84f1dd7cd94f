"""What the books keep on disk: rows as canonical CBOR, parsed as strictly as anything from a peer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

from gossip_ledger.codec import Schema, Table, many, nested, octets, octets_up_to, text, uint
from gossip_ledger.records import BILL, AccountId, Bill, MicroUnits, ModelId, RecordId, Signature
from p2p.protocols.limits import CODE_BYTES_MAX

ROW_BYTES_MAX: Final = 1 << 20
TOKENS_MAX: Final = 1 << 17
"""Most tokens of prompt or answer in one row."""

ANSWER_BYTES_MAX: Final = 1 << 19
"""Most bytes kept of the text of one answer."""

AskKey = tuple[RecordId, int]
"""(open, ask): names a tab."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AskRow:
    """A payer's promise: what one ask may still cost, or did cost."""

    open: RecordId
    ask: int
    worker: AccountId
    model: ModelId
    answer: bytes
    """The local id of the answer that this ask belongs to, 16 bytes."""
    max_fee: MicroUnits
    fee: MicroUnits
    """The last bill signed; counts only once closed."""
    is_closed: int
    """1 once no further bill will be signed; until then the ask counts at `max_fee`."""

    @property
    def key(self) -> AskKey:
        return self.open, self.ask

    @property
    def committed(self) -> MicroUnits:
        return self.fee if self.is_closed else self.max_fee


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TabRow:
    """A worker's claim: the last bill that the payer signed, and what was delivered for it."""

    bill: Bill
    signature: Signature
    prompt: tuple[int, ...]
    output: tuple[int, ...]
    """Delivered tokens; may be one chunk longer than the bill says."""

    @property
    def key(self) -> AskKey:
        return self.bill.open, self.bill.ask


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRow:
    """An answer asked from here, kept so that a later receipt can be shown with it."""

    id: bytes
    name: str
    """The model name that was asked for."""
    model: ModelId
    text: bytes
    """UTF-8 of whatever the model said, control characters too; cut off at `ANSWER_BYTES_MAX`."""
    finish: str
    tokens_in: int
    tokens_out: int
    quantization: str
    ttft_ms: int
    duration_ms: int
    failovers: int
    workers: tuple[AccountId, ...]
    asks: tuple[AskRef, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AskRef:
    """One tab of an answer, with the last bill signed for it."""

    open: RecordId
    ask: int
    fee: MicroUnits


_token = uint((1 << 31) - 1)
_tokens = many(_token, TOKENS_MAX)

ASK_ROW: Final = Table(
    1,
    AskRow,
    (
        ("open", octets(32)),
        ("ask", uint()),
        ("worker", octets(32)),
        ("model", octets(32)),
        ("answer", octets(16)),
        ("max_fee", uint()),
        ("fee", uint()),
        ("is_closed", uint(1)),
    ),
)
TAB_ROW: Final = Table(
    2,
    TabRow,
    (("bill", nested(BILL)), ("signature", octets(64)), ("prompt", _tokens), ("output", _tokens)),
)
ASK_REF: Final = Table(3, AskRef, (("open", octets(32)), ("ask", uint()), ("fee", uint())))
ANSWER_ROW: Final = Table(
    4,
    AnswerRow,
    (
        ("id", octets(16)),
        ("name", text(256)),
        ("model", octets(32)),
        ("text", octets_up_to(ANSWER_BYTES_MAX)),
        ("finish", text(16)),
        ("tokens_in", uint()),
        ("tokens_out", uint()),
        ("quantization", text(CODE_BYTES_MAX)),
        ("ttft_ms", uint()),
        ("duration_ms", uint()),
        ("failovers", uint()),
        ("workers", many(octets(32), 64)),
        ("asks", many(nested(ASK_REF), 64)),
    ),
)

ASK_ROWS: Final = Schema(ASK_ROW, bytes_max=ROW_BYTES_MAX)
TAB_ROWS: Final = Schema(TAB_ROW, bytes_max=ROW_BYTES_MAX)
ANSWER_ROWS: Final = Schema(ANSWER_ROW, bytes_max=ROW_BYTES_MAX)


def ask_key_bytes(key: AskKey) -> bytes:
    """The storage key of a tab: the open's id, then the ask number."""
    opened, ask = key
    return opened + ask.to_bytes(8, "big")
