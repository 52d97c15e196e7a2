"""Looks on the demo's model: one that it learns, whole or by LoRA, and any that a picture shows (reference tokens).

    python benchmarks/looks.py --demo runs/demo --out runs/looks

For each seed two questions, on clips of digits that latentvid.demo.looks draws:
- learn: the demo's model is tuned on clips in the look "striped", all its weights and a LoRA of rank 8, by one recipe
  but for the learning rate. Gain: the share of clips with digit, direction and look as wanted, less that of the model
  as it was. Also: the LoRA at scale 0, and merged, beside the clips of the base and of the loaded LoRA, in fp32.
- style: the demo's model is tuned on clips in all looks, each shown a picture of another digit in its look, and then
  asked for digits in the looks of pictures of held-out handwriting.
Digit and look are read by a judge that is trained on them. OUT/looks.json has all figures; what is there already is not
made again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from latentvid.demo import looks
from latentvid.demo.digits import SIZES, prompts
from latentvid.demo.judge import Judge
from latentvid.limits import number
from latentvid.pipelines.arguments import Lora
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Sampling

ROOT = Path(__file__).resolve().parents[1]
LOOK = "striped"
CHUNK = 20  # clips that are sampled together
LORA = ("--adapter.kind=lora", "--adapter.rank=8")
LAYERS = ("query", "key_value", "out", "mlp.fc1_g", "mlp.fc1_x", "mlp.fc2")  # of the attentions and the MLPs


def run(*words: object) -> None:
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True)


def cached(demo: Path, data: Path) -> str:
    """The option that trains from these clips' latents, which are made once for all runs."""
    cache = data.with_name(f"{data.name}_latents")
    run(
        *("vae/encode_latents.py", "--manifest", data / "train.jsonl", "--out", cache),
        *("--vae", demo / "pipeline/vae", "--text-encoder", demo / "t5"),
    )
    return f"--data.latents={cache}"


def tune(demo: Path, folder: Path, seed: int, *options: str) -> float:
    """A run that goes on where it was stopped; seconds of this start."""
    started = time.perf_counter()
    run(
        *("train/train_dit.py", "configs/dit/demo_look.yaml", f"--run.dir={folder}", f"--run.seed={seed}"),
        *(f"--init={demo / 'pipeline'}", f"--vae={demo / 'pipeline/vae'}", f"--text_encoder={demo / 't5'}"),
        *("--samples.every=0", "--log.trackers=[]", *options),
    )
    return time.perf_counter() - started


def sampled(
    pipeline: LatentVideoPipeline,
    texts: list[str],
    seed: int,
    shown: Sequence[Tensor] | None = None,
    precision: torch.dtype | None = None,
) -> list[Tensor]:
    """A clip a prompt, in the demo's sizes in turn; the noise is the same for all models."""
    sizes, clips = [SIZES[i % len(SIZES)] for i in range(len(texts))], []
    for start in range(0, len(texts), CHUNK):
        part = slice(start, start + CHUNK)
        heights, widths = zip(*sizes[part], strict=True)
        words = {"num_frames": looks.FRAMES, "height": heights, "width": widths, "seed": seed + start}
        if shown is not None:
            words["references"] = [{"style": picture} for picture in shown[part]]
        clips += pipeline(
            texts[part], **words, sampling=Sampling(progress=False, precision=precision), output_type="uint8"
        ).frames
    return clips


def held(file: Path, make) -> dict:
    """What `make` returns, from the file once it is there."""
    if not file.exists():
        file.write_text(json.dumps(make(), indent=1) + "\n", encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def parameters(file: Path) -> int:
    with safe_open(file, "pt") as tensors:
        return sum(int(np.prod(tensors.get_slice(name).get_shape())) for name in tensors.keys())  # noqa: SIM118


def learn(args: argparse.Namespace, demo: Path, out: Path, seed: int, judge: Judge) -> dict[str, dict]:
    """A look by heart: whole and LoRA."""
    asked = prompts(args.prompts, heldout=False, seed=500 + seed)
    labels, texts = [label for label, _ in asked], [text for _, text in asked]

    def scores(clips: list[Tensor]) -> dict[str, float]:
        return looks.score(clips, labels, [LOOK] * len(clips), judge)

    def sample(folder: Path, lora: Sequence[Lora] = (), exact: bool = False) -> list[Tensor]:
        """exact: of some prompts, in fp32; bf16 rounds merged weights otherwise than a LoRA beside them."""
        words = (texts[:CHUNK], 10**5 * seed, None, torch.float32) if exact else (texts, 10**5 * seed)
        return sampled(load_pipeline(folder, "cpu", lora=list(lora)), *words)

    if not (out / "one/train.jsonl").exists():
        run("-m", "latentvid.demo.looks", out / "one", "--looks", LOOK, "--clips", args.clips, "--seed", seed)
    base = demo / "pipeline"
    found = {"as it was": held(out / "base.json", lambda: scores(sample(base)))}
    same = ("--data.manifest=null", cached(demo, out / "one"), f"--train.steps={args.steps}")

    def full() -> dict:
        seconds = tune(demo, out / "full", seed, *same, f"--optim.lr={args.lr}")
        return scores(sample(out / "full/pipeline")) | {"seconds": seconds}

    def lora() -> dict:
        targets = [f"--adapter.targets=[{','.join(args.lora_targets)}]"] if args.lora_targets else []
        seconds = tune(demo, out / "lora", seed, *same, *LORA, *targets, f"--optim.lr={args.lora_lr}")
        file = out / "lora/lora/pytorch_lora_weights.safetensors"
        merged = out / "merged"
        if not merged.exists():
            run("-m", "latentvid.adapters", "merge", base, "--lora", file, "--out", merged)
        pairs = {"merged": zip(sample(base, [Lora(file)], True), sample(merged, exact=True), strict=True)}
        pairs["off"] = zip(sample(base, exact=True), sample(base, [Lora(file, 0.0)], True), strict=True)
        far = {name: max(int((a.int() - b.int()).abs().max()) for a, b in each) for name, each in pairs.items()}
        share = parameters(file) / parameters(next((base / "transformer").glob("*.safetensors")))
        extra = {"seconds": seconds, "share of parameters": share, "largest difference of a pixel": far}
        return scores(sample(base, [Lora(file)])) | extra

    found |= {"full": held(out / "full.json", full), "LoRA": held(out / "lora.json", lora)}
    before = found["as it was"]["all"]
    gains = {name: found[name]["all"] - before for name in ("full", "LoRA")}
    return found | {"gain": gains | {"LoRA of full": gains["LoRA"] / gains["full"] if gains["full"] else None}}


def style(args: argparse.Namespace, demo: Path, out: Path, seed: int, judge: Judge) -> dict[str, float]:
    """Any look, by a picture that shows it."""
    asked = prompts(args.prompts, heldout=False, seed=600 + seed)
    labels, texts = [label for label, _ in asked], [text for _, text in asked]
    # `sampled` has the sizes in turn
    names = [tuple(looks.LOOKS)[i // len(SIZES) % len(looks.LOOKS)] for i in range(len(asked))]
    rng = np.random.default_rng((seed, 22))
    shown = [
        looks.picture(n, rng, other_than=label.digit, heldout=True) for n, label in zip(names, labels, strict=True)
    ]

    def make() -> dict[str, float]:
        if not (out / "all/train.jsonl").exists():
            run(
                *("-m", "latentvid.demo.looks", out / "all", "--seed", seed, "--clips", args.style_clips),
                *("--looks", *looks.LOOKS),
            )
        role = f"--data.references={{style: {{column: style, place: {args.style_place}, dropout: 0.0}}}}"
        seconds = tune(
            *(demo, out / "style", seed, f"--data.manifest={out / 'all/train.jsonl'}", role),
            *(f"--train.steps={args.style_steps}", f"--optim.lr={args.style_lr}", "--data.packs_per_step=2"),
        )
        clips = sampled(load_pipeline(out / "style/pipeline", "cpu"), texts, 10**5 * seed, shown)
        found = looks.score(clips, labels, names, judge) | {"seconds": seconds}
        for look in looks.LOOKS:
            part = [i for i, name in enumerate(names) if name == look]
            of_look = looks.score([clips[i] for i in part], [labels[i] for i in part], [look] * len(part), judge)
            found[look] = of_look["look and digit"]
        return found

    return held(out / "style.json", make)


PARTS = {"learn": learn, "style": style}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="a finished demo")
    parser.add_argument("--out", type=Path, default=Path("runs/looks"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--steps", type=number("train.steps"), default=1500, help="of each run on one look")
    parser.add_argument("--lr", default="5e-4", help="of all weights")
    parser.add_argument("--lora-lr", default="3e-3")
    parser.add_argument("--lora-targets", nargs="*", default=LAYERS, help="adapter.targets; none: the attentions")
    parser.add_argument("--clips", type=number("pairs"), default=3000, help="of one look")
    parser.add_argument("--style-steps", type=number("train.steps"), default=2800)
    parser.add_argument("--style-lr", default="2e-3")
    parser.add_argument("--style-place", choices=("aligned", "beside"), default="aligned", help="of the picture")
    parser.add_argument("--style-clips", type=number("pairs"), default=6000, help="of all looks")
    parser.add_argument("--prompts", type=number("heldout"), default=280)
    parser.add_argument("--judge-steps", type=number("train.steps"), default=900)
    args = parser.parse_args()
    demo, out = args.demo.resolve(), args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    judge, found = looks.judge_of(out / "judge.safetensors", args.judge_steps), {}
    for seed in args.seeds:
        place = out / f"seed{seed}"
        place.mkdir(exist_ok=True)
        found[seed] = {part: PARTS[part](args, demo, place, seed, judge) for part in args.parts}
        print(seed, json.dumps(found[seed]), flush=True)
    settings = {name: value for name, value in vars(args).items() if name not in ("demo", "out", "seeds")}
    (out / "looks.json").write_text(
        json.dumps({"settings": settings, "seeds": found}, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
