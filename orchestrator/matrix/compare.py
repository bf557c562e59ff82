"""Two results of the same call, held against each other: numbers by tolerance, texts and tokens by what was asked."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec
import numpy as np

__all__ = ["Difference", "Kind", "Tolerance", "compare", "summary", "worst"]

Kind = Literal["numbers", "tokens", "text", "structure"]
SHOWN = 400  # characters of a text, or integers around the place where two lists part


class Tolerance(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What may differ. Nothing given: everything must be equal, numbers to 1e-5."""

    max_abs: float = 1e-5
    """Largest absolute difference of any number."""
    cosine: float | None = None
    """Smallest cosine between two vectors (the last axis of an array)."""
    text: Literal["exact", "similarity"] = "exact"
    similarity: float = 0.9
    """With `text: similarity`, the smallest ratio of matching characters (difflib's)."""
    tokens: Literal["exact", "first"] = "exact"
    """Lists and arrays of integers: `first` tells where they part and lets a longer tail pass."""


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One place where two results are not the same; `allowed` when it is within the tolerance."""

    path: str
    """Where: `generate.text`, `logits`, `scores[3].label`."""
    kind: Kind
    what: str
    short: str
    """The same in one or two words, for a field of a table."""
    amount: float
    """Numbers: the largest absolute difference. Texts: 1 less the similarity. Else 1."""
    allowed: bool
    reference: str = ""
    """Texts and tokens: what the reference gave there, shortened."""
    value: str = ""
    """Texts and tokens: what this cell gave there, shortened."""


def compare(reference: Any, value: Any, tolerance: Tolerance) -> list[Difference]:
    """Everything that differs between two results, the allowed and the others."""
    return list(_walk(reference, value, "", tolerance))


def worst(differences: Sequence[Difference]) -> Difference | None:
    """The one to tell of: not allowed before allowed, numbers before the rest, then the largest."""
    return max(differences, key=lambda d: (not d.allowed, d.kind == "numbers", d.amount), default=None)


def summary(differences: Sequence[Difference]) -> str:
    """The worst of them in words; empty when nothing differs."""
    told = worst(differences)
    if told is None:
        return ""
    more = len([d for d in differences if not d.allowed]) - (not told.allowed)
    return f"{told.path}: {told.what}" + (f", and {more} more" if more else "")


def _walk(a: Any, b: Any, path: str, tolerance: Tolerance) -> Iterator[Difference]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(key for key in b if key not in a)]:
            inside = f"{path}.{key}" if path else str(key)
            if key in a and key in b:
                yield from _walk(a[key], b[key], inside, tolerance)
            else:
                yield _structure(inside, f"only in {'the reference' if key in a else 'this cell'}", "keys")
    elif isinstance(a, str) and isinstance(b, str):
        yield from _text(a, b, path, tolerance)
    elif _is_numbers(a) and _is_numbers(b):
        yield from _numbers(np.asarray(a), np.asarray(b), path, tolerance)
    elif isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b):
            yield _structure(path, f"{len(b)} items instead of {len(a)}", "length")
        for index, (left, right) in enumerate(zip(a, b, strict=False)):
            yield from _walk(left, right, f"{path}[{index}]", tolerance)
    elif type(a) is not type(b) or a != b:
        yield _structure(path, f"{_short(b)} instead of {_short(a)}", "other")


def _structure(path: str, what: str, short: str) -> Difference:
    return Difference(path=path, kind="structure", what=what, short=short, amount=1.0, allowed=False)


def _is_numbers(value: Any) -> bool:
    if isinstance(value, (bool, str, bytes, dict)) or value is None:
        return False
    try:
        return np.asarray(value).dtype.kind in "biufc"
    except ValueError:  # a list of lists of several lengths
        return False


def _numbers(
    a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], path: str, t: Tolerance
) -> Iterator[Difference]:
    if a.dtype.kind in "biu" and b.dtype.kind in "biu" and a.ndim:
        yield from _tokens(a.ravel(), b.ravel(), path, t)
        return
    if a.shape != b.shape:
        yield _structure(path, f"shape {b.shape} instead of {a.shape}", "shape")
        return
    if not a.size or np.array_equal(a, b, equal_nan=True):
        return
    wide = np.complex128 if "c" in (a.dtype.kind, b.dtype.kind) else np.float64
    with np.errstate(invalid="ignore"):
        gap = np.abs(np.asarray(a, wide) - np.asarray(b, wide))
    gap[(np.isnan(a) & np.isnan(b)) | (a == b)] = 0.0
    gap[np.isnan(gap)] = np.inf
    largest = float(np.max(gap))
    at = np.unravel_index(int(np.argmax(gap)), gap.shape)
    where = f" at {[int(i) for i in at]}" if a.ndim else ""
    cosine = _cosine(a, b) if t.cosine is not None and a.ndim else 1.0
    told = f", cosine {cosine:.6f}" if t.cosine is not None and a.ndim else ""
    yield Difference(
        path=path,
        kind="numbers",
        what=f"off by {largest:.3g}{where}{told}",
        short=f"{largest:.2g}",
        amount=largest,
        allowed=largest <= t.max_abs and cosine >= (t.cosine or -1.0),
    )


def _cosine(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """The smallest cosine; two vectors of zeros are equal, one beside another vector is as far as can be."""
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = np.where(lengths > 0, np.sum(a * b, axis=-1) / lengths, np.all(a == b, axis=-1))
    return float(np.min(np.nan_to_num(cosines, nan=-1.0)))


def _tokens(
    a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], path: str, t: Tolerance
) -> Iterator[Difference]:
    shared = min(len(a), len(b))
    parted = np.flatnonzero(a[:shared] != b[:shared])
    if not len(parted) and len(a) == len(b):
        return
    at = int(parted[0]) if len(parted) else shared
    what = (
        f"{int(b[at])} instead of {int(a[at])} at {at}"
        if len(parted)
        else f"{len(b)} integers instead of {len(a)}, the first {shared} equal"
    )
    yield Difference(
        path=path,
        kind="tokens",
        what=what,
        short=f"from [{at}]",
        amount=1.0,
        allowed=not len(parted) and t.tokens == "first",
        reference=_around(a, at),
        value=_around(b, at),
    )


def _text(a: str, b: str, path: str, t: Tolerance) -> Iterator[Difference]:
    if a == b:
        return
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    if t.text == "exact":
        amount, allowed, short = 1.0, False, "text"
        what = f"differs from character {at}: {_short(b[at:])} instead of {_short(a[at:])}"
    else:
        ratio = difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()
        amount, allowed, short = 1 - ratio, ratio >= t.similarity, f"{ratio:.0%} alike"
        what = f"similarity {ratio:.3f}, first at character {at}"
    yield Difference(
        path=path,
        kind="text",
        what=what,
        short=short,
        amount=amount,
        allowed=allowed,
        reference=a[:SHOWN],
        value=b[:SHOWN],
    )


def _around(values: np.ndarray[Any, Any], at: int) -> str:
    begin = max(0, at - 8)
    part = " ".join(str(int(value)) for value in values[begin : at + 24])
    return ("… " if begin else "") + part + (" …" if len(values) > at + 24 else "")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:39] + "…"
