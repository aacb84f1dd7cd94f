"""What the daemon and its worker process say to each other, as frames over a pipe. Free of torch.

A frame is an unsigned varint length and a canonical CBOR array. The daemon numbers its questions; the
answers carry the number. `docs/protocol/pipe.md` has the conversation; here are the values and
`FrameReader`, which takes bytes as they come.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, cast, final

from gossip_ledger.codec import Schema, Table, many, octets, text, uint
from gossip_ledger.errors import DecodeError
from gossip_ledger.records import ModelId
from gpu_worker.identity import BaseId
from gpu_worker.limits import (
    FOLDER_BYTES_MAX,
    FRAME_BYTES_MAX,
    PROMPT_TOKENS_MAX,
    REASON_BYTES_MAX,
    RESIDENT_NAMED_MAX,
    STOP_IDS_MAX,
    TOKENS_OUT_MAX,
)

BARE_BASE: Final = ModelId(b"")
"""The model of a request that uses the base without an adapter."""

QUANTIZATIONS: Final = ("bf16", "nf4", "int8", "fp32")
"""How a worker may hold its base. `fp32` is for tests and comparison."""

BUSY: Final = "busy"
"""Refused now, may be asked again after `retry_after_ms`."""
TOO_LONG: Final = "too-long"
"""Prompt and answer do not fit the context."""
BAD_REQUEST: Final = "bad-request"
"""The request cannot be served by any worker of this base."""
UNKNOWN_ADAPTER: Final = "unknown-adapter"
"""The model was not loaded."""
ADAPTER_REFUSED: Final = "adapter-refused"
"""The adapter's files break the load policy."""
ENGINE_DIED: Final = "engine-died"
"""The worker process ended; the request may be repeated."""
DEVICE: Final = "device"
"""The device failed, for example out of memory."""

STOPPED: Final = "stop"
"""The model ended its answer."""
LENGTH: Final = "length"
"""The answer reached `max_tokens`."""
CANCELLED: Final = "cancelled"
"""The asker cancelled it."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Generate:
    """Asks for an answer. Answered by `Generated` ... then one `Finished` or `Failed`."""

    request: int
    model: ModelId
    """An adapter that was loaded, or `BARE_BASE`."""
    prompt: tuple[int, ...]
    max_tokens: int
    temperature_milli: int
    """Thousandths; 0 takes the likeliest token always."""
    top_p_milli: int
    """Thousandths of probability to draw from, 1 .. 1000."""
    seed: int
    """The same seed and request give the same answer on equal machines."""
    stop_ids: tuple[int, ...]
    """Ids that end the answer; they are not part of it."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Ends a request within one step. It still ends with `Finished`. Unknown numbers are ignored."""

    request: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LoadAdapter:
    """Checks an adapter's files and makes it available. Answered by `Loaded` or `Failed`."""

    request: int
    model: ModelId
    folder: str
    """Holds `adapter_model.safetensors` and `adapter_config.json`; stays there as long as the adapter is
    loaded."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class UnloadAdapter:
    """Forgets an adapter; running requests keep it to their end. Answered by `Unloaded`."""

    request: int
    model: ModelId


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GetStats:
    """Asks for `Stats`."""

    request: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Shutdown:
    """Ends the process at once."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The first frame of a worker process that can serve: what it is."""

    base: BaseId
    quantization: str
    dtype: str
    """What matrices are multiplied in."""
    device: str
    kernels: str
    """The class of hardware and code paths; workers of equal class give equal bits."""
    max_context: int
    """Most tokens of prompt and answer together."""
    slots: int
    """Most answers generated at the same time."""
    vocabulary: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CannotStart:
    """The first and last frame of a worker process that cannot serve."""

    reason: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """The next tokens of an answer, in order."""

    request: int
    ids: tuple[int, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The end of an answer."""

    request: int
    reason: str
    """`stop`, `length` or `cancelled`."""
    tokens_in: int
    tokens_out: int
    """Tokens generated; the id that stopped it is not counted."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A request that is not, or no longer, served."""

    request: int
    code: str
    reason: str
    """For people."""
    retry_after_ms: int
    """For `busy`; else 0."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """An adapter is available."""

    request: int
    rank: int
    bytes: int
    """Memory that it takes while resident."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Unloaded:
    """An adapter is forgotten (or never was known)."""

    request: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What the worker is doing."""

    request: int
    running: int
    waiting: int
    kv_tokens_used: int
    """Tokens that hold a place in the cache now."""
    tokens_per_s: int
    """Tokens per second of one answer, over the last steps; 0 before the first answer."""
    adapters: int
    """Adapters that are loaded, resident or not."""
    resident: tuple[ModelId, ...]
    """Adapters in memory, most recently used first."""


ToWorker = Generate | Cancel | LoadAdapter | UnloadAdapter | GetStats | Shutdown
FromWorker = Ready | CannotStart | Generated | Finished | Failed | Loaded | Unloaded | Stats
Event = Generated | Finished | Failed
"""What a request for an answer is answered with."""

_request = uint(2**53)
_model = octets(32, or_empty=True)
_id = uint(2**31 - 1)
_reason = text(REASON_BYTES_MAX)
_word = text(64)

TO_WORKER: Final = Schema(
    Table(
        1,
        Generate,
        (
            ("request", _request),
            ("model", _model),
            ("prompt", many(_id, PROMPT_TOKENS_MAX, minimum=1)),
            ("max_tokens", uint(TOKENS_OUT_MAX, minimum=1)),
            ("temperature_milli", uint(10_000)),
            ("top_p_milli", uint(1000, minimum=1)),
            ("seed", uint(2**63 - 1)),
            ("stop_ids", many(_id, STOP_IDS_MAX)),
        ),
    ),
    Table(2, Cancel, (("request", _request),)),
    Table(3, LoadAdapter, (("request", _request), ("model", octets(32)), ("folder", text(FOLDER_BYTES_MAX)))),
    Table(4, UnloadAdapter, (("request", _request), ("model", octets(32)))),
    Table(5, GetStats, (("request", _request),)),
    Table(6, Shutdown, ()),
    bytes_max=FRAME_BYTES_MAX,
)
"""Frames from the daemon to the worker."""

FROM_WORKER: Final = Schema(
    Table(
        20,
        Ready,
        (
            ("base", octets(32)),
            ("quantization", _word),
            ("dtype", _word),
            ("device", _word),
            ("kernels", _word),
            ("max_context", uint(minimum=1)),
            ("slots", uint(minimum=1)),
            ("vocabulary", uint(minimum=1)),
        ),
    ),
    Table(21, CannotStart, (("reason", _reason),)),
    Table(22, Generated, (("request", _request), ("ids", many(_id, TOKENS_OUT_MAX, minimum=1)))),
    Table(
        23,
        Finished,
        (("request", _request), ("reason", _word), ("tokens_in", uint()), ("tokens_out", uint())),
    ),
    Table(
        24,
        Failed,
        (("request", _request), ("code", _word), ("reason", _reason), ("retry_after_ms", uint())),
    ),
    Table(25, Loaded, (("request", _request), ("rank", uint()), ("bytes", uint()))),
    Table(26, Unloaded, (("request", _request),)),
    Table(
        27,
        Stats,
        (
            ("request", _request),
            ("running", uint()),
            ("waiting", uint()),
            ("kv_tokens_used", uint()),
            ("tokens_per_s", uint()),
            ("adapters", uint()),
            ("resident", many(octets(32), RESIDENT_NAMED_MAX)),
        ),
    ),
    bytes_max=FRAME_BYTES_MAX,
)
"""Frames from the worker to the daemon."""


def encode_frame(schema: Schema, value: ToWorker | FromWorker) -> bytes:
    """One frame: length and contents. Raises `DecodeError` where a field is out of its range."""
    payload = schema.encode(value)
    length = len(payload)
    head = bytearray()
    while length >= 0x80:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head) + payload


def short(reason: str) -> str:
    """`reason` made fit for a frame: printable and within the limit."""
    printable = "".join(c if c.isprintable() else " " for c in reason)
    return printable.encode("utf-8", "replace")[:REASON_BYTES_MAX].decode("utf-8", "ignore")


@final
class FrameReader:
    """Turns one direction of the pipe into values. After an error it is of no further use."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._buffer = bytearray()

    def receive(self, data: bytes) -> Iterator[Any]:
        """The values that `data` completes. Raises `DecodeError` where the bytes are no frames."""
        self._buffer += data
        while (payload := self._next()) is not None:
            yield self._schema.decode(payload)

    def _next(self) -> bytes | None:
        length = 0
        for index, byte in enumerate(self._buffer[:4]):
            length |= (byte & 0x7F) << (7 * index)
            if length > self._schema.bytes_max:
                break
            if byte < 0x80:
                end = index + 1 + length
                if len(self._buffer) < end:
                    return None
                payload = bytes(self._buffer[index + 1 : end])
                del self._buffer[:end]
                return payload
        if len(self._buffer) >= 4 or length > self._schema.bytes_max:
            raise DecodeError("a frame is longer than allowed")
        return None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """How a worker process is started."""

    base: str
    """Folder of the base model."""
    quantization: str = "bf16"
    device: str = "cpu"
    threads: int = 1
    """Threads of one matrix product. More than the cores that are really free makes everything slower."""
    slots: int = 8
    max_context: int = 2048
    cache: str = ""
    """Where digests of weights are kept; empty: nowhere."""

    def arguments(self) -> tuple[str, ...]:
        """The command line of `python -m gpu_worker`."""
        names = cast("tuple[str, ...]", self.__slots__)
        return tuple(
            part for name in names for part in (f"--{name.replace('_', '-')}", str(getattr(self, name)))
        )
