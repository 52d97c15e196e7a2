"""A picture of a latent report: spectra, each channel's spread, and how channels go together."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...charts import Chart, Key, Line, plot, squares, svg_file

BLUE, RED = "#2563d9", "#c4282d"


def draw_latents(report: dict[str, Any]) -> str:
    """SVG of `LatentQuality.report`'s figures: spectra (log-log), mean and std by channel, channels' correlation."""
    correlation = np.array(report["correlation"])
    matrix = squares("correlation of channels", correlation, Key("+1", BLUE, "band"), Key("-1", RED, "band"))
    return svg_file([_spectra(report["spectrum"]), _channels(report), matrix], columns=3)


def _spectra(spectrum: dict[str, Any]) -> Chart:
    lines = [
        Line(f"{name}: slope {curve['slope']:.2f}", *map(np.array, (curve["frequency"], curve["power"])), paint, "mean")
        for name, paint in (("space", BLUE), ("time", RED))
        if (curve := spectrum[name])  # None where clips are too small
    ]
    return plot("power by frequency", lines, scale="log", x_scale="log", x_label="cycles a latent position")


def _channels(report: dict[str, Any]) -> Chart:
    mean, std = np.array(report["mean"]), np.array(report["std"])
    numbers = np.arange(1.0, 1 + len(mean))
    dots = Line("", numbers, mean, BLUE, "dots", low=mean - std, high=mean + std)
    return plot("mean and standard deviation", [dots], x_label="channel", hold_y=[0.0])
