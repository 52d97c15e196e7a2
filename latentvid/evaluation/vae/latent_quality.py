"""What latents look like to a diffusion model: statistics, redundancy, and how their power is spread.

`LatentQuality` reads latents one after another and keeps sums only; `report` makes the figures, for JSON.
Axes: C channels, f h w the latent's frames/height/width. All sums are float64.
"""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ...errors import UserError

PATCH = 2  # positions a side, in time and space, of the patches whose effective rank is measured
BINS = 16  # of the spectra, over 0 < frequency <= 1/2 cycle a position
AXES = {"time": 1, "height": 2, "width": 3}


class _Covariance:
    """Sums of rows [N,D] and of their outer products."""

    def __init__(self) -> None:
        self.count, self.sums, self.products = 0, None, None

    def add(self, rows: Tensor) -> None:
        sums, products = rows.sum(0), rows.T @ rows
        self.sums = sums if self.sums is None else self.sums + sums
        self.products = products if self.products is None else self.products + products
        self.count += len(rows)

    def matrix(self) -> Tensor:  # [D,D]
        mean = self.sums / self.count
        return self.products / self.count - mean.outer(mean)


class _Spectrum:
    """Power by channel and frequency, averaged over whatever sizes come."""

    def __init__(self, channels: int) -> None:
        self.power = torch.zeros(channels, BINS, dtype=torch.float64)
        self.count = torch.zeros(BINS, dtype=torch.float64)
        self.total = torch.zeros(BINS, dtype=torch.float64)  # of frequencies, so that a bin has its mean frequency

    def add(self, power: Tensor, frequency: Tensor) -> None:
        """power: [C,N,K] of N pieces at K frequencies [K], in cycles a position."""
        kept = (frequency > 0) & (frequency <= 0.5)
        power, frequency = power[..., kept], frequency[kept]
        bins = (frequency * 2 * BINS).ceil().long().clamp(1, BINS) - 1
        pieces = power.shape[1]
        self.power.index_add_(1, bins, power.sum(1))
        self.count.index_add_(0, bins, torch.full_like(frequency, pieces))
        self.total.index_add_(0, bins, frequency * pieces)

    def curve(self, variance: Tensor) -> dict | None:
        """`frequency`, `power` (mean of the channels, each at variance 1) and the `slope` of their logarithms."""
        seen = self.count > 0
        if int(seen.sum()) < 2:
            return None
        frequency = self.total[seen] / self.count[seen]
        power = (self.power[:, seen] / self.count[seen] / variance[:, None]).mean(0)
        slope = np.polyfit(frequency.log().numpy(), power.clamp_min(1e-30).log().numpy(), 1)[0]
        return {"frequency": frequency.tolist(), "power": power.tolist(), "slope": float(slope)}


def effective_rank(covariance: Tensor) -> float:
    """exp of the entropy of the normalised eigenvalues of [D,D] (Roy & Vetterli 2007): D where all are equal.

    A covariance of zeros has rank 0.
    """
    values = torch.linalg.eigvalsh(covariance).clamp_min(0)
    if not values.sum():
        return 0.0
    return float(torch.special.entr(values / values.sum()).sum().exp())


class LatentQuality:
    """Accumulates over latents of any length and size, of the same channels."""

    def __init__(self) -> None:
        self.clips, self.elements, self.channels = 0, 0, 0

    def add(self, z: Tensor) -> None:
        """z: one latent [C,f,h,w], not normalised."""
        if z.ndim != 4 or (self.clips and z.shape[0] != self.channels):
            raise ValueError(f"a latent is [C,f,h,w] with the channels of those before, got {list(z.shape)}")
        z = z.detach().double().cpu()
        if not self.clips:
            self._start(z)
        self.clips += 1
        self.elements += z.numel()
        self.position.add(rearrange(z, "C f h w -> (f h w) C"))
        shifted = (z - self.shift[:, None, None, None]).flatten(1)
        self.powers += torch.stack([shifted.pow(k).sum(1) for k in range(1, 5)])
        self._add_patches(z)
        self._add_spectra(z)
        for name, axis in AXES.items():
            a, b = z.narrow(axis, 0, z.shape[axis] - 1).flatten(1), z.narrow(axis, 1, z.shape[axis] - 1).flatten(1)
            self.pairs[name] += torch.stack([torch.full_like(a.sum(1), a.shape[1]), a.sum(1), b.sum(1), (a * b).sum(1),
                                             a.square().sum(1), b.square().sum(1)])  # fmt: skip

    def _start(self, z: Tensor) -> None:
        self.channels = z.shape[0]
        self.shift = z.mean(dim=(1, 2, 3))  # about which powers are summed, so that nothing cancels
        self.powers = z.new_zeros(4, self.channels)
        self.position, self.patch = _Covariance(), _Covariance()
        self.space, self.time = _Spectrum(self.channels), _Spectrum(self.channels)
        self.pairs = {name: z.new_zeros(6, self.channels) for name in AXES}

    def _add_patches(self, z: Tensor) -> None:
        f, h, w = (n // PATCH * PATCH for n in z.shape[1:])
        if min(f, h, w):
            self.patch.add(
                rearrange(z[:, -f:, :h, :w], "C (f a) (h b) (w c) -> (f h w) (C a b c)", a=PATCH, b=PATCH, c=PATCH)
            )

    def _add_spectra(self, z: Tensor) -> None:
        _, f, h, w = z.shape
        if min(h, w) >= 4:
            # a Hann window, since frames are not periodic; scaled so that white noise of variance 1 has power 1
            window = torch.hann_window(h + 2, False, dtype=z.dtype)[1:-1].outer(
                torch.hann_window(w + 2, False, dtype=z.dtype)[1:-1]
            )
            frames = (z - z.mean(dim=(2, 3), keepdim=True)) * window
            power = torch.fft.fft2(frames).abs().square() / window.square().sum()  # [C,f,h,w]
            radius = torch.hypot(torch.fft.fftfreq(h, dtype=z.dtype)[:, None], torch.fft.fftfreq(w, dtype=z.dtype))
            self.space.add(power.flatten(2), radius.flatten())
        if f >= 4:
            rows = rearrange(z - z.mean(dim=1, keepdim=True), "C f h w -> C (h w) f")
            self.time.add(torch.fft.rfft(rows).abs().square() / f, torch.fft.rfftfreq(f, dtype=z.dtype))

    def report(self) -> dict:
        """All figures, as JSON holds them. Raises UserError where no latent came.

        mean, std, kurtosis (3 for a Gaussian): of each channel. correlation: of channels, [C][C].
        effective_rank: of the channels' covariance, `normalised_effective_rank` of their correlation, which is what a
        diffusion model sees, `patch_effective_rank` of patches of 2 x 2 x 2 positions, with `patch_dimension`.
        spectrum: over space (radially averaged) and time. neighbour_correlation: along time, height, width, the mean
        of the channels. What clips are too short or small for is None.
        """
        if not self.clips:
            raise UserError("there is no latent to report on: give at least one clip")
        n = self.elements // self.channels
        first, second, third, fourth = self.powers / n
        variance = (second - first.square()).clamp_min(1e-30)
        about_mean = fourth - 4 * first * third + 6 * first.square() * second - 3 * first.pow(4)
        covariance = self.position.matrix()
        std = covariance.diagonal().clamp_min(1e-30).sqrt()
        correlation = covariance / std.outer(std)
        others = correlation[~torch.eye(self.channels, dtype=torch.bool)]
        patch = self.patch.matrix() if self.patch.count else None
        return {
            "clips": self.clips,
            "channels": self.channels,
            "positions": n,
            "mean": (first + self.shift).tolist(),
            "std": variance.sqrt().tolist(),
            "kurtosis": (about_mean / variance.square()).tolist(),
            "correlation": correlation.tolist(),
            "mean_absolute_correlation": float(others.abs().mean()) if len(others) else 0.0,
            "effective_rank": effective_rank(covariance),
            "normalised_effective_rank": effective_rank(correlation),
            "patch_effective_rank": None if patch is None else effective_rank(patch),
            "patch_dimension": self.channels * PATCH**3,
            "spectrum": {"space": self.space.curve(variance), "time": self.time.curve(variance)},
            "neighbour_correlation": {name: _pearson(sums) for name, sums in self.pairs.items()},
        }


def _pearson(sums: Tensor) -> float | None:
    """Mean over channels of the correlation of pairs, from [6,C]: count, a, b, ab, aa, bb."""
    count, a, b, ab, aa, bb = sums
    if not count[0]:
        return None
    spread = ((aa - a.square() / count) * (bb - b.square() / count)).clamp_min(1e-30).sqrt()
    return float(((ab - a * b / count) / spread).mean())
