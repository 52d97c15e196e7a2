"""The first stages, of a file: what it is, where its shots begin, and which segments of them can be trained on."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
from torch import Tensor

from ..data.access.files import status
from ..data.transforms import legal_frames
from ..data.video.decoding import converter_of, decoded
from ..data.video.images import is_image, opened_image
from ..data.video.opening import opened_video
from ..data.video.reading import probe, read_windows
from ..data.video.showing import orientation
from ..data.video.view import exact, place, taken
from ..errors import UserError
from .settings import Segments, Shots

Row = dict[str, Any]
CUT_AREA = 256 * 144  # pixels that frames are fitted to for the shot detectors, as PySceneDetect does
WINDOW = 64  # frames of a file that are held at once
SHORT = 1024  # frames that `each_frame` reads one by one
GAP = 64  # frames between two segments that are worth reading through
USUAL = {"adaptive": 3.0, "content": 27.0, "transnet": 0.5}


def probed(row: Mapping[str, Any]) -> Row:
    """What a file is, with the columns of `columns.COLUMNS` that tell of files. row: `file` and `source`.

    Raises ClipError, as `data.video.reading.probe` does.
    """
    path = row["file"]
    found = probe(path)
    facts: Row = {"frames": found.frames, "fps": found.fps, "height": found.height, "width": found.width}
    size, seconds = status(path).st_size, found.frames / found.fps if found.fps else 0.0
    facts["kbps"] = round(size / 125 / seconds, 1) if seconds else None
    facts |= _of_image(path) if is_image(path) else _of_video(path)
    name = os.path.basename(row["source"])
    return {**row, "stem": os.path.splitext(name)[0], **facts}


def _of_image(path: str) -> Row:
    with opened_image(path) as image:
        return {"container": "image", "codec": (image.format or "").lower(), "pixel_format": image.mode}


def _of_video(path: str) -> Row:
    with opened_video(path) as video:
        first = next(decoded(path, video))
        converter_of(path, video).size(first)
        context = video.stream.codec_context
        return {
            "container": video.format,
            "codec": video.codec,
            "pixel_format": context.format.name if context.format else None,
            "rotation": _degrees(orientation(first)),
            "matrix": int(first.colorspace),
            "primaries": int(first.color_primaries),
            "transfer": int(first.color_trc),
        }


def _degrees(turned: tuple[bool, bool, bool]) -> int:
    """Of (transposed, then mirrored up and down, then left and right): clockwise; a mirror alone turns nothing."""
    return {(False, True, True): 180, (True, False, True): 90, (True, True, False): 270}.get(turned, 0)


def fitted_size(height: int, width: int, area: int) -> tuple[int, int]:
    """(height, width) of at most about `area` pixels, of the same shape, never enlarged; 16 a side at least."""
    scale = min(1.0, (area / (height * width)) ** 0.5)
    return max(min(height, 16), round(height * scale)), max(min(width, 16), round(width * scale))


def each_frame(
    path: str, first: int, count: int, then: Callable[[int, np.ndarray], None], size: tuple[int, int] | None
) -> None:
    """Calls `then` with the number, and the pixels uint8 [H,W,3] fitted to `size` (None: as they are), of frames
    [first, first + count) of a file, in their order; few are in memory at once.

    Raises ClipError, as `read_windows` does.
    """
    length = 1 if count <= SHORT else WINDOW  # windows of one frame cost the square of their number
    starts = list(range(first, first + count - length + 1, length))
    if starts[-1] + length < first + count:
        starts.append(first + count - length)
    done = first

    def hand_on(n: int, pixels: Tensor) -> None:
        nonlocal done
        for number, frame in enumerate(pixels.numpy(), starts[n]):
            if number >= done:
                then(number, frame)
                done = number + 1

    read_windows(path, starts, length, hand_on, size)


# ------------------------------------------------------------------------------------------------------------- shots


def cut(row: Mapping[str, Any], shots: Shots) -> Row:
    """The row with `cuts`: numbers of the frames that begin a shot, but for the first; ascending.

    Raises ClipError, and UserError where PySceneDetect is not installed.
    """
    if shots.detector == "none" or row["frames"] < 2 or not row["fps"]:
        return {**row, "cuts": []}
    timecode, detector = _detector(shots, row["fps"])
    cuts: list[int] = []

    def look(number: int, frame: np.ndarray) -> None:
        cuts.extend(found.frame_num for found in detector.process_frame(timecode(number), frame[..., ::-1]))

    each_frame(row["file"], 0, row["frames"], look, fitted_size(row["height"], row["width"], CUT_AREA))
    cuts.extend(found.frame_num for found in detector.post_process(timecode(row["frames"] - 1)))
    return {**row, "cuts": sorted({number for number in cuts if 0 < number < row["frames"]})}


def _detector(shots: Shots, fps: float) -> tuple[Callable[[int], Any], Any]:
    """What makes a time of a frame's number, and PySceneDetect's detector."""
    try:
        from scenedetect import FrameTimecode
        from scenedetect.detectors import AdaptiveDetector, ContentDetector
        from scenedetect.detectors.transnet_v2 import TransnetV2Detector
    except ImportError as error:
        raise UserError("shots are cut by PySceneDetect: pip install latentvid[curation], or detector: none") from error
    rate, shortest = float(exact(fps)), max(1, round(shots.shortest_s * fps))
    threshold = USUAL[shots.detector] if shots.threshold is None else shots.threshold
    if shots.detector == "adaptive":
        made = AdaptiveDetector(threshold, shortest, min_content_val=shots.min_content)
    elif shots.detector == "content":
        made = ContentDetector(threshold, shortest)
    else:
        try:
            made = TransnetV2Detector(str(shots.weights), ["CPUExecutionProvider"], threshold, shortest)
        except ImportError as error:
            raise UserError("shots.detector=transnet needs the package onnxruntime: pip install onnxruntime") from error
    return lambda number: FrameTimecode(number, rate), made


# ---------------------------------------------------------------------------------------------------------- segments


def segments(row: Mapping[str, Any], wanted: Segments) -> tuple[list[Row], list[tuple[float, str]]]:
    """(the segments of a file's shots, what is left out as (seconds, reason)); nothing is read.

    A segment has `first` and `count`, frames of the file, `start` and `end` in seconds, `length` in frames at the
    wanted rate: 1 + k * temporal_stride of them, as many as there are, at most max_frames. An image is one, whole.
    """
    if row["frames"] == 1:
        return [{"shot": 0, "first": 0, "count": 1, "start": None, "end": None, "seconds": 0.0, "length": 1}], []
    if not row["fps"]:
        return [], [(0.0, "unknown-rate")]
    own, rate = exact(row["fps"]), None if wanted.fps is None else exact(wanted.fps)
    if rate is not None and own < rate:
        return [], [(float(row["frames"] / own), "slower-than-fps")]
    made: list[Row] = []
    left: list[tuple[float, str]] = []
    edges = [0, *row["cuts"], row["frames"]]
    for shot, (begin, end) in enumerate(zip(edges, edges[1:], strict=False)):
        first = begin + (wanted.margin if shot else 0)
        last = end - (wanted.margin if end < row["frames"] else 0)
        while (length := _length(last - first, own, rate, wanted)) >= wanted.min_frames:
            count = _needed(length, own, rate)
            made.append({"shot": shot, **_times(first, count, own), "length": length})
            first += count
        if last > first:
            reason = "short-shot" if first == begin + (wanted.margin if shot else 0) else "remainder"
            left.append((float((last - first) / own), reason))
    return made, left


def _length(count: int, own: Fraction, rate: Fraction | None, wanted: Segments) -> int:
    """Frames of the longest legal segment of so many of the file's."""
    if count < 1:
        return 0
    shown = count if rate is None else int(taken(count, own, rate))
    return legal_frames(min(shown, wanted.max_frames), wanted.temporal_stride)


def _needed(length: int, own: Fraction, rate: Fraction | None) -> int:
    """The fewest of the file's frames of which so many are taken."""
    if rate is None:
        return length
    count = max(1, int((length - 1) * own / rate))
    while taken(count, own, rate) < length:
        count += 1
    while count > 1 and taken(count - 1, own, rate) >= length:
        count -= 1
    return count


def _times(first: int, count: int, own: Fraction) -> Row:
    """Times are rounded to microseconds; readers find the frames by them (`data.video.view.place`)."""
    start, end = (round(float(n / own), 6) for n in (first, first + count))
    if (int(place(start, float(own))), int(place(end, float(own)))) != (first, first + count):
        raise AssertionError(f"frames {first} to {first + count} at {own} are not those from {start} to {end} s")
    return {"first": first, "count": count, "start": start, "end": end, "seconds": round(float(count / own), 6)}


def groups(found: list[Row]) -> list[list[Row]]:
    """Segments of a file that are worth reading in one go."""
    made: list[list[Row]] = []
    for segment in found:
        before = made[-1] if made else None
        end = segment["first"] + segment["count"]
        if (
            before is None
            or end - before[0]["first"] > SHORT
            or segment["first"] - before[-1]["first"] - before[-1]["count"] > GAP
        ):
            made.append([])
        made[-1].append(segment)
    return made
