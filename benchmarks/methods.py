"""Which methods make the demo's transformer learn faster: one change at a time, equal CPU-seconds, the judge's scores.

    python benchmarks/methods.py --demo runs/demo --out runs/methods [--only base "muon, lr 1e-2" ...] [--seeds 0 1 2]
        [--seconds 300] [--prompts 140] [--heldout 140]

A method is options of train/train_dit.py on top of configs/dit/demo.yaml, trained by one process on the latents of a
finished demo; or options of vae/train_vae.py, by which an autoencoder is trained first and the clips are encoded anew.
How many steps the transformer gets follows from the CPU-seconds that its first ones take, so a method whose steps cost
more makes fewer. OUT/NAME-SEED.json has the scores of each, OUT/table.md the table of all that are there; what is there
already is not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from latentvid.demo.digits import SIZES, prompts
from latentvid.demo.judge import Judge
from latentvid.demo.scores import judged
from latentvid.errors import UserError, user_errors
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Sampling
from latentvid.tables import markdown_table

ROOT = Path(__file__).resolve().parents[1]
CHUNK = 28  # clips that are sampled together
TIMED = 40  # steps that say what one costs; the first half of them is warm-up
SCORES = ("digit", "direction", "both", "strict", "verb", "heldout_both", "heldout_strict")
AUTOENCODERS: dict[str, tuple[str, ...]] = {
    "autoencoder: no equivariance": ("--loss.equivariance=0",),
    "autoencoder: equivariance 0.5": ("--loss.equivariance=0.5",),
    "autoencoder: shortcuts": ("--model.shortcuts=true",),
    "autoencoder: shortcuts, no equivariance": ("--model.shortcuts=true", "--loss.equivariance=0"),
    "autoencoder: KL weight 1e-4": ("--loss.kl=1e-4",),
    "autoencoder: 16 channels": ("--model.latent_channels=16",),
    "autoencoder: crops of 20 pixels": ("--data.crop=20",),
    "autoencoder: crops of 16 pixels": ("--data.crop=16",),
}
METHODS: dict[str, tuple[str, ...]] = {
    "base": (),
    "adamw, lr 2e-3": ("--optim.lr=2e-3",),
    "adamw, lr 5e-3": ("--optim.lr=5e-3",),
    "adamw, weight decay 0.1": ("--optim.weight_decay=0.1",),
    "muon, lr 5e-3": ("--optim.name=muon", "--optim.lr=5e-3", "--optim.vector_lr=3e-3"),
    "muon, lr 1e-2": ("--optim.name=muon", "--optim.lr=1e-2", "--optim.vector_lr=3e-3"),
    "muon, lr 2e-2": ("--optim.name=muon", "--optim.lr=2e-2", "--optim.vector_lr=3e-3"),
    "moving average 0.97": ("--train.ema=0.97",),
    "levels: uniform": ("--timesteps.kind=uniform",),
    "levels: mean 0.3": ("--timesteps.mean=0.3",),
    "levels: mean 1.3": ("--timesteps.mean=1.3",),
    "min-SNR 1": ("--weighting.kind=min_snr", "--weighting.gamma=1"),
    "sigmoid -1": ("--weighting.kind=sigmoid", "--weighting.bias=-1"),
    "target v": ("--scheduler.target=v",),
    "target flow": ("--scheduler.target=flow",),
    "no caption dropped": ("--caption.dropout=0.0", "--inference.guidance=1"),
    "3 heads": ("--model.heads=3",),
    "12 heads": ("--model.heads=12",),
    "depth 4, width 216": ("--model.depth=4", "--model.width=216"),
    "depth 8, width 156": ("--model.depth=8", "--model.width=156"),
    "MLP of 2": ("--model.mlp_ratio=2",),
    "MLP of 4": ("--model.mlp_ratio=4",),
    "1 pack a step": ("--data.packs_per_step=1",),
    "3 packs a step": ("--data.packs_per_step=3",),
    "factorised attention": ("--model.attention=factorised", "--model.depth=6"),
} | dict.fromkeys(AUTOENCODERS, ())


def run(*words: object) -> None:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True, env=env)


def autoencoder(demo: Path, folder: Path, seed: int, options: tuple[str, ...]) -> tuple[Path, Path, float]:
    """An autoencoder and the demo's clips encoded by it, and its PSNR on held-out clips; the demo's own without
    options."""
    latents, vae = demo / "latents", demo / "pipeline/vae"
    measured = demo / "vae_run/validation.jsonl"
    if options:
        latents, vae, measured = folder / "latents", folder / "run/vae", folder / "run/validation.jsonl"
        run(
            *("vae/train_vae.py", "configs/vae/demo.yaml", f"--run.dir={folder / 'run'}", f"--run.seed={seed}"),
            *(f"--data.manifest={demo / 'data/train.jsonl'}", f"--validation.manifest={demo / 'data/val.jsonl'}"),
            *("--samples.every=0", "--log.trackers=[]", *options),
        )
        run(
            *("vae/encode_latents.py", "--manifest", demo / "data/train.jsonl", "--vae", vae),
            *("--text-encoder", demo / "t5", "--patch", 2, "--out", latents),
        )
    lines = map(json.loads, measured.read_text(encoding="utf-8").splitlines())
    return vae, latents, [line["psnr"] for line in lines if line["weights"] == "ema"][-1]


def train(demo: Path, parts: tuple[Path, Path], folder: Path, seed: int, steps: int, options: tuple[str, ...]):
    """CPU-seconds of each step. parts: the autoencoder and the latents."""
    vae, latents = parts
    run(
        *("train/train_dit.py", "configs/dit/demo.yaml", f"--run.dir={folder}", f"--run.seed={seed}"),
        *(f"--vae={vae}", f"--text_encoder={demo / 't5'}", f"--data.latents={latents}"),
        *("--samples.every=0", "--log.trackers=[]", f"--validation.manifest={demo / 'data/val.jsonl'}"),
        *(f"--train.steps={steps}", f"--validation.every={steps}", f"--checkpoint.every={steps}", *options),
    )
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line["cpu_s"] for line in map(json.loads, lines) if "cpu_s" in line]


def scored(folder: Path, seed: int, counts: dict[str, int], judge: Judge) -> dict[str, float]:
    """The judge's scores of the trained pipeline, by the sampling that it has as its own."""
    pipeline, found = load_pipeline(folder / "pipeline", "cpu"), []
    for kind, count in counts.items():
        asked, clips = prompts(count, heldout=kind == "heldout", seed=seed), []
        for start in range(0, count, CHUNK):
            part = range(start, min(start + CHUNK, count))
            heights, widths = zip(*(SIZES[i % len(SIZES)] for i in part), strict=True)
            texts = [asked[i][1] for i in part]
            noise = 100_000 * seed + 50_000 * (kind == "heldout") + start
            words = {"num_frames": 17, "height": heights, "width": widths, "seed": noise, "output_type": "uint8"}
            clips += pipeline(texts, **words, sampling=Sampling(progress=False)).frames
        found.append((clips, [label for label, _ in asked]))
    return judged(*found, judge)


def measured(args: argparse.Namespace, name: str, seed: int, judge: Judge) -> dict:
    demo, out = args.demo.absolute(), args.out.absolute()
    word = re.sub(r"[^\w.]+", "-", name)
    folder, file, timed = (out / f"{word}-{seed}{end}" for end in ("", ".json", "-timed"))
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    *parts, psnr = autoencoder(demo, out / f"{word}-{seed}-vae", seed, AUTOENCODERS.get(name, ()))
    plan = out / f"{word}-{seed}-step.json"
    if not plan.exists():
        shutil.rmtree(timed, ignore_errors=True)
        costs = train(demo, parts, timed, seed, TIMED, METHODS[name])[TIMED // 2 : -1]
        shutil.rmtree(timed)
        plan.write_text(json.dumps(statistics.median(costs)) + "\n", encoding="utf-8")
    steps = max(TIMED, round(args.seconds / json.loads(plan.read_text(encoding="utf-8"))))
    costs = train(demo, parts, folder, seed, steps, METHODS[name])
    validation = (folder / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    counts = {"seen": args.prompts, "heldout": args.heldout}
    found = {"method": name, "seed": seed, "steps": steps, "seconds": sum(costs), "psnr": psnr}
    found |= {"error in x": json.loads(validation[-1])["x_mse"]} | scored(folder, seed, counts, judge)
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # the pipeline is all that is looked at
    return found


def table(rows: list[dict]) -> str:
    """A row a method, of the means over its seeds."""
    found = []
    for name in dict.fromkeys(row["method"] for row in rows):
        of = [row for row in rows if row["method"] == name]

        def mean(key: str, of: list[dict] = of) -> float:
            return statistics.fmean(row[key] for row in of)

        cells = [f"{mean(key):.3f}" for key in ("error in x", *SCORES)]
        costs = [f"{mean('psnr'):.1f}", str(len(of)), f"{mean('steps'):.0f}", f"{mean('seconds'):.0f}"]
        found.append([name, *costs, *cells])
    words = [score.replace("heldout_", "held-out: ") for score in SCORES]
    return markdown_table(["method", "PSNR", "seeds", "steps", "CPU-seconds", "error in x", *words], found)


@user_errors()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, required=True, help="a finished demo")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and the table")
    parser.add_argument("--only", nargs="+", help="names of methods, default: all", choices=METHODS, metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--seconds", type=float, default=300.0, help="CPU-seconds of training each")
    parser.add_argument("--prompts", type=int, default=140, help="clips of pairs of digit and direction that it saw")
    parser.add_argument("--heldout", type=int, default=140, help="clips of pairs that it did not")
    args = parser.parse_args()
    if not (args.demo / "scores.json").is_file():
        raise UserError(f"{args.demo} is no finished demo: run make demo first")
    args.out.mkdir(parents=True, exist_ok=True)
    judge, rows = Judge.load(), []
    for seed in args.seeds:
        for name in args.only or METHODS:
            rows.append(measured(args, name, seed, judge))
            (args.out / "table.md").write_text(table(rows) + "\n", encoding="utf-8")
            print(table(rows), flush=True)


if __name__ == "__main__":
    main()
