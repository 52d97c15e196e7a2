"""What inference scripts write: clips whole, or as they are made; nothing that was made is lost with its output.

Axes: F frames, H height, W width in pixels.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..data.video.writing import clip_writer, copies_audio, has_full_range, write_video
from ..errors import UserError, brief, message_of
from ..files import check_target, part_of
from ..words import counted
from .defaults import ENDINGS, STREAMED
from .inputs import Footage
from .limit import check_room
from .sources import Source

MOST_GIF = 50  # frames a second


def check_output(path: Path, fps: float | None = None, count: int = 1) -> None:
    """Raises UserError for what cannot be written (of so many clips): before the work, not after it."""
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"--output {path}: the name must end in {', '.join(ENDINGS)}")
    if path.suffix.lower() == ".gif" and (fps or 0) > MOST_GIF:
        raise UserError(f"--fps {fps:g}: a gif plays at most {MOST_GIF} frames a second; lower it or write an .mp4")
    for i in {0, count - 1}:
        check_target(numbered(path, i, count))


def check_stream(path: Path) -> None:
    """As `check_output`, for what is written while it is made."""
    if path.suffix.lower() not in STREAMED:
        raise UserError(f"--output {path}: the name must end in {' or '.join(STREAMED)}, written as it is made")
    check_target(path)


def numbered(path: Path, i: int, count: int) -> Path:
    """The output's name of the i-th of so many clips."""
    return path if count == 1 else path.with_name(f"{path.stem}-{i}{path.suffix}")


def write(
    path: Path, frames: Tensor, fps: float, said: str, *, sound: Footage | Source | None = None, rate: float = 1
) -> None:
    """Writes uint8 [F,H,W,3] by the ending of `path` and prints "path: said".

    sound: footage that the frames run along with, with `rate` frames for each of its own: its audio is copied where
    the output can hold it, and what is left out is said.
    """
    copied, codec = (False, None) if sound is None else copies_audio(sound.path, path)
    if codec is not None:
        copied = copied and abs(fps - rate * sound.fps) < 1e-3 * fps
        said += f" (with its audio, {codec})" if copied else f" (without its audio, {codec}: another speed or format)"
    try:
        if copied:
            with clip_writer(path, *frames.shape[1:3], fps, audio=sound.path) as append:
                append(frames)
        else:
            write_video(path, frames, fps)
    except (UserError, OSError, ValueError, RuntimeError) as error:  # PyAV's errors are of the last three
        raise UserError(saved_elsewhere(path, frames, fps, error)) from error
    print(f"{path}: {said}", flush=True)


def write_all(path: Path, clips: Sequence[Tensor], fps: float, said: Sequence[str]) -> None:
    """As `write`, of several, numbered. One that cannot be written does not keep the others from it."""
    failed = []
    for i, (clip, words) in enumerate(zip(clips, said, strict=True)):
        try:
            write(numbered(path, i, len(clips)), clip, fps, words)
        except UserError as error:
            failed.append(str(error))
    if failed:
        raise UserError("; ".join(failed))


def saved_elsewhere(path: Path, frames: Tensor, fps: float, error: Exception) -> str:
    """Writes a clip that its output did not take beside it, or where temporary files go, and says where it is."""
    why = f"{path} cannot be written ({brief(error)})"
    digest = hashlib.sha256(str(path).encode("utf-8", "surrogatepass")).hexdigest()[:8]
    for folder in (path.parent, Path(tempfile.gettempdir())):
        other = folder / f"clip-{digest}-{os.getpid()}.mp4"
        try:
            write_video(other, frames, fps)
        except (UserError, OSError, ValueError, RuntimeError):
            continue
        return f"{why}: the clip is in {other}"
    return f"{why}, nor can its folder or {tempfile.gettempdir()}: the clip is lost; make room and start again"


def write_stream(
    path: Path,
    pieces: Iterable[Tensor],
    size: tuple[int, int],
    fps: float,
    frames: int,
    *,
    given: int = 0,
    sound: Path | None = None,
    full_range: bool = False,
    said: str = "",
) -> None:
    """Writes an mp4 or webm of pieces uint8 [F,H,W,3], one in memory at a time, and shows how many of `frames` are.

    size: (height, width). sound: a video whose audio is copied, as far as it goes, where the output can hold it.
    full_range: as in `clip_writer`. said: what is printed of it beside its length.
    After an error, or Ctrl-C, there is no file, but the frames so far are in one beside it, which the message names;
    not where no more than the first `given` are there, which were not made.
    """
    copied, codec = (False, None) if sound is None else copies_audio(sound, path)
    partial, done = partial_beside(path), 0
    try:
        with (
            clip_writer(
                path,
                *size,
                fps,
                audio=sound if copied else None,
                full_range=full_range,
                partial=lambda: partial if done > given else None,
            ) as append,
            tqdm(total=frames, desc=path.name, unit="frame", disable=None) as bar,
        ):
            for piece in pieces:
                append(piece)
                done += len(piece)
                bar.update(len(piece))
    except BaseException as error:
        if not partial.is_file():
            raise
        word = f"what was made so far is in {partial}"
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(word) from None
        if (said := message_of(error)) is not None:
            raise UserError(f"{said}; {word}") from error
        error.add_note(word)
        raise
    audio = "" if codec is None else f" (with the input's audio, {codec})" if copied else f" (without audio: {codec})"
    print(f"{path}: {f'{said}, ' if said else ''}{counted(frames, 'frame')}, {frames / fps:.1f} s{audio}", flush=True)


def check_edited(path: Path, source: Source, fps: float, rate: int = 1) -> None:
    """As `check_output`, and raises UserError where a clip that is not written as it is made has no room in memory.
    rate: as in `write_edited`."""
    check_output(path, fps)
    if path.suffix.lower() not in STREAMED:
        check_room(_made_of(source, rate), *source.size)


def _made_of(source: Source, rate: int) -> int:
    return 1 + (source.frames - 1) * rate


def write_edited(
    path: Path, pieces: Iterable[Tensor], source: Source, fps: float, said: str = "", *, rate: int = 1
) -> None:
    """Writes what was made of a clip, in pieces uint8 [F,H,W,3], as it is made where the ending allows that, with the
    clip's audio where it runs as fast as the clip, and its range of colours. rate: frames from one of the clip's to the
    next. Prints "path: said"."""
    frames = _made_of(source, rate)
    if path.suffix.lower() not in STREAMED:
        write(path, torch.cat(list(pieces)), fps, said or counted(frames, "frame"), sound=source, rate=rate)
        return
    alike = abs(fps - rate * source.fps) < 1e-3 * fps
    if not alike and (codec := copies_audio(source.path, path)[1]) is not None:
        said = f"{said} (without its audio, {codec}: another speed)".strip()
    sound, full = source.path if alike else None, has_full_range(source.path)
    write_stream(path, pieces, source.size, fps, frames, sound=sound, full_range=full, said=said)


def partial_beside(path: Path) -> Path:
    """The first free name of NAME.partial.mp4, NAME.partial-1.mp4 and so on, for what was made of NAME.mp4."""
    number = 0
    while True:
        word = f".partial-{number}" if number else ".partial"
        found = path.with_name(f"{part_of(path.stem)}{word}{path.suffix}")
        if not os.path.lexists(found):
            return found
        number += 1
