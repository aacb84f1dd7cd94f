"""A daemon for tests of the command line: a scripted node behind the real gateway, in its own process.

`python -m tests.unit.peer.fake_daemon HOME [MODE]`; MODE changes how it answers. Prints `ready`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import trio

from peer.api import ErrorCode, RequestError
from peer.capabilities import SystemClock, SystemEntropy
from peer.config import Home
from peer.gateway.app import make_app
from peer.gateway.server import open_socket, serve_gateway
from peer.keys import make_folder
from peer.networks import read_api_token
from peer.run_file import RunFile, write_run_file
from tests.unit.peer.fake_node import FakeNode

MODES: dict[str, dict[str, Any]] = {
    "": {},
    "slow": {"texts": ("word ",) * 200, "pause_s": 0.05},
    "failover": {"fails_over_after": 1},
    "lost": {"fails_after": 2},
    "hostile": {"texts": ("\x1b[31mred\x1b[0m\x07", "ok")},
    "working": {"running": 8},
    "poor": {"fails": RequestError(ErrorCode.NO_FUNDS, "12 micro-units are too few; lower --max-fee")},
}


async def main(home: Home, mode: str) -> None:
    clock, entropy = SystemClock(), SystemEntropy()
    make_folder(home.path)
    listener = open_socket("127.0.0.1:0")
    async with trio.open_nursery() as nursery:
        app = make_app(
            FakeNode(**MODES[mode]),
            token=read_api_token(home, entropy),
            version="0",
            clock=clock,
            entropy=entropy,
            stop=nursery.cancel_scope.cancel,
        )
        url = await nursery.start(serve_gateway, app, listener)
        write_run_file(home, RunFile(pid=os.getpid(), gateway=url))
        print("ready", flush=True)


if __name__ == "__main__":
    trio.run(main, Home(Path(sys.argv[1])), sys.argv[2] if len(sys.argv) > 2 else "")
