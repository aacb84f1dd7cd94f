"""Every bound of the network layer, with its unit.

Bounds of single message fields live beside the messages; what is here guards memory, time and counts.
"""

from __future__ import annotations

from typing import Final

# Frames and streams

CONTROL_FRAME_BYTES_MAX: Final = 1 << 20
"""Largest frame on a control stream (hello, ask, sync)."""

WRITE_PIECE_BYTES: Final = 64 << 10
"""Largest piece handed to a connection at once; writes can be cancelled between pieces."""

STREAM_WINDOW_BYTES: Final = 256 << 10
"""Unread bytes a stream holds before its writer waits."""

STREAM_WINDOW_BYTES_MAX: Final = 1 << 20
"""What a fast reader's window may grow to."""

LINK_BUFFER_BYTES_MAX: Final = 8 << 20
"""Unread bytes over all streams of one link. A peer that passes it ignores flow control and is dropped."""

WINDOW_STALL_S: Final = 5.0
"""A write into a full window fails after this long."""

WRITE_STALL_S: Final = 10.0
"""A connection that takes no bytes for this long is dropped."""

CLOSE_LINGER_S: Final = 2.0
"""How long a finished stream waits for the other side to finish too, before it is reset."""

INBOUND_STREAMS_MAX: Final = 64
"""Streams that one peer may have open towards us; more are reset."""

# Links

DIAL_TIMEOUT_S: Final = 5.0
"""One attempt to one address, handshakes included."""

OPEN_TIMEOUT_S: Final = 5.0
"""One new stream, negotiation included."""

LINKS_MAX: Final = 64
"""Live links of a node, both directions."""

OUTBOUND_LINKS_MIN: Final = 3
"""Outbound links a node tries to keep."""

OUTBOUND_LINKS_MAX: Final = 4
"""Outbound links beyond which a node does not dial by itself."""

INBOUND_LINKS_MAX: Final = 32
"""Inbound links kept; the newest beyond it are dropped."""

CONNECTIONS_PER_IP_MAX: Final = 16
"""Inbound connections from one IP address, handshakes under way included. Loopback is not limited."""

# Gossip

GOSSIP_FRAME_BYTES_MAX: Final = 64 << 10
"""Largest frame on a topic, before the mesh's own envelope."""

GOSSIP_ENVELOPE_BYTES_MAX: Final = 4 << 10
"""Room for the mesh's envelope around a frame: origin, signature, topic, address record."""

SUBSCRIPTION_FRAMES_MAX: Final = 1024
"""Frames waiting for one subscriber; the oldest are dropped and counted."""

SEEN_FRAMES_MAX: Final = 65_536
"""Frame ids remembered to tell repeats."""
