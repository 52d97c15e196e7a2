"""Loading a saved pipeline, or a published model, onto a device."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from ..errors import UserError
from ..models.adapters.control_files import PARTS, is_its_base, load_control, read_control
from ..models.adapters.lora import load_lora
from ..models.adapters.lora_files import header_of
from ..models.compiling import compile_blocks
from ..models.hub import located_part
from ..models.open import is_published, read_published
from ..precision import MixedPrecision, choose, dtype_of
from ..references import roles_in
from ..world import usable_device
from .animatediff import put_adapter
from .arguments import ControlNet, Lora
from .folder import INDEX, check_index, located
from .latent_video import LatentVideoPipeline
from .motion import put_motion
from .open_video import OpenVideoPipeline
from .references import add_roles


def load_pipeline(
    folder: str | Path,
    device: torch.device | str | None = None,
    *,
    compiled: bool = False,
    mixed_precision: MixedPrecision = "auto",
    lora: Sequence[Lora] = (),
    lora_2: Sequence[Lora] = (),
    control: Sequence[ControlNet] = (),
    motion: Path | None = None,
) -> LatentVideoPipeline:
    """A saved pipeline or a published model, by its folder or hub name, on `device` (by default CUDA where there is
    one). Raises UserError.

    compiled: the first step compiles the transformer's blocks, once for clips of all shapes. mixed_precision: weights
    of published models are read in what they are computed in, those of our own in fp32. lora: put into the transformer;
    lora_2: into the second one. control: put beside the network that each was trained on. motion: folder of a motion
    module, put into an image model of ours before these, or of a `MotionAdapter`, put into Stable Diffusion.
    """
    adapters = tuple(lora), tuple(lora_2), tuple(control), motion

    def load() -> LatentVideoPipeline:
        return _load(folder, usable_device(device), compiled, mixed_precision, *adapters)

    if _kept is None:
        return load()
    files = [Path(folder), *(each[0] for group in adapters[:3] for each in group), *([motion] if motion else [])]
    return _kept.get((str(folder), str(device), compiled, mixed_precision, adapters, tuple(map(_written, files))), load)


class Kept:
    """Pipelines that stay loaded for the next program that asks for the same ones."""

    def __init__(self) -> None:
        self._pipelines: dict[Hashable, LatentVideoPipeline] = {}
        self._used: set[Hashable] = set()  # by the program that runs

    def get(self, key: Hashable, load: Callable[[], LatentVideoPipeline]) -> LatentVideoPipeline:
        """The one that is kept; another one is loaded once those that this program did not ask for are dropped."""
        if key not in self._pipelines:
            self._pipelines = {old: one for old, one in self._pipelines.items() if old in self._used}
            self._pipelines[key] = load()
        self._used.add(key)
        return self._pipelines[key]

    def ended(self) -> None:
        """A program has ended: what it asked for is kept for the next."""
        self._used.clear()


_kept: Kept | None = None


@contextmanager
def pipelines_kept() -> Iterator[Kept]:
    """Inside, `load_pipeline` gives the pipeline that it gave before, where it is asked for the same of the same
    files: for a process that runs several programs."""
    global _kept
    before, _kept = _kept, Kept()
    try:
        yield _kept
    finally:
        _kept = before


def _written(path: Path) -> int | None:
    """When a model's index or an adapter's file was written; None where it is no file here."""
    for file in (path / INDEX, path):
        if file.exists():
            return os.stat(file).st_mtime_ns
    return None


def _load(
    folder: str | Path,
    device: torch.device,
    compiled: bool,
    mixed_precision: MixedPrecision,
    lora: Sequence[Lora],
    lora_2: Sequence[Lora],
    control: Sequence[ControlNet],
    motion: Path | None,
) -> LatentVideoPipeline:
    folder, published = located(folder), None
    if is_published(folder):
        published = read_published(folder)
    else:
        check_index(Path(folder), LatentVideoPipeline)
    if published is None:
        pipeline = LatentVideoPipeline.from_pretrained(folder)
    else:
        pipeline = OpenVideoPipeline.of(published, dtype_of(choose(mixed_precision, device)))
    if motion is not None:
        put = put_motion if published is None else put_adapter
        put(pipeline, located_part(motion, "", "a motion module's folder"))
    put_control(pipeline, control)
    put_lora(pipeline, lora, lora_2)
    if compiled:
        for network in pipeline.experts:
            compile_blocks(network)
    return pipeline.to(device)


def put_control(pipeline: LatentVideoPipeline, asked: Sequence[ControlNet]) -> None:
    """Puts ControlNets beside the pipeline's networks, and says so on stderr. Raises UserError."""
    for folder, scale, start, end in asked:
        found = read_control(folder)
        network = dict(zip(PARTS, pipeline.experts, strict=False)).get(found.part)
        if network is None:
            raise UserError(
                f"--control {folder} is of a model's {found.part}, which this one has not: load it with that"
            )
        add_roles(pipeline, {found.role: found.reference}, folder)
        load_control(network, folder, scale, start, end)
        steps = "" if (start, end) == (0.0, 1.0) else f" in steps {start:g} to {end:g}"
        note = "" if is_its_base(network, found) else f"; it was trained on other weights ({found.base.get('where')})"
        print(f"ControlNet {folder} times {scale:g}{steps}, of {found.role}{note}", file=sys.stderr, flush=True)


def put_lora(pipeline: LatentVideoPipeline, first: Sequence[Lora], second: Sequence[Lora] = ()) -> None:
    """Puts LoRA into the pipeline's networks, and says so on stderr. Raises UserError."""
    networks = list(pipeline.experts)
    if second and len(networks) == 1:
        raise UserError(f"--lora-2 {second[0].file}: this model has one network: give --lora")
    for network, what, asked in zip(networks, ("", " into the second network"), (first, second), strict=False):
        for file, scale in asked:
            load_lora(network, file, scale)
            add_roles(pipeline, roles_in(header_of(file), str(file)), file)
            print(f"LoRA {file} times {scale:g}{what}", file=sys.stderr, flush=True)
