"""Small random repositories of published models by name; open_wan.py and the like have those of a family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import open_animatediff
import open_cogvideox
import open_hunyuan
import open_ltx
import open_mochi
import open_svd
import open_wan
import torch
from diffusers import DiffusionPipeline
from open_models import lively

REPOSITORIES: dict[str, Callable[[], DiffusionPipeline]] = {
    "wan": open_wan.wan,
    "wan_experts": open_wan.wan_experts,
    "wan_small": open_wan.wan_small,
    "wan_image": open_wan.wan_image,
    "wan_clip": open_wan.wan_clip,
    "wan_ends": lambda: open_wan.wan_clip(ends=True),
    "stable_diffusion": open_animatediff.stable_diffusion,
    "modelscope": open_animatediff.modelscope,
    "ltx": open_ltx.ltx,
    "ltx_condition": lambda: open_ltx.ltx(condition=True),
    "ltx2": open_ltx.ltx2,
    "cogvideox": open_cogvideox.cogvideox,
    "cogvideox_image": open_cogvideox.cogvideox_image,
    "cogvideox_newer": open_cogvideox.cogvideox_newer,
    "cogvideox_newer_image": lambda: open_cogvideox.cogvideox_image(patch_size_t=2, ofs_embed_dim=16),
    "mochi": open_mochi.mochi,
    "svd": open_svd.svd,
    "mochi_zeros": lambda: open_mochi.mochi(zeros=True),
    "hunyuan": open_hunyuan.video,
    "hunyuan15": open_hunyuan.video15,
    "hunyuan15_image": open_hunyuan.image15,
}


def write_repository(folder: Path, kind: str) -> Path:
    """The repository as a hub has it; every weight of the transformers counts. The same in every session."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = REPOSITORIES[kind]()
        for name in ("transformer", "transformer_2", "unet"):
            if getattr(pipeline, name, None) is not None:
                lively(getattr(pipeline, name))
        if getattr(pipeline, "transformer_2", None) is not None:
            with torch.no_grad():
                for p in pipeline.transformer_2.parameters():
                    p.mul_(0.9)
    pipeline.save_pretrained(folder)
    return folder
