"""Small footage with shots, and what runs a curation's units in this process."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentvid.data.video.writing import write_video

FPS = 8.0


def shot(seed: int, frames: int, height: int = 72, width: int = 96, step: int = 1) -> np.ndarray:
    """Blobs that move to the right by `step` pixels a frame: uint8 [F,H,W,3]."""
    draw = np.random.default_rng(seed)
    coarse = torch.from_numpy(draw.uniform(0, 255, (1, 3, 9, 24))).float()
    wide = torch.nn.functional.interpolate(coarse, (height, 3 * width), mode="bicubic").clamp(0, 255)
    picture = wide[0].permute(1, 2, 0).numpy().astype(np.uint8)
    return np.stack([picture[:, width - n * step % width :][:, :width] for n in range(frames)])


def write(path: Path, *shots: np.ndarray, crf: int = 12, fps: float = FPS) -> Path:
    write_video(path, torch.from_numpy(np.concatenate(shots)), fps, crf=crf)
    return path


class Loop:
    """Units one after the other in this process. turned: from the last on. stop: after so many, as a kill would."""

    def __init__(self, turned: bool = False, stop: int | None = None) -> None:
        self.turned, self.stop, self.done = turned, stop, 0

    def map(
        self, make: Callable[[], Callable], units: Iterable[tuple[str, Any]], *, network: bool
    ) -> Iterator[tuple[str, Any]]:
        work = make()
        for key, unit in sorted(units, reverse=self.turned):
            if self.done == self.stop:
                raise KeyboardInterrupt
            yield key, work(unit)
            self.done += 1


def in_a_loop(**how: Any) -> Callable:
    """What `curate` takes as `running`."""
    loop = Loop(**how)

    @contextmanager
    def running() -> Iterator[Loop]:
        yield loop

    running.loop = loop
    return running
