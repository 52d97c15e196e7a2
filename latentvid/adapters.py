"""Files of adapters (LoRA and its kinds): what is in one, and models that have some in their weights.

    python -m latentvid.adapters show FILE
    python -m latentvid.adapters merge MODEL_FOLDER --lora FILE[:SCALE] [--lora ...] --out FOLDER

MODEL_FOLDER is a pipeline of ours, or a published model by its folder or hub name. FOLDER is loaded as it is: by our
programs, and where the model is a published one by diffusers too.
"""

from __future__ import annotations

if __name__ == "__main__":  # before torch is imported: --help and wrong options are answered at once
    from .commands import adapters

    adapters()
    raise SystemExit

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from .errors import UserError
from .files import check_name, check_writable, follow_umask, linked_copy, write_whole
from .models.adapters.lora import load_lora, merge, raw_of
from .models.adapters.lora_files import header_of
from .models.kinds import load_network
from .models.open import is_published, read_published
from .models.open.folder import copy_repository, load_backbone
from .models.saved import STEM
from .pipelines.arguments import Lora
from .pipelines.folder import CLASSES, INDEX, check_index, located
from .pipelines.latent_video import LatentVideoPipeline
from .references import Role, as_json, read_roles, roles_in, save_roles, saved_roles, with_more
from .weights import read_object, types_in, weight_files

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def merge_folder(
    model: str | Path, out: Path, first: Sequence[Lora], second: Sequence[Lora] = (), dtype: str | None = None
) -> None:
    """Writes the model at `out` with adapters in its transformer's weights, there only when whole.

    second: of the second transformer (Wan 2.2). dtype: one of `DTYPES` for the merged weights; None is that in which
    each of them is stored. Other parts are hard links where that can be. Raises UserError.
    """
    check_name(out, "--out", more=len("..partial"))
    if os.path.lexists(out):
        raise UserError(f"{out} exists: choose another folder, or remove it")
    check_writable(out.parent, "give --out another folder, or mend this one")
    beside = out.with_name(f".{out.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        model = located(model)
        (_merge_published if is_published(model) else _merge_ours)(model, beside, first, second, dtype)
        follow_umask(beside)
        beside.rename(out)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{out} could not be written ({error}): make room or mend the disk, and do it again") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _merge_published(
    model: str | Path, out: Path, first: Sequence[Lora], second: Sequence[Lora], dtype: str | None
) -> None:
    published = read_published(model)
    asked = _asked(published.experts, first, second)
    roles = _with_roles(saved_roles(published.folder), [*first, *second])
    merged = {}
    for part, files in asked.items():
        backbone = load_backbone(published, part)
        merged[part] = _merged(backbone, files, published.parts[part], dtype)
    copy_repository(published, out, without=tuple(asked))
    save_roles(out, roles)
    for part, network in merged.items():
        network.save_pretrained(out / part)


def _merge_ours(model: str | Path, out: Path, first: Sequence[Lora], second: Sequence[Lora], dtype: str | None) -> None:
    folder = Path(model)
    known = read_roles(check_index(folder, LatentVideoPipeline).get("references"), str(folder / INDEX))
    roles = _with_roles(known, first)
    part, network = "transformer", load_network(folder / "transformer")
    network = _merged(network, _asked((part,), first, second)[part], folder / part, dtype)
    others = CLASSES.keys() - {part}
    linked_copy(folder, out, lambda place: len(place.parts) == 1 or place.parts[0] in others)
    network.save_pretrained(out / part)
    if roles != known:
        index = read_object(out / INDEX)
        write_whole(out / INDEX, json.dumps(index | {"references": as_json(roles)}, indent=2) + "\n")


def _with_roles(known: Mapping[str, Role], files: Sequence[Lora]) -> dict[str, Role]:
    """The roles of references of a model with these files in it. Raises UserError for two of one name."""
    for file, _ in files:
        known = with_more(known, roles_in(header_of(file), str(file)), file)
    return dict(known)


def _asked(parts: Sequence[str], first: Sequence[Lora], second: Sequence[Lora]) -> Mapping[str, Sequence[Lora]]:
    """The files of each transformer that has some."""
    if second and len(parts) == 1:
        raise UserError(f"--lora-2 {second[0].file}: this model has one network: give --lora")
    found = {part: files for part, files in zip(parts, (first, second), strict=False) if files}
    if not found:
        raise UserError("there is nothing to merge: give --lora FILE, or FILE:SCALE")
    return found


def _merged(network: nn.Module, files: Sequence[Lora], folder: Path, dtype: str | None) -> nn.Module:
    """The raw network, in the types that its weights in `folder` have or in another."""
    for file, scale in files:
        load_lora(network, file, scale)
    merge(network)
    raw, stored = raw_of(network), types_in(weight_files(folder, STEM))
    for name, parameter in raw.named_parameters():
        parameter.data = parameter.data.to(stored.get(name, parameter.dtype) if dtype is None else DTYPES[dtype])
    return raw
