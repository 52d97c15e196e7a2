"""Which task a configuration of this stage is: training on clips, or on pairs of them."""

from __future__ import annotations

import torch

from ....config.schema import DitConfig
from .preference import PreferenceTask
from .published import settled
from .task import DitTask


class DitTasks:
    """`training.task.MakeTask` of this stage."""

    settled = staticmethod(settled)
    prepare_run = staticmethod(DitTask.prepare_run)

    def __call__(self, config: DitConfig, device: torch.device, data: bool = True) -> DitTask:
        """`data=False` leaves the data closed: enough to export."""
        return (PreferenceTask if config.preference.on else DitTask)(config, device, data)


dit_task = DitTasks()
