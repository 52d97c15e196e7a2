"""A storage behind URLs for tests: fsspec's memory://, whose requests are counted and may be made to fail."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from latentvid.data.access import remote


class Far:
    """fetched: bytes that were asked for. fault: called with each request's path; what it returns is raised."""

    def __init__(self) -> None:
        self.fs = fsspec.filesystem("memory")
        self.fetched, self.requests = 0, 0
        self.fault: Callable[[str], Exception | None] = lambda path: None

    def request(self, path: str, size: int = 0) -> None:
        self.requests += 1
        if (error := self.fault(path)) is not None:
            raise error
        self.fetched += size

    def put(self, file: Path, name: str) -> str:
        self.fs.pipe_file(f"/bucket/{name}", file.read_bytes())
        return f"memory://bucket/{name}"

    def put_folder(self, folder: Path) -> str:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                self.put(file, file.relative_to(folder).as_posix())
        return "memory://bucket"


def far_storage(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Far]:
    """An empty bucket, and an empty cache on disk. No pause takes time."""
    monkeypatch.setenv("LATENTVID_CACHE", str(cache))
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    remote._statuses.clear()
    far, read, info = Far(), MemoryFileSystem.cat_file, MemoryFileSystem.info
    far.fs.store.clear()
    far.fs.pseudo_dirs[:] = [""]

    def cat_file(self, path, start=None, end=None, **named):
        far.request(path, end - start)
        return read(self, path, start=start, end=end, **named)

    def asked_info(self, path, **named):
        far.request(path)
        return info(self, path, **named)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    monkeypatch.setattr(MemoryFileSystem, "info", asked_info)
    yield far
    far.fs.store.clear()
    remote._statuses.clear()


def as_tar(manifest: Path, out: Path) -> Path:
    """A shard in WebDataset's layout of a manifest of JSON lines, in its order; facts go into KEY.json."""
    with tarfile.open(out, "w") as tar:
        for number, line in enumerate(manifest.read_text(encoding="utf-8").splitlines()):
            row = json.loads(line)
            file = manifest.parent / row.pop("path")
            parts = {file.suffix: file.read_bytes(), ".txt": row.pop("caption").encode()}
            for ending, data in {**parts, ".json": json.dumps(row).encode()}.items():
                info = tarfile.TarInfo(f"{number:04d}{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return out


def as_parquet(manifest: Path, out: Path, rows_per_group: int = 5) -> Path:
    """As `datasets` writes a column of videos: structs of bytes and path."""
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    files = [manifest.parent / row["path"] for row in rows]
    table = pyarrow.table(
        {
            "video": [{"bytes": file.read_bytes(), "path": file.name} for file in files],
            "text": [row["caption"] for row in rows],
        }
    )
    pyarrow.parquet.write_table(table, out, row_group_size=rows_per_group)
    return out
