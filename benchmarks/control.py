"""A path as control signal on the demo's model: a ControlNet, and reference tokens, trained alike.

    python benchmarks/control.py --demo runs/demo --out runs/control

It draws, for each training clip of the demo, a clip of a small white dot that follows the digit's centre of mass. For
each seed it trains the demo's model on them by configs/dit/demo_control.yaml as a ControlNet, whose base stays as it
is, and by the same steps, samples and file with the dot as reference tokens (`place: aligned`), all weights trained.
Both, and the model as it was, make a clip for each of --prompts new prompts with paths of held-out digits. Scored are
the share of clips whose centre of mass is within 1 pixel of the asked path, and whose digit is as prompted;
OUT/control.json has all figures with the seconds of training and of sampling. What is there already is not made again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from torch import Tensor

from latentvid.demo.judge import Judge
from latentvid.demo.paths import FRAMES, Asked, asked_clips, dot, score, write_paths
from latentvid.diffusion.guidance import Guidance
from latentvid.limits import number
from latentvid.pipelines.arguments import ControlNet
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Sampling

ROOT = Path(__file__).resolve().parents[1]
CHUNK = 20  # clips that are sampled together
TOKENS = 1024  # of a pack; with references as many samples have twice as many
VARIANTS = {
    "as it was": None,
    "ControlNet": (f"--data.tokens_per_pack={TOKENS}",),
    "reference tokens": (
        f"--data.tokens_per_pack={2 * TOKENS}",
        "--data.references={path: {column: control, place: aligned, dropout: 0.0}}",
        "--controlnet.every=null",
    ),
}


def train(demo: Path, manifest: Path, folder: Path, args: argparse.Namespace, seed: int, options: tuple) -> float:
    """A run of the recipe, and the seconds of its steps, encoders and all; it goes on where it was stopped."""
    words = (
        *("train/train_dit.py", "configs/dit/demo_control.yaml", f"--run.dir={folder}", f"--run.seed={seed}"),
        *(f"--init={demo / 'pipeline'}", f"--vae={demo / 'pipeline/vae'}", f"--text_encoder={demo / 't5'}"),
        *(
            f"--data.manifest={manifest}",
            "--log.trackers=[]",
            f"--train.steps={args.steps}",
            *options,
            *(f"--{option}" for option in args.set),
        ),
    )
    started = time.perf_counter()
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True)
    return time.perf_counter() - started


def sampled(
    pipeline: LatentVideoPipeline, asked: list[Asked], seed: int, shown: bool, guidance: float
) -> tuple[list[Tensor], float]:
    """A clip each, and seconds a clip; the noise is the same for all variants."""
    clips, started = [], time.perf_counter()
    sampling = Sampling(progress=False, large=True, guidance=Guidance(scale=guidance))
    for start in range(0, len(asked), CHUNK):
        part = asked[start : start + CHUNK]
        heights, widths = zip(*(one.size for one in part), strict=True)
        words = {"num_frames": FRAMES, "height": heights, "width": widths, "seed": seed + start}
        if shown:
            words["references"] = [{"path": dot(one.path, one.size)} for one in part]
        prompts = [one.prompt for one in part]
        clips += pipeline(prompts, **words, sampling=sampling, output_type="uint8").frames
    return clips, (time.perf_counter() - started) / len(asked)


def measure(name: str, demo: Path, out: Path, manifest: Path, args: argparse.Namespace, seed: int) -> dict[str, float]:
    pipeline, seconds = demo / "pipeline", 0.0
    nets = []
    if (options := VARIANTS[name]) is not None:
        folder = out / name.replace(" ", "_").lower()
        seconds = train(demo, manifest, folder, args, seed, options)
        pipeline, nets = (
            (pipeline, [ControlNet(folder / "controlnet")])
            if name == "ControlNet"
            else (
                folder / "pipeline",
                [],
            )
        )
    asked = asked_clips(args.prompts, seed)
    loaded = load_pipeline(pipeline, "cpu", control=nets)
    clips, each = sampled(loaded, asked, 100_000 * seed, options is not None, args.guidance)
    return {**score(clips, asked, Judge.load()), "training_s": seconds, "sampling_s": each}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="a finished demo")
    parser.add_argument("--out", type=Path, default=Path("runs/control"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--steps", type=number("train.steps"), default=1600, help="of each run")
    parser.add_argument("--prompts", type=number("pairs"), default=100, help="each with a path")
    parser.add_argument("--guidance", type=float, default=2.0, help="scale of guidance by the text in sampling")
    parser.add_argument("--set", nargs="*", default=[], help="further options of training, such as optim.lr=1e-3")
    args = parser.parse_args()
    demo, out = args.demo.resolve(), args.out.resolve()
    manifest = out / "paths/train.jsonl"
    if not manifest.is_file():
        write_paths(demo / "data", manifest.parent)
    found: dict[str, dict[int, dict[str, float]]] = {name: {} for name in args.variants}
    for seed in args.seeds:
        place = out / f"seed{seed}"
        place.mkdir(parents=True, exist_ok=True)
        for name in args.variants:
            file = place / f"{name}.json"
            if not file.exists():
                file.write_text(json.dumps(measure(name, demo, place, manifest, args, seed), indent=1) + "\n", "utf-8")
            found[name][seed] = json.loads(file.read_text("utf-8"))
            print(seed, name, json.dumps(found[name][seed]), flush=True)
    settings = {name: value for name, value in vars(args).items() if name not in ("demo", "out", "seeds", "variants")}
    text = json.dumps({"settings": settings, "variants": found}, indent=1)
    (out / "control.json").write_text(text + "\n", "utf-8")
    figures = ("path", "frames", "digit", "distance", "training_s", "sampling_s")
    print(f"\n| {len(args.seeds)} seeds, lowest to highest | {' | '.join(figures)} |\n|{'---|' * (len(figures) + 1)}")
    for name, of_seeds in found.items():
        cells = [sorted(of_seed[figure] for of_seed in of_seeds.values()) for figure in figures]
        print(f"| {name} | {' | '.join(f'{cell[0]:.3g} to {cell[-1]:.3g}' for cell in cells)} |")


if __name__ == "__main__":
    main()
