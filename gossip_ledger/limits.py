"""Every bound of the ledger, with its unit."""

from __future__ import annotations

from typing import Final

MAX_AMOUNT: Final = 2**63 - 1
"""Largest integer in a record, micro-units for money."""

RECORD_BYTES_MAX: Final = 4096
"""Largest encoded record, signatures included."""

MANIFEST_BYTES_MAX: Final = 1 << 20
"""Largest encoded manifest or datanet."""

GENESIS_BYTES_MAX: Final = 1 << 20
"""Largest encoded genesis."""

BLOB_BYTES_MAX: Final = 1 << 20
"""Largest blob; bigger files are lists of blobs."""

EVIDENCE_PAIRS_MAX: Final = 64
"""Most (cluster, weight) pairs in a receipt."""

ACK_IDS_MAX: Final = 100
"""Most ids in one ack: 100 ids of 34 encoded bytes fit a record."""

CLUSTERS_MAX: Final = 4096
"""Most clusters in a manifest."""

FILES_MAX: Final = 64
"""Most files in a manifest."""

CHUNKS_MAX: Final = 4096
"""Most chunks in a file: 4 GiB."""

BASIS_POINTS: Final = 10_000
"""A whole, in basis points."""

UNCERTIFIED_ENTRIES_MAX: Final = 64
"""Most entries kept per author beyond its certified head."""

WITNESSES_MAX: Final = 64
"""Most witnesses in a genesis."""

ALLOCATIONS_MAX: Final = 8192
"""Most allocations in a genesis."""

AHEAD_EPOCHS_MAX: Final = 2
"""Epochs that an entry may lie ahead of a witness' clock."""

RECONCILE_BYTES_MAX: Final = 256 * 1024
"""Largest message of a reconciliation."""

RECONCILE_ROUNDS_MAX: Final = 32
"""Most messages that one side answers in one reconciliation; what is left waits for the next one."""

RECONCILE_ITEMS_MAX: Final = 8192
"""Most ranges in one message of a reconciliation."""

RECONCILE_SPLIT: Final = 16
"""Parts that a range is split into where its digests differ: fewer bytes than 32 or 64."""

RECONCILE_LIST_MAX: Final = 32
"""A range of at most this many ids is listed rather than split."""

RECONCILE_WANT_MAX: Final = 1 << 16
"""Most missing ids that one reconciliation collects: 2 MiB."""

UNCERTIFIED_RECEIPTS_MAX: Final = 1024
"""Most receipts kept per worker that no quorum has acked yet."""

UNCERTIFIED_RELEASES_MAX: Final = 64
"""Most releases kept per author that no quorum has acked yet."""
