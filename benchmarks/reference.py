"""Reference runs: keeps what a run came to in docs/reference/, and says whether another lies within its tolerance.

    python benchmarks/reference.py record demo runs/demo [--seeds runs/demo-seed1 runs/demo-seed2]
    python benchmarks/reference.py check demo runs/demo       # ends with status 1 where a figure lies outside

`demo` is what `make demo` leaves, `footage` what `make reference-footage` does. `record` writes reference.json (seed,
machine, versions, duration, figures with their tolerances), and of each stage its configuration, its curve as a table,
its validation; curves.svg and a sheet of generated clips. Without --seeds the tolerances of the kept file stay.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from latentvid.charts import Chart, Line, plot, svg_file
from latentvid.demo.scores import ORDER
from latentvid.errors import UserError, user_errors
from latentvid.files import read_json
from latentvid.report.runs import Run, read_run
from latentvid.tables import text_table

ROOT = Path(__file__).parents[1] / "docs" / "reference"
POINTS = 200  # rows of a kept curve
COLUMNS = ("step", "loss", "lr", "grad_norm", "tokens", "tokens_per_s", "mfu", "wall")
DEVIATIONS = 3  # of another run from the reference, in standard deviations, that are within
# of what no seeds say the spread of: relative for losses, absolute for the others
STATED = {"vae loss": 0.15, "dit loss": 0.05, "dit x_mse": 0.05, "psnr": 0.6, "ssim": 0.01, "lpips": 0.03}

Figures = dict[str, tuple[float, float]]  # by name: value, tolerance


def read_figures(path: Path) -> dict[str, Any] | None:
    """What a file of figures holds; None where there is none."""
    return read_json(path) if path.is_file() else None


def validated(stage: str, run: Run) -> Figures:
    """The last measurements on held-out data, of each weights."""
    found: Figures = {}
    for record in run.validation:
        for key in ("loss", "x_mse", "psnr", "ssim"):
            if record.get(key) is not None:
                value, relative = float(record[key]), STATED.get(f"{stage} {key}")
                tolerance = STATED[key] if relative is None else relative * value
                found[f"{stage} {key}, {record['weights']}"] = value, tolerance
    return found


def demo_scores(folder: Path, seeds: Sequence[Path]) -> Figures:
    """The judge's scores; other seeds' scores, and the number of clips, say how far another run may lie."""
    scores, found = read_figures(folder / "scores.json"), {}
    if scores is None:
        raise UserError(f"{folder} has no scores.json: make demo writes it")
    others = [read_figures(seed / "scores.json") for seed in seeds]
    for name in ORDER:
        value = float(scores[name])
        if name in ("vae_psnr", "vae_ssim"):
            sampled = STATED[name.removeprefix("vae_")] / DEVIATIONS
        else:
            count = scores["counts"]["heldout" if name.startswith("heldout") else "seen"]
            share = min(max(value, 1 / count), 1 - 1 / count)
            sampled = math.sqrt(share * (1 - share) / count)
        spread = statistics.stdev([value, *(float(o[name]) for o in others)]) if others else 0.0
        found[name] = value, DEVIATIONS * max(sampled, spread)
    return found


def footage_scores(folder: Path, seeds: Sequence[Path]) -> Figures:
    """Of the autoencoder on held-out sources, and of generated clips, whose intervals are two deviations a side."""
    found: Figures = {}
    vae, made = read_figures(folder / "vae_scores" / "scores.json"), read_figures(folder / "evaluation" / "scores.json")
    if vae is None or made is None:
        raise UserError(f"{folder} has no vae_scores or no evaluation: make reference-footage writes them")
    for key in ("psnr", "ssim", "lpips"):
        if vae["mean"][key] is not None:
            found[f"autoencoder {key}"] = vae["mean"][key], STATED[key]
    for name, score in made["scores"].items():
        if score["low"] is not None:
            wider = max(score["high"] - score["value"], score["value"] - score["low"]) / 2
            found[name] = score["value"], DEVIATIONS * wider
    return found


@dataclass(frozen=True)
class Kind:
    """stages: the runs in the folder, by the name of their files. picture: pattern of the sheet of generated clips,
    of which the last is kept."""

    stages: dict[str, str]
    scores: Callable[[Path, Sequence[Path]], Figures]
    picture: str


KINDS = {
    "demo": Kind({"vae": "vae_run", "dit": "dit_run"}, demo_scores, "contact_sheet.png"),
    "footage": Kind({"vae": "ours", "dit": "dit"}, footage_scores, "dit/samples/step-*-ema.png"),
}


def figures(kind: Kind, folder: Path, seeds: Sequence[Path] = ()) -> Figures:
    found: Figures = {}
    for stage, name in kind.stages.items():
        found |= validated(stage, read_run(folder / name, stage))
    return found | kind.scores(folder, seeds)


# --- record ----------------------------------------------------------------------------------------------------------


def record(name: str, folder: Path, seeds: Sequence[Path]) -> Path:
    kind, out = KINDS[name], ROOT / name
    out.mkdir(parents=True, exist_ok=True)
    file = out / "reference.json"
    found = figures(kind, folder, seeds)
    before = read_figures(file) if not seeds else None
    kept = before["figures"] if before else {}
    about: dict[str, Any] = {"name": name, "stages": {}}
    charts = []
    for stage, inner in kind.stages.items():
        run = read_run(folder / inner, stage)
        about["stages"][stage] = described(folder / inner, run)
        shutil.copyfile(folder / inner / "config.yaml", out / f"{stage}.yaml")
        write_curve(run, out / f"{stage}.csv")
        if run.validation:
            shutil.copyfile(folder / inner / "validation.jsonl", out / f"{stage}.validation.jsonl")
        charts += [*drawn(stage, run)]
    scores = read_figures(folder / "scores.json") or {}
    about["seconds"] = scores.get("seconds") or sum(s["seconds"] for s in about["stages"].values())
    about["figures"] = {
        key: {"value": value, "tolerance": kept.get(key, {}).get("tolerance", tolerance)}
        for key, (value, tolerance) in found.items()
    }
    (out / "curves.svg").write_text(svg_file(charts), encoding="utf-8")
    with Image.open(sorted(folder.glob(kind.picture))[-1]) as picture:
        picture.convert("RGB").save(out / "clips.jpg", quality=85)
    file.write_text(json.dumps(about, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return file


def described(folder: Path, run: Run) -> dict[str, Any]:
    """Seed, machine, versions, length and seconds of a stage; what an older run did not write is null."""
    about = read_figures(folder / "run.json") or {}
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    keys = ("started", "machine", "versions", "strategy", "world", "parameters", "plan")
    return {
        "seed": config["run"]["seed"],
        "steps": int(run.column("step")[-1]),
        "tokens": float(np.nansum(run.column("tokens"))),
        "seconds": float(run.column("wall")[-1]),
        **{key: about.get(key) for key in keys},
    }


def write_curve(run: Run, file: Path) -> None:
    """At most about `POINTS` evenly spaced steps; the loss is the mean of those since the last row."""
    columns = {name: run.column(name) for name in COLUMNS}
    edges = np.unique(np.linspace(0, len(columns["step"]), POINTS + 1).astype(int))
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(COLUMNS)
        for start, end in zip(edges[:-1], edges[1:], strict=True):
            row = {name: values[end - 1] for name, values in columns.items()}
            row["loss"] = np.nanmean(columns["loss"][start:end])
            writer.writerow([f"{value:.6g}" for value in row.values()])


def drawn(stage: str, run: Run) -> Iterator[Chart]:
    """A stage's charts."""
    steps, loss = run.column("step"), run.column("loss")
    lines = [Line("training", steps, loss, "#9aa4b2", "raw")]
    for weights, colour in (("ema", "#2563d9"), ("raw", "#d97706")):
        rows = [record for record in run.validation if record["weights"] == weights]
        if rows:
            x, y = (np.array([float(row[key]) for row in rows]) for key in ("step", "loss"))
            lines.append(Line(f"held out, {weights}", x, y, colour))
    yield plot(f"{stage}: loss", lines, scale="log")
    last = [record for record in run.validation if record["weights"] == "ema" and record.get("bins")]
    if last:
        bins = last[-1]["bins"]
        middles = np.array([(part["from"] + part["to"]) / 2 for part in bins])
        by_bin = [Line("", middles, np.array([part["loss"] for part in bins]), "#2563d9")]
        title = f"{stage}: held-out loss by noise level, at the end"
        yield plot(title, by_bin, scale="zero", x_label="noise level")


# --- check -----------------------------------------------------------------------------------------------------------


def check(name: str, folder: Path) -> bool:
    """Prints every figure beside the reference's; whether all are within."""
    kept = read_figures(ROOT / name / "reference.json")
    if kept is None:
        raise UserError(f"there is no reference {name}: {', '.join(KINDS)}")
    found = {key: value for key, (value, _) in figures(KINDS[name], folder).items()}
    rows = [("figure", "reference", "tolerance", "here", "")]
    outside = 0
    for key, reference in kept["figures"].items():
        value, want, room = found.get(key), reference["value"], reference["tolerance"]
        within = value is not None and abs(value - want) <= room
        outside += not within
        verdict = "within" if within else "missing" if value is None else "OUTSIDE"
        rows.append((key, f"{want:.4g}", f"{room:.2g}", "" if value is None else f"{value:.4g}", verdict))
    print(text_table(rows))
    all_of = f"{len(kept['figures'])} figures"
    print(f"{folder}: {outside} of {all_of} outside" if outside else f"{folder}: all {all_of} within the tolerance")
    return not outside


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("record", "check"))
    parser.add_argument("name", choices=KINDS)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seeds", type=Path, nargs="*", default=(), help="runs of other seeds: their scores' spread")
    args = parser.parse_args()
    if not args.run.is_dir():
        raise UserError(f"there is no folder {args.run}: give the run's")
    if args.what == "record":
        print(record(args.name, args.run, args.seeds))
    elif not check(args.name, args.run):
        sys.exit(1)


if __name__ == "__main__":
    with user_errors():
        main()
