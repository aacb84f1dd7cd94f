"""The node's key: where it lives, who may use it, and signing with it.

The key is a 32-byte Ed25519 seed, kept as hex in the home's `key` file with mode 0600. Its public half is
the account and the node's identity. One key, one process: whoever uses it holds the home's lock file, which
the kernel frees when the process ends, however it ends.

Left out: verifying signatures (`gossip_ledger.signing`) and sealing to a recipient.
"""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Final, Self, final

import nacl.signing

from gossip_ledger.errors import LocalError
from gossip_ledger.records import AccountId, Signature
from peer.capabilities import Entropy
from peer.config import Home

SEED_BYTES: Final = 32


@final
class SeedSigner:
    """Signs with an Ed25519 seed held in memory. Conforms to `gossip_ledger.signing.Signer`."""

    __slots__ = ("_key", "account")

    def __init__(self, seed: bytes) -> None:
        assert len(seed) == SEED_BYTES
        self._key = nacl.signing.SigningKey(seed)
        self.account = AccountId(bytes(self._key.verify_key))

    def sign(self, message: bytes) -> Signature:
        return Signature(self._key.sign(message).signature)


@final
class NodeKey:
    """A node's key, with the lock that makes this process its only user. Close it, or use it in a `with`."""

    __slots__ = ("_lock", "seed", "signer")

    def __init__(self, seed: bytes, lock: int) -> None:
        self.seed = seed
        self.signer = SeedSigner(seed)
        self._lock = lock

    @property
    def account(self) -> AccountId:
        return self.signer.account

    @staticmethod
    def create(home: Home, entropy: Entropy) -> NodeKey:
        """Draws a new key, writes it durably and locks it. Raises `LocalError` where one exists already."""
        return NodeKey.install(home, entropy.token(SEED_BYTES))

    @staticmethod
    def install(home: Home, seed: bytes) -> NodeKey:
        """The same with a seed drawn already: a restored key, or one that a genesis names."""
        make_folder(home.path)
        lock = _acquire(home.lock)
        try:
            write_secret(home.key, seed.hex() + "\n")
        except BaseException:
            os.close(lock)
            raise
        return NodeKey(seed, lock)

    @staticmethod
    def load(home: Home) -> NodeKey:
        """Reads and locks the key. Raises `LocalError`: none there, unsafe, damaged, or in use."""
        if not home.key.exists():
            raise LocalError(f"no key in {home.path}; run `upkeep init` first, or name another --home")
        lock = _acquire(home.lock)
        try:
            return NodeKey(_read_seed(home.key), lock)
        except BaseException:
            os.close(lock)
            raise

    def close(self) -> None:
        """Frees the lock. Signing with a closed key is a bug of the caller."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_account(home: Home) -> AccountId:
    """The account of the key in `home`, without using or locking it. Raises `LocalError`."""
    return SeedSigner(_read_seed(home.key)).account


def make_folder(path: Path) -> None:
    """A private folder, made with its parents where missing. Raises `LocalError`."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise LocalError(f"{path} is in the way: not a folder; remove it or choose another --home") from error
    except OSError as error:
        raise LocalError(f"cannot create {path}: {error.strerror}; choose another --home") from error


def write_secret(path: Path, text: str) -> None:
    """Writes a new file of mode 0600, durably or not at all; never overwrites. Raises `LocalError`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with open(descriptor, "w", encoding="ascii") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)  # unlike a rename, fails where the file exists
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
    except FileExistsError as error:
        raise LocalError(
            f"{path} exists already and is kept; choose another folder, or move it away"
        ) from error
    except OSError as error:
        raise LocalError(f"cannot write {path}: {error.strerror}") from error


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_secret(path: Path, *, bytes_max: int) -> str:
    """The text of a file that only its owner may read. Raises `LocalError`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise LocalError(f"{path} is not a plain file; restore it from a backup")
            if stat.S_IMODE(state.st_mode) & 0o077:
                raise LocalError(f"{path} can be read by other users; run: chmod 600 {path}")
            data = file.read(bytes_max + 1)
    except OSError as error:
        raise LocalError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > bytes_max or not data.isascii():
        raise LocalError(f"{path} is damaged; restore it from a backup")
    return data.decode("ascii")


def _read_seed(path: Path) -> bytes:
    text = read_secret(path, bytes_max=2 * SEED_BYTES + 2).strip()
    try:
        seed = bytes.fromhex(text)
    except ValueError:
        seed = b""
    if len(seed) != SEED_BYTES or seed.hex() != text:
        raise LocalError(f"{path} is damaged: not 64 hex digits; restore it from a backup")
    return seed


def _acquire(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise LocalError(f"cannot write {path}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        raise LocalError(
            f"{path.parent} is in use by process {holder}; stop it with `upkeep stop`, or use another --home"
        ) from error
    except OSError as error:
        os.close(descriptor)
        raise LocalError(f"cannot lock {path}: {error.strerror}") from error
    return descriptor
