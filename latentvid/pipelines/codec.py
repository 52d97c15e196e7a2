"""A pipeline's autoencoder: clips to normalised latents and back, in the precision that is asked for.

Axes: latents are [C,f,h,w], frames uint8 [F,H,W,3].
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ..data.transforms import from_uint8, to_uint8
from ..errors import UserError
from ..limits import check, check_values
from ..models.interchange import Vae, as_vae
from ..packing import Grid, patch_stride
from ..precision import choose, dtype_of
from .limit import check_room
from .sampling import by_shape


class CodecMixin:
    """For a pipeline of diffusers with the parts `vae` and `transformer`. Where the parts wait on the CPU until they
    are needed, everything here runs on the device of the call (`_execution_device`)."""

    @property
    def codec(self) -> Vae:
        """The VAE behind the interface of ours."""
        return as_vae(self.vae)

    @torch.no_grad()
    def encode(self, clips: Sequence[Tensor], precision: torch.dtype | None = None) -> list[Tensor]:
        """Clips uint8 [F,H,W,3] -> normalised latents [C,f,h,w], the posterior's means; equal shapes go together."""

        def each(videos: Tensor) -> Sequence[Tensor]:
            return self.codec.normalise(self.codec.encode(from_uint8(videos)).latent_dist.mean)

        with self._autocast(precision):
            return by_shape([clip.to(self._execution_device) for clip in clips], each)

    @torch.no_grad()
    def decode(self, latents: Sequence[Tensor], precision: torch.dtype | None = None) -> list[Tensor]:
        """Normalised latents [C,f,h,w] -> uint8 [F,H,W,3] on the CPU; equal shapes go through the VAE together."""

        def each(z: Tensor) -> Sequence[Tensor]:
            return [to_uint8(video).cpu() for video in self.codec.decode(self.codec.denormalise(z)).sample]

        with self._autocast(precision):
            return by_shape(latents, each)

    def latent_grid(self, frames: int, height: int, width: int) -> Grid:
        """(f,h,w) of the latent of such a clip. Raises UserError for sizes that the model cannot make."""
        check_values("", {"frames": frames, "height": height, "width": width})
        vae = self.codec
        stride = vae.spatial_stride * patch_stride(self.transformer.patch)
        if any(side < stride or side % stride for side in (height, width)):
            near = " x ".join(str(max(1, round(side / stride)) * stride) for side in (height, width))
            raise UserError(f"{height} x {width} pixels: this model makes multiples of {stride}, such as {near}")
        grid = vae.latent_grid(frames, height, width)
        self.transformer.check_frames(grid[0])
        check_room(frames, height, width)
        return grid

    def rate(self, fps: float | None, grid: Grid) -> float:
        """The `fps` of a request for a whole clip whose latent is (f,h,w): the model's where it is None, and 0 of a
        picture, as in training. Raises UserError for a number that is no rate."""
        found = check("fps", self.config.fps if fps is None else fps)
        return 0.0 if grid[0] == 1 else found

    def _autocast(self, precision: torch.dtype | None) -> AbstractContextManager:
        device, held = self._execution_device.type, self.transformer.dtype
        if held != torch.float32:  # weights that are kept in a narrow type, whose sums with fp32 need it
            precision = held
        elif precision is None:
            precision = dtype_of(choose("auto", self._execution_device))
        return nullcontext() if precision == torch.float32 else torch.autocast(device, precision)
