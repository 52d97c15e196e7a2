"""The weights that a run begins with: another model's, from wherever training or a hub has put them."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor, nn

from ...config.schema import stage_of
from ...config.sections import Weights
from ...config.yaml_files import read_yaml
from ...errors import UserError, brief
from ...models.building import shapes_of
from ...models.kinds import DIT, KINDS, kind_in, kind_of
from ...models.saved import STEM, check_saved, read_arguments
from ...weights import Shapes, read_object, shapes_in, weight_files
from ...world import from_main
from ..origin import Origin, few
from ..parallel.pieces import PieceReader
from .checkpoint import MANIFEST, CheckpointStore, find_damage
from .records import State, read_record

INDEX = "model_index.json"  # of a pipeline in diffusers' format


@dataclass(frozen=True)
class Source:
    """Weights of a model of some class, not read yet.

    where: in words. kind: of `models.kinds`. arguments: of its constructor, and `kind` where it is no transformer; None
    where nothing tells them. shapes: of its tensors, by the names that the backbone has. beside:
    configurations of what it was trained with ("scheduler", "vae") and of the "pipeline" that it lies in, as far as
    they are known.
    """

    where: str
    kind: str
    arguments: dict[str, Any] | None
    shapes: Shapes
    read: Callable[[str], Tensor]
    beside: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Wanted:
    """Which model it must be. kind: of `models.kinds`; None: any. stage: as configurations say it. part: the model's
    folder in a pipeline. arguments: of a transformer's constructor that are told by other things than its own
    configuration."""

    kind: str | None
    stage: str
    part: str
    arguments: Mapping[str, Any]

    def check(self, folder: Path, kind: str) -> None:
        """Raises UserError for weights of another kind."""
        if self.kind not in (None, kind):
            raise UserError(
                f"init: {folder} holds a {KINDS[kind].cls.__name__}, and model.kind is {self.kind}: set "
                f"model.kind={kind}, or give other weights"
            )


def open_source(init: str, weights: Weights, wanted: Wanted) -> Source:
    """The weights that `init` names: a pipeline or the model in it, a run, a checkpoint of any strategy, or the hub's
    name of one of the first two. weights: which of a run's or checkpoint's. Raises UserError."""
    folder = Path(init).expanduser()
    if not folder.exists():
        folder = _fetched(init, wanted)
    if (folder / INDEX).is_file():
        return _saved(folder / wanted.part, weights, wanted, around=folder)
    if (folder / "config.json").is_file():
        return _saved(folder, weights, wanted, around=folder.parent)
    if (folder / MANIFEST).is_file():
        return _of_checkpoint(folder, weights, wanted)
    if (folder / "checkpoints").is_dir() and (newest := CheckpointStore(folder / "checkpoints").newest()) is not None:
        return _of_checkpoint(newest, weights, wanted)
    raise UserError(
        f"init={init}: holds no weights: give a pipeline's folder ({INDEX}), its {wanted.part}, a run (checkpoints), a "
        f"checkpoint ({MANIFEST}), or a hub name"
    )


def goes_on(run: Path) -> bool:
    """Whether there is a run in the folder that a start goes on with, or refuses to; as the main process sees it."""
    return from_main(lambda: bool(CheckpointStore(run / "checkpoints").steps()))


def inherited(run: Path) -> dict[str, Any]:
    """The model's arguments of the run that goes on in a folder: what it took from its `init` is among them."""
    found = read_yaml(run / "config.yaml").get("model")
    return found if isinstance(found, dict) else {}


def _fetched(name: str, wanted: Wanted) -> Path:
    """Where the hub's repository lies here; what is in the hub's cache is taken when the hub does not answer."""
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name) or ("/" in name and Path(name).parent.is_dir()):
        raise UserError(f"init={name}: there is no such folder: give a pipeline, a run, a checkpoint, or a hub name")
    files = ("*.json", f"{STEM}*.safetensors", f"{wanted.part}/{STEM}*.safetensors")  # a star takes in folders too
    try:
        return Path(snapshot_download(name, allow_patterns=list(files), ignore_patterns=["checkpoints/*"]))
    except Exception as error:  # the hub's client raises its HTTP library's own errors, which differ by version
        raise UserError(
            f"init={name} is neither a folder nor found on the hub ({brief(error, 200)}): give a "
            "folder, or fetch it where there is a network"
        ) from error


def _saved(folder: Path, weights: Weights, wanted: Wanted, around: Path) -> Source:
    """Of a model in diffusers' format. around: the pipeline that it may be part of."""
    if weights != "ema":
        raise UserError(
            f"init_weights={weights}: {folder} is an exported model, which has one set of weights: leave it out, or "
            "give the run or a checkpoint of it"
        )
    kind = kind_in(folder)
    wanted.check(folder, kind)
    cls, prefix = KINDS[kind].cls, KINDS[kind].prefix
    check_saved(cls, folder)
    place: dict[str, Path] = {}
    for file in weight_files(folder, STEM):
        place |= dict.fromkeys((prefix + name for name in shapes_in([file])), file)

    def read(name: str) -> Tensor:
        with safe_open(place[name], "pt") as held:
            return held.get_tensor(name.removeprefix(prefix))

    arguments = read_arguments(cls.__init__, folder / "config.json") | _told_kind(kind)
    files = {"scheduler": around / "scheduler" / "scheduler_config.json", "vae": around / "vae" / "config.json"}
    files["pipeline"] = around / INDEX
    beside = {name: read_object(file) for name, file in files.items() if file.is_file()}
    shapes = {prefix + name: shape for name, shape in shapes_in(set(place.values())).items()}
    return Source(f"{folder} (exported)", kind, arguments, shapes, read, beside)


def _told_kind(kind: str) -> dict[str, str]:
    """Among a model's arguments: that it is of this kind."""
    return {} if kind == DIT else {"kind": kind}


def _of_checkpoint(folder: Path, weights: Weights, wanted: Wanted) -> Source:
    """Of a checkpoint, whatever strategy and number of processes wrote it."""
    if damage := find_damage(folder):
        raise UserError(f"init: {folder} is damaged: {damage}")
    state = read_record(folder / "state.json", State, folder)
    settings = _settings(folder)
    if (stage := stage_of(settings)) not in (None, wanted.stage):
        raise UserError(f"init: {folder} is of a run of stage {stage}, not {wanted.stage}: give a run of that")
    if state["ema_updates"] == 0:
        raise UserError(f"init: {folder} holds no trained weights, no step changed them: give another")
    if state.get("base") is not None:  # else it holds all of the model
        _check_whole(folder, settings)
    arguments = state.get("model")
    if arguments is None and isinstance(settings.get("model"), dict):  # older checkpoints do not say it themselves
        arguments = {**settings["model"], **{k: v for k, v in wanted.arguments.items() if k not in settings["model"]}}
    kind = kind_of(arguments or {})
    wanted.check(folder, kind)
    cls, prefix = KINDS[kind].cls, KINDS[kind].prefix
    raw = PieceReader(folder, "model")
    average = raw if weights == "raw" else PieceReader(folder, "ema")
    names = [*raw.names()]
    shapes = {} if arguments is None else shapes_of(cls, _known(cls, arguments))
    shapes = {name: shapes.get(name.removeprefix(prefix), raw.shape(name) or ()) for name in names}

    def read(name: str) -> Tensor:
        return (average if name in average else raw).full(name, shapes[name])  # what is not trained has no average

    beside = {"scheduler": settings["scheduler"]} if isinstance(settings.get("scheduler"), dict) else {}
    vae = Path(str(settings.get("vae"))) / "config.json"
    beside |= {"vae": read_object(vae)} if vae.is_file() else {}
    which = "averaged" if weights == "ema" else "raw"
    return Source(f"{folder} ({which} weights of step {state['step']:,})", kind, arguments, shapes, read, beside)


def _check_whole(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raises UserError for a checkpoint of what was trained beside a model, or of a part of it, alone."""
    told = {name: found for name, found in settings.items() if isinstance(found, dict)}
    run, what, fix = folder.resolve().parent.parent, "", ""
    if told.get("adapter", {}).get("kind", "none") != "none":
        what, fix = "an adapter", f"merge {run / 'lora'} into its model (python -m latentvid.adapters merge)"
        fix += ", or go on with it by adapter.init"
    elif told.get("controlnet", {}).get("every") is not None:
        what, fix = "a ControlNet", f"give its model, and {run / 'controlnet'} by controlnet.init"
    elif settings.get("trainable"):
        what, fix = "the weights that `trainable` named", f"give {run / 'pipeline'}, which is whole"
        if (run / "motion").is_dir():
            fix = f"give the image model, and {run / 'motion'} by init_motion"
    elif told.get("model", {}).get("motion") is not None:
        what, fix = "motion modules", f"give {run / 'motion'} by model.motion, and their image model by model.from"
    if what:
        raise UserError(f"init: {folder} holds {what} alone, not the model beside it: {fix}")


def _settings(checkpoint: Path) -> dict[str, Any]:
    """The configuration of the run that a checkpoint lies in; nothing where it lies alone."""
    file = checkpoint.resolve().parent.parent / "config.yaml"
    return read_yaml(file) if file.is_file() else {}


def _known(cls: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that the class has: other versions have more."""
    return {key: value for key, value in arguments.items() if key in inspect.signature(cls.__init__).parameters}


def differences(section: str, cls: type, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Arguments of a class that differ, in words; what one of the two does not say is the class's default."""
    usual = {name: p.default for name, p in inspect.signature(cls.__init__).parameters.items() if name != "self"}
    return [
        f"{section}.{name} is {shown_now}, was {shown_before}"
        for name, default in usual.items()
        if default is not inspect.Parameter.empty
        and (shown_now := _plain(now.get(name, default))) != (shown_before := _plain(before.get(name, default)))
    ]


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


@torch.no_grad()
def begin_with(
    model: nn.Module, source: Source, differing: Sequence[str], partial: bool, new: tuple[str, ...] = ()
) -> Origin:
    """Overwrites the parameters of a whole model with the source's; all of them, or with `partial` those that fit.

    differing: what else is not as it was, in words. new: how the names of parameters begin that the source need not
    have. Raises UserError, which lists it, where something does not fit, and where nothing would come from there.
    """
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
    equal = {name for name, shape in wanted.items() if source.shapes.get(name) == shape}
    both = wanted.keys() & source.shapes.keys()
    left = {
        "of another shape": _sized(sorted(both - equal), wanted, source.shapes),
        "not there": sorted(name for name in wanted.keys() - both if not name.startswith(new)),
        "there alone": sorted(source.shapes.keys() - both),
        "not as it was": list(differing),
    }
    if not partial and any(left.values()):
        said = "; ".join(f"{kind}: {few(names)}" for kind, names in left.items() if names)
        raise UserError(
            f"init: {source.where} does not fit this model ({said}): leave out what differs of `model`, or set "
            "init_partial=true to take what fits"
        )
    taken = 0
    for name, parameter in model.named_parameters():
        if name not in equal:
            continue
        value = source.read(name)
        if not torch.isfinite(value).all():
            raise UserError(f"init: {source.where}: {name} is not finite: give other weights")
        parameter.copy_(value)
        taken += value.numel()
    if not taken:
        raise UserError(
            f"init: no parameter of {source.where} fits this model (it has {few(sorted(source.shapes))}): give the "
            "weights of such a model, or leave init out"
        )
    return Origin(source.where, taken, sum(p.numel() for p in model.parameters()), left)


def _sized(names: Sequence[str], wanted: Shapes, held: Shapes) -> list[str]:
    return [f"{name} is {list(wanted[name])}, was {list(held[name])}" for name in names]
