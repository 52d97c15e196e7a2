"""What would bring a run that waits for its data forward, found out on its own files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from torch import Tensor

from ...data.clips import ClipSource
from ...data.manifest.samples import Sample
from ...data.video.reading import read_windows
from ...data.video.view import View
from ...data.video.writing import write_video
from ...errors import UserError
from ...words import counted

LARGE = 2.0  # times the pixels that are trained on
SHARE = 0.2  # of the time, from which waiting is worth a word


@dataclass(frozen=True)
class Prescaling:
    """Seconds to read a window from its file, and from a copy in the size (height, width) that is trained on."""

    sample: Sample
    size: tuple[int, int]
    frames: int
    now: float
    then: float


def measure(clips: ClipSource, clock: Callable[[], float] = perf_counter) -> Prescaling | None:
    """Of one window in the middle of the data; None where its file is not much larger than what is trained on."""
    index = len(clips) // 2
    window = clips.windows[index]
    sample, size = clips.samples[window.sample], (window.height, window.width)
    if sample.height * sample.width < LARGE * window.height * window.width or window.frames == 1:
        return None

    def read(path: str, start: int, view: View | None = None) -> tuple[float, Tensor]:
        begun = clock()
        (pixels,) = read_windows(path, [start], window.frames, lambda _, pixels: pixels, size, view=view)
        return clock() - begun, pixels

    try:
        now, pixels = read(sample.path, window.start, clips.view(index))
        with tempfile.TemporaryDirectory() as folder:
            copy = str(Path(folder, "copy.mp4"))
            write_video(copy, pixels, clips.rate(index) or 24.0)
            return Prescaling(sample, size, window.frames, now, read(copy, 0)[0])
    except (UserError, OSError):
        return None


def advice(share: float, workers: int, clips: ClipSource | None) -> str:
    """What to say of a run that waited for data for this share of its time; "" where it is not worth a word."""
    if share < SHARE:
        return ""
    said = [
        f"{share:.0%} of the time went into waiting for data, with data.workers={workers}: raise it as far as there "
        "are cores"
    ]
    found = None if clips is None else measure(clips)
    if found is not None:
        sample, (height, width), name = found.sample, found.size, Path(found.sample.path).name
        said.append(
            f"; {counted(found.frames, 'frame')} of {name} ({sample.width}x{sample.height}) take "
            f"{found.now * 1000:.0f} ms to "
            f"read, {found.then * 1000:.0f} ms from a copy of {width}x{height}, which is what is trained on: scale the "
            f"files once (ffmpeg -i IN -vf scale={width}:{height} -crf 16 OUT) and train on the copies"
        )
    return "".join(said)
