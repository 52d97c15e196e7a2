"""Published video models, sampled as our own are: their repositories as they are, by the recipe of each.

Axes: latents are [C,f,h,w], frames uint8 [F,H,W,3], pictures uint8 [H,W,3]; N samples, I image tokens of width Di.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor, nn

from ..data.transforms import from_uint8
from ..diffusion.guidance import Guidance
from ..diffusion.scheduler import LatentVideoScheduler
from ..errors import UserError
from ..limits import check
from ..models.interchange import Vae, load_vae, raw_vae
from ..models.open import Conditions, OpenBackbone, Published, load_backbone, read_published
from ..models.open.conditioning import condition_channels, encode_condition, pixels_to_encode, with_noise
from ..models.open.image import ImageReader, load_image_reader
from ..models.open.recipe import Recipe
from ..models.open.svd import NOISE
from ..packing import Grid
from ..references import Role, as_json, saved_roles
from ..text import TextReader, load_reader
from .latent_video import LatentVideoPipeline
from .predict import SecondExpert
from .sampling import Request, Sampling

PARTS = ("vae", "transformer", "transformer_2", "scheduler", "reader", "image_reader")


class OpenVideoPipeline(LatentVideoPipeline):
    """VAE, packed transformers, scheduler, text encoders and the recipe of a published model.

    transformer_2: of the recipe's two experts the second. image_reader: of a model that reads pictures by an encoder.
    Use `OpenVideoPipeline.from_pretrained(FOLDER or hub name)`, which `load_pipeline` does for such folders.
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->connectors->image_encoder->transformer->transformer_2->vae"

    def __init__(
        self,
        vae: ModelMixin | Vae,
        transformer: OpenBackbone,
        scheduler: LatentVideoScheduler,
        reader: TextReader,
        recipe: Recipe,
        transformer_2: OpenBackbone | None = None,
        image_reader: ImageReader | None = None,
        references: Mapping[str, Role] | None = None,
    ) -> None:
        DiffusionPipeline.__init__(self)
        if (transformer_2 is None) != (recipe.boundary is None):
            raise UserError("a second transformer and the recipe's boundary belong together: give both, or neither")
        self.recipe, self._reader, self.image_reader = recipe, reader, image_reader
        modules: dict[str, Any] = {"vae": raw_vae(vae), "transformer": transformer, "scheduler": scheduler}
        if transformer_2 is not None:
            modules["transformer_2"] = transformer_2
        if reader.place == "device":  # else they go to and fro by themselves
            modules |= {part.reading.part: part.encoder for part in reader.parts}
            modules |= {p.reading.connectors: p.connectors for p in reader.parts if p.connectors is not None}
        if image_reader is not None:
            modules["image_encoder"] = image_reader.encoder
        self.register_modules(**modules)
        self._parts = tuple(modules)
        for expert in self.experts:
            expert.strides = self.codec.temporal_stride, self.codec.spatial_stride
        sizes = ("frames", "height", "width", "fps", "steps", "guidance")
        self.register_to_config(
            **{name: getattr(recipe, name) for name in sizes},
            given=tuple(recipe.given) or ("plain",),
            trained=None,
            given_shares=dict(recipe.given) or None,
            references=as_json(references or {}),
        )

    @classmethod
    def _get_signature_keys(cls, obj: OpenVideoPipeline) -> tuple[list[str], list[str]]:
        """What diffusers takes for the parts of a pipeline, and for its settings: the parts differ by model."""
        return sorted(obj._parts), sorted(key for key in obj.config if key not in obj._parts)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, torch_dtype: torch.dtype | None = None, **parts: Any
    ) -> OpenVideoPipeline:
        """A published repository, a folder or a name on the hub, checked before any weight is read. Raises UserError.

        torch_dtype: of the weights; it is computed in it too. The VAE stays in fp32. parts: to take in place of those
        in the folder (`PARTS`).
        """
        parts.pop("local_files_only", None)  # as it is, of what is in the folder
        if unknown := sorted(parts.keys() - set(PARTS)):
            raise UserError(f"from_pretrained takes no {unknown[0]}: torch_dtype, or one of {', '.join(PARTS)}")
        return cls.of(read_published(folder), torch.float32 if torch_dtype is None else torch_dtype, **parts)

    @classmethod
    def of(cls, published: Published, dtype: torch.dtype = torch.float32, **parts: Any) -> OpenVideoPipeline:
        """Of a repository that is read already; `parts` as in `from_pretrained`. Raises UserError."""
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise UserError(f"torch_dtype={dtype}: give torch.float32, torch.bfloat16 or torch.float16")
        recipe = published.recipe
        if "scheduler" not in parts:
            parts["scheduler"] = LatentVideoScheduler(**recipe.scheduler)
        if "vae" not in parts:
            parts["vae"] = load_vae(published.folder, "vae")
        if "reader" not in parts:
            parts["reader"] = load_reader(published.parts, recipe.text, dtype)
        if "image_reader" not in parts and "image_encoder" in published.parts:
            parts["image_reader"] = load_image_reader(published.parts, dtype, recipe.image == "svd")
        for name, part in zip(("transformer", "transformer_2"), published.experts, strict=False):
            if name not in parts:
                parts[name] = load_backbone(published, part, dtype)
        if (most := parts["transformer"].most_frames) is not None:
            recipe = replace(recipe, frames=min(recipe.frames, most))
        pipeline = cls(recipe=recipe, references=saved_roles(published.folder), **parts)
        pipeline.register_to_config(_name_or_path=str(published.folder))
        return pipeline

    def save_pretrained(self, save_directory: str | os.PathLike, **options: Any) -> None:
        raise UserError(
            "a published model stays in its own repository: save what was changed of it, such as "
            "pipeline.transformer.raw.save_pretrained(FOLDER)"
        )

    def to(self, *args: Any, **kwargs: Any) -> OpenVideoPipeline:
        pipeline = super().to(*args, **kwargs)
        if self._reader.place != "device":
            self._reader.to(self.transformer.device)
        return pipeline

    # --- the model's own ---

    @property
    def reader(self) -> TextReader:
        return self._reader

    @property
    def experts(self) -> tuple[nn.Module, ...]:
        second = getattr(self, "transformer_2", None)
        return (self.transformer,) if second is None else (self.transformer, second)

    @property
    def negative_prompt(self) -> str:
        return self.recipe.negative_prompt

    @property
    def solver(self) -> str:
        return self.recipe.solver

    def guidance(self, sampling: Sampling | None = None) -> Guidance:
        asked = None if sampling is None else sampling.guidance
        recipe = self.recipe
        usual = {"scale": recipe.guidance, "rescale": recipe.guidance_rescale, "first": recipe.guidance_first}
        return asked or Guidance(**usual)

    def _second(self, sampling: Sampling) -> SecondExpert | None:
        if self.recipe.boundary is None:
            return super()._second(sampling)
        guidance, low = self.guided(sampling), sampling.guidance_low
        if low is None and guidance.scale == self.recipe.guidance:
            low = self.recipe.guidance_low
        guidance = replace(guidance, scale=guidance.scale if low is None else low)
        return SecondExpert(self.transformer_2, self.recipe.boundary, guidance)

    def noise_of_given(self, sampling: Sampling, condition: str, cached: bool) -> float:
        """Of a model whose picture has noise before the VAE, 0: no latent frame is given."""
        return 0.0 if self.recipe.image == "svd" else super().noise_of_given(sampling, condition, cached)

    def _image_noise(self, sampling: Sampling | None) -> float:
        """The deviation of the noise in the pixels of a picture."""
        asked = None if sampling is None else sampling.image_noise
        return NOISE if asked is None else check("image_noise", asked)

    def _tell(self, given: Conditions, samples: int, sampling: Sampling) -> Conditions:
        if self.recipe.image == "svd":
            level = torch.full((samples,), self._image_noise(sampling), device=self._execution_device)
            given = replace(given, image_noise=level)
        if self.recipe.guidance_embedded is None:
            return super()._tell(given, samples, sampling)
        asked = sampling.guidance_embedded
        told = self.recipe.guidance_embedded if asked is None else asked
        return replace(given, guidance=torch.full((samples,), float(told), device=self._execution_device))

    def _complete(self, requests: Sequence[Request], sampling: Sampling) -> list[Request]:
        requests, made = super()._complete(requests, sampling), []
        for request in requests:
            if self.transformer.channels and request.channels is None:
                if self.recipe.image != "concat":
                    raise UserError(
                        f"{self.recipe_name} makes videos from pictures alone: give it one, with inference/i2v.py"
                    )
                request = replace(request, channels=self._channels(request.grid, None))
            made.append(request)
        return made

    @property
    def recipe_name(self) -> str:
        return f"this {self.transformer.family} model"

    # --- pictures ---

    @property
    def takes_last(self) -> bool:
        """Whether a picture may be given for the last frame, beside the first, by further channels."""
        return self.recipe.image == "wan"

    def begin_with(
        self,
        images: Sequence[Tensor],
        grids: Sequence[Grid],
        precision: torch.dtype | None = None,
        lasts: Sequence[Tensor] | None = None,
        *,
        seed: int = 0,
        sampling: Sampling | None = None,
    ) -> list[dict[str, Tensor]]:
        if not self.transformer.channels:
            return super().begin_with(images, grids, precision)
        deviation = self._image_noise(sampling) if self.recipe.image == "svd" else 0.0
        ends = [None] * len(images) if lasts is None else lasts
        found = []
        with self._autocast(precision):
            for i, (first, last, grid) in enumerate(zip(images, ends, grids, strict=True)):
                request = {"channels": self._channels(grid, first, last, deviation, seed + i)}
                if self.image_reader is not None:
                    shown = [first] if last is None else [first, last]
                    request["image"] = self.image_reader.read(shown, self._execution_device)
                found.append(request)
        return found

    def _channels(
        self, grid: Grid, first: Tensor | None, last: Tensor | None = None, deviation: float = 0.0, seed: int = 0
    ) -> Tensor:
        """Further channels [C',f,h,w] of a clip that begins with a picture, and ends with one. deviation: of noise in
        the first one's pixels."""
        kind, vae = self.recipe.image, self.codec
        frames = self.transformer.patch[0]
        grid = (-(-grid[0] // frames) * frames, *grid[1:])
        options = {"channels": self.transformer.latent_channels, "stride": vae.temporal_stride}
        if first is None:
            return condition_channels(kind, None, grid, **options)
        length = 1 + (grid[0] - 1) * vae.temporal_stride
        pictures = [None if x is None else _pixels(x, self._execution_device) for x in (first, last)]
        pictures[0] = with_noise(pictures[0], deviation, seed)
        latents = encode_condition(kind, vae, pixels_to_encode(kind, pictures[0], length, pictures[1]))
        given = (0,) if last is None else (0, length - 1)
        return condition_channels(kind, latents, grid, given=given, **options)


def _pixels(picture: Tensor, device: torch.device) -> Tensor:
    """uint8 [H,W,3] -> [3,H,W] in [-1,1]."""
    return from_uint8(picture.to(device)[None, None])[0, :, 0]
