"""Measures of an edited clip against the clip that it was made of.

Axes: F frames, H W height and width in pixels, n patches, D features; clips are uint8 [F,H,W,3].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as nnf
from torch import Tensor

from ...errors import UserError
from ..motion.flow import SMALLEST, Flow, open_flow
from ..motion.scores import warping_error
from ..pairs.fidelity import MAX_PSNR, PEAK
from ..pairs.lpips import SMALLEST as LPIPS_SMALLEST
from ..pairs.lpips import Lpips
from ..pairs.scores import frame_distances, lpips_network
from ..prompts.clip_similarity import ClipNetwork, open_clip
from ..vbench.consistency import BATCH, Dino, dino_pictures, open_dino


@dataclass(frozen=True)
class Edited:
    """An edit. source, made: uint8 [F,H,W,3]. mask: bool [F,H,W], True where the change was asked for; None: nothing is
    said of it. source_text, target_text: what the clip showed, and what it is to show."""

    source: Tensor
    made: Tensor
    mask: Tensor | None = None
    source_text: str | None = None
    target_text: str | None = None


Values = Mapping[str, float]  # of a clip; a measure that says nothing of it is not there


@dataclass(frozen=True)
class Measure:
    """names: of what it gives, with whether "higher" or "lower" is better."""

    names: Mapping[str, str]
    of: Callable[[Edited], Values]


# ------------------------------------------------------------------------------------------------------- what stays


def psnr_outside(source: Tensor, made: Tensor, mask: Tensor | None = None) -> float:
    """PSNR in dB over the pixels outside of the mask, of the clip as one, at most `MAX_PSNR`; NaN where there are
    none."""
    error = (source.float() - made.float()).square().mean(-1, dtype=torch.float64)  # [F,H,W]
    error = error if mask is None else error[~mask]
    if not error.numel():
        return math.nan
    mean = float(error.mean())
    return min(MAX_PSNR, 10 * math.log10(PEAK**2 / mean)) if mean else MAX_PSNR


def lpips_outside(network: Lpips, source: Tensor, made: Tensor, mask: Tensor | None = None) -> float:
    """LPIPS of the frames, in which the clip's own pixels are put inside the mask, by the share of the pixels outside:
    no layer sees the change that was asked for, and a small rest counts as a large one. NaN where nothing is outside.
    """
    share = 1.0 if mask is None else float((~mask).float().mean())
    if not share:
        return math.nan
    rest = made if mask is None else torch.where(mask[..., None], source, made)
    return float(frame_distances(network, source, rest).mean()) / share


def self_similarity(features: Tensor) -> Tensor:
    """[..., n,D] -> [..., n,n]: cosines of all pairs (Tumanyan et al. 2022, equation 3)."""
    unit = nnf.normalize(features.float(), dim=-1)
    return unit @ unit.transpose(-1, -2)


def structure_distance(source: Tensor, made: Tensor) -> Tensor:
    """[F] of features [F,n,D] of the frames of two clips: the mean square of the difference of their self-similarities
    (Tumanyan et al. 2022, equation 4, by the number of pairs as their code has it)."""
    return (self_similarity(source) - self_similarity(made)).square().mean((-1, -2))


# ------------------------------------------------------------------------------------------------------- in time


def flow_error(flow: Flow, source: Tensor, made: Tensor) -> tuple[float, float]:
    """Warping errors (E_warp of Lai et al. 2018) of the edit and of the clip itself, both by the clip's own flow and
    where that sees no occlusion: an edit that flickers, or leaves the motion, is worse than its clip."""
    of_made, of_source = [], []
    for i in range(len(source) - 1):
        a, b = source[i], source[i + 1]
        ways = flow(a, b), flow(b, a)
        of_source.append(warping_error(a.to(flow.device), b.to(flow.device), *ways))
        of_made.append(warping_error(made[i].to(flow.device), made[i + 1].to(flow.device), *ways))
    return fmean(of_made), fmean(of_source)


# ------------------------------------------------------------------------------------------------------- what was asked


def clip_direction(network: ClipNetwork, each: Edited) -> float:
    """Mean cosine of the way from the source's frames to the edit's and that from its text to the target's, in CLIP
    (directional similarity: Gal et al. 2022, equation 2)."""
    way = network.text(each.target_text)[0] - network.text(each.source_text)[0]
    moved = network.images(each.made) - network.images(each.source)
    return float(nnf.cosine_similarity(moved, way[None], dim=-1).mean())


# ------------------------------------------------------------------------------------------------------- all of them


def _psnr() -> Measure:
    return Measure({"psnr": "higher"}, lambda e: {"psnr": psnr_outside(e.source, e.made, e.mask)})


def _lpips(network: Lpips) -> Measure:
    def of(e: Edited) -> Values:
        if min(e.source.shape[1:3]) < LPIPS_SMALLEST[network.net]:
            return {}
        return {"lpips": lpips_outside(network, e.source, e.made, e.mask)}

    return Measure({"lpips": "lower"}, of)


def structure(network: Dino) -> Measure:
    """By the keys of DINO's last layer."""

    @torch.no_grad()
    def keys(clip: Tensor) -> Tensor:
        device = next(network.parameters()).device
        return torch.cat([network.keys(dino_pictures(part.to(device))).cpu() for part in clip.split(BATCH)])

    def of(e: Edited) -> Values:
        parts = zip(e.source.split(BATCH), e.made.split(BATCH), strict=True)
        return {"structure": float(torch.cat([structure_distance(keys(a), keys(b)) for a, b in parts]).mean())}

    return Measure({"structure": "lower"}, of)


def _clip(network: ClipNetwork) -> Measure:
    def of(e: Edited) -> Values:
        if e.target_text is None:
            return {}
        text = network.text(e.target_text)[0]
        found = {"clip_text": float((100 * network.images(e.made) @ text).clamp_min(0).mean())}
        return found if e.source_text is None else found | {"clip_direction": clip_direction(network, e)}

    return Measure({"clip_text": "higher", "clip_direction": "higher"}, of)


def _warping(flow: Flow) -> Measure:
    def of(e: Edited) -> Values:
        if len(e.source) < 2 or min(e.source.shape[1:3]) < SMALLEST:
            return {}
        made, source = flow_error(flow, e.source, e.made)
        return {"warping_error": made, "source_warping_error": source}

    return Measure({"warping_error": "lower", "source_warping_error": "neither"}, of)


def open_measures(
    weights: Path | None, device: torch.device, own: Sequence[str] = ()
) -> tuple[list[Measure], dict[str, str]]:
    """All that are available here, and why the others are left out, by name. own: MODULE:NAME of further `Measure`s.
    Raises UserError for one that is none."""
    openings: Sequence[tuple[str, Callable[[], Measure]]] = (
        ("lpips", lambda: _lpips(lpips_network(weights).to(device))),
        ("structure", lambda: structure(open_dino(weights, device))),
        ("clip_text, clip_direction", lambda: _clip(open_clip(weights, device))),
        ("warping_error", lambda: _warping(open_flow(weights, device))),
    )
    found, left_out = [_psnr()], {}
    for names, opening in openings:
        try:
            found.append(opening())
        except UserError as error:
            left_out[names] = str(error)
    return found + list(map(_own, own)), left_out


def _own(given: str) -> Measure:
    module, _, name = given.rpartition(":")
    try:
        measure = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"--measures {given}: {error}: give MODULE:NAME, of a module that can be imported") from error
    if not isinstance(measure, Measure):
        raise UserError(f"--measures {given} is no `Measure` of latentvid.evaluation.edits.measures")
    return measure
