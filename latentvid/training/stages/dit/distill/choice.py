"""Which task trains a student, by its method."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from .....config.distillation import DistillConfig
from .dmd import DmdTask
from .task import DistillTask
from .teacher import settled_by_teacher


class DistillTasks:
    """`training.task.MakeTask` of this stage."""

    settled = staticmethod(settled_by_teacher)

    def prepare_run(
        self, config: DistillConfig, device: torch.device, may_stop: Callable[[], AbstractContextManager]
    ) -> None:
        """Nothing is made before the first step."""

    def __call__(self, config: DistillConfig, device: torch.device, data: bool = True) -> DistillTask:
        """`data=False` leaves the data closed: enough to export."""
        return (DmdTask if config.distill.method == "dmd" else DistillTask)(config, device, data)


distill_task = DistillTasks()
