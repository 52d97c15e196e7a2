"""Published video transformers, packed: diffusers' own modules and weights, called as `VideoDiT` is."""

from .backbone import Conditions, OpenBackbone
from .registry import packed

__all__ = ["Conditions", "OpenBackbone", "packed"]
