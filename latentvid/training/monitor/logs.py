"""The main process's files about a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...config.schema import TrainingConfig
from ...data.plan.plan import Draw
from .metrics import MetricsLog


class RunLogs:
    """metrics.jsonl and, if asked, draws.jsonl; the main process's."""

    def __init__(self, config: TrainingConfig, step: int) -> None:
        self.metrics = MetricsLog(config.run.dir, step or None)
        self.draws = MetricsLog(config.run.dir, step or None, name="draws.jsonl") if config.log.draws else None

    def write(self, record: dict[str, Any]) -> None:
        self.metrics.write(record)

    def write_draws(self, step: int, draws: Sequence[Draw]) -> None:
        """Where they are asked for."""
        self.draws.write({"step": step, "draws": [list(draw) for draw in draws]})

    def close(self) -> None:
        self.metrics.close()
        if self.draws is not None:
            self.draws.close()
