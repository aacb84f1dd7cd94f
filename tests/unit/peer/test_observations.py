"""What a peer saw of workers: bounded, forgiving, and never below zero."""

from __future__ import annotations

import pytest

from gossip_ledger.records import AccountId
from p2p.transport import Link
from peer.observations import BUSY_MS, FORGIVE_MS, WORKERS_MAX, Observations
from peer.routing import FAILURES_MAX
from tests.unit.peer.desk import HandClock

A, B = AccountId(b"a" * 32), AccountId(b"b" * 32)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def seen(clock: HandClock) -> Observations:
    return Observations(clock)


def test_speed_is_smoothed(seen: Observations) -> None:
    seen.served(A, 100)
    assert seen.get(A).tokens_per_s == 100
    seen.served(A, 20)
    assert seen.get(A).tokens_per_s == 80


def test_a_refusal_pauses_and_an_answer_ends_the_pause(seen: Observations, clock: HandClock) -> None:
    seen.refused(A, 5000)
    seen.refused(B, 0)
    assert seen.soonest_ms([A]) == 5000
    assert seen.soonest_ms([A, B]) == BUSY_MS
    clock.seconds = 2
    assert seen.soonest_ms([A]) == 3000
    assert seen.soonest_ms([]) == 0
    seen.served(A, 1)
    assert seen.soonest_ms([A]) == 0


def test_after_some_failures_a_worker_is_left_alone_for_a_while(seen: Observations) -> None:
    for _ in range(FAILURES_MAX - 1):
        seen.failed(A)
    assert seen.soonest_ms([A]) == 0
    seen.failed(A)
    assert seen.soonest_ms([A]) == FORGIVE_MS
    assert seen.get(A).failures < FAILURES_MAX, "then it may try again"
    seen.served(A, 1)
    assert seen.get(A).failures == 0


def test_running_requests_are_counted_also_when_they_fail(seen: Observations) -> None:
    with seen.in_flight(A), seen.in_flight(A):
        assert seen.get(A).in_flight == 2
    with pytest.raises(RuntimeError), seen.in_flight(A):
        raise RuntimeError
    assert seen.get(A).in_flight == 0


def test_the_table_is_bounded_and_forgets_the_oldest(seen: Observations) -> None:
    for number in range(WORKERS_MAX + 10):
        seen.served(AccountId(number.to_bytes(32, "big")), 7)
    assert len(seen.snapshot(())) == WORKERS_MAX
    assert seen.get(AccountId(bytes(32))).tokens_per_s is None


def test_round_trips_come_from_the_links_that_exist(seen: Observations) -> None:
    seen.served(A, 9)
    links = [
        Link(peer=peer, address="", is_outbound=True, round_trip_ms=trip)
        for peer, trip in [(A, 3), (B, None)]
    ]
    found = seen.snapshot(links)
    assert (found[A].round_trip_ms, found[A].tokens_per_s) == (3, 9)
    assert B not in found
