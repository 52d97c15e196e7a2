"""Segments as files of their own, where that is asked for: cut out, without their borders."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from ..data.access.remote import write_object
from ..data.storage import patiently
from ..data.video.writing import clip_writer
from ..places import is_url, join
from .networks import without_borders
from .probing import Row, each_frame

CRF = 12  # of H.264: far below what training at usual sizes shows


def encoded_name(row: Mapping[str, Any]) -> str:
    """Of a segment's file, in the folder of outputs."""
    return f"clips/{row['source']}/{row['first']:08d}.mp4"


def encode_segments(out: str) -> Callable[[Mapping[str, Any]], list[str]]:
    """What writes the segments of a unit below `out`, a folder or a URL, and says their names."""

    def encode(unit: Mapping[str, Any]) -> list[str]:
        for segment in unit["segments"]:
            if not is_url(out):
                _encode(unit["file"], segment, os.path.join(out, segment["encoded"]))
                continue
            with TemporaryDirectory(prefix="latentvid-") as folder:
                made, there = os.path.join(folder, "segment.mp4"), join(out, segment["encoded"])
                _encode(unit["file"], segment, made)
                patiently(partial(write_object, there, made), there)
        return [segment["encoded"] for segment in unit["segments"]]

    return encode


def _encode(path: str, segment: Mapping[str, Any], out: str) -> None:
    with ExitStack() as stack:
        write: list[Callable] = []

        def take(_: int, frame: np.ndarray) -> None:
            pixels = np.ascontiguousarray(without_borders(frame[None], segment))
            if not write:
                height, width = pixels.shape[1:3]
                write.append(stack.enter_context(clip_writer(out, height, width, segment["fps"], crf=CRF)))
            write[0](torch.from_numpy(pixels))

        each_frame(path, segment["first"], segment["count"], take, None)


def encoded_size(row: Row) -> tuple[int, int]:
    """(height, width) of a segment without its borders."""
    return (
        row["height"] - row["border_top"] - row["border_bottom"],
        row["width"] - row["border_left"] - row["border_right"],
    )
