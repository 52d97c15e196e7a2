"""Solvers with the exact denoiser of a mixture of Gaussians: what they reach in 64 steps, and their orders.

    python benchmarks/mixture.py --out docs/diffusion

writes OUT.json and OUT_orders.svg (2 to 3 minutes on one core).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latentvid.charts import Line, plot, svg_file
from latentvid.diffusion.path import PATHS
from latentvid.diffusion.scheduler import LatentVideoScheduler
from latentvid.diffusion.solvers import SOLVERS, solve
from latentvid.packing import Packed

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from gaussian_mixture import sliced_wasserstein, three_in_a_plane

POINTS = 20_000
STEPS = 64
TARGETS = {"rectified_flow": ("flow", "v", "x"), "cosine": ("flow", "v", "x"), "ddpm": ("eps", "v", "x")}
TARGETS |= {"edm": ("edm", "eps", "x")}
PATH_OPTIONS = {
    "rectified_flow": {"path": "rectified_flow"},
    "cosine": {"path": "cosine"},
    "ddpm, linear": {"path": "ddpm"},
    "ddpm, linear, zero terminal SNR": {"path": "ddpm", "zero_terminal_snr": True},
    "ddpm, scaled_linear": {"path": "ddpm", "betas": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "ddpm, logarithmic": {"path": "ddpm", "betas": "logarithmic"},
    "ddpm, cosine": {"path": "ddpm", "betas": "cosine"},
    "ddpm, uniform": {"path": "ddpm", "betas": "uniform"},
    "edm, karras": {"path": "edm", "spacing": "karras"},
}
# so many levels that none is rounded in the steps below, of the same betas in continuous time
FINE = {"num_train_timesteps": 8192, "beta_start": 1e-4 * 1000 / 8192, "beta_end": 0.02 * 1000 / 8192}
ORDER_STEPS = (8, 16, 32, 64, 128, 256)
DETERMINISTIC = ("euler", "heun", "dpmpp_2m", "unipc")
COLOURS = {"euler": "#8a8f99", "heun": "#c4282d", "dpmpp_2m": "#2563d9", "unipc": "#1a7f37"}


def antithetic(count: int, rand: torch.Generator) -> Tensor:
    half = torch.randn(count // 2, 2, generator=rand)
    return torch.cat([half, -half])


def distances() -> tuple[list[dict], float]:
    """For each path and solver the largest distance over targets, and that of two sets of true points."""
    mixture, layout = three_in_a_plane(), Packed.of([(1, 1, POINTS)])
    true, other = (mixture.sample(POINTS, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    rows = []
    for name, options in PATH_OPTIONS.items():
        row = {"path": name}
        singular = options.get("zero_terminal_snr") or options.get("betas") == "uniform"
        targets = [target for target in TARGETS[options["path"]] if not (singular and target == "eps")]
        for solver in SOLVERS:
            found = []
            for target in targets:
                scheduler = LatentVideoScheduler(target=target, **options)
                rand = torch.Generator().manual_seed(3)
                z = solve(
                    scheduler,
                    mixture.predictor(scheduler, layout),
                    antithetic(POINTS, rand),
                    scheduler.levels(STEPS)[:, None],
                    layout,
                    solver=solver,
                    noise=lambda rand=rand: antithetic(POINTS, rand),
                )
                found.append(sliced_wasserstein(z, true))
            row[solver] = max(found)
        rows.append(row | {"targets": targets})
        print(name, {solver: round(row[solver], 4) for solver in SOLVERS}, flush=True)
    return rows, sliced_wasserstein(other, true)


def orders(high: float, low: float) -> list[dict]:
    """Errors, medians of points, of runs from level `high` to `low` against one of 2,048 Heun steps; slopes of fits."""
    mixture, layout = three_in_a_plane(), Packed.of([(1, 1, 500)])
    start = torch.randn(500, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    rows = []
    for path in PATHS:
        scheduler = LatentVideoScheduler(path, "v", **(FINE if path == "ddpm" else {}))
        predict = mixture.predictor(scheduler, layout)

        def end(solver: str, steps: int, scheduler=scheduler, predict=predict) -> Tensor:
            levels = torch.linspace(high, low, steps + 1, dtype=torch.float64)
            levels = torch.where(levels > 0, scheduler.path.snap(levels), 0.0).float()[:, None]
            return solve(scheduler, predict, start, levels, layout, solver=solver).double()

        finest = end("heun", 2048)
        for solver in DETERMINISTIC:
            # the median: a few points between two modes end in another one at some numbers of steps
            errors = [float((end(solver, n) - finest).square().mean(1).sqrt().median()) for n in ORDER_STEPS]
            row = {"path": path, "solver": solver, "errors": errors, "order": -slope(ORDER_STEPS[1:], errors[1:])}
            rows.append(row)
            print(path, solver, f"{row['order']:.2f}", flush=True)
    return rows


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the line through (log x, log y), by least squares."""
    pairs = [(math.log(a), math.log(b)) for a, b in zip(x, y, strict=True)]
    mean_x, mean_y = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
    return sum((a - mean_x) * (b - mean_y) for a, b in pairs) / sum((a - mean_x) ** 2 for a, _ in pairs)


def draw(rows: list[dict]) -> str:
    """SVG: a panel a path, a line a solver, error over steps, both logarithmic."""
    steps, errors = np.array(ORDER_STEPS, dtype=float), [error for row in rows for error in row["errors"]]
    of = lambda row: (f"{row['solver']} {row['order']:.2f}", steps, np.array(row["errors"]), COLOURS[row["solver"]])  # noqa: E731
    lines = {path: [Line(*of(row), "mean") for row in rows if row["path"] == path] for path in PATHS}
    log = {"scale": "log", "x_scale": "log", "x_label": "steps", "hold_y": errors}
    return svg_file([plot(path, found, **log) for path, found in lines.items()], columns=len(PATHS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="without an ending")
    args = parser.parse_args()
    reached, floor = distances()
    inner, whole = orders(0.95, 0.05), orders(1.0, 0.0)
    result = {"steps": STEPS, "floor": floor, "distances": reached, "order_steps": ORDER_STEPS}
    result |= {"orders": inner, "orders_whole_run": whole}
    args.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    args.out.with_name(args.out.name + "_orders.svg").write_text(draw(inner), encoding="utf-8")
    print("| path | " + " | ".join(SOLVERS) + " |\n" + "|---" * (1 + len(SOLVERS)) + "|")
    for row in reached:
        print(f"| {row['path']} | " + " | ".join(f"{row[solver]:.3f}" for solver in SOLVERS) + " |")
    print(f"two sets of true points: {floor:.3f}")


if __name__ == "__main__":
    main()
