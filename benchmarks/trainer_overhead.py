"""What the trainer costs beside forward, backward and optimiser: its own loop against a bare one, step by step.

    python benchmarks/trainer_overhead.py --json benchmarks/trainer_overhead.json             # one process
    accelerate launch --num_processes 2 ... benchmarks/trainer_overhead.py --json ...         # ranks of DDP

A real run (`TrainingRun.loop` over a cache of made-up latents of images and clips: a transformer of 50 million
parameters, the default pack, moving average of the weights, logs) in which every step is followed by one of a bare
loop: a copy of the model, the same packs, made beforehand, forward, backward, clipping, fused AdamW, nothing else
(with torch's own wrapper where there are ranks). Both are in one process, so they meet the same machine. Also shown:
the spans that metrics.jsonl records, with clipping and the moving average apart, and what of a step is in no span.
"""

import argparse
import copy
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("ACCELERATE_USE_CPU", "true")

import torch
from torch.nn.parallel import DistributedDataParallel

from latentvid.config.curriculum import curriculum
from latentvid.config.parsing import load_config
from latentvid.config.schema import DitConfig
from latentvid.data.cache.latents import module_fingerprint
from latentvid.data.cache.shards import write_shard
from latentvid.data.cache.writing import Row, cache_key, write_index
from latentvid.data.plan.plan import Plan
from latentvid.demo.text_encoder import build_encoder, build_tokenizer
from latentvid.models.autoencoder import CausalVideoAutoencoder
from latentvid.text import TextEncoder
from latentvid.training.compute import settle
from latentvid.training.launch import make_accelerator, make_plan
from latentvid.training.optim import make_optimizer
from latentvid.training.run import Launched, TrainingRun
from latentvid.training.signals import StopRequest
from latentvid.training.stages.dit.task import DitTask

CHANNELS, SAMPLES, WORDS = 16, 96, 32
GRIDS = ((1, 32, 32), (1, 16, 16), (5, 16, 16), (5, 12, 20), (9, 16, 16), (17, 16, 16))  # of latents


def make_parts(folder: Path) -> None:
    """A small autoencoder and text encoder, untrained, and a cache as if they had made it."""
    tokenizer = build_tokenizer(["a clip of something"], vocab_size=400)
    tokenizer.model_max_length = WORDS
    build_encoder(len(tokenizer), seed=0, width=512, layers=1).save_pretrained(folder / "t5")
    tokenizer.save_pretrained(folder / "t5")
    statistics_ = {"latents_mean": [0.0] * CHANNELS, "latents_std": [1.0] * CHANNELS}
    vae = CausalVideoAutoencoder(latent_channels=CHANNELS, patch=2, widths=(8, 8, 8), **statistics_)
    vae.save_pretrained(folder / "vae")
    text = TextEncoder.from_pretrained(folder / "t5")
    key = cache_key(module_fingerprint(vae, vae.config), text.fingerprint(), {})
    torch.manual_seed(0)
    latents, texts, rows = {}, {"null": torch.randn(1, 512)}, []
    for i in range(SAMPLES):
        grid = GRIDS[i % len(GRIDS)]
        mean = torch.randn(CHANNELS, *grid)
        latents[f"latent{i}"] = mean, torch.full_like(mean, 0.1)
        texts[f"text{i}"] = torch.randn(WORDS, 512)
        rows.append(Row(i, f"latent{i}", (f"text{i}",), tuple(grid)))
    out = folder / "latents"
    out.mkdir()
    in_latents = dict.fromkeys(latents, write_shard(out, key, latents=latents))
    in_texts = dict.fromkeys(texts, write_shard(out, key, texts=texts))
    more = {"channels": CHANNELS, "text_width": 512, "fps": 24.0, "dropped": []}
    write_index(out, key, rows, in_latents, in_texts, "null", **more)


class Bare:
    """The loop that one would write by hand."""

    def __init__(self, task: DitTask, plan: Plan, rank: int, world: int) -> None:
        self.task, self.plan, self.rank, self.world = task, copy.deepcopy(plan), rank, world
        self.model = copy.deepcopy(task.model)
        self.wrapped = DistributedDataParallel(self.model) if world > 1 else self.model
        self.optimizer = make_optimizer(self.model, task.config.optim)
        self.bf16 = task.config.train.mixed_precision == "bf16"

    def pack(self) -> tuple[Any, int]:
        step = self.plan.next()
        return self.task.prepare(self.task.make_pack(step.packs[self.rank])), step.samples

    def step(self) -> float:
        """Seconds; the pack is made before."""
        pack, samples = self.pack()
        if self.world > 1:
            torch.distributed.barrier()
        begun = time.perf_counter()
        loss = self.task.errors(self._forward, pack)[0]
        (loss.sum() * (self.world / samples)).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.task.config.optim.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - begun

    def _forward(self, *arguments: Any) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            return self.wrapped(*arguments).float()


class Timed(TrainingRun):
    """A run whose every step is followed by a bare one; seconds of both, and of what the optimiser's span holds."""

    def beside(self, bare: Bare) -> None:
        self.bare, self.seconds, self.bare_seconds = bare, [], []
        self.parts: dict[str, list[float]] = {"moving average": [], "clipping": []}
        self.ema.update = self._timed("moving average", self.ema.update)
        self.accelerator.clip_grad_norm_ = self._timed("clipping", self.accelerator.clip_grad_norm_)
        self.mark = time.perf_counter()

    def _timed(self, part: str, call: Callable) -> Callable:
        def timed(*arguments: Any) -> Any:
            begun = time.perf_counter()
            result = call(*arguments)
            self.parts[part].append(time.perf_counter() - begun)
            return result

        return timed

    def _after_step(self, stop: bool) -> None:
        if self.step < self.config.train.steps:  # saving at the end is no part of a step
            super()._after_step(stop)
        self.seconds.append(time.perf_counter() - self.mark)
        self.bare_seconds.append(self.bare.step())
        if self.world > 1:
            self.accelerator.wait_for_everyone()
        self.mark = time.perf_counter()


def measure(folder: Path, args: argparse.Namespace, precision: str, rank: int) -> dict[str, Any]:
    lines = {
        "run.dir": folder / f"run-{precision}",
        "vae": folder / "vae",
        "text_encoder": folder / "t5",
        "data.latents": folder / "latents",
        "data.tokens_per_pack": args.tokens,
        "data.packs_per_step": int(os.environ.get("WORLD_SIZE", 1)),
        "data.workers": args.workers,
        "model": f"{{patch: 2, width: {args.width}, depth: {args.depth}, heads: {args.width // 64}}}",
        "train.mixed_precision": precision,
        "train.steps": args.steps + 2,
        "checkpoint.every": 0,
        "samples.every": 0,
        "log.trackers": "[]",
    }
    config = load_config(DitConfig, None, [f"{key}={value}" for key, value in lines.items()])
    with StopRequest() as stop:
        accelerator = make_accelerator(config)
        task = DitTask(config, accelerator.device)
        plan = make_plan(config, task)
        bare = Bare(task, plan, accelerator.process_index, accelerator.num_processes)
        settled, compute = settle(config, accelerator.device)
        stages = curriculum(settled)
        launched = Launched(accelerator, config, compute, stop, lambda: None, DitTask, threads="")
        run = Timed(launched, stages, stages[0], task, plan)
        run.beside(bare)
        run.loop()
    return report(run, rank)


def report(run: Timed, rank: int) -> dict[str, Any]:
    """The first two steps warm up."""
    ours, bare = run.seconds[2:], run.bare_seconds[2:]
    step = statistics.mean(ours)
    whole = sum(run.seconds)  # spans are of all steps
    spans = {name: seconds / whole for name, seconds in run.meter.totals.items() if seconds}
    found = {
        "parameters": run.parameters,
        "ranks": run.world,
        "seconds": run.seconds,
        "bare_seconds": run.bare_seconds,
        "over_bare": sum(ours) / sum(bare) - 1,
        "over_bare_median": statistics.median(a / b for a, b in zip(ours, bare, strict=True)) - 1,
        "spans": spans,
        "parts": {name: statistics.mean(seconds[2:]) / step for name, seconds in run.parts.items()},
        "in_no_span": 1 - sum(spans.values()),
    }
    outside = 1 - spans["compute"] - spans["optimizer"] + found["parts"]["moving average"]
    found["outside"] = outside
    if rank == 0:
        print(
            f"{run.config.train.mixed_precision}, {run.world} rank(s), {run.parameters / 1e6:.1f}M parameters: a step "
            f"{step:.2f} s, bare {statistics.mean(bare):.2f} s: {found['over_bare']:+.1%} (median of steps "
            f"{found['over_bare_median']:+.1%}); outside forward, backward and optimiser {outside:.2%}: "
            f"moving average {found['parts']['moving average']:.2%}, data {spans.get('data', 0):.2%}, in no span "
            f"{found['in_no_span']:.2%}; clipping, in the optimiser's, {found['parts']['clipping']:.2%}",
            flush=True,
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=4096, help="of a pack")
    parser.add_argument("--workers", type=int, default=0, help="loader processes of each rank")
    parser.add_argument("--steps", type=int, default=6, help="after two that warm up")
    parser.add_argument("--precisions", nargs="+", default=["bf16", "no"], choices=["bf16", "no"])
    parser.add_argument("--json", type=Path, help="where the figures go, added to those that are there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rank = int(os.environ.get("RANK", 0))
    found: dict[str, Any] = {}
    if args.json and args.json.exists():
        found = json.loads(args.json.read_text())
    with tempfile.TemporaryDirectory() as own:
        folder = Path(own) / "parts"  # each rank makes its own, alike
        folder.mkdir()
        make_parts(folder)
        for precision in args.precisions:
            result = measure(folder, args, precision, rank)
            found[f"{precision}, {result['ranks']} rank(s), {args.tokens} tokens"] = result
    if rank == 0 and args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
