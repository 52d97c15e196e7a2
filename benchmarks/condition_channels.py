"""Channels against noise levels for what is known of a clip, on the demo's digits.

    python benchmarks/condition_channels.py --demo runs/demo --out runs/condition_channels

The demo's model is trained on for every task that is conditioned on frames, once by noise levels and once by further
input channels (`model.condition_channels`), with the same steps, shares and draws; the second also has clips of which a
rectangle is to be made. Both are scored on held-out clips by the demo's judge: image to video and extension (as
benchmarks/tasks.py has them), and inpainting of the middle of the frame, where the model of noise levels has its known
tokens put back after each step. OUT/condition_channels.json has all figures; what is there already is not made again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tasks import NEAR, Clip, Scores, apart, extension, images_to_video, in_chunks, plain_sampling, real_clips
from torch import Tensor

from latentvid.demo.judge import Judge
from latentvid.errors import user_errors
from latentvid.limits import number
from latentvid.pipelines.edits import inpaint
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.loading import load_pipeline

ROOT = Path(__file__).resolve().parents[1]
SHARES = tuple(f"--given.{name}={share}" for name, share in (("plain", 2), ("first", 2), ("prefix", 2), ("ends", 1)))
VARIANTS = {
    "levels": (),
    "channels": (
        *("--model.condition_channels=mask_and_latents", "--init_partial=true"),
        *("--given.inpaint=2", "--given.outpaint=1"),
    ),
}


def train(demo: Path, out: Path, name: str, seed: int, steps: int) -> Path:
    """A run by the recipe of the demo's tasks, from the demo's model; it goes on where it was stopped."""
    folder = out / name
    subprocess.run(
        [
            *(sys.executable, "train/train_dit.py", "configs/dit/demo_tasks.yaml", f"--run.dir={folder}"),
            *(f"--run.seed={seed}", f"--init={demo / 'pipeline'}", f"--vae={demo / 'pipeline/vae'}"),
            *(f"--text_encoder={demo / 't5'}", f"--data.latents={demo / 'latents'}", f"--train.steps={steps}"),
            *("--optim.lr=1e-3", "--validation.every=0", "--samples.every=0", "--log.trackers=[]"),
            *("--given.independent=0", "--given.random=1", *SHARES, *VARIANTS[name]),
        ],
        cwd=ROOT,
        check=True,
    )
    return folder / "pipeline"


def middle(clip: Tensor, stride: int) -> Tensor:
    """bool [H,W]: about a half of the sides of a clip [F,H,W,3], in whole latent positions."""
    mask = torch.zeros(clip.shape[1:3], dtype=torch.bool)
    starts = [stride * max(1, round(side / (4 * stride))) for side in mask.shape]
    (top, left), (height, width) = starts, mask.shape
    mask[top : height - top, left : width - left] = True
    return mask


def inpainting(pipeline: LatentVideoPipeline, clips: list[Clip], judge: Judge, out: Path) -> dict[str, float]:
    """`error`: root mean square of what was made from the real clip, in pixels' values of 0 to 1."""
    sampling, stride = plain_sampling(pipeline), pipeline.codec.spatial_stride

    def make(part: Sequence[Clip], seed: int) -> list[Tensor]:
        masks = [middle(clip, stride) for clip, _, _ in part]
        return inpaint(pipeline, [c[0] for c in part], masks, [c[2] for c in part], seed=seed, sampling=sampling)

    scores = Scores("inpainting", out)
    for made, (real, label, text) in zip(in_chunks(clips, make), clips, strict=True):
        seen, error = judge(made), apart(judge(made).path, judge(real).path)
        differs = ((made.float() - real.float()) / 255)[:, middle(real, stride)].square().mean().sqrt()
        values = {"digit": seen.digit == label.digit, "off_path": error, "on_path": error < NEAR}
        scores.add([real, made], f"{text}\nabove: real", error < NEAR, error=float(differs), **values)
    return scores.done()


def measure(args: argparse.Namespace, demo: Path, out: Path, seed: int, judge: Judge) -> dict[str, dict]:
    clips, moving = real_clips(demo, args.count), real_clips(demo, args.count, "moves")
    found = {}
    for name in args.variants:
        place = out / f"{name}_scores"
        file = place / "scores.json"
        if not file.exists():
            pipeline = load_pipeline(train(demo, out, name, seed, args.steps), "cpu")
            place.mkdir(exist_ok=True)
            scores = {
                "i2v": images_to_video(pipeline, clips, judge, place),
                "extension": extension(pipeline, moving, judge, place, "extension"),
                "inpainting": inpainting(pipeline, clips, judge, place),
            }
            file.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
        found[name] = json.loads(file.read_text(encoding="utf-8"))
        print(seed, name, json.dumps(found[name]), flush=True)
    return found


@user_errors()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="a finished demo")
    parser.add_argument("--out", type=Path, default=Path("runs/condition_channels"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--steps", type=number("train.steps"), default=600, help="of each run")
    parser.add_argument("--count", type=number("pairs"), default=84, help="clips of each task")
    args = parser.parse_args()
    demo, out, judge = args.demo.resolve(), args.out.resolve(), Judge.load()
    found = {}
    for seed in args.seeds:
        place = out / f"seed{seed}"
        place.mkdir(parents=True, exist_ok=True)
        found[seed] = measure(args, demo, place, seed, judge)
    text = json.dumps({"settings": {"steps": args.steps, "count": args.count}, "seeds": found}, indent=1)
    (out / "condition_channels.json").write_text(text + "\n", encoding="utf-8")
    figures = (("i2v", "digit"), ("i2v", "direction"), ("extension", "direction"), ("extension", "off_path"))
    figures += (("extension", "on_path"), ("inpainting", "error"), ("inpainting", "digit"), ("inpainting", "on_path"))
    print(f"\n| {len(args.seeds)} seeds, lowest to highest | {' | '.join(' '.join(figure) for figure in figures)} |")
    print("|---" * (1 + len(figures)) + "|")
    for name in args.variants:
        each = [[of_seed[name][kind][figure] for kind, figure in figures] for of_seed in found.values()]
        cells = [f"{min(values):.3f} to {max(values):.3f}" for values in zip(*each, strict=True)]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
