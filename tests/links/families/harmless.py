"""A family for generated messages: whatever it is called with, it does nothing."""

from __future__ import annotations

from itertools import islice, repeat


class Harmless:
    """Keeps what came last."""

    def __init__(self, checkpoint=None):
        self.last = checkpoint

    def echo(self, *values, **more):
        self.last = values[0] if values else more
        return self.last

    def count(self, n=0, *_, **more):
        yield from islice(repeat(more), n if isinstance(n, int) and 0 <= n < 100 else 3)
