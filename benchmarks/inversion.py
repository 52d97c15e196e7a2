"""How well held-out clips are made again from the noise that inversion finds for them, over steps and iterations.

    python benchmarks/inversion.py runs/demo --out docs/inversion.json

RUN is a finished demo (`make demo`). Each clip's latent is inverted with its own prompt, without guidance, and sampled
again by the same steps. Figures that are in the file already are not computed again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from torch import Tensor

from latentvid.data.video.reading import read_frames
from latentvid.demo.scoring import read_labelled
from latentvid.diffusion.guidance import Guidance
from latentvid.errors import user_errors
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Request, Sampling


def decibels(latent: Tensor, again: Tensor) -> float:
    """10 log10(range^2 / mean squared error), the range that of the latent."""
    return 10 * math.log10(float((latent.max() - latent.min()) ** 2 / (latent - again).square().mean()))


def measure(
    pipeline: LatentVideoPipeline, latents: list[Tensor], prompts: list[str], steps: int, iterations: int
) -> dict:
    sampling = Sampling(steps=steps, guidance=Guidance(), precision=torch.float32, progress=False)
    requests = [Request(prompt=p, grid=tuple(z.shape[1:])) for p, z in zip(prompts, latents, strict=True)]
    began = time.time()
    noises = pipeline.invert(latents, requests, sampling, iterations)
    seconds = time.time() - began
    started = [Request(prompt=r.prompt, grid=r.grid, start=noise) for r, noise in zip(requests, noises, strict=True)]
    found = [decibels(*pair) for pair in zip(latents, pipeline.sample(started, sampling), strict=True)]
    return {
        "steps": steps,
        "iterations": iterations,
        "calls": steps * (1 + iterations),
        "db": sum(found) / len(found),
        "db_least": min(found),
        "noise_deviation": sum(float(noise.std()) for noise in noises) / len(noises),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20, 50, 100])
    parser.add_argument("--iterations", type=int, nargs="+", default=[0, 1, 2, 3, 5])
    args = parser.parse_args()
    samples = [sample for sample, _ in read_labelled(args.run / "data" / "val.jsonl")[: args.clips]]
    pipeline = load_pipeline(args.run / "pipeline", "cpu")
    latents = pipeline.encode([read_frames(sample.path, 0, sample.frames) for sample in samples], torch.float32)
    result = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {"rows": []}
    result |= {
        "clips": len(samples),
        "path": pipeline.scheduler.config.path,
        "target": pipeline.scheduler.config.target,
    }
    cells = sorted(((k, n) for k in args.steps for n in args.iterations), key=lambda cell: cell[0] * (2 + cell[1]))
    for steps, iterations in cells:
        if any((row["steps"], row["iterations"]) == (steps, iterations) for row in result["rows"]):
            continue
        result["rows"].append(measure(pipeline, latents, [s.caption for s in samples], steps, iterations))
        result["rows"].sort(key=lambda row: (row["steps"], row["iterations"]))
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print("| steps | " + " | ".join(f"{n} iterations" for n in args.iterations) + " |")
    print("|---" * (1 + len(args.iterations)) + "|")
    at = {(row["steps"], row["iterations"]): row for row in result["rows"]}
    for steps in args.steps:
        rows = [at[steps, n] for n in args.iterations]
        print(f"| {steps} | " + " | ".join(f"{r['db']:.1f} ({r['noise_deviation']:.2f})" for r in rows) + " |")
    print("dB of the latents, mean over the clips, and in brackets the deviation of the noise found")


if __name__ == "__main__":
    torch.manual_seed(0)
    with user_errors():
        main()
