"""Published repositories of the hub, in its own cache: the parts that are used and no more."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download

from ...errors import UserError
from ...weights import PICKLES, read_object

INDEX = "model_index.json"


def fetch(name: str, wanted: Callable[[Mapping[str, Any]], list[str]]) -> Path:
    """The folder of the hub's repository `name`: fetched, or as the cache has it when the hub does not answer.

    wanted: which of its folders, by its index. Pickled weights are not fetched. Raises UserError.
    """
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) or Path(name).parent.is_dir():
        raise UserError(f"there is no model folder {name}: give a published model's folder or its name on the hub")
    try:
        return _fetch(name, wanted, offline=False)
    except UserError:
        raise
    except Exception as error:  # the hub's client raises its HTTP library's own errors, which differ by version
        try:
            return _fetch(name, wanted, offline=True)
        except UserError:
            raise
        except Exception:
            raise UserError(
                f"{name} is neither a folder nor to be had from the hub ({str(error).strip()[:200]}): give a published "
                "model's folder, or fetch it where there is a network"
            ) from error


def _fetch(name: str, wanted: Callable[[Mapping[str, Any]], list[str]], offline: bool) -> Path:
    options: dict[str, Any] = {"local_files_only": offline}
    index = Path(hf_hub_download(name, INDEX, **options))
    folders = wanted(read_object(index))
    take = partial(snapshot_download, allow_patterns=[INDEX, *(f"{folder}/*" for folder in folders)])
    return Path(take(name, ignore_patterns=list(PICKLES), **options))
