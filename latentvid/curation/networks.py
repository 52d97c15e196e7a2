"""Measures by networks, and by functions of one's own, of a few frames of each segment."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from ..data.video.reading import read_windows
from ..errors import UserError
from ..evaluation.prompts.clip_similarity import open_clip
from ..evaluation.rows import Clip
from ..evaluation.vbench.quality import AestheticRows
from .settings import Measures
from .text_share import TextDetector


def looked_at(path: str, segment: Mapping[str, Any], frames: int) -> np.ndarray:
    """So many frames (or all) of a segment, evenly spaced, without its borders: uint8 [F,H,W,3]."""
    count, first = segment["count"], segment["first"]
    picks = np.unique(((np.arange(frames) + 0.5) * count / frames).astype(int))
    found = read_windows(path, [first + int(n) for n in picks], 1, lambda _, pixels: pixels.clone())
    return np.ascontiguousarray(np.concatenate([without_borders(each.numpy(), segment) for each in found]))


def without_borders(pixels: np.ndarray, segment: Mapping[str, Any]) -> np.ndarray:
    """Frames [F,H,W,3] of the file's own size -> those without the segment's borders."""
    top, bottom, left, right = (segment.get(f"border_{side}") or 0 for side in ("top", "bottom", "left", "right"))
    return pixels[:, top : pixels.shape[1] - bottom, left : pixels.shape[2] - right]


class Networks:
    """What `measures.networks` (but for CLIP), `text` and `own` ask for. Raises UserError where it is not there."""

    def __init__(self, settings: Measures) -> None:
        self.frames = settings.frames
        self.aesthetic = (
            AestheticRows(settings.weights, computing_device()) if "aesthetic" in settings.networks else None
        )
        self.text = None if settings.text is None else TextDetector(settings.text)
        self.own = {name: own_function(text) for name, text in settings.own.items()}

    def __call__(self, unit: Mapping[str, Any]) -> list[dict[str, float | None]]:
        """Of segments of a file."""
        return [self._measures(looked_at(unit["file"], each, self.frames)) for each in unit["segments"]]

    def _measures(self, pixels: np.ndarray) -> dict[str, float | None]:
        found: dict[str, float | None] = {}
        if self.aesthetic is not None:
            found["aesthetic"] = _figure(float(self.aesthetic(Clip(torch.from_numpy(pixels))).mean()))
        if self.text is not None:
            found["text"] = _figure(self.text(pixels))
        for name, function in self.own.items():
            value = function(pixels)
            if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
                raise UserError(f"measures.own.{name} gave {value!r:.40}: it must give a number")
            found[name] = _figure(float(value))
        return found


class ClipFit:
    """How well captions fit, by CLIP. Raises UserError where there is none."""

    def __init__(self, settings: Measures) -> None:
        self.frames, self.network = settings.frames, open_clip(settings.weights, computing_device())

    def __call__(self, unit: Mapping[str, Any]) -> list[dict[str, float | None]]:
        """Of segments of a file, each with its `caption`: 100 times the mean cosine of the frames and that."""
        made = []
        for segment in unit["segments"]:
            pixels = torch.from_numpy(looked_at(unit["file"], segment, self.frames))
            similar = self.network.images(pixels) @ self.network.text(segment["caption"])[0]
            made.append({"clip": _figure(100 * float(similar.mean()))})
        return made


def computing_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _figure(value: float) -> float | None:
    return None if value != value else float(f"{value:.5g}")


def own_function(text: str) -> Callable[[np.ndarray], Any]:
    """Of module:function; modules of the working folder count. Raises UserError."""
    module, _, name = text.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"measures.own: {text} is not there ({error}): write module:function") from error
    if not callable(found):
        raise UserError(f"measures.own: {text} is no function")
    return found
