"""Where the network layer says what happened. structlog's loggers fit."""

from __future__ import annotations

from typing import Protocol, final


class EventLog(Protocol):
    """Takes an event name and fields. Ids are given short; what peers said in messages is never logged."""

    def info(self, event: str, /, **fields: object) -> object: ...

    def warning(self, event: str, /, **fields: object) -> object: ...


@final
class NoLog:
    """Says nothing."""

    def info(self, event: str, /, **fields: object) -> None:
        pass

    def warning(self, event: str, /, **fields: object) -> None:
        pass
