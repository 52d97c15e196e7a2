"""Which task a configuration of this stage is: training on clips, or on pairs of them."""

from __future__ import annotations

import torch

from ....config.schema import DitConfig
from .preference import PreferenceTask
from .published import settled
from .task import DitTask


def dit_task(config: DitConfig, device: torch.device, data: bool = True) -> DitTask:
    """`data=False` leaves the data closed: enough to export."""
    return (PreferenceTask if config.preference.on else DitTask)(config, device, data)


dit_task.settled = settled
dit_task.prepare_run = DitTask.prepare_run
