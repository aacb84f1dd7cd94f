"""What all session machines share: events from below, effects to above, and how a machine is drawn.

A machine is a frozen value and one function, `step(session, event, now_ms) -> (session, effects)`. It sends,
sleeps, logs and stores nothing: the shell carries out the effects **in their order**, each completely before
the next, and feeds back what happens. Events are messages of the peer, decoded by the schema of their
direction, and local ones. Every machine keeps these rules:

- `NEXT[phase, event type]` holds the phases that may follow. A message that has no row, or that breaks a
  rule, aborts the session with `is_breach`; a local command that has no row is a bug of the caller.
- `DONE` and `ABORTED` are final: whatever comes then is ignored.
- `deadline_ms` is set exactly in phases that wait. The shell delivers `Timeout` once it has passed; an early
  one changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar, final

from gossip_ledger.errors import RemoteError

M = TypeVar("M")


class ProtocolError(RemoteError):
    """A message that the peer may not send, or not now."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """Event: the stream ended or broke. `reason` is for people."""

    reason: str = "the peer closed the stream"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Timeout:
    """Event: the time of `deadline_ms` has come."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Send(Generic[M]):
    """Effect: encode `message` and write it to the stream."""

    message: M


Row = tuple[Enum, type]


def mermaid(table: Mapping[Row, tuple[Enum, ...]], initial: Enum, final_phases: tuple[Enum, ...]) -> str:
    """The transition table as a Mermaid state diagram, one arrow per pair of phases."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for (before, event), afters in table.items():
        for after in afters:
            arrows.setdefault((before.name, after.name), []).append(event.__name__)
    lines = ["stateDiagram-v2", f"    [*] --> {initial.name}"]
    lines += [f"    {a} --> {b}: {', '.join(events)}" for (a, b), events in arrows.items()]
    lines += [f"    {phase.name} --> [*]" for phase in final_phases]
    return "\n".join(lines) + "\n"
