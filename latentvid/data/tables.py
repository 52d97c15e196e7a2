"""The tables that manifests are kept in: JSON lines, CSV and Parquet.

A reader gives (line or row number from 1, row as a dict with at least the columns asked for, where there are such)
one after the other, of a table that must have the columns `required`; a writer takes a list of dicts.
"""

import csv
import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from latentvid.errors import UserError


class ManifestError(UserError):
    """A manifest that cannot be used as a whole; the message names it and the fix."""


def _read_jsonl(path: str, wanted: Collection[str], required: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ManifestError(f"{path}, line {number}: not valid JSON ({error.msg}); mend that line") from error
            if not isinstance(row, dict):
                shape = ", ".join(f'"{name}": ...' for name in required)
                raise ManifestError(f"{path}, line {number}: not an object; write {{{shape}}}")
            yield number, row


def _read_csv(path: str, wanted: Collection[str], required: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            names = [name.strip() for name in next(reader, [])]
            _check_columns(path, names, required)
            for cells in reader:
                if cells and len(cells) != len(names):
                    raise ManifestError(
                        f"{path}, line {reader.line_num}: {len(cells)} cells under {len(names)} columns; "
                        "put texts that contain commas in double quotes"
                    )
                if cells:
                    yield reader.line_num, dict(zip(names, cells, strict=True))
        except csv.Error as error:
            raise ManifestError(f"{path}, line {reader.line_num}: not valid CSV ({error}); mend that line") from error


def _read_parquet(path: str, wanted: Collection[str], required: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    with pyarrow.parquet.ParquetFile(path) as file:
        _check_columns(path, file.schema_arrow.names, required)
        names = [name for name in file.schema_arrow.names if name in wanted]
        for batch in file.iter_batches(batch_size=8192, columns=names, use_threads=False):
            names = batch.schema.names
            for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                number += 1
                yield number, dict(zip(names, values, strict=True))
    pyarrow.default_memory_pool().release_unused()  # 100 MB after a million rows


def _check_columns(path: str, names: list[str], required: Sequence[str]) -> None:
    for name in required:
        if name not in names:
            raise ManifestError(
                f"{path} has no column `{name}` (it has: {', '.join(names) or 'none'}); add or rename it"
            )


def _write_jsonl(path: Path, table: list[dict[str, Any]]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table)


def _write_csv(path: Path, table: list[dict[str, Any]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in table for name in row)))
        writer.writeheader()
        writer.writerows(table)


def _write_parquet(path: Path, table: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in table for name in row))
    columns = {name: [row.get(name) for row in table] for name in names}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


READERS = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
WRITERS = {".jsonl": _write_jsonl, ".csv": _write_csv, ".parquet": _write_parquet}
