"""Scores of every task that is conditioned on frames, on the demo's digits, by the demo's judge.

    make demo && make demo-tasks      which ends with
    .venv/bin/python benchmarks/tasks.py runs/demo runs/demo/tasks_run/pipeline --out runs/demo/tasks

Writes OUT/tasks.json and a contact sheet a task. RUN is a finished demo: its pipeline is the model that was trained
without given frames, and its held-out clips (digit images that no training saw) are what the tasks begin from.
"""

import argparse
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latentvid.data.video.reading import read_frames
from latentvid.demo.digits import COLOURS, DIRECTIONS, WORDS, Label, prompts
from latentvid.demo.judge import STILL, Judge, Verdict
from latentvid.demo.looks import clip_in_look
from latentvid.demo.scoring import DemoConfig, read_labelled, run_demo
from latentvid.errors import user_errors
from latentvid.evaluation.sheet import Row, draw_sheet
from latentvid.pipelines.edits import edit
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.rollout import rollout
from latentvid.pipelines.sampling import Sampling
from latentvid.pipelines.style import style
from latentvid.pipelines.tasks import image_to_video, interpolate

FRAMES = 17
GIVEN = 5  # frames of a clip that is extended: two of five latent frames
NEAR = 1.5  # pixels between centres of mass
# Two digits at one place have centres apart: drawn glyphs swapped are within NEAR on 0.61, and within SHIFT on 0.99.
# Less that shift their paths are the same to 0.1; a digit that stands still is 2.2 and more from any path.
MOVED, SHIFT = 1.0, 3.5
EDITS = ("sdedit", "inversion", "flow")  # by the model of clips
GUIDED = {"flow": 5.0}  # scale of guidance, where it is not the model's own
LONG = 4 * FRAMES
CHUNK = 28  # clips of a pack
ROWS = 12  # of a sheet

Clip = tuple[Tensor, Label, str]  # real frames uint8 [F,H,W,3], what they show, caption


def real_clips(run: Path, count: int, verb: str | None = None) -> list[Clip]:
    """Held-out clips of 17 frames, of one verb or both."""
    rows = [(s, label) for s, label in read_labelled(run / "data" / "val.jsonl") if s.frames == FRAMES]
    rows = [(s, label) for s, label in rows if verb in (None, label.verb)][:count]
    return [(read_frames(s.path, 0, FRAMES), label, s.caption) for s, label in rows]


def in_chunks(clips: Sequence[Clip], make: Callable[[Sequence[Clip], int], list[Tensor]]) -> list[Tensor]:
    """What `make(clips, seed of the first)` makes of all, some at a time."""
    made: list[Tensor] = []
    for start in range(0, len(clips), CHUNK):
        made += make(clips[start : start + CHUNK], start)
        print(f"  {len(made)} of {len(clips)} clips", flush=True)
    return made


def direction(path: Tensor) -> str:
    """The one of DIRECTIONS nearest to the motion of the whole of `path` [F,2] (NaN: not seen)."""
    path = path[path.isfinite().all(1)]
    if len(path) < 2:
        return "none"
    time = torch.arange(len(path)).float()
    time = time - time.mean()
    motion = (time[:, None] * path).sum(0) / time.square().sum()
    ways = torch.nn.functional.normalize(torch.tensor(list(DIRECTIONS.values())).float(), dim=1)
    return tuple(DIRECTIONS)[int((ways @ motion).argmax())]


def apart(a: Tensor, b: Tensor) -> float:
    """Mean distance of two paths [F,2] in pixels; infinite where one is nowhere seen."""
    distance = (a - b).norm(dim=1)
    distance = distance[distance.isfinite()]
    return float(distance.mean()) if len(distance) else float("inf")


def moves_alike(a: Tensor, b: Tensor) -> bool:
    """Whether two paths [F,2] are the same within MOVED but for a shift of at most SHIFT."""
    far = a - b
    shift = far.nanmean(0)
    return bool(shift.norm() < SHIFT and (far - shift).norm(dim=1).nanmean() < MOVED)


class Scores:
    """Collects one task's scores, means of what each clip got, and its sheet."""

    def __init__(self, name: str, out: Path) -> None:
        self.name, self.out = name, out
        self.values: dict[str, list[float]] = {}
        self.rows: list[Row] = []

    def add(self, clips: list[Tensor], text: str, right: bool, **values: float) -> None:
        for key, value in values.items():
            self.values.setdefault(key, []).append(float(value))
        if len(self.rows) < ROWS:
            self.rows.append(Row(clips, text, right))

    def done(self) -> dict[str, float]:
        draw_sheet(self.rows, self.out / f"{self.name}.png", columns=9)
        means = {}
        for key, values in self.values.items():
            finite = [v for v in values if v != float("inf")]
            means[key] = sum(finite) / max(1, len(finite))
        means["clips"] = len(next(iter(self.values.values())))
        print(self.name, json.dumps({k: round(v, 3) for k, v in means.items()}), flush=True)
        return means


def plain_sampling(pipeline: LatentVideoPipeline, **options) -> Sampling:
    return Sampling(progress=False, **options)


def images_to_video(pipeline: LatentVideoPipeline, clips: list[Clip], judge: Judge, out: Path) -> dict:
    sampling = plain_sampling(pipeline)

    def make(part: Sequence[Clip], seed: int) -> list[Tensor]:
        images, texts = [c[0][0] for c in part], [c[2] for c in part]
        return image_to_video(pipeline, images, texts, num_frames=FRAMES, seed=seed, sampling=sampling)

    scores = Scores("i2v", out)
    for made, (real, label, text) in zip(in_chunks(clips, make), clips, strict=True):
        seen = judge(made)
        digit = judge(made[1:]).digit == label.digit  # the first frame is the given one
        way = seen.direction == label.direction
        scores.add([real, made], f"{text}\nabove: real", digit and way, digit=digit, direction=way)
    return scores.done()


def extension(pipeline: LatentVideoPipeline, clips: list[Clip], judge: Judge, out: Path, name: str, **options) -> dict:
    sampling = plain_sampling(pipeline, **options)

    def make(part: Sequence[Clip], seed: int) -> list[Tensor]:
        texts, begun = [c[2] for c in part], [c[0][:GIVEN] for c in part]
        pieces = rollout(pipeline, texts, FRAMES - GIVEN, clips=begun, context=GIVEN, seed=seed, sampling=sampling)
        return [torch.cat(parts) for parts in zip(*pieces, strict=True)]

    scores = Scores(name, out)
    for new, (real, label, text) in zip(in_chunks(clips, make), clips, strict=True):
        seen: Verdict = judge(new)
        truth = judge(real).path[GIVEN:]
        digit, way = seen.digit == label.digit, direction(seen.path) == label.direction
        error = apart(seen.path, truth)
        jump = float((judge(torch.cat([real[GIVEN - 1 : GIVEN], new[:1]])).path.diff(dim=0)).norm())
        whole = torch.cat([real[:GIVEN], new])
        scores.add(
            [real, whole],
            f"{text}\nabove: real",
            digit and way,
            digit=digit,
            direction=way,
            off_path=error,
            on_path=error < NEAR,
            jump=jump if jump == jump else float("inf"),
        )
    return scores.done()


def interpolation(pipeline: LatentVideoPipeline, clips: list[Clip], judge: Judge, out: Path) -> dict:
    sampling = plain_sampling(pipeline)
    between = FRAMES - 5  # the last given frame is the first of the last latent frame's four

    def make(part: Sequence[Clip], seed: int) -> list[Tensor]:
        firsts, lasts = [c[0][0] for c in part], [c[0][between + 1] for c in part]
        return interpolate(pipeline, firsts, lasts, [c[2] for c in part], between, seed=seed, sampling=sampling)

    scores = Scores("interpolation", out)
    for made, (real, label, text) in zip(in_chunks(clips, make), clips, strict=True):
        middle, truth = judge(made[1:-1]), judge(real).path[1 : between + 1]
        error = apart(middle.path, truth)
        digit = middle.digit == label.digit
        scores.add(
            [real[: between + 2], made],
            f"{text}\nabove: real",
            error < NEAR,
            off_path=error,
            on_path=error < NEAR,
            digit=digit,
        )
    return scores.done()


def long_rollout(pipeline: LatentVideoPipeline, count: int, judge: Judge, out: Path) -> dict:
    """Bouncing digits, so that there is room to go on; motion is kept where each quarter moves as much as half of the
    first."""
    wanted = [(label, text) for label, text in prompts(3 * count, heldout=False, seed=1) if label.verb == "bounces"]
    wanted = wanted[:count]
    sampling = plain_sampling(pipeline)
    clips = [(torch.empty(0), label, text) for label, text in wanted]

    def make(part: Sequence[Clip], seed: int) -> list[Tensor]:
        pieces = rollout(pipeline, [c[2] for c in part], LONG, seed=seed, sampling=sampling)
        return [torch.cat(parts) for parts in zip(*pieces, strict=True)]

    scores = Scores("rollout", out)
    for made, (_, label, text) in zip(in_chunks(clips, make), clips, strict=True):
        quarters = [judge(part) for part in made.split(FRAMES)]
        digit = all(q.digit == label.digit for q in quarters)
        same = all(q.digit == quarters[0].digit for q in quarters)
        travel = [float(q.path.diff(dim=0).norm(dim=1).nan_to_num().sum()) for q in quarters]
        moves = travel[0] > STILL and min(travel) > 0.5 * travel[0]
        way = quarters[0].direction == label.direction
        scores.add(
            [made[::4]],
            text,
            digit and moves,
            digit=digit,
            same_digit_throughout=same,
            motion=moves,
            digit_and_motion=digit and moves,
            first_direction=way,
        )
    return scores.done()


def editing(pipeline: LatentVideoPipeline, clips: list[Clip], judge: Judge, out: Path, method: str) -> dict:
    """Another digit in the same caption: the digit must change, the path must stay."""
    sampling = plain_sampling(pipeline)
    if method in GUIDED:
        sampling = replace(sampling, guidance=replace(pipeline.guidance(), scale=GUIDED[method]))
    rng = random.Random(0)
    targets = {}
    for i, (_, label, _) in enumerate(clips):
        targets[i] = rng.choice([d for d in range(10) if d != label.digit])

    def target_text(i: int) -> str:
        old, new = clips[i][1].digit, targets[i]
        words = [WORDS[new] if w == WORDS[old] else str(new) if w == str(old) else w for w in clips[i][2].split(" ")]
        return " ".join(words)

    def make(part: Sequence[Clip], seed: int) -> list[Tensor]:
        wanted = [target_text(seed + i) for i in range(len(part))]
        real, said = [c[0] for c in part], [c[2] for c in part]
        return edit(pipeline, real, said, wanted, method=method, seed=seed, sampling=sampling)

    scores = Scores(f"edit_{method}", out)
    for i, (made, (real, _label, text)) in enumerate(zip(in_chunks(clips, make), clips, strict=True)):
        seen, truth = judge(made), judge(real)
        error, motion = apart(seen.path, truth.path), moves_alike(seen.path, truth.path)
        changed, kept = seen.digit == targets[i], error < NEAR
        scores.add(
            [real, made],
            f"{text}\n-> {targets[i]}",
            changed and motion,
            digit=changed,
            path=kept,
            off_path=error,
            digit_and_path=changed and kept,
            motion=motion,
            digit_and_motion=changed and motion,
            colour=seen.colour == truth.colour,
        )
    return scores.done()


def styled(pipeline: LatentVideoPipeline, clips: list[Clip], judge: Judge, out: Path) -> dict:
    """The colour of a picture of another digit, of which no prompt says anything: digit and path must stay."""
    sampling, rng = plain_sampling(pipeline), np.random.default_rng(3)
    pictures, wanted = [], []
    for real, label, _ in clips:
        wanted.append(str(rng.choice([colour for colour in COLOURS if colour != label.colour])))
        other = Label(int(rng.choice([digit for digit in range(10) if digit != label.digit])), wanted[-1])
        pictures.append(clip_in_look(other, "plain", 1, tuple(real.shape[1:3]), rng, True)[0])

    def make(part: Sequence[Clip], seed: int) -> list[Tensor]:
        shown, nothing = pictures[seed : seed + len(part)], [""] * len(part)
        return style(pipeline, [c[0] for c in part], shown, nothing, seed=seed, sampling=sampling)

    scores = Scores("style", out)
    for i, (made, (real, label, text)) in enumerate(zip(in_chunks(clips, make), clips, strict=True)):
        seen, truth = judge(made), judge(real)
        error = apart(seen.path, truth.path)
        colour, kept = seen.colour == wanted[i], seen.digit == label.digit and error < NEAR
        scores.add(
            [real, pictures[i].expand(len(real), -1, -1, -1), made],
            f"{text}\n-> {wanted[i]}",
            colour and kept,
            colour=colour,
            digit=seen.digit == label.digit,
            path=error < NEAR,
            digit_and_path=kept,
            all=colour and kept,
        )
    return scores.done()


def text_to_video(run: Path, pipeline: Path, out: Path) -> dict:
    """The demo's own scores for the pipeline, beside those of the run."""
    folder = out / "t2v"
    folder.mkdir(parents=True, exist_ok=True)
    for name, target in (("data", run / "data"), ("pipeline", pipeline)):
        if not (folder / name).exists():
            (folder / name).symlink_to(target.resolve())
    mixed = run_demo(DemoConfig(run=folder))
    plain = json.loads((run / "scores.json").read_text(encoding="utf-8"))
    keys = ("digit", "direction", "both", "strict", "colour", "heldout_both", "heldout_strict")
    found = {key: {"plain": plain[key], "mixed": mixed[key]} for key in keys}
    print("t2v", json.dumps({k: {n: round(x, 3) for n, x in v.items()} for k, v in found.items()}), flush=True)
    return found


@user_errors()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the demo")
    parser.add_argument("pipeline", type=Path, help="pipeline that was trained with given frames")
    parser.add_argument("--out", type=Path, required=True, help="folder for the scores and sheets")
    parser.add_argument("--count", type=int, default=112, help="clips of each task (default 112)")
    parser.add_argument(
        "--only", nargs="+", help="some of the tasks: t2v i2v extension interpolation rollout editing style"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    judge, mixed, plain = Judge.load(), load_pipeline(args.pipeline), load_pipeline(args.run / "pipeline")
    clips, moving = real_clips(args.run, args.count), real_clips(args.run, args.count, "moves")
    tasks = {
        "t2v": lambda: text_to_video(args.run, args.pipeline, args.out),
        "i2v": lambda: images_to_video(mixed, clips, judge, args.out),
        "extension": lambda: {
            "levels": extension(mixed, moving, judge, args.out, "extension"),
            "plain model, replacement": extension(
                plain, moving, judge, args.out, "extension_replacement", condition="replacement"
            ),
            "plain model, reconstruction": extension(
                plain, moving, judge, args.out, "extension_reconstruction", condition="reconstruction"
            ),
        },
        "interpolation": lambda: interpolation(mixed, moving, judge, args.out),
        "rollout": lambda: long_rollout(mixed, args.count, judge, args.out),
        "style": lambda: styled(mixed, moving, judge, args.out),
        "editing": lambda: {method: editing(mixed, moving, judge, args.out, method) for method in EDITS},
    }
    path = args.out / "tasks.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for name, run_task in tasks.items():
        if args.only is None or name in args.only:
            results[name] = run_task()
            path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
