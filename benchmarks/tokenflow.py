"""TokenFlow on the demo's digits: clips edited by a model of pictures, beside the same model frame by frame.

    python benchmarks/tokenflow.py --demo runs/demo --out runs/tokenflow

Held-out clips of 17 frames, in each of which the digit is to be another one. The model never saw a clip: without
--model it is made here, on pictures of digits, by the parts of benchmarks/motion.py. With --fine-steps it goes on from
there with tokens of 4 pixels instead of 8.

Scored by the demo's judge: the digit is the one asked for; the path stays, within 1.5 pixels in the mean. Over time,
with the optical flow of the clip as it was: warping error (evaluation/motion), and flicker beyond the motion, the mean
absolute difference 0..255 of neighbouring frames where one is warped to the other. Flicker without the warping is there
too, which motion alone makes large. OUT/tokenflow.json has all, OUT/tokenflow.png some of the clips. What is in OUT
already is not made again.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import replace
from pathlib import Path

import torch
from looks import held
from motion import make_parts, train
from tasks import NEAR, apart, real_clips
from torch import Tensor

from latentvid.demo.digits import Label
from latentvid.demo.judge import Judge
from latentvid.errors import user_errors
from latentvid.evaluation.motion.flow import Flow, open_flow, visible, warp
from latentvid.evaluation.motion.scores import warping_error
from latentvid.evaluation.sheet import Row, draw_sheet
from latentvid.limits import number
from latentvid.pipelines.defaults import SOURCE_ATTENTION
from latentvid.pipelines.edits import edit
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Sampling
from latentvid.pipelines.token_flow import BLENDS, token_flow

METHODS = {  # keyframes to each side that one attends to
    "as it was": None,
    "frame by frame": None,
    "tokenflow": 1,
    "tokenflow, reach 2": 2,
    "tokenflow, all keyframes": 10**6,
}
Pair = tuple[Tensor, Tensor]


def image_model(args: argparse.Namespace, demo: Path, out: Path) -> Path:
    """A pipeline whose model learned pictures of digits: with tokens of 8 pixels, and then with such of 4."""
    make_parts(args, demo, out)
    train(demo, out, out / "coarse", "pictures", 0, args.coarse_steps)
    if not args.fine_steps:
        return out / "coarse/pipeline"
    begin = (f"--init={out / 'coarse/pipeline'}", "--init_partial=true", "--optim.lr=1.5e-3")
    train(demo, out, out / "fine", "pictures", 0, args.fine_steps, "--model.patch=1", "--data.packs_per_step=1", *begin)
    return out / "fine/pipeline"


def edited(
    args: argparse.Namespace, pipeline: LatentVideoPipeline, method: str, clip: Tensor, source: str, target: str
) -> Tensor:
    guidance = replace(pipeline.guidance(), scale=args.guidance, interval=(0.0, args.guided_below))
    sampling = Sampling(steps=args.steps, progress=False, guidance=guidance)
    if method == "as it was":
        return clip
    if method.startswith("tokenflow"):
        how = {"reach": METHODS[method], "every": args.keyframe_every, "blend": args.blend}
        how["source_attention"] = args.source_attention
        return token_flow(pipeline, clip, source, target, args.strength, sampling=sampling, **how)
    frames = [frame[None] for frame in clip]
    texts = [source] * len(frames), [target] * len(frames)
    return torch.cat(edit(pipeline, frames, *texts, "inversion", args.strength, sampling=sampling))


def flows_of(flow: Flow, clip: Tensor) -> list[Pair]:
    """Of each two neighbouring frames the flow from one to the other, and back."""
    return [(flow(a, b), flow(b, a)) for a, b in zip(clip[:-1], clip[1:], strict=True)]


def over_time(made: Tensor, flows: list[Pair]) -> dict[str, float]:
    """Warping error and flicker of a clip uint8 [F,H,W,3] by the flows of another one."""
    found = {"warping_error": 0.0, "beyond_motion": 0.0, "flicker": 0.0}
    for a, b, (forward, backward) in zip(made[:-1], made[1:], flows, strict=True):
        found["warping_error"] += warping_error(a, b, forward, backward)
        a, b = a.float(), b.float()
        seen, shown = warp(b, forward)[0], visible(forward, backward)
        found["beyond_motion"] += float((seen - a)[shown].abs().mean() if shown.any() else (seen - a).abs().mean())
        found["flicker"] += float((b - a).abs().mean())
    return {name: value / len(flows) for name, value in found.items()}


def scores_of(judge: Judge, real: Tensor, made: Tensor, target: int) -> dict[str, float]:
    seen, truth = judge(made), judge(real)
    off = apart(seen.path, truth.path)
    digit, path = seen.digit == target, off < NEAR
    frames = sum(one == target for one in seen.frame_digits) / len(seen.frame_digits)
    return {
        "digit": digit,
        "path": path,
        "both": digit and path,
        "frames": frames,
        "colour": seen.colour == truth.colour,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="a finished demo")
    parser.add_argument("--out", type=Path, default=Path("runs/tokenflow"))
    parser.add_argument("--model", type=Path, help="pipeline of an image model (without it: one is made)")
    parser.add_argument("--count", type=number("max_clips"), default=16, help="clips")
    parser.add_argument("--steps", type=number("steps"), default=8)
    parser.add_argument("--strength", type=float, default=0.95)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--guided-below", type=float, default=0.7, help="noise level")
    parser.add_argument("--keyframe-every", type=number("keyframe_every"), default=2)
    parser.add_argument("--blend", choices=tuple(BLENDS), default="linear")
    parser.add_argument("--source-attention", type=float, default=SOURCE_ATTENTION, help="share of the steps")
    parser.add_argument("--vae-steps", type=number("train.steps"), default=900)
    parser.add_argument("--pictures", type=number("pairs"), default=3000)
    parser.add_argument("--coarse-steps", type=number("train.steps"), default=900)
    parser.add_argument("--fine-steps", type=int, default=0)
    args = parser.parse_args()
    demo, out = args.demo.resolve(), args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    pipeline = load_pipeline(args.model or image_model(args, demo, out), "cpu")
    judge, flow, clips = Judge.load(), open_flow(None, torch.device("cpu")), real_clips(demo, args.count)
    rng = random.Random(0)
    targets = [rng.choice([digit for digit in range(10) if digit != label.digit]) for _, label, _ in clips]
    settings = {n: v for n, v in vars(args).items() if n not in ("demo", "out", "model", "count")}
    found, rows = {}, []
    for i, ((real, label, _), target) in enumerate(zip(clips, targets, strict=True)):
        found[i], strips = of_clip(args, pipeline, judge, flow, out / f"clip-{i:03d}", real, label, target)
        both = bool(found[i]["tokenflow"]["both"])
        rows.append(
            Row(strips, f"{label.colour} {label.digit} -> {target}\nas it was, frame by frame, TokenFlow", both)
        )
        print(i, json.dumps(found[i]["tokenflow"]), flush=True)
    means = {}
    for method in METHODS:
        each = [one_clip[method] for one_clip in found.values()]
        means[method] = {name: sum(float(one[name]) for one in each) / len(each) for name in each[0]}
    result = {"clips": len(clips), "settings": settings, "flow": flow.method, "means": means}
    (out / "tokenflow.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    draw_sheet(rows[:8], out / "tokenflow.png", columns=9, zoom=3)
    for method in METHODS:
        print(method, json.dumps({name: round(value, 5) for name, value in means[method].items()}), flush=True)


def of_clip(
    args: argparse.Namespace,
    pipeline: LatentVideoPipeline,
    judge: Judge,
    flow: Flow,
    place: Path,
    real: Tensor,
    label: Label,
    target: int,
) -> tuple[dict[str, dict[str, float]], list[Tensor]]:
    """The scores of each method for a clip, and what it made, which stays in files beside `place`."""
    flows, strips, found = flows_of(flow, real), [], {}
    for method in METHODS:
        file = place.with_name(f"{place.name} {method}.pt")
        began = time.process_time()
        if not file.exists():
            words = (f"a {label.colour} {digit}" for digit in (label.digit, target))
            torch.save(edited(args, pipeline, method, real, *words), file)
        strips.append(torch.load(file, weights_only=True))
        seconds = {"cpu_s": time.process_time() - began}
        found[method] = held(
            place.with_name(f"{place.name} {method}.json"),
            lambda made=strips[-1], seconds=seconds: (
                scores_of(judge, real, made, target) | over_time(made, flows) | seconds
            ),
        )
    return found, strips


if __name__ == "__main__":
    with user_errors():
        main()
