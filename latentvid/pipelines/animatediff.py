"""AnimateDiff's motion modules in a pipeline of Stable Diffusion, which makes clips from then on."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from ..diffusion.scheduler import LatentVideoScheduler
from ..models.open.animatediff import SCHEDULER, load_adapter, moving, with_motion
from .folder import read_scheduler
from .open_video import OpenVideoPipeline


def put_adapter(pipeline: OpenVideoPipeline, folder: Path) -> None:
    """Puts a `MotionAdapter` of diffusers into the pipeline's network, and says so on stderr: length, steps and noise
    are AnimateDiff's from then on, or the noise that it was trained on here. Raises UserError."""
    made = with_motion(pipeline.transformer, load_adapter(folder)).eval()
    recipe = moving(pipeline.recipe)
    if (folder / SCHEDULER).is_dir():
        scheduler = read_scheduler(folder / SCHEDULER)
    else:
        scheduler = LatentVideoScheduler(**recipe.scheduler)
    pipeline.recipe = replace(recipe, scheduler=dict(scheduler.config))
    pipeline.transformer, pipeline.scheduler = made, scheduler
    pipeline.register_to_config(frames=min(recipe.frames, made.most_frames), steps=recipe.steps)
    print(f"motion modules {folder}", file=sys.stderr, flush=True)
