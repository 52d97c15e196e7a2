"""From images to video on the demo's digits: inflation beside training from scratch, a motion module in another look.

    python benchmarks/motion.py --demo runs/demo --out runs/motion

An autoencoder by the demo's recipe, but with a latent frame for each frame, so that pictures and frames of clips have
latents of one kind. For each seed:
- images: an image model by the demo's recipe, on pictures of digits alone, whose captions say nothing of motion.
- video, on the demo's clips, in equal CPU-seconds: the inflated model "from scratch", "inflated" from the image model,
  and "temporal": its temporal blocks alone. A step's CPU-seconds are measured by short runs of each; from scratch has
  --steps, the others as many as these seconds give. Scored by the demo's judge on new prompts.
- portability: a LoRA of the image model learns a look from pictures. Scored by the judge of looks on new prompts: the
  LoRA alone asked for clips, the motion module beside the LoRA, and beside the image model.
OUT/motion.json has all figures; what is there already is not made again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
from looks import held, run
from torch import Tensor

from latentvid.data.video.writing import write_video
from latentvid.demo import looks
from latentvid.demo.digits import COLOURS, FPS, SIZES, Label, caption, prompts
from latentvid.demo.judge import Judge, score
from latentvid.limits import number
from latentvid.pipelines.arguments import Lora
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Sampling
from latentvid.training.monitor.metrics import read_metrics

CHUNK = 20  # clips that are sampled together
PILOT = 24  # steps of the short run that tells what a step costs, the first third left out
WAYS = {  # of video training: options beside the demo's recipe, and the option of its learning rate
    "from scratch": ((), "lr"),
    "inflated": (("--init={images}",), "tuned_lr"),
    "temporal": (("--init={images}", "--trainable=[^temporal]"), "temporal_lr"),
}


def write_pictures(folder: Path, look: str, count: int, seed: int) -> Path:
    """Pictures of digits in a look, with captions that name digit and colour; returns the manifest."""
    manifest = folder / "train.jsonl"
    if manifest.exists():
        return manifest
    rows = []
    for i in range(count):
        rng = np.random.default_rng((seed, 23, i))
        label, size = Label(int(rng.integers(10)), tuple(COLOURS)[rng.integers(len(COLOURS))]), SIZES[i % len(SIZES)]
        write_video(folder / f"{i:05d}.png", looks.clip_in_look(label, look, 1, size, rng, False), FPS)
        rows.append({"path": f"{i:05d}.png", "caption": caption(label, rng), "height": size[0], "width": size[1]})
    manifest.write_text("".join(json.dumps(row | {"frames": 1, "fps": 0.0}) + "\n" for row in rows), "utf-8")
    return manifest


def write_clips(demo: Path, manifest: Path) -> Path:
    """The demo's training clips without its pictures."""
    if not manifest.exists():
        rows = [json.loads(line) for line in (demo / "data/train.jsonl").read_text("utf-8").splitlines()]
        clips = [row | {"path": str(demo / "data" / row["path"])} for row in rows if row["frames"] > 1]
        manifest.write_text("".join(json.dumps(row) + "\n" for row in clips), "utf-8")
    return manifest


def make_parts(args: argparse.Namespace, demo: Path, out: Path) -> None:
    """The autoencoder, and the latents of pictures and clips."""
    run(
        *("vae/train_vae.py", "configs/vae/demo.yaml", f"--run.dir={out / 'vae_run'}", "--model.time_strides=[1,1]"),
        *(f"--data.manifest={demo / 'data/train.jsonl'}", "--data.tokens_per_pack=1400", "--validation.every=0"),
        *(f"--train.steps={args.vae_steps}", "--samples.every=0", "--log.trackers=[]"),
    )
    pictures = write_pictures(out / "pictures", "plain", args.pictures, 0)
    for name, manifest in (("pictures", pictures), ("clips", write_clips(demo, out / "clips.jsonl"))):
        if not (out / f"{name}_latents/cache.json").exists():
            run(
                *("vae/encode_latents.py", "--manifest", manifest, "--vae", out / "vae_run/vae"),
                *("--text-encoder", demo / "t5", "--patch", 2, "--out", out / f"{name}_latents"),
            )


def train(demo: Path, out: Path, folder: Path, data: str, seed: int, steps: int, *options: str) -> list[float]:
    """A run of the demo's recipe, gone on with where it was stopped; the CPU-seconds of its steps."""
    run(
        *("train/train_dit.py", "configs/dit/demo.yaml", f"--run.dir={folder}", f"--run.seed={seed}"),
        *(f"--vae={out / 'vae_run/vae'}", f"--text_encoder={demo / 't5'}", f"--data.latents={out / f'{data}_latents'}"),
        *(f"--train.steps={steps}", f"--checkpoint.every={steps}", "--samples.every=0", "--validation.every=0"),
        *("--validation.manifest=null", "--log.trackers=[]", "--data.workers=0", *options),
    )
    return [record["cpu_s"] for record in read_metrics(folder)]


def options_of(name: str, args: argparse.Namespace, images: Path) -> list[str]:
    words, rate = WAYS[name]
    return [
        "--model.attention=inflated",
        f"--optim.lr={getattr(args, rate)}",
        *(w.format(images=images) for w in words),
    ]


def sampled(pipeline: LatentVideoPipeline, texts: list[str], seed: int) -> list[Tensor]:
    """A clip a prompt, in the demo's sizes in turn; the noise is the same for all models."""
    sizes, clips = [SIZES[i % len(SIZES)] for i in range(len(texts))], []
    for start in range(0, len(texts), CHUNK):
        heights, widths = zip(*sizes[start : start + CHUNK], strict=True)
        words = {"num_frames": looks.FRAMES, "height": heights, "width": widths, "seed": seed + start}
        sampling = Sampling(progress=False, large=True)  # image models are asked for clips too
        clips += pipeline(texts[start : start + CHUNK], **words, sampling=sampling, output_type="uint8").frames
    return clips


def video(args: argparse.Namespace, demo: Path, out: Path, place: Path, seed: int, judge: Judge) -> dict[str, dict]:
    """The three ways in equal CPU-seconds."""
    images = place / "images/pipeline"
    asked = prompts(args.prompts, heldout=False, seed=700 + seed)
    labels, texts = [label for label, _ in asked], [text for _, text in asked]

    def price(name: str) -> dict[str, float]:
        found = train(demo, out, place / f"pilot {name}", "clips", seed, PILOT, *options_of(name, args, images))
        return {"cpu_s_a_step": statistics.median(found[PILOT // 3 :])}

    each = {name: held(place / f"price {name}.json", lambda name=name: price(name)) for name in WAYS}
    budget = args.steps * each["from scratch"]["cpu_s_a_step"]

    def make(name: str) -> dict[str, float]:
        steps = max(2, round(budget / each[name]["cpu_s_a_step"]))
        folder = place / name.replace(" ", "_")
        seconds = train(demo, out, folder, "clips", seed, steps, *options_of(name, args, images))
        base, module = (images, folder / "motion") if name == "temporal" else (folder / "pipeline", None)
        pipeline = load_pipeline(base, "cpu", motion=module)
        return score(sampled(pipeline, texts, 10**5 * seed), labels, judge) | {"steps": steps, "cpu_s": sum(seconds)}

    return {name: held(place / f"{name}.json", lambda name=name: make(name)) for name in WAYS}


def portability(
    args: argparse.Namespace, demo: Path, out: Path, place: Path, seed: int, judge: Judge
) -> dict[str, dict]:
    """The motion module beside a LoRA of the image model, that was trained on pictures in another look."""
    images, motion = place / "images/pipeline", place / "temporal/motion"
    asked = prompts(args.prompts, heldout=False, seed=800 + seed)
    labels, texts = [label for label, _ in asked], [text for _, text in asked]
    manifest = write_pictures(out / f"pictures_{args.look}", args.look, args.look_pictures, 1)
    targets = [f"--adapter.targets=[{','.join(args.lora_targets)}]"] if args.lora_targets else []
    run(
        *("train/train_dit.py", "configs/dit/demo_look.yaml", f"--run.dir={place / 'lora'}", f"--run.seed={seed}"),
        *(
            f"--init={images}",
            f"--vae={images / 'vae'}",
            f"--text_encoder={demo / 't5'}",
            f"--data.manifest={manifest}",
        ),
        *("--adapter.kind=lora", "--adapter.rank=8", *targets, f"--optim.lr={args.lora_lr}", "--samples.every=0"),
        *(f"--train.steps={args.look_steps}", "--log.trackers=[]", "--data.workers=0"),
    )
    lora = [Lora(place / "lora/lora/pytorch_lora_weights.safetensors")]
    ways = {"LoRA alone": (lora, None, args.look), "module and LoRA": (lora, motion, args.look)}
    ways["module alone"] = ([], motion, "plain")

    def make(name: str) -> dict[str, float]:
        beside, module, look = ways[name]
        pipeline = load_pipeline(images, "cpu", lora=beside, motion=module)
        return looks.score(sampled(pipeline, texts, 10**5 * seed), labels, [look] * len(labels), judge)

    return {name: held(place / f"{name}.json", lambda name=name: make(name)) for name in ways}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="a finished demo")
    parser.add_argument("--out", type=Path, default=Path("runs/motion"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--vae-steps", type=number("train.steps"), default=1400)
    parser.add_argument("--pictures", type=number("pairs"), default=3000, help="that the image model learns")
    parser.add_argument("--image-steps", type=number("train.steps"), default=1400)
    parser.add_argument("--steps", type=number("train.steps"), default=800, help="of video training from scratch")
    parser.add_argument("--lr", default="3e-3", help="from scratch")
    parser.add_argument("--tuned-lr", default="3e-3", help="of all weights of the inflated model")
    parser.add_argument("--temporal-lr", default="3e-3", help="of temporal blocks alone")
    parser.add_argument("--look", choices=[name for name in looks.LOOKS if name != "plain"], default="striped")
    parser.add_argument("--look-pictures", type=number("pairs"), default=600)
    parser.add_argument("--look-steps", type=number("train.steps"), default=300)
    parser.add_argument("--lora-lr", default="4e-3")
    parser.add_argument("--lora-targets", nargs="*", default=[], help="adapter.targets (the attentions)")
    parser.add_argument("--prompts", type=number("heldout"), default=140)
    parser.add_argument("--judge-steps", type=number("train.steps"), default=900)
    args = parser.parse_args()
    demo, out = args.demo.resolve(), args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    make_parts(args, demo, out)
    of_looks, found = looks.judge_of(out / "judge.safetensors", args.judge_steps), {}
    for seed in args.seeds:
        place = out / f"seed{seed}"
        place.mkdir(exist_ok=True)
        train(demo, out, place / "images", "pictures", seed, args.image_steps)
        found[seed] = {"video": video(args, demo, out, place, seed, Judge.load())}
        found[seed]["portability"] = portability(args, demo, out, place, seed, of_looks)
        print(seed, json.dumps(found[seed]), flush=True)
    settings = {name: value for name, value in vars(args).items() if name not in ("demo", "out", "seeds")}
    (out / "motion.json").write_text(json.dumps({"settings": settings, "seeds": found}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
