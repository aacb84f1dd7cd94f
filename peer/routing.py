"""Which worker should answer: a pure choice over the adverts that are valid now.

The score is expected time to first token, weighed by price and by what this peer saw itself:

    E = round trip + waiting turns / measured speed + prompt / prefill rate + load time if not resident

Among two random eligible workers and up to two random ones that hold the model resident, the lowest score
wins, the others follow as runners-up (power of two choices with holders; see docs/protocol/adverts.md).
Everybody's favourite would be the same worker; a draw of a few spreads the load.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

from gossip_ledger.records import AccountId, ModelId
from p2p.adverts import Advert

RANDOM_CANDIDATES: Final = 2
HOLDER_CANDIDATES: Final = 2
UNKNOWN_ROUND_TRIP_MS: Final = 50
UNKNOWN_SPEED: Final = 20
"""Tokens a second assumed of a worker that says nothing credible."""
PREFILL_SPEEDUP: Final = 8
"""Prompt tokens are read about this many times faster than tokens are written."""
LOAD_MS: Final = 400
"""Charged where the model is not resident."""
TYPICAL_ANSWER_TOKENS: Final = 64
FAILURE_PENALTY: Final = 4
"""Each recent failure makes a worker look this many times slower."""
FAILURES_MAX: Final = 3

POLICIES: Final = ("balanced", "fastest", "cheapest")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What this peer itself saw of a worker."""

    round_trip_ms: int | None = None
    tokens_per_s: int | None = None
    """Smoothed over recent answers."""
    failures: int = 0
    """Recent, decayed by success."""
    in_flight: int = 0
    """This peer's own running requests, counted at once."""
    busy_until_ms: int = 0
    """Monotonic time before which the worker asked to be left alone."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a request asks of a worker."""

    model: ModelId
    prompt_tokens: int
    max_tokens: int
    policy: str = "balanced"


NOTHING_OBSERVED: Final = Observed()


def is_eligible(advert: Advert, need: Need, observed: Observed, now_ms: int) -> bool:
    """Whether the worker can serve the request at all."""
    return (
        (need.model in advert.resident or need.model in advert.loadable)
        and need.prompt_tokens + need.max_tokens <= advert.max_context
        and observed.busy_until_ms <= now_ms
        and observed.failures < FAILURES_MAX
    )


def expected_first_token_ms(advert: Advert, need: Need, observed: Observed) -> int:
    """The formula of the module docstring, milliseconds."""
    speed = max(1, observed.tokens_per_s or min(advert.tokens_per_s, 10 * UNKNOWN_SPEED) or UNKNOWN_SPEED)
    round_trip = UNKNOWN_ROUND_TRIP_MS if observed.round_trip_ms is None else observed.round_trip_ms
    ahead = max(0, advert.waiting + observed.in_flight - max(0, advert.slots - advert.running))
    queue_ms = ahead * TYPICAL_ANSWER_TOKENS * 1000 // speed
    batch_ms = 1000 * (advert.running + observed.in_flight) // (speed * max(1, advert.slots))
    prefill_ms = need.prompt_tokens * 1000 // (speed * PREFILL_SPEEDUP)
    load_ms = 0 if need.model in advert.resident else LOAD_MS
    return round_trip + queue_ms + batch_ms + prefill_ms + load_ms + 1000 // speed


def price(advert: Advert, need: Need) -> int:
    """The most that the request can cost at the advertised prices, micro-units."""
    return -(-(need.prompt_tokens * advert.price_in + need.max_tokens * advert.price_out) // 1000)


def score(advert: Advert, need: Need, observed: Observed) -> int:
    """Lower is better."""
    wait = expected_first_token_ms(advert, need, observed) * FAILURE_PENALTY**observed.failures
    match need.policy:
        case "fastest":
            return wait
        case "cheapest":
            return price(advert, need) * 1_000_000 + wait
        case _:
            return wait * (1 + price(advert, need))


def choose(
    adverts: Sequence[Advert],
    need: Need,
    observed: Mapping[AccountId, Observed],
    now_ms: int,
    rng: random.Random,
) -> tuple[Advert, ...]:
    """The candidates, best first; empty if nobody is eligible. The draw is `rng`'s, so it can be replayed."""
    eligible = [a for a in adverts if is_eligible(a, need, observed.get(a.worker, NOTHING_OBSERVED), now_ms)]
    eligible.sort(key=lambda advert: advert.worker)

    def ranked(some: Sequence[Advert]) -> list[Advert]:
        return sorted(some, key=lambda a: score(a, need, observed.get(a.worker, NOTHING_OBSERVED)))

    if need.policy == "cheapest":
        return tuple(ranked(eligible))
    drawn = rng.sample(eligible, min(RANDOM_CANDIDATES, len(eligible)))
    resident = [a for a in eligible if need.model in a.resident]
    holders = rng.sample(resident, min(HOLDER_CANDIDATES, len(resident)))
    first = {a.worker: a for a in (*drawn, *holders)}
    rest = [a for a in eligible if a.worker not in first]
    return (*ranked(tuple(first.values())), *ranked(rest))
