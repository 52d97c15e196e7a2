"""Clips from a latent diffusion transformer, by text and by what is known of them.

Axes: B clips; latents are [C,f,h,w], frames uint8 [F,H,W,3].
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import nn
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from ..diffusion.guidance import Guidance
from ..diffusion.scheduler import LatentVideoScheduler
from ..errors import UserError
from ..files import follow_umask
from ..limits import check
from ..models.interchange import Vae, raw_vae
from ..models.open import packed
from ..models.open.unet3d import UNet3D
from ..models.transformer import VideoDiT
from ..references import Role, as_json, read_roles
from ..text import TextEncoder, TextReader
from .card import PUSHED, check_card, upload, write_card
from .codec import CodecMixin
from .convention import (
    Generators,
    OnStepEnd,
    OutputType,
    VideoOutput,
    check_output_type,
    checked_callback,
    seeds_of,
    shown_as,
    together,
)
from .defaults import SOLVER
from .folder import CLASSES, check_apart, check_index, located, read_parts
from .known import KnownMixin, noise_range
from .limit import Kind
from .references import Given, encoded
from .sample import SampleMixin
from .sampling import Request, Sampling, one_each
from .student import Student, StudentMixin


class LatentVideoPipeline(SampleMixin, CodecMixin, KnownMixin, StudentMixin, DiffusionPipeline):
    """VAE, transformer or 3D U-Net, scheduler and text encoder, saved together; use
    `LatentVideoPipeline.from_pretrained`.

    The VAE is ours or one of diffusers' (`latentvid.models.interchange`): `vae` is what diffusers saves, `codec` the
    same behind the interface of ours.

    `frames, height, width, fps` are those of most of the training's tokens and, with `steps, guidance` and
    `guidance_interval` (the noise levels between which it is guided; None: all), the defaults of a call. `given` names
    the frames that were given in training (`diffusion.masks.GivenFrames`), `given_shares` has how often each,
    `given_noise` between which levels of noise. `trained` lists the kinds of clips that training saw (`limit.Kind`).
    `references` are the roles in which clips are shown others (`references.Role`, as JSON). `student` is of a distilled
    model (`student.Student`).
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _callback_tensor_inputs = ("latents",)
    _interrupt = False

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
        guidance_interval: list[float] | tuple[float, ...] | None = None,
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
            guidance_interval=Guidance(interval=guidance_interval and tuple(guidance_interval)).interval,
        )

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, torch_dtype: torch.dtype | None = None, **parts: Any
    ) -> LatentVideoPipeline:
        """A saved pipeline, from a folder or by its name on the hub, checked before anything of it is imported. Raises
        UserError.

        torch_dtype: of the weights; it is computed in it too. parts: to take in place of those in the folder.
        """
        dtype = torch.float32 if torch_dtype is None else torch_dtype
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise UserError(f"torch_dtype={torch_dtype}: give torch.float32, torch.bfloat16 or torch.float16")
        parts.pop("local_files_only", None)  # what is here already is taken where the hub does not answer
        if unknown := sorted(parts.keys() - CLASSES.keys()):
            raise UserError(f"from_pretrained takes no {unknown[0]}: torch_dtype, or one of {', '.join(CLASSES)}")
        folder = located(folder)
        arguments = check_index(folder, cls)
        pipeline = cls(**read_parts(folder, parts, dtype), **arguments)
        pipeline.register_to_config(_name_or_path=str(folder))
        return pipeline

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *,
        license: str | None = None,
        samples: Sequence[str | os.PathLike] = (),
        push_to_hub: bool = False,
        **options: Any,
    ) -> None:
        """As diffusers has it, with a model card (`card.write_card`, which says what license and samples are), and with
        files that others may read as far as the umask lets them.

        push_to_hub: also to the repository `repo_id` (None: of the folder's name), with the other options of
        `push_to_hub`. Raises UserError where ControlNets or adapters are in its networks, which have their own files.
        """
        check_apart(self.experts)
        shown = [Path(sample) for sample in samples]
        check_card(license, shown)
        hub = {key: options.pop(key) for key in (*PUSHED, "repo_id") if key in options}
        super().save_pretrained(save_directory, **options)
        write_card(Path(save_directory), license, shown)
        follow_umask(save_directory)
        if push_to_hub:
            upload(Path(save_directory), hub.pop("repo_id", None) or Path(save_directory).name, **hub)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        license: str | None = None,
        samples: Sequence[str | os.PathLike] = (),
        **options: Any,
    ) -> str:
        """Saves the pipeline with its card to a repository of the hub, which is made where there is none; its address.

        options: commit_message, private, token, create_pr, as diffusers has them, and those of `save_pretrained`.
        """
        hub = {key: options.pop(key) for key in PUSHED if key in options}
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, license=license, samples=samples, **options)
            return upload(Path(folder), repo_id, **hub)

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

    def guided(self, sampling: Sampling | None = None) -> Guidance:
        """`guidance`, at the noise levels that are the model's own where it says none."""
        guidance, own = self.guidance(sampling), self.config.get("guidance_interval")
        return guidance if own is None or guidance.interval else replace(guidance, interval=tuple(own))

    def of_changes(self, sampling: Sampling, usual: tuple[float, float] | None = None) -> Sampling:
        """The sampling of what changes a clip, and so begins at a noise level in between.

        It is guided at the levels `usual` (None: all) where it names none: the model's own are for clips from noise
        alone. Where nothing is said of guidance, the model's is spread over all levels: its scale s within own levels
        of length d is 1 + (s - 1) d there.
        """
        own, guidance = self.config.get("guidance_interval"), self.guidance(sampling)
        if own is not None and sampling.guidance is None:
            guidance = replace(guidance, scale=1.0 + (guidance.scale - 1.0) * (own[1] - own[0]))
        if guidance.interval is None and (usual or own):
            guidance = replace(guidance, interval=usual or (0.0, 1.0))
        return replace(sampling, guidance=guidance)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] | None = None,
        num_frames: int | Sequence[int] | None = None,
        height: int | Sequence[int] | None = None,
        width: int | Sequence[int] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: Generators | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        fps: float | Sequence[float] | None = None,
        references: Given | Sequence[Given | None] | None = None,
        seed: int | None = None,
        sampling: Sampling | None = None,
    ) -> VideoOutput | tuple[Any]:
        """Makes one clip a prompt; several prompts, of any shapes, are one pack.

        Args:
            prompt: what to show. An empty prompt is unconditional.
            negative_prompt: what to steer away from; one for all, or one a prompt (None: the model's).
            num_frames, height, width: of each clip, one for all or one a prompt.
            num_inference_steps, guidance_scale: over what `sampling` says (None: that, or the model's).
            generator: gives each prompt the seed of its noise; one for all, or one a prompt.
            output_type: "pil", "np", "pt", "uint8" (`convention.shown_as`), or "latent": normalised latents
                [B,C,f,h,w], a list of [C,f,h,w] where they differ in size.
            return_dict: False returns (frames,).
            callback_on_step_end: called after each step (`convention.step_ender`).
            callback_on_step_end_tensor_inputs: what it is given: "latents".
            fps: frames a second at which each is to be shown, and, for a model of `fps_condition` or `rope_fps`, at
                which it is made to move; one for all or one a prompt.
            references: of each role (`roles`) a clip uint8 [F,H,W,3] or picture uint8 [H,W,3], or several; one mapping
                for all, or one a prompt.
            seed: without a generator the i-th prompt has the noise of `seed + i`, whatever it is packed with (None: 0).
            sampling: solver, guidance and what else there is; None is the model's defaults.

        Raises UserError for sizes that the model cannot make, roles that it does not know, a prompt that is too long,
        and lists of unequal length.
        """
        check_output_type(output_type)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        sizes = (
            one_each(given if given is not None else self.config[name.removeprefix("num_")], len(prompts), name)
            for name, given in (("num_frames", num_frames), ("height", height), ("width", width))
        )
        grids = [self.latent_grid(*size) for size in zip(*sizes, strict=True)]
        negatives = one_each(negative_prompt, len(prompts), "negative_prompt")
        rates = one_each(self.config.fps if fps is None else fps, len(prompts), "fps")
        ender = checked_callback(callback_on_step_end, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        sampling = self._asked(sampling or Sampling(), num_inference_steps, guidance_scale, ender)
        shown = encoded(self, one_each(references, len(prompts), "references"), sampling.precision)
        words = [
            dict(prompt=text, negative_prompt=negative, grid=grid, fps=self.rate(rate, grid), references=each)
            for text, negative, grid, rate, each in zip(prompts, negatives, grids, rates, shown, strict=True)
        ]
        seeds = seeds_of(generator, seed, len(prompts))
        requests = [Request(**each, seed=own) for each, own in zip(words, seeds, strict=True)]
        latents = self.sample(requests, sampling)
        if output_type == "latent":
            frames = together(latents)
        else:
            frames = shown_as(self.decode(latents, sampling.precision), output_type)
        if not return_dict:
            return (frames,)
        return VideoOutput(frames=frames, fps=rates if isinstance(fps, Sequence) else rates[0])

    def _asked(
        self, sampling: Sampling, steps: int | None, scale: float | None, callback: OnStepEnd | None
    ) -> Sampling:
        """The sampling with what a call says beside it."""
        if steps is not None:
            sampling = replace(sampling, steps=check("num_inference_steps", steps))
        if scale is not None:
            scale = check("guidance_scale", scale)
            sampling = replace(sampling, guidance=replace(self.guidance(sampling), scale=scale))
        return sampling if callback is None else replace(sampling, on_step_end=callback)

    @property
    def interrupt(self) -> bool:
        """Whether the run that goes on ends after its step: callbacks set `_interrupt`."""
        return self._interrupt

    @property
    def reader(self) -> TextEncoder | TextReader:
        """What reads prompts."""
        return TextEncoder(self.text_encoder, self.tokenizer)

    @property
    def experts(self) -> tuple[nn.Module, ...]:
        """The networks that predict, from high noise levels to low."""
        return (self.transformer,)
