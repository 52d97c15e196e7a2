"""What surrounds the transformer in training: frozen encoders, the noise path, and the pipeline around a model."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from torch import nn

from ....config.schema import DitConfig
from ....diffusion.scheduler import LatentVideoScheduler
from ....errors import UserError
from ....models.interchange import Vae, arguments_of, channels_last, load_vae
from ....models.transformer import VideoDiT
from ....pipelines.latent_video import LatentVideoPipeline
from ....precision import dtype_of
from ....sequence import SequenceGroup, make_sequence_group
from ....text import TextEncoder
from ...checkpoint.init import Source, differences
from ...task import build_model

# of the scheduler: which levels sampling visits, not what they are
AT_WILL = dict.fromkeys(
    ("shift", "base_tokens", "log_shift", "shift_tokens", "spacing", "lowest", "terminal", "whole_steps")
)


@dataclass(frozen=True)
class Parts:
    """What training and measurements share. sequence: the processes that share each pack; None if each has its own."""

    vae: Vae
    text: TextEncoder
    scheduler: LatentVideoScheduler
    device: torch.device
    sequence: SequenceGroup | None


def load_parts(config: DitConfig, device: torch.device) -> Parts:
    """Raises UserError for folders that hold no such networks, and for a weighting that the noise path cannot have."""
    sequence = None if config.run.dry_run else make_sequence_group(config.train.sequence_parallel)
    vae = channels_last(load_vae(config.vae)).to(device).requires_grad_(False)
    text = TextEncoder.from_pretrained(config.text_encoder).to(device)
    scheduler = build_model(LatentVideoScheduler, config.scheduler, "scheduler")
    try:
        config.weighting.check(scheduler.config.target, scheduler.path)
    except ValueError as error:
        raise UserError(f"weighting: {error}") from None
    return Parts(vae, text, scheduler, device, sequence)


def differing_from(source: Source, model: nn.Module, parts: Parts) -> list[str]:
    """What tensors' shapes do not tell: in which arguments, noise path, target and latents a model is another."""
    told = {"temporal_stride": model.config.temporal_stride}  # by the VAE, which is compared itself
    found = []
    if source.arguments is not None:
        found += differences("model", VideoDiT, {**source.arguments, **told}, model.config)
    if "scheduler" in source.beside:
        before, now = ({**c, **AT_WILL} for c in (source.beside["scheduler"], parts.scheduler.config))
        found += differences("scheduler", LatentVideoScheduler, before, now)
    vae = arguments_of(parts.vae)
    before = source.beside.get("vae", {})
    for key in vae.keys() & before.keys():
        if json.loads(json.dumps(vae[key])) != before[key]:
            found.append(f"the VAE's {key} is another")
    return sorted(found)


def compute_dtype(config: DitConfig) -> torch.dtype:
    return dtype_of(config.train.mixed_precision)


def make_pipeline(config: DitConfig, parts: Parts, model: nn.Module) -> LatentVideoPipeline:
    """The pipeline around a model; its defaults are those of `samples`, the looks at it during training."""
    s = config.samples
    rate = {} if s.fps is None else {"fps": s.fps}
    return LatentVideoPipeline(
        vae=parts.vae,
        transformer=model,
        scheduler=parts.scheduler,
        text_encoder=parts.text.encoder,
        tokenizer=parts.text.tokenizer,
        frames=s.frames,
        height=s.height,
        width=s.width,
        steps=s.steps,
        guidance=s.guidance,
        given=config.given.names,
        **rate,
    )
