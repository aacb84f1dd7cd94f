"""Every bound of the shell, with its unit."""

from __future__ import annotations

from typing import Final

CONFIG_BYTES_MAX: Final = 1 << 20
"""Largest configuration file."""

PRICE_MAX: Final = 10**15
"""Highest price of a worker, micro-units per 1,000 tokens."""

STORE_CHECK_BYTES_MAX: Final = 1 << 29
"""Largest store that is checked page by page when opened (about two seconds); bigger ones on demand."""

STORE_BUSY_MS_MAX: Final = 5_000
"""How long a store waits for another process, such as a backup, that holds its file."""

STORE_COMMIT_OPERATIONS_MAX: Final = 20_000
"""Most rows written by one transaction; more wait for the next."""

STORE_COMMIT_BYTES_MAX: Final = 64 << 20
"""Most bytes written by one transaction, unless a single caller brings more."""

STORE_PAGE_ROWS: Final = 2_000
"""Records read from the store at a time."""

TOKEN_BYTES: Final = 32
"""Random bytes in a local key."""

INVITE_FILE_BYTES_MAX: Final = 1 << 16
"""Largest file with an invite."""

INVITES_MAX: Final = 200
"""Most invites made with a network; each is an allocation of the genesis that every invite carries."""

BODY_BYTES_MAX: Final = 1 << 20
"""Largest body of a request to the gateway."""

BODY_S_MAX: Final = 30
"""Seconds within which a body must have arrived."""

SEND_S_MAX: Final = 30
"""Seconds a client may take to read one piece of an answer before it counts as gone."""

ASKS_MAX: Final = 64
"""Questions that the gateway works on at the same time; more are told to come back."""

ASK_TOKENS_MAX: Final = 1 << 20
"""Largest number of tokens that a question may ask for; the model's context is smaller."""

MESSAGES_MAX: Final = 1024
"""Most messages in a chat."""

TEXT_PARTS_MAX: Final = 64
"""Most parts of one message."""

STOPS_MAX: Final = 4
"""Most stop strings."""

STOP_CHARACTERS_MAX: Final = 256
"""Longest stop string."""

RECEIPTS_SHOWN_MAX: Final = 1000
"""Most receipts in one reply."""

TICKETS_MAX: Final = 32
"""Most unused tickets for the page."""

TICKET_S: Final = 12 * 3600
"""Seconds for which a ticket for the page can be used."""

SESSION_S: Final = 30 * 86_400
"""Seconds for which a session of the page lasts."""

GATEWAY_RESTARTS_MAX: Final = 100
"""How often the HTTP server is started again before the node gives up on it."""

GATEWAY_STALL_MS: Final = 30_000
"""Milliseconds after which a connection whose other end takes nothing is cut."""

RUN_FILE_BYTES_MAX: Final = 4096
"""Largest run.json."""

DATANET_JSON_BYTES_MAX: Final = 8 << 20
"""Largest `datanet.json`."""

SHARD_BYTES_MAX: Final = 64 << 20
"""Largest file of documents of one shard."""

LOG_FILE_BYTES_MAX: Final = 8 << 20
"""Size at which a log file is set aside."""

LOG_FILES_MAX: Final = 4
"""Most log files kept."""

ENGINE_ASKS_MAX: Final = 4096
"""Most frames queued for the worker process; it bounds its own queue far below."""

ENGINE_START_S: Final = 900
"""Longest start of a worker process: reading and quantizing a large base."""

ENGINE_STALL_S: Final = 300
"""Longest silence of a worker process that has work."""

ENGINE_BACKOFF_S: Final = 0.5
"""Pause before a dead worker process is started again, doubled each time."""

ENGINE_BACKOFF_S_MAX: Final = 60
"""Longest such pause."""

ENGINE_HEALTHY_S: Final = 60
"""A worker process that lived this long starts the pauses anew."""

ENGINE_STDERR_BYTES: Final = 4096
"""How much of a worker process' last output is kept, for saying why it died."""

EXPORT_LINE_CHARS_MAX: Final = 5 << 20
"""Longest line of a file of records: a manifest or a genesis in hex."""

STOP_WAIT_S_MAX: Final = 20
"""Longest that `upkeep stop` waits for the daemon's end."""
