"""Distillation of the demo's transformer to few passes, beside its teacher in as many and in more.

    python benchmarks/distil.py --demo runs/demo --out runs/distil

For each seed it distils the demo's pipeline by configs/dit/demo_distil.yaml (guidance, then halving from 16 steps to 1:
one run), and its student of guidance by consistency and by distribution matching (dmd) to 4, 2 and 1 steps. Every
student, and the teacher in 16, 8, 4, 2 and 1 steps of two passes, makes --prompts clips from the same noise: the
judge's `both` and `strict`, and the mean squared distance of the latents from those that the teacher ends at in 16
steps. OUT/distil.json has all figures; what is there already is not made again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from latentvid.config.curriculum import curriculum
from latentvid.config.distillation import DistillConfig
from latentvid.config.parsing import load_config
from latentvid.demo.digits import SIZES, prompts
from latentvid.demo.judge import score
from latentvid.limits import number
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Request, Sampling
from latentvid.training.export import export_run
from latentvid.training.stages.table import STAGES

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "configs/dit/demo_distil.yaml"
FRAMES = 17
CHUNK = 28  # clips that are sampled together
STEPS = (4, 2, 1)


def train(demo: Path, folder: Path, teacher: Path, seed: int, *options: str) -> None:
    """A run of the recipe; it goes on where it was stopped."""
    words = (RECIPE, f"--run.dir={folder}", f"--run.seed={seed}", f"--teacher={teacher}", *options)
    words += (f"--data.latents={demo / 'latents'}", f"--validation.manifest={demo / 'data/val.jsonl'}")
    words += ("--validation.every=0", "--log.trackers=[]")
    subprocess.run([sys.executable, "train/distill.py", *map(str, words)], cwd=ROOT, check=True)


def halved(demo: Path, out: Path, seed: int, scale: float, options: list[str]) -> dict[str, Path]:
    """The pipeline that each stage of the recipe leaves, by its name."""
    run = out / "halving"
    if not (run / "pipeline").is_dir():
        train(demo, run, demo / "pipeline", seed, *_longer(scale), *options)
    found = {}
    for stage in curriculum(load_config(DistillConfig, run / "config.yaml")):
        found[stage.name] = out / stage.name
        if not found[stage.name].is_dir():
            export_run(run, found[stage.name], STAGES, step=stage.end)
    return found


def _longer(scale: float) -> list[str]:
    """Options for stages so many times as long as the recipe's."""
    return [
        f"--stages.{stage.name}.train.steps={round(scale * stage.steps)}"
        for stage in curriculum(load_config(DistillConfig, RECIPE))
        if scale != 1
    ]


# options of the methods that lead to few steps in a run of its own
ALONE = {
    "consistency": ("--distill.teacher_steps=16",),
    "dmd": ("--distill.critic_lr=5e-4", "--optim.lr=2e-4", "--optim.schedule=constant"),
}


def alone(method: str, demo: Path, out: Path, seed: int, steps: int, length: int, teacher: Path, more: list) -> Path:
    run = out / f"{method}_{steps}"
    if not (run / "pipeline").is_dir():
        options = ("--stages=[]", f"--distill.method={method}", f"--distill.steps={steps}", f"--train.steps={length}")
        train(demo, run, teacher, seed, *options, *ALONE[method], *more)
    return run / "pipeline"


def made(pipeline: LatentVideoPipeline, texts: list[str], seed: int, steps: int) -> tuple[list[Tensor], list[Tensor]]:
    """Latents and clips of the prompts, in the demo's sizes in turn."""
    latents, clips, sampling = [], [], Sampling(steps=steps, progress=False)
    for start in range(0, len(texts), CHUNK):
        requests = []
        for i in range(start, min(start + CHUNK, len(texts))):
            grid = pipeline.latent_grid(FRAMES, *SIZES[i % len(SIZES)])
            rate = pipeline.rate(pipeline.config.fps, grid)
            requests.append(Request(prompt=texts[i], grid=grid, fps=rate, seed=seed + i))
        latents += pipeline.sample(requests, sampling)
        clips += pipeline.decode(latents[start:], sampling.precision)
    return latents, clips


def measure(args: argparse.Namespace, demo: Path, out: Path, seed: int) -> dict[str, dict]:
    found: dict[str, dict] = {}
    chosen = prompts(args.prompts, heldout=False, seed=seed)
    texts, labels = [text for _, text in chosen], [label for label, _ in chosen]
    ends: list[Tensor] = []

    def look(name: str, folder: Path, steps: int, passes: int) -> None:
        file = out / f"{name}.json"
        if name != "teacher 16" and file.exists():
            found[name] = json.loads(file.read_text(encoding="utf-8"))
            return
        latents, clips = made(load_pipeline(folder, "cpu"), texts, 100_000 * seed, steps)
        if not ends:
            ends.extend(latents)
        far = [float((a - b).square().mean()) for a, b in zip(latents, ends, strict=True)]
        found[name] = {"passes": passes, **score(clips, labels), "end_distance": sum(far) / len(far)}
        file.write_text(json.dumps(found[name], indent=1) + "\n", encoding="utf-8")
        print(seed, name, json.dumps(found[name]), flush=True)

    for steps in (16, 8, 4, 2, 1):
        look(f"teacher {steps}", demo / "pipeline", steps, 2 * steps)
    options = [f"--{option}" for option in args.options]
    stages = halved(demo, out, seed, args.scale, options)
    look("guidance 16", stages["guidance"], 16, 16)
    for steps in (8, *STEPS):
        look(f"progressive {steps}", stages[f"to_{steps}"], steps, steps)
    for method in ALONE:
        length = getattr(args, method)
        for steps in STEPS if length else ():
            folder = alone(method, demo, out, seed, steps, length, stages["guidance"], options)
            look(f"{method} {steps}", folder, steps, steps)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="a finished demo")
    parser.add_argument("--out", type=Path, default=Path("runs/distil"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--prompts", type=number("prompts"), default=280, help="that each model makes a clip of")
    parser.add_argument("--scale", type=float, default=1.0, help="of the lengths of the recipe's stages")
    parser.add_argument("--consistency", type=number("step"), default=600, help="steps of each such run; 0: none")
    parser.add_argument("--dmd", type=number("step"), default=1500, help="the same: one in five is the student's")
    parser.add_argument("options", nargs="*", help="of training, such as optim.lr=5e-4")
    args = parser.parse_args()
    demo, out, found = args.demo.resolve(), args.out.resolve(), {}
    for seed in args.seeds:
        place = out / f"seed{seed}"
        place.mkdir(parents=True, exist_ok=True)
        with torch.no_grad():
            found[seed] = measure(args, demo, place, seed)
    settings = {name: getattr(args, name) for name in ("prompts", "scale", "consistency", "dmd", "options")}
    text = json.dumps({"settings": settings, "seeds": found}, indent=1)
    (out / "distil.json").write_text(text + "\n", encoding="utf-8")
    print(f"\n| {len(args.seeds)} seeds, lowest to highest | passes | both | strict | distance to the teacher's end |")
    print("|---|---|---|---|---|")
    for name, first in found[args.seeds[0]].items():
        cells = []
        for figure in ("both", "strict", "end_distance"):
            values = [of_seed[name][figure] for of_seed in found.values()]
            cells.append(f"{min(values):.3f} to {max(values):.3f}")
        print(f"| {name} | {first['passes']} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
