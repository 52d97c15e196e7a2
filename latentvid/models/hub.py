"""Models of the hub, in its own cache: the parts that are used and no more."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import hf_hub_download, snapshot_download

from ..errors import UserError, brief
from ..weights import PICKLES, read_object

INDEX = "model_index.json"
_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
T = TypeVar("T")


def is_name(source: str | Path) -> bool:
    """Whether it can be a repository's name on the hub, OWNER/NAME, and is no path of this machine's."""
    path = Path(source)
    return _NAME.fullmatch(str(source)) is not None and not path.exists() and not path.parent.is_dir()


def fetch(name: str, wanted: Callable[[Mapping[str, Any]], list[str]]) -> Path:
    """The folder of the hub's repository `name`: fetched, or as the cache has it when the hub does not answer.

    wanted: which of its folders, by its index. Pickled weights are not fetched. Raises UserError.
    """
    if not is_name(name):
        raise UserError(f"there is no model folder {name}: give a published model's folder or its name on the hub")

    def get(offline: bool) -> Path:
        index = Path(hf_hub_download(name, INDEX, local_files_only=offline))
        folders = wanted(read_object(index))
        return _snapshot(name, [INDEX, *(f"{folder}/*" for folder in folders)], offline)

    return _fetched(name, get, "a published model's folder")


def located_part(source: str | Path, part: str, what: str) -> Path:
    """The folder of one network: as it is, or, for a name on the hub, fetched: that of the repository's `part`, where
    it has such a folder, else the repository's own. what: it is, for messages. Raises UserError."""
    if not is_name(source):
        return Path(source)
    name = str(source)
    own = ["config.json", "diffusion_pytorch_model*"]  # a star takes in what is in folders too
    files = [*own, *(f"{part}/{file}" for file in own if part)]
    folder = _fetched(name, lambda offline: _snapshot(name, files, offline), what)
    return folder / part if part and (folder / part / "config.json").is_file() else folder


def _snapshot(name: str, files: list[str], offline: bool) -> Path:
    return Path(snapshot_download(name, allow_patterns=files, ignore_patterns=list(PICKLES), local_files_only=offline))


def _fetched(name: str, get: Callable[[bool], T], what: str) -> T:
    """What `get(offline)` gives, by the network or else by the cache alone."""
    try:
        return get(False)
    except UserError:
        raise
    except Exception as error:  # the hub's client raises its HTTP library's own errors, which differ by version
        try:
            return get(True)
        except UserError:
            raise
        except Exception:
            raise UserError(
                f"{name} is neither a folder nor found on the hub ({brief(error)}): give {what}, or "
                "fetch it where there is a network"
            ) from error
