"""Randomness that depends on what it is for, never on who draws it or when."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, number: int, purpose: str) -> torch.Generator:
    """A CPU generator keyed by (seed, global sample number, purpose).

    The same key gives the same draws on every rank, world size and resume; other keys are independent of it.
    """
    return torch.Generator().manual_seed(derived_seed(seed, number, purpose))


def derived_seed(seed: int, number: int, purpose: str) -> int:
    """The seed, 0 to 2^63 - 1, of the generator of that key: for what takes a seed of its own."""
    digest = hashlib.blake2b(f"{seed}/{number}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
