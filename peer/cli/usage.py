"""How a command ends other than well or badly: used wrongly, or interrupted."""

from __future__ import annotations

from typing import final

from gossip_ledger.errors import UpkeepError


@final
class UsageError(UpkeepError):
    """What was typed cannot be meant. Exit code 2."""


@final
class CutShortError(UpkeepError):
    """The person interrupted it. The message says what became of the work. Exit code 130."""
