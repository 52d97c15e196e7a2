"""Which published transformer is which family: the one table of `packed`."""

from __future__ import annotations

from diffusers.models.modeling_utils import ModelMixin

from .animatediff import AnimateDiff, StableDiffusion
from .backbone import OpenBackbone
from .batches import Batches
from .cogvideox import CogVideoX
from .hunyuan import Hunyuan
from .hunyuan15 import Hunyuan15
from .ltx import LTX
from .ltx2 import LTX2
from .mochi import Mochi
from .svd import StableVideo
from .unet3d import UNet3D
from .wan import Wan

FAMILIES: dict[str, type[OpenBackbone]] = {  # by the class in diffusers
    "CogVideoXTransformer3DModel": CogVideoX,
    "HunyuanVideo15Transformer3DModel": Hunyuan15,
    "HunyuanVideoTransformer3DModel": Hunyuan,
    "LTX2VideoTransformer3DModel": LTX2,
    "LTXVideoTransformer3DModel": LTX,
    "MochiTransformer3DModel": Mochi,
    "WanTransformer3DModel": Wan,
}
UNETS: dict[str, type[OpenBackbone]] = {  # the same of U-Nets
    "UNet2DConditionModel": StableDiffusion,
    "UNet3DConditionModel": UNet3D,
    "UNetMotionModel": AnimateDiff,
    "UNetSpatioTemporalConditionModel": StableVideo,
}


def packed(raw: ModelMixin) -> OpenBackbone:
    """A backbone over a diffusers video transformer or U-Net, its `.raw`, called as `VideoDiT` is.

    A class that is not in the table runs as batches of equal shapes, which is logged. Raises UserError for one that is
    no video transformer, or reads what only a family of its own could give it.
    """
    return (FAMILIES | UNETS).get(type(raw).__name__, Batches)(raw)
