"""One page about a demo run: scores, clips, curves, pictures and configuration, self-contained.

    python -m latentvid.report RUN        # writes RUN/report.html

What RUN does not hold is left out, with a note. The page needs no network and no scripts.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

from safetensors import safe_open

from .errors import UserError, user_errors
from .evaluation.demo import ORDER, THRESHOLDS
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
    beside = run / ".report.html.part"
    beside.write_text(page, encoding="utf-8")
    return beside.replace(run / "report.html")


def _json(path: Path) -> Any:
    """What the file holds; None where it is not there."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): run python -m latentvid.evaluation.demo again") from error


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def data_uri(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


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


# ------------------------------------------------------------------------------------------------------------ charts


@dataclass(frozen=True)
class Axis:
    """Maps values low..high (logarithms where `log`) to pixels start..end, and knows its ticks."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, *, log: bool = False, zero: bool = False) -> Axis:
        """An axis that holds all `values` (above 0 where `log`), and 0 where asked, with room to see them."""
        low, high = (0.0 if zero else min(values)), max(values)
        if log:
            low, high = math.log10(low), math.log10(high)
        room = 0.04 * (high - low) or 0.5
        return cls(low if zero else low - room, high + room, start, end, log)

    def at(self, value: float) -> float:
        place = math.log10(value) if self.log else value
        return self.start + (place - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values within the axis; for logarithms 1, 2, 3, 5, 7 of each power of ten, fewer where that crowds."""
        if not self.log:
            return _round_values(self.low, self.high)
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        for digits in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
            found = [d * 10.0**k for k in decades for d in digits if self.low <= math.log10(d * 10.0**k) <= self.high]
            if len(found) <= 7:
                break
        return found if len(found) > 1 else _round_values(10**self.low, 10**self.high)


def _round_values(low: float, high: float) -> list[float]:
    """Two to seven multiples of 1, 2 or 5 times a power of ten in low..high."""
    step = 10 ** math.floor(math.log10((high - low) / 3))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= 6)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def smooth(values: Sequence[float], span: float) -> list[float]:
    """Exponential average over about `span` values, over fewer at the start, where curves fall fast."""
    average, out = 0.0, []
    for i, value in enumerate(values):
        average += (value - average) / max(1.0, min(span, 1 + i / 4))
        out.append(average)
    return out


def line_chart(title: str, points: Sequence[tuple[int, float]], *, log_y: bool) -> str:
    """SVG of (step, value): every step thin, the average thick. Values that a logarithm cannot take are left out."""
    points = [(x, y) for x, y in points if math.isfinite(y) and (y > 0 or not log_y)]
    if not points:
        return note(f"{title}: the log has no values")
    width, height, left, right, top, bottom = 480, 270, 58, 12, 34, 40
    steps, values = zip(*points, strict=True)
    x = Axis.over(steps, left, width - right)
    y = Axis.over(values, height - bottom, top, log=log_y, zero=not log_y)
    average = smooth([math.log(v) for v in values] if log_y else values, len(values) / 40)
    average = [math.exp(v) for v in average] if log_y else average

    def line(series: Sequence[float], kind: str) -> str:
        stride = max(1, len(series) // 1500)
        path = " ".join(f"{x.at(s):.1f},{y.at(v):.1f}" for s, v in list(zip(steps, series, strict=True))[::stride])
        return f'<polyline class="{kind}" points="{path}"/>'

    right_end, floor, grid = width - right, height - bottom, []
    for tick in y.ticks():
        at = f"{y.at(tick):.1f}"
        grid.append(f'<line class="grid" x1="{left}" x2="{right_end}" y1="{at}" y2="{at}"/>')
        grid.append(f'<text x="{left - 8}" y="{at}" dy="4" text-anchor="end">{tick:,.6g}</text>')
    for tick in x.ticks():
        at = f"{x.at(tick):.1f}"
        grid.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{floor}" y2="{floor + 5}"/>')
        grid.append(f'<text x="{at}" y="{floor + 18}" text-anchor="middle">{tick:,.6g}</text>')
    legend = "".join(
        f'<line class="{kind}" x1="{at}" x2="{at + 22}" y1="18" y2="18"/><text x="{at + 28}" y="22">{text}</text>'
        for kind, text, at in (("raw", "step", width - 150), ("mean", "average", width - 86))
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{"".join(grid)}'
        f'{line(values, "raw")}{line(average, "mean")}<text class="title" x="12" y="22">{escape(title)}</text>{legend}'
        f'<text x="{width - right}" y="{height - 4}" text-anchor="end">step</text></svg>'
    )


# -------------------------------------------------------------------------------------------------------------- page

STYLE = """
:root { color-scheme: light dark; --ink: #1c1f26; --dim: #6a7180; --page: #fbfbfc; --card: #fff; --line: #e2e5ea;
  --good: #1a7f37; --fair: #9a6700; --poor: #c4282d; --blue: #2563d9; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ec; --dim: #949cab; --page: #14161a; --card: #1c1f25;
  --line: #30353e; --good: #4ac26b; --fair: #d9a441; --poor: #f2706b; --blue: #6ea0ff; } }
body { margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 1000px; box-sizing: border-box; color: var(--ink);
  background: var(--page); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; } h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .6rem; } .dim, .note { color: var(--dim); }
.note { border-left: 3px solid var(--line); padding-left: .8rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .38rem .6rem; border-bottom: 1px solid var(--line); text-align: right; }
th { text-align: left; font-weight: 600; } th .dim { font-weight: 400; margin-left: .7rem; }
thead td { color: var(--dim); font-size: .87rem; }
.good { color: var(--good); } .fair { color: var(--fair); } .poor { color: var(--poor); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(216px, 1fr)); gap: 14px; }
figure { margin: 0; padding: 10px; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  display: grid; grid-template-rows: minmax(192px, auto) 1fr; justify-items: center; align-items: center; }
figcaption { width: 100%; align-self: start; padding-top: 8px; font-size: .87rem; line-height: 1.35; }
.read { display: block; margin-top: 3px; font-size: .8rem; } .read span { white-space: nowrap; margin-right: .3em; }
video { image-rendering: pixelated; background: #000; border-radius: 3px; }
.wide { max-width: 100%; border-radius: 8px; display: block; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(380px, 1fr)); gap: 14px; margin-top: 1.2rem; }
svg { background: var(--card); border: 1px solid var(--line); border-radius: 8px; width: 100%; box-sizing: border-box; }
svg text { fill: var(--dim); font-size: 11.5px; } svg .title { fill: var(--ink); font-size: 13px; font-weight: 600; }
svg .grid { stroke: var(--line); } .raw, .mean { fill: none; stroke: var(--blue); stroke-linejoin: round; }
.raw { stroke-width: 1; opacity: .35; } .mean { stroke-width: 2.4; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem; overflow-x: auto;
  font-size: .85rem; line-height: 1.45; } summary { cursor: pointer; padding: .2rem 0; }
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>latentvid: the demo's report</title><style>{style}</style></head><body>
<h1>From captions to clips</h1>
<p class="dim">A text-to-video model trained from nothing by latentvid: a causal video autoencoder, a small T5 and a
diffusion transformer, on coloured handwritten digits that move and bounce.</p>
{body}
</body></html>
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes RUN/report.html, one self-contained page about a demo run.")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the demo, such as runs/demo")
    print(write_report(parser.parse_args().run), flush=True)


if __name__ == "__main__":
    with user_errors():
        main()
