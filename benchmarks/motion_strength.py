"""Whether clips move as much as is asked for, and what noise in the picture that they begin with does: two tables.

    make demo
    .venv/bin/python benchmarks/motion_strength.py runs/demo --out runs/motion_strength

White digits move left or right at 2 to 40 pixels a second in clips of 9 frames at 12 and 24 frames a second; no caption
tells the speed. A small transformer is trained on the clips with model.motion_condition (measured of each window by
optical flow), model.fps_condition and first frames that are given, with noise, in half of them.

1. 100 clips at strengths spread over those of training and at both rates: Spearman's rank correlation of the strength
   asked for and the speed shown (pixels a second, by the slope of the centre of brightness), and of the strength asked
   for and that of the clip, measured as in training; and of the rate asked for and the pixels that a frame moves, which
   are fewer at the higher rate.
2. Clips that begin with held-out pictures, no strength asked for, at noise levels from the least to the most of
   training: the likeness of their last frame's digit to the picture's (cosine of the two, each around its centre of
   brightness), and how far they move.

Writes OUT/motion_strength.json and prints the tables. Stopped, training goes on where it was.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from frame_rates import FRAMES, SIZE, pixels_a_frame
from scipy.stats import spearmanr
from torch import Tensor

from latentvid.config.parsing import load_config
from latentvid.config.schema import DitConfig
from latentvid.data.motion import motion_strength
from latentvid.data.video.writing import write_video
from latentvid.demo.digits import COLOURS, Label, caption, free_range, glyphs, paint
from latentvid.errors import user_errors
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Sampling
from latentvid.pipelines.tasks import image_to_video
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.trainer import train

RATES, SPEEDS = (12.0, 24.0), (2.0, 40.0)  # frames and pixels a second
NOISE = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
SIDE = 12  # of the square around a digit's centre that is compared


def clip(label: Label, fps: float, speed: float, rng: np.random.Generator, *, heldout: bool) -> Tensor:
    """uint8 [F,H,W,3]: the digit moves at that speed, or as fast as the canvas lets it."""
    images, digits = glyphs(heldout)
    glyph = images[int(rng.choice(torch.nonzero(digits == label.digit).flatten().numpy()))]
    low, high = (bound.tolist() for bound in free_range(glyph, SIZE))
    travel = min(speed * (FRAMES - 1) / fps, high[1] - low[1])
    start = low[1] + rng.uniform(0, high[1] - low[1] - travel)
    across = start + torch.linspace(0, travel, FRAMES)
    if label.direction == "left":
        across = low[1] + high[1] - across
    corner = torch.stack([torch.full((FRAMES,), rng.uniform(low[0], high[0])), across], dim=1)
    grey = paint(glyph, corner, SIZE)
    return (grey[..., None] * torch.tensor(COLOURS[label.colour])).round().to(torch.uint8)


def write_data(root: Path, count: int, seed: int) -> tuple[Path, list[float]]:
    """A manifest of so many clips, and the strength of each."""
    manifest, strengths, rows = root / "train.jsonl", [], []
    (root / "train").mkdir(parents=True, exist_ok=True)
    for i in range(count):
        rng = np.random.default_rng((seed, i))
        label = Label(int(rng.integers(10)), "white", "moves", ("left", "right")[rng.integers(2)])
        fps, path = RATES[i % 2], f"train/{i:05d}.mp4"
        frames = clip(label, fps, float(rng.uniform(*SPEEDS)), rng, heldout=False)
        strengths.append(motion_strength(frames, fps))
        sizes = {"frames": FRAMES, "height": SIZE[0], "width": SIZE[1]}
        rows.append({"path": path, "caption": caption(label, rng), "fps": fps, **sizes, **asdict(label)})
        if not (root / path).is_file():
            write_video(root / path, frames, fps)
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return manifest, strengths


def settings(demo: Path, out: Path, manifest: Path, args: argparse.Namespace) -> DitConfig:
    values = {
        "run.dir": out / "run",
        "run.seed": args.seed,
        "vae": demo / "vae_run/vae",
        "text_encoder": demo / "t5",
        "data.manifest": manifest,
        "data.max_frames": FRAMES,
        "data.tokens_per_pack": 640,
        "data.workers": 0,
        "scheduler": "{path: rectified_flow, target: x}",
        "timesteps": "{kind: logit_normal, mean: 0.8, std: 1.6}",
        "given": f"{{plain: 1, first: 1, noise: [{NOISE[0]}, {NOISE[-1]}]}}",
        "model": "{patch: 2, depth: 3, heads: 4, rope_theta: 100.0, motion_condition: true, fps_condition: true}",
        "model.width": args.width,
        "optim.lr": 3e-3,
        "optim.warmup": 50,
        "train.steps": args.steps,
        "train.ema": 0.99,
        "checkpoint.every": 250,
        "inference.steps": 12,
        "inference.guidance": 2.0,
        "log.trackers": "[]",
    }
    return load_config(DitConfig, None, [f"{key}={value}" for key, value in values.items()])


def correlation(asked: list[float], shown: list[float]) -> float:
    """Spearman's, without clips that show nothing."""
    pairs = [(a, b) for a, b in zip(asked, shown, strict=True) if b == b]
    return float(spearmanr(*zip(*pairs, strict=True)).statistic)


def asked_for(pipeline: Any, strengths: list[float], count: int, seed: int) -> dict[str, Any]:
    """Table 1."""
    rng = np.random.default_rng((seed, 9))
    labels = [Label(i % 10, "white", "moves", ("left", "right")[i % 2]) for i in range(count)]
    captions = [caption(label, rng) for label in labels]
    levels = np.quantile(strengths, np.linspace(0.05, 0.95, 10)).tolist()
    asked, rates, speeds, measured, moves = [], [], [], [], []
    for place in range(10):  # of one strength each: a tenth of the clips
        part = captions[place::10]
        for half, fps in enumerate(RATES):
            own = part[half::2]
            sampling = Sampling(progress=False, motion_strength=levels[place])
            sizes = {"num_frames": FRAMES, "height": SIZE[0], "width": SIZE[1], "fps": fps}
            for frames in pipeline(
                own, seed=1000 * (seed + 1) + 20 * place + half, sampling=sampling, **sizes, output_type="uint8"
            ).frames:
                move = pixels_a_frame(frames)
                asked.append(levels[place])
                rates.append(fps)
                moves.append(move)
                speeds.append(move * fps)
                measured.append(motion_strength(frames, fps))
    by_rate = {
        f"{fps:g}": float(np.nanmedian([m for m, r in zip(moves, rates, strict=True) if r == fps])) for fps in RATES
    }
    return {
        "clips": len(asked),
        "strength_and_speed": correlation(asked, speeds),
        "strength_and_measured": correlation(asked, measured),
        "rate_and_pixels_a_frame": correlation(rates, moves),
        "pixels_a_frame": by_rate,
        "levels": levels,
        "speeds": [
            float(np.nanmedian([s for s, a in zip(speeds, asked, strict=True) if a == level])) for level in levels
        ],
    }


def around_centre(frame: Tensor) -> Tensor:
    """[SIDE,SIDE] of uint8 [H,W,3] around its centre of brightness; zeros where it is dark."""
    light = frame.float().mean(-1) / 255
    if light.amax() < 0.1:
        return torch.zeros(SIDE, SIDE)
    y, x = (int((torch.arange(n) * light.sum(1 - axis)).sum() / light.sum()) for axis, n in enumerate(light.shape))
    padded = torch.nn.functional.pad(light, (SIDE,) * 4)
    return padded[y + SIDE // 2 : y + SIDE // 2 + SIDE, x + SIDE // 2 : x + SIDE // 2 + SIDE]


def noise_curve(pipeline: Any, count: int, seed: int) -> dict[str, dict[str, float]]:
    """Table 2."""
    rng = np.random.default_rng((seed, 10))
    labels = [Label(i % 10, "white", "moves", ("left", "right")[i % 2]) for i in range(count)]
    pictures = [clip(label, 12.0, 20.0, rng, heldout=True)[0] for label in labels]
    captions = [caption(label, rng) for label in labels]
    found = {}
    for level in NOISE:
        sampling = Sampling(progress=False, image_noise=level)
        clips = image_to_video(pipeline, pictures, captions, FRAMES, fps=12.0, seed=7, sampling=sampling)
        pairs = [
            (around_centre(picture), around_centre(frames[-1])) for picture, frames in zip(pictures, clips, strict=True)
        ]
        likeness = [float(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0)) for a, b in pairs]
        moves = [pixels_a_frame(frames) for frames in clips]
        found[f"{level:g}"] = {"likeness": float(np.mean(likeness)), "pixels_a_frame": float(np.nanmean(moves))}
    return found


@user_errors()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the demo")
    parser.add_argument("--out", type=Path, required=True, help="folder for the run and the tables")
    parser.add_argument("--steps", type=int, default=1500, help="of training (default %(default)s)")
    parser.add_argument("--width", type=int, default=64, help="of the transformer (default %(default)s)")
    parser.add_argument("--clips", type=int, default=900, help="of training (default %(default)s)")
    parser.add_argument("--count", type=int, default=100, help="clips made for the first table (default %(default)s)")
    parser.add_argument("--pictures", type=int, default=24, help="of the second table (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    args = parser.parse_args()
    torch.set_num_threads(1)
    manifest, strengths = write_data(args.out / "data", args.clips, args.seed)
    train(settings(args.run, args.out, manifest, args), DitTask)
    pipeline = load_pipeline(args.out / "run/pipeline", "cpu")
    results = {"steps": args.steps, "asked": asked_for(pipeline, strengths, args.count, args.seed)}
    results["noise"] = noise_curve(pipeline, args.pictures, args.seed)
    (args.out / "motion_strength.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    asked = results["asked"]
    print(f"{asked['clips']} clips, rank correlation of the strength asked for and the speed shown: "
          f"{asked['strength_and_speed']:.2f}, and the strength measured: {asked['strength_and_measured']:.2f}; of the "
          f"rate asked for and pixels a frame: {asked['rate_and_pixels_a_frame']:.2f}")  # fmt: skip
    print("| strength | " + " | ".join(f"{level:.1f}" for level in asked["levels"]) + " |")
    print("| pixels a second | " + " | ".join(f"{speed:.1f}" for speed in asked["speeds"]) + " |")
    print("| noise in the picture | likeness of the last frame | pixels a frame |\n|---|---|---|")
    for level, row in results["noise"].items():
        print(f"| {level} | {row['likeness']:.3f} | {row['pixels_a_frame']:.2f} |")


if __name__ == "__main__":
    main()
