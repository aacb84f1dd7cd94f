"""Addresses of others: bounded, the ones that answered first, and kept over restarts."""

from __future__ import annotations

import pytest
import trio

from gossip_ledger.errors import LocalError
from peer.address_book import ADDRESSES_MAX, NAMESPACE, SAVE_S, StoredAddressBook
from peer.store import MemoryStore


async def save(book: StoredAddressBook) -> None:
    with trio.move_on_after(SAVE_S + 1):
        await book.run()


async def test_who_answered_comes_first_and_is_remembered(autojump_clock: object) -> None:
    store = MemoryStore()
    book = StoredAddressBook(store)
    for address in ("/a", "/b", "/c"):
        book.add(address)
    book.mark("/c", did_answer=True)
    book.mark("/a", did_answer=False)
    assert list(book.list()) == ["/c", "/b", "/a"]
    await save(book)
    again = StoredAddressBook(store)
    await again.load()
    assert list(again.list()) == ["/c", "/b", "/a"]


async def test_a_flood_of_addresses_displaces_nobody_who_answered(autojump_clock: object) -> None:
    store = MemoryStore()
    book = StoredAddressBook(store)
    book.mark("/good", did_answer=True)
    for number in range(ADDRESSES_MAX * 2):
        book.add(f"/ip4/10.0.0.1/tcp/{number}")
    book.add("/" + "x" * 300)
    assert len(book.list()) == ADDRESSES_MAX
    assert book.list()[0] == "/good"
    await save(book)
    assert len(await store.scan(NAMESPACE)) == ADDRESSES_MAX


async def test_what_cannot_be_read_is_forgotten() -> None:
    store = MemoryStore()
    await store.transact([(NAMESPACE, b"/x", b"rubbish")])
    book = StoredAddressBook(store)
    await book.load()
    assert not book.list()


async def test_a_full_disk_costs_no_node_its_life(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    book = StoredAddressBook(store)
    book.add("/a")

    async def full(*_: object) -> None:
        await trio.lowlevel.checkpoint()
        raise LocalError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryStore, "transact", full)
        await save(book)
    await save(book)
    assert len(await store.scan(NAMESPACE)) == 1, "written as soon as there is room"
