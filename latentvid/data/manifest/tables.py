"""The tables that manifests are kept in: JSON lines, CSV, TSV and Parquet.

A reader gives (line or row number from 1, row as a dict with at least the columns asked for, where there are such)
one after the other, of a table that must have a column of each group of names in `required`; a writer takes a list of
dicts. Texts are UTF-8, or UTF-16 or UTF-32 where that is certain.
"""

import csv
import io
import json
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow
import pyarrow.parquet

from ...places import is_url
from ..access.files import exists, is_plain, opened, status
from ..access.shards import expanded, is_several
from .captions import encoding_of
from .fault import ManifestError
from .shards import cell_column, read_tar

LONGEST_LINE = 1 << 24  # bytes; longer ones are no rows
MOST_ROWS = 1 << 27  # some parquet of a few kilobytes says that it has billions

Required = Sequence[Sequence[str]]  # groups of names, of each of which a table must have one


def files_of(path: str) -> list[str]:
    """Those that a manifest's name stands for. Raises ManifestError where there is none."""
    files = expanded(path) if is_several(path) else [path]
    if not exists(files[0]):
        raise ManifestError(f"{path}: there is no such manifest; correct the path or {MAKE_ONE}")
    for file in files if not is_url(path) else ():
        check_is_file(file)
    return files


def check_is_file(path: str) -> None:
    """Raises ManifestError for what opening would wait for, or never end to read."""
    mode = status(path).st_mode
    if not stat.S_ISREG(mode):
        kind = "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
        raise ManifestError(f"{path} is {kind}, not a file: write the table into a file, and name that")


def _lines(path: str) -> Iterator[str]:
    """The lines of a text, with their ends."""
    with opened(path) as file:
        encoding = encoding_of(file.read(4096))
    if encoding.startswith("utf-8"):
        with opened(path) as file:
            yield from _decoded(path, file)
        return
    with io.TextIOWrapper(opened(path), encoding=encoding, newline="\n") as file:
        number = 0
        try:
            while line := file.readline(LONGEST_LINE):
                number += 1
                _check_length(path, number, line)
                yield line
        except UnicodeError as error:
            where = f"{path}, after line {number}"
            raise ManifestError(f"{where}: not {encoding.upper()} text ({error}); save it as UTF-8") from error


def _decoded(path: str, file: BinaryIO) -> Iterator[str]:
    number = 0
    while data := file.readline(LONGEST_LINE):
        number += 1
        _check_length(path, number, data)
        try:
            line = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ManifestError(
                f"{path}, line {number}: not UTF-8 text ({error.reason}); save the file as UTF-8 (iconv -f ENCODING "
                "-t UTF-8)"
            ) from error
        yield line.removeprefix("\ufeff") if number == 1 else line


def _check_length(path: str, number: int, line: str | bytes) -> None:
    if len(line) == LONGEST_LINE:
        raise ManifestError(f"{path}, line {number}: is longer than any row ({LONGEST_LINE:,} bytes); mend that line")


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"`{next(n for n in names if names.count(n) > 1)}` stands there twice")
    return row


def _read_jsonl(path: str, wanted: Collection[str], required: Required) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_lines(path), 1):
        if line.isspace():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_no_doubles)
        except (ValueError, RecursionError) as error:
            why = getattr(error, "msg", None) or str(error)
            raise ManifestError(f"{path}, line {number}: not valid JSON ({why:.200}); mend that line") from error
        if not isinstance(row, dict):
            shape = ", ".join(f'"{names[0]}": ...' for names in required)
            raise ManifestError(f"{path}, line {number}: not an object; write {{{shape}}}")
        yield number, row


def _read_csv(
    path: str, wanted: Collection[str], required: Required, delimiter: str = ","
) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(_lines(path), strict=True, delimiter=delimiter)
    try:
        names = [name.strip() for name in next(reader, [])]
        _check_columns(path, names, wanted, required)
        for cells in reader:
            if cells and len(cells) != len(names):
                raise ManifestError(
                    f"{path}, line {reader.line_num}: {len(cells)} cells under {len(names)} columns; "
                    f"put texts that contain {'tabs' if delimiter != ',' else 'commas'} in double quotes"
                )
            if cells:
                yield reader.line_num, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise ManifestError(f"{path}, line {reader.line_num}: not valid CSV ({error}); mend that line") from error


def _read_parquet(path: str, wanted: Collection[str], required: Required) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    with nullcontext(path) if is_plain(path) else opened(path) as source, pyarrow.parquet.ParquetFile(source) as file:
        if file.metadata.num_rows > MOST_ROWS:
            raise ManifestError(f"{path} says that it has {file.metadata.num_rows:,} rows; write it in several files")
        names = file.schema_arrow.names
        cells = cell_column(path, file, required[0])
        _check_columns(path, names, wanted, required if cells is None else required[1:])
        names = [name for name in names if name in wanted and (cells is None or name != cells.name)]
        names += [] if cells is None or cells.leaf is None else [cells.leaf]
        for batch in file.iter_batches(batch_size=8192, columns=names, use_threads=False):
            names = batch.schema.names
            rows = zip(*(column.to_pylist() for column in batch.columns), strict=True)
            for values in rows if batch.columns else ((),) * batch.num_rows:
                row = dict(zip(names, values, strict=True))
                if cells is not None:
                    row[required[0][0]] = cells.place(path, number, row.pop(cells.name, None))
                number += 1
                yield number, row
    pyarrow.default_memory_pool().release_unused()  # 100 MB after a million rows


def _read_tar(path: str, wanted: Collection[str], required: Required) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, row in read_tar(path, required[0], required[1][0]):
        yield number, {name: value for name, value in row.items() if name in wanted}


def holds_clips(path: str, names: Sequence[str]) -> bool:
    """Whether the clips themselves lie in the table, so that no start should read all of it. names: of the columns that
    would hold paths."""
    if path.lower().endswith(".tar"):
        return True
    if not path.lower().endswith(".parquet"):
        return False
    with nullcontext(path) if is_plain(path) else opened(path) as source, pyarrow.parquet.ParquetFile(source) as file:
        return cell_column(path, file, names) is not None


def _check_columns(path: str, names: list[str], wanted: Collection[str], required: Required) -> None:
    for name in wanted:
        if names.count(name) > 1:
            raise ManifestError(f"{path} has {names.count(name)} columns `{name}`; leave one")
    for group in required:
        if not any(name in names for name in group):
            raise ManifestError(no_column(path, group, names))


def no_column(path: str, group: Sequence[str], names: Iterable[str]) -> str:
    """What to say where a table has none of these columns."""
    others = f" (nor {', '.join(f'`{name}`' for name in group[1:])})" if group[1:] else ""
    has = ", ".join(names) or "none"
    has = has if has.isprintable() else ascii(has)
    return f"{path} has no column `{group[0]}`{others} (it has: {has:.300}); add or rename it"


def _write_jsonl(path: Path, table: list[dict[str, Any]]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table)


def _write_csv(path: Path, table: list[dict[str, Any]], delimiter: str = ",") -> None:
    if any(isinstance(value, list | tuple) for row in table for value in row.values()):
        raise ManifestError("several captions of a clip do not fit a cell: write the manifest as .jsonl or .parquet")
    with open(path, "w", encoding="utf-8", newline="") as file:
        names = list(dict.fromkeys(name for row in table for name in row))
        writer = csv.DictWriter(file, names, delimiter=delimiter)
        writer.writeheader()
        writer.writerows(table)


def _write_parquet(path: Path, table: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in table for name in row))
    columns = {name: [row.get(name) for row in table] for name in names}
    for name, values in columns.items():
        if any(isinstance(value, list | tuple) for value in values):  # a column has one type
            columns[name] = [value if isinstance(value, list | tuple) or value is None else [value] for value in values]
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


Reader = Callable[[str, Collection[str], Required], Iterator[tuple[int, dict[str, Any]]]]
READERS: dict[str, Reader] = {
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": partial(_read_csv, delimiter="\t"),
    ".parquet": _read_parquet,
    ".tar": _read_tar,
}
WRITERS = {
    ".jsonl": _write_jsonl,
    ".csv": _write_csv,
    ".tsv": partial(_write_csv, delimiter="\t"),
    ".parquet": _write_parquet,
}
ENDINGS = ".jsonl, .csv, .tsv or .parquet"
MAKE_ONE = "make one with `python -m latentvid.data.manifest FOLDER OUT.jsonl`"
READABLE = ".jsonl, .csv, .tsv, .parquet or .tar"
