"""Clips of equal shapes as one tensor each, on their shortest way out of a loader process."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.utils.data import get_worker_info


class Stacks:
    """Takes clips one by one; `tensors` gives those of each shape as one uint8 [B,F,H,W,3].

    In a loader process each clip is at once written into the memory that the training process will map. Stacked, and
    then moved there by torch, it would cost twice the time, most of it in page faults: a tenth of all decoding.
    """

    def __init__(self, shapes: Iterable[tuple[int, int, int]]) -> None:
        """shapes: (F, H, W) of all the clips to come."""
        kind = _Shared if get_worker_info() is not None and hasattr(os, "memfd_create") else _Own
        self._stacks = {shape: kind((count, *shape, 3)) for shape, count in Counter(shapes).items()}

    def append(self, pixels: Tensor) -> None:
        """uint8 [F,H,W,3]"""
        self._stacks[tuple(pixels.shape[:3])].append(pixels)

    def tensors(self) -> dict[tuple[int, int, int], Tensor]:
        """{(F, H, W): uint8 [B,F,H,W,3]}, in the order in which the shapes were first named."""
        return {shape: stack.tensor() for shape, stack in self._stacks.items()}


class _Own:
    def __init__(self, shape: Sequence[int]) -> None:
        self._clips, self._filled = torch.empty(shape, dtype=torch.uint8), 0

    def append(self, pixels: Tensor) -> None:
        self._clips[self._filled] = pixels
        self._filled += 1

    def tensor(self) -> Tensor:
        return self._clips


class _Shared:
    def __init__(self, shape: Sequence[int]) -> None:
        self._shape = shape
        self._file = open(os.memfd_create("clips"), "wb")  # noqa: SIM115 - closed with the last reference

    def append(self, pixels: Tensor) -> None:
        self._file.write(memoryview(pixels.contiguous().numpy()))

    def tensor(self) -> Tensor:
        self._file.flush()
        storage = torch.UntypedStorage._new_shared_fd_cpu(self._file.fileno(), self._file.tell())
        return torch.empty(0, dtype=torch.uint8).set_(storage).view(self._shape)
