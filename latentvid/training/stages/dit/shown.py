"""What samples are shown beside their own latents: tokens of references in their segments, or signals apart.

Axes: T tokens, P token features; videos are uint8 [F,H,W,3], latents [C,f,h,w].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ....data.references import Shown
from ....data.transforms import from_uint8
from ....models.interchange import Vae
from ....packing import Patch, Reference, patchify, token_grid
from ....pipelines.sampling import by_shape
from ....references import ReferenceColumn, numbers_of


def references_of(
    roles: Mapping[str, ReferenceColumn], vae: Vae, patch: Patch, shown: Sequence[Shown]
) -> tuple[Reference, ...]:
    """In tokens, of which masks, the signals of control branches and what is seen by channels have none."""
    numbers = numbers_of(roles)
    return tuple(
        Reference(token_grid(vae.latent_grid(*shape), patch), roles[role].place, numbers[role])
        for role, shape in shown
        if roles[role].as_tokens
    )


def shown_latents(vae: Vae, videos: Sequence[Sequence[Tensor]] | None, samples: int) -> list[list[Tensor]]:
    """Of each sample's references: the posterior's means, as in sampling. None: none of so many samples has any."""
    if videos is None:
        return [[] for _ in range(samples)]

    def means(pixels: Tensor) -> Tensor:
        return vae.normalise(vae.encode(from_uint8(pixels)).latent_dist.mean)

    encoded = iter(by_shape([video for each in videos for video in each], means))
    return [[next(encoded) for _ in each] for each in videos]


def clean_tokens(
    latents: Sequence[Tensor], shown: Sequence[Sequence[Tensor]], patch: Patch, apart: bool, none: Tensor
) -> dict[str, Tensor]:
    """`DitPack.clean`: tokens [T,P] of each sample's latent and after it those of its references. apart: these are
    control signals, `DitPack.control`. none: [0,P]."""

    def tokens(parts: Sequence[Tensor]) -> Tensor:
        return patchify(parts, patch)[0] if parts else none

    if apart:
        return {"clean": tokens(latents), "control": tokens([z for each in shown for z in each])}
    return {"clean": tokens([z for own, each in zip(latents, shown, strict=True) for z in (own, *each)])}
