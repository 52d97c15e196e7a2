"""Frozen text encoders: prompts to packed token states."""

from .encoder import Fit, PackedText, TextEncoder
from .folder import TextError

__all__ = ["Fit", "PackedText", "TextEncoder", "TextError"]
