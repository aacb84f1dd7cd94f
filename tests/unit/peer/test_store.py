"""One suite for the real store and the one in memory, then what only a disk can do wrong."""

from __future__ import annotations

import hashlib
import os
import resource
import sqlite3
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

import peer.store
from gossip_ledger.errors import LocalError
from gossip_ledger.records import BlobId, RecordId
from peer.store import MemoryStore, SqliteStore, Store, open_store, open_store_to_read


def row(number: int, body: bytes = b"body") -> tuple[RecordId, str, bytes]:
    return RecordId(number.to_bytes(32, "big")), "entry", body


def blob(data: bytes) -> tuple[BlobId, bytes]:
    return BlobId(hashlib.sha256(data).digest()), data


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "upkeep.sqlite"


@pytest.fixture(params=["sqlite", "memory"])
def store(request: pytest.FixtureRequest, path: Path):
    if request.param == "memory":
        yield MemoryStore()
        return
    opened = open_store(path)
    yield opened
    opened.close()


async def records_of(store: Store) -> list[tuple[RecordId, str, bytes]]:
    found = [item async for item in store.load_records()]
    assert found == list(store.read_records())
    return found


async def test_records_keep_their_order_and_first_body(store: Store) -> None:
    await store.append_records([row(9), row(3)])
    await store.append_records([row(3, b"other"), row(1)])
    assert await records_of(store) == [row(9), row(3), row(1)]


async def test_no_rows_is_no_work(store: Store) -> None:
    await store.append_records([])
    await store.transact([])
    assert await records_of(store) == []


async def test_values_are_put_read_scanned_and_deleted(store: Store) -> None:
    await store.transact([("book", b"b", b"2"), ("book", b"a", b"1"), ("other", b"a", b"x")])
    assert await store.get("book", b"a") == b"1"
    assert await store.get("book", b"missing") is None
    assert await store.get("nowhere", b"a") is None
    assert await store.scan("book") == [(b"a", b"1"), (b"b", b"2")] == store.load("book")
    await store.transact([("book", b"a", None), ("book", b"b", b"3"), ("book", b"gone", None)])
    assert await store.scan("book") == [(b"b", b"3")]
    assert await store.scan("other") == [(b"a", b"x")]


async def test_later_puts_of_one_call_win(store: Store) -> None:
    await store.transact([("n", b"k", b"1"), ("n", b"k", b"2")])
    assert await store.get("n", b"k") == b"2"
    await store.transact([("n", b"k", b"3"), ("n", b"k", None)])
    assert await store.get("n", b"k") is None


async def test_values_and_records_together(store: Store) -> None:
    await store.transact([("intent", b"1", b"sign")], [row(1)])
    assert await records_of(store) == [row(1)]
    assert await store.get("intent", b"1") == b"sign"


async def test_blobs(store: Store) -> None:
    one, two, absent = blob(b"one"), blob(b"two" * 1000), blob(b"absent")
    await store.put_blobs([one, two])
    await store.put_blobs([one])
    assert await store.get_blob(two[0]) == two[1]
    assert await store.get_blob(absent[0]) is None
    assert await store.missing_blobs([absent[0], one[0]]) == (absent[0],)
    await store.integrity()


async def test_many_pages_of_records(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer.store, "STORE_PAGE_ROWS", 7)
    for count in (6, 1, 1, 6, 3):
        start = len(list(store.read_records()))
        await store.append_records([row(start + index) for index in range(count)])
        assert await records_of(store) == [row(index) for index in range(start + count)]


@settings(max_examples=30, deadline=None)
@given(
    calls=st.lists(
        st.lists(
            st.tuples(st.sampled_from("ab"), st.binary(max_size=2), st.none() | st.binary(max_size=3)),
            max_size=5,
        ),
        max_size=8,
    )
)
def test_both_stores_agree(calls: list[list[tuple[str, bytes, bytes | None]]]) -> None:
    async def run() -> None:
        real, fake = SqliteStore(Path(":memory:")), MemoryStore()
        real._reader.close()
        real._reader = real._writer  # a database in memory belongs to one connection
        for call in calls:
            await real.transact(call)
            await fake.transact(call)
        for namespace in "ab":
            assert await real.scan(namespace) == await fake.scan(namespace)
        real._writer.close()

    real_stat = Path.stat
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "stat", lambda self, **k: real_stat(Path("/"), **k))
        trio.run(run)


async def test_reopening_finds_everything(path: Path) -> None:
    first = open_store(path)
    await first.transact([("n", b"k", b"v")], [row(1)])
    await first.put_blobs([blob(b"data")])
    first.close()
    second = open_store(path)
    assert list(second.read_records()) == [row(1)]
    assert second.load("n") == [(b"k", b"v")]
    assert await second.get_blob(blob(b"data")[0]) == b"data"
    second.close()


async def test_concurrent_writers_share_commits_and_each_is_durable(path: Path) -> None:
    store = open_store(path)
    witness = sqlite3.connect(path)
    lost: list[int] = []

    async def write(number: int) -> None:
        await store.append_records([row(number)])
        found = witness.execute("SELECT count(*) FROM records WHERE id = ?", (row(number)[0],)).fetchone()
        if not found[0]:
            lost.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(write, number)
    assert not lost
    assert store.commits <= 5
    witness.close()
    store.close()


async def test_a_commit_is_bounded_but_takes_one_large_caller(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer.store, "STORE_COMMIT_OPERATIONS_MAX", 10)
    store = open_store(path)
    async with trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(store.append_records, [row(number)])
        nursery.start_soon(store.append_records, [row(100 + number) for number in range(25)])
    assert len(list(store.read_records())) == 55
    assert store.commits >= 4
    store.close()


async def test_a_cancelled_waiter_writes_nothing_and_stops_nobody(path: Path) -> None:
    store = open_store(path)
    async with trio.open_nursery() as nursery:
        await store._turn.acquire()
        doomed = trio.CancelScope()

        async def write_and_be_cancelled() -> None:
            with doomed:
                await store.append_records([row(1)])

        nursery.start_soon(write_and_be_cancelled)
        nursery.start_soon(store.append_records, [row(2)])
        await trio.testing.wait_all_tasks_blocked()
        doomed.cancel()
        await trio.testing.wait_all_tasks_blocked()
        store._turn.release()
    assert list(store.read_records()) == [row(2)]
    store.close()


async def test_a_cancelled_writer_finishes_the_write_of_all_who_wait(path: Path) -> None:
    store = open_store(path)
    with trio.CancelScope() as scope:
        scope.cancel()
        await store.append_records([row(1)])
    await store.append_records([row(2)])
    assert [number for number, _, _ in store.read_records()] in ([row(2)[0]], [row(1)[0], row(2)[0]])
    store.close()


async def test_settings_that_durability_rests_on(path: Path) -> None:
    store = open_store(path)
    assert store._writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._writer.execute("PRAGMA synchronous").fetchone() == (2,)
    store.close()


async def test_a_write_that_fails_is_all_or_nothing_and_the_store_goes_on(path: Path) -> None:
    store = open_store(path)
    pages = store._writer.execute("PRAGMA page_count").fetchone()[0]
    store._writer.execute(f"PRAGMA max_page_count = {pages + 3}")
    with pytest.raises(LocalError, match="is full") as caught:
        await store.transact([("n", b"k", b"v")], [row(number, b"x" * 3000) for number in range(50)])
    assert "\n" not in str(caught.value)
    assert await store.get("n", b"k") is None
    assert list(store.read_records()) == []
    store._writer.execute("PRAGMA max_page_count = 100000")
    await store.append_records([row(1)])
    assert list(store.read_records()) == [row(1)]
    store.close()


async def test_everyone_in_a_failed_commit_hears_of_it(path: Path) -> None:
    store = open_store(path)
    store._writer.execute(
        f"PRAGMA max_page_count = {store._writer.execute('PRAGMA page_count').fetchone()[0]}"
    )
    failures = 0

    async def write(number: int) -> None:
        nonlocal failures
        try:
            await store.append_records([row(number, b"x" * 4000)])
        except LocalError:
            failures += 1

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(write, number)
    assert failures == 5
    assert list(store.read_records()) == []
    store.close()


async def test_an_input_output_error_closes_the_store_to_everything(path: Path) -> None:
    """The kernel refuses to grow the file: what reached the disk is not known, so nothing more is claimed."""
    store = open_store(path)
    await store.append_records([row(1)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(LocalError, match=r"check the disk|is full"):
            await store.append_records([row(2, b"x" * 1_000_000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    if store._broken:
        with pytest.raises(LocalError):
            await store.append_records([row(3)])
        with pytest.raises(LocalError):
            await store.get("n", b"k")
    store.close()
    again = open_store(path)
    assert list(again.read_records()) == [row(1)]
    again.close()


def test_a_folder_that_cannot_be_written(path: Path) -> None:
    with pytest.raises(LocalError, match="cannot be written") as caught:
        open_store(path.parent / "absent" / "upkeep.sqlite")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not Path("/proc/self/ns/mnt").exists(), reason="needs Linux")
def test_a_read_only_file(path: Path) -> None:
    open_store(path).close()
    if os.geteuid() == 0:  # root ignores modes; a read-only connection stands for a read-only disk
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        with pytest.raises(sqlite3.OperationalError) as caught:
            db.execute("CREATE TABLE t (x)")
        assert "cannot be written" in peer.store._explain(path, caught.value)
        db.close()
        return
    path.chmod(0o400)
    with pytest.raises(LocalError, match="cannot be written"):
        open_store(path)


def test_a_file_that_is_no_database(path: Path) -> None:
    path.write_bytes(b"not a database, but a long enough text" * 100)
    with pytest.raises(LocalError, match=r"is damaged .* move it away"):
        open_store(path)


def test_the_database_of_another_program(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE theirs (x)")
    db.close()
    with pytest.raises(LocalError, match="not a store of upkeep"):
        open_store(path)


def test_a_store_of_a_newer_version(path: Path) -> None:
    open_store(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(LocalError, match="newer upkeep"):
        open_store(path)


async def test_a_damaged_page_is_found_when_opening(path: Path) -> None:
    store = open_store(path)
    await store.append_records([row(number, b"x" * 500) for number in range(200)])
    store.close()
    with path.open("r+b") as file:
        file.seek(4096 * 5)
        file.write(b"\xff" * 4096)
    with pytest.raises(LocalError, match="is damaged"):
        open_store(path)


async def test_a_damaged_blob_is_reported_dropped_and_never_returned(path: Path) -> None:
    store = open_store(path)
    name, data = blob(b"precious")
    await store.put_blobs([(name, data)])
    store._writer.execute("UPDATE blobs SET data = ?", (b"spoiled!",))
    with pytest.raises(LocalError, match=name.hex()[:12]):
        await store.integrity()
    assert await store.get_blob(name) is None
    assert await store.missing_blobs([name]) == (name,)
    await store.put_blobs([(name, data)])
    assert await store.get_blob(name) == data
    store.close()


async def test_a_reader_sees_a_store_in_use_and_changes_nothing(path: Path) -> None:
    with pytest.raises(LocalError, match="no store"):
        open_store_to_read(path)
    store = open_store(path)
    await store.append_records([row(1)])
    await store.put_blobs([blob(b"data")])
    reader = open_store_to_read(path)
    assert list(reader.read_records()) == [row(1)]
    assert reader.read_blob(blob(b"data")[0]) == b"data"
    assert reader.read_blob(blob(b"other")[0]) is None
    await reader.integrity()
    await store.append_records([row(2)])
    assert list(reader.read_records()) == [row(1), row(2)]
    with pytest.raises(LocalError, match="cannot be written"):
        await reader.append_records([row(3)])
    reader.close()
    store.close()


def test_a_reader_of_an_older_store(path: Path) -> None:
    open_store(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 0")
    db.close()
    with pytest.raises(LocalError, match="older upkeep"):
        open_store_to_read(path)
