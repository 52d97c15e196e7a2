"""Guidance of the network's prediction while sampling."""

from __future__ import annotations

from torch import Tensor


def classifier_free(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """u + scale (c - u) (Ho & Salimans 2022, eq. 6 with scale = 1 + w); 1 is no guidance."""
    return unconditional + scale * (conditional - unconditional)
