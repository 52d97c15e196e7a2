"""Held-out scores of autoencoder runs over the CPU seconds that they trained: the table and the curves of docs/vae.md.

    python benchmarks/footage_curve.py NAME=RUN ... --held-out DATA/held_out --lpips WEIGHTS --out docs/vae_footage

Every checkpoint that a run kept is scored (averaged weights, in fp32) on the same clips. CPU seconds are the sum of
`cpu_s` in the run's metrics.jsonl: of the process and its threads, its own reading of clips included, so runs beside
other work compare. Writes OUT.json and OUT.svg; what OUT.json already holds is not scored again.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from latentvid.charts import Line, plot, svg_file
from latentvid.config.parsing import load_config
from latentvid.config.schema import VaeConfig
from latentvid.errors import user_errors
from latentvid.evaluation.vae.scores import VaeScoresConfig, score_vae
from latentvid.models.interchange import build_vae
from latentvid.training.checkpoint.checkpoint import CheckpointStore
from latentvid.training.export import read_model

SCORES = {"psnr": "PSNR (dB)", "ssim": "SSIM", "lpips": "LPIPS"}
COLOURS = ("#2563d9", "#c4282d", "#2f8f4e", "#8a5cd1")


def cpu_seconds(run: Path) -> dict[int, float]:
    """By step, what the run had used when the step was done."""
    found, total = {}, 0.0
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        total += row["cpu_s"]
        found[row["step"]] = total
    return found


def score(run: Path, step: int, args: argparse.Namespace) -> dict:
    config = load_config(VaeConfig, run / "config.yaml")
    with tempfile.TemporaryDirectory() as folder:
        vae = read_model(build_vae(config.model, "model"), CheckpointStore(run / "checkpoints").path(step))
        vae.save_pretrained(Path(folder, "vae"))
        result = score_vae(
            VaeScoresConfig(
                vae=Path(folder, "vae"),
                inputs=[args.held_out],
                out=Path(folder, "out"),
                size=(args.size, args.size),
                lpips=args.lpips,
                max_clips=args.max_clips,
                shown=0,
            )
        )
    size = {"parameters": sum(p.numel() for p in vae.parameters()), "clips": result["clips"]}
    return size | {key: result["mean"][key] for key in SCORES}


def draw(rows: list[dict]) -> str:
    """SVG: a panel a score, a line a run."""
    charts = []
    for key, title in SCORES.items():
        lines = []
        for name, colour in zip(dict.fromkeys(row["run"] for row in rows), COLOURS, strict=False):
            points = [(row["cpu_s"], row[key]) for row in rows if row["run"] == name]
            lines.append(Line(name, *np.array(points, dtype=float).T, colour, "mean"))
        charts.append(plot(title, lines, x_scale="zero", x_label="CPU seconds"))
    return svg_file(charts, columns=len(SCORES))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    parser.add_argument("--held-out", type=Path, required=True, help="folder of clips")
    parser.add_argument("--lpips", type=Path, required=True)
    parser.add_argument("--size", type=int, default=128, help="height and width in pixels (default 128)")
    parser.add_argument("--max-clips", type=int, default=32)
    parser.add_argument("--every", type=int, default=1, help="score only steps that are multiples of it")
    parser.add_argument("--out", type=Path, required=True, help="without an ending")
    args = parser.parse_args()
    file = args.out.with_suffix(".json")
    rows = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    for name, run in (pair.split("=", 1) for pair in args.runs):
        seconds = cpu_seconds(Path(run))
        for step in CheckpointStore(Path(run) / "checkpoints").steps():
            if step % args.every or any(row["run"] == name and row["step"] == step for row in rows):
                continue
            rows.append({"run": name, "step": step, "cpu_s": seconds[step]} | score(Path(run), step, args))
            file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
            print(rows[-1], flush=True)
    rows.sort(key=lambda row: (row["run"], row["cpu_s"]))
    file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    args.out.with_suffix(".svg").write_text(draw(rows), encoding="utf-8")
    print("| run | parameters | steps | CPU seconds | PSNR (dB) | SSIM | LPIPS (alex) |\n|---|---|---|---|---|---|---|")
    for row in rows:
        figures = f"{row['psnr']:.2f} | {row['ssim']:.4f} | {row['lpips']:.4f}"
        print(f"| {row['run']} | {row['parameters'] / 1e6:.2f}M | {row['step']} | {row['cpu_s']:.0f} | {figures} |")


if __name__ == "__main__":
    torch.manual_seed(0)
    with user_errors():
        main()
