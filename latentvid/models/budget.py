"""How much memory a causal network takes for a chunk, how much there is, and the chunks and tiles that fit.

Axes: B clips, C channels, f h w latent frames, height, width. Sizes of chunks and tiles are in latent positions.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from ..errors import UserError
from ..kernels import unfolds
from .causal3d import StreamCache

CHUNK_PIXELS = 2**19  # clips x frames x height x width that pass through a network together, where one group is less
GPU_PIXELS = 2**24  # the same on GPUs, as far as the budget goes: small chunks leave a large GPU idle
SHARE = 0.5  # of the free memory that a pass may take where the caller names no budget
OVERLAP = 8  # latent positions that neighbouring tiles share
_MEASURED: weakref.WeakKeyDictionary[nn.Module, dict[tuple, Bytes]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Side:
    """An encoder or decoder as a map of latent positions.

    Of a latent frame it takes `time_in` frames and gives `time_out` (of a stream's first latent frame 1), of a position
    `space_in` x `space_in` pixels (or positions) and `space_out` x `space_out`.
    """

    name: str
    net: nn.Module
    channels_in: int
    channels_out: int
    time_in: int
    time_out: int
    space_in: int
    space_out: int

    def shape_in(self, clips: int, f: int, h: int, w: int, first: bool) -> tuple[int, int, int, int, int]:
        """[B,C,F,H,W] of the network's input for so many latent positions, at the start of a stream or further on."""
        frames = 1 + self.time_in * (f - 1) if first else self.time_in * f
        return clips, self.channels_in, frames, h * self.space_in, w * self.space_in

    def shape_out(self, clips: int, f: int, h: int, w: int, first: bool) -> tuple[int, int, int, int, int]:
        """The same of its output."""
        frames = 1 + self.time_out * (f - 1) if first else self.time_out * f
        return clips, self.channels_out, frames, h * self.space_out, w * self.space_out


@dataclass(frozen=True)
class Cut:
    """How streams are cut: latent frames of the first chunk and of each later one (0: there is none), clips that pass
    at a time, and the size of a tile in latent positions."""

    first: int
    later: int
    clips: int
    h: int
    w: int


class Bytes(NamedTuple):
    """What chunks take: `peak` while one passes, input and output chunk included; `held` between two."""

    peak: int
    held: int


def choose_cut(side: Side, clips: int, frames: int | None, h: int, w: int, budget: int | None) -> Cut:
    """The cut of `clips` streams of h x w latent positions.

    A chunk has about `CHUNK_PIXELS` (on GPUs `GPU_PIXELS`) however long the streams are, or less for the budget: first
    fewer groups of frames, then fewer clips at a time, and only where one group of one clip is too much, tiles.

    Args:
        frames: latent frames of the streams, when all of them are there: the tiles then pass one after the other.
            None where chunks come as they come: the caches of all tiles are then held together.
        budget: bytes that the pass may take beside its whole input and output. None: a share of what is free.

    Raises UserError where the smallest tile does not fit.
    """
    if budget is None:
        parameter = next(side.net.parameters())
        output = math.prod(side.shape_out(clips, frames or 1, h, w, first=True)) * parameter.element_size()
        budget = int(SHARE * (free_bytes(parameter.device) - output))
    needs = {}
    for cut in _candidates(side, clips, frames, h, w):
        needs[cut] = _needed(side, cut, clips, h, w, held_together=frames is None)
        if needs[cut] <= budget:
            return cut
    least = min(needs, key=needs.get)
    scale = max(side.space_in, side.space_out)
    raise UserError(
        f"to {side.name} {h * scale} x {w * scale} pixels takes at least {needs[least] / 1e6:,.1f} MB, in tiles of "
        f"{least.h * scale} x {least.w * scale}, and {budget / 1e6:,.1f} MB are allowed: free memory, give a larger "
        "budget, or take smaller frames"
    )


def _candidates(side: Side, clips: int, frames: int | None, h: int, w: int) -> Iterator[Cut]:
    """Cuts in the order of preference."""
    pixels = GPU_PIXELS if next(side.net.parameters()).device.type == "cuda" else CHUNK_PIXELS
    most = pixels // (side.time_in * side.time_out * (side.space_in * side.space_out) ** 2 * h * w)
    groups = max(1, most // clips if frames is None else min(most, frames - 1))
    at_once = max(1, min(clips, most // groups))
    rows = columns = 1
    while True:
        first, later = (1 + groups, groups) if frames is None or frames > 1 + groups else (frames, 0)
        yield Cut(first, later, at_once, _tile(h, rows), _tile(w, columns))
        more_rows, more_columns = (_tile(size, n + 1) >= 2 * OVERLAP for size, n in ((h, rows), (w, columns)))
        if groups > 1:
            groups //= 2
        elif at_once > 1:
            at_once //= 2
        elif more_rows and (_tile(h, rows) >= _tile(w, columns) or not more_columns):
            rows += 1
        elif more_columns:
            columns += 1
        else:
            return


def _tile(size: int, count: int) -> int:
    """Length of `count` equal tiles that cover `size` positions with the overlap."""
    return math.ceil((size + (count - 1) * OVERLAP) / count)


def tile_starts(size: int, tile: int) -> list[int]:
    """Where tiles that cover `size` positions begin; neighbours share about `OVERLAP`."""
    if tile >= size:
        return [0]
    last = math.ceil((size - OVERLAP) / (tile - OVERLAP)) - 1
    return [round(i * (size - tile) / last) for i in range(last + 1)]


def _needed(side: Side, cut: Cut, clips: int, h: int, w: int, held_together: bool) -> int:
    """Bytes of a pass; where all caches are held together, with the caches of the parts that wait."""
    live = live_bytes(side, cut)
    parts = math.ceil(clips / cut.clips) * len(tile_starts(h, cut.h)) * len(tile_starts(w, cut.w))
    return live.peak + (live.held * (parts - 1) if held_together else 0)


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated: on CUDA by this process, elsewhere under the machine's and cgroup's limits."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return min([psutil.virtual_memory().available, *_cgroup_free(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))])


def give_back() -> None:
    """Returns what was freed to the system, where the C library can (glibc).

    Tensors of many sizes scatter over its heap: without this, resident memory grows with the number of chunks.
    """
    trim = _c_library_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _c_library_trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None


def _cgroup_free(root: Path, membership: Path) -> list[int]:
    """Bytes left under the limit of each group that this process is in (Linux cgroups, version 1 and 2)."""
    free = []
    for line in membership.read_text().splitlines() if membership.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        names = ("memory/", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        prefix, limit_file, usage_file, total = names if controllers else ("", "memory.max", "memory.current", "")
        group = Path(path.lstrip("/"))
        for folder in (root / prefix / part for part in (group, *group.parents)):
            if not (folder / limit_file).exists():
                continue
            limit = (folder / limit_file).read_text().strip()
            if limit != "max" and int(limit) < 2**60:  # version 1 writes a huge number for no limit
                stat = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
                files = int(stat.get(f"{total}inactive_file", 0)) + int(stat.get(f"{total}active_file", 0))
                free.append(max(0, int(limit) - int((folder / usage_file).read_text()) + files))
    return free


def live_bytes(side: Side, cut: Cut) -> Bytes:
    """An upper bound of what passing one clip group's and tile's chunks takes at once, weights left out.

    The network runs on tensors without storage, whose lifetimes are counted: the pass itself costs neither its time nor
    its memory. What autograd keeps when gradients are on is not counted.
    """
    parameter = next(side.net.parameters())
    known = _MEASURED.setdefault(side.net, {})
    key = (side.name, cut, parameter.dtype, parameter.device.type, torch.get_num_threads())
    if key not in known:
        known[key] = _measure(side, cut, parameter)
    return known[key]


def _measure(side: Side, cut: Cut, parameter: Tensor) -> Bytes:
    tensors = [*side.net.named_parameters(), *side.net.named_buffers()]
    cache, count = StreamCache(more=cut.later > 0), Lifetimes(parameter.device)
    # a counter of FLOPs around the pass must not see this
    with torch.no_grad(), _disable_current_modes(), _without_hooks(side.net):
        state = {name: torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta") for name, x in tensors}
        with count:
            for frames in (cut.first, cut.later) if cut.later else (cut.first,):
                shape = side.shape_in(cut.clips, frames, cut.h, cut.w, first=not cache.started)
                x = torch.empty(shape, dtype=parameter.dtype, device="meta")
                functional_call(side.net, state, (x, cache))
                del x
                cache.started = True
    return Bytes(count.peak, count.live)


@contextmanager
def _without_hooks(net: nn.Module) -> Iterator[None]:
    """Inside, modules run their classes' own passes: offloading puts others in their place, which move the weights."""
    held = [(module, module.__dict__.pop("forward")) for module in net.modules() if "forward" in module.__dict__]
    try:
        yield
    finally:
        for module, forward in held:
            module.forward = forward


class Lifetimes(TorchDispatchMode):
    """Counts the bytes of the storages that operations make and that are alive, and their peak."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.live = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in given:  # views of what is given are free
                self._hold(x.untyped_storage())
        beside = _workspace(*args[:2], result, self.device) if func is torch.ops.aten.convolution.default else 0
        self.peak = max(self.peak, self.live + beside)
        return result

    def _hold(self, storage: torch.UntypedStorage) -> None:
        self.live += storage.nbytes()
        weakref.finalize(storage, self._release, storage.nbytes())

    def _release(self, size: int) -> None:
        self.live -= size


def _workspace(x: Tensor, weight: Tensor, y: Tensor, device: torch.device) -> int:
    """Bytes that a convolution may take beside its operands.

    Usually copies of them in the layout that its kernel likes. PyTorch's own kernel for CPUs unfolds the input instead;
    the 2D convolution in its place takes less.
    """
    if device.type == "cpu" and unfolds(x, weight):
        return y.nbytes // y.shape[1] * weight[0].numel() + weight.nbytes
    return x.nbytes + weight.nbytes + y.nbytes
