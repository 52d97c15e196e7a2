"""How much may be uploaded: in bytes, files, frames and seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..data.video.kinds import IMAGE_ENDINGS, VIDEO_ENDINGS
from ..data.video.reading import probe
from ..errors import ClipError, UserError


@dataclass(frozen=True)
class Limits:
    """megabytes: of a file. files, gigabytes: of all uploads that lie in the studio's temporary folder at a time.
    seconds, frames: of a video."""

    megabytes: int = 500
    files: int = 1000
    gigabytes: float = 10.0
    seconds: float = 300.0
    frames: int = 20_000


ENDINGS = sorted(IMAGE_ENDINGS | VIDEO_ENDINGS)


def check_upload(path: Path, limits: Limits) -> None:
    """Raises UserError for a file that is no video or picture, or beyond the limits. The message names no folder."""
    name = path.name[:80]
    if path.suffix.lower() not in ENDINGS or path.is_symlink() or not path.is_file():
        raise UserError(f"{name}: give a video or a picture")
    if path.stat().st_size > limits.megabytes * 1_000_000:
        raise UserError(f"{name}: larger than {limits.megabytes} MB: give a smaller file, or --max-megabytes more")
    try:
        found = probe(path)
    except ClipError as error:
        raise UserError(str(error).replace(str(path), name)) from None
    if found.frames > limits.frames or (found.fps and found.frames / found.fps > limits.seconds):
        raise UserError(
            f"{name}: {found.frames:,} frames, and at most {limits.frames:,} in {limits.seconds:g} s can be: cut it, "
            "or give --max-seconds more"
        )
