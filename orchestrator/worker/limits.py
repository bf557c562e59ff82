"""Every limit of the wire, and the errors of its codec. Both sides run this file."""

from __future__ import annotations

__all__ = ["DecodingError", "EncodingError"]

MAX_DEPTH = 100
"""Nested lists and maps in one value."""
MAX_DIMENSIONS = 64
"""Dimensions of one array (numpy 1 itself stops at 32)."""
MAX_ROWS = 1_000_000
"""Rows of a message's table of arrays; a row is a run of arrays of one dtype and shape."""
MAX_BODY = (1 << 32) - 1
"""Bytes of a message without its arrays: what msgpack can count."""
MAX_FRAME = 16 << 30
"""Bytes of one frame; a peer that announces more is cut off before anything is allocated."""
MAX_QUEUE = 100_000
"""Calls that may wait inside one worker."""
MAX_TEXT = 64 << 10
"""Characters of a remote traceback or message."""
INLINE = 64 << 10
"""Bytes of arrays that travel beside the header; more goes through shared memory where there is any."""
FORWARD = 1 << 20
"""Bytes of an array that goes from worker to worker as a reference; less is copied as fast."""
ALIGN = 64
"""Every array of a message begins at a multiple of this."""


class EncodingError(TypeError):
    """A value that the wire does not carry; the message names its place, such as `args[0]["x"]`."""


class DecodingError(ValueError):
    """A message that cannot be understood. Nothing of it was used."""
