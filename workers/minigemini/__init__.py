"""MiniGemini (also published as MGM): inference on transformers' plain language models.

Loads the published folders of 2B, 7B, 8B, 13B, 34B, 8x7B and their HD versions as they are.
"""

from __future__ import annotations

from .worker import MiniGemini

__all__ = ["MiniGemini"]
