"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: pictures, video frames and text in, text out."""

from __future__ import annotations

from .model import Qwen2VL

__all__ = ["Qwen2VL"]
