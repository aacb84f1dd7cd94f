"""Hello: the first stream of a link, on which both sides find out whether they have anything to say.

The dialler greets, the other side greets back or refuses with a reason that the dialler can print. Greetings
carry addresses of others (peer exchange); they are hints, to be dialled and then believed.

    session, effects = greet(ours, now_ms)         # the dialler
    session, effects = await_greeting(ours, now_ms)   # the other side
    session, effects = step(session, message, now_ms)

The last effect is `Greeted(theirs)`, `Denied(...)` (either side found the other unfit) or `Abort`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final, assert_never, final

from p2p.messages import Hello, Refused
from p2p.protocols.codes import WRONG_NETWORK, WRONG_RULES
from p2p.protocols.limits import HELLO_MS
from p2p.protocols.session import Lost, Send, Timeout


class Phase(Enum):
    """Where the greeting is."""

    GREETED = auto()
    """Said hello; waits for theirs."""
    LISTENING = auto()
    """Waits for the dialler's hello."""
    DONE = auto()
    ABORTED = auto()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Greeted:
    """Last effect: the two fit."""

    hello: Hello


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Denied:
    """Last effect: they do not fit, in words for the operator."""

    code: str
    reason: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Abort:
    """Last effect: reset the stream."""

    reason: str
    is_breach: bool


Event = Hello | Refused | Lost | Timeout
Effect = Send[Hello | Refused] | Greeted | Denied | Abort
Step = tuple["HelloSession", tuple[Effect, ...]]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class HelloSession:
    """One side of a greeting."""

    ours: Hello
    phase: Phase
    deadline_ms: int | None

    @property
    def is_over(self) -> bool:
        """Whether nothing can happen any more."""
        return self.phase in (Phase.DONE, Phase.ABORTED)


NEXT: Final[dict[tuple[Phase, type], tuple[Phase, ...]]] = {
    (Phase.GREETED, Hello): (Phase.DONE,),
    (Phase.GREETED, Refused): (Phase.DONE,),
    (Phase.GREETED, Lost): (Phase.ABORTED,),
    (Phase.GREETED, Timeout): (Phase.ABORTED,),
    (Phase.LISTENING, Hello): (Phase.DONE,),
    (Phase.LISTENING, Lost): (Phase.ABORTED,),
    (Phase.LISTENING, Timeout): (Phase.ABORTED,),
}


def greet(ours: Hello, now_ms: int) -> Step:
    """The dialler's side."""
    session = HelloSession(ours=ours, phase=Phase.GREETED, deadline_ms=now_ms + HELLO_MS)
    return session, (Send(message=ours),)


def await_greeting(ours: Hello, now_ms: int) -> Step:
    """The side that was dialled."""
    return HelloSession(ours=ours, phase=Phase.LISTENING, deadline_ms=now_ms + HELLO_MS), ()


def find_mismatch(ours: Hello, theirs: Hello) -> Refused | None:
    """Why two peers cannot work together; None if they can."""
    if theirs.network != ours.network:
        ids = f"{ours.network[:6].hex()} and {theirs.network[:6].hex()}"
        return Refused(code=WRONG_NETWORK, reason=f"two networks: {ids}", retry_after_ms=0)
    if theirs.rules != ours.rules:
        rules = f"rules {ours.rules} and {theirs.rules} do not mix: update the older peer"
        return Refused(code=WRONG_RULES, reason=rules, retry_after_ms=0)
    return None


def step(session: HelloSession, event: Event, now_ms: int) -> Step:
    """What follows from one event. Raises nothing; see `session.py`."""
    if session.is_over:
        return session, ()
    if (session.phase, type(event)) not in NEXT:
        return _abort(session, f"unexpected {type(event).__name__}", is_breach=True)
    done = replace(session, phase=Phase.DONE, deadline_ms=None)
    match event:
        case Timeout():
            if session.deadline_ms is not None and now_ms < session.deadline_ms:
                return session, ()
            return _abort(session, "the peer did not greet in time", is_breach=False)
        case Lost(reason=reason):
            return _abort(session, reason, is_breach=False)
        case Refused(code=code, reason=reason):
            return done, (Denied(code=code, reason=reason),)
        case Hello():
            return done, _judge(session, event)
        case _:
            assert_never(event)


def _judge(session: HelloSession, theirs: Hello) -> tuple[Effect, ...]:
    refusal = find_mismatch(session.ours, theirs)
    is_dialler = session.phase is Phase.GREETED
    if refusal is not None:
        denied = Denied(code=refusal.code, reason=refusal.reason)
        return (denied,) if is_dialler else (Send(message=refusal), denied)
    if is_dialler:
        return (Greeted(hello=theirs),)
    return Send(message=session.ours), Greeted(hello=theirs)


def _abort(session: HelloSession, reason: str, *, is_breach: bool) -> Step:
    after = replace(session, phase=Phase.ABORTED, deadline_ms=None)
    return after, (Abort(reason=reason, is_breach=is_breach),)
