"""The columns of a curated manifest: what is known of a file, what is measured of a segment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FILE, SEGMENT = "file", "segment"
MEASURED, LOOKED_AT, CAPTIONED, COMPARED = range(4)  # stages, in their order


@dataclass(frozen=True)
class Column:
    """kind: of its values. of: what it tells of. stage: what it is known after."""

    kind: Literal["number", "text"]
    of: str
    meaning: str
    stage: int = MEASURED


COLUMNS: dict[str, Column] = {
    "source": Column("text", FILE, "the file, relative to the footage's folder"),
    "stem": Column("text", FILE, "its name without the ending"),
    "container": Column("text", FILE, "format, as FFmpeg names it"),
    "codec": Column("text", FILE, "of the main video stream; of an image its format"),
    "pixel_format": Column("text", FILE, "as FFmpeg names it"),
    "rotation": Column("number", FILE, "degrees that players turn it by: 0, 90, 180, 270"),
    "matrix": Column("number", FILE, "of the colours, by H.273 (1: BT.709, 2: not said)"),
    "primaries": Column("number", FILE, "of the colours, by H.273"),
    "transfer": Column("number", FILE, "curve of the colours, by H.273 (16: PQ, 18: HLG)"),
    "kbps": Column("number", FILE, "kilobits a second, of the whole file"),
    "fps": Column("number", FILE, "frames a second; 0 of an image"),
    "frames": Column("number", FILE, "of the whole file"),
    "height": Column("number", FILE, "pixels, as shown"),
    "width": Column("number", FILE, "pixels, as shown"),
    "shot": Column("number", SEGMENT, "which shot of its file, from 0"),
    "start": Column("number", SEGMENT, "seconds after the file's first frame"),
    "end": Column("number", SEGMENT, "seconds after the file's first frame"),
    "seconds": Column("number", SEGMENT, "its length"),
    "length": Column("number", SEGMENT, "its length in frames, at segments.fps where that is given"),
    "border": Column("number", SEGMENT, "share of the picture that black borders take"),
    "border_top": Column("number", SEGMENT, "pixels"),
    "border_bottom": Column("number", SEGMENT, "pixels"),
    "border_left": Column("number", SEGMENT, "pixels"),
    "border_right": Column("number", SEGMENT, "pixels"),
    "motion": Column("number", SEGMENT, "mean optical flow, percent of the diagonal a second (data.motion_column)"),
    "static": Column("number", SEGMENT, "share of the picture that stays as it is from the first frame to the last"),
    "blur": Column("number", SEGMENT, "0 (sharp) to 1, by Crete et al. 2007"),
    "brightness": Column("number", SEGMENT, "mean luma, 0 to 1"),
    "contrast": Column("number", SEGMENT, "standard deviation of the luma in a frame, 0 to 0.5"),
    "clipped": Column("number", SEGMENT, "share of pixels that are black (luma up to 5 of 255) or white (from 250)"),
    "flicker": Column("number", SEGMENT, "how far a frame's mean luma is from its neighbours' mean, percent of white"),
    "aesthetic": Column("number", SEGMENT, "LAION's predictor, 0 to 1 (measures.networks)", LOOKED_AT),
    "text": Column("number", SEGMENT, "share of the picture that a detector marks as text (measures.text)", LOOKED_AT),
    "clip": Column("number", SEGMENT, "100 times the cosine of frames and caption (measures.networks)", COMPARED),
    "words": Column("number", SEGMENT, "of the caption", CAPTIONED),
}
