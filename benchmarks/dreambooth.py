"""DreamBooth on the demo's model: a drawn glyph from a few clips, with and without prior preservation.

    python benchmarks/dreambooth.py --demo runs/demo --out runs/dreambooth

For each seed it draws the glyph's clips, trains the demo's model on them by configs/dit/demo_dreambooth.yaml (all its
weights with a prior, all without, a LoRA with a prior; the class clips are made once a seed), and scores each, and the
model as it was, on --prompts prompts of the glyph in motions that its clips never show, and on --digits prompts of
digits. The glyph is read by a judge of its own, which is trained to tell it from the digits. OUT/dreambooth.json has
all figures; what is there already is not made again. Some 15 minutes a variant on two idle cores in fp32.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from torch import Tensor

from latentvid.demo import glyph
from latentvid.demo import judge as digit_judge
from latentvid.demo.digits import SIZES, prompts
from latentvid.demo.judge import Judge
from latentvid.limits import number
from latentvid.pipelines.arguments import Lora
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Sampling

ROOT = Path(__file__).resolve().parents[1]
WORD = "zorp"
DRAWN = 150, 40  # glyphs that its judge learns from, and that are held out
CHUNK = 20  # clips that are sampled together
VARIANTS = {
    "prior": (),
    "no prior": (  # as in a file without the section
        *("--prior.prompts_file=null", "--prior.clips=100", "--prior.share=0.5", "--prior.guidance=null"),
        "--prior.target=clips",
    ),
    "prior, LoRA": ("--adapter.kind=lora", "--adapter.rank=16", "--optim.lr=3e-3"),
}


def run(*words: object) -> None:
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True)


def train(demo: Path, out: Path, name: str, seed: int, steps: int, *options: str) -> Path:
    """A run of the recipe; it goes on where it was stopped."""
    folder = out / name.replace(", ", "_").replace(" ", "_").lower()
    run(
        *("train/train_dit.py", "configs/dit/demo_dreambooth.yaml", f"--run.dir={folder}", f"--run.seed={seed}"),
        *(f"--init={demo / 'pipeline'}", f"--vae={demo / 'pipeline/vae'}", f"--text_encoder={demo / 't5'}"),
        *(f"--data.manifest={out / 'glyph/train.jsonl'}", "--samples.every=0", "--log.trackers=[]"),
        *(f"--train.steps={steps}", *options),
    )
    return folder


def judge_of(out: Path, steps: int, seed: int) -> Judge:
    """It tells the glyph from the digits."""
    file = out / "judge.safetensors"
    if not file.exists():
        drawn = tuple(glyph.drawings(count, seed=1000 + i) for i, count in enumerate(DRAWN))
        right = digit_judge.train(file, steps=steps, seed=seed, more=drawn)
        print(f"{file}: {right:.4f} of held-out images read right", flush=True)
    return Judge.load(file)


def sampled(pipeline: LatentVideoPipeline, texts: list[str], seed: int) -> list[Tensor]:
    """A clip a prompt, in the demo's sizes in turn; the noise is the same for all models."""
    sizes, clips = [SIZES[i % len(SIZES)] for i in range(len(texts))], []
    for start in range(0, len(texts), CHUNK):
        part = slice(start, start + CHUNK)
        heights, widths = zip(*sizes[part], strict=True)
        words = {"num_frames": glyph.FRAMES, "height": heights, "width": widths, "seed": seed + start}
        clips += pipeline(texts[part], **words, sampling=Sampling(progress=False), output_type="uint8").frames
    return clips


def scored(pipeline: LatentVideoPipeline, judge: Judge, args: argparse.Namespace, seed: int) -> dict[str, dict]:
    subject = glyph.prompts(args.prompts, WORD, clips=args.clips, seed=seed)
    others = prompts(args.digits, heldout=False, seed=seed)
    clips = sampled(pipeline, [text for _, text in subject], 100_000 * seed)
    found = {"glyph": glyph.score(clips, [shown for shown, _ in subject], judge)}
    clips = sampled(pipeline, [text for _, text in others], 100_000 * seed + 50_000)
    return found | {"digits": digit_judge.score(clips, [label for label, _ in others], judge)}


def measure(args: argparse.Namespace, demo: Path, out: Path, seed: int) -> dict[str, dict]:
    if not (out / "glyph/train.jsonl").exists():
        run("-m", "latentvid.demo.glyph", out / "glyph", "--clips", args.clips, "--word", WORD, "--seed", seed)
    judge, found = judge_of(out, args.judge_steps, seed), {}
    lines = (out / "glyph/class.txt").read_text(encoding="utf-8").splitlines()
    (out / "class.txt").write_text("\n".join(lines[: args.class_clips]) + "\n", encoding="utf-8")
    prior = (f"--prior.prompts_file={out / 'class.txt'}", f"--prior.dir={out / 'class'}")
    prior += (f"--prior.clips={args.class_clips}",)
    for name in ("as it was", *args.variants):
        file = out / f"{name}.json"
        if not file.exists():
            if name == "as it was":
                pipeline = load_pipeline(demo / "pipeline", "cpu")
            else:
                given = VARIANTS[name] if name == "no prior" else (*prior, *VARIANTS[name])
                given = (*given, *(f"--{option}" for option in args.set))
                folder = train(demo, out, name, seed, args.steps, *given)
                lora = [Lora(folder / "lora")] if (folder / "lora").is_dir() else []
                pipeline = load_pipeline(demo / "pipeline" if lora else folder / "pipeline", "cpu", lora=lora)
            file.write_text(json.dumps(scored(pipeline, judge, args, seed), indent=1) + "\n", encoding="utf-8")
        found[name] = json.loads(file.read_text(encoding="utf-8"))
        print(seed, name, json.dumps(found[name]), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="a finished demo")
    parser.add_argument("--out", type=Path, default=Path("runs/dreambooth"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--steps", type=number("train.steps"), default=1000, help="of each run")
    parser.add_argument("--clips", type=number("pairs"), default=5, help="of the glyph")
    parser.add_argument("--class-clips", type=number("prior.clips"), default=600)
    parser.add_argument("--prompts", type=number("pairs"), default=100, help="of the glyph")
    parser.add_argument("--digits", type=number("pairs"), default=140, help="prompts of digits")
    parser.add_argument("--judge-steps", type=number("train.steps"), default=600)
    parser.add_argument("--set", nargs="*", default=[], help="further options of training, such as optim.lr=1e-3")
    args = parser.parse_args()
    demo, out = args.demo.resolve(), args.out.resolve()
    found = {}
    for seed in args.seeds:
        place = out / f"seed{seed}"
        place.mkdir(parents=True, exist_ok=True)
        found[seed] = measure(args, demo, place, seed)
    settings = {name: value for name, value in vars(args).items() if name not in ("demo", "out", "seeds", "variants")}
    text = json.dumps({"settings": settings, "seeds": found}, indent=1)
    (out / "dreambooth.json").write_text(text + "\n", encoding="utf-8")
    print(f"\n| {len(args.seeds)} seeds, lowest to highest | glyph | glyph and direction | digits: both |")
    print("|---|---|---|---|")
    figures = (("glyph", "glyph"), ("glyph", "both"), ("digits", "both"))
    for name in ("as it was", *args.variants):
        each = [[of_seed[name][kind][figure] for kind, figure in figures] for of_seed in found.values()]
        cells = [f"{min(values):.3f} to {max(values):.3f}" for values in zip(*each, strict=True)]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
