"""Scores the demo: what its autoencoder keeps, and whether its clips show what their prompts say.

    [accelerate launch] -m latentvid.demo.scoring RUN [--prompts 280 --heldout 140 --seed 0 --chunk 28]

RUN holds data/ and pipeline/; it gets scores.json, samples/, contact_sheet.png and reconstructions.png. Several
processes share the work, and the result does not depend on how many there are.
"""

from __future__ import annotations

if __name__ == "__main__":  # before torch is imported: --help and wrong options are answered at once
    from ..commands import score_demo

    score_demo()
    raise SystemExit

import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from ..data.manifest.manifest import Sample, read_manifest
from ..data.transforms import resize_and_crop, to_uint8
from ..data.video.reading import read_frames
from ..data.video.writing import write_video
from ..diffusion.guidance import Guidance
from ..errors import UserError
from ..evaluation.pairs.reconstruction import evaluate, reconstruct
from ..evaluation.sheet import Row, draw_sheet
from ..files import follow_umask, write_whole
from ..limits import check_fields
from ..pipelines.latent_video import LatentVideoPipeline
from ..pipelines.loading import load_pipeline
from ..pipelines.sampling import Sampling
from ..precision import Computed, MixedPrecision, choose, describe, dtype_of
from ..world import from_main, process_state
from .digits import SIZES, Label, prompts
from .judge import Judge, Verdict
from .scores import judged, shuffled_both

FRAMES = 17
SHOWN = {"seen": 16, "heldout": 8}  # clips that are kept as files
IN_SHEET = {"seen": 8, "heldout": 4}
RECONSTRUCTIONS = 6
PARTS = ".scoring"  # folder in RUN where the processes leave their shares


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Arguments of the command. `prompts` and `heldout` count clips; `chunk` clips are sampled as one pack.

    steps, guidance: of sampling; None is the pipeline's own. mixed_precision: of sampling; reconstructions are in fp32.
    """

    run: Path
    prompts: int = 280
    heldout: int = 140
    seed: int = 0
    chunk: int = 28
    steps: int | None = None
    guidance: float | None = None
    mixed_precision: MixedPrecision = "auto"

    def __post_init__(self) -> None:
        check_fields(self, "")
        if self.prompts < 2:
            raise UserError("--prompts 1: give 2 or more, so that captions can be shuffled")
        if not self.run.is_dir():
            raise UserError(f"there is no folder {self.run}: run `make demo`, or give the folder that it wrote")


@dataclass(frozen=True)
class Job:
    """Clips start .. start + count of a kind: "seen" and "heldout" are sampled, "vae" reconstructed."""

    kind: str
    start: int
    count: int

    def file(self, run: Path) -> Path:
        return run / PARTS / f"{self.kind}-{self.start:05d}.safetensors"


def jobs(counts: dict[str, int], chunk: int) -> list[Job]:
    """The whole work in pieces that do not depend on the number of processes, since rounding depends on packing."""
    return [
        Job(kind, start, min(chunk, count - start))
        for kind, count in counts.items()
        for start in range(0, count, chunk)
    ]


class Demo:
    """A finished demo run: its prompts, its real held-out clips and its pipeline."""

    def __init__(self, config: DemoConfig, device: torch.device, computed: Computed) -> None:
        self.config, self.computed = config, computed
        self.val = read_labelled(config.run / "data" / "val.jsonl")
        self.val_pairs = read_labelled(config.run / "data" / "val_pairs.jsonl")
        self.prompts = {
            "seen": prompts(config.prompts, heldout=False, seed=config.seed),
            "heldout": prompts(config.heldout, heldout=True, seed=config.seed),
        }
        self.pipeline: LatentVideoPipeline = load_pipeline(config.run / "pipeline", device)
        self.counts = {kind: len(found) for kind, found in self.prompts.items()} | {"vae": len(self.val)}
        self.jobs = jobs(self.counts, config.chunk)

    def do(self, job: Job) -> None:
        """Writes the job's clips (uint8 [F,H,W,3], by number), or its PSNR and SSIM, one a clip."""
        numbers = range(job.start, job.start + job.count)
        if job.kind == "vae":
            found = evaluate(self.pipeline.vae, (video(self.val[i][0]) for i in numbers))
            content = {"per_clip": torch.tensor(found["per_clip"], dtype=torch.float64)}  # [count,2]
        else:
            clips = self._sample(job.kind, numbers)
            content = {str(i): clip.contiguous() for i, clip in zip(numbers, clips, strict=True)}
        save_file(content, job.file(self.config.run))
        follow_umask(job.file(self.config.run))

    def _sample(self, kind: str, numbers: range) -> list[Tensor]:
        texts = [self.prompts[kind][i][1] for i in numbers]
        heights, widths = zip(*(SIZES[i % len(SIZES)] for i in numbers), strict=True)
        # the i-th prompt has the noise of seed + i: far apart, so that no two runs or kinds share any
        seed = 100_000 * self.config.seed + (50_000 if kind == "heldout" else 0) + numbers.start
        scale = self.config.guidance
        sampling = Sampling(
            steps=self.config.steps,
            guidance=None if scale is None else Guidance(scale=scale),
            precision=dtype_of(self.computed),
            progress=False,
        )
        return self.pipeline(
            texts, num_frames=FRAMES, height=heights, width=widths, seed=seed, sampling=sampling, output_type="uint8"
        ).frames

    def gather(self) -> tuple[dict[str, list[Tensor]], Tensor]:
        """What all processes left: clips by kind, and PSNR and SSIM of the real clips [N,2]."""
        clips: dict[str, list[Tensor]] = {"seen": [], "heldout": []}
        fidelity = []
        for job in self.jobs:
            content = load_file(job.file(self.config.run))
            if job.kind == "vae":
                fidelity.append(content["per_clip"])
            else:
                clips[job.kind] += [content[str(i)] for i in range(job.start, job.start + job.count)]
        return clips, torch.cat(fidelity)


def read_labelled(manifest: Path) -> list[tuple[Sample, Label]]:
    """The clips of one of the demo's manifests with what they show. Raises UserError where it does not say."""
    names = ("digit", "colour", "verb", "direction")
    found = read_manifest(manifest, extra=names)
    try:
        labels = [Label(*values) for values in zip(*(found.extra[name] for name in names), strict=True)]
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{manifest} does not say what its clips show ({error}): make it with python -m latentvid.demo.digits"
        ) from error
    return list(zip(found.samples, labels, strict=True))


def video(sample: Sample) -> Tensor:
    """A real clip as the autoencoder takes it, [3,F,H,W] in [-1,1]."""
    return resize_and_crop(read_frames(sample.path, 0, sample.frames), sample.height, sample.width)


def run_demo(config: DemoConfig) -> dict | None:
    """Does this process's share; the main process then writes the results and returns what scores.json holds."""
    state = process_state()
    computed = from_main(lambda: choose(config.mixed_precision, state.device))
    if state.is_main_process:
        print(describe(computed, state.device), file=sys.stderr, flush=True)
    demo = Demo(config, state.device, computed)
    parts = config.run / PARTS
    if state.is_main_process:
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir()
    state.wait_for_everyone()
    mine = demo.jobs[state.process_index :: state.num_processes]
    for job in tqdm(mine, desc="scoring", unit="part", disable=not state.is_main_process):
        demo.do(job)
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    clips, fidelity = demo.gather()
    shutil.rmtree(parts)
    judge = Judge.load()
    _show(demo, clips, fidelity, judge)
    return _write_scores(demo, clips, fidelity, judge)


def _write_scores(demo: Demo, clips: dict[str, list[Tensor]], fidelity: Tensor, judge: Judge) -> dict:
    config = demo.config
    labels = {kind: [label for label, _ in found] for kind, found in demo.prompts.items()}
    real = [
        ([read_frames(sample.path, 0, sample.frames) for sample, _ in rows], [label for _, label in rows])
        for rows in (demo.val, demo.val_pairs)
    ]
    made = [(clips[kind], labels[kind]) for kind in ("seen", "heldout")]
    psnr, ssim = fidelity.mean(dim=0).tolist()
    scores = {"vae_psnr": psnr, "vae_ssim": ssim} | judged(*made, judge)
    scores |= {
        "chance_both": shuffled_both([(x.digit, x.direction) for x in labels["seen"]], labels["seen"]),
        "seconds": _seconds(config.run / "started"),
    }
    scores["sampled_in"] = "fp32" if demo.computed == "no" else demo.computed
    scores["real"] = judged(*real, judge)
    scores["counts"] = demo.counts | {"real_seen": len(demo.val), "real_heldout": len(demo.val_pairs)}
    defaults = demo.pipeline.config
    steps, guidance = (
        defaults[name] if given is None else given
        for name, given in (("steps", config.steps), ("guidance", config.guidance))
    )
    scores["settings"] = {"seed": config.seed, "frames": FRAMES, "steps": steps, "guidance": guidance}
    write_whole(config.run / "scores.json", json.dumps(scores, indent=2, allow_nan=False) + "\n")
    return scores


def _seconds(started: Path) -> float | None:
    """Seconds since the unix time in a file, or None where there is no such file."""
    if not started.is_file():
        return None
    try:
        return time.time() - float(started.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{started} does not hold a unix time ({error}): remove it, or run `make demo` again"
        ) from error


# ---------------------------------------------------------------------------------------------------------- pictures


def _show(demo: Demo, clips: dict[str, list[Tensor]], fidelity: Tensor, judge: Judge) -> None:
    """Writes samples/ with its clips.json, contact_sheet.png and reconstructions.png."""
    run = demo.config.run
    shutil.rmtree(run / "samples", ignore_errors=True)
    index, rows = [], []
    for kind, prefix in (("seen", ""), ("heldout", "heldout-")):
        for i, clip in enumerate(clips[kind][: SHOWN[kind]]):
            label, prompt = demo.prompts[kind][i]
            verdict = judge(clip)
            right = rightness(verdict, label)
            name = f"{prefix}{i:02d}.mp4"
            write_video(run / "samples" / name, clip, demo.pipeline.config.fps)
            shape = {"height": clip.shape[1], "width": clip.shape[2]}
            read = {"digit": verdict.digit, "direction": verdict.direction, "colour": verdict.colour}
            read["verb"] = "bounces" if verdict.bounced else "moves"
            index.append({"file": name, "prompt": prompt, "kind": kind, **shape, "read": read, "right": right})
            if i < IN_SHEET[kind]:
                good = right["digit"] and right["direction"] and right["colour"]
                rows.append(Row([clip], prompt if kind == "seen" else f"{prompt}\n(held-out pair)", good))
    (run / "samples" / "clips.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    draw_sheet(rows, run / "contact_sheet.png")
    pairs = []
    for (sample, _), (psnr, ssim) in list(zip(demo.val, fidelity.tolist(), strict=True))[:RECONSTRUCTIONS]:
        original = video(sample)
        copies = [to_uint8(original), to_uint8(reconstruct(demo.pipeline.vae, original))]
        pairs.append(Row(copies, f"above: original\nbelow: reconstruction\n{psnr:.1f} dB, SSIM {ssim:.3f}"))
    draw_sheet(pairs, run / "reconstructions.png")


def rightness(verdict: Verdict, label: Label) -> dict[str, bool]:
    """Which of digit, direction, colour and verb the judge read as the label says."""
    return {
        "digit": verdict.digit == label.digit,
        "direction": verdict.direction == label.direction,
        "colour": verdict.colour == label.colour,
        "verb": verdict.bounced == (label.verb == "bounces"),
    }
