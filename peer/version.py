"""The version of this software, as told to people and peers."""

from __future__ import annotations

from typing import Final

VERSION: Final = "0.1.0"
SOFTWARE: Final = f"upkeep/{VERSION}"
"""What peers are told."""
