"""The codes of refusals and failures: for programs, where `reason` is for people.

A code that a peer does not know is treated as final: it does not retry.
"""

from __future__ import annotations

from typing import Final

WRONG_NETWORK: Final = "wrong-network"
"""Another genesis."""
WRONG_RULES: Final = "wrong-rules"
"""Another version of the ledger's rules."""
BUSY: Final = "busy"
"""The queue is full; try again after the time given."""
DRAINING: Final = "draining"
"""The worker is about to stop; go elsewhere."""
NO_MODEL: Final = "no-model"
"""The worker does not serve this model."""
TOO_LONG: Final = "too-long"
"""Prompt or answer exceed what the worker, or its quote, allows."""
BAD_QUOTE: Final = "bad-quote"
"""The quote is unknown, expired, or for something else."""
BAD_OPEN: Final = "bad-open"
"""The open is unknown, unsound, expired or not for this worker."""
UNFUNDED: Final = "unfunded"
"""The open's rest, or the exposure that the worker accepts, does not cover the maximum fee."""
USED_ASK: Final = "used-ask"
"""The ask number was used before under this open."""
BAD_TERMS: Final = "bad-terms"
"""The ask contradicts itself or the clock of the worker."""
ENGINE: Final = "engine"
"""The engine failed."""
