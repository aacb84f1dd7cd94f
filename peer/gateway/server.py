"""The gateway on a socket: hypercorn on trio, with a listening socket of our own.

The socket is opened before the server starts, so a port in use is one line for the operator. Should the
server itself fail, it is started again on the same socket: the node outlives its HTTP interface.
"""

from __future__ import annotations

import logging
import socket
from typing import Any, Final, cast

import structlog
import trio
from hypercorn.config import Config
from hypercorn.trio import serve  # pyright: ignore[reportUnknownVariableType]
from starlette.applications import Starlette

from gossip_ledger.errors import LocalError
from peer.config import parse_bind
from peer.gateway.guard import LOOPBACK_HOSTS
from peer.limits import GATEWAY_RESTARTS_MAX, GATEWAY_STALL_MS

BACKLOG: Final = 100
RESTART_S: Final = 0.2


def allowed_hosts(bind: str) -> frozenset[str]:
    """The host names that a gateway bound to `bind` answers to."""
    host, _ = parse_bind(bind)
    return LOOPBACK_HOSTS | {host}


def open_socket(bind: str) -> socket.socket:
    """A listening socket on `host:port`. Raises `LocalError`."""
    host, port = parse_bind(bind)
    listener: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit these. A client that reads nothing must not hold up the end of the node:
        # the server's own sending cannot be cancelled.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, GATEWAY_STALL_MS)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        if listener is not None:
            listener.close()
        what = f"the gateway cannot listen on {bind}: {error.strerror or error}"
        raise LocalError(f"{what}; choose another with --bind, such as 127.0.0.1:0") from error
    return listener


def base_url(listener: socket.socket) -> str:
    """The URL under which this machine reaches the gateway."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def serve_gateway(
    app: Starlette, listener: socket.socket, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serves until cancelled; reports the gateway's URL when it can be called. Closes the socket."""
    log = structlog.get_logger("gateway")
    with listener:
        task_status.started(base_url(listener))
        for _ in range(GATEWAY_RESTARTS_MAX):
            config = Config()
            config.bind = [f"fd://{listener.dup().detach()}"]
            config.graceful_timeout = 1
            config.include_server_header = False
            config.keep_alive_timeout = 30
            config.errorlog = logging.getLogger("upkeep.gateway.server")
            config.accesslog = None
            try:
                await serve(cast("Any", app), config, mode="asgi")
            except Exception:
                log.exception("gateway_restarts")
            await trio.sleep(RESTART_S)
    raise LocalError("the gateway failed again and again; see the log, and report this as a defect")
