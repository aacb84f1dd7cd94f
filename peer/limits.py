"""Every bound of the shell, with its unit."""

from __future__ import annotations

from typing import Final

CONFIG_BYTES_MAX: Final = 1 << 20
"""Largest configuration file."""

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
