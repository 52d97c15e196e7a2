"""Fine-tuning the demo's transformer to a new look: beside training from scratch, on the same few clips.

    python benchmarks/finetune.py --demo runs/demo --out runs/finetune

makes 300 clips (and 32 held-out ones) of the demo's digits in a look that the demo's have not (--look: their colours
inverted, or a purple background), encodes them by the demo's autoencoder and text encoder, tunes the demo's transformer
to them for 200 steps by `init`, and trains one from scratch for 1,000 by the demo's own recipe. OUT/finetune.json has
the held-out losses of both by step; that of step 0 is the old model's, measured by itself as well. About 25 minutes on
two idle cores in fp32. --scratch 0 leaves the long part out; a part that is there is not made again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

from latentvid.config.parsing import load_config
from latentvid.config.schema import DitConfig
from latentvid.data.video.reading import read_frames
from latentvid.data.video.writing import write_video
from latentvid.demo.digits import FPS, write_dataset
from latentvid.limits import number
from latentvid.pipelines.loading import load_pipeline
from latentvid.training.compute import settle
from latentvid.training.monitor.metrics import read_metrics
from latentvid.training.stages.dit.task import DitTask

ROOT = Path(__file__).resolve().parents[1]
LOOKS = {  # uint8 [F,H,W,3] -> the same
    "inverted": lambda video: 255 - video,
    "purple": lambda video: video.maximum(torch.tensor([96, 32, 128], dtype=torch.uint8)),  # a background
}


def write_look(folder: Path, look: str, train: int, val: int) -> None:
    """The demo's clips in another look, with manifests; digits, seeds and captions are new ones of its generator."""
    write_dataset(folder, train=train, val=val, seed=7)
    for path in sorted((folder / "clips").rglob("*.*")):
        write_video(path, LOOKS[look](read_frames(path)), FPS)


def run(*words: object) -> None:
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True)


def encode(demo: Path, manifest: Path, out: Path) -> None:
    if not (out / "cache.json").exists():
        run(
            *("vae/encode_latents.py", "--manifest", manifest, "--vae", demo / "vae_run/vae"),
            *("--text-encoder", demo / "t5", "--max-frames", 17, "--patch", 2, "--out", out),
        )


def train(out: Path, name: str, demo: Path, *options: str) -> Path:
    """A run of the demo's recipe on the clips of the new look; it goes on where it was stopped."""
    folder = out / name
    run(
        *("train/train_dit.py", "configs/dit/demo.yaml", f"--run.dir={folder}"),
        *(f"--vae={demo / 'vae_run/vae'}", f"--text_encoder={demo / 't5'}", f"--data.latents={out / 'latents'}"),
        *("--validation.manifest=null", f"--validation.latents={out / 'held_out'}", "--validation.every=100"),
        *("--validation.samples=32", "--samples.every=0", "--checkpoint.every=100", "--log.trackers=[]", *options),
    )
    return folder


def losses(folder: Path) -> dict[int, float]:
    """Of the averaged weights on held-out clips, by step."""
    return {r["step"]: r["loss"] for r in read_metrics(folder, "validation.jsonl") if r["weights"] == "ema"}


def old_loss(tuned: Path, pipeline: Path) -> float:
    """The pipeline's held-out loss, measured by itself: what the tuned run must begin with."""
    config, _ = settle(load_config(DitConfig, tuned / "config.yaml"), torch.device("cpu"))
    held_out = DitTask(config, torch.device("cpu")).held_out()
    return held_out.record(held_out.measure(load_pipeline(pipeline, "cpu").transformer, 0, 1))["loss"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="a finished demo")
    parser.add_argument("--out", type=Path, default=Path("runs/finetune"))
    parser.add_argument("--look", choices=sorted(LOOKS), default="inverted", help="of the new clips")
    parser.add_argument("--clips", type=number("digits.train"), default=300, help="to tune on")
    parser.add_argument("--steps", type=number("train.steps"), default=200, help="of the tuned run")
    parser.add_argument("--scratch", type=number("step"), default=1000, help="steps of the run from scratch; 0: none")
    parser.add_argument("--lr", type=number("lr"), default=3e-3, help="peak learning rate of the tuned run")
    arguments = parser.parse_args()
    demo, out = arguments.demo.resolve(), arguments.out.resolve()
    if not (out / "data/train.jsonl").exists():
        write_look(out / "data", arguments.look, arguments.clips, 32)
    encode(demo, out / "data/train.jsonl", out / "latents")
    encode(demo, out / "data/val.jsonl", out / "held_out")
    init = (f"--init={demo / 'pipeline'}", f"--optim.lr={arguments.lr}", "--optim.warmup=20")
    tuned = train(out, "tuned", demo, *init, f"--train.steps={arguments.steps}")
    found = {
        "look": arguments.look,
        "clips": arguments.clips,
        "parameters": json.loads((tuned / "run.json").read_text())["init"],
        "old model": old_loss(tuned, demo / "pipeline"),
        "tuned": losses(tuned),
    }
    if arguments.scratch:
        scratch = losses(train(out, "scratch", demo, f"--train.steps={arguments.scratch}"))
        best = min(found["tuned"].values())
        reached = [step for step, loss in scratch.items() if loss <= best]
        found |= {"scratch": scratch, "scratch reaches the tuned loss at step": min(reached, default=None)}
    (out / "finetune.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
