"""The error tree, by blame.

Every error that may leave a function in normal operation derives from `UpkeepError`; anything else that
escapes is a bug of ours and crashes.

- `RemoteError`: a peer or a file broke a rule. Drop it, count it, carry on.
- `LocalError`: the operator, the configuration or this machine is at fault. One line, and what to do.
"""

from __future__ import annotations


class UpkeepError(Exception):
    """Base of every error expected in normal operation. Never raised itself."""


class RemoteError(UpkeepError):
    """What a peer (or a foreign file) sent breaks a rule."""


class LocalError(UpkeepError):
    """This machine, its operator or its configuration is at fault. The message says what to do."""


class DecodeError(RemoteError):
    """Bytes that are not the one canonical encoding of a well-formed value."""


class SignatureError(RemoteError):
    """A signature, or the key it claims, is not acceptable."""


class UnsoundError(RemoteError):
    """A well-formed record that its ancestors forbid."""
