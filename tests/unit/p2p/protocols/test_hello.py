"""Hello: two peers of one network greet; all others learn why not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from gossip_ledger.records import NetworkId
from p2p.messages import Hello, Refused
from p2p.protocols.codes import WRONG_NETWORK, WRONG_RULES
from p2p.protocols.hello import (
    NEXT,
    Abort,
    Denied,
    Event,
    Greeted,
    HelloSession,
    Phase,
    await_greeting,
    greet,
    step,
)
from p2p.protocols.limits import HELLO_MS
from p2p.protocols.session import Lost, Send, Timeout
from tests.unit.p2p.protocols.people import NETWORK
from tests.unit.p2p.protocols.worlds import Moment, SessionWatch, walk

OURS = Hello(network=NETWORK, rules=1, software="upkeep/1", clock_s=5, listening=("a",), known=())
THEIRS = replace(OURS, software="upkeep/2", listening=("b",), known=("c", "d"))


def test_two_of_one_network_greet() -> None:
    dialler, effects = greet(OURS, 0)
    assert effects == (Send(message=OURS),)
    other, _ = await_greeting(THEIRS, 0)
    other, effects = step(other, OURS, 1)
    assert effects == (Send(message=THEIRS), Greeted(hello=OURS))
    dialler, effects = step(dialler, THEIRS, 2)
    assert effects == (Greeted(hello=THEIRS),)
    assert dialler.is_over
    assert other.is_over


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"network": NetworkId(bytes(32))}, WRONG_NETWORK, "000102030405"),
        ({"rules": 2}, WRONG_RULES, "rules 1 and 2"),
    ],
)
def test_a_stranger_is_told_why(change: dict[str, object], code: str, words: str) -> None:
    other, _ = await_greeting(OURS, 0)
    other, effects = step(other, replace(THEIRS, **change), 0)
    assert isinstance(effects[0], Send)
    refused = effects[0].message
    assert isinstance(refused, Refused)
    assert refused.code == code
    assert words in refused.reason
    assert effects[1] == Denied(code=code, reason=refused.reason)
    _, effects = step(greet(OURS, 0)[0], refused, 0)
    assert effects == (Denied(code=code, reason=refused.reason),)


def test_the_dialler_judges_too() -> None:
    _, effects = step(greet(OURS, 0)[0], replace(THEIRS, network=NetworkId(bytes(32))), 0)
    assert isinstance(effects[0], Denied)
    assert effects[0].code == WRONG_NETWORK


def test_silence_ends_it() -> None:
    session, effects = step(await_greeting(OURS, 7)[0], Timeout(), 7 + HELLO_MS)
    assert session.phase is Phase.ABORTED
    assert isinstance(effects[0], Abort)
    assert not effects[0].is_breach


def events(session: HelloSession) -> Iterator[Event]:
    """All that may happen."""
    yield from (THEIRS, replace(THEIRS, rules=3), Refused(code="x", reason="y", retry_after_ms=0))
    yield from (Lost(), Timeout())


@pytest.mark.parametrize("start", [greet, await_greeting])
def test_every_sequence_of_four_events_keeps_the_rules(start: object) -> None:
    session, _ = start(OURS, 0)  # type: ignore[operator]
    seen = walk(
        step,
        Moment(session, SessionWatch(ends=(Greeted, Denied, Abort)), 0),
        events,
        waits=lambda phase: phase not in (Phase.DONE, Phase.ABORTED),
        depth=4,
    )
    assert {moment.session.phase for moment in seen} >= {Phase.DONE, Phase.ABORTED}
    assert {after for afters in NEXT.values() for after in afters} == {Phase.DONE, Phase.ABORTED}
