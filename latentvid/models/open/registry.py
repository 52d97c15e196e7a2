"""Which published transformer is which family: the one table of `packed`."""

from __future__ import annotations

from diffusers.models.modeling_utils import ModelMixin

from ...errors import UserError
from .backbone import OpenBackbone
from .cogvideox import CogVideoX
from .ltx import LTX
from .ltx2 import LTX2
from .mochi import Mochi
from .wan import Wan

FAMILIES: dict[str, type[OpenBackbone]] = {  # by the class in diffusers
    "CogVideoXTransformer3DModel": CogVideoX,
    "LTX2VideoTransformer3DModel": LTX2,
    "LTXVideoTransformer3DModel": LTX,
    "MochiTransformer3DModel": Mochi,
    "WanTransformer3DModel": Wan,
}


def packed(raw: ModelMixin) -> OpenBackbone:
    """A backbone over a diffusers video transformer, its `.raw`, called as `VideoDiT` is.

    Raises UserError for a class that is no video transformer.
    """
    name = type(raw).__name__
    if name not in FAMILIES:
        raise UserError(f"{name} is not among the models that are known: {', '.join(FAMILIES)}")
    return FAMILIES[name](raw)
