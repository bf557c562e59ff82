"""Secrets, known by the names they bear: variables called so, parameters of a URL called so, passwords in URLs.

What only looks like a secret is left alone: a log whose hashes and ids are crossed out helps nobody.
"""

from __future__ import annotations

import re
from typing import Mapping

__all__ = ["Mask", "is_secret"]

_NAME = re.compile(r"(?i)(^|_)(token|secret|password|passwd|key|credentials?)(_|$)")
_LOGIN = re.compile(rb"(://)[^/\s:@]{0,200}:[^/\s@]{1,400}@")
_PARAMETER = re.compile(
    rb"(?i)([?&](?:[a-z0-9]{1,20}[_-]){0,4}(?:token|secret|password|passwd|key|signature|sig|credentials?)=)[^&\s\"'<>]+"
)
_SHORTEST = 6  # a shorter value of a variable is part of too many words


def is_secret(name: str) -> bool:
    """Whether a variable's name says that its value is a secret: HF_TOKEN, AWS_SECRET_ACCESS_KEY …"""
    return _NAME.search(name) is not None


class Mask:
    """Crosses out the values of the secret variables of `environ`, and what URLs carry."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        named = [(value.encode("utf-8", "surrogateescape"), name) for name, value in environ.items()]
        self._values = sorted(
            (
                (value, b"<" + name.encode("utf-8", "replace") + b">")
                for value, name in named
                if len(value) >= _SHORTEST and is_secret(name)
            ),
            key=lambda pair: -len(pair[0]),
        )

    def data(self, data: bytes) -> bytes:
        """The bytes with every secret crossed out."""
        for value, name in self._values:
            data = data.replace(value, name)
        if b"://" in data:
            data = _PARAMETER.sub(rb"\1****", _LOGIN.sub(rb"\1****@", data))
        return data

    def text(self, text: str) -> str:
        """As `data`, for text."""
        return self.data(text.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")
