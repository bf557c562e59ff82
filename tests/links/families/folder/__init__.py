"""A family of more than one file."""

from .parts import SECRET
from .worker import InFolder

__all__ = ["SECRET", "InFolder"]
