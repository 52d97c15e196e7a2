"""Which methods make autoencoder and transformer learn faster on real footage: equal CPU-seconds, one change at a time.

    python benchmarks/footage.py --clips DIR --out DATA --height 64
    python benchmarks/footage_methods.py --data DATA --t5 DIR --weights DIR --out runs/footage_methods
        [--only base "equivariance 0.5" ...] [--seconds 3600] [--seed 0]

Each method is options of vae/train_vae.py and of train/train_dit.py on top of the configurations `laptop` (64 lines, 17
frames). Both train for --seconds CPU-seconds, by one process on one core: how many steps these are follows from what
the first steps cost. The autoencoder is scored on sources that no training saw, the transformer by clips of
the captions of shots that it was not trained on (three each), against these. WEIGHTS holds lpips/, inception/ and i3d/.
OUT/NAME.json has the scores of each, OUT/table.md the table; what is there already is not made again.
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

from latentvid.errors import user_errors
from latentvid.tables import markdown_table

ROOT = Path(__file__).resolve().parents[1]
TIMED = 40  # steps that say what one costs; the first half of them is warm-up
SIZE = (64, 112)
VAE_SCORES = ("psnr", "ssim", "lpips", "rfvd")
DISTANCES = ("fvd", "kvd", "fid")
METHODS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # of the autoencoder, of the transformer
    "base": (("--loss.equivariance=0",), ()),
    "equivariance 0.25": (("--loss.equivariance=0.25",), ()),
    "equivariance 0.5": (("--loss.equivariance=0.5",), ()),
    "target x": (("--loss.equivariance=0",), ("--scheduler.target=x",)),
    "equivariance 0.5, target x": (("--loss.equivariance=0.5",), ("--scheduler.target=x",)),
}


def run(*words: object) -> None:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True, env=env)


def trained(script: str, config: str, folder: Path, seconds: float, seed: int, options: list[str]) -> dict:
    """A run of as many steps as cost the CPU-seconds: how many, and what they cost."""
    costs = None
    done = folder.with_name(f"{folder.name}.json")
    if done.exists():
        return json.loads(done.read_text(encoding="utf-8"))
    for part in ("timed", "whole"):
        target = folder if part == "whole" else folder.with_name(f"{folder.name}-timed")
        steps = TIMED if costs is None else max(TIMED, round(seconds / statistics.median(costs[TIMED // 2 : -1])))
        if part == "timed":
            shutil.rmtree(target, ignore_errors=True)
        run(
            *(script, config, f"--run.dir={target}", f"--run.seed={seed}", f"--train.steps={steps}"),
            *("--samples.every=0", "--log.trackers=[]", f"--checkpoint.every={steps}", *options),
        )
        lines = (target / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        costs = [line["cpu_s"] for line in map(json.loads, lines) if "cpu_s" in line]
        if part == "timed":
            shutil.rmtree(target)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    found = {"steps": steps, "seconds": sum(costs)}
    done.write_text(json.dumps(found) + "\n", encoding="utf-8")
    return found


def clips(args: argparse.Namespace, folder: Path) -> dict[str, dict]:
    """Distances of clips of the captions of the shots left out from these shots."""
    made, data = folder / "clips", args.data.absolute()
    run(
        *("inference/t2v.py", "--model", folder / "dit/pipeline", "--prompts", data / "prompts.jsonl"),
        *("--output", made, "--height", SIZE[0], "--width", SIZE[1], "--frames", 17, "--seed", args.seed),
    )
    run(
        *("-m", "latentvid.evaluation", made, "--real", data / "dit_validation.jsonl", "--frames", 16, "--drop-short"),
        *("--allow", "rate", "--size", *SIZE, "--max-real", 66, "--weights", args.weights.absolute()),
        *("--metrics", *DISTANCES, "motion", "flicker", "--out", folder / "evaluation"),
    )
    return json.loads((folder / "evaluation/scores.json").read_text(encoding="utf-8"))


def measured(args: argparse.Namespace, name: str) -> dict:
    out, data = args.out.absolute(), args.data.absolute()
    folder = out / f"{re.sub(r'[^a-z0-9.]+', '-', name)}-{args.seed}"
    file = folder.with_suffix(f"{folder.suffix}.json")
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    of_vae, of_dit = METHODS[name]
    # methods that share an autoencoder share its run
    word = re.sub(r"[^a-z0-9.]+", "-", " ".join(of_vae))
    vae, latents = out / f"vae{word}-{args.seed}", out / f"latents{word}-{args.seed}"
    tables = f"--data.manifest=[{data / 'train.jsonl'},{data / 'images.jsonl'}]"
    kept = [tables, "--data.fps=null", "--data.image_share=0.1", *of_vae]
    found = {"method": name, "seed": args.seed}
    found["vae"] = trained("vae/train_vae.py", "configs/vae/laptop.yaml", vae, args.seconds, args.seed, kept)
    weights = args.weights.absolute()
    if not (vae / "scores/scores.json").exists():
        run(
            *("vae/evaluate.py", "--vae", vae / "vae", data / "held_out", "--size", f"{SIZE[0]}x{SIZE[1]}"),
            *("--lpips", weights / "lpips", "--i3d", weights / "i3d/i3d_kinetics400.safetensors"),
            *("--mixed-precision", "no", "--out", vae / "scores"),
        )
    scores = json.loads((vae / "scores/scores.json").read_text(encoding="utf-8"))
    found["reconstruction"] = scores["mean"] | {"rfvd": scores["rfvd"]}
    if not latents.exists():
        run(
            *("vae/encode_latents.py", "--manifest", data / "dit_train.jsonl", "--vae", vae / "vae"),
            *("--text-encoder", args.t5.absolute(), "--patch", 2, "--max-frames", 17),
            *("--max-area", SIZE[0] * SIZE[1], "--out", latents),
        )
    words = [f"--vae={vae / 'vae'}", f"--text_encoder={args.t5.absolute()}", f"--data.latents={latents}"]
    words += [f"--data.max_area={SIZE[0] * SIZE[1]}", "--data.max_frames=17", "--validation.samples=24"]
    words += [f"--validation.manifest={data / 'dit_validation.jsonl'}", "--validation.every=400", *of_dit]
    found["dit"] = trained(
        "train/train_dit.py", "configs/dit/laptop.yaml", folder / "dit", args.seconds, args.seed, words
    )
    found["scores"] = clips(args, folder)["scores"]
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def table(rows: list[dict]) -> str:
    """A row a method."""
    cells = []
    for row in rows:
        means = row["reconstruction"]
        scores = row["scores"]
        cells.append(
            [row["method"], str(row["vae"]["steps"])]
            + [f"{value(means, key):.4g}" for key in VAE_SCORES]
            + [str(row["dit"]["steps"])]
            + [f"{value(scores, key):.4g}" for key in DISTANCES]
        )
    head = ["method", "steps of the autoencoder", *VAE_SCORES, "of the transformer", *DISTANCES]
    return markdown_table(head, cells)


def value(scores: dict, key: str) -> float:
    found = scores[key]
    return found["value"] if isinstance(found, dict) else found


@user_errors()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="what benchmarks/footage.py made")
    parser.add_argument("--t5", type=Path, required=True, help="folder of a text encoder of the T5 family")
    parser.add_argument("--weights", type=Path, required=True, help="folder of lpips/, inception/ and i3d/")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and the table")
    parser.add_argument("--only", nargs="+", help="names of methods, default: all", choices=METHODS, metavar="NAME")
    parser.add_argument("--seconds", type=float, default=3600.0, help="CPU-seconds of each of the two trainings")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in args.only or METHODS:
        rows.append(measured(args, name))
        (args.out / "table.md").write_text(table(rows) + "\n", encoding="utf-8")
        print(table(rows), flush=True)


if __name__ == "__main__":
    main()
