"""Super-resolution in space and time on the demo's digits, and the cascade of the demo's model with both behind it.

    python benchmarks/cascade.py --demo runs/demo --out runs/cascade

For each seed:
- vae: the demo's autoencoder with its decoder trained on digits of twice the size; its encoder, and so the latents,
  stay.
- ssr, tsr: the demo's transformer trained by configs/dit/demo_ssr.yaml (24 to 48 pixels) and demo_tsr.yaml (every
  second frame to all); direct: the same transformer trained on the large clips alone, for as many seconds as both
  together. With --ways channels tokens SSR is trained twice, with the same steps: the small clip as further input
  channels, and as reference tokens.
- real: held-out handwriting. PSNR, SSIM, judge's distance (and LPIPS with --weights) of SSR's clips from the large
  ones, beside bicubic and beside the autoencoder alone, at some levels of noise in what is seen; PSNR of the frames
  that TSR makes, beside the mean of their neighbours.
- cascade: 9 frames of 24 pixels by the demo's model -> TSR -> SSR: 17 frames of 48; the judge's scores (of clips
  brought back to 24 pixels) beside the base's own and the direct model's, with seconds and the networks' FLOPs a clip.
OUT/cascade.json has all figures, OUT/cascade.md a table of SSR, means over the seeds, OUT/seedN/*.png pictures; what
is there already is not made again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize as resample

from latentvid.data.degradations import resize
from latentvid.data.video.reading import read_frames
from latentvid.data.video.writing import write_video
from latentvid.demo.digits import SIZES, prompts
from latentvid.demo.judge import Judge, score
from latentvid.evaluation.pairs.fidelity import Fidelity
from latentvid.evaluation.pairs.lpips import Lpips, load_lpips
from latentvid.evaluation.pairs.scores import frame_distances
from latentvid.limits import number
from latentvid.models.flops import backbone_flops
from latentvid.packing import Reference, token_grid
from latentvid.pipelines.cascade import Cascade, Stage
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Sampling
from latentvid.pipelines.upscale import shown_shape
from latentvid.tables import markdown_table

ROOT = Path(__file__).resolve().parents[1]
NOISE = (0.0, 0.1, 0.2)  # levels in what the stages see
FEW, ALL = 9, 17  # frames of the base's clips, and of the cascade's
TEXT = 8  # text tokens of a prompt, for FLOPs
KINDS = {"channels": "ssr", "tokens": "ssr-tokens"}  # ways in which SSR sees the small clip


def run(*words: object) -> float:
    """Seconds that it took."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True)
    return time.perf_counter() - started


def held(file: Path, make: Callable[[], dict]) -> dict:
    """What `make` returns, from the file once it is there."""
    if not file.exists():
        file.write_text(json.dumps(make(), indent=1) + "\n", encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


# --- training ---------------------------------------------------------------------------------------------------------


def train(args: argparse.Namespace, demo: Path, out: Path, seed: int) -> dict[str, float]:
    """Seconds of each run; the pipelines are in OUT/{ssr,ssr-tokens,tsr,direct}/pipeline."""
    if not (out / "large/train.jsonl").exists():
        run("-m", "latentvid.demo.digits", out / "large", "--scale", 2, "--seed", seed, "--train", args.clips)
    seconds = {
        "vae": held(out / "vae.json", lambda: {"seconds": _decoder(args, demo, out, seed)})["seconds"],
    }
    for kind in (*map(KINDS.get, args.ways), "tsr"):
        seconds[kind] = held(out / f"{kind}.json", lambda k=kind: {"seconds": _stage(args, demo, out, seed, k)})[
            "seconds"
        ]
    ssr = seconds[KINDS[args.ways[0]]]

    def direct() -> dict[str, float]:
        """As many steps as fit into the seconds of both stages, by what some steps take."""
        probe, more = (_stage(args, demo, out / "probe", seed, "direct", steps) for steps in (20, 60))
        step = max(1e-3, (more - probe) / 40)
        steps = max(20, round((ssr + seconds["tsr"] - (probe - 20 * step)) / step))
        return {"seconds": _stage(args, demo, out, seed, "direct", steps), "steps": steps}

    return seconds | {"direct": held(out / "direct.json", direct)["seconds"]}


def _decoder(args: argparse.Namespace, demo: Path, out: Path, seed: int) -> float:
    return run(
        *("vae/train_vae.py", "configs/vae/demo.yaml", f"--run.dir={out / 'vae'}", f"--run.seed={seed}"),
        *(f"--init={demo / 'pipeline/vae'}", "--freeze_encoder=true", f"--data.manifest={out / 'large/train.jsonl'}"),
        *(
            f"--train.steps={args.vae_steps}",
            "--optim.lr=1e-3",
            "--data.tokens_per_pack=1920",
            "--data.packs_per_step=1",
        ),
        *("--validation.every=0", "--samples.every=0", "--log.trackers=[]"),
    )


def _stage(args: argparse.Namespace, demo: Path, out: Path, seed: int, kind: str, steps: int | None = None) -> float:
    folder = out / (kind if steps is None or kind == "direct" and out.name != "probe" else f"{kind}{steps}")
    large = out.parent if out.name == "probe" else out
    options = [f"--run.dir={folder}", f"--run.seed={seed}", f"--init={demo / 'pipeline'}", "--log.trackers=[]"]
    options += [f"--text_encoder={demo / 't5'}", f"--train.steps={steps or args.steps}", "--checkpoint.every=100000"]
    if kind == "tsr":
        options += [f"--vae={demo / 'pipeline/vae'}", f"--data.manifest={demo / 'data/train.jsonl'}"]
        return run("train/train_dit.py", "configs/dit/demo_tsr.yaml", *options)
    options += [f"--vae={large / 'vae/vae'}", f"--data.manifest={large / 'large/train.jsonl'}"]
    if kind != KINDS["channels"]:
        options += ["--model.condition_channels=none", "--init_partial=false"]
    if kind == KINDS["tokens"]:
        options += ["--data.references.low.place=aligned"]
    if kind == "direct":
        options += ["--data.references={}", "--inference.steps=16", "--inference.guidance=3.0"]
    return run("train/train_dit.py", "configs/dit/demo_ssr.yaml", *options)


# --- real clips -------------------------------------------------------------------------------------------------------


class Distance:
    """Of frames from those that they should equal: PSNR (dB), SSIM, the judge's distance, and LPIPS where there are
    weights.

    The judge's distance is made as LPIPS is (Zhang et al. 2018, equation 1), of the three layers of the judge's
    network over the whole frame, without learned weights of channels.
    """

    def __init__(self, judge: Judge, lpips: Lpips | None) -> None:
        self.net, self.lpips, self.sums = judge.net, lpips, {}
        self.fidelity, self.frames = Fidelity(), 0

    def add(self, made: Tensor, real: Tensor) -> None:
        self.fidelity.add(made, real)
        self.frames += len(made)
        found = {"judge's distance": self._judged(made, real)}
        if self.lpips is not None:
            found["lpips"] = frame_distances(self.lpips, made, real)
        for name, values in found.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(values.sum())

    def figures(self) -> dict[str, float]:
        means = {name: total / self.frames for name, total in self.sums.items()}
        return {"psnr": self.fidelity.psnr, "ssim": self.fidelity.ssim} | means

    @torch.no_grad()
    def _judged(self, *clips: Tensor) -> Tensor:
        each = [self._features(clip.float().mean(-1, keepdim=True).permute(0, 3, 1, 2) / 255) for clip in clips]
        return sum(((a - b) ** 2).sum(1).mean((1, 2)) for a, b in zip(*each, strict=True))

    def _features(self, x: Tensor) -> list[Tensor]:
        """[F,C,h,w] of each layer, of unit length in each place."""
        found = []
        for i, (conv, norm) in enumerate(zip(self.net.convs, self.net.norms, strict=True)):
            x = nnf.relu(norm(conv(nnf.max_pool2d(x, 2) if i else x)))
            found.append(nnf.normalize(x, dim=1))
        return found


def _stage_of(out: Path, kind: str) -> Stage:
    return Stage.of(load_pipeline(out / kind / "pipeline", "cpu"), kind)


def larger(args: argparse.Namespace, out: Path, judge: Judge, kind: str) -> dict:
    """SSR of that kind, with the seconds that sampling takes."""
    lpips = None if args.weights is None else load_lpips(args.weights / "lpips", "alex")
    stage, large = _stage_of(out, kind), _clips(out / "large/val.jsonl", args.real)
    vae, bicubic = Distance(judge, lpips), Distance(judge, lpips)
    for clip, _ in large:
        bicubic.add(_twice(resize(clip, 2)), clip)
        vae.add(stage.pipeline.decode(stage.pipeline.encode([clip]))[0], clip)
    found = {"bicubic": bicubic.figures(), "autoencoder alone": vae.figures()}
    for level in NOISE:
        each, rows, seconds = Distance(judge, lpips), [], 0.0
        for i, (clip, caption) in enumerate(large):
            small, started = resize(clip, 2), time.perf_counter()
            made = _through([stage], small, caption, i, level)
            seconds += time.perf_counter() - started
            each.add(made, clip)
            rows.append(torch.cat([_twice(small)[0], made[0], clip[0]], 1))
        cost = {"seconds a clip": seconds / len(large), "TFLOPs": _flops(stage.pipeline, ALL, 48, stage) / 1e12}
        found[f"noise {level:g}"] = each.figures() | cost
        _picture(out / f"{kind}-{level:g}.png", rows)
    return found


def smoother(args: argparse.Namespace, demo: Path, out: Path) -> dict[str, float]:
    """TSR: PSNR of the frames that it makes."""
    stage, found = _stage_of(out, "tsr"), {}
    few = [pair for pair in _clips(demo / "data/val.jsonl", args.real) if len(pair[0]) == ALL]
    mixed = Fidelity()
    for clip, _ in few:
        mixed.add(((clip[:-2:2].float() + clip[2::2].float()) / 2).round().to(torch.uint8), clip[1::2])
    found["mean of neighbours"] = mixed.psnr
    for level in NOISE:
        made = Fidelity()
        for i, (clip, caption) in enumerate(few):
            made.add(_through([stage], clip[::2], caption, i, level)[1::2], clip[1::2])
        found[f"noise {level:g}"] = made.psnr
    return found


def _clips(manifest: Path, count: int) -> list[tuple[Tensor, str]]:
    rows = [json.loads(line) for line in manifest.read_text().splitlines()][:count]
    return [(read_frames(manifest.parent / row["path"]), row["caption"]) for row in rows]


def _twice(clip: Tensor) -> Tensor:
    size = [2 * side for side in clip.shape[1:3]]
    return resample(clip.permute(0, 3, 1, 2), size, InterpolationMode.BICUBIC, antialias=True).permute(0, 2, 3, 1)


def _through(stages: Sequence[Stage], clip: Tensor, prompt: str, seed: int, noise: float | None) -> Tensor:
    cascade = Cascade.of(stages, len(clip), tuple(clip.shape[1:3]), 8.0, [prompt])
    samplings = [Sampling(progress=False, reference_noise=noise)] * len(stages)
    return torch.cat(list(cascade.run(iter([clip]), prompt, seed=seed, samplings=samplings)))


def _picture(file: Path, rows: Sequence[Tensor]) -> None:
    """Of the clips that are square: bicubic, made and real, side by side."""
    square = [row for row in rows if row.shape[1] == 3 * row.shape[0]][:8]
    if square:
        write_video(file, torch.cat(square)[None], 1.0)


# --- the cascade ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def cascaded(args: argparse.Namespace, demo: Path, out: Path, seed: int, judge: Judge, kind: str) -> dict:
    """With SSR of that kind; beside the first one the base's longer clips, and the direct model's."""
    asked = prompts(args.prompts, heldout=False, seed=700 + seed)
    labels, texts = [label for label, _ in asked], [text for _, text in asked]
    base = load_pipeline(demo / "pipeline", "cpu")
    found = {}

    def sampled(pipeline: LatentVideoPipeline, frames: int, scale: int) -> tuple[list[Tensor], float]:
        started, clips = time.perf_counter(), []
        for i, text in enumerate(texts):
            height, width = (scale * side for side in SIZES[i % len(SIZES)])
            words = {"num_frames": frames, "height": height, "width": width, "seed": 10**5 * seed + i}
            clips += pipeline([text], **words, sampling=Sampling(progress=False), output_type="uint8").frames
        return clips, (time.perf_counter() - started) / len(texts)

    def note(name: str, clips: Sequence[Tensor], seconds: float, flops: float) -> None:
        small = [resize(clip, 2) if min(clip.shape[1:3]) >= 48 else clip for clip in clips]
        found[name] = score(small, labels, judge) | {"seconds a clip": seconds, "TFLOPs a clip": flops / 1e12}
        print(name, json.dumps(found[name]), flush=True)

    clips, first = sampled(base, FEW, 1)
    note("base, 9 frames of 24", clips, first, _flops(base, FEW, 24))
    tsr, ssr = stages = [_stage_of(out, each) for each in ("tsr", kind)]
    total = _flops(base, FEW, 24) + _flops(tsr.pipeline, ALL, 24, tsr) + _flops(ssr.pipeline, ALL, 48, ssr)
    for level in NOISE:
        started = time.perf_counter()
        made = [
            _through(stages, clip, text, 10**5 * seed + i, level)
            for i, (clip, text) in enumerate(zip(clips, texts, strict=True))
        ]
        seconds = first + (time.perf_counter() - started) / len(texts)
        note(f"cascade, 17 frames of 48, noise {level:g}", made, seconds, total)
        _picture(out / f"cascade-{kind}-{level:g}.png", [torch.cat([*clip[[0, 8, 16]]], 1) for clip in made])
    if kind == KINDS[args.ways[0]]:
        longer, seconds = sampled(base, ALL, 1)
        note("base, 17 frames of 24", longer, seconds, _flops(base, ALL, 24))
        direct = load_pipeline(out / "direct/pipeline", "cpu")
        clips, seconds = sampled(direct, ALL, 2)
        note("direct, 17 frames of 48", clips, seconds, _flops(direct, ALL, 48))
    return found


def _flops(pipeline: LatentVideoPipeline, frames: int, side: int, stage: Stage | None = None) -> float:
    """Of the network, for one clip with its pipeline's steps and guidance."""
    network = pipeline.transformer
    shown: list[Reference] = []
    if stage is not None and stage.model.role.as_tokens:
        few = pipeline.codec.latent_grid(*shown_shape(stage.model, frames, side, side))
        shown = [Reference(token_grid(few, network.patch), "aligned")]
    grid = token_grid(pipeline.latent_grid(frames, side, side), network.patch)
    passes = pipeline.config.steps * (1 if pipeline.config.guidance == 1 else 2)
    return passes * backbone_flops(network, [grid], [TEXT], [shown])


def table(args: argparse.Namespace, found: dict[int, dict]) -> str:
    """SSR, means over the seeds."""
    rows, keys = [], ["psnr", "ssim", "judge's distance", "lpips", "seconds a clip", "TFLOPs"]
    for way in args.ways:
        kind = KINDS[way]
        for name in next(iter(found.values()))["real"][kind]:
            each = [of_seed["real"][kind][name] for of_seed in found.values()]
            trained = [of_seed["seconds"][kind] for of_seed in found.values()] if name.startswith("noise") else []
            if trained or way == args.ways[0]:
                cells = [[figures[key] for figures in each if key in figures] for key in keys] + [trained]
                shown = [f"{sum(cell) / len(cell):.4g}" if cell else "" for cell in cells]
                rows.append([f"{way}, {name}" if trained else name, *shown])
    return markdown_table(["SSR", *keys, "seconds of training"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="a finished demo")
    parser.add_argument("--out", type=Path, default=Path("runs/cascade"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--clips", type=number("digits.train"), default=1500, help="large ones to train on")
    parser.add_argument("--vae-steps", type=number("train.steps"), default=300)
    parser.add_argument("--steps", type=number("train.steps"), default=800, help="of each stage")
    parser.add_argument("--real", type=number("pairs"), default=64, help="held-out clips")
    parser.add_argument("--prompts", type=number("heldout"), default=112)
    parser.add_argument(
        "--ways", nargs="+", choices=tuple(KINDS), default=["channels"], help="in which SSR sees the small clip"
    )
    parser.add_argument("--weights", type=Path, help="folder with lpips/alex.safetensors")
    args = parser.parse_args()
    demo, out, judge, found = args.demo.resolve(), args.out.resolve(), Judge.load(), {}
    for seed in args.seeds:
        place = out / f"seed{seed}"
        place.mkdir(parents=True, exist_ok=True)
        found[seed] = {"seconds": train(args, demo, place, seed), "real": {}, "cascade": {}}
        here, of_seed = found[seed], partial(cascaded, args, demo, place, seed, judge)
        for kind in map(KINDS.get, args.ways):
            here["real"][kind] = held(place / f"{kind}-real.json", partial(larger, args, place, judge, kind))
            here["cascade"][kind] = held(place / f"{kind}-scores.json", partial(of_seed, kind))
        here["real"]["tsr"] = held(place / "tsr-real.json", partial(smoother, args, demo, place))
        print(seed, json.dumps(here), flush=True)
    words = ("clips", "vae_steps", "steps", "real", "ways")
    settings = {name: value for name, value in vars(args).items() if name in words}
    (out / "cascade.json").write_text(json.dumps({"settings": settings, "seeds": found}, indent=1) + "\n")
    (out / "cascade.md").write_text(table(args, found) + "\n")
    print(table(args, found))


if __name__ == "__main__":
    main()
