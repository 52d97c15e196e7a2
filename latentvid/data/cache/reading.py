"""Reading files of a cache: what may pass is waited for, and what does not is named."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

from ...errors import ClipError, StorageError, UserError
from ..storage import PATIENCE_S, is_storage_fault, number_of, patiently

T = TypeVar("T")

AGAIN = "run vae/encode_latents.py again"


def read_again(read: Callable[[], T], path: Path, patience_s: float = PATIENCE_S) -> T:
    """As `patiently`, of a file of a cache: what may pass is waited for, and only that."""

    def once() -> T:
        try:
            return read()
        except SafetensorError as error:
            if not is_storage_fault(error):
                raise
            raise StorageError(path, str(error), number_of(error)) from error

    try:
        return patiently(once, path, patience_s)
    except ClipError as error:  # "input/output error", and yet the file can be read
        raise UserError(f"{error.path} is damaged ({error.reason}): {AGAIN}") from error


def read_json(file: Path, patience_s: float = PATIENCE_S) -> Any:
    """Raises UserError where there is no such regular file, or it is no JSON."""

    def read() -> str:
        if not stat.S_ISREG(os.stat(file).st_mode):
            raise UserError(f"{file} is no file: {AGAIN}")
        return file.read_text(encoding="utf-8")

    try:
        return json.loads(read_again(read, file, patience_s))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file} is missing or damaged ({error}): {AGAIN}") from None
