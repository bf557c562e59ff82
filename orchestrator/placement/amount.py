"""Sizes that depend on the dtype: so many numbers to be converted, and so many bytes that are not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from orchestrator.errors import ConfigError
from orchestrator.placement.files import DTYPE_SIZE

__all__ = ["NOTHING", "Amount", "Term", "dtype_name"]

ALIASES = {"fp32": "float32", "float": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}
TARGETS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")


@dataclass(frozen=True)
class Amount:
    """`floats` numbers in the model's dtype and `fixed` bytes that no dtype changes."""

    floats: int = 0
    fixed: int = 0

    def bytes(self, dtype: str) -> int:
        """The size in `dtype`, in bytes."""
        return self.floats * DTYPE_SIZE[dtype] + self.fixed

    def split(self, parts: int) -> Amount:
        """An equal share, rounded up."""
        return Amount(-(-self.floats // parts), -(-self.fixed // parts)) if parts else Amount()

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.floats + other.floats, self.fixed + other.fixed)

    def __mul__(self, factor: int) -> Amount:
        return Amount(self.floats * factor, self.fixed * factor)


NOTHING = Amount()


@dataclass(frozen=True)
class Term:
    """One line of the bill: its size, how it comes about in words, and where it falls."""

    name: str
    amount: Amount
    words: str
    where: Literal["blocks", "layers", "head", "each device", "first device"]


def dtype_name(name: str, *, auto: str | None = None) -> str:
    """The full name of a floating dtype (`fp16`, `torch.float16` …); "auto" becomes `auto`.

    Raises:
        ConfigError: not a dtype that weights can be loaded in.
    """
    text = str(name).removeprefix("torch.").lower()
    text = ALIASES.get(text, text)
    if text == "auto" and auto is not None:
        return auto
    if text not in TARGETS:
        raise ConfigError(f"unknown dtype {name!r}", hint="float32, float16, bfloat16 or auto")
    return text
