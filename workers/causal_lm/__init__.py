"""Text generation with any causal language model, whole or streamed."""

from __future__ import annotations

from .model import CausalLM

__all__ = ["CausalLM"]
