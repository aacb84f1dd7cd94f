"""The demo's texts: how they are fetched, cut, and described. Runs on small archives made here."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gossip_ledger.errors import LocalError
from gossip_ledger.records import AccountId
from gpu_worker.base import cache_folder
from gpu_worker.documents import Document
from peer.datanets import load_datanet, model_parts, save_datanet
from peer.demo.corpora import CORPORA, load_corpus
from peer.demo.drafts import HELD_OUT_PER_CONTRIBUTOR, SHARD_BYTES, Corpus, contribute, to_contents
from peer.demo.packages import MEMBER_BYTES_MAX, Package, fetch_package, read_members
from peer.demo.passages import draw, prose_passages, shorten, verse_passages

PACKAGE = Package(
    name="sample", version="1.0", archive="sample-1.0.whl", sha256=hashlib.sha256(b"archive").hexdigest()
)


def documents(count: int, size: int = 100) -> list[Document]:
    return [Document(title=f"t{n}", prompt="p", text=f"{n} ".ljust(size, "x")) for n in range(count)]


def test_what_is_cached_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / PACKAGE.archive).write_bytes(b"archive")

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("no client may run")

    monkeypatch.setattr(subprocess, "run", never)
    assert fetch_package(PACKAGE, tmp_path) == tmp_path / PACKAGE.archive


def _client(
    serve: Callable[[Path], object], code: int = 0
) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(command: tuple[str, ...], **kwargs: object) -> subprocess.CompletedProcess[str]:
        folder = Path(command[command.index("--dest") + 1])
        pin = Path(command[command.index("--requirement") + 1]).read_text()
        assert pin == f"sample==1.0 --hash=sha256:{PACKAGE.sha256}\n"
        assert {"--no-deps", "--require-hashes"} <= set(command)
        serve(folder)
        return subprocess.CompletedProcess(command, code, "", "ERROR: no such version\n")

    return run


def test_a_damaged_archive_in_the_cache_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / PACKAGE.archive).write_bytes(b"damaged")
    monkeypatch.setattr(
        subprocess, "run", _client(lambda folder: (folder / PACKAGE.archive).write_bytes(b"archive"))
    )
    assert fetch_package(PACKAGE, tmp_path).read_bytes() == b"archive"
    assert [path.name for path in tmp_path.iterdir()] == [PACKAGE.archive]


@pytest.mark.parametrize(
    ("serve", "code", "says"),
    [
        (lambda folder: (folder / PACKAGE.archive).write_bytes(b"something else"), 0, "something else"),
        (lambda folder: folder, 0, "something else"),
        (lambda folder: folder, 1, "no such version"),
    ],
)
def test_whatever_else_the_index_serves_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Callable[[Path], object], code: int, says: str
) -> None:
    monkeypatch.setattr(subprocess, "run", _client(serve, code))
    with pytest.raises(LocalError, match=says):
        fetch_package(PACKAGE, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_silent_index_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(command: tuple[str, ...], timeout: float, **kwargs: object) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", silent)
    with pytest.raises(LocalError, match="no answer"):
        fetch_package(PACKAGE, tmp_path)


def _archives(folder: Path, name: str, content: bytes) -> list[Path]:
    wheel, sdist = folder / "a.whl", folder / "a.tar.gz"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(name, content)
    with tarfile.open(sdist, "w:gz") as archive:
        info = tarfile.TarInfo(f"a-1.0/{name}")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return [wheel, sdist]


def test_members_are_read_and_nothing_is_unpacked(tmp_path: Path) -> None:
    for path in _archives(tmp_path, "data/one.txt", b"text"):
        assert read_members(path, ("data/one.txt",)) == {"data/one.txt": b"text"}
        with pytest.raises(LocalError, match=r"lacks two\.txt"):
            read_members(path, ("data/one.txt", "two.txt"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz", "a.whl"]


def test_oversized_members_are_refused(tmp_path: Path) -> None:
    for path in _archives(tmp_path, "one.txt", b"\0" * (MEMBER_BYTES_MAX + 1)):
        with pytest.raises(LocalError, match="too many"):
            read_members(path, ("one.txt",))


def test_prose_is_cut_between_sentences() -> None:
    text = "One is here. Two is there! Is it three?\nFour. " + "Long sentence number five goes on. " * 40
    passages = list(prose_passages(text))
    assert passages[0].startswith("One is here. Two is there! Is it three? Four.")
    assert all(passage.endswith((".", "!", "?")) for passage in passages)
    assert all(len(passage) < 700 for passage in passages)


def test_verse_is_lines_without_names_and_stage_directions() -> None:
    play = (
        "[Enter the KING,\nand others.]\n\nKING.\nNow is the time\nto speak at last\nof what was lost.\n\n"
        "Lord.\nAy.\n\nQUEEN OF THE\nfairies speaks so\nand not more,\n[Exit.]\nbut less.\n"
    )
    (passage,) = verse_passages(play * 3, by_line=False)
    assert passage.startswith("Now is the time\nto speak at last\nof what was lost.\n")
    assert "KING" not in passage
    assert "Ay." not in passage
    assert "[" not in passage


def test_an_epic_is_cut_by_lines() -> None:
    epic = "\n".join(f"  line {number} of the song  " for number in range(200))
    passages = list(verse_passages(epic, by_line=True))
    assert "\n".join(passages).split("\n") == [f"line {number} of the song" for number in range(200)]


def test_shortening_keeps_whole_sentences() -> None:
    assert shorten("One.  Two. Three.", 10) == "One. Two."
    assert shorten("Überlang ohne Ende", 5) == "Über"
    assert shorten("One.", 100) == "One."


def test_the_sample_depends_on_names_alone() -> None:
    assert draw("a", "b") == draw("a", "b") != draw("b", "a")
    given = documents(60)
    one, two = (
        contribute("who", "label", "source", "licence", order) for order in (given, list(reversed(given)))
    )
    assert one == two
    assert not {document.text for document in one.documents} & {document.text for document in one.held_out}


def test_shards_are_bounded_and_something_is_held_out() -> None:
    part = contribute("who", "label", "source", "licence", documents(2000))
    assert len(part.held_out) == HELD_OUT_PER_CONTRIBUTOR
    assert SHARD_BYTES - 200 < sum(len(document.text) for document in part.documents) <= SHARD_BYTES
    assert len(contribute("who", "label", "source", "licence", documents(8)).held_out) == 2


def test_equal_passages_are_given_once() -> None:
    twice = [*documents(5), *(replace(document, title="again") for document in documents(5))]
    part = contribute("who", "label", "source", "licence", twice)
    assert len(part.documents) + len(part.held_out) == 5


def test_an_unknown_corpus_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="union, verse, weakness"):
        load_corpus("nonsense", tmp_path)


def _cached(name: str) -> Corpus:
    package, _ = CORPORA[name]
    cache = cache_folder() / "packages"
    if not (cache / package.archive).is_file():
        pytest.skip(f"{package.name}=={package.version} is not in the cache; scripts/setup fetches it")
    return load_corpus(name, cache)


@pytest.mark.parametrize(("name", "contributors"), [("union", 8), ("verse", 6), ("weakness", 8)])
def test_the_real_texts(name: str, contributors: int, tmp_path: Path) -> None:
    """Who contributes, that terms travel along, that nobody copies anybody, and that it fits a manifest."""
    corpus = _cached(name)
    assert len(corpus.contributions) == contributors
    accounts = {
        part.contributor: AccountId(hashlib.sha256(part.contributor.encode()).digest())
        for part in corpus.contributions
    }
    contents = to_contents(corpus, AccountId(b"o" * 32), accounts)
    save_datanet(contents, tmp_path)
    parts = model_parts(load_datanet(tmp_path))
    assert len(parts.clusters) == contributors
    assert parts.tables[0].size < 2 << 20
    assert corpus.licence
    assert all(shard.licence and "==" in shard.source for shard in contents.datanet.shards)
    held = {document.text for document in corpus.held_out}
    assert len(held) == len(corpus.held_out) >= 30
    assert not held & {document.text for own in contents.documents for document in own}
    assert all(len(document.text) < 2500 for own in contents.documents for document in own)


def test_the_weakness_texts_carry_their_terms() -> None:
    notice = _cached("weakness").notice
    assert "The MITRE Corporation" in notice
    assert "non-exclusive, royalty-free license" in notice
