"""References of requests: which roles a model knows, and what is shown of files and clips in each.

Axes: F frames, H height, W width in pixels; clips are uint8 [F,H,W,3], pictures uint8 [H,W,3]; latents are [C,f,h,w].
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..data.degradations import stretched
from ..data.references import shape_of
from ..data.signals import check_signal, signal_of
from ..data.transforms import fit
from ..data.video.reading import probe, read_frames
from ..data.windows import Transform
from ..errors import UserError
from ..limits import check
from ..packing import Patch, Reference, Shape, patch_stride, token_grid
from ..references import Role, as_json, check_role, numbers_of, with_more
from ..words import counted
from .sampling import Request, ShownReference

if TYPE_CHECKING:
    from .latent_video import LatentVideoPipeline

Given = Mapping[str, Tensor | Sequence[Tensor]]  # of each role: a clip or picture, or several


def encoded(
    pipeline: LatentVideoPipeline, given: Sequence[Given | None], precision: torch.dtype | None = None
) -> list[dict[str, list[Tensor]]]:
    """Of each request its references' normalised latents, as `Request.references` has them. Raises UserError for a role
    that the model does not know, and for sizes that it cannot take."""
    found: list[dict[str, list[Tensor]]] = []
    for each in given:
        clips = {name: [_clip(name, x) for x in _several(value)] for name, value in (each or {}).items()}
        for name, of_role in clips.items():
            check_role(name, pipeline.roles)
            for clip in of_role:
                pipeline.latent_grid(*clip.shape[:3])
        found.append(clips)
    latents = iter(pipeline.encode([clip for each in found for clips in each.values() for clip in clips], precision))
    return [{name: [next(latents) for _ in clips] for name, clips in each.items()} for each in found]


def _several(value: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


def _clip(name: str, pixels: Tensor) -> Tensor:
    if pixels.dtype != torch.uint8 or pixels.ndim not in (3, 4) or pixels.shape[-1] != 3:
        raise UserError(
            f"reference {name}: {str(pixels.dtype)[6:]} {list(pixels.shape)}: give a clip uint8 [F,H,W,3], or a "
            "picture uint8 [H,W,3]"
        )
    return pixels if pixels.ndim == 4 else pixels[None]


def shown_to(
    requests: Sequence[Request], pipeline: LatentVideoPipeline, noise: float | None = None
) -> list[list[ShownReference]]:
    """Of each request its references and their latents, in the order in which the model knows the roles, of those that
    are shown as tokens; empty where none has any. noise: as `Sampling.reference_noise`. Raises UserError for what the
    model does not take."""
    roles, model = pipeline.roles, pipeline.transformer
    check_noise(noise, roles)
    if all(name in roles and not roles[name].as_tokens for request in requests for name in request.references):
        return []
    if (why := model.no_references) is not None:
        raise UserError(f"references: {why}: leave them out")
    found = [list(_shown(request.references, roles, model.patch, noise)) for request in requests]
    grids = [token_grid(request.grid, model.patch) for request in requests]
    for network in pipeline.experts:
        network.check_references(
            [Shape(grid, tuple(one.reference for one in each)) for grid, each in zip(grids, found, strict=True)]
        )
    return found


def check_noise(noise: float | None, roles: Mapping[str, Role]) -> None:
    """Raises UserError for a level that no role, or not every one with noise, was trained with."""
    if noise is None:
        return
    check("reference_noise", noise)
    noisy = {name: role.noise for name, role in roles.items() if role.noise is not None}
    if not noisy:
        raise UserError(
            f"reference noise {noise:g}: the model was trained without noise in references: leave --reference-noise out"
        )
    for name, (low, high) in noisy.items():
        if not low <= noise <= high:
            raise UserError(
                f"reference noise {noise:g}: the model was trained with {low:g} to {high:g} in {name}: give one of "
                "these (--reference-noise)"
            )


def _shown(
    references: Mapping[str, Sequence[Tensor]], roles: Mapping[str, Role], patch: Patch, noise: float | None
) -> Iterable[ShownReference]:
    for name in references:
        check_role(name, roles)
    numbers = numbers_of(roles)
    for name, role in roles.items():
        for latent in references.get(name, ()) if role.as_tokens else ():
            level = 0.0 if role.noise is None else role.noise[0] if noise is None else noise
            yield ShownReference(
                Reference(token_grid(tuple(latent.shape[1:]), patch), role.place, numbers[name]), latent, level
            )


def read_references(
    pipeline: LatentVideoPipeline,
    asked: Sequence[tuple[str, Path]],
    frames: int,
    height: int,
    width: int,
    signals: Sequence[tuple[str, Path]] = (),
) -> dict[str, list[Tensor]]:
    """Clips uint8 [F,H,W,3] of files by their roles, scaled and cropped as in training, for a clip of these sizes.

    signals: files of which the role's signal is computed. Raises UserError for a role that the model does not know,
    before any file is read, for one that has no signal, and for a clip that is shorter than the one that it is aligned
    with.
    """
    for name, path in signals:
        if check_role(name, pipeline.roles, "--signal").signal is None:
            raise UserError(f"--signal {name}={path}: nothing is computed for that role: give --reference {name}=FILE")
        check_signal(pipeline.roles[name])
    shapes = check_files(pipeline, asked, frames, height, width, "--reference")
    shapes += check_files(pipeline, signals, frames, height, width, "--signal")
    found: dict[str, list[Tensor]] = {}
    for i, ((name, path), shape) in enumerate(zip([*asked, *signals], shapes, strict=True)):
        role, pixels = pipeline.roles[name], read_frames(path, 0, shape[0], threads=0)
        if tuple(pixels.shape[1:3]) != shape[1:]:
            size, how = " x ".join(map(str, shape[1:])), "scaled" if role.degrade else "scaled and cropped"
            print(f"{path}: {' x '.join(map(str, pixels.shape[1:3]))} pixels {how} to {size}", flush=True)
        pixels = (stretched if role.degrade else fit)(pixels, *shape[1:])
        found.setdefault(name, []).append(pixels if i < len(asked) else signal_of(role, pixels))
    return found


def check_files(
    pipeline: LatentVideoPipeline,
    asked: Sequence[tuple[str, Path]],
    frames: int,
    height: int,
    width: int,
    what: str,
    length: str = "--frames",
) -> list[tuple[int, int, int]]:
    """(F, H, W) in which each file is shown in its role beside a clip of these sizes. Nothing is decoded.

    what: names the files in messages, length: the option of the clip's frames. Raises UserError for a role that the
    model does not know, before any file is looked at, for a file that cannot be read, and for one that is shorter than
    the clip that it is aligned with.
    """
    for name, _ in asked:
        check_role(name, pipeline.roles, what)
    transform, shapes = _transform(pipeline, frames), []
    for name, path in asked:
        role, info = pipeline.roles[name], probe(path)
        try:
            shape = shape_of(role, (info.frames, info.height, info.width), (frames, height, width), transform)
        except UserError as error:
            raise UserError(f"{what} {name}={path}: {error}") from None
        if role.along and (1 if role.place == "aligned" else 0) < info.frames < shape[0]:
            of, every = f"the clip {frames}", role.factors.frames
            raise UserError(
                f"{what} {name}={path} has {counted(info.frames, 'frame')}, {of}: "
                f"what is aligned with it needs a frame for {'each' if every == 1 else f'{every} of its'}"
                f"{', or is one picture' if role.place == 'aligned' else ''}; ask for fewer {length}"
            )
        shapes.append(shape)
    return shapes


def usual_references(pipeline: LatentVideoPipeline, frames: int, height: int, width: int) -> list[Reference]:
    """One of each role, as large as the model was trained with it beside a clip of these sizes."""
    transform, numbers = _transform(pipeline, frames, height * width), numbers_of(pipeline.roles)
    found = []
    for name, role in pipeline.roles.items():
        if not role.as_tokens:
            continue
        side = max(transform.spatial_stride, math.isqrt(role.max_area or height * width))
        have = frames if role.along else role.max_frames or frames
        shape = shape_of(role, (have, side, side), (frames, height, width), transform)
        grid = token_grid(pipeline.codec.latent_grid(*shape), pipeline.transformer.patch)
        found.append(Reference(grid, role.place, numbers[name]))
    return found


def _transform(pipeline: LatentVideoPipeline, frames: int, max_area: int | None = None) -> Transform:
    stride = pipeline.codec.spatial_stride * patch_stride(pipeline.transformer.patch)
    steps = pipeline.codec.temporal_stride
    return Transform(spatial_stride=stride, temporal_stride=steps, max_frames=frames, max_area=max_area)


def add_roles(pipeline: LatentVideoPipeline, roles: Mapping[str, Role], where: object) -> None:
    """Makes a pipeline know roles that a LoRA was trained with. Raises UserError where one is known otherwise."""
    pipeline.register_to_config(references=as_json(with_more(pipeline.roles, roles, where)))
