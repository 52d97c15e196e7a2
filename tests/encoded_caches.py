"""Which windows an encoding goes through the VAE for, and what it writes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import latentvid.training.stages.dit.encode as encode


@contextmanager
def encoded() -> Iterator[list[int]]:
    """The windows that go through the VAE meanwhile."""
    windows: list[int] = []
    whole = encode.Encoder._encode

    def noted(self, group):
        windows.extend(index for index, _ in group)
        return whole(self, group)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode.Encoder, "_encode", noted)
        yield windows


def written(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.glob("latents-*.safetensors"))}
