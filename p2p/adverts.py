"""Signed, expiring adverts of workers, and the book of those that are live.

A worker gossips its advert every few seconds under a rising sequence. The book keeps the newest of each
worker, forgets it once it expires, and is bounded. It reads no clock: every call says what time it is.
What an advert promises is a hint for routing and moves no money; prices are fixed by quotes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

from gossip_ledger.codec import Schema, Table, many, nested, octets, text, uint
from gossip_ledger.errors import RemoteError
from gossip_ledger.records import AccountId, MicroUnits, ModelId, NetworkId, Signature
from gossip_ledger.signing import Signer, message, verify
from p2p.protocols.limits import (
    ADDRESS_BYTES_MAX,
    ADVERT_ADDRESSES_MAX,
    ADVERT_BYTES_MAX,
    ADVERT_TTL_S_MAX,
    ADVERTS_MAX,
    CODE_BYTES_MAX,
    LOADABLE_MODELS_MAX,
    RESIDENT_MODELS_MAX,
    SOFTWARE_BYTES_MAX,
)

KIND: Final = "advert"


class AdvertError(RemoteError):
    """An advert that is not taken. The message says why."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Advert:
    """What a worker offers right now."""

    worker: AccountId
    base: bytes
    """The base identity that it runs, 32 bytes."""
    quantization: str
    """`bf16`, `nf4`, `int8` or `fp32`."""
    kernels: str
    """What computes: device and attention kernel, for auditors."""
    max_context: int
    """Prompt and answer together, tokens."""
    resident: tuple[ModelId, ...]
    """Models that answer at once."""
    loadable: tuple[ModelId, ...]
    """Models that it holds, or could load, but that must be loaded first."""
    running: int
    """Asks being answered."""
    waiting: int
    """Asks in its queue."""
    slots: int
    """Asks that it can answer at the same time."""
    tokens_per_s: int
    """Recent output rate of one ask."""
    price_in: MicroUnits
    """Per 1,000 prompt tokens."""
    price_out: MicroUnits
    """Per 1,000 output tokens."""
    addresses: tuple[str, ...]
    sequence: int
    """Rises with each advert of this worker, also across restarts (Unix milliseconds will do)."""
    expiry_s: int
    """Unix seconds after which it says nothing."""
    software: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SignedAdvert:
    """An advert with the worker's signature: what is gossiped."""

    advert: Advert
    signature: Signature


_id = octets(32)

ADVERT = Table(
    1,
    Advert,
    (
        ("worker", _id),
        ("base", _id),
        ("quantization", text(CODE_BYTES_MAX)),
        ("kernels", text(CODE_BYTES_MAX)),
        ("max_context", uint()),
        ("resident", many(_id, RESIDENT_MODELS_MAX)),
        ("loadable", many(_id, LOADABLE_MODELS_MAX)),
        ("running", uint()),
        ("waiting", uint()),
        ("slots", uint()),
        ("tokens_per_s", uint()),
        ("price_in", uint()),
        ("price_out", uint()),
        ("addresses", many(text(ADDRESS_BYTES_MAX), ADVERT_ADDRESSES_MAX)),
        ("sequence", uint()),
        ("expiry_s", uint()),
        ("software", text(SOFTWARE_BYTES_MAX)),
    ),
)
SIGNED_ADVERT = Table(2, SignedAdvert, (("advert", nested(ADVERT)), ("signature", octets(64))))

ADVERTS = Schema(ADVERT, bytes_max=ADVERT_BYTES_MAX)
"""Adverts without signatures: what is signed."""
SIGNED_ADVERTS = Schema(SIGNED_ADVERT, bytes_max=ADVERT_BYTES_MAX)
"""Signed adverts: what travels."""


def sign_advert(advert: Advert, signer: Signer, network: NetworkId) -> SignedAdvert:
    """`advert` with the signature of its worker, who must be `signer`."""
    assert advert.worker == signer.account, "a worker signs its own adverts only"
    return SignedAdvert(advert=advert, signature=signer.sign(message(KIND, network, ADVERTS.encode(advert))))


def verify_advert(signed: SignedAdvert, network: NetworkId) -> None:
    """Raises `SignatureError` unless the worker that it names signed it for this network."""
    verify(signed.advert.worker, signed.signature, message(KIND, network, ADVERTS.encode(signed.advert)))


@final
class AdvertBook:
    """The newest live advert of each worker. Mutable, bounded, deterministic; `now_s` is Unix seconds."""

    def __init__(self, network: NetworkId, *, adverts_max: int = ADVERTS_MAX) -> None:
        self._network = network
        self._adverts_max = adverts_max
        self._newest: dict[AccountId, Advert] = {}

    def offer(self, signed: SignedAdvert, now_s: int) -> bool:
        """Takes an advert; True if it is news, False if we hold this one or a newer one.

        Raises `AdvertError` for one out of its time or beyond the bound, `SignatureError` for a forged one.
        Cheap checks come first, so repeats cost no signature check.
        """
        advert = signed.advert
        if not now_s < advert.expiry_s <= now_s + ADVERT_TTL_S_MAX:
            raise AdvertError("the advert has expired, or expires too far in the future")
        held = self._newest.get(advert.worker)
        if held is not None and held.sequence >= advert.sequence:
            return False
        verify_advert(signed, self._network)
        if held is None and len(self._newest) >= self._adverts_max:
            self.prune(now_s)
            if len(self._newest) >= self._adverts_max:
                raise AdvertError(f"the book is full: {self._adverts_max} workers")
        self._newest[advert.worker] = advert
        return True

    def offer_bytes(self, data: bytes, now_s: int) -> bool:
        """`offer` for a gossip frame. Raises `DecodeError` too."""
        return self.offer(SIGNED_ADVERTS.decode(data), now_s)

    def get(self, worker: AccountId, now_s: int) -> Advert | None:
        """The live advert of one worker."""
        advert = self._newest.get(worker)
        return advert if advert is not None and advert.expiry_s > now_s else None

    def live(self, now_s: int) -> tuple[Advert, ...]:
        """All live adverts, in the order of their workers' keys."""
        return tuple(advert for _, advert in sorted(self._newest.items()) if advert.expiry_s > now_s)

    def serving(self, model: ModelId, now_s: int) -> tuple[Advert, ...]:
        """Live adverts that call `model` resident or loadable, in the order of their workers' keys."""
        return tuple(
            advert for advert in self.live(now_s) if model in advert.resident or model in advert.loadable
        )

    def forget(self, worker: AccountId) -> None:
        """Drops a worker, for instance one that broke the protocol; its next advert brings it back."""
        self._newest.pop(worker, None)

    def prune(self, now_s: int) -> None:
        """Drops what has expired."""
        for worker in [w for w, advert in self._newest.items() if advert.expiry_s <= now_s]:
            del self._newest[worker]
