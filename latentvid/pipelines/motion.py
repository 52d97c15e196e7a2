"""A motion module in a pipeline of an image model, which makes clips from then on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..limits import check_arguments
from ..models.adapters.motion_files import is_its_image_model, load_motion
from .limit import Kind

if TYPE_CHECKING:
    from .latent_video import LatentVideoPipeline

CLIPS = ("frames", "fps", "trained", "given", "given_shares")  # of the pipeline, that are the module's


def put_motion(pipeline: LatentVideoPipeline, folder: Path) -> None:
    """Puts a motion module into the pipeline's network, and says so on stderr: length, rate and given frames are the
    module's from then on, size and all else the image model's. Raises UserError."""
    found = load_motion(pipeline.transformer, folder)
    file, stride = folder / "config.json", pipeline.codec.temporal_stride
    own = {key: pipeline.scheduler.config[key] for key in found.noise if key in pipeline.scheduler.config}
    if own != found.noise:
        raise UserError(f"--motion {folder} was trained with the noise of {found.noise}, and this model with {own}")
    if found.arguments["temporal_stride"] != stride:
        raise UserError(
            f"--motion {folder} is for latent frames of {found.arguments['temporal_stride']} frames, and this model's "
            f"are of {stride}: give a module that was trained with its VAE"
        )
    clips = {key: found.clips[key] for key in CLIPS if found.clips.get(key) is not None}
    check_arguments(type(pipeline).__init__, clips, f"{file}: clips")
    seen = [Kind.of(kind).as_json() for kind in (*clips.get("trained", ()), *(pipeline.config.trained or ()))]
    given = tuple(clips.get("given", pipeline.config.given))
    pipeline.register_to_config(**clips | {"trained": seen or None, "given": given})
    other = (
        "" if is_its_image_model(pipeline.transformer, found) else f"; trained on another ({found.base.get('where')})"
    )
    print(f"motion module {folder}{other}", file=sys.stderr, flush=True)
