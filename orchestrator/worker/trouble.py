"""Exceptions as text: what travels when a family's code raises."""

from __future__ import annotations

import traceback
from typing import Any, Dict, List

from orchestrator.worker.limits import MAX_TEXT

__all__ = ["describe_error"]

_OURS = ("orchestrator/worker/", "orchestrator\\worker\\")


def describe_error(error: BaseException, kind: str = "remote") -> Dict[str, Any]:
    """An exception as plain values.

    `kind` is `remote` (the family's code), `load` (in loading), `cancelled`, `protocol` (a message of ours was not
    understood) or `encoding` (a result that the wire does not carry).
    """
    return {
        "kind": kind,
        "type": _name(type(error)),
        "message": _cut(_say(error)),
        "traceback": "" if kind == "protocol" else _cut(_trace(error)),  # it would only show our own frames
        "lineage": [_name(base) for base in type(error).__mro__[1:-1]][:10],
        "notes": [_cut(str(note)) for note in getattr(error, "__notes__", ())][:10],
        "causes": _causes(error),
    }


def _name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _say(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as other:
        return f"(its message could not be made: {type(other).__name__})"


def _trace(error: BaseException) -> str:
    """The traceback without the frames of this package at its top."""
    frames = error.__traceback__
    while frames is not None and any(part in frames.tb_frame.f_code.co_filename for part in _OURS):
        frames = frames.tb_next
    try:
        return "".join(traceback.format_exception(type(error), error, frames or error.__traceback__))
    except Exception as other:
        return f"(its traceback could not be made: {type(other).__name__})"


def _causes(error: BaseException) -> List[Dict[str, str]]:
    """The chain of causes and contexts, outermost first."""
    found: List[Dict[str, str]] = []
    seen = {id(error)}
    current = error
    while len(found) < 10:
        following = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
        if following is None or id(following) in seen:
            break
        seen.add(id(following))
        found.append({"type": _name(type(following)), "message": _cut(_say(following))})
        current = following
    return found


def _cut(text: str) -> str:
    text = text.encode("utf-8", "replace").decode("utf-8")
    if len(text) <= MAX_TEXT:
        return text
    return (
        f"{text[: MAX_TEXT // 2]}\n… {len(text) - MAX_TEXT:,} characters left out …\n{text[-MAX_TEXT // 2 :]}"
    )
