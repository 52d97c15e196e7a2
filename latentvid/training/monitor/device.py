"""What a process sees of its GPU: memory for the log, and a trace of some steps by torch.profiler."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Self

import torch
from torch import profiler

from ...words import counted

logger = logging.getLogger(__name__)

WARM = 10  # steps of a start that are not followed, as far as there are so many: they compile and choose kernels
ROWS = 40  # operators in the table, those that take longest


def gpu_memory(device: torch.device) -> dict[str, float]:
    """Since it was last asked, GiB: the most that tensors took, and that torch held for them; and how often since the
    start torch had to give memory back to get more, which is slow. Nothing on CPUs."""
    if device.type != "cuda":
        return {}
    found = {
        "gpu_peak_gib": torch.cuda.max_memory_allocated(device) / 2**30,
        "gpu_held_gib": torch.cuda.max_memory_reserved(device) / 2**30,
        "gpu_retries": torch.cuda.memory_stats(device).get("num_alloc_retries", 0),
    }
    torch.cuda.reset_peak_memory_stats(device)
    return found


class Profile:
    """Follows some steps of a start, in FOLDER/steps-A-B.json.gz (for https://ui.perfetto.dev or chrome://tracing) and
    .txt, the operators that take longest.

    steps: how many; 0: none are followed. done: before this start. left: to its end. Inside, `step()` ends each step.
    """

    def __init__(self, folder: Path, steps: int, done: int, left: int) -> None:
        if steps > left - 1:  # one more is to warm up the profiler
            logger.warning(
                "log.profile=%d: %s left, of which %d can be followed", steps, counted(left, "step"), max(0, left - 1)
            )
            steps = max(0, left - 1)
        wait = max(0, min(WARM, left - steps) - 1)
        first = done + wait + 2
        self.path = folder / f"steps-{first}-{first + steps - 1}.json.gz"
        self._profile = None
        if steps:
            self._profile = profiler.profile(
                schedule=profiler.schedule(wait=wait, warmup=1, active=steps, repeat=1),
                on_trace_ready=self._write,
                record_shapes=True,
                profile_memory=True,
            )

    def _write(self, found: profiler.profile) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        found.export_chrome_trace(str(self.path))
        by = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = found.key_averages().table(sort_by=by, row_limit=ROWS)
        self.path.with_suffix("").with_suffix(".txt").write_text(table, encoding="utf-8")
        logger.warning("torch.profiler's trace is in %s: open it in https://ui.perfetto.dev", self.path)

    def step(self) -> None:
        if self._profile is not None:
            self._profile.step()

    def __enter__(self) -> Self:
        if self._profile is not None:
            self._profile.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._profile is not None:
            self._profile.__exit__(*error)
