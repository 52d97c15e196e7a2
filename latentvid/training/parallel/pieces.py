"""The part of a model and its optimiser that one process holds, whatever strategy shards them.

Every strategy gives each process a run of elements of each parameter's row-major flattening: all of them (one process,
DDP), rows (FSDP2), or a slice (ZeRO). A `Piece` is such a run. Checkpoints hold pieces under the parameter's name, so
that a reader can cut them anew for any other strategy and number of processes.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...errors import UserError
from ...files import file_fault

_PART = re.compile(r"^(?P<name>.*)\[(?P<start>\d+):(?P<stop>\d+)\]$")


@dataclass(eq=False)
class Piece:
    """Elements [start, start + value.numel()) of a parameter.

    name, shape: of the whole parameter. value: fp32, the optimiser's truth, of any shape. trainable: has a state.
    owner: this process writes it (where several hold the same). moments: the optimiser's tensors of the same elements,
    by their names in the optimiser (exp_avg, ...). scales: its tensors of whole blocks of a parameter, which only who
    holds it whole has. scalars: the rest of the optimiser's state (step, ...).
    """

    name: str
    shape: tuple[int, ...]
    start: int
    value: Tensor
    trainable: bool = True
    owner: bool = True
    moments: dict[str, Tensor] = field(default_factory=dict)
    scales: dict[str, Tensor] = field(default_factory=dict)
    scalars: dict[str, Any] = field(default_factory=dict)

    @property
    def stop(self) -> int:
        return self.start + self.value.numel()

    @property
    def whole(self) -> bool:
        return self.value.numel() == torch.Size(self.shape).numel()

    def key(self, suffix: str = "") -> str:
        """Its name in a file: NAME, or NAME[start:stop] of a part."""
        return f"{self.name}{suffix}" if self.whole else f"{self.name}{suffix}[{self.start}:{self.stop}]"

    def store(self, data: Tensor) -> Tensor:
        """`data` (as many elements as the piece) on the host, as a file holds it: a copy."""
        return _stored(data).reshape(self.shape if self.whole else -1)


def _stored(data: Tensor) -> Tensor:
    """A copy on the host: fp32, or codes as they are."""
    dtype = torch.float32 if data.is_floating_point() else data.dtype
    return data.detach().to("cpu", dtype, copy=True).contiguous()


def pack_scalar(value: Any) -> Tensor:
    """A zero-dimensional tensor that keeps the type: bool, int64 and float64 are Python's own."""
    if torch.is_tensor(value):
        return value.detach().to("cpu", copy=True).reshape(())
    kinds = {bool: torch.bool, int: torch.int64, float: torch.float64}
    return torch.tensor(value, dtype=kinds[type(value)])


def unpack_scalar(value: Tensor) -> Any:
    """Undoes `pack_scalar`."""
    return value.item() if value.dtype in (torch.bool, torch.int64, torch.float64) else value


class PieceReader:
    """Reads any run of any tensor from the files KIND.safetensors or KIND-00000-of-00002.safetensors of a folder."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind
        self._files = [_open(path, folder) for path in sorted(folder.glob(f"{kind}*.safetensors"))]
        if not self._files:
            raise UserError(f"{folder} holds no {kind}*.safetensors: it is not a checkpoint of this version")
        self._runs: dict[str, list[tuple[int, int | None, int, str]]] = defaultdict(list)
        for number, file in enumerate(self._files):
            for key in file.keys():  # noqa: SIM118 - not a dict
                part = _PART.match(key)
                name, start, stop = (part["name"], int(part["start"]), int(part["stop"])) if part else (key, 0, None)
                self._runs[name].append((start, stop, number, key))

    def __contains__(self, name: str) -> bool:
        return name in self._runs

    def names(self) -> Iterable[str]:
        return self._runs.keys()

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Of a tensor that is stored whole; None where it is in parts."""
        _, stop, number, key = self._runs[name][0]
        return tuple(self._files[number].get_slice(key).get_shape()) if stop is None else None

    def scalar(self, name: str) -> Any:
        _, _, number, key = self._runs[name][0]
        return unpack_scalar(self._files[number].get_tensor(key))

    def read(self, name: str, start: int, count: int, size: int) -> Tensor:
        """Elements [start, start + count) of the tensor `name`, which has `size` elements -> [count].

        Raises UserError where the checkpoint has not all of them, or another size.
        """
        out, have = None, 0
        for begin, stop, number, key in self._runs.get(name, ()):
            piece = self._files[number].get_slice(key)
            end = torch.Size(piece.get_shape()).numel() if stop is None else stop
            if stop is None and end != size or end > size:
                raise UserError(f"{self.folder}: {name} has {end} elements, the model's has {size}: another model's")
            low, high = max(begin, start), min(end, start + count)
            if low >= high:
                continue
            data = self._files[number].get_tensor(key).flatten() if stop is None else piece[low - begin : high - begin]
            data = data[low:high] if stop is None else data
            if out is None:
                out = torch.empty(count, dtype=data.dtype)
            out[low - start : high - start] = data
            have += high - low
        if have < count or (out is None and count):
            raise UserError(f"{self.folder}: {self.kind} holds {have} of the {count} elements asked of {name}")
        return torch.empty(0) if out is None else out

    def full(self, name: str, shape: Iterable[int]) -> Tensor:
        """The whole tensor; UserError unless the checkpoint has all of it."""
        shape = torch.Size(shape)
        stored = self.shape(name) if name in self else None
        if stored is not None and stored != tuple(shape):
            raise UserError(f"{self.folder}: {name} has shape {stored}, the model's has {tuple(shape)}")
        return self.read(name, 0, shape.numel(), shape.numel()).reshape(shape)


def _open(path: Path, folder: Path):
    """A file of a checkpoint's tensors; UserError if it is damaged or missing."""
    if fault := file_fault(path, folder):
        raise UserError(f"{path} {fault}")
    try:
        return safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error})") from None


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor that holds NaN or infinity; None where none does."""
    for name, tensor in tensors.items():
        if tensor.numel() and tensor.is_floating_point():
            low, high = torch.aminmax(tensor)  # one pass, and no memory; NaN is both
            if not (torch.isfinite(low) and torch.isfinite(high)):
                return name
    return None


def model_tensors(pieces: Iterable[Piece]) -> dict[str, Tensor]:
    """What `model.safetensors` holds of these pieces."""
    return {p.key(): p.store(p.value) for p in pieces if p.owner and p.value.numel()}


def optimizer_tensors(pieces: Iterable[Piece]) -> dict[str, Tensor]:
    """What `optimizer.safetensors` holds: NAME:exp_avg[a:b] and the like, scales, and scalars NAME:step."""
    found: dict[str, Tensor] = {}
    for piece in pieces:
        if piece.owner and piece.value.numel():
            found |= {piece.key(f":{key}"): piece.store(value) for key, value in piece.moments.items()}
            found |= {f"{piece.name}:{key}": _stored(value) for key, value in piece.scales.items()}
            found |= {f"{piece.name}:{key}": pack_scalar(value) for key, value in piece.scalars.items()}
    return found


@torch.no_grad()
def load_values(pieces: Iterable[Piece], reader: PieceReader) -> None:
    """Overwrites the pieces with the model that a checkpoint holds."""
    for piece in pieces:
        size = torch.Size(piece.shape).numel()
        data = reader.read(piece.name, piece.start, piece.value.numel(), size)
        piece.value.copy_(data.reshape(piece.value.shape))


def saved_state(reader: PieceReader) -> tuple[dict[str, list[str]], dict[str, dict[str, Any]]]:
    """The optimiser's state that a checkpoint has: {parameter: keys of moments and scales}, {parameter: scalars}."""
    moments: dict[str, list[str]] = defaultdict(list)
    scalars: dict[str, dict[str, Any]] = defaultdict(dict)
    for name in reader.names():
        parameter, _, key = name.rpartition(":")
        if reader.shape(name) == ():
            scalars[parameter][key] = reader.scalar(name)
        moments[parameter] += [key] if reader.shape(name) != () else []
    return moments, scalars


@torch.no_grad()
def load_moments(pieces: Iterable[Piece], reader: PieceReader) -> None:
    """Overwrites the pieces' moments and scales, which must be there (see `Strategy.make_state`)."""
    for piece in pieces:
        size = torch.Size(piece.shape).numel()
        for key, value in piece.moments.items():
            data = reader.read(f"{piece.name}:{key}", piece.start, value.numel(), size)
            value.copy_(data.reshape(value.shape))
        for key, value in piece.scales.items():
            value.copy_(reader.full(f"{piece.name}:{key}", value.shape))
