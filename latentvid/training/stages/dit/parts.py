"""What surrounds the transformer in training: frozen encoders, the noise path, and the pipeline around a model."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ....config.schema import DitConfig
from ....config.sections import TextEncoders
from ....diffusion.scheduler import LatentVideoScheduler
from ....errors import UserError
from ....models.interchange import Vae, arguments_of, channels_last, load_vae
from ....models.kinds import KINDS
from ....models.open.folder import Published
from ....models.open.image import ImageReader, load_image_reader
from ....pipelines.latent_video import LatentVideoPipeline
from ....pipelines.open_video import OpenVideoPipeline
from ....precision import dtype_of
from ....references import Role, as_json, mask_in
from ....sequence import SequenceGroup, make_sequence_group
from ....text import TextEncoder
from ....text.reader import TextReader, load_reader
from ...checkpoint.init import Source, differences
from ...task import build_model

# of the scheduler: which levels sampling visits, not what they are
AT_WILL = dict.fromkeys(
    ("shift", "base_tokens", "log_shift", "shift_tokens", "spacing", "lowest", "terminal", "whole_steps")
)


@dataclass(frozen=True)
class Parts:
    """What training and measurements share. sequence: the processes that share each pack; None if each has its own.
    published: the repository of a published model, which has the parts that the configuration does not name. image: its
    image encoder, where it has one."""

    vae: Vae
    text: TextEncoder | TextReader
    scheduler: LatentVideoScheduler
    device: torch.device
    sequence: SequenceGroup | None
    published: Published | None = None
    image: ImageReader | None = None


def load_parts(config: DitConfig, device: torch.device, published: Published | None = None) -> Parts:
    """Raises UserError for folders that hold no such networks, and for a weighting that the noise path cannot have."""
    sequence = None if config.run.dry_run else make_sequence_group(config.train.sequence_parallel)
    vae = channels_last(load_vae_of(config.vae, published)).to(device).requires_grad_(False)
    text = load_text(config.text_encoder, published, config.text).to(device)
    scheduler = build_model(LatentVideoScheduler, config.scheduler, "scheduler")
    try:
        config.weighting.check(scheduler.config.target, scheduler.path)
    except ValueError as error:
        raise UserError(f"weighting: {error}") from None
    image = None
    if published is not None and "image_encoder" in published.parts:
        image = load_image_reader(published.parts, torch.float32, published.recipe.image == "svd")
        image.encoder.to(device).requires_grad_(False)
    return Parts(vae, text, scheduler, device, sequence, published, image)


def load_vae_of(named: Path | None, published: Published | None) -> Vae:
    """The VAE that is named, or that of the published model."""
    return load_vae(published.parts["vae"] if named is None else named)


def load_text(
    named: str | None, published: Published | None, kept: TextEncoders | None = None
) -> TextEncoder | TextReader:
    """The text encoders of a published model, the first of them from another folder where one is `named`; or the T5
    that is named."""
    if published is None:
        return TextEncoder.from_pretrained(named)
    if not published.recipe.text:
        if named is not None:
            raise UserError("text_encoder: this model reads no text: leave it out")
        return load_reader(published.parts, ())
    folders, first = dict(published.parts), published.recipe.text[0]
    if named is not None:
        folders |= {first.part: Path(named), first.tokenizer: Path(named)}
    kept = kept or TextEncoders()
    dtype = torch.bfloat16 if kept.dtype == "bf16" else torch.float32
    return load_reader(folders, published.recipe.text, dtype, place=kept.place, quantization=kept.quantization)


def differing_from(source: Source, model: nn.Module, parts: Parts) -> list[str]:
    """What tensors' shapes do not tell: in which arguments, noise path, target and latents a model is another."""
    told = {"temporal_stride": parts.vae.temporal_stride}  # by the VAE, which is compared itself
    found = []
    if source.arguments is not None:
        found += differences("model", KINDS[source.kind].cls, {**source.arguments, **told}, model.config)
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


def roles_of(config: DitConfig) -> dict[str, Role]:
    """The roles in which the model is shown references, as sampling must know them; masks are no such role."""
    data, shown = config.data, {k: v for k, v in config.data.references.items() if not v.is_mask}
    return {name: column.role(data.max_area, data.max_frames) for name, column in shown.items()}


def given_of(config: DitConfig) -> tuple[str, ...]:
    """What was given in training, by the names of `GivenFrames`; "mask" is by masks of the clips."""
    return config.given.names if mask_in(config.data.references) is None else (*config.given.names, "mask")


def student_of(config: DitConfig, scheduler: LatentVideoScheduler) -> dict[str, Any] | None:
    """What the pipeline's `student` says of a distilled model, at what levels it was; None of others."""
    if config.student is None:
        return None
    steps = config.student["steps"]
    return {**config.student, "levels": None if steps is None else scheduler.levels(steps).tolist()}


def make_pipeline(config: DitConfig, parts: Parts, model: nn.Module) -> LatentVideoPipeline:
    """The pipeline around a model; its defaults are those of `samples`, the looks at it during training."""
    s = config.samples
    sizes = {"frames": s.frames, "height": s.height, "width": s.width, **config.sampled(s.steps, s.guidance)}
    sizes |= {} if s.fps is None else {"fps": s.fps}
    if parts.published is not None:
        del sizes["guidance_interval"]  # which its repository has no place for
        return OpenVideoPipeline(
            vae=parts.vae,
            transformer=model,
            scheduler=parts.scheduler,
            reader=parts.text,
            recipe=replace(parts.published.recipe, **sizes),
            image_reader=parts.image,
            references=roles_of(config),
        )
    return LatentVideoPipeline(
        vae=parts.vae,
        transformer=model,
        scheduler=parts.scheduler,
        text_encoder=parts.text.encoder,
        tokenizer=parts.text.tokenizer,
        given=given_of(config),
        given_noise=config.given.noise,
        references=as_json(roles_of(config)),
        student=student_of(config, parts.scheduler),
        **sizes,
    )
