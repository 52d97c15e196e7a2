"""Clips from other clips: painted anew within a mask, or as another prompt says.

Axes: F frames, H height, W width; clips are uint8 [F,H,W,3], pictures uint8 [H,W,3]; C channels, f h w of the latents.
What is asked for together is sampled as one pack, and the i-th clip has the noise of `seed + i`, whatever is with it.
`fps`: frames a second that all are made for, by models that know of it (None: the model's).
Each function raises UserError for sizes that the model cannot make.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..diffusion.guidance import Guidance
from ..errors import UserError
from .clip_windows import Window
from .defaults import GUIDED_BELOW, METHODS, STRENGTH
from .flow import FlowEdit, flow_edited
from .latent_video import LatentVideoPipeline
from .local import Local, encode_whole, noised, outside, read_paint
from .sampling import Request, Sampling, same_number
from .token_flow import token_flow


def inpaint(
    pipeline: LatentVideoPipeline,
    clips: Sequence[Tensor],
    masks: Sequence[Tensor],
    prompts: Sequence[str],
    *,
    fps: float | None = None,
    seed: int = 0,
    negative_prompt: str | None = None,
    sampling: Sampling | None = None,
) -> list[Tensor]:
    """The clips, of any lengths, with what their masks show painted anew; all other pixels are the input's own.

    masks: bool (True: paint) or uint8 (128 and more: paint), [F,H,W] or [H,W] for all frames.
    A latent position is known where none of its pixels are painted, over all the frames that it stands for.
    """
    same_number(clips=clips, masks=masks, prompts=prompts)
    sampling = sampling or Sampling()
    paint = [read_paint(i, mask, clip) for i, (mask, clip) in enumerate(zip(masks, clips, strict=True))]  # [F,H,W]
    latents = encode_whole(pipeline, clips, sampling)
    requests = []
    for i, (latent, mask, prompt) in enumerate(zip(latents, paint, prompts, strict=True)):
        grid = tuple(latent.shape[1:])
        words = {"prompt": prompt, "negative_prompt": negative_prompt, "seed": seed + i}
        known = outside(pipeline, mask)
        requests.append(Request(**words, grid=grid, fps=pipeline.rate(fps, grid), given=latent, known=known))
    made = pipeline.decode(pipeline.sample(requests, sampling), sampling.precision)
    return [
        torch.where(mask[..., None], new[: len(old)], old.cpu())
        for new, old, mask in zip(made, clips, paint, strict=True)
    ]


def inpaint_window(
    pipeline: LatentVideoPipeline,
    prompt: str,
    window: Window,
    *,
    fps: float | None = None,
    seed: int = 0,
    negative_prompt: str | None = None,
    sampling: Sampling | None = None,
) -> Tensor:
    """`inpaint` of a window of a clip, which goes on from what the one before made of its first frames."""
    paint = window.mask.clone()
    paint[: len(window.begun) if window.begun is not None else 0] = False
    words = {"fps": fps, "negative_prompt": negative_prompt, "sampling": sampling}
    return inpaint(pipeline, [window.continued], [paint], [prompt], seed=window.seed(seed), **words)[0]


def edit_window(
    pipeline: LatentVideoPipeline,
    source: str,
    target: str,
    method: str,
    strength: float | None,
    window: Window,
    *,
    seed: int = 0,
    **words: Any,
) -> Tensor:
    """`edit` of a window of a clip, within its mask, which goes on from what the one before made of its beginning."""
    local = {"masks": [window.mask], "begun": [window.begun]}
    clip = [window.frames]
    return edit(pipeline, clip, [source], [target], method, strength, seed=window.seed(seed), **local, **words)[0]


def edit(
    pipeline: LatentVideoPipeline,
    clips: Sequence[Tensor],
    sources: Sequence[str],
    targets: Sequence[str],
    method: Literal["inversion", "sdedit", "flow", "tokenflow"] = "inversion",
    strength: float | None = None,
    *,
    flow: FlowEdit | None = None,
    masks: Sequence[Tensor | None] | None = None,
    begun: Sequence[Tensor | None] | None = None,
    fps: float | None = None,
    seed: int = 0,
    negative_prompt: str | None = None,
    sampling: Sampling | None = None,
) -> list[Tensor]:
    """The clips, of any lengths, as their target prompts say; the stronger, the less is left of them.

    inversion: the noise that leads to the clip with its source prompt and no guidance, at noise level `strength`
    (DDIM inversion, Song et al. 2020), is sampled anew with the target, guided at levels below `GUIDED_BELOW` alone
    unless the guidance has an interval of its own. sdedit: the clip with random noise of that level is (SDEdit, Meng et
    al. 2022; `sources` are not used). strength: in (0,1]; None is the method's in `STRENGTH`. flow: the clip is moved
    along the difference of the velocities of both prompts, as far as `flow` says (FlowEdit, Kulikov et al. 2024).
    tokenflow: by a model of pictures, each clip by itself (`token_flow`).
    masks: of each clip as `inpaint` takes them, True where to change; None: everywhere. Latents outside are put back
    after each step with the noise that they began with (Blended Latent Diffusion, Avrahami et al. 2023), and are the
    clip's in the end, and so are the pixels there.
    begun: what the first frames of each are to be, uint8 [k,H,W,3] of 1 + a whole number of strides; the rest goes on
    from it.
    """
    same_number(clips=clips, sources=sources, targets=targets)
    strength = _strength(method, strength, flow)
    sampling = sampling or Sampling()
    if method == "tokenflow":
        more = {"negative_prompt": negative_prompt, "sampling": sampling}
        each = enumerate(zip(clips, sources, targets, strict=True))
        return [token_flow(pipeline, *words, strength, seed=seed + i, **more) for i, words in each]
    if method == "inversion" and pipeline.student is not None:
        instead = "edit with its teacher" if pipeline.student.steps else "take method sdedit (--method), or its teacher"
        raise UserError(
            "method inversion finds the noise without guidance, and guides at some levels alone, which this distilled "
            f"model cannot: {instead}"
        )
    if method == "inversion" and sampling.solver is None:
        sampling = replace(sampling, solver="euler")  # the one that is inverted
    local = Local.of(pipeline, clips, masks, begun, sampling)
    latents = encode_whole(pipeline, clips, sampling)
    grids = [tuple(z.shape[1:]) for z in latents]
    common = [
        {"grid": grid, "fps": pipeline.rate(fps, grid), "seed": seed + i, "level": strength}
        for i, grid in enumerate(grids)
    ]
    back = [Request(prompt=source, **words) for source, words in zip(sources, common, strict=True)]
    if method == "inversion":
        # no iterations: they bring the very clip back more exactly, by noise that another prompt can use less
        starts = pipeline.invert(latents, back, replace(sampling, guidance=Guidance()), iterations=0)
    elif method == "flow":
        starts = [None] * len(clips)
        back = [replace(request, negative_prompt=negative_prompt) for request in back]
    else:
        starts = [noised(pipeline, z, words["seed"], strength) for z, words in zip(latents, common, strict=True)]
    requests = [
        Request(prompt=target, negative_prompt=negative_prompt, start=start, **words, **known)
        for target, start, words, known in zip(targets, starts, common, local.known(latents), strict=True)
    ]
    usual = (0.0, GUIDED_BELOW) if method == "inversion" else None
    sampling = local.sampling(pipeline.of_changes(sampling, usual))
    if method == "flow":
        made = flow_edited(pipeline, latents, back, requests, flow or FlowEdit(), sampling)
    else:
        made = pipeline.sample(requests, sampling)
    made = pipeline.decode(made, sampling.precision)
    return local.put_back([new[: len(old)] for new, old in zip(made, clips, strict=True)])


def _strength(method: str, strength: float | None, flow: FlowEdit | None) -> float:
    """The noise level at which a method begins. Raises UserError for what is of other methods."""
    if method not in METHODS:
        raise UserError(f"method {method!r}: one of {', '.join(METHODS)}")
    if method == "flow":
        if strength is not None:
            raise UserError(f"strength {strength} is of the other methods: method flow takes n_max, a number of steps")
        return 1.0
    if flow is not None:
        raise UserError(f"n_max, n_min, n_avg and source_guidance are of method flow, not of {method}: leave them out")
    strength = STRENGTH[method] if strength is None else strength
    if not 0 < strength <= 1:
        raise UserError(f"strength {strength}: give a noise level above 0, up to 1")
    return strength
