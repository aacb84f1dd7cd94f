"""The demo's peers: real daemons in processes of their own, started, asked and killed from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, final

import httpx
import trio

from gossip_ledger.errors import LocalError
from peer.config import Home

START_S_MAX: Final = 90
"""Longest wait for a daemon to answer, the loading of its model not included."""
STOP_S_MAX: Final = 8
REQUEST_S_MAX: Final = 60
POLL_S: Final = 0.1
LOG_TAIL_CHARS: Final = 600


class DaemonError(LocalError):
    """A daemon of the demo did not do what it was asked."""


@final
class Daemon:
    """One peer of the demo. Its home was made by `init_home` or `create_network`."""

    def __init__(self, name: str, home: Home, *arguments: str, python: str = sys.executable) -> None:
        self.name = name
        self._python = python
        self.home = home
        self.log = home.path / "daemon.log"
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self._client: httpx.AsyncClient | None = None

    def start(self) -> None:
        """Starts the daemon; it keeps running until `stop` or `kill`."""
        self.home.run.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._python, "-m", "peer", "up", *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "UPKEEP_HOME": str(self.home.path)},
                start_new_session=True,
            )

    async def ready(self) -> None:
        """Returns once the gateway answers. Raises `DaemonError` with the end of the log."""
        with trio.move_on_after(START_S_MAX):
            while True:
                if self._process is None or self._process.poll() is not None:
                    raise DaemonError(
                        f"{self.name} stopped while starting; its log ends with: {self.log_tail()}"
                    )
                if await self._connect() and await self._answers():
                    return
                await trio.sleep(POLL_S)
        raise DaemonError(
            f"{self.name} did not answer within {START_S_MAX} s; its log ends with: {self.log_tail()}"
        )

    async def _connect(self) -> bool:
        try:
            gateway = str(json.loads(self.home.run.read_text(encoding="utf-8"))["gateway"])
            token = self.home.api_token.read_text(encoding="ascii").strip()
        except (FileNotFoundError, json.JSONDecodeError):
            return False
        await self._disconnect()
        headers = {"Authorization": f"Bearer {token}"}
        self._client = httpx.AsyncClient(
            base_url=gateway, headers=headers, timeout=REQUEST_S_MAX, trust_env=False
        )
        return True

    async def _disconnect(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def _answers(self) -> bool:
        try:
            return (await self.client.get("/api/status")).is_success
        except httpx.TransportError:
            return False

    @property
    def client(self) -> httpx.AsyncClient:
        assert self._client is not None, "ready() comes first"
        return self._client

    @property
    def url(self) -> str:
        return str(self.client.base_url)

    @property
    def pid(self) -> int:
        assert self._process is not None, "start() comes first"
        return self._process.pid

    async def get(self, path: str, **query: str) -> Any:
        """A JSON document from the daemon. Raises `DaemonError`."""
        return self._document(await self.client.get(path, params=query))

    async def post(self, path: str, body: Mapping[str, object]) -> Any:
        """Posts JSON and returns the JSON answer. Raises `DaemonError`."""
        return self._document(await self.client.post(path, json=body))

    def _document(self, response: httpx.Response) -> Any:
        if not response.is_success:
            raise DaemonError(f"{self.name} answered {response.status_code}: {response.text[:300]}")
        return response.json()

    @asynccontextmanager
    async def stream(
        self, path: str, body: Mapping[str, object]
    ) -> AsyncGenerator[AsyncIterator[dict[str, Any]]]:
        """The server-sent events of a streamed answer, parsed."""
        async with self.client.stream("POST", path, json=body) as response:
            if not response.is_success:
                await response.aread()
                self._document(response)
            yield self._events(response)

    async def _events(self, response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
        async for line in response.aiter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                yield json.loads(line.removeprefix("data: "))

    def kill(self) -> None:
        """kill -9. Its engine dies with it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    async def stop(self) -> None:
        """Asks the daemon to end, and kills it if it does not."""
        await self._disconnect()
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        with trio.move_on_after(STOP_S_MAX):
            await trio.to_thread.run_sync(self._process.wait, abandon_on_cancel=True)
        self.kill()

    def log_tail(self) -> str:
        """The last words of the daemon."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return " | ".join(text[-LOG_TAIL_CHARS:].strip().splitlines())
