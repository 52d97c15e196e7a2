"""A motion module in a pipeline of an image model, which makes clips from then on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..limits import check_arguments
from ..models.adapters.motion_files import is_its_image_model, load_motion
from .known import noise_range
from .limit import Kind

if TYPE_CHECKING:
    from .latent_video import LatentVideoPipeline

# of the pipeline, that are the module's: where it says nothing of them, they are as before, or None
CLIPS, GIVEN = ("frames", "fps", "trained", "given"), ("given_shares", "given_noise")


def put_motion(pipeline: LatentVideoPipeline, folder: Path) -> None:
    """Puts a motion module into the pipeline's network, and says so on stderr: length, rate and given frames are the
    module's from then on, size and all else the image model's. Raises UserError."""
    found = load_motion(pipeline.transformer, folder)
    kinds = [Kind.of(kind) for kind in pipeline.config.trained or ()]
    if (longest := max((kind.frames for kind in kinds), default=1)) > 1:
        raise UserError(
            f"--motion {folder} is put into image models, and this one was trained on clips of up to {longest} frames, "
            "of which its blocks would see one each: leave --motion out, or give a model of images"
        )
    found.check(pipeline.scheduler.config, pipeline.codec.temporal_stride, f"--motion {folder}")
    clips = {key: found.clips[key] for key in CLIPS if found.clips.get(key) is not None}
    clips |= {key: found.clips.get(key) for key in GIVEN}
    check_arguments(type(pipeline).__init__, clips, f"{folder / 'config.json'}: clips")
    seen = [kind.as_json() for kind in (*map(Kind.of, clips.get("trained", ())), *kinds)]
    given = tuple(clips.get("given", pipeline.config.given))
    clips |= {"trained": seen or None, "given": given, "given_noise": noise_range(clips["given_noise"])}
    pipeline.register_to_config(**clips)
    other = (
        "" if is_its_image_model(pipeline.transformer, found) else f"; trained on another ({found.base.get('where')})"
    )
    print(f"motion module {folder}{other}", file=sys.stderr, flush=True)
