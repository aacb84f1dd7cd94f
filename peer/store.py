"""All that a node must not forget, in one SQLite file. The only module that imports sqlite3.

Three tables: **records** (grow-only, in order of arrival), **blobs** (by hash), and **values** (small
key-value namespaces: books, intents, bills, the witness' memory, addresses). A write returns when it is on
disk (WAL, synchronous=FULL); concurrent writers share one transaction and one sync. A cancelled write
happened wholly or not at all.

SQLite runs in worker threads, one at a time per connection, so the event loop never waits for the disk.
Errors of the disk or the file are `LocalError`s of one line. After an I/O error whose effect on the file is
unknown, the store refuses everything until it is opened again.

`MemoryStore` keeps the same promises without a disk, for simulations; one contract suite holds both.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar, final

import trio

from gossip_ledger.errors import LocalError
from gossip_ledger.records import BlobId, RecordId
from peer.limits import (
    STORE_BUSY_MS_MAX,
    STORE_CHECK_BYTES_MAX,
    STORE_COMMIT_BYTES_MAX,
    STORE_COMMIT_OPERATIONS_MAX,
    STORE_PAGE_ROWS,
)

RecordRow = tuple[RecordId, str, bytes]
"""Id, kind and the signed record's bytes."""
BlobRow = tuple[BlobId, bytes]
"""Hash and bytes."""
Put = tuple[str, bytes, bytes | None]
"""Namespace, key and value; None deletes the key."""

_T = TypeVar("_T")


class Store(Protocol):
    """A node's durable memory."""

    def load_records(self) -> AsyncIterator[RecordRow]:
        """Every record held when the iteration begins, oldest first."""
        ...

    def read_records(self) -> Iterator[RecordRow]:
        """The same, outside trio or before it matters. Blocks."""
        ...

    def load(self, namespace: str) -> list[tuple[bytes, bytes]]:
        """A namespace, sorted by key. Blocks: for starting up only."""
        ...

    async def append_records(self, rows: Sequence[RecordRow]) -> None:
        """Adds records; ids held already are skipped. Durable on return."""
        ...

    async def transact(self, puts: Sequence[Put], records: Sequence[RecordRow] = ()) -> None:
        """Writes values, and records with them, all or nothing. Durable on return."""
        ...

    async def get(self, namespace: str, key: bytes) -> bytes | None:
        """One value."""
        ...

    async def scan(self, namespace: str) -> list[tuple[bytes, bytes]]:
        """A namespace, sorted by key."""
        ...

    async def put_blobs(self, blobs: Sequence[BlobRow]) -> None:
        """Keeps blobs, whose hashes the caller checked. Durable on return."""
        ...

    async def get_blob(self, blob: BlobId) -> bytes | None:
        """A blob's bytes, which do hash to its id, or None. One that was damaged on disk is dropped."""
        ...

    async def missing_blobs(self, blobs: Sequence[BlobId]) -> tuple[BlobId, ...]:
        """Those of `blobs` that are not held, in the order given."""
        ...

    async def integrity(self) -> None:
        """Reads everything and checks it. Raises `LocalError` that says what is damaged."""
        ...


@final
@dataclass(frozen=True, slots=True)
class _Changes:
    """What one caller wants written."""

    records: tuple[RecordRow, ...] = ()
    puts: tuple[Put, ...] = ()
    blobs: tuple[BlobRow, ...] = ()
    drops: tuple[BlobId, ...] = ()

    @property
    def operations(self) -> int:
        return len(self.records) + len(self.puts) + len(self.blobs) + len(self.drops)

    @property
    def size(self) -> int:
        return (
            sum(len(body) for _, _, body in self.records)
            + sum(len(value) for _, _, value in self.puts if value is not None)
            + sum(len(data) for _, data in self.blobs)
        )


@final
@dataclass(slots=True, eq=False)
class _Ticket:
    """One waiting caller."""

    changes: _Changes
    is_done: bool = False
    error: str | None = None


_APPLICATION_ID: Final = 0x55504B31
_SCHEMAS: Final = (
    """
    CREATE TABLE records (position INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, kind TEXT NOT NULL,
                          body BLOB NOT NULL) STRICT;
    CREATE TABLE blobs (id BLOB PRIMARY KEY, data BLOB NOT NULL) STRICT;
    CREATE TABLE items (namespace TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL,
                        PRIMARY KEY (namespace, key)) STRICT, WITHOUT ROWID;
    """,
)
"""One script for each version of the schema; the file's user_version says how many ran."""


@final
class SqliteStore:
    """The store of a real node. Made by `open_store`; `close` it when no task uses it any more."""

    def __init__(self, path: Path, *, is_reader: bool = False) -> None:
        """Opens or creates the file, checks it and brings its schema up to date. Raises `LocalError`.

        A reader neither creates nor changes anything; a daemon may use the file at the same time.
        """
        self._path = path
        self._turn = trio.Lock()
        self._write_limiter = trio.CapacityLimiter(1)
        self._read_limiter = trio.CapacityLimiter(1)
        self._waiting: list[_Ticket] = []
        self._broken: str | None = None
        self.commits = 0
        """Transactions so far: fewer than writes where callers shared them."""
        try:
            self._writer = _connect(path, is_reader=is_reader)
            try:
                _prepare(self._writer, path, is_reader=is_reader)
                self._reader = _connect(path, is_reader=is_reader)
            except BaseException:
                self._writer.close()
                raise
        except sqlite3.Error as error:
            raise LocalError(_explain(path, error)) from error

    async def load_records(self) -> AsyncIterator[RecordRow]:
        query = "SELECT position, id, kind, body FROM records WHERE position > ? ORDER BY position LIMIT ?"
        last = 0
        while True:
            page = await self._read(_rows(query, (last, STORE_PAGE_ROWS)))
            for _, identity, kind, body in page:
                yield RecordId(identity), kind, body
            if len(page) < STORE_PAGE_ROWS:
                return
            last = page[-1][0]

    def read_records(self) -> Iterator[RecordRow]:
        query = "SELECT id, kind, body FROM records ORDER BY position"
        try:
            for identity, kind, body in self._reader.execute(query):
                yield RecordId(identity), kind, body
        except sqlite3.Error as error:
            raise LocalError(_explain(self._path, error)) from error

    def read_blob(self, blob: BlobId) -> bytes | None:
        """A blob whose bytes hash to its id, outside trio. Blocks."""
        try:
            row = self._reader.execute("SELECT data FROM blobs WHERE id = ?", (blob,)).fetchone()
        except sqlite3.Error as error:
            raise LocalError(_explain(self._path, error)) from error
        return row[0] if row is not None and hashlib.sha256(row[0]).digest() == blob else None

    def load(self, namespace: str) -> list[tuple[bytes, bytes]]:
        try:
            return _scan(self._reader, namespace)
        except sqlite3.Error as error:
            raise LocalError(_explain(self._path, error)) from error

    async def append_records(self, rows: Sequence[RecordRow]) -> None:
        await self._commit(_Changes(records=tuple(rows)))

    async def transact(self, puts: Sequence[Put], records: Sequence[RecordRow] = ()) -> None:
        await self._commit(_Changes(puts=tuple(puts), records=tuple(records)))

    async def get(self, namespace: str, key: bytes) -> bytes | None:
        query = "SELECT value FROM items WHERE namespace = ? AND key = ?"
        row = await self._read(lambda db: db.execute(query, (namespace, key)).fetchone())
        return None if row is None else row[0]

    async def scan(self, namespace: str) -> list[tuple[bytes, bytes]]:
        return await self._read(lambda db: _scan(db, namespace))

    async def put_blobs(self, blobs: Sequence[BlobRow]) -> None:
        await self._commit(_Changes(blobs=tuple(blobs)))

    async def get_blob(self, blob: BlobId) -> bytes | None:
        def read(db: sqlite3.Connection) -> tuple[bytes | None, bool]:
            row = db.execute("SELECT data FROM blobs WHERE id = ?", (blob,)).fetchone()
            return (None, True) if row is None else (row[0], hashlib.sha256(row[0]).digest() == blob)

        data, is_intact = await self._read(read)
        if is_intact:
            return data
        await self._commit(_Changes(drops=(blob,)))
        return None

    async def missing_blobs(self, blobs: Sequence[BlobId]) -> tuple[BlobId, ...]:
        query = "SELECT 1 FROM blobs WHERE id = ?"
        return await self._read(
            lambda db: tuple(blob for blob in blobs if db.execute(query, (blob,)).fetchone() is None)
        )

    async def integrity(self) -> None:
        await self._read(lambda db: _check(db, self._path, "integrity_check"))

        def first_damaged(db: sqlite3.Connection) -> bytes | None:
            for blob, data in db.execute("SELECT id, data FROM blobs"):
                if hashlib.sha256(data).digest() != blob:
                    return blob
            return None

        damaged = await self._read(first_damaged)
        if damaged is not None:
            raise LocalError(f"{self._path}: blob {damaged.hex()[:12]} is damaged; it will be fetched again")

    def close(self) -> None:
        """Closes the file. What was acknowledged is on disk whether or not this is called."""
        self._broken = self._broken or f"{self._path} is closed"
        self._reader.close()
        self._writer.close()

    async def _commit(self, changes: _Changes) -> None:
        """Leaves `changes` for whoever writes next, and writes for all who wait when it is our turn."""
        if not changes.operations:
            await trio.lowlevel.checkpoint()
            return
        ticket = _Ticket(changes)
        self._waiting.append(ticket)
        try:
            async with self._turn:
                if not ticket.is_done:
                    with trio.CancelScope(shield=True):
                        await self._write_batch()
                    assert ticket.is_done, "a batch begins with its oldest ticket"
        finally:
            if not ticket.is_done:  # cancelled while waiting: it must not be written any more
                self._waiting.remove(ticket)
        if ticket.error is not None:
            raise LocalError(ticket.error)

    async def _write_batch(self) -> None:
        batch = self._take_batch()
        error = self._broken
        if error is None:
            error = await trio.to_thread.run_sync(self._write, batch, limiter=self._write_limiter)
        for ticket in batch:
            ticket.error = error
            ticket.is_done = True

    def _take_batch(self) -> list[_Ticket]:
        operations = size = count = 0
        for ticket in self._waiting:
            operations += ticket.changes.operations
            size += ticket.changes.size
            if count and (operations > STORE_COMMIT_OPERATIONS_MAX or size > STORE_COMMIT_BYTES_MAX):
                break
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch

    def _write(self, batch: Sequence[_Ticket]) -> str | None:
        """One transaction, in a worker thread. Returns what went wrong, having written nothing."""
        db = self._writer
        try:
            db.execute("BEGIN IMMEDIATE")
            for ticket in batch:
                _apply(db, ticket.changes)
            db.execute("COMMIT")
        except sqlite3.Error as error:
            if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT):
                self._broken = _explain(self._path, error)
            try:
                if db.in_transaction:
                    db.execute("ROLLBACK")
            except sqlite3.Error:
                self._broken = _explain(self._path, error)
            return _explain(self._path, error)
        self.commits += 1
        return None

    async def _read(self, query: Callable[[sqlite3.Connection], _T]) -> _T:
        def run() -> _T:
            if self._broken is not None:
                raise LocalError(self._broken)
            try:
                return query(self._reader)
            except sqlite3.Error as error:
                raise LocalError(_explain(self._path, error)) from error

        return await trio.to_thread.run_sync(run, limiter=self._read_limiter)


def open_store(path: Path) -> SqliteStore:
    """Opens or creates the store. Raises `LocalError` of one line."""
    return SqliteStore(path)


def open_store_to_read(path: Path) -> SqliteStore:
    """Opens a store that exists, also one in use, without changing it. Raises `LocalError` of one line."""
    if not path.exists():
        raise LocalError(f"there is no store at {path} yet; run `upkeep up` first, or name another --home")
    return SqliteStore(path, is_reader=True)


def _connect(path: Path, *, is_reader: bool) -> sqlite3.Connection:
    target = f"{path.absolute().as_uri()}?mode=ro" if is_reader else str(path)
    db = sqlite3.connect(
        target,
        timeout=STORE_BUSY_MS_MAX / 1000,
        isolation_level=None,
        check_same_thread=False,
        uri=is_reader,
    )
    if not is_reader:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA trusted_schema = OFF")
    return db


def _prepare(db: sqlite3.Connection, path: Path, *, is_reader: bool) -> None:
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    tables = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if tables and application != _APPLICATION_ID:
        raise LocalError(f"{path} is not a store of upkeep; move it away")
    if version > len(_SCHEMAS):
        raise LocalError(f"{path} was written by a newer upkeep; update this installation")
    if is_reader:
        if version < len(_SCHEMAS):
            raise LocalError(f"{path} was written by an older upkeep; run `upkeep up` once to update it")
        return
    for number, script in enumerate(_SCHEMAS[version:], start=version + 1):
        stamp = f"PRAGMA application_id = {_APPLICATION_ID}; PRAGMA user_version = {number};"
        db.executescript(f"BEGIN IMMEDIATE; {script} {stamp} COMMIT;")
    if path.stat().st_size <= STORE_CHECK_BYTES_MAX:
        _check(db, path, "quick_check")


def _check(db: sqlite3.Connection, path: Path, pragma: str) -> None:
    found = db.execute(f"PRAGMA {pragma}(1)").fetchone()[0]
    if found != "ok":
        raise LocalError(_damaged(path, str(found).splitlines()[0]))


def _rows(query: str, values: tuple[object, ...]) -> Callable[[sqlite3.Connection], list[tuple[Any, ...]]]:
    return lambda db: db.execute(query, values).fetchall()


def _scan(db: sqlite3.Connection, namespace: str) -> list[tuple[bytes, bytes]]:
    query = "SELECT key, value FROM items WHERE namespace = ? ORDER BY key"
    return db.execute(query, (namespace,)).fetchall()


def _apply(db: sqlite3.Connection, changes: _Changes) -> None:
    db.executemany("INSERT OR IGNORE INTO records (id, kind, body) VALUES (?, ?, ?)", changes.records)
    db.executemany(
        "INSERT INTO blobs (id, data) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET data = excluded.data",
        changes.blobs,
    )
    db.executemany("DELETE FROM blobs WHERE id = ?", [(blob,) for blob in changes.drops])
    for namespace, key, value in changes.puts:
        if value is None:
            db.execute("DELETE FROM items WHERE namespace = ? AND key = ?", (namespace, key))
        else:
            db.execute("INSERT OR REPLACE INTO items VALUES (?, ?, ?)", (namespace, key, value))


def _damaged(path: Path, what: str) -> str:
    return f"{path} is damaged ({what}); move it away and start again: records come back from other peers"


def _explain(path: Path, error: sqlite3.Error) -> str:
    """One line for the operator: what failed and what to do."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return f"the disk of {path} is full; nothing was written. Free some space and try again"
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return f"{path} cannot be written; check its folder's permissions and that the disk is not read-only"
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return _damaged(path, str(error))
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"{path} is locked by another program; close it and try again"
    return f"{path}: {error}; check the disk, then start again"


@final
@dataclass(slots=True)
class MemoryStore:
    """The same promises, in memory. A simulated node that restarts is given the same `MemoryStore` again."""

    _records: dict[RecordId, tuple[str, bytes]] = field(default_factory=dict[RecordId, tuple[str, bytes]])
    _blobs: dict[BlobId, bytes] = field(default_factory=dict[BlobId, bytes])
    _items: dict[str, dict[bytes, bytes]] = field(default_factory=dict[str, dict[bytes, bytes]])

    async def load_records(self) -> AsyncIterator[RecordRow]:
        for row in list(self.read_records()):
            await trio.lowlevel.checkpoint()
            yield row

    def read_records(self) -> Iterator[RecordRow]:
        for identity, (kind, body) in list(self._records.items()):
            yield identity, kind, body

    def load(self, namespace: str) -> list[tuple[bytes, bytes]]:
        return sorted(self._items.get(namespace, {}).items())

    async def append_records(self, rows: Sequence[RecordRow]) -> None:
        await trio.lowlevel.checkpoint()
        self._add_records(rows)

    async def transact(self, puts: Sequence[Put], records: Sequence[RecordRow] = ()) -> None:
        await trio.lowlevel.checkpoint()
        self._add_records(records)
        for namespace, key, value in puts:
            if value is None:
                self._items.get(namespace, {}).pop(key, None)
            else:
                self._items.setdefault(namespace, {})[key] = value

    async def get(self, namespace: str, key: bytes) -> bytes | None:
        await trio.lowlevel.checkpoint()
        return self._items.get(namespace, {}).get(key)

    async def scan(self, namespace: str) -> list[tuple[bytes, bytes]]:
        await trio.lowlevel.checkpoint()
        return self.load(namespace)

    async def put_blobs(self, blobs: Sequence[BlobRow]) -> None:
        await trio.lowlevel.checkpoint()
        self._blobs.update((blob, bytes(data)) for blob, data in blobs)

    async def get_blob(self, blob: BlobId) -> bytes | None:
        await trio.lowlevel.checkpoint()
        return self._blobs.get(blob)

    async def missing_blobs(self, blobs: Sequence[BlobId]) -> tuple[BlobId, ...]:
        await trio.lowlevel.checkpoint()
        return tuple(blob for blob in blobs if blob not in self._blobs)

    async def integrity(self) -> None:
        await trio.lowlevel.checkpoint()

    def _add_records(self, rows: Iterable[RecordRow]) -> None:
        for identity, kind, body in rows:
            self._records.setdefault(identity, (kind, bytes(body)))
