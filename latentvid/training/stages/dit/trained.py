"""Which of a model's parameters are trained: all, those of some names, or an adapter's or branch's beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from ....config.schema import DitConfig
from ....errors import UserError
from ....models.adapters.control_files import branch_of, read_control
from ....models.adapters.fingerprint import named
from ....models.adapters.lora import raw_of
from ....models.control import ControlBranch, Reads
from ....models.open import OpenBackbone
from ....models.open.animatediff import train_motion_alone
from ....models.transformer import VideoDiT
from ....rng import derived_seed
from ....words import counted
from .beside import add_adapter, few, is_idle

OF_VIDEO_DIT = ("query", "key_value", "out")  # LoRA's usual places: the attentions of each block


def choose_trained(model: VideoDiT | OpenBackbone, config: DitConfig, usual: Sequence[str]) -> None:
    """Freezes what is not trained, and adds an adapter's matrices, or a control branch, in fp32. usual: endings of the
    layers' names in the blocks that an adapter changes where the configuration names none.

    Raises UserError for a name that nothing has.
    """
    if config.adapter.kind != "none":
        add_adapter(model, config, usual)
    elif config.controlnet.on:
        _add_branch(model, config)
    elif config.moves:
        train_motion_alone(raw_of(model))
    elif config.trainable:
        live = {name for name, _ in named(model) if not is_idle(model, name)}
        for pattern in config.trainable:
            if not any(re.search(pattern, name) for name in live):
                raise UserError(f"trainable: {pattern!r} is found in no parameter's name: {_examples(model)}")
        for name, parameter in named(model):
            parameter.requires_grad_(name in live and any(re.search(pattern, name) for pattern in config.trainable))


def _add_branch(model: VideoDiT | OpenBackbone, config: DitConfig) -> None:
    """A new control branch, or a saved one to go on with. All else is frozen."""
    raw_of(model).requires_grad_(False)
    every, saved = config.controlnet.every, config.controlnet.init
    if not model.blocks:
        raise UserError(
            f"controlnet.every={every}: {model.family} has no blocks that a branch could copy: leave it out"
        )
    if every > len(model.blocks):
        raise UserError(
            f"controlnet.every={every}: the model has {counted(len(model.blocks), 'block')}: give at most so many"
        )
    reads = Reads(*config.data.references)
    if saved is None:
        model.controls.append(ControlBranch(model, every, reads))
        return
    found = read_control(saved)
    if found.every != every:
        raise UserError(f"controlnet.init: {saved} has one block in {found.every}: set controlnet.every to that")
    model.controls.append(branch_of(model, found, reads))


def dropout_of(config: DitConfig, model: nn.Module, number: int) -> AbstractContextManager[None]:
    """Inside, an adapter's dropout, or that of the model's own layers, draws by the run's seed and a sample's number:
    the same where a run goes on."""
    draws = config.adapter.dropout or getattr(model, "drops", False)
    return _seeded(derived_seed(config.run.seed, number, "adapter-dropout")) if draws else nullcontext()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _examples(model: nn.Module) -> str:
    """Of modules that have parameters."""
    names = [name for name, _ in named(model) if not is_idle(model, name)]
    return few([name.removesuffix(".weight").removesuffix(".bias") for name in names])
