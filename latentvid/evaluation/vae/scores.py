"""Scores of an autoencoder on any footage: fidelity, perceptual and video distance, and its latents' quality.

Axes: F frames, H W height and width in pixels, C latent channels, f h w the latent's.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor
from tqdm import tqdm

from ...data.transforms import from_uint8, to_uint8
from ...data.video.writing import write_video
from ...errors import ClipError, UserError
from ...files import written_whole
from ...models.interchange import Vae, load_vae
from ...precision import MixedPrecision, autocast, choose, describe
from ..footage import Cut, Excerpt, cut_files, find_files
from ..pairs.fidelity import SSIM_WINDOW, Fidelity
from ..pairs.lpips import SMALLEST, load_lpips
from ..pairs.scores import frame_distances
from ..sets.frechet import Moments, frechet_distance
from ..sets.i3d import SHORTEST, load_i3d
from ..sheet import Row, draw_sheet
from .latent_picture import draw_latents
from .latent_quality import LatentQuality

ENOUGH = 2048  # clips, from which on published FVDs are reported; fewer bias it upwards
CONTRAST = 4  # times the difference is shown
SHEET_SIDE = 224  # pixels, about the height of a frame in the sheet


@dataclass(frozen=True, kw_only=True)
class VaeScoresConfig:
    """Arguments of `score_vae`.

    inputs: videos, images, and folders of them. size: (height, width) of all clips; None: each file's own, made legal.
    lpips, i3d: weights (`load_lpips`, `load_i3d`); without them the scores are left out, and that is said, but for
        an LPIPS network that torchvision has in its cache. max_clips: how many clips, shared among the files.
    shown: clips that get a video and rows in the sheet.
    """

    vae: Path
    inputs: Sequence[Path]
    out: Path
    frames: int = 17
    size: tuple[int, int] | None = None
    lpips: Path | None = None
    lpips_net: Literal["alex", "vgg"] = "alex"
    i3d: Path | None = None
    max_clips: int | None = None
    mixed_precision: MixedPrecision = "auto"
    shown: int = 8

    def __post_init__(self) -> None:
        if self.max_clips is not None and self.max_clips < 1:
            raise UserError(f"max_clips {self.max_clips}: ask for at least 1 clip")


@dataclass(frozen=True)
class ClipScore:
    """PSNR in dB, SSIM and LPIPS (the mean over frames), and the bits that the posterior holds beyond N(0, 1)."""

    file: str
    start: int
    frames: int
    height: int
    width: int
    psnr: float
    ssim: float
    lpips: float | None
    kl_bits_per_pixel: float


class Scorer:
    """The networks, and what is summed up over all clips; `notes` says what is left out and why."""

    def __init__(self, config: VaeScoresConfig, device: torch.device) -> None:
        self.notes: list[str] = []
        self.vae: Vae = load_vae(config.vae).to(device)
        self.computed = choose(config.mixed_precision, device)
        self.lpips = self.i3d = None
        try:
            self.lpips = load_lpips(config.lpips, config.lpips_net).to(device)
        except UserError as error:
            if config.lpips is not None:
                raise
            self.notes.append(f"LPIPS is left out: {error}")
        if config.i3d is None:
            self.notes.append("rFVD is left out: it needs I3D's weights (i3d)")
        else:
            self.i3d = load_i3d(config.i3d).to(device)
        self.latents = LatentQuality()
        self.real, self.copied = Moments(), Moments()

    @torch.no_grad()
    def score(self, excerpt: Excerpt) -> tuple[ClipScore, Tensor, Tensor]:
        """Its scores, and the original and the reconstruction, uint8 [F,H,W,3]. Raises ClipError."""
        pixels = excerpt.read().to(self.vae.device)
        with autocast(self.vae.device, self.computed):  # of the VAE alone: what measures it stays exact
            posterior = self.vae.encode(from_uint8(pixels)[None]).latent_dist
            copy = to_uint8(self.vae.decode(posterior.mode()).sample[0].float())
        posterior = DiagonalGaussianDistribution(posterior.parameters.float())
        z = posterior.mode()
        self.latents.add(z[0])
        fidelity = Fidelity()
        fidelity.add(pixels, copy)
        if self.i3d is not None and len(pixels) >= SHORTEST:
            self.real.add(self.i3d(from_uint8(pixels)[None]))
            self.copied.add(self.i3d(from_uint8(copy)[None]))
        score = ClipScore(
            file=str(excerpt.path),
            start=excerpt.start,
            frames=len(pixels),
            height=excerpt.height,
            width=excerpt.width,
            psnr=fidelity.psnr,
            ssim=fidelity.ssim,
            lpips=self._lpips(pixels, copy),
            kl_bits_per_pixel=float(posterior.kl().sum()) / math.log(2) / pixels[..., 0].numel(),
        )
        return score, pixels.cpu(), copy.cpu()

    def _lpips(self, a: Tensor, b: Tensor) -> float | None:
        _, height, width, _ = a.shape
        if self.lpips is None or min(height, width) < SMALLEST[self.lpips.net]:
            return None
        return float(frame_distances(self.lpips, a, b).double().mean())

    def rfvd(self) -> float | None:
        """The Frechet distance of I3D features of originals and reconstructions."""
        if self.i3d is None:
            return None
        count = self.real.count
        if count < 2:
            self.notes.append(
                f"rFVD is left out: it needs 2 clips of at least {SHORTEST} frames, and there are {count}"
            )
            return None
        self.notes.append(
            f"rFVD is of {count} clips: so few bias it upwards, compare it with others of {count} clips only"
            if count < ENOUGH
            else f"rFVD is of {count} clips"
        )
        return frechet_distance(self.real, self.copied)


def score_vae(config: VaeScoresConfig) -> dict[str, Any]:
    """Scores the VAE clip by clip and writes `out`: scores.json, scores.md, latents.svg, sheet.png, clips/.

    Returns what scores.json holds. Raises UserError for arguments that are wrong, and where no clip can be used.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scorer = Scorer(config, device)
    vae = scorer.vae
    cut = Cut(
        frames=config.frames,
        size=config.size,
        temporal_stride=vae.temporal_stride,
        spatial_stride=vae.spatial_stride,
        smallest=SSIM_WINDOW,
    )
    excerpts, skipped = cut_files(find_files(config.inputs), cut, config.max_clips)
    clips, rows = [], []
    for excerpt in tqdm(excerpts, desc="clips", disable=None):
        try:
            score, original, copy = scorer.score(excerpt)
        except ClipError as error:
            skipped.append((excerpt.path, str(error)))
            continue
        clips.append(score)
        if len(rows) < config.shown:
            rows.append(show(config.out, len(rows), excerpt, score, original, copy))
    if not clips:
        raise UserError(f"no clip can be used: {'; '.join(why for _, why in skipped[:3]) or 'the files hold none'}")
    print(describe(scorer.computed, device), file=sys.stderr, flush=True)
    result = summary(config, scorer, clips, skipped)
    config.out.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("scores.json", json.dumps(result, indent=1, allow_nan=False)),
        ("scores.md", table(result)),
        ("latents.svg", draw_latents(result["latents"])),
    ):
        with written_whole(config.out / name) as beside:
            beside.write_text(text, encoding="utf-8")
    if rows:
        draw_sheet(rows, config.out / "sheet.png", columns=4, zoom=max(1, SHEET_SIDE // len(rows[0].clips[0][0])))
    return result


def summary(
    config: VaeScoresConfig, scorer: Scorer, clips: Sequence[ClipScore], skipped: Sequence[tuple[Path, str]]
) -> dict[str, Any]:
    """What scores.json holds; means are over clips, each clip counting once."""
    vae, perceptual = scorer.vae, [clip.lpips for clip in clips if clip.lpips is not None]
    if scorer.lpips is not None and len(perceptual) < len(clips):
        small = len(clips) - len(perceptual)
        scorer.notes.append(f"LPIPS is left out for {small} clips below {SMALLEST[scorer.lpips.net]} pixels a side")
    pixels_per_position = vae.temporal_stride * vae.spatial_stride**2
    return {
        "vae": str(config.vae),
        "class": vae.config.get("_class_name", type(vae).__name__),
        "clips": len(clips),
        "computed_in": "fp32" if scorer.computed == "no" else scorer.computed,
        "frames": config.frames,
        "size": config.size,
        "mean": {
            "psnr": fmean(clip.psnr for clip in clips),
            "ssim": fmean(clip.ssim for clip in clips),
            "lpips": fmean(perceptual) if perceptual else None,
            "kl_bits_per_pixel": fmean(clip.kl_bits_per_pixel for clip in clips),
        },
        "lpips_net": config.lpips_net,
        "rfvd": scorer.rfvd(),
        "rfvd_clips": scorer.real.count,
        "compression": {
            "temporal_stride": vae.temporal_stride,
            "spatial_stride": vae.spatial_stride,
            "latent_channels": vae.latent_channels,
            "pixel_values_per_latent_value": 3 * pixels_per_position / vae.latent_channels,
            "bits_per_pixel_at_16_bits": 16 * vae.latent_channels / pixels_per_position,
        },
        "latents": scorer.latents.report(),
        "notes": scorer.notes,
        "skipped": [{"file": str(path), "reason": reason} for path, reason in skipped],
        "per_clip": [asdict(clip) for clip in clips],
    }


def show(folder: Path, number: int, excerpt: Excerpt, score: ClipScore, original: Tensor, copy: Tensor) -> Row:
    """Writes original | reconstruction | difference of a clip (a png of an image), and makes its rows of the sheet."""
    difference = (original.int() - copy.int()).abs().mul(CONTRAST).clamp(0, 255).to(torch.uint8)
    parts = [original, copy, difference]
    ending = "mp4" if len(original) > 1 else "png"
    path = folder / "clips" / f"{number:02d}-{excerpt.path.stem}-{excerpt.start}.{ending}"
    write_video(path, torch.cat(parts, dim=2), excerpt.fps or 1.0)
    step = max(1, round(original.shape[1] / SHEET_SIDE))
    perceptual = "" if score.lpips is None else f"\nLPIPS {score.lpips:.4f}"
    text = (
        f"{excerpt.path.name}, from frame {excerpt.start}\n"
        f"PSNR {score.psnr:.2f} dB\nSSIM {score.ssim:.4f}{perceptual}\n"
        f"original, reconstruction, difference x {CONTRAST}"
    )
    return Row([smaller(part, step) for part in parts], text)


def smaller(clip: Tensor, step: int) -> Tensor:
    """uint8 [F,H,W,3] -> [F,H//step,W//step,3], each pixel the mean of step x step."""
    if step == 1:
        return clip
    _, height, width, _ = clip.shape
    whole = clip[:, : height // step * step, : width // step * step].float()
    whole = whole.unflatten(1, (-1, step)).unflatten(3, (-1, step))  # [F,h,step,w,step,3]
    return whole.mean(dim=(2, 4)).round().to(torch.uint8)


def table(result: dict[str, Any]) -> str:
    """The scores as Markdown: the means, what is said of them, and a row a clip."""
    mean, pack, latents = result["mean"], result["compression"], result["latents"]
    number = lambda value, digits: "" if value is None else f"{value:.{digits}f}"  # noqa: E731
    lines = [
        f"# {result['class']} on {result['clips']} clips",
        "",
        "| PSNR (dB) | SSIM | LPIPS | rFVD | KL, bits a pixel | pixel values a latent value | effective rank |",
        "|---|---|---|---|---|---|---|",
        f"| {mean['psnr']:.2f} | {mean['ssim']:.4f} | {number(mean['lpips'], 4)} | {number(result['rfvd'], 1)} "
        f"| {mean['kl_bits_per_pixel']:.3f} | {pack['pixel_values_per_latent_value']:.1f} "
        f"| {latents['effective_rank']:.1f} of {latents['channels']} |",
        "",
        *(f"- {note}" for note in result["notes"]),
        *(f"- skipped: {row['reason']}" for row in result["skipped"]),
        "",
        "| clip | from frame | frames | size | PSNR (dB) | SSIM | LPIPS |",
        "|---|---|---|---|---|---|---|",
    ]
    for clip in result["per_clip"]:
        size = f"{clip['height']} x {clip['width']}"
        lines.append(
            f"| {Path(clip['file']).name} | {clip['start']} | {clip['frames']} | {size} | {clip['psnr']:.2f} "
            f"| {clip['ssim']:.4f} | {number(clip['lpips'], 4)} |"
        )
    return "\n".join(lines) + "\n"
