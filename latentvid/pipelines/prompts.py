"""Many prompts from a file: sampled in packs, shared out over processes, and gone on with after a stop.

Axes: f h w of the latents. What a clip shows depends on its prompt, seed and shape (and the settings), never on what it
is packed with or on the number of processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import pyarrow
from accelerate import PartialState
from tqdm import tqdm

from ..data.manifest.tables import READERS
from ..errors import UserError
from ..files import file_fault, part_of, write_whole
from ..limits import check, shown
from ..lock import FolderLock
from ..models.adapters.lora import scales_in
from ..packing import Grid
from ..precision import Computed, choose, describe, dtype_of
from ..words import counted
from ..world import from_main
from .command import frames_of
from .defaults import ENDINGS, TOKENS_PER_PACK
from .latent_video import LatentVideoPipeline
from .limit import check_cost
from .outputs import MOST_GIF, write
from .packs import packs, tokens_of
from .sampling import Request, Sampling

INDEX = "results.jsonl"
COLUMNS = ("prompt", "negative_prompt", "seed", "frames", "height", "width", "fps", "name")
ASKED = ("guidance_low", "guidance_embedded", "image_noise", "motion_strength")  # of a sampling, where they are said
LONGEST = 200  # bytes of a file name; longer ones are shortened, so that every system holds them
_NAME = re.compile(r"[^./\\][^/\\]*")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A clip to make: the file it is written to (a name in the folder), and what decides what it shows."""

    file: str
    prompt: str
    negative_prompt: str
    seed: int
    frames: int
    height: int
    width: int
    fps: float


def read_prompts(
    path: Path,
    pipeline: LatentVideoPipeline,
    *,
    seed: int = 0,
    negative_prompt: str | None = None,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    fps: float | None = None,
    seconds: float | None = None,
    large: bool = False,
) -> list[Row]:
    """The rows of a table (.csv, .jsonl or .parquet) with the column `prompt` and any more of `COLUMNS`.

    What a row leaves out is as in the arguments (None: the model's), but the i-th row has seed + i, and its number as
    name. A name with an ending of `ENDINGS` is written so, others as mp4. seconds: instead of frames, at the fps
    of the row.
    Raises UserError, with the line (in a .parquet the row, from 1), for what the model cannot make.
    """
    if path.suffix.lower() not in READERS or not path.is_file():
        raise UserError(f"--prompts {path}: give a file that ends in {', '.join(READERS)}")
    sizes = {"frames": frames, "height": height, "width": width, "fps": fps}
    defaults = {name: pipeline.config[name] if value is None else value for name, value in sizes.items()}
    text, rows = pipeline.reader, []
    negative_prompt = pipeline.negative_prompt if negative_prompt is None else negative_prompt
    lines: dict[str, int] = {}
    try:
        for i, (line, cells) in enumerate(READERS[path.suffix.lower()](str(path), COLUMNS, [("prompt",)])):
            try:
                words = {"negative_prompt": negative_prompt, "seed": seed + i, "name": f"{i:05d}"}
                row = _row(cells, defaults | words)
                if seconds is not None and not _given(cells, "frames"):
                    row = replace(row, frames=frames_of(pipeline, seconds, row.fps))
                check_cost(pipeline, [pipeline.latent_grid(row.frames, row.height, row.width)], large)
                text.check([row.prompt, row.negative_prompt])
                if row.file in lines:
                    raise UserError(f"line {lines[row.file]} has the name {row.file} too: names must differ")
            except UserError as error:
                raise UserError(f"{path}, line {line}: {error}") from error
            lines[row.file] = line
            rows.append(row)
    except (UnicodeDecodeError, pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}): save it as UTF-8 text, or write it again") from error
    if not rows:
        raise UserError(f"{path} has no rows: give at least one prompt")
    return rows


def _row(cells: dict[str, Any], defaults: dict[str, Any]) -> Row:
    """A row of which empty cells are as in `defaults`. Raises UserError."""
    if unknown := [name for name in cells if name not in COLUMNS]:
        raise UserError(f"unknown column `{unknown[0]}`: the columns are {', '.join(COLUMNS)}")
    given = {name: value for name, value in cells.items() if _given(cells, name)}
    values = defaults | given
    if not isinstance(values.get("prompt"), str) or not isinstance(values["negative_prompt"], str):
        raise UserError("has no prompt: write some text")
    numbers = {name: _whole(name, values[name]) for name in ("seed", "frames", "height", "width")}
    numbers["fps"] = _rate(values["fps"])
    file = str(values["name"])
    if not _NAME.fullmatch(file):
        raise UserError(f"name {file!r}: give the name of a file, without folders and not beginning with a dot")
    if any(ord(c) < 32 or 0xD800 <= ord(c) <= 0xDFFF for c in file):
        raise UserError(f"name {file!a}: give one in UTF-8, without control characters")
    if Path(file).suffix.lower() not in ENDINGS:
        file += ".mp4"
    if len(os.fsencode(file)) > LONGEST:
        stem, ending = os.path.splitext(file)
        short = os.fsencode(stem)[: LONGEST - 16].decode("utf-8", "ignore")
        file = f"{short}-{hashlib.sha256(os.fsencode(stem)).hexdigest()[:8]}{ending}"
    if Path(file).suffix.lower() == ".gif" and numbers["fps"] > MOST_GIF:
        raise UserError(
            f"fps {numbers['fps']:g}: a gif plays at most {MOST_GIF} frames a second; lower it or name a .mp4"
        )
    return Row(file=file, prompt=values["prompt"], negative_prompt=values["negative_prompt"], **numbers)


def _whole(name: str, value: Any) -> int:
    try:
        if isinstance(value, str):
            value = int(value) if re.fullmatch(r"\s*[+-]?\d+\s*", value) else float(value)  # tables write 5 as 5.0 too
        if isinstance(value, bool) or value != int(value):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{name} {shown(value)}: give a whole number") from None
    return check(name, int(value))


def _rate(value: Any) -> float:
    try:
        value = float(value)
    except (TypeError, ValueError):
        raise UserError(f"fps {shown(value)}: give a number of frames a second") from None
    return check("fps", value)


def _given(cells: Mapping[str, Any], name: str) -> bool:
    value = cells.get(name)
    return value is not None and value != "" and value == value  # NaN: a table's missing number


def request_of(pipeline: LatentVideoPipeline, row: Row) -> Request:
    grid = pipeline.latent_grid(row.frames, row.height, row.width)
    fps = pipeline.rate(row.fps, grid)
    return Request(prompt=row.prompt, negative_prompt=row.negative_prompt, seed=row.seed, grid=grid, fps=fps)


def plan(pipeline: LatentVideoPipeline, rows: Sequence[Row], tokens_per_pack: int, processes: int) -> list[list[Row]]:
    """The rows in packs of like shapes, in file order, at most `tokens_per_pack` each (or one clip).

    Packs are smaller where there would be fewer than processes.
    """
    check("tokens_per_pack", tokens_per_pack)
    shapes: dict[Grid, list[Row]] = {}
    for row in rows:
        shapes.setdefault(request_of(pipeline, row).grid, []).append(row)
    ordered = [row for alike in shapes.values() for row in alike]
    tokens = [tokens_of(pipeline, grid) for grid, alike in shapes.items() for _ in alike]
    budget = min(tokens_per_pack, -(-sum(tokens) // processes))
    return [[ordered[i] for i in pack] for pack in packs(tokens, budget)]


def sample_prompts(
    pipeline: LatentVideoPipeline,
    rows: Sequence[Row],
    folder: Path,
    sampling: Sampling,
    state: PartialState,
    *,
    tokens_per_pack: int = TOKENS_PER_PACK,
    steady: bool = False,
    option: str = "--output",
) -> None:
    """Makes this process's share of the clips that `folder` does not hold yet, and prints each as it is written.

    `INDEX` in the folder lists all clips with what they were made of; a clip's file is there when it is whole.
    steady: the packs are the same for any number of processes and whatever is there already, so that rounding is too:
    what is there of a pack that is not whole is sampled again. option: which one names the folder.
    Raises UserError, in every process, where the folder holds a clip of such a name that was made of something else.
    """
    with ExitStack() as stack:

        def hold() -> None:
            if state.is_main_process:
                stack.enter_context(FolderLock(folder, f"wait for it, or give another {option}"))

        from_main(hold)
        _sample_prompts(pipeline, rows, folder, sampling, state, tokens_per_pack, steady, option)
        state.wait_for_everyone()  # the folder is held until all are done


def _sample_prompts(
    pipeline: LatentVideoPipeline,
    rows: Sequence[Row],
    folder: Path,
    sampling: Sampling,
    state: PartialState,
    tokens_per_pack: int,
    steady: bool,
    option: str,
) -> None:
    found = _read_index(folder / INDEX)
    if sampling.precision is None:
        computed = from_main(lambda: _computed(pipeline, folder, found))
        sampling = replace(sampling, precision=dtype_of(computed))
    records = {row.file: asdict(row) | _settings(pipeline, sampling) for row in rows}
    done = set(from_main(lambda: [file for file in records if (folder / file).exists()]))  # for all as one node sees it
    for file in sorted(done):
        if found.get(file) != records[file]:
            was = found.get(file)
            why = f"and {INDEX} there does not say of what it was made"
            if was is not None:
                other = next(k for k, v in records[file].items() if was.get(k) != v)
                why = f"but made with another {other} ({INDEX} says of what)"
            raise UserError(f"{folder / file} is there already, {why}: give another {option}, or remove it")
    processes, left = (1, rows) if steady else (state.num_processes, [row for row in rows if row.file not in done])
    todo = [pack for pack in plan(pipeline, left, tokens_per_pack, processes) if not done.issuperset(_files(pack))]
    state.wait_for_everyone()  # all have looked at the folder
    if state.is_main_process:
        others = {k: v for k, v in found.items() if k not in records and (folder / k).exists()}
        _begin(folder, records | others)
        print(
            f"{folder}: {counted(len(rows), 'clip')} asked for, {len(done)} there, "
            f"{counted(len(todo), 'pack')} to make",
            flush=True,
        )
    state.wait_for_everyone()
    failed = []
    mine = todo[state.process_index :: state.num_processes]
    for pack in tqdm(mine, desc="sampling", unit="pack", disable=not state.is_main_process):
        latents = pipeline.sample([request_of(pipeline, row) for row in pack], replace(sampling, progress=False))
        for row, clip in zip(pack, pipeline.decode(latents, sampling.precision), strict=True):
            if row.file in done:
                continue
            try:
                write(folder / row.file, clip, row.fps, row.prompt)
            except UserError as error:
                failed.append(str(error))
    if failed:
        raise UserError("; ".join(failed))


def _files(pack: Sequence[Row]) -> set[str]:
    return {row.file for row in pack}


def _computed(pipeline: LatentVideoPipeline, folder: Path, found: Mapping[str, Mapping[str, Any]]) -> Computed:
    """What clips that are there were computed in, on any machine, or what is faster on this one."""
    there = {record.get("precision") for file, record in found.items() if (folder / file).exists()}
    for computed in get_args(Computed):
        if there == {str(dtype_of(computed))}:
            return computed
    computed = choose("auto", pipeline.device)
    print(describe(computed, pipeline.device), file=sys.stderr, flush=True)
    return computed


def _settings(pipeline: LatentVideoPipeline, sampling: Sampling) -> dict[str, Any]:
    """What decides, beside its row, what a clip shows: as it stands in the index."""
    guidance = {k: v for k, v in asdict(pipeline.guided(sampling)).items() if k != "first" or v is not None}
    steps = pipeline.config.steps if sampling.steps is None else sampling.steps
    words = {"steps": steps, "solver": sampling.solver or pipeline.solver, "guidance": guidance}
    asked = {name: getattr(sampling, name) for name in ASKED}
    words |= {name: value for name, value in asked.items() if value is not None}
    return json.loads(json.dumps(words | {"precision": str(sampling.precision), "model": _mark(pipeline)}))


def _mark(pipeline: LatentVideoPipeline) -> str:
    """Tells models from each other, by the first numbers of each of their parameters, and by how much of an adapter
    they have."""
    of_edm = set() if pipeline.scheduler.config.path == "edm" else {"sigma_data", "sigma_min", "sigma_max", "rho"}
    schedule = {key: value for key, value in pipeline.scheduler.config.items() if key not in of_edm}
    if "_use_default_values" in schedule:  # made of a set: in another order in each process
        schedule["_use_default_values"] = sorted(set(schedule["_use_default_values"]) - of_edm)
    digest = hashlib.blake2b(json.dumps(schedule, sort_keys=True).encode(), digest_size=8)
    for module in (*pipeline.experts, pipeline.vae):
        for parameter in module.parameters():
            digest.update(parameter.detach().flatten()[:16].float().cpu().numpy().tobytes())
    for expert in pipeline.experts:
        if scales := {name: scale for name, scale in scales_in(expert).items() if scale != 1}:
            digest.update(json.dumps(scales, sort_keys=True).encode())
    return digest.hexdigest()


def _read_index(path: Path) -> dict[str, dict[str, Any]]:
    if not os.path.lexists(path):
        return {}
    if (fault := file_fault(path)) is not None:
        raise UserError(f"{path} {fault}: remove it with the clips beside it")
    try:
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        records = {record["file"]: record for record in found}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): remove it with the clips beside it") from error
    if wrong := [name for name in records if not isinstance(name, str) or not _NAME.fullmatch(name)]:
        raise UserError(f"{path} is damaged (file={wrong[0]!r:.60}): remove it with the clips beside it")
    return records


def _begin(folder: Path, records: dict[str, dict[str, Any]]) -> None:
    """Writes the index, and removes what a killed run left half written."""
    write_whole(folder / INDEX, "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in records.values()))
    for part in folder.glob(".*.part"):
        if part.name[1:].rsplit(".", 2)[0] in {part_of(file) for file in records}:
            part.unlink()
