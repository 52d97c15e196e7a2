"""Whether generated clips move at the frame rate that is asked for: a table of the ways to tell it to the model.

    make demo
    .venv/bin/python benchmarks/frame_rates.py runs/demo --out runs/frame_rates

White digits move left or right at 20 pixels a second in clips of 9 frames at 12, 24 and 48 frames a second, so that
they move 1.67, 0.83 or 0.42 pixels a frame, which no caption tells. The demo's autoencoder and text encoder serve; a
small transformer is trained on the mixture (`data.fps` null) for each of:

    none        the model is not told the rate
    seconds     rotary positions in time are seconds (model.rope_fps)
    condition   the rate joins the modulation (model.fps_condition), positions are frame numbers
    both

Each then makes clips at nine rates from 12 to 48, of which it was trained on three. What a clip moves is the slope of
its centre of brightness, in pixels a frame; at 20 pixels a second that shows a rate. Spearman's rank correlation is of
the rates asked for and shown, over all clips (ties have their mean rank), and over the medians of each rate asked for.

Writes OUT/frame_rates.json and prints the table. Stopped, it goes on where it was.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from latentvid.config.parsing import load_config
from latentvid.config.schema import DitConfig
from latentvid.data.video.writing import write_video
from latentvid.demo.digits import COLOURS, Label, caption, free_range, glyphs, paint
from latentvid.errors import user_errors
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Sampling
from latentvid.training.monitor.metrics import read_metrics
from latentvid.training.stages.dit.encode import EncodeConfig, encode_manifest
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.trainer import train

SPEED = 20.0  # pixels a second
TRAINED = (12.0, 24.0, 48.0)
ASKED = (12.0, 14.0, 17.0, 20.0, 24.0, 29.0, 34.0, 40.0, 48.0)
FRAMES, SIZE = 9, (24, 32)
SEEN = 0.3  # of the greatest brightness: a clip without a pixel above it shows nothing
KINDS = {
    "none": (),
    "seconds": ("model.rope_fps=24",),
    "condition": ("model.fps_condition=true",),
    "both": ("model.fps_condition=true", "model.rope_fps=24"),
}


def clip(label: Label, fps: float, rng: np.random.Generator, *, heldout: bool) -> Tensor:
    """uint8 [F,H,W,3]: the digit moves at SPEED, inside the canvas."""
    images, digits = glyphs(heldout)
    glyph = images[int(rng.choice(torch.nonzero(digits == label.digit).flatten().numpy()))]
    low, high = (bound.tolist() for bound in free_range(glyph, SIZE))
    travel = min(SPEED * (FRAMES - 1) / fps, high[1] - low[1])
    start = low[1] + rng.uniform(0, high[1] - low[1] - travel)
    across = start + torch.arange(FRAMES) * SPEED / fps
    if label.direction == "left":
        across = low[1] + high[1] - across
    corner = torch.stack([torch.full((FRAMES,), rng.uniform(low[0], high[0])), across], dim=1)
    grey = paint(glyph, corner, SIZE)
    return (grey[..., None] * torch.tensor(COLOURS[label.colour])).round().to(torch.uint8)


def write_data(root: Path, name: str, count: int, seed: int) -> Path:
    """A manifest of so many clips, whose rates take turns."""
    manifest = root / f"{name}.jsonl"
    if manifest.is_file():
        return manifest
    (root / name).mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        rng = np.random.default_rng((seed, i))
        label = Label(int(rng.integers(10)), "white", "moves", ("left", "right")[rng.integers(2)])
        fps, path = TRAINED[i % len(TRAINED)], f"{name}/{i:05d}.mp4"
        write_video(root / path, clip(label, fps, rng, heldout=name != "train"), fps)
        sizes = {"frames": FRAMES, "height": SIZE[0], "width": SIZE[1]}
        rows.append({"path": path, "caption": caption(label, rng), "fps": fps, **sizes, **asdict(label)})
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return manifest


def encoded(manifest: Path, demo: Path) -> Path:
    out = manifest.with_name(f"{manifest.stem}_latents")
    sizes = {"max_frames": FRAMES, "max_area": None, "patch": 2, "batch": 8}
    encode_manifest(EncodeConfig(manifest, demo / "vae_run/vae", str(demo / "t5"), out, **sizes))
    return out


def settings(demo: Path, out: Path, kind: str, caches: tuple[Path, Path], args: argparse.Namespace) -> DitConfig:
    run = out / kind
    values = {
        "run.dir": run,
        "run.seed": args.seed,
        "vae": demo / "vae_run/vae",
        "text_encoder": demo / "t5",
        "data.latents": caches[0],
        "data.tokens_per_pack": 640,
        "data.workers": 0,
        "scheduler": "{path: rectified_flow, target: x}",
        "timesteps": "{kind: logit_normal, mean: 0.8, std: 1.6}",
        "model.patch": 2,
        "model.width": args.width,
        "model.depth": 3,
        "model.heads": 4,
        "model.rope_theta": 100.0,
        "optim.lr": 3e-3,
        "optim.warmup": 50,
        "train.steps": args.steps,
        "train.ema": 0.99,
        "checkpoint.every": 250,
        "inference.steps": 12,
        "inference.guidance": 2.0,
        "validation.latents": caches[1],
        "validation.every": args.steps,
        "log.trackers": "[]",
    }
    return load_config(DitConfig, None, [*(f"{key}={value}" for key, value in values.items()), *KINDS[kind]])


def pixels_a_frame(frames: Tensor) -> float:
    """Slope of the centre of brightness of uint8 [F,H,W,3], by least squares, without its sign; NaN: nothing shown."""
    light = frames.float().mean(-1) / 255  # [F,H,W]
    if light.amax((1, 2)).min() < SEEN:
        return float("nan")
    light = light * (light > 0.15)
    columns = light.sum(1)  # [F,W]
    place = (columns * torch.arange(columns.shape[1])).sum(1) / columns.sum(1)
    time_ = torch.arange(len(place)) - (len(place) - 1) / 2
    return abs(float((time_ * place).sum() / time_.square().sum()))


def made(run: Path, count: int, seed: int) -> dict[float, list[float]]:
    """Pixels a frame of the clips that a model makes at each rate asked for; captions are the same at all."""
    pipeline = load_pipeline(run / "pipeline", "cpu")
    rng = np.random.default_rng((seed, 9))
    labels = [Label(i % 10, "white", "moves", ("left", "right")[i % 2]) for i in range(count)]
    captions = [caption(label, rng) for label in labels]
    words = {"num_frames": FRAMES, "height": SIZE[0], "width": SIZE[1], "sampling": Sampling(progress=False)}
    found = {}
    for place, fps in enumerate(ASKED):
        clips = pipeline(captions, fps=fps, seed=1000 * (seed + 1) + count * place, **words, output_type="uint8").frames
        found[fps] = [pixels_a_frame(frames) for frames in clips]
        write_video(run / f"shown-{fps:g}.mp4", torch.cat(clips[:6], dim=2), fps)
    return found


def scores(found: dict[float, list[float]]) -> dict[str, Any]:
    """`all`, `medians`: rank correlations of rates asked for and shown. moves: medians, pixels a frame."""
    seen = {fps: [slope for slope in slopes if slope == slope] for fps, slopes in found.items()}
    middle = {fps: median(slopes) if slopes else float("nan") for fps, slopes in seen.items()}
    pairs = [(fps, slope) for fps, slopes in seen.items() for slope in slopes]
    return {
        "all": correlation(pairs),
        "medians": correlation([(fps, slope) for fps, slope in middle.items() if slope == slope]),
        "clips": len(pairs),
        "moves": {f"{fps:g}": slope for fps, slope in middle.items()},
    }


def correlation(pairs: Sequence[tuple[float, float]]) -> float:
    """Spearman's, of (rate asked for, pixels a frame); NaN where there are fewer than 2."""
    if len(pairs) < 2:
        return float("nan")
    asked, slopes = zip(*pairs, strict=True)
    return float(spearmanr(asked, [SPEED / max(slope, 1e-3) for slope in slopes]).statistic)


def table(results: dict[str, dict]) -> str:
    """Markdown."""
    heads = [f"{fps:g}" for fps in ASKED]
    lines = [
        f"| told | held-out loss | correlation, clips | correlation, medians | {' | '.join(heads)} |",
        f"|{'---|' * (4 + len(heads))}",
        f"| *real, 20 px/s* | | | | {' | '.join(f'{SPEED / fps:.2f}' for fps in ASKED)} |",
    ]
    for kind, row in results.items():
        moves = " | ".join(f"{row['moves'][head]:.2f}" for head in heads)
        lines.append(f"| {kind} | {row['loss']:.4f} | {row['all']:.2f} | {row['medians']:.2f} | {moves} |")
    return "\n".join(lines)


@user_errors()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the demo")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs and the table")
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=tuple(KINDS), help="default: all")
    parser.add_argument("--steps", type=int, default=1500, help="of training (default %(default)s)")
    parser.add_argument("--width", type=int, default=64, help="of the transformer (default %(default)s)")
    parser.add_argument("--clips", type=int, default=900, help="of training (default %(default)s)")
    parser.add_argument("--count", type=int, default=12, help="clips made at each rate (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = args.out / "data"
    manifests = write_data(data, "train", args.clips, args.seed), write_data(data, "val", 60, args.seed + 1)
    caches = encoded(manifests[0], args.run), encoded(manifests[1], args.run)
    real = [pixels_a_frame(clip(Label(3, "white", "moves", "left"), fps, np.random.default_rng(1), heldout=True))
            for fps in TRAINED]  # fmt: skip
    print("real clips move", ", ".join(f"{fps:g}: {slope:.3f}" for fps, slope in zip(TRAINED, real, strict=True)))
    path = args.out / "frame_rates.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for kind in args.kinds:
        begun = time.perf_counter()
        run = args.out / kind
        train(settings(args.run, args.out, kind, caches, args), DitTask)
        loss = next(r["loss"] for r in reversed(read_metrics(run, "validation.jsonl")) if r["weights"] == "ema")
        results[kind] = {"loss": loss, **scores(made(run, args.count, args.seed))}
        results[kind] |= {"steps": args.steps, "seconds": round(time.perf_counter() - begun)}
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(kind, json.dumps(results[kind]), flush=True)
    print(table({kind: results[kind] for kind in KINDS if kind in results}))


if __name__ == "__main__":
    main()
