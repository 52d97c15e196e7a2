"""What a run shows of itself while it trains: measurements on held-out data, samples, and which checkpoint is best."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from time import perf_counter
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from torch import nn

from ...config.curriculum import CurriculumStage
from ...config.schema import TrainingConfig
from ...config.sections import Weights
from ...data.video.writing import write_video
from ...evaluation.sheet import Row, draw_sheet
from ...files import written_whole
from ..checkpoint.records import Best
from ..ema import EMA
from ..parallel.strategy import Strategy
from ..task import Task
from .metrics import MetricsLog

SHEET_SIDE = 128  # pixels, about the height of a frame in a sheet


class Watch:
    """Looks at the model every `samples.every` and `validation.every` steps, on all processes.

    Nothing of it touches training: no generator, no statistic, no gradient. `best` is what RUN/best.json holds, and
    `looked` the last step at which it was asked to look; both are part of a checkpoint. The best is a stage's own.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        stage: CurriculumStage[TrainingConfig],
        task: Task,
        strategy: Strategy,
        ema: EMA,
    ) -> None:
        self.accelerator, self.stage, self.config, self.task = accelerator, stage, stage.config, task
        config = self.config
        self.strategy, self.ema = strategy, ema
        self.main, self.share = accelerator.is_main_process, (accelerator.process_index, accelerator.num_processes)
        self.held_out = task.held_out()
        self.best: Best | None = None
        self.looked = 0
        self._log: MetricsLog | None = None
        settings = config.validation
        if self.held_out is not None and settings.best is not None:
            self.higher = self.held_out.higher_is_better(settings.best)

    def open(self, step: int) -> None:
        """Before the first step after `step`; what is on the disk of later ones, and of one not yet looked at, goes."""
        if self.held_out is not None:
            self.held_out.begin(*self.share)
        if self.main and self.held_out is not None:
            self._log = MetricsLog(self.config.run.dir, self.looked if step else None, name="validation.jsonl")
        self._write_best()

    def close(self) -> None:
        if self._log is not None:
            self._log.close()

    def measure(self, step: int, contest: bool = True) -> bool:
        """Measures and records, where the step is one of `validation.every` or the last; whether it is the best.

        contest: it may be; the weights that a run begins with, of which it has no checkpoint, may not.
        """
        self.looked = step
        every = self.config.validation.every
        if self.held_out is None or (step % every and step != self.stage.end):
            return False
        settings, better = self.config.validation, False
        for i, name in enumerate(settings.weights):
            start = perf_counter()
            with self._weights(name) as model:
                sums = self.held_out.measure(model, *self.share)
                scores = self.held_out.score(model, *self.share)
            sums = self.accelerator.reduce(sums.to(self.accelerator.device), reduction="sum").cpu()
            figures = {**self.held_out.record(sums), **({"scores": scores} if scores else {})}
            own = {"stage": self.stage.number} if self.stage.name else {}
            record = {"step": step, **own, "weights": name, **figures, "seconds": perf_counter() - start}
            if self._log is not None:
                self._log.write(record)
            self.accelerator.log(_flat(figures, f"validation/{name}"), step=step)
            if i == 0 and contest and settings.best is not None:
                found = figures[settings.best] if settings.best in figures else scores[settings.best]["value"]
                better = self._compare(step, name, settings.best, found)
        return better

    def _compare(self, step: int, weights: Weights, figure: str, value: float) -> bool:
        if not np.isfinite(value):
            return False
        if self.best is not None and self.best["metric"] == figure and self.best["weights"] == weights:
            ahead = value > self.best["value"] if self.higher else value < self.best["value"]
            if not ahead:
                return False
        self.best = {"step": step, "metric": figure, "weights": weights, "value": value}
        self._write_best()
        return True

    def _write_best(self) -> None:
        if not self.main:
            return
        file = self.config.run.dir / "best.json"
        if self.best is None:
            file.unlink(missing_ok=True)
            return
        with written_whole(file) as beside:
            beside.write_text(json.dumps(self.best) + "\n", encoding="utf-8")

    def show(self, step: int) -> None:
        """Writes samples, where the step is one of `samples.every` or the last."""
        settings = self.config.samples
        if not settings.every or (step % settings.every and step != self.stage.end):
            return
        for name in settings.weights:
            with self._weights(name) as model:
                mine = self.task.sample(model, *self.share)
            rows = dict(gather_object(sorted(mine.items())))
            if self.main:
                sheet = self._write_samples([rows[i] for i in sorted(rows)], f"step-{step:06d}-{name}")
                for tracker in self.accelerator.trackers:
                    layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                    tracker.log_images({f"samples/{name}": sheet}, step=step, **layout)

    def _write_samples(self, rows: list[Row], name: str) -> np.ndarray:
        """A sheet of all and a clip of each; returns the sheet [1,H,W,3]."""
        folder = self.config.run.dir / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        height = rows[0].clips[0].shape[1]
        draw_sheet(rows, folder / f"{name}.png", zoom=max(1, round(SHEET_SIDE / height)))
        for i, row in enumerate(rows):
            clip = torch.cat(row.clips, dim=1)  # one above the other
            ending = "mp4" if len(clip) > 1 else "png"
            write_video(folder / f"{name}-{i}.{ending}", clip, self.task.fps)
        return np.asarray(Image.open(folder / f"{name}.png"))[None]

    @contextmanager
    def _weights(self, name: Weights) -> Iterator[nn.Module]:
        module = self.strategy.module
        with self.ema.swapped(self.strategy) if name == "ema" else nullcontext():
            module.eval()
            try:
                yield module
            finally:
                module.train()
                self.strategy.push()  # shards again what a forward pass without a backward pass left gathered


def _flat(figures: dict[str, Any], prefix: str) -> dict[str, float]:
    """Figures for the trackers: a bin's by its edges."""
    flat = {}
    for name, value in figures.items():
        if name == "bins":
            for part in value:
                edges = f"{part['from']:.2f}-{part['to']:.2f}"
                flat |= {f"{prefix}/{figure} {edges}": v for figure, v in part.items() if figure not in ("from", "to")}
        elif name == "scores":
            flat |= {f"{prefix}/{score}": found["value"] for score, found in value.items()}
        else:
            flat[f"{prefix}/{name}"] = value
    return flat
