"""What a `VideoDiT` is given in a pass, and whether it fits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..packing import Packed
from .conditions import Conditions
from .key_value_cache import KeyValueCache

if TYPE_CHECKING:
    from .transformer import VideoDiT


def check_inputs(
    model: VideoDiT,
    timestep: Tensor,
    layout: Packed,
    text_layout: Packed,
    cache: KeyValueCache | None,
    fps: Tensor,
    given: Conditions,
) -> None:
    """Raises ValueError where the arguments of `VideoDiT.forward` do not fit each other or the model."""
    if layout.segments != text_layout.segments:
        raise ValueError(f"{layout.segments} samples but {text_layout.segments} prompts: give one prompt a sample")
    if timestep.shape != layout.frame_segment.shape:
        raise ValueError(f"timestep has shape {tuple(timestep.shape)}, the layout has {layout.frames} frames")
    if fps.shape != (layout.segments,):
        raise ValueError(f"fps has shape {tuple(fps.shape)}, the layout has {layout.segments} samples")
    channels, guidance = given.channels, given.guidance
    wanted, held = model.channels * model.config.patch**2, 0 if channels is None else channels.shape[-1]
    if wanted != held:
        raise ValueError(f"the model takes {wanted} features of further channels a token, got {held}")
    if (model.guidance_in is None) != (guidance is None):
        what = "none was given" if guidance is None else "this one does not"
        raise ValueError(f"models of guidance_condition are told a scale of guidance a sample, and {what}")
    if guidance is not None and guidance.shape != (layout.segments,):
        raise ValueError(f"guidance has shape {tuple(guidance.shape)}, the layout has {layout.segments} samples")
    if given.motion is not None and (model.motion_in is None or given.motion.shape != (layout.segments,)):
        raise ValueError("motion is of models of motion_condition, one number a sample: leave it out")
    if layout.whole is not None and model.sequence is None:
        raise ValueError("this is a piece of a pack, but the model has no group of processes to see the rest with")
    if cache is not None:
        if model.channels:
            raise ValueError("a cache of past frames is of models that are told of them by noise levels")
        if layout.references:
            raise ValueError("a cache of past frames has no place for references: sample whole clips with them")
        if model.config.attention != "causal":
            raise ValueError(f"a cache of past frames needs causal attention; this model's is {model.config.attention}")
        cache.check(layout, len(model.blocks))
