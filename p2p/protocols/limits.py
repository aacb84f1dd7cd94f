"""Every bound of the wire protocols, with its unit."""

from __future__ import annotations

from typing import Final

# --- tokens and asks ---

CHUNK_TOKENS: Final = 16
"""Most output tokens that a worker delivers beyond the last bill it accepted, and most in one message."""

BILL_EVERY_TOKENS: Final = 8
"""Unbilled tokens after which a payer signs its next bill: half a chunk, so it does not stall its worker."""

PROMPT_TOKENS_MAX: Final = 8192
"""Most tokens in a prompt."""

OUTPUT_TOKENS_MAX: Final = 8192
"""Most tokens in an answer."""

TOKEN_ID_MAX: Final = 2**31 - 1
"""Largest token id."""

ASK_RECORDS_MAX: Final = 16
"""Most records that accompany an ask: the payer's own entries that are not final yet."""

TEMPERATURE_MILLI_MAX: Final = 10_000
"""Highest sampling temperature, in thousandths."""

TOP_P_MILLI_MAX: Final = 1000
"""Highest nucleus mass, in thousandths."""

SALT_BYTES: Final = 32
"""Length of the salt under the commitments of an ask."""

ASK_FRAME_BYTES_MAX: Final = 128 * 1024
"""Largest frame of the ask protocol: a full prompt with its records."""

RETRY_AFTER_MS_MAX: Final = 3_600_000
"""Longest time that a refusal may ask a payer to wait, milliseconds."""

QUOTE_TTL_S_MAX: Final = 3600
"""Longest life of a quote, seconds."""

# --- deadlines, milliseconds ---

REQUEST_MS: Final = 20_000
"""Worker: from a fresh stream (or a quote) to the next request."""

QUOTE_MS: Final = 10_000
"""From a quote request to the quote, on both sides."""

QUOTED_MS: Final = 60_000
"""From a quote to the ask that uses it on the same stream, on both sides."""

ADMIT_MS: Final = 20_000
"""From an ask to its acceptance or refusal, on both sides."""

FIRST_TOKEN_MS: Final = 180_000
"""From acceptance to the first token: queueing and prefill, on both sides."""

TOKEN_MS: Final = 60_000
"""From one token to the next, on both sides."""

BILL_MS: Final = 15_000
"""Worker: from the moment it may not deliver more to the bill that lets it go on."""

CANCEL_MS: Final = 15_000
"""Payer: from a cancellation to the worker's last count."""

SETTLE_MS: Final = 45_000
"""From the last bill to the receipt, on both sides."""

# --- hello ---

HELLO_FRAME_BYTES_MAX: Final = 16 * 1024
"""Largest frame of the hello protocol."""

HELLO_MS: Final = 10_000
"""From our greeting to theirs, milliseconds."""

HELLO_ADDRESSES_MAX: Final = 16
"""Most addresses, of oneself and of others each, in a greeting."""

ADDRESS_BYTES_MAX: Final = 256
"""Longest address, UTF-8 bytes."""

SOFTWARE_BYTES_MAX: Final = 64
"""Longest name and version of a program, UTF-8 bytes."""

REASON_BYTES_MAX: Final = 256
"""Longest reason in words, UTF-8 bytes."""

CODE_BYTES_MAX: Final = 32
"""Longest machine-readable code, UTF-8 bytes."""

FAREWELL_MS: Final = 10_000
"""For writing the last message of an exchange, milliseconds."""

# --- sync ---

SYNC_FRAME_BYTES_MAX: Final = (1 << 20) + 64 * 1024
"""Largest frame of the sync protocol: a full answer to one `Want`."""

SYNC_STEP_MS: Final = 30_000
"""From one message to the next, milliseconds."""

WANT_IDS_MAX: Final = 256
"""Most records asked for at once: 256 of 4 KiB fit a frame."""

PULL_IDS_MAX: Final = 1 << 16
"""Most records that one side pulls in one session."""

SYNC_RANGES_MAX: Final = 96
"""Most ranges that an initiator cuts its records into."""

SYNC_UNDATED_RANGES: Final = 16
"""Ranges for the records that have no epoch, by id."""

SYNC_RANGE_IDS_MIN: Final = 512
"""Records in the newest range; further back they grow."""

SYNC_LIST_MIN: Final = 64
"""So many short ids or fewer are listed at once: no sketch is smaller."""

SYNC_PAGE_CELLS: Final = 21_000
"""Most cells of a sketch in one message: 252,000 bytes."""

SYNC_PAGE_SHORTS: Final = 31_000
"""Most short ids in one message: 248,000 bytes."""

SYNC_CELLS_MAX: Final = 4 * SYNC_PAGE_CELLS
"""Most cells in one session; what does not come apart by then is left to the ranges."""

SYNC_ASKS_MAX: Final = 12
"""Most questions after the first that a responder answers from its sketch; each takes a pass over its ids."""

PEEL_PASSES_MAX: Final = 1024
"""Most passes over a sketch while it comes apart; an honest one takes fewer than 100."""

# --- blobs ---

BLOB_FRAME_BYTES_MAX: Final = (1 << 20) + 1024
"""Largest frame of the blob protocol: one blob with its name."""

BLOB_IDS_MAX: Final = 16
"""Most blobs asked for at once."""

BLOBS_PER_STREAM_MAX: Final = 4096
"""Most blobs served over one stream: 4 GiB."""

BLOB_STEP_MS: Final = 30_000
"""From one blob to the next, milliseconds."""

# --- adverts and invites ---

ADVERT_BYTES_MAX: Final = 16 * 1024
"""Largest signed advert."""

ADVERT_TTL_S_MAX: Final = 120
"""Furthest into the future that an advert may expire, seconds."""

ADVERT_ADDRESSES_MAX: Final = 8
"""Most addresses in an advert or an invite."""

RESIDENT_MODELS_MAX: Final = 64
"""Most models that a worker may call resident."""

LOADABLE_MODELS_MAX: Final = 256
"""Most models that a worker may call loadable."""

ADVERTS_MAX: Final = 1024
"""Most workers remembered at once."""

INVITE_GENESIS_BYTES_MAX: Final = 16 * 1024
"""Largest genesis inside an invite; a larger one travels as a blob."""

INVITE_BYTES_MAX: Final = 24 * 1024
"""Largest decoded invite."""
