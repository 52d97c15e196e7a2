"""Files that hold the clips themselves, read as manifests: tar shards in WebDataset's layout, and Parquet as Hugging
Face `datasets` writes columns of videos and images. No clip is opened: a row names where one lies.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow
import pyarrow.parquet

from ...errors import ClipError
from ...places import name_of, shown
from ..access.files import opened, tar_index
from ..video.kinds import IMAGE_ENDINGS, VIDEO_ENDINGS
from .captions import encoding_of
from .fault import ManifestError

_IMAGE_NAMES = ("image", "img", "images", "picture", "photo", "jpg", "jpeg", "png", "webp")
_BINARY = (pyarrow.types.is_binary, pyarrow.types.is_large_binary)
_IMAGE_HEADS = (b"\xff\xd8", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")


def read_tar(path: str, clips: Sequence[str], caption: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, row) of each sample of a shard that has a video or an image: its name behind the shard's, as
    `clips[0]`; what KEY.json holds; and as `caption` the text of KEY.txt, where there is one.

    clips: endings that count alone, such as "mp4", or the usual names of a manifest's column: any video, or else image.
    """
    number = 0
    try:
        index = tar_index(path)
    except ClipError as error:
        raise ManifestError(str(error)) from error
    for key, files in index.samples():
        name = _clip_of(files, clips)
        if name is None:
            continue
        number += 1
        row: dict[str, Any] = {}
        if ".json" in files and files[".json"] in index.texts:
            row |= _json(path, key, index.texts[files[".json"]])
        if ".txt" in files and files[".txt"] in index.texts:
            data = index.texts[files[".txt"]]
            row[caption] = data.decode(encoding_of(data), "replace")
        yield number, row | {clips[0]: f"{name_of(path)}/{name}"}


def _clip_of(files: Mapping[str, str], clips: Sequence[str]) -> str | None:
    chosen = [ending for each in clips if (ending := "." + each.lstrip(".").lower()) in files]
    videos = [ending for ending in files if ending in VIDEO_ENDINGS]
    images = [ending for ending in files if ending in IMAGE_ENDINGS]
    return next((files[ending] for ending in (*chosen, *videos, *images)), None)


def _json(path: str, key: str, data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data.decode(encoding_of(data)))
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{shown(path)}: {key}.json is not valid JSON ({error!s:.200}); pack it again") from error
    if not isinstance(found, dict):
        raise ManifestError(f"{shown(path)}: {key}.json is not an object; pack it again")
    return found


@dataclass(frozen=True)
class CellColumn:
    """A column that holds the clips' files. leaf: what is read of it to make rows, if anything; ending: of a file that
    has no name. outside: its cells are names of files, and hold none."""

    name: str
    leaf: str | None
    ending: str
    outside: bool = False

    def place(self, path: str, row: int, value: Any) -> str | None:
        """Where the clip of a row (from 0) lies, by what was read of its cell."""
        name = value.get("path") if isinstance(value, dict) else None
        if self.outside:
            return name
        ending = os.path.splitext(name)[1].lower() if isinstance(name, str) else ""
        ending = ending if ending in IMAGE_ENDINGS | VIDEO_ENDINGS else self.ending
        return f"{name_of(path)}/{self.name}/{row}{ending}"


def cell_column(path: str, file: pyarrow.parquet.ParquetFile, names: Sequence[str]) -> CellColumn | None:
    """The column of clips, where the table has none of `names` that holds paths. Raises ManifestError where several
    columns could be it."""
    schema = file.schema_arrow
    named = [name for name in names if name in schema.names]
    if any(not _holds_files(schema.field(name).type) for name in named):
        return None
    found = named or [field.name for field in schema if _holds_files(field.type)]
    if len(found) > 1:
        raise ManifestError(f"{shown(path)} has several columns of files ({', '.join(found)}): set data.path_column")
    if not found:
        return None
    name, kind = found[0], schema.field(found[0]).type
    if not pyarrow.types.is_struct(kind):
        return CellColumn(name, None, _ending(path, file, name))
    outside = _is_null(file, f"{name}.bytes")
    has_path = kind.get_field_index("path") >= 0
    return CellColumn(name, f"{name}.path" if has_path else None, _ending(path, file, name), outside)


def _holds_files(kind: pyarrow.DataType) -> bool:
    if pyarrow.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return at >= 0 and any(fits(kind.field(at).type) for fits in _BINARY)
    return any(fits(kind) for fits in _BINARY)


def _is_null(file: pyarrow.parquet.ParquetFile, leaf: str) -> bool:
    """Whether no cell of a column holds anything, by what the file says."""
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    chunks = [chunk for chunk in columns if chunk.path_in_schema == leaf]
    return bool(chunks) and all(c.statistics is not None and c.statistics.null_count == c.num_values for c in chunks)


def _ending(path: str, file: pyarrow.parquet.ParquetFile, name: str) -> str:
    """By what `datasets` notes of the column, or its name, or the first file in it."""
    noted = (file.schema_arrow.metadata or {}).get(b"huggingface")
    try:
        kind = json.loads(noted)["info"]["features"][name]["_type"] if noted else None
    except (ValueError, KeyError, TypeError):
        kind = None
    if kind in ("Image", "Video"):
        return ".png" if kind == "Image" else ".mp4"
    if name.lower() in _IMAGE_NAMES or name.lower() in ("video", "mp4", "clip") or not file.metadata.num_rows:
        return ".png" if name.lower() in _IMAGE_NAMES else ".mp4"
    with opened(f"{path}/{name}/0") as first:
        head = first.read(12)
    return ".png" if head.startswith(_IMAGE_HEADS) or head[8:] == b"WEBP" else ".mp4"
