"""One page about a demo run: scores, clips, curves, pictures and configuration, self-contained.

    python -m latentvid.report RUN        # writes RUN/report.html

What RUN does not hold is left out, with a note. The page needs no network and no scripts.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

from safetensors import safe_open

from .charts import line_chart
from .errors import UserError, user_errors
from .evaluation.scores import ORDER, THRESHOLDS
from .files import written_whole
from .page import PAGE, STYLE, data_uri, note
from .training.metrics import read_metrics

RUNS = {"vae_run": "Autoencoder", "dit_run": "Diffusion transformer"}
PARTS = {"vae": "Autoencoder", "transformer": "Diffusion transformer", "text_encoder": "Text encoder"}
PACKAGES = ("latentvid", "torch", "torchvision", "timm", "diffusers", "transformers", "accelerate", "av")
ZOOM = 4
MEANING = {
    "vae_psnr": "autoencoder on held-out clips, dB",
    "vae_ssim": "autoencoder on held-out clips",
    "digit": "the right digit",
    "direction": "the right direction",
    "both": "digit and direction",
    "strict": "direction, and at least 75 % of the frames read as the digit",
    "colour": "the right colour",
    "verb": "bounces or moves on, as asked",
    "heldout_both": "digit and direction, pairs never seen in training",
    "heldout_strict": "strict, pairs never seen in training",
    "shuffled_both": "control: the same clips against shuffled captions",
}


def write_report(run: Path) -> Path:
    """Writes RUN/report.html and returns its path. Raises UserError where `run` is no folder or a file is damaged."""
    if not run.is_dir():
        raise UserError(f"there is no folder {run}: run `make demo`, or give the folder that it wrote")
    metrics = {name: read_metrics(run / name) for name in RUNS}
    sections = [
        ("Scores", scores_table(_json(run / "scores.json"))),
        ("Generated clips", clip_cards(run / "samples", _json(run / "samples" / "clips.json"))),
        ("Training", training_table(run, metrics) + curves(metrics)),
        ("Reconstructions", picture(run / "reconstructions.png", "held-out clips and what the autoencoder gives back")),
        ("Contact sheet", picture(run / "contact_sheet.png", "frames of generated clips; green: as the prompt says")),
        ("Configuration", configurations(run)),
        ("How to repeat", repeat(run)),
    ]
    body = "\n".join(f"<section><h2>{title}</h2>\n{content}\n</section>" for title, content in sections)
    page = PAGE.format(style=STYLE, body=body)
    report = run / "report.html"
    with written_whole(report) as beside:
        beside.write_text(page, encoding="utf-8")
    return report


def _json(path: Path) -> Any:
    """What the file holds; None where it is not there."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): run python -m latentvid.evaluation.demo again") from error


# ---------------------------------------------------------------------------------------------------------- sections


def scores_table(scores: dict | None) -> str:
    """Measured, at least, aim, and real clips; a measured value is green at its aim, amber above its least."""
    if scores is None:
        return note("scores.json is missing: python -m latentvid.evaluation.demo RUN makes it")
    real, rows = scores.get("real", {}), []
    for name in (name for name in ORDER if name in scores):
        value = scores[name]
        least, aim = THRESHOLDS.get(name, (None, None))
        level = "" if least is None else "good" if value >= aim else "fair" if value >= least else "poor"
        bounds = f"<td>{_score(name, least)}</td><td>{_score(name, aim)}</td>"
        if name == "shuffled_both" and "chance_both" in scores:
            bounds = f'<td colspan="2" class="dim">chance {scores["chance_both"]:.3f}</td>'
        measured = f'<td><b class="{level}">{_score(name, value)}</b></td>'
        title = f'<th>{name}<span class="dim">{MEANING[name]}</span></th>'
        rows.append(f"<tr>{title}{measured}{bounds}<td>{_score(name, real.get(name))}</td></tr>")
    counts, settings = scores.get("counts", {}), scores.get("settings", {})
    facts = [
        f"{counts[k]} clips of {t}" for k, t in (("seen", "seen pairs"), ("heldout", "held-out pairs")) if k in counts
    ]
    facts += [f"{key} {value:g}" for key, value in settings.items()]
    if scores.get("seconds"):
        facts.insert(0, f"The whole demo took {_duration(scores['seconds'])}")
    head = "<tr><th></th><td>measured</td><td>at least</td><td>aim</td><td>real clips</td></tr>"
    explained = (
        "A judge that ships with latentvid reads each clip: a classifier trained on real digits, and the path of the "
        "centre of mass. The last column is what the same judge says of real held-out clips: the ceiling."
    )
    return (
        f'<p>{explained}</p>\n<table class="scores"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'
        f'<p class="dim">{escape("; ".join(facts))}.</p>'
    )


def _score(name: str, value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if name == "vae_psnr" else f"{value:.3f}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def clip_cards(folder: Path, clips: list[dict] | None) -> str:
    """Looping videos, each with its prompt and what the judge read."""
    if not clips:
        return note("samples/clips.json is missing: python -m latentvid.evaluation.demo RUN makes it")
    groups = []
    titles = {"seen": "Pairs of digit and direction seen in training", "heldout": "Pairs never seen in training"}
    for kind, title in titles.items():
        cards = [_card(folder / clip["file"], clip) for clip in clips if clip["kind"] == kind]
        groups.append(f'<h3>{title}</h3><div class="cards">{"".join(cards)}</div>' if cards else "")
    return "".join(groups)


def _card(file: Path, clip: dict) -> str:
    width, height = ZOOM * clip["width"], ZOOM * clip["height"]
    if file.is_file():
        source = data_uri(file, "video/mp4")
        shown = f'<video src="{source}" width="{width}" height="{height}" autoplay loop muted playsinline></video>'
    else:
        shown = note(f"{file.name} is missing")
    read = clip["read"] | ({"digit": "no digit"} if clip["read"]["digit"] == -1 else {})
    words = [
        f'<span class="{"good" if right else "poor"}">{"✓" if right else "✗"} {escape(str(read[name]))}</span>'
        for name, right in clip["right"].items()
    ]
    caption = f'{escape(clip["prompt"])}<span class="read">{" ".join(words)}</span>'
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


def training_table(run: Path, metrics: dict[str, list[dict]]) -> str:
    """Parameters, steps, time and final loss of each part, and the versions of the libraries."""
    trained = {"vae": "vae_run", "transformer": "dit_run"}
    rows = []
    for part, title in PARTS.items():
        files = sorted((run / "pipeline" / part).glob("*.safetensors"))
        count = f"{sum(map(_parameters, files)) / 1e6:.2f} M" if files else "?"
        log = metrics.get(trained.get(part, ""), [])
        steps, seconds = (f"{log[-1]['step']:,}", _duration(_wall(log))) if log else ("", "")
        loss = f"{log[-1]['loss']:.4f}" if log and log[-1].get("loss") is not None else ""
        tokens = f"{sum(r.get('tokens') or 0 for r in log) / 1e6:.1f} M" if log else ""
        cells = "".join(f"<td>{cell}</td>" for cell in (count, steps, tokens, seconds, loss))
        rows.append(f"<tr><th>{title}</th>{cells}</tr>")
    head = "<tr><th></th><td>parameters</td><td>steps</td><td>tokens</td><td>time</td><td>last loss</td></tr>"
    found = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    return (
        f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"
        f'<p class="dim">Python {python_version()}, {escape(found)}.</p>'
    )


def _parameters(file: Path) -> int:
    with safe_open(file, framework="numpy") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118


def _wall(log: Sequence[dict]) -> float:
    """Seconds of training: the clock starts anew whenever a run goes on after a stop."""
    seconds = [r.get("seconds") or 0.0 for r in log]
    return sum(end for end, after in zip(seconds, [*seconds[1:], 0.0], strict=True) if after < end)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def curves(metrics: dict[str, list[dict]]) -> str:
    charts = []
    for (name, title), key in zip(RUNS.items(), ("mse", "loss"), strict=True):
        log = metrics[name]
        if not log:
            charts.append(note(f"{name}/metrics.jsonl is missing or empty: no curves of the {title.lower()}"))
            continue
        points = [[(r["step"], r[k]) for r in log if r.get(k) is not None] for k in (key, "tokens_per_s")]
        label = {"mse": "mean square error", "loss": "loss"}[key]
        charts.append(line_chart(f"{title}: {label}", points[0], log_y=True))
        charts.append(line_chart(f"{title}: tokens per second", points[1], log_y=False))
    return f'<div class="charts">{"".join(charts)}</div>'


def picture(file: Path, caption: str) -> str:
    if not file.is_file():
        return note(f"{file.name} is missing: python -m latentvid.evaluation.demo RUN makes it")
    return f'<img class="wide" src="{data_uri(file, "image/png")}" alt="{escape(caption)}">'


def configurations(run: Path) -> str:
    parts = []
    for name, title in RUNS.items():
        file = run / name / "config.yaml"
        if file.is_file():
            text = escape(file.read_text(encoding="utf-8", errors="replace"))
            parts.append(f"<details><summary>{title} ({name}/config.yaml)</summary><pre>{text}</pre></details>")
        else:
            parts.append(note(f"{name}/config.yaml is missing"))
    return "".join(parts)


def repeat(run: Path) -> str:
    folder = escape((Path(run.name) if run.is_absolute() else run).as_posix())
    commands = (
        "make demo",
        f"python -m latentvid.evaluation.demo {folder} --seed 0",
        f"python -m latentvid.report {folder}",
        f'python inference/t2v.py --model {folder}/pipeline --prompt "a red 7 moves up and to the left"',
    )
    return f"<pre>{chr(10).join(commands)}</pre>"


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes RUN/report.html, one self-contained page about a demo run.")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the demo, such as runs/demo")
    print(write_report(parser.parse_args().run), flush=True)


if __name__ == "__main__":
    with user_errors():
        main()
