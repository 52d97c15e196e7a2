"""Text to video with a latent diffusion transformer.

Axes: T tokens of a pack, P token features, N samples, S text tokens; latents are [C,f,h,w], frames uint8 [F,H,W,3].
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from ..data.transforms import to_uint8
from ..diffusion.guidance import classifier_free
from ..diffusion.scheduler import LatentVideoScheduler
from ..errors import UserError
from ..models.interchange import Vae, as_vae, raw_vae
from ..models.transformer import VideoDiT
from ..packing import Packed, token_grid, unpatchify
from ..rng import generator
from ..text import TextEncoder


@dataclass
class VideoOutput(BaseOutput):
    """frames: one uint8 tensor [F,H,W,3] a prompt (RGB). fps: at which they are meant to be shown."""

    frames: list[Tensor]
    fps: float


class LatentVideoPipeline(DiffusionPipeline):
    """VAE, transformer, scheduler and text encoder, saved together; use `LatentVideoPipeline.from_pretrained`.

    The VAE is ours or one of diffusers' (`latentvid.models.interchange`): `vae` is what diffusers saves, `codec` the
    same behind the interface of ours.

    `frames, height, width, fps, steps, guidance` are what the model was trained for and the defaults of a call.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"

    def __init__(
        self,
        vae: ModelMixin | Vae,
        transformer: VideoDiT,
        scheduler: LatentVideoScheduler,
        text_encoder: T5EncoderModel,
        tokenizer: PreTrainedTokenizerBase,
        frames: int = 17,
        height: int = 256,
        width: int = 256,
        fps: float = 8.0,
        steps: int = 50,
        guidance: float = 3.0,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=raw_vae(vae),
            transformer=transformer,
            scheduler=scheduler,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
        )
        self.register_to_config(frames=frames, height=height, width=width, fps=fps, steps=steps, guidance=guidance)

    @property
    def codec(self) -> Vae:
        """The VAE behind the interface of ours."""
        return as_vae(self.vae)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] = "",
        frames: int | Sequence[int] | None = None,
        height: int | Sequence[int] | None = None,
        width: int | Sequence[int] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        eta: float = 0.0,
        precision: torch.dtype | None = None,
        progress: bool = True,
    ) -> VideoOutput:
        """Makes one clip a prompt; several prompts, of any shapes, are one pack.

        Args:
            prompt: what to show. An empty prompt is unconditional.
            negative_prompt: what to steer away from; one for all, or one a prompt.
            frames, height, width: of each clip, one for all or one a prompt.
            steps: denoising steps.
            guidance: classifier-free guidance scale; 1 is none and halves the work.
            seed: the i-th prompt has the noise of `seed + i`, whatever it is packed with.
            eta: 0 is deterministic (DDIM, Euler); 1 adds the posterior's noise at each step (DDPM).
            precision: autocast type of the networks; None is bf16 on CUDA and fp32 elsewhere.
            progress: show a progress bar.

        Raises UserError for sizes that the model cannot make, a prompt that is too long, and lists of unequal length.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        config = self.config
        steps = config.steps if steps is None else steps
        guidance = config.guidance if guidance is None else guidance
        if steps < 1 or not prompts:
            raise UserError(f"{steps} steps and {len(prompts)} prompts: at least one of each is needed")
        sizes = (
            _one_each(given if given is not None else config[name], len(prompts), name)
            for name, given in (("frames", frames), ("height", height), ("width", width))
        )
        grids = [self._token_grid(*size) for size in zip(*sizes, strict=True)]
        negatives = _one_each(negative_prompt, len(prompts), "negative_prompt")
        with self._autocast(precision):
            tokens, layout = self._denoise(prompts, negatives, grids, steps, guidance, seed, eta, progress)
            clips = self._decode(unpatchify(tokens, layout, self.transformer.config.patch))
        return VideoOutput(frames=clips, fps=config.fps)

    def _denoise(
        self,
        prompts: list[str],
        negatives: list[str],
        grids: list[tuple[int, int, int]],
        steps: int,
        guidance: float,
        seed: int,
        eta: float,
        progress: bool,
    ) -> tuple[Tensor, Packed]:
        """Clean tokens [T,P] and their layout. With guidance both branches go through the network as one pack."""
        device = self._execution_device
        layout = Packed.of(grids).to(device)
        guided = guidance != 1.0
        text = TextEncoder(self.text_encoder, self.tokenizer).encode(prompts + negatives if guided else prompts)
        text_layout = Packed.of_lengths(text.lengths).to(device)
        network_layout = Packed.of(grids * 2).to(device) if guided else layout

        sources = [generator(seed + i, 0, "sample") for i in range(len(prompts))]
        features = self.transformer.config.latent_channels * self.transformer.config.patch**2

        def noise() -> Tensor:  # [T,P]
            draws = zip(layout.lengths, sources, strict=True)
            return torch.cat([torch.randn(n, features, generator=source) for n, source in draws]).to(device)

        z = noise()
        levels = self.scheduler.levels(steps).to(device)
        self.set_progress_bar_config(disable=not progress, desc="sampling")
        for t, s in zip(self.progress_bar(levels[:-1]), levels[1:], strict=True):
            prediction = self.transformer(
                z.repeat(2, 1) if guided else z, t.expand(network_layout.rows), text.states, network_layout, text_layout
            ).float()
            if guided:
                prediction = classifier_free(*prediction.chunk(2), guidance)
            z = self.scheduler.step(prediction, t, s, z, noise() if eta > 0 else None, eta)
        return z, layout

    def _decode(self, latents: list[Tensor]) -> list[Tensor]:
        """Normalised latents [C,f,h,w] -> uint8 [F,H,W,3]; equal shapes go through the VAE together."""
        groups: dict[torch.Size, list[int]] = defaultdict(list)
        for i, z in enumerate(latents):
            groups[z.shape].append(i)
        clips: dict[int, Tensor] = {}
        vae = self.codec
        for members in groups.values():
            videos = vae.decode(vae.denormalise(torch.stack([latents[i] for i in members]))).sample
            clips |= {i: to_uint8(video).cpu() for i, video in zip(members, videos, strict=True)}
        return [clips[i] for i in range(len(latents))]

    def _token_grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        patch, vae = self.transformer.config.patch, self.codec
        stride = vae.spatial_stride * patch
        if any(side < stride or side % stride for side in (height, width)):
            near = " x ".join(str(max(1, round(side / stride)) * stride) for side in (height, width))
            raise UserError(f"{height} x {width} pixels: this model makes multiples of {stride}, such as {near}")
        return token_grid(vae.latent_grid(frames, height, width), patch)

    def _autocast(self, precision: torch.dtype | None):
        device = self._execution_device.type
        if precision is None:
            precision = torch.bfloat16 if device == "cuda" else torch.float32
        return nullcontext() if precision == torch.float32 else torch.autocast(device, precision)


def _one_each(value, count: int, name: str) -> list:
    values = [value] * count if isinstance(value, str | int | float) else list(value)
    if len(values) != count:
        raise UserError(f"{name}: {len(values)} values for {count} prompts; give one, or one a prompt")
    return values
