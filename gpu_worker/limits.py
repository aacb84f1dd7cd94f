"""Every bound of the worker, with its unit."""

from __future__ import annotations

from typing import Final

PROMPT_TOKENS_MAX: Final = 8192
"""Most tokens in one prompt."""

TOKENS_OUT_MAX: Final = 8192
"""Most tokens that one request may ask for."""

STOP_IDS_MAX: Final = 16
"""Most token ids that end an answer."""

FRAME_BYTES_MAX: Final = 64 * 1024
"""Largest frame between the daemon and its worker process: a prompt of 8192 ids of 5 bytes fits."""

REASON_BYTES_MAX: Final = 512
"""Longest explanation in a frame, UTF-8 bytes."""

FOLDER_BYTES_MAX: Final = 4096
"""Longest path in a frame, UTF-8 bytes."""

SAFETENSORS_HEADER_BYTES_MAX: Final = 1 << 20
"""Largest header of an adapter's safetensors file. The format itself allows 100 MB."""

BASE_HEADER_BYTES_MAX: Final = 16 << 20
"""Largest header of one file of a base model, which the operator chose."""

TENSORS_MAX: Final = 8192
"""Most tensors in one adapter file."""

ADAPTER_CONFIG_BYTES_MAX: Final = 64 * 1024
"""Largest `adapter_config.json`."""

ADAPTER_BYTES_MAX: Final = 1 << 30
"""Largest adapter file."""

ADAPTER_RANK_MAX: Final = 128
"""Highest rank of one adapter."""

ADAPTER_SCALE_MAX: Final = 64
"""Highest `alpha / rank` of an adapter."""

ADAPTER_NORM_MAX: Final = 1000
"""Highest Frobenius norm of any `scale x B x A` factor pair, `scale |B| |A|`."""

ADAPTERS_REGISTERED_MAX: Final = 4096
"""Most adapters that one worker process knows by folder."""

ADAPTERS_RESIDENT_BYTES: Final = 512 << 20
"""Default cap on adapter tensors held in memory."""

ACTIVE_RANK_MAX: Final = 512
"""Most adapter rows (sum of ranks) in one batch."""

RESIDENT_NAMED_MAX: Final = 64
"""Most resident adapters that one `Stats` names."""

SLOTS_MAX: Final = 256
"""Most sequences in one batch."""

CONTEXT_MAX: Final = 131_072
"""Longest context that a worker offers, tokens."""

WAITING_MAX: Final = 64
"""Most requests that wait for a slot; more are refused with a time to retry."""

WAITING_TOKENS_MAX: Final = 65_536
"""Most tokens (prompt and answer) that wait for a slot."""

PREFILL_CHUNK_TOKENS: Final = 128
"""Prompt tokens computed in one step while nothing is being answered."""

PREFILL_BUSY_TOKENS: Final = 64
"""Prompt tokens computed in one step beside running answers: the wait that a prompt imposes on them."""

ATTENTION_ALIGN: Final = 64
"""Keys of a batch are read in multiples of this, so that neighbours do not change how a row is summed."""

TOKENIZER_BYTES_MAX: Final = 32 << 20
"""Largest `tokenizer.json`."""

TEMPLATE_BYTES_MAX: Final = 64 * 1024
"""Largest chat template."""

CONFIG_BYTES_MAX: Final = 64 * 1024
"""Largest `config.json`."""

CHAT_MESSAGES_MAX: Final = 256
"""Most messages in one conversation."""

CHAT_CHARACTERS_MAX: Final = 1 << 20
"""Most characters of a rendered conversation."""

TEMPLATE_LOOP_MAX: Final = 1024
"""Most items that `range` gives inside a chat template."""

TEMPLATE_DEPTH_MAX: Final = 2
"""Deepest nesting of loops in a chat template."""

SHARDS_MAX: Final = 512
"""Most safetensors files of one base."""
