"""The stages by the name that configurations have in `stage`: for programs, which choose one."""

from __future__ import annotations

from ...config.distillation import DistillConfig
from ...config.schema import DitConfig, VaeConfig
from ..task import Stage
from .dit.choice import dit_task
from .dit.distill.choice import distill_task
from .vae.task import VaeTask

STAGES = {
    "dit": Stage(DitConfig, dit_task),
    "vae": Stage(VaeConfig, VaeTask),
    "distill": Stage(DistillConfig, distill_task),
}
