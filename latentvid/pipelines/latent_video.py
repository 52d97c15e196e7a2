"""Clips from a latent diffusion transformer, by text and by what is known of them.

Axes: latents are [C,f,h,w], frames uint8 [F,H,W,3].
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from ..diffusion.guidance import Guidance, reconstruction_guided
from ..diffusion.inversion import ITERATIONS, invert
from ..diffusion.scheduler import LatentVideoScheduler
from ..diffusion.solvers import Predict, solve
from ..errors import UserError
from ..files import follow_umask
from ..limits import check
from ..models.conditions import Conditions
from ..models.interchange import Vae, raw_vae
from ..models.key_value_cache import KeyValueCache
from ..models.open import packed
from ..models.open.unet3d import UNet3D
from ..models.transformer import VideoDiT
from ..packing import unpatchify
from ..references import Role, as_json, read_roles
from ..text import TextEncoder, TextReader
from .codec import CodecMixin
from .controls import branches_of, signals_of
from .defaults import SOLVER
from .folder import CLASSES, check_apart, check_index, read_parts
from .known import KnownMixin, noise_range
from .limit import Kind, check_cost
from .low import with_low
from .predict import SecondExpert, make_predict, record
from .references import Given, encoded, shown_to
from .sampling import Batch, Request, Sampling, one_each, told_motion
from .student import Student, StudentMixin


@dataclass
class VideoOutput(BaseOutput):
    """frames: one uint8 tensor [F,H,W,3] a prompt (RGB). fps: at which they are meant to be shown; a list where the
    call had one."""

    frames: list[Tensor]
    fps: float | list[float]


class LatentVideoPipeline(CodecMixin, KnownMixin, StudentMixin, DiffusionPipeline):
    """VAE, transformer or 3D U-Net, scheduler and text encoder, saved together; use
    `LatentVideoPipeline.from_pretrained`.

    The VAE is ours or one of diffusers' (`latentvid.models.interchange`): `vae` is what diffusers saves, `codec` the
    same behind the interface of ours.

    `frames, height, width, fps` are those of most of the training's tokens and, with `steps, guidance`, the defaults of
    a call; `given` names the frames that were given in training (`diffusion.masks.GivenFrames`), `given_shares` has how
    often each, `given_noise` between which levels of noise. `trained` lists the kinds of clips that training saw
    (`limit.Kind`). `references` are the roles in which clips are shown others (`references.Role`, as JSON). `student`
    is of a distilled model (`student.Student`).
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"

    def __init__(
        self,
        vae: ModelMixin | Vae,
        transformer: VideoDiT | UNet3D | UNet3DConditionModel,
        scheduler: LatentVideoScheduler,
        text_encoder: T5EncoderModel,
        tokenizer: PreTrainedTokenizerBase,
        frames: int = 17,
        height: int = 256,
        width: int = 256,
        fps: float = 8.0,
        steps: int = 50,
        guidance: float = 3.0,
        given: list[str] | tuple[str, ...] = ("plain",),  # diffusers warns of types that it does not know
        trained: list | None = None,
        given_shares: dict | None = None,
        references: dict | None = None,
        student: dict | None = None,
        given_noise: list[float] | tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=raw_vae(vae),
            transformer=packed(transformer) if isinstance(transformer, UNet3DConditionModel) else transformer,
            scheduler=scheduler,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
        )
        self.register_to_config(
            frames=frames,
            height=height,
            width=width,
            fps=fps,
            steps=steps,
            guidance=guidance,
            given=tuple(given),
            trained=None if trained is None else [Kind.of(kind).as_json() for kind in trained],
            given_shares=given_shares,
            references=as_json(read_roles(references, "the pipeline")),
            student=None if student is None else Student.of(student).as_json(),
            given_noise=noise_range(given_noise),
        )

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, torch_dtype: torch.dtype | None = None, **parts: Any
    ) -> LatentVideoPipeline:
        """A saved pipeline, from a folder here alone, checked before anything of it is imported. Raises UserError.

        torch_dtype: of the weights; it is computed in it too. parts: to take in place of those in the folder.
        """
        dtype = torch.float32 if torch_dtype is None else torch_dtype
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise UserError(f"torch_dtype={torch_dtype}: give torch.float32, torch.bfloat16 or torch.float16")
        parts.pop("local_files_only", None)  # as it always is
        if unknown := sorted(parts.keys() - CLASSES.keys()):
            raise UserError(f"from_pretrained takes no {unknown[0]}: torch_dtype, or one of {', '.join(CLASSES)}")
        folder = Path(folder)
        arguments = check_index(folder, cls)
        pipeline = cls(**read_parts(folder, parts, dtype), **arguments)
        pipeline.register_to_config(_name_or_path=str(folder))
        return pipeline

    def save_pretrained(self, save_directory: str | os.PathLike, **options: Any) -> None:
        """As diffusers has it, with files that others may read as far as the umask lets them. Raises UserError where
        ControlNets or adapters are in its networks, which have files of their own."""
        check_apart(self.experts)
        super().save_pretrained(save_directory, **options)
        follow_umask(save_directory)

    @property
    def roles(self) -> dict[str, Role]:
        """In which clips can be shown references, by their names."""
        return read_roles(self.config.references, "the pipeline")

    @property
    def negative_prompt(self) -> str:
        """What it steers away from where nothing is said."""
        return ""

    @property
    def solver(self) -> str:
        """The solver where none is named."""
        return SOLVER

    def guidance(self, sampling: Sampling | None = None) -> Guidance:
        """As the sampling says, or the model's own."""
        asked = None if sampling is None else sampling.guidance
        return asked or Guidance(scale=self.config.guidance)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] | None = None,
        frames: int | Sequence[int] | None = None,
        height: int | Sequence[int] | None = None,
        width: int | Sequence[int] | None = None,
        fps: float | Sequence[float] | None = None,
        references: Given | Sequence[Given | None] | None = None,
        seed: int = 0,
        sampling: Sampling | None = None,
    ) -> VideoOutput:
        """Makes one clip a prompt; several prompts, of any shapes, are one pack.

        Args:
            prompt: what to show. An empty prompt is unconditional.
            negative_prompt: what to steer away from; one for all, or one a prompt (None: the model's).
            frames, height, width: of each clip, one for all or one a prompt.
            fps: frames a second at which each is to be shown, and, for a model of `fps_condition` or `rope_fps`, at
                which it is made to move; one for all or one a prompt.
            references: of each role (`roles`) a clip uint8 [F,H,W,3] or picture uint8 [H,W,3], or several; one mapping
                for all, or one a prompt.
            seed: the i-th prompt has the noise of `seed + i`, whatever it is packed with.
            sampling: steps, solver, guidance; None is the model's defaults.

        Raises UserError for sizes that the model cannot make, roles that it does not know, a prompt that is too long,
        and lists of unequal length.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        sizes = (
            one_each(given if given is not None else self.config[name], len(prompts), name)
            for name, given in (("frames", frames), ("height", height), ("width", width))
        )
        grids = [self.latent_grid(*size) for size in zip(*sizes, strict=True)]
        negatives = one_each(negative_prompt, len(prompts), "negative_prompt")
        rates = one_each(self.config.fps if fps is None else fps, len(prompts), "fps")
        sampling = sampling or Sampling()
        shown = encoded(self, one_each(references, len(prompts), "references"), sampling.precision)
        words = [
            dict(prompt=text, negative_prompt=negative, grid=grid, fps=self.rate(rate, grid), references=each)
            for text, negative, grid, rate, each in zip(prompts, negatives, grids, rates, shown, strict=True)
        ]
        requests = [Request(**each, seed=check("seed", seed + i)) for i, each in enumerate(words)]
        clips = self.decode(self.sample(requests, sampling), sampling.precision)
        return VideoOutput(frames=clips, fps=rates if isinstance(fps, Sequence) else rates[0])

    @torch.no_grad()
    def sample(
        self, requests: Sequence[Request], sampling: Sampling | None = None, cache: KeyValueCache | None = None
    ) -> list[Tensor]:
        """Normalised latents [C,f,h,w] of the requests, sampled as one pack. Raises UserError.

        cache: of a causal model; the requests are of the frames that follow those in it (`remember`).
        """
        sampling = sampling or Sampling()
        if cache is None and self.student is not None and self.student.rollout is not None and requests:
            return self._in_turn(requests, sampling, self.student.rollout)
        with self._autocast(sampling.precision):
            batch, predict = self._prepare(requests, sampling, cache)
            z = solve(
                self.scheduler,
                predict,
                batch.z,
                batch.levels,
                batch.layout,
                solver=sampling.solver or self.solver,
                noise=batch.noise,
                after=lambda z, t: batch.put_back(self.scheduler, z, t),
                progress=self.progress_bar,
            )
        return unpatchify(batch.finished(z), batch.layout, self.transformer.patch, [r.grid[0] for r in requests])

    @torch.no_grad()
    def invert(
        self,
        latents: Sequence[Tensor],
        requests: Sequence[Request],
        sampling: Sampling | None = None,
        iterations: int = ITERATIONS,
    ) -> list[Tensor]:
        """Normalised latents [C,f,h,w] at each request's `level`, its `start`, from which solver "euler" samples the
        ones given here again (`diffusion.inversion`). Latent frames that are given stay. Raises UserError.
        """
        sampling = sampling or Sampling()
        if (solver := sampling.solver or self.solver) != "euler":
            raise UserError(f"inversion is that of solver 'euler', not {solver!r}: invert and sample with it")
        started = [replace(r, start=z) for r, z in zip(requests, latents, strict=True)]
        with self._autocast(sampling.precision):
            batch, predict = self._prepare(started, sampling)
            if bool(batch.known.any()):
                raise UserError(
                    "inversion takes whole latent frames as given, by noise levels, and no other known part"
                )
            found = invert(
                self.scheduler,
                predict,
                batch.z,  # `start` is put in as it is
                batch.levels,
                batch.layout,
                iterations=iterations,
                progress=self.progress_bar,
            )
        return unpatchify(found.z, batch.layout, self.transformer.patch, [r.grid[0] for r in requests])

    @torch.no_grad()
    def remember(
        self, latents: Sequence[Tensor], requests: Sequence[Request], sampling: Sampling, cache: KeyValueCache
    ) -> None:
        """Adds finished latents [C,f,h,w] of the requests to the cache of a causal model, for the frames after them."""
        with self._autocast(sampling.precision):
            latents = [z.to(self._execution_device) for z in latents]
            requests = self._complete(requests, sampling)
            given = Conditions(motion=told_motion(requests))
            guidance, given = self._by_passes(self.guidance(sampling), given, len(requests))
            record(self.transformer, self.reader, requests, latents, guidance, cache, given, self.scheduler)

    def _prepare(
        self, requests: Sequence[Request], sampling: Sampling, cache: KeyValueCache | None = None
    ) -> tuple[Batch, Predict]:
        """The pack of the requests, and what predicts for it. Raises UserError."""
        steps = self.config.steps if sampling.steps is None else sampling.steps
        guidance, second = self.guidance(sampling), self._second(sampling)
        check("steps", steps)
        self.check_sampling(sampling)
        check("reconstruction_weight", sampling.reconstruction_weight)
        if not requests:
            raise UserError("0 prompts: at least one is needed")
        requests = self._complete(requests, sampling)
        if self.student is not None:
            self.student.check_requests(requests)
        self.reader.check(text for request in requests for text in (request.prompt, request.negative_prompt))
        shown = shown_to(requests, self, sampling.reference_noise)
        if cache is not None and (shown or any(map(len, map(branches_of, self.experts)))):
            raise UserError(
                "a rollout with a cache has no place for references and ControlNets: leave them out, or sample whole "
                "clips"
            )
        check_cost(self, [request.grid for request in requests], sampling.large, shown)
        condition = self._condition(sampling)
        if cache is not None and self.channel_kind != "none":
            raise UserError("a rollout with a cache is of models that are told what is known by noise levels alone")
        scheduler = self.scheduler
        batch = Batch.of(
            requests,
            scheduler,
            self.transformer.patch,
            self.transformer.latent_channels,
            steps,
            condition == "levels",
            self._execution_device,
            None if cache is None else [len(held) for held in cache.frames[: len(requests)]],
            shown,
            ("known" if condition == "channels" else "nothing") if self.told else "",
            self.noise_of_given(sampling, condition, cache is not None),
        )
        batch.given = with_low(requests, self, batch, sampling.reference_noise)
        guidance, batch.given = self._by_passes(guidance, batch.given, len(requests))
        batch.given = self._tell(batch.given, len(requests), sampling)
        batch.signals = signals_of(requests, self, batch)
        predict = make_predict(self.transformer, self.reader, batch, guidance, scheduler, cache, second)
        if condition == "reconstruction" and bool(batch.known.any()):
            predict = reconstruction_guided(
                predict, scheduler, batch.layout, batch.known, batch.clean, sampling.reconstruction_weight
            )
        self.set_progress_bar_config(disable=not sampling.progress, desc="sampling")
        return batch, predict

    def _second(self, sampling: Sampling) -> SecondExpert | None:
        """Who predicts at low noise levels, where it is another network. Raises UserError."""
        if sampling.guidance_low is not None:
            raise UserError("guidance_low is of a second expert: this model is one network; leave it out")
        return None

    def _tell(self, given: Conditions, samples: int, sampling: Sampling) -> Conditions:
        """With what the model is told of the sampling. Raises UserError."""
        if sampling.guidance_embedded is not None:
            raise UserError("guidance_embedded: this model has no guidance embedding; use guidance")
        return given

    @property
    def reader(self) -> TextEncoder | TextReader:
        """What reads prompts."""
        return TextEncoder(self.text_encoder, self.tokenizer)

    @property
    def experts(self) -> tuple[nn.Module, ...]:
        """The networks that predict, from high noise levels to low."""
        return (self.transformer,)
