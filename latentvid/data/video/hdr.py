"""Wide colours and high dynamic range shown as SDR: BT.709 primaries, the display curve of BT.1886 (2.4) or sRGB.

HLG and PQ become light by the curves of BT.2100 (HLG for a display of 1,000 cd/m2). 203 cd/m2, the reference white of
BT.2408, is SDR's white; what is brighter is bent by the curve of BT.2390 (EETF) for a source of 1,000 cd/m2, on the
largest of the three colours, so that hues stay. Colours outside of BT.709 are cut at its faces.
"""

from functools import lru_cache

import numpy as np

WHITE, PEAK = 203.0, 1000.0  # cd/m2
PQ, HLG, SRGB = 16, 18, 13  # transfer curves, and below primaries, as ITU-T H.273 numbers them
_XY = {  # red, green, blue, white
    1: ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), (0.3127, 0.3290)),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), (0.3127, 0.3290)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.3127, 0.3290)),
}
WIDE = frozenset(_XY) - {1}
_STEPS = 65536


def as_sdr(rgb: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """uint16 [H,W,3], coded colours over the full range -> uint8 [H,W,3]."""
    light = _curve(transfer)[rgb]
    if transfer == HLG:  # the display's system gamma, on luminance
        light *= PEAK / WHITE * np.power(np.maximum(light @ _to_xyz(9)[1], 1e-9), 0.2)[..., None]
    if transfer in (PQ, HLG):
        light *= _bend(light.max(-1))[..., None]
    if primaries in WIDE:
        light = light @ (np.linalg.inv(_to_xyz(1)) @ _to_xyz(primaries)).T.astype(np.float32)
    steps = np.sqrt(np.clip(light, 0, 1)) * (_STEPS - 1) + 0.5
    return _shown(transfer == SRGB)[steps.astype(np.uint16)]


@lru_cache
def _to_xyz(primaries: int) -> np.ndarray:
    """[3,3]: linear RGB to XYZ; its second row is luminance."""
    *colours, white = (np.array([x / y, 1, (1 - x - y) / y]) for x, y in _XY[primaries])
    matrix = np.stack(colours, 1)
    return (matrix * np.linalg.solve(matrix, white)).astype(np.float32)


@lru_cache
def _curve(transfer: int) -> np.ndarray:
    """float32 [65536]: light of each coded value: PQ's in whites, HLG's of the scene (0..1), else 0..1."""
    coded = np.arange(_STEPS) / (_STEPS - 1)
    if transfer == PQ:
        light = _from_pq(coded) / WHITE
    elif transfer == HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(coded <= 0.5, coded**2 / 3, (np.exp((coded - c) / a) + b) / 12)
    elif transfer == SRGB:
        light = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    else:
        light = coded**2.4
    return light.astype(np.float32)


@lru_cache
def _shown(srgb: bool) -> np.ndarray:
    """uint8 [65536]: the coded value of light, by its square root, which has steps enough in the dark."""
    light = (np.arange(_STEPS) / (_STEPS - 1)) ** 2
    coded = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(255 * (coded if srgb else light ** (1 / 2.4))).astype(np.uint8)


_PQ = 2610 / 16384, 2523 / 4096 * 128, 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32  # m1, m2, c1, c2, c3


def _from_pq(coded: np.ndarray) -> np.ndarray:
    """0..1 -> cd/m2"""
    m1, m2, c1, c2, c3 = _PQ
    power = coded ** (1 / m2)
    return 10000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)


def _to_pq(light: np.ndarray) -> np.ndarray:
    """cd/m2 -> 0..1"""
    m1, m2, c1, c2, c3 = _PQ
    power = (light / 10000) ** m1
    return ((c1 + c2 * power) / (1 + c3 * power)) ** m2


@lru_cache
def _bends() -> tuple[np.ndarray, np.ndarray]:
    """(fourth roots of light in whites, by how much the tone curve multiplies that light)"""
    roots = np.linspace(0, (PEAK / WHITE) ** 0.25, 4096)
    light = roots**4
    peak, white = _to_pq(np.array([PEAK, WHITE]))
    source, most = _to_pq(light * WHITE) / peak, white / peak
    knee = 1.5 * most - 0.5
    t = np.maximum(source - knee, 0) / (1 - knee)
    bent = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * most
    target = _from_pq(np.where(source < knee, source, bent) * peak) / WHITE
    return roots.astype(np.float32), np.where(light > 0, target / np.maximum(light, 1e-12), 1).astype(np.float32)


def _bend(largest: np.ndarray) -> np.ndarray:
    """float32 [H,W], in whites -> what to multiply by; beyond the peak all becomes white."""
    roots, factors = _bends()
    bent = np.interp(np.sqrt(np.sqrt(largest)), roots, factors).astype(np.float32)
    return np.where(largest > PEAK / WHITE, 1 / np.maximum(largest, 1e-9), bent)
