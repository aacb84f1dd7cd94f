"""A program for test_store_kill: writers that are killed again and again. Prints what was lost.

Not a test itself: it forks, which a test process with threads should not.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import time
from pathlib import Path

import trio

from gossip_ledger.records import RecordId
from peer.store import SqliteStore, open_store

TASKS = 8


async def write_for_ever(store: SqliteStore, generation: int, out: int) -> None:
    """Eight tasks write numbered records and a value beside each; every acknowledged one is printed."""

    async def task(number: int) -> None:
        count = 0
        while True:
            identity = generation.to_bytes(8, "big") + number.to_bytes(8, "big") + count.to_bytes(16, "big")
            await store.transact(
                [
                    ("last", identity[:16], identity),
                    ("pair", identity, b"a"),
                    ("pair", identity + b"2", b"b"),
                ],
                [(RecordId(identity), "entry", os.urandom(random.randrange(3000)))],
            )
            os.write(out, identity)
            count += 1

    async with trio.open_nursery() as nursery:
        for number in range(TASKS):
            nursery.start_soon(task, number)


def run_child(path: Path, generation: int, delay_s: float) -> set[bytes]:
    """Kills a writer after `delay_s` and returns what it said was written."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read_end)
        trio.run(write_for_ever, open_store(path), generation, write_end)
        os._exit(3)
    os.close(write_end)
    said, end = b"", time.monotonic() + delay_s
    while (left := end - time.monotonic()) > 0:
        if select.select([read_end], [], [], left)[0]:
            said += os.read(read_end, 65536)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), f"the writer ended by itself: {status}"
    while more := os.read(read_end, 65536):
        said += more
    os.close(read_end)
    return {said[start : start + 32] for start in range(0, len(said) - 31, 32)}


def main() -> None:
    path, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    rng = random.Random(seed)
    acknowledged: set[bytes] = set()
    lost = torn = 0
    for generation in range(kills):
        acknowledged |= run_child(path, generation, rng.uniform(0.02, 0.2))
        store = open_store(path)
        held = {bytes(identity) for identity, _, _ in store.read_records()}
        pairs = {key for key, _ in store.load("pair")}
        lost += len(acknowledged - held)
        torn += len({key[:32] for key in pairs} ^ held) + (len(pairs) != 2 * len(held))
        store.close()
    print(json.dumps({"acknowledged": len(acknowledged), "lost": lost, "torn": torn}))


main()
