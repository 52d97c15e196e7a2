"""What the looks at a model show while it trains (`samples`)."""

from __future__ import annotations

from pathlib import Path

from ....config.schema import DitConfig
from ....config.sections import several
from ....data.transforms import fit
from ....data.video.reading import probe, read_frames
from ....errors import UserError
from ....evaluation.sheet import Row
from ....models.open.folder import Published
from ....pipelines.latent_video import LatentVideoPipeline
from ....pipelines.references import check_files, read_references
from ....pipelines.sampling import Sampling
from ....pipelines.tasks import image_to_video
from ....references import check_role
from ....text import TextEncoder
from ...task import shares
from .parts import compute_dtype, roles_of


def check_looks(config: DitConfig, published: Published | None, text: TextEncoder) -> None:
    """Raises UserError for looks, and clips of held-out captions, that the model cannot make."""
    if published is not None and len(published.experts) > 1 and (config.samples.every or config.validation.scores):
        raise UserError(
            "samples.every and validation.scores: clips are made by both experts, of which one is here: leave them "
            "out, and look at the export"
        )
    _check_images(config, of_pictures(published))
    if config.controlnet.on and config.samples.every and not all(shown_by(config) or [()]):
        raise UserError("samples.references: a ControlNet needs a signal for each prompt: give them, or every=0")
    for role, path in (pair for each in shown_by(config) for pair in each):
        check_role(role, roles_of(config), "samples.references:")
        if not path.is_file():
            raise UserError(f"samples.references: {path} of role {role} is no file: correct the path")
    try:
        text.check(config.samples.prompts)
    except UserError as error:
        raise UserError(f"samples.prompts: {error}") from None


def of_pictures(published: Published | None) -> bool:
    """Whether a model makes clips of pictures alone."""
    return published is not None and published.recipe.task == "i2v"


def _check_images(config: DitConfig, needed: bool) -> None:
    samples = config.samples
    if samples.every and needed and not samples.images:
        raise UserError("samples.images: the model makes clips of pictures: give one for each prompt, or every=0")
    if samples.images and not needed and not {"first", "prefix", "random"} & set(config.given.names):
        raise UserError("samples.images: the model is not trained with a given first frame: leave it out")
    for path in samples.images:
        if (count := probe(path).frames) != 1:
            raise UserError(f"samples.images: {path} has {count} frames where one picture is wanted: give a png of it")


def check_sizes(config: DitConfig, pipeline: LatentVideoPipeline) -> None:
    """Raises UserError for looks of sizes that the model does not make, and for references that cannot be shown beside
    them: before the first step, not at the first look."""
    size = [pipeline.config[name] for name in ("frames", "height", "width")]
    try:
        pipeline.latent_grid(*size)
    except UserError as error:
        raise UserError(f"samples: {error}") from None
    for shown in shown_by(config):
        check_files(pipeline, shown, *size, "samples.references:", "samples.frames")


def looked_at(config: DitConfig, pipeline: LatentVideoPipeline, fps: float, rank: int, world: int) -> dict[int, Row]:
    """By the numbers of their prompts, the looks that this process shares in."""
    prompts, shown = config.samples.prompts, shown_by(config)
    mine = shares(len(prompts), rank, world)
    sampling = Sampling(precision=compute_dtype(config), progress=False, large=True)
    size = [pipeline.config[name] for name in ("frames", "height", "width")]
    seen = [read_references(pipeline, shown[i], *size) if shown else {} for i, _ in mine]
    wanted = [prompts[i] for i, _ in mine]
    words = {"fps": fps, "references": seen, "seed": mine[0][0], "sampling": sampling}
    if config.samples.images:
        images = [fit(read_frames(config.samples.images[i], 0, 1), *size[1:])[0] for i, _ in mine]
        clips = image_to_video(pipeline, images, wanted, size[0], **words)
    else:
        clips = pipeline(wanted, **words, output_type="uint8").frames
    return {i: Row([clip], prompts[i]) for (i, counts), clip in zip(mine, clips, strict=True) if counts}


def shown_by(config: DitConfig) -> list[list[tuple[str, Path]]]:
    """(role, file) of each reference of each prompt that the looks show."""
    return [
        [(role, path) for role, value in each.items() for path in several(value)] for each in config.samples.references
    ]
