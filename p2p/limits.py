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

PENDING_ANSWERS_MAX: Final = 64
"""Acknowledgements and pongs of one connection waiting to be written; beyond it reading waits too."""

INBOUND_STREAMS_MAX: Final = 64
"""Streams that one peer may have open towards us; more are reset."""

# Links

DIAL_TIMEOUT_S: Final = 5.0
"""One attempt to one address, handshakes included."""

OPEN_TIMEOUT_S: Final = 5.0
"""One new stream, negotiation included."""

LINKS_MAX: Final = 64
"""Live links of a node, both directions."""

INBOUND_CONNECTIONS_MAX: Final = 56
"""Inbound connections, handshakes under way included; the rest of `LINKS_MAX` is kept for our own dials."""

CONNECTIONS_PER_PEER_MAX: Final = 2
"""Connections with one peer: two only while both sides dial at once or one comes back."""

CONNECTIONS_PER_ADDRESS_MAX: Final = 16
"""Inbound connections from one IP address, handshakes under way included. Loopback is not limited."""

HANDSHAKE_TIMEOUT_S: Final = 5.0
"""An inbound connection that is not encrypted, authenticated and multiplexed by then is dropped."""

FAULTS_MAX: Final = 16
"""Broken frames of a connected peer after which its link is dropped."""

PING_INTERVAL_S: Final = 4.0
"""How often a connection asks its other end for a sign of life."""

SILENCE_MAX_S: Final = 10.0
"""A connection on which nothing at all arrives for this long is dropped."""

SHUTDOWN_TIMEOUT_S: Final = 5.0
"""An orderly goodbye takes at most this long."""

RESTART_DELAY_S_MIN: Final = 0.2
"""Wait before the network layer is rebuilt after an unknown error."""

RESTART_DELAY_S_MAX: Final = 30.0
"""The wait doubles up to this while errors repeat."""

# Gossip

GOSSIP_FRAME_BYTES_MAX: Final = 64 << 10
"""Largest frame on a topic, before the mesh's own envelope."""

GOSSIP_ENVELOPE_BYTES_MAX: Final = 4 << 10
"""Room for the mesh's envelope around a frame: origin, signature, topic, address record."""

SUBSCRIPTION_FRAMES_MAX: Final = 1024
"""Frames waiting for one subscriber; the oldest are dropped and counted."""

OUTBOUND_FRAMES_MAX: Final = 1024
"""Frames waiting to be sent to one neighbour; the newest are dropped."""

SEEN_FRAMES_MAX: Final = 65_536
"""Frame ids remembered to tell repeats."""

FORWARDER_FRAMES_PER_S: Final = 100
"""Frames a neighbour may hand us per second in the long run, before any is verified."""

FORWARDER_FRAMES_BURST: Final = 1024
"""Frames a neighbour may hand us at once."""

GOSSIP_RECORDS_MAX: Final = 1024
"""Records in one frame."""

GOSSIP_QUEUE_BYTES_MAX: Final = 4 << 20
"""Records waiting to be published; the oldest are dropped and left to synchronisation."""

GOSSIP_FLUSH_S_MIN: Final = 0.1
"""A lone record waits this long for company."""

GOSSIP_FLUSH_S_MAX: Final = 1.0
"""Under steady traffic the wait grows to this, so that a node publishes about a frame a second."""

GOSSIP_OUTPUT_FRAMES_MAX: Final = 256
"""Decoded frames waiting for the reader; the oldest are dropped and counted."""

SEEN_RECORDS_MAX: Final = 65_536
"""Record hashes remembered to tell repeats."""

GOSSIP_FORWARDER_BYTES_PER_S: Final = 512 << 10
"""Bytes of records taken from one neighbour per second in the long run."""

GOSSIP_FORWARDER_BYTES_BURST: Final = 8 << 20
"""Bytes of records taken from one neighbour at once."""

FORWARDERS_MAX: Final = 256
"""Neighbours, present and past, whose rates are remembered."""

# Keeping links

OUTBOUND_LINKS_MIN: Final = 3
"""Outbound links a node tries to keep."""

OUTBOUND_LINKS_MAX: Final = 4
"""Outbound links beyond which a node dials nobody by itself."""

INBOUND_LINKS_MAX: Final = 32
"""Inbound links kept; the newest beyond it are dropped."""

LINK_TICK_S: Final = 0.5
"""How often the links are looked over."""

GREET_TIMEOUT_S: Final = 10.0
"""A new link must be greeted within this."""

LIVENESS_INTERVAL_S: Final = 4.0
"""How often each peer is asked for an echo."""

LIVENESS_TIMEOUT_S: Final = 8.0
"""A peer that owes an echo for this long is dropped."""

STABLE_S: Final = 10.0
"""A link that ends sooner counts as a failed dial."""

REDIAL_S_MIN: Final = 1.0
"""Wait after a first failed dial; it doubles, with jitter."""

REDIAL_S_MAX: Final = 300.0
"""Longest wait between two dials of one address."""

REDIAL_ALONE_S_MAX: Final = 15.0
"""Longest wait while there is no link at all."""

AVOID_S: Final = 600.0
"""A peer that refused us, or that we refused, is not dialled again for this long."""

EXCHANGE_S_MIN: Final = 2.0
"""Wait before a peer is asked again for addresses while outbound links are missing; it doubles."""

EXCHANGE_S_MAX: Final = 120.0
"""Longest such wait."""

ROTATE_S: Final = 60.0
"""How often one outbound link is replaced by another: what joins islands after a partition."""

DIALS_MAX: Final = 3
"""Dials under way at once."""

ADDRESSES_PER_GREETING_MAX: Final = 32
"""Addresses taken from one greeting."""

ADDRESSES_MAX: Final = 1024
"""Addresses tried in all."""

REFUSALS_MAX: Final = 64
"""Refusals kept for people to read."""

LINK_EVENTS_MAX: Final = 256
"""Events waiting for the reader; the oldest are dropped."""
