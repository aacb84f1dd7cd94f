"""Wrong usage, found by a command rather than by the parser of the command line."""

from __future__ import annotations

from typing import final

from gossip_ledger.errors import UpkeepError


@final
class UsageError(UpkeepError):
    """What was typed cannot be meant. Exit code 2."""
