"""Frozen text encoders: prompts to packed token states."""

from .encoder import TextEncoder
from .folder import TextError
from .packed import Fit, PackedText
from .reader import TextReader, load_reader

__all__ = ["Fit", "PackedText", "TextEncoder", "TextError", "TextReader", "load_reader"]
