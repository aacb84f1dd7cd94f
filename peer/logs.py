"""Logs: one JSON object a line into the home's `logs` folder, and short lines on stderr for who watches.

Prompts, answers, keys and tokens are never logged; ids are shortened where they are logged. The files
rotate, so a node that runs for years keeps a bounded amount.
"""

from __future__ import annotations

import logging
import logging.handlers
import sys
from typing import Any, Final

import structlog

from gossip_ledger.errors import LocalError
from peer.config import Home
from peer.keys import make_folder
from peer.limits import LOG_FILE_BYTES_MAX, LOG_FILES_MAX

LOG_NAME: Final = "upkeep.log"
NOISY: Final = ("libp2p", "multiaddr", "hpack", "httpx", "httpcore", "asyncio", "hypercorn")
"""Libraries whose warnings are about peers' behaviour, which the node counts itself."""


def configure_logs(home: Home, *, level: str = "info", stderr_level: str = "warning") -> None:
    """Sends the logs of this process to the home's folder and to stderr. Raises `LocalError`."""
    make_folder(home.logs)
    try:
        file = logging.handlers.RotatingFileHandler(
            home.logs / LOG_NAME, maxBytes=LOG_FILE_BYTES_MAX, backupCount=LOG_FILES_MAX - 1, encoding="utf-8"
        )
    except OSError as error:
        what = f"cannot write logs in {home.logs}: {error.strerror}; check the disk and permissions"
        raise LocalError(what) from error
    file.setLevel(level.upper())
    file.setFormatter(_formatter(structlog.processors.JSONRenderer(ensure_ascii=False)))
    stderr = logging.StreamHandler(sys.stderr)
    stderr.setLevel(stderr_level.upper())
    stderr.setFormatter(_formatter(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())))
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    root.addHandler(file)
    root.addHandler(stderr)
    root.setLevel(min(file.level, stderr.level))
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_shared(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _shared() -> list[Any]:
    return [
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        _hex_bytes,
    ]


def _hex_bytes(logger: object, method: str, event: Any) -> Any:
    """Ids are logged short and readable."""
    del logger, method
    for name, value in event.items():
        if isinstance(value, bytes):
            event[name] = value.hex()[:12]
    return event


def _formatter(renderer: Any) -> structlog.stdlib.ProcessorFormatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_shared(),
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )
