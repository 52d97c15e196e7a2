"""Scores of an autoencoder on any footage: fidelity, perceptual and video distance, and its latents' quality.

Axes: F frames, H W height and width in pixels, C latent channels, f h w the latent's.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor
from tqdm import tqdm

from ...data.transforms import from_uint8, to_uint8
from ...data.video.writing import write_video
from ...errors import ClipError, UserError
from ...files import check_outputs, part_of, write_whole
from ...limits import check_fields
from ...models.interchange import Vae, load_vae
from ...precision import MixedPrecision, autocast, choose, describe
from ...tables import markdown_table
from ...words import counted
from ..footage import Cut, Excerpt, cut_files, find_files
from ..mean_score import MeanScore
from ..pairs.fidelity import SSIM_WINDOW
from ..pairs.lpips import SMALLEST, load_lpips
from ..pairs.scores import PAIR_SCORES, FidelityRows, LpipsRows
from ..rows import Clip, Extractor, rows_of
from ..sets.features import I3DRows
from ..sets.i3d import SHORTEST, load_i3d
from ..sets.scores import FrechetScore
from ..sheet import Row, draw_sheet
from .latent_picture import draw_latents
from .latent_quality import LatentQuality

ENOUGH = 2048  # clips, from which on published FVDs are reported; fewer bias it upwards
FILES = ("scores.json", "scores.md", "latents.svg", "sheet.png")
CONTRAST = 4  # times the difference is shown
SHEET_SIDE = 224  # pixels, about the height of a frame in the sheet
RFVD = FrechetScore("rfvd", "i3d")
SCORES = (  # of each clip, with its original as the pair; kl: the bits that the posterior holds beyond N(0, 1)
    *PAIR_SCORES,
    MeanScore(name="kl_bits_per_pixel", extractor="kl", compares="none", better="neither"),
)


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
        check_fields(self, "")
        if self.i3d is not None and self.frames < SHORTEST:
            raise UserError(f"--i3d: rFVD takes clips of {SHORTEST} frames and more: raise --frames, or leave it out")


class Scorer:
    """The networks, and the rows of all clips; `notes` says what is left out and why.

    rows: by extractor, of each clip that it can take; "real" has I3D's of the originals. clips: scores.json's list.
    """

    def __init__(self, config: VaeScoresConfig, device: torch.device) -> None:
        self.notes: list[str] = []
        self.vae: Vae = load_vae(config.vae).to(device)
        self.computed = choose(config.mixed_precision, device)
        self.extractors: dict[str, Extractor] = {"fidelity": FidelityRows(None, device)}
        try:
            self.extractors["lpips"] = LpipsRows(None, device, load_lpips(config.lpips, config.lpips_net))
        except UserError as error:
            if config.lpips is not None:
                raise
            self.notes.append(f"LPIPS is left out: {error}")
        if config.i3d is None:
            self.notes.append("rFVD is left out: it needs I3D's weights (i3d)")
        else:
            self.extractors["i3d"] = I3DRows(None, device, load_i3d(config.i3d))
        self.latents = LatentQuality()
        self.rows: dict[str, list[Tensor]] = {name: [] for name in ("fidelity", "lpips", "i3d", "kl", "real")}
        self.clips: list[dict[str, Any]] = []

    @torch.no_grad()
    def score(self, excerpt: Excerpt) -> Clip:
        """Adds its scores, and returns the reconstruction with the original as its pair. Raises ClipError."""
        pixels = excerpt.read().to(self.vae.device)
        with autocast(self.vae.device, self.computed):  # of the VAE alone: what measures it stays exact
            posterior = self.vae.encode(from_uint8(pixels)[None]).latent_dist
            copy = to_uint8(self.vae.decode(posterior.mode()).sample[0].float())
        posterior = DiagonalGaussianDistribution(posterior.parameters.float())
        self.latents.add(posterior.mode()[0])
        clip = Clip(copy, excerpt.fps, pair=pixels, name=str(excerpt.path))
        rows = rows_of(clip, self.extractors)
        bits = float(posterior.kl().sum()) / math.log(2) / pixels[..., 0].numel()
        rows["kl"] = torch.tensor([[bits]], dtype=torch.float64)
        rows = {name: found for name, found in rows.items() if not isinstance(found, ClipError)}
        if "i3d" in rows:
            rows["real"] = self.extractors["i3d"](Clip(pixels))
        for name, found in rows.items():
            self.rows[name].append(found)
        about = {"file": clip.name, "start": excerpt.start, "frames": len(pixels)}
        about |= {"height": excerpt.height, "width": excerpt.width}
        figures = {s.name: s.of_clip(rows[s.extractor]) if s.extractor in rows else None for s in SCORES}
        self.clips.append(about | figures)
        return Clip(copy.cpu(), clip.fps, pair=pixels.cpu(), name=clip.name)

    def means(self) -> dict[str, float | None]:
        """Each clip counts once."""
        small = len(self.clips) - len(self.rows["lpips"])
        if "lpips" in self.extractors and small:
            side = SMALLEST[self.extractors["lpips"].network.net]
            self.notes.append(f"LPIPS is left out for {counted(small, 'clip')} below {side} pixels a side")
        return {s.name: s(self.rows[s.extractor]) if self.rows[s.extractor] else None for s in SCORES}

    def rfvd(self) -> float | None:
        """The Frechet distance of I3D features of originals and reconstructions."""
        if "i3d" not in self.extractors:
            return None
        count = len(self.rows["real"])
        if count < 2:
            needed = f"2 clips of at least {SHORTEST} frames, and there are {count}"
            self.notes.append(f"rFVD is left out: it needs {needed}")
            return None
        of = counted(count, "clip")
        few = f": so few bias it upwards, compare it with others of {of} only" if count < ENOUGH else ""
        self.notes.append(f"rFVD is of {of}{few}")
        return RFVD(self.rows["i3d"], self.rows["real"])


def score_vae(config: VaeScoresConfig) -> dict[str, Any]:
    """Scores the VAE clip by clip and writes `out`: scores.json, scores.md, latents.svg, sheet.png, clips/.

    Returns what scores.json holds. Raises UserError for arguments that are wrong, and where no clip can be used.
    """
    check_outputs(config.out, FILES)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scorer = Scorer(config, device)
    cut = Cut(
        frames=config.frames,
        size=config.size,
        temporal_stride=scorer.vae.temporal_stride,
        spatial_stride=scorer.vae.spatial_stride,
        smallest=SSIM_WINDOW,
    )
    excerpts, skipped = cut_files(find_files(config.inputs), cut, config.max_clips)
    rows = []
    for excerpt in tqdm(excerpts, desc="clips", disable=None):
        try:
            clip = scorer.score(excerpt)
        except ClipError as error:
            skipped.append((excerpt.path, str(error)))
            continue
        if len(rows) < config.shown:
            rows.append(show(config.out, len(rows), clip, scorer.clips[-1]))
    if not scorer.clips:
        raise UserError(f"no clip can be used: {'; '.join(why for _, why in skipped[:3]) or 'the files hold none'}")
    print(describe(scorer.computed, device), file=sys.stderr, flush=True)
    result = summary(config, scorer, skipped)
    config.out.mkdir(parents=True, exist_ok=True)
    texts = json.dumps(result, indent=1, allow_nan=False), table(result), draw_latents(result["latents"])
    for name, text in zip(FILES, texts, strict=False):
        write_whole(config.out / name, text)
    if rows:
        draw_sheet(rows, config.out / "sheet.png", columns=4, zoom=max(1, SHEET_SIDE // len(rows[0].clips[0][0])))
    return result


def summary(config: VaeScoresConfig, scorer: Scorer, skipped: Sequence[tuple[Path, str]]) -> dict[str, Any]:
    """What scores.json holds."""
    vae = scorer.vae
    pixels_per_position = vae.temporal_stride * vae.spatial_stride**2
    return {
        "vae": str(config.vae),
        "class": vae.config.get("_class_name", type(vae).__name__),
        "clips": len(scorer.clips),
        "computed_in": "fp32" if scorer.computed == "no" else scorer.computed,
        "frames": config.frames,
        "size": config.size,
        "mean": scorer.means(),
        "lpips_net": config.lpips_net,
        "rfvd": scorer.rfvd(),
        "rfvd_clips": len(scorer.rows["real"]),
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
        "per_clip": scorer.clips,
    }


def show(folder: Path, number: int, clip: Clip, score: dict[str, Any]) -> Row:
    """Writes original | reconstruction | difference of a clip (a png of an image), and makes its rows of the sheet."""
    difference = (clip.pair.int() - clip.pixels.int()).abs().mul(CONTRAST).clamp(0, 255).to(torch.uint8)
    parts, file = [clip.pair, clip.pixels, difference], Path(score["file"])
    ending = "mp4" if score["frames"] > 1 else "png"
    path = folder / "clips" / f"{number:02d}-{part_of(file.stem)}-{score['start']}.{ending}"
    write_video(path, torch.cat(parts, dim=2), clip.fps or 1.0)
    step = max(1, round(score["height"] / SHEET_SIDE))
    perceptual = "" if score["lpips"] is None else f"\nLPIPS {score['lpips']:.4f}"
    text = (
        f"{file.name}, from frame {score['start']}\n"
        f"PSNR {score['psnr']:.2f} dB\nSSIM {score['ssim']:.4f}{perceptual}\n"
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
    figures = lambda row: (f"{row['psnr']:.2f}", f"{row['ssim']:.4f}", number(row["lpips"], 4))  # noqa: E731
    head = ("rFVD", "KL, bits a pixel", "pixel values a latent value", "effective rank")
    more = (
        number(result["rfvd"], 1),
        f"{mean['kl_bits_per_pixel']:.3f}",
        f"{pack['pixel_values_per_latent_value']:.1f}",
        f"{latents['effective_rank']:.1f} of {latents['channels']}",
    )
    clips = [
        (Path(c["file"]).name, str(c["start"]), str(c["frames"]), f"{c['height']} x {c['width']}", *figures(c))
        for c in result["per_clip"]
    ]
    lines = [
        f"# {result['class']} on {counted(result['clips'], 'clip')}",
        "",
        markdown_table(("PSNR (dB)", "SSIM", "LPIPS", *head), [(*figures(mean), *more)]),
        "",
        *(f"- {note}" for note in result["notes"]),
        *(f"- skipped: {row['reason']}" for row in result["skipped"]),
        "",
        markdown_table(("clip", "from frame", "frames", "size", "PSNR (dB)", "SSIM", "LPIPS"), clips),
    ]
    return "\n".join(lines) + "\n"
