"""What of clips stays as it is where others are made of them: outside of masks, and in frames that are made already.

Axes: F frames, H height, W width of clips uint8 [F,H,W,3]; latents are [C,f,h,w].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import UserError
from ..models.conditions import known_latents
from ..rng import generator
from .latent_video import LatentVideoPipeline
from .sampling import Sampling, same_number


@dataclass(frozen=True)
class Local:
    """What of clips stays, or is given: `masks` bool [F,H,W], True where to change, and `begun`, as in `edit`. clips
    have what is begun in them, and `given` are their latents; none where all is free."""

    pipeline: LatentVideoPipeline
    clips: Sequence[Tensor]
    masks: Sequence[Tensor | None]
    begun: Sequence[Tensor | None]
    given: Sequence[Tensor]

    @classmethod
    def of(
        cls,
        pipeline: LatentVideoPipeline,
        clips: Sequence[Tensor],
        masks: Sequence[Tensor | None] | None,
        begun: Sequence[Tensor | None] | None,
        sampling: Sampling,
    ) -> Local:
        """Raises UserError for masks of another size, and such that leave nothing to change."""
        masks, begun = masks or [None] * len(clips), begun or [None] * len(clips)
        same_number(clips=clips, masks=masks, begun=begun)
        masks = [m if m is None else read_paint(i, m, clips[i]) for i, m in enumerate(masks)]
        clips = [clips[i] if b is None else torch.cat([b, clips[i].cpu()[len(b) :]]) for i, b in enumerate(begun)]
        some = any(each is not None for each in (*masks, *begun))
        given = encode_whole(pipeline, clips, sampling) if some else []
        return cls(pipeline, clips, masks, begun, given)

    def known(self, latents: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """`given` and `known` of each request; nothing of clips that are free. Raises UserError."""
        if not self.given:
            return [{} for _ in latents]
        found, stride = [], self.pipeline.codec.temporal_stride
        for given, mask, begun in zip(self.given, self.masks, self.begun, strict=True):
            known = torch.zeros(given.shape[1:], dtype=torch.bool)
            if mask is not None:
                known |= outside(self.pipeline, mask)
            if begun is not None:
                known[: 1 + (len(begun) - 1) // stride] = True
            found.append({"given": given, "known": known} if bool(known.any()) else {})
        return found

    def sampling(self, sampling: Sampling) -> Sampling:
        """Known parts are put back after each step, also where a model was not trained to be given any: guidance by
        their gradient is for what begins from noise alone."""
        if not self.given or sampling.condition is not None or self.pipeline.as_trained(sampling):
            return sampling
        return replace(sampling, condition="replacement")

    def put_back(self, made: Sequence[Tensor]) -> list[Tensor]:
        """With the clips' own pixels outside of the masks."""
        return [
            new if mask is None else torch.where(mask[..., None], new, old.cpu())
            for new, old, mask in zip(made, self.clips, self.masks, strict=True)
        ]


def outside(pipeline: LatentVideoPipeline, mask: Tensor) -> Tensor:
    """bool [F,H,W], True where to change, -> bool [f,h,w]: the latent positions of which no pixel is."""
    vae = pipeline.codec
    return known_latents(whole_groups(~mask, vae.temporal_stride), vae.temporal_stride, vae.spatial_stride)


def reconstruct(pipeline: LatentVideoPipeline, clip: Tensor, sampling: Sampling | None = None) -> Tensor:
    """A clip uint8 [F,H,W,3] of any length as the VAE shows it."""
    sampling = sampling or Sampling()
    (made,) = pipeline.decode(encode_whole(pipeline, [clip], sampling), sampling.precision)
    return made[: len(clip)]


def whole_groups(frames: Tensor, stride: int) -> Tensor:
    """[F, ...] with its last frame repeated up to the next 1 + k * stride frames, which a causal VAE represents."""
    return torch.cat([frames, *[frames[-1:]] * (-(len(frames) - 1) % stride)])


def encode_whole(pipeline: LatentVideoPipeline, clips: Sequence[Tensor], sampling: Sampling) -> list[Tensor]:
    """Latents [C,f,h,w] of clips of any lengths. Raises UserError for a size that the model does not make."""
    whole = [whole_groups(clip, pipeline.codec.temporal_stride) for clip in clips]
    for clip in whole:
        pipeline.latent_grid(*clip.shape[:3])
    return pipeline.encode(whole, sampling.precision)


def read_paint(i: int, mask: Tensor, clip: Tensor) -> Tensor:
    """bool [F,H,W], True where to paint. Raises UserError for another size, and where nothing is to paint."""
    white = (mask if mask.dtype == torch.bool else mask >= 128).cpu()
    if white.shape not in (clip.shape[:3], clip.shape[1:3]):
        raise UserError(
            f"mask {i} is {' x '.join(map(str, white.shape))}, its clip {' x '.join(map(str, clip.shape[:3]))} "
            "(frames, height, width): give one of that size, or one picture of that height and width"
        )
    if not white.any():
        raise UserError(f"mask {i} is black all over: paint white what is to be made anew")
    return white.expand(clip.shape[:3])


def noised(pipeline: LatentVideoPipeline, latent: Tensor, seed: int, level: float) -> Tensor:
    """A latent [C,f,h,w] at the noise level nearest to `level` that the model's path has."""
    eps = torch.randn(latent.shape, generator=generator(seed, 0, "noised")).to(latent)
    return pipeline.scheduler.mix(latent, eps, pipeline.scheduler.path.snap(torch.tensor(level)).to(latent.device))
