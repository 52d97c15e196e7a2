"""Published video transformers, packed: diffusers' own modules and weights, called as `VideoDiT` is."""

from .backbone import Conditions, OpenBackbone
from .folder import Published, is_published, load_backbone, read_published
from .registry import packed

__all__ = ["Conditions", "OpenBackbone", "Published", "is_published", "load_backbone", "packed", "read_published"]
