"""Randomness that depends on what it is for, never on who draws it or when."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, number: int, purpose: str) -> torch.Generator:
    """A CPU generator keyed by (seed, global sample number, purpose).

    The same key gives the same draws on every rank, world size and resume; other keys are independent of it.
    """
    digest = hashlib.blake2b(f"{seed}/{number}/{purpose}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
